"""``gridnet jobs``: the jobs of a qmaster as a live table, without asking it again and again."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from shutil import get_terminal_size
from typing import Any

from attrs import asdict, frozen
from twisted.internet.defer import Deferred

from gridnet.mirror.address import Source
from gridnet.mirror.catalogue import OWN_KEY
from gridnet.mirror.command_line import options, run
from gridnet.mirror.element import Element
from gridnet.mirror.filters import Operator, What, Where
from gridnet.mirror.follow import MirrorService
from gridnet.mirror.model import printable
from gridnet.mirror.task_ranges import PENDING_RANGES

#: What the table needs of a job and of a task; the rest stays at the master.
JOB_ATTRIBUTES = (
    "JB_job_number",
    "JB_job_name",
    "JB_owner",
    "JB_submission_time",
    "JB_type",
    "JB_pe",
    "JB_pe_range",
    "JB_jid_predecessor_list",
    "JB_ja_ad_predecessor_list",
    "JB_ja_structure",
    *PENDING_RANGES,
    "JB_ja_template",
    "JB_ja_tasks",
)
TASK_ATTRIBUTES = (
    "JAT_task_number",
    "JAT_status",
    "JAT_state",
    "JAT_hold",
    "JAT_start_time",
    "JAT_granted_destin_identifier_list",
    "JAT_prio",
)
#: Status of a task: what it does.
_HELD, _RUNNING, _TRANSFERRING = 0x10, 0x80, 0x200
#: State of a task: bits beside it, and their letters in the order in which ``qstat`` has them.
_DELETED, _WAITING = 0x200, 0x800
_LETTERS = (
    (0x200, "d"),  # is being deleted
    (0x8000, "E"),  # failed
    (0x20, "R"),  # runs again
    (0x100, "s"),  # suspended by a user
    (0x4000, "S"),  # suspended because of another queue
    (0x10000, "T"),  # suspended because of a threshold
)
#: Sets of tasks that have not started, by what holds them.
_HOLDS = {
    "JB_ja_n_h_ids": "qw",
    "JB_ja_u_h_ids": "hqw",
    "JB_ja_s_h_ids": "hqw",
    "JB_ja_o_h_ids": "hqw",
    "JB_ja_a_h_ids": "hqw",
}
_HEAD = ("job", "prio", "name", "user", "state", "since", "queue", "slots", "tasks")


@frozen
class Row:
    """One line of the table."""

    job: str
    priority: float
    name: str
    user: str
    state: str  #: as ``qstat`` writes it
    since: int  #: seconds since the epoch: start of a running task, else submission
    queue: str
    slots: int
    tasks: str

    def cells(self) -> tuple[str, ...]:
        """For people."""
        since = time.strftime("%m-%d %H:%M:%S", time.localtime(self.since)) if self.since else ""
        prio = f"{self.priority:.5f}"
        slots = str(self.slots) if self.slots else ""
        name, user = self.name[:20], self.user[:12]
        return (self.job, prio, name, user, self.state, since, self.queue, slots, self.tasks)


def task_state(task: Mapping[str, Any]) -> str:
    """The letters of a task that has started."""
    status, state = task.get("JAT_status") or 0, task.get("JAT_state") or 0
    letters = "".join(letter for bit, letter in _LETTERS if state & bit)
    letters += "h" if task.get("JAT_hold") else ""
    if status & _TRANSFERRING and not status & _RUNNING:
        return letters + "t"
    if "s" in letters or "S" in letters or "T" in letters:
        return letters
    return letters + ("r" if status & (_RUNNING | _TRANSFERRING) else "qw")


def _ranges(element: Mapping[str, Any], attribute: str) -> Iterator[str]:
    for row in element.get(attribute) or ():
        low, high, step = row["RN_min"], row["RN_max"], row["RN_step"] or 1
        yield str(low) if low == high else f"{low}-{high}:{step}"


def _is_array(job: Mapping[str, Any]) -> bool:
    return any(row["RN_min"] != 1 or row["RN_max"] != 1 for row in job.get("JB_ja_structure") or ())


def rows_of_job(job: Mapping[str, Any]) -> Iterator[Row]:
    """The lines of one Grid Engine job: one a running task, one for those that wait."""
    number, name = str(job["JB_job_number"]), job["JB_job_name"] or ""
    owner, submitted = job["JB_owner"] or "", job["JB_submission_time"] or 0
    array = _is_array(job)
    for task in job.get("JB_ja_tasks") or ():
        granted = task.get("JAT_granted_destin_identifier_list") or ()
        yield Row(
            number,
            round(task.get("JAT_prio") or 0.0, 5),
            name,
            owner,
            task_state(task),
            task.get("JAT_start_time") or submitted,
            (granted[0].get("JG_qname") or "") if granted else "",
            sum(each.get("JG_slots") or 0 for each in granted),
            str(task["JAT_task_number"]) if array else "",
        )
    template = (job.get("JB_ja_template") or [{}])[0]
    waiting: dict[str, list[str]] = {}
    waits_for_others = job.get("JB_jid_predecessor_list") or job.get("JB_ja_ad_predecessor_list")
    for attribute, state in _HOLDS.items():
        state = "hqw" if waits_for_others else state
        for text in _ranges(job, attribute):
            known = waiting.setdefault(state, [])
            if text not in known:
                known.append(text)
    for state, texts in waiting.items():
        tasks = ",".join(texts) if array else ""
        prio = round(template.get("JAT_prio") or 0.0, 5)
        yield Row(number, prio, name, owner, state, submitted, "", _wanted_slots(job), tasks)


def _wanted_slots(job: Mapping[str, Any]) -> int:
    ranges = job.get("JB_pe_range") or ()
    return ranges[0]["RN_min"] if ranges else 1


def row_of_own(job: Element) -> Row:
    """The line of a job of the LB proxy."""
    return Row(
        str(job[OWN_KEY]),
        0.0,
        str(job.get("type") or ""),
        str(job.get("owner") or ""),
        str(job.get("state") or ""),
        int(job.get("updated") or 0),
        "",
        0,
        "",
    )


def table(rows: Sequence[Row], width: int = 0, height: int = 0) -> list[str]:
    """
    Lines of a table.

    :param width: cut lines to this; 0: do not.
    :param height: lines at most, with a remark about the rest; 0: all.
    """
    lines = [_HEAD, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
    texts = [
        "  ".join(cell.ljust(size) for cell, size in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    if height and len(texts) > height:
        texts = [*texts[: height - 1], f"... and {len(texts) - height + 1} more"]
    return [printable(text[:width] if width else text) for text in texts]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gridnet jobs", description=__doc__, parents=[options()])
    parser.add_argument("--user", default="", metavar="NAME", help="only this user's jobs")
    parser.add_argument(
        "--once", action="store_true", help="print the table once (what a pipe gets)"
    )
    parser.add_argument(
        "--follow", action="store_true", help="print a table at each change, even into a pipe"
    )
    parser.add_argument(
        "--interval", type=float, default=1.0, metavar="SECONDS", help="between tables (1)"
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    words = _parser().parse_args(arguments)
    live = words.follow or (sys.stdout.isatty() and not words.once)

    async def work(source: Source, mirror: MirrorService, reactor: Any) -> int:
        shown = JobTable(source, mirror, words.user)
        mirror.startService()
        await mirror.when_current(shown.list_name)
        if not live:
            shown.show(words.json)
            return 0
        return await shown.follow(words.json, max(0.1, words.interval), reactor)

    return run("gridnet jobs", words, work)


class JobTable:
    """
    The jobs of one master.

    :ivar list_name: the list that they are in.
    """

    def __init__(self, source: Source, mirror: MirrorService, user: str) -> None:
        self._mirror = mirror
        self._native = source.is_grid_engine
        self.list_name = "JOB" if self._native else "jobs"
        if self._native:
            where = Where(Operator.EQUAL, "JB_owner", user) if user else None
            mirror.subscribe("JOB", where=where, what=What.of(*JOB_ATTRIBUTES))
            mirror.subscribe("JATASK", what=What.of(*TASK_ATTRIBUTES))
        else:
            where = Where(Operator.EQUAL, "owner", user) if user else None
            mirror.subscribe("jobs", where=where)

    def rows(self) -> list[Row]:
        """The table, running tasks first, then by number."""
        elements = self._mirror.mirror.elements(self.list_name)
        if not self._native:
            return sorted(map(row_of_own, elements), key=lambda row: row.job)
        rows = [row for job in elements for row in rows_of_job(job)]
        return sorted(rows, key=lambda row: ("q" in row.state, int(row.job)))

    def show(self, as_json: bool, size: tuple[int, int] = (0, 0)) -> None:
        """Print it."""
        rows = self.rows()
        if as_json:
            print(json.dumps([asdict(row) for row in rows]), flush=True)
            return
        print("\n".join(table(rows, *size)), flush=True)

    async def follow(self, as_json: bool, interval: float, reactor: Any) -> int:
        """Print it again after changes, but not more often than each *interval* seconds."""
        changed: list[Deferred[None]] = []
        dirty = [True]

        def look(_: object, *more: object) -> None:
            dirty[0] = True
            if changed:
                changed.pop().callback(None)

        self._mirror.mirror.watch(look)
        self._mirror.on_state(look)
        while True:
            if not dirty[0]:
                waiting: Deferred[None] = Deferred(lambda _: changed.clear())
                changed.append(waiting)
                await waiting
            dirty[0] = False
            self._show_live(as_json)
            await _pause(reactor, interval)

    def _show_live(self, as_json: bool) -> None:
        if as_json or not sys.stdout.isatty():
            self.show(as_json)
            return
        size = get_terminal_size()
        sys.stdout.write("\x1b[H\x1b[2J")
        state = self._mirror.client.state
        print(f"{time.strftime('%H:%M:%S')}  {len(self.rows())} lines, {state}")
        self.show(False, (size.columns, size.lines - 2))


def _pause(reactor: Any, seconds: float) -> Deferred[None]:
    call: list[Any] = []
    done: Deferred[None] = Deferred(lambda _: call[0].cancel())
    call.append(reactor.callLater(seconds, done.callback, None))
    return done
