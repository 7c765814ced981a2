"""What a program says of its capacity (docs/howto/batch-service.rst, Capacity)."""

from __future__ import annotations

import json
from math import isfinite

from attrs import frozen

from gridnet.errors import RemoteProtocolError

MAX_OCTETS = 512


@frozen
class Capacity:
    """So many connections or jobs at once."""

    total: float
    free: float  #: 0: take no more

    @property
    def availability(self) -> float:
        """0 to 1."""
        return self.free / self.total


def parse_capacity(data: bytes) -> Capacity:
    """
    Read one datagram: a JSON object with two of ``total``, ``used`` and ``free``.

    :raises RemoteProtocolError: it is none, or its numbers make no sense.
    """
    if len(data) > MAX_OCTETS:
        raise RemoteProtocolError(f"capacity: more than {MAX_OCTETS} octets")
    try:
        said = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        raise RemoteProtocolError("capacity: expected a JSON object") from None
    if not isinstance(said, dict):
        raise RemoteProtocolError("capacity: expected a JSON object")
    numbers = {}
    for name in ("total", "used", "free"):
        value = said.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise RemoteProtocolError(f'capacity: expected a number in "{name}"')
        if not 0 <= value <= 1e9 or not isfinite(value):
            raise RemoteProtocolError(f'capacity: expected 0 to 1000000000 in "{name}"')
        numbers[name] = float(value)
    if len(numbers) < 2:
        raise RemoteProtocolError('capacity: expected two of "total", "used" and "free"')
    total = numbers.get("total", numbers.get("used", 0.0) + numbers.get("free", 0.0))
    free = numbers.get("free", total - numbers.get("used", 0.0))
    if total <= 0 or not 0 <= free <= total:
        raise RemoteProtocolError("capacity: expected a total above 0, of which 0 to all is free")
    return Capacity(total, free)
