"""What may stand in the brackets of a service line: how, when and by whom it is checked."""

from __future__ import annotations

import re

from attrs import frozen

from gridnet.lbsmd.servrc.fault import LineFault

DAYS = ("Su", "Mo", "Tu", "We", "Th", "Fr", "Sa")
HOLIDAY = "Hd"

MAX_SECONDS = 10_000_000


@frozen
class Interval:
    """How often to check."""

    period_seconds: int  #: 0: never
    backoff_seconds: int | None = None  #: after a failure, instead of the period
    own_point: bool = True  #: whether the server's own connection point is probed

    def __str__(self) -> str:
        backoff = "" if self.backoff_seconds is None else f"/{self.backoff_seconds}"
        return f"{'' if self.own_point else '-'}{self.period_seconds}{backoff}"


@frozen
class ScheduleElement:
    """Days and hours in which the server runs, or (negated) does not."""

    days: tuple[str, ...] = ()  #: of DAYS, or HOLIDAY; empty: every day
    #: first hour, and the hour before which it ends (up to 30: into the next day); None: all day
    hours: tuple[int, int] | None = None
    negated: bool = False

    def __str__(self) -> str:
        days = self.days[0] if self.days else ""
        if len(self.days) > 1:
            days += f"-{self.days[-1]}"
        hours = ""
        if self.hours is not None:
            begin, end = self.hours
            hours = (
                f"@{begin}" if end == begin + 1 else f"@{begin}-{end if end <= 24 else end - 24}"
            )
        return f"{'~' if self.negated else ''}{days}{hours}"


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

    def __str__(self) -> str:
        return self.path


@frozen
class Dependency:
    """A service that must be up (or, negated, down)."""

    host: str | None = None  #: None: any
    port: int | None = None  #: None: any
    service: str | None = None  #: name; ``"+"``: the service's own; None: any
    negated: bool = False

    def __str__(self) -> str:
        port = "" if self.port is None else f":{self.port}"
        service = "" if self.service is None else f"+{self.service.removeprefix('+')}"
        return f"{'!' if self.negated else ''}{self.host or ''}{port}{service}"


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
_DAY = "|".join((*DAYS, HOLIDAY))
_SCHEDULE = re.compile(rf"(~?)(?:({_DAY})(?:-({_DAY}))?)?(?:@([0-9]{{1,2}})(?:-([0-9]{{1,2}}))?)?")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_MAILBOX = re.compile(r"[A-Za-z0-9._%+-]+")
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_DEPENDENCY = re.compile(r"(!?)([^:+]*)(?::([^+]*))?(?:(\+)(.*))?")


def parse_checks(text: str, offset: int, mail_domain: str) -> tuple[Check, ...]:
    """
    Read the inside of the brackets.

    :param offset: where *text* stands in its logical line, for faults.
    :param mail_domain: the one domain that contacts may be of.
    :raises LineFault: an element that is none, or one too many of a kind.
    """
    found: list[Check] = []
    at = offset
    for element in text.split(","):
        words = element.strip(" \t")
        start = at + len(element) - len(element.lstrip(" \t"))
        at += len(element) + 1
        if not words:
            raise LineFault(start, "empty check element; expected an interval, a schedule, ...")
        check = _parse_check(words, start, mail_domain)
        for once in (Interval, Script):
            if isinstance(check, once) and any(isinstance(each, once) for each in found):
                raise LineFault(start, f"{words[:40]!r}: expected only one {once.__name__.lower()}")
        found.append(check)
    return tuple(found)


def _parse_check(text: str, at: int, mail_domain: str) -> Check:
    match = _INTERVAL.fullmatch(text)
    if match is not None:
        period = int(match[2])
        backoff = None if match[3] is None else int(match[3])
        if max(period, backoff or 0) > MAX_SECONDS:
            raise LineFault(at, f"{text!r}: expected at most {MAX_SECONDS} seconds")
        return Interval(period, backoff, not match[1])
    schedule = _SCHEDULE.fullmatch(text)
    if schedule is not None and text != "~":
        return _parse_schedule(schedule, at)
    if "@" in text:
        mailbox, _, domain = text.partition("@")
        if _MAILBOX.fullmatch(mailbox) is None or domain.lower() != mail_domain.lower():
            raise LineFault(
                at, f"{text[:60]!r}: expected a schedule, or an address at {mail_domain}"
            )
        return Contact(text)
    if "/" in text:
        return Script(text)
    if text[0] == "!" or ":" in text or "+" in text:
        return _parse_dependency(text, at)
    name = text.removeprefix("*")
    if _NAME.fullmatch(name) is None:
        raise LineFault(at, f"{text[:60]!r}: expected a check element")
    return Group(name) if text[0] == "*" else User(name)


def _parse_schedule(match: re.Match[str], at: int) -> ScheduleElement:
    negated, first, last, begin_text, end_text = match.groups()
    days: tuple[str, ...] = ()
    if last is not None:
        if HOLIDAY in (first, last):
            raise LineFault(at, f"{match[0]!r}: {HOLIDAY} cannot begin or end a range of days")
        start, stop = DAYS.index(first), DAYS.index(last)
        days = tuple(DAYS[(start + n) % 7] for n in range((stop - start) % 7 + 1))
    elif first is not None:
        days = (first,)
    hours = None
    if begin_text is not None:
        begin = int(begin_text)
        end = begin + 1 if end_text is None else int(end_text)
        if begin > 23 or end > 24:
            raise LineFault(at, f"{match[0]!r}: expected hours 0 to 23 (the end: 0 to 24)")
        if end == 0:
            end = 24
        if begin == end:
            raise LineFault(at, f"{match[0]!r}: the range of hours is empty")
        if end < begin:
            afternoon = begin < 12 and 1 <= end <= 11 and end + 12 > begin
            end += 12 if afternoon else 24
        hours = (begin, end)
    return ScheduleElement(days, hours, bool(negated))


def _parse_dependency(text: str, at: int) -> Dependency:
    match = _DEPENDENCY.fullmatch(text)
    if match is None:
        raise LineFault(at, f"{text[:60]!r}: expected [!][host[:port]][+[service]]")
    negated, host, port_text, plus, service = match.groups()
    if host and _HOST.fullmatch(host) is None:
        raise LineFault(at, f"{text[:60]!r}: {host[:40]!r} is no host")
    port = None
    if port_text is not None:
        if not (port_text.isascii() and port_text.isdecimal() and len(port_text) <= 5):
            raise LineFault(at, f"{text[:60]!r}: expected a port (1..65535) after the colon")
        port = int(port_text)
        if not 1 <= port <= 65535:
            raise LineFault(at, f"{text[:60]!r}: expected a port (1..65535), found {port}")
    if plus:
        if service and _NAME.fullmatch(service) is None:
            raise LineFault(at, f"{text[:60]!r}: {service[:40]!r} is no service name")
        return Dependency(host or None, port, service or "+", bool(negated))
    if not (host and port):
        raise LineFault(at, f"{text[:60]!r}: expected host and port, or + and a service")
    return Dependency(host, port, None, bool(negated))
