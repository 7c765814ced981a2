"""``python -m gridnet.simulate``: what it prints, and the page it writes."""

from __future__ import annotations

import json
import re
from contextlib import redirect_stderr, redirect_stdout
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from unittest.mock import patch

from attrs import fields
from twisted.trial.unittest import SynchronousTestCase

from gridnet.simulate import __main__ as command
from gridnet.simulate.measure import Outcome
from gridnet.simulate.report import Line, page, plot
from gridnet.simulate.scenario import Scenario, run

SMALL = ("--hosts", "8", "--seconds", "20", "--kill-at", "6")


def said(*arguments: str) -> str:
    """What the command prints."""
    out = StringIO()
    # The garbage of other tests must go on to be collected.
    with patch.object(command, "gc"), redirect_stdout(out):
        command.main(list(arguments))
    return out.getvalue()


class _Page(HTMLParser):
    """What a page is made of."""

    void = frozenset({"meta", "path", "polyline"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """One begins."""
        self.seen.append(tag)
        self.links += (value or "" for key, value in attrs if key in ("src", "href"))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """One ends."""
        if tag not in self.void:
            assert self.open.pop() == tag


class CommandTests(SynchronousTestCase):
    """Options and output."""

    def test_one_line_a_figure(self) -> None:
        lines = said(*SMALL).splitlines()
        names = [line.split()[0] for line in lines]
        self.assertEqual(names, [a.name for a in fields(Outcome) if a.repr])
        self.assertIn("crashes_detected             1", lines)

    def test_several_runs_give_least_median_and_most(self) -> None:
        lines = dict(line.split(None, 1) for line in said(*SMALL, "--runs", "3").splitlines())
        self.assertEqual(lines["crashes"], "1 1 1")
        self.assertEqual(len(set(lines["trace_hash"].split())), 3)
        self.assertEqual(lines["settled_after_heal"], "- (3 of 3 runs without)")

    def test_json_has_one_object_a_run(self) -> None:
        found = [json.loads(line) for line in said(*SMALL, "--runs", "2", "--json").splitlines()]
        self.assertEqual([each["reached"] for each in found], [1.0, 1.0])
        again = json.loads(said(*SMALL, "--seed", "2", "--json"))
        self.assertEqual(again["trace_hash"], found[1]["trace_hash"])

    def test_options_of_site_network_and_protocol(self) -> None:
        usual, lost, often, plain = (
            json.loads(said(*SMALL, "--kills", "0", "--json", *options))
            for options in ((), ("--loss", "1"), ("--probe-interval", "0.5"), ("--plain-swim",))
        )
        self.assertEqual((usual["reached"], lost["reached"]), (1.0, 0.0))
        self.assertGreater(often["packets_per_second"], usual["packets_per_second"] * 1.5)
        self.assertEqual(len({each["trace_hash"] for each in (usual, lost, often, plain)}), 4)

    def test_a_site_that_is_none_is_refused(self) -> None:
        for wrong in (("--hosts", "2"), ("--services", "0"), ("--runs", "0"), ("--slow-kind", "x")):
            errors = StringIO()
            with redirect_stderr(errors):
                self.assertRaises(SystemExit, said, *wrong)
            self.assertIn("error:", errors.getvalue())

    def test_the_report_is_one_page_that_needs_nothing_else(self) -> None:
        path = Path(self.mktemp())
        said(*SMALL, "--runs", "2", "--report", str(path))
        text = path.read_text(encoding="utf-8")
        read = _Page(text)
        self.assertEqual((read.open, read.links), ([], []))
        self.assertEqual(read.seen.count("svg"), 5)
        self.assertNotIn("script", read.seen)
        self.assertNotRegex(text, r"https?://|url\(|@import")


class ReportTests(SynchronousTestCase):
    """The page."""

    def test_figures_and_settings(self) -> None:
        scenario = Scenario(hosts=8, seconds=12.0, kills=0)
        outcome = run(scenario)
        text = page(scenario, [outcome])
        for attribute in fields(Outcome):
            if attribute.repr:
                self.assertIn(f"<td>{attribute.name.replace('_', ' ')}</td>", text)
        self.assertIn(outcome.trace_hash, text)
        self.assertIn("<td>probe interval</td><td>1.000</td>", text)
        self.assertIn("How a change spreads", text)
        self.assertNotIn("How soon crashes are found", text)

    def test_points_lie_where_their_values_say(self) -> None:
        drawn = plot([Line("a", [(0.0, 0.0), (5.0, 50.0), (10.0, 100.0)])], "x<y", "y")
        points = re.search(r'points="([^"]*)"', drawn)
        assert points is not None
        places = [tuple(map(float, point.split(","))) for point in points[1].split()]
        (left, bottom), (middle, half), (right, top) = places
        self.assertAlmostEqual(middle, (left + right) / 2, 1)
        self.assertAlmostEqual(half, (bottom + top) / 2, 1)
        self.assertLess(top, bottom)
        self.assertIn("x&lt;y", drawn)

    def test_nothing_and_very_much_are_drawn_too(self) -> None:
        self.assertIn("<svg", plot([], "x", "y"))
        self.assertIn("<svg", plot([Line("a", [(0.0, 0.0)])], "x", "y"))
        much = plot([Line("a", [(float(n), float(n % 7)) for n in range(100_000)])], "x", "y")
        self.assertLess(len(much), 40_000)
        for most in (1e-9, 0.3, 7.0, 1e12):
            self.assertLess(plot([Line("a", [(0.0, most)])], "x", "y").count("<text"), 24)
