"""Whatever happens, every mirror ends up equal to its master."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from twisted.trial.unittest import SynchronousTestCase

from gridnet.mirror.catalogue import (
    GRID_ENGINE,
    INSTANCE_SUSPENDED,
    INSTANCE_UNSUSPENDED,
    JOB_USAGE,
    OBLIGATORY,
)
from gridnet.mirror.client_machine import Acknowledge
from gridnet.mirror.element import Element, ElementList
from gridnet.mirror.feed import ClientState
from gridnet.mirror.filters import Operator, What, Where
from gridnet.mirror.mirror import Resync
from gridnet.mirror.model import BusyPolicy, Event, Registration, Report
from tests.hypothesis_profile import examples
from tests.mirror.simulation import Node, Port, World, plain

TYPES = ("USER", "MANAGER", "JOB", "JATASK", "PETASK", "CQUEUE", "QINSTANCE")
KEYS = st.sampled_from("abc")
NUMBERS = st.integers(1, 3)
LEVELS = st.integers(0, 9)
CONDITION = Where(Operator.GREATER, "n", 4)
CHOICE = What.of("n")

NAMES = {
    "USER": "UU_name",
    "MANAGER": "UM_name",
    "JOB": "JB_job_number",
    "JATASK": "JAT_task_number",
    "PETASK": "PET_id",
    "CQUEUE": "CQ_name",
    "QINSTANCE": "QU_qhostname",
}


#: Without these, a nested type is for callbacks only.
PARENTS = {"JATASK": ("JOB",), "PETASK": ("JOB", "JATASK"), "QINSTANCE": ("CQUEUE",)}


class MirrorMachine(RuleBasedStateMachine):
    """Random changes, subscriptions, flushes, busy flips, lost acknowledgements, cut wires."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.world.know("USER", "MANAGER", "JOB", "CQUEUE")
        self.world.modified = self.check_purge
        self.world.reported = self.check_report
        policies = (BusyPolicy.NONE, BusyPolicy.UNTIL_ACKNOWLEDGED, BusyPolicy.UNTIL_ACKNOWLEDGED)
        for place, policy in enumerate(policies):
            node = self.world.node(
                f"mirror{place}",
                policy=policy,
                acknowledge=Acknowledge.RECEIVED if place == 1 else Acknowledge.PROCESSED,
                resync=Resync.DIFF if place == 2 else Resync.LIST,
                judges=place == 1,
            )
            node.record("USER", "JOB", *(TYPES if place == 0 else ()))
            node.begin()
        self.world.exchange()

    # -- the master's lists

    def record(self, event: int, elements: list[Element] | None = None, **keys: Any) -> None:
        rows = None if elements is None else ElementList(elements)
        self.world.master.record(Event(event, elements=rows, **keys), self.world.now)

    @rule(kind=st.sampled_from(["USER", "MANAGER"]), key=KEYS, n=LEVELS, gone=st.booleans())
    def change_plain(self, kind: str, key: str, n: int, gone: bool) -> None:
        element = None if gone else Element.of({NAMES[kind]: key, "n": n, "text": key * n})
        self.world.change(kind, key, element)

    @rule(job=NUMBERS, n=LEVELS, gone=st.booleans())
    def change_job(self, job: int, n: int, gone: bool) -> None:
        known = self.world.master.lists.find("JOB", job)
        if known is None:
            element = Element.of({"JB_job_number": job, "n": n, "JB_ja_tasks": None})
            self.record(32, [element], int_key=job)
        elif gone:
            self.record(33, int_key=job)
        else:
            self.record(34, [known.evolve({"n": n})], int_key=job)

    @rule(job=NUMBERS, task=NUMBERS, n=LEVELS, gone=st.booleans())
    def change_task(self, job: int, task: int, n: int, gone: bool) -> None:
        if self.world.master.lists.find("JOB", job) is None:
            return
        known = self.world.master.lists.find("JATASK", job, task)
        keys: dict[str, Any] = {"int_key": job, "int_key2": task}
        if known is None:
            element = Element.of(
                {
                    "JAT_task_number": task,
                    "n": n,
                    "JAT_task_list": None,
                    "JAT_scaled_usage_list": None,
                }
            )
            self.record(26, [element], **keys)
        elif gone:
            self.record(27, **keys)
        else:
            self.record(28, [known.evolve({"n": n})], **keys)

    @rule(job=NUMBERS, task=NUMBERS, key=KEYS, gone=st.booleans(), usage=LEVELS)
    def change_pe_task(self, job: int, task: int, key: str, gone: bool, usage: int) -> None:
        lists = self.world.master.lists
        if lists.find("JATASK", job, task) is None:
            return
        keys: dict[str, Any] = {"int_key": job, "int_key2": task, "text_key": key}
        if lists.find("PETASK", job, task, key) is None:
            element = Element.of({"PET_id": key, "n": usage, "PET_scaled_usage": None})
            self.record(29, [element], **keys)
        elif gone:
            self.record(30, **keys)
        else:
            self.record(JOB_USAGE, [Element.of({"UA_name": "cpu", "UA_value": usage})], **keys)

    @rule(job=NUMBERS, task=NUMBERS, usage=LEVELS)
    def use(self, job: int, task: int, usage: int) -> None:
        if self.world.master.lists.find("JATASK", job, task) is not None:
            rows = [Element.of({"UA_name": "cpu", "UA_value": usage})]
            self.record(JOB_USAGE, rows, int_key=job, int_key2=task)

    @rule(queue=KEYS, n=LEVELS, gone=st.booleans())
    def change_queue(self, queue: str, n: int, gone: bool) -> None:
        known = self.world.master.lists.find("CQUEUE", queue)
        if known is None:
            element = Element.of({"CQ_name": queue, "n": n, "CQ_qinstances": None})
            self.record(62, [element], text_key=queue)
        elif gone:
            self.record(63, text_key=queue)
        else:
            self.record(64, [known.evolve({"n": n})], text_key=queue)

    @rule(queue=KEYS, host=KEYS, n=LEVELS, how=st.integers(0, 3))
    def change_instance(self, queue: str, host: str, n: int, how: int) -> None:
        lists = self.world.master.lists
        if lists.find("CQUEUE", queue) is None:
            return
        keys: dict[str, Any] = {"text_key": queue, "text_key2": host}
        if lists.find("QINSTANCE", queue, host) is None:
            element = Element.of({"QU_qhostname": host, "n": n, "QU_state": 0})
            self.record(65, [element], **keys)
        elif how == 0:
            self.record(66, **keys)
        elif how == 1:
            element = Element.of({"QU_qhostname": host, "n": n, "QU_state": n})
            self.record(67, [element], **keys)
        else:
            self.record(INSTANCE_SUSPENDED if how == 2 else INSTANCE_UNSUSPENDED, **keys)

    @rule(kind=st.sampled_from(["USER", "MANAGER"]), back=st.booleans())
    def lose_a_list(self, kind: str, back: bool) -> None:
        rows = self.world.master.lists.snapshot(kind)
        self.world.master.forget(kind)
        if back:
            rows = ElementList()
        self.world.master.replace(kind, rows, self.world.now)

    # -- what mirrors do

    def node(self, place: int) -> Node:
        return self.world.nodes[place]

    @rule(
        place=st.integers(0, 2),
        kind=st.sampled_from(TYPES),
        flush=st.sampled_from([None, 0, 2]),
        narrow=st.booleans(),
        reduce=st.booleans(),
    )
    def subscribe(
        self, place: int, kind: str, flush: int | None, narrow: bool, reduce: bool
    ) -> None:
        top = kind not in ("JATASK", "PETASK", "QINSTANCE")
        self.node(place).mirror.subscribe(
            kind,
            flush_seconds=flush,
            where=CONDITION if narrow and top else None,
            what=CHOICE if reduce and kind in ("USER", "MANAGER") else None,
        )

    @rule(place=st.integers(0, 2), kind=st.sampled_from(TYPES))
    def unsubscribe(self, place: int, kind: str) -> None:
        self.node(place).mirror.unsubscribe(kind)

    @rule(place=st.integers(0, 2), busy=st.booleans())
    def flip_busy(self, place: int, busy: bool) -> None:
        self.node(place).client.set_busy(busy)

    @rule(place=st.integers(0, 2), policy=st.sampled_from(BusyPolicy))
    def change_policy(self, place: int, policy: BusyPolicy) -> None:
        self.node(place).client.set_busy_policy(policy)

    @rule(place=st.integers(0, 2), seconds=st.integers(1, 4))
    def set_delivery_time(self, place: int, seconds: int) -> None:
        self.node(place).client.set_delivery_seconds(seconds)

    @rule(place=st.integers(0, 2))
    def commit(self, place: int) -> None:
        self.node(place).client.commit(self.world.now)

    @rule(place=st.integers(0, 2))
    def process(self, place: int) -> None:
        self.node(place).process()

    # -- the network and the time

    @rule(place=st.integers(0, 2), count=st.integers(1, 3))
    def deliver_to_client(self, place: int, count: int) -> None:
        for _ in range(count):
            self.node(place).step_client()

    @rule(place=st.integers(0, 2), count=st.integers(1, 3))
    def deliver_to_master(self, place: int, count: int) -> None:
        for _ in range(count):
            self.node(place).step_master()

    @rule(place=st.integers(0, 2))
    def lose_acknowledgement(self, place: int) -> None:
        self.node(place).lose_acknowledgement()

    @rule(place=st.integers(0, 2))
    def disconnect(self, place: int) -> None:
        self.node(place).disconnect()

    @rule(place=st.integers(0, 2))
    def time_out_at_the_master(self, place: int) -> None:
        client = self.world.master.clients.get(self.node(place).client.core.id)
        if client is not None:
            client.last_heard = self.world.now - 2000

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 3.0]))
    def pass_time(self, seconds: float) -> None:
        self.world.now += seconds
        self.world.master.round(self.world.now)
        for node in self.world.nodes:
            node.client.elapsed(self.world.now)

    @rule()
    def exchange(self) -> None:
        self.world.exchange()

    # -- what must hold

    def check_purge(self, wish: Registration) -> None:
        """Nothing of a type that was just given up waits unsent."""
        if not wish.changed:
            return
        client = self.world.master.clients[wish.id]
        wanted = {each.event for each in wish.subscriptions or ()} | set(OBLIGATORY)
        types = {k.name for e in wanted if (m := GRID_ENGINE.meaning(e)) for k in (m[0],)}
        unsent = list(client.report())[max(0, client.sent - client.first + 1) :]
        for event in unsent:
            meaning = GRID_ENGINE.meaning(event.event)
            assert meaning is not None
            assert event.event in wanted or meaning[0].name in types, event

    @invariant()
    def numbers_have_no_gap(self) -> None:
        for node in self.world.nodes:
            assert not any("was expected" in reason for reason in node.partings), node.partings
            assert not any("copy is wrong" in reason for reason in node.partings), node.partings
        for client in self.world.master.clients.values():
            assert client.first + client.queued == client.next_number
            assert 0 <= client.sent < client.next_number
            assert client.first <= client.sent + 1 or client.queued == 0 or client.sent == 0

    def check_report(self, port: Port, report: Report) -> None:
        """Events in a report that goes out are of types subscribed then, or blank."""
        clients = self.world.master.clients.values()
        client = next(client for client in clients if client.port is port)
        if client.state is not ClientState.CONNECTED:
            return
        wanted = {s.event for s in client.registration.subscriptions or ()} | set(OBLIGATORY)
        types = {m[0].name for e in wanted if (m := GRID_ENGINE.meaning(e))}
        for event in report:
            meaning = GRID_ENGINE.meaning(event.event)
            assert meaning is not None
            is_blank = event.elements is None and event.text_key is None and not event.int_key
            assert is_blank or event.event in wanted or meaning[0].name in types

    def teardown(self) -> None:
        """Let everything settle, then compare."""
        for node in self.world.nodes:
            node.client.set_busy(False)
            node.client.set_busy_policy(BusyPolicy.UNTIL_ACKNOWLEDGED)
            node.client.commit(self.world.now)
        self.world.pass_time(150, step=5.0)
        master = self.world.master.lists
        for node in self.world.nodes:
            followed = {kind.name for kind in node.mirror.followed}
            for name in TYPES:
                if name not in followed:
                    continue
                if not set(PARENTS.get(name, ())) <= followed:
                    continue
                got = [self.comparable(name, e, followed) for e in node.mirror.elements(name)]
                parent = {"JATASK": "JOB", "PETASK": "JOB", "QINSTANCE": "CQUEUE"}.get(name)
                wanted = []
                for key, element in master.entries(name).items():
                    root = master.find(parent, key[0]) if parent else element
                    assert root is not None
                    following = node.mirror._following[parent or name]
                    if following.where is not None and not following.where.fits(root):
                        continue
                    what = node.mirror._following[name].what
                    chosen = element if what is None else what.reduce(element)
                    assert chosen is not None
                    wanted.append(self.comparable(name, chosen, followed))
                assert plain(got) == plain(wanted), (node.name, name)

    @staticmethod
    def comparable(name: str, element: Element, followed: set[str]) -> Element:
        """Without what other types maintain, which the mirror may not follow."""
        whole = {"JOB": {"JATASK", "PETASK"}, "JATASK": {"PETASK"}, "CQUEUE": {"QINSTANCE"}}
        if whole.get(name, set()) <= followed:
            return element
        changes = {"JB_ja_tasks": None, "CQ_qinstances": None, "JAT_task_list": None}
        if name == "JATASK" and "JOB" not in followed:
            changes["JAT_scaled_usage_list"] = None
        return element.evolve(changes)


#: What ``examples`` gives is a settings object, also without a test to decorate.
SETTINGS: Any = examples(60)


class ModelTests(SynchronousTestCase):
    def test_every_mirror_equals_the_master_once_it_settles(self) -> None:
        run_state_machine_as_test(MirrorMachine, settings=SETTINGS)
