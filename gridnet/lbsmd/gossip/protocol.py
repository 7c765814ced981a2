"""Gossip's socket: datagrams in bounded batches, and out without ever waiting."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import DatagramProtocol
from twisted.logger import Logger

from gridnet.lbsmd.gossip.messages import Address
from gridnet.lbsmd.gossip.wire import MAX_PACKET_OCTETS
from gridnet.table.address import canonical_address

#: Seconds until a socket that took no more is tried again.
_RETRY_SECONDS = 0.01
#: Datagrams that one try sends at most.
_AT_ONCE = 64


class GossipSocket(DatagramProtocol):
    """
    Gives what arrives to *received*, and sends what it is given.

    What the system does not take at once waits; when too many wait, the oldest is dropped: the
    protocol above stands loss.

    :param received: gets the datagram and where it came from.
    :param max_waiting: datagrams that wait.
    :ivar dropped: datagrams that were not sent: too many waited, or the system refused.
    """

    _log = Logger()
    noisy = False

    def __init__(
        self, received: Callable[[bytes, Address], None], clock: IReactorTime, max_waiting: int
    ) -> None:
        self.dropped = 0
        self._received = received
        self._clock = clock
        self._waiting: deque[tuple[bytes, Address]] = deque()
        self._max_waiting = max_waiting
        self._retry: Any = None
        self._is_six = False
        self._refused = 0

    def startProtocol(self) -> None:
        """Called by Twisted once the socket is bound."""
        handle = self._handle()
        self._is_six = handle is not None and handle.family == socket.AF_INET6

    def stopProtocol(self) -> None:
        """Called by Twisted."""
        self._waiting.clear()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """Called by Twisted."""
        host = canonical_address(addr[0])
        if host is not None:
            self._received(datagram, (host, addr[1]))

    def send(self, datagram: bytes, address: Address) -> None:
        """Send *datagram* now, or soon; it may be lost."""
        if self._waiting or not self._write(datagram, address):
            if len(self._waiting) >= self._max_waiting:
                self._waiting.popleft()
                self.dropped += 1
            self._waiting.append((datagram, address))
            if self._retry is None:
                self._retry = self._clock.callLater(_RETRY_SECONDS, self._flush)

    def _flush(self) -> None:
        self._retry = None
        for _ in range(min(_AT_ONCE, len(self._waiting))):
            if not self._write(*self._waiting[0]):
                break
            self._waiting.popleft()
        if self._waiting:
            self._retry = self._clock.callLater(_RETRY_SECONDS, self._flush)

    def _handle(self) -> Any:
        transport: Any = self.transport
        return None if transport is None else transport.getHandle()

    def _write(self, datagram: bytes, address: Address) -> bool:
        """False: not now."""
        handle = self._handle()
        if handle is None:
            return True
        host, port = address
        if self._is_six and ":" not in host:
            host = f"::ffff:{host}"
        try:
            # Not transport.write: it refuses IPv4 peers of a socket for both.
            handle.sendto(datagram, (host, port))
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            # No route, an unreachable host, an address of the other family: lost, as on the way.
            self.dropped += 1
            self._refused += 1
            if self._refused & (self._refused - 1) == 0:
                self._log.debug(
                    "{peer}: datagram not sent, {reason}", peer=host, reason=error.strerror
                )
        return True


def listen(
    reactor: Any,
    protocol: DatagramProtocol,
    interface: str,
    port: int,
    buffer_octets: int,
    octets_a_turn: int,
) -> Any:
    """
    Bind *protocol* to UDP *port* of *interface*.

    :param buffer_octets: that the system keeps for us between two turns of the reactor.
    :param octets_a_turn: read in one turn at most; what is left waits for the next.
    :raises twisted.internet.error.CannotListenError: the address cannot be had.
    """
    bound = reactor.listenUDP(port, protocol, interface, MAX_PACKET_OCTETS)
    _fit(bound, buffer_octets, octets_a_turn)
    return bound


def listen_to_group(
    reactor: Any, protocol: DatagramProtocol, group: Address, interface: str, octets_a_turn: int
) -> Any:
    """
    Bind *protocol* to what is sent to the multicast or broadcast address *group*.

    :param interface: address of the interface to listen on and send from; a wildcard: the system's
        choice.
    :raises OSError: the group cannot be joined.
    """
    host, port = group
    is_six = ":" in host
    handle = socket.socket(socket.AF_INET6 if is_six else socket.AF_INET, socket.SOCK_DGRAM)
    try:
        handle.setblocking(False)
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        # Bound to the group itself, so that nothing else of that port comes here.
        handle.bind((host, port))
        if is_multicast(host):
            _join_group(handle, host, interface, is_six)
        bound = reactor.adoptDatagramPort(
            handle.fileno(), handle.family, protocol, MAX_PACKET_OCTETS
        )
    finally:
        handle.close()
    bound.maxThroughput = octets_a_turn
    return bound


def is_multicast(host: str) -> bool:
    """Whether *host* is the address of a group."""
    if ":" in host:
        return host.lower().startswith("ff")
    return 224 <= int(host.partition(".")[0]) < 240


def _join_group(handle: socket.socket, host: str, interface: str, is_six: bool) -> None:
    if is_six:
        group = socket.inet_pton(socket.AF_INET6, host)
        handle.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group + bytes(4))
        return
    ours = "0.0.0.0" if ":" in interface else interface
    group = socket.inet_aton(host)
    handle.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group + socket.inet_aton(ours))
    if ours != "0.0.0.0":
        handle.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(ours))


def _fit(bound: Any, buffer_octets: int, octets_a_turn: int) -> None:
    bound.maxThroughput = octets_a_turn
    handle = bound.getHandle()
    handle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_octets)
    handle.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_octets)
