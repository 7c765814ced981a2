"""Reads tests/vectors/lbproxy and makes event lines and events from short descriptions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from gridnet.lbproxy import seqcode
from gridnet.lbproxy.event_types import source_number
from gridnet.lbproxy.events import Event, parse

VECTORS = Path(__file__).resolve().parent.parent / "vectors" / "lbproxy"
JOB_ID = "https://lb.example.org:9000/JobOfTheVectors0000000"
USER = "/O=Grid/CN=jan"
_PLACES = {"UI": 1, "NS": 2, "WM": 3, "BH": 4, "JSS": 5, "LM": 6, "LRMS": 7, "APP": 8, "LBS": 9}


def load(name: str) -> Any:
    """The JSON vector file *name*."""
    return json.loads((VECTORS / f"{name}.json").read_text())


def capture(name: str) -> bytes:
    """The octets of one direction of a recorded connection."""
    return (VECTORS / name).read_bytes()


@cache
def code(short: str) -> str:
    """``"UI2 NS1"`` as a canonical sequence code; what is no such form comes back as it is."""
    full = seqcode.ZERO
    for word in short.split():
        name = word.rstrip("0123456789")
        if name not in _PLACES or name == word:
            return short
        full = seqcode.with_component(full, _PLACES[name], int(word[len(name) :]))
    return full


def line(
    event: str,
    fields: Mapping[str, str] | None = None,
    *,
    source: str = "UserInterface",
    seqcode: str = "UI1",
    job_id: str = JOB_ID,
    user: str = USER,
    host: str = "here.example.org",
    instance: str = "i1",
    date: str = "20261122012209.050992",
    priority: int = 8,
    level: str = "SYSTEM",
) -> bytes:
    """An event line, written apart from the code under test."""

    def quoted(text: str) -> str:
        return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    words = [
        f'DATE={date} HOST="{quoted(host)}" PROG=edg-wms LVL={level} DG.PRIORITY={priority}',
        f'DG.SOURCE="{source}" DG.SRC_INSTANCE="{quoted(instance)}" DG.EVNT="{event}"',
        f'DG.JOBID="{quoted(job_id)}" DG.SEQCODE="{quoted(code(seqcode))}"',
        f'DG.USER="{quoted(user)}"',
    ]
    for name, value in (fields or {}).items():
        words.append(f'DG.{event.upper()}.{name}="{quoted(value)}"')
    return (" ".join(words) + " \n").encode("latin-1")


def event(name: str, fields: Mapping[str, str] | None = None, **common: Any) -> Event:
    """The same as an :class:`Event`."""
    return parse(line(name, fields, **common))


def number(source: str) -> int:
    """The number of a source that exists."""
    found = source_number(source)
    assert found, source
    return found
