"""
A Grid Engine cell as a client sees it: who the master is, and how names compare.

Reads the files of ``$SGE_ROOT/$SGE_CELL/common`` (docs/protocols/event-mirror.rst, "Finding the
master").
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from attrs import field, frozen

from gridnet.errors import ConfigError, Fault

#: Where a qmaster listens if nobody says otherwise.
DEFAULT_PORT = 6444
#: None of these files is ever longer.
_MAX_FILE_OCTETS = 1024 * 1024


@frozen
class HostNames:
    """How a cell compares host names."""

    #: any name, in lower case -> the one that stands for the host
    aliases: Mapping[str, str] = field(factory=dict)
    ignore_domain: bool = True  #: "a.b.c" and "a" are one host
    default_domain: str = ""  #: added to names without one, if domains count

    def canonical(self, name: str) -> str:
        """The form of *name* in which it compares; host groups ("@name") and addresses stay."""
        name = name.lower()
        name = self.aliases.get(name, name)
        # Addresses have no domain, whatever their dots look like.
        if name.startswith("@") or ":" in name or name.replace(".", "").isdecimal():
            return name
        if self.ignore_domain:
            return name.partition(".")[0]
        if self.default_domain and "." not in name:
            return f"{name}.{self.default_domain}"
        return name

    def named(self, name: str) -> str:
        """The name of a host as the cell wants to be told it: its alias, if it has one."""
        return self.aliases.get(name.lower(), name)


@frozen
class Cell:
    """What a client needs of a cell."""

    master_host: str
    port: int = DEFAULT_PORT
    security_mode: str = "none"
    names: HostNames = field(factory=HostNames)
    directory: Path | None = None  #: of the files, for reading them again


def parse_bootstrap(text: str) -> Mapping[str, str]:
    """The settings in a ``bootstrap`` file: a name and a value a line, "#" begins a remark."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition("#")[0].strip().partition(" ")
        if name:
            found[name] = value.strip()
    return found


def parse_aliases(text: str) -> Mapping[str, str]:
    """The names in a ``host_aliases`` file: a line has all names of one host, the first counts."""
    found = {}
    for line in text.splitlines():
        names = line.partition("#")[0].split()
        for name in names:
            found[name.lower()] = names[0]
    return found


def host_names(bootstrap: Mapping[str, str], aliases: Mapping[str, str]) -> HostNames:
    """How names compare, as a cell's files say."""
    domain = bootstrap.get("default_domain", "none")
    return HostNames(
        aliases,
        bootstrap.get("ignore_fqdn", "true").lower() == "true",
        "" if domain.lower() == "none" else domain.lower(),
    )


def service_port(services: str, name: str = "sge_qmaster") -> int | None:
    """The TCP port of *name* in the text of ``/etc/services``."""
    for line in services.splitlines():
        words = line.partition("#")[0].split()
        if len(words) > 1 and name in (words[0], *words[2:]) and words[1].endswith("/tcp"):
            number = words[1].removesuffix("/tcp")
            if number.isdecimal():
                return int(number)
    return None


def read_cell(
    directory: Path, port: int | None = None, environment: Mapping[str, str] = {}
) -> Cell:
    """
    Read the cell whose common files are in *directory*.

    :param port: of the qmaster; None: ``SGE_QMASTER_PORT`` of *environment*, the service
        ``sge_qmaster``, or 6444.
    :raises ConfigError: a file is missing or cannot be read.
    """
    bootstrap = parse_bootstrap(_read(directory / "bootstrap"))
    aliases = directory / "host_aliases"
    names = host_names(bootstrap, parse_aliases(_read(aliases) if aliases.exists() else ""))
    if port is None:
        wanted = environment.get("SGE_QMASTER_PORT", "")
        port = int(wanted) if wanted.isdecimal() else None
    if port is None:
        services = Path("/etc/services")
        port = service_port(_read(services)) if services.exists() else None
    return Cell(
        read_master_host(directory),
        port or DEFAULT_PORT,
        bootstrap.get("security_mode", "none").lower(),
        names,
        directory,
    )


def read_master_host(directory: Path) -> str:
    """
    The host of the qmaster now: a shadow master that took over writes itself here.

    :raises ConfigError: the file cannot be read, or is empty.
    """
    path = directory / "act_qmaster"
    host = _read(path).strip()
    if not host:
        raise ConfigError([Fault(str(path), "is empty; expected the qmaster's host")])
    return host


def _read(path: Path) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(_MAX_FILE_OCTETS)
    except OSError as error:
        raise ConfigError([Fault(str(path), f"cannot be read: {error.strerror}")]) from None
