"""
Text form of one server: the descriptor (docs/protocols/descriptor.rst).

The same text stands in dispatcher headers, in the daemon's configuration and in local client
configuration.  Only the meaning of ``T=`` differs, so :attr:`ServerInfo.time` is a plain number
here and the caller says what it counts.
"""

from __future__ import annotations

from enum import Enum, IntFlag

from attrs import frozen


class ServerType(IntFlag):
    """Kind of server; the values are those of the shared-memory table."""

    NCBID = 0x01
    STANDALONE = 0x02
    HTTP_GET = 0x04
    HTTP_POST = 0x08
    HTTP = 0x0C
    FIREWALL = 0x10
    DNS = 0x20


class Algorithm(Enum):
    """Which of a host's two load figures rates the server."""

    REGULAR = 0
    BLAST = 1


@frozen
class ServerInfo:
    """One server, as a descriptor tells it."""

    type: ServerType  #: one keyword's worth of bits
    host: str = ""  #: canonical IP address text; empty: the default host (0)
    port: int = 0  #: 0..65535
    arguments: str = ""  #: NCBID: arguments; HTTP*: ``path[?args]``; else empty
    hidden_type: ServerType | None = None  #: FIREWALL only; None: any
    algorithm: Algorithm = Algorithm.REGULAR
    bonus: float = 0.0  #: locality coefficient, -100..100
    content_type: str = ""  #: canonical ``type/subtype[-encoding]``; empty: undefined
    vhost: str = ""  #: virtual host, may carry ``:port``
    local: bool = True  #: ``L``; the wire's default is yes
    private: bool = False  #: ``P``
    stateful: bool = False  #: ``S``
    secure: bool = False  #: ``$``
    interzone: bool = False  #: ``X``
    rate: float = 0.0  #: -100000..100000
    time: int = 0  #: 0..4294967295, see the module's text

    @property
    def identity(self) -> tuple[object, ...]:
        """What makes two descriptors name the same server (docs/protocols/descriptor.rst)."""
        return (self.type, self.host, self.port, self.arguments, self.hidden_type)
