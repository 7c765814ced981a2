"""
The capacity behind the ports of this host, as its servers tell it
(docs/protocols/port-capacity.rst).
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from attrs import define, frozen
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.interfaces import (
    IDelayedCall,
    IReactorFDSet,
    IReactorTime,
    IReadDescriptor,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from gridnet.errors import ConfigError, Fault
from gridnet.lbsmd.authority import Authority, find_asker
from gridnet.lbsmd.local_services import LocalServices
from gridnet.lbsmd.repeats import Repeats
from gridnet.port_posts import (
    MAX_POST_OCTETS,
    Post,
    PostError,
    format_answer,
    parse_post,
)

#: A host's load message has room for so many ports.
TOLD_PORTS = 4
#: Part of a capacity by which it must have changed to be worth a new rate.
STEP = 0.05
_ROUNDING = 1e-9
#: Datagrams that are read before the reactor has its turn again.
_BATCH = 64
#: Users and ports of which it is being found out whether they may.
MAX_WAITING = 256
#: That look at the user database and at sockets: the process has few, for everything.
_THREADS = 2
#: Users whose right to post on a port is remembered, and how long.
_MAX_REMEMBERED = 1024
_REMEMBER_SECONDS = 30.0
#: Between two refusals of one user that are logged.
_REFUSAL_SECONDS = 1.0
_FORBIDDEN = "user {user} may not post the capacity of port {port}"
_CREDENTIALS = struct.Struct("3i")

#: Whether the user *uid* has a listening socket at that port of this host; may block.
Listens = Callable[[int, int], bool]


def listens(uid: int, port: int) -> bool:
    """Whether the user *uid* has a TCP socket that listens at *port*, as the kernel says."""
    for name in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(name, encoding="ascii") as lines:
                for line in lines:
                    words = line.split()
                    # local address:port in hexadecimal; 0A is LISTEN; the user is the eighth word
                    if (
                        len(words) > 7
                        and words[3] == "0A"
                        and words[7] == str(uid)
                        and int(words[1].rpartition(":")[2], 16) == port
                    ):
                        return True
        except OSError:
            continue
    return False


@define
class _Capacity:
    """Of one port."""

    post: Post
    at: float  #: seconds since the epoch
    told: float = 1.0  #: availability that rates go by


class PortCapacity(Service):
    """
    What is known of the monitored ports, and what follows for the servers on them.

    :ivar posts: taken so far.
    :ivar refused: posts that were not.
    :param stale_seconds: after which a post counts no longer: the port is as if none had come.
    """

    _log = Logger()

    def __init__(
        self, local: LocalServices, clock: IReactorTime, stale_seconds: float = 60.0
    ) -> None:
        self._local = local
        self._clock = clock
        self._stale_seconds = stale_seconds
        self._capacities: dict[int, _Capacity] = {}
        self._timer: IDelayedCall | None = None
        self.posts = self.refused = 0
        local.subscribe(self._loaded)

    def stopService(self) -> None:
        """Watch no longer for posts that grow old."""
        super().stopService()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def monitored(self) -> tuple[int, ...]:
        """The ports whose capacity counts, in the order of the definitions."""
        loaded = self._local.loaded
        return () if loaded is None else loaded.configuration.ports

    def take(self, post: Post) -> None:
        """
        Let *post* count from now on.

        :raises PostError: the port is not monitored.
        """
        if post.port not in self.monitored():
            raise PostError(f"port {post.port} is not monitored: the definitions have no such line")
        self.posts += 1
        now = self._clock.seconds()
        capacity = self._capacities.get(post.port)
        if capacity is None:
            capacity = self._capacities[post.port] = _Capacity(post, now)
        capacity.post, capacity.at = post, now
        found = post.availability
        flips = (found > 0.0) is not (capacity.told > 0.0)
        if found != capacity.told and (
            flips or found == 1.0 or abs(found - capacity.told) >= STEP - _ROUNDING
        ):
            self._tell(capacity, found)
        self._arrange()

    def ports(self) -> tuple[tuple[int, float], ...]:
        """The first monitored ports, each with the part of its capacity that is in use, 0..1."""
        return tuple(
            (
                port,
                1.0 - self._capacities[port].post.availability if port in self._capacities else 0.0,
            )
            for port in self.monitored()[:TOLD_PORTS]
        )

    def facts(self) -> Mapping[str, Any]:
        """For the status page."""
        return {
            "port_posts": self.posts,
            "port_posts_refused": self.refused,
            "ports": {
                str(port): {
                    "total": each.post.total,
                    "used": each.post.used,
                    "free": each.post.free,
                    "availability": each.post.availability,
                    "posted_at": each.at,
                }
                for port, each in self._capacities.items()
            },
        }

    # --- inside -----------------------------------------------------------------------------

    def _tell(self, capacity: _Capacity, availability: float) -> None:
        if (availability > 0.0) is not (capacity.told > 0.0):
            self._log.info(
                "port {port} {what}",
                port=capacity.post.port,
                what="has room again" if availability else "has no capacity left",
            )
        capacity.told = availability
        self._local.offer(capacity.post.port, availability)

    def _loaded(self) -> None:
        """Servers have come or gone, or ports are monitored no longer."""
        monitored = self.monitored()
        for port in [port for port in self._capacities if port not in monitored]:
            self._forget(port)
        for port, capacity in self._capacities.items():
            self._local.offer(port, capacity.told)

    def _forget(self, port: int) -> None:
        del self._capacities[port]
        self._local.offer(port, 1.0)

    def _arrange(self) -> None:
        if self._timer is None and self._capacities:
            oldest = min(each.at for each in self._capacities.values())
            wait = max(0.0, oldest + self._stale_seconds - self._clock.seconds())
            self._timer = self._clock.callLater(wait, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = self._clock.seconds()
        old = [
            port for port, each in self._capacities.items() if now - each.at >= self._stale_seconds
        ]
        for port in old:
            self._log.warn(
                "nothing was posted of port {port} for {seconds:g} s: its capacity counts no more",
                port=port,
                seconds=self._stale_seconds,
            )
            self._forget(port)
        self._arrange()


@frozen
class _Letter:
    """A datagram, and who sent it."""

    octets: bytes
    uid: int
    address: bytes | str


@implementer(IReadDescriptor)
class PortSocket(Service):
    """
    The UNIX datagram socket that servers post to.

    A post of a port counts when it comes from root, the daemon's user, one of the host authority,
    of the users and groups of a server on that port, or from the user whose socket listens there.

    :param mode: permissions of the socket.
    :param run_in_thread: calls a function that blocks: ``Deferred`` of its result.
    """

    _log = Logger()

    def __init__(
        self,
        path: Path,
        mode: int,
        capacity: PortCapacity,
        local: LocalServices,
        authority: Authority,
        reactor: Any,
        run_in_thread: Callable[..., Deferred[Any]],
        is_listening: Listens = listens,
    ) -> None:
        self.path = path
        self._mode = mode
        self._capacity = capacity
        self._local = local
        self._authority = authority
        self._reactor = reactor
        self._clock = IReactorTime(reactor)
        self._run_in_thread = run_in_thread
        self._is_listening = is_listening
        self._socket: socket.socket | None = None
        #: (uid, port) of which it is being found out whether they may
        self._asking: set[tuple[int, int]] = set()
        self._users = DeferredSemaphore(_THREADS)
        self._refusals = Repeats(_REFUSAL_SECONDS)
        #: (uid, port) -> whether that user may, and until when that is remembered
        self._remembered: dict[tuple[int, int], tuple[bool, float]] = {}

    def privilegedStartService(self) -> None:
        """
        Open the socket.

        :raises ConfigError: it cannot be, or another daemon has it.
        """
        if self._socket is None:
            self._socket = self._open()

    def startService(self) -> None:
        """Begin to read."""
        self.privilegedStartService()
        super().startService()
        IReactorFDSet(self._reactor).addReader(self)

    def stopService(self) -> None:
        """Close and remove the socket."""
        super().stopService()
        opened, self._socket = self._socket, None
        if opened is not None:
            IReactorFDSet(self._reactor).removeReader(self)
            opened.close()
            self.path.unlink(missing_ok=True)
        self._remembered.clear()

    def _open(self) -> socket.socket:
        opened = socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        try:
            # What a killed daemon has left behind is nobody's; what is in use answers.
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as trial:
                if self.path.is_socket():
                    try:
                        trial.connect(str(self.path))
                    except ConnectionRefusedError:
                        self.path.unlink(missing_ok=True)
            opened.bind(str(self.path))
            os.chmod(self.path, self._mode)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        except OSError as error:
            opened.close()
            reason = f"{self.path}: {error.strerror or error}"
            raise ConfigError([Fault("lbsmd.ports_socket", reason)]) from None
        return opened

    # --- called by the reactor --------------------------------------------------------------

    def fileno(self) -> int:
        """The descriptor; -1 once closed."""
        return -1 if self._socket is None else self._socket.fileno()

    def logPrefix(self) -> str:
        """A name for the log."""
        return "port capacity"

    def connectionLost(self, reason: object) -> None:
        """The reactor has found an error; reading tells which."""
        self.doRead()

    def doRead(self) -> None:
        """There are datagrams."""
        for letter in self._letters():
            self._received(letter)

    def _letters(self) -> Iterable[_Letter]:
        for _ in range(_BATCH):
            if self._socket is None:
                return
            try:
                octets, ancillary, flags, address = self._socket.recvmsg(
                    MAX_POST_OCTETS, socket.CMSG_SPACE(_CREDENTIALS.size)
                )
            except BlockingIOError:
                return
            except OSError as error:
                self._log.warn("reading posts of ports: {reason}", reason=str(error))
                return
            uid = -1
            for level, kind, data in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                    uid = _CREDENTIALS.unpack(data[: _CREDENTIALS.size])[1]
            if flags & socket.MSG_TRUNC:
                octets = b""  # too long: what is left of it makes no sense
            yield _Letter(octets, uid, address)

    # --- inside -----------------------------------------------------------------------------

    def _received(self, letter: _Letter) -> None:
        try:
            post = parse_post(letter.octets)
            # Who asks for a port that is not monitored costs no look at the user database.
            if post.port not in self._capacity.monitored():
                self._capacity.take(post)
        except PostError as error:
            self._refuse(letter, str(error))
            return
        may, until = self._remembered.get((letter.uid, post.port), (False, 0.0))
        known = self._clock.seconds() < until
        if letter.uid in (0, os.geteuid()) or (known and may):
            self._take(letter, post)
            return
        if known:
            self._capacity.refused += 1
            self._answer(letter, _FORBIDDEN.format(user=letter.uid, port=post.port))
            return  # logged when it was found out
        asked = (letter.uid, post.port)
        if asked in self._asking or len(self._asking) >= MAX_WAITING:
            # What counts is the next post, which comes soon: there is no queue.
            self._refuse(letter, "it is being found out whether you may; post again")
            return
        self._asking.add(asked)
        asking = Deferred.fromCoroutine(self._ask(letter, post))
        asking.addErrback(self._failed).addBoth(self._asked, asked)

    def _asked(self, _: object, asked: tuple[int, int]) -> None:
        self._asking.discard(asked)

    def _failed(self, failure: Failure) -> None:
        self._log.failure("taking a post of a port", failure)

    async def _ask(self, letter: _Letter, post: Post) -> None:
        """See whether the sender may, which takes a look at the user database."""
        asker = await self._users.run(self._run_in_thread, find_asker, letter.uid)
        may = self._authority.operates_all(asker) or any(
            self._authority.operates(asker, service)
            for service in self._local.services().values()
            if service.configured.info.port == post.port
            and self._local.is_here(service.configured.info.host)
        )
        if not may:
            listening = self._is_listening
            may = await self._users.run(self._run_in_thread, listening, letter.uid, post.port)
        if len(self._remembered) >= _MAX_REMEMBERED:
            self._remembered.clear()
        self._remembered[letter.uid, post.port] = (may, self._clock.seconds() + _REMEMBER_SECONDS)
        if may:
            self._take(letter, post)
        else:
            self._refuse(letter, _FORBIDDEN.format(user=asker.user, port=post.port))

    def _take(self, letter: _Letter, post: Post) -> None:
        try:
            self._capacity.take(post)
        except PostError as error:
            self._refuse(letter, str(error))
            return
        self._answer(letter, "")

    def _refuse(self, letter: _Letter, reason: str) -> None:
        self._capacity.refused += 1
        left_out = self._refusals.left_out(letter.uid, self._clock.seconds())
        if left_out is not None:
            self._log.warn(
                "a post of user {uid} is refused: {reason}",
                uid=letter.uid,
                reason=reason,
                left_out=left_out,
            )
        self._answer(letter, reason)

    def _answer(self, letter: _Letter, refusal: str) -> None:
        if not letter.address or self._socket is None:
            return
        try:
            self._socket.sendto(format_answer(refusal), letter.address)
        except OSError:
            pass  # it does not wait for the answer, or does not read it
