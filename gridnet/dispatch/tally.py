"""What a process of the dispatcher has done so far: numbers that add up over processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from attrs import field, frozen


@frozen
class Tally:
    """
    Totals only grow; the rest is how things are now.

    A worker that ends leaves its totals behind (:meth:`totals`), so that sums never shrink.
    """

    replies: Counter[tuple[str, int]] = field(factory=Counter)  #: (kind, status) -> replies
    refused: Counter[str] = field(factory=Counter)  #: reason -> connections or requests
    accepted: int = 0  #: connections so far
    octets_in: int = 0  #: of relayed request bodies
    octets_out: int = 0  #: of relayed reply bodies
    open: int = 0  #: connections now
    busy: int = 0  #: requests under way now
    relays: int = 0  #: of them, relays
    idle_links: int = 0  #: connections to servers that wait for work
    held_octets: int = 0  #: of requests that are not whole or wait
    cached_heads: int = 0

    def totals(self) -> Tally:
        """What stays when the process has gone."""
        return Tally(self.replies, self.refused, self.accepted, self.octets_in, self.octets_out)

    def as_json(self) -> Mapping[str, Any]:
        """A form that JSON can carry; see :meth:`from_json`."""
        return {
            "replies": [[kind, status, n] for (kind, status), n in sorted(self.replies.items())],
            "refused": dict(sorted(self.refused.items())),
            **{name: getattr(self, name) for name in _NUMBERS},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Tally:
        """The tally that *value* stands for."""
        return cls(
            Counter({(kind, status): n for kind, status, n in value["replies"]}),
            Counter(value["refused"]),
            *(int(value[name]) for name in _NUMBERS),
        )


_NUMBERS = (
    "accepted",
    "octets_in",
    "octets_out",
    "open",
    "busy",
    "relays",
    "idle_links",
    "held_octets",
    "cached_heads",
)


def add(tallies: Iterable[Tally]) -> Tally:
    """The sum of *tallies*."""
    replies: Counter[tuple[str, int]] = Counter()
    refused: Counter[str] = Counter()
    numbers = [0] * len(_NUMBERS)
    for tally in tallies:
        replies.update(tally.replies)
        refused.update(tally.refused)
        numbers = [n + getattr(tally, name) for n, name in zip(numbers, _NUMBERS, strict=True)]
    return Tally(replies, refused, *numbers)
