"""
Argument affinity: which hosts want, bear or refuse a request by one of its arguments.

A host publishes lines ``argument=tokens`` in its environment; a request carries an argument that
may be missing, empty or set (docs/protocols/load-balancing.rst, Argument affinity).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import IntEnum
from typing import TypeVar

from attrs import frozen

T = TypeVar("T")

_SEPARATORS = re.compile(r"[ \t]+")


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
    value: str | None = None  #: None: the request lacks the argument


def fit(affinity: Affinity, environment: Sequence[tuple[str, str]]) -> Fit:
    """How well a host with the published lines *environment* suits *affinity*."""
    name = affinity.argument.lower()
    lines = [value for key, value in environment if key.lower() == name]
    tokens: list[str] = []
    only = False
    for line in lines:
        only = only or "!" in line
        tokens += [token for token in _SEPARATORS.split(line.replace("!", " ").strip()) if token]
    if affinity.value is None:
        return _fit_missing(tokens, only, bool(lines))
    return _fit_value(affinity.value.lower(), tokens, only, bool(lines))


def _fit_value(value: str, tokens: Sequence[str], only: bool, defined: bool) -> Fit:
    others = missing = False
    for token in tokens:
        word = token.lower()
        if word == "-":
            missing = True
        elif word == "*":
            others = True
        elif word.startswith("~"):
            excluded = "" if word in ("~", '~""') else word[1:]
            if excluded == "*":
                continue
            if excluded == "-":
                others = True
            elif excluded == value:
                return Fit.BAD
            else:
                others = True
        elif ("" if word == '""' else word) == value:
            return Fit.BEST
    if others:
        return Fit.GOOD
    if only:
        return Fit.BAD
    if not defined:
        return Fit.FAIR
    return Fit.POOR if missing else Fit.MISMATCH


def _fit_missing(tokens: Sequence[str], only: bool, defined: bool) -> Fit:
    others = False
    for token in tokens:
        if token == "-":
            return Fit.BEST
        if token == "~-":
            return Fit.BAD
        if token == "*" or (token.startswith("~") and token != "~*"):
            others = True
    if not defined:
        return Fit.GOOD
    if only:
        return Fit.BAD
    return Fit.FAIR if others else Fit.POOR


def best_class(fits: Sequence[tuple[T, Fit]]) -> list[T]:
    """
    Those of the best class present.

    Give every candidate, skipped ones too: when all of the best class have been handed out, the
    search ends rather than falling to the next class.
    """
    allowed = [(item, each) for item, each in fits if each is not Fit.BAD]
    if not allowed:
        return []
    best = min(each for _, each in allowed)
    return [item for item, each in allowed if each is best]
