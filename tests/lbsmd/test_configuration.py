"""File sets: includes, scopes, holds, and every fault with its place."""

from __future__ import annotations

import random
from collections.abc import Mapping

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.lbsmd.entries import host_names, make_entry
from gridnet.lbsmd.servrc.configuration import MAX_FAULTS, Configuration, Rules
from gridnet.table.server_text import write
from tests.hypothesis_profile import examples
from tests.lbsmd.support import DOMAIN, RULES, read_set


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
        self.assertEqual([placed.file for placed in found.records], ["/s/c"])

    def test_prefixes_do_not_carry_over(self) -> None:
        """Only the lines of the included file itself get one."""
        found = self.good({"a": "%include b |z=", "b": "%include c\nv", "c": "w=1"})
        self.assertEqual(found.environment, (("w", "1"), ("z", "v")))

    def test_a_missing_file_is_a_fault_of_its_line_and_is_watched(self) -> None:
        """The rest of the set is read."""
        found = read_set({"a": "x DNS\n%include gone\ny DNS\n"})
        self.assertEqual(
            "\n".join(str(fault) for fault in found.faults),
            "/s/a:2:1: found /s/gone: No such file or directory; expected a file that can be read",
        )
        self.assertEqual(len(found.records), 2)
        self.assertIn("/s/gone", found.files)

    def test_loops_and_depth_are_bounded(self) -> None:
        """A file that includes itself, directly or not; more than 16 files deep."""
        self.assertIn("includes itself", self.faults({"a": "%include a"})[0])
        self.assertIn("includes itself", self.faults({"a": "%include x/../a"})[0])
        self.assertIn("includes itself", self.faults({"a": "%include b", "b": "%include a"})[0])
        chain = {f"f{n}": f"%include f{n + 1}" for n in range(1, 17)}
        self.assertEqual(self.faults({"a": "%include f1", **chain, "f16": "x DNS"}), [])
        (fault,) = self.faults({"a": "%include f1", **chain, "f17": "x DNS"})
        self.assertIn("at most 16", fault)
        self.assertTrue(fault.startswith("/s/f16:1:1"))

    def test_a_set_that_multiplies_itself_is_bounded(self) -> None:
        """Each level includes the next twice: 2**15 readings without a bound."""
        files = {f"f{n}": f"%include f{n + 1}\n%include f{n + 1}\n" for n in range(15)}
        files["f15"] = "x DNS"
        rules = evolve(RULES, max_inclusions=50)
        found = read_set({"a": "%include f0", **files}, rules=rules)
        self.assertIn("max_inclusions", str(found.faults[0]))
        self.assertLessEqual(len(found.records), 50)

    def test_the_octets_of_a_set_are_bounded(self) -> None:
        """All files together."""
        rules = evolve(RULES, max_octets=30)
        found = read_set({"a": "%include b\n%include b\nx DNS", "b": "v=1" + " " * 5}, rules=rules)
        self.assertIn("max_octets", str(found.faults[0]))
        self.assertEqual([placed.record.name for placed in found.records], ["x"])

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
            authority = found.authority
            self.assertEqual((authority.users, authority.groups), (users, groups), files)
            self.assertEqual(len(found.faults), refused, files)


class ZoneLineTests(FileSetCase):
    """``@`` lines."""

    def test_one_line_at_most_and_a_part_of_the_site(self) -> None:
        """The second is a fault; so is a zone outside the site, or against the command line."""
        self.assertEqual(self.good({"a": "@dev"}).zone, 0x200)
        self.assertEqual(self.good({"a": "x DNS"}).zone, 0x300)
        self.assertIn("/s/a:2:1", self.faults({"a": "@dev\n@prod"})[0])
        self.assertIn("0x300", self.faults({"a": "@4"})[0])
        fixed = Rules(DOMAIN, site=0x300, zone=0x100)
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
            [text.split(": ")[0] for text in faults], ["/s/a:2:7", "/s/b:2:3", "/s/a:4:1"]
        )

    def test_a_main_file_that_cannot_be_read_is_a_fault(self) -> None:
        """With the system's reason."""
        self.assertIn("No such file", self.faults({})[0])

    @examples(2000)
    @given(st.text(alphabet="ab%include|@:=*[]{}\\#\n\r \tDNSHOLTR0159/,~!+", max_size=80))
    def test_any_text_gives_a_configuration(self, text: str) -> None:
        """Faults or not; never an exception."""
        read_set({"a": text, "b": text})

    def test_a_megabyte_of_random_octets_is_read_to_its_end(self) -> None:
        """It neither raises nor hangs."""
        data = random.Random(3).randbytes(1_000_000).decode("iso-8859-1")
        self.assertGreater(len(read_set({"a": data}).faults), 1000)

    def test_a_flood_of_faults_is_cut_off(self) -> None:
        """With a last one that says so."""
        faults = self.faults({"a": "!\n" * (2 * MAX_FAULTS)})
        self.assertEqual(len(faults), MAX_FAULTS + 1)
        self.assertIn("the rest is not read", faults[-1])

    def test_what_is_hardly_meant_is_remarked(self) -> None:
        """A server defined twice; a flag where the arguments of NCBID stand."""
        found = self.good({"a": "x DNS h:1\nX dns H:1 R=5\ny NCBID L=yes | /bin/y\n"})
        self.assertEqual(
            [str(remark).split(";")[0] for remark in found.remarks],
            [
                "/s/a:2: replaces the same server of X at /s/a:1",
                "/s/a:3: 'L=yes' is taken for the arguments",
            ],
        )


class EntryTests(FileSetCase):
    """Services as entries of the table."""

    def made(self, text: str, **addresses: str) -> list[str]:
        """Descriptors of all services in *text*."""
        records = self.good({"a": text}).records
        return [
            write(make_entry(placed.record, "10.0.0.1", 3, addresses, 30).info)
            for placed in records
        ]

    def test_a_service_without_a_host_is_on_this_one(self) -> None:
        """And follows its load; one with a host is static."""
        found = self.good({"a": "x STANDALONE :1\ny STANDALONE 10.1.1.1:1\n"})
        made = [make_entry(placed.record, "10.0.0.1", 3, {}, 30) for placed in found.records]
        self.assertEqual([entry.info.host for entry in made], ["10.0.0.1", "10.1.1.1"])
        self.assertEqual([entry.static for entry in made], [False, True])
        self.assertEqual({(entry.owner, entry.zone) for entry in made}, {("10.0.0.1", 3)})

    def test_names_are_looked_up_once(self) -> None:
        """And the name doubles as the virtual host."""
        text = "x HTTP web.example.org /a\ny HTTP web.example.org /b\nz HTTP 1.2 /\n"
        found = self.good({"a": text})
        self.assertEqual(
            {name: placed.line for name, placed in host_names(found.records).items()},
            {"web.example.org": 1},
        )
        self.assertEqual(
            self.made(text, **{"web.example.org": "10.9.9.9"})[::2],
            [
                "HTTP 10.9.9.9:80 /a H=web.example.org L=no R=1000.00 T=30",
                "HTTP 1.0.0.2:80 / L=no R=1000.00 T=30",
            ],
        )

    def test_defaults_of_the_file_differ_from_those_of_the_wire(self) -> None:
        """Rate 1000, not local, time 30, the type's port."""
        self.assertEqual(
            self.made("x HTTP /a\ny HTTP /a $=yes\nz NCBID :0 a&b | /bin/cat\nw DNS T=7\n"),
            [
                "HTTP 10.0.0.1:80 /a L=no R=1000.00 T=30",
                "HTTP 10.0.0.1:443 /a L=no R=1000.00 $=yes T=30",
                "NCBID 10.0.0.1:80 a&b L=no R=1000.00 S=no T=30",
                "DNS 10.0.0.1 L=no R=1000.00 T=7",
            ],
        )
