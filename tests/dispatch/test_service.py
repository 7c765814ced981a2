"""The dispatcher as a service: start, announce, stop, with and without workers."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import evolve
from prometheus_client import generate_latest
from twisted.application.service import IService, IServiceMaker
from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import ConnectionRefusedError, ProcessTerminated
from twisted.internet.protocol import ClientCreator
from twisted.internet.task import Clock, deferLater
from twisted.plugin import getPlugins
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from gridnet.component import components
from gridnet.config import SiteConfig, SiteSection
from gridnet.dispatch.config import DispatchConfig
from gridnet.dispatch.service import Dispatching, make_dispatch
from gridnet.dispatch.workers import Crew
from gridnet.errors import ConfigError
from gridnet.interfaces import IProgramLauncher, ITableFollower, ITicketOffice
from gridnet.site import Site
from gridnet.table.model import Entry
from gridnet.table.server_info import parse
from tests.dispatch.support import HERE, INFO, Conversation, Transport, make_front, make_table
from tests.dispatch.test_dedicated import Launcher, Office

PROGRAM = (
    b"POST /Service/ncbid.cgi?service=filter HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"
)
AUX = (
    b"GET /Service/dispd.cgi?service=bounce HTTP/1.1\r\nHost: h\r\n"
    b"Client-Mode: STATEFUL_CAPABLE\r\nClient-Revision: 7.0\r\n"
    b"Accepted-Server-Types: FIREWALL\r\n\r\n"
)


class SiteCase(TestCase):
    """A site with a dispatcher on a free port."""

    timeout = 60

    def setUp(self) -> None:
        self.core: Any = reactor
        self.clients: list[Conversation] = []
        self.service: Any = None

    def tearDown(self) -> Deferred[None]:  # type: ignore[override]  # trial waits
        return Deferred.fromCoroutine(self.close())

    async def close(self) -> None:
        """End what is left."""
        for client in self.clients:
            client.transport.abortConnection()
            await client.ended
        if self.service is not None and self.service.running:
            await maybeDeferred(self.service.stopService)

    def make(self, directory: Path | None = None, **config: Any) -> Site:
        """A site with the service, not started."""
        if directory is None:
            directory = Path(self.mktemp())
            directory.mkdir()
        section = SiteSection(state_dir=directory / "state")
        self.site = Site(SiteConfig(section, {}, directory), self.core)
        for entry in make_table(
            "bounce STANDALONE 127.0.0.1:7 L=no\nfilter NCBID 127.0.0.1:80 '' L=no | /bin/cat"
        ).all_entries():
            self.site.table.put(entry)
        settings = {"listen": f"tcp:0:interface={HERE}", "drain_seconds": 1.0, **config}
        made: Any = make_dispatch(DispatchConfig(**settings), self.site)
        self.service = made
        return self.site

    async def start(self) -> Any:
        """Start it; gives the addresses once it answers."""
        self.service.privilegedStartService()
        self.service.startService()
        return (await self.site.ready())["dispatch"]

    async def client(self) -> Conversation:
        """A client's connection."""
        port = int(self.site.addresses["dispatch"]["http"].rpartition(":")[2])
        client: Conversation = await ClientCreator(self.core, Conversation).connectTCP(HERE, port)
        self.clients.append(client)
        return client

    async def ask(self, request: bytes, until: bytes = b"\r\n\r\n") -> bytes:
        """The reply to *request* on a connection of its own."""
        client = await self.client()
        client.write(request)
        return await client.until(until)

    async def soon(self, test: Callable[[], bool]) -> None:
        """Wait until *test* holds."""
        for _ in range(400):
            if test():
                return
            await deferLater(self.core, 0.05)
        raise AssertionError("it never happens")


class OneProcessTests(SiteCase):
    """Everything in the site's process."""

    async def test_it_answers_and_says_where(self) -> None:
        """Addresses for plain HTTP and TLS, on one port; a certificate has been made."""
        site = self.make()
        addresses = await self.start()
        self.assertEqual(addresses["https"], addresses["http"].replace("http", "https"))
        self.assertIn(b"Server-Info-1: STANDALONE 127.0.0.1:7 ", await self.ask(INFO))
        self.assertTrue((site.state_dir / "dispatch-key.pem").exists())

    async def test_status_and_metrics(self) -> None:
        """What it does can be seen."""
        site = self.make()
        await self.start()
        await self.ask(INFO)
        await self.ask(b"nonsense\r\n\r\n")
        facts = site.status.facts["dispatch"]()
        json.dumps(facts)
        self.assertEqual(facts["replies"]["INFO 200"], 1)
        self.assertEqual(facts["refused"]["malformed"], 1)
        self.assertEqual((facts["accepted"], facts["workers"]), (2, 1))
        self.assertEqual(site.status.failures(), {})
        metrics = generate_latest(site.status.metrics).decode()
        self.assertIn('gridnet_dispatch_replies_total{kind="INFO",status="200"} 1.0', metrics)
        self.assertIn("gridnet_dispatch_workers 1.0", metrics)

    async def test_behind_a_proxy_that_introduces_its_clients(self) -> None:
        """The PROXY protocol says who asks: what is for insiders is not for outsiders behind it."""
        self.make(listen=f"haproxy:tcp:0:interface={HERE}")
        await self.start()
        local = b"GET /x/dispd.cgi?service=LOCAL_IPS HTTP/1.1\r\nHost: h\r\n\r\n"
        for client, status in (("10.1.2.3", b"200"), ("127.0.0.9", b"200"), ("192.0.2.7", b"404")):
            line = f"PROXY TCP4 {client} 10.0.0.1 40000 80\r\n".encode()
            for _ in range(2):  # a head that is new, and one that is known
                octets = await self.ask(line + local)
                self.assertTrue(octets.startswith(b"HTTP/1.1 %b " % status), (client, octets))

    async def test_answers_kept_ready_are_bounded(self) -> None:
        """By their number, and by the servers in them."""
        for key, bound in (("cached_answers", 3), ("cached_servers", 2)):
            config: dict[str, Any] = {key: bound}
            self.make(**config)
            await self.start()
            for number in range(5):
                await self.ask(INFO.replace(b"\r\n\r\n", b"\r\nAffinity: a=%d\r\n\r\n" % number))
            self.assertEqual(self.service.front.dispatcher.cached, bound)
            await self.close()

    async def test_it_stops_when_idle(self) -> None:
        """Idle clients are let go, and nobody can connect any more."""
        self.make()
        await self.start()
        client = await self.client()
        await self.service.stopService()
        await client.ended
        with self.assertRaises(ConnectionRefusedError):
            await self.client()
        self.assertEqual(self.site.status.failures()["dispatch"], "1 of 1 workers do not serve")

    async def test_it_lets_a_request_end(self) -> None:
        """A request under way is answered before the end."""
        office = Office(Deferred())
        site = self.make()
        site.provide(ITicketOffice, office)
        await self.start()
        client = await self.client()
        client.write(AUX)
        await self.soon(lambda: bool(office.asked))
        stopping = self.service.stopService()
        office.answer.callback(Office().answer)
        await stopping
        self.assertIn(b"Connection-Info: 10.0.0.1 5861 12345678\r\n", await client.ended)

    async def test_it_does_not_wait_for_ever(self) -> None:
        """A request that does not end is cut off."""
        office = Office(Deferred())
        site = self.make(drain_seconds=0.2)
        site.provide(ITicketOffice, office)
        await self.start()
        client = await self.client()
        client.write(AUX)
        await self.soon(lambda: bool(office.asked))
        await self.service.stopService()
        self.assertEqual(await client.ended, b"")

    async def test_tls_switched_off(self) -> None:
        """Then there is no certificate, and no address for it."""
        site = self.make(tls=False)
        self.assertEqual(list(await self.start()), ["http"])
        self.assertFalse((site.state_dir / "dispatch-key.pem").exists())


class WorkerTests(SiteCase):
    """Several processes on one port."""

    def pids(self) -> list[int]:
        """The workers' processes."""
        found: list[int] = self.site.status.facts["dispatch"]()["worker_pids"]
        return found

    async def test_they_answer_from_one_table(self) -> None:
        """A change shows in every worker, and the site can wait for that."""
        site = self.make(workers=2)
        await self.start()
        self.assertEqual(len(set(self.pids())), 2)
        self.assertNotIn(os.getpid(), self.pids())
        follower = site.find(ITableFollower, "dispatch")
        for number in range(3):
            entry = site.table.entries("bounce")[0]
            site.table.remove(entry)
            info = parse(f"STANDALONE 127.0.0.1:{8 + number} L=no R=1000 T=30")
            site.table.put(Entry("bounce", info, owner=HERE, static=True))
            await follower.settled()
            for _ in range(6):
                self.assertIn(b" 127.0.0.1:%d " % (8 + number), await self.ask(INFO))

    async def test_sockets_left_behind(self) -> None:
        """Those of sites that were killed go; another site's stays."""
        directory = Path(tempfile.mkdtemp())  # sockets have no room for trial's paths
        self.addCleanup(shutil.rmtree, directory)
        site = self.make(directory, workers=2)
        sockets = []
        for number in (1, 2):
            left = socket.socket(socket.AF_UNIX)
            self.addCleanup(left.close)
            left.bind(str(site.state_dir / f"dispatch-{number}.socket"))
            left.listen()
            sockets.append(left)
        sockets[0].close()
        await self.start()
        found = {path.name for path in site.state_dir.glob("*.socket")}
        await self.service.stopService()  # before the directory goes
        self.assertEqual(found, {"dispatch-2.socket", f"dispatch-{os.getpid()}.socket"})

    async def test_one_that_is_killed(self) -> None:
        """Others go on answering, it is started again, and the numbers do not shrink."""
        site = self.make(workers=2)
        await self.start()
        for _ in range(4):
            await self.ask(INFO)
        await self.soon(lambda: site.status.facts["dispatch"]()["replies"].get("INFO 200") == 4)
        victim, other = self.pids()
        os.kill(victim, signal.SIGKILL)
        for _ in range(30):
            self.assertIn(b"HTTP/1.1 200 ", await self.ask(INFO))
        await self.soon(lambda: self.service.alive == 2 and victim not in self.pids())
        self.assertIn(other, self.pids())
        self.assertEqual(site.status.failures(), {})
        await self.soon(lambda: site.status.facts["dispatch"]()["replies"]["INFO 200"] == 34)

    async def test_a_stopped_one_gets_the_whole_table_later(self) -> None:
        """A worker that does not read costs bounded memory, and catches up."""
        site = self.make(workers=1 + 1)
        await self.start()
        follower = site.find(ITableFollower, "dispatch")
        sleeper, _ = self.pids()
        os.kill(sleeper, signal.SIGSTOP)
        for number in range(60):
            info = parse(f"STANDALONE 127.0.0.1:{100 + number} L=no R=1000 T=30")
            site.table.put(Entry("late", info, owner=HERE, static=True))
            await deferLater(self.core, 0)
        settled = follower.settled()
        await deferLater(self.core, 0.2)
        self.assertFalse(settled.called)
        os.kill(sleeper, signal.SIGCONT)
        await settled
        lookup = INFO.replace(b"service=bounce", b"service=late").replace(
            b"\r\n\r\n", b"\r\nServer-Count: ALL\r\n\r\n"
        )
        for _ in range(6):
            self.assertIn(b"Server-Info-60: ", await self.ask(lookup))

    async def test_what_only_the_site_can_answer(self) -> None:
        """Tickets and programs are asked of the site's process, bodies both ways."""
        office, launcher = Office(), Launcher()
        site = self.make(workers=2)
        site.provide(ITicketOffice, office)
        site.provide(IProgramLauncher, launcher)
        await self.start()
        self.assertIn(b"Connection-Info: 10.0.0.1 5861 12345678\r\n", await self.ask(AUX))
        self.assertEqual(office.asked[0].client, HERE)
        client = await self.client()
        client.write(PROGRAM)
        await self.soon(lambda: bool(launcher.programs) and bool(launcher.programs[0].events))
        (program,) = launcher.programs
        self.assertEqual((program.input, program.request.client), (b"hello", HERE))
        self.assertEqual(program.request.server_name, HERE)
        self.assertNotEqual(program.request.server_port, 0)
        names = [name.lower() for name, _ in program.request.headers]
        self.assertFalse([name for name in names if name.startswith("gridnet-")])
        program.output.output_received(b"HELLO")
        program.output.program_ended(0, "")
        self.assertIn(b"HELLO", await client.until(b"0\r\n\r\n"))

    async def test_outsiders_cannot_pass_for_others(self) -> None:
        """What the site's process is told of the client comes from the worker alone."""
        office = Office()
        site = self.make(workers=2)
        site.provide(ITicketOffice, office)
        await self.start()
        await self.ask(AUX.replace(b"\r\n\r\n", b"\r\nGridnet-Client: 1.2.3.4\r\n\r\n"))
        self.assertEqual(office.asked[0].client, HERE)

    async def test_they_end_with_the_site(self) -> None:
        """Stopping takes them along; nothing is left behind."""
        site = self.make(workers=2)
        await self.start()
        pids = self.pids()
        await self.service.stopService()
        for pid in pids:
            with self.assertRaises(ProcessLookupError):
                os.kill(pid, 0)
        self.assertEqual(list(site.state_dir.glob("*.socket")), [])


class _ProcessReactor(Clock):
    """A clock that pretends to start processes."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[Any] = []
        self.failures = 0  # starts that fail from now on

    def spawnProcess(self, protocol: Any, *arguments: Any, **more: Any) -> None:
        """Called by the crew."""
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EAGAIN, "no more processes")
        self.started.append(protocol)

    def adoptStreamConnection(self, descriptor: int, family: int, factory: Any) -> None:
        """Called by the crew."""
        factory.buildProtocol(None).makeConnection(Transport())

    def listenUNIX(self, path: str, factory: Any, mode: int) -> None:
        """Called by the crew."""


class RestartTests(SynchronousTestCase):
    """Workers that end are started again, not too eagerly."""

    def setUp(self) -> None:
        directory = Path(self.mktemp())
        directory.mkdir()
        self.clock = _ProcessReactor()
        site = Site(SiteConfig(SiteSection(state_dir=directory), {}, directory), self.clock)
        config = DispatchConfig(
            workers=2, worker_restart_seconds=0.5, worker_restart_max_seconds=3.0
        )
        office = make_front(site.table, self.clock, config, for_workers=True)
        self.crew = Crew(config, site, office, lambda: None, lambda: 0)
        self.crew.startService()

    def pause(self) -> float:
        """Seconds until the next worker starts."""
        before = self.clock.seconds()
        count = len(self.clock.started)
        while len(self.clock.started) == count:
            self.clock.advance(0.25)
        return self.clock.seconds() - before

    def test_the_pauses_between_attempts(self) -> None:
        """They double up to a limit; behind one that has served they are short again."""
        pauses = []
        for ready in (False, False, False, False, False, True, True, False):
            worker = self.clock.started[-1]
            worker.channel.ready = ready
            worker.processEnded(Failure(ProcessTerminated(1)))
            pauses.append(self.pause())
        self.assertEqual(pauses, [0.5, 1.0, 2.0, 3.0, 3.0, 0.5, 0.5, 1.0])
        self.crew.running = False
        self.clock.started[-1].processEnded(Failure(ProcessTerminated(1)))
        count = len(self.clock.started)
        self.clock.advance(60)
        self.assertEqual(len(self.clock.started), count)

    def test_no_process_to_be_had(self) -> None:
        """It is tried again, like a worker that ends at once."""
        self.clock.failures = 2
        self.clock.started[-1].processEnded(Failure(ProcessTerminated(1)))
        self.assertEqual(self.pause(), 0.5 + 1.0 + 2.0)
        self.assertEqual(sorted(self.crew.pids), [1, 2])


class CompositionTests(SynchronousTestCase):
    """How a site finds the dispatcher."""

    def test_the_component(self) -> None:
        """It is made behind the daemon that fills the table."""
        names = list(components())
        self.assertLess(names.index("lbsmd"), names.index("dispatch"))

    def test_the_command(self) -> None:
        """``twistd gridnet-dispatch`` is there."""
        self.assertIn("gridnet-dispatch", [each.tapname for each in getPlugins(IServiceMaker)])

    def test_it_is_a_service(self) -> None:
        """And faults in its section are said before anything starts."""
        directory = Path(self.mktemp())
        directory.mkdir()
        core: Any = reactor
        site = Site(SiteConfig(SiteSection(state_dir=directory), {}, directory), core)
        self.assertTrue(IService.providedBy(Dispatching(DispatchConfig(), site)))
        for config, key in [
            (DispatchConfig(certificate="x.pem"), "dispatch.certificate_key"),
            (DispatchConfig(certificate="x.pem", certificate_key="y"), "dispatch.certificate"),
            (DispatchConfig(server_authorities="x.pem"), "dispatch.server_authorities"),
            (DispatchConfig(listen="unix:x", workers=2), "dispatch.listen"),
            (DispatchConfig(listen="haproxy:tcp:0", workers=2), "dispatch.listen"),
        ]:
            other = Site(evolve(site.config), core)
            with self.assertRaises(ConfigError) as caught:
                make_dispatch(config, other)
            self.assertEqual(caught.exception.faults[0].where, key)
