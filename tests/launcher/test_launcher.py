"""Real programs, run for requests."""

from __future__ import annotations

import os
import random
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase
from zope.interface.verify import verifyObject

from gridnet.errors import LaunchError
from gridnet.interfaces import IProgramLauncher
from gridnet.launcher.config import LauncherConfig
from gridnet.launcher.office import ProgramLauncher
from gridnet.table.server_info import ServerInfo, ServerType
from gridnet.table.way_in import ConnectionPoint, LaunchRequest, RunningProgram
from tests.firewall.fixture import Talker, open_descriptors
from tests.log_events import observe_log

reactor: Any = _reactor
CAT = "/bin/cat"
RUNS = int(os.environ.get("GRIDNET_RUNS", "50"))
#: Far more than anything here takes.
PATIENCE_SECONDS = 60.0
CONFIG = LauncherConfig(
    interface="127.0.0.1",
    advertise="127.0.0.1",
    goodbye_seconds=0.2,
    termination_seconds=0.3,
    descendants_seconds=0.3,
    stop_seconds=0.2,
)


class Output:
    """Keeps what a program writes, and how it ended."""

    def __init__(self) -> None:
        self.heard = bytearray()
        self.program: RunningProgram | None = None
        self.over: Deferred[tuple[int | None, str, int]] = Deferred()
        self.pauses = 0
        self.paused = False
        self.going_on: list[Deferred[None]] = []

    def output_received(self, data: bytes) -> None:
        self.heard += data

    def input_paused(self) -> None:
        self.pauses += 1
        self.paused = True

    def input_resumed(self) -> None:
        self.paused = False
        waiting, self.going_on = self.going_on, []
        for each in waiting:
            each.callback(None)

    async def feed(self, data: bytes) -> None:
        """Write *data* as fast as the program takes it, then end its input."""
        assert self.program is not None
        for at in range(0, len(data), 65536):
            self.program.write(data[at : at + 65536])
            if self.paused:
                waiting: Deferred[None] = Deferred()
                self.going_on.append(waiting)
                await waiting
        self.program.end_input()

    def program_ended(self, status: int | None, reason: str, http_status: int = 502) -> None:
        self.over.callback((status, reason, http_status))


class LauncherTestCase(TestCase):
    """A launcher, and nothing left of it afterwards."""

    timeout = 120
    config = CONFIG

    def setUp(self) -> Deferred[None]:  # type: ignore[override]  # trial waits
        self.unused: list[tuple[str, str]] = []
        self.refused = ""
        self.launcher = ProgramLauncher(
            self.config,
            reactor,
            "127.0.0.1",
            lambda client, service: self.unused.append((client, service)),
            lambda client: self.refused,
            random.Random(1),
        )
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir(parents=True)
        # What is opened once and kept is not counted.
        warm = self.launcher.run(self.request("/bin/true"), Output())
        warm.end_input()

        async def warmed() -> None:
            await self.launcher.all_gone()
            self.launcher.counts["started"] = 0
            self.before = open_descriptors()

        return Deferred.fromCoroutine(warmed())

    def tearDown(self) -> Deferred[None]:  # type: ignore[override]  # trial waits
        async def end() -> None:
            self.launcher.close()
            self.launcher.kill()
            await self.launcher.all_gone()
            self.assertEqual(len(self.launcher.slots), 0)
            self.assertEqual(zombies(), [])
            await self.until(lambda: open_descriptors() <= self.before, "descriptors are left")

        return Deferred.fromCoroutine(end())

    async def until(self, holds: Callable[[], object], failing: str) -> None:
        """Wait until *holds*, far longer than it takes."""
        begin = reactor.seconds()
        while not holds():
            if reactor.seconds() - begin > PATIENCE_SECONDS:
                self.fail(failing)
            await deferLater(reactor, 0.01, lambda: None)

    def script(self, text: str) -> str:
        """The command of a Python program."""
        path = self.directory / f"script{len(list(self.directory.iterdir()))}.py"
        path.write_text(text)
        return f'"{sys.executable}" -S "{path}"'

    def request(self, command: str, **changes: Any) -> LaunchRequest:
        server = ServerInfo(ServerType.NCBID, "127.0.0.1", 80)
        return evolve(
            LaunchRequest("Filter", server, command, "192.0.2.7", path="/Service/ncbid.cgi"),
            **changes,
        )

    def run_program(self, command: str, **changes: Any) -> Output:
        output = Output()
        output.program = self.launcher.run(self.request(command, **changes), output)
        return output

    async def result(
        self, command: str, said: bytes = b"", **changes: Any
    ) -> tuple[bytes, int | None, str, int]:
        output = self.run_program(command, **changes)
        assert output.program is not None
        output.program.write(said)
        output.program.end_input()
        status, reason, http_status = await output.over
        return bytes(output.heard), status, reason, http_status


def zombies() -> list[str]:
    """Children of this process that have not been collected."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                _, _, rest = (entry / "stat").read_text().rpartition(")")
            except OSError:
                continue
            state, parent = rest.split()[:2]
            if state == "Z" and int(parent) == os.getpid():
                found.append(entry.name)
    return found


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class StatelessTests(LauncherTestCase):
    """The request's body goes in, what comes out is the reply."""

    def test_it_is_a_program_launcher(self) -> None:
        verifyObject(IProgramLauncher, self.launcher)

    def test_a_filter_filters(self) -> Deferred[None]:
        async def scenario() -> None:
            found = await self.result("/usr/bin/tr a-z A-Z", b"hello, world\n")
            self.assertEqual(found, (b"HELLO, WORLD\n", 0, "", 502))

        return Deferred.fromCoroutine(scenario())

    def test_ten_megabytes_pass_with_back_pressure(self) -> Deferred[None]:
        async def scenario() -> None:
            data = random.Random(3).randbytes(10_000_000)
            output = self.run_program(CAT)
            await output.feed(data)
            self.assertEqual((await output.over)[:2], (0, ""))
            self.assertEqual(bytes(output.heard), data)
            self.assertGreater(output.pauses, 0)

        return Deferred.fromCoroutine(scenario())

    def test_fifty_at_once(self) -> Deferred[None]:
        self.launcher.slots.per_service = 50

        async def scenario() -> None:
            found = await gatherResults(
                [
                    Deferred.fromCoroutine(self.result(CAT, b"%d " % number * 10_000))
                    for number in range(50)
                ]
            )
            for number, (heard, status, *_) in enumerate(found):
                self.assertEqual((heard, status), (b"%d " % number * 10_000, 0))

        return Deferred.fromCoroutine(scenario())

    def test_sixty_four_at_once_never_exceed_the_limit(self) -> Deferred[None]:
        async def scenario() -> None:
            outputs = []
            turned_away = 0
            for _ in range(64):
                try:
                    outputs.append(self.run_program(CAT))
                except LaunchError as error:
                    self.assertEqual(error.http_status, 503)
                    turned_away += 1
            self.assertEqual((len(outputs), turned_away), (32, 32))
            self.assertEqual(len(self.launcher.running), 32)
            for output in outputs:
                assert output.program is not None
                output.program.end_input()
                await output.over
            self.assertEqual(len(self.launcher.running), 0)

        return Deferred.fromCoroutine(scenario())

    def test_output_may_come_before_any_input_is_read(self) -> Deferred[None]:
        command = self.script(
            "import sys\n"
            "sys.stdout.buffer.write(b'x' * 1_000_000); sys.stdout.flush()\n"
            "sys.stdout.buffer.write(sys.stdin.buffer.read())\n"
        )

        async def scenario() -> None:
            output = self.run_program(command)
            await output.feed(b"y" * 1_000_000)
            await output.over
            self.assertEqual(bytes(output.heard), b"x" * 1_000_000 + b"y" * 1_000_000)

        return Deferred.fromCoroutine(scenario())

    def test_a_program_that_does_not_read_is_no_error(self) -> Deferred[None]:
        async def scenario() -> None:
            output = self.run_program("/bin/echo done")
            await output.feed(b"y" * 3_000_000)
            self.assertEqual((await output.over)[:2], (0, ""))
            self.assertEqual(output.heard, b"done\n")

        return Deferred.fromCoroutine(scenario())

    def test_output_waits_for_a_slow_client(self) -> Deferred[None]:
        async def scenario() -> None:
            output = self.run_program(CAT)
            assert output.program is not None
            output.program.pause_output()
            output.program.write(b"z" * 3_000_000)
            output.program.end_input()
            await deferLater(reactor, 0.2, lambda: None)
            self.assertEqual(len(output.heard), 0)
            output.program.resume_output()
            await output.over
            self.assertEqual(len(output.heard), 3_000_000)

        return Deferred.fromCoroutine(scenario())

    def test_failures_are_told(self) -> Deferred[None]:
        killed = self.script("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
        half = self.script("import sys; print('half', flush=True); sys.exit(4)")

        async def scenario() -> None:
            self.assertEqual(
                await self.result(self.script("raise SystemExit(3)")),
                (b"", 3, "exit status 3", 502),
            )
            self.assertEqual(await self.result(killed), (b"", None, "killed by SIGSEGV", 502))
            self.assertEqual(await self.result(half), (b"half\n", 4, "exit status 4", 502))

        return Deferred.fromCoroutine(scenario())

    def test_a_grandchild_that_holds_the_output_is_not_waited_for(self) -> Deferred[None]:
        note = self.directory / "grandchild"
        command = self.script(
            "import subprocess, sys\n"
            "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
            f"open({str(note)!r}, 'w').write(str(child.pid))\n"
            "print('parent', flush=True)\n"
        )

        async def scenario() -> None:
            heard, status, *_ = await self.result(command)
            self.assertEqual((heard, status), (b"parent\n", 0))
            pid = int(note.read_text())
            await self.until(lambda: not alive(pid), "the grandchild lives")

        return Deferred.fromCoroutine(scenario())

    def test_a_client_that_leaves_ends_the_program(self) -> Deferred[None]:
        deaf = self.script(
            "import signal, time\n"
            "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "print('up', flush=True)\n"
            "time.sleep(600)\n"
        )

        async def scenario() -> None:
            for command in (CAT, deaf):
                output = self.run_program(command)
                assert output.program is not None
                if command is deaf:
                    await self.until(lambda: output.heard == b"up\n", "it does not begin")  # noqa: B023
                output.program.abandon()
                await self.launcher.all_gone()
                self.assertFalse(output.over.called)

        return Deferred.fromCoroutine(scenario())

    def test_a_program_gets_its_request_and_nothing_else(self) -> Deferred[None]:
        command = self.script(
            "import os, json, sys\n"
            "print(json.dumps({'environment': dict(os.environ), 'arguments': sys.argv[1:],\n"
            "  'fds': sorted(int(f) for f in os.listdir('/proc/self/fd')),\n"
            "  'group': os.getpgid(0) == os.getpid(), 'where': os.getcwd()}))\n"
        )

        async def scenario() -> None:
            import json

            heard, *_ = await self.result(
                command + " 'fixed word'",
                query="one+two",
                platform="vms",
                headers=(("Host", "h"), ("Content-Length", "0")),
            )
            told = json.loads(heard)
            self.assertEqual(told["arguments"], ["fixed word", "one", "two"])
            self.assertEqual(told["environment"]["NI_CLIENT_IPADDR"], "192.0.2.7")
            self.assertEqual(told["environment"]["NI_CLIENT_PLATFORM"], "vms")
            self.assertEqual(told["environment"]["PATH"], self.config.path)
            self.assertNotIn("HOME", told["environment"])
            self.assertEqual(told["where"], "/")
            self.assertTrue(told["group"])
            # 3 is the directory being listed.
            self.assertEqual(told["fds"], [0, 1, 2, 3])

        return Deferred.fromCoroutine(scenario())

    def test_programs_that_may_not_be_run_are_not(self) -> None:
        open_to_all = self.directory / "open"
        open_to_all.write_text("#!/bin/sh\n")
        open_to_all.chmod(0o777)
        plain = self.directory / "plain"
        plain.write_text("")
        for command in ("cat", "/no/such/program", str(open_to_all), str(plain), "/tmp", "'/bin"):
            error = self.assertRaises(LaunchError, self.run_program, command)
            self.assertEqual(error.http_status, 500)
        self.assertEqual(len(self.launcher.slots), 0)

    def test_a_long_body_is_refused_before_anything_runs(self) -> None:
        headers = (("Content-Length", str(64 * 1024 * 1024 + 1)),)
        error = self.assertRaises(LaunchError, self.run_program, CAT, headers=headers)
        self.assertEqual(error.http_status, 413)

    def test_no_zombie_is_left_of_many_runs(self) -> Deferred[None]:
        """``GRIDNET_RUNS=500`` is the full run."""

        async def scenario() -> None:
            for _ in range(RUNS // 10):
                await gatherResults(
                    [Deferred.fromCoroutine(self.result("/bin/true")) for _ in range(10)]
                )
            self.assertEqual(zombies(), [])
            self.assertEqual(self.launcher.counts["started"], RUNS)

        return Deferred.fromCoroutine(scenario())


class LimitTests(LauncherTestCase):
    """Programs that take too much are ended."""

    config = evolve(
        CONFIG,
        max_output_octets=1_000_000,
        max_input_octets=1_000_000,
        cpu_seconds=1,
        memory_octets=400_000_000,
        open_files=20,
    )

    def test_silence_ends_it(self) -> Deferred[None]:
        self.launcher.config = evolve(self.config, silence_seconds=0.2)

        async def scenario() -> None:
            output = self.run_program(CAT)
            _, reason, http_status = await output.over
            self.assertIn("no octet", reason)
            self.assertEqual(http_status, 504)

        return Deferred.fromCoroutine(scenario())

    def test_too_long_a_run_ends_it(self) -> Deferred[None]:
        self.launcher.config = evolve(self.config, wall_seconds=0.3)

        async def scenario() -> None:
            command = self.script(
                "import time\nwhile True: print('.', flush=True); time.sleep(0.05)\n"
            )
            output = self.run_program(command)
            _, reason, _ = await output.over
            self.assertIn("too long", reason)

        return Deferred.fromCoroutine(scenario())

    def test_too_much_output_ends_it(self) -> Deferred[None]:
        async def scenario() -> None:
            output = self.run_program("/usr/bin/yes")
            _, reason, _ = await output.over
            self.assertIn("wrote too much", reason)
            self.assertLess(len(output.heard), 1_200_000)

        return Deferred.fromCoroutine(scenario())

    def test_too_much_input_ends_it(self) -> Deferred[None]:
        async def scenario() -> None:
            output = self.run_program(CAT)
            assert output.program is not None
            output.program.write(b"x" * 1_000_001)
            _, reason, http_status = await output.over
            self.assertIn("too long", reason)
            self.assertEqual(http_status, 413)

        return Deferred.fromCoroutine(scenario())

    def test_complaints_are_logged_with_the_request(self) -> Deferred[None]:
        events: list[Any] = []
        observe_log(self, events.append)
        command = self.script("import sys; print('alas\\nand alack', file=sys.stderr)")

        async def scenario() -> None:
            await self.result(command, request_id="42ab")
            lines = [
                (each["service"], each["request_id"], each["line"])
                for each in events
                if "line" in each
            ]
            self.assertEqual(lines, [("Filter", "42ab", "alas"), ("Filter", "42ab", "and alack")])

        return Deferred.fromCoroutine(scenario())

    def test_programs_may_be_somebody_elses(self) -> Deferred[None]:
        """For which the site needs the privilege; without it nothing is run as oneself instead."""
        self.launcher.config = evolve(self.config, user="nobody", memory_octets=0)
        command = "/usr/bin/id -un"

        async def scenario() -> None:
            if os.geteuid() == 0:
                heard, *_ = await self.result(command)
                self.assertEqual(heard, b"nobody\n")
                heard, *_ = await self.result("/usr/bin/id -Gn")
                self.assertEqual(heard, b"nogroup\n")
            else:
                with self.assertRaises(LaunchError):
                    self.run_program(command)
            self.launcher.config = evolve(self.config, user="nobody-of-that-name")
            with self.assertRaises(LaunchError):
                self.run_program(command)

        return Deferred.fromCoroutine(scenario())

    def test_the_system_limits_are_set(self) -> Deferred[None]:
        command = self.script(
            "import resource as r\n"
            "print([r.getrlimit(x)[0] for x in (r.RLIMIT_CPU, r.RLIMIT_AS, r.RLIMIT_NOFILE)])\n"
        )

        async def scenario() -> None:
            heard, *_ = await self.result(command)
            self.assertEqual(heard, b"[1, 400000000, 20]\n")

        return Deferred.fromCoroutine(scenario())


class StatefulTests(LauncherTestCase):
    """One connection, and it is the program's standard input and output."""

    config = evolve(CONFIG, max_waiting=3)

    async def point(self, command: str) -> ConnectionPoint:
        return await self.launcher.listen_once(self.request(command))

    async def dial(self, point: ConnectionPoint, talker: Talker) -> Talker:
        endpoint = TCP4ClientEndpoint(reactor, point.host, point.port)
        await endpoint.connect(Factory.forProtocol(lambda: talker))
        return talker

    def test_the_ticket_starts_the_program_and_the_rest_is_its_own(self) -> Deferred[None]:
        async def scenario() -> None:
            data = random.Random(4).randbytes(2_000_000)
            point = await self.point(CAT)
            self.assertEqual(self.launcher.running, set())
            talker = Talker(point.ticket.to_bytes(4, "big") + data)
            await self.dial(point, talker)
            await talker.over
            self.assertEqual(bytes(talker.heard), data)
            await self.launcher.all_gone()
            self.assertEqual(self.unused, [])

        return Deferred.fromCoroutine(scenario())

    def test_the_ticket_may_come_octet_by_octet(self) -> Deferred[None]:
        async def scenario() -> None:
            point = await self.point("/usr/bin/tr a-z A-Z")
            talker = await self.dial(point, Talker(stay=True))
            talker.transport.setTcpNoDelay(True)
            for octet in point.ticket.to_bytes(4, "big"):
                talker.transport.write(bytes([octet]))
                await deferLater(reactor, 0.02, lambda: None)
            talker.transport.write(b"abc")
            talker.end()
            await talker.over
            self.assertEqual(talker.heard, b"ABC")

        return Deferred.fromCoroutine(scenario())

    def test_a_second_connection_is_refused(self) -> Deferred[None]:
        async def scenario() -> None:
            point = await self.point(CAT)
            talker = await self.dial(point, Talker(point.ticket.to_bytes(4, "big"), stay=True))
            await self.until(lambda: self.launcher.running, "it does not run")
            with socket.socket() as second:
                second.settimeout(PATIENCE_SECONDS)
                self.assertNotEqual(second.connect_ex((point.host, point.port)), 0)
            talker.transport.abortConnection()

        return Deferred.fromCoroutine(scenario())

    def test_a_wrong_ticket_starts_nothing(self) -> Deferred[None]:
        async def scenario() -> None:
            for said in (b"\0\0\0\0", b"abc", b""):
                point = await self.point(CAT)
                talker = await self.dial(point, Talker(said, stay=said == b"\0\0\0\0"))
                await talker.peer_end
                talker.transport.abortConnection()
                self.assertEqual(talker.heard, b"")
            self.assertEqual(self.launcher.counts["started"], 0)
            self.assertEqual(len(self.unused), 3)

        return Deferred.fromCoroutine(scenario())

    def test_a_ticket_that_does_not_come_and_a_client_that_does_not(self) -> Deferred[None]:
        self.launcher.config = evolve(self.config, ticket_seconds=0.2)

        async def scenario() -> None:
            point = await self.point(CAT)
            talker = await self.dial(point, Talker(b"ab", stay=True))
            await talker.peer_end
            talker.transport.abortConnection()
            self.launcher.config = evolve(self.config, connect_seconds=0.2)
            await self.point(CAT)
            await self.until(lambda: not self.launcher.waiting, "it waits for ever")
            self.assertEqual(self.unused, [("192.0.2.7", "Filter")] * 2)
            self.assertEqual(self.launcher.counts["ports not used"], 2)

        return Deferred.fromCoroutine(scenario())

    def test_ports_and_clients_are_limited(self) -> Deferred[None]:
        async def scenario() -> None:
            for _ in range(3):
                await self.point(CAT)
            with self.assertRaises(LaunchError) as caught:
                await self.point(CAT)
            self.assertEqual(caught.exception.http_status, 503)
            self.refused = "not you"
            with self.assertRaises(LaunchError) as caught:
                await self.point(CAT)
            self.assertEqual(caught.exception.http_status, 403)

        return Deferred.fromCoroutine(scenario())

    def test_the_end_of_the_program_ends_the_connection(self) -> Deferred[None]:
        async def scenario() -> None:
            point = await self.point("/bin/echo bye")
            talker = Talker(point.ticket.to_bytes(4, "big"), stay=True)
            await self.dial(point, talker)
            await talker.hears(4)
            await self.launcher.all_gone()
            self.assertEqual(talker.heard, b"bye\n")
            talker.transport.loseConnection()
            await talker.over

        return Deferred.fromCoroutine(scenario())
