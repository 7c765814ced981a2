"""What may stand in the brackets of a service line: how, when and by whom it is checked."""

from __future__ import annotations

import re
from collections.abc import Sequence

from attrs import frozen

from gridnet.errors import DescriptorError, shown
from gridnet.lbsmd.schedule import ScheduleElement, parse_element
from gridnet.lbsmd.servrc.fault import MAX_LINE_FAULTS, Found, LineFault
from gridnet.table.descriptor_words import resolve_host, split_connection_point

#: Seconds between checks when the list does not say.
DEFAULT_PERIOD_SECONDS = 15
MAX_PERIOD_SECONDS = 10_000_000

#: Stands for "the name of the service itself" in a dependency.
SAME_SERVICE = "+"


@frozen
class Interval:
    """How often to check."""

    period_seconds: int = DEFAULT_PERIOD_SECONDS  #: 0: never
    backoff_seconds: int | None = None  #: after a failure, instead of the period
    own_point: bool = True  #: whether the server's own connection point is probed

    def __str__(self) -> str:
        backoff = "" if self.backoff_seconds is None else f"/{self.backoff_seconds}"
        return f"{'' if self.own_point else '-'}{self.period_seconds}{backoff}"


@frozen
class Contact:
    """Who gets mail when the state changes."""

    address: str

    def __str__(self) -> str:
        return self.address


@frozen
class Script:
    """A program that judges the server by its exit code."""

    path: str
    piped: bool = False  #: its standard input and output are a connection to the server

    def __str__(self) -> str:
        return f"|{self.path}" if self.piped else self.path


@frozen
class Dependency:
    """A service that must be up (or, negated, down)."""

    host: str | None = None  #: without brackets; None: any
    port: int | None = None  #: None: any
    service: str | None = None  #: name, or SAME_SERVICE; None: any
    negated: bool = False

    def __str__(self) -> str:
        host = self.host or ""
        if self.port is not None:
            host = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
        service = "" if self.service is None else f"+{self.service.removeprefix(SAME_SERVICE)}"
        return f"{'!' if self.negated else ''}{host}{service}"


@frozen
class User:
    """Somebody who may operate on this record."""

    name: str

    def __str__(self) -> str:
        return self.name


@frozen
class Group:
    """A group whose members may operate on this record."""

    name: str

    def __str__(self) -> str:
        return f"*{self.name}"


Check = Interval | ScheduleElement | Contact | Script | Dependency | User | Group

_INTERVAL = re.compile(r"(-?)([0-9]{1,9})(?:/([0-9]{1,9}))?")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_MAILBOX = re.compile(r"[A-Za-z0-9_%+-]+(?:\.[A-Za-z0-9_%+-]+)*")


def list_end(text: str, start: int) -> int | None:
    """Where the bracket at *start* is closed (brackets of IPv6 addresses nest); None: nowhere."""
    depth = 0
    for match in re.compile(r"[\[\]]").finditer(text, start):
        depth += 1 if match[0] == "[" else -1
        if not depth:
            return match.start()
    return None


def parse_checks(text: str, offset: int, mail_domain: str) -> tuple[Check, ...]:
    """
    Read the inside of the brackets.

    :param offset: where *text* stands in its logical line, for faults.
    :param mail_domain: the one domain that contacts may be of; empty: there are no contacts.
    :raises LineFault: with each element that is none, or one too many of its kind.
    """
    checks: list[Check] = []
    faults: list[Found] = []
    at = offset
    for element in text.split(","):
        stripped = element.strip(" \t")
        start = at + len(element) - len(element.lstrip(" \t"))
        at += len(element) + 1
        try:
            check = _parse_check(stripped, start, mail_domain)
            _see_that_it_is_single(check, checks, stripped, start)
        except LineFault as fault:
            faults.extend(fault.found)
            if len(faults) >= MAX_LINE_FAULTS:
                break
        else:
            checks.append(check)
    if faults:
        raise LineFault(faults)
    return tuple(checks)


def _see_that_it_is_single(check: Check, before: Sequence[Check], text: str, at: int) -> None:
    for kind in (Interval, Script):
        if isinstance(check, kind) and any(isinstance(other, kind) for other in before):
            raise LineFault.at(
                at, f"a second {kind.__name__.lower()}, {shown(text)}", "one at most"
            )


def _parse_check(text: str, at: int, mail_domain: str) -> Check:
    """The first form that fits."""
    if not text:
        raise LineFault.at(at, "an empty element", "an interval, a schedule, a script, ...")
    match = _INTERVAL.fullmatch(text)
    if match is not None:
        return _interval(match, at)
    try:
        schedule = parse_element(text)
    except ValueError as error:
        raise LineFault.at(at, shown(text), str(error)) from None
    if schedule is not None:
        return schedule
    if "@" in text:
        mailbox, _, domain = text.partition("@")
        if not mail_domain:
            raise LineFault.at(at, shown(text), "a schedule (no mail domain is configured)")
        if _MAILBOX.fullmatch(mailbox) is None or domain != mail_domain:
            raise LineFault.at(at, shown(text), f"a schedule, or an address at {mail_domain}")
        return Contact(text)
    if "/" in text:
        script = Script(text.removeprefix("|"), text.startswith("|"))
        if " " in script.path or "\t" in script.path or "/" not in script.path:
            raise LineFault.at(at, shown(text), "the path of a program, without blanks")
        return script
    if text[0] == "!" or ":" in text or "+" in text:
        return _dependency(text, at)
    name = text.removeprefix("*")
    if _NAME.fullmatch(name) is None:
        raise LineFault.at(
            at, shown(text), "an interval, a schedule, a script, a dependency, or who may operate"
        )
    return Group(name) if text[0] == "*" else User(name)


def _interval(match: re.Match[str], at: int) -> Interval:
    period = int(match[2])
    backoff = None if match[3] is None else int(match[3])
    if max(period, backoff or 0) > MAX_PERIOD_SECONDS:
        raise LineFault.at(at, shown(match[0]), f"at most {MAX_PERIOD_SECONDS} seconds")
    if backoff == 0:
        raise LineFault.at(at, shown(match[0]), "a back-off of one second or more")
    return Interval(period, backoff, not match[1])


def _dependency(text: str, at: int) -> Dependency:
    """``[!][host[:port]][+[service]]``, with host and port, or a ``+``."""
    negated = text[0] == "!"
    point, plus, service = text[negated:].partition("+")
    host, port = "", None
    if point:
        try:
            host, port = split_connection_point(point)
            if host:
                resolve_host(host, None)
        except DescriptorError as error:
            raise LineFault.at(at, f"{shown(text)}: {error.what}", error.expected) from None
        if port == 0:
            raise LineFault.at(at, shown(text), "a port from 1 to 65535")
    if plus:
        if service and _NAME.fullmatch(service) is None:
            raise LineFault.at(at, shown(text), "the name of a service, or nothing, after +")
        return Dependency(host or None, port, service or SAME_SERVICE, negated)
    if not host or port is None:
        raise LineFault.at(at, shown(text), "host and port, or + and a service")
    return Dependency(host, port, None, negated)


@frozen
class CheckPlan:
    """A check list sorted by what it is for; :meth:`of` makes it."""

    interval: Interval = Interval()
    schedule: tuple[ScheduleElement, ...] = ()
    contacts: tuple[Contact, ...] = ()
    script: Script | None = None
    dependencies: tuple[Dependency, ...] = ()
    users: tuple[User, ...] = ()
    groups: tuple[Group, ...] = ()

    @classmethod
    def of(cls, checks: Sequence[Check]) -> CheckPlan:
        """*checks* by kind, each kind in its order; the default interval when there is none."""
        intervals = [check for check in checks if isinstance(check, Interval)]
        scripts = [check for check in checks if isinstance(check, Script)]
        return cls(
            intervals[0] if intervals else Interval(),
            tuple(check for check in checks if isinstance(check, ScheduleElement)),
            tuple(check for check in checks if isinstance(check, Contact)),
            scripts[0] if scripts else None,
            tuple(check for check in checks if isinstance(check, Dependency)),
            tuple(check for check in checks if isinstance(check, User)),
            tuple(check for check in checks if isinstance(check, Group)),
        )
