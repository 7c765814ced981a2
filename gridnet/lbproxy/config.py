"""``[lbproxy]``: job events, kept and forwarded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from attrs import Attribute, Factory, field, frozen

from gridnet.config import at_least, more_than
from gridnet.lbproxy.paths import MAX_PATH_OCTETS
from gridnet.lbproxy.record import STATES, state_number


def _one_of(*words: str) -> Any:
    def validate(_: object, attribute: Attribute[Any], value: str) -> None:
        if value not in words:
            raise ValueError(f"expected one of {', '.join(words)}, found {value!r}")

    return validate


def _states(_: object, attribute: Attribute[Any], value: Any) -> None:
    for name in value:
        if state_number(name) is None:
            raise ValueError(f"expected states ({', '.join(STATES)}), found {name!r}")


def _mode(_: object, attribute: Attribute[Any], value: int) -> None:
    if not 0o600 <= value <= 0o777 or value & 0o600 != 0o600:
        raise ValueError(f"expected 0o600 to 0o777 with the owner's rights, found 0o{value:o}")


def _no_negatives(_: object, attribute: Attribute[Any], value: Mapping[str, float]) -> None:
    for name, seconds in value.items():
        if state_number(name) is None:
            raise ValueError(f"expected states ({', '.join(STATES)}), found {name!r}")
        if seconds < 0:
            raise ValueError(f"expected 0 or more for {name}, found {seconds!r}")


_SERVER = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):[0-9]{1,5}")


def _servers(_: object, attribute: Attribute[Any], value: Iterable[str]) -> None:
    for name in value:
        if _SERVER.fullmatch(name) is None:
            raise ValueError(f"expected host:port, found {name!r}")


def _absolute(_: object, attribute: Attribute[Any], value: str) -> None:
    if not value.startswith("/"):
        raise ValueError(f"expected an absolute path, found {value!r}")


def _socket_address(_: object, attribute: Attribute[Any], value: str) -> None:
    if not 0 < len(value.encode()) <= MAX_PATH_OCTETS:
        raise ValueError(f"expected a path of 1 to {MAX_PATH_OCTETS} octets, found {value!r}")


@frozen
class ForwardConfig:
    """``[lbproxy.forward]``: how events go on to the jobs' own servers."""

    #: ``none``; ``deliver``: by this process; ``daemon``: through the spool files and the socket
    #: of the original's delivery daemon
    mode: str = field(default="none", validator=_one_of("none", "deliver", "daemon"))
    #: endpoint string of a server; ``{host}`` is the job id's, ``{port}`` its port plus one
    server: str = "tcp:{host}:{port}"
    #: endpoint strings of servers that are elsewhere, by ``host:port`` of the job ids
    routes: Mapping[str, str] = field(factory=dict, validator=_servers)
    #: ``host:port`` of servers that share this store: their events stay
    local_servers: tuple[str, ...] = field(default=(), validator=_servers)
    #: events sent to one server and not answered, never two of one job; the original's servers
    #: want 1
    window: int = field(default=1, validator=at_least(1))
    #: servers that are dealt with at once; the others wait for their turn
    max_servers: int = field(default=256, validator=at_least(1))
    max_spooled: int = field(default=1_000_000, validator=at_least(1))  #: events that wait
    #: what becomes of a new event when ``max_spooled`` wait: ``refuse`` it, or ``keep`` it here
    #: without forwarding it
    when_full: str = field(default="refuse", validator=_one_of("refuse", "keep"))
    connect_timeout_seconds: float = field(default=10.0, validator=more_than(0))
    reply_timeout_seconds: float = field(default=60.0, validator=more_than(0))
    retry_seconds: float = field(default=1.0, validator=more_than(0))  #: first pause after a fault
    max_retry_seconds: float = field(default=60.0, validator=more_than(0))  #: it doubles up to this
    #: ``daemon``: files are this name, a point, and the unique part of the job id
    spool_prefix: str = field(default="/var/spool/glite/lb-proxy/dglogd.log", validator=_absolute)
    #: ``daemon``: told of each line
    notice_socket: str = field(
        default="/var/run/glite/glite-lb-proxy.sock", validator=_socket_address
    )


@frozen
class PurgeConfig:
    """``[lbproxy.purge]``: what an outside purge means by the service's own time-outs."""

    #: seconds since a job's last event by state, for time-outs of -1
    timeouts_seconds: Mapping[str, float] = field(
        factory=lambda: {
            "Cleared": 3 * 86_400.0,
            "Aborted": 7 * 86_400.0,
            "Cancelled": 7 * 86_400.0,
        },
        validator=_no_negatives,
    )
    other_timeout_seconds: float = field(default=31 * 86_400.0, validator=at_least(0))  #: the rest
    batch_jobs: int = field(default=200, validator=at_least(1))  #: jobs of one commit
    max_running: int = field(default=16, validator=at_least(1))  #: purges at a time
    #: the longest time over which a purge may ask to be spread
    max_run_seconds: float = field(default=86_400.0, validator=at_least(0))
    dump_directory: Path = Path("lbproxy-dumps")  #: of server dumps; relative to ``state_dir``


@frozen
class StreamConfig:
    """``[lbproxy.stream]``: the event stream."""

    keep_seconds: float = field(default=3600.0, validator=at_least(0))  #: events of purged jobs
    max_subscribers: int = field(default=2000, validator=at_least(0))
    max_consumers: int = field(default=1000, validator=at_least(0))  #: names with a cursor
    #: a consumer that was not seen for longer makes room when there are ``max_consumers``
    keep_consumers_seconds: float = field(default=30 * 86_400.0, validator=at_least(0))
    recent_events: int = field(default=10_000, validator=at_least(1))  #: held in memory
    recent_octets: int = field(default=32 << 20, validator=at_least(0))  #: of their lines
    page_events: int = field(default=500, validator=at_least(1))  #: given to a follower at once
    page_octets: int = field(default=1 << 20, validator=at_least(1))  #: of their lines, roughly
    heartbeat_seconds: float = field(default=15.0, validator=more_than(0))
    max_wait_seconds: float = field(default=60.0, validator=at_least(0))  #: of a long poll
    max_filter_values: int = field(default=1000, validator=at_least(1))  #: of one subscription


@frozen
class LbproxyConfig:
    """Where events come in and are asked for, how they are kept, and how long."""

    #: ``proxy``, or ``server``: the full server of other proxies, which never removes jobs on its
    #: own and forwards nothing
    role: str = field(default="proxy", validator=_one_of("proxy", "server"))

    # Sockets.
    store_socket: str = ""  #: path; empty: the environment's, or ``/tmp/lb_proxy_store.sock``
    serve_socket: str = ""  #: path; empty: the environment's, or ``/tmp/lb_proxy_serve.sock``
    socket_mode: int = field(default=0o600, validator=_mode)  #: permissions of both
    socket_group: str = ""  #: group that owns both; empty: the process's own
    store_endpoint: str = ""  #: endpoint string of a further store listener, for proxies
    serve_endpoint: str = ""  #: endpoint string of a further serve listener
    backlog: int = field(default=512, validator=at_least(1))  #: connections not yet accepted
    max_connections: int = field(default=4000, validator=at_least(1))  #: of each listener
    idle_seconds: float = field(default=10.0, validator=more_than(0))  #: without traffic
    request_seconds: float = field(default=120.0, validator=more_than(0))  #: from its begin
    max_message_octets: int = field(default=64 << 20, validator=at_least(1024))  #: store message
    max_head_octets: int = field(default=16 << 10, validator=at_least(512))  #: HTTP head
    max_request_octets: int = field(default=16 << 20, validator=at_least(1024))  #: HTTP body
    #: of unfinished large messages and requests together; a connection beyond it is closed
    max_buffered_octets: int = field(default=256 << 20, validator=at_least(1 << 20))
    max_pipelined: int = field(default=64, validator=at_least(1))  #: unanswered, a connection
    max_waiting_events: int = field(default=20_000, validator=at_least(1))  #: for their commit
    #: of the lines of those; above either nothing more is read until some are committed
    max_waiting_octets: int = field(default=256 << 20, validator=at_least(1))

    # Identity.
    check_identity: bool = False  #: compare ``DG.USER`` with ``identities`` of the peer's user
    #: names (of ``DG.USER``) that a local user may use, by user name or number; ``*``: any
    identities: Mapping[str, tuple[str, ...]] = Factory(dict)

    # Store.
    store: Path = Path("lbproxy.sqlite")  #: the database; relative to ``state_dir``
    check_at_start: str = field(default="quick", validator=_one_of("quick", "full", "none"))
    busy_seconds: float = field(default=5.0, validator=at_least(0))  #: wait for another's lock
    max_group_events: int = field(default=512, validator=at_least(1))  #: of one commit
    #: where commits take long, the longest that one waits for those who were answered together
    max_gather_seconds: float = field(default=0.002, validator=at_least(0))
    #: how long the next event is looked for, awake, before going to sleep; given up for a while
    #: where none comes in that time
    look_out_seconds: float = field(default=0.0001, validator=at_least(0))
    cache_octets: int = field(default=64 << 20, validator=at_least(0))  #: of jobs in memory
    max_subjobs: int = field(default=100_000, validator=at_least(0))  #: of one registration

    # Queries.
    query_threads: int = field(default=2, validator=at_least(1))
    #: a query that takes longer begins again in threads for the slow, and holds up no quick one
    quick_query_seconds: float = field(default=0.5, validator=more_than(0))
    slow_query_threads: int = field(default=1, validator=at_least(1))
    query_seconds: float = field(default=60.0, validator=more_than(0))  #: of one query
    max_waiting_queries: int = field(default=5000, validator=at_least(1))
    max_results: int = field(default=100_000, validator=at_least(1))  #: of one reply
    #: jobs of a snapshot of the list ``jobs``; of more, the newest
    max_listed_jobs: int = field(default=100_000, validator=at_least(1))
    max_reply_octets: int = field(default=256 << 20, validator=at_least(1 << 16))

    # Leaving.
    purge_states: tuple[str, ...] = field(
        default=("Cleared", "Aborted", "Cancelled", "Done"), validator=_states
    )  #: states in which jobs leave a proxy on their own; none: they wait for an outside purge
    #: how long they stay answerable; 0: they leave with the event that made them final
    keep_final_seconds: float = field(default=600.0, validator=at_least(0))
    #: other times for single states
    keep_seconds: Mapping[str, float] = field(factory=dict, validator=_no_negatives)
    sweep_seconds: float = field(default=1.0, validator=more_than(0))  #: between two looks
    sweep_jobs: int = field(default=500, validator=at_least(1))  #: that leave at one look
    remember_purged_seconds: float = field(default=30 * 86_400.0, validator=at_least(0))

    forward: ForwardConfig = field(factory=ForwardConfig)
    purge: PurgeConfig = field(factory=PurgeConfig)
    stream: StreamConfig = field(factory=StreamConfig)

    def keep_by_state(self) -> Mapping[int, float]:
        """State number -> seconds that a job stays after reaching it; others stay for good."""
        if self.role == "server":
            return {}
        own = {name.upper(): seconds for name, seconds in self.keep_seconds.items()}
        found = {}
        for name in self.purge_states:
            number = state_number(name)
            if number is not None:
                found[number] = own.get(name.upper(), self.keep_final_seconds)
        return found

    def purge_timeout(self, state: int) -> float:
        """Seconds for a purge's time-out of -1."""
        own = {name.upper(): seconds for name, seconds in self.purge.timeouts_seconds.items()}
        return own.get(STATES[state].upper(), self.purge.other_timeout_seconds)
