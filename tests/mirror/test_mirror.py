"""The mirror: copies, callbacks, nesting, errors, and coming back."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from gridnet.mirror.catalogue import GRID_ENGINE, INSTANCE_SUSPENDED, JOB_USAGE
from gridnet.mirror.element import Element, ElementList
from gridnet.mirror.filters import Operator, What, Where
from gridnet.mirror.lists import ApplyError, MirrorError, ObjectLists
from gridnet.mirror.mirror import ALL, Mirror, Outcome, Resync
from gridnet.mirror.model import Action, Event, Result
from gridnet.mirror.task_ranges import without_number
from tests.mirror.simulation import Node, World, plain


def rows(*elements: Element) -> ElementList:
    return ElementList(elements)


def ranges(*triples: tuple[int, int, int]) -> ElementList:
    names = ("RN_min", "RN_max", "RN_step")
    return ElementList(Element.of(dict(zip(names, triple, strict=True))) for triple in triples)


def job(number: int, **attributes: Any) -> Element:
    return Element.of({"JB_job_number": number, "JB_ja_tasks": None, **attributes})


def task(number: int, **attributes: Any) -> Element:
    return Element.of(
        {
            "JAT_task_number": number,
            "JAT_status": 0,
            "JAT_task_list": None,
            "JAT_scaled_usage_list": None,
            **attributes,
        }
    )


class MirrorTestCase(SynchronousTestCase):
    """One master, one mirror of everything it has."""

    options: dict[str, Any] = {}

    def setUp(self) -> None:
        self.world = World()
        self.world.know("USER", "JOB", "CQUEUE", "ADMINHOST", "AR", "JOB_SCHEDD_INFO", "SHARETREE")
        self.node: Node = self.world.node("m", **self.options)
        self.mirror = self.node.mirror
        self.node.record(
            "USER", "JOB", "JATASK", "PETASK", "CQUEUE", "QINSTANCE", "ADMINHOST", "AR"
        )
        self.node.begin()
        self.world.exchange()
        self.node.calls.clear()

    def record(self, event: int, elements: ElementList | None = None, **keys: Any) -> None:
        self.world.master.record(Event(event, elements=elements, **keys), self.world.now)

    def settle(self) -> list[tuple[str, str]]:
        """Let everything arrive; gives (type, action) of the callbacks."""
        self.world.pass_time(2)
        found = [(kind, action) for kind, action, _ in self.node.calls]
        self.node.calls.clear()
        return found


class CopyTests(MirrorTestCase):
    def test_changes_arrive_as_callbacks_after_the_copy_has_them(self) -> None:
        seen: list[object] = []

        def look(
            mirror: Mirror, kind: Any, action: Action, element: Any, event: Event, data: object
        ) -> None:
            seen.append((action, element.as_json(), len(mirror.list("USER")), data))

        self.mirror.subscribe("USER", look, "mine")
        self.world.change("USER", "a", self.world.user("a", n=1))
        self.world.change("USER", "a", self.world.user("a", n=2))
        self.world.change("USER", "a", None)
        self.settle()
        self.assertEqual(
            seen,
            [
                (Action.ADD, {"UU_name": "a", "n": 1}, 1, "mine"),
                (Action.MODIFY, {"UU_name": "a", "n": 2}, 1, "mine"),
                (Action.DELETE, {"UU_name": "a", "n": 2}, 0, "mine"),
            ],
        )

    def test_array_tasks_live_in_their_job_and_leave_the_pending_ranges(self) -> None:
        pending = ranges((1, 5, 1))
        self.record(32, rows(job(7, JB_ja_n_h_ids=pending)), int_key=7)
        self.record(26, rows(task(2)), int_key=7, int_key2=2)
        self.record(28, rows(task(2, JAT_status=128)), int_key=7, int_key2=2)
        self.record(27, int_key=7, int_key2=5)
        self.assertEqual(
            self.settle(),
            [("JOB", "ADD"), ("JATASK", "ADD"), ("JATASK", "MODIFY"), ("JATASK", "DELETE")],
        )
        found = self.mirror.find("JOB", 7)
        assert found is not None
        self.assertEqual(found["JB_ja_n_h_ids"], ranges((1, 1, 1), (3, 4, 1)))
        self.assertEqual([t["JAT_status"] for t in found["JB_ja_tasks"]], [128])
        self.assertEqual(self.mirror.find("JATASK", 7, 2), found["JB_ja_tasks"][0])

    def test_a_job_modification_keeps_tasks_host_and_category(self) -> None:
        self.record(32, rows(job(7, JB_host="h", JB_category="c", JB_owner="x")), int_key=7)
        self.record(26, rows(task(1)), int_key=7, int_key2=1)
        changed = job(7, JB_host=None, JB_category=None, JB_owner="y")
        self.record(34, rows(changed), int_key=7)
        self.settle()
        found = self.mirror.find("JOB", 7)
        assert found is not None
        kept = (found["JB_host"], found["JB_category"], found["JB_owner"])
        self.assertEqual(kept, ("h", "c", "y"))
        self.assertEqual(len(found["JB_ja_tasks"]), 1)

    def test_usage_goes_to_the_task_or_the_pe_task(self) -> None:
        usage = rows(Element.of({"UA_name": "cpu", "UA_value": 1.5}))
        self.record(32, rows(job(7)), int_key=7)
        self.record(26, rows(task(1)), int_key=7, int_key2=1)
        pe_task = Element.of({"PET_id": "p", "PET_scaled_usage": None})
        self.record(29, rows(pe_task), int_key=7, int_key2=1, text_key="p")
        self.record(JOB_USAGE, usage, int_key=7, int_key2=1)
        self.record(JOB_USAGE, usage, int_key=7, int_key2=1, text_key="p")
        self.record(28, rows(task(1, JAT_status=128)), int_key=7, int_key2=1)
        self.settle()
        found = self.mirror.find("JATASK", 7, 1)
        assert found is not None
        self.assertEqual(found["JAT_scaled_usage_list"], usage)
        self.assertEqual(found["JAT_task_list"][0]["PET_scaled_usage"], usage)
        self.assertEqual(found["JAT_status"], 128)
        self.record(33, int_key=7, int_key2=1)
        self.settle()
        self.assertIsNone(self.mirror.find("JATASK", 7, 1))
        self.assertIsNone(self.mirror.find("PETASK", 7, 1, "p"))

    def test_queue_instances_survive_changes_of_their_queue(self) -> None:
        queue = Element.of({"CQ_name": "q", "CQ_qinstances": None, "n": 1})
        self.record(62, rows(queue), text_key="q")
        instance = Element.of({"QU_qhostname": "H1", "QU_state": 1})
        self.record(65, rows(instance), text_key="q", text_key2="H1")
        self.record(64, rows(queue.evolve({"n": 2})), text_key="q")
        self.record(INSTANCE_SUSPENDED, text_key="q", text_key2="h1")
        self.settle()
        found = self.mirror.find("CQUEUE", "q")
        assert found is not None
        self.assertEqual((found["n"], found["CQ_qinstances"][0]["QU_state"]), (2, 0x8001))
        self.record(66, text_key="q", text_key2="h1")
        self.settle()
        self.assertEqual(self.mirror.list("QINSTANCE"), [])

    def test_hosts_compare_without_case(self) -> None:
        self.record(2, rows(Element.of({"AH_name": "Node1"})), text_key="Node1")
        self.record(4, rows(Element.of({"AH_name": "node1"})), text_key="NODE1")
        self.settle()
        self.assertEqual(plain(self.mirror.list("ADMINHOST")), [{"AH_name": "node1"}])
        self.assertIsNotNone(self.mirror.find("ADMINHOST", "nODE1"))

    def test_reservations_have_numbers_although_events_send_text(self) -> None:
        self.record(94, rows(Element.of({"AR_id": 12, "AR_state": 0})), text_key="12")
        self.settle()
        self.assertIsNotNone(self.mirror.find("AR", 12))

    def test_types_with_one_value_are_replaced_by_every_event(self) -> None:
        self.node.record("JOB_SCHEDD_INFO", "SHARETREE", "SCHEDD_CONF")
        self.world.exchange()
        conf = Element.of({"SC_algorithm": "default"})
        self.world.master.replace("SCHEDD_CONF", rows(conf), self.world.now)
        self.record(40, rows(Element.of({"SME_id": 1})))
        self.record(42, rows(Element.of({"SME_id": 2})))
        self.record(51, rows(Element.of({"STN_name": "Root"})))
        self.record(70, rows(conf.evolve({"SC_algorithm": "other"})))
        found = self.settle()
        self.assertEqual([a for k, a in found if k == "SCHEDD_CONF"], ["LIST", "MODIFY"])
        self.assertEqual([a for k, a in found if k == "SHARETREE"], ["LIST", "LIST"])
        self.assertEqual(plain(self.mirror.list("JOB_SCHEDD_INFO")), [{"SME_id": 2}])
        self.assertIsNotNone(self.mirror.find("SHARETREE"))
        self.record(51)
        self.settle()
        self.assertIsNone(self.mirror.find("SHARETREE"))

    def test_a_trigger_has_no_data(self) -> None:
        self.node.record("GLOBAL_CONFIG")
        self.world.pass_time(2)
        self.record(25)
        self.assertEqual(self.settle(), [("GLOBAL_CONFIG", "TRIGGER")])


class SubscriptionTests(MirrorTestCase):
    def test_types_that_cannot_be_mirrored_say_so(self) -> None:
        for name, result in (("ZOMBIE", Result.NOT_INITIALIZED), ("NONE", Result.BAD_ARGUMENT)):
            with self.assertRaises(MirrorError) as context:
                self.mirror.subscribe(name)
            self.assertEqual(context.exception.result, result)
        with self.assertRaises(MirrorError):
            self.mirror.list("MANAGER")
        with self.assertRaises(MirrorError):
            self.mirror.unsubscribe("SHUTDOWN")

    def test_all_is_every_type_that_can_be_subscribed(self) -> None:
        self.mirror.subscribe(ALL)
        names = {kind.name for kind in self.mirror.followed}
        self.assertEqual(names, {kind.name for kind in GRID_ENGINE.subscribable()})
        self.mirror.unsubscribe(ALL)
        self.assertEqual(
            {kind.name for kind in self.mirror.followed}, {"SHUTDOWN", "MARK_4_REGISTRATION"}
        )
        self.assertEqual(sorted(self.node.client.core.subscribed), [60, 72, 97])

    def test_unsubscribing_destroys_the_copy(self) -> None:
        self.world.change("USER", "a", self.world.user("a"))
        self.settle()
        self.mirror.unsubscribe("USER")
        with self.assertRaises(MirrorError):
            self.mirror.list("USER")
        self.world.change("USER", "b", self.world.user("b"))
        self.assertEqual(self.settle(), [])

    def test_a_nested_type_alone_is_for_callbacks_only(self) -> None:
        node = self.world.node("tasks")
        node.record("JATASK")
        node.begin()
        self.world.exchange()
        self.record(32, rows(job(7)), int_key=7)
        self.record(26, rows(task(1)), int_key=7, int_key2=1)
        self.world.pass_time(2)
        self.assertEqual([call[:2] for call in node.calls], [("JATASK", "ADD")])
        self.assertEqual(node.mirror.list("JATASK"), [])
        self.assertEqual(node.troubles, [])

    def test_a_nested_type_subscribed_later_brings_its_parents_anew(self) -> None:
        node = self.world.node("late")
        node.record("JOB")
        node.begin()
        self.world.exchange()
        self.record(32, rows(job(7)), int_key=7)
        self.record(26, rows(task(1)), int_key=7, int_key2=1)
        self.world.pass_time(2)
        node.mirror.subscribe("JATASK")
        self.world.pass_time(3)
        self.assertIsNotNone(node.mirror.find("JATASK", 7, 1))
        self.assertEqual(node.partings, [])

    def test_filters_are_the_masters_work_and_keys_always_come(self) -> None:
        where = Where(Operator.PATTERN, "UU_name", "a*")
        self.mirror.subscribe("USER", where=where, what=What.of("n"))
        self.world.change("USER", "ab", self.world.user("ab", n=1, more=2))
        self.world.change("USER", "bb", self.world.user("bb", n=1))
        self.settle()
        self.assertEqual(plain(self.mirror.list("USER")), [{"UU_name": "ab", "n": 1}])


class JudgingTests(MirrorTestCase):
    """Conditions at a master that does not tell when they cease to hold."""

    options = {"judges": True}

    def test_what_fits_arrives_stays_and_goes_as_if_there_was_nothing_else(self) -> None:
        told: list[tuple[str, str]] = []

        def changed(
            mirror: object, kind: object, action: Action, element: Any, event: object, data: object
        ) -> None:
            told.append((action.name, "" if element is None else element["UU_name"]))

        where = Where(Operator.GREATER, "n", 4)
        self.mirror.subscribe("USER", changed, where=where)
        self.settle()
        told.clear()
        for n in (1, 6, 7, 2, 3, 8):
            self.world.change("USER", "a", self.world.user("a", n=n))
        self.world.change("USER", "b", self.world.user("b", n=0))
        self.world.change("USER", "b", None)
        self.settle()
        self.assertEqual(told, [("ADD", "a"), ("MODIFY", "a"), ("DELETE", "a"), ("ADD", "a")], told)
        self.assertEqual(len(self.mirror.list("USER")), 1)
        self.world.change("USER", "a", self.world.user("a", n=1))
        self.settle()
        self.assertEqual(self.mirror.list("USER"), [])
        self.assertIsNone(self.mirror.find("USER", "a"))
        self.assertEqual(self.node.partings, [])
        (wish,) = self.world.master.clients.values()
        self.assertTrue(all(each.where is None for each in wish.registration.subscriptions or ()))

    def test_the_attributes_of_the_condition_come_along(self) -> None:
        where = Where(Operator.GREATER, "n", 4)
        self.mirror.subscribe("USER", where=where, what=What.of("more"))
        self.world.change("USER", "a", self.world.user("a", n=5, more=1, other=2))
        self.settle()
        self.assertEqual(plain(self.mirror.list("USER")), [{"UU_name": "a", "more": 1, "n": 5}])


class CallbackTests(MirrorTestCase):
    def test_an_ignored_before_leaves_the_copy_as_it_was(self) -> None:
        self.mirror.subscribe("USER", before=lambda *_: Outcome.IGNORE)
        self.world.change("USER", "a", self.world.user("a"))
        self.world.pass_time(2)
        self.assertEqual(self.mirror.list("USER"), [])
        self.assertEqual(self.node.troubles, [])

    def test_a_callback_that_fails_does_not_stop_the_others(self) -> None:
        def fail(*_: object) -> Outcome:
            raise ValueError("no")

        def report(*_: object) -> Outcome:
            return Outcome.FAILURE

        for callback, text in ((fail, "failed for"), (report, "reported failure")):
            self.mirror.subscribe("USER", callback)
            self.world.pass_time(2)
            self.node.troubles.clear()
            self.world.change("USER", "a", self.world.user("a", text=text))
            self.world.change("AR", "1", None)
            self.world.pass_time(2)
            self.assertIn(text, self.node.troubles[0])
            self.assertEqual(len(self.mirror.list("USER")), 1)

    def test_process_says_that_something_failed(self) -> None:
        self.mirror.subscribe("USER", lambda *_: Outcome.FAILURE)
        self.world.change("USER", "a", self.world.user("a"))
        self.world.now += 2
        self.world.master.round(self.world.now)
        while self.node.step_client() or self.node.step_master():
            pass
        self.assertEqual(self.mirror.process(self.world.now), Result.PROCESS_ERRORS)
        self.assertEqual(self.mirror.process(self.world.now), Result.OK)

    def test_nothing_after_a_shutdown_is_processed(self) -> None:
        client = next(iter(self.world.master.clients.values()))
        self.world.master.shut_down_client(client.id, self.world.now)
        self.settle()
        self.assertEqual(self.node.endings, ["the master asked the client to leave"])
        self.assertEqual(self.world.master.clients, {})

    def test_an_unknown_event_is_remarked_once_and_skipped(self) -> None:
        port = self.node.port
        assert port is not None
        expected = self.node.client.core.expected
        for number in (expected, expected + 1):
            self.node.client.reported([(number, Event(38, number=number))], self.world.now)
        self.node.process()
        self.assertEqual(self.node.troubles, ["event 38 is unknown and skipped"])


class StrictTests(MirrorTestCase):
    def misfit(self) -> None:
        """The copy loses an element behind the mirror's back."""
        self.world.change("USER", "a", self.world.user("a"))
        self.settle()
        self.mirror.lists._lists["USER"].clear()
        self.world.change("USER", "a", self.world.user("a", n=2))
        self.world.pass_time(3)

    def test_a_wrong_copy_registers_anew_and_is_right_again(self) -> None:
        self.misfit()
        self.assertIn("USER a: modified, but not there", self.node.troubles[0])
        self.assertIn("the copy is wrong", self.node.partings[0])
        self.assertEqual(len(self.mirror.list("USER")), 1)


class LenientTests(StrictTests):
    options = {"strict": False}

    def test_a_wrong_copy_registers_anew_and_is_right_again(self) -> None:
        self.misfit()
        self.assertEqual(self.node.partings, [])
        self.assertEqual(self.mirror.list("USER"), [])


class AgainTests(MirrorTestCase):
    def away(self) -> None:
        """A master that is not reachable while its lists change."""
        self.world.change("USER", "gone", self.world.user("gone"))
        self.world.change("USER", "same", self.world.user("same"))
        self.world.change("USER", "other", self.world.user("other", n=1))
        self.record(32, rows(job(7)), int_key=7)
        self.settle()
        self.node.reachable = False
        self.node.disconnect()
        self.assertFalse(self.mirror.is_current("USER"))
        self.assertEqual(len(self.mirror.list("USER")), 3)
        self.world.change("USER", "gone", None)
        self.world.change("USER", "new", self.world.user("new"))
        self.world.change("USER", "other", self.world.user("other", n=2))
        self.record(26, rows(task(1)), int_key=7, int_key2=1)
        self.world.pass_time(5)
        self.node.reachable = True
        self.world.pass_time(90)
        self.assertTrue(self.mirror.is_current("USER"))

    def test_after_trouble_lists_come_as_lists(self) -> None:
        self.away()
        found = [(kind, action) for kind, action, _ in self.node.calls]
        self.assertEqual([a for k, a in found if k == "USER"], ["LIST"])
        self.assertIsNotNone(self.mirror.find("JATASK", 7, 1))


class DifferenceTests(AgainTests):
    options = {"resync": Resync.DIFF}

    def test_after_trouble_lists_come_as_lists(self) -> None:
        """... or, if that is wanted, as what is different."""
        self.away()
        found = [(kind, action) for kind, action, _ in self.node.calls]
        self.assertEqual([a for k, a in found if k == "USER"], ["DELETE", "MODIFY", "ADD"])
        self.assertEqual([a for k, a in found if k == "JATASK"], ["ADD"])
        self.assertEqual([a for k, a in found if k == "JOB"], ["MODIFY"])


class ListTests(SynchronousTestCase):
    def test_a_number_leaves_a_range_at_either_end_or_splits_it(self) -> None:
        for before, number, after in (
            (ranges((1, 5, 1)), 1, ranges((2, 5, 1))),
            (ranges((1, 5, 1)), 5, ranges((1, 4, 1))),
            (ranges((1, 5, 1)), 2, ranges((1, 1, 1), (3, 5, 1))),
            (ranges((1, 9, 2)), 5, ranges((1, 3, 2), (7, 9, 2))),
            (ranges((4, 4, 1)), 4, ranges()),
        ):
            self.assertEqual(without_number(before, number), after)
        stepped = ranges((1, 9, 2))
        self.assertIs(without_number(stepped, 4), stepped)

    def test_what_does_not_fit_is_refused_with_the_documented_result(self) -> None:
        lists = ObjectLists(GRID_ENGINE)
        lists.apply(Event(31, elements=rows(job(7))))
        lists.apply(Event(61, elements=ElementList()))
        lists.apply(Event(77, elements=ElementList()))
        for event, result in (
            (Event(32, int_key=7, elements=rows(job(7))), Result.DUPLICATE_KEY),
            (Event(34, int_key=8, elements=rows(job(8))), Result.KEY_NOT_FOUND),
            (Event(33, int_key=8), Result.KEY_NOT_FOUND),
            (Event(32, int_key=9), Result.BAD_ARGUMENT),
            (Event(26, int_key=8, int_key2=1, elements=rows(task(1))), Result.KEY_NOT_FOUND),
            (Event(28, int_key=7, int_key2=1, elements=rows(task(1))), Result.KEY_NOT_FOUND),
            (Event(36, int_key=7, elements=rows()), Result.BAD_ARGUMENT),
            (Event(36, int_key=7, int_key2=3, elements=rows()), Result.KEY_NOT_FOUND),
            (Event(29, int_key=7, int_key2=1, text_key="p"), Result.KEY_NOT_FOUND),
            (Event(65, text_key="q", text_key2="h", elements=rows(task(1))), Result.KEY_NOT_FOUND),
            (Event(79, text_key="a"), Result.KEY_NOT_FOUND),
            (Event(70), Result.BAD_ARGUMENT),
            (Event(78, text_key="a"), Result.BAD_ARGUMENT),
            (Event(44, text_key="a", elements=rows(task(1))), Result.NOT_INITIALIZED),
        ):
            with self.assertRaises(ApplyError) as context:
                lists.apply(event)
            self.assertEqual(context.exception.result, result, event)
        self.assertIsNone(lists.apply(Event(38)))
