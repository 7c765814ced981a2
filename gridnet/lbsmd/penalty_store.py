"""Penalties and base rates on disk, for those that are to outlast the daemon."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from gridnet.durable import write_durably
from gridnet.lbsmd.dependencies import Key
from gridnet.lbsmd.penalty import Penalty
from gridnet.table.numbers import MAX_RATE

#: Octets of a file that is read.
MAX_OCTETS = 64 * 1024 * 1024
_VERSION = 1
_NO_PENALTY = Penalty()


@frozen
class Kept:
    """What people have asked of one server, and who it was."""

    penalty: Penalty = _NO_PENALTY
    rate: float | None = None  #: base rate that was set; None: as configured
    reserved: bool = False  #: kept aside
    penalized_by: str = ""
    penalty_reason: str = ""
    rerated_by: str = ""
    rerate_reason: str = ""

    def is_over(self, now: float) -> bool:
        """Whether nothing is left of it."""
        return self.rate is None and not self.reserved and now >= self.penalty.ends_at()


def encode(kept: Mapping[Key, Kept]) -> bytes:
    """*kept* as a JSON text."""
    records = [
        {
            "server": [key[0], list(key[1])],  # type: ignore[call-overload]
            "percent": each.penalty.percent,
            "hold_seconds": each.penalty.hold_seconds,
            "set_at": each.penalty.set_at,
            "ends_at": each.penalty.ends_at(),
            "penalized_by": each.penalized_by,
            "penalty_reason": each.penalty_reason,
            "rate": each.rate,
            "reserved": each.reserved,
            "rerated_by": each.rerated_by,
            "rerate_reason": each.rerate_reason,
        }
        for key, each in kept.items()
    ]
    return json.dumps({"version": _VERSION, "kept": records}, indent=1).encode("ascii")


def decode(octets: bytes) -> Mapping[Key, Kept]:
    """
    Read what :func:`encode` wrote.

    :raises ValueError: it is something else.
    """
    try:
        return _kept(json.loads(octets.decode("ascii")))
    except (KeyError, TypeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


def _kept(document: Any) -> Mapping[Key, Kept]:
    if not isinstance(document, dict) or document.get("version") != _VERSION:
        raise ValueError(f"expected an object of version {_VERSION}")
    found: dict[Key, Kept] = {}
    for record in document["kept"]:
        name, identity = record["server"]
        rate = record["rate"]
        penalty = Penalty(
            _number(record["percent"], 100.0),
            _number(record["hold_seconds"]),
            _number(record["set_at"]),
        )
        found[(str(name), tuple(identity))] = Kept(
            penalty,
            None if rate is None else _number(rate, MAX_RATE, -MAX_RATE),
            bool(record["reserved"]),
            *(
                str(record[name])
                for name in ("penalized_by", "penalty_reason", "rerated_by", "rerate_reason")
            ),
        )
    return found


def _number(value: Any, most: float = 1e12, least: float = 0.0) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ValueError(f"found {value!r}; expected a number from {least:g} to {most:g}")
    return float(value)


class PenaltyStore:
    """
    One file, replaced as a whole at each change.

    :ivar failure: why it could not be written; empty when it is up to date.
    :param run_in_thread: calls a function that blocks: ``Deferred`` of its result.
    """

    _log = Logger()

    def __init__(self, path: Path, run_in_thread: Callable[..., Deferred[Any]]) -> None:
        self.path = path
        self.failure = ""
        self._run_in_thread = run_in_thread
        self._writing = False
        self._next: bytes | None = None
        self._waiting: list[Deferred[None]] = []

    def load(self) -> Mapping[Key, Kept]:
        """What was kept; nothing when there is no file, or one that cannot be read (logged)."""
        try:
            with open(self.path, "rb") as file:
                octets = file.read(MAX_OCTETS + 1)
            if len(octets) > MAX_OCTETS:
                raise ValueError(f"more than {MAX_OCTETS} octets")
            return decode(octets)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            self._log.error(
                "the penalties in {file} are lost: {reason}",
                file=str(self.path),
                reason=f"{type(error).__name__}: {error}",
            )
            return {}

    def save(self, kept: Mapping[Key, Kept]) -> Deferred[None]:
        """Write *kept*; fires once it, or something newer, is on the disk; fails with OSError."""
        self._next = encode(kept)
        done: Deferred[None] = Deferred()
        self._waiting.append(done)
        if not self._writing:
            self._write()
        return done

    def _write(self) -> None:
        octets, self._next = self._next, None
        waiting, self._waiting = self._waiting, []
        self._writing = True
        writing = self._run_in_thread(write_durably, self.path, octets)
        writing.addBoth(self._written, waiting)

    def _written(self, result: object, waiting: Sequence[Deferred[None]]) -> None:
        self._writing = False
        failure = result if isinstance(result, Failure) else None
        if failure is not None:
            self.failure = failure.getErrorMessage()
            self._log.error(
                "penalties cannot be kept in {file}: {reason}",
                file=str(self.path),
                reason=self.failure,
            )
        else:
            self.failure = ""
        if self._next is not None:
            self._write()
        self._tell(waiting, failure)

    @staticmethod
    def _tell(waiting: Iterable[Deferred[None]], failure: Failure | None) -> None:
        for each in waiting:
            if failure is None:
                each.callback(None)
            else:
                each.errback(failure)

    def check(self) -> str:
        """For the health page."""
        return f"penalties cannot be kept: {self.failure}" if self.failure else ""
