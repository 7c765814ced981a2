"""``[status]``: the status listener."""

from __future__ import annotations

from attrs import field, frozen

from gridnet.config import at_least, more_than


@frozen
class StatusConfig:
    """Where the status pages are, and how much they show."""

    listen: str = "tcp:8081:interface=127.0.0.1"  #: endpoint string
    idle_timeout_seconds: float = field(default=60.0, validator=more_than(0))  #: a silent client
    max_connections: int = field(default=1024, validator=at_least(1))  #: more are turned away
    #: longest body of a request; the pages have no use for one
    max_body_octets: int = field(default=65_536, validator=at_least(0))
    #: services on the page for people, and hosts; a page of all takes long to make
    max_rows: int = field(default=500, validator=at_least(1))
