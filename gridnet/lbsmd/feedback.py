"""
What somebody asks of the daemon about servers: a penalty, or another base rate.

Two texts say it: the argument of ``lbsm-feedback`` and the line on the daemon's socket
(docs/protocols/lbsmd-config.rst, Feedback).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum

from attrs import frozen

from gridnet.errors import DescriptorError, GridnetError
from gridnet.table.descriptor_words import resolve_host, split_connection_point
from gridnet.table.numbers import MAX_RATE, clamp_rate, format_number, parse_number
from gridnet.table.server_info import KEYWORDS, TYPES, ServerType
from gridnet.table.server_text import format_connection_point

RERATE = "RERATE"
ANY_TYPE = "ANY"
#: Where the clients of the toolkit look for the daemon's socket; they cannot be told another place.
TOOLKIT_SOCKET = "/opt/machine/lbsm/run/.lbsmd"
MAX_HOLD_SECONDS = 10_000_000

_SERVICE = re.compile(r"[A-Za-z_*?][A-Za-z0-9_*?-]*")
_WHOLE = re.compile(r"[0-9]{1,10}")


class FeedbackError(GridnetError):
    """A request about servers does not follow the grammar; whoever asks is told why."""


class BaseRate(Enum):
    """Base rates that are no numbers."""

    DEFAULT = "DEFAULT"  #: as configured
    RESERVE = "RESERVE"  #: kept aside


@frozen
class Target:
    """Which servers are meant."""

    service: str  #: name, may hold ``*`` and ``?``; compares without case
    type: ServerType | None = None  #: None: any
    host: str | None = None  #: name or address; None: this host
    port: int | None = None  #: None: any


@frozen
class PenaltyRequest:
    """Keep away from the target, as far as *percent* says."""

    target: Target
    percent: int  #: 0..100; 0: no longer
    hold_seconds: int = 0


@frozen
class RerateRequest:
    """Give the target another base rate."""

    target: Target
    rate: float | BaseRate  #: 0: off; else 0.001 to 100000 in magnitude


Request = PenaltyRequest | RerateRequest


def parse_argument(text: str) -> Request:
    """
    Read ``SERVICE [RERATE] TYPE [host][:port] AMOUNT [HOLD]``.

    :raises FeedbackError: with what was found and expected.
    """
    parts = re.findall(r"[^ \t]+", text)
    rerate = len(parts) > 1 and parts[1] == RERATE
    if rerate:
        del parts[1]
    if len(parts) < 3:
        raise FeedbackError("expected SERVICE [RERATE] TYPE [host][:port] AMOUNT [HOLD]")
    service, keyword, *rest = parts
    host, port = None, None
    if _is_point(rest[0], rerate, len(rest)):
        host, port = _point(rest.pop(0), zero=False)
    target = Target(_service(service), _type(keyword), host, port)
    return _rerate(target, rest) if rerate else _penalty(target, rest)


def parse_line(text: str) -> tuple[int, Request]:
    """
    Read the line that a client writes to the daemon's socket, without its line end.

    Its address is always there (``:0``: this host, any port), and a released client never
    tells a hold time.

    :returns: the user id that the sender claims, and the request.
    :raises FeedbackError: with what was found and expected.
    """
    parts = re.findall(r"[^ ]+", text)
    rerate = len(parts) > 2 and parts[2] == RERATE
    if rerate:
        del parts[2]
    if len(parts) < 5:
        raise FeedbackError("expected UID SERVICE [RERATE] TYPE ADDRESS AMOUNT [HOLD]")
    user, service, keyword, address, *rest = parts
    if _WHOLE.fullmatch(user) is None:
        raise FeedbackError(f"found user id {user!r}; expected a number")
    target = Target(_service(service), _type(keyword), *_point(address, zero=True))
    return int(user), _rerate(target, rest) if rerate else _penalty(target, rest)


def format_line(user: int, request: Request) -> str:
    """*request* as a client writes it to the daemon's socket, without a line end."""
    return " ".join([str(user), *_words(request, ":0")])


def format_argument(request: Request) -> str:
    """*request* as :func:`parse_argument` reads it."""
    return " ".join(_words(request, ""))


def _words(request: Request, this_host: str) -> list[str]:
    """
    The words of *request* from the service on.

    :param this_host: stands for any port of this host; empty: no word does.
    """
    target = request.target
    host, port = target.host or "", target.port
    address = host or this_host if port is None else format_connection_point(host, port)
    return [
        target.service,
        *([RERATE] if isinstance(request, RerateRequest) else []),
        ANY_TYPE if target.type is None else KEYWORDS[target.type],
        *([address] if address else []),
        *_amount(request),
    ]


def _amount(request: Request) -> list[str]:
    if isinstance(request, PenaltyRequest):
        hold = [str(request.hold_seconds)] if request.hold_seconds else []
        return [str(request.percent), *hold]
    rate = request.rate
    return [rate.value if isinstance(rate, BaseRate) else format_number(rate, 3)]


def _is_point(word: str, rerate: bool, count: int) -> bool:
    """Whether the word after the type is an address and not yet the amount."""
    if rerate:
        return parse_number(word) is None and word not in BaseRate.__members__
    # A lone number is the amount; "10.0.0.1" is no number, and a name has a letter.
    return count > 1 and parse_number(word) is None


def _service(text: str) -> str:
    if _SERVICE.fullmatch(text) is None:
        raise FeedbackError(f"found {text!r}; expected the name of a service, * and ? allowed")
    return text


def _type(text: str) -> ServerType | None:
    keyword = text.upper()
    if keyword == ANY_TYPE:
        return None
    kind = TYPES.get(keyword)
    if kind is None or kind is ServerType.FIREWALL:
        known = ", ".join([*(name for name in TYPES if name != "FIREWALL"), ANY_TYPE])
        raise FeedbackError(f"found server type {text!r}; expected one of {known}")
    return kind


def _point(text: str, zero: bool) -> tuple[str | None, int | None]:
    """
    Host and port, None where nothing is said.

    :param zero: whether port 0 stands for any.
    """
    try:
        host, port = split_connection_point(text)
        if host:
            resolve_host(host, None)
    except DescriptorError as error:
        raise FeedbackError(f"found {error.what}; expected {error.expected}") from None
    if port == 0:
        if not zero:
            raise FeedbackError(f"found {text!r}; expected a port from 1 to 65535, or none")
        port = None
    return host or None, port


def _penalty(target: Target, words: Sequence[str]) -> PenaltyRequest:
    if not 1 <= len(words) <= 2:
        raise FeedbackError("expected a penalty and perhaps a hold time in seconds")
    numbers = [int(word) for word in words if _WHOLE.fullmatch(word)]
    if len(numbers) != len(words) or numbers[0] > 100:
        raise FeedbackError(f"found {' '.join(words)!r}; expected a whole penalty from 0 to 100")
    hold = numbers[1] if len(numbers) > 1 else 0
    if hold > MAX_HOLD_SECONDS:
        raise FeedbackError(f"found hold time {hold}; expected at most {MAX_HOLD_SECONDS} s")
    return PenaltyRequest(target, numbers[0], hold)


def _rerate(target: Target, words: Sequence[str]) -> RerateRequest:
    if len(words) != 1:
        raise FeedbackError("expected one rate, RESERVE or DEFAULT")
    word = words[0]
    if word in BaseRate.__members__:
        return RerateRequest(target, BaseRate[word])
    rate = parse_number(word)
    if rate is None or abs(rate) > MAX_RATE:
        raise FeedbackError(f"found {word!r}; expected a rate up to {MAX_RATE:g}")
    return RerateRequest(target, clamp_rate(rate))
