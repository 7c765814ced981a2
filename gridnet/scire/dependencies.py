"""What a job's dependencies make of its runs (docs/protocols/scire.rst, Schedules).  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum

from attrs import frozen

from gridnet.scire.machine import ENDS, RunState


class Condition(StrEnum):
    """How the other job must have ended."""

    SUCCESS = "success"
    END = "end"
    FAILURE = "failure"


class Scope(StrEnum):
    """Whose runs of the other job count."""

    SAME_CLIENT = "same-client"
    ALL_CLIENTS = "all-clients"


@frozen
class Dependency:
    """One job waits for another."""

    job: int
    condition: Condition = Condition.SUCCESS
    scope: Scope = Scope.SAME_CLIENT


class Verdict(StrEnum):
    """What dependencies say about a run."""

    OPEN = "open"  #: wait
    GOOD = "good"
    BAD = "bad"  #: it can no longer be met: skip


def judge(condition: Condition, states: Iterable[RunState], complete: bool) -> Verdict:
    """
    What one dependency says.

    :param states: of the runs that count.
    :param complete: no further run will come; without any run the dependency is then bad.
    """
    found = list(states)
    ended = [state for state in found if state in ENDS]
    if condition is Condition.SUCCESS and any(s is not RunState.SUCCEEDED for s in ended):
        return Verdict.BAD
    if condition is Condition.FAILURE and any(s is RunState.SUCCEEDED for s in ended):
        return Verdict.BAD
    if len(ended) < len(found) or not complete:
        return Verdict.OPEN
    return Verdict.GOOD if found else Verdict.BAD


def combine(verdicts: Iterable[Verdict]) -> Verdict:
    """What several dependencies say together: one bad is bad, else one open is open."""
    found = set(verdicts)
    if Verdict.BAD in found:
        return Verdict.BAD
    return Verdict.OPEN if Verdict.OPEN in found else Verdict.GOOD


def find_cycle(depends_on: Mapping[int, Iterable[int]], start: int) -> Sequence[int]:
    """Jobs that wait for each other, from *start* back to it; empty: none do."""
    came_from: dict[int, int] = {}
    todo = [start]
    while todo:
        job = todo.pop()
        for other in depends_on.get(job, ()):
            if other == start:
                path = [start]
                while job != start:
                    path.append(job)
                    job = came_from[job]
                path.append(start)
                return path[::-1]
            if other not in came_from:
                came_from[other] = job
                todo.append(other)
    return ()


@frozen
class Batch:
    """How many runs of a job may be under way, and when to give the rest up."""

    size: int  #: runs at a time, the next when all have ended; 0: no batches
    stop_percent: float  #: failures, of those ended, at which the rest is skipped; 0: never
    max_parallel: int  #: runs at a time, the next when one has ended; 0: no bound


def releasable(batch: Batch, waiting: int, under_way: int, ended: int, failed: int) -> int | None:
    """
    How many of *waiting* runs of one occurrence may start now; None: give them up.

    :param under_way: runs pending, sent or with their client.
    :param failed: of the *ended* ones, those that did not succeed.
    """
    between = bool(batch.size) and under_way == 0
    if between and batch.stop_percent and failed and failed * 100 >= batch.stop_percent * ended:
        return None
    allowed = waiting
    if batch.size:
        allowed = batch.size if between else 0
    if batch.max_parallel:
        allowed = min(allowed, max(0, batch.max_parallel - under_way))
    return min(allowed, waiting)
