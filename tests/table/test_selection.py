"""Rates, the standby rule and the draw (docs/protocols/load-balancing.rst)."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import permutations

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.table.model import Host
from gridnet.table.selection import (
    LATCH,
    LOCAL_BONUS_TABLE,
    Candidate,
    Lottery,
    draw_order,
    is_down,
    is_standby,
    is_suppressed,
    preference_share,
    select,
    standby_order,
    status,
    usable_band,
)
from gridnet.table.server_info import Algorithm
from tests.hypothesis_profile import examples
from tests.table.support import entry, server

DRAWS = 20_000


class StatusTests(SynchronousTestCase):
    def test_the_formula(self) -> None:
        host = Host("10.0.0.1", status=397.62, status_blast=3973.51)
        for rate, fine, static, algorithm, expected in (
            (-1000.0, 0.0, True, Algorithm.REGULAR, 1000.0),
            (500.0, 0.0, False, Algorithm.REGULAR, 198.81),
            (1000.0, 0.0, False, Algorithm.BLAST, 3973.51),
            (500.0, 25.0, False, Algorithm.REGULAR, 149.1075),
            (500.0, 100.0, False, Algorithm.REGULAR, 0.0),
            (500.0, 200.0, False, Algorithm.REGULAR, 0.0),
            (500.0, -5.0, False, Algorithm.REGULAR, 198.81),
            (500.0, 0.0, True, Algorithm.REGULAR, 500.0),
            (0.005, 0.0, False, Algorithm.REGULAR, 0.005),
            (0.0, 0.0, False, Algorithm.REGULAR, 0.0),
            (0.0, 0.0, True, Algorithm.REGULAR, 0.0),
        ):
            each = entry(info=server(rate=rate, algorithm=algorithm), penalty=fine, static=static)
            self.assertAlmostEqual(status(each, host), expected, msg=str(each))

    def test_a_dynamic_server_needs_its_host(self) -> None:
        for rate in (1000.0, 0.005):
            self.assertEqual(status(entry(info=server(rate=rate)), None), 0.0)
            self.assertGreater(status(entry(info=server(rate=rate), static=True), None), 0.0)


class BandTests(SynchronousTestCase):
    regular = entry(info=server(port=1))
    standby = entry(info=server(port=2, rate=0.005))
    reserve = entry(info=server(port=3, rate=0.002))
    down = entry(info=server(port=4, rate=0.0))

    def test_states(self) -> None:
        suppressed = evolve(self.regular, penalty=100.0)
        for predicate, true in (
            (is_standby, [self.standby, self.reserve]),
            (is_down, [self.down]),
            (is_suppressed, [suppressed, evolve(self.standby, penalty=100.0)]),
        ):
            for each in (self.regular, self.standby, self.reserve, self.down, suppressed):
                self.assertEqual(predicate(each), each in true, (predicate, each))

    def test_a_regular_one_keeps_standbys_out_even_when_it_cannot_be_used(self) -> None:
        standbys = [self.standby, self.reserve]
        for considered in (
            [self.regular, *standbys],
            [evolve(self.regular, penalty=100.0), *standbys],
        ):
            self.assertEqual(list(usable_band(standbys, considered)), [])
            self.assertEqual(
                list(usable_band([self.regular, *standbys], considered)), [self.regular]
            )

    def test_one_that_is_down_does_not(self) -> None:
        standbys = [self.standby, self.reserve]
        self.assertEqual(list(usable_band(standbys, [self.down, *standbys])), standbys)

    def test_standbys_by_rate_and_ties_by_lot(self) -> None:
        chance = random.Random(1)
        twins = [entry(info=server(port=port, rate=0.002)) for port in (5, 6)]
        first = Counter(
            tuple(each.info.port for each in standby_order([*twins, self.standby], chance))
            for _ in range(2000)
        )
        self.assertEqual(set(first), {(2, 5, 6), (2, 6, 5)})
        self.assertLess(abs(first[2, 5, 6] - 1000), 100)


class PreferenceTests(SynchronousTestCase):
    def test_the_released_formula(self) -> None:
        for preference, gap, count, expected in (
            (0.95, 0.5, 2, 0.95),
            (0.95, 0.1, 10, 0.95),
            (0.95, 0.05, 10, 0.149286),
            (0.95, 0.01, 10, 0.029857),
            (1.0, 0.3, 3, 0.642857),
            (1.0, 0.25, 3, 0.535714),
            (0.5, 0.6, 2, 0.6),
        ):
            self.assertAlmostEqual(preference_share(preference, gap, count), expected, 6)

    @examples(300)
    @given(st.floats(0, 1), st.floats(0, 1), st.integers(2, 1000))
    def test_it_is_a_share(self, preference: float, gap: float, count: int) -> None:
        share = preference_share(preference, gap, count)
        self.assertTrue(0 <= share <= 1)
        if gap >= preference:
            self.assertEqual(share, gap)


here = Candidate(100.0, on_preferred_host=True)
there = Candidate(300.0)


class ShareTests(SynchronousTestCase):
    """How often the first of some servers is drawn."""

    def share(
        self,
        candidates: Sequence[Candidate],
        preference: float = 0.0,
        bonus: float = LOCAL_BONUS_TABLE,
        preferred_host: bool | None = None,
    ) -> float:
        if preferred_host is None:
            preferred_host = any(each.on_preferred_host for each in candidates)
        chance = random.Random(20)
        items = range(len(candidates))
        lottery = Lottery(items, candidates, preference, bonus, preferred_host)
        by_lottery = sum(lottery.draw(1, chance) == [0] for _ in range(DRAWS)) / DRAWS
        by_rule = (
            sum(
                select(candidates, preference, bonus, chance.random, preferred_host) == 0
                for _ in range(DRAWS)
            )
            / DRAWS
        )
        error = 4 * math.sqrt(0.5 * by_rule * (1 - by_rule) / DRAWS) * 2
        self.assertLessEqual(abs(by_lottery - by_rule), error + 1e-9)
        return by_rule

    def assert_share(self, found: float, expected: float) -> None:
        self.assertLessEqual(
            abs(found - expected), 4 * math.sqrt(expected * (1 - expected) / DRAWS) + 1e-9
        )

    def test_in_proportion_to_status(self) -> None:
        first = Candidate(100.0)
        self.assert_share(self.share([first, there]), 0.25)
        self.assert_share(self.share([Candidate(1000.0), Candidate(1000.0)]), 0.5)

    def test_the_client_s_own_host_has_a_bonus(self) -> None:
        self.assert_share(self.share([here, there]), 110 / 410)
        equal = [Candidate(1000.0, on_preferred_host=True), Candidate(1000.0)]
        self.assert_share(self.share(equal), 1.1 / 2.1)
        self.assert_share(self.share(equal, bonus=1.2), 1.2 / 2.2)

    def test_a_positive_coefficient_takes_the_bonus_s_place(self) -> None:
        self.assert_share(self.share([evolve(here, bonus=2.0), there]), 0.4)
        # ... but only on the preferred host
        self.assert_share(self.share([Candidate(100.0, bonus=2.0), there]), 0.25)

    def test_a_negative_coefficient_takes_the_local_one_outright(self) -> None:
        first = evolve(here, bonus=-50.0)
        self.assertEqual(self.share([first, Candidate(100.0)]), 1.0)

    def test_unless_its_status_is_below_that_percentage_of_the_others(self) -> None:
        first = evolve(here, status=10.0, bonus=-50.0)
        self.assert_share(self.share([first, Candidate(100.0)]), 11 / 111)
        others = [Candidate(3000.0), Candidate(3000.0)]
        self.assert_share(self.share([evolve(here, bonus=-5.0), *others]), 110 / 6110)

    def test_without_a_host_marked_servers_with_negative_coefficients_count_as_local(self) -> None:
        marked = Candidate(100.0, bonus=-50.0, local_site=True)
        self.assertEqual(self.share([marked, Candidate(100.0)]), 1.0)
        unmarked = evolve(marked, local_site=False)
        self.assert_share(self.share([unmarked, Candidate(100.0)]), 0.5)
        # Once the caller names a host, the mark no longer counts.
        self.assert_share(self.share([marked, Candidate(100.0)], preferred_host=True), 0.5)

    def test_of_several_local_ones_the_best_is_taken(self) -> None:
        low = Candidate(90.0, bonus=-10.0, local_site=True)
        high = Candidate(100.0, bonus=-10.0, local_site=True)
        self.assertEqual(self.share([high, low, Candidate(100.0)]), 1.0)
        self.assertEqual(self.share([low, high, Candidate(100.0)]), 0.0)

    def test_a_preference_lifts_the_share(self) -> None:
        equal = [here, Candidate(100.0)]
        self.assert_share(self.share(equal, 0.95), 0.95)
        self.assert_share(self.share([here, there], 0.95), 2 * 110 / 410 * 0.95)
        self.assert_share(self.share([evolve(here, status=900.0), there], 0.5), 990 / 1290)

    def test_the_others_keep_their_proportion_under_a_preference(self) -> None:
        candidates = [there, here, Candidate(100.0)]
        expected = 1 - preference_share(0.6, 110 / 510, 3)
        self.assert_share(self.share(candidates, 0.6), expected * 0.75)

    def test_a_preference_for_an_absent_host_changes_nothing(self) -> None:
        self.assert_share(self.share([Candidate(100.0), there], 0.95, preferred_host=True), 0.25)

    def test_a_latch_takes_its_host_or_nobody(self) -> None:
        self.assertEqual(self.share([here, there], LATCH), 1.0)
        absent = [Candidate(100.0), there]
        self.assertIsNone(select(absent, LATCH, 1.1, random.Random(1).random, True))
        self.assertEqual(draw_order("ab", absent, 5, LATCH, 1.1, random.Random(1), True), [])
        self.assertEqual(
            draw_order("ab", [here, there], 5, LATCH, 1.1, random.Random(1), True), ["a"]
        )

    def test_nobody_to_draw(self) -> None:
        self.assertIsNone(select([], 0.0, 1.1, random.Random(1).random))
        self.assertEqual(draw_order([], [], 3, 0.0, 1.1, random.Random(1)), [])

    def test_rounding_of_the_sum_cannot_lead_past_the_last(self) -> None:
        candidates = [Candidate(0.1)] * 10
        self.assertEqual(select(candidates, 0.0, 1.1, lambda: 1.0), 9)


def order_chances(weights: Sequence[float], limit: int) -> dict[tuple[int, ...], float]:
    """The chance of each short list when every draw is in proportion to what is left."""
    chances = {}
    for order in permutations(range(len(weights)), limit):
        left, chance = sum(weights), 1.0
        for index in order:
            chance *= weights[index] / left
            left -= weights[index]
        chances[order] = chance
    return chances


class ShortListTests(SynchronousTestCase):
    """Draws without replacement."""

    def assert_distribution(
        self, draw: Callable[[random.Random], Sequence[int]], chances: dict[tuple[int, ...], float]
    ) -> None:
        chance = random.Random(7)
        seen = Counter(tuple(draw(chance)) for _ in range(DRAWS))
        self.assertEqual(set(seen) - set(chances), set())
        squares = sum(
            (seen[order] - expected * DRAWS) ** 2 / (expected * DRAWS)
            for order, expected in chances.items()
        )
        freedom = len(chances) - 1
        # About one in 100,000 by chance; the seed is fixed.
        self.assertLess(squares, freedom + 6 * math.sqrt(2 * freedom) + 10)

    def test_each_place_is_in_proportion_to_what_is_left(self) -> None:
        weights = (100.0, 300.0, 50.0, 550.0)
        lottery = Lottery(range(4), [Candidate(weight) for weight in weights], 0.0, 1.1)
        for limit in (1, 2, 3, 4):
            self.assert_distribution(
                lambda chance, limit=limit: lottery.draw(limit, chance),  # type: ignore[misc]
                order_chances(weights, limit),
            )

    def test_so_it_is_by_the_rule(self) -> None:
        """A far, negligible local server forces the general way."""
        weights = (100.0, 300.0, 600.0)
        candidates = [
            *(Candidate(weight) for weight in weights),
            Candidate(1e-12, bonus=-1e-9, local_site=True, on_preferred_host=False),
        ]
        self.assert_distribution(
            lambda chance: draw_order(range(4), candidates, 2, 0.5, 1.0, chance),
            order_chances(weights, 2),
        )

    def many(self, limit: int) -> None:
        """Many servers: most weight on three of them, so that lists can be told apart."""
        weights = [30.0, 20.0, 10.0] + [0.4] * 100
        lottery = Lottery(range(103), [Candidate(weight) for weight in weights], 0.0, 1.1)
        grouped = {
            order: sum(
                chance for full, chance in _grouped_chances(weights).items() if full == order
            )
            for order in _grouped_chances(weights)
        }
        self.assert_distribution(
            lambda chance: [min(index, 3) for index in lottery.draw(limit, chance)[:2]], grouped
        )

    def test_so_it_is_among_many(self) -> None:
        self.many(2)

    def test_so_it_is_for_a_long_list_of_many(self) -> None:
        self.many(60)

    def test_a_list_that_is_too_long_is_everybody(self) -> None:
        for count in (1, 3, 40, 200):
            lottery = Lottery(range(count), [Candidate(1.0)] * count, 0.0, 1.1)
            self.assertEqual(len(lottery), count)
            self.assertEqual(sorted(lottery.draw(10 * count, random.Random(3))), list(range(count)))
            self.assertEqual(lottery.draw(0, random.Random(3)), [])

    def test_one_giant_among_many_does_not_stop_the_draw(self) -> None:
        candidates = [Candidate(1e18), *[Candidate(1e-3)] * 99]
        lottery = Lottery(range(100), candidates, 0.0, 1.1)
        for limit in (3, 20, 100):
            found = lottery.draw(limit, random.Random(4))
            self.assertEqual((found[0], len(set(found))), (0, limit))

    def test_statuses_that_the_rule_cannot_bear_are_left_out(self) -> None:
        candidates = [Candidate(value) for value in (0.0, -5.0, math.nan, math.inf, 1.0)]
        self.assertEqual(draw_order(range(5), candidates, 5, 0.0, 1.1, random.Random(1)), [4])

    def test_the_same_seed_gives_the_same_lists(self) -> None:
        lottery = Lottery(range(9), [Candidate(float(n)) for n in range(1, 10)], 0.0, 1.1)

        def lists() -> list[list[int]]:
            chance = random.Random(5)
            return [lottery.draw(3, chance) for _ in range(50)]

        self.assertEqual(lists(), lists())

    @examples(300)
    @given(
        st.lists(
            st.builds(
                Candidate,
                status=st.floats(-10, 1e5) | st.sampled_from((0.001, 1e-300, 1e300)),
                bonus=st.floats(-100, 100),
                on_preferred_host=st.booleans(),
                local_site=st.booleans(),
            ),
            max_size=50,
        ),
        st.integers(0, 60),
        st.floats(0, 1) | st.just(LATCH),
        st.booleans(),
        st.integers(0, 10),
    )
    def test_any_draw_gives_different_usable_servers(
        self,
        candidates: list[Candidate],
        limit: int,
        preference: float,
        preferred_host: bool,
        seed: int,
    ) -> None:
        chance = random.Random(seed)
        items = range(len(candidates))
        found = draw_order(items, candidates, limit, preference, 1.1, chance, preferred_host)
        usable = {index for index in items if candidates[index].status > 0}
        self.assertEqual(len(found), len(set(found)))
        self.assertLessEqual(set(found), usable)
        if preference < 0 and preferred_host:
            usable = {index for index in usable if candidates[index].on_preferred_host}
        self.assertEqual(len(found), min(limit, len(usable)))


def _grouped_chances(weights: Sequence[float]) -> dict[tuple[int, ...], float]:
    """Chances of the first two, all beyond the third server taken as one."""
    total = sum(weights)
    chances: Counter[tuple[int, ...]] = Counter()
    for first, one in enumerate(weights):
        for second, two in enumerate(weights):
            if first != second:
                chance = one / total * two / (total - one)
                chances[min(first, 3), min(second, 3)] += chance  # type: ignore[assignment]
    return dict(chances)
