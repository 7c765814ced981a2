"""``[status]``: the status listener."""

from __future__ import annotations

from attrs import field, frozen

from gridnet.config import at_least, more_than


@frozen
class StatusConfig:
    """Where the status pages are, and how much they show."""

    listen: str = "tcp:8081:interface=127.0.0.1"  #: endpoint string
    idle_timeout_seconds: float = field(default=60.0, validator=more_than(0))  #: a silent client
    max_rows: int = field(default=2000, validator=at_least(1))  #: services on the human page
