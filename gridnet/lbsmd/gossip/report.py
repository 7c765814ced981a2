"""What the gossip tells people: figures, and why a host counts as down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from gridnet.blake2 import blake2b
from gridnet.errors import RemoteProtocolError
from gridnet.lbsmd.gossip.follower import Follower
from gridnet.lbsmd.gossip.membership import Membership
from gridnet.lbsmd.gossip.publisher import SERVICE_KEY, number_of
from gridnet.lbsmd.gossip.records import HostRecords, mark_of
from gridnet.table.address import canonical_address


def facts(
    membership: Membership, follower: Follower, counts: Mapping[str, int]
) -> Mapping[str, Any]:
    """Figures for the status page."""
    standings = Counter(host.standing.name.lower() for host in membership.hosts.values())
    mine = membership.hosts[membership.me]
    return {
        "address": mine.address[0],
        "port": mine.address[1],
        "hosts": dict(standings),
        "up": sum(host.is_up for host in membership.hosts.values()),
        "fingerprint": f"{membership.fingerprint:016x}",
        "version": membership.own.newest,
        "health": membership.health,
        "packets": dict(counts),
        "values refused": follower.refused,
        "entries left out": follower.left_out,
    }


class ServicesFingerprint:
    """
    What tells whether two hosts hold the same services of all who are up.

    The load of some host is always under way; services, once told, are not.  Only hosts whose
    entries have changed since the last time are looked at.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, int]] = {}

    def of(self, membership: Membership) -> int:
        """64 bits, equal for equal services."""
        combined = 0
        known: dict[str, tuple[int, int]] = {}
        for host in membership.hosts.values():
            if host.is_up:
                records = host.records
                held = self._known.get(host.name)
                if held is None or held[0] != records.fingerprint:
                    held = records.fingerprint, _services_mark(host.name, records)
                known[host.name] = held
                combined ^= held[1]
        self._known = known
        return combined


def _services_mark(name: str, records: HostRecords) -> int:
    combined = 0
    for entry in records:
        if number_of(entry.key, SERVICE_KEY) is not None:
            mark = f"{name} {mark_of(entry)}".encode()
            combined ^= int.from_bytes(blake2b(mark, digest_size=8).digest(), "big")
    return combined


def why_down(
    membership: Membership, question: Mapping[str, Any], now: float, wall: float
) -> Mapping[str, Any]:
    """
    What is held of the host ``host`` of *question*, and on whose word.

    :param now: seconds on the clock of *membership*.
    :param wall: the same moment, seconds since the epoch.
    :raises RemoteProtocolError: the question names no host, or one that is not known.
    """
    asked = question.get("host")
    if not isinstance(asked, str) or not asked:
        raise RemoteProtocolError('expected the address of a host in "host"')
    name = canonical_address(asked) or asked
    host = membership.hosts.get(name)
    if host is None:
        raise RemoteProtocolError(
            f"{name} is not known: it never joined, or has been down for long"
        )
    suspicion = host.suspicion
    return {
        "host": host.name,
        "standing": host.standing.name.lower(),
        "since": wall - (now - host.since),
        "address": host.address[0],
        "port": host.address[1],
        "incarnation": host.incarnation,
        "identity": host.key.hex(),
        "told_by": membership.me,
        "verdict_at": None if suspicion is None else wall - (now - suspicion.ends_at()),
        "accusations": [
            {"accuser": each.accuser, "at": wall - (now - each.at), "reason": each.reason}
            for each in host.evidence
        ],
    }
