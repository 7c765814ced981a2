"""
What a server tells of the capacity behind its port: datagrams of text.

See docs/protocols/port-capacity.rst.  Nothing here needs more than the standard library, so a
server may copy this file.
"""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

#: Octets of a post, and of the answer to one.
MAX_POST_OCTETS = 256
_NUMBER = r"([0-9]{1,15}(?:\.[0-9]{1,6})?)"
_POST = re.compile(rf"PORT ([0-9]{{1,5}}) {_NUMBER} {_NUMBER} {_NUMBER}\n?")
_DONE = "OK"
_REFUSED = "ERROR"


class PostError(Exception):
    """A post does not follow the grammar, is refused, or reaches nobody."""


@dataclass(frozen=True)
class Post:
    """The capacity behind a port, in any unit."""

    port: int  #: 1..65535
    total: float  #: more than 0
    used: float  #: 0..total
    free: float  #: 0..total

    @property
    def availability(self) -> float:
        """The part of it that is free, 0..1, in steps of half a percent."""
        steps = round(self.free / self.total * 200)
        # What is nearly full is not full, nor is what is nearly free free.
        if not steps and self.free:
            steps = 1
        return steps / 200


def parse_post(octets: bytes) -> Post:
    """
    Read a datagram.

    :raises PostError: with what was found and expected.
    """
    try:
        text = octets.decode("ascii")
    except UnicodeDecodeError:
        raise PostError("found octets that are no ASCII") from None
    match = _POST.fullmatch(text)
    if match is None:
        raise PostError(f"found {text[:80]!r}; expected PORT number total used free")
    return check_post(Post(int(match[1]), *(float(match[number]) for number in (2, 3, 4))))


def check_post(post: Post) -> Post:
    """
    *post* itself.

    :raises PostError: a figure is out of its bounds.
    """
    if not 0 < post.port < 65536:
        raise PostError(f"found port {post.port}; expected 1 to 65535")
    if not 0 < post.total < 1e15:
        raise PostError(f"found total {post.total:g}; expected more than 0, less than 10^15")
    for name, value in (("used", post.used), ("free", post.free)):
        if not 0 <= value <= post.total:
            raise PostError(f"found {name} {value:g}; expected 0 to the total, {post.total:g}")
    return post


def format_post(post: Post) -> bytes:
    """The datagram that says *post*."""
    figures = " ".join(
        f"{value:.6f}".rstrip("0").rstrip(".") for value in (post.total, post.used, post.free)
    )
    return f"PORT {post.port} {figures}\n".encode("ascii")


def format_answer(refusal: str) -> bytes:
    """
    What the daemon answers to whoever can be answered.

    :param refusal: empty: the post counts.
    """
    text = f"{_REFUSED} {refusal}" if refusal else _DONE
    return text.encode("utf-8", "replace")[:MAX_POST_OCTETS]


class PortClient:
    """
    Posts the capacity of ports to the daemon of this host; for servers to embed.

    Post again whenever the figures change, and at least every few seconds: what is not renewed
    counts no longer.  A context manager; not for several threads at once.

    :param path: the daemon's socket (``ports_socket`` of ``[lbsmd]``).
    :param seconds: to wait for the daemon's answer; 0: do not ask for one, never block.
    """

    def __init__(self, path: Path | str, seconds: float = 1.0) -> None:
        self._path = os.fspath(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        if seconds:
            # An empty address makes the kernel choose one, where the answer goes.
            self._socket.bind("")
            self._socket.settimeout(seconds)
        else:
            self._socket.setblocking(False)
        self._answered = bool(seconds)

    def post(self, port: int, total: float, used: float, free: float) -> None:
        """
        Say how much capacity there is behind *port*.

        :param total: in any unit; *used* and *free* in the same.  They need not add up.
        :raises PostError: the figures make no sense, there is no daemon, or it refuses.
        """
        datagram = format_post(check_post(Post(port, total, used, free)))
        try:
            self._socket.sendto(datagram, self._path)
            if self._answered:
                answer = self._socket.recv(MAX_POST_OCTETS).decode("utf-8", "replace")
                if answer != _DONE:
                    raise PostError(answer.removeprefix(f"{_REFUSED} "))
        except OSError as error:
            reason = error.strerror or str(error)
            raise PostError(f"no daemon answers at {self._path}: {reason}") from None

    def close(self) -> None:
        """Close the socket; what was posted counts until it is too old."""
        self._socket.close()

    def __enter__(self) -> PortClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
