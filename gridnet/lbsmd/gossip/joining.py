"""How this host finds the others: seeds, a group of the network, and whom it knew before."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from gridnet.lbsmd.gossip.config import DEFAULT_PORT, GossipConfig
from gridnet.lbsmd.gossip.membership import Membership
from gridnet.lbsmd.gossip.messages import Address
from gridnet.lbsmd.reload import RunInThread
from gridnet.table.address import canonical_address
from gridnet.table.descriptor_words import split_connection_point

#: Seconds between two attempts to join while nobody is known, at the beginning.
_FIRST_SECONDS = 0.5
#: Of the hosts of an earlier life, or known before a sleep, so many are asked at a time.
_SOME = 5
_KEEP_SECONDS = 60.0


class KeptHosts:
    """
    The hosts that were known, in a file: whom to join after a restart, and by which key.

    :param path: of the file; None: nothing is kept.
    :ivar keys: host -> key that it was known by.
    :ivar addresses: where they were.
    """

    _log = Logger()

    def __init__(self, path: Path | None, run_in_thread: RunInThread) -> None:
        self.keys: dict[str, bytes] = {}
        self.addresses: list[Address] = []
        self._path = path
        self._run_in_thread = run_in_thread
        self._text = ""
        self._written = ""
        self._note_at = 0.0
        self._writing = False
        self._read()

    def _read(self) -> None:
        if self._path is None or not self._path.exists():
            return
        try:
            self._written = self._path.read_text(encoding="utf-8")
            hosts = json.loads(self._written)["hosts"]
            for name, address, port, key in hosts:
                host = canonical_address(address)
                if host is None or not 0 < int(port) < 65536:
                    raise ValueError(f"{address!r} is no address")
                self.keys[str(name)] = bytes.fromhex(key)
                self.addresses.append((host, int(port)))
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.keys, self.addresses = {}, []
            self._log.warn(
                "{path}: not used, as it makes no sense: {reason}",
                path=str(self._path),
                reason=str(error),
            )

    def tick(self, now: float, membership: Membership) -> None:
        """Write the hosts of *membership* down if that is due."""
        if now >= self._note_at:
            self._note_at = now + _KEEP_SECONDS
            self.note(membership)
            self.write()

    def note(self, membership: Membership) -> None:
        """What :meth:`write` is to write."""
        hosts = [
            [host.name, host.address[0], host.address[1], host.key.hex()]
            for host in membership.hosts.values()
            if host.name != membership.me and host.is_up
        ]
        if hosts:
            self._text = json.dumps({"hosts": sorted(hosts)}) + "\n"

    def write(self) -> Deferred[None]:
        """Put it on the disk, unless it is there."""
        text, done = self._text, Deferred[None]()
        if self._path is None or not text or text == self._written or self._writing:
            done.callback(None)
            return done
        self._writing = True

        def ended(failure: Failure | None) -> None:
            self._writing = False
            if isinstance(failure, Failure):
                self._log.failure("keeping the hosts that are known", failure)
            else:
                self._written = text

        writing: Deferred[Any] = self._run_in_thread(_replace, self._path, text)
        writing.addBoth(ended)
        return writing


def _replace(path: Path, text: str) -> None:
    beside = path.with_name(path.name + ".new")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    beside.replace(path)


def look_up(points: Sequence[str]) -> Mapping[str, Sequence[Address]]:
    """The addresses behind *points*, ``HOST[:PORT]``; those that are not found are left out."""
    found: dict[str, Sequence[Address]] = {}
    for point in points:
        host, port = split_connection_point(point)
        number = port or DEFAULT_PORT
        address = canonical_address(host)
        if address is not None:
            found[point] = [(address, number)]
            continue
        try:
            answers = socket.getaddrinfo(host, number, type=socket.SOCK_DGRAM)
        except OSError:
            continue
        known = (canonical_address(str(answer[4][0])) for answer in answers)
        found[point] = [(each, number) for each in dict.fromkeys(known) if each is not None]
    return found


class Joining:
    """
    Looks for others: soon and often while there are none, now and then for those that are missing.

    :param joined: gets addresses to compare everything with.
    """

    _log = Logger()

    def __init__(
        self,
        config: GossipConfig,
        membership: Membership,
        kept: KeptHosts,
        run_in_thread: RunInThread,
        joined: Callable[[Sequence[Address]], None],
        random: Random,
    ) -> None:
        self._config = config
        self._membership = membership
        self._kept = kept
        self._run_in_thread = run_in_thread
        self._joined = joined
        self._random = random
        self._due_at = 0.0
        self._wait = _FIRST_SECONDS
        self._looking = False

    def knows_others(self) -> bool:
        """Whether any other host is up."""
        me = self._membership.me
        return any(host.is_up for host in self._membership.hosts.values() if host.name != me)

    def next_time(self) -> float:
        """When :meth:`tick` is due."""
        return self._due_at

    def tick(self, now: float) -> None:
        """Look for others, if that is due."""
        if now < self._due_at:
            return
        if self.knows_others():
            self._wait = self._config.join_interval_seconds
        else:
            self._wait = min(self._wait * 1.5, self._config.join_interval_seconds)
        self._due_at = now + self._wait * (0.9 + 0.2 * self._random.random())
        self._look()

    def rejoin(self) -> None:
        """Compare with some of those who were up before a sleep."""
        me = self._membership.me
        up = [h.address for h in self._membership.hosts.values() if h.is_up and h.name != me]
        self._wait = _FIRST_SECONDS
        self._due_at = 0.0
        if up:
            self._joined(self._random.sample(up, min(_SOME, len(up))))

    def _look(self) -> None:
        alone = not self.knows_others()
        known = {host.address for host in self._membership.hosts.values() if host.is_up}
        if alone and self._kept.addresses:
            addresses = self._kept.addresses
            self._joined(self._random.sample(addresses, min(_SOME, len(addresses))))
        if not self._config.seeds:
            if alone:
                self._joined(())
            return
        if self._looking:
            return
        self._looking = True

        def found(points: Mapping[str, Sequence[Address]]) -> None:
            self._looking = False
            missing = [
                addresses
                for addresses in points.values()
                if addresses and not known.intersection(addresses)
            ]
            if alone:
                self._joined([each for addresses in missing for each in addresses])
            elif missing:
                self._joined(self._random.choice(missing))

        def failed(failure: Failure) -> None:
            self._looking = False
            self._log.failure("looking up the seeds", failure)

        looking: Deferred[Any] = self._run_in_thread(look_up, self._config.seeds)
        looking.addCallback(found).addErrback(failed)
