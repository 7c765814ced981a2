"""gridnet's own transport: mirrors over wires in memory, and what is said on them."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from gridnet.errors import RemoteProtocolError
from gridnet.mirror import wire
from gridnet.mirror.catalogue import GRID_ENGINE, OwnCatalogue
from gridnet.mirror.element import ElementList
from gridnet.mirror.filters import Chosen, Operator, What, Where
from gridnet.mirror.follow import MirrorService
from gridnet.mirror.master import MasterLimits
from gridnet.mirror.mirror import ALL
from gridnet.mirror.model import Action, Event, Registration, Report
from gridnet.mirror.outflow import CHUNK_OCTETS, Outflow
from gridnet.mirror.protocol import (
    GridnetConnector,
    MasterFactory,
    MirrorProtocol,
    ServerLimits,
)
from tests.hypothesis_profile import examples
from tests.mirror.test_follow import LocalTestCase, service
from tests.mirror.test_gridengine_cull import CONDITIONS


class Wire:
    """Two protocols and the octets between them."""

    def __init__(self, server: Any, client: Any) -> None:
        self.server, self.client = server, client
        address = IPv4Address("TCP", "192.0.2.7", 4000)
        self.from_server = StringTransport(peerAddress=address)
        self.from_client = StringTransport(peerAddress=address)
        for transport in (self.from_server, self.from_client):
            transport.abortConnection = transport.loseConnection  # type: ignore[method-assign]
        server.makeConnection(self.from_server)
        client.makeConnection(self.from_client)

    def pump(self, chunk: int = 10_000) -> bool:
        moved = False
        for transport, receiver in (
            (self.from_server, self.client),
            (self.from_client, self.server),
        ):
            octets = transport.value()
            transport.clear()
            for place in range(0, len(octets), chunk):
                receiver.dataReceived(octets[place : place + chunk])
                moved = True
        return moved


class WireTestCase(LocalTestCase):
    """The same, over gridnet's own transport."""

    def setUp(self) -> None:
        super().setUp()
        catalogue = self.keeper.master.catalogue
        assert isinstance(catalogue, OwnCatalogue)
        self.factory = MasterFactory(self.clock, self.keeper, catalogue, host="here")
        self.wires: list[Wire] = []
        self.chunk = 10_000
        connector = GridnetConnector(self, "gridnet://test")  # type: ignore[arg-type]
        self.mirror = MirrorService(
            self.clock,
            connector,
            Registration(name="wired", delivery_seconds=1),
            chance=random.Random(1),
        )

    def connect(self, factory: Any) -> Deferred[MirrorProtocol]:
        """The endpoint that the connector connects to."""
        connected: Deferred[MirrorProtocol] = Deferred()
        server = self.factory.buildProtocol(None)
        client = factory.buildProtocol(None)
        self.wires.append(Wire(server, client))
        connected.callback(client)
        return connected

    def settle(self, seconds: float = 2.0) -> None:
        for _ in range(int(seconds * 10)):
            self.clock.advance(0.1)
            for one in list(self.wires):
                while one.pump(self.chunk):
                    self.clock.advance(0)
                if one.from_server.disconnecting or one.from_client.disconnecting:
                    self.wires.remove(one)
                    one.server.connectionLost()
                    one.client.connectionLost()

    def tearDown(self) -> None:
        if self.mirror.running:
            done = self.mirror.stopService()
            self.settle()
            self.successResultOf(done)
        for one in self.wires:
            one.from_server.loseConnection()
        self.settle()
        super().tearDown()


class PausingClock(Clock):
    """Can let time pass like a reactor after a pause: first what was due, then the reading."""

    def pause(self, seconds: float) -> None:
        """Call what is due after *seconds*, but nothing that is asked for meanwhile."""
        self.rightNow += seconds
        due = [call for call in self.calls if call.getTime() <= self.rightNow]
        for call in due:
            self.calls.remove(call)
            call.called = 1
            call.func(*call.args, **call.kw)


class PausedTests(WireTestCase):
    """A mirror that could not read for a while, or gets much over a slow way."""

    clock_class = PausingClock

    def setUp(self) -> None:
        super().setUp()
        self.mirror.subscribe("services")
        self.parted: list[str] = []
        self.mirror.on_state(lambda state, reason: self.parted.append(reason) if reason else None)

    def test_what_came_while_the_process_stood_still_is_read_before_the_master_is_given_up(
        self,
    ) -> None:
        self.mirror.startService()
        self.settle()
        self.clock.advance(1.5)  # a report lies in the socket
        assert isinstance(self.clock, PausingClock)
        self.clock.pause(30)
        (wire_,) = self.wires
        wire_.pump()
        self.settle(5)
        self.assertEqual(self.parted, [])
        self.assertTrue(self.mirror.client.is_registered)
        self.clock.advance(12)  # nothing is read, and nothing is to be read
        self.assertEqual(self.parted, ["the master is silent"])

    def test_a_master_whose_list_takes_long_to_come_is_not_silent(self) -> None:
        self.keeper.replace(
            "services", ElementList([service(key=str(n), text="x" * 100) for n in range(200)])
        )
        self.mirror.startService()
        (wire_,) = self.wires
        slow = 0  # pieces of 3000 octets, eight seconds apart
        while not self.mirror.mirror.is_current("services"):
            octets = wire_.from_client.value()
            wire_.from_client.clear()
            wire_.server.dataReceived(octets)
            self.clock.advance(0)
            octets = wire_.from_server.value()
            wire_.from_server.clear()
            for place in range(0, len(octets), 3000):
                wire_.client.dataReceived(octets[place : place + 3000])
                if len(octets) > 3000:
                    self.clock.advance(8)
                    slow += 1
            self.assertEqual(self.parted, [])
        self.assertGreater(slow, 5)
        self.assertEqual(len(self.mirror.mirror.list("services")), 200)


class WiredTests(WireTestCase):
    def test_a_list_is_mirrored_over_the_wire_however_it_is_cut(self) -> None:
        self.chunk = 7
        where = Where(Operator.GREATER, "rate", 1)
        self.mirror.subscribe("services", where=where, what=What.of("rate"), flush_seconds=0)
        self.mirror.startService()
        self.settle()
        self.assertEqual(self.mirror.mirror.list("services"), [])
        self.keeper.change("services", "b", service(key="b", rate=2.5, text="größer"))
        self.settle(0.5)
        self.assertEqual(
            [e.as_json() for e in self.mirror.mirror.list("services")], [{"key": "b", "rate": 2.5}]
        )
        self.mirror.subscribe("services")
        self.settle()
        found = self.mirror.mirror.find("services", "b")
        assert found is not None
        self.assertEqual(found["text"], "größer")
        self.assertEqual(len(self.mirror.mirror.list("services")), 2)

    def test_all_is_what_the_greeting_names(self) -> None:
        self.mirror.subscribe(ALL)
        self.mirror.startService()
        self.settle()
        self.assertTrue(self.mirror.mirror.is_current("hosts"))
        self.assertTrue(self.mirror.mirror.is_current("services"))

    def test_a_cut_wire_is_made_anew(self) -> None:
        self.mirror.subscribe("services")
        self.mirror.startService()
        self.settle()
        self.wires[0].from_server.loseConnection()
        self.settle()
        self.assertEqual(len(self.wires), 1)
        self.assertTrue(self.mirror.mirror.is_current("services"))
        self.assertEqual(len(self.keeper.master.clients), 1)

    def test_what_a_peer_sends_wrong_costs_it_its_connection(self) -> None:
        for frame in (
            b"\xff\xff\xff\xff",
            wire.pack({"what": 1}),
            wire.pack({"acknowledge": "x"}),
            wire.pack({"register": {"name": 5}}),
            wire.pack({"register": {"name": "x", "subscriptions": [{"type": "s", "action": 99}]}}),
            struct.pack(">I", 3) + b"[1]",
            struct.pack(">I", 50_000) + b"[" * 50_000,
        ):
            server = self.factory.buildProtocol(None)
            transport = StringTransport()
            transport.abortConnection = transport.loseConnection  # type: ignore[method-assign]
            server.makeConnection(transport)
            server.dataReceived(frame)
            self.assertTrue(transport.disconnecting, frame[:40])
            self.assertIn(b'{"closed":', transport.value())
            server.connectionLost()

    def test_a_connection_that_does_not_register_is_closed(self) -> None:
        server = self.factory.buildProtocol(None)
        transport = StringTransport()
        server.makeConnection(transport)
        self.clock.advance(30)
        self.assertIn(b"no registration in time", transport.value())
        server.connectionLost()

    def test_connections_are_bounded(self) -> None:
        self.factory.limits = ServerLimits(max_connections=1)
        servers = []
        for wanted in (False, True):
            server = self.factory.buildProtocol(None)
            transport = StringTransport()
            transport.abortConnection = transport.loseConnection  # type: ignore[method-assign]
            server.makeConnection(transport)
            self.assertEqual(transport.disconnecting, wanted)
            servers.append(server)
        for server in servers:
            server.connectionLost()

    def test_a_refusal_reaches_the_client(self) -> None:
        self.keeper.master.limits = MasterLimits(max_clients=0)
        reasons: list[str] = []
        self.mirror.on_state(lambda state, reason: reasons.append(reason))
        self.mirror.startService()
        self.settle()
        self.assertIn("no more than 0 event clients may register", reasons[0])


class OutflowTests(SynchronousTestCase):
    def test_a_peer_that_does_not_read_holds_one_chunk(self) -> None:
        transport = StringTransport()
        flow = Outflow(transport)
        piece = b"x" * 1000
        flow.write([piece] * 1000)
        # A StringTransport never pauses by itself: everything went out, in chunks.
        self.assertEqual(len(transport.value()), 1_000_000)
        transport.clear()
        written: list[int] = []

        def write(octets: bytes) -> None:
            written.append(len(octets))
            flow.pauseProducing()

        transport.write = write  # type: ignore[method-assign]
        flow.write([piece] * 1000)
        self.assertTrue(flow.is_busy)
        self.assertEqual(len(written), 1)
        self.assertLess(written[0], CHUNK_OCTETS + 1000)
        while flow.is_busy:
            flow.resumeProducing()
        self.assertEqual(sum(written), 1_000_000)

    def test_small_reports_wait_for_the_peer_too(self) -> None:
        """However small they are, what a peer does not read must not pile up."""
        transport = StringTransport()
        flow = Outflow(transport)
        self.assertIs(transport.producer, flow)
        flow.write([b"small"])
        self.assertTrue(flow.is_free)
        flow.pauseProducing()
        self.assertFalse(flow.is_free)
        flow.write([b"next"])
        self.assertEqual(transport.value(), b"small")
        flow.resumeProducing()
        self.assertEqual(transport.value(), b"smallnext")
        flow.end()
        self.assertIsNone(transport.producer)

    def test_closing_waits_for_what_is_on_its_way(self) -> None:
        transport = StringTransport()
        flow = Outflow(transport)
        flow.pauseProducing()
        flow.write([b"abc"])
        flow.close()
        self.assertFalse(transport.disconnecting)
        flow.resumeProducing()
        self.assertEqual((transport.value(), transport.disconnecting), (b"abc", True))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
KEYS = st.sampled_from(
    ["hello", "report", "events", "register", "subscriptions", "type", "action", "types", "version"]
)


class FormatTests(SynchronousTestCase):
    def test_a_report_survives(self) -> None:
        catalogue = OwnCatalogue(["s"])
        first = catalogue.find("s").list_event
        rows = ElementList([service(key="a", n=1), service(key="b", n=[1, {"x": None}])])
        events = [
            Event(first, 5, elements=rows),
            Event(first + 1, 6, text_key="c", elements=ElementList([service(key="c")])),
            Event(first + 2, 7, text_key="c"),
            Event(72, 8),
        ]
        for _ in "fresh, then from what the events remember":
            octets = b"".join(wire.pack_report(Report(9, (events,)), catalogue))
            (message,) = wire.FrameReader().receive(octets)
            found = wire.read_report(message, OwnCatalogue())
            self.assertEqual([n for n, _ in found], [9, 10, 11, 12])
            self.assertEqual([e.facts for _, e in found], [e.facts for e in events])
            self.assertEqual([e.timestamp for _, e in found], [5, 6, 7, 8])

    def test_what_json_has_no_number_for_is_null(self) -> None:
        """A qmaster's double may be any; a browser would read nothing of the whole report."""
        catalogue = OwnCatalogue(["s"])
        row = service(key="a", load=float("inf"), inner=[{"x": float("nan"), "y": 0.5}])
        event = Event(catalogue.find("s").events[Action.ADD], 6, elements=ElementList([row]))
        octets = b"".join(wire.pack_report(Report(1, ([event],)), catalogue))
        message = json.loads(octets[4:], parse_constant=self.fail)
        (found,) = message["events"]
        self.assertEqual(found[4], {"key": "a", "load": None, "inner": [{"x": None, "y": 0.5}]})

    @given(CONDITIONS)
    @examples(50)
    def test_conditions_survive(self, where: Where) -> None:
        again = json.loads(json.dumps(wire.where_as_json(where)))
        self.assertEqual(wire.read_where(again), where)

    def test_choices_survive(self) -> None:
        what = What((Chosen("a"), Chosen("b", What.of("c", "d"))))
        self.assertEqual(wire.read_what(json.loads(json.dumps(wire.what_as_json(what)))), what)
        inner = Where(Operator.SUBSCOPE, "l", parts=(Where(Operator.EQUAL, "x", None),))
        self.assertEqual(wire.read_where(wire.where_as_json(inner)), inner)

    @given(st.dictionaries(KEYS, JSON, max_size=4))
    @examples(300)
    def test_any_message_is_read_or_refused(self, message: dict[str, Any]) -> None:
        readers: list[Callable[[], object]] = [
            lambda: wire.read_report(message, OwnCatalogue()),
            lambda: wire.read_registration(message, OwnCatalogue(["s"])),
            lambda: wire.read_greeting(message),
            lambda: wire.read_where(message.get("hello")),
            lambda: wire.read_what(message.get("hello")),
        ]
        for read in readers:
            try:
                read()
            except RemoteProtocolError:
                pass

    @given(st.binary(max_size=60), st.integers(1, 10))
    @examples(200)
    def test_any_octets_give_messages_or_are_refused(self, octets: bytes, cut: int) -> None:
        reader = wire.FrameReader(100)
        try:
            reader.receive(octets[:cut])
            reader.receive(octets[cut:])
        except RemoteProtocolError:
            pass

    def test_another_version_is_refused_with_both(self) -> None:
        (message,) = wire.FrameReader().receive(wire.Greeting(7, ()).pack())
        with self.assertRaisesRegex(RemoteProtocolError, "version 7, this is 1"):
            wire.read_greeting(message)

    def test_the_catalogue_of_real_clients_is_not_spoken_here(self) -> None:
        self.assertNotIn("services", GRID_ENGINE.by_name)
