"""Daemons of several hosts in one process: a datagram network in memory, on a virtual clock."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

from attrs import define, field
from twisted.internet.defer import maybeDeferred, succeed
from twisted.internet.testing import MemoryReactorClock

from gridnet.config import SiteConfig, SiteSection
from gridnet.lbsmd.config import LbsmdConfig
from gridnet.lbsmd.gossip.config import GossipConfig
from gridnet.lbsmd.gossip.messages import Address
from gridnet.lbsmd.gossip.service import Gossip
from gridnet.lbsmd.service import Daemon, make_lbsmd
from gridnet.site import Site

PORT = 21000
_DELAY_SECONDS = 0.001


class _Host:
    """The address of a port."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port


@define
class MemoryPort:
    """One UDP socket, to Twisted and as its own handle."""

    network: MemoryNetwork
    address: Address
    protocol: Any
    family: int = socket.AF_INET
    maxThroughput: int = 0
    is_full: bool = False  #: the system takes nothing
    refuses: bool = False  #: the system has no route
    sent: list[tuple[bytes, Address]] = field(factory=list)

    def getHandle(self) -> MemoryPort:
        """The socket."""
        return self

    def setsockopt(self, *_: object) -> None:
        """Takes any option."""

    def getHost(self) -> _Host:
        """Where it is bound."""
        return _Host(*self.address)

    def sendto(self, datagram: bytes, address: Address) -> None:
        """As a socket does."""
        if self.is_full:
            raise BlockingIOError
        if self.refuses:
            raise OSError(101, "Network is unreachable")
        self.sent.append((datagram, address))
        self.network.carry(datagram, self, address)

    def stopListening(self) -> Any:
        """Close."""
        self.network.ports.pop(self.address, None)
        self.protocol.doStop()
        return succeed(None)


class MemoryNetwork(MemoryReactorClock):
    """
    A reactor with UDP.

    :ivar cut: says whether a datagram between two addresses is lost.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ports: dict[Address, MemoryPort] = {}
        self.cut: Callable[[str, str], bool] = lambda source, target: False
        self.rightNow = 1.7e9

    def listenUDP(
        self, port: int, protocol: Any, interface: str = "", maxPacketSize: int = 8192
    ) -> MemoryPort:
        """Called by the gossip."""
        bound = MemoryPort(self, (interface, port), protocol)
        self.ports[interface, port] = bound
        protocol.makeConnection(bound)
        return bound

    def carry(self, datagram: bytes, source: MemoryPort, target: Address) -> None:
        """Deliver *datagram* a little later."""

        def deliver() -> None:
            bound = self.ports.get(target)
            if bound is not None:
                bound.protocol.datagramReceived(datagram, source.address)

        if not self.cut(source.address[0], target[0]):
            self.callLater(_DELAY_SECONDS, deliver)

    def run(self, seconds: float = 0.0) -> None:
        """Let the clock go on, in steps finer than the network's delay."""
        end = self.seconds() + seconds
        while self.seconds() < end:
            due = min((call.getTime() for call in self.getDelayedCalls()), default=end)
            self.advance(max(0.0, min(due, end) - self.seconds()))


@define
class HostDaemon:
    """The daemon of one host."""

    site: Site
    daemon: Daemon
    gossip: Gossip
    directory: Path

    def define(self, text: str) -> None:
        """Change what the host publishes."""
        (self.directory / "servrc.cfg").write_text(text)
        self.daemon.watch.reload()

    def services(self) -> set[tuple[str, str, str]]:
        """(service, server, owner) of all that the table shows."""
        return {
            (entry.service, f"{entry.info.host}:{entry.info.port}", entry.owner)
            for entry in self.site.table.all_entries()
        }


def start_host(
    network: MemoryNetwork,
    directory: Path,
    address: str,
    text: str,
    gossip: Mapping[str, Any] | None = None,
    **keys: Any,
) -> HostDaemon:
    """The daemon of the host *address*, which publishes the definitions *text*."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "servrc.cfg").write_text(text)
    site = Site(
        SiteConfig(SiteSection(address=address, state_dir=Path("state")), {}, directory), network
    )
    seeds = ("127.0.0.1:21000",) if address != "127.0.0.1" else ()
    wanted: dict[str, Any] = {"interface": address, "port": PORT, "seeds": seeds, **(gossip or {})}
    config = LbsmdConfig(
        servrc="servrc.cfg",
        directory=".",
        control="",
        run_checks=False,
        load_seconds=0,
        pid_file="",
        gossip=GossipConfig(**wanted),
        **keys,
    )
    daemon = make_lbsmd(config, site, run_in_thread=maybeDeferred)
    assert isinstance(daemon, Daemon)
    made = daemon.gossip
    assert made is not None
    made.clock_seconds, made.random = network.seconds, Random(address)
    daemon.privilegedStartService()
    daemon.startService()
    return HostDaemon(site, daemon, made, directory)
