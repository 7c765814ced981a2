"""``[lbsmd]``: the daemon that fills the service table."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Literal

from attrs import Attribute, field, frozen

from gridnet.config import SiteConfig, at_least, between, more_than
from gridnet.errors import ConfigError, Fault
from gridnet.lbsmd.feedback import TOOLKIT_SOCKET
from gridnet.lbsmd.gossip.config import GossipConfig
from gridnet.lbsmd.load_formula import FORMULAS
from gridnet.lbsmd.servrc.configuration import ALL_ZONES, Rules
from gridnet.table.model import DEFAULT_TIME_SECONDS


def _run_of_ones(_: object, attribute: Attribute[Any], value: int) -> None:
    low = value & -value
    if not 0 < value <= ALL_ZONES or value & (value + low):
        raise ValueError(f"expected a contiguous run of bits within 0xFFFF, found {value:#x}")


def _octal_mode(_: object, attribute: Attribute[Any], value: str) -> None:
    if re.fullmatch("0?[0-7]{3}", value) is None:
        raise ValueError(f"expected three octal digits, found {value!r}")


def _formula(_: object, attribute: Attribute[Any], value: str) -> None:
    if value not in FORMULAS and re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", value) is None:
        raise ValueError(
            f"expected {', '.join(FORMULAS)} or package.module:function, found {value!r}"
        )


@frozen
class LbsmdConfig:
    """What the daemon reads, and how often."""

    #: main file of service definitions, relative to the site file; empty: /etc/lbsmd/servrc.cfg,
    #: or servrc.cfg in ``directory`` when that cannot be read
    servrc: str = ""
    #: where relative ``%include`` names start, relative to the site file; empty: the directory
    #: the daemon was started in
    directory: str = ""
    #: seconds between looks for changed files
    poll_seconds: float = field(default=2.0, validator=more_than(0))
    #: serve the faultless lines of faulty definitions at the start, rather than not start
    start_with_errors: bool = False
    #: the one domain that contacts of a check may be of; empty: no contacts
    mail_domain: str = ""
    default_local: bool = False  #: whether a service line without ``L=`` means ``L=yes``
    #: seconds that an entry is valid when its line has no ``T=``
    default_time_seconds: int = field(default=DEFAULT_TIME_SECONDS, validator=at_least(1))
    #: zone bits of the whole broadcast domain, a contiguous run of ones
    site_bits: int = field(default=ALL_ZONES, validator=_run_of_ones)
    site_role: Literal["plain", "try", "qa"] = "plain"  #: lets a zone line say ``try`` or ``qa``
    zone_bits: int = field(default=0, validator=at_least(0))  #: fixes the zone; 0: the file's
    #: files that one set of definitions may have, each counted as often as it is included
    max_inclusions: int = field(default=1000, validator=at_least(1))
    #: octets that the files of one set may have together
    max_octets: int = field(default=16 * 1024 * 1024, validator=at_least(1))
    #: seconds that looking up the host names of one set may take together
    resolve_seconds: float = field(default=10.0, validator=more_than(0))
    #: seconds until definitions refused for an unknown host are tried again
    resolve_retry_seconds: float = field(default=30.0, validator=more_than(0))
    #: file that only one daemon can hold, with its process number; in the site's state directory
    #: unless absolute (one for a whole host: /run/lbsmd.pid); empty: none
    pid_file: str = "lbsmd.pid"
    #: log of the daemon's own, beside that of the process, relative to the site file; empty: none
    log_file: str = ""
    #: KiB that it may grow to; 0: no limit; -1: no limit, but only while the file is there
    log_size: int = field(default=0, validator=at_least(-1))
    #: UNIX socket for local tools, in the site's state directory unless absolute; empty: none
    control: str = "lbsmd.control"
    #: permissions of that socket, octal digits: who may change something is judged by who asks
    control_mode: str = field(default="666", validator=_octal_mode)
    #: who may register servers of this host, besides root and the daemon's own user: names of
    #: users, ``@group``, or ``*`` for everybody who reaches the socket
    registrars: tuple[str, ...] = ()
    max_registrations: int = field(default=1000, validator=at_least(0))  #: of all users
    max_registrations_per_user: int = field(default=200, validator=at_least(0))
    #: seconds that a registered server may be valid without being renewed
    max_lease_seconds: int = field(default=300, validator=at_least(1))
    #: where local programs find the table in shared memory: ``public``, under the keys that every
    #: NCBI client knows; another name, under keys of its own; empty: nowhere
    shared_memory: str = ""
    #: seconds between two images of a table that changes all the time
    shared_memory_interval_seconds: float = field(default=0.1, validator=at_least(0.01))
    #: seconds between two images of one that does not change
    shared_memory_refresh_seconds: float = field(default=5.0, validator=between(0.1, 15))
    #: octets that an image may have
    shared_memory_max_octets: int = field(default=64 * 1024 * 1024, validator=at_least(65536))
    #: seconds that one update may wait for readers
    reader_wait_seconds: float = field(default=0.02, validator=between(0, 1))
    #: seconds after which a reader that does not leave is gone round
    stuck_reader_seconds: float = field(default=5.0, validator=at_least(0))
    run_checks: bool = True  #: whether services are checked; otherwise all are as configured
    max_parallel_checks: int = field(default=64, validator=at_least(1))  #: checks at a time
    #: part of a period by which it may be shorter or longer
    check_jitter: float = field(default=0.1, validator=between(0, 0.9))
    #: seconds within which the first checks of new services begin
    check_spread_seconds: float = field(default=5.0, validator=at_least(0))
    #: seconds that a connection may take (never more than the period)
    probe_seconds: float = field(default=5.0, validator=more_than(0))
    #: octets of a check script's standard error that go to the log, a run
    script_log_octets: int = field(default=65536, validator=at_least(0))
    #: file that keeps penalties and set base rates over a restart, in the site's state directory
    #: unless absolute; empty: a restart forgets them
    keep_penalties: str = ""
    #: requests for penalties and base rates that are under way at a time
    max_orders: int = field(default=64, validator=at_least(1))
    #: UNIX socket for the penalties of the toolkit's own clients, in the site's state directory
    #: unless absolute; empty: none.  The default is where those clients look for it: it is opened
    #: if the daemon may write to that directory
    feedback_socket: str = TOOLKIT_SOCKET
    #: permissions of that socket: who may penalize is judged by who asks
    feedback_mode: str = field(default="666", validator=_octal_mode)
    #: UNIX datagram socket on which servers post the capacity of their ports, in the site's
    #: state directory unless absolute; empty: none
    ports_socket: str = "lbsmd.ports"
    #: permissions of that socket: who may post is judged by who posts
    ports_mode: str = field(default="666", validator=_octal_mode)
    #: seconds after which the capacity of a port that was not posted again counts no longer
    port_stale_seconds: float = field(default=60.0, validator=more_than(0))
    #: seconds between two looks at this host's load; 0: no looks, its status stays as it is
    load_seconds: float = field(default=2.0, validator=at_least(0))
    #: part of a status by which it must have changed to be told at once
    load_step: float = field(default=0.1, validator=between(0.001, 1))
    #: seconds after which the load is told even so
    load_refresh_seconds: float = field(default=30.0, validator=more_than(0))
    #: how load becomes status: ``book``, ``even``, or ``package.module:function``
    load_formula: str = field(default="book", validator=_formula)
    smtp_host: str = ""  #: that takes mail for contacts; empty: no mail
    smtp_port: int = field(default=25, validator=between(1, 65535))
    mail_from: str = ""  #: sender of mail; empty: lbsmd at ``mail_domain``
    #: seconds from the first notice for a contact to the message that tells it
    mail_batch_seconds: float = field(default=30.0, validator=at_least(0))
    #: notices that may wait for one contact, and contacts that may wait
    max_notices: int = field(default=500, validator=at_least(1))
    #: messages that may fail before their notices are given up
    mail_attempts: int = field(default=5, validator=at_least(1))
    mail_seconds: float = field(default=60.0, validator=more_than(0))  #: for one message
    #: seconds after which memory that is not in use is given back to the system again; 0: never
    give_back_seconds: float = field(default=600.0, validator=at_least(0))
    gossip: GossipConfig | None = None  #: with other hosts; without this section there is none

    def __attrs_post_init__(self) -> None:
        if self.zone_bits & ~self.site_bits:
            raise ValueError(
                f"zone_bits: expected a part of site_bits, {self.site_bits:#x}, "
                f"found {self.zone_bits:#x}"
            )

    @property
    def sender(self) -> str:
        """Whom mail to contacts is from."""
        return self.mail_from or f"lbsmd@{self.mail_domain or 'localhost'}"

    def control_path(self, site: SiteConfig) -> Path:
        """
        Where the control socket of a daemon with the site file *site* is.

        :raises ConfigError: there is none.
        """
        return _socket_path(site, "control", self.control)

    def ports_path(self, site: SiteConfig) -> Path:
        """
        Where servers post the capacity of their ports.

        :raises ConfigError: nowhere.
        """
        return _socket_path(site, "ports_socket", self.ports_socket)

    @property
    def takes_feedback(self) -> bool:
        """Whether the toolkit's clients are listened to, as far as that is possible."""
        if self.feedback_socket == TOOLKIT_SOCKET:
            return os.access(os.path.dirname(TOOLKIT_SOCKET), os.W_OK)
        return bool(self.feedback_socket)

    def rules(self) -> Rules:
        """What the language leaves to the site."""
        return Rules(
            mail_domain=self.mail_domain,
            default_local=self.default_local,
            site=self.site_bits,
            site_role=self.site_role,
            zone=self.zone_bits or None,
            max_inclusions=self.max_inclusions,
            max_octets=self.max_octets,
        )


def _socket_path(site: SiteConfig, key: str, place: str) -> Path:
    if not place:
        raise ConfigError([Fault(f"lbsmd.{key}", "empty: the daemon has no such socket")])
    return site.path(site.site.state_dir) / place
