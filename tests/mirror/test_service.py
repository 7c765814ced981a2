"""The component on loopback: two sites, TLS between them, browsers, event clients, commands."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ProcessProtocol, Protocol
from twisted.internet.task import deferLater
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.client import Agent, HTTPConnectionPool, readBody

from gridnet.errors import ConfigError
from gridnet.interfaces import IListMaster, IObjectSource
from gridnet.mirror.address import connector_to, read_source
from gridnet.mirror.config import MirrorConfig
from gridnet.mirror.follow import MirrorService
from gridnet.mirror.mirror import Mirror
from gridnet.mirror.model import Registration
from gridnet.mirror.tls import read_authorities, read_identity
from gridnet.table.model import Entry
from gridnet.table.server_info import parse as parse_server
from tests.integration.demo_process import ROOT
from tests.mirror.beside import ChildProcess
from tests.mirror.certificates import Authority
from tests.mirror.running import Numbers, RunningSite
from tests.ports import free_port

reactor: Any = installed_reactor


class Lines(Protocol):
    """Collects the lines of a response."""

    def __init__(self) -> None:
        self.text = ""
        self.ended: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.text += data.decode()

    def connectionLost(self, reason: Any = None) -> None:
        self.ended.callback(None)


class SiteTestCase(TestCase):
    timeout = 240

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir(parents=True)

    async def run_site(self, **mirror: Any) -> RunningSite:
        running = RunningSite(self.directory, **mirror)

        def stop() -> Deferred[Any] | None:
            return running.stop() if running.service.running else None

        self.addCleanup(stop)
        await running.start()
        return running

    def follow(self, text: str, *types: str, **tls: Any) -> MirrorService:
        connector = connector_to(read_source(text, "test"), reactor, **tls)
        mirror = MirrorService(reactor, connector, Registration(name="t", delivery_seconds=1))
        for name in types:
            mirror.subscribe(name, flush_seconds=0)
        mirror.startService()

        def stop() -> Deferred[None] | None:
            return mirror.stopService() if mirror.running else None

        self.addCleanup(stop)
        return mirror

    async def until(self, condition: Callable[[], bool], seconds: float = 90.0) -> None:
        deadline = reactor.seconds() + seconds
        while not condition():
            if reactor.seconds() > deadline:
                self.fail("what was waited for did not happen")
            await deferLater(reactor, 0.02)

    @staticmethod
    def keys(mirror: MirrorService, name: str) -> list[str]:
        return [element["key"] for element in mirror.mirror.list(name)]


class MirroredSiteTests(SiteTestCase):
    def test_own_lists_are_mirrored_over_tcp_and_in_the_process(self) -> Deferred[None]:
        """Both see a change; the master is found through the site."""
        return Deferred.fromCoroutine(self._own_lists())

    async def _own_lists(self) -> None:
        running = await self.run_site()
        running.put(1)
        far = self.follow(running.address, "services")
        master = running.site.find(IListMaster)
        near = MirrorService(reactor, master.connector(), Registration(name="near"))
        near.subscribe("services", flush_seconds=0)
        near.startService()
        self.addCleanup(near.stopService)
        await far.when_current("services")
        running.put(2)
        for mirror in (far, near):
            await self.until(lambda m=mirror: len(self.keys(m, "services")) == 2)  # type: ignore[misc]
        self.assertEqual(far.mirror.list("services"), near.mirror.list("services"))
        facts = running.mirror.facts()
        self.assertEqual((facts["mirrors"], facts["lists kept current"]), (2, "services"))
        self.assertEqual(running.site.status.failures(), {})

    def test_a_list_that_comes_late_reaches_those_who_wait_for_it(self) -> Deferred[None]:
        """A component offers its list after mirrors asked for it."""
        return Deferred.fromCoroutine(self._late())

    async def _late(self) -> None:
        running = await self.run_site()
        mirror = self.follow(running.address, "numbers")
        await self.until(lambda: mirror.client.is_registered)
        running.site.provide(IObjectSource, Numbers(), "numbers")
        running.mirror.offered()
        await mirror.when_current("numbers")
        self.assertEqual(self.keys(mirror, "numbers"), ["a"])

    def test_a_site_offers_the_lists_of_another_again_over_mutual_tls(self) -> Deferred[None]:
        """Changes pass through; when the first site is back the second is right again."""
        return Deferred.fromCoroutine(self._chain())

    async def _chain(self) -> None:
        authority = Authority(self.directory)
        certificate, key = authority.issue("site")
        tls = {
            "certificate": str(certificate),
            "key": str(key),
            "authority": str(authority.path),
        }
        # Where it is to come back: no port that the system may give to somebody else meanwhile.
        listen = f"tcp:{free_port()}:interface=127.0.0.1"
        first = await self.run_site(tls=tls, listen=listen)
        first.put(1)
        self.assertTrue(first.address.startswith("gridnets://"))
        follow = {"source": first.address, "name": "first", "delivery_seconds": 1}
        second = await self.run_site(tls=tls, follow=[follow])
        identity = read_identity(certificate, key, "x")
        authorities = read_authorities(authority.path, "x")
        mirror = self.follow(
            second.address, "first/services", identity=identity, authorities=authorities
        )
        await mirror.when_current("first/services")
        first.put(2)
        await self.until(lambda: len(self.keys(mirror, "first/services")) == 2)

        await first.stop()
        await self.until(lambda: second.site.status.failures() != {})
        self.assertEqual(len(self.keys(mirror, "first/services")), 2)
        third = await self.run_site(tls=tls, listen=listen)
        third.put(7)
        await self.until(lambda: [k[-2:] for k in self.keys(mirror, "first/services")] == [":7"])
        self.assertEqual(second.site.status.failures(), {})

    def test_a_site_that_was_asked_to_leave_comes_back(self) -> Deferred[None]:
        """After ``comes_back_seconds``: it is to follow."""
        return Deferred.fromCoroutine(self._comes_back())

    async def _comes_back(self) -> None:
        first = await self.run_site()
        follow = {"source": first.address, "name": "first", "delivery_seconds": 1}
        second = await self.run_site(follow=[follow], comes_back_seconds=0.1)
        (mirror,) = [each.service for each in second.mirror.followers]
        await self.until(lambda: mirror.client.is_registered)
        states: list[str] = []
        mirror.on_state(lambda state, reason: states.append(state))
        keeper = first.mirror.keeper
        keeper.master.shut_down_dynamic(keeper.now)
        keeper.touch()
        await self.until(lambda: states[-1:] == ["registered"])
        self.assertEqual(states, ["ended", "registered"])

    def test_a_stranger_gets_no_list_over_tls(self) -> Deferred[None]:
        """Without a certificate of the authority there is no registration."""
        return Deferred.fromCoroutine(self._stranger())

    async def _stranger(self) -> None:
        authority, other = Authority(self.directory), Authority(self.directory, "other")
        certificate, key = authority.issue("site")
        running = await self.run_site(
            tls={
                "certificate": str(certificate),
                "key": str(key),
                "authority": str(authority.path),
            }
        )
        partings: list[str] = []
        identity = read_identity(*other.issue("stranger"), "x")
        stranger = self.follow(
            running.address,
            "services",
            identity=identity,
            authorities=read_authorities(authority.path, "x"),
        )
        stranger.on_state(lambda state, reason: partings.append(reason))
        await self.until(lambda: len(partings) > 1)
        self.assertEqual(running.mirror.keeper.master.clients, {})
        self.assertFalse(stranger.mirror.is_current("services"))

    def test_event_clients_see_own_jobs_as_those_of_a_qmaster(self) -> Deferred[None]:
        """A job comes, runs and ends, in the events of Grid Engine."""
        return Deferred.fromCoroutine(self._native())

    async def _native(self) -> None:
        running = await self.run_site(gridengine_listen="tcp:0:interface=127.0.0.1")
        jobs = Numbers()
        jobs.object_type = "jobs"
        jobs.rows = {"job/1": {"state": "Submitted", "owner": "ann"}}
        running.site.provide(IObjectSource, jobs, "jobs")
        running.mirror.offered()
        mirror = self.follow(running.site.addresses["mirror"]["gridengine"])
        seen: list[tuple[int, int, int]] = []

        def note(
            _: Mirror, kind: object, action: object, element: object, event: Any, data: object
        ) -> None:
            seen.append((event.event, event.int_key, event.int_key2))

        mirror.subscribe("JOB", note, flush_seconds=0)
        mirror.subscribe("JATASK", note, flush_seconds=0)
        await self.until(lambda: len(mirror.mirror.list("JOB")) == 1)
        (job,) = mirror.mirror.list("JOB")
        self.assertEqual((job["JB_job_name"], job["JB_owner"]), ("job/1", "ann"))
        seen.clear()
        jobs.put("job/2", {"state": "Submitted", "owner": "ben"})
        jobs.put("job/2", {"state": "Running", "owner": "ben"})
        jobs.put("job/2", {"state": "Done", "owner": "ben"})
        await self.until(lambda: bool(seen) and seen[-1][0] == 33)
        self.assertEqual(seen, [(32, 2, 0), (26, 2, 1), (28, 2, 1), (37, 2, 1), (33, 2, 1)])


class BrowserTests(SiteTestCase):
    """Server-sent events on the status listener."""

    def setUp(self) -> None:
        super().setUp()
        self.pool = HTTPConnectionPool(reactor, persistent=False)
        self.addCleanup(self.pool.closeCachedConnections)
        self.agent = Agent(reactor, pool=self.pool)

    async def get(self, running: RunningSite, path: str) -> Any:
        base = running.site.addresses["status"].removesuffix("/status")
        return await self.agent.request(b"GET", f"{base}{path}".encode())

    def test_a_browser_gets_the_list_and_then_the_changes(self) -> Deferred[None]:
        """In the form of an event stream; what it leaves is forgotten."""
        return Deferred.fromCoroutine(self._stream())

    async def _stream(self) -> None:
        running = await self.run_site()
        running.put(1)
        response = await self.get(running, "/mirror/services")
        self.assertEqual(response.headers.getRawHeaders("content-type"), ["text/event-stream"])
        lines = Lines()
        response.deliverBody(lines)
        await self.until(lambda: "event: list" in lines.text)
        running.put(2)
        running.put(2, rate=50)
        await self.until(lambda: "event: modify" in lines.text)
        events = [part.split("\n") for part in lines.text.split("\n\n") if "data: " in part]
        self.assertEqual([event[0] for event in events], ["id: 1", "id: 2", "id: 3"])
        self.assertEqual(
            [event[1] for event in events], ["event: list", "event: add", "event: modify"]
        )
        (row,) = json.loads(events[0][2].removeprefix("data: "))
        self.assertEqual((row["service"], row["port"]), ("Echo", 1))
        self.assertEqual(json.loads(events[2][2].removeprefix("data: "))["base_rate"], 50.0)
        lines.transport.loseConnection()  # type: ignore[union-attr]
        await self.until(lambda: not running.mirror.keeper.master.clients)

    def test_lists_are_named_and_others_are_not_found(self) -> Deferred[None]:
        """As JSON."""
        return Deferred.fromCoroutine(self._names())

    async def _names(self) -> None:
        running = await self.run_site(max_streams=0)
        for path, status in (("/mirror", 200), ("/mirror/x", 404), ("/mirror/services", 503)):
            response = await self.get(running, path)
            self.assertEqual(response.code, status)
            found = json.loads(await readBody(response))
            if status != 503:
                self.assertEqual(found["lists"], ["hosts", "penalties", "services"])

    def test_streams_end_with_the_site(self) -> Deferred[None]:
        """A browser then tries again by itself."""
        return Deferred.fromCoroutine(self._end())

    async def _end(self) -> None:
        running = await self.run_site()
        response = await self.get(running, "/mirror/hosts")
        lines = Lines()
        response.deliverBody(lines)
        await self.until(lambda: "event: list" in lines.text)
        await running.stop()
        await lines.ended

    def test_the_status_page_follows_its_tables(self) -> Deferred[None]:
        """Only beside an event mirror."""
        return Deferred.fromCoroutine(self._page())

    async def _page(self) -> None:
        running = await self.run_site()
        page = await readBody(await self.get(running, "/status"))
        self.assertIn(b"new EventSource(`/mirror/${name}`)", page)


class CommandTests(SiteTestCase):
    """``gridnet mirror`` and ``gridnet jobs`` against a site."""

    async def run_(self, *words: str, status: int = 0) -> str:
        out, err, ended = await getProcessOutputAndValue(
            sys.executable, ("-m", "gridnet.cli", *words), {"PYTHONPATH": str(ROOT)}
        )
        self.assertEqual(ended, status, (words, out, err))
        text: str = out.decode() + (err.decode() if status else "")
        return text

    def test_lists_are_named_shown_and_followed(self) -> Deferred[None]:
        """Text for people, JSON for programs, conditions and choices by the master."""
        return Deferred.fromCoroutine(self._lists())

    async def _lists(self) -> None:
        running = await self.run_site()
        for port in (1, 2, 3):
            running.put(port, rate=port * 10)
        source = ("--source", running.address)
        names = (await self.run_("mirror", "types", *source)).split()
        self.assertEqual(names, ["hosts", "penalties", "services"])
        condition = ("--where", "port>=2", "--where", "service=Echo", "--what", "port")
        listed = await self.run_("mirror", "list", "services", *source, *condition, "--json")
        rows = [json.loads(line) for line in listed.splitlines()]
        self.assertEqual([row["port"] for row in rows], [2, 3])
        self.assertEqual({frozenset(row) for row in rows}, {frozenset({"key", "port"})})
        watching = self.run_(
            "mirror", "watch", "services", *source, *condition, "--count", "3", "--json"
        )
        waiting = Deferred.fromCoroutine(watching)
        await self.until(lambda: bool(running.mirror.keeper.master.clients))
        await self.until(lambda: any(c.sent for c in running.mirror.keeper.master.clients.values()))
        running.put(1, rate=1)
        running.put(4)
        running.site.table.remove(Entry("Echo", parse_server("STANDALONE 127.0.0.1:2"), owner="me"))
        changes = [json.loads(line) for line in (await waiting).splitlines()]
        self.assertEqual([each["action"] for each in changes], ["list", "add", "delete"])
        self.assertEqual(changes[0]["count"], 2)
        self.assertEqual(changes[1]["element"]["port"], 4)
        self.assertEqual(changes[2]["key"], "echo STANDALONE 127.0.0.1:2")

    def test_a_reader_that_has_seen_enough_ends_a_watch(self) -> Deferred[None]:
        """As with ``gridnet mirror watch | head -1``."""

        async def drive() -> None:
            running = await self.run_site()
            running.put(1, rate=10)
            command = f"{sys.executable} -m gridnet.cli mirror watch --source {running.address}"
            ending = getProcessOutputAndValue(
                "/bin/bash",
                ("-o", "pipefail", "-c", f"{command} | head -n 1"),
                {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]},
            )
            # Whether anybody reads shows with the next change that is printed.
            for rate in count(11):
                if ending.called:
                    break
                running.put(1, rate=rate)
                await deferLater(reactor, 0.1)
            out, err, ended = await ending
            self.assertEqual((len(out.splitlines()), ended), (1, 0), err)
            self.assertNotIn(b"pipe", err)

        return Deferred.fromCoroutine(drive())

    def test_a_command_runs_at_each_event_of_a_kind(self) -> Deferred[None]:
        """Type, action and key are its arguments, the change its input."""
        return Deferred.fromCoroutine(self._trigger())

    async def _trigger(self) -> None:
        running = await self.run_site()
        script = self.directory / "script"
        script.write_text('#!/bin/sh\necho "$@"\ncat\n')
        script.chmod(0o755)
        words = ("mirror", "trigger", "--source", running.address, "--count", "2")
        waiting = Deferred.fromCoroutine(self.run_(*words, "services:add", str(script), "x"))
        await self.until(lambda: any(c.sent for c in running.mirror.keeper.master.clients.values()))
        running.put(5)
        running.put(5, rate=7)
        running.put(6)
        lines = (await waiting).splitlines()
        heads = [line for line in lines if line.startswith("x ")]
        self.assertEqual(
            sorted(heads),
            [f"x services:add echo STANDALONE 127.0.0.1:{port}" for port in (5, 6)],
        )
        inputs = [json.loads(line) for line in lines if line.startswith("{")]
        self.assertEqual({each["element"]["port"] for each in inputs}, {5, 6})

    def test_the_example_in_the_documentation_prints_what_happens(self) -> Deferred[None]:
        """As it stands there."""
        return Deferred.fromCoroutine(self._example())

    async def _example(self) -> None:
        running = await self.run_site()
        running.put(1)
        output = ""

        class Child(ProcessProtocol):
            ended: Deferred[None] = Deferred()

            def outReceived(self, data: bytes) -> None:
                nonlocal output
                output += data.decode()

            def processEnded(self, reason: Any) -> None:
                self.ended.callback(None)

        child = Child()
        words = [sys.executable, str(ROOT / "docs" / "examples" / "watch_jobs.py")]
        words += [running.address, "services"]
        reactor.spawnProcess(child, words[0], words, {"PYTHONPATH": str(ROOT)})
        await self.until(lambda: "1 of them" in output)
        running.put(2)
        await self.until(lambda: "add {" in output)
        child.transport.signalProcess("TERM")  # type: ignore[union-attr]
        await child.ended
        await self.until(lambda: not running.mirror.keeper.master.clients)

    def test_what_cannot_be_is_said_with_a_status(self) -> Deferred[None]:
        """A list that is none, a master that is none, a source that is none."""
        return Deferred.fromCoroutine(self._faults())

    async def _faults(self) -> None:
        running = await self.run_site()
        source = ("--source", running.address)
        text = await self.run_("mirror", "list", "nothing", *source, status=1)
        self.assertIn("the master has no list 'nothing'", text)
        text = await self.run_("mirror", "list", "hosts", "--source", "x://y", status=2)
        self.assertIn("an unknown kind of source", text)
        nobody = ("--source", "gridnet://127.0.0.1:1", "--wait", "0.5")
        text = await self.run_("mirror", "list", "hosts", *nobody, status=1)
        self.assertIn("no master for 0.5 s", text)
        text = await self.run_("mirror", "list", "hosts", *source, "--where", "x", status=1)
        self.assertIn("expected ATTRIBUTE", text)

    def test_the_table_of_jobs_is_printed_once_or_at_each_change(
        self,
    ) -> Deferred[None]:
        """From a gridnet that serves event clients, and from its own list."""
        return Deferred.fromCoroutine(self._jobs())

    async def _jobs(self) -> None:
        running = await self.run_site(gridengine_listen="tcp:0:interface=127.0.0.1")
        jobs = Numbers()
        jobs.object_type = "jobs"
        jobs.rows = {"https://h/1": {"state": "Running", "owner": "ann"}}
        running.site.provide(IObjectSource, jobs, "jobs")
        running.mirror.offered()
        native = running.site.addresses["mirror"]["gridengine"]
        await self.until(lambda: running.mirror.native.master.lists.count("JOB") == 1)
        text = await self.run_("jobs", "--source", native, "--json")
        (row,) = json.loads(text)
        self.assertEqual((row["user"], row["state"], row["name"]), ("ann", "r", "https://h/1"))
        text = await self.run_("jobs", "--source", running.address)
        self.assertEqual(text.splitlines()[1].split(), ["https://h/1", "0.00000", "ann", "Running"])
        live = ChildProcess()
        words = [sys.executable, "-m", "gridnet.cli", "jobs", "--source", native, "--follow"]
        reactor.spawnProcess(live, words[0], words, {"PYTHONPATH": str(ROOT)})
        self.addCleanup(live.kill)
        await self.until(lambda: "ann" in live.output)
        self.assertNotIn("ben", live.output)
        jobs.put("https://h/2", {"state": "Submitted", "owner": "ben"})
        await self.until(lambda: "ben" in live.output)


class ConfigTests(SynchronousTestCase):
    """What the section refuses."""

    def refused(self, **mirror: Any) -> str:
        directory = Path(self.mktemp()).absolute()
        error = self.assertRaises(ConfigError, RunningSite, directory, **mirror)
        return str(error)

    def test_each_fault_names_its_key(self) -> None:
        self.assertIn("mirror.follow[0].source", self.refused(follow=[{"source": "x://y"}]))
        self.assertIn("mirror.allowed", self.refused(allowed=["300.1.1.1"]))
        self.assertIn("mirror.tls", self.refused(tls={"certificate": "x"}))
        self.assertIn("mirror.tls.certificate", self.refused(tls={"certificate": "x", "key": "y"}))
        self.assertIn("mirror.listen", self.refused(listen="nonsense:1"))
        twice = [{"source": "gridnet://h:1", "name": "n"}, {"source": "gridnet://i:1", "name": "n"}]
        self.assertIn("mirror.follow[1].name", self.refused(follow=twice))
        self.assertIn(
            "delivery_seconds",
            self.refused(follow=[{"source": "gridnet://h", "delivery_seconds": 600}]),
        )

    def test_a_type_that_a_qmaster_has_not_is_refused(self) -> None:
        follow = [{"source": "gridengine://127.0.0.1:1", "types": ["JOB", "NOTHING"]}]
        self.assertIn("mirror.follow[0].types: no object type NOTHING", self.refused(follow=follow))

    def test_the_defaults_stay_on_loopback(self) -> None:
        config = MirrorConfig()
        self.assertIn("interface=127.0.0.1", config.listen)
        self.assertEqual(config.gridengine_listen, "")
