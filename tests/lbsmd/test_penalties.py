"""Penalties and base rates at the host that owns the servers."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from gridnet.lbsmd.authority import Authority, find_asker, user_name
from gridnet.lbsmd.check_codes import State, Verdict
from gridnet.lbsmd.feedback import FeedbackError, Target, parse_argument
from gridnet.lbsmd.local_services import LocalServices
from gridnet.lbsmd.order_routing import OrderRouting
from gridnet.lbsmd.orders import (
    MAX_ORDER_OCTETS,
    Asker,
    NoCarrier,
    Order,
    RefusedError,
    decode_order,
    encode_order,
)
from gridnet.lbsmd.penalties import Outcome, Penalties, fits
from gridnet.lbsmd.penalty_store import PenaltyStore, decode, encode
from gridnet.table.model import Entry, Host, ServiceTable
from gridnet.table.server_info import ServerInfo, ServerType
from tests.hypothesis_profile import examples
from tests.lbsmd.support import loaded

DEFINITIONS = """\
alice
*ops
Alpha [5,bob,*blast] STANDALONE :80
Alpha STANDALONE :81
Beta HTTP_GET /x
Static STANDALONE 10.9.9.9:7
Home STANDALONE localhost:99
"""
ROOT = Asker("root")


#: Values that a member of a JSON object may have by mistake.
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**400), 10**400),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
    st.just({}),
)


def orders() -> st.SearchStrategy[bytes]:
    """Orders of other hosts, most of them with one odd member."""
    texts = st.sampled_from(
        ["a ANY 10.0.0.1 5", "a RERATE HTTP :80 -5", "*x? DNS ::1 100 9", "a b"]
    )
    good = st.fixed_dictionaries(
        {
            "request": texts,
            "user": st.text(max_size=5),
            "groups": st.lists(st.text(max_size=3), max_size=70),
            "host": st.just("10.0.0.9"),
            "reason": st.text(max_size=300),
        }
    )
    names = ["request", "user", "groups", "host", "reason", "new"]
    odd = st.dictionaries(st.sampled_from(names), ODD, max_size=1)
    return st.builds(lambda one, two: json.dumps({**one, **two}).encode(), good, odd)


def kept_files() -> st.SearchStrategy[bytes]:
    """Files of penalties, most of them with one odd member."""
    good = st.fixed_dictionaries(
        {
            "server": st.sampled_from([["a", [2, "10.0.0.1", 80, "", 0]], ["b", []]]),
            "percent": st.floats(0, 100),
            "hold_seconds": st.integers(0, 10**7),
            "set_at": st.floats(0, 1e10),
            "rate": st.one_of(st.none(), st.floats(-100000, 100000)),
            "reserved": st.booleans(),
            "penalized_by": st.text(max_size=5),
            "penalty_reason": st.just("x"),
            "rerated_by": st.just(""),
            "rerate_reason": st.just(""),
        }
    )
    names = ["server", "percent", "hold_seconds", "set_at", "rate", "rerated_by"]
    odd = st.dictionaries(st.sampled_from(names), ODD, max_size=1)

    def build(one: dict[str, object], two: dict[str, object], version: object) -> bytes:
        return json.dumps({"version": version, "kept": [{**one, **two}]}).encode()

    return st.builds(build, good, odd, st.sampled_from([1, 1, 1, 2, None]))


class PenaltyCase(SynchronousTestCase):
    """A host with some services, and a clock."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000)
        self.table = ServiceTable()
        self.local = LocalServices(self.table, "10.0.0.1")
        self.local.load(loaded(DEFINITIONS.replace("localhost", "127.0.0.1")))
        self.authority = Authority(self.local, "daemon")
        self.penalties = self.make()

    def make(self, store: PenaltyStore | None = None) -> Penalties:
        """What keeps penalties, running."""
        penalties = Penalties(self.local, self.authority, self.clock, store)
        penalties.restore()
        penalties.startService()
        self.addCleanup(penalties.stopService)
        return penalties

    def order(self, argument: str, asker: Asker = ROOT, reason: str = "") -> Outcome:
        """Have it carried out."""
        order = Order(parse_argument(argument), asker, reason)
        return self.successResultOf(self.penalties.carry_out(order))

    def refused(self, argument: str, asker: Asker = ROOT) -> str:
        """Why it is refused."""
        order = Order(parse_argument(argument), asker)
        failure = self.failureResultOf(self.penalties.carry_out(order), RefusedError)
        return str(failure.value)

    def entry(self, service: str, port: int) -> Entry:
        """What the table says of a server."""
        (found,) = [each for each in self.table.entries(service) if each.info.port == port]
        return found

    def penalty(self, port: int = 80) -> float:
        """Of a server of Alpha, as the table says."""
        return self.entry("Alpha", port).penalty


class ClockTests(PenaltyCase):
    """A penalty holds, wears off, and ends."""

    def test_it_holds_then_falls_in_steps_and_ends(self) -> None:
        """Each announced step moves it by at least one percent, but for the last."""
        self.order("Alpha STANDALONE :80 100 120")
        steps: list[tuple[float, float]] = []
        self.table.subscribe(
            lambda step: steps.extend(
                (self.clock.seconds() - 1_000_000, each.after.penalty)
                for each in step
                if isinstance(each.after, Entry)
            )
        )
        self.assertEqual(self.penalty(), 100.0)
        self.clock.advance(120)
        self.assertEqual((self.penalty(), steps), (100.0, []))
        for _ in range(3100):
            self.clock.advance(0.1)
        self.assertEqual(self.penalty(), 0.0)
        self.assertEqual(self.penalty(81), 0.0)
        values = [100.0, *(value for _, value in steps)]
        for before, after in pairwise(values):
            self.assertTrue(before - after >= 0.999 or after == 0.0, (before, after))
        self.assertTrue(95 <= len(steps) <= 101, len(steps))
        for at, value in steps:
            self.assertAlmostEqual(value, max(0, 100 * (1 - ((at - 120) / 300) ** 2)), 3)
        # Slowly at first: the first tenth takes longer than the last.
        self.assertGreater(next(at for at, value in steps if value <= 90) - 120, 90)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertIsNone(self.penalties.kept(self.entry("Alpha", 80).key))

    def test_a_new_one_takes_the_place_of_the_old_and_of_its_hold(self) -> None:
        """Also a smaller one; 0 ends it."""
        self.order("Alpha STANDALONE :80 100 1000")
        self.order("Alpha STANDALONE :80 40 10")
        self.assertEqual(self.penalty(), 40.0)
        self.clock.advance(10 + 150)
        self.assertEqual(round(self.penalty()), 30)
        self.order("Alpha STANDALONE :80 80")
        self.assertEqual(self.penalty(), 80.0)
        self.order("Alpha STANDALONE :80 0")
        self.assertEqual(self.penalty(), 0.0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_many_that_fall_together_share_one_timer(self) -> None:
        """However often they were asked."""
        for percent in range(1, 101):
            self.order(f"* ANY {percent} 5")
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.assertLess(len(self.penalties._due), 100)
        for _ in range(320):
            self.clock.advance(1)
        self.assertEqual([each.penalty for each in self.table.all_entries()], [0.0] * 5)

    def test_stopping_and_starting_again_loses_none(self) -> None:
        """The clock has gone on meanwhile."""
        self.order("Alpha STANDALONE :80 100")
        self.penalties.stopService()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.clock.advance(200)
        self.assertEqual(self.penalty(), 100.0)
        self.penalties.startService()
        self.clock.advance(0.1)
        self.assertTrue(50 < self.penalty() < 60)

    def test_definitions_that_are_gone_take_their_penalties_along(self) -> None:
        """And those that stay keep theirs."""
        self.order("* ANY 60 100")
        self.local.load(loaded("Alpha STANDALONE :80\n"))
        self.assertEqual(self.penalties.facts()["penalized"], 1)
        self.assertEqual(self.penalty(), 60.0)
        self.clock.advance(500)
        self.assertEqual(self.penalty(), 0.0)


class TargetTests(PenaltyCase):
    """Which servers are meant."""

    def test_names_masks_types_hosts_and_ports(self) -> None:
        """Counted."""
        for argument, count in (
            ("alpha STANDALONE 5", 2),
            ("alpha STANDALONE :81 5", 1),
            ("alpha STANDALONE 10.0.0.1:81 5", 1),
            ("ALPHA ANY 5", 2),
            ("*a STANDALONE 5", 2),
            ("Alph? ANY 5", 2),
            ("* ANY 5", 4),
            ("* HTTP 5", 1),
            ("* HTTP_GET :80 5", 1),
            ("Static ANY 10.9.9.9 5", 1),
            ("Home ANY :99 5", 1),
        ):
            self.assertEqual(self.order(argument).servers, count, argument)
        for argument in ("Gamma ANY 5", "alpha HTTP 5", "alpha ANY :82 5", "alpha ANY 10.0.0.9 5"):
            self.assertIn("no such server", self.refused(argument))

    def test_loopback_servers_of_others_are_not_ours(self) -> None:
        """Each host's own loopback address is itself."""
        info = ServerInfo(ServerType.STANDALONE, "127.0.0.1", 5)
        ours, theirs = Entry("x", info, "10.0.0.1"), Entry("x", info, "10.0.0.2")
        self.assertTrue(fits(Target("x"), ours, "10.0.0.1"))
        self.assertFalse(fits(Target("x"), theirs, "10.0.0.1"))


class RerateTests(PenaltyCase):
    """Another base rate."""

    def test_a_number_reserve_and_default(self) -> None:
        """The sign is kept; 0 is off."""
        for amount, rate, reserved in (
            ("2500.5", 2500.5, False),
            ("-10", -10.0, False),
            ("RESERVE", 1000.0, True),
            ("0", 0.0, False),
            ("DEFAULT", 1000.0, False),
        ):
            self.order(f"Alpha RERATE STANDALONE :80 {amount}")
            entry = self.entry("Alpha", 80)
            self.assertEqual((entry.info.rate, entry.reserved), (rate, reserved), amount)
        self.assertIsNone(self.penalties.kept(self.entry("Alpha", 80).key))

    def test_it_stands_beside_a_penalty(self) -> None:
        """Neither ends the other."""
        self.order("Alpha STANDALONE :80 50 10")
        self.order("Alpha RERATE STANDALONE :80 10")
        self.clock.advance(400)
        entry = self.entry("Alpha", 80)
        self.assertEqual((entry.info.rate, entry.penalty), (10.0, 0.0))
        self.assertEqual(self.penalties.facts()["rerated"], 1)

    def test_checks_act_on_it(self) -> None:
        """A percentage is one of the new rate."""
        key = self.entry("Alpha", 80).key
        self.order("Alpha RERATE STANDALONE :80 10")
        self.local.judge(key, Verdict(State.UP, 50))
        self.assertEqual(self.entry("Alpha", 80).info.rate, 5.0)


class AuthorityTests(PenaltyCase):
    """Who may."""

    def test_those_who_may_operate_on_everything(self) -> None:
        """root, the daemon's user, the host's authority list."""
        for asker in (
            ROOT,
            Asker("lbsmd"),
            Asker("daemon"),
            Asker("alice"),
            Asker("carol", ("users", "ops")),
        ):
            self.assertEqual(self.order("* ANY 5", asker), Outcome(4), asker)

    def test_those_of_one_server(self) -> None:
        """Its users and groups; for the others they are refused."""
        for asker in (Asker("bob"), Asker("dave", ("blast",))):
            self.assertEqual(self.order("Alpha ANY 5", asker), Outcome(1, 1))
            reason = self.refused("Alpha ANY :81 5", asker)
            self.assertIn(f"{asker.user} may not operate on Alpha of 10.0.0.1", reason)
        self.assertEqual((self.penalty(80), self.penalty(81)), (5.0, 0.0))

    def test_anybody_else_is_refused_with_a_reason(self) -> None:
        """Also one whose name is a group, or whose group is a name."""
        for asker in (Asker("eve"), Asker("ops"), Asker("eve", ("alice", "root")), Asker("")):
            self.assertIn("authority", self.refused("* ANY 100", asker))
        self.assertEqual(self.penalties.refusals, 4)
        self.assertEqual(self.penalty(), 0.0)

    def test_the_user_database_tells_who_somebody_is(self) -> None:
        """A number stands for a user without a name."""
        self.assertEqual((user_name(0), user_name(4_000_000_000)), ("root", "4000000000"))
        root = find_asker(0, "10.0.0.1")
        self.assertEqual((root.user, root.host), ("root", "10.0.0.1"))
        self.assertIn("root", root.groups)
        self.assertEqual(find_asker(4_000_000_000), Asker("4000000000"))


class StoreTests(PenaltyCase):
    """Penalties that outlast the daemon."""

    def setUp(self) -> None:
        super().setUp()
        self.path = Path(self.mktemp()).absolute()

    def start(self) -> Penalties:
        """As after a start of the daemon."""
        self.local = LocalServices(self.table, "10.0.0.1")
        self.local.load(loaded(DEFINITIONS.replace("localhost", "127.0.0.1")))
        self.authority = Authority(self.local, "daemon")
        self.penalties = self.make(PenaltyStore(self.path, maybeDeferred))
        return self.penalties

    def test_a_restart_keeps_them_with_author_reason_and_end(self) -> None:
        """As far as they have not worn off meanwhile."""
        self.start()
        self.order("Alpha STANDALONE :80 100 60", Asker("alice", (), "10.0.0.5"), "disk swap")
        self.order("Alpha STANDALONE :81 10", ROOT)
        self.order("Beta RERATE HTTP_GET RESERVE", ROOT, "trial")
        self.clock.advance(310)
        self.start()
        self.assertTrue(30 < self.penalty(80) < 31)
        self.assertEqual(self.penalty(81), 0.0)
        self.assertTrue(self.entry("Beta", 80).reserved)
        kept = self.penalties.kept(self.entry("Alpha", 80).key)
        assert kept is not None
        self.assertEqual((kept.penalized_by, kept.penalty_reason), ("alice@10.0.0.5", "disk swap"))
        self.assertEqual(kept.penalty.ends_at(), 1_000_360.0)
        self.clock.advance(60)
        self.assertEqual(self.penalty(80), 0.0)

    def test_nothing_is_acknowledged_before_it_is_on_the_disk(self) -> None:
        """Several orders meanwhile share one writing."""
        writings: list[tuple[Any, Deferred[Any]]] = []

        def later(function: Any, *arguments: Any) -> Deferred[Any]:
            done: Deferred[Any] = Deferred()
            writings.append(((function, *arguments), done))
            return done

        penalties = self.make(PenaltyStore(self.path, later))
        asked = [
            penalties.carry_out(Order(parse_argument(f"Alpha ANY :80 {percent}"), ROOT))
            for percent in (10, 20, 30)
        ]
        self.assertEqual([len(writings), self.penalty()], [1, 30.0])
        (function, *arguments), done = writings[0]
        done.callback(function(*arguments))
        self.successResultOf(asked[0])
        self.assertNoResult(asked[1])
        (function, *arguments), done = writings[1]
        done.callback(function(*arguments))
        self.assertEqual([self.successResultOf(each).servers for each in asked[1:]], [1, 1])
        self.assertEqual(len(writings), 2)

    def test_a_disk_that_fails_is_told(self) -> None:
        """The order is in force all the same; the health check says what is wrong."""
        self.path.mkdir()
        self.penalties = self.make(store := PenaltyStore(self.path, maybeDeferred))
        self.assertIn("lost at a restart", self.refused("Alpha ANY :80 50"))
        self.assertEqual(self.penalty(), 50.0)
        self.assertIn("cannot be kept", store.check())
        self.path.rmdir()
        self.order("Alpha ANY :80 60")
        self.assertEqual(store.check(), "")

    def test_a_damaged_file_loses_penalties_and_nothing_else(self) -> None:
        """Whatever is in it."""
        for octets in (
            b"",
            b"\xff",
            b"[]",
            b"{}",
            b'{"version": 1}',
            b'{"version": 1, "kept": [5]}',
            b'{"version": 1, "kept": [{"server": 5}]}',
            b"[" * 100_000,
            b'{"version": 1, "kept": [{"server": ["a", []], "percent": 1e999}]}',
        ):
            self.path.write_bytes(octets)
            self.start()
            self.assertEqual(self.penalty(), 0.0)


class CodecTests(SynchronousTestCase):
    """Orders between hosts, and penalties on disk."""

    @examples(1000)
    @given(st.one_of(st.binary(max_size=80), orders()))
    def test_any_octets_are_an_order_or_an_error(self, octets: bytes) -> None:
        """Damaged ones too; what is taken reads back the same."""
        try:
            order = decode_order(octets)
        except FeedbackError:
            return
        try:
            self.assertEqual(decode_order(encode_order(order)), order)
        except FeedbackError as error:
            self.assertIn("too long", str(error))

    @examples(600)
    @given(st.one_of(st.binary(max_size=80), kept_files()))
    def test_any_file_is_penalties_or_an_error(self, octets: bytes) -> None:
        """What is taken is written and read the same."""
        try:
            kept = decode(octets)
        except ValueError:
            return
        self.assertEqual(decode(encode(kept)), kept)

    def test_an_order_reads_back(self) -> None:
        """With its asker and reason."""
        for argument in (
            "a*? ANY 10.0.0.1:80 100 120",
            "a STANDALONE ::1 5",
            "a DNS [::1]:5 5",
            "a RERATE HTTP 10.0.0.1 -5.125",
            "a RERATE HTTP 10.0.0.1 DEFAULT",
            "a HTTP :5 0",
        ):
            order = Order(parse_argument(argument), Asker("u", ("g", "h"), "10.0.0.9"), "why")
            self.assertEqual(decode_order(encode_order(order)), order)

    def test_somebody_in_very_many_groups_still_fits(self) -> None:
        """Those that do not are left behind."""
        groups = tuple(f"group{number:020d}" for number in range(1000))
        order = Order(parse_argument("a ANY 10.0.0.1 5"), Asker("u", groups))
        octets = encode_order(order)
        self.assertLessEqual(len(octets), MAX_ORDER_OCTETS)
        self.assertTrue(decode_order(octets).asker.groups)

    def test_nonsense_is_refused(self) -> None:
        """With what was expected."""
        good = encode_order(Order(parse_argument("a ANY 10.0.0.1 5"), Asker("u")))
        for octets in (
            b"",
            b"5",
            b"\xff",
            b"[]",
            b"{}",
            b"[" * 4000,
            good[:-1],
            b"x" * 5000,
            good.replace(b'"groups":[]', b'"groups":[5]'),
            good.replace(b'"groups":[]', b'"groups":"x"'),
            good.replace(b'"user":"u"', b'"user":null'),
            good.replace(b" 5", b" 500"),
        ):
            self.assertRaises(FeedbackError, decode_order, octets)


class RecordingCarrier:
    """Notes what other hosts are asked, and answers as told."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Order]] = []
        self.refusal = ""

    def send_feedback(self, host_address: str, order: Order) -> Deferred[None]:
        """See FeedbackCarrier."""
        self.sent.append((host_address, order))
        done: Deferred[None] = Deferred()
        if self.refusal:
            done.errback(RefusedError(self.refusal))
        else:
            done.callback(None)
        return done


class RoutingTests(PenaltyCase):
    """Which hosts are told."""

    def setUp(self) -> None:
        super().setUp()
        self.carrier = RecordingCarrier()
        self.names = {"h2": "10.0.0.2", "me": "127.0.1.1", "odd": "nonsense"}
        self.routing = OrderRouting(
            self.table,
            "10.0.0.1",
            self.penalties,
            self.carrier,
            self.resolve,
            maybeDeferred,
            self.clock,
            max_orders=2,
        )
        info = self.entry("Alpha", 80).info
        self.table.put_host(Host("10.0.0.2"))
        self.table.put(Entry("Alpha", evolve(info, host="10.0.0.2"), "10.0.0.2"))
        # Configured on host 3, running on host 1 and 4.
        self.table.put(Entry("Far", evolve(info, host="10.0.0.1"), "10.0.0.3", True))
        self.table.put(Entry("Far", evolve(info, host="10.0.0.4"), "10.0.0.3", True))

    def resolve(self, name: str) -> str:
        """Names of the test."""
        if name not in self.names:
            raise OSError(2, "no such host")
        return self.names[name]

    def ask(self, argument: str, uid: int = 0, reason: str = "") -> str:
        """What was done, or why not."""
        asking = self.routing.ask(parse_argument(argument), uid, reason)
        return self.successResultOf(asking.addErrback(lambda why: why.getErrorMessage()))

    def test_own_servers_are_done_here(self) -> None:
        """By any name of this host."""
        for host in ("", "10.0.0.1", "127.0.0.1", "me"):
            self.assertEqual(
                self.ask(f"Alpha STANDALONE {host} 5"), "done for 2 servers of this host"
            )
        self.assertEqual(self.carrier.sent, [])

    def test_servers_of_others_go_to_who_configured_them(self) -> None:
        """With an address, and with who asks."""
        self.assertEqual(self.ask("Alpha ANY h2 5", 0, "a\nb"), "done for servers of 10.0.0.2")
        self.assertEqual(self.ask("Far ANY 7"), "done for servers of 10.0.0.3")
        self.ask("Far RERATE ANY 10.0.0.4 7")
        asker = find_asker(0, "10.0.0.1")
        self.assertEqual(
            self.carrier.sent,
            [
                ("10.0.0.2", Order(parse_argument("Alpha ANY 10.0.0.2 5"), asker, "a b")),
                ("10.0.0.3", Order(parse_argument("Far ANY 10.0.0.1 7"), asker)),
                ("10.0.0.3", Order(parse_argument("Far RERATE ANY 10.0.0.4 7"), asker)),
            ],
        )

    def test_what_others_say_is_told(self) -> None:
        """As far as it went."""
        self.carrier.refusal = "you there may not"
        self.assertIn("10.0.0.2: you there may not", self.ask("Alpha ANY h2 5"))
        info = ServerInfo(ServerType.STANDALONE, "10.0.0.1", 90)
        self.table.put(Entry("Alpha", info, "10.0.0.3"))
        text = self.ask("Alpha ANY 5")
        self.assertIn("done for 2 servers of this host; refused: 10.0.0.3", text)

    def test_without_a_way_to_other_hosts_that_is_said(self) -> None:
        """And not swallowed."""
        self.routing.carrier = NoCarrier()
        self.assertIn("no way to other hosts", self.ask("Alpha ANY h2 5"))

    def test_hosts_and_servers_that_are_not_known(self) -> None:
        """Each says which."""
        for argument, reason in (
            ("Alpha ANY nowhere 5", "host nowhere is not known: no such host"),
            ("Alpha ANY odd 5", "host odd has no address"),
            ("Gamma ANY 5", "no host of the site has such a server"),
            ("Gamma ANY 10.7.7.7 5", "no host of the site has such a server"),
        ):
            self.assertIn(reason, self.ask(argument))
        # A host that is known may have servers that are switched off just now.
        self.assertEqual(self.ask("Gamma ANY h2 5"), "done for servers of 10.0.0.2")

    def make_slow(self, max_orders: int) -> list[tuple[Any, Deferred[Any]]]:
        """A routing whose threads end when the test says so; what they are asked."""
        asked: list[tuple[Any, Deferred[Any]]] = []

        def later(function: Any, *arguments: Any) -> Deferred[Any]:
            asked.append(((function, arguments), Deferred()))
            return asked[-1][1]

        self.routing = OrderRouting(
            self.table,
            "10.0.0.1",
            self.penalties,
            self.carrier,
            self.resolve,
            later,
            self.clock,
            max_orders,
        )
        return asked

    def test_requests_under_way_are_bounded(self) -> None:
        """Of one user, and of all; root has room all the same."""
        asked = self.make_slow(8)
        request = parse_argument("Alpha ANY 5")
        orders = [self.routing.ask(request, uid) for uid in (1, 1, 2, 2, 3, 3, 4, 4, 0)]
        for uid in (1, 5):
            refused = self.failureResultOf(self.routing.ask(request, uid), RefusedError)
            self.assertIn("try again", refused.getErrorMessage())
        answered = 0
        while answered < len(asked):
            self.assertLessEqual(len(asked) - answered, 2)
            asked[answered][1].callback(ROOT)
            answered += 1
        for order in orders:
            self.assertEqual(self.successResultOf(order), "done for 2 servers of this host")
        self.assertNoResult(self.routing.ask(request, 5))

    def test_names_that_hang_are_given_up_and_keep_few_threads(self) -> None:
        """However many ask for them; addresses are not held up."""
        asked = self.make_slow(100)
        hanging = [self.routing.ask(parse_argument(f"Alpha ANY h{n} 5"), 1) for n in range(9)]
        done = 0

        def answer_users() -> None:
            nonlocal done
            while done < len(asked):
                (function, _), thread = asked[done]
                done += 1
                if function is find_asker:
                    thread.callback(ROOT)

        answer_users()
        names = [each for (function, each), _ in asked if function == self.resolve]
        self.assertEqual(len(names), 2)
        order = self.routing.ask(parse_argument("Alpha ANY 5"), 2)
        answer_users()
        self.successResultOf(order)
        self.clock.advance(10)
        for each in hanging:
            text = self.failureResultOf(each, RefusedError).getErrorMessage()
            self.assertIn("no address within 10 s", text)
        names = [each for (function, each), _ in asked if function == self.resolve]
        self.assertEqual(len(names), 2)
