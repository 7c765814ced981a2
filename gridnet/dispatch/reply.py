"""Octets of reply heads."""

from __future__ import annotations

from email.utils import formatdate
from http import HTTPStatus

from gridnet.dispatch import wire

_REASONS = {status.value: status.phrase.encode("ascii") for status in HTTPStatus}

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class DateLine:
    """The ``Date`` line, made anew once a second."""

    def __init__(self) -> None:
        self._second = -1
        self._line = b""

    def at(self, now: float) -> bytes:
        """The line for *now*, seconds since the epoch."""
        second = int(now)
        if second != self._second:
            self._second = second
            self._line = f"Date: {formatdate(second, usegmt=True)}\r\n".encode("ascii")
        return self._line


def status_line(status: int, reason: bytes = b"") -> bytes:
    """The first line.  We speak HTTP/1.1, whatever the client does (RFC 9110, 6.2)."""
    return b"HTTP/1.1 %d %b\r\n" % (status, reason or _REASONS.get(status, b"-"))


def connection_line(minor: int, keep: bool) -> bytes:
    """
    The ``Connection`` line that an HTTP/1.*minor* client needs, or nothing.

    :param keep: the connection stays open for another request.
    """
    if not keep:
        return b"Connection: close\r\n"
    return b"Connection: keep-alive\r\n" if minor == 0 else b""


def complete(
    status: int,
    lines: bytes,
    body: bytes,
    *,
    minor: int,
    keep: bool,
    date: bytes = b"",
    headless: bool = False,
) -> bytes:
    """
    A whole reply.

    :param lines: header lines, each with its line end.
    :param headless: the request was HEAD: the body is announced, not sent.
    """
    length = b"" if status == 204 else b"Content-Length: %d\r\n" % len(body)
    return b"".join(
        (
            status_line(status),
            date,
            lines,
            length,
            connection_line(minor, keep),
            b"\r\n",
            b"" if headless or status == 204 else body,
        )
    )


def failure(
    status: int,
    text: str,
    *,
    minor: int = 1,
    keep: bool = False,
    lines: bytes = b"",
    final: bool = True,
    headless: bool = False,
) -> bytes:
    """
    A reply that says what went wrong.

    :param final: with ``Dispatcher-Failures``, which ends a released client's look-up; without
        it the client tries again.
    """
    if final:
        lines += wire.failures(text)
    lines += b"Content-Type: text/plain; charset=utf-8\r\n"
    body = text.encode("utf-8") + b"\n"
    return complete(status, lines, body, minor=minor, keep=keep, headless=headless)
