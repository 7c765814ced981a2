"""
Kills a busy LB proxy over and over, and checks that what it acknowledged is there.

``python -m tests.lbproxy.crash --rounds 200`` is the long run; the suite does a short one.  Two
services run: a proxy that is killed, and the full server that it forwards to, which is killed now
and then too.  Clients send each event until it is acknowledged, as the field's clients do.
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable

from attrs import define, field

from gridnet.lbproxy import frames
from gridnet.lbproxy.client import LbError
from gridnet.lbproxy.events import parse
from tests.lbproxy.child import Child, RawClient, wait_for
from tests.lbproxy.ledgers import REGISTER, job
from tests.lbproxy.vectors import line

EVENTS_OF_A_JOB = 30


@define
class Tally:
    """What a run found."""

    rounds: int = 0
    acknowledged: int = 0
    in_doubt: int = 0  #: sent, and the service was killed before the reply
    server_kills: int = 0
    jobs: int = 0
    delivered: int = 0


@define(eq=False)
class _Load:
    """One client: a job after the other, an event after the other."""

    path: str
    name: str
    acknowledged: dict[str, int] = field(factory=dict)  #: job -> events acknowledged
    in_doubt: int = 0
    _stopping: threading.Event = field(factory=threading.Event)
    _thread: threading.Thread | None = None
    _job: int = 0
    _next: int = 1
    fault: BaseException | None = None

    def start(self) -> None:
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        assert self._thread is not None
        self._thread.join()
        if self.fault is not None:
            raise self.fault

    def _run(self) -> None:
        client = RawClient(self.path)
        try:
            while not self._stopping.is_set():
                name = f"{self.name}-{self._job}"
                if self._next == 1:
                    text = line("RegJob", REGISTER, job_id=job(name))
                else:
                    text = line("Purge", job_id=job(name), seqcode=f"UI{self._next}")
                try:
                    reply = client.send(frames.encode_message(text))
                except (OSError, LbError):
                    # Killed: whether it was stored nobody knows; it goes again next round.
                    self.in_doubt += 1
                    return
                if not reply.ok:
                    raise AssertionError(f"{name} {self._next}: {reply}")
                self.acknowledged[name] = self._next
                self._next += 1
                if self._next > EVENTS_OF_A_JOB:
                    self._job += 1
                    self._next = 1
        except BaseException as error:
            self.fault = error
        finally:
            client.close()


def _check(child: Child, loads: list[_Load], *, whole: bool) -> None:
    """
    Every acknowledged event is there, none twice, each job's in their order.

    :param whole: nothing else may be there than what was acknowledged or in doubt.
    """
    found: dict[str, list[int]] = defaultdict(list)
    for text in child.lines():
        event = parse(text)
        found[event.job_id.unique].append(int(event.seqcode[3:9]))
    for load in loads:
        for name, count in load.acknowledged.items():
            numbers = found.pop(name, [])
            wanted = list(range(1, count + 1))
            if numbers not in (wanted, [*wanted, count + 1]):
                raise AssertionError(f"{child.directory}: {name}: {count} acknowledged, {numbers}")
    in_doubt = [numbers for numbers in found.values() if numbers != [1]]
    if in_doubt or (whole and len(found) > len(loads)):
        raise AssertionError(f"{child.directory}: unexpected {found}")


def _acknowledged(loads: list[_Load]) -> int:
    return sum(sum(load.acknowledged.copy().values()) for load in loads)


def _wait_for_more(loads: list[_Load], count: int) -> None:
    wanted = _acknowledged(loads) + count
    wait_for(lambda: any(load.fault for load in loads) or _acknowledged(loads) >= wanted)


def run(
    rounds: int,
    clients: int,
    seed: int,
    say: Callable[[str], None] = lambda text: None,
    most: int = 300,
) -> Tally:
    """
    Do *rounds* rounds.

    :param most: events that are acknowledged between two kills.
    :raises AssertionError: something acknowledged is missing, doubled or out of order.
    """
    chance = random.Random(seed)
    tally = Tally()
    server = Child('role = "server"\ncheck_at_start = "full"\n')
    proxy = Child(
        'keep_final_seconds = 0\ncheck_at_start = "full"\n'
        '[lbproxy.forward]\nmode = "deliver"\nwindow = 8\nretry_seconds = 0.05\n'
        f'max_retry_seconds = 0.2\nroutes = {{ "lb.example.org:9000" = "unix:{server.store}" }}\n'
    )
    loads = [_Load(proxy.store, f"c{number}") for number in range(clients)]
    pause = threading.Event()
    try:
        server.start()
        proxy.start()
        for number in range(1, rounds + 1):
            for load in loads:
                load.start()
            # So much work, then so much time: a slow machine gets as far as a fast one.
            _wait_for_more(loads, chance.randrange(1, most))
            pause.wait(chance.uniform(0, 0.02))
            if chance.random() < 0.2:
                server.kill()
                tally.server_kills += 1
            proxy.kill()
            for load in loads:
                load.stop()
            _check(proxy, loads, whole=True)
            if server.process is not None and server.process.poll() is not None:
                server.start()
            proxy.start()
            tally.rounds = number
            if number % 20 == 0:
                done = _acknowledged(loads)
                say(f"round {number}: {done} events acknowledged")
        tally.acknowledged = _acknowledged(loads)
        tally.in_doubt = sum(load.in_doubt for load in loads)
        tally.jobs = sum(len(load.acknowledged) for load in loads)
        total = len(proxy.lines())
        wait_for(lambda: len(server.lines()) >= total, 60)
        if sorted(server.lines()) != sorted(proxy.lines()):
            raise AssertionError("the server has not just what the proxy has")
        _check(server, loads, whole=True)
        tally.delivered = total
        for child in (proxy, server):
            if not child.stop():
                raise AssertionError("the service did not stop in order")
    finally:
        proxy.forget()
        server.forget()
    return tally


def main() -> int:
    """The long run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    started = time.monotonic()
    tally = run(options.rounds, options.clients, options.seed, lambda text: print(text, flush=True))
    print(f"{tally} in {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
