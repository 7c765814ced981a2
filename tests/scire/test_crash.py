"""Servers that die, databases that go away, clients that come all at once."""

from __future__ import annotations

import asyncio
import atexit
import os
import shutil
import ssl
import tempfile
import threading
import time
from collections import Counter
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from gridnet.scire import wire
from gridnet.scire.certificates import Authority, key_pem, make_key, make_request, read_request
from gridnet.scire.faults import ScireFault
from gridnet.scire.jobs import SLICE
from gridnet.scire.store.database import Transaction
from gridnet.scire.store.opening import open_database
from tests.scire.databases import (
    Backend,
    PostgresMixin,
    PostgresServer,
    SqliteMixin,
    postgres,
    postgres_binaries,
)
from tests.scire.processes import (
    ProcessMixin,
    ServerProcess,
    begin_anew,
    fault_of,
    wait_until,
    waits,
)
from tests.scire.soak import Plan, soak
from tests.scire.swarm import Hand, left, left_without_rest, wrong
from tests.scire.test_server import HELLO, script_job, status

#: Sizes: small here, as large as one likes elsewhere.
HANDS = int(os.environ.get("GRIDNET_SCIRE_HANDS", "8"))
RUNS = int(os.environ.get("GRIDNET_SCIRE_RUNS", "160"))
KILLS = int(os.environ.get("GRIDNET_SCIRE_KILLS", "4"))
CROWD = int(os.environ.get("GRIDNET_SCIRE_CROWD", "100"))
_FAST: dict[str, Any] = {
    "limits": {
        "calls_per_minute": 1_000_000,
        "enrol_calls_per_minute": 1_000_000,
        "handshakes_per_second": 5000.0,
        "max_threads": 16,
    },
    "lease": 2,
    "heartbeat_seconds": 0.2,
    "sweep_seconds": 0.2,
}


class SwarmCase(ProcessMixin, SynchronousTestCase):
    """Hands, servers, and a look at the rows in the end."""

    def opened(self, names: tuple[str, ...]) -> Any:
        database = open_database(names, Path(), 1, "test")
        self.addCleanup(database.close)
        return database.run_now

    def hands(self, *servers: ServerProcess) -> list[Hand]:
        made = []
        for number in range(HANDS):
            # Half of them begin with each server.
            order = servers if number % 2 else servers[::-1]
            hand = Hand(servers[0].machine(f"c{number}.example.org"), *order)
            self.addCleanup(hand.join, 30)
            self.addCleanup(hand.stopping.set)
            made.append(hand)
        return made

    def define(self, server: ServerProcess) -> int:
        """Jobs for all, so many that there are about RUNS runs."""
        jobs = max(1, RUNS // HANDS)
        with server.root() as root:
            for number in range(jobs):
                root.admin.job_create(script_job(f"job {number}", max_deliveries=1000))
        return jobs * HANDS

    def end(self, hands: list[Hand]) -> None:
        for hand in hands:
            hand.stopping.set()
        for hand in hands:
            hand.join(30)


class DyingServerCase(Backend, SwarmCase):
    """One server that is killed at chosen points; mixed with a backend."""

    abstract = True

    def test_all_runs_end_and_none_is_executed_twice(self) -> None:
        names = self.database_names()
        one = ServerProcess(self.place() / "server", names, **_FAST)
        self.addCleanup(one.kill)
        one.start()
        hands, runs = self.hands(one), self.define(one)
        do = self.opened(names)
        chance = Random(RUNS)
        one.stop()
        for hand in hands:
            hand.start()
        deaths = 0
        for _ in range(KILLS):
            # Far enough that it gets through its start.
            one.launch("tests.scire.dying_server", str(chance.randrange(60, 400)))
            assert one.process is not None
            try:
                wait_until(
                    lambda: one.process.poll() is not None or do(left) == 0,  # type: ignore[union-attr]
                    "it dies, or has nothing left to do",
                    60,
                )
            finally:
                deaths += one.process.poll() is not None
                one.kill()
        one.start()
        wait_until(lambda: do(left_without_rest) == 0, "all runs end", 120)
        self.end(hands)
        self.assertGreater(deaths, KILLS // 3)
        self.assertEqual(do(lambda tx: wrong(tx, hands, runs)), [])


class SqliteDyingServerTests(SqliteMixin, DyingServerCase):
    """On SQLite."""


class PostgresDyingServerTests(PostgresMixin, DyingServerCase):
    """On PostgreSQL."""


del DyingServerCase


class SqliteLoadTests(SqliteMixin, SwarmCase):
    """One server, many clients."""

    def test_no_locked_database_reaches_a_client(self) -> None:
        names = self.database_names()
        one = self.server(names, **_FAST)
        hands, runs = self.hands(one), self.define(one)
        for hand in hands:
            hand.start()
        do = self.opened(names)
        wait_until(lambda: do(left) == 0, "all runs end", 120)
        self.end(hands)
        self.assertEqual(do(lambda tx: wrong(tx, hands, runs)), [])
        self.assertNotIn("Traceback", one.log)

    def test_a_crowd_is_served_in_turn(self) -> None:
        """More clients at once than there are slots and places: all are served in the end."""
        names = self.database_names()
        limits = {
            "max_threads": 8,
            "max_waiting": CROWD // 4,
            "waiting_seconds": 2.0,
            "handshakes_per_second": 400.0,
            "handshake_seconds": 60.0,
            "calls_per_minute": 100_000,
        }
        one = self.server(names, limits=limits)
        contexts = self._enrol_crowd(one, names)
        self.define_for_crowd(one)
        codes = asyncio.run(self._all_at_once(one, contexts))
        self.assertEqual(set(codes) - {1060}, {0})
        self.assertEqual(codes[0], CROWD)
        do = self.opened(names)
        sent = do(lambda tx: len(tx.all("SELECT id FROM runs WHERE state = 'sent'")))
        self.assertEqual(sent, CROWD)

    def define_for_crowd(self, server: ServerProcess) -> None:
        with server.root() as root:
            made = root.admin.job_create(script_job())
            # The call makes the first slice of them, the leader soon makes the rest.
            self.assertEqual(made["runs"], min(CROWD, SLICE))

            def runs() -> int:
                return sum(root.admin.job_get(made["job"])["runs"].values())

            wait_until(lambda: runs() == CROWD, "every client has its run")

    def _enrol_crowd(self, server: ServerProcess, names: tuple[str, ...]) -> list[ssl.SSLContext]:
        """Clients straight into the rows: a certificate each, one key for all."""
        state = server.state / "scire"
        authority = Authority.load((state / "ca.key").read_bytes(), (state / "ca.pem").read_bytes())
        key = make_key()
        place = self.place()
        (place / "key").write_bytes(key_pem(key))
        request = read_request(make_request(key, "x"))
        issued = [authority.sign(request, [f"c{n}.x.org"], 86400) for n in range(CROWD)]

        def keep(tx: Transaction) -> None:
            for number, one in enumerate(issued):
                row = tx.insert(
                    "INSERT INTO clients (name, state, created_at, contact_at)"
                    " VALUES (?, 'active', ?, ?) RETURNING id",
                    (f"c{number}.x.org", tx.now, tx.now),
                )
                assert row is not None
                tx.run(
                    "INSERT INTO certificates (digest, client_id, not_before, not_after,"
                    " issued_at, first_used_at) VALUES (?, ?, ?, ?, ?, ?)",
                    (one.digest, row["id"], one.not_before, one.not_after, tx.now, tx.now),
                )

        self.opened(names)(keep)
        contexts = []
        for number, one in enumerate(issued):
            (place / f"{number}").write_text(one.pem)
            context = server.trusting()
            context.load_cert_chain(place / f"{number}", place / "key")
            contexts.append(context)
        return contexts

    async def _all_at_once(
        self, server: ServerProcess, contexts: list[ssl.SSLContext]
    ) -> Counter[int]:
        codes: Counter[int] = Counter()
        body = wire.format_call("scire.next_job", [""])
        octets = (
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: text/xml\r\nContent-Length: %d\r\n\r\n"
            % len(body)
        ) + body

        async def one(context: ssl.SSLContext) -> None:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", server.work, ssl=context, server_hostname="127.0.0.1",
                ssl_handshake_timeout=120,
            )  # fmt: skip
            while True:
                writer.write(octets)
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
                try:
                    wire.parse_answer(await reader.readexactly(length))
                except ScireFault as fault:
                    codes[fault.code] += 1
                    if fault.code != 1060:
                        break
                    await asyncio.sleep(fault.retry_after or 1)
                else:
                    codes[0] += 1
                    break
            writer.close()

        await asyncio.wait_for(asyncio.gather(*map(one, contexts)), 240)
        return codes


@cache
def _pair() -> tuple[ServerProcess, ServerProcess]:
    """Two servers on one PostgreSQL, not started, for all tests of one process."""
    place = Path(tempfile.mkdtemp(prefix="gridnet-scire-", dir="/tmp"))
    names = (postgres().create(),)
    one = ServerProcess(place / "a", names, "a", **_FAST)
    two = ServerProcess(place / "b", names, "b", one, **_FAST)

    def end() -> None:
        one.kill()
        two.kill()
        shutil.rmtree(place, ignore_errors=True)

    atexit.register(end)
    return one, two


class TwoServersTests(PostgresMixin, SwarmCase):
    """Two servers on one PostgreSQL."""

    def setUp(self) -> None:
        self.one, self.two = _pair()
        self.names = self.one.database
        begin_anew(self.one, self.two)

    def test_a_job_defined_at_one_wakes_who_waits_at_the_other(self) -> None:
        machine = self.one.machine("c1.example.org")
        with machine.proxy(self.two) as proxy:
            proxy.scire.hello(HELLO)
            answers: list[Any] = []
            began = time.monotonic()
            waiter = threading.Thread(target=lambda: answers.append(proxy.scire.wait(100)))
            waiter.start()
            wait_until(lambda: waits(self.two) == 1, "it waits")
            with self.one.root() as root:
                root.admin.job_create(script_job())
            waiter.join(60)
            self.assertEqual(answers, [{"work": True, "control": []}])
            self.assertLess(time.monotonic() - began, 50)

    def test_one_report_a_hundred_times_over_two_servers(self) -> None:
        machine = self.one.machine("c1.example.org")
        with self.one.root() as root, machine.proxy(self.one) as proxy:
            root.admin.job_create(script_job())
            delivery = proxy.scire.next_job("")
            proxy.scire.job_received(delivery["receipt"])
        octets = status(delivery["run"], 1, "succeeded", exit_code=0)
        recorded: list[str] = []

        def report(server: ServerProcess) -> None:
            with machine.proxy(server) as own:
                recorded.extend(own.scire.job_status(octets)["recorded"] for _ in range(50))

        threads = [threading.Thread(target=report, args=(s,)) for s in (self.one, self.two)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        self.assertEqual(Counter(recorded), {"new": 1, "duplicate": 99})
        do = self.opened(self.names)
        self.assertEqual(do(lambda tx: len(tx.all("SELECT seq FROM reports"))), 1)

    def test_one_server_stops_and_nothing_is_lost(self) -> None:
        hands, runs = self.hands(self.one, self.two), self.define(self.one)
        do = self.opened(self.names)
        for hand in hands:
            hand.start()
        wait_until(lambda: do(left) < runs * 0.6, "some of it is done", 60)
        self.one.stop()
        self.assertNotIn("Traceback", self.one.log)
        wait_until(lambda: do(left) == 0, "all runs end", 120)
        self.end(hands)
        self.assertEqual(do(lambda tx: wrong(tx, hands, runs)), [])

    def test_a_drained_server_sends_clients_away(self) -> None:
        machine = self.one.machine("c1.example.org")
        with self.two.root() as root, machine.proxy(self.one) as proxy:
            urls = [s["url"] for s in proxy.scire.hello(HELLO)["servers"]]
            self.assertEqual(
                sorted(urls), sorted([self.one.url(self.one.work), self.two.url(self.two.work)])
            )
            root.admin.server_drain("a")
            wait_until(lambda: fault_of(proxy.scire.hello, HELLO) == 1061, "it drains")
            with machine.proxy(self.two) as other:
                urls = [s["url"] for s in other.scire.hello(HELLO)["servers"]]
                self.assertEqual(urls, [self.two.url(self.two.work)])
            root.admin.server_drain("a", False)
            wait_until(lambda: fault_of(proxy.scire.hello, HELLO) == 0, "it serves again")

    def test_duties_pass_on(self) -> None:
        """The leader dies; the other ends leases and makes occurrences from then on."""
        machine = self.one.machine("c1.example.org")
        with self.one.root() as root, machine.proxy(self.one) as proxy:
            root.admin.job_create(script_job())
            run = proxy.scire.next_job("")["run"]
        with self.one.root() as root:
            leader = self.one if root.admin.server_status()["leader"] else self.two
        other = self.two if leader is self.one else self.one
        leader.kill()
        with other.root() as root:
            wait_until(lambda: root.admin.run_get(run)["state"] == "pending", "the lease ends", 60)
            self.assertTrue(root.admin.server_status()["leader"])


class DatabaseTests(SwarmCase):
    """PostgreSQL goes away, and comes back."""

    def test_1062_while_there_is_no_database(self) -> None:
        own = PostgresServer("fsync=off")
        self.addCleanup(own.stop)
        one = self.server((own.create(),), **_FAST)
        machine = one.machine("c1.example.org")
        with one.root() as root:
            root.admin.job_create(script_job())
        with machine.proxy(one) as proxy:
            delivery = proxy.scire.next_job("")
            own.crash()
            octets = status(delivery["run"], 1, "succeeded", exit_code=0)
            self.assertEqual(fault_of(proxy.scire.job_status, octets), 1062)
            self.assertEqual(proxy.scire.ping()["version"], "1.0")
            own.start()
            wait_until(lambda: fault_of(proxy.scire.get_jobs) == 0, "it is found again")
            self.assertEqual(proxy.scire.job_status(octets)["recorded"], "new")
            answers: list[Any] = []
            waiter = threading.Thread(target=lambda: answers.append(proxy.scire.wait(100)))
            waiter.start()
            with one.root() as root:
                wait_until(lambda: root.admin.server_status()["leader"], "it leads again", 60)
                root.admin.job_create(script_job("after"))
            waiter.join(60)
            self.assertEqual([answer["work"] for answer in answers], [True])
        self.assertNotIn("Traceback", one.log)

    skip: str | None = None if postgres_binaries() else "PostgreSQL is not installed"


class SoakTests(SynchronousTestCase):
    """``python -m tests.scire.soak``, small."""

    def test_a_short_soak(self) -> None:
        plan = Plan(clients=4, jobs=16, targets=3, seconds=8.0, server_kill=3.0, client_kill=1.5)
        result = soak(plan, lambda text: None, postgres())
        # How long a switch takes is for whoever measures.
        rest = [text for text in result["wrong"] if "switches took" not in text]
        self.assertEqual(rest, [], result)
        self.assertEqual(result["runs"], 48)

    skip: str | None = None if postgres_binaries() else "PostgreSQL is not installed"
