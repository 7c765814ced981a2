"""The client: its session, blocking and deferred, and the two commands."""

from __future__ import annotations

import errno
import io
import json
import os
import socket
import threading
from collections.abc import Coroutine
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase, TestCase

from gridnet.lbproxy import client, frames, results
from gridnet.lbproxy.client import Context, DeferredContext, LbError, StreamEvent, make_job_id
from gridnet.lbproxy.command import main as lb
from gridnet.lbproxy.events import parse
from gridnet.lbproxy.frames import OK, FrameReader, Reply
from gridnet.lbproxy.http import ReplyReader
from gridnet.lbproxy.jobid import JobId
from gridnet.lbproxy.query import ResultMode
from gridnet.lbproxy.session import ClientSettings, Session, settings_from, snake_case
from gridnet.lbproxy.upkeep import age
from gridnet.lbproxy.upkeep import main as upkeep
from tests.lbproxy.child import shared_child, wait_for
from tests.lbproxy.ledgers import job
from tests.lbproxy.running import RunningProxy
from tests.lbproxy.vectors import capture, code

USER = "/O=Grid/O=Example/CN=Jan Novak"


class ReplyTests(SynchronousTestCase):
    """Recorded replies as the client reads them."""

    def result(self, name: str) -> Any:
        found = ReplyReader(1 << 20).receive(capture(f"{name}.query-reply"))
        assert found is not None
        return results.parse_result(*found)

    def test_status(self) -> None:
        """Every value of the recording comes out, tags with their octets."""
        (status,) = results.parse_jobs(self.result("05-job-status"))
        self.assertEqual(status.state, "Waiting")
        self.assertEqual(status.owner, USER)
        self.assertEqual(status.job_type, "Simple")
        self.assertEqual(
            status.user_tags, {"mytag": 'back\\slash "q" <&\'> line\nfeed tab\tend 100%'}
        )
        self.assertEqual(status.fields["jdl"], '[ Executable = "/bin/hostname"; ]')
        self.assertEqual(status.fields["lastUpdateTime"], 1795310529.192750)
        self.assertEqual(status.state_enter_times, {"Submitted": 1795310529, "Waiting": 1795310529})
        self.assertTrue(json.dumps(status.as_json()))

    def test_events(self) -> None:
        """Words of enumerations by name."""
        found = results.parse_events(self.result("06-job-log"))
        self.assertEqual(
            [one.event for one in found], ["RegJob", "UserTag", "Transfer", "Accepted"]
        )
        self.assertEqual(found[2].fields["result"], "OK")
        self.assertEqual(found[0].fields["jobtype"], "SIMPLE")
        self.assertEqual((found[3].host, found[3].instance), ("wms.example.org", "7443"))
        self.assertTrue(json.dumps(found[0].as_json()))

    def test_ids(self) -> None:
        """Ids without states."""
        (status,) = results.parse_jobs(self.result("07-query-jobs"))
        self.assertEqual((status.state, status.job_id[-5:]), ("Unknown", "Job0A"))

    def test_errors(self) -> None:
        """Error replies become errors with their numbers."""
        for name, number in (("08-unknown-job", 2), ("11-purged-job", 43)):
            error = self.assertRaises(LbError, self.result, name)
            self.assertEqual(error.number, number)
        for status, body in ((400, b""), (200, b""), (200, b"nonsense"), (404, b"<a/>")):
            error = self.assertRaises(LbError, results.parse_result, status, body)
            self.assertEqual(error.number, 1408)
        for text in ("<jobStat/>", '<jobStat name="Done"><done_code>x</done_code></jobStat>'):
            root = results.xml.parse(f"<r><edg_wll_Job>{text}<jobId/></edg_wll_Job></r>".encode())
            if "done_code" in text:
                self.assertRaises(LbError, results.parse_jobs, root)

    def test_broken_replies(self) -> None:
        """A reply without a length or status is a fault, not an endless wait."""
        for octets in (b"HTTP/1.1 200 OK\r\n\r\n", b"nonsense\r\n\r\n", b"x" * 2000):
            reader = ReplyReader(1000)
            self.assertIsNone(reader.receive(octets))
            self.assertTrue(reader.fault)


class SessionTests(SynchronousTestCase):
    """What a client says, without a network."""

    def setUp(self) -> None:
        settings = ClientSettings("/s", "/q", USER)
        self.session = Session(settings, host="ui.example.org", clock=lambda: 1795310529.050992)
        self.sent: list[Any] = []

    def run_call(self, call: Any, *answers: Any) -> Any:
        """Run a call with these answers, one a step."""
        left = list(answers)
        try:
            wanted = next(call)
            while True:
                self.sent += wanted
                answer = left.pop(0)
                wanted = call.throw(answer) if isinstance(answer, Exception) else call.send(answer)
        except StopIteration as done:
            return done.value

    def test_says_what_the_original_says(self) -> None:
        """A registration of both legs is the recorded one to the octet, so is what follows."""
        job_id = "https://localhost:9000/CaptureJobCaptureJob0A"
        fields = {
            "jdl": '[ Executable = "/bin/hostname"; ]',
            "ns": "https://wms.example.org:7443/glite_wms",
            "jobtype": "SIMPLE",
        }
        call = self.session.register(job_id, fields, user=None, exclusive=False, with_server=True)
        self.assertEqual(self.run_call(call, [OK, OK]), [])
        wanted = capture("01-register-both.store-request")
        self.assertEqual([one.message for one in self.sent], [wanted, wanted])
        self.session.clock = lambda: 1795310529.099443
        self.run_call(
            self.session.log_event(
                "UserTag",
                {"name": "MyTag", "value": 'back\\slash "q" <&\'> line\nfeed tab\tend 100%'},
            ),
            [OK],
        )
        self.assertEqual(self.sent[-1].message, capture("02-usertag-escaping.store-request"))
        self.session.clock = lambda: 1795310529.131895
        self.run_call(
            self.session.log_event(
                "Transfer",
                {
                    "destination": "NetworkServer",
                    "dest_host": "wms.example.org",
                    "dest_instance": "7443",
                    "job": "[ a = 1 ]",
                    "result": "OK",
                },
            ),
            [OK],
        )
        self.assertEqual(self.sent[-1].message, capture("03-transfer-ok.store-request"))

    def test_asks_what_the_original_asks(self) -> None:
        """Queries are the recorded ones to the octet."""
        job_id = "https://localhost:9000/CaptureJobCaptureJob0A"

        def body(name: str) -> bytes:
            return capture(f"{name}.query-request").partition(b"\r\n\r\n")[2]

        def answer(name: str) -> Any:
            return [ReplyReader(1 << 20).receive(capture(f"{name}.query-reply"))]

        self.session.source = "NetworkServer"
        self.run_call(self.session.set_job(job_id, None, None, False), answer("04-sequence-code"))
        self.assertEqual(self.sent[-1].body, body("04-sequence-code"))
        self.assertEqual(self.session.seqcode, code("UI3 NS1"))
        status = self.run_call(
            self.session.job_status(job_id, ["classadd"]), answer("05-job-status")
        )
        self.assertEqual((self.sent[-1].body, status.state), (body("05-job-status"), "Waiting"))
        found = self.run_call(self.session.job_log(job_id), answer("06-job-log"))
        self.assertEqual((self.sent[-1].body, len(found)), (body("06-job-log"), 4))
        conditions = [
            client.condition("owner", USER),
            [client.condition("status", "Waiting"), client.condition("status", "Ready")],
            client.condition("usertag", "x", "unequal", "mytag"),
        ]
        self.run_call(self.session.query_jobs(conditions, ["no_states"]), answer("07-query-jobs"))
        self.assertEqual(self.sent[-1].body, body("07-query-jobs"))
        gone, _ = self.run_call(self.session.purge([job_id]), answer("10-purge"))
        self.assertEqual((self.sent[-1].body, gone), (body("10-purge"), [job_id]))

    def test_codes(self) -> None:
        """The held code goes with each call and then on by one, also when the call fails."""
        self.run_call(self.session.set_job(job("a"), code("UI5"), None, False))
        self.assertEqual(self.session.seqcode, code("UI6"))
        self.run_call(self.session.log_event("Purge", {}), [OK])
        with self.assertRaises(LbError):
            self.run_call(self.session.log_event("Purge", {}), [Reply(700, 2, "no")])
        with self.assertRaises(LbError):
            self.run_call(self.session.log_event("Purge", {}), LbError(errno.EAGAIN, "lost"))
        codes = [
            parse(frames.event_line(FrameReader(1 << 20).receive(one.message)[0])).seqcode
            for one in self.sent
        ]
        self.assertEqual(codes, [code("UI6"), code("UI7"), code("UI8")])
        self.assertEqual(self.session.seqcode, code("UI9"))
        self.run_call(self.session.set_job(job("a"), code("UI5"), None, True))
        self.assertEqual(self.session.seqcode, code("UI1795310529"))

    def test_refusals(self) -> None:
        """Replies become the error numbers of the original, registrations theirs."""
        self.run_call(self.session.set_job(job("a"), code("UI5"), None, False))
        for reply, number in (
            (Reply(200, 0, ""), errno.ENOMEM),
            (Reply(400, 1403, ""), 1417),
            (Reply(600, 0, ""), errno.EPERM),
            (Reply(700, 2, ""), errno.ENOENT),
            (Reply(900, 0, ""), 1417),
        ):
            with self.assertRaises(LbError) as caught:
                self.run_call(self.session.log_event("Purge", {}), [reply])
            self.assertEqual(caught.exception.number, number)
        call = self.session.register(
            job("b"),
            {"ns": "n"} | {"jobtype": "SIMPLE"},
            user=None,
            exclusive=True,
            with_server=False,
        )
        with self.assertRaises(LbError) as caught:
            self.run_call(call, [Reply(600, 0, "owner")])
        self.assertEqual((caught.exception.number, caught.exception.text), (22, "owner"))

    def test_mistakes(self) -> None:
        """Our caller's mistakes are told without asking anybody."""
        session = self.session
        cases: list[tuple[Any, int]] = [
            (lambda: session.log_event("Purge", {}), 1415),
            (lambda: session.set_job("nonsense", "x", None, False), errno.EINVAL),
            (lambda: session.job_log(job("a"), "LOUD"), errno.EINVAL),
            (lambda: session.query_jobs({"owner": "x"}, ["colour"]), errno.EINVAL),
            (lambda: session.query_jobs({"owner": "\u20ac"}), errno.EINVAL),
        ]
        for make, number in cases:
            with self.assertRaises(LbError) as caught:
                self.run_call(make())
            self.assertEqual(caught.exception.number, number)
        self.run_call(session.set_job(job("a"), code("UI5"), None, False))
        for name, fields, number in (
            ("Novel", {}, 1402),
            ("UserTag", {"name": "n"}, 1403),
            ("UserTag", {"name": "n", "value": "v", "colour": "blue"}, 1403),
            ("Done", {"status_code": "WELL", "exit_code": 0}, 1403),
            ("UserTag", {"name": "n", "value": "a\0b"}, errno.EINVAL),
            ("UserTag", {"name": "n", "value": "\u20ac"}, errno.EINVAL),
        ):
            with self.assertRaises(LbError) as caught:
                self.run_call(session.log_event(name, fields))
            self.assertEqual(caught.exception.number, number, fields)
        self.assertEqual(self.sent, [])
        session.settings = evolve(session.settings, user="")
        with self.assertRaises(LbError) as caught:
            self.run_call(session.log_event("Purge", {}))
        self.assertEqual(
            (caught.exception.number, caught.exception.text),
            (errno.ENOENT, "No credentials found."),
        )

    def test_a_server_that_shares_the_store(self) -> None:
        """Its registrations go to it alone."""
        settings = evolve(self.session.settings, server_name="LB.example.org:9000")
        self.session.settings = settings
        call = self.session.register(
            job("a"), {"ns": "n", "jobtype": "SIMPLE"}, user=None, exclusive=False, with_server=True
        )
        self.run_call(call, [OK])
        self.assertEqual([type(one).__name__ for one in self.sent], ["ServerExchange"])

    def test_settings(self) -> None:
        """What is given, then the newer names, then the older, then the defaults."""
        old = {"EDG_WL_LBPROXY_STORE_SOCK": "/old", "EDG_WL_LBPROXY_USER": "/CN=old"}
        new = {"GLITE_WMS_LBPROXY_STORE_SOCK": "/new", "GLITE_WMS_QUERY_TIMEOUT": "1.5"}
        self.assertEqual(settings_from({}).store, "/tmp/lb_proxy_store.sock")
        self.assertEqual(settings_from({}).serve, "/tmp/lb_proxy_serve.sock")
        self.assertEqual(settings_from(old).store, "/old")
        self.assertEqual(settings_from(old).user, "/CN=old")
        both = settings_from({**old, **new})
        self.assertEqual((both.store, both.query_seconds, both.log_seconds), ("/new", 1.5, 120))
        self.assertEqual(settings_from(new, "/mine").store, "/mine")
        for number, paths in ((errno.E2BIG, ("x" * 200, "")), (errno.EINVAL, ("", "x" * 200))):
            with self.assertRaises(LbError) as caught:
                settings_from({}, *paths)
            self.assertEqual(caught.exception.number, number)

    def test_calls_by_event(self) -> None:
        """There is one call for each type that can be logged."""
        for kind in ("Transfer", "EnQueued", "UserTag", "ChangeACL", "PBSRun", "CREAMStore"):
            self.assertTrue(callable(getattr(Context, f"log_{snake_case(kind)}")), kind)
        self.assertEqual(snake_case("EnQueued"), "enqueued")
        self.assertEqual(snake_case("PBSInternalStateChange"), "pbs_internal_state_change")
        self.assertIn("one of START, OK", Context.log_transfer.__doc__ or "")  # type: ignore[attr-defined]


class ChildTestCase(SynchronousTestCase):
    """Tests that talk to a service in a process of its own."""

    def setUp(self) -> None:
        self.child = shared_child()


class ContextTests(ChildTestCase):
    """The blocking client against a real service."""

    def setUp(self) -> None:
        super().setUp()
        self.context = self.child.context(USER)
        self.addCleanup(self.context.close)
        self.job = make_job_id("lb.example.org")

    def test_a_life(self) -> None:
        """Registration to clearing through the calls by event; queries at every step."""
        context = self.context
        self.assertEqual(context.register_job(self.job, ns="wms", jdl="[ d ]"), [])
        self.assertEqual(context.job_status(self.job).state, "Submitted")
        context.log_transfer(destination="NetworkServer", dest_host="wms", job="[ j ]", result="OK")
        server = Context(settings=context.settings, source="NetworkServer", host="wms")
        server.set_logging_job_proxy(self.job)
        self.assertEqual(server.get_sequence_code(), code("UI2 NS1"))
        server.log_accepted(from_="UserInterface", from_host="ui")
        monitor = Context(settings=context.settings, source="LogMonitor", host="wms")
        monitor.set_logging_job_proxy(self.job)
        monitor.log_running(node="wn7")
        self.assertEqual(context.job_status(self.job).fields["ce_node"], "wn7")
        monitor.log_done(status_code="OK", exit_code=3, reason="")
        self.assertEqual(context.job_status(self.job).fields["exit_code"], 3)
        context.log_clear(reason="USER")
        names = [one.event for one in context.job_log(self.job)]
        # Clear has the code UI3, Accepted UI2 NS1: the order is that of the codes.
        wanted = ["RegJob", "Transfer", "Accepted", "Running", "Done", "Clear"]
        self.assertEqual(names, wanted)
        self.assertEqual(context.job_id, self.job)
        for one in (server, monitor):
            one.close()

    def test_queries(self) -> None:
        """Jobs and events by conditions, limits, listeners."""
        context = self.child.context("/CN=queries")
        with context:
            jobs = [make_job_id("lb.example.org") for _ in range(3)]
            for one in jobs:
                context.register_job(one, ns="wms")
                context.log_user_tag(name="colour", value="blue")
            context.log_listener(svc_name="shell", svc_host="wn7", svc_port=2222)
            self.assertEqual(sorted(one.job_id for one in context.user_jobs()), sorted(jobs))
            found = context.query_jobs({"owner": "/CN=queries", "status": ["Submitted", "Done"]})
            self.assertEqual(len(found), 3)
            self.assertEqual(found[0].user_tags, {"colour": "blue"})
            with self.assertRaises(LbError) as caught:
                context.query_jobs({"owner": "/CN=queries"}, limit=2, mode=ResultMode.NONE)
            self.assertEqual(caught.exception.number, 7)
            events = context.query_events({"owner": "/CN=queries"}, {"type": 21})
            self.assertEqual(len(events), 3)
            self.assertEqual(context.query_listener(jobs[-1], "shell"), ("wn7", 2222))
            with self.assertRaises(LbError):
                context.query_listener(jobs[-1], "other")
            with self.assertRaises(LbError) as caught:
                context.query_jobs({"owner": "/CN=nobody"})
            self.assertEqual(caught.exception.number, errno.ENOENT)

    def test_families(self) -> None:
        """Subjobs are those that were computed; registering them one by one keeps the context."""
        context = self.context
        subjobs = context.register_job(
            self.job, ns="wms", jobtype="COLLECTION", num_subjobs=2, seed="s"
        )
        self.assertEqual(subjobs, client.generate_subjob_ids(self.job, 2, "s"))
        before = context.get_sequence_code()
        context.register_subjobs_proxy(self.job, ["[ 1 ]", "[ 2 ]"], "wms", subjobs)
        self.assertEqual((context.job_id, context.get_sequence_code()), (self.job, before))
        status = context.job_status(self.job, "children", "childstat", "childhist_thorough")
        self.assertEqual(status.children, tuple(subjobs))
        self.assertEqual(status.children_histogram, {"Submitted": 2})
        self.assertEqual({one.job_id for one in status.children_states}, set(subjobs))
        child = context.job_status(subjobs[0], "classadd")
        self.assertEqual(child.fields["jdl"], "[ 1 ]")
        self.assertEqual(child.fields["parent_job"], self.job)

    def test_two_legs(self) -> None:
        """The same octets go to the job's own server, and either may refuse."""
        heard: list[tuple[JobId, bytes]] = []
        replies = [OK, Reply(700, 17, "exists")]

        def leg(job_id: JobId, message: bytes, seconds: float) -> Reply:
            heard.append((job_id, message))
            return replies.pop(0)

        with Context(settings=self.context.settings, server_leg=leg, host="ui") as context:
            context.register_job_proxy(self.job, ns="wms")
            self.assertEqual(str(heard[0][0]), self.job)
            self.assertIn(b"DG.PRIORITY=24 ", heard[0][1])
            self.assertEqual(context.job_status(self.job).state, "Submitted")
            with self.assertRaises(LbError) as caught:
                context.register_job_proxy(make_job_id(), ns="wms")
            self.assertEqual(caught.exception.number, errno.EEXIST)

    def test_the_way_to_the_server(self) -> None:
        """Plain TCP to the port plus one; nobody there is error 11."""
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            listening.listen()
            port = listening.getsockname()[1]
            heard = []

            def serve() -> None:
                connection, _ = listening.accept()
                with connection:
                    reader = FrameReader(1 << 20)
                    while not (bodies := reader.receive(connection.recv(1 << 16))):
                        pass
                    heard.append(frames.event_line(bodies[0]))
                    connection.sendall(frames.OK_FRAME)

            thread = threading.Thread(target=serve)
            thread.start()
            job_id = f"https://127.0.0.1:{port - 1}/{os.urandom(4).hex()}"
            self.context.register_job_proxy(job_id, ns="wms")
            thread.join()
            self.assertEqual(parse(heard[0]).type.name, "RegJob")
        with self.assertRaises(LbError) as caught:
            self.context.register_job_proxy(f"{job_id}2", ns="wms")
        self.assertEqual(caught.exception.number, errno.EAGAIN)

    def test_watching(self) -> None:
        """Events as they come; a consumer goes on where it stopped."""
        context = self.context
        context.register_job(self.job, ns="wms")
        found: list[StreamEvent] = []

        def watch() -> None:
            with self.child.context() as other:
                for one in other.watch(0, jobs=[self.job], wait=5):
                    found.append(one)
                    if one.event == "Done":
                        return

        thread = threading.Thread(target=watch)
        thread.start()
        wait_for(lambda: len(found) == 1)
        context.log_running(node="n")
        wait_for(lambda: len(found) == 2)
        context.log_done(status_code="OK", exit_code=0)
        thread.join(20)
        self.assertEqual([one.event for one in found], ["RegJob", "Running", "Done"])
        self.assertEqual([one.state for one in found], ["Submitted", "Running", "Done"])
        seen = []
        for _ in range(3):
            for one in context.watch(consumer="reader", jobs=[self.job], wait=1):
                seen.append(one.event)
                break
        # Each time the consumer left with one event in hand: it was not counted as taken.
        self.assertEqual(seen, ["RegJob"] * 3)
        position = found[0].position
        context.move_cursor("reader", position)
        (one, two), _ = context.poll(consumer="reader", jobs=[self.job], wait=1)
        self.assertEqual((one.event, two.event), ("Running", "Done"))

    def test_nobody_there(self) -> None:
        """No socket is error 11: come again."""
        with Context(store="/nowhere/s", serve="/nowhere/q", user="/CN=x") as context:
            with self.assertRaises(LbError) as caught:
                context.register_job(self.job, ns="wms")
            self.assertEqual(caught.exception.number, errno.EAGAIN)
            with self.assertRaises(LbError) as caught:
                context.job_status(self.job)
            self.assertEqual(caught.exception.number, errno.EAGAIN)

    def test_a_connection_that_was_closed(self) -> None:
        """The service closes idle connections; the next call does not notice."""
        context = self.context
        context.register_job(self.job, ns="wms")
        for line in (context._store, context._serve):
            assert line._socket is not None or line is context._serve
            if line._socket is not None:
                line._socket.shutdown(socket.SHUT_RDWR)
        context.log_chkpt(tag="t", classad="c")
        self.assertEqual(context.job_status(self.job).state, "Submitted")

    def test_answers_that_are_none(self) -> None:
        """A service that answers nonsense is told from one that is not there."""
        path = str(self.child.directory / "nonsense.sock")
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path)
            listening.listen()

            def serve() -> None:
                for octets in (b"nonsense nonsense", b"%16d\nabc" % 3, b"nonsense\r\n\r\n", b""):
                    connection, _ = listening.accept()
                    with connection:
                        connection.recv(1 << 16)
                        connection.sendall(octets)

            thread = threading.Thread(target=serve)
            thread.start()
            numbers = []
            for ask in (
                lambda one: one.log_event("Purge"),
                lambda one: one.log_event("Purge"),
                lambda one: one.job_status(self.job),
                lambda one: one.job_status(self.job),
            ):
                with Context(store=path, serve=path, user="/CN=x") as context:
                    context.set_logging_job_proxy(self.job, code("UI1"))
                    with self.assertRaises(LbError) as caught:
                        ask(context)
                    numbers.append(caught.exception.number)
            thread.join()
        self.assertEqual(numbers, [1417, 1417, 1408, 11])


class CommandTests(ChildTestCase):
    """gridnet lb and gridnet lbproxy."""

    def run_command(self, main: Any, *words: str) -> tuple[int, str, str]:
        """Exit status, standard output, standard error."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            try:
                status = main(list(words))
            except SystemExit as end:
                status = int(str(end.code))
        return status, out.getvalue(), err.getvalue()

    def lb(self, verb: str, *words: str) -> tuple[int, str, str]:
        return self.run_command(
            lb, verb, "--store", self.child.store, "--serve", self.child.serve, *words
        )

    def upkeep(self, *words: str) -> tuple[int, str, str]:
        return self.run_command(upkeep, words[0], "--serve", self.child.serve, *words[1:])

    def register(self, *words: str) -> str:
        status, out, err = self.lb("register", *words)
        self.assertEqual((status, err), (0, ""))
        return out.split()[0]

    def test_a_life(self) -> None:
        """Register, log, status, events, jobs, watch: as people and as programs read them."""
        name = self.register("--user", "/CN=cli", "--jdl", "[ d ]")
        words = ("--user", "/CN=cli", name)
        self.assertEqual(
            self.lb("log", *words, "Running", "node=wn7", "--source", "LogMonitor"), (0, "", "")
        )
        self.assertEqual(self.lb("log", *words, "UserTag", "name=Tag", "value=a=b")[0], 0)
        _, out, _ = self.lb("status", name)
        self.assertIn("state              Running\n", out)
        self.assertIn("tag tag            a=b\n", out)
        shown = json.loads(self.lb("status", "--json", "--all", name)[1])
        self.assertEqual((shown["state"], shown["jdl"]), ("Running", "[ d ]"))
        _, out, _ = self.lb("events", name)
        self.assertEqual(
            [row.split()[2] for row in out.splitlines()[1:]], ["RegJob", "Running", "UserTag"]
        )
        self.assertEqual(len(self.lb("events", "--json", name)[1].splitlines()), 3)
        _, out, _ = self.lb("jobs", "--owner", "/CN=cli", "--state", "Running")
        self.assertEqual(out.splitlines()[1].split()[:2], [name, "Running"])
        out = self.lb("jobs", "--tag", "tag=a=b", "--json", "--limit", "1")[1]
        self.assertEqual(json.loads(out)["job"], name)
        self.assertEqual(self.lb("jobs", "--owner", "/CN=none")[1].split()[0], "JOB")
        _, out, _ = self.lb("watch", name, "--after", "0", "--count", "2")
        self.assertEqual([row.split()[3] for row in out.splitlines()], ["RegJob", "Running"])
        self.lb("log", *words, "Done", "status_code=OK", "exit_code=0", "--source", "LogMonitor")
        out = self.lb("watch", name, "--after", "0", "--until-final", "--json")[1]
        self.assertEqual(json.loads(out.splitlines()[-1])["state"], "Done")

    def test_watching_goes_on_where_it_stopped(self) -> None:
        """What a consumer was shown is not shown again, and nothing is left out."""
        name = self.register()
        for number in range(5):
            self.lb("log", name, "Running", f"node=n{number}", "--source", "LogMonitor")
        seen = []
        for _ in range(3):
            _, out, _ = self.lb("watch", name, "--consumer", f"c{name}", "--count", "2")
            seen += [row.split()[-1] for row in out.splitlines()]
        self.assertEqual(seen[1:], [f"node=n{number}" for number in range(5)])

    def test_refusals(self) -> None:
        """One line on standard error and status 1; 2 for the command line."""
        for words, text in (
            (("status", "https://h/unknown"), "no matching jobs found (2)"),
            (("log", "https://h/unknown", "Purge"), "no state in DB (2)"),
            (("log", "nonsense", "Purge"), "not a job identifier"),
            (("log", "https://h/x", "Novel", "--seqcode", "x"), "is no event type"),
            (("log", "https://h/x", "UserTag", "name", "--seqcode", "x"), "expected FIELD=VALUE"),
        ):
            status, out, err = self.lb(*words)
            self.assertEqual((status, out), (1, ""), words)
            self.assertIn(text, err)
            self.assertEqual(len(err.splitlines()), 1)
        self.assertEqual(self.run_command(lb, "novel")[0], 2)
        self.assertEqual(self.run_command(lb)[0], 2)

    def test_purge(self) -> None:
        """Dry run, list, dump, load again; ages as people write them."""
        name = self.register()
        self.lb("log", name, "Done", "status_code=OK", "exit_code=0", "--source", "LogMonitor")
        # Strictly older than: a second has to pass.
        threading.Event().wait(1.1)
        _, out, err = self.upkeep("purge", "--older-than", "0s", "--dry-run")
        self.assertIn(name, out)
        self.assertIn("would go", err)
        self.assertEqual(self.upkeep("purge", "--older-than", "1d", "--list")[1], "")
        jobs = self.child.directory / "jobs"
        jobs.write_text(f"{name}\n\n")
        status, out, _ = self.upkeep("purge", "--jobs-from", str(jobs), "--dump", "--json")
        found = json.loads(out)
        self.assertEqual((found["jobs"], found["purged"]), ([name], True))
        self.assertIn("(43)", self.lb("status", name)[2])
        status, _, err = self.run_command(
            upkeep, "load", "--store", self.child.store, found["dump"]
        )
        self.assertEqual((status, err.split()[0]), (0, "2"))
        self.assertIn("Done", self.lb("status", name)[1])
        status, _, err = self.run_command(
            upkeep, "load", "--store", self.child.store, str(self.child.database)
        )
        self.assertEqual(status, 0)
        self.assertEqual(
            self.upkeep("purge", "--background", "--others", "31d")[2],
            "purging in the background\n",
        )
        for text, seconds in (
            ("90", 90),
            ("2m", 120),
            ("3h", 10800),
            ("2d", 172800),
            ("never", -2),
        ):
            self.assertEqual(age(text), seconds)
        self.assertEqual(self.run_command(upkeep, "purge", "--older-than", "soon")[0], 2)
        self.assertEqual(self.run_command(upkeep, "load", "/nowhere")[0], 1)

    def test_damaged_stores_can_be_loaded(self) -> None:
        """What can be read of a damaged file is entered."""
        name = self.register()
        for number in range(30):
            self.lb(
                "log",
                name,
                "UserTag",
                "name=n",
                "value=" + "v" * 3000,
                "--seqcode",
                code(f"UI{number + 2}"),
            )
        copy = Path(self.child.directory / "copy.sqlite")
        copy.write_bytes(self.child.database.read_bytes())
        wal = Path(f"{self.child.database}-wal")
        Path(f"{copy}-wal").write_bytes(wal.read_bytes())
        status, _, err = self.run_command(upkeep, "load", "--store", self.child.store, str(copy))
        self.assertEqual(status, 0)
        self.assertGreaterEqual(int(err.split()[0]), 31)


class DeferredContextTests(TestCase):
    """The client for Twisted."""

    def setUp(self) -> Deferred[Any]:
        self.proxy = RunningProxy()
        return self.proxy.start()

    def tearDown(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.proxy.stop())

    def run_async(self, work: Coroutine[Deferred[Any], Any, None]) -> Deferred[None]:
        return Deferred.fromCoroutine(work)

    def make(self, **options: Any) -> DeferredContext:
        return DeferredContext(
            reactor, store=self.proxy.store, serve=self.proxy.serve, user=USER, host="ui", **options
        )

    def test_a_life(self) -> Deferred[None]:
        """The same calls, each a Deferred; calls of one context keep their order."""

        async def work() -> None:
            context = self.make()
            name = make_job_id("lb.example.org")
            await context.register_job(name, ns="wms")
            calls = [context.log_user_tag(name="n", value=str(number)) for number in range(20)]
            for call in calls:
                await call
            status = await context.job_status(name)
            self.assertEqual(status.user_tags, {"n": "19"})
            self.assertEqual(context.get_sequence_code(), code("UI22"))
            self.assertEqual(len(await context.job_log(name)), 21)
            self.assertEqual(len(await context.user_jobs()), 1)
            self.assertEqual(len(await context.query_jobs({"status": "Submitted"})), 1)
            self.assertEqual(len(await context.query_events({"jobId": name})), 21)
            self.assertEqual(await context.query_sequence_code(name), code("UI21"))
            other = self.make(source="NetworkServer")
            await other.set_logging_job_proxy(name)
            await other.log_listener(svc_name="s", svc_host="h", svc_port=1)
            self.assertEqual(await other.query_listener(name, "s"), ("h", 1))
            subjobs = await context.register_job(
                make_job_id(), ns="w", jobtype="COLLECTION", num_subjobs=1
            )
            await context.register_subjobs_proxy(context.job_id, ["[ 1 ]"], "w", subjobs)
            gone, _ = await context.purge([name])
            self.assertEqual(gone, [name])
            with self.assertRaises(LbError):
                await context.job_status(name)

        return self.run_async(work())

    def test_two_legs(self) -> Deferred[None]:
        """The leg to the server is a callable, or TCP."""

        async def work() -> None:
            heard: list[JobId] = []

            def leg(job_id: JobId, message: bytes, seconds: float) -> Deferred[Reply]:
                heard.append(job_id)
                answered: Deferred[Reply] = Deferred()
                answered.callback(OK)
                return answered

            name = make_job_id()
            await self.make(server_leg=leg).register_job_proxy(name, ns="wms")
            self.assertEqual([str(one) for one in heard], [name])
            with self.assertRaises(LbError) as caught:
                await self.make().register_job_proxy("https://127.0.0.1:1/x", ns="wms")
            self.assertEqual(caught.exception.number, errno.EAGAIN)

        return self.run_async(work())

    def test_following(self) -> Deferred[None]:
        """Events come to a callable, through a restart of the service."""

        async def work() -> None:
            context = self.make()
            found: list[StreamEvent] = []
            follower = context.follow(found.append, 0)
            name = make_job_id()
            await context.register_job(name, ns="wms")
            await self.until(lambda: len(found) >= 1)
            await self.proxy.stop(forget=False)
            await self.proxy.start()
            await context.log_running(node="n")
            await self.until(lambda: len(found) >= 2)
            self.assertEqual([one.event for one in found], ["RegJob", "Running"])
            events, reached = await context.poll(0, jobs=[name], wait=0)
            self.assertEqual([one.position for one in events], [one.position for one in found])
            self.assertEqual(reached, follower.position)
            follower.cancel()
            await self.until(lambda: not self.proxy.service.book.hub.followers)

        return self.run_async(work())

    def test_following_from_now_on(self) -> Deferred[None]:
        """What happens while the service is away is not missed, though nothing was seen before."""

        async def work() -> None:
            context = self.make()
            found: list[StreamEvent] = []
            follower = context.follow(found.append)
            await self.until(lambda: follower.position is not None)
            await self.proxy.stop(forget=False)
            await self.proxy.start()
            # Before the follower is back, or after: it makes no difference.
            await context.register_job(make_job_id(), ns="wms")
            await self.until(lambda: found)
            follower.cancel()
            await follower.done
            await context.move_cursor("c", found[0].position)
            await context.log_running(node="n")
            resumed = context.follow(found.append, consumer="c")
            await self.until(lambda: len(found) >= 2)
            self.assertEqual([one.event for one in found], ["RegJob", "Running"])
            resumed.cancel()

        return self.run_async(work())

    def test_what_is_refused(self) -> Deferred[None]:
        """A follower that asks for what is not there ends with the reason."""

        async def work() -> None:
            context = self.make()
            follower = context.follow(lambda event: None, states=["Novel"])
            with self.assertRaisesRegex(LbError, "'Novel' is no state"):
                await follower.done
            with self.assertRaisesRegex(LbError, "printable characters"):
                await context.move_cursor("\n", 1)
            self.assertEqual((await context.log_line(b"nonsense")).minor, 1401)

        return self.run_async(work())

    async def until(self, is_enough: Any) -> None:
        while not is_enough():
            waiting: Deferred[None] = Deferred()
            reactor.callLater(0.01, waiting.callback, None)
            await waiting

    def test_nobody_there(self) -> Deferred[None]:
        """No socket is error 11; a follower waits."""

        async def work() -> None:
            context = DeferredContext(reactor, store="/nowhere", serve="/nowhere", user="/CN=x")
            with self.assertRaises(LbError) as caught:
                await context.register_job(make_job_id(), ns="n")
            self.assertEqual(caught.exception.number, errno.EAGAIN)
            follower = context.follow(lambda event: None)
            await self.until(lambda: follower._timer is not None)
            follower.cancel()

        return self.run_async(work())
