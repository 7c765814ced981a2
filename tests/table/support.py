"""What the table's tests share: their vectors, and short ways to make entries."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gridnet.table.model import Entry
from gridnet.table.server_info import ServerInfo, ServerType

VECTORS = Path(__file__).parent.parent / "vectors"


def rows(name: str) -> Sequence[Mapping[str, Any]]:
    """The rows of the vector file *name*, a path under tests/vectors."""
    found: Sequence[Mapping[str, Any]] = json.loads((VECTORS / name).read_text(encoding="utf-8"))[
        "rows"
    ]
    return found


def server(host: str = "10.0.0.1", port: int = 80, **fields: Any) -> ServerInfo:
    """A STANDALONE server, unless *fields* say otherwise."""
    fields.setdefault("type", ServerType.STANDALONE)
    fields.setdefault("rate", 1000.0)
    return ServerInfo(host=host, port=port, **fields)


def entry(service: str = "bounce", info: ServerInfo | None = None, **fields: Any) -> Entry:
    """An entry of *service*, published by 10.0.0.1 unless *fields* say otherwise."""
    fields.setdefault("owner", "10.0.0.1")
    return Entry(service, info or server(), **fields)
