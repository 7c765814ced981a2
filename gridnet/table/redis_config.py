"""How to reach a Redis server; a table inside the sections of components that share state."""

from __future__ import annotations

from attrs import field, frozen

from gridnet.config import at_least, more_than


@frozen
class RedisConfig:
    """One Redis server that holds what several processes share."""

    host: str = "127.0.0.1"
    port: int = field(default=6379, validator=at_least(1))
    path: str = ""  #: UNIX socket; used instead of host and port
    username: str = ""
    password: str = ""
    database: int = field(default=0, validator=at_least(0))
    prefix: str = "gridnet:"  #: of every key
    connections: int = field(default=4, validator=at_least(1))
    connect_timeout_seconds: float = field(default=3.0, validator=more_than(0))
    reply_timeout_seconds: float = field(default=3.0, validator=more_than(0))
