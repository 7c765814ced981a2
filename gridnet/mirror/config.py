"""``[mirror]``: lists for others, and lists of others."""

from __future__ import annotations

from pathlib import Path

from attrs import field, frozen

from gridnet.config import at_least, more_than
from gridnet.mirror import wire
from gridnet.mirror.admission import (
    MAX_DELIVERY_SECONDS,
    MAX_TIMEOUT_SECONDS,
    MIN_TIMEOUT_SECONDS,
)
from gridnet.mirror.gridengine.server_session import MAX_REQUEST_OCTETS


@frozen
class TlsConfig:
    """``[mirror.tls]``: TLS of :attr:`MirrorConfig.listen`, and of ``gridnets://`` sources."""

    certificate: Path | None = None  #: PEM file; given: the listener speaks TLS
    key: Path | None = None  #: PEM file of its key
    #: PEM file of authorities; given: mirrors must show a certificate of one of them, and so
    #: must the masters that this site follows
    authority: Path | None = None


@frozen
class FollowConfig:
    """``[[mirror.follow]]``: a master whose lists this site offers again."""

    #: ``gridnet://host:port``, ``gridnets://host:port`` (TLS), ``gridengine://host:port`` or
    #: ``gridengine:///cell/common`` (a directory, whose files say the rest)
    source: str
    name: str = ""  #: its lists are offered as ``<name>/<list>``; empty: the host of the source
    types: tuple[str, ...] = ()  #: lists to follow; empty: all
    #: seconds between reports while there is nothing to hurry for
    delivery_seconds: int = field(default=5, validator=at_least(1))


@frozen
class MirrorConfig:
    """What of this site can be mirrored, by whom, and whom it mirrors."""

    #: endpoint string for other gridnets; empty: none
    listen: str = "tcp:6450:interface=127.0.0.1"
    #: address ranges of who may mirror over :attr:`listen`
    allowed: tuple[str, ...] = ("127/8", "::1/128")
    tls: TlsConfig = field(factory=TlsConfig)
    #: endpoint string for real Grid Engine event clients; empty: none
    gridengine_listen: str = ""
    #: address ranges of who may connect there: such clients only claim who they are
    gridengine_allowed: tuple[str, ...] = ("127/8", "::1/128")
    gridengine_host: str = ""  #: what it calls itself there; empty: this host's name
    #: names of clients that may ask for one of the ids 1 to 10
    fixed_id_clients: tuple[str, ...] = ()
    #: end the registration of a Grid Engine client with its connection; otherwise it stays
    #: until it times out, as at a real qmaster
    drop_on_disconnect: bool = False
    follow: tuple[FollowConfig, ...] = ()
    max_clients: int = field(default=5000, validator=at_least(1))  #: registered at a time
    max_connections: int = field(default=6000, validator=at_least(1))  #: on each listener
    max_queued_events: int = field(default=100_000, validator=at_least(1))  #: of one client
    #: of one client, about; beyond either it is ended and comes back for fresh lists
    max_queued_octets: int = field(default=256 * 1024 * 1024, validator=at_least(1))
    #: a client that acknowledges nothing for ten of its delivery times is ended, but not
    #: before this
    min_timeout_seconds: float = field(default=MIN_TIMEOUT_SECONDS, validator=more_than(0))
    #: and by this in any case
    max_timeout_seconds: float = field(default=MAX_TIMEOUT_SECONDS, validator=more_than(0))
    #: of the Grid Engine client with id 1, instead of both; 0: as for the others
    scheduler_timeout_seconds: float = field(default=0.0, validator=at_least(0))
    registration_seconds: float = field(default=30.0, validator=more_than(0))  #: to register
    idle_seconds: float = field(default=600.0, validator=more_than(0))  #: Grid Engine clients
    #: of a followed master, whose whole list may come in one message
    max_frame_octets: int = field(default=wire.MAX_FRAME_OCTETS, validator=at_least(1024))
    #: of a Grid Engine client
    max_request_octets: int = field(default=MAX_REQUEST_OCTETS, validator=at_least(1024))
    max_streams: int = field(default=100, validator=at_least(0))  #: browsers that follow lists
    #: a stream without changes says that it lives this often, in seconds
    stream_alive_seconds: int = field(default=15, validator=at_least(1))
    #: seconds that a list nobody wants any more is kept current
    linger_seconds: float = field(default=60.0, validator=at_least(0))
    #: a followed master that asked this site to leave is asked again after this
    comes_back_seconds: float = field(default=60.0, validator=more_than(0))
    #: seconds that clients have, when the site stops, to acknowledge that it does
    wind_down_seconds: float = field(default=2.0, validator=at_least(0))

    def __attrs_post_init__(self) -> None:
        for follow in self.follow:
            if follow.delivery_seconds > MAX_DELIVERY_SECONDS:
                raise ValueError(f"delivery_seconds: at most {MAX_DELIVERY_SECONDS}")
