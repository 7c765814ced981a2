"""
gridnet as a master of Debian's own event clients: the unmodified ``qevent`` and ``qping``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.utils import getProcessOutputAndValue

from gridnet.interfaces import IObjectSource
from gridnet.lbproxy.deferred_client import DeferredContext
from gridnet.mirror.master import EventMaster
from gridnet.table.model import Host
from tests.mirror.beside import ChildProcess, GridEngineTestCase, reactor
from tests.mirror.cell import PROGRAMS, ClientFiles
from tests.mirror.running import Numbers, RunningSite
from tests.ports import free_ports

#: Types whose lists ``qevent -sm`` asks for one after the other, as it calls them.
LISTS = ("ADMINHOST", "CALENDAR", "CKPT", "CONFIG", "EXECHOST", "JOB")


class QeventTests(GridEngineTestCase):
    """A whole site as a master for the unmodified ``qevent``."""

    def setUp(self) -> Deferred[Any]:  # type: ignore[override]
        super().setUp()
        (port,) = free_ports(1)
        self.files = ClientFiles(self.directory / "cell", port)
        self.jobs = Numbers()
        self.jobs.object_type = "jobs"
        self.jobs.rows = {}
        self.running = self.site(port)
        self.running.site.provide(IObjectSource, self.jobs, "jobs")
        self.master: EventMaster = self.running.mirror.native.master
        return self.running.start()

    def site(self, port: int, **sections: Mapping[str, Any]) -> RunningSite:
        """A site for event clients at *port*; it is stopped after the test."""
        running = RunningSite(
            self.directory, sections, gridengine_listen=f"tcp:{port}:interface=127.0.0.1"
        )
        self.addCleanup(running.stop)
        return running

    def job(self, name: str) -> None:
        """A job of this site that is submitted, runs and is done."""
        for state in ("Submitted", "Running", "Done"):
            self.jobs.put(f"https://h/{name}", {"state": state, "owner": "ann"})

    async def registered(self) -> None:
        """Wait for the event client, and for the list of own jobs to be followed."""
        await self.until(lambda: any(client.sent for client in self.master.clients.values()))
        await self.until(lambda: bool(self.jobs.subscribers))

    @staticmethod
    def told(qevent: ChildProcess) -> list[str]:
        """What happened to which job and task, in the lines that ``qevent -ts`` printed."""
        lines = [line.partition(":")[0] for line in qevent.output.splitlines()]
        return [line for line in lines if not line.startswith("ECL")]

    @staticmethod
    def life(job: int) -> list[str]:
        """The same for a job that came, ran and ended."""
        return [
            f"JOB_ADD ({job}.0",
            f"JOB_START ({job}.1",
            f"JOB_FINISH ({job}.1",
            f"JOB_DEL ({job}.1",
        ]

    def test_test_suite_mode_prints_the_life_of_jobs(self) -> Deferred[None]:
        """``qevent -ts`` registers, mirrors, acknowledges and, asked to, leaves."""
        return Deferred.fromCoroutine(self._test_suite_mode())

    async def _test_suite_mode(self) -> None:
        qevent = self.qevent(self.files.environment, "-ts")
        await self.registered()
        self.job("a")
        self.job("b")
        await self.until(lambda: qevent.output.count("JOB_DEL") == 2)
        self.assertEqual(self.told(qevent), [*self.life(1), *self.life(2)])
        (client,) = self.master.clients.values()
        await self.until(lambda: client.queued == 0)
        native = self.running.mirror.native
        self.master.shut_down_client(client.id, native.now)
        native.touch()
        await self.until(lambda: not self.master.clients)

    def test_subscribe_mode_prints_every_list(self) -> Deferred[None]:
        """``qevent -sm`` subscribes one type after the other; each brings its list."""
        return Deferred.fromCoroutine(self._subscribe_mode())

    async def _subscribe_mode(self) -> None:
        native = self.running.mirror.native
        self.running.site.table.put_host(Host("127.0.0.1"))
        await self.until(lambda: native.master.lists.count("EXECHOST") == 1)
        self.jobs.put("https://h/1", {"state": "Running", "owner": "ann"})
        await self.until(lambda: native.master.lists.count("JOB") == 1)
        qevent = self.qevent(self.files.environment, "-sm")

        def all_there() -> bool:
            # Nothing hurries such a client: a list would come every ten seconds.
            for client in native.master.clients.values():
                client.next_send = native.now
            native.touch()
            return f"{LISTS[-1]} LIST" in qevent.output

        await self.until(all_there)
        found = re.findall(r"(\d+)\. EVENT (\w+) LIST (\d+) Elements", qevent.output)
        counts = {"EXECHOST": "1", "JOB": "1"}
        self.assertEqual(
            found[: len(LISTS)],
            [(str(n), name, counts.get(name, "0")) for n, name in enumerate(LISTS, 1)],
        )
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
        await self.registered()
        self.job("a")
        await self.until(output.exists)
        await self.until(lambda: output.read_text() == "JB_END 1 1\n")

    def test_jobs_of_the_lb_proxy_are_printed_as_those_of_a_qmaster(self) -> Deferred[None]:
        """Whoever logs to the LB proxy of the site is seen by ``qevent``."""
        return Deferred.fromCoroutine(self._lbproxy())

    async def _lbproxy(self) -> None:
        (port,) = free_ports(1)
        sockets = {name: str(self.directory / name) for name in ("store_socket", "serve_socket")}
        running = self.site(port, lbproxy=sockets)
        await running.start()
        files = ClientFiles(self.directory / "second", port)
        log = DeferredContext(
            reactor, store=sockets["store_socket"], serve=sockets["serve_socket"], user="ann"
        )
        await log.register_job("https://h.invalid:9000/early", ns="here", user="ann")
        qevent = self.qevent(files.environment, "-ts")
        native = running.mirror.native
        await self.until(lambda: any(client.sent for client in native.master.clients.values()))
        await self.until(lambda: native.master.lists.count("JOB") == 1)
        (job,) = native.master.lists.elements("JOB")
        self.assertEqual(
            (job["JB_job_number"], job["JB_job_name"], job["JB_owner"]),
            (1, "https://h.invalid:9000/early", "ann"),
        )
        await log.register_job("https://h.invalid:9000/late", ns="here", user="ann")
        await log.set_logging_job_proxy("https://h.invalid:9000/late", user="ann")
        await log.log_event("Running", node="n1")
        await log.log_event("Done", status_code="OK", exit_code=0)
        await self.until(lambda: "JOB_DEL" in qevent.output)
        self.assertEqual([line for line in self.told(qevent) if "(1." not in line], self.life(2))

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
