"""``[firewall]``: the ticketed relay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attrs import Attribute, field, frozen

from gridnet.config import SiteConfig, at_least, between, more_than
from gridnet.errors import ConfigError, Fault, TableError
from gridnet.firewall.policy import Rule
from gridnet.firewall.ports import parse_ports
from gridnet.firewall.wire import DEFAULT_HELP_URL
from gridnet.table.address_range import AddressRanges
from gridnet.table.redis_config import RedisConfig


def _ports(_: object, attribute: Attribute[Any], value: str) -> None:
    parse_ports(value)


def _ranges(_: object, attribute: Attribute[Any], value: tuple[str, ...]) -> None:
    try:
        AddressRanges.from_texts(value)
    except TableError as error:
        raise ValueError(str(error)) from None


@frozen
class FirewallConfig:
    """Where the relay listens, whom it lets through to what, and how much of it."""

    # Where.
    ports: str = field(default="5860-5870", validator=_ports)  #: for clients in firewall mode
    #: for stateful clients outside that are not in firewall mode; ``""``: ``ports`` serve them
    relay_ports: str = field(default="4444-4544", validator=_ports)
    #: for clients that find ``ports`` blocked, ``"22 443"``
    fallback_ports: str = field(default="", validator=_ports)
    #: endpoint string of each port, ``{port}`` in its place; what is not plain ``tcp:`` (TLS,
    #: ``haproxy:``) is relayed without splice
    listen: str = "tcp:{port}:backlog=1024"
    serve: bool = True  #: listen; false: only issue tickets that others redeem (``redis``)
    advertise: str = ""  #: IPv4 address that clients are sent to; empty: ``site.address``
    #: ``host:port`` of another host's relay to ask for tickets (by control records); then this
    #: process neither listens nor keeps tickets
    ask: str = ""
    redis: RedisConfig | None = None  #: share tickets with other relays and dispatchers

    # Tickets.
    ticket_ttl_seconds: float = field(default=45.0, validator=more_than(0))
    bind_client: bool = False  #: a ticket is good only from the address it was issued for
    max_waiting: int = field(default=20_000, validator=at_least(1))  #: unused tickets
    max_waiting_per_client: int = field(default=500, validator=at_least(1))
    #: address ranges that may ask for tickets by control record
    control_networks: tuple[str, ...] = field(default=("127/8",), validator=_ranges)
    keep_control: bool = True  #: let a control record go on as the relayed connection
    help_url: str = DEFAULT_HELP_URL  #: second line of every rejection
    browser_check: bool = True  #: answer a browser's ``HEAD``, for the status page

    # Whom to what; the first rule that applies decides, then ``public`` does.
    rules: tuple[Rule, ...] = ()

    # How many.
    max_open: int = field(default=10_000, validator=at_least(1))  #: relayed connections
    max_open_per_client: int = field(default=1_000, validator=at_least(1))
    max_unticketed: int = field(default=2_000, validator=at_least(1))  #: have shown no ticket yet
    max_unticketed_per_client: int = field(default=200, validator=at_least(1))

    # How fast; octets a second each way, 0: no limit.
    session_octets_per_second: int = field(default=0, validator=at_least(0))
    client_octets_per_second: int = field(default=0, validator=at_least(0))  #: its connections

    # How long.
    silence_seconds: float = field(default=20.0, validator=more_than(0))  #: until the first octet
    partial_ticket_seconds: float = field(default=2.0, validator=more_than(0))
    control_record_seconds: float = field(default=0.5, validator=more_than(0))
    connect_timeout_seconds: float = field(default=10.0, validator=more_than(0))  #: to the server
    drain_seconds: float = field(default=2.0, validator=more_than(0))  #: to read the last words
    idle_timeout_seconds: float = field(default=7200.0, validator=at_least(0))  #: 0: none
    total_timeout_seconds: float = field(default=0.0, validator=at_least(0))  #: 0: none
    stall_seconds: float = field(default=300.0, validator=at_least(0))  #: unacknowledged octets
    keepalive_seconds: int = field(default=60, validator=at_least(1))  #: first probe, when idle
    stop_seconds: float = field(default=1.0, validator=at_least(0))  #: open ones may finish

    # Misbehaviour; see the penalty box.
    guess_limit: int = field(default=10, validator=at_least(1))  #: invalid tickets
    guess_window_seconds: float = field(default=60.0, validator=more_than(0))
    unused_limit: int = field(default=20, validator=at_least(1))  #: tickets never presented
    unused_window_seconds: float = field(default=600.0, validator=more_than(0))
    penalty_seconds: float = field(default=300.0, validator=more_than(0))  #: the first one
    penalize_inside: bool = False  #: clients of ``site.local_networks`` for unused tickets, too
    penalty_max_seconds: float = field(default=86_400.0, validator=more_than(0))
    #: clients whose tallies and penalties are kept
    max_penalties: int = field(default=10_000, validator=at_least(1))
    penalty_file: str = ""  #: empty: ``.dispd.msg`` in ``site.state_dir``
    max_penalty_file_octets: int = field(default=1_048_576, validator=at_least(4096))

    # How octets are moved.
    splice: bool = True  #: let the kernel pass bulk from socket to socket, where it can
    pipe_octets: int = field(default=1_048_576, validator=at_least(4096))
    max_pipes: int = field(
        default=256, validator=at_least(0)
    )  #: of the process; 2 descriptors each
    #: reads of fewer octets than this are copied, which is cheaper for them
    bulk_octets: int = field(default=16_384, validator=at_least(1024))
    #: how long to look for the answer to a small message before sleeping; 0: not at all
    look_seconds: float = field(default=0.0001, validator=between(0, 0.001))

    # Operators and checks.
    #: UNIX socket for ``gridnet relay``, in the site's state directory unless absolute; empty: none
    control: str = "firewall.control"
    check_seconds: float = field(default=20.0, validator=more_than(0))  #: between own port probes
    log_sessions: bool = True  #: a line in the log for each connection that ends

    def control_path(self, site: SiteConfig) -> Path:
        """
        Where the control socket of a relay with the site file *site* is.

        :raises ConfigError: there is none.
        """
        if not self.control:
            raise ConfigError([Fault("firewall.control", "empty: the relay has no control socket")])
        return site.path(site.site.state_dir) / self.control
