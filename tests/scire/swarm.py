"""Many clients in one process: the client's way of calling, with memory for a disk."""

from __future__ import annotations

import threading
from collections import Counter
from random import Random
from typing import Any

from gridnet.scire.client.rpc import Servers, Stopped, Unreachable
from gridnet.scire.faults import FaultCode, ScireFault
from gridnet.scire.jobfile import parse_job
from gridnet.scire.store.database import Transaction
from tests.scire.fleet import check_histories
from tests.scire.processes import Machine, ServerProcess
from tests.scire.test_server import status

_OVER = frozenset({FaultCode.RUN_WITHDRAWN, FaultCode.UNKNOWN_RECEIPT})


class Hand(threading.Thread):
    """
    One client: fetches, "executes" by counting, reports; never forgets.

    :ivar problems: faults that no client should see.
    """

    def __init__(self, machine: Machine, *servers: ServerProcess) -> None:
        super().__init__(daemon=True)
        self.machine = machine
        self.executed: Counter[int] = Counter()
        self.attempts: Counter[tuple[int, int]] = Counter()
        self.problems: list[str] = []
        self.stopping = threading.Event()
        self._reports: list[tuple[int, bytes]] = []
        self._sent: dict[int, int] = {}
        self._servers = Servers(
            [server.url(server.work) for server in servers],
            machine.context(servers[0]),
            3.0,
            20.0,
            900.0,
            Random(machine.name),
            self.stopping,
        )
        # A server that was killed here is back in a second.
        self._servers.pauses = (0.2,)

    def run(self) -> None:
        """Converse until it is stopped (called by threading)."""
        while not self.stopping.is_set():
            try:
                self._converse()
            except Unreachable:
                continue
            except Stopped:
                return
            except Exception as error:
                self.problems.append(repr(error))
                self.stopping.wait(0.2)

    def _converse(self) -> None:
        held = {run for run, _ in self._reports}
        listed = [{"run": r, "state": "running", "seq": self._sent.get(r, 0)} for r in sorted(held)]
        self._servers.call(
            "scire.hello",
            {"protocol": "1.0", "install_id": self.machine.name, "in_progress": listed},
        )
        while not self.stopping.is_set():
            found = self._fetch()
            while self._reports:
                run, octets = self._reports[0]
                self._servers.call("scire.job_status", octets)
                self._sent[run] = self._sent.get(run, 0) + 1
                self._reports.pop(0)
            if not found:
                self.stopping.wait(0.05)

    def _fetch(self) -> bool:
        receipt, found = "", False
        while True:
            try:
                answer: dict[str, Any] = self._servers.call("scire.next_job", receipt)
            except ScireFault as fault:
                if fault.code in _OVER and receipt:
                    receipt = ""
                    continue
                raise
            if "receipt" not in answer:
                return found
            job, receipt, found = parse_job(answer["file"]), answer["receipt"], True
            self.attempts[(job.run, job.attempt)] += 1
            if not self.executed[job.run]:
                self.executed[job.run] += 1
                self._reports += [
                    (job.run, status(job.run, 1, "running", job.attempt)),
                    (job.run, status(job.run, 2, "succeeded", job.attempt, exit_code=0)),
                ]


def left(tx: Transaction) -> int:
    """How many runs have not ended."""
    row = tx.one("SELECT count(*) AS n FROM runs WHERE ended_at IS NULL")
    assert row is not None
    return int(row["n"])


def left_without_rest(tx: Transaction) -> int:
    """The same; what rests after several failed deliveries, for up to minutes, goes on at once."""
    tx.run("UPDATE runs SET ready_at = ? WHERE ready_at > ?", (tx.now, tx.now))
    return left(tx)


def wrong(tx: Transaction, hands: list[Hand], runs: int) -> list[str]:
    """What is not as it should be when all has ended."""
    found = list(check_histories(tx))
    executed = sum((hand.executed for hand in hands), Counter[int]())
    found += [f"run {run} was executed {n} times" for run, n in executed.items() if n > 1]
    rows = tx.all("SELECT id, state FROM runs")
    if len(rows) != runs:
        found.append(f"{len(rows)} runs, not {runs}")
    found += [f"run {r['id']} is {r['state']}" for r in rows if r["state"] != "succeeded"]
    found += [f"run {r['id']} was not executed" for r in rows if not executed[r["id"]]]
    reports = tx.one("SELECT count(*) AS n FROM reports")
    if reports is None or reports["n"] != 2 * runs:
        found.append(f"{reports and reports['n']} reports, not {2 * runs}")
    deliveries = tx.all(
        "SELECT run_id, attempt, count(*) AS n FROM deliveries GROUP BY run_id, attempt"
    )
    found += [
        f"attempt {d['attempt']} of run {d['run_id']} twice" for d in deliveries if d["n"] > 1
    ]
    for hand in hands:
        found += [f"{hand.machine.name}: {problem}" for problem in hand.problems]
    return found
