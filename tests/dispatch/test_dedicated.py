"""Dedicated connections and programs: what relay and launcher are asked, what comes of it."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from gridnet.dispatch.body import LAST_CHUNK, chunk
from gridnet.dispatch.config import DispatchConfig
from gridnet.dispatch.http import HttpConnection
from gridnet.errors import LaunchError, PassageRefusedError, TicketError
from gridnet.interfaces import IProgramLauncher, ITicketOffice
from gridnet.table.way_in import (
    ConnectionPoint,
    LaunchRequest,
    ProgramOutput,
    RunningProgram,
    WayInRequest,
)
from tests.dispatch.support import HERE, Transport, connected, make_front, make_table
from tests.dispatch.test_relay import Stage, reply, split

POINT = ConnectionPoint("10.0.0.1", 5861, 0x12345678)
TABLE = """
raw STANDALONE 127.0.0.1:7001 L=no
state STANDALONE 127.0.0.1:7002 L=no S=yes
web HTTP 127.0.0.1:7003 /x L=no
filter NCBID 127.0.0.1:80 '' L=no C=text/plain | /usr/bin/tr a-z A-Z
inner NCBID 127.0.0.1:80 '' L=yes | /bin/cat
mine NCBID 127.0.0.1:80 '' L=no P=yes | /bin/cat
two NCBID 127.0.0.1:80 mode=a L=no | /bin/a
two NCBID 127.0.0.1:80 mode=b L=no | /bin/b
talk NCBID 127.0.0.1:80 '' L=no S=yes | /bin/talk
"""


@implementer(ITicketOffice)
class Office:
    """Writes down what is asked, and answers as told."""

    def __init__(self, answer: Any = POINT) -> None:
        self.answer = answer
        self.asked: list[WayInRequest] = []

    def reserve(self, request: WayInRequest) -> object:
        """Called by the dispatcher."""
        self.asked.append(request)
        if isinstance(self.answer, Deferred):
            return self.answer
        return fail(self.answer) if isinstance(self.answer, Exception) else succeed(self.answer)


class Program:
    """A running program that a test plays."""

    pid = 4711

    def __init__(self, request: LaunchRequest, output: ProgramOutput) -> None:
        self.request = request
        self.output = output
        self.input = b""
        self.events: list[str] = []

    def write(self, data: bytes) -> None:
        """Called by the dispatcher."""
        self.input += data

    def end_input(self) -> None:
        """Called by the dispatcher."""
        self.events.append("end of input")

    def pause_output(self) -> None:
        """Called by the dispatcher."""
        self.events.append("pause")

    def resume_output(self) -> None:
        """Called by the dispatcher."""
        self.events.append("resume")

    def abandon(self) -> None:
        """Called by the dispatcher."""
        self.events.append("abandon")


@implementer(IProgramLauncher)
class Launcher:
    """Starts :class:`Program` s."""

    def __init__(self, refusal: LaunchError | None = None) -> None:
        self.refusal = refusal
        self.programs: list[Program] = []
        self.waiting: list[LaunchRequest] = []

    def listen_once(self, request: LaunchRequest) -> object:
        """Called by the dispatcher."""
        self.waiting.append(request)
        return fail(self.refusal) if self.refusal is not None else succeed(POINT)

    def run(self, request: LaunchRequest, output: ProgramOutput) -> RunningProgram:
        """Called by the dispatcher."""
        if self.refusal is not None:
            raise self.refusal
        self.programs.append(Program(request, output))
        return self.programs[-1]


class Base(SynchronousTestCase):
    """A dispatcher with or without its colleagues."""

    def setUp(self) -> None:
        self.clock = Clock()

    def connect(
        self, office: Any = None, launcher: Any = None, peer: str = HERE, **config: Any
    ) -> tuple[HttpConnection, Transport]:
        """A client's connection."""
        self.front = make_front(
            make_table(TABLE), self.clock, DispatchConfig(**config), office, launcher
        )
        connection, transport = connected(self.front.factory, peer)
        transport.hostAddr = IPv4Address("TCP", HERE, 8080)
        return connection, transport

    def ask(
        self, connection: HttpConnection, path: bytes, *lines: bytes, body: bytes = b""
    ) -> None:
        """Send a request, POST when it has a body."""
        method = b"POST" if body else b"GET"
        if body:
            lines += (b"Content-Length: %d" % len(body),)
        head = b"\r\n".join((b"%b %b HTTP/1.1" % (method, path), b"Host: h", *lines))
        connection.dataReceived(head + b"\r\n\r\n" + body)

    def aux(self, connection: HttpConnection, service: bytes, *lines: bytes) -> None:
        """Ask for a dedicated connection."""
        self.ask(
            connection,
            b"/Service/dispd.cgi?service=" + service,
            b"Client-Revision: 7.0",
            b"Client-Mode: STATEFUL_CAPABLE",
            *lines,
        )

    def ncbid(
        self, connection: HttpConnection, query: bytes, *lines: bytes, body: bytes = b""
    ) -> None:
        """Ask for a program to be run."""
        self.ask(connection, b"/Service/ncbid.cgi?service=" + query, *lines, body=body)


class AuxTests(Base):
    """A client that can hold a conversation is told where to have it."""

    def test_a_ticket(self) -> None:
        """Where to connect and with what ticket, in a reply without a body."""
        office = Office()
        verifyObject(ITicketOffice, office)
        connection, transport = self.connect(office)
        self.aux(connection, b"raw", b"Accepted-Server-Types: FIREWALL")
        first, lines, rest = split(transport.value())
        self.assertEqual((first, rest), (b"HTTP/1.1 200 OK", b""))
        self.assertEqual(lines[b"connection-info"], b"10.0.0.1 5861 12345678")
        self.assertEqual((lines[b"service"], lines[b"content-length"]), (b"raw", b"0"))
        self.assertFalse(transport.over)

    def test_another_choice_than_the_clients_is_told(self) -> None:
        """In a message."""
        connection, transport = self.connect(Office())
        self.aux(connection, b"raw", b"Used-Server-Info: STANDALONE 10.9.9.9:7")
        _, lines, _ = split(transport.value())
        self.assertIn(b"another was taken", lines[b"dispatcher-messages"])
        self.assertIn(b"connection-info", lines)

    def test_what_the_relay_is_asked(self) -> None:
        """Service, server, client, and the ports that the client can use."""
        for lines, firewall_mode, ports in [
            ((), False, None),
            ((b"Accepted-Server-Types: FIREWALL",), True, frozenset()),
            ((b"Accepted-Server-Types: FIREWALL", b"NCBI-Firewall-Ports: 0"), True, frozenset()),
            (
                (b"Accepted-Server-Types: FIREWALL", b"NCBI-Firewall-Ports: 22 443"),
                True,
                frozenset([22, 443]),
            ),
        ]:
            office = Office()
            connection, _ = self.connect(office)
            self.aux(connection, b"raw", *lines)
            (asked,) = office.asked
            self.assertEqual((asked.service, asked.server.port), ("raw", 7001))
            self.assertEqual(asked.client, HERE)
            self.assertEqual((asked.firewall_mode, asked.fallback_ports), (firewall_mode, ports))

    def test_without_a_relay(self) -> None:
        """The client is to come back stateless."""
        connection, transport = self.connect()
        self.aux(connection, b"raw")
        first, lines, _ = split(transport.value())
        self.assertEqual(first, b"HTTP/1.1 200 OK")
        self.assertEqual(lines[b"connection-info"], b"TRY_STATELESS")

    def test_an_http_server(self) -> None:
        """HTTP needs no dedicated connection."""
        office = Office()
        connection, transport = self.connect(office)
        self.aux(connection, b"web", b"Accepted-Server-Types: FIREWALL")
        self.assertIn(b"Connection-Info: TRY_STATELESS\r\n", transport.value())
        self.assertEqual(office.asked, [])

    def test_refusals(self) -> None:
        """They are said with the relay's words and status."""
        for error, status in [
            (TicketError("no more tickets"), b"503 "),
            (PassageRefusedError("not again"), b"403 "),
        ]:
            connection, transport = self.connect(Office(error))
            self.aux(connection, b"raw")
            first, lines, _ = split(transport.value())
            self.assertTrue(first.startswith(b"HTTP/1.1 " + status), first)
            self.assertEqual(lines[b"dispatcher-failures"], str(error).encode())
            self.assertNotIn(b"connection-info", lines)

    def test_a_relay_that_does_not_answer(self) -> None:
        """The client does not wait for ever."""
        connection, transport = self.connect(Office(Deferred()), dedicated_seconds=4.0)
        self.aux(connection, b"raw")
        self.clock.advance(5)
        self.assertIn(b"HTTP/1.1 504 ", transport.value())

    def test_a_relay_that_is_broken(self) -> None:
        """The fault is logged, the client told."""
        connection, transport = self.connect(Office(ZeroDivisionError()))
        self.aux(connection, b"raw")
        self.assertIn(b"HTTP/1.1 500 ", transport.value())
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_a_client_that_leaves(self) -> None:
        """Its reservation is cancelled."""
        cancelled: list[bool] = []
        connection, _ = self.connect(Office(Deferred(lambda _: cancelled.append(True))))
        self.aux(connection, b"raw")
        connection.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(cancelled, [True])

    def test_no_such_service(self) -> None:
        """404 ends the client's search."""
        connection, transport = self.connect(Office())
        self.aux(connection, b"none")
        self.assertIn(b"HTTP/1.1 404 ", transport.value())

    def test_a_program_through_the_relay(self) -> None:
        """The program waits first, then the relay is told where."""
        office, launcher = Office(), Launcher()
        verifyObject(IProgramLauncher, launcher)
        connection, transport = self.connect(office, launcher)
        self.aux(connection, b"filter", b"Accepted-Server-Types: FIREWALL")
        self.assertEqual(office.asked[0].launched, POINT)
        self.assertEqual(launcher.waiting[0].command, "/usr/bin/tr a-z A-Z")
        self.assertIn(b"Connection-Info: 10.0.0.1 5861 12345678\r\n", transport.value())

    def test_a_program_that_cannot_be_started(self) -> None:
        """The launcher's words and status; the relay is not asked."""
        office = Office()
        connection, transport = self.connect(office, Launcher(LaunchError("too many", 503)))
        self.aux(connection, b"filter", b"Accepted-Server-Types: FIREWALL")
        self.assertIn(b"HTTP/1.1 503 ", transport.value())
        self.assertEqual(office.asked, [])


class NcbidTests(Base):
    """Programs of this host, for clients that come to ``ncbid.cgi``."""

    def test_stateful(self) -> None:
        """The program waits at a port of its own."""
        launcher = Launcher()
        connection, transport = self.connect(launcher=launcher)
        self.ncbid(connection, b"filter&address=a&x=1", b"Connection-Mode: STATEFUL")
        self.assertIn(b"Connection-Info: 10.0.0.1 5861 12345678\r\n", transport.value())
        (asked,) = launcher.waiting
        self.assertEqual((asked.query, asked.client), ("address=a&x=1", HERE))

    def test_stateless(self) -> None:
        """Body in, output out; the reply begins with the first output."""
        launcher = Launcher()
        connection, transport = self.connect(launcher=launcher)
        self.ncbid(
            connection,
            b"filter&platform=p",
            b"Connection-Mode: STATELESS",
            b"NCBI-PHID: hit",
            body=b"hello",
        )
        (program,) = launcher.programs
        self.assertEqual((program.input, program.events), (b"hello", ["end of input"]))
        self.assertEqual(transport.value(), b"")
        program.output.output_received(b"HEL")
        program.output.output_received(b"LO")
        program.output.program_ended(0, "")
        first, lines, rest = split(transport.value())
        self.assertEqual(first, b"HTTP/1.1 200 OK")
        self.assertEqual(lines[b"content-type"], b"text/plain")
        self.assertEqual(lines[b"relay-path"], b"DISPD -> NCBID 127.0.0.1:80")
        self.assertEqual(rest, chunk(b"HEL") + chunk(b"LO") + LAST_CHUNK)
        self.assertFalse(transport.over)
        asked = program.request
        self.assertEqual((asked.service, asked.command), ("filter", "/usr/bin/tr a-z A-Z"))
        self.assertEqual((asked.platform, asked.request_id, asked.method), ("p", "hit", "POST"))
        self.assertEqual((asked.server_name, asked.server_port), (HERE, 8080))
        self.assertEqual(asked.path, "/Service/ncbid.cgi")
        self.assertIn(("Connection-Mode", "STATELESS"), asked.headers)

    def test_the_mode_of_browsers(self) -> None:
        """Who says nothing of a mode gets the stateless one; an unknown one is refused."""
        launcher = Launcher()
        connection, transport = self.connect(launcher=launcher)
        self.ncbid(connection, b"filter")
        self.assertEqual(len(launcher.programs), 1)
        launcher.programs[0].output.program_ended(0, "")
        self.assertIn(b"Content-Length: 0\r\n", transport.value())
        transport.clear()
        self.ncbid(connection, b"filter", b"Connection-Mode: SIDEWAYS")
        self.assertIn(b"HTTP/1.1 400 ", transport.value())

    def test_an_old_client(self) -> None:
        """The end of the connection ends the output."""
        launcher = Launcher()
        connection, transport = self.connect(launcher=launcher)
        connection.dataReceived(b"GET /Service/ncbid.cgi?service=filter HTTP/1.0\r\n\r\n")
        launcher.programs[0].output.output_received(b"output")
        launcher.programs[0].output.program_ended(0, "")
        self.assertTrue(transport.value().endswith(b"\r\n\r\noutput"))
        self.assertTrue(transport.disconnecting)

    def test_a_program_that_fails_without_output(self) -> None:
        """502, with what is known of it."""
        for status, reason, text in [
            (3, "", b"the program ended with status 3"),
            (None, "killed by signal 11", b"killed by signal 11"),
        ]:
            launcher = Launcher()
            connection, transport = self.connect(launcher=launcher)
            self.ncbid(connection, b"filter")
            launcher.programs[0].output.program_ended(status, reason)
            first, lines, _ = split(transport.value())
            self.assertEqual(first, b"HTTP/1.1 502 Bad Gateway")
            self.assertEqual(lines[b"dispatcher-failures"], text)

    def test_a_program_that_fails_in_the_middle(self) -> None:
        """The reply is cut off."""
        launcher = Launcher()
        connection, transport = self.connect(launcher=launcher)
        self.ncbid(connection, b"filter")
        launcher.programs[0].output.output_received(b"half")
        launcher.programs[0].output.program_ended(1, "")
        self.assertTrue(transport.aborted)
        self.assertNotIn(LAST_CHUNK, transport.value())

    def test_back_pressure_both_ways(self) -> None:
        """A program that reads slowly slows the client, and the other way round."""
        launcher = Launcher()
        connection, transport = self.connect(launcher=launcher)
        self.ncbid(connection, b"filter", b"Content-Length: 9")
        (program,) = launcher.programs
        program.output.input_paused()
        self.assertFalse(transport.reads)
        program.output.input_resumed()
        self.assertTrue(transport.reads)
        connection.pauseProducing()
        connection.resumeProducing()
        self.assertEqual(program.events, ["pause", "resume"])

    def test_a_client_that_leaves(self) -> None:
        """Its program is abandoned; what it still writes is dropped."""
        launcher = Launcher()
        connection, transport = self.connect(launcher=launcher)
        self.ncbid(connection, b"filter")
        connection.connectionLost(Failure(ConnectionLost()))
        (program,) = launcher.programs
        self.assertEqual(program.events[-1], "abandon")
        program.output.output_received(b"late")
        program.output.input_paused()
        program.output.program_ended(None, "ended")
        self.assertEqual(transport.value(), b"")

    def test_refusals(self) -> None:
        """Who may not, what is not there, and what cannot be."""
        for query, lines, peer, launcher, status in [
            (b"none", (), HERE, Launcher(), b"404"),
            (b"raw", (), HERE, Launcher(), b"404"),
            (b"inner", (), "192.0.2.1", Launcher(), b"403"),
            (b"inner", (b"NCBI-External: Y",), HERE, Launcher(), b"403"),
            (b"mine", (), "10.0.0.5", Launcher(), b"403"),
            (b"mine", (b"NCBI-External: Y",), HERE, Launcher(), b"403"),
            (b"talk", (), HERE, Launcher(), b"403"),
            (b"filter", (), HERE, None, b"503"),
            (b"filter", (b"Connection-Mode: STATEFUL",), HERE, None, b"503"),
            (b"filter", (), HERE, Launcher(LaunchError("no exec")), b"500"),
            (b"filter", (), HERE, Launcher(LaunchError("too many", 503)), b"503"),
        ]:
            connection, transport = self.connect(launcher=launcher, peer=peer)
            self.ncbid(connection, query, *lines)
            first, found, _ = split(transport.value())
            self.assertTrue(first.startswith(b"HTTP/1.1 " + status), (query, lines, peer, first))
            self.assertIn(b"dispatcher-failures", found)

    def test_a_private_program_for_this_host(self) -> None:
        """Whichever of its addresses the client comes from."""
        launcher = Launcher()
        connection, transport = self.connect(launcher=launcher, peer="::1")
        self.ncbid(connection, b"mine")
        self.assertEqual(len(launcher.programs), 1, transport.value())

    def test_programs_of_one_name(self) -> None:
        """The arguments tell which; the first when they do not."""
        for query, command in [
            (b"two&mode=b", "/bin/b"),
            (b"two&mode=a&x=y", "/bin/a"),
            (b"two", "/bin/a"),
        ]:
            launcher = Launcher()
            connection, _ = self.connect(launcher=launcher)
            self.ncbid(connection, query)
            self.assertEqual(launcher.programs[0].request.command, command)

    def test_another_hosts_program(self) -> None:
        """It is not run here, whatever the table says of it."""
        launcher = Launcher()
        self.front = make_front(
            make_table("far NCBID 10.0.0.7:80 '' L=no | /bin/cat", owner="10.0.0.7"),
            self.clock,
            launcher=launcher,
        )
        connection, transport = connected(self.front.factory)
        self.ncbid(connection, b"far")
        self.assertIn(b"HTTP/1.1 404 ", transport.value())


class ElsewhereTests(Stage):
    """NCBID servers of other hosts are asked for a program that waits."""

    async def launched(self, said: bytes) -> tuple[bytes, Office]:
        """What the client is told when the NCBID server says *said*."""
        office = Office()
        self.start("far NCBID 127.0.0.1:{port} a=1 L=no", office)
        client = await self.ask(
            b"/Service/dispd.cgi?service=far",
            b"Client-Mode: STATEFUL_CAPABLE\r\nAccepted-Server-Types: FIREWALL\r\n",
        )
        backend = await self.backend()
        self.assertTrue(backend.head.startswith(b"GET /Service/ncbid.cgi?service=far&a=1 HTTP"))
        self.assertEqual(backend.lines[b"connection-mode"], b"STATEFUL")
        backend.say(said)
        return await client.until(b"\r\n\r\n"), office

    async def test_a_program_that_waits(self) -> None:
        """The relay is told where."""
        octets, office = await self.launched(reply(b"", b"Connection-Info: 10.9.8.7 4444 0A0B0C0D"))
        self.assertEqual(office.asked[0].launched, ConnectionPoint("10.9.8.7", 4444, 0x0A0B0C0D))
        self.assertIn(b"Connection-Info: 10.0.0.1 5861 12345678\r\n", octets)

    async def test_nonsense(self) -> None:
        """Whatever is no place to connect to is a 502."""
        octets, office = await self.launched(reply(b"", b"Connection-Info: TRY_STATELESS"))
        self.assertIn(b"HTTP/1.1 502 ", octets)
        self.assertEqual(office.asked, [])
