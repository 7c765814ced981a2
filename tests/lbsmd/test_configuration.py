"""File sets: includes, prefixes, scopes, holds, and every fault with its place."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import PurePath

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.lbsmd.entries import entries, host_names
from gridnet.lbsmd.servrc.configuration import Configuration, Rules, load
from gridnet.table.server_info import write
from tests.hypothesis_profile import examples
from tests.lbsmd.test_grammar import DOMAIN, VECTORS

RULES = Rules(DOMAIN, 0x300)


def read_set(files: Mapping[str, str], main: str = "a", rules: Rules = RULES) -> Configuration:
    """The file set *files* (name -> text), as it would be in the directory ``/s``."""

    def read(path: str) -> str:
        try:
            return files[path.removeprefix("/s/")]
        except KeyError:
            raise FileNotFoundError(2, "No such file or directory") from None

    return load(read, PurePath(main), PurePath("/s"), rules)


class FileSetCase(SynchronousTestCase):
    """Reads file sets."""

    def faults(self, files: Mapping[str, str], rules: Rules = RULES) -> list[str]:
        """The faults of *files*, as printed."""
        return [str(fault) for fault in read_set(files, rules=rules).faults]

    def good(self, files: Mapping[str, str]) -> Configuration:
        """What *files* say, which have no fault."""
        found = read_set(files)
        self.assertEqual(found.faults, ())
        return found


class IncludeTests(FileSetCase):
    """``%include``."""

    def test_names_start_at_the_daemons_directory_at_every_depth(self) -> None:
        """Not at the including file's."""
        found = self.good({"a": "%include sub/b", "sub/b": "%include c", "c": "x DNS"})
        self.assertEqual(found.files, ("/s/a", "/s/sub/b", "/s/c"))
        self.assertEqual([placed.file for placed in found.services], ["/s/c"])

    def test_prefixes_go_before_each_line_but_includes(self) -> None:
        """And do not carry over to files included further."""
        for row in VECTORS["prefix"]:
            lines = row["file_text"]
            effective: list[str] = []

            def note(text: str, into: list[str] = effective) -> None:
                into.append(text)

            found = read_set(
                {"a": f"%include b |{row['prefix']}", "b": lines, "more": ""}, rules=RULES
            )
            for name, value in found.environment:
                note(f"{name}={value}")
            for user in found.users:
                note(user)
            for group in found.groups:
                note(f"*{group}")
            if "@" in row["prefix"]:
                note("@" + ("prod" if found.zone == 0x100 else "2" if found.zone == 0x200 else "?"))
            if "/s/more" in found.files:
                effective.insert(0, "%include more")
            self.assertEqual(effective, row["effective"], row["id"])

    def test_a_missing_file_is_a_fault_of_its_line_and_is_watched(self) -> None:
        """The rest of the set is read."""
        found = read_set({"a": "x DNS\n%include gone\ny DNS\n"})
        self.assertEqual(
            [str(fault) for fault in found.faults],
            ["/s/a:2:1: /s/gone cannot be read: No such file or directory"],
        )
        self.assertEqual(len(found.services), 2)
        self.assertIn("/s/gone", found.files)

    def test_loops_and_depth_are_bounded(self) -> None:
        """A file that includes itself, directly or not; more than 16 files deep."""
        self.assertIn("includes itself", self.faults({"a": "%include a"})[0])
        self.assertIn("includes itself", self.faults({"a": "%include b", "b": "%include a"})[0])
        chain = {f"f{n}": f"%include f{n + 1}" for n in range(30)}
        self.assertIn("deeper than 16", self.faults({"a": "%include f0", **chain})[0])

    def test_a_file_included_twice_is_read_twice(self) -> None:
        """That is no loop."""
        found = self.good({"a": "%include b\n%include b |z=\n", "b": "v=1"})
        self.assertEqual(found.environment, (("v", "1"), ("z", "v=1")))


class AuthorityTests(FileSetCase):
    """Who may operate on this host's records."""

    def test_the_first_file_fixes_the_branch(self) -> None:
        """Each tree of the page: who is taken, and how many entries are refused."""
        for files, users, groups, refused in (
            ({"a": "u1\n%include b", "b": "u2"}, ("u1", "u2"), (), 0),
            ({"a": "%include b\n%include c", "b": "u1", "c": "u2"}, ("u1",), (), 1),
            ({"a": "%include b\nu2", "b": "u1"}, ("u1",), (), 1),
            ({"a": "%include b", "b": "u1\n%include c", "c": "u2"}, ("u1", "u2"), (), 0),
            ({"a": "%include b", "b": "%include c\nu2", "c": "u1"}, ("u1",), (), 1),
            ({"a": "%include b |*", "b": "g1\ng2"}, (), ("g1", "g2"), 0),
        ):
            found = read_set(files)
            self.assertEqual((found.users, found.groups), (users, groups), files)
            self.assertEqual(len(found.faults), refused, files)


class ZoneLineTests(FileSetCase):
    """``@`` lines."""

    def test_one_line_at_most_and_a_part_of_the_site(self) -> None:
        """The second is a fault; so is a zone outside the site, or against the command line."""
        self.assertEqual(self.good({"a": "@dev"}).zone, 0x200)
        self.assertEqual(self.good({"a": "x DNS"}).zone, 0x300)
        self.assertIn("/s/a:2:1", self.faults({"a": "@dev\n@prod"})[0])
        self.assertIn("0x300", self.faults({"a": "@4"})[0])
        fixed = Rules(DOMAIN, 0x300, zone=0x100)
        self.assertEqual(read_set({"a": "x DNS"}, rules=fixed).zone, 0x100)
        self.assertEqual(self.faults({"a": "@prod"}, fixed), [])
        self.assertEqual(len(self.faults({"a": "@dev"}, fixed)), 1)


class NameHoldTests(FileSetCase):
    """NAMEHOLD."""

    def test_a_held_name_cannot_be_defined_in_a_file_read_later(self) -> None:
        """Of that type, on that host and port; the holder's own file may."""
        for hold, line, refused in (
            ("S NAMEHOLD :0 DNS", "s DNS :1", True),
            ("S NAMEHOLD :0 DNS", "S STANDALONE :1", False),
            ("S NAMEHOLD :7 STANDALONE", "S STANDALONE :7", True),
            ("S NAMEHOLD :7 STANDALONE", "S STANDALONE :8", False),
            ("S NAMEHOLD h:0 STANDALONE", "S STANDALONE h:1", True),
            ("S NAMEHOLD h:0 STANDALONE", "S STANDALONE i:1", False),
            ("S NAMEHOLD :0 HTTP", "S HTTP_GET /x", True),
        ):
            faults = self.faults({"a": f"{hold}\n%include b", "b": line})
            self.assertEqual(bool(faults), refused, (hold, line, faults))
            self.assertEqual(self.faults({"a": f"{hold}\n{line}"}), [])


class FaultTests(FileSetCase):
    """What a person is told."""

    def test_all_faults_of_all_files_are_told_with_file_line_and_column(self) -> None:
        """Through continuation lines too."""
        faults = self.faults(
            {"a": "x STANDALONE \\\n :1 R=a\n%include b\n:0\n", "b": "# note\n  1z DNS\n"}
        )
        self.assertEqual(
            [text.split(": ")[0] for text in faults], ["/s/a:2:5", "/s/b:2:3", "/s/a:4:1"]
        )

    def test_a_main_file_that_cannot_be_read_is_a_fault(self) -> None:
        """With the system's reason."""
        self.assertIn("No such file", self.faults({})[0])

    @examples(10_000)
    @given(st.text(alphabet="ab%include|@:=*[]{}\\#\n\r \tDNSHOLTR0159/,~!+", max_size=80))
    def test_any_text_gives_a_configuration(self, text: str) -> None:
        """Faults or not; never an exception."""
        read_set({"a": text, "b": text})

    def test_a_megabyte_of_random_octets_is_read_to_its_end(self) -> None:
        """It neither raises nor hangs."""
        data = random.Random(3).randbytes(1_000_000).decode("utf-8", "surrogateescape")
        self.assertTrue(read_set({"a": data}).faults)


class EntryTests(FileSetCase):
    """Services as entries of the table."""

    def made(self, text: str, **resolved: str | None) -> tuple[list[str], list[str]]:
        """Descriptors and faults."""
        found = self.good({"a": text})
        made, faults = entries(found, "10.0.0.1", resolved)
        return [write(entry.info) for entry in made], [str(fault) for fault in faults]

    def test_a_service_without_a_host_is_on_this_one(self) -> None:
        """And follows its load; one with a host is static."""
        found = self.good({"a": "x STANDALONE :1\ny STANDALONE 10.1.1.1:1\n"})
        made, _ = entries(found, "10.0.0.1", {})
        self.assertEqual([entry.info.host for entry in made], ["10.0.0.1", "10.1.1.1"])
        self.assertEqual([entry.static for entry in made], [False, True])
        self.assertEqual({entry.owner for entry in made}, {"10.0.0.1"})

    def test_names_are_resolved_and_unknown_ones_are_faults(self) -> None:
        """Each is looked up once; the fault names the line."""
        text = "x HTTP web.example.org /a\ny HTTP web.example.org /b\nz HTTP gone.example.org /\n"
        found = self.good({"a": text})
        self.assertEqual(list(host_names(found)), ["gone.example.org", "web.example.org"])
        made, faults = entries(found, "10.0.0.1", {"web.example.org": "10.9.9.9"})
        self.assertEqual(
            write(made[0].info),
            "HTTP 10.9.9.9:80 /a H=web.example.org L=no R=1000.00 T=30",
        )
        self.assertEqual([str(fault).split(": ")[0] for fault in faults], ["/s/a:3"])

    def test_defaults_of_the_file_differ_from_those_of_the_wire(self) -> None:
        """Rate 1000, not local, time 30, the type's port."""
        self.assertEqual(
            self.made("x HTTP /a\ny HTTP /a $=yes\nz NCBID :0 a&b | /bin/cat\nw DNS\n")[0],
            [
                "HTTP 10.0.0.1:80 /a L=no R=1000.00 T=30",
                "HTTP 10.0.0.1:443 /a L=no R=1000.00 $=yes T=30",
                "NCBID 10.0.0.1:80 a&b L=no R=1000.00 S=no T=30",
                "DNS 10.0.0.1 L=no R=1000.00 T=30",
            ],
        )

    def test_the_same_server_twice_is_a_fault(self) -> None:
        """It would silently be one."""
        made, faults = self.made("x STANDALONE :1\nX STANDALONE :1 R=5\n")
        self.assertEqual((len(made), len(faults)), (1, 1))
