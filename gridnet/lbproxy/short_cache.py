"""Remembering results, but not those of texts so long that remembering them costs too much."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import TypeVar

S = TypeVar("S", str, bytes)
T = TypeVar("T")

#: Texts above this come from somebody who is no client of ours.
MAX_REMEMBERED = 1024


def cached_if_short(entries: int) -> Callable[[Callable[[S], T]], Callable[[S], T]]:
    """
    A decorator: remember the newest *entries* results, together at most so many times
    :data:`MAX_REMEMBERED` characters or octets of arguments.
    """

    def decorate(function: Callable[[S], T]) -> Callable[[S], T]:
        remembered = lru_cache(maxsize=entries)(function)

        @wraps(function)
        def call(text: S) -> T:
            return remembered(text) if len(text) <= MAX_REMEMBERED else function(text)

        return call

    return decorate
