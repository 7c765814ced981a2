"""
The site behind ``bench_relay``: ``python -m benchmarks.relay_site CONFIG TICKETS``.

Serves the site file; for each line ``[HOST:]PORT COUNT`` on standard input it writes that many
tickets for that place (loopback), four octets each, to the file TICKETS and then says ``ok``.
What a dispatcher would ask for one by one is there beforehand, so that only the relay is
measured.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any, cast

from twisted.internet import reactor as _reactor
from twisted.internet.error import ReactorNotRunning
from twisted.internet.stdio import StandardIO
from twisted.protocols.basic import LineReceiver

from gridnet.component import config_classes
from gridnet.config import read
from gridnet.firewall.service import FirewallService
from gridnet.firewall.tickets import Passage, Ticket
from gridnet.firewall.wire import ticket_octets
from gridnet.site import make_site

reactor: Any = _reactor


class Asked(LineReceiver):
    """Standard input."""

    delimiter = b"\n"

    def __init__(self, office: Any, path: Path) -> None:
        self._office = office
        self._path = path

    def lineReceived(self, line: bytes) -> None:
        """One request for tickets."""
        place, count = line.decode("ascii").split()
        host, _, port = place.rpartition(":")
        numbers: list[bytes] = []

        def issued(ticket: Ticket) -> None:
            numbers.append(ticket_octets(ticket.number))

        for index in range(int(count)):
            client = f"192.0.2.{index % 250}"
            passage = Passage("bench", host or "127.0.0.1", int(port), client)
            self._office.store.issue(passage, reactor.seconds()).addCallback(issued)
        self._path.write_bytes(b"".join(numbers))
        self.sendLine(b"ok")

    def connectionLost(self, reason: object = None) -> None:
        """The benchmark is gone."""
        with contextlib.suppress(ReactorNotRunning):
            reactor.stop()


def main() -> None:
    """Serve until standard input ends."""
    config = read(Path(sys.argv[1]), config_classes())
    _, service = make_site(config, reactor)
    firewall = cast(FirewallService, service.getServiceNamed("firewall"))
    service.privilegedStartService()
    service.startService()
    StandardIO(Asked(firewall.office, Path(sys.argv[2])))
    reactor.run()


if __name__ == "__main__":
    main()
