"""
The event mirror: events packed and unpacked a second in Grid Engine's form (beside the ``json``
module with the same events), deliveries a second to a thousand mirrors (beside packing for each of
them), and what mirrors cost a real qmaster beside as many pollers that run ``qstat`` every second.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.common import REPOSITORY, Figure, Options, say
from gridnet.mirror import wire
from gridnet.mirror.catalogue import OBLIGATORY, OwnCatalogue
from gridnet.mirror.element import ElementList
from gridnet.mirror.gridengine import events
from gridnet.mirror.gridengine.commlib import FrameReader, Message
from gridnet.mirror.gridengine.dialect import dialect
from gridnet.mirror.lists import own_element
from gridnet.mirror.master import EventMaster
from gridnet.mirror.model import Event, Registration, Report, Subscribed

NAME = "mirror"
VECTORS = REPOSITORY / "tests" / "vectors" / "mirror" / "vectors.json"
REPORTS = ("report-JOB_ADD", "report-JOB_FINAL_USAGE", "report-QINSTANCE_MOD", "report-JOB_DEL")
EVENTS = 500  #: in a report
MIRRORS, OBJECTS, CHANGES = 1000, 10_000, 500
#: Mirrors and pollers of the qmaster, and jobs in its list.
WATCHERS, JOBS = 20, 500


def run(options: Options) -> Iterator[Figure]:
    """All figures."""
    yield from _packing(options)
    yield _fan_out(options)
    yield from _qmaster(options)


def _rate(action: Callable[[], object], events_each: int, seconds: float) -> float:
    """Events a second of *action*, which handles *events_each*."""
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        action()
        done += events_each
    return done / (time.perf_counter() - began)


# -- packing


def _recorded() -> list[Event]:
    """Events as a real qmaster sent them."""
    found: list[Event] = []
    for row in json.loads(VECTORS.read_text("utf-8")):
        if row["name"] in REPORTS:
            (frame,) = FrameReader().receive(bytes.fromhex(row["hex"]))
            assert isinstance(frame, Message)
            found += [event for _, event in events.unpack_report(frame.body, dialect())]
    return found


def _packing(options: Options) -> Iterator[Figure]:
    recorded = _recorded()
    many = [recorded[place % len(recorded)] for place in range(EVENTS)]
    body = b"".join(events.pack_report(Report(1, (many,)), "qmaster", dialect()))
    plain = [
        [
            *(event.event, event.timestamp, event.int_key, event.text_key),
            None if event.elements is None else [row.as_json() for row in event.elements],
        ]
        for event in many
    ]
    text = json.dumps(plain)
    say(f"{EVENTS} events: {len(body)} octets packed, {len(text)} as JSON")

    def pack() -> None:
        for event in recorded:
            event.encoded = None
        # Each event anew: nothing that is remembered counts.
        for event in many:
            event.encoded = None
            b"".join(events.pack_report(Report(1, ([event],)), "qmaster", dialect()))

    figures: Sequence[tuple[str, Callable[[], object], Callable[[], object]]] = (
        (
            "events unpacked",
            lambda: events.unpack_report(body, dialect()),
            lambda: json.loads(text),
        ),
        ("events packed", pack, lambda: json.dumps(plain)),
    )
    for name, ours, theirs in figures:
        yield Figure(
            NAME,
            name,
            "events/s",
            tuple(_rate(ours, EVENTS, options.seconds / 3) for _ in range(options.runs)),
            "json",
            tuple(_rate(theirs, EVENTS, options.seconds / 3) for _ in range(options.runs)),
        )


# -- fan-out


class _Sink:
    """A mirror that takes everything, packed or by packing it itself."""

    def __init__(self, catalogue: OwnCatalogue, shared: bool) -> None:
        self._catalogue = catalogue
        self._shared = shared
        self.id = 0
        self.last = 0
        self.octets = 0

    def deliver(self, report: Report) -> bool:
        if self._shared:
            self.octets += len(b"".join(wire.pack_report(report, self._catalogue)))
        else:
            rows = [
                [event.event, event.timestamp, event.text_key, _plain(event)] for event in report
            ]
            self.octets += len(json.dumps({"report": report.first, "events": rows}).encode())
        self.last = report.last
        return True

    def dropped(self, reason: str) -> None:
        raise AssertionError(reason)


def _plain(event: Event) -> object:
    return None if event.elements is None else [dict(row) for row in event.elements]


def _fan_out(options: Options) -> Figure:
    return Figure(
        NAME,
        f"deliveries to {MIRRORS} mirrors of {OBJECTS} objects",
        "events/s",
        tuple(_deliveries(True, MIRRORS, options.seconds) for _ in range(options.runs)),
        "packed for each mirror",
        # A tenth of the mirrors: each costs the same there.
        tuple(_deliveries(False, MIRRORS // 10, options.seconds) for _ in range(options.runs)),
    )


def _deliveries(shared: bool, mirrors: int, seconds: float) -> float:
    catalogue = OwnCatalogue(["objects"])
    master = EventMaster(catalogue)
    now = 1e9

    rows = [own_element(str(n), {"host": "h", "rating": n}) for n in range(OBJECTS)]
    master.replace("objects", ElementList(rows), now)
    kind = catalogue.own("objects")
    subscriptions = tuple(Subscribed(e) for e in (*kind.all_events[1:], *OBLIGATORY))
    sinks = []
    for number in range(mirrors):
        sink = _Sink(catalogue, shared)
        wish = Registration("bench", component_id=number, subscriptions=subscriptions)
        sink.id = master.register(wish, sink, now).id
        sinks.append(sink)
    master.round(now)
    serial = delivered = 0
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        for sink in sinks:
            master.acknowledge(sink.id, sink.last, now)
        for _ in range(CHANGES):
            serial += 1
            number = serial * 7919 % OBJECTS
            facts = {"host": f"10.0.0.{number}", "port": 1024, "rating": serial}
            master.change("objects", str(number), own_element(str(number), facts), now)
        now += 10
        before = master.delivered
        master.round(now)
        delivered += master.delivered - before
    return delivered / (time.perf_counter() - began)


# -- what it costs a qmaster


def _processor_seconds(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _qmaster(options: Options) -> Iterator[Figure]:
    from tests.mirror.cell import PROGRAMS, PrivateCell, why_not

    reason = why_not()
    if reason:
        say(f"skipped: {reason}")
        return
    cell = PrivateCell()
    try:
        cell.start()
        quiet = ("-b", "y", "-shell", "n", "-o", "/dev/null", "-e", "/dev/null")
        for _ in range(JOBS):
            cell.run("qsub", *quiet, "-h", "sleep", "60")
        environment = cell.environment

        def load(beside: Callable[[], None]) -> float:
            """Milliseconds of the qmaster's processor time a second, while jobs come."""
            seconds = max(8.0, options.seconds)
            begin, before = time.monotonic(), _processor_seconds(cell.qmaster_pid)
            while time.monotonic() - begin < seconds:
                tick = time.monotonic()
                cell.run("qsub", *quiet, "-h", "true")
                beside()
                time.sleep(max(0.0, 1.0 - (time.monotonic() - tick)))
            used = _processor_seconds(cell.qmaster_pid) - before
            return 1000 * used / (time.monotonic() - begin)

        def poll() -> None:
            asking = [
                subprocess.Popen(
                    [PROGRAMS / "qstat", "-xml", "-u", "*"],
                    env=environment,
                    stdout=subprocess.DEVNULL,
                )
                for _ in range(WATCHERS)
            ]
            for process in asking:
                process.wait(60)

        idle, mirrored, polled = [], [], []
        for _ in range(options.runs):
            idle.append(load(lambda: None))
            polled.append(load(poll))
            command = [
                sys.executable,
                "-m",
                "benchmarks.mirror_watchers",
                str(cell.common),
                str(cell.port),
                str(WATCHERS),
            ]
            with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY) as watchers:
                assert watchers.stdout is not None
                watchers.stdout.readline()
                mirrored.append(load(lambda: None))
                watchers.kill()
        say(f"the qmaster without either: {sorted(idle)[len(idle) // 2]:.3g} ms/s")
        yield Figure(
            NAME,
            f"qmaster's processor time, {WATCHERS} mirrors, {JOBS} jobs",
            "ms/s",
            tuple(mirrored),
            f"{WATCHERS} qstat a second",
            tuple(polled),
            higher_is_better=False,
        )
    finally:
        cell.stop()
