"""
What a client asks of the dispatcher, as values (docs/protocols/dispatcher.rst, Requests).

Requests are read in :mod:`gridnet.dispatch.wire`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

from attrs import field, frozen

from gridnet.table.affinity import Affinity
from gridnet.table.server_info import ServerInfo, ServerType

#: No type named: any but ``DNS``.
ANY_TYPE = ServerType(0)
#: A preference for one host and no other.
LATCH = -1.0


class Kind(Enum):
    """What a request wants."""

    INFO = "servers of a service"
    LIST = "all servers, some unusable ones too"
    REVERSE = "the DNS entries of a service's servers"
    AUX = "a dedicated connection"
    RELAY = "to be relayed to a server"
    NCBID = "a program run on this host"
    BROWSER = "to be relayed, by somebody who knows nothing of dispatching"


class ConnectionMode(Enum):
    """How a program is to be run."""

    STATEFUL = "STATEFUL"
    STATELESS = "STATELESS"


@frozen
class Preference:
    """The host that the caller would like best."""

    host: str  #: IP address text; empty: the client's own
    port: int  #: 0: any
    share: float  #: 0..1, or :data:`LATCH`


class Skip(NamedTuple):
    """A server that the client has had already."""

    identity: tuple[object, ...]  #: :attr:`gridnet.table.server_info.ServerInfo.identity`
    service: str = ""  #: lower case; empty: whatever it is called


@frozen(eq=False)
class DispatchRequest:
    """
    One request, as far as it does not depend on who sent it.

    Compared by identity: the same octets parse to the same object through a cache, which makes
    it a cheap key.

    :ivar question: all that decides which servers suit, but for who asks and what it has had;
        requests with equal questions share the work of finding them.
    """

    kind: Kind
    service: str  #: name, or mask
    is_mask: bool = False
    path: str = ""  #: of the target
    arguments: str = (
        ""  #: query for the service: what is left without ``service``, ``address``, ...
    )
    platform: str = ""  #: of the client
    accepted: ServerType = ANY_TYPE  #: wanted types; 0: any but DNS
    firewall_mode: bool = False
    #: None: not said; empty: regular ports only; else ports that the client can reach
    fallback_ports: frozenset[int] | None = None
    include_down: bool = False
    include_suppressed: bool = False
    stateless: bool = False
    connection_mode: ConnectionMode = ConnectionMode.STATELESS
    inform: bool = True  #: informational headers wanted in a connection reply
    inclusive: bool = False  #: informational headers are to name further servers, too
    skips: tuple[Skip, ...] = ()  #: in order of their numbers
    used: ServerInfo | None = None  #: the server the client means
    preference: Preference | None = None
    affinity: Affinity | None = None
    server_count: int | None = None  #: None: not said; 0: all
    legacy: bool = False  #: reads the older dialect only
    external: bool = False  #: whatever its address
    identity: Mapping[str, str] = field(factory=dict)  #: lower-case headers of who it is
    session_id: str = ""  #: ``NCBI-SID``
    hit_id: str = ""  #: ``NCBI-PHID``
    trace_parent: str = ""  #: ``traceparent``
    question: tuple[object, ...] = field(init=False, repr=False)

    @question.default
    def _make_question(self) -> tuple[object, ...]:
        return (
            self.service,
            self.is_mask,
            self.kind is Kind.REVERSE,
            self.kind is Kind.LIST,
            self.accepted.value,
            self.firewall_mode,
            self.include_down,
            self.include_suppressed,
            self.stateless,
            self.legacy,
            self.preference,
            self.affinity,
        )

    @property
    def identifier(self) -> str:
        """What logs and programs know the request by; empty: the client gave it no name."""
        return self.hit_id or self.session_id or self.trace_parent

    @property
    def is_listing(self) -> bool:
        """Whether all servers are wanted, in the order of the table, and not a draw."""
        return self.is_mask or self.kind in (Kind.LIST, Kind.REVERSE)
