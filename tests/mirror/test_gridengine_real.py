"""
Beside Debian's own Grid Engine: a private qmaster, and the unmodified ``qevent``.

Skipped where Grid Engine is not installed; under continuous integration it has to be.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from xml.etree import ElementTree

from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ProcessDone
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.internet.utils import getProcessOutputAndValue
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from gridnet.interfaces import IObjectSource
from gridnet.lbproxy.deferred_client import DeferredContext
from gridnet.mirror.catalogue import GRID_ENGINE
from gridnet.mirror.follow import MirrorService
from gridnet.mirror.gridengine.cell import read_cell
from gridnet.mirror.gridengine.dialect import dialect
from gridnet.mirror.gridengine.protocol import GridEngineConnector
from gridnet.mirror.gridengine.serve import EventClientFactory
from gridnet.mirror.keeper import MasterService
from gridnet.mirror.mirror import Mirror
from gridnet.mirror.model import Element, ElementList, Event, Registration
from gridnet.table.address_range import AddressRanges
from tests.integration.demo_process import ROOT
from tests.lbproxy.running import RunningProxy
from tests.mirror.cell import PROGRAMS, ClientFiles, PrivateCell, why_not
from tests.mirror.recording import RecordingProxy
from tests.mirror.running import Numbers, RunningSite
from tests.ports import free_ports

reactor: Any = installed_reactor
SGE = dialect()
_WHY_NOT = why_not()

SINGLE_JOBS = 85
ARRAYS = (10, 5)
#: Status of a task that runs, or is on its way to its host.
RUNNING = (0x80, 0x200)


class ChildProcess(ProcessProtocol):
    """A process that runs beside a test: an unmodified ``qevent``, mostly."""

    def __init__(self) -> None:
        self.output = ""
        self.ended: Deferred[None] = Deferred()

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        self.output += data.decode("utf-8", "replace")

    def processEnded(self, reason: Failure = Failure(ProcessDone(0))) -> None:  # noqa: B008
        self.ended.callback(None)

    def kill(self) -> Deferred[None]:
        if self.transport is not None and not self.ended.called:
            self.transport.signalProcess("KILL")
        return self.ended


class GridEngineTestCase(TestCase):
    """Helpers around processes and mirrors."""

    timeout = 240

    if _WHY_NOT and os.environ.get("CI") != "true":
        skip = _WHY_NOT

    def setUp(self) -> None:
        self.directory = Path(mkdtemp(prefix="gridnet-qevent-"))

    def qevent(self, environment: dict[str, str], *arguments: str) -> ChildProcess:
        """Start ``qevent``; it is killed after the test."""
        return self.spawn(environment, str(PROGRAMS / "qevent"), *arguments)

    def spawn(self, environment: dict[str, str], program: str, *arguments: str) -> ChildProcess:
        """Start a process whose output is collected; it is killed after the test."""
        protocol = ChildProcess()
        reactor.spawnProcess(
            protocol, program, [program, *arguments], environment, str(self.directory)
        )
        self.addCleanup(protocol.kill)
        return protocol

    async def until(self, condition: Callable[[], bool], seconds: float = 90.0) -> None:
        """Wait for *condition*."""
        deadline = reactor.seconds() + seconds
        while not condition():
            self.assertLess(reactor.seconds(), deadline, "waited too long")
            await deferLater(reactor, 0.05)


class QmasterTests(GridEngineTestCase):
    """gridnet as a client of a real qmaster."""

    def setUp(self) -> None:
        super().setUp()
        self.cell = PrivateCell(slots=40)
        self.addCleanup(self.cell.stop)
        self.cell.start()

    async def run_(self, *command: str) -> str:
        """One of Grid Engine's programs, beside the reactor."""
        out, err, status = await getProcessOutputAndValue(
            str(PROGRAMS / command[0]), command[1:], self.cell.environment, str(self.directory)
        )
        self.assertEqual(status, 0, (command, out, err))
        return out.decode("utf-8", "replace")

    def mirror(self, **options: Any) -> MirrorService:
        """A mirror of the private qmaster, started by the caller."""
        connector = GridEngineConnector(
            reactor,
            read_cell(self.cell.common, self.cell.port),
            endpoint=lambda host, port: TCP4ClientEndpoint(reactor, "127.0.0.1", port),
        )
        wish = Registration(name="gridnet", delivery_seconds=1)
        mirror = MirrorService(reactor, connector, wish, **options)

        def stop() -> Deferred[None] | None:
            return mirror.stopService() if mirror.running else None

        self.addCleanup(stop)
        return mirror

    def no_jobs(self, mirror: MirrorService) -> bool:
        return mirror.mirror.is_current("JOB") and not mirror.mirror.list("JOB")

    async def submit(self) -> None:
        """A hundred jobs: single ones and arrays."""
        quiet = ("-b", "y", "-shell", "n", "-o", "/dev/null", "-e", "/dev/null")
        for size in ARRAYS:
            await self.run_("qsub", *quiet, "-t", f"1-{size}", "true")
        for number in range(SINGLE_JOBS):
            await self.run_("qsub", *quiet, "-N", f"job{number}", "true")

    def test_a_mirror_sees_what_qevent_sees(self) -> Deferred[None]:
        """The same numbers, types, keys and data, for a hundred jobs."""
        return Deferred.fromCoroutine(self._same_as_qevent())

    async def _same_as_qevent(self) -> None:
        proxy = RecordingProxy(reactor, self.cell.port)
        listening = reactor.listenTCP(0, proxy, interface="127.0.0.1")
        self.addCleanup(listening.stopListening)
        self.addCleanup(proxy.stop)
        environment = dict(self.cell.at_port(listening.getHost().port))
        qevent = self.qevent(environment, "-ts")
        await self.until(lambda: bool(proxy.events))
        wanted = {each.event: each for each in proxy.registrations[-1].subscriptions or ()}

        seen: list[Event] = []

        def note(
            mirror: Mirror, kind: object, action: object, element: object, event: Event, _: object
        ) -> None:
            seen.append(event)

        mirror = self.mirror()
        mirror.subscribe("JOB", note, what=wanted[31].what)
        mirror.subscribe("JATASK", note, what=wanted[28].what)
        mirror.startService()
        await self.until(lambda: self.no_jobs(mirror))
        lines = [""]

        def finished() -> bool:
            lines[0] = qevent.output
            ended = len(re.findall(r"^JOB_FINISH ", qevent.output, re.MULTILINE))
            return ended == SINGLE_JOBS + sum(ARRAYS) and self.no_jobs(mirror)

        everything = self.mirror()
        everything.subscribe("ALL")
        everything.startService()
        await everything.when_current("JOB", "CQUEUE", "EXECHOST")
        await self.submit()
        await self.change_queue_and_host()
        await self.until(finished)
        await self.until(lambda: len(seen) == len(proxy.events))

        theirs = [(number, *event.facts, event.timestamp) for number, event in proxy.events]
        ours = [(event.number, *event.facts, event.timestamp) for event in seen]
        self.assertEqual([row[:6] for row in ours], [row[:6] for row in theirs])
        self.assertEqual(ours, theirs)
        self.assertEqual([event.number for event in seen], list(range(1, len(seen) + 1)))
        self.assertEqual(self.told(seen), self.printed(qevent.output))
        self.assertEqual(SGE.unknown, set())
        # Neither saw the queue and the host change; whoever asks for everything did.
        await self.until(lambda: self.no_jobs(everything))
        await self.compare(everything)
        (host,) = [e for e in everything.mirror.list("EXECHOST") if e["EH_name"] == self.cell.host]
        values = {v["CE_name"]: v["CE_stringval"] for v in host["EH_consumable_config_list"]}
        self.assertEqual(values, {"slots": "39"})

    async def change_queue_and_host(self) -> None:
        """In the middle of it all: a queue disabled, enabled and resized, another one, a host."""
        await self.run_("qmod", "-d", "all.q")
        await self.run_("qconf", "-Aq", self.cell.write("new", self.cell.queue_text("extra.q", 3)))
        await self.run_("qmod", "-e", "all.q")
        await self.run_("qconf", "-mattr", "queue", "slots", "38", "all.q")
        await self.run_("qconf", "-mattr", "exechost", "complex_values", "slots=39", self.cell.host)

    @staticmethod
    def printed(output: str) -> list[str]:
        """What ``qevent -ts`` printed, but for its summaries."""
        lines = [line for line in output.splitlines() if not line.startswith("ECL_STATE")]
        return [re.sub(r":project=\w+", "", line) for line in lines]

    @staticmethod
    def told(events: Iterable[Event]) -> list[str]:
        """The same lines from the events of a mirror."""
        names = {32: "JOB_ADD", 33: "JOB_DEL", 37: "JOB_FINISH"}
        lines = []
        for event in events:
            name = names.get(event.event, "")
            if event.event == 28 and event.element and event.element["JAT_status"] in RUNNING:
                name = "JOB_START"
            if name:
                keys = f"{event.int_key}.{event.int_key2}"
                lines.append(f"{name} ({keys}:ECL_TIME={event.timestamp})")
        return lines

    def test_a_mirror_is_right_again_after_the_qmaster_came_back(self) -> Deferred[None]:
        """Jobs, queues and hosts as ``qstat`` and ``qconf`` tell them, before and after."""
        return Deferred.fromCoroutine(self._restart())

    async def _restart(self) -> None:
        parted: list[str] = []
        mirror = self.mirror()
        mirror.on_state(lambda state, reason: parted.append(reason) if reason else None)
        mirror.subscribe("ALL")
        mirror.startService()
        await mirror.when_current("JOB", "CQUEUE", "EXECHOST")
        await self.run_("qsub", "-b", "y", "-shell", "n", "-h", "-N", "held", "-t", "1-7:2", "true")
        await self.run_("qsub", "-b", "y", "-shell", "n", "-N", "long", "sleep", "600")
        await self.run_("qconf", "-Aq", self.cell.write("new", self.cell.queue_text("extra.q", 3)))
        await self.run_("qmod", "-d", "all.q")
        await self.run_("qmod", "-e", "all.q")
        await self.run_("qconf", "-ah", "localhost")
        await self.until(lambda: self.running(mirror) == {"long"})
        await self.compare(mirror)

        self.cell.stop_qmaster(signal.SIGKILL)
        self.assertEqual(parted, [])
        await self.until(lambda: bool(parted))
        self.assertFalse(mirror.mirror.is_current("JOB"))
        self.assertEqual(len(mirror.mirror.list("JOB")), 2)
        self.cell.start_qmaster()
        await self.run_("qsub", "-b", "y", "-shell", "n", "-h", "-N", "meanwhile", "true")
        await self.run_("qconf", "-dq", "extra.q")
        await self.until(lambda: mirror.mirror.is_current("JOB"))
        await self.until(lambda: len(mirror.mirror.list("CQUEUE")) == 1)
        await self.until(lambda: len(mirror.mirror.list("JOB")) == 3)
        await self.compare(mirror)
        await self.run_("qdel", "1")  # the held array; the execution daemon is not back yet
        await self.until(lambda: len(mirror.mirror.list("JOB")) == 2)
        await self.compare(mirror)

    def test_the_commands_show_what_qstat_shows_and_run_what_they_are_told(self) -> Deferred[None]:
        """``gridnet jobs`` beside ``qstat``; ``gridnet mirror`` lists, follows and triggers."""
        return Deferred.fromCoroutine(self._commands())

    async def gridnet(self, *words: str) -> str:
        """One of gridnet's commands."""
        out, err, status = await getProcessOutputAndValue(
            sys.executable, ("-m", "gridnet.cli", *words), {"PYTHONPATH": str(ROOT)}
        )
        self.assertEqual(status, 0, (words, out, err))
        return out.decode("utf-8", "replace")

    async def _commands(self) -> None:
        source = ("--source", f"gridengine://127.0.0.1:{self.cell.port}{self.cell.common}")
        script = self.directory / "ended"
        script.write_text('#!/bin/sh\necho "$@"\n')
        script.chmod(0o755)
        words = ("mirror", "trigger", *source, "--count", "2", "JB_END", str(script))
        trigger = self.spawn({"PYTHONPATH": str(ROOT)}, sys.executable, "-m", "gridnet.cli", *words)
        watching = self.mirror()
        watching.subscribe("JOB")
        watching.subscribe("JATASK")
        watching.startService()
        quiet = ("-b", "y", "-shell", "n", "-o", "/dev/null", "-e", "/dev/null")
        await self.run_("qsub", *quiet, "-h", "-N", "held", "-t", "1-7:2", "true")
        await self.run_("qsub", *quiet, "-N", "long", "sleep", "600")
        await self.run_("qsub", *quiet, "-N", "never", "-hold_jid", "long", "true")
        await self.until(lambda: self.running(watching) == {"long"})
        told: list[tuple[str | None, ...]] = []
        while ("2", "long", "r") not in told:  # it is on its way to its host for a moment
            document = ElementTree.fromstring(await self.run_("qstat", "-xml", "-u", "*"))
            names = ("JB_job_number", "JB_name", "state")
            rows = document.iter("job_list")
            told = sorted(tuple(map(row.findtext, names)) for row in rows)
        shown = json.loads(await self.gridnet("jobs", *source, "--json"))
        self.assertEqual(sorted((r["job"], r["name"], r["state"]) for r in shown), told)
        queues = [(row["name"], row["queue"]) for row in shown if row["state"] == "r"]
        self.assertEqual(queues, [("long", f"all.q@{self.cell.host}")])
        listed = await self.gridnet("mirror", "list", *source, "CQUEUE", "--what", "CQ_name")
        self.assertEqual(listed, "all.q\n")
        where = ("--where", "JB_job_name~l*", "--where", "JB_job_number<9", "--what", "JB_owner")
        listed = await self.gridnet("mirror", "list", *source, "JOB", *where, "--json")
        self.assertEqual(
            [
                (row["JB_job_number"], row["JB_owner"])
                for row in map(json.loads, listed.splitlines())
            ],
            [(2, "root")],
        )
        nobody = await self.gridnet("jobs", *source, "--user", "nobody", "--json")
        self.assertEqual(json.loads(nobody), [])
        await self.run_("qsub", *quiet, "-N", "short", "-t", "1-2", "true")
        await trigger.ended
        lines = sorted(line for line in trigger.output.splitlines() if line.startswith("JB"))
        self.assertEqual(lines, ["JB_END 4 1", "JB_END 4 2"])
        await self.run_("qdel", "2")

    def test_a_site_serves_the_lists_of_a_qmaster_to_others(self) -> Deferred[None]:
        """To an unmodified ``qevent``, and as a list of its own, through one mirror."""
        return Deferred.fromCoroutine(self._served_again())

    async def _served_again(self) -> None:
        (port,) = free_ports(1)
        source = f"gridengine://127.0.0.1:{self.cell.port}{self.cell.common}"
        running = RunningSite(
            self.directory,
            gridengine_listen=f"tcp:{port}:interface=127.0.0.1",
            follow=[{"name": "cell", "source": source, "delivery_seconds": 1}],
        )
        await running.start()
        self.addCleanup(running.stop)
        quiet = ("-b", "y", "-shell", "n", "-o", "/dev/null", "-e", "/dev/null")
        await self.run_("qsub", *quiet, "-h", "-N", "held", "true")
        (follower,) = running.mirror.followers
        await self.until(lambda: bool(follower.service.mirror.lists.count("JOB")))
        qevent = self.qevent(dict(self.cell.at_port(port)), "-ts")
        native = running.mirror.native.master
        await self.until(lambda: any(client.sent for client in native.clients.values()))
        await self.run_("qsub", *quiet, "-N", "array", "-t", "1-3", "true")
        await self.until(lambda: "JOB_DEL (2." in qevent.output)
        for name in ("JOB_START", "JOB_FINISH"):
            for task in (1, 2, 3):
                self.assertIn(f"{name} (2.{task}:", qevent.output)
        listed = await self.gridnet(
            *("mirror", "list", "--source", running.address, "cell/JOB", "--json"),
            *("--what", "JB_job_name"),
        )
        rows = [json.loads(line) for line in listed.splitlines()]
        self.assertEqual(rows, [{"key": "1", "JB_job_name": "held"}])

    def test_jobs_of_a_qmaster_become_jobs_of_the_lb_proxy(self) -> Deferred[None]:
        """The example in the documentation, as it stands there."""
        return Deferred.fromCoroutine(self._jobs_into_lb_proxy())

    async def _jobs_into_lb_proxy(self) -> None:
        proxy = RunningProxy()
        await proxy.start()
        self.addCleanup(lambda: Deferred.fromCoroutine(proxy.stop()))
        program = str(ROOT / "docs" / "examples" / "qmaster_to_lbproxy.py")
        source = f"gridengine://127.0.0.1:{self.cell.port}{self.cell.common}"
        quiet = ("-b", "y", "-shell", "n", "-o", "/dev/null", "-e", "/dev/null")
        await self.run_("qsub", *quiet, "-h", "-N", "early", "true")
        example = self.spawn(
            {"PYTHONPATH": str(ROOT)}, sys.executable, program, source, proxy.store, proxy.serve
        )
        source_of_jobs = proxy.site.find(IObjectSource, "jobs")

        def states() -> dict[str, str]:
            rows = source_of_jobs.snapshot().items()
            return {key.rpartition("-")[2]: row["state"] for key, row in rows}

        await self.until(lambda: states() == {"1.1": "Submitted"})
        await self.run_("qsub", *quiet, "-N", "good", "-t", "1-3", "true")
        await self.run_("qsub", *quiet, "-N", "bad", "false")
        await self.run_("qsub", *quiet, "-N", "long", "sleep", "600")
        finished = {f"2.{task}": "Done" for task in (1, 2, 3)} | {"3.1": "Done"}
        await self.until(lambda: states() == {"1.1": "Submitted", "4.1": "Running", **finished})
        await self.run_("qdel", "1", "4")
        await self.until(lambda: states()["1.1"] == "Cancelled")
        await self.until(lambda: states()["4.1"] in ("Done", "Cancelled"))
        log = DeferredContext(reactor, store=proxy.store, serve=proxy.serve, user="root")
        events = await log.job_log("https://gridengine.invalid:9000/gridengine-3.1")
        self.assertEqual([event.event for event in events], ["RegJob", "Running", "Done"])
        self.assertIn("FAILED", events[-1].fields.values())
        await example.kill()

    @staticmethod
    def running(mirror: MirrorService) -> set[str]:
        return {
            job["JB_job_name"]
            for job in mirror.mirror.list("JOB")
            for task in job["JB_ja_tasks"] or ()
            if task["JAT_status"] in RUNNING
        }

    async def compare(self, mirror: MirrorService) -> None:
        """The mirror against what Grid Engine's own programs tell."""
        await self.until(lambda: not mirror.client.waiting)
        document = ElementTree.fromstring(await self.run_("qstat", "-xml", "-u", "*", "-g", "d"))
        told = {}
        for row in document.iter("job_list"):
            job = int(row.findtext("JB_job_number") or 0)
            task = int(row.findtext("tasks") or 1)
            told[job, task] = (row.findtext("JB_name"), row.findtext("JB_owner"), row.get("state"))
        self.assertEqual(self.mirrored_tasks(mirror), told)
        queues = {}
        for name in (await self.run_("qconf", "-sql")).split():
            text = await self.run_("qconf", "-sq", name)
            match = re.search(r"^slots\s+(\d+)", text, re.MULTILINE)
            assert match is not None
            queues[name] = int(match[1])
        mirrored = {
            queue["CQ_name"]: queue["CQ_job_slots"][0]["AULNG_value"]
            for queue in mirror.mirror.list("CQUEUE")
        }
        self.assertEqual(mirrored, queues)
        instances = {
            (instance["QU_qname"], instance["QU_qhostname"], instance["QU_job_slots"])
            for instance in mirror.mirror.list("QINSTANCE")
        }
        self.assertEqual(
            instances, {(name, self.cell.host, slots) for name, slots in queues.items()}
        )
        for kind, key, option in (
            ("EXECHOST", "EH_name", "-sel"),
            ("ADMINHOST", "AH_name", "-sh"),
            ("SUBMITHOST", "SH_name", "-ss"),
            ("USERSET", "US_name", "-sul"),
            ("MANAGER", "UM_name", "-sm"),
        ):
            names = set((await self.run_("qconf", option)).split())
            found = {e[key] for e in mirror.mirror.list(kind)} - {"global", "template"}
            self.assertEqual(found, names, kind)

    @staticmethod
    def mirrored_tasks(mirror: MirrorService) -> dict[tuple[int, int], tuple[str, str, str]]:
        found = {}
        for job in mirror.mirror.list("JOB"):
            common = (job["JB_job_name"], job["JB_owner"])
            for task in job["JB_ja_tasks"] or ():
                found[job["JB_job_number"], task["JAT_task_number"]] = (*common, "running")
            for ranges in ("JB_ja_n_h_ids", "JB_ja_u_h_ids"):
                for row in job[ranges] or ():
                    for number in range(row["RN_min"], row["RN_max"] + 1, row["RN_step"]):
                        found[job["JB_job_number"], number] = (*common, "pending")
        return found


class QeventTests(GridEngineTestCase):
    """gridnet as a master for the unmodified ``qevent``."""

    def setUp(self) -> None:
        super().setUp()
        (port,) = free_ports(1)
        self.files = ClientFiles(self.directory / "cell", port)
        self.keeper = MasterService(reactor, GRID_ENGINE, wind_down_seconds=0.5)
        for kind in GRID_ENGINE.initial:
            layout = SGE.kinds[kind.element]
            rows = [SGE.element("SC")] if kind.name == "SCHEDD_CONF" else []
            self.keeper.replace(kind.name, ElementList(rows, layout))
        factory = EventClientFactory(
            reactor, self.keeper, self.files.host, AddressRanges.from_texts(["127/8"])
        )
        listening = reactor.listenTCP(port, factory, interface="127.0.0.1")
        self.keeper.startService()
        self.addCleanup(factory.close_all)
        self.addCleanup(listening.stopListening)
        self.addCleanup(self.keeper.stopService)

    def record(self, event: int, *elements: Element, **keys: Any) -> None:
        rows = ElementList(elements, elements[0].layout, "Events", 1) if elements else None
        self.keeper.record(Event(event, elements=rows, **keys))

    def job(self, number: int) -> None:
        """A job that is submitted, starts and ends."""
        self.record(
            32, SGE.element("JB", {"JB_job_number": number, "JB_owner": "me"}), int_key=number
        )
        keys = {"int_key": number, "int_key2": 1}
        self.record(26, SGE.element("JAT", {"JAT_task_number": 1}), **keys)
        self.record(28, SGE.element("JAT", {"JAT_task_number": 1, "JAT_status": 128}), **keys)
        self.record(37, SGE.element("UA", {"UA_name": "cpu", "UA_value": 1.5}), **keys)
        self.record(33, **keys)

    def registered(self) -> bool:
        return any(client.sent for client in self.keeper.master.clients.values())

    def test_test_suite_mode_prints_the_life_of_jobs(self) -> Deferred[None]:
        """``qevent -ts`` registers, mirrors, acknowledges and, asked to, leaves."""
        return Deferred.fromCoroutine(self._test_suite_mode())

    async def _test_suite_mode(self) -> None:
        qevent = self.qevent(self.files.environment, "-ts")
        await self.until(self.registered)
        self.job(7)
        self.job(8)
        await self.until(lambda: qevent.output.count("JOB_DEL") == 2)
        names = [line.partition(":")[0] for line in qevent.output.splitlines()]
        self.assertEqual(
            [name for name in names if not name.startswith("ECL")],
            [
                f"{name} ({job}.{task}"
                for job in (7, 8)
                for name, task in (
                    ("JOB_ADD", 0),
                    ("JOB_START", 1),
                    ("JOB_FINISH", 1),
                    ("JOB_DEL", 1),
                )
            ],
        )
        (client,) = self.keeper.master.clients.values()
        await self.until(lambda: client.queued == 0)
        self.keeper.master.shut_down_client(client.id, self.keeper.now)
        self.keeper.touch()
        await self.until(lambda: not self.keeper.master.clients)

    def test_subscribe_mode_prints_every_list(self) -> Deferred[None]:
        """``qevent -sm`` subscribes one type after the other; each brings its list."""
        return Deferred.fromCoroutine(self._subscribe_mode())

    async def _subscribe_mode(self) -> None:
        qevent = self.qevent(self.files.environment, "-sm")
        await self.until(lambda: "CALENDAR LIST" in qevent.output)
        self.assertIn("1. EVENT ADMINHOST LIST 0 Elements", qevent.output)
        self.assertIn("2. EVENT CALENDAR LIST 0 Elements", qevent.output)
        self.assertNotIn("error", qevent.output)

    def test_a_trigger_runs_its_script_when_a_job_ends(self) -> Deferred[None]:
        """``qevent -trigger JB_END script`` runs the script with event, job and task."""
        return Deferred.fromCoroutine(self._trigger())

    async def _trigger(self) -> None:
        script = self.directory / "ended"
        output = self.directory / "output"
        script.write_text(f'#!/bin/sh\necho "$@" >> {output}\n')
        script.chmod(0o755)
        self.qevent(self.files.environment, "-trigger", "JB_END", str(script))
        await self.until(self.registered)
        self.job(7)
        await self.until(output.exists)
        await self.until(lambda: output.read_text() == "JB_END 7 1\n")

    def test_the_component_shows_own_jobs_to_an_unmodified_qevent(self) -> Deferred[None]:
        """The jobs of this site, as ``qevent -ts`` prints those of a qmaster."""
        return Deferred.fromCoroutine(self._component())

    async def _component(self) -> None:
        (port,) = free_ports(1)
        files = ClientFiles(self.directory / "second", port)
        running = RunningSite(self.directory, gridengine_listen=f"tcp:{port}:interface=127.0.0.1")
        await running.start()
        self.addCleanup(running.stop)
        jobs = Numbers()
        jobs.object_type = "jobs"  # type: ignore[misc]
        jobs.rows = {}
        running.site.provide(IObjectSource, jobs, "jobs")
        running.mirror.offered()
        qevent = self.qevent(files.environment, "-ts")
        native = running.mirror.native.master
        await self.until(lambda: any(client.sent for client in native.clients.values()))
        for state in ("Submitted", "Running", "Done"):
            jobs.put("https://h/1", {"state": state, "owner": "ann"})
        await self.until(lambda: "JOB_DEL" in qevent.output)
        names = [line.partition(":")[0] for line in qevent.output.splitlines()]
        self.assertEqual(
            [name for name in names if not name.startswith("ECL")],
            ["JOB_ADD (1.0", "JOB_START (1.1", "JOB_FINISH (1.1", "JOB_DEL (1.1"],
        )

    def test_qping_learns_how_the_master_is(self) -> Deferred[None]:
        """The status question of ``qping`` is answered."""
        return Deferred.fromCoroutine(self._qping())

    async def _qping(self) -> None:
        command = ["-info", self.files.host, str(self.files.port), "qmaster", "1"]
        out, _, status = await getProcessOutputAndValue(
            str(PROGRAMS / "qping"), command, self.files.environment, str(self.directory)
        )
        self.assertEqual(status, 0)
        self.assertIn(b"gridnet event master: 0 event clients | OK", out)
