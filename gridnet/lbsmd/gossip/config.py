"""``[lbsmd.gossip]``: how the daemon talks with those of other hosts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, TypeAlias

from attrs import Attribute, Factory, field, frozen

from gridnet.config import at_least, between, more_than
from gridnet.errors import DescriptorError
from gridnet.table.address import canonical_address
from gridnet.table.descriptor_words import split_connection_point

if TYPE_CHECKING:
    from gridnet.lbsmd.gossip.orders import OrderBounds
    from gridnet.lbsmd.gossip.settings import GossipTimes

#: As in :mod:`gridnet.lbsmd.gossip.messages`: what reads a site file need not load the protocol.
Address: TypeAlias = tuple[str, int]
DEFAULT_PORT = 7327


def _an_address(_: object, attribute: Attribute[Any], value: str) -> None:
    if canonical_address(value) is None:
        raise ValueError(f"expected an IP address, found {value!r}")


def _point_or_nothing(_: object, attribute: Attribute[Any], value: str) -> None:
    if value and _numeric_point(value) is None:
        raise ValueError(f"expected IP-ADDRESS[:PORT], found {value!r}")


def _host_points(_: object, attribute: Attribute[Any], value: tuple[str, ...]) -> None:
    for each in value:
        try:
            host = split_connection_point(each)[0]
        except DescriptorError as error:
            raise ValueError(f"{each!r}: {error}") from None
        if not host:
            raise ValueError(f"expected HOST[:PORT], found {each!r}")


def _identities(_: object, attribute: Attribute[Any], value: Mapping[str, str]) -> None:
    for host, key in value.items():
        if canonical_address(host) is None:
            raise ValueError(f"expected the IP address of a host, found {host!r}")
        if re.fullmatch("[0-9a-fA-F]{64}", key) is None:
            raise ValueError(f"{host}: expected a public key of 64 hexadecimal digits")


def _numeric_point(text: str, port: int = DEFAULT_PORT) -> Address | None:
    """*text* as address and port; None: its host is no IP address."""
    try:
        host, given = split_connection_point(text)
    except DescriptorError:
        return None
    address = canonical_address(host) if host else None
    return None if address is None else (address, given or port)


def is_loopback(host: str) -> bool:
    """Whether the IP address *host* never leaves this machine."""
    return ip_address(host).is_loopback


@frozen
class GossipConfig:
    """How the daemon talks with those of other hosts; without this section it does not."""

    #: IP address of the UDP socket; ``0.0.0.0``: all of IPv4; ``::``: all of both families
    interface: str = field(default="127.0.0.1", validator=_an_address)
    port: int = field(default=DEFAULT_PORT, validator=between(0, 65535))  #: UDP port; 0: any
    #: IP address and perhaps port under which other daemons reach this one; empty: ``interface``,
    #: or the ``address`` of the site where that is a wildcard
    advertise: str = field(default="", validator=_point_or_nothing)
    #: file with the key of the site, closed to others, relative to the site file; further lines
    #: are keys that are only accepted (docs/howto/several-hosts.rst).  Empty: loopback only
    key_file: str = ""
    #: ``HOST[:PORT]`` of daemons to join by; any that is up will do
    seeds: tuple[str, ...] = field(default=(), validator=_host_points)
    #: multicast or broadcast address and port where daemons find each other; empty: nowhere
    discover: str = field(default="", validator=_point_or_nothing)
    #: host address -> public key that it must have; hosts that are not listed are known by the
    #: first key they show
    identities: Mapping[str, str] = field(default=Factory(dict), validator=_identities)
    only_identities: bool = False  #: whether hosts that are not listed there are refused
    probe_interval_seconds: float = field(default=1.0, validator=between(0.05, 3600))
    #: seconds for the direct answer to a probe
    probe_timeout_seconds: float = field(default=0.5, validator=between(0.02, 3600))
    #: seconds until a probe that is not answered is sent again
    probe_retry_seconds: float = field(default=0.04, validator=between(0.005, 3600))
    #: seconds between two rounds of news
    gossip_interval_seconds: float = field(default=0.2, validator=between(0.02, 60))
    #: seconds between two comparisons with another host
    exchange_interval_seconds: float = field(default=30.0, validator=between(0.5, 3600))
    #: seconds to the next comparison after one that found a difference
    exchange_again_seconds: float = field(default=1.0, validator=between(0.05, 3600))
    #: seconds between two attempts to reach hosts that are gone
    reconnect_interval_seconds: float = field(default=5.0, validator=between(0.1, 3600))
    #: seconds between attempts to join while nobody is known, and between looks for seeds that
    #: are not up
    join_interval_seconds: float = field(default=10.0, validator=between(0.1, 3600))
    #: seconds that a dead host is kept in mind
    forget_seconds: float = field(default=86400.0, validator=at_least(60))
    fanout: int = field(default=3, validator=between(1, 20))  #: hosts a round of news goes to
    #: packets to each of them, at most, while much is waiting
    burst_packets: int = field(default=8, validator=between(1, 1000))
    #: hosts asked to probe one that does not answer
    indirect_probes: int = field(default=3, validator=between(0, 20))
    #: hosts that probe a suspected one out of turn, on average
    confirmers: int = field(default=5, validator=between(0, 1000))
    #: shortest suspicion, in probe intervals times log10(hosts)
    suspicion_multiplier: float = field(default=4.0, validator=between(1, 100))
    #: longest suspicion, in shortest ones
    suspicion_stretch: float = field(default=6.0, validator=between(1, 100))
    #: tellings of one piece of news, times log10(hosts)
    retransmit_multiplier: int = field(default=4, validator=between(1, 100))
    #: a piece of news heard back so often gets no packets of its own any more
    cool_after: int = field(default=4, validator=at_least(1))
    #: a piece of news heard back so often is not told any more
    drop_after: int = field(default=8, validator=at_least(1))
    #: octets of messages in one packet; below the path's MTU less 100
    packet_octets: int = field(default=1200, validator=between(400, 60000))
    max_hosts: int = field(default=20000, validator=at_least(1))  #: hosts known at a time
    #: entries of one host: its services, itself, and its environment
    max_entries: int = field(default=5000, validator=at_least(1))
    max_rumours: int = field(default=10000, validator=at_least(1))  #: pieces of news waiting
    #: packets a second in answer to comparisons
    max_exchange_packets: int = field(default=64, validator=at_least(1))
    #: seconds by which the clock of another host may differ from ours
    max_skew_seconds: float = field(default=300.0, validator=more_than(0))
    #: part by which this host's load must change to be told at once
    load_share: float = field(default=0.1, validator=between(0, 1))
    load_seconds: float = field(default=10.0, validator=more_than(0))  #: else it waits so long
    order_seconds: float = field(default=10.0, validator=more_than(0))  #: for a request elsewhere
    max_orders: int = field(default=1000, validator=at_least(1))  #: such requests under way
    #: seconds that this process may stand still before it counts as having slept
    sleep_seconds: float = field(default=5.0, validator=more_than(0))
    max_waiting: int = field(default=2000, validator=at_least(1))  #: datagrams not yet sent
    #: octets of datagrams read before anything else gets its turn
    octets_a_turn: int = field(default=262_144, validator=at_least(65536))
    #: octets of datagrams that the system keeps for us
    buffer_octets: int = field(default=1_048_576, validator=at_least(65536))
    keep_hosts: bool = True  #: whether the hosts that are known are kept over a restart

    def times(self) -> GossipTimes:
        """For the protocol."""
        from gridnet.lbsmd.gossip.settings import GossipTimes

        return GossipTimes(
            probe_interval=self.probe_interval_seconds,
            probe_timeout=min(self.probe_timeout_seconds, self.probe_interval_seconds * 0.9),
            probe_retry=self.probe_retry_seconds,
            gossip_interval=self.gossip_interval_seconds,
            exchange_interval=self.exchange_interval_seconds,
            exchange_again=self.exchange_again_seconds,
            reconnect_interval=self.reconnect_interval_seconds,
            forget_seconds=self.forget_seconds,
            fanout=self.fanout,
            burst_packets=self.burst_packets,
            indirect_probes=self.indirect_probes,
            confirmers=self.confirmers,
            suspicion_multiplier=self.suspicion_multiplier,
            suspicion_stretch=self.suspicion_stretch,
            retransmit_multiplier=self.retransmit_multiplier,
            cool_after=self.cool_after,
            drop_after=max(self.drop_after, self.cool_after),
            packet_octets=self.packet_octets,
            max_hosts=self.max_hosts,
            max_entries=self.max_entries,
            max_rumours=self.max_rumours,
            max_exchange_packets=self.max_exchange_packets,
        )

    def order_bounds(self) -> OrderBounds:
        """For orders to other hosts."""
        from gridnet.lbsmd.gossip.orders import OrderBounds

        return OrderBounds(seconds=self.order_seconds, max_waiting=self.max_orders)

    def advertised(self, site_address: str, bound_port: int) -> Address:
        """Where others reach this daemon whose socket has *bound_port*."""
        if self.advertise:
            point = _numeric_point(self.advertise, bound_port)
            if point is not None:
                return point
        host = canonical_address(self.interface) or self.interface
        if ip_address(host).is_unspecified:
            host = site_address
        return host, bound_port

    def group(self) -> Address | None:
        """Where daemons find each other."""
        return _numeric_point(self.discover) if self.discover else None

    def known_keys(self) -> dict[str, bytes]:
        """Host address -> the key that it must have."""
        return {
            canonical_address(host) or host: bytes.fromhex(key)
            for host, key in self.identities.items()
        }

    def leaves_loopback(self) -> str:
        """The key because of which packets leave this machine; empty: none do."""
        group = self.group()
        for key, host in (
            ("interface", self.interface),
            ("advertise", self.advertise and (_numeric_point(self.advertise) or ("::",))[0]),
            ("discover", group[0] if group else ""),
        ):
            if host and not is_loopback(canonical_address(host) or host):
                return key
        for seed in self.seeds:
            host = split_connection_point(seed)[0]
            address = canonical_address(host)
            if host != "localhost" and (address is None or not is_loopback(address)):
                return "seeds"
        return ""
