"""gridnet as a client of Debian's own Grid Engine: a private qmaster and its programs."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Iterable
from typing import Any
from xml.etree import ElementTree

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.task import deferLater
from twisted.internet.utils import getProcessOutputAndValue

from gridnet.interfaces import IObjectSource
from gridnet.lbproxy.deferred_client import DeferredContext
from gridnet.mirror.follow import MirrorService
from gridnet.mirror.gridengine.cell import read_cell
from gridnet.mirror.gridengine.dialect import dialect
from gridnet.mirror.gridengine.protocol import GridEngineConnector
from gridnet.mirror.mirror import Mirror
from gridnet.mirror.model import Event, Registration
from tests.integration.demo_process import ROOT
from tests.lbproxy.running import RunningProxy
from tests.mirror.beside import GridEngineTestCase, reactor
from tests.mirror.cell import PROGRAMS, PrivateCell, shared_cell
from tests.mirror.recording import RecordingProxy
from tests.mirror.running import RunningSite
from tests.ports import free_ports

SGE = dialect()

JOB_LIST = 31
SINGLE_JOBS = 85
AT_A_TIME = 5
ARRAYS = (10, 5)
#: Status of a task that runs, or is on its way to its host.
RUNNING = (0x80, 0x200)
#: Lists of names: type, key, and the option of ``qconf`` that prints them.
NAMES = (
    ("EXECHOST", "EH_name", "-sel"),
    ("ADMINHOST", "AH_name", "-sh"),
    ("SUBMITHOST", "SH_name", "-ss"),
    ("USERSET", "US_name", "-sul"),
    ("MANAGER", "UM_name", "-sm"),
)
#: Options of a job whose command is a program, and whose output nobody reads.
QUIET = ("-b", "y", "-shell", "n", "-o", "/dev/null", "-e", "/dev/null")


class QmasterTestCase(GridEngineTestCase):
    """Tests with a qmaster."""

    cell: PrivateCell

    async def run_(self, *command: str) -> str:
        """One of Grid Engine's programs, beside the reactor."""
        out, err, status = await getProcessOutputAndValue(
            str(PROGRAMS / command[0]), command[1:], self.cell.environment, str(self.directory)
        )
        self.assertEqual(status, 0, (command, out, err))
        text: str = out.decode("utf-8", "replace")
        return text

    async def submitted(self, *words: str) -> int:
        """Submit a job; gives its number."""
        told = await self.run_("qsub", "-terse", *QUIET, *words)
        return int(told.strip().partition(".")[0])

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

    @staticmethod
    def running(mirror: MirrorService) -> set[str]:
        return {
            job["JB_job_name"]
            for job in mirror.mirror.list("JOB")
            for task in job["JB_ja_tasks"] or ()
            if task["JAT_status"] in RUNNING
        }

    async def compare(self, mirror: MirrorService) -> None:
        """
        The mirror against what Grid Engine's own programs tell.

        Both are asked again until they agree: what a program told last may be on its way.
        """
        deadline = reactor.seconds() + 120
        while True:
            told = await self.told_by_programs()
            found = self.mirrored(mirror)
            if found == told or reactor.seconds() > deadline:
                break
            await deferLater(reactor, 0.2)
        for name, value in told.items():
            self.assertEqual(found[name], value, name)

    async def told_by_programs(self) -> dict[str, Any]:
        """What ``qstat -xml`` and ``qconf`` tell."""
        document = ElementTree.fromstring(await self.run_("qstat", "-xml", "-u", "*", "-g", "d"))
        told = {}
        for row in document.iter("job_list"):
            job = int(row.findtext("JB_job_number") or 0)
            task = int(row.findtext("tasks") or 1)
            told[job, task] = (row.findtext("JB_name"), row.findtext("JB_owner"), row.get("state"))
        queues = {}
        for name in (await self.run_("qconf", "-sql")).split():
            text = await self.run_("qconf", "-sq", name)
            match = re.search(r"^slots\s+(\d+)", text, re.MULTILINE)
            assert match is not None
            queues[name] = int(match[1])
        names = {kind: set((await self.run_("qconf", o)).split()) for kind, _, o in NAMES}
        instances = {(name, self.cell.host, slots) for name, slots in queues.items()}
        return {"tasks": told, "queues": queues, "instances": instances, **names}

    def mirrored(self, mirror: MirrorService) -> dict[str, Any]:
        """The same from the mirror."""
        lists = mirror.mirror
        names = {kind: {each[key] for each in lists.list(kind)} for kind, key, _ in NAMES}
        names["EXECHOST"] -= {"global", "template"}
        return {
            "tasks": self.mirrored_tasks(mirror),
            "queues": {
                queue["CQ_name"]: queue["CQ_job_slots"][0]["AULNG_value"]
                for queue in lists.list("CQUEUE")
            },
            "instances": {
                (instance["QU_qname"], instance["QU_qhostname"], instance["QU_job_slots"])
                for instance in lists.list("QINSTANCE")
            },
            **names,
        }

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


class QmasterTests(QmasterTestCase):
    """gridnet as a client of a qmaster that goes on running."""

    def setUp(self) -> None:
        super().setUp()
        self.cell = shared_cell()
        self.addCleanup(self.cell.tidy)

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

        def finished() -> bool:
            ended = len(re.findall(r"^JOB_FINISH ", qevent.output, re.MULTILINE))
            return ended == SINGLE_JOBS + sum(ARRAYS) and self.no_jobs(mirror)

        everything = self.mirror()
        everything.subscribe("ALL")
        everything.startService()
        await everything.when_current("JOB", "CQUEUE", "EXECHOST")
        await self.submit()
        await self.change_queue_and_host()
        await self.until(finished)
        # The last lines are on their way, to the one or to the other.
        await self.until(lambda: len(seen) == len(proxy.events))
        await self.until(lambda: self.told(seen) == self.printed(qevent.output))

        theirs = [(number, *event.facts) for number, event in proxy.events]
        self.assertEqual([(event.number, *event.facts) for event in seen], theirs)
        # A list arises with the registration that asks for it, everything else by itself.
        self.assertEqual(
            [event.timestamp for event in seen if event.event != JOB_LIST],
            [event.timestamp for _, event in proxy.events if event.event != JOB_LIST],
        )
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

    async def submit(self) -> None:
        """A hundred jobs: single ones and arrays."""
        for size in ARRAYS:
            await self.submitted("-t", f"1-{size}", "true")
        for first in range(0, SINGLE_JOBS, AT_A_TIME):
            some = range(first, min(first + AT_A_TIME, SINGLE_JOBS))
            jobs = [self.submitted("-N", f"job{number}", "true") for number in some]
            await gatherResults(map(Deferred.fromCoroutine, jobs))

    def test_the_commands_show_what_qstat_shows_and_run_what_they_are_told(self) -> Deferred[None]:
        """``gridnet jobs`` beside ``qstat``; ``gridnet mirror`` lists, follows and triggers."""
        return Deferred.fromCoroutine(self._commands())

    async def gridnet(self, *words: str) -> str:
        """One of gridnet's commands."""
        out, err, status = await getProcessOutputAndValue(
            sys.executable, ("-m", "gridnet.cli", *words), {"PYTHONPATH": str(ROOT)}
        )
        self.assertEqual(status, 0, (words, out, err))
        text: str = out.decode("utf-8", "replace")
        return text

    async def _commands(self) -> None:
        source = ("--source", f"gridengine://127.0.0.1:{self.cell.port}{self.cell.common}")
        script = self.directory / "ended"
        script.write_text('#!/bin/sh\necho "$@"\n')
        script.chmod(0o755)
        name = "gridnet-trigger"
        words = ("mirror", "trigger", *source, "--name", name, "--count", "2", "JB_END")
        trigger = self.spawn(
            {"PYTHONPATH": str(ROOT)}, sys.executable, "-m", "gridnet.cli", *words, str(script)
        )
        watching = self.mirror()
        watching.subscribe("JOB")
        watching.subscribe("JATASK")
        watching.startService()
        while name not in await self.run_("qconf", "-secl"):
            await deferLater(reactor, 0.1)
        await self.submitted("-h", "-N", "held", "-t", "1-7:2", "true")
        long = await self.submitted("-N", "long", "sleep", "600")
        await self.submitted("-N", "never", "-hold_jid", str(long), "true")
        await self.until(lambda: self.running(watching) == {"long"})
        told: list[tuple[str | None, ...]] = []
        while (str(long), "long", "r") not in told:  # it is on its way to its host for a moment
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
        where = (
            "--where",
            "JB_job_name~l*",
            "--where",
            f"JB_job_number<{long + 9}",
            "--what",
            "JB_owner",
        )
        listed = await self.gridnet("mirror", "list", *source, "JOB", *where, "--json")
        self.assertEqual(
            [
                (row["JB_job_number"], row["JB_owner"])
                for row in map(json.loads, listed.splitlines())
            ],
            [(long, "root")],
        )
        nobody = await self.gridnet("jobs", *source, "--user", "nobody", "--json")
        self.assertEqual(json.loads(nobody), [])
        short = await self.submitted("-N", "short", "-t", "1-2", "true")
        await trigger.ended
        lines = sorted(line for line in trigger.output.splitlines() if line.startswith("JB"))
        self.assertEqual(lines, [f"JB_END {short} 1", f"JB_END {short} 2"])

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
        held = await self.submitted("-h", "-N", "held", "true")
        (follower,) = running.mirror.followers
        await self.until(lambda: bool(follower.service.mirror.lists.count("JOB")))
        qevent = self.qevent(dict(self.cell.at_port(port)), "-ts")
        native = running.mirror.native.master
        await self.until(lambda: any(client.sent for client in native.clients.values()))
        array = await self.submitted("-N", "array", "-t", "1-3", "true")
        await self.until(lambda: f"JOB_DEL ({array}." in qevent.output)
        for name in ("JOB_START", "JOB_FINISH"):
            for task in (1, 2, 3):
                self.assertIn(f"{name} ({array}.{task}:", qevent.output)
        listed = await self.gridnet(
            *("mirror", "list", "--source", running.address, "cell/JOB", "--json"),
            *("--what", "JB_job_name"),
        )
        rows = [json.loads(line) for line in listed.splitlines()]
        self.assertEqual(rows, [{"key": str(held), "JB_job_name": "held"}])

    def test_jobs_of_a_qmaster_become_jobs_of_the_lb_proxy(self) -> Deferred[None]:
        """The example in the documentation, as it stands there."""
        return Deferred.fromCoroutine(self._jobs_into_lb_proxy())

    async def _jobs_into_lb_proxy(self) -> None:
        proxy = RunningProxy()
        await proxy.start()
        self.addCleanup(lambda: Deferred.fromCoroutine(proxy.stop()))
        program = str(ROOT / "docs" / "examples" / "qmaster_to_lbproxy.py")
        source = f"gridengine://127.0.0.1:{self.cell.port}{self.cell.common}"
        early = await self.submitted("-h", "-N", "early", "true")
        example = self.spawn(
            {"PYTHONPATH": str(ROOT)}, sys.executable, program, source, proxy.store, proxy.serve
        )
        source_of_jobs = proxy.site.find(IObjectSource, "jobs")

        def states() -> dict[str, str]:
            rows = source_of_jobs.snapshot().items()
            return {key.rpartition("-")[2]: row["state"] for key, row in rows}

        waiting = {f"{early}.1": "Submitted"}
        await self.until(lambda: states() == waiting)
        good = await self.submitted("-N", "good", "-t", "1-3", "true")
        bad = await self.submitted("-N", "bad", "false")
        long = await self.submitted("-N", "long", "sleep", "600")
        finished = {f"{good}.{task}": "Done" for task in (1, 2, 3)} | {f"{bad}.1": "Done"}
        await self.until(lambda: states() == {**waiting, f"{long}.1": "Running", **finished})
        await self.run_("qdel", str(early), str(long))
        await self.until(lambda: states()[f"{early}.1"] == "Cancelled")
        await self.until(lambda: states()[f"{long}.1"] in ("Done", "Cancelled"))
        log = DeferredContext(reactor, store=proxy.store, serve=proxy.serve, user="root")
        events = await log.job_log(f"https://gridengine.invalid:9000/gridengine-{bad}.1")
        self.assertEqual([event.event for event in events], ["RegJob", "Running", "Done"])
        self.assertIn("FAILED", events[-1].fields.values())
        await example.kill()


class RestartTests(QmasterTestCase):
    """A qmaster that is killed and comes back."""

    def setUp(self) -> None:
        super().setUp()
        self.cell = PrivateCell(slots=40)
        self.addCleanup(self.cell.stop)
        self.cell.start()

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
        await self.submitted("-h", "-N", "held", "-t", "1-7:2", "true")
        await self.submitted("-N", "long", "sleep", "600")
        await self.run_("qconf", "-Aq", self.cell.write("new", self.cell.queue_text("extra.q", 3)))
        await self.run_("qmod", "-d", "all.q")
        await self.run_("qmod", "-e", "all.q")
        await self.run_("qconf", "-ah", "localhost")
        await self.until(lambda: self.running(mirror) == {"long"})
        await self.compare(mirror)

        parted.clear()
        self.cell.stop_qmaster(signal.SIGKILL)
        await self.until(lambda: bool(parted))
        self.assertFalse(mirror.mirror.is_current("JOB"))
        self.assertEqual(len(mirror.mirror.list("JOB")), 2)
        self.cell.start_qmaster()
        await self.submitted("-h", "-N", "meanwhile", "true")
        await self.run_("qconf", "-dq", "extra.q")
        await self.until(lambda: mirror.mirror.is_current("JOB"))
        await self.until(lambda: len(mirror.mirror.list("CQUEUE")) == 1)
        await self.until(lambda: len(mirror.mirror.list("JOB")) == 3)
        await self.compare(mirror)
        await self.run_("qdel", "1")  # the held array; the execution daemon is not back yet
        await self.until(lambda: len(mirror.mirror.list("JOB")) == 2)
        await self.compare(mirror)
