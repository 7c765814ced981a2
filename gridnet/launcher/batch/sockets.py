"""Who listens at a TCP port of this host, and who is connected to it: Linux's own table."""

from __future__ import annotations

import ipaddress
import re
import sys
from collections.abc import Iterable

from attrs import frozen

LISTEN = 0x0A
_ESTABLISHED, _SYN_RECEIVED, _CLOSE_WAIT = 0x01, 0x03, 0x08

#: Files with one socket a line, after a heading.
TABLES = ("/proc/net/tcp", "/proc/net/tcp6")

_LINE = re.compile(
    r"\s*[0-9]+: ([0-9A-F]{8}|[0-9A-F]{32}):([0-9A-F]{4}) [0-9A-F]{8,32}:[0-9A-F]{4} ([0-9A-F]{2}) "
    r"\S+ \S+ \S+\s+[0-9]+\s+[0-9]+ ([0-9]+)\b.*"
)


@frozen
class TcpSocket:
    """One socket."""

    address: str  #: IP address text of our end
    port: int
    state: int
    inode: int  #: 0: no process holds it (yet, or any more)

    @property
    def listens(self) -> bool:
        """Whether it takes connections."""
        return self.state == LISTEN

    @property
    def is_open(self) -> bool:
        """Whether it is a connection that somebody still uses, or is about to."""
        if self.inode:
            return self.state != LISTEN
        return self.state in (_ESTABLISHED, _SYN_RECEIVED, _CLOSE_WAIT)


def _address(text: str) -> str:
    octets = bytes.fromhex(text)
    if sys.byteorder == "little":
        # Each word of four octets is a number in the order of the machine.
        octets = b"".join(octets[at : at + 4][::-1] for at in range(0, len(octets), 4))
    address = ipaddress.ip_address(octets)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def sockets_at(port: int, text: str) -> Iterable[TcpSocket]:
    """The sockets whose own end is *port*, in the *text* of one of :data:`TABLES`."""
    wanted = f":{port:04X} "
    for line in text.splitlines():
        if wanted not in line:
            continue
        match = _LINE.fullmatch(line)
        if match is not None and int(match[2], 16) == port:
            yield TcpSocket(_address(match[1]), port, int(match[3], 16), int(match[4]))
