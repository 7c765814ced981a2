"""
How a client asks for the event stream, and what it makes of the answer.

Source: docs/protocols/lbproxy.rst, "Event stream".
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlencode

from attrs import frozen

from gridnet.lbproxy import stream
from gridnet.lbproxy.results import BAD_ANSWER, LbError


@frozen
class StreamEvent:
    """One event of the stream."""

    position: int
    fields: Mapping[str, Any]  #: as documented for the stream

    @property
    def job_id(self) -> str:
        """Of which job."""
        return str(self.fields["job"])

    @property
    def event(self) -> str:
        """Name of its type."""
        return str(self.fields["event"])

    @property
    def state(self) -> str:
        """State of the job after it."""
        return str(self.fields["state"])


def stream_target(
    after: int | None,
    consumer: str,
    wait: float | None,
    jobs: Iterable[str],
    owners: Iterable[str],
    events: Iterable[str],
    states: Iterable[str],
) -> str:
    """Path and query string of a request for the stream."""
    pairs: list[tuple[str, Any]] = []
    if after is not None:
        pairs.append(("after", after))
    if consumer:
        pairs.append(("consumer", consumer))
    if wait is not None:
        pairs.append(("wait", wait))
    for name, values in (("job", jobs), ("owner", owners), ("type", events), ("state", states)):
        pairs += [(name, value) for value in values]
    return f"{stream.PATH}?{urlencode(pairs)}" if pairs else stream.PATH


@frozen
class StreamPage:
    """What one poll found."""

    events: tuple[StreamEvent, ...]
    reached: int  #: the position to give next time
    trimmed: int = 0  #: events up to there may be missing, as their jobs left long ago; 0: none


def parse_poll(status: int, body: bytes) -> StreamPage:
    """
    The answer to a long poll.

    :raises LbError: it is none.
    """
    try:
        answer = json.loads(body)
        if status != 200:
            number = errno.EAGAIN if status == 503 else errno.EINVAL
            raise LbError(number, str(answer.get("error", status)))
        found = tuple(StreamEvent(one["position"], one) for one in answer["events"])
        return StreamPage(found, int(answer["next"]), int(answer["trimmed"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LbError(BAD_ANSWER, f"unreadable answer: {error}") from None


def check_cursor(status: int, body: bytes) -> None:
    """
    The answer to a request that moves a cursor.

    :raises LbError: it was not moved.
    """
    if status != 200:
        parse_poll(status, body)


def cursor_target(consumer: str, position: int) -> str:
    """Path and query string of the request that moves the cursor of *consumer*."""
    return f"{stream.CURSOR_PATH}?{urlencode({'consumer': consumer, 'position': position})}"
