"""
Servers and clients killed at random while they work; what became of every run is then checked.

``python -m tests.scire.soak --clients 100 --jobs 500 --seconds 180`` starts two servers on one
private PostgreSQL and that many client processes, defines the jobs one after the other over the
time, kills a random server with SIGKILL every few seconds (and starts it again), and clients in
between.  In the end every run must have ended, no script may have been executed twice, and every
report must have been recorded once.  It prints what it saw as JSON and ends with status 1 when
something is wrong.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
import threading
import time
import xmlrpc.client
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

from attrs import define, field

from gridnet.scire.store.database import Transaction
from gridnet.scire.store.opening import open_database
from tests.scire.databases import PostgresServer
from tests.scire.fleet import check_histories
from tests.scire.processes import ClientProcess, ServerProcess, wait_until
from tests.scire.swarm import left_without_rest

_SCRIPT = 'echo "$SCIRE_JOB $SCIRE_RUN" >> {marks}/$SCIRE_JOB\n'
_CONVERSATION = re.compile(r"^(\S+ \S+) INFO in conversation with (\S+)$", re.M)
_SERVES = re.compile(r"^(\S+)\+0000 \[\S+JobServer#info\] \S+ serves as", re.M)
#: A client's way to the other server may take so long, seconds.
SWITCH_SECONDS = 5.0


@define
class Plan:
    """How much of everything."""

    clients: int = 100
    jobs: int = 500
    targets: int = 4  #: clients of each job
    seconds: float = 180.0
    server_kill: float = 5.0  #: seconds between kills of a server
    client_kill: float = 1.0  #: seconds between kills of a client
    settle: float = 300.0  #: seconds for what is left in the end
    seed: int = 1


@define
class Soak:
    """One run of it all."""

    plan: Plan
    directory: Path
    say: Callable[[str], None]
    chance: Random = field(init=False)
    servers: list[ServerProcess] = field(factory=list)
    clients: list[ClientProcess] = field(factory=list)
    kills: list[tuple[float, str]] = field(factory=list)  #: when, URL of the server
    client_kills: list[tuple[float, str]] = field(factory=list)
    runs: int = 0
    done: threading.Event = field(factory=threading.Event)

    def __attrs_post_init__(self) -> None:
        self.chance = Random(self.plan.seed)

    @property
    def marks(self) -> Path:
        """Where scripts leave a line for each execution."""
        return self.directory / "marks"

    # -- before

    def start(self, dsn: str) -> None:
        """Two servers, and the clients."""
        self.marks.mkdir()
        self.marks.chmod(0o777)
        keys: dict[str, Any] = {
            "pool": 6,
            "poll_interval": 10,
            "lease": 20,
            "limits": {"handshakes_per_second": 500.0},
        }
        first = ServerProcess(self.directory / "a", (dsn,), "a", **keys)
        second = ServerProcess(self.directory / "b", (dsn,), "b", first, role="alternate", **keys)
        self.servers = [first.start(), second.start()]
        began = time.monotonic()
        for number in range(self.plan.clients):
            path = first.client_file(
                f"c{number}.example.org", second, mode="daemon", failback_seconds=30.0
            )
            client = ClientProcess(path).start("run")
            self.clients.append(client)
            if number % 10 == 9:
                self._wait_for_clients(number - 9)
        self._wait_for_clients(self.plan.clients)
        self.say(f"{self.plan.clients} clients after {time.monotonic() - began:.0f} s")

    def _wait_for_clients(self, count: int) -> None:
        wait_until(
            lambda: all((c.directory / "servers.json").exists() for c in self.clients[:count]),
            f"{count} clients are enrolled",
            120,
        )

    # -- meanwhile

    def insist(self, method: str, *arguments: Any) -> Any:
        """One call of root to whichever server answers; repeated calls do no harm (keys)."""
        deadline = time.monotonic() + 60
        while True:
            for server in self.servers:
                try:
                    with server.root() as proxy:
                        return getattr(proxy, method)(*arguments)
                except (OSError, xmlrpc.client.ProtocolError):
                    continue
                except xmlrpc.client.Fault as fault:
                    if fault.faultCode not in (1060, 1061, 1062, -32603):
                        raise
            if time.monotonic() > deadline:
                raise TimeoutError(f"no server takes {method}")
            time.sleep(0.2)

    def define_jobs(self) -> None:
        """All jobs, spread over most of the time."""
        script = _SCRIPT.format(marks=self.marks).encode()
        pause = self.plan.seconds * 0.9 / self.plan.jobs
        began = time.monotonic()
        for number in range(self.plan.jobs):
            wanted = self.chance.sample(range(self.plan.clients), self.plan.targets)
            definition = {
                "name": f"job {number}",
                "targets": {"clients": [f"c{n}.example.org" for n in wanted]},
                "execute": {"script": script, "user": "root"},
                "priority": self.chance.randrange(100),
                "max_deliveries": 100,
            }
            made = self.insist("admin.job_create", definition, f"soak {number}")
            self.runs += made["runs"]
            time.sleep(max(0.0, began + pause * (number + 1) - time.monotonic()))

    def kill_servers(self) -> None:
        """A random one each time; it is started again at once."""
        while not self.done.wait(self.plan.server_kill):
            victim = self.chance.choice(self.servers)
            self.kills.append((time.time(), victim.url(victim.work)))
            victim.kill()
            victim.launch()

    def kill_clients(self) -> None:
        """Likewise."""
        while not self.done.wait(self.plan.client_kill):
            victim = self.chance.choice(self.clients)
            self.client_kills.append((time.time(), victim.directory.name))
            victim.kill()
            victim.start("run")

    def go(self) -> None:
        """Everything at once, for as long as planned; then until nothing is left to do."""
        killers = [threading.Thread(target=f) for f in (self.kill_servers, self.kill_clients)]
        for killer in killers:
            killer.start()
        began = time.monotonic()
        try:
            self.define_jobs()
            while time.monotonic() - began < self.plan.seconds:
                time.sleep(0.1)
        finally:
            self.done.set()
            for killer in killers:
                killer.join()
        self.say(
            f"{self.runs} runs of {self.plan.jobs} jobs; {len(self.kills)} kills of servers,"
            f" {len(self.client_kills)} of clients"
        )

    def settle(self, dsn: str) -> dict[str, Any]:
        """Wait for the end of every run; what is found then."""
        database = open_database((dsn,), self.directory, 1, "soak")
        try:
            began = time.monotonic()
            try:
                wait_until(
                    lambda: database.run_now(left_without_rest) == 0,
                    "all runs end",
                    self.plan.settle,
                )
            except TimeoutError:
                pass
            self.say(f"settled after {time.monotonic() - began:.1f} s")
            return self.found(database.run_now)
        finally:
            database.close()

    # -- after

    def found(self, do: Callable[[Callable[[Transaction], Any]], Any]) -> dict[str, Any]:
        """What became of everything, and what is wrong with it."""
        rows = do(
            lambda tx: [
                (r["id"], r["job_id"], r["name"], r["state"], r["message"])
                for r in tx.all(
                    "SELECT r.id, r.job_id, c.name, r.state, r.message FROM runs r"
                    " JOIN clients c ON c.id = r.client_id"
                )
            ]
        )
        histories = do(
            lambda tx: [
                (h["run_id"], h["from_state"], h["to_state"])
                for h in tx.all("SELECT run_id, from_state, to_state FROM history")
            ]
        )
        reports = do(lambda tx: len(tx.all("SELECT run_id FROM reports")))
        executed: Counter[int] = Counter()
        for path in self.marks.iterdir():
            for line in path.read_text().splitlines():
                executed[int(line.rpartition(":")[2])] += 1
        wrong = list(do(check_histories))
        states = Counter(row[3] for row in rows)
        if len(rows) != self.runs:
            wrong.append(f"{self.runs} runs were made, {len(rows)} are there")
        killed = {name for _, name in self.client_kills}
        for run, _, name, state, message in rows:
            times = executed[run]
            if times > 1:
                wrong.append(f"run {run} was executed {times} times")
            if state == "succeeded" and times != 1:
                wrong.append(f"run {run} succeeded, and was executed {times} times")
            if state == "lost" and name in killed and message.startswith("interrupted"):
                continue  # its client was killed while it ran, and said so
            if state != "succeeded":
                wrong.append(f"run {run} of {name} is {state}: {message}")
        steps = Counter((run, after) for run, before, after in histories if before != after)
        for (run, state), count in steps.items():
            if count > 1 and state in ("received", "running", "succeeded", "lost"):
                wrong.append(f"run {run} became {state} {count} times")
        switches = self.switches()
        slow = [s for s in switches if s > SWITCH_SECONDS]
        if slow:
            wrong.append(
                f"{len(slow)} switches took more than {SWITCH_SECONDS} s, up to {max(slow):.1f}"
            )
        return {
            "clients": len(self.clients),
            "jobs": self.plan.jobs,
            "runs": len(rows),
            "states": dict(states),
            "reports": reports,
            "kills of servers": len(self.kills),
            "kills of clients": len(self.client_kills),
            "executed twice": sum(1 for n in executed.values() if n > 1),
            "switches": len(switches),
            "longest switch": round(max(switches, default=0.0), 2),
            "wrong": wrong[:50],
        }

    def switches(self) -> list[float]:
        """
        Seconds from a server's death to a client's first conversation with the other one.

        Only of clients that were with that server and were not killed themselves meanwhile, and
        only where the other server served.
        """
        found = []
        for client in self.clients:
            log = client.log
            said = [(_time(at), url) for at, url in _CONVERSATION.findall(log)]
            deaths = [at for at, name in self.client_kills if name == client.directory.name]
            for killed_at, url in self.kills:
                before = [u for at, u in said if at < killed_at]
                after = [(at, u) for at, u in said if at >= killed_at]
                if not before or before[-1] != url or not after:
                    continue
                at, _ = after[0]
                if any(killed_at - 10 < death < at for death in deaths):
                    continue
                if any(killed_at < other < at for other, _ in self.kills):
                    continue
                if self._other_serves(url, killed_at):
                    found.append(at - killed_at)
        return found

    def _other_serves(self, url: str, at: float) -> bool:
        """Whether the server that is not at *url* had come back from its last death."""
        other = next(s for s in self.servers if s.url(s.work) != url)
        deaths = [t for t, killed in self.kills if killed != url and t < at]
        # The log says full seconds, of universal time.
        starts = [
            datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() + 1
            for text in _SERVES.findall(other.log)
        ]
        return any(max(deaths, default=0.0) < start <= at for start in starts)

    def end(self) -> None:
        """Kill what still runs."""
        self.done.set()
        for client in self.clients:
            client.kill()
        for server in self.servers:
            server.kill()


def _time(text: str) -> float:
    return datetime.strptime(text, "%Y-%m-%d %H:%M:%S,%f").timestamp()


def soak(
    plan: Plan, say: Callable[[str], None], database: PostgresServer | None = None
) -> dict[str, Any]:
    """
    Do all of it; what was found.

    :param database: where to make a database; None: on a durable server of its own.
    """
    directory = Path(tempfile.mkdtemp(prefix="gridnet-soak-", dir="/tmp"))
    if database is not None:
        return _soak(plan, say, directory, database)
    database = PostgresServer()
    try:
        return _soak(plan, say, directory, database)
    finally:
        database.stop()


def _soak(
    plan: Plan, say: Callable[[str], None], directory: Path, database: PostgresServer
) -> dict[str, Any]:
    one = Soak(plan, directory, say)
    try:
        dsn = database.create()
        one.start(dsn)
        one.go()
        result = one.settle(dsn)
    finally:
        one.end()
    if result["wrong"]:
        say(f"everything is left in {directory}")
    else:
        shutil.rmtree(directory, ignore_errors=True)
    return result


def main() -> int:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.scire.soak", description=__doc__)
    defaults = Plan()
    for name in ("clients", "jobs", "targets", "seconds", "server_kill", "client_kill", "seed"):
        value = getattr(defaults, name)
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=type(value), default=value, help=f"({value})")
    options = parser.parse_args()
    result = soak(Plan(**vars(options)), lambda text: print(text, file=sys.stderr, flush=True))
    print(json.dumps(result, indent=2))
    return 1 if result["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
