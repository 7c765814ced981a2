"""What a client says and understands, without a network."""

from __future__ import annotations

import errno
import json
from typing import Any

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from gridnet.lbproxy import client, frames, results, xml
from gridnet.lbproxy.client import Context, LbError, condition
from gridnet.lbproxy.events import parse
from gridnet.lbproxy.frames import OK, FrameReader, Reply
from gridnet.lbproxy.http import ReplyReader
from gridnet.lbproxy.query import ROOTS, Condition
from gridnet.lbproxy.session import ClientSettings, Session, settings_from, snake_case
from gridnet.lbproxy.xml import MAX_ELEMENTS
from tests.lbproxy.ledgers import job
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

    def test_as_many_as_come(self) -> None:
        """A reply has as many elements as its jobs: the bound on requests is none on replies."""
        one = b"<edg_wll_Job><jobId>%s</jobId></edg_wll_Job>" % job("a").encode("ascii")
        octets = b"<edg_wll_QueryJobsResult>%s</edg_wll_QueryJobsResult>" % (one * MAX_ELEMENTS)
        found = results.parse_jobs(results.parse_result(200, octets))
        self.assertEqual(len(found), MAX_ELEMENTS)

    def test_answers_of_another_kind(self) -> None:
        """Nothing found is said by an answer to the question, not by any other."""
        for path in ROOTS:
            with self.assertRaisesRegex(LbError, "of another kind: html"):
                results.parse_result(200, b"<html/>", path)
            results.parse_result(200, f"<{ROOTS[path]}Result/>".encode("ascii"), path)
        for octets in (b'<a code="-7"/>', b'<a code="%s"/>' % (b"9" * 5000)):
            with self.assertRaises(LbError) as caught:
                results.parse_result(404, octets)
            self.assertGreater(caught.exception.number, 0)

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
            root = xml.parse(f"<r><edg_wll_Job>{text}<jobId/></edg_wll_Job></r>".encode())
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
        conditions: list[Condition | list[Condition]] = [
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

    def test_pbs_registers_with_codes_of_its_own(self) -> None:
        """A source of PBS has no place in the codes of grid jobs."""
        self.session.source = "PBSServer"
        call = self.session.register(
            job("a"), {"ns": "n", "jobtype": "PBS"}, user=None, exclusive=False, with_server=False
        )
        self.run_call(call, [OK])
        self.assertIn(b"SERVER=0000000001:SCHED=000000", self.sent[0].message)
        self.assertIn("SERVER=0000000002:SCHED=000000", self.session.seqcode)

    def test_a_second_for_each_subjob(self) -> None:
        """Registering a family may take longer, at either place."""
        fields = {"ns": "n", "jobtype": "DAG", "nsubjobs": 7}
        call = self.session.register(job("a"), fields, user=None, exclusive=False, with_server=True)
        self.run_call(call, [OK, OK])
        self.assertEqual([one.more_seconds for one in self.sent], [7, 7])

    def test_arguments_that_are_none(self) -> None:
        """They are told before anything is sent."""
        session = self.session
        for call in (
            lambda: self.run_call(
                session.register_subjobs(job("a"), ["[ 1 ]", "[ 2 ]"], "n", [job("b")])
            ),
            lambda: self.run_call(session.purge(timeouts={"Finished": 1})),
            lambda: condition("status", "Done", "like"),
            lambda: condition("status", "Done", "within"),
            lambda: condition("status", ("Done", "Ready")),
        ):
            with self.assertRaises(LbError) as caught:
                call()
            self.assertEqual(caught.exception.number, errno.EINVAL)
        self.assertEqual(self.sent, [])
        self.run_call(session.purge(timeouts={"done": 5}), [(200, b"<edg_wll_PurgeResult/>")])
        self.assertIn(b"<Done>5</Done>", self.sent[0].body)

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
        for word in ("soon", "nan", "inf", "1e400"):
            self.assertEqual(settings_from({"GLITE_WMS_QUERY_TIMEOUT": word}).query_seconds, 120)
        self.assertEqual(settings_from({"EDG_WL_QUERY_TIMEOUT": "1e300"}).query_seconds, 1e9)
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
