"""
One connection to a qmaster, without I/O: handshake, requests, reports, closing.

Octets in, calls of a :class:`SessionUser` out (docs/protocols/event-mirror.rst, "Connecting").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from attrs import define, evolve, field
from automat import TypeMachineBuilder

from gridnet.errors import RemoteProtocolError
from gridnet.mirror.element import ElementList
from gridnet.mirror.gridengine import commlib, events, gdi
from gridnet.mirror.gridengine.commlib import Connect, ConnectAnswer, FrameReader, Message, Peer
from gridnet.mirror.gridengine.dialect import Dialect
from gridnet.mirror.model import Event, Registration
from gridnet.quick_machine import quick

#: A name that the master cannot map is a mistake in a configuration: it will not go away soon.
DENIED_RETRY_SECONDS = 60.0


class SessionUser(Protocol):
    """Who uses a session."""

    def write(self, octets: bytes) -> None:
        """Send *octets*."""

    def opened(self) -> None:
        """The master accepted the connection."""

    def denied(self, reason: str, retry_seconds: float) -> None:
        """The master refused the connection."""

    def accepted(self, client_id: int) -> None:
        """The registration was accepted."""

    def refused(self, reason: str) -> None:
        """The registration was refused."""

    def unknown_to_master(self, reason: str) -> None:
        """A modification was refused."""

    def reported(self, events: Sequence[tuple[int, Event]]) -> None:
        """A report came."""

    def close(self, reason: str) -> None:
        """The connection can be closed: nothing more is to be said."""


@define(eq=False)
class SessionCore:
    """The lasting data of a session."""

    user: SessionUser
    dialect: Dialect
    destination: Peer
    source: Peer
    authentication: Callable[[], str]
    started_at: float
    last_id: int = 0
    asked: dict[int, int] = field(factory=dict)  #: id of a request -> its command

    def send(
        self, body: bytes, tag: int = commlib.TAG_NONE, format: str = "bin", answers: int = 0
    ) -> int:
        """Send a message; gives its id."""
        self.last_id += 1
        self.user.write(commlib.pack_message(Message(self.last_id, format, body, tag, answers)))
        return self.last_id

    def request(self, command: int, wish: Registration) -> None:
        """Send a registration or modification."""
        wish = evolve(
            wish,
            host=self.source.host,
            component=self.source.component,
            component_id=wish.component_id,
        )
        element = events.client_element(wish, self.dialect)
        task = gdi.Task(
            command,
            gdi.EVENT_CLIENTS,
            ElementList([element], element.layout, "", 1),
            authentication=self.authentication(),
        )
        identifier = self.send(gdi.pack([task], self.dialect), commlib.TAG_GDI)
        self.asked[identifier] = command

    def answer_status(self, message: Message, now: float) -> None:
        """Answer a ``sim``: we live."""
        condition = commlib.Condition(
            message.id, int(self.started_at), max(0, int(now - self.started_at))
        )
        self.send(commlib.status_body(condition), format="sirm")

    def read_answer(self, message: Message) -> None:
        """The answer to one of our requests."""
        command = self.asked.pop(message.answers, 0)
        tasks = gdi.unpack(message.body, self.dialect)
        verdict = gdi.verdict(a for task in tasks for a in gdi.read_answers(task.answers))
        elements = tasks[0].elements
        if command == gdi.ADD:
            if elements and elements[0].get("EV_id"):
                # A real master may add an error about the caller's name to a success.
                self.user.accepted(elements[0]["EV_id"])
            elif verdict is not None:
                self.user.refused(verdict.text)
            else:
                raise RemoteProtocolError("an accepted registration without an id")
        elif command == gdi.MODIFY and verdict is not None:
            self.user.unknown_to_master(verdict.text)


class _Session(Protocol):
    """What can happen to a session."""

    def begin(self) -> None:
        """The transport is there."""

    def handshaken(self, answer: ConnectAnswer) -> None:
        """The master answered the handshake."""

    def got_message(self, message: Message, now: float) -> None:
        """A message came."""

    def register(self, wish: Registration) -> None:
        """Send a registration."""

    def modify(self, wish: Registration) -> None:
        """Send a modification."""

    def acknowledge(self, number: int, client_id: int) -> None:
        """Send an acknowledgement."""

    def leave(self, client_id: int) -> None:
        """Leave, and close properly."""


_builder = TypeMachineBuilder(_Session, SessionCore)

waiting = _builder.state("waiting")  #: for the transport
greeting = _builder.state("greeting")  #: for the answer to the handshake
ready = _builder.state("ready")
closing = _builder.state("closing")  #: for the answer to the close
over = _builder.state("over")


@waiting.upon(_Session.begin).to(greeting)
def _begin(session: _Session, core: SessionCore) -> None:
    core.user.write(commlib.pack_connect(Connect(core.destination, core.source)))


@greeting.upon(_Session.handshaken).to(ready)
def _handshaken(session: _Session, core: SessionCore, answer: ConnectAnswer) -> None:
    # Refusals are sorted out before this input: see ClientSession.receive.
    core.source = evolve(core.source, id=answer.source.id)
    core.user.opened()


@ready.upon(_Session.register).loop()
def _register(session: _Session, core: SessionCore, wish: Registration) -> None:
    core.request(gdi.ADD, wish)


@ready.upon(_Session.modify).loop()
def _modify(session: _Session, core: SessionCore, wish: Registration) -> None:
    core.request(gdi.MODIFY, wish)


@ready.upon(_Session.acknowledge).loop()
def _acknowledge(session: _Session, core: SessionCore, number: int, client_id: int) -> None:
    acknowledgement = events.Acknowledgement(number, client_id)
    core.send(events.pack_acknowledgement(acknowledgement, core.dialect), commlib.TAG_ACKNOWLEDGE)


@ready.upon(_Session.leave).to(closing)
def _leave(session: _Session, core: SessionCore, client_id: int) -> None:
    core.send(events.pack_leave(client_id, core.dialect), commlib.TAG_LEAVE)
    core.send(commlib.CCM_BODY, format="ccm")


@ready.upon(_Session.got_message).loop()
def _message(session: _Session, core: SessionCore, message: Message, now: float) -> None:
    if message.acknowledge != "nak":
        core.send(commlib.acknowledged_body(message.id), format="am")
    if message.format == "sim":
        core.answer_status(message, now)
    elif message.format == "ccm":
        core.send(commlib.CCRM_BODY, format="ccrm")
        core.user.close("the master closed the connection")
    elif message.format == "bin" and message.tag == commlib.TAG_REPORT:
        core.user.reported(events.unpack_report(message.body, core.dialect))
    elif message.format == "bin" and message.tag == commlib.TAG_GDI:
        core.read_answer(message)


@closing.upon(_Session.got_message).loop()
def _message_while_closing(
    session: _Session, core: SessionCore, message: Message, now: float
) -> None:
    if message.format == "ccm":
        core.send(commlib.CCRM_BODY, format="ccrm")
    if message.format in ("ccm", "ccrm"):
        core.user.close("closed")


# What the client asks for when it cannot be sent any more is of no use to the master, and what
# a master says out of turn is not of use to us.
for _state in (waiting, greeting, closing, over):
    _state.upon(_Session.register).loop().returns(None)
    _state.upon(_Session.modify).loop().returns(None)
    _state.upon(_Session.acknowledge).loop().returns(None)
    if _state is not closing:
        _state.upon(_Session.got_message).loop().returns(None)
for _state in (greeting, ready, closing, over):
    _state.upon(_Session.begin).loop().returns(None)
    if _state is not greeting:
        _state.upon(_Session.handshaken).loop().returns(None)
closing.upon(_Session.leave).loop().returns(None)
over.upon(_Session.leave).loop().returns(None)
waiting.upon(_Session.handshaken).loop().returns(None)


@waiting.upon(_Session.leave).to(over)
@greeting.upon(_Session.leave).to(over)
def _leave_at_once(session: _Session, core: SessionCore, client_id: int) -> None:
    core.user.close("left before the connection was ready")


_machine = quick(_builder).build()


class ClientSession:
    """
    A client's end of one connection.

    :param authentication: gives the text that requests carry.
    """

    def __init__(
        self,
        user: SessionUser,
        dialect: Dialect,
        destination: Peer,
        source: Peer,
        authentication: Callable[[], str],
        now: float,
        max_body_octets: int = commlib.MAX_BODY_OCTETS,
    ) -> None:
        self._core = SessionCore(user, dialect, destination, source, authentication, now)
        self._machine = _machine(self._core)
        self._reader = FrameReader(max_body_octets)

    @property
    def component_id(self) -> int:
        """The id that the master gave this end."""
        return self._core.source.id

    def begin(self) -> None:
        """The transport is there: send the handshake."""
        self._machine.begin()

    def receive(self, data: bytes, now: float) -> None:
        """
        Take octets.

        :raises RemoteProtocolError: malformed, or of another version; drop the connection.
        """
        for frame in self._reader.receive(data):
            if isinstance(frame, Message):
                self._machine.got_message(frame, now)
            elif isinstance(frame, ConnectAnswer):
                if not frame.connected:
                    reason = f"{frame.condition}: {frame.text}".strip(": ")
                    # Another holder of a fixed id may be gone soon; a name stays wrong.
                    wait = 5.0 if frame.condition == "endpoint not unique" else None
                    self._core.user.denied(reason, DENIED_RETRY_SECONDS if wait is None else wait)
                    return
                self._machine.handshaken(frame)
            else:
                raise RemoteProtocolError("the peer of a client connects to it")

    @property
    def pending(self) -> int:
        """Octets of a frame that is not whole yet."""
        return self._reader.pending

    def register(self, wish: Registration) -> None:
        """Send a registration."""
        self._machine.register(wish)

    def modify(self, wish: Registration) -> None:
        """Send a modification."""
        self._machine.modify(wish)

    def acknowledge(self, number: int, client_id: int) -> None:
        """Send an acknowledgement."""
        self._machine.acknowledge(number, client_id)

    def leave(self, client_id: int) -> None:
        """Leave, then close; :meth:`SessionUser.close` follows the master's answer."""
        self._machine.leave(client_id)
