"""A page about a simulation: figures and plots, all in one HTML file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from math import ceil, floor, log10
from pathlib import Path

from attrs import fields, frozen

from gridnet.simulate.measure import Outcome
from gridnet.simulate.scenario import Scenario

_WIDTH, _HEIGHT = 640, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 12, 40
_COLOURS = ("#1f5fa8", "#c2511b", "#2c7f4b", "#7a3e9d", "#8a6d00")
_MAX_POINTS = 800  # of one line: a screen shows no more

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 72em; margin: 2em auto; padding: 0 1em;
  color: #1c1c1c; background: #fff }
h1 { font-size: 1.5em } h2 { font-size: 1.1em; margin: 1.6em 0 .4em }
table { border-collapse: collapse } td, th { padding: .15em .9em .15em 0; text-align: left;
  vertical-align: top } td + td, th + th { text-align: right; font-variant-numeric: tabular-nums }
.both { display: flex; flex-wrap: wrap; gap: 1em 3em } figure { margin: 0 0 1em }
figcaption { color: #555 } svg { max-width: 100%; height: auto } code { font-size: .9em }
"""


@frozen
class Line:
    """One line of a plot."""

    name: str
    points: Sequence[tuple[float, float]]


def _ticks(most: float) -> list[float]:
    """Round numbers from 0 to about *most*, five or so."""
    if most <= 0:
        return [0.0, 1.0]
    power = 10.0 ** floor(log10(most / 4))
    step = next(each * power for each in (1, 2, 5, 10) if most / (each * power) <= 6)
    return [step * number for number in range(ceil(most / step - 1e-9) + 1)]


def _thin(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    step = max(1, ceil(len(points) / _MAX_POINTS))
    return [*points[:-1:step], points[-1]] if points else points


def plot(lines: Iterable[Line], across: str, up: str) -> str:
    """*lines* as SVG; the axes begin at 0 and are named *across* and *up*."""
    drawn = [line for line in lines if line.points]
    xs = _ticks(max((x for line in drawn for x, _ in line.points), default=0.0))
    ys = _ticks(max((y for line in drawn for _, y in line.points), default=0.0))
    wide, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return _LEFT + wide * x / xs[-1], _TOP + high * (1 - y / ys[-1])

    size = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}"'
    label = f"{escape(up)} by {escape(across)}"
    parts = [f'<svg {size} role="img" aria-label="{label}" font-size="12" fill="#444">']
    for y in ys:
        _, down = place(0, y)
        parts.append(
            f'<path d="M{_LEFT} {down:.1f}H{_WIDTH - _RIGHT}" stroke="#e2e2e2"/>'
            f'<text x="{_LEFT - 6}" y="{down + 4:.1f}" text-anchor="end">{y:g}</text>'
        )
    for x in xs:
        along, _ = place(x, 0)
        parts.append(
            f'<path d="M{along:.1f} {_TOP + high}v4" stroke="#888"/>'
            f'<text x="{along:.1f}" y="{_TOP + high + 17}" text-anchor="middle">{x:g}</text>'
        )
    parts.append(f'<path d="M{_LEFT} {_TOP}v{high}h{wide}" fill="none" stroke="#888"/>')
    for number, line in enumerate(drawn):
        points = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in _thin(line.points))
        colour = _COLOURS[number % len(_COLOURS)]
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"/>'
        )
        if len(drawn) > 1:
            parts.append(
                f'<text x="{_LEFT + 10 + number * 90}" y="{_TOP + 10}" fill="{colour}">'
                f"{escape(line.name)}</text>"
            )
    parts.append(
        f'<text x="{_LEFT + wide / 2}" y="{_HEIGHT - 6}" text-anchor="middle">'
        f"{escape(across)}</text>"
        f'<text transform="translate(14 {_TOP + high / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(up)}</text></svg>"
    )
    return "".join(parts)


def _figure(title: str, drawing: str, caption: str) -> str:
    note = f"<figcaption>{escape(caption)}</figcaption>"
    return f"<figure><h2>{escape(title)}</h2>{drawing}{note}</figure>"


def _steps(times: Sequence[float], whole: int) -> Sequence[tuple[float, float]]:
    """Share of *whole* that was reached by each time."""
    return [(0.0, 0.0), *((at, (n + 1) * 100 / whole) for n, at in enumerate(times))]


def _plots(scenario: Scenario, outcomes: Sequence[Outcome]) -> Iterable[str]:
    names = [f"seed {scenario.seed + number}" for number in range(len(outcomes))]
    named = list(zip(names, outcomes, strict=True))[: len(_COLOURS)]
    if any(outcome.spread for outcome in outcomes):
        lines = [Line(name, _steps(o.spread, o.listeners)) for name, o in named]
        yield _figure(
            "How a change spreads",
            plot(lines, "seconds after the change", "% of the hosts"),
            "Hosts that know all services of the first change.",
        )
    if any(outcome.detections for outcome in outcomes):
        lines = [Line(name, _steps(sorted(o.detections), o.crashes)) for name, o in named]
        yield _figure(
            "How soon crashes are found",
            plot(lines, "seconds after the crash", "% of the crashes"),
            "From each crash to the first verdict at a healthy host.",
        )
    by_host = 8e-3 / scenario.hosts
    yield _figure(
        "Traffic",
        plot(
            [Line(name, [(s.at, s.octets * by_host) for s in o.samples]) for name, o in named],
            "seconds",
            "kbit/s of one host",
        ),
        "Sent by one host on average, IP and UDP headers included.",
    )
    yield _figure(
        "Packets",
        plot(
            [
                Line(name, [(s.at, s.packets / scenario.hosts) for s in o.samples])
                for name, o in named
            ],
            "seconds",
            "packets/s of one host",
        ),
        "Sent by one host on average.",
    )
    verdicts = [
        line
        for name, o in named
        for line in (
            Line(f"all, {name}", _sums((s.at, s.verdicts) for s in o.samples)),
            Line(f"false, {name}", _sums((s.at, s.false_verdicts) for s in o.samples)),
        )
    ]
    yield _figure(
        "Verdicts",
        plot(verdicts[: len(_COLOURS)], "seconds", "hosts held for dead, summed"),
        "Each host that holds another for dead counts once a verdict.",
    )


def _sums(points: Iterable[tuple[float, int]]) -> Sequence[tuple[float, float]]:
    total, summed = 0, [(0.0, 0.0)]
    for at, number in points:
        total += number
        summed.append((at, float(total)))
    return summed


def _shown(value: object) -> str:
    return "–" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def _table(rows: Iterable[tuple[str, Sequence[object]]]) -> str:
    lines = (
        f"<tr><td>{escape(name.replace('_', ' '))}</td>"
        + "".join(f"<td>{escape(_shown(value))}</td>" for value in values)
        + "</tr>"
        for name, values in rows
    )
    return f"<table>{''.join(lines)}</table>"


def page(scenario: Scenario, outcomes: Sequence[Outcome]) -> str:
    """The whole page."""
    figures = ((a.name, [getattr(o, a.name) for o in outcomes]) for a in fields(Outcome) if a.repr)
    settings = [
        (a.name, [getattr(part, a.name)])
        for part in (scenario, scenario.traits, scenario.times)
        for a in fields(type(part))
        if a.name not in ("traits", "times")
    ]
    mode = "with Lifeguard" if scenario.times.lifeguard else "plain SWIM"
    title = f"Gossip of {scenario.hosts} hosts for {scenario.seconds:g} s, {mode}"
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(title)}</h1>"
        f"{_table(figures)}{''.join(_plots(scenario, outcomes))}"
        f"<h2>Settings</h2>{_table(settings)}</body></html>\n"
    )


def write_report(path: Path, scenario: Scenario, outcomes: Sequence[Outcome]) -> None:
    """Write the page to *path*."""
    path.write_text(page(scenario, outcomes), encoding="utf-8")
