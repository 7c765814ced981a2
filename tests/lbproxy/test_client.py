"""The blocking client."""

from __future__ import annotations

import errno
import os
import socket
import threading

from gridnet.lbproxy import client, frames
from gridnet.lbproxy.client import Context, LbError, StreamEvent, make_job_id
from gridnet.lbproxy.events import parse
from gridnet.lbproxy.frames import OK, FrameReader, Reply
from gridnet.lbproxy.jobid import JobId
from gridnet.lbproxy.query import ResultMode
from tests.lbproxy.child import ChildTestCase, wait_for
from tests.lbproxy.vectors import code

USER = "/O=Grid/O=Example/CN=Jan Novak"


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

    def test_servers_that_are_none(self) -> None:
        """What no name or port can be is one that does not answer."""
        with Context(settings=self.context.settings) as context:
            for server in ("a..b", "a" * 200, "127.0.0.1:65535"):
                with self.assertRaises(LbError) as caught:
                    context.register_job_proxy(f"https://{server}/x", ns="wms")
                self.assertEqual(caught.exception.number, errno.EAGAIN)

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
        one, two = context.poll(consumer="reader", jobs=[self.job], wait=1).events
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

    def test_a_connection_that_is_closed_just_then(self) -> None:
        """A kept connection that is lost before the answer is made anew, once, and not more."""
        path = str(self.child.directory / "closing.sock")
        heard: list[bytes] = []
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path)
            listening.listen()

            def serve() -> None:
                for answers in (1, 1, 0):  # messages of a connection that are answered
                    connection, _ = listening.accept()
                    with connection:
                        for _ in range(answers):
                            heard.append(connection.recv(1 << 16))
                            connection.sendall(frames.OK_FRAME)
                        heard.append(connection.recv(1 << 16))

            thread = threading.Thread(target=serve)
            thread.start()
            with Context(store=path, serve=path, user="/CN=x") as context:
                context.set_logging_job_proxy(self.job, code("UI1"))
                context.log_event("Purge")
                context.log_event("Purge")
                with self.assertRaises(LbError) as caught:
                    context.log_event("Purge")
                self.assertEqual(caught.exception.number, errno.EAGAIN)
            thread.join()
        self.assertEqual(heard, [heard[0], heard[1], heard[1], heard[3], heard[3]])
        self.assertEqual(len(set(heard)), 3)

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
