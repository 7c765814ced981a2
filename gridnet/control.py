"""
Control sockets: local tools ask a service, it answers (docs/protocols/lbsmd-control.rst).

One connection, one question: a line of JSON each way.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred, execute, maybeDeferred
from twisted.internet.interfaces import (
    IAddress,
    IListeningPort,
    IProtocolFactory,
    IPullProducer,
    IStreamServerEndpoint,
    ITCPTransport,
)
from twisted.internet.protocol import Factory, connectionDone
from twisted.logger import Logger
from twisted.protocols.basic import LineOnlyReceiver
from twisted.protocols.policies import TimeoutMixin
from twisted.python.failure import Failure
from zope.interface import implementer

from gridnet.config import read
from gridnet.errors import GridnetError, LocalProtocolError, RemoteProtocolError
from gridnet.listener import Listener

#: Site file that local tools read when nothing is said.
DEFAULT_SITE_FILE = Path("site.toml")
MAX_QUESTION_OCTETS = 65536
QUESTION_SECONDS = 10.0
#: Seconds that an answer may take: asking other hosts, and sending it.
ANSWER_SECONDS = 60.0
MAX_CONNECTIONS = 256
MAX_CONNECTIONS_PER_USER = 64

_PIECE_OCTETS = 65536


@frozen
class JsonText:
    """An answer that is JSON already."""

    octets: bytes


#: Answers one question: gets its members, gives a JSON value, or a ``Deferred`` of one.
#: ``uid`` among the members is who asks, as the kernel says.
Answerer = Callable[[Mapping[str, Any]], Any]
#: Octets of the longest path that a UNIX socket can have.
MAX_PATH_OCTETS = 107


class ControlError(GridnetError):
    """A local tool cannot get an answer from the daemon; its user is told why."""


class NoDaemonError(ControlError):
    """Nobody is there to ask, or what is there is no daemon of ours."""


def parse_question(line: bytes) -> Mapping[str, Any]:
    """
    Read a question.

    :raises RemoteProtocolError: it is no JSON object with a text ``ask``.
    """
    try:
        question = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        raise RemoteProtocolError("not a line of JSON") from None
    if not isinstance(question, dict) or not isinstance(question.get("ask"), str):
        raise RemoteProtocolError('expected an object with "ask"')
    return question


class ControlProtocol(LineOnlyReceiver, TimeoutMixin):
    """One question of a local tool."""

    delimiter = b"\n"
    MAX_LENGTH = MAX_QUESTION_OCTETS
    transport: ITCPTransport

    def __init__(self, desk: ControlFactory) -> None:
        self._desk = desk
        self._asked = False
        self._uid = -1

    def connectionMade(self) -> None:
        """Called by Twisted; one user cannot take the places of the others."""
        self._uid = peer_uid(self.transport)
        self._desk.connections[self._uid] += 1
        if self._desk.connections[self._uid] > MAX_CONNECTIONS_PER_USER:
            self.transport.abortConnection()
        self.setTimeout(QUESTION_SECONDS)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Called by Twisted."""
        self._desk.connections -= Counter((self._uid,))
        self.setTimeout(None)

    def timeoutConnection(self) -> None:
        """Called by Twisted: nothing asked, no answer to be had, or none taken."""
        self.transport.abortConnection()

    def lineReceived(self, line: bytes) -> None:
        """Called by Twisted."""
        if self._asked:
            return  # one question; what comes behind it does not count
        self._asked = True
        self.setTimeout(ANSWER_SECONDS)

        def answer() -> None:
            if self.connected:
                self._desk.answer(line, self._uid).addCallback(self._reply)

        if not self._desk.share(self._uid, answer):
            self.transport.abortConnection()

    def _reply(self, parts: Sequence[bytes]) -> None:
        if self.connected:
            _Reply(self.transport, parts).start()

    def lineLengthExceeded(self, line: bytes) -> None:
        """Called by Twisted."""
        self.transport.write(b'{"error": "the question is too long"}\n')
        self.transport.loseConnection()


class ControlFactory(Factory):
    """
    Answers questions by what they ask for.

    :ivar connections: user id -> how many of theirs are open.
    :param share: runs work of a user (a :class:`gridnet.time_share.TimeShare`'s ``run``); None: all
        is answered at once.
    """

    _log = Logger()
    noisy = False

    def __init__(
        self,
        answerers: Mapping[str, Answerer],
        share: Callable[[Hashable, Callable[[], object]], bool] | None = None,
    ) -> None:
        self._answerers = answerers
        self.share = share or _at_once
        self.connections: Counter[int] = Counter()

    def buildProtocol(self, address: IAddress | None) -> ControlProtocol | None:
        """Called by Twisted; None: too many are connected."""
        if self.connections.total() >= MAX_CONNECTIONS:
            return None
        return ControlProtocol(self)

    def answer(self, line: bytes, uid: int = -1) -> Deferred[Sequence[bytes]]:
        """
        A line with ``{"result": ...}``, or ``{"error": text}``, in parts; never a failure.

        :param uid: who asks; -1: the system does not say.
        """
        return maybeDeferred(self._answer, line, uid).addCallback(_result).addErrback(self._failed)

    def _answer(self, line: bytes, uid: int) -> Any:
        question = parse_question(line)
        answerer = self._answerers.get(question["ask"])
        if answerer is None:
            known = ", ".join(sorted(self._answerers))
            raise RemoteProtocolError(f"unknown question; expected one of {known}")
        return answerer({**question, "uid": uid})

    def _failed(self, failure: Failure) -> Sequence[bytes]:
        text = "the daemon failed; its log says more"
        if failure.check(GridnetError) is not None:
            text = failure.getErrorMessage()
        else:
            self._log.failure("answering a local tool", failure)
        return (json.dumps({"error": text}).encode("utf-8"), b"\n")


def _at_once(user: Hashable, work: Callable[[], object]) -> bool:
    work()
    return True


def _result(result: Any) -> Sequence[bytes]:
    text = result.octets if isinstance(result, JsonText) else json.dumps(result).encode("utf-8")
    return (b'{"result": ', text, b"}\n")


@implementer(IPullProducer)
class _Reply:
    """An answer on its way, in pieces: many that wait to be taken share their octets."""

    def __init__(self, transport: Any, parts: Sequence[bytes]) -> None:
        self._transport = transport
        self._parts = deque(memoryview(part) for part in parts)
        self._is_registered = False

    def start(self) -> None:
        """Begin to write."""
        if sum(map(len, self._parts)) > _PIECE_OCTETS:
            self._is_registered = True
            self._transport.registerProducer(self, False)
            return
        while self._parts:
            self.resumeProducing()

    def resumeProducing(self) -> None:
        """Called by the transport when there is room."""
        if self._parts:
            part = self._parts.popleft()
            self._transport.write(bytes(part[:_PIECE_OCTETS]))
            if len(part) > _PIECE_OCTETS:
                self._parts.appendleft(part[_PIECE_OCTETS:])
        if not self._parts:
            if self._is_registered:
                self._transport.unregisterProducer()
            self._transport.loseConnection()

    def stopProducing(self) -> None:
        """Called by the transport: the peer has gone."""
        self._parts.clear()


def peer_uid(transport: object) -> int:
    """The user on the other end of a UNIX socket; -1: the system does not say."""
    handle = getattr(transport, "getHandle", None)
    if handle is None or not hasattr(socket, "SO_PEERCRED"):
        return -1
    credentials = handle().getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    _, uid, _ = struct.unpack("3i", credentials)
    return int(uid)


@implementer(IStreamServerEndpoint)
@frozen
class _SocketPath:
    """
    A UNIX socket to listen at.

    Not the endpoint of Twisted's own: with it come those of TLS, which fill 15 MiB of every daemon.
    """

    reactor: Any
    path: Path
    mode: int

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Called by the service that listens."""
        listen = self.reactor.listenUNIX
        return execute(listen, str(self.path), protocolFactory, mode=self.mode, wantPID=True)


def control_listener(
    reactor: Any, path: Path, mode: int, factory: IProtocolFactory, key: str
) -> Listener | None:
    """
    A service that listens at the socket *path*; None: the system takes none as long as that.

    With a lock file: a socket that a killed service has left behind does not stand in the way,
    one that is in use ends the start.

    :param mode: permissions of the socket.
    :param key: of the configuration, which says *path*.
    """
    if len(os.fsencode(path)) > MAX_PATH_OCTETS:
        return None
    return Listener(_SocketPath(reactor, path, mode), factory, key)


def find_control(component: str, config: Path | None, control: Path | None) -> Path:
    """
    Where the control socket of *component*, as a site file has it, is.

    :param config: site file; None: the one in this directory.
    :param control: the socket itself, if it was named.
    :raises ConfigError: the site file cannot be read, or switches the socket off.
    """
    if control is not None:
        return control
    # Imported late: only here are the sections of all components needed.
    from gridnet.component import config_classes

    classes = config_classes()
    site = read(config or DEFAULT_SITE_FILE, classes)
    section: Any = site.sections.get(component) or classes[component]()
    path: Path = section.control_path(site)
    return path


def _connect(connection: socket.socket, path: Path, deadline: float) -> None:
    """Connect, waiting while so many others do that there is no place left."""
    while True:
        try:
            connection.connect(str(path))
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def ask(path: Path, question: Mapping[str, Any], seconds: float = 10.0) -> Any:
    """
    Ask the daemon behind the socket *path*; blocks.

    :param question: members of the question, ``ask`` among them.
    :returns: the result, a JSON value.
    :raises NoDaemonError: there is no daemon, or its answer makes no sense.
    :raises ControlError: it refuses.
    """
    line = json.dumps(question).encode("utf-8")
    if len(line) > MAX_QUESTION_OCTETS:
        raise LocalProtocolError("the question is too long")
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(seconds)
            _connect(connection, path, time.monotonic() + seconds)
            connection.sendall(line + b"\n")
            with connection.makefile("rb") as stream:
                reply = json.loads(stream.read().decode("utf-8"))
    except OSError as error:
        raise NoDaemonError(f"no daemon answers at {path}: {error.strerror or error}") from None
    except ValueError:
        raise NoDaemonError(f"what answers at {path} is no daemon of ours") from None
    if not isinstance(reply, dict) or "result" not in reply:
        text = reply.get("error") if isinstance(reply, dict) else None
        if not text:
            raise NoDaemonError("the daemon gave no answer")
        raise ControlError(str(text))
    return reply["result"]
