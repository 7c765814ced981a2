"""What the lines of the configuration language say, as values, and service lines as text."""

from __future__ import annotations

from attrs import frozen

from gridnet.lbsmd.servrc.check_list import Check
from gridnet.table.address import canonical_address
from gridnet.table.numbers import STANDBY_RATE, format_number, parse_number
from gridnet.table.server_info import KEYWORDS, Algorithm, ServerType, is_http

#: Base rate of a server whose line gives none.
DEFAULT_RATE = 1000.0
#: Fraction digits that every reader in the field understands alike.
MAX_DECIMALS = 7


@frozen
class Include:
    """Read another file here."""

    file: str
    prefix: str = ""  #: put in front of each of its lines


@frozen
class Zone:
    """This host's zone, as written; :func:`gridnet.lbsmd.servrc.zone.zone_bits` reads it."""

    text: str


@frozen
class MonitoredPort:
    """A port whose capacity is polled."""

    port: int  #: 1..65535


@frozen
class Environment:
    """A line that is published with the host."""

    name: str
    value: str  #: blanks kept


@frozen
class Authority:
    """A user, or the members of a group, who may operate on every record of this host."""

    name: str
    group: bool = False


@frozen
class ServiceRecord:
    """A server of a service, as configured.  Its text is a line that reads back as it."""

    name: str  #: compares without case
    type: ServerType
    host: str = ""  #: as written, no brackets; empty: this host
    #: default filled in; 0: ``:0`` was written; None: DNS without one
    port: int | None = None
    #: NCBID: arguments, may be empty; HTTP*: path with arguments; None: the type has none
    arguments: str | None = None
    rate: float = DEFAULT_RATE  #: 0, or 0.001 to 100000
    local: bool = False
    private: bool = False
    stateful: bool = False
    secure: bool = False
    content_type: str = ""  #: canonical; empty: none
    bonus: float = 0.0  #: 0, or 0.01 to 100 in magnitude
    time_seconds: int = 0  #: validity; 0: the daemon's own
    algorithm: Algorithm = Algorithm.REGULAR
    interzone: bool = False
    vhost: str | None = None  #: None: not written; empty: none, not even the host's name
    checks: tuple[Check, ...] = ()
    launcher: str = ""  #: command line behind an NCBID server

    @property
    def static(self) -> bool:
        """Whether its rate is constant: a host is given."""
        return bool(self.host)

    @property
    def virtual_host(self) -> str:
        """What requests name as their host: as written, else a host name that has a dot."""
        if self.vhost is not None:
            return self.vhost
        named = "." in self.host and canonical_address(self.host) is None
        takes_one = is_http(self.type) or (self.type is ServerType.STANDALONE and self.secure)
        return self.host if named and takes_one else ""

    def __str__(self) -> str:
        words = [self.name]
        if self.checks:
            words.append(f"[{','.join(map(str, self.checks))}]")
        words.append(KEYWORDS[self.type])
        if self.host or self.port is not None:
            words.append(_point_text(self.host, self.port))
        if self.arguments is not None:
            words.append(self.arguments or "''")
        words += self._flags()
        if self.launcher:
            words.append(f"| {self.launcher}")
        return " ".join(words)

    def _flags(self) -> list[str]:
        flags = []
        if self.algorithm is Algorithm.BLAST or self.interzone:
            load = "Blast" if self.algorithm is Algorithm.BLAST else "Regular"
            flags.append(f"{load}Inter" if self.interzone else load)
        if self.bonus:
            flags.append(f"B={_exact(self.bonus, 2)}")
        if self.content_type:
            flags.append(f"C={self.content_type}")
        if self.vhost is not None:
            flags.append("H=" + (self.vhost or "''"))
        flags.append(f"L={'yes' if self.local else 'no'}")
        if self.private:
            flags.append("P=yes")
        flags.append(f"R={_exact(self.rate, 3 if self.rate < STANDBY_RATE else 2)}")
        if self.stateful:
            flags.append("S=yes")
        if self.secure:
            flags.append("$=yes")
        if self.time_seconds:
            flags.append(f"T={self.time_seconds}")
        return flags


@frozen
class NameHold:
    """Keeps a name and type from being defined in other files, read later."""

    name: str
    held_type: ServerType
    host: str = ""  #: empty: any
    port: int = 0  #: 0: any


Record = Include | Zone | MonitoredPort | Environment | Authority | ServiceRecord | NameHold


def _point_text(host: str, port: int | None) -> str:
    if port is None:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _exact(value: float, least: int) -> str:
    """*value* with as few decimals as read back as the same number, but at *least* that many."""
    text = ""
    for decimals in range(least, MAX_DECIMALS + 1):
        text = format_number(value, decimals)
        if parse_number(text) == value:
            break
    return text
