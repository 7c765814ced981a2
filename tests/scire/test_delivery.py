"""Handing out, acknowledging, reporting and agreeing again, on both databases."""

from __future__ import annotations

from typing import Any

from gridnet.scire import reports, runs
from gridnet.scire.faults import FaultCode, ScireFault
from gridnet.scire.identity import Client
from gridnet.scire.jobfile import parse_job
from gridnet.scire.statusfile import Output
from gridnet.scire.store.database import Row, Transaction
from tests.scire.databases import PostgresMixin, SqliteMixin
from tests.scire.fleet import FleetCase

WEEK = 7 * 86400.0


class DeliveryCase(FleetCase):
    """One client, two servers; what may get lost gets lost."""

    abstract = True

    def setUp(self) -> None:
        super().setUp()
        if not type(self).__dict__.get("abstract"):
            self.alice = self.client("alice.example.org")

    def test_a_run_goes_through_its_life(self) -> None:
        """Handed out, acknowledged, started, ended: once each."""
        self.job()
        delivery = self.must_next(self.alice)
        job = parse_job(delivery.file)
        self.assertEqual((job.run, job.client, job.attempt), (delivery.run, self.alice.id, 1))
        self.assertIsNone(self.next(self.alice, delivery.receipt))
        self.report(self.alice, delivery.run, 1, "running")
        answer = self.report(self.alice, delivery.run, 2, "succeeded", exit_code=0)
        self.assertEqual((answer["recorded"], answer["state"]), ("new", "succeeded"))
        self.assertEqual(
            self.history(delivery.run), ["pending", "sent", "received", "running", "succeeded"]
        )

    def test_the_best_run_comes_first(self) -> None:
        """Priority decides, then due time, then order."""
        low, high = self.job(priority=1), self.job(priority=99)
        first = self.must_next(self.alice)
        second = self.must_next(self.alice, first.receipt)
        self.assertEqual([first.job, second.job], [high, low])

    def test_the_same_rows_give_the_same_octets(self) -> None:
        """A job file is a function of its rows."""
        self.job()
        delivery = self.must_next(self.alice)

        def again(tx: Transaction) -> bytes:
            run = runs.locked(tx, delivery.run)
            job = self.jobs.get(tx, run["job_id"], run["job_version"])
            return runs.job_file(run, job, self.alice, self.time.now)

        self.assertEqual(self.time.do(again), delivery.file)

    def test_a_client_that_dies_before_it_acknowledges_gets_the_run_again(self) -> None:
        """The same run, another receipt; the history has one received."""
        self.job()
        first = self.must_next(self.alice)
        second = self.must_next(self.alice, server=1)
        self.assertEqual((second.run, second.attempt), (first.run, 2))
        self.assertNotEqual(second.receipt, first.receipt)
        self.assertIsNone(self.next(self.alice, second.receipt))
        self.assertEqual(self.history(first.run).count("received"), 1)

    def test_a_lost_answer_costs_an_attempt_of_the_next_run_only(self) -> None:
        """The call that acknowledged and fetched is repeated: the first run stays received."""
        self.job()
        self.job()
        first = self.must_next(self.alice)
        lost = self.must_next(self.alice, first.receipt)
        again = self.must_next(self.alice, first.receipt)
        self.assertEqual((again.run, again.attempt), (lost.run, 2))
        self.assertEqual(self.state(first.run), "received")

    def test_whoever_asks_anew_ends_what_was_sent_whatever_is_better_now(self) -> None:
        self.job(priority=1)
        first = self.must_next(self.alice)
        for _ in range(5):
            self.job(priority=90)
        second = self.must_next(self.alice)
        self.assertEqual((self.state(first.run), self.state(second.run)), ("pending", "sent"))

    def test_acknowledging_twice_is_a_duplicate(self) -> None:
        """And leaves no trace."""
        self.job()
        delivery = self.must_next(self.alice)
        self.assertEqual(
            self.acknowledge(self.alice, delivery.receipt), (delivery.run, "received", False)
        )
        history = self.history(delivery.run)
        self.assertEqual(
            self.acknowledge(self.alice, delivery.receipt), (delivery.run, "received", True)
        )
        self.assertEqual(self.history(delivery.run), history)

    def test_an_acknowledgement_after_the_lease_is_accepted(self) -> None:
        """The lease protects the server's view, not the client's right."""
        self.job()
        delivery = self.must_next(self.alice)
        self.time.now += 61
        self.duties()
        self.assertEqual(self.state(delivery.run), "pending")
        self.assertFalse(self.acknowledge(self.alice, delivery.receipt)[2])
        self.assertEqual(self.state(delivery.run), "received")

    def test_who_acknowledges_late_does_not_get_the_same_run_again(self) -> None:
        """The best run was read with the receipt, when it still waited to be handed out again."""
        self.job()
        first = self.must_next(self.alice)
        self.time.now += 61
        self.duties()
        self.time.now += 31
        self.assertEqual(self.state(first.run), "pending")
        self.assertIsNone(self.ask(self.alice, first.receipt))
        self.assertEqual(self.state(first.run), "received")
        self.job()
        second = self.ask(self.alice, first.receipt)
        assert second is not None
        self.assertNotEqual(second.run, first.run)
        # An answer that was lost: what it brought ends, and comes again.
        third = self.ask(self.alice, first.receipt)
        assert third is not None
        self.assertEqual((third.run, third.attempt), (second.run, 2))

    def test_an_old_receipt_counts_although_a_newer_delivery_exists(self) -> None:
        """The newer delivery is void."""
        self.job()
        old = self.must_next(self.alice)
        new = self.must_next(self.alice)
        self.acknowledge(self.alice, old.receipt)
        self.assertEqual(self.state(old.run), "received")
        self.assertEqual(self.acknowledge(self.alice, new.receipt), (old.run, "received", True))

    def test_deliveries_rest_longer_and_longer_and_then_end(self) -> None:
        """0, 30, 120, 600 s; then undeliverable, with a notification."""
        self.job()
        attempts = []
        for pause in (0, 0, 30, 120, 600):
            if pause:
                self.assertIsNone(self.next(self.alice))
                self.time.now += pause - 1
                self.assertIsNone(self.next(self.alice))
                self.time.now += 1
            attempts.append(self.must_next(self.alice).attempt)
        self.assertEqual(attempts, [1, 2, 3, 4, 5])
        self.assertIsNone(self.next(self.alice))
        self.assertEqual(self.states(), ["undeliverable"])
        self.assertIn("undeliverable", self.time.events)

    def test_a_machine_that_is_off_for_a_week_uses_no_attempts_up(self) -> None:
        """Its run is delivered when it is back."""
        self.job()
        first = self.must_next(self.alice)
        for _ in range(7):
            self.time.now += WEEK / 7
            self.duties()
        self.assertEqual(self.states(), ["pending"])
        again = self.must_next(self.alice)
        self.assertEqual((again.run, again.attempt), (first.run, 2))

    def test_an_overdue_delivery_does_not_wait_for_the_sweeper(self) -> None:
        """Whoever asks anew gets it at once."""
        self.job()
        self.must_next(self.alice)
        self.time.now += 100
        self.assertEqual(self.must_next(self.alice).attempt, 2)

    def test_extending_a_lease(self) -> None:
        """At most an hour; not for a delivery that is over."""
        self.job()
        delivery = self.must_next(self.alice)

        def extend(seconds: int) -> int:
            return self.time.do(lambda tx: runs.extend(tx, self.alice, delivery.receipt, seconds))

        self.assertEqual(extend(600), 600)
        self.assertEqual(extend(100_000), 3600)
        self.time.now += 3599
        self.duties()
        self.assertEqual(self.state(delivery.run), "sent")
        self.time.now += 2
        self.duties()
        self.assertEqual(self.state(delivery.run), "pending")
        self.fault(FaultCode.RUN_WITHDRAWN, extend, 10)

    def test_refusing(self) -> None:
        """Once, with a reason; repeating it changes nothing."""
        self.job()
        delivery = self.must_next(self.alice)

        def refuse(reason: str) -> tuple[int, str]:
            return self.time.do(
                lambda tx: runs.refuse(tx, self.alice, delivery.receipt, reason, "no")
            )

        self.fault(FaultCode.WRONG_PARAMETERS, refuse, "whim")
        self.assertEqual(refuse("policy"), (delivery.run, "refused"))
        self.assertEqual(refuse("policy"), (delivery.run, "refused"))
        self.assertIsNone(self.next(self.alice))

    def test_receipts_and_runs_of_others(self) -> None:
        """Unknown ones and other clients' are told apart."""
        self.job()
        delivery = self.must_next(self.alice)
        mallory = self.client("mallory.example.org")
        self.fault(FaultCode.UNKNOWN_RECEIPT, self.acknowledge, self.alice, "0" * 32)
        self.fault(FaultCode.FOREIGN, self.acknowledge, mallory, delivery.receipt)
        self.fault(FaultCode.FOREIGN, self.report, mallory, delivery.run, 1, "succeeded")
        self.fault(FaultCode.UNKNOWN_RUN, self.report, self.alice, 4711, 1, "succeeded")
        self.fault(FaultCode.FOREIGN, self.this, mallory, delivery.run)
        found = self.this(self.alice, delivery.run)
        assert found is not None
        self.assertEqual(found.attempt, 2)

    def this(self, client: Client, run: int) -> runs.Delivery | None:
        """``get_job``."""
        return self.time.do(lambda tx: self.dispatch.this_run(tx, client, run, self.servers[0]))

    def cancel(self, run: int, force: bool = False) -> None:
        """``job_cancel`` of a run."""
        self.time.do(lambda tx: runs.cancel(tx, runs.locked(tx, run), "user:root", force))

    def test_one_particular_run_can_be_had(self) -> None:
        """If it may be handed out now."""
        self.job(priority=1)
        self.job(priority=99)
        run = self.time.do(lambda tx: runs.waiting_for(tx, self.alice.id))[1]["id"]
        delivery = self.this(self.alice, run)
        assert delivery is not None
        self.assertEqual(delivery.run, run)
        self.acknowledge(self.alice, delivery.receipt)
        self.fault(FaultCode.TRANSITION, self.this, self.alice, run)
        self.report(self.alice, run, 1, "succeeded")
        self.fault(FaultCode.RUN_WITHDRAWN, self.this, self.alice, run)

    def test_a_withdrawn_run_is_to_be_forgotten(self) -> None:
        """Cancelled between sending and acknowledging: fault 1030."""
        self.job()
        delivery = self.must_next(self.alice)
        self.cancel(delivery.run)
        self.fault(FaultCode.RUN_WITHDRAWN, self.acknowledge, self.alice, delivery.receipt)
        self.assertEqual(self.state(delivery.run), "cancelled")

    def test_a_withdrawn_run_is_to_be_forgotten_whatever_was_said_before(self) -> None:
        """A report or an acknowledgement that came first makes no difference."""
        for acknowledged in (False, True):
            for end in ("cancelled", "expired"):
                self.job()
                delivery = self.must_next(self.alice)
                if acknowledged:
                    self.acknowledge(self.alice, delivery.receipt)
                self.report(self.alice, delivery.run, 1, "running")
                if not acknowledged:
                    # The report was the receipt, while the run goes on.
                    said = self.acknowledge(self.alice, delivery.receipt)
                    self.assertEqual(said, (delivery.run, "running", True))
                self.cancel(delivery.run)
                self.report(self.alice, delivery.run, 2, end)
                history = self.history(delivery.run)
                for ask in (self.acknowledge, self.ask):
                    self.fault(FaultCode.RUN_WITHDRAWN, ask, self.alice, delivery.receipt)
                self.assertEqual(self.state(delivery.run), end)
                self.assertEqual(self.history(delivery.run), history)

    def test_the_receipt_of_a_start_that_was_lost_counts_no_more(self) -> None:
        """The run was put back: what the client has is to be forgotten, and comes again."""
        self.job(on_lost="retry")
        first = self.must_next(self.alice)
        self.report(self.alice, first.run, 1, "received")
        self.report(self.alice, first.run, 2, "lost")
        self.assertEqual(self.state(first.run), "pending")
        self.fault(FaultCode.RUN_WITHDRAWN, self.acknowledge, self.alice, first.receipt)
        second = self.must_next(self.alice)
        self.assertEqual((second.run, second.attempt), (first.run, 2))
        self.fault(FaultCode.RUN_WITHDRAWN, self.acknowledge, self.alice, first.receipt)
        self.assertFalse(self.acknowledge(self.alice, second.receipt)[2])

    def test_acknowledging_again_what_the_server_believes_lost(self) -> None:
        """Nobody withdrew it: the client's result will count."""
        run = self.delivered()
        receipt = self.receipt_of(run)
        self.hello(self.alice)
        self.assertEqual(self.state(run), "lost")
        self.assertEqual(self.acknowledge(self.alice, receipt), (run, "lost", True))
        self.assertEqual(self.report(self.alice, run, 1, "succeeded")["recorded"], "late")
        self.assertEqual(self.acknowledge(self.alice, receipt), (run, "succeeded", True))

    def receipt_of(self, run: int) -> str:
        """The receipt that a run came with first."""
        row = self.time.do(
            lambda tx: tx.one("SELECT receipt FROM deliveries WHERE run_id = ?", (run,))
        )
        assert row is not None
        return str(row["receipt"])

    def test_cancelling_what_is_with_its_client_is_a_wish(self) -> None:
        """It is passed on until the client confirms."""
        self.job()
        delivery = self.must_next(self.alice)
        self.acknowledge(self.alice, delivery.receipt)
        self.report(self.alice, delivery.run, 1, "running")
        self.cancel(delivery.run)
        self.assertEqual(self.state(delivery.run), "running")
        self.assertIn(("control", str(self.alice.id)), self.time.notices)
        answer = self.report(self.alice, delivery.run, 2, "progress")
        wish = {"run": delivery.run, "action": "cancel", "force": False}
        self.assertEqual(answer["control"], [wish])
        self.assertEqual(self.hello(self.alice, (delivery.run, "running", 2)), [wish])
        self.report(self.alice, delivery.run, 3, "cancelled")
        self.assertEqual(self.state(delivery.run), "cancelled")

    def test_expired_runs_are_not_handed_out(self) -> None:
        """Whether or not the sweeper has come by."""
        self.job(deadline=self.time.now + 100)
        self.job(deadline=self.time.now + 100)
        self.time.now += 50
        self.must_next(self.alice)
        self.time.now += 51
        self.assertIsNone(self.next(self.alice))
        self.duties()
        self.assertEqual(self.states(), ["expired", "expired"])

    # -- reports

    def row(self, run: int) -> Row:
        row = self.time.do(lambda tx: tx.one("SELECT * FROM runs WHERE id = ?", (run,)))
        assert row is not None
        return row

    def delivered(self, **job: Any) -> int:
        """A run that its client has."""
        self.job(**job)
        delivery = self.must_next(self.alice)
        self.acknowledge(self.alice, delivery.receipt)
        return delivery.run

    def test_a_repeated_report_counts_once(self) -> None:
        """99 of 100 are duplicates."""
        run = self.delivered()
        answers = [self.report(self.alice, run, 1, "succeeded") for _ in range(100)]
        recorded = [answer["recorded"] for answer in answers]
        self.assertEqual(recorded, ["new"] + ["duplicate"] * 99)
        self.assertEqual(self.history(run).count("succeeded"), 1)

    def test_the_same_number_with_other_content_is_a_conflict(self) -> None:
        """And changes nothing."""
        run = self.delivered()
        self.report(self.alice, run, 1, "running")
        self.fault(FaultCode.CONFLICT, self.report, self.alice, run, 1, "succeeded")
        self.assertEqual(self.state(run), "running")

    def test_a_report_of_a_delivery_that_never_was(self) -> None:
        """Fault 1041."""
        run = self.delivered()
        self.fault(
            FaultCode.INVALID_STATUS_FILE, self.report, self.alice, run, 1, "running", attempt=2
        )

    def test_a_report_proves_receipt(self) -> None:
        """The acknowledgement was lost, the report came."""
        self.job()
        delivery = self.must_next(self.alice)
        self.report(self.alice, delivery.run, 1, "succeeded")
        self.assertEqual(self.history(delivery.run), ["pending", "sent", "received", "succeeded"])

    def test_a_gap_is_noticed_and_filled(self) -> None:
        """The server asks for what is missing until it has come."""
        run = self.delivered()
        answer = self.report(self.alice, run, 3, "succeeded")
        self.assertEqual(answer["recorded"], "new")
        self.assertEqual(answer["control"], [{"run": run, "action": "report"}])
        self.assertEqual(self.report(self.alice, run, 2, "progress")["recorded"], "ignored")
        answer = self.report(self.alice, run, 1, "running")
        self.assertEqual((answer["recorded"], answer["control"]), ("ignored", []))
        self.assertEqual(self.state(run), "succeeded")

    def test_what_is_not_allowed_is_kept_and_refused(self) -> None:
        """Fault 1033, a row in the history, no change."""
        run = self.delivered()
        self.report(self.alice, run, 1, "succeeded")
        self.fault(FaultCode.TRANSITION, self.report, self.alice, run, 2, "failed")
        self.assertEqual(self.state(run), "succeeded")
        self.assertEqual(self.history(run)[-2:], ["succeeded", "succeeded"])
        self.assertEqual(self.report(self.alice, run, 2, "failed")["recorded"], "duplicate")

    def test_a_late_result_beats_the_servers_guess(self) -> None:
        """Lost after a long silence, then it comes after all."""
        run = self.delivered(limits={"run_seconds": 60})
        self.report(self.alice, run, 1, "running")
        self.time.now += 661
        self.duties()
        self.assertEqual(self.state(run), "lost")
        answer = self.report(self.alice, run, 2, "succeeded")
        self.assertEqual((answer["recorded"], answer["state"]), ("late", "succeeded"))

    def test_a_clients_clock_does_not_decide_how_long_a_run_is_kept(self) -> None:
        for state, moment in (("succeeded", 17.0), ("failed", 4_000_000_000.0)):
            run = self.delivered()
            self.report(self.alice, run, 1, "running", started=moment)
            self.report(self.alice, run, 2, state, started=moment, finished=moment)
            row = self.row(run)
            for name in ("started_at", "ended_at"):
                self.assertTrue(row["occurrence"] <= row[name] <= self.time.now, (name, row[name]))

    def test_signs_of_life_keep_a_run(self) -> None:
        """The silence counts from the last of them."""
        run = self.delivered(limits={"run_seconds": 60})
        self.report(self.alice, run, 1, "running")
        for seq in range(2, 5):
            self.time.now += 600
            self.duties()
            self.report(self.alice, run, seq, "progress")
        self.assertEqual(self.state(run), "running")

    def test_a_run_that_is_not_started_in_time_is_lost(self) -> None:
        """``start_within`` counts from its receipt."""
        run = self.delivered(start_within=100)
        self.time.now += 101
        self.duties()
        self.assertEqual(self.state(run), "lost")

    def test_a_lost_run_is_started_anew_if_its_job_says_so(self) -> None:
        """With numbers of its own, so that a machine that forgot all can report."""
        run = self.delivered(on_lost="retry")
        self.report(self.alice, run, 1, "running")
        self.hello(self.alice)
        self.assertEqual(self.state(run), "pending")
        again = self.must_next(self.alice)
        self.assertEqual((again.run, parse_job(again.file).retry), (run, 1))
        self.acknowledge(self.alice, again.receipt)
        self.report(self.alice, run, 1, "running", attempt=2)
        self.report(self.alice, run, 2, "succeeded", attempt=2)
        self.assertEqual(self.history(run).count("succeeded"), 1)

    def test_the_result_of_an_earlier_start_counts_too(self) -> None:
        """The client was only silent; its result comes while the run waits anew."""
        run = self.delivered(on_lost="retry")
        self.hello(self.alice)
        self.assertEqual(self.state(run), "pending")
        self.assertEqual(self.report(self.alice, run, 1, "running")["recorded"], "ignored")
        self.report(self.alice, run, 2, "succeeded")
        self.assertEqual(self.state(run), "succeeded")
        self.assertIsNone(self.next(self.alice))

    def test_output_is_kept(self) -> None:
        """With the status file, or in pieces that may be repeated."""
        run = self.delivered()

        def put(offset: int, data: bytes, last: bool) -> int:
            return self.time.do(
                lambda tx: reports.put_output(tx, self.alice, run, "stdout", offset, data, last, 11)
            )

        self.assertEqual(put(0, b"hello ", False), 6)
        self.assertEqual(put(0, b"hello ", False), 6)
        self.assertEqual(put(99, b"x", False), 6)
        with self.assertRaises(ScireFault) as caught:
            put(6, b"worlds", True)
        self.assertEqual(caught.exception.code, FaultCode.TOO_LARGE)
        self.assertEqual(put(6, b"world", True), 11)
        self.report(
            self.alice,
            run,
            1,
            "succeeded",
            outputs=(Output("stdout", b"", 11), Output("stderr", b"oh", 5000, True)),
        )
        rows = self.time.do(lambda tx: tx.all("SELECT * FROM outputs ORDER BY stream, start"))
        self.assertEqual(
            [(r["stream"], bytes(r["content"]), r["truncated"]) for r in rows],
            [("stderr", b"oh", 1), ("stdout", b"hello ", 0), ("stdout", b"world", 0)],
        )

    # -- agreeing again

    def test_what_the_client_forgot_is_lost(self) -> None:
        """Received and running ones that it does not list."""
        run = self.delivered()
        self.assertEqual(self.hello(self.alice), [])
        self.assertEqual(self.state(run), "lost")

    def test_what_the_client_lists_was_received(self) -> None:
        """Its acknowledgement was lost, or its lease is over."""
        self.job()
        delivery = self.must_next(self.alice)
        self.assertEqual(self.hello(self.alice, (delivery.run, "received", 0)), [])
        self.assertEqual(self.state(delivery.run), "received")

    def test_an_open_delivery_that_the_client_does_not_list_ends(self) -> None:
        """And may go out again at once."""
        self.job()
        delivery = self.must_next(self.alice)
        self.hello(self.alice)
        self.assertEqual(self.state(delivery.run), "pending")
        self.assertEqual(self.must_next(self.alice).attempt, 2)

    def test_ended_runs_are_forgotten_or_asked_for(self) -> None:
        """By whether the client has something that the server has not."""
        run = self.delivered()
        self.report(self.alice, run, 1, "running")
        self.time.now += WEEK
        self.duties()
        self.assertEqual(self.state(run), "lost")
        self.assertEqual(
            self.hello(self.alice, (run, "succeeded", 2)), [{"run": run, "action": "report"}]
        )
        self.report(self.alice, run, 2, "succeeded")
        self.assertEqual(
            self.hello(self.alice, (run, "succeeded", 2)), [{"run": run, "action": "forget"}]
        )

    def test_runs_that_nobody_knows_are_forgotten(self) -> None:
        """Other clients' among them."""
        bob = self.client("bob.example.org")
        run = self.delivered()
        for listed in (run, 4711):
            self.assertEqual(
                self.hello(bob, (listed, "running", 1)), [{"run": listed, "action": "forget"}]
            )
        self.assertEqual(self.state(run), "received")

    # -- permissions at delivery

    def test_a_rule_that_changes_meanwhile_denies(self) -> None:
        """The deciding rule is named; others are not touched."""
        samir = self.user("samir")
        bob = self.client("bob.example.org")
        self.rule(True, "run.script", user=samir)
        self.job(user=samir)
        deny = self.rule(False, "run.*", user=samir, client=self.alice.id)
        self.assertIsNone(self.next(self.alice))
        self.assertIsNotNone(self.next(bob))
        self.assertEqual(sorted(self.states()), ["denied", "sent"])
        rows = self.time.do(lambda tx: tx.all("SELECT detail FROM history"))
        self.assertIn(f"run.script: deny (rule {deny})", [row["detail"] for row in rows])

    def test_a_deny_over_three_groups_beats_a_direct_allow(self) -> None:
        """Nearness means nothing."""
        samir = self.user("samir")
        low = self.group("client-group", "low", ("client", self.alice.id))
        middle = self.group("client-group", "middle", ("client-group", low))
        high = self.group("client-group", "high", ("client-group", middle))
        self.rule(True, "run.script", user=samir, client=self.alice.id)
        self.rule(False, "run.script", client_group=high)
        self.job(user=samir)
        self.assertIsNone(self.next(self.alice))
        self.assertEqual(self.states(), ["denied"])


class SqliteDeliveryTests(SqliteMixin, DeliveryCase):
    """On SQLite."""


class PostgresDeliveryTests(PostgresMixin, DeliveryCase):
    """On PostgreSQL."""


del DeliveryCase
