"""What ``gridnet mirror`` and ``gridnet jobs`` share: options, conditions, and their life."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorCore
from twisted.python.failure import Failure

from gridnet.errors import ConfigError, Fault, GridnetError
from gridnet.mirror.address import Source, connector_to, read_source
from gridnet.mirror.catalogue import ObjectType
from gridnet.mirror.filters import Operator, What, Where
from gridnet.mirror.follow import MirrorService
from gridnet.mirror.gridengine.cull import Kind
from gridnet.mirror.gridengine.dialect import dialect
from gridnet.mirror.model import Registration
from gridnet.mirror.tls import read_authorities, read_identity

#: The source if neither ``--source`` nor the variable says one.
DEFAULT_SOURCE = "gridnet://127.0.0.1:6450"
SOURCE_VARIABLE = "GRIDNET_MIRROR"
#: The whole list of a large cell comes in one message.
MAX_FRAME_OCTETS = 1 << 30
#: Longer operators first: "<=" begins with "<".
_OPERATORS = (
    ("!=", Operator.NOT_EQUAL),
    ("<=", Operator.LOWER_EQUAL),
    (">=", Operator.GREATER_EQUAL),
    ("=", Operator.EQUAL),
    ("<", Operator.LOWER),
    (">", Operator.GREATER),
    ("~", Operator.PATTERN),
    ("&", Operator.BITMASK),
)


def options() -> argparse.ArgumentParser:
    """The options that say which master, and how."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--source",
        default=os.environ.get(SOURCE_VARIABLE) or DEFAULT_SOURCE,
        metavar="WHERE",
        help="gridnet://HOST:PORT, gridnets://HOST:PORT, gridengine://HOST:PORT, "
        "gridengine:///CELL/common, or gridengine: for the cell of the environment "
        f"(else the variable {SOURCE_VARIABLE}, else {DEFAULT_SOURCE})",
    )
    parser.add_argument("--certificate", type=Path, metavar="PEM", help="own certificate, for TLS")
    parser.add_argument("--key", type=Path, metavar="PEM", help="its key")
    parser.add_argument("--authority", type=Path, metavar="PEM", help="who signs the master's")
    parser.add_argument(
        "--delivery", type=_seconds, default=1, metavar="SECONDS", help="between reports (1)"
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="give up when the master cannot be reached for this long (else never)",
    )
    parser.add_argument("--name", default="gridnet", help="name that the master shows")
    parser.add_argument("--json", action="store_true", help="one JSON value a line")
    return parser


def _seconds(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 595:
        raise argparse.ArgumentTypeError(f"expected 1 to 595 seconds, found {text!r}")
    return int(text)


def make_mirror(
    words: argparse.Namespace, reactor: Any, **more: Any
) -> tuple[Source, MirrorService]:
    """
    The mirror that the options ask for, not started.

    :raises ConfigError: the source or files cannot be used.
    """
    source = read_source(words.source, "--source", os.environ)
    identity = authorities = None
    if words.certificate is not None:
        identity = read_identity(words.certificate, words.key or words.certificate, "--certificate")
    if words.authority is not None:
        authorities = read_authorities(words.authority, "--authority")
    connector = connector_to(
        source,
        reactor,
        identity=identity,
        authorities=authorities,
        environment=os.environ,
        max_frame_octets=MAX_FRAME_OCTETS,
    )
    wish = Registration(name=words.name, delivery_seconds=words.delivery)
    mirror = MirrorService(reactor, connector, wish, **more)

    def told(state: str, reason: str) -> None:
        text = f"{connector.describe()}: {state}{f', {reason}' if reason else ''}"
        print(text, file=sys.stderr, flush=True)

    mirror.on_state(told)
    return source, mirror


def _fault(option: str, text: str) -> ConfigError:
    return ConfigError([Fault(option, text)])


def condition(texts: Sequence[str], kind: ObjectType) -> Where | None:
    """
    The condition that *texts*, ``ATTRIBUTE OPERATOR VALUE`` each, put on elements of *kind*.

    :raises ConfigError: one of them is no condition.
    """
    parts = [_comparison(text, kind) for text in texts]
    if len(parts) > 1:
        return Where(Operator.AND, parts=tuple(parts))
    return parts[0] if parts else None


def _comparison(text: str, kind: ObjectType) -> Where:
    found = [(text.find(sign), sign, operator) for sign, operator in _OPERATORS if sign in text]
    place, sign, operator = min(found, key=lambda row: (row[0], -len(row[1])), default=(0, "", 0))
    name, value = text[:place].strip(), text[place + len(sign) :].strip()
    if not name or not sign:
        signs = " ".join(sign for sign, _ in _OPERATORS)
        raise _fault("--where", f"expected ATTRIBUTE, one of {signs}, VALUE; found {text!r}")
    return Where(Operator(operator), name, _value(name, value, kind))


def _value(name: str, text: str, kind: ObjectType) -> bool | int | float | str:
    wanted: int | None = None
    if kind.element:
        descriptor = dialect().kinds[kind.element]
        if name not in descriptor.index:
            raise _fault("--where", f"{kind.name} has no attribute {name}")
        wanted = descriptor.fields[descriptor.index[name]].kind
    if wanted in (Kind.STRING, Kind.HOST):
        return text
    if wanted == Kind.BOOL or (wanted is None and text in ("true", "false")):
        return text.lower() in ("true", "1")
    for make in (lambda: int(text, 0), lambda: float(text)):
        try:
            number: int | float = make()
        except ValueError:
            continue
        return float(number) if wanted == Kind.DOUBLE else number
    if wanted is not None:
        raise _fault("--where", f"{name} is a number, {text!r} is none")
    return text


def choice(text: str, kind: ObjectType) -> What | None:
    """
    The choice of the attributes that *text* names, separated by commas; empty: all.

    :raises ConfigError: *kind* lacks one.
    """
    names = [name for name in (part.strip() for part in text.split(",")) if name]
    if kind.element:
        known = dialect().kinds[kind.element].index
        for name in names:
            if name not in known:
                raise _fault("--what", f"{kind.name} has no attribute {name}")
    return What.of(*names) if names else None


class Ended(GridnetError):
    """The command is over; its text, if any, is for people."""

    def __init__(self, status: int = 0, text: str = "") -> None:
        super().__init__(text)
        self.status = status


Work = Callable[[Source, MirrorService, Any], Coroutine[Deferred[Any], Any, int]]


def run(program: str, words: argparse.Namespace, work: Work, **more: Any) -> int:
    """
    Run *work* with a mirror until it is done or a signal comes; leave properly either way.

    :param more: further settings of the mirror.
    :returns: the exit status: what *work* gives, 1 if it could not be done, 2 if the options
        cannot be used, 0 after SIGINT or SIGTERM.
    :raises BrokenPipeError: nobody reads what *work* prints.
    """
    # Imported here: importing it installs it.
    from twisted.internet import reactor

    try:
        source, mirror = make_mirror(words, reactor, **more)
    except ConfigError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    return _Run(program, mirror, words.wait, reactor).run(lambda: work(source, mirror, reactor))


class _Run:
    """One run of a command."""

    def __init__(self, program: str, mirror: MirrorService, wait: float, reactor: Any) -> None:
        self._program = program
        self._mirror = mirror
        self._wait = wait
        self._reactor = reactor
        self._working: Deferred[int] | None = None
        self._giving_up: IDelayedCall | None = None
        self._ended = Ended()  # what a cancelled run ends with
        self._status = 0
        self._unread: BrokenPipeError | None = None

    def run(self, work: Callable[[], Coroutine[Deferred[Any], Any, int]]) -> int:
        core = IReactorCore(self._reactor)

        def begin() -> None:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._interrupted)
            self._working = Deferred.fromCoroutine(work())
            self._mirror.on_state(self._told)
            self._told("parted", "")
            self._working.addBoth(self._done)

        core.callWhenRunning(begin)
        core.run()
        if self._unread is not None:
            raise self._unread
        return self._status

    def _interrupted(self, number: int, frame: object) -> None:
        self._reactor.callFromThread(self._cancel)

    def _cancel(self) -> None:
        if self._working is not None:
            self._working.cancel()

    def _told(self, state: str, reason: str) -> None:
        if state == "registered":
            if self._giving_up is not None:
                self._giving_up.cancel()
                self._giving_up = None
        elif state == "ended":
            self._ended = Ended(0, reason)
            self._cancel()
        elif self._giving_up is None and self._wait > 0:
            self._giving_up = self._reactor.callLater(self._wait, self._give_up)

    def _give_up(self) -> None:
        self._giving_up = None
        reason = self._mirror.client.core.last_error or "no answer"
        self._ended = Ended(1, f"no master for {self._wait:g} s: {reason}")
        self._cancel()

    def _done(self, result: int | Failure) -> None:
        if isinstance(result, Failure):
            if result.check(CancelledError):
                result = Failure(self._ended)
            text = result.getErrorMessage()
            self._status = 1
            if isinstance(result.value, BrokenPipeError):
                self._unread, text = result.value, ""
            elif isinstance(result.value, Ended):
                self._status = result.value.status
            elif not result.check(GridnetError, OSError):
                text = result.getTraceback()
            if text:
                print(f"{self._program}: {text}", file=sys.stderr, flush=True)
        else:
            self._status = result
        if self._giving_up is not None:
            self._giving_up.cancel()
        leaving = self._mirror.stopService() if self._mirror.running else succeed(None)
        leaving.addBoth(lambda _: self._reactor.stop())
