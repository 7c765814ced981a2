"""
The penalty box: whose requests are refused for a while, and why.

Its file, ``.dispd.msg``, survives a restart and is shared by all processes of one host that let
clients in (docs/protocols/firewall.rst, 6).
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from enum import Enum

from attrs import frozen

#: First line of a penalty file.
FILE_HEADING = "# gridnet penalties 1: from until client count reason service\n"
MAX_LINE_OCTETS = 512
_LINE = re.compile(r"([0-9]{1,12}) ([0-9]{1,12}) ([0-9A-Fa-f.:/]{2,50}) ([0-9]{1,9}) (\S+) (\S+)")
_BLANKS = re.compile(r"\s+")


class Reason(Enum):
    """What a client is refused for; the value is the word in the file."""

    GUESS = "guess"  #: presented tickets that are none
    UNUSED = "unused"  #: asked for connections and never made them
    ORDER = "order"  #: an operator says so
    PARDON = "pardon"  #: ends an earlier one

    @property
    def text(self) -> str:
        """For the client, as a ``Dispatcher-Failures`` text."""
        return _TEXTS[self]


_TEXTS = {
    Reason.GUESS: "Too many invalid tickets from your address",
    Reason.UNUSED: "Too many connections were requested but never made",
    Reason.ORDER: "Connections from your address are refused",
    Reason.PARDON: "",
}


@frozen
class Penalty:
    """One client, refused from one moment to another."""

    since: float  #: seconds since the epoch
    until: float
    client: str  #: IP address text, or the /64 of an IPv6 address
    count: int  #: offences
    reason: Reason
    service: str = ""  #: of the last offence

    def line(self) -> str:
        """Its line in the file."""
        service = _BLANKS.sub("_", self.service)[:100] or "-"
        return (
            f"{int(self.since)} {int(self.until + 0.999)} {self.client} {self.count} "
            f"{self.reason.value} {service}\n"
        )


def parse_line(line: str) -> Penalty | None:
    """The penalty of one line of the file; None: a comment, or not a line of ours."""
    match = _LINE.fullmatch(line.rstrip("\r\n"))
    if match is None:
        return None
    since, until, client, count, reason, service = match.groups()
    try:
        why = Reason(reason)
    except ValueError:
        return None
    return Penalty(
        float(since), float(until), client, int(count), why, "" if service == "-" else service
    )


class PenaltyBox:
    """
    Who is refused now.

    :param seconds: length of a first penalty; each further one within a day is twice as long.
    :param max_seconds: no penalty is longer.
    :param max_clients: clients in it; past that, the one that leaves first leaves early.
    """

    #: A client that was good for so long starts anew.
    MEMORY_SECONDS = 86_400.0

    def __init__(self, seconds: float, max_seconds: float, max_clients: int) -> None:
        self._seconds = seconds
        self._max_seconds = max_seconds
        self._max_clients = max_clients
        self._penalties: OrderedDict[str, Penalty] = OrderedDict()

    def __len__(self) -> int:
        return len(self._penalties)

    def __iter__(self) -> Iterator[Penalty]:
        return iter(list(self._penalties.values()))

    def refused(self, client: str, now: float) -> Penalty | None:
        """The penalty that *client* has to sit out, if any."""
        penalty = self._penalties.get(client)
        return penalty if penalty is not None and now < penalty.until else None

    def punish(
        self, client: str, now: float, reason: Reason, count: int, service: str = ""
    ) -> Penalty:
        """Put *client* into the box; returns the penalty, for the file."""
        before = self._penalties.get(client)
        length = self._seconds
        if before is not None and now < before.until + self.MEMORY_SECONDS:
            length = 2 * (before.until - before.since)
        length = min(max(length, self._seconds), self._max_seconds)
        penalty = Penalty(now, now + length, client, count, reason, service)
        self.add(penalty)
        return penalty

    def pardon(self, client: str, now: float) -> Penalty | None:
        """Let *client* out; returns what the file must be told, None: it was not in."""
        if self._penalties.pop(client, None) is None:
            return None
        return Penalty(now, now, client, 0, Reason.PARDON)

    def add(self, penalty: Penalty) -> None:
        """Take over *penalty*, from the file or from another process."""
        self._penalties.pop(penalty.client, None)
        if penalty.reason is Reason.PARDON:
            return
        self._penalties[penalty.client] = penalty
        while len(self._penalties) > self._max_clients:
            self._penalties.popitem(last=False)

    def forget(self, now: float) -> None:
        """Drop what no longer matters, not even for the length of a next penalty."""
        for client, penalty in list(self._penalties.items()):
            if penalty.until + self.MEMORY_SECONDS <= now:
                del self._penalties[client]

    def load(self, lines: Iterable[str]) -> int:
        """Take over the *lines* of a file; returns how many were not understood."""
        faulty = 0
        for line in lines:
            if not line.strip() or line.startswith("#"):
                continue
            penalty = parse_line(line)
            if penalty is None:
                faulty += 1
            else:
                self.add(penalty)
        return faulty

    def text(self) -> str:
        """A whole file."""
        return FILE_HEADING + "".join(penalty.line() for penalty in self)
