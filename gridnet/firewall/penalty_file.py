"""The penalty box and its file."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from twisted.logger import Logger

from gridnet.firewall.config import FirewallConfig
from gridnet.firewall.penalty import FILE_HEADING, Penalty, PenaltyBox, Reason
from gridnet.firewall.tickets import Offences, block_of

#: How often the file is looked at for what other processes have written, seconds.
LOOK_SECONDS = 1.0


class Penalties:
    """
    Who is refused, kept in a file that other processes of the host read and write too.

    :param path: the file; made with the first penalty.
    """

    _log = Logger()

    def __init__(self, config: FirewallConfig, path: Path) -> None:
        self._path = path
        self._max_octets = config.max_penalty_file_octets
        self.box = PenaltyBox(
            config.penalty_seconds, config.penalty_max_seconds, config.max_penalties
        )
        self._guesses = Offences(
            config.guess_limit, config.guess_window_seconds, config.max_penalties
        )
        self._unused = Offences(
            config.unused_limit, config.unused_window_seconds, config.max_penalties
        )
        self._seen: tuple[int, int, int] | None = None
        self._looked_at = 0.0

    def refused(self, address: str, now: float) -> Penalty | None:
        """The penalty that the client at *address* has to sit out, if any."""
        if now - self._looked_at >= LOOK_SECONDS or now < self._looked_at:
            self._looked_at = now
            self.read()
        if not len(self.box):
            return None
        return self.box.refused(block_of(address), now)

    def note_guess(self, address: str, now: float) -> None:
        """The client at *address* presented a ticket that is none."""
        block = block_of(address)
        self._note(self._guesses.note(block, now), block, now, Reason.GUESS, "")

    def note_unused(self, address: str, now: float, service: str) -> None:
        """The client at *address* was given a ticket for *service* and did not use it."""
        block = block_of(address)
        self._note(self._unused.note(block, now), block, now, Reason.UNUSED, service)

    def _note(self, count: int, block: str, now: float, reason: Reason, service: str) -> None:
        if count:
            self._write(self.box.punish(block, now, reason, count, service))

    def order(self, address: str, now: float) -> None:
        """An operator wants the client at *address* refused."""
        self._write(self.box.punish(block_of(address), now, Reason.ORDER, 1))

    def pardon(self, address: str, now: float) -> bool:
        """An operator wants it let in again; False: it was not refused."""
        penalty = self.box.pardon(block_of(address), now)
        if penalty is not None:
            self._write(penalty)
        return penalty is not None

    def _write(self, penalty: Penalty) -> None:
        self._log.warn(
            "{client}: {reason}, {count} times; refused for {seconds} s",
            client=penalty.client,
            reason=penalty.reason.value,
            count=penalty.count,
            seconds=round(penalty.until - penalty.since),
        )
        try:
            self._append(penalty)
        except OSError:
            self._log.failure("penalty of {client} not written", client=penalty.client)

    def _append(self, penalty: Penalty) -> None:
        with open(self._path, "a+", encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            size = os.fstat(file.fileno()).st_size
            if size > self._max_octets:
                # All that still matters, in place: readers see a file that shrank.
                file.seek(0)
                self.box.load(file)
                self.box.forget(penalty.since)
                self.box.add(penalty)
                file.truncate(0)
                file.write(self.box.text())
            else:
                file.write(penalty.line() if size else FILE_HEADING + penalty.line())
            file.flush()
            self._seen = _identity(os.fstat(file.fileno()))

    def read(self) -> None:
        """Take over what other processes have written, if there is anything."""
        try:
            with open(self._path, encoding="ascii", errors="replace") as file:
                seen = _identity(os.fstat(file.fileno()))
                if seen == self._seen:
                    return
                fcntl.flock(file, fcntl.LOCK_SH)
                faulty = self.box.load(_lines(file, 2 * self._max_octets))
                self._seen = _identity(os.fstat(file.fileno()))
        except FileNotFoundError:
            return
        except OSError as error:
            self._log.error("{path} cannot be read, {reason}", path=self._path, reason=str(error))
            return
        if faulty:
            self._log.warn("{path}: {count} lines passed over", path=self._path, count=faulty)

    def forget(self, now: float) -> None:
        """Drop what no longer matters."""
        self.box.forget(now)

    def current(self, now: float) -> Sequence[Penalty]:
        """Those in force."""
        return [penalty for penalty in self.box if now < penalty.until]


def _identity(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_ino, found.st_size, found.st_mtime_ns


def _lines(file: Iterable[str], octets: int) -> Iterable[str]:
    for line in file:
        octets -= len(line)
        if octets < 0:
            return
        yield line
