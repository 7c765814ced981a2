"""A free port for a program that is about to be started."""

from __future__ import annotations

import random
import socket
from collections.abc import Sequence

from gridnet.errors import LaunchError

#: Draws from the system's own range before all of it counts as taken.
_DRAWS = 50


class ReservedPort:
    """
    A port that nobody listens at, kept from other services of this host that look for one.

    It cannot be kept from everybody: the program itself must be able to bind it.

    :ivar number: the port.
    """

    def __init__(self, number: int, claim: socket.socket) -> None:
        self.number = number
        self._claim = claim

    def release(self) -> None:
        """Keep it no longer."""
        self._claim.close()


def reserve_port(pool: Sequence[int], chance: random.Random) -> ReservedPort:
    """
    Reserve a port of *pool*; of the system's own range when that is empty.

    :raises LaunchError: none is free.
    """
    order = list(pool) or [0] * _DRAWS
    chance.shuffle(order)
    for wanted in order:
        number = _free(wanted)
        claim = _claim(number) if number else None
        if claim is not None:
            return ReservedPort(number, claim)
    what = f"of {pool[0]}-{pool[-1]} " if pool else ""
    raise LaunchError(f"no port {what}is free")


def _free(port: int) -> int:
    """*port*, or one of the system's choice for 0, if it can be bound; else 0."""
    with socket.socket() as probe:
        # Connections of an earlier program that are only remembered do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
            probe.listen(1)
        except OSError:
            return 0
        number: int = probe.getsockname()[1]
        return number


def _claim(port: int) -> socket.socket | None:
    """A name that only one process of this host can have, and that goes with it."""
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        claim.bind(f"\0gridnet-port-{port}")
    except OSError:
        claim.close()
        return None
    return claim
