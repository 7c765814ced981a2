"""
A master's end of one connection of a real event client, without I/O.

Octets in, calls of a :class:`ServerUser` out (docs/protocols/event-mirror.rst, "As a master").
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from attrs import define, evolve
from automat import TypeMachineBuilder

from gridnet.errors import RemoteProtocolError
from gridnet.mirror.element import ElementList
from gridnet.mirror.gridengine import commlib, events, gdi
from gridnet.mirror.gridengine.commlib import Connect, ConnectAnswer, FrameReader, Message, Peer
from gridnet.mirror.gridengine.dialect import Dialect
from gridnet.mirror.model import Registration, Report
from gridnet.quick_machine import quick

#: What a real qmaster tells its clients.
PARAMETERS = "gdi_timeout=60:gdi_retries=0:cl_ping=false"
#: From a client: registrations with filters are some KiB.
MAX_REQUEST_OCTETS = 4 * 1024 * 1024


class ServerUser(Protocol):
    """Who serves the client behind a session."""

    def write(self, pieces: Iterable[bytes]) -> None:
        """Send octets."""

    def wants_in(self, connect: Connect) -> None:
        """A client shook hands; ``admit`` or ``deny`` is the answer, now or later."""

    def wants_registration(self, wish: Registration, claim: str) -> tuple[int, str, int]:
        """
        A client registers.

        :returns: its id and the next time of delivery, or 0, why not, and the status.
        """

    def wants_modification(self, wish: Registration, claim: str) -> tuple[str, int]:
        """A client modifies itself; gives "" or why not, and the status."""

    def acknowledged(self, number: int, client_id: int) -> None:
        """A client acknowledges."""

    def left(self, client_id: int) -> None:
        """A client leaves."""

    def answered_status(self) -> None:
        """The peer answered a ``sim``: it lives."""

    def condition(self, asked: int) -> commlib.Condition:
        """What to say of this process when asked with message *asked*."""

    def close(self, reason: str) -> None:
        """The connection can be closed."""


@define(eq=False)
class ServerCore:
    """The lasting data of a session."""

    user: ServerUser
    dialect: Dialect
    host: str  #: the master's, as it calls itself
    peer: Peer | None = None
    last_id: int = 0

    def send(
        self, body: bytes, tag: int = commlib.TAG_NONE, format: str = "bin", answers: int = 0
    ) -> None:
        """Send a message."""
        self.last_id += 1
        message = Message(self.last_id, format, body, tag, answers)
        self.user.write([commlib.pack_message(message)])

    def control(self, message: Message) -> None:
        """A message about the connection itself."""
        if message.format == "sim":
            condition = self.user.condition(message.id)
            self.send(commlib.status_body(condition), format="sirm")
        elif message.format == "sirm":
            self.user.answered_status()

    def requests(self, message: Message) -> None:
        """A GDI packet: one answer for each task."""
        tasks = gdi.unpack(message.body, self.dialect)
        answers = [self.answer(task) for task in tasks]
        self.send(gdi.pack(answers, self.dialect), commlib.TAG_GDI, answers=message.id)

    def answer(self, task: gdi.Task) -> gdi.Task:
        """The answer to one task."""
        if task.target != gdi.EVENT_CLIENTS or task.command not in (gdi.ADD, 2, gdi.MODIFY):
            text = "not implemented: this master serves event clients only"
            return self._answered(task, text, gdi.Status.NOT_IMPLEMENTED)
        wish = events.read_client_body(task.elements, self.dialect)
        peer = self.peer
        if peer is not None:
            wish = evolve(wish, host=peer.host, component=peer.component, component_id=peer.id)
        if task.command == gdi.MODIFY:
            text, status = self.user.wants_modification(wish, task.authentication)
            return self._answered(task, text, status)
        client_id, text, number = self.user.wants_registration(wish, task.authentication)
        if not client_id:
            return self._answered(task, text, number)
        sent = evolve(wish, id=client_id, changed=False)
        complete = {
            "EV_last_heard_from": number,
            "EV_next_send_time": number + wish.delivery_seconds,
            "EV_next_number": 1,
            "EV_state": 1,
        }
        # A client reads its id from the first; the second is the object as it is kept.
        rows = [
            events.client_element(sent, self.dialect),
            events.client_element(sent, self.dialect, complete),
        ]
        said = f'{wish.component}@{wish.host} added "{wish.name}" to event client list'
        done = self._answered(task, said, gdi.Status.OK)
        return evolve(done, elements=ElementList(rows, rows[0].layout, "", 1))

    def _answered(self, task: gdi.Task, text: str, status: int) -> gdi.Task:
        status = status if text else gdi.Status.OK
        quality = gdi.Quality.INFO if status == gdi.Status.OK else gdi.Quality.ERROR
        answer = gdi.Answer(status, text or "ok", quality)
        return evolve(
            task,
            elements=task.elements if task.target == gdi.EVENT_CLIENTS else None,
            answers=gdi.answer_list([answer], self.dialect),
            where=None,
            what=None,
        )


class _Session(Protocol):
    """What can happen to a session."""

    def shook_hands(self, connect: Connect) -> None:
        """The client's handshake came."""

    def admit(self, component_id: int) -> None:
        """Let the client in, under that id."""

    def deny(self, condition: str, text: str) -> None:
        """Do not."""

    def got_message(self, message: Message) -> None:
        """A message came."""

    def deliver(self, report: Report) -> bool:
        """Send a report; False: not a time for it."""

    def ask_status(self) -> None:
        """Ask whether the peer lives."""

    def finish(self) -> None:
        """Close properly."""


_builder = TypeMachineBuilder(_Session, ServerCore)

waiting = _builder.state("waiting")  #: for the handshake
judging = _builder.state("judging")  #: whether the client may come in
ready = _builder.state("ready")
closing = _builder.state("closing")  #: for the answer to our close
over = _builder.state("over")


@waiting.upon(_Session.shook_hands).to(judging)
def _shook(session: _Session, core: ServerCore, connect: Connect) -> None:
    core.peer = connect.source
    core.user.wants_in(connect)


@judging.upon(_Session.admit).to(ready)
def _admit(session: _Session, core: ServerCore, component_id: int) -> None:
    if core.peer is not None:
        core.peer = evolve(core.peer, id=component_id)
        answer = ConnectAnswer("connected", "ok", core.peer, PARAMETERS)
        core.user.write([commlib.pack_connect_answer(answer)])


@judging.upon(_Session.deny).to(over)
def _deny(session: _Session, core: ServerCore, condition: str, text: str) -> None:
    if core.peer is not None:
        answer = ConnectAnswer(condition, text, core.peer, PARAMETERS)
        core.user.write([commlib.pack_connect_answer(answer)])
    core.user.close(f"{condition}: {text}")


@ready.upon(_Session.got_message).loop()
def _message(session: _Session, core: ServerCore, message: Message) -> None:
    if message.acknowledge != "nak":
        core.send(commlib.acknowledged_body(message.id), format="am")
    if message.format == "ccm":
        core.send(commlib.CCRM_BODY, format="ccrm")
        core.user.close("the client closed the connection")
    elif message.format != "bin":
        core.control(message)
    elif message.tag == commlib.TAG_GDI:
        core.requests(message)
    elif message.tag == commlib.TAG_ACKNOWLEDGE:
        for each in events.unpack_acknowledgements(message.body, core.dialect):
            core.user.acknowledged(each.number, each.client_id)
    elif message.tag == commlib.TAG_LEAVE:
        core.user.left(events.unpack_leave(message.body, core.dialect))
    else:
        raise RemoteProtocolError(f"a message with the unknown tag {message.tag}")


@closing.upon(_Session.got_message).loop()
def _message_while_closing(session: _Session, core: ServerCore, message: Message) -> None:
    if message.format == "ccm":
        core.send(commlib.CCRM_BODY, format="ccrm")
    if message.format in ("ccm", "ccrm"):
        core.user.close("closed")


@ready.upon(_Session.deliver).loop()
def _deliver(session: _Session, core: ServerCore, report: Report) -> bool:
    pieces: Sequence[bytes] = events.pack_report(report, core.host, core.dialect)
    core.last_id += 1
    head = commlib.message_header(core.last_id, sum(map(len, pieces)), tag=commlib.TAG_REPORT)
    core.user.write([head, *pieces])
    return True


@ready.upon(_Session.ask_status).loop()
def _ask(session: _Session, core: ServerCore) -> None:
    core.send(commlib.SIM_BODY, format="sim")


@ready.upon(_Session.finish).to(closing)
def _finish(session: _Session, core: ServerCore) -> None:
    core.send(commlib.CCM_BODY, format="ccm")


@waiting.upon(_Session.finish).to(over)
@judging.upon(_Session.finish).to(over)
def _finish_early(session: _Session, core: ServerCore) -> None:
    core.user.close("closed before it was ready")


@waiting.upon(_Session.got_message).loop()
@judging.upon(_Session.got_message).loop()
def _too_early(session: _Session, core: ServerCore, message: Message) -> None:
    raise RemoteProtocolError("a message before the handshake")


@judging.upon(_Session.shook_hands).loop()
@ready.upon(_Session.shook_hands).loop()
@closing.upon(_Session.shook_hands).loop()
@over.upon(_Session.shook_hands).loop()
def _again(session: _Session, core: ServerCore, connect: Connect) -> None:
    raise RemoteProtocolError("a second handshake")


@waiting.upon(_Session.deliver).loop()
@judging.upon(_Session.deliver).loop()
@closing.upon(_Session.deliver).loop()
@over.upon(_Session.deliver).loop()
def _cannot_deliver(session: _Session, core: ServerCore, report: Report) -> bool:
    return False


over.upon(_Session.got_message).loop().returns(None)
for _state in (waiting, judging, closing, over):
    _state.upon(_Session.ask_status).loop().returns(None)
for _state in (waiting, ready, closing, over):
    _state.upon(_Session.admit).loop().returns(None)
    _state.upon(_Session.deny).loop().returns(None)
for _state in (closing, over):
    _state.upon(_Session.finish).loop().returns(None)

_machine = quick(_builder).build()


class ServerSession:
    """
    A master's end of one connection.

    :param host: what the master calls itself in reports.
    """

    def __init__(
        self,
        user: ServerUser,
        dialect: Dialect,
        host: str,
        max_body_octets: int = MAX_REQUEST_OCTETS,
    ) -> None:
        self._core = ServerCore(user, dialect, host)
        self._machine = _machine(self._core)
        self._reader = FrameReader(max_body_octets)

    @property
    def peer(self) -> Peer | None:
        """Who is there, once it has shaken hands."""
        return self._core.peer

    def receive(self, data: bytes) -> None:
        """
        Take octets.

        :raises RemoteProtocolError: malformed, or out of turn; drop the connection.
        """
        for frame in self._reader.receive(data):
            if isinstance(frame, Message):
                self._machine.got_message(frame)
            elif isinstance(frame, Connect):
                self._machine.shook_hands(frame)
            else:
                raise RemoteProtocolError("an answer to a handshake that was not made")

    def admit(self, component_id: int) -> None:
        """Let the client in, under that id."""
        self._machine.admit(component_id)

    def deny(self, condition: str, text: str) -> None:
        """Refuse it; :meth:`ServerUser.close` follows."""
        self._machine.deny(condition, text)

    def deliver(self, report: Report) -> bool:
        """Send a report; False: this is not the time for it."""
        return self._machine.deliver(report)

    def ask_status(self) -> None:
        """Ask whether the peer lives; ``answered_status`` follows."""
        self._machine.ask_status()

    def finish(self) -> None:
        """Close properly; :meth:`ServerUser.close` follows the peer's answer."""
        self._machine.finish()
