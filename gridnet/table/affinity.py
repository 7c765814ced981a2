"""
Argument affinity: which hosts want, bear or refuse a request by one of its arguments.

A host publishes lines ``argument=tokens`` in its environment; a request carries an argument that
may be missing, empty or set (docs/protocols/load-balancing.rst, Argument affinity).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple, TypeVar

from attrs import frozen

T = TypeVar("T")

_TOKEN = re.compile(r"[^ \t!]+")

ANY_OTHER = "*"
MISSING = "-"
EMPTY = '""'


class Fit(IntEnum):
    """How well a host suits a request; lower is better."""

    BEST = 0
    GOOD = 1
    FAIR = 2
    POOR = 3
    MISMATCH = 4  #: used only when there is nothing else
    BAD = 5  #: never used


@frozen
class Affinity:
    """The argument that a request is routed by."""

    argument: str  #: name, compares without case
    value: str | None = None  #: compares without case; None: the request lacks the argument


class Match(NamedTuple):
    """A fit, and what of the host's line made it."""

    fit: Fit
    #: the value as the host writes it, ``*`` for any other, ``-`` for the missing argument,
    #: empty for the empty value and for a host that bears what it does not name; None: nothing
    value: str | None


def match(affinity: Affinity, environment: Sequence[tuple[str, str]]) -> Match:
    """How well a host with the published lines *environment* suits *affinity*, and by what."""
    name = affinity.argument.lower()
    lines = [value for key, value in environment if key.lower() == name]
    if not lines:
        return Match(Fit.GOOD if affinity.value is None else Fit.FAIR, None)
    tokens: list[str] = []
    only = False
    for line in lines:
        only = only or "!" in line
        tokens += _TOKEN.findall(line) or [EMPTY]  # a line that names nothing means the empty value
    if affinity.value is None:
        return _match_missing(tokens, only)
    return _match_value(affinity.value.lower(), tokens, only)


def fit(affinity: Affinity, environment: Sequence[tuple[str, str]]) -> Fit:
    """How well a host with the published lines *environment* suits *affinity*."""
    return match(affinity, environment).fit


def _match_value(value: str, tokens: Sequence[str], only: bool) -> Match:
    """The first token that names *value* decides; without one, what is said of others."""
    others = missing = False
    for token in tokens:
        word = token.lower()
        if word == MISSING:
            missing = True
        elif word == ANY_OTHER:
            others = True
        elif word.startswith("~"):
            excluded = word[1:]
            if excluded == ANY_OTHER:
                continue
            if excluded != MISSING and ("" if excluded == EMPTY else excluded) == value:
                return Match(Fit.BAD, None)
            others = True
        elif word == EMPTY:
            if value == "":
                return Match(Fit.BEST, "")
        elif word == value:
            return Match(Fit.BEST, token)
    if others:
        return Match(Fit.GOOD, ANY_OTHER)
    if only:
        return Match(Fit.BAD, None)
    return Match(Fit.POOR, "") if missing else Match(Fit.MISMATCH, None)


def _match_missing(tokens: Sequence[str], only: bool) -> Match:
    """The first token that speaks of the missing argument decides."""
    others = False
    for token in tokens:
        if token == MISSING:
            return Match(Fit.BEST, MISSING)
        if token == "~-":
            return Match(Fit.BAD, None)
        if token == ANY_OTHER or (token.startswith("~") and token != "~*"):
            others = True
    if only:
        return Match(Fit.BAD, None)
    return Match(Fit.FAIR, ANY_OTHER) if others else Match(Fit.POOR, None)


def best_class(fits: Sequence[tuple[T, Fit]]) -> list[T]:
    """
    Those of the best class present.

    Give every candidate, skipped ones too: when all of the best class have been handed out, the
    search ends rather than falling to the next class.  Standby servers that a regular one keeps
    out are left out before (:func:`gridnet.table.selection.usable_band`).
    """
    allowed = [(item, each) for item, each in fits if each is not Fit.BAD]
    if not allowed:
        return []
    best = min(each for _, each in allowed)
    return [item for item, each in allowed if each is best]
