"""Job files, status files and definitions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.scire import statusfile, wire
from gridnet.scire.client.config import ClientConfig
from gridnet.scire.config import LimitsConfig
from gridnet.scire.definition import parse_definition, plain_values
from gridnet.scire.faults import FaultCode, ScireFault
from gridnet.scire.identity import Client
from gridnet.scire.jobcache import Job, template_for
from gridnet.scire.jobfile import (
    FileToFetch,
    JobFile,
    JobFileError,
    Keep,
    OnInterrupt,
    PackageAction,
    PackageWish,
    Work,
    digest_of,
    format_job,
    parse_job,
)
from gridnet.scire.machine import Reported
from gridnet.scire.runs import job_file
from gridnet.scire.statusfile import Output, StatusFile, Usage, format_status, parse_status
from gridnet.scire.wire import parse_rfc3339
from tests.hypothesis_profile import examples
from tests.scire.test_wire import XML_TEXT

VECTORS = Path(__file__).parent.parent / "vectors" / "scire"

JOB = JobFile(
    run=4711,
    job=812,
    attempt=1,
    name="Refresh package lists",
    description="Nightly, all print servers",
    client=23,
    client_name="printer1.example.org",
    ordered_by="samir",
    ordered_at=parse_rfc3339("2026-11-20T16:02:11Z"),
    issued=parse_rfc3339("2026-11-22T02:00:04Z"),
    priority=20,
    not_before=parse_rfc3339("2026-11-22T02:00:00Z"),
    not_after=parse_rfc3339("2026-11-22T05:00:00Z"),
    occurrence=parse_rfc3339("2026-11-22T02:00:00Z"),
    requires=("script",),
    run_seconds=1800,
    kind=Work.SCRIPT,
    variables=(("LANG", "C.UTF-8"),),
    arguments=("--quiet",),
    script=b"test",
    files=(FileToFetch("sources.list", digest_of(b"foo"), 3),),
    success=(0, 100),
)
STATUS = StatusFile(
    run=4711,
    attempt=1,
    seq=3,
    state=Reported.SUCCEEDED,
    time=parse_rfc3339("2026-11-22T02:00:41Z"),
    started=parse_rfc3339("2026-11-22T02:00:09Z"),
    finished=parse_rfc3339("2026-11-22T02:00:40Z"),
    exit_code=0,
    usage=Usage(3.1, 0.4, 20971520),
    outputs=(Output("stdout", b"hello", 5),),
    message="42 lists refreshed",
)
SECONDS = st.integers(0, 4_000_000_000).map(float)
IDS = st.integers(1, 2**31 - 1)
NAMES = XML_TEXT.filter(lambda t: 0 < len(t) < 100 and t.isprintable() and "/" not in t).filter(
    lambda t: t not in (".", "..")
)
JOBS = st.builds(
    JobFile,
    run=IDS,
    job=IDS,
    attempt=IDS,
    retry=st.integers(0, 3),
    name=XML_TEXT,
    description=XML_TEXT,
    client=IDS,
    client_name=XML_TEXT,
    ordered_by=XML_TEXT,
    ordered_at=SECONDS,
    issued=SECONDS,
    priority=st.integers(0, 99),
    not_before=st.none() | SECONDS,
    not_after=st.none() | SECONDS,
    occurrence=st.none() | SECONDS,
    requires=st.lists(XML_TEXT, max_size=2).map(tuple),
    kind=st.just(Work.SCRIPT),
    directory=XML_TEXT,
    umask=st.sampled_from(["022", "0077"]),
    variables=st.lists(st.tuples(XML_TEXT, XML_TEXT), max_size=2).map(tuple),
    arguments=st.lists(XML_TEXT, max_size=3).map(tuple),
    script=st.binary(max_size=60) | st.text(max_size=60).map(lambda t: t.encode("utf-8", "ignore")),
    packages=st.lists(
        st.builds(PackageWish, NAMES, XML_TEXT, st.sampled_from(PackageAction)), max_size=2
    ).map(tuple),
    files=st.lists(
        st.builds(FileToFetch, NAMES, st.binary().map(digest_of), st.integers(0, 10**9)),
        max_size=2,
    ).map(tuple),
    success=st.lists(st.integers(0, 255), min_size=1, max_size=3).map(tuple),
    interrupt=st.sampled_from(OnInterrupt),
    keep=st.sampled_from(Keep),
)


class JobFileTests(SynchronousTestCase):
    """What a client gets."""

    def test_the_documented_file_octet_by_octet(self) -> None:
        self.assertEqual(format_job(JOB), (VECTORS / "job.xml").read_bytes())
        self.assertEqual(parse_job((VECTORS / "job.xml").read_bytes()), JOB)

    @given(JOBS)
    @examples(150)
    def test_round_trip(self, job: JobFile) -> None:
        self.assertEqual(parse_job(format_job(job)), job)
        self.assertEqual(format_job(job), format_job(job))

    def test_unknown_parts_are_ignored_unless_they_must_be_understood(self) -> None:
        octets = format_job(JOB)
        for place in (b"  <issued>", b"    <argument>"):
            more = octets.replace(place, b'<novelty colour="red"/>' + place)
            self.assertEqual(parse_job(more), JOB)
            must = octets.replace(place, b'<novelty must-understand="true"/>' + place)
            error = self.assertRaises(JobFileError, parse_job, must)
            self.assertEqual(error.reason, "unsupported")

    def test_other_versions_and_broken_files_are_refused(self) -> None:
        octets = format_job(JOB)
        for before, after in (
            (b'scire-job version="1"', b'scire-job version="2"'),
            (b'run="4711"', b'run="0"'),
            (b'run="4711"', b""),
            (b'kind="script"', b'kind="magic"'),
            (b'umask="022"', b'umask="abc"'),
            (b"<priority>20", b"<priority>high"),
            (b'name="sources.list"', b'name="../../etc/passwd"'),
            (b'mode="0644"', b'mode="rw"'),
            (b'kind="script"', b'kind="package"'),
            (b"<interrupt action", b"<interrupt deed"),
            (b'not-after="2026', b'not-after="x'),
            (b"</scire-job>", b""),
            (b'encoding="text"', b'encoding="base64"'),
        ):
            self.assertIn(before, octets)
            self.assertRaises(JobFileError, parse_job, octets.replace(before, after))

    def test_a_script_with_another_digest_is_refused_for_that(self) -> None:
        error = self.assertRaises(
            JobFileError, parse_job, format_job(JOB).replace(b">test<", b">tost<")
        )
        self.assertEqual(error.reason, "digest")

    @given(st.data())
    @examples(200)
    def test_any_mutation_is_read_or_refused(self, data: st.DataObject) -> None:
        octets = bytearray(format_job(JOB))
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(octets) - 1))
            octets[at : at + data.draw(st.integers(0, 6))] = data.draw(st.binary(max_size=6))
        try:
            parse_job(bytes(octets))
        except JobFileError:
            pass


def outcome_of(octets: bytes, read: Callable[[bytes], StatusFile] = parse_status) -> object:
    """What reading a status file gives, or the fault."""
    try:
        return read(octets)
    except ScireFault as fault:
        return fault.code, str(fault)


def parsed(octets: bytes) -> object:
    """What the parser says of it."""
    return outcome_of(octets, statusfile._parsed)


class StatusFileTests(SynchronousTestCase):
    """What a client says."""

    def test_the_documented_file_octet_by_octet(self) -> None:
        self.assertEqual(format_status(STATUS), (VECTORS / "status.xml").read_bytes())
        self.assertEqual(parse_status((VECTORS / "status.xml").read_bytes()), STATUS)

    @given(
        st.builds(
            StatusFile,
            run=IDS,
            attempt=IDS,
            seq=IDS,
            state=st.sampled_from(Reported),
            time=SECONDS,
            started=st.none() | SECONDS,
            finished=st.none() | SECONDS,
            exit_signal=st.none() | st.integers(1, 64),
            outputs=st.lists(
                st.builds(
                    Output,
                    st.sampled_from(["stdout", "stderr"]),
                    st.binary(max_size=50),
                    st.integers(0, 10**12),
                    st.booleans(),
                ),
                max_size=2,
                unique_by=lambda output: output.stream,
            ).map(tuple),
            message=XML_TEXT,
        )
    )
    @examples(150)
    def test_round_trip(self, status: StatusFile) -> None:
        self.assertEqual(parse_status(format_status(status)), status)

    def test_faults(self) -> None:
        octets = format_status(STATUS)
        for before, after, code in (
            (b'version="1" run', b'version="2" run', FaultCode.UNSUPPORTED_VERSION),
            (b"aGVsbG8=", b"aGVsbGE=", FaultCode.DIGEST),
            (b"aGVsbG8=", b"*", FaultCode.INVALID_STATUS_FILE),
            (b'seq="3"', b'seq="0"', FaultCode.INVALID_STATUS_FILE),
            (b'seq="3"', b'seq="2147483648"', FaultCode.INVALID_STATUS_FILE),
            (b"succeeded", b"triumphed", FaultCode.INVALID_STATUS_FILE),
            (b'stream="stdout"', b'stream="stdlog"', FaultCode.INVALID_STATUS_FILE),
            (b'code="0"', b'code="zero"', FaultCode.INVALID_STATUS_FILE),
            (b"<time>2026-11-22T02:00:41Z</time>", b"", FaultCode.INVALID_STATUS_FILE),
            (b"2026-11-22T02:00:40Z", b"2026-11-22", FaultCode.INVALID_STATUS_FILE),
            (b'user-seconds="3.100"', b'user-seconds="-1"', FaultCode.INVALID_STATUS_FILE),
            (b"</scire-status>", b"", FaultCode.INVALID_STATUS_FILE),
            (b"scire-status", b"other-status", FaultCode.INVALID_STATUS_FILE),
        ):
            self.assertIn(before, octets)
            fault = self.assertRaises(ScireFault, parse_status, octets.replace(before, after))
            self.assertEqual(fault.code, code, before)

    @given(st.data())
    @examples(200)
    def test_any_mutation_is_read_or_refused(self, data: st.DataObject) -> None:
        octets = bytearray(format_status(STATUS))
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(octets) - 1))
            octets[at : at + data.draw(st.integers(0, 6))] = data.draw(st.binary(max_size=6))
        try:
            parse_status(bytes(octets))
        except ScireFault as fault:
            self.assertIn(fault.code, (1034, 1041, 1043))

    @given(st.data())
    @examples(300)
    def test_plain_files_are_read_as_the_parser_reads_them(self, data: st.DataObject) -> None:
        """Those without output are not parsed; nobody can tell."""
        status = StatusFile(
            run=data.draw(IDS),
            attempt=data.draw(IDS),
            seq=data.draw(IDS),
            state=data.draw(st.sampled_from(Reported)),
            time=data.draw(SECONDS),
            started=data.draw(st.none() | SECONDS),
            finished=data.draw(st.none() | SECONDS),
            exit_code=data.draw(st.none() | st.integers(-255, 255)),
        )
        octets = format_status(status)
        for _ in range(data.draw(st.integers(0, 2))):
            at = data.draw(st.integers(0, len(octets) - 1))
            cut = at + data.draw(st.integers(0, 3))
            piece = st.sampled_from([b"0", b"9", b"13", b"-", b" ", b"\n", b"<", b">", b'"', b"Z"])
            octets = octets[:at] + data.draw(piece | st.binary(max_size=3)) + octets[cut:]

        self.assertEqual(outcome_of(octets), parsed(octets))

    @given(st.from_regex(statusfile._PLAIN, fullmatch=True))
    @examples(300)
    def test_whatever_the_pattern_takes_is_read_as_the_parser_reads_it(self, octets: bytes) -> None:
        """Days that there are not, states that nobody knows, numbers with zeros before them."""
        self.assertEqual(outcome_of(octets), parsed(octets))

    @given(st.binary(max_size=300))
    @examples(300)
    def test_whatever_the_pattern_refuses_goes_to_the_parser(self, octets: bytes) -> None:
        self.assertEqual(outcome_of(octets), parsed(octets))

    def test_plain_files_with_something_wrong_in_them(self) -> None:
        plain = format_status(
            StatusFile(7, 1, 2, Reported.SUCCEEDED, 1.0, started=0.0, finished=1.0, exit_code=0)
        )
        self.assertIsNotNone(statusfile._PLAIN.fullmatch(plain))
        for old, new in (
            (b"<?xml", b"\n<?xml"),
            (b"<?xml", b"\xef\xbb\xbf<?xml"),
            (b"UTF-8", b"UTF-16"),
            (b"?>", b"?><!DOCTYPE scire-status>"),
            (b'run="7"', b'run="07"'),
            (b'run="7"', b'run="0"'),
            (b'run="7"', b'run="2147483648"'),
            (b'run="7"', 'run="\u0667"'.encode()),
            (b'version="1"', b'version="2"'),
            (b'code="0"', b'code="-0"'),
            (b'code="0"', b'code="007"'),
            (b'code="0"', b'code="256"'),
            (b"succeeded", b" succeeded "),
            (b"succeeded", b"done"),
            (b"<state>", b"<state>received</state><state>"),
            (b"1970-01-01", b"1970-02-30"),
            (b"1970-01-01", b"0000-01-01"),
            (b"00:00:0", b"23:59:6"),
            (b"</scire-status>\n", b"</scire-status>\0"),
            (b"</scire-status>\n", b"</scire-status>\x0b"),
            (b"</scire-status>\n", b"</scire-status><x/>"),
            (b"<exit", b"\r\n<exit"),
            (b"<exit", b'<exit signal="9"/><exit'),
        ):
            octets = plain.replace(old, new)
            self.assertNotEqual(octets, plain)
            self.assertEqual(outcome_of(octets), parsed(octets), octets)


class DefinitionTests(SynchronousTestCase):
    """What an administrator may order."""

    def test_plain_values_survive_json(self) -> None:
        definition = parse_definition(
            {
                "name": "x",
                "targets": {"clients": [1], "not_groups": [3]},
                "execute": {"script": digest_of(b"true"), "variables": {"A": "b"}},
                "attachments": [{"name": "f", "digest": digest_of(b"f"), "size": 1}],
                "recurrence": {"cron": "0 2 * * *", "zone": "Europe/Berlin"},
                "depends_on": [{"job": 3, "scope": "all-clients"}],
                "batch": {"size": 3, "stop_percent": 20},
                "deadline": 100,
            }
        )
        values = json.loads(json.dumps(plain_values(definition)))
        self.assertEqual(parse_definition(values), definition)

    def test_deadlines(self) -> None:
        base = {"name": "x", "targets": {"all": True}, "execute": {"kind": "reboot"}}
        self.assertIsNone(parse_definition(base).deadline_of(10))
        both = parse_definition({**base, "deadline": 100, "valid_seconds": 50})
        self.assertEqual((both.deadline_of(10), both.deadline_of(90)), (60, 100))

    def test_the_largest_job_file_is_no_larger_than_a_client_takes(self) -> None:
        """With the characters that XML makes most of; otherwise it would never get another."""
        quotes, ampersands = '"' * 200, "&" * 2600
        attached = {"digest": digest_of(b""), "size": 2**31 - 1, "mode": "0644"}
        common = {
            "user": "x" * 64,
            "directory": "/" + '"' * 1000,
            "arguments": [ampersands] * 100,
            "variables": {f"V{number}": ampersands for number in range(100)},
        }
        largest = {
            "script": {**common, "kind": "script", "script": digest_of(b"x")},
            "package": {
                **common,
                "kind": "package",
                "packages": [{"name": quotes, "version": quotes}] * 500,
            },
        }
        for kind, execute in largest.items():
            definition = parse_definition(
                {
                    "name": "&" * 200,
                    "description": "&" * 4000,
                    "targets": {"all": True},
                    "execute": execute,
                    "attachments": [
                        {**attached, "name": f"{number:04}" + '"' * 196} for number in range(1000)
                    ],
                }
            )
            most = LimitsConfig().max_script
            scripts = [b"&" * most, b"\0" * most, b"x" * most]
            for script in scripts if kind == "script" else [b""]:
                template = template_for(2**31 - 1, definition, "root", 0.0, script)
                job = Job(2**31 - 1, 1, definition, 1, "root", 0.0, False, template)
                run = {
                    "id": 2**31 - 1,
                    "attempt": 1000,
                    "retry": 1000,
                    "priority": 99,
                    "due": 0.0,
                    "deadline": None,
                    "occurrence": 0.0,
                }
                client = Client(2**31 - 1, "x" * 200, "", "", 0.0, 0.0, 0.0, False)
                octets = job_file(run, job, client, 0.0)
                answer = wire.format_answer({"file": octets, "signature": "x" * 1000})
                self.assertLess(len(answer) + 10_000, 2 * most + 6 * 1048576, kind)
                self.assertLessEqual(2 * most + 6 * 1048576, ClientConfig().max_answer)
                self.assertEqual(parse_job(octets).kind.value, kind)

    def test_what_is_no_definition(self) -> None:
        good = {
            "name": "x",
            "targets": {"clients": [1]},
            "execute": {"script": digest_of(b"true")},
        }
        parse_definition(good)
        change: dict[str, Any]
        for change in (
            {"name": ""},
            {"name": "x" * 201},
            {"name": "a\0b"},
            {"colour": "red"},
            {"priority": 100},
            {"priority": "high"},
            {"priority": True},
            {"targets": {"clients": "abc"}},
            {"execute": {"kind": "script"}},
            {"execute": {"kind": "reboot", "script": digest_of(b"true")}},
            {"execute": {"script": "sha256:short"}},
            {"execute": {"kind": "package"}},
            {"execute": {"kind": "file"}},
            {"execute": {"script": digest_of(b"true"), "umask": "8"}},
            {"execute": {"script": digest_of(b"true"), "directory": "tmp"}},
            {"execute": {"script": digest_of(b"true"), "variables": {"A B": "c"}}},
            {"execute": {"script": digest_of(b"true"), "success": [256]}},
            {"attachments": [{"name": "../x", "digest": digest_of(b""), "size": 0}]},
            {"attachments": [{"name": "x", "digest": digest_of(b""), "size": 0}] * 2},
            {"recurrence": {}},
            {"recurrence": {"cron": "* * * * *", "every": 60}},
            {"recurrence": {"cron": "99 * * * *"}},
            {"recurrence": {"every": 60, "zone": "Nowhere"}},
            {"recurrence": {"every": 60, "blackouts": ["noon"]}},
            {"depends_on": [{"job": 1, "condition": "maybe"}]},
            {"due": 100.0, "deadline": 100.0},
            {"batch": {"stop_percent": 101.0}},
            {"execute": {"script": digest_of(b"true"), "arguments": ["x"] * 1001}},
            {"execute": {"script": digest_of(b"true"), "arguments": ["x" * 3000] * 100}},
            {"execute": {"script": digest_of(b"true"), "variables": {"A": "x" * 4001}}},
            {"execute": {"kind": "package", "packages": [{"name": "x"}] * 501}},
        ):
            fault = self.assertRaises(ScireFault, parse_definition, {**good, **change})
            self.assertEqual(fault.code, FaultCode.INVALID_DEFINITION, change)
