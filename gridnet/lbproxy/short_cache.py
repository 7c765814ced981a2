"""Remembering results, but not those of texts so long that remembering them costs too much."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

S = TypeVar("S", str, bytes)
T = TypeVar("T")

#: Texts above this come from somebody who is no client of ours.
MAX_REMEMBERED = 1024


class _Results(dict[S, T]):
    """
    Results by argument, made when they are first asked for; for any thread.

    Looking one up is the dictionary's own work, a third of what a call of a Python function and
    ``lru_cache`` take.
    """

    def __init__(self, function: Callable[[S], T], entries: int) -> None:
        super().__init__()
        self._function: Callable[[S], T] = function
        self._entries = entries

    def __missing__(self, text: S) -> T:
        result = self._function(text)
        if len(text) <= MAX_REMEMBERED:
            if len(self) >= self._entries:
                # One step, so that no other thread comes between; what is still in use is soon
                # there again.
                self.clear()
            self[text] = result
        return result


def cached_if_short(entries: int) -> Callable[[Callable[[S], T]], Callable[[S], T]]:
    """
    A decorator: remember up to *entries* results, together at most so many times
    :data:`MAX_REMEMBERED` characters or octets of arguments.
    """

    def decorate(function: Callable[[S], T]) -> Callable[[S], T]:
        return _Results(function, entries).__getitem__

    return decorate
