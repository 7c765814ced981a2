"""The control socket, and the tools that ask through it."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from datetime import datetime
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from gridnet.config import SiteConfig, SiteSection
from gridnet.control import (
    MAX_CONNECTIONS,
    MAX_CONNECTIONS_PER_USER,
    MAX_QUESTION_OCTETS,
    ControlError,
    ControlFactory,
    ControlProtocol,
    JsonText,
    ask,
)
from gridnet.errors import RemoteProtocolError
from gridnet.lbsmd.config import LbsmdConfig
from gridnet.lbsmd.feedback import parse_argument
from gridnet.lbsmd.listing import View, plain, render
from gridnet.lbsmd.orders import Asker, Order
from gridnet.lbsmd.service import Daemon, make_lbsmd
from gridnet.lbsmd.tools import HostWatch, explanation, lbsmc, resolve
from gridnet.site import Site
from gridnet.table.model import Entry, HostFacts
from gridnet.table.server_info import parse as parse_descriptor
from tests.hypothesis_profile import examples

DEFINITIONS = """\
db=PubMed
Alpha [0] STANDALONE 10.1.1.1:7 L=no
Alpha [0] STANDALONE 10.1.1.2:7 R=3000 S=yes B=-20
Beta [0] HTTP 10.1.1.3:80 /a?b C=text/html RegularInter
Gone [0] STANDALONE :9 R=0
AVeryLongServiceNameIndeedItIs [0] DNS [2001:db8::1]:65535
"""


class ControlProtocolTests(SynchronousTestCase):
    """One question, one answer."""

    def converse(self, data: bytes) -> Any:
        """What the daemon writes back."""

        def fail(question: Any) -> Any:
            raise RuntimeError("our mistake")

        def refuse(question: Any) -> Any:
            raise RemoteProtocolError("no such thing")

        factory = ControlFactory({"echo": dict, "fail": fail, "refuse": refuse})
        protocol = factory.buildProtocol(None)
        assert isinstance(protocol, ControlProtocol)
        self.patch(protocol, "callLater", reactor.callLater)
        transport = StringTransport()
        protocol.makeConnection(transport)
        protocol.dataReceived(data)
        protocol.setTimeout(None)
        self.assertEqual(transport.disconnecting, b"\n" in data or len(data) > MAX_QUESTION_OCTETS)
        return json.loads(transport.value()) if transport.value() else None

    def test_questions_and_refusals(self) -> None:
        """A result, or the reason why there is none."""
        self.assertEqual(
            self.converse(b'{"ask": "echo"}\n'), {"result": {"ask": "echo", "uid": -1}}
        )
        for line, reason in (
            (b"\n", "JSON"),
            (b"[1]\n", "object"),
            (b'{"ask": 1}\n', "object"),
            (b'{"ask": "what"}\n', "expected one of echo"),
            (b'{"ask": "refuse"}\n', "no such thing"),
            (b"\xff\n", "JSON"),
            (b"[" * 60000 + b"\n", "JSON"),
            (b"x" * (MAX_QUESTION_OCTETS + 2), "too long"),
        ):
            self.assertIn(reason, self.converse(line)["error"])
        self.assertIsNone(self.converse(b'{"ask": '))

    def test_our_own_mistakes_are_logged_and_not_told(self) -> None:
        """The tool is sent to the log."""
        self.assertIn("log", self.converse(b'{"ask": "fail"}\n')["error"])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_connections_are_bounded_and_time_out(self) -> None:
        """Those of all, and those of one user; one that takes no answer is cut off."""
        factory = ControlFactory({})
        transports: list[StringTransport] = []

        def connect() -> ControlProtocol:
            protocol = factory.buildProtocol(None)
            assert protocol is not None
            self.patch(protocol, "setTimeout", lambda seconds: None)
            transports.append(StringTransport())
            protocol.makeConnection(transports[-1])
            return protocol

        protocols = [connect() for _ in range(MAX_CONNECTIONS_PER_USER)]
        self.assertFalse(any(each.disconnected for each in transports))
        protocols.append(connect())
        self.assertTrue(transports[-1].disconnected)
        protocols[0].timeoutConnection()
        self.assertTrue(transports[0].disconnected)
        for protocol in protocols:
            protocol.connectionLost()
        self.assertEqual(factory.connections.total(), 0)
        factory.connections[5] = MAX_CONNECTIONS
        self.assertIsNone(factory.buildProtocol(None))

    def test_long_answers_go_in_pieces_as_they_are_taken(self) -> None:
        """So many that wait for them share the octets."""
        text = json.dumps("x" * 200_000)
        factory = ControlFactory({"long": lambda _: JsonText(text.encode())})
        protocol = factory.buildProtocol(None)
        assert protocol is not None
        self.patch(protocol, "setTimeout", lambda seconds: None)
        transport = StringTransport()
        protocol.makeConnection(transport)
        protocol.dataReceived(b'{"ask": "long"}\n')
        self.assertEqual(transport.value(), b"")
        while transport.producer is not None:
            before = len(transport.value())
            transport.producer.resumeProducing()
            self.assertLessEqual(len(transport.value()) - before, 65536)
        self.assertTrue(transport.disconnecting)
        self.assertEqual(transport.value(), b'{"result": %b}\n' % text.encode())

    @examples(1000)
    @given(st.binary(max_size=40))
    def test_any_octets_are_answered_or_waited_for(self, data: bytes) -> None:
        """Nothing else comes out."""
        answer = self.converse(data)
        if answer is not None:
            self.assertLessEqual({"error"}, set(answer))


class DaemonCase(SynchronousTestCase):
    """A daemon's answers, without its socket."""

    def setUp(self) -> None:
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        (directory / "servrc.cfg").write_text(DEFINITIONS)
        self.reactor = MemoryReactorClock()
        self.reactor.advance(1_700_000_000)
        self.site = Site(SiteConfig(SiteSection(address="10.0.0.1"), {}, directory), self.reactor)
        config = LbsmdConfig(servrc="servrc.cfg", directory=".", site_bits=0x300)
        daemon = make_lbsmd(config, self.site, run_in_thread=maybeDeferred)
        assert isinstance(daemon, Daemon)
        self.answers = daemon.answers
        self.daemon = daemon

    def ask(self, **members: Any) -> Any:
        """The answer to a look-up, as the tool gets it."""
        return json.loads(json.dumps(self.answers.resolve(members)))


class TableTests(DaemonCase):
    """``table``, and what ``lbsmc`` makes of it."""

    def show(self, **view: Any) -> list[str]:
        """The lines, after a journey through JSON."""
        return render(json.loads(json.dumps(self.answers.table({}))), View(**view))

    def test_both_tables_fit_their_width(self) -> None:
        """80 columns, or 132."""
        for wide, width in ((False, 80), (True, 132)):
            lines = self.show(wide=wide)
            self.assertLessEqual(max(map(len, lines[:-1])), width)
            self.assertEqual(len(lines[1]), width)
            self.assertNotIn("", lines)

    def test_the_layout(self) -> None:
        """Title, hosts, services in order, foot."""
        lines = self.show()
        self.assertTrue(lines[0].startswith("LBSMC - Load Balancing Service Mapping Client "))
        self.assertIn(" 10.0.0.1 (00:00) ", lines[1])
        self.assertTrue(lines[1].endswith(" [0x300] V1.3"), lines[1])
        self.assertEqual(
            " ".join(lines[2].split()),
            "Hostname/IPaddr Task/CPU LoadAv LoadBl Joined Status StatBl",
        )
        self.assertEqual(
            lines[3].split(), ["10.0.0.1", "+", "-", "-", "-", "-", "1000.00", "1000.00"]
        )
        self.assertEqual(lines[4], "-" * 80)
        self.assertEqual(
            lines[5].split(),
            ["Service", "T", "Type", "Hostname/IPaddr:Port", "LFS", "B.Rate", "Coef", "Rating"],
        )
        self.assertEqual(
            [line.split() for line in lines[6:11]],
            [
                ["Alpha", "30", "STANDALONE", "10.1.1.1:7", "---", "1000.00", "1000.00"],
                ["Alpha", "30", "STANDALONE", "10.1.1.2:7", "--S", "3000.00", "-20.0", "3000.00"],
                ["AVeryLongSer>", "30", "DNS", "[2001:db8::1]:65535", "---", "1000.00", "1000.00"],
                ["Beta", "30+HTTP", "10.1.1.3:80", "-F-", "1000.00", "1000.00"],
                ["Gone", "30", "STANDALONE", "10.0.0.1:9", "---", "0.000", "0.000"],
            ],
        )
        self.assertEqual(lines[11], "* Hosts:1\\1, Srvrs:5/5/1  |   Heap:none *")
        self.assertEqual(
            lines[12], f"LBSMD PID: {os.getpid()}, config: {self.site.config.path('servrc.cfg')}"
        )

    def test_the_text_is_the_table_made_in_slices(self) -> None:
        """Who asks meanwhile shares it; a changed table is made anew."""
        asked = [self.answers.table_text({}) for _ in range(3)]
        self.assertNoResult(asked[0])
        self.reactor.pump([0.01] * 20)
        texts = [self.successResultOf(each) for each in asked]
        self.assertIs(texts[0], texts[2])
        wanted = dict(self.answers.table({}))
        wanted["time"] = json.loads(texts[0].octets)["time"]
        self.assertEqual(json.loads(texts[0].octets), json.loads(json.dumps(wanted)))
        self.assertIs(self.successResultOf(self.answers.table_text({})), texts[0])
        self.daemon.local.tell_load(5.0, 5.0, HostFacts())
        changed = self.answers.table_text({})
        self.reactor.pump([0.01] * 20)
        hosts = json.loads(self.successResultOf(changed).octets)["hosts"]
        self.assertEqual(hosts[0]["status"], 5.0)

    def test_masks_and_dead_servers(self) -> None:
        """Which rows are shown; the foot counts both."""
        self.assertTrue(any("Srvrs:2/5/1" in line for line in self.show(services="al*")))
        (row,) = [line for line in self.show(dead_only=True) if "STANDALONE" in line]
        self.assertTrue(row.startswith("Gone"))
        self.assertNotIn("Task/CPU", "\n".join(self.show(hosts=None)))
        self.assertTrue(any("Hosts:0\\1" in line for line in self.show(hosts="192.*")))

    def test_further_information_and_raw_figures(self) -> None:
        """What stands behind the plus, and the numbers of hosts."""
        lines = [line.strip() for line in self.show(more=True, figures=True)]
        for wanted in ("db=PubMed", "arguments: /a?b", "content type: text/html", "status: 1000.0"):
            self.assertIn(wanted, lines)

    def test_wide_rows_mark_servers_without_a_host(self) -> None:
        """Static ones need none."""
        rows = {line.split()[0]: line for line in self.show(wide=True)[6:]}
        self.assertIn("10.1.1.3:80" + " " * 36 + "#", rows["Beta"])
        self.assertNotIn("#", rows["Gone"])

    def test_the_figures_of_a_loaded_host(self) -> None:
        """As they are in the table."""
        facts = HostFacts(
            load=0.06,
            load_instant=0.03,
            tasks=151,
            processors=4,
            ram_pages=256,
            joined_at=self.reactor.seconds() - 60,
        )
        self.daemon.local.tell_load(397.62, 3973.51, facts)
        joined = datetime.fromtimestamp(facts.joined_at)
        self.assertEqual(
            self.show()[3].split(),
            [
                *("10.0.0.1", "+", "151/4", "0.06", "0.03"),
                *(f"{joined:%m/%d}", f"{joined:%H:%M}", "397.62", "3973.51"),
            ],
        )
        self.assertIn("    memory_mb: 1.0", self.show(figures=True))

    def test_marks_of_times(self) -> None:
        """A date of a past year; a host that was away and came back while somebody watched."""
        past = HostFacts(tasks=1, joined_at=self.reactor.seconds() - 400 * 86400)
        self.daemon.local.tell_load(1.0, 1.0, past)
        joined = datetime.fromtimestamp(past.joined_at)
        self.assertIn(f"+{joined:%m/%d %H:%M}", self.show()[3])
        returned = frozenset({"10.0.0.1"})
        self.assertIn(f"~{joined:%m/%d %H:%M}", self.show(returned=returned)[3])
        watch = HostWatch()
        for there, marked in ((("a", "b"), ""), (("b",), ""), (("a", "b"), "a"), (("b",), "")):
            self.assertEqual(watch.see(there), frozenset(marked))
        self.assertEqual(watch.see("abc"), {"a"})

    def test_a_server_that_readers_cannot_use_is_marked(self) -> None:
        """In wide rows; further information says why."""
        info = parse_descriptor("STANDALONE 10.7.7.7:7 R=5 T=30")
        self.site.table.put(Entry("Odd", info, "10.0.0.1"))
        (row,) = [line for line in self.show(wide=True) if line.startswith("Odd")]
        self.assertIn("10.7.7.7:7" + " " * 37 + "!", row)
        lines = [line.strip() for line in self.show(more=True)]
        self.assertIn("error: host 10.7.7.7 is not in the table", lines)

    def test_who_has_changed_a_server(self) -> None:
        """Penalties, base rates and ports, behind the plus and in explanations."""
        for request, why in (
            ("Alpha ANY 10.1.1.1:7 50 100", ""),
            ("Alpha RERATE ANY 10.1.1.2:7 20", ""),
            ("Gone RERATE ANY RESERVE", "spare"),
        ):
            order = Order(parse_argument(request), Asker("root"), why)
            self.successResultOf(self.daemon.penalties.carry_out(order))
        self.daemon.local.offer(9, 0.25)
        lines = [line.strip() for line in self.show(more=True)]
        self.assertIn("reserved, by root: spare", lines)
        self.assertIn("base rate 20, by root", lines)
        self.assertIn("free capacity of its port: 25.0%", lines)
        self.assertTrue(any(line.startswith("penalty of 50 percent until ") for line in lines))
        text = "\n".join(explanation(self.ask(service="Alpha")))
        self.assertIn("base rate 20 (configured 3000)", text)
        self.assertIn("penalty 50 percent", text)
        self.assertIn("by root", text)


class ResolveTests(DaemonCase):
    """``resolve``."""

    def test_a_look_up(self) -> None:
        """Servers in an order as a client gets them, with their ratings."""
        answer = self.ask(service="alpha")
        self.assertEqual(
            sorted(answer["chosen"]),
            [
                "STANDALONE 10.1.1.1:7 L=no R=1000.00 S=no T=30",
                "STANDALONE 10.1.1.2:7 B=-20.00 L=no R=3000.00 S=yes T=30",
            ],
        )
        self.assertEqual([server["share"] for server in answer["servers"]], [0.25, 0.75])

    def test_why_not(self) -> None:
        """Each reason is told."""
        (server,) = self.ask(service="Gone")["servers"]
        self.assertEqual((server["ruled_out"], server["share"]), ("down", 0.0))
        (server,) = self.ask(service="Beta", types="DNS,STANDALONE")["servers"]
        self.assertIn("HTTP", server["ruled_out"])
        self.assertEqual(
            self.ask(service="Nobody"), {"service": "Nobody", "chosen": [], "servers": []}
        )

    def test_a_latch(self) -> None:
        """That server, or none."""
        answer = self.ask(service="Alpha", preferred="10.1.1.2:7", preference=-1)
        self.assertEqual(answer["chosen"][0].split()[1], "10.1.1.2:7")

    def test_questions_that_make_no_sense(self) -> None:
        """Each is refused with its reason."""
        for members, reason in (
            ({}, "service"),
            ({"service": 1}, "text"),
            ({"service": "x", "client": "nowhere"}, "IP address"),
            ({"service": "x", "inside": 1}, "inside"),
            ({"service": "x", "preference": 2}, "preference"),
            ({"service": "x", "preference": "1"}, "preference"),
            ({"service": "x", "preferred": "h:1"}, "IP address"),
            ({"service": "x", "preferred": "1.2.3.4:x"}, "65535"),
            ({"service": "x", "types": "HTTPS"}, "HTTPS"),
        ):
            error = self.assertRaises(RemoteProtocolError, self.answers.resolve, members)
            self.assertIn(reason, str(error))

    def test_the_explanation_for_people(self) -> None:
        """Every factor in words."""
        text = "\n".join(explanation(self.ask(service="Alpha", affinity="db=x")))
        for wanted in ("2 servers, 2 to choose from", "static", "bonus -20", "25.00%", "75.00%"):
            self.assertIn(wanted, text)
        text = "\n".join(explanation(self.ask(service="Gone")))
        self.assertIn("not handed out: down", text)
        self.assertEqual(explanation(self.ask(service="No")), ["No: not in the table"])

    def test_what_others_say_does_not_reach_the_terminal(self) -> None:
        """Only as text: neither escapes nor line ends."""
        self.assertEqual(plain("a\x1b[2J\r\u202eb\t"), "a\\x1b[2J\\r\\u202eb\\t")
        self.assertEqual(plain("Größe = 5"), "Größe = 5")


class SocketTests(TestCase):
    """The tools against a daemon's real socket."""

    timeout = 120

    def setUp(self) -> Any:
        # A short path: the system has little room for the name of a socket.
        self.directory = Path(tempfile.mkdtemp(prefix="gridnet"))
        self.addCleanup(os.rmdir, self.directory)
        self.config = self.directory / "site.toml"
        self.config.write_text('[lbsmd]\nservrc = "servrc.cfg"\n')
        servrc = self.directory / "servrc.cfg"
        servrc.write_text(DEFINITIONS)
        self.addCleanup(servrc.unlink)
        self.addCleanup(self.config.unlink)
        self.site = Site(SiteConfig(SiteSection(address="10.0.0.1"), {}, self.directory), reactor)
        self.daemon = make_lbsmd(LbsmdConfig(servrc="servrc.cfg", directory="."), self.site)
        self.path = self.directory / "state" / "lbsmd.control"
        self.addCleanup(os.rmdir, self.directory / "state")
        self.daemon.startService()
        self.addCleanup(self.daemon.stopService)
        return self.site.ready()

    def call(self, tool: Any, *words: str) -> Deferred[tuple[int, str, str]]:
        """Status, output and errors of *tool*, which blocks."""

        def run() -> tuple[int, str, str]:
            out, err = io.StringIO(), io.StringIO()
            with redirect_stdout(out), redirect_stderr(err):
                status = tool([*words, "--config", str(self.config)])
            return status, out.getvalue(), err.getvalue()

        return deferToThread(run)

    def test_the_tools_show_the_table(self) -> Deferred[None]:
        """Once, as text and as JSON; a look-up with and without its reasons."""

        async def drive() -> None:
            self.assertEqual(self.path.stat().st_mode & 0o777, 0o666)
            status, out, err = await self.call(lbsmc, "0", "-s", "alpha")
            self.assertEqual((status, err), (0, ""))
            self.assertIn("Srvrs:2/5/1", out)
            status, out, _ = await self.call(lbsmc, "-j")
            self.assertEqual(json.loads(out)["address"], "10.0.0.1")
            status, out, _ = await self.call(lbsmc, "-h")
            self.assertIn("-s MASK", out)
            status, out, _ = await self.call(resolve, "Beta")
            self.assertEqual(status, 0)
            self.assertTrue(out.startswith("HTTP 10.1.1.3:80 /a?b"))
            status, out, _ = await self.call(resolve, "Beta", "--explain")
            self.assertIn("chosen in 100.00%", out)
            status, out, err = await self.call(resolve, "Gone")
            self.assertEqual((status, out), (1, ""))
            self.assertIn("no server of Gone", err)
            status, out, _ = await self.call(resolve, "Gone", "--json")
            self.assertEqual(json.loads(out)["servers"][0]["ruled_out"], "down")

        return Deferred.fromCoroutine(drive())

    def test_a_reader_that_goes_away_is_no_error(self) -> Deferred[None]:
        """As with ``gridnet lbsmc 0 | head -1``, in a process of its own."""
        command = [sys.executable, "-m", "gridnet.cli", "lbsmc", "0", "--config", str(self.config)]

        def run() -> tuple[int, bytes]:
            reader, writer = os.pipe()
            os.close(reader)
            with os.fdopen(writer) as closed:
                done = subprocess.run(
                    command,
                    stdout=closed,
                    stderr=subprocess.PIPE,
                    timeout=100,
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                )
            return done.returncode, done.stderr

        async def drive() -> None:
            self.assertEqual(await deferToThread(run), (0, b""))

        return Deferred.fromCoroutine(drive())

    def test_a_period_that_is_none_is_refused(self) -> None:
        """With the usage, not with a traceback."""
        for text in ("nan", "inf", "-1", "x"):
            with redirect_stderr(io.StringIO()) as err:
                self.assertRaises(SystemExit, lbsmc, ["--config", "none", "--", text])
            self.assertIn("usage", err.getvalue())

    def test_without_a_daemon_the_tools_say_so(self) -> Deferred[None]:
        """Status 1, and 2 for a site file that is wrong."""

        async def drive() -> None:
            await maybeDeferred(self.daemon.stopService)
            self.assertFalse(self.path.exists())
            status, _, err = await self.call(lbsmc, "0")
            self.assertEqual(status, 1)
            self.assertIn("no daemon answers", err)
            text = self.config.read_text()
            self.config.write_text("[lbsmd]\nnonsense = 1\n")
            status, _, err = await self.call(resolve, "x")
            self.assertEqual(status, 2)
            self.config.write_text(f"{text}control = ''\n")
            status, _, err = await self.call(resolve, "x")
            self.assertEqual(status, 2)
            self.assertIn("lbsmd.control: empty", err)
            self.daemon.startService()

        return Deferred.fromCoroutine(drive())

    def test_nonsense_on_the_other_side_is_told(self) -> None:
        """What answers is no daemon."""
        path = self.directory / "other"
        self.addCleanup(path.unlink)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            self.assertRaises(ControlError, ask, path, {"ask": "table"}, 0.1)
