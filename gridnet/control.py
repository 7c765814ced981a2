"""
Control sockets: local tools ask a service, it answers (docs/protocols/lbsmd-control.rst).

One connection, one question: a line of JSON each way.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import UNIXServerEndpoint
from twisted.internet.interfaces import IAddress, IProtocolFactory, ITCPTransport
from twisted.internet.protocol import Factory, connectionDone
from twisted.logger import Logger
from twisted.protocols.basic import LineOnlyReceiver
from twisted.protocols.policies import TimeoutMixin
from twisted.python.failure import Failure

from gridnet.config import read
from gridnet.errors import GridnetError, LocalProtocolError, RemoteProtocolError
from gridnet.listener import Listener

#: Site file that local tools read when nothing is said.
DEFAULT_SITE_FILE = Path("site.toml")
MAX_QUESTION_OCTETS = 65536
QUESTION_SECONDS = 10.0
#: Seconds that an answer may take: asking other hosts, and sending it.
ANSWER_SECONDS = 60.0
MAX_CONNECTIONS = 128

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

    def connectionMade(self) -> None:
        """Called by Twisted."""
        self._desk.connections += 1
        self.setTimeout(QUESTION_SECONDS)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Called by Twisted."""
        self._desk.connections -= 1
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
        self._desk.answer(line, peer_uid(self.transport)).addCallback(self._reply)

    def _reply(self, answer: Mapping[str, Any]) -> None:
        self.transport.write(json.dumps(answer).encode("utf-8") + b"\n")
        self.transport.loseConnection()

    def lineLengthExceeded(self, line: bytes) -> None:
        """Called by Twisted."""
        self.transport.write(b'{"error": "the question is too long"}\n')
        self.transport.loseConnection()


class ControlFactory(Factory):
    """
    Answers questions by what they ask for.

    :ivar connections: that are open, :data:`MAX_CONNECTIONS` at most.
    """

    _log = Logger()
    noisy = False

    def __init__(self, answerers: Mapping[str, Answerer]) -> None:
        self._answerers = answerers
        self.connections = 0

    def buildProtocol(self, address: IAddress | None) -> ControlProtocol | None:
        """Called by Twisted; None: too many are connected."""
        if self.connections >= MAX_CONNECTIONS:
            return None
        return ControlProtocol(self)

    def answer(self, line: bytes, uid: int = -1) -> Deferred[Mapping[str, Any]]:
        """
        ``{"result": ...}``, or ``{"error": text}``; never a failure.

        :param uid: who asks; -1: the system does not say.
        """
        return (
            maybeDeferred(self._answer, line, uid)
            .addCallback(lambda result: {"result": result})
            .addErrback(self._failed)
        )

    def _answer(self, line: bytes, uid: int) -> Any:
        question = parse_question(line)
        answerer = self._answerers.get(question["ask"])
        if answerer is None:
            known = ", ".join(sorted(self._answerers))
            raise RemoteProtocolError(f"unknown question; expected one of {known}")
        return answerer({**question, "uid": uid})

    def _failed(self, failure: Failure) -> Mapping[str, Any]:
        if failure.check(GridnetError) is not None:
            return {"error": failure.getErrorMessage()}
        self._log.failure("answering a local tool", failure)
        return {"error": "the daemon failed; its log says more"}


def peer_uid(transport: object) -> int:
    """The user on the other end of a UNIX socket; -1: the system does not say."""
    handle = getattr(transport, "getHandle", None)
    if handle is None or not hasattr(socket, "SO_PEERCRED"):
        return -1
    credentials = handle().getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    _, uid, _ = struct.unpack("3i", credentials)
    return int(uid)


def control_listener(
    reactor: Any, path: Path, mode: int, factory: IProtocolFactory
) -> Listener | None:
    """
    A service that listens at the socket *path*; None: the system takes none as long as that.

    With a lock file: a socket that a killed service has left behind does not stand in the way,
    one that is in use ends the start.

    :param mode: permissions of the socket.
    """
    if len(os.fsencode(path)) > MAX_PATH_OCTETS:
        return None
    return Listener(UNIXServerEndpoint(reactor, str(path), mode=mode, wantPID=True), factory)


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
            connection.connect(str(path))
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
