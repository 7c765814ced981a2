"""``[scire]``: the job server."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from attrs import field, frozen

from gridnet.config import at_least, more_than


class Role(StrEnum):
    """Where clients should look first."""

    PRIMARY = "primary"
    ALTERNATE = "alternate"


class Enrolment(StrEnum):
    """Whose requests for a certificate are taken."""

    OPEN = "open"  #: anybody's; a person approves, or a token does
    TOKEN = "token"  #: only with a token
    CLOSED = "closed"


@frozen
class TlsConfig:
    """``[scire.tls]``: what the listeners show, and whom they believe.  PEM files."""

    certificate: Path = Path("scire/server.pem")  #: with its chain; relative to state_dir
    key: Path = Path("scire/server.key")  #: relative to state_dir
    fleet_ca: Path = Path("scire/ca.pem")  #: whose certificates clients, users and servers have


@frozen
class AuthorityConfig:
    """``[scire.ca]``: who signs."""

    #: the embedded authority's key, relative to state_dir; without the file (and without
    #: *command*) approvals wait for ``admin.certificate_install``
    key: Path = Path("scire/ca.key")
    #: an outside authority: run with the request (PEM) as standard input and GRIDNET_NAME and
    #: GRIDNET_DAYS in its environment; writes the certificate and its chain (PEM)
    command: tuple[str, ...] = ()
    command_seconds: float = field(default=30.0, validator=more_than(0))  #: time for *command*
    days: int = field(default=90, validator=at_least(1))  #: life of a certificate


@frozen
class LimitsConfig:
    """``[scire.limits]``: everything that a peer can press on."""

    max_request: int = field(default=4 * 1048576, validator=at_least(1024))  #: octets of a body
    max_head: int = field(default=16384, validator=at_least(512))  #: octets of a request's head
    max_connections: int = field(default=5000, validator=at_least(1))  #: of each listener
    backlog: int = field(default=1024, validator=at_least(1))  #: connections not yet accepted
    handshakes_per_second: float = field(default=200.0, validator=more_than(0))  #: TLS
    handshake_seconds: float = field(default=15.0, validator=more_than(0))  #: for one of them
    #: for a whole request, from its first octet; and for the peer to take an answer
    request_seconds: float = field(default=30.0, validator=more_than(0))
    idle_seconds: float = field(default=90.0, validator=more_than(0))  #: a silent connection
    max_threads: int = field(default=32, validator=at_least(1))  #: calls at a time
    max_waiting: int = field(default=512, validator=at_least(0))  #: calls that wait for a slot
    waiting_seconds: float = field(default=20.0, validator=more_than(0))  #: so long at most
    max_waits: int = field(default=2000, validator=at_least(0))  #: ``scire.wait`` at a time
    wait_seconds: int = field(default=300, validator=at_least(1))  #: longest ``scire.wait``
    calls_per_minute: int = field(default=1200, validator=at_least(1))  #: of one certificate
    enrol_calls_per_minute: int = field(default=120, validator=at_least(1))  #: of one address
    #: suspicious calls of one address that are audited; more are only logged
    suspects_per_minute: int = field(default=60, validator=at_least(1))
    max_requests_waiting: int = field(default=1000, validator=at_least(1))  #: enrolments
    max_runs_per_job: int = field(default=100_000, validator=at_least(1))  #: of one occurrence
    max_page: int = field(default=1000, validator=at_least(1))  #: rows of one list answer
    #: octets of a job's script; clients get it in one answer, so that their *max_answer* has to
    #: be twice as much, and 6 MB more
    max_script: int = field(default=1048576, validator=at_least(1))
    max_file: int = field(default=1024 * 1048576, validator=at_least(1))  #: octets, an attachment
    #: octets of what one run writes to one stream, beyond the tail in its status file
    max_stream: int = field(default=64 * 1048576, validator=at_least(0))
    max_facts: int = field(default=65536, validator=at_least(2))  #: octets as JSON, enrolling
    max_inventory: int = field(default=1048576, validator=at_least(2))  #: octets as JSON
    max_jobs_in_memory: int = field(default=256, validator=at_least(1))  #: with their scripts
    #: certificates whose owners are remembered between their calls
    max_known_clients: int = field(default=100_000, validator=at_least(1))


@frozen
class KeepConfig:
    """``[scire.keep]``: how long rows stay, in days."""

    runs: float = field(default=90.0, validator=more_than(0))  #: after their end
    output: float = field(default=30.0, validator=more_than(0))
    keys: float = field(default=7.0, validator=more_than(0))  #: of idempotent calls
    audit: float = field(default=400.0, validator=more_than(0))


@frozen
class PushConfig:
    """``[scire.push]``: ``poll_now`` to daemon-mode clients."""

    timeout_seconds: float = field(default=5.0, validator=more_than(0))  #: of one call
    retry_seconds: float = field(default=10.0, validator=more_than(0))  #: before the second try
    max_at_a_time: int = field(default=50, validator=at_least(1))
    pause_seconds: float = field(default=10.0, validator=at_least(0))  #: between two to one client


@frozen
class ScireConfig:
    """The job server's section."""

    listen: str = "tcp:7443"  #: endpoint string of the work listener (client certificates)
    listen_enrol: str = "tcp:7444"  #: endpoint string of the enrol listener (none)
    #: endpoint string of the administration listener (password or token); "": none
    listen_admin: str = "tcp:7445:interface=127.0.0.1"
    #: one file, relative to state_dir; or ``postgresql://`` connection strings, tried in order
    database: tuple[str, ...] = ("scire/scire.db",)
    #: PostgreSQL: threads, each with a connection, for what does not go through the reactor's own
    #: two; 0: 3
    pool: int = field(default=0, validator=at_least(0))
    name: str = ""  #: unlike any other server's on this database; "": address:port
    url: str = ""  #: that clients use; "": https://<site.address>:<port of listen>/RPC2
    enrol_url: str = ""  #: likewise
    role: Role = Role.PRIMARY
    weight: int = field(default=1, validator=at_least(1))  #: among servers of one role
    poll_interval: int = field(default=60, validator=at_least(1))  #: seconds between polls
    lease: int = field(default=60, validator=at_least(1))  #: seconds to acknowledge a delivery
    enrolment: Enrolment = Enrolment.OPEN
    approvals: int = field(default=1, validator=at_least(1))  #: people who must approve
    poll_after: int = field(default=10, validator=at_least(1))  #: seconds between ``enrol_poll``
    sweep_seconds: float = field(default=1.0, validator=more_than(0))  #: between looks at leases
    heartbeat_seconds: float = field(default=10.0, validator=more_than(0))
    dead_seconds: float = field(default=30.0, validator=more_than(0))  #: without a heartbeat
    drain_seconds: float = field(default=30.0, validator=at_least(0))  #: for calls at the end
    #: run for each event that people should know, with JSON as standard input; (): only logged
    notify_command: tuple[str, ...] = ()
    #: signs job files: the file as standard input, the signature (octets) as output; (): none
    sign_command: tuple[str, ...] = ()
    log_polls: bool = False  #: whether calls that clients make all day have a line each, too
    service: str = "SCIRE"  #: announced in the service table; "": not announced
    rate: float = 1000.0  #: announced
    tls: TlsConfig = field(factory=TlsConfig)
    ca: AuthorityConfig = field(factory=AuthorityConfig)
    limits: LimitsConfig = field(factory=LimitsConfig)
    keep: KeepConfig = field(factory=KeepConfig)
    push: PushConfig = field(factory=PushConfig)
