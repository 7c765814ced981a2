"""The client's own file: ``[client]`` in TOML."""

from __future__ import annotations

import tomllib
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

from attrs import field, frozen

from gridnet.config import at_least, between, more_than, structure
from gridnet.errors import ConfigError, Fault

#: Octets of an answer, unless something else is configured.
MAX_ANSWER = 8 * 1048576


class Mode(StrEnum):
    """How long the client stays."""

    NORMAL = "normal"  #: until nothing is left
    DAEMON = "daemon"  #: for ever


@frozen
class ClientConfig:
    """``[client]``: whom to ask, what to allow, where to keep things."""

    servers: tuple[str, ...] = ()  #: work URLs, ``https://host:7443/RPC2``, in order
    enrol: tuple[str, ...] = ()  #: enrol URLs, ``https://host:7444/RPC2``, in order
    directory: Path = Path("scire-client")  #: everything lives here; relative to this file
    ca: Path = Path("ca.pem")  #: the fleet's authority; relative to *directory*
    #: SHA-256 of the authority's certificate, hexadecimal, where *ca* is to be fetched
    ca_fingerprint: str = ""
    token_file: str = ""  #: where an enrolment token stands, for the first start; "": none
    name: str = ""  #: host name to ask for; "": this machine's
    mode: Mode = Mode.NORMAL
    #: daemon: wait at the server for work instead of sleeping between polls
    wait: bool = True
    #: daemon: port where servers may say ``poll_now``; 0: none.  Not advised: *wait* does it too
    listen_port: int = field(default=0, validator=at_least(0))
    listen_address: str = "0.0.0.0"  #: for *listen_port*
    #: seconds after a poll during which ``poll_now`` causes no other
    poll_now_pause: float = field(default=5.0, validator=at_least(0))
    #: seconds between polls; 0: as the server says
    poll_interval: float = field(default=0.0, validator=at_least(0))
    #: daemon: the first poll comes at a random moment within so many seconds, so that a fleet
    #: that starts at once does not ask at once; 0: at once.  In normal mode starting the client
    #: means "ask now"
    first_poll_seconds: float = field(default=60.0, validator=at_least(0))
    #: runs held at a time; more are fetched when there is room
    max_queue: int = field(default=200, validator=between(1, 500))
    connect_seconds: float = field(default=3.0, validator=more_than(0))  #: for a connection
    call_seconds: float = field(default=30.0, validator=more_than(0))  #: for one call
    #: seconds without an answer after which the client asks on another connection whether the
    #: server is there at all, and leaves it when that is not answered in *connect_seconds* either;
    #: 0: it waits for the whole of *call_seconds*
    doubt_seconds: float = field(default=1.5, validator=at_least(0))
    #: octets of an answer: at least twice the servers' *max_script*, which it takes in base64,
    #: and 6 MB for what else a job can have
    max_answer: int = field(default=MAX_ANSWER, validator=at_least(1048576))
    failback_seconds: float = field(default=900.0, validator=more_than(0))  #: with an alternate
    #: Ed25519 public key (PEM, relative to *directory*) of whoever signs jobs; "": none
    job_key: str = ""
    #: kinds of work that are done here
    allow: tuple[str, ...] = ("script", "file")
    #: user names that jobs may run as; (): any, if the client runs as root
    users: tuple[str, ...] = ()
    package_install: tuple[str, ...] = ("apt-get", "-y", "install")  #: before ``name=version``
    package_remove: tuple[str, ...] = ("apt-get", "-y", "remove")  #: before ``name``
    package_upgrade: tuple[str, ...] = ("apt-get", "-y", "--only-upgrade", "install")
    update: tuple[str, ...] = ("apt-get", "-y", "upgrade")  #: for jobs of kind update
    reboot: tuple[str, ...] = ("systemctl", "reboot")  #: for jobs of kind reboot
    keep_reports_hours: float = field(default=24.0, validator=at_least(0))  #: after the answer
    keep_journal_days: float = field(default=400.0, validator=at_least(1))


def read_config(path: Path) -> ClientConfig:
    """
    Read the client's file.

    :raises ConfigError: it cannot be used.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError([Fault(str(path), str(error))]) from None
    strange = sorted(set(document) - {"client"})
    if strange:
        raise ConfigError([Fault(strange[0], "unknown section; expected client")])
    config = structure(ClientConfig, document.get("client", {}), "client")
    faults = [
        Fault(f"client.{key}", f"expected https://host:port/RPC2, found {url!r}")
        for key, urls in (("servers", config.servers), ("enrol", config.enrol))
        for url in urls
        if not _is_url(url)
    ]
    if faults:
        raise ConfigError(faults)
    return config


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme == "https" and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
