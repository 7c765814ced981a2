"""gridnet as a master for event clients, over wires in memory."""

from __future__ import annotations

import os
import random
from typing import Any

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from gridnet.mirror.catalogue import GRID_ENGINE
from gridnet.mirror.element import ElementList
from gridnet.mirror.follow import MirrorService
from gridnet.mirror.gridengine import commlib, events, gdi
from gridnet.mirror.gridengine.cell import Cell
from gridnet.mirror.gridengine.commlib import Connect, FrameReader, Message, Peer
from gridnet.mirror.gridengine.dialect import dialect
from gridnet.mirror.gridengine.protocol import GridEngineConnector
from gridnet.mirror.gridengine.serve import EventClientFactory, QmasterLimits
from gridnet.mirror.keeper import MasterService
from gridnet.mirror.model import Event, Registration, Subscribed
from gridnet.table.address_range import AddressRanges
from tests.hypothesis_profile import examples
from tests.mirror.test_wire import Wire

SGE = dialect()
#: Damaged conversations; ``GRIDNET_TRIES`` is for a long search by hand.
TRIES = int(os.environ.get("GRIDNET_TRIES", "700"))
ADDRESS = IPv4Address("TCP", "127.0.0.1", 4000)
WISH = Registration(
    name="raw",
    delivery_seconds=5,
    subscriptions=tuple(Subscribed(event, 0) for event in (60, 72, 97, 31, 32, 33, 34)),
)


def job(number: int) -> Any:
    return SGE.element("JB", {"JB_job_number": number, "JB_owner": "me"})


def packed(element: Any) -> ElementList:
    return ElementList((element,), element.layout, "Events", 1)


class Raw:
    """A client that sends what a test says, and keeps what comes."""

    def __init__(self, factory: EventClientFactory) -> None:
        self.transport = StringTransport(peerAddress=ADDRESS)
        self.transport.abortConnection = self.transport.loseConnection  # type: ignore[method-assign]
        self.protocol = factory.buildProtocol(None)
        self.protocol.makeConnection(self.transport)
        self._sent = 0

    def send(self, octets: bytes) -> None:
        if not self.transport.disconnecting:
            self.protocol.dataReceived(octets)

    def connect(self, component: str = "raw", number: int = 0) -> None:
        self.send(commlib.pack_connect(connect(component, number)))

    def message(self, body: bytes, tag: int, format: str = "bin") -> None:
        self._sent += 1
        self.send(commlib.pack_message(Message(self._sent, format, body, tag)))

    def ask(self, command: int, wish: Registration, claim: str = "none:0 0 root root") -> None:
        rows = SGE.list_of("EV", [events.client_element(wish, SGE)])
        task = gdi.Task(command, gdi.EVENT_CLIENTS, rows, authentication=claim)
        self.message(gdi.pack([task], SGE), commlib.TAG_GDI)

    def frames(self) -> list[Any]:
        octets = self.transport.value()
        self.transport.clear()
        return list(FrameReader().receive(octets))

    def lose(self) -> None:
        self.protocol.connectionLost()


def connect(component: str, number: int) -> Connect:
    return Connect(Peer("master", "qmaster", 1), Peer("here", component, number))


class ServeCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000)
        self.make()

    def make(self, **options: Any) -> None:
        self.keeper = MasterService(self.clock, GRID_ENGINE)
        for kind in GRID_ENGINE.initial:
            rows = [SGE.element("SC")] if kind.name == "SCHEDD_CONF" else []
            self.keeper.replace(kind.name, ElementList(rows, SGE.kinds[kind.element]))
        self.keeper.startService()
        self.factory = EventClientFactory(
            self.clock, self.keeper, "master", AddressRanges.from_texts(["127/8"]), **options
        )

    def add(self, number: int) -> None:
        self.keeper.record(Event(32, int_key=number, elements=packed(job(number))))

    def registered(self, **changes: Any) -> Raw:
        raw = Raw(self.factory)
        raw.connect(**changes)
        raw.ask(gdi.ADD, WISH)
        return raw


class ServeTests(ServeCase):
    def test_the_answer_comes_before_the_first_report(self) -> None:
        raw = self.registered()
        self.clock.advance(0)
        answer, *reports = raw.frames()[1:]
        (task,) = gdi.unpack(answer.body, SGE)
        self.assertIsNone(gdi.verdict(gdi.read_answers(task.answers)))
        assert task.elements is not None
        self.assertEqual(events.read_client(task.elements[0], SGE).id, 11)
        (numbered,) = events.unpack_report(reports[0].body, SGE)
        self.assertEqual((numbered[0], numbered[1].event), (1, 31))

    def test_only_itself_may_a_client_modify_acknowledge_and_end(self) -> None:
        first, second = self.registered(), self.registered(component="other")
        self.clock.advance(0)
        second.frames()
        second.message(events.pack_leave(11, SGE), commlib.TAG_LEAVE)
        acknowledgement = events.Acknowledgement(1, 11)
        second.message(events.pack_acknowledgement(acknowledgement, SGE), commlib.TAG_ACKNOWLEDGE)
        second.ask(gdi.MODIFY, evolve(WISH, id=11))
        (answer,) = [each for each in second.frames() if each.tag == commlib.TAG_GDI]
        (task,) = gdi.unpack(answer.body, SGE)
        verdict = gdi.verdict(gdi.read_answers(task.answers))
        assert verdict is not None
        self.assertIn("not registered here", verdict.text)
        self.clock.advance(2)
        self.assertEqual(sorted(self.keeper.master.clients), [11, 12])
        self.assertEqual(self.keeper.master.clients[11].queued, 1)
        self.assertFalse(first.transport.disconnecting)

    def test_a_claim_that_does_not_parse_is_refused(self) -> None:
        raw = Raw(self.factory)
        raw.connect()
        raw.ask(gdi.ADD, WISH, claim="nobody knows")
        (task,) = gdi.unpack(raw.frames()[-1].body, SGE)
        verdict = gdi.verdict(gdi.read_answers(task.answers))
        assert verdict is not None
        self.assertEqual(verdict.status, gdi.Status.DENIED)
        self.assertEqual(self.keeper.master.clients, {})

    def test_another_request_is_answered_with_status_5(self) -> None:
        raw = Raw(self.factory)
        raw.connect()
        raw.message(gdi.pack([gdi.Task(1, 3, authentication="none:0 0 a b")], SGE), 2)
        (task,) = gdi.unpack(raw.frames()[-1].body, SGE)
        (answer,) = gdi.read_answers(task.answers)
        self.assertEqual(answer.status, gdi.Status.NOT_IMPLEMENTED)

    def test_a_registration_outlives_its_connection_unless_configured_otherwise(self) -> None:
        self.registered().lose()
        self.clock.advance(2)
        self.assertEqual(list(self.keeper.master.clients), [11])
        self.make(drop_on_disconnect=True)
        self.registered().lose()
        self.assertEqual(list(self.keeper.master.clients), [])

    def test_a_fixed_endpoint_is_its_holders_while_it_lives(self) -> None:
        holder = self.registered(component="qevent", number=5)
        holder.frames()
        newcomer = Raw(self.factory)
        newcomer.connect("qevent", 5)
        (asked,) = [each for each in holder.frames() if each.format == "sim"]
        holder.message(
            commlib.status_body(commlib.Condition(asked.id, 0, 0, connections=1)), 0, "sirm"
        )
        (answer,) = newcomer.frames()
        self.assertEqual(answer.condition, "endpoint not unique")
        silent = Raw(self.factory)
        silent.connect("qevent", 5)
        self.clock.advance(QmasterLimits().holder_seconds)
        self.assertTrue(holder.transport.disconnecting)
        holder.lose()
        (answer,) = silent.frames()
        self.assertEqual((answer.condition, answer.source.id), ("connected", 5))

    def test_who_only_asks_and_never_reads_is_not_read_from(self) -> None:
        raw = Raw(self.factory)
        raw.connect()
        assert raw.transport.producer is not None
        raw.transport.producer.pauseProducing()
        self.assertEqual(raw.transport.producerState, "producing")
        raw.message(commlib.SIM_BODY, 0, "sim")
        self.assertEqual(raw.transport.producerState, "paused")
        raw.transport.producer.resumeProducing()
        self.assertEqual(raw.transport.producerState, "producing")

    def test_too_many_and_too_slow_are_closed(self) -> None:
        self.make(limits=QmasterLimits(max_connections=1, handshake_seconds=10, idle_seconds=50))
        first = Raw(self.factory)
        second = Raw(self.factory)
        self.assertTrue(second.transport.disconnecting)
        self.clock.advance(11)
        self.assertTrue(first.transport.disconnecting)


class WiredTests(ServeCase):
    """A mirror of ours against a master of ours, in Grid Engine's octets."""

    def connect(self, factory: Any) -> Deferred[Any]:
        """The endpoint that the connector connects to."""
        client = factory.buildProtocol(None)
        self.wires.append(Wire(self.factory.buildProtocol(None), client))
        connected: Deferred[Any] = Deferred()
        connected.callback(client)
        return connected

    def settle(self, seconds: float = 3.0) -> None:
        for _ in range(int(seconds * 10)):
            self.clock.advance(0.1)
            for one in self.wires:
                while one.pump(self.chunk):
                    self.clock.advance(0)

    @examples(15)
    @given(chunk=st.integers(1, 3000))
    def test_lists_are_mirrored_however_the_octets_are_cut(self, chunk: int) -> None:
        self.make(limits=QmasterLimits())
        self.factory._allowed = AddressRanges.from_texts(["192/8"])
        self.wires: list[Wire] = []
        self.chunk = chunk
        connector = GridEngineConnector(
            self.clock,
            Cell("master"),
            endpoint=lambda host, port: self,  # type: ignore[arg-type, return-value]
        )
        mirror = MirrorService(
            self.clock,
            connector,
            Registration(name="wired", delivery_seconds=1),
            chance=random.Random(1),
        )
        mirror.subscribe("JOB")
        self.add(1)
        mirror.startService()
        self.settle()
        self.add(2)
        self.keeper.record(Event(33, int_key=1))
        self.settle()
        self.assertEqual([e["JB_job_number"] for e in mirror.mirror.list("JOB")], [2])
        done = mirror.stopService()
        self.settle()
        for one in self.wires:
            one.client.connectionLost()
        self.successResultOf(done)
        self.assertEqual(self.keeper.master.clients, {})


class HostileTests(ServeCase):
    """Whatever a peer sends costs that peer its connection, at most."""

    def test_damaged_conversations_harm_nobody_else(self) -> None:
        chance = random.Random(7)
        rows = SGE.list_of("EV", [events.client_element(WISH, SGE)])
        register = gdi.pack(
            [gdi.Task(gdi.ADD, gdi.EVENT_CLIENTS, rows, authentication="none:0 0 a b")], SGE
        )
        acknowledge = events.pack_acknowledgement(events.Acknowledgement(1, 11), SGE)
        conversation = [
            commlib.pack_connect(connect("raw", 0)),
            commlib.pack_message(Message(1, "bin", register, commlib.TAG_GDI)),
            commlib.pack_message(Message(2, "bin", acknowledge, commlib.TAG_ACKNOWLEDGE)),
            commlib.pack_message(Message(3, "sim", commlib.SIM_BODY)),
            commlib.pack_message(Message(4, "bin", events.pack_leave(11, SGE), 17)),
            commlib.pack_message(Message(5, "ccm", commlib.CCM_BODY)),
        ]
        witness = self.registered(component="witness")
        self.clock.advance(0)
        refused = 0
        for _ in range(TRIES):
            raw = Raw(self.factory)
            for place, octets in enumerate(conversation):
                if place and chance.random() < 0.5:
                    damaged = bytearray(octets)
                    for _ in range(chance.randint(1, 4)):
                        damaged[chance.randrange(len(damaged))] = chance.randrange(256)
                    octets = bytes(damaged)
                raw.send(octets)
            self.clock.advance(0.01)
            refused += raw.transport.disconnecting
            raw.lose()
            for client_id in list(self.keeper.master.clients):
                if client_id != 11:
                    self.keeper.drop(client_id, "end of the try")
        self.assertEqual(self.flushLoggedErrors(), [])
        self.assertGreater(refused, TRIES // 6)
        self.assertEqual(list(self.keeper.master.clients), [11])
        witness.frames()
        self.add(1)
        acknowledgement = events.Acknowledgement(1, 11)
        witness.message(events.pack_acknowledgement(acknowledgement, SGE), commlib.TAG_ACKNOWLEDGE)
        self.clock.advance(1)
        report = [f for f in witness.frames() if f.tag == commlib.TAG_REPORT][-1]
        self.assertEqual([e.event for _, e in events.unpack_report(report.body, SGE)], [32])
