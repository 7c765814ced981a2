"""What programs write to standard error, cut into lines, and not too much of it."""

from __future__ import annotations

from collections.abc import Sequence

MAX_LINE_OCTETS = 4096


class Complaints:
    """
    Cuts octets into lines of text.

    :param octets_per_second: no more is passed on; the rest is counted.
    """

    def __init__(self, octets_per_second: int, now: float) -> None:
        self._rate = octets_per_second
        self._second = now
        self._room = octets_per_second
        self._held = b""
        self._dropped = 0

    def receive(self, data: bytes, now: float) -> Sequence[str]:
        """Take *data*; give the lines that are whole."""
        lines = []
        if now - self._second >= 1.0:
            self._second = now
            self._room = self._rate
            if self._dropped:
                lines.append(f"({self._dropped} octets left out)")
                self._dropped = 0
        if len(data) > self._room:
            self._dropped += len(data) - self._room
            data = data[: self._room]
        self._room -= len(data)
        self._held += data
        *whole, self._held = self._held.split(b"\n")
        lines += [_text(line) for line in whole]
        while len(self._held) > MAX_LINE_OCTETS:
            lines.append(_text(self._held[:MAX_LINE_OCTETS]))
            self._held = self._held[MAX_LINE_OCTETS:]
        return lines

    def end(self) -> Sequence[str]:
        """Nothing more comes; give what is left."""
        lines = [_text(self._held)] if self._held else []
        self._held = b""
        if self._dropped:
            lines.append(f"({self._dropped} octets left out)")
            self._dropped = 0
        return lines


def _text(line: bytes) -> str:
    text = line.rstrip(b"\r").decode("utf-8", "replace")
    return "".join(c if c.isprintable() or c == "\t" else "?" for c in text)
