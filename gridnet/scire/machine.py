"""
The life of a run: states, transitions, failed deliveries, reports, agreeing again.

A run lives in a database row that several servers change, so its state is a value read from
there and each decision is a function of that value; there is no object that holds it.  The
table :data:`TRANSITIONS` is the whole machine (docs/protocols/scire.rst, Life of a run).  Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum

from attrs import frozen


class RunState(StrEnum):
    """Where a run is; the texts are those of the interface and of the database."""

    WAITING = "waiting"  #: not due, dependencies open, or its batch is full
    PENDING = "pending"  #: may be handed out
    SENT = "sent"  #: handed out, receipt outstanding
    RECEIVED = "received"  #: the client has it durably
    RUNNING = "running"  #: the client started it
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMEDOUT = "timedout"
    CANCELLED = "cancelled"  #: withdrawn before its end
    DENIED = "denied"  #: the permission check failed at delivery
    REFUSED = "refused"  #: the client will not do it
    EXPIRED = "expired"  #: not started by its deadline
    SKIPPED = "skipped"  #: a dependency ended badly, or an occurrence left out
    UNDELIVERABLE = "undeliverable"  #: handed out too often, never received
    LOST = "lost"  #: the client no longer knows it, or fell silent


S = RunState
BEFORE = frozenset({S.WAITING, S.PENDING, S.SENT})
WITH_CLIENT = frozenset({S.RECEIVED, S.RUNNING})
OPEN = BEFORE | WITH_CLIENT
ENDS = frozenset(RunState) - OPEN
#: What a client's own execution ends in.
RESULTS = frozenset({S.SUCCEEDED, S.FAILED, S.TIMEDOUT})
#: Ends that are the server's guess: the client's result still counts when it comes.
GUESSES = frozenset({S.LOST, S.EXPIRED, S.UNDELIVERABLE, S.CANCELLED})
_REPORTABLE_ENDS = RESULTS | {S.CANCELLED, S.EXPIRED, S.LOST}

#: Every allowed (from, to); None stands for "not there yet".
TRANSITIONS: frozenset[tuple[RunState | None, RunState]] = frozenset(
    {
        (None, S.WAITING),
        (None, S.PENDING),
        (None, S.SKIPPED),  # an occurrence left out
        (S.WAITING, S.PENDING),
        (S.WAITING, S.SKIPPED),
        (S.PENDING, S.SENT),
        (S.PENDING, S.DENIED),
        *((before, end) for before in BEFORE for end in (S.CANCELLED, S.EXPIRED)),
        (S.WAITING, S.DENIED),  # the ordering user was deleted
        (S.SENT, S.DENIED),  # handed out anew after a change of rules
        (S.SENT, S.PENDING),
        (S.SENT, S.UNDELIVERABLE),
        (S.SENT, S.RECEIVED),
        (S.PENDING, S.RECEIVED),
        (S.SENT, S.REFUSED),
        (S.RECEIVED, S.RUNNING),
        *((held, end) for held in WITH_CLIENT for end in _REPORTABLE_ENDS),
        *((guess, result) for guess in GUESSES for result in RESULTS),
        (S.LOST, S.PENDING),
    }
)


# -- reports -----------------------------------------------------------------------------------


class Reported(StrEnum):
    """What a status file may say."""

    RECEIVED = "received"
    RUNNING = "running"
    PROGRESS = "progress"  #: a sign of life; no change of state
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMEDOUT = "timedout"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    LOST = "lost"


class Recorded(StrEnum):
    """What became of a report; the texts are those of the interface."""

    NEW = "new"
    DUPLICATE = "duplicate"
    LATE = "late"  #: a result after the server had given the run up
    IGNORED = "ignored"  #: kept, but the run was further already


@frozen
class ReportOutcome:
    """
    What a report does to a run.

    :ivar path: states that the run goes through, in order; empty: no change.
    :ivar recorded: None: not allowed; kept in the history, answered with fault 1033.
    """

    path: tuple[RunState, ...]
    recorded: Recorded | None


_NO_CHANGE = ReportOutcome((), Recorded.NEW)
_IGNORED = ReportOutcome((), Recorded.IGNORED)
_NOT_ALLOWED = ReportOutcome((), None)


def apply_report(state: RunState, reported: Reported, *, in_order: bool = True) -> ReportOutcome:
    """
    What the report *reported* does to a run in *state*.

    :param in_order: False for a report that fills a gap behind later ones: it is kept only.
    """
    if not in_order:
        return _IGNORED
    path: tuple[RunState, ...] = ()
    if state in (S.PENDING, S.SENT):
        # Whoever can report a run has received it: its acknowledgement was lost.
        path, state = (S.RECEIVED,), S.RECEIVED
        if reported is Reported.RECEIVED:
            return ReportOutcome(path, Recorded.NEW)
    if reported is Reported.PROGRESS:
        return ReportOutcome(path, Recorded.NEW) if state in WITH_CLIENT else _NOT_ALLOWED
    wanted = RunState(reported.value)
    if state in WITH_CLIENT:
        if wanted == state or wanted is S.RECEIVED:
            return _IGNORED
        return ReportOutcome((*path, wanted), Recorded.NEW)
    if state in GUESSES and wanted in RESULTS:
        return ReportOutcome((wanted,), Recorded.LATE)
    if state == wanted and state in GUESSES:
        return _IGNORED
    return _NOT_ALLOWED


# -- deliveries --------------------------------------------------------------------------------

#: Seconds that a run rests after its first, second ... failed delivery; then the last for ever.
RESTS: Sequence[float] = (0.0, 30.0, 120.0, 600.0)


def rest_seconds(failures: int) -> float:
    """How long a run rests after failed delivery number *failures* (from 1)."""
    return RESTS[min(max(failures, 1), len(RESTS)) - 1]


def after_failed_delivery(failures: int, max_deliveries: int) -> RunState:
    """
    Where a run goes when a delivery of it failed.

    :param failures: failed deliveries, this one included.
    """
    return S.UNDELIVERABLE if failures >= max_deliveries else S.PENDING


def silence_limit(state: RunState, run_seconds: float, start_within: float) -> float:
    """
    Seconds without a sign of life after which a run with its client counts as lost.

    :param run_seconds: how long the job may run.
    :param start_within: how long a received run may wait for its start.
    """
    return run_seconds + 600.0 if state is S.RUNNING else start_within


# -- agreeing again ----------------------------------------------------------------------------


@frozen
class Known:
    """What the server knows of one run."""

    run: int
    state: RunState
    seq: int  #: highest report number recorded
    cancel_wanted: bool = False


@frozen
class Held:
    """What the client says it holds."""

    run: int
    state: str
    seq: int  #: highest report number the client has made


class Verdict(StrEnum):
    """What follows for a run when both sides compare notes."""

    LOST = "lost"  #: the client no longer knows it
    UNSENT = "unsent"  #: the open delivery never arrived
    RECEIVED = "received"  #: it did arrive; its acknowledgement was lost
    FORGET = "forget"
    REPORT = "report"
    CANCEL = "cancel"
    UNKNOWN = "unknown"  #: no run of this client: forget, and log


def reconcile(known: Mapping[int, Known], held: Iterable[Held]) -> Sequence[tuple[int, Verdict]]:
    """
    Compare what the server knows with what the client holds.

    :param known: every open run of the client, and those of *held* that are this client's.
    :returns: (run, verdict) pairs, in the order of *held*, then the runs the client lacks; a
        run may have two verdicts.
    """
    verdicts: list[tuple[int, Verdict]] = []
    listed = set()
    for item in held:
        if item.run in listed:
            continue
        listed.add(item.run)
        fact = known.get(item.run)
        if fact is None:
            verdicts.append((item.run, Verdict.UNKNOWN))
            continue
        if fact.state in (S.SENT, S.PENDING):
            verdicts.append((item.run, Verdict.RECEIVED))
        unreported = item.seq > fact.seq
        if fact.state in ENDS:
            verdicts.append((item.run, Verdict.REPORT if unreported else Verdict.FORGET))
            continue
        if fact.cancel_wanted:
            verdicts.append((item.run, Verdict.CANCEL))
        if unreported:
            verdicts.append((item.run, Verdict.REPORT))
    for fact in known.values():
        if fact.run in listed:
            continue
        if fact.state in WITH_CLIENT:
            verdicts.append((fact.run, Verdict.LOST))
        elif fact.state is S.SENT:
            verdicts.append((fact.run, Verdict.UNSENT))
    return verdicts


class Installation(StrEnum):
    """How a client's ``install_id`` compares with the known ones."""

    SAME = "same"
    NEW = "new"  #: first ever, or a machine installed anew
    CLASH = "clash"  #: two machines share one identity


#: Two installations of one identity that speak within this many seconds are two machines.
CLASH_SECONDS = 60.0


def judge_installation(
    presented: str, current: str, former: Sequence[str], last_hello_at: float, now: float
) -> Installation:
    """
    Whether the machine behind an identity is still the same.

    :param current: id of the last accepted installation; "" when there was none.
    :param former: ids of those before.
    :param last_hello_at: when *current* last said hello, in seconds since the epoch.
    """
    if presented == current:
        return Installation.SAME
    if not current:
        return Installation.NEW
    if presented in former or now - last_hello_at < CLASH_SECONDS:
        return Installation.CLASH
    return Installation.NEW
