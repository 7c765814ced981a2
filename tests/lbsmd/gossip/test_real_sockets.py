"""Daemons on real sockets: both families, and groups of the network instead of seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from gridnet.lbsmd.gossip.keys import new_key_line, write_private
from tests.lbsmd.gossip.hosts import HostDaemon, start_host
from tests.ports import free_block

REACTOR: Any = reactor
ADDRESSES = ("127.0.0.1", "127.0.0.2", "127.0.0.3")


class RealSocketTests(TestCase):
    """Three hosts in this process."""

    timeout = 180

    def setUp(self) -> None:
        self.hosts: list[HostDaemon] = []

    def tearDown(self) -> Deferred[Any]:  # type: ignore[override]  # trial waits
        return gatherResults([maybeDeferred(host.daemon.stopService) for host in self.hosts])

    def start(self, base: int, **keys: Any) -> None:
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        if "discover" in keys:
            write_private(directory / "key", new_key_line())
            keys["key_file"] = str(directory / "key")
        for number, address in enumerate(ADDRESSES):
            gossip = {"interface": "127.0.0.1", "port": base + number, "seeds": (), **keys}
            text = f"A [0] STANDALONE :{number + 1}\n"
            host = start_host(REACTOR, directory / address, address, text, gossip)
            self.hosts.append(host)

    async def all_know_all(self) -> None:
        for _ in range(6000):  # two minutes: nothing normally takes more than one second
            if all(len(host.services()) == len(ADDRESSES) for host in self.hosts):
                return
            await deferLater(REACTOR, 0.02)
        self.fail(str([host.services() for host in self.hosts]))

    def test_ipv6(self) -> Deferred[None]:
        base = free_block(3)
        self.start(base, interface="::1", seeds=(f"[::1]:{base}",))
        return Deferred.fromCoroutine(self.all_know_all())

    def test_one_socket_for_both_families(self) -> Deferred[None]:
        base = free_block(3)
        seeds = (f"127.0.0.1:{base}",)
        self.start(base, interface="::ffff:127.0.0.1", seeds=seeds)
        return Deferred.fromCoroutine(self.all_know_all())

    def test_a_seed_by_name(self) -> Deferred[None]:
        base = free_block(3)
        self.start(base, seeds=(f"localhost:{base}",))
        return Deferred.fromCoroutine(self.all_know_all())

    def test_a_multicast_group(self) -> Deferred[None]:
        base = free_block(4)
        self.start(base, discover=f"239.255.73.27:{base + 3}")
        return Deferred.fromCoroutine(self.all_know_all())

    def test_a_broadcast_address(self) -> Deferred[None]:
        base = free_block(4)
        self.start(base, discover=f"127.255.255.255:{base + 3}")
        return Deferred.fromCoroutine(self.all_know_all())
