"""The recorded messages of a real 8.1.9 qmaster and its clients."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from attrs import frozen

_DIRECTORY = Path(__file__).resolve().parent.parent / "vectors" / "mirror"


@frozen
class Vector:
    """One message as it was on the wire, and what it means."""

    name: str
    octets: bytes
    meaning: Any
    note: str


@cache
def vectors() -> dict[str, Vector]:
    """All vectors by name."""
    rows = json.loads((_DIRECTORY / "vectors.json").read_text("utf-8"))
    return {
        row["name"]: Vector(row["name"], bytes.fromhex(row["hex"]), row["meaning"], row["note"])
        for row in rows
    }
