"""The demo site as its user meets it."""

from __future__ import annotations

import atexit
import http.client
import io
import json
import os
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from twisted.trial.unittest import SynchronousTestCase

from gridnet.control import ask
from gridnet.demo.command import main
from gridnet.demo.plan import DemoPlan
from gridnet.demo.tour import tour
from gridnet.lbproxy.client import Context, make_job_id
from tests.integration.demo_process import ROOT, DemoProcess
from tests.ports import free_block


class PlanTests(SynchronousTestCase):
    """Ports of the demo."""

    def test_the_ports_after_the_dispatchers_stay_free(self) -> None:
        """Whoever watches the demo may take them."""
        plan = DemoPlan(Path("d"), 20000, Path("s"), sys.executable)
        self.assertEqual(plan.port(0), 20000)
        self.assertEqual(plan.port(99), 20099)
        for offset in (1, 9, 100, -1):
            self.assertRaises(ValueError, plan.port, offset)


class CommandLineTests(SynchronousTestCase):
    """Words that the demo cannot use."""

    def test_bad_words_end_with_usage(self) -> None:
        """Status 2, nothing started."""
        for words in (
            [],
            ["--dir", "x", "--port-base", "0"],
            ["--dir", "x", "--port-base", "65500"],
            ["--dir", "x", "--port-base", "20000", "--firewall-ports", "9-1"],
            ["--dir", "x", "--port-base", "20000", "--firewall-ports", "a-b"],
            ["--dir", "/dev/null/x", "--port-base", "20000"],
        ):
            done = subprocess.run(
                [sys.executable, "-m", "gridnet.cli", "demo", *words],
                env={"PYTHONPATH": str(ROOT)},
                capture_output=True,
                check=False,
            )
            self.assertEqual(done.returncode, 2, words)
            self.assertIn(b"usage: gridnet demo", done.stderr)
        self.assertTrue(callable(main))


@cache
def the_demo() -> DemoProcess:
    """One demo site for all tests that only ask it (trial has no fixtures of classes)."""
    demo = DemoProcess(free_block(100))
    atexit.register(demo.kill)
    return demo


class DemoSiteTests(SynchronousTestCase):
    """What a visitor finds."""

    def setUp(self) -> None:
        self.demo = the_demo()

    def ask(self, path: str, method: str = "GET", **headers: str) -> http.client.HTTPResponse:
        """The dispatcher's reply; its body is read."""
        address = urlsplit(self.demo.ready["dispatch"]["http"])
        connection = http.client.HTTPConnection("127.0.0.1", address.port, timeout=20)
        self.addCleanup(connection.close)
        body = headers.pop("body", None)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body=body, headers=names)
        return connection.getresponse()

    def test_the_dispatcher_has_the_first_port_for_both_schemes(self) -> None:
        """Plain and TLS on one port."""
        base = self.demo.base
        addresses = self.demo.ready["dispatch"]
        self.assertEqual(addresses["http"], f"http://127.0.0.1:{base}")
        self.assertEqual(addresses["https"], f"https://127.0.0.1:{base}")

    def test_each_service_is_found(self) -> None:
        """A look-up names a server on the demo's own ports."""
        for service in ("Echo", "Upper", "Hello", "Bounce"):
            reply = self.ask(
                f"/Service/dispd.cgi?service={service}", Dispatch_Mode="INFORMATION_ONLY"
            )
            reply.read()
            self.assertEqual(reply.status, 200, service)
            self.assertIn("127.0.0.1:", reply.headers["Server-Info-1"])

    def test_each_service_does_its_work_through_the_relay(self) -> None:
        """Echo echoes, the filter filters, the HTTP program answers."""
        for service, sent, expected in (
            ("Echo", "hello", b"hello"),
            ("Upper", "shout", b"SHOUT"),
            ("Bounce", "back", b"back"),
        ):
            reply = self.ask(
                f"/Service/dispd.cgi?service={service}",
                "POST",
                body=sent,
                Client_Mode="STATELESS_ONLY",
            )
            self.assertEqual((reply.status, reply.read()), (200, expected), service)

    def test_the_tour_shows_every_way_to_a_service(self) -> None:
        """Looked up, relayed, and through a ticket."""
        demo = self.demo
        plan = DemoPlan(demo.directory, demo.base, demo.directory / "servrc.cfg", "python3")
        out = io.StringIO()
        tour(demo.ready, plan, out)
        self.assertIn("Upper(b'hello, filter\\n') -> 200 b'HELLO, FILTER\\n'", out.getvalue())
        self.assertRegex(out.getvalue(), r"Echo through 127\.0\.0\.1 \d+ \w{8} -> b'hello, ticket")
        self.assertIn(demo.ready["status"], out.getvalue())
        self.assertRegex(
            out.getvalue(),
            r"run (\d+): pending -> sent -> received -> running -> succeeded\nrun \1 said b'hello",
        )

    def test_jobs_can_be_logged_at_the_sockets_it_names(self) -> None:
        """Those of the LB proxy, for their owner alone."""
        sockets = self.demo.ready["lbproxy"]
        self.assertLessEqual({"store", "serve"}, set(sockets))
        for path in (sockets["store"], sockets["serve"]):
            self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)
        with Context(store=sockets["store"], serve=sockets["serve"], user="/CN=me") as context:
            job = make_job_id()
            context.register_job(job, ns="here")
            self.assertEqual(context.job_status(job).state, "Submitted")

    def test_the_lists_of_the_site_can_be_mirrored(self) -> None:
        """At the address it announced: those of every component."""
        source = self.demo.ready["mirror"]["gridnet"]
        done = subprocess.run(
            [sys.executable, "-m", "gridnet.cli", "mirror", "types", "--source", source],
            env={"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(
            done.stdout.split(), ["hosts", "jobs", "penalties", "runs", "services", "sessions"]
        )
        self.assertTrue(self.demo.ready["mirror"]["gridengine"].startswith("gridengine://"))

    def test_the_status_listener_shows_the_services(self) -> None:
        """HTML for people, JSON for programs, metrics, health."""
        address = urlsplit(self.demo.ready["status"])
        for path, part in (
            ("/status", b"Bounce"),
            ("/status.json", b'"service": "Echo"'),
            ("/metrics", b"# TYPE"),
            ("/healthz", b"ok"),
        ):
            connection = http.client.HTTPConnection("127.0.0.1", address.port, timeout=20)
            connection.request("GET", path)
            reply = connection.getresponse()
            body = reply.read()
            connection.close()
            self.assertEqual(reply.status, 200, path)
            self.assertIn(part, body, path)

    def test_a_second_host_gossips_with_the_first(self) -> None:
        """Each daemon shows both hosts, and answers with what the other publishes."""
        ready = self.demo.ready
        for addresses in (ready, ready["second-host"]):
            table = ask(Path(addresses["lbsmd"]["control"]), {"ask": "table"})
            hosts = {host["address"] for host in table["hosts"]}
            self.assertEqual(hosts, {"127.0.0.1", "127.0.0.2"})
            owners = {each["service"]: each["owner"] for each in table["services"]}
            self.assertEqual((owners["Echo"], owners["Echo3"]), ("127.0.0.1", "127.0.0.2"))
        reply = self.ask(
            "/Service/dispd.cgi?service=Echo3",
            "POST",
            body="there",
            Client_Mode="STATELESS_ONLY",
        )
        self.assertEqual((reply.status, reply.read()), (200, b"there"))

    def test_an_order_to_the_first_host_reaches_the_owner(self) -> None:
        """It is done by the second host and known at the first."""
        control = Path(self.demo.ready["lbsmd"]["control"])
        question = {"ask": "feedback", "argument": "Echo3 STANDALONE 127.0.0.2 40 60"}
        ask(control, question)
        for name in ("first", "second"):
            where = self.demo.ready if name == "first" else self.demo.ready["second-host"]
            deadline = time.monotonic() + 5
            while True:
                table = ask(Path(where["lbsmd"]["control"]), {"ask": "table"})
                (echo,) = [each for each in table["services"] if each["service"] == "Echo3"]
                if echo["penalty"] == 40 or time.monotonic() > deadline:
                    break
                time.sleep(0.1)
            self.assertEqual(echo["penalty"], 40, name)


def _processes_with(text: str) -> list[str]:
    """The command lines that hold *text*, of all processes that run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:  # it has ended
            continue
        if text in line:
            found.append(line)
    return found


class StoppingTests(SynchronousTestCase):
    """Signals end the demo."""

    def test_sigterm_and_sigint_end_it_cleanly_and_soon(self) -> None:
        """Status 0, and within the 5 s that it promises; nothing more on standard output."""
        for number in (signal.SIGTERM, signal.SIGINT):
            demo = DemoProcess(free_block(100))
            status, seconds = demo.stop(number)
            self.assertEqual(status, 0)
            self.assertLess(seconds, 5.0)

    def test_nothing_is_left_when_it_is_killed(self) -> None:
        """Its second host and the job server's client end by themselves."""
        demo = DemoProcess(free_block(100))
        self.addCleanup(demo.kill)
        began = _processes_with(str(demo.directory))
        self.assertGreaterEqual(len(began), 2, began)
        demo.process.kill()
        deadline = time.monotonic() + 30
        while (left := _processes_with(str(demo.directory))) and time.monotonic() < deadline:
            time.sleep(0.1)
        self.assertEqual(left, [])

    def test_a_port_in_use_ends_it_with_a_message(self) -> None:
        """Status 1; no line of JSON."""
        first = DemoProcess(free_block(100))
        self.addCleanup(first.kill)
        error = self.assertRaises(AssertionError, DemoProcess, first.base)
        self.assertIn("in use", str(error))

    def test_it_serves_the_definitions_it_is_given(self) -> None:
        """``--servrc`` takes the place of its own."""
        path = Path(self.mktemp()).absolute()
        path.write_text("Mine [0] STANDALONE 127.0.0.1:9 L=no\n")
        demo = DemoProcess(free_block(100), ["--servrc", str(path)])
        self.addCleanup(demo.kill)
        address = urlsplit(demo.ready["status"])
        connection = http.client.HTTPConnection("127.0.0.1", address.port, timeout=20)
        self.addCleanup(connection.close)
        connection.request("GET", "/status.json")
        services = json.loads(connection.getresponse().read())["services"]
        names = {service["service"] for service in services}
        self.assertIn("Mine", names)
        # Components may enter themselves; of the demo's own definitions there is none.
        self.assertEqual(names & {"Echo", "Echo2", "Upper", "Hello", "Bounce"}, set())
