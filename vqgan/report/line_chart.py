"""Metrics against steps, as the geometry of a small SVG chart; what it looks like is the page's business.

Lengths are in units of the chart's own WIDTH x HEIGHT box, y grows downwards.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 460, 236
LEFT, RIGHT, TOP, BOTTOM = 52, 436, 12, 206
"""Edges of the area in which lines are drawn; the rest is room for the ticks' labels."""

_LOG_RANGE = 20.0
"""Largest over smallest value from which a chart of positive values has a logarithmic axis."""
_FEW = 24
"""Up to this many points each gets a dot."""

Points = Sequence[tuple[float, float]]
"""(step, value) pairs in the order of their steps."""


@dataclass(frozen=True)
class Tick:
    """A labeled position on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Dot:
    """A point that is drawn, with the text that explains it."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Line:
    """One metric: its name, latest value, SVG path, and its points where they are few."""

    name: str
    latest: str
    path: str
    dots: list[Dot]


@dataclass(frozen=True)
class LineChart:
    """Everything that a template needs to draw one chart."""

    title: str
    note: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    logarithmic: bool


def line_chart(title: str, note: str, metrics: Mapping[str, Points], *, percent: bool = False) -> LineChart | None:
    """A chart of named metrics; None where there is no finite value to show. Metrics without one are left out.

    `percent` shows shares in [0, 1] on an axis from 0 to 100%. Positive values that span a factor of 20 get a
    logarithmic axis.
    """
    finite = {
        name: [(step, value) for step, value in points if math.isfinite(value)] for name, points in metrics.items()
    }
    finite = {name: points for name, points in finite.items() if points}
    if not finite:
        return None
    values = [value for points in finite.values() for _, value in points]
    last_step = max(1.0, *(step for points in finite.values() for step, _ in points))
    low, high = min(values), max(values)
    logarithmic = not percent and low > 0 and high / low >= _LOG_RANGE
    if percent:
        y_values = [0.0, 0.25, 0.5, 0.75, 1.0]
    else:
        y_values = log_ticks(low, high) if logarithmic else linear_ticks(low, high)
    bottom, top = min(low, y_values[0]), max(high, y_values[-1])

    def x_of(step: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * step / last_step, 1)

    def y_of(value: float) -> float:
        share = _share(math.log(value), math.log(bottom), math.log(top)) if logarithmic else _share(value, bottom, top)
        return round(BOTTOM - (BOTTOM - TOP) * share, 1)

    def text_of(value: float) -> str:
        return f"{value:.1%}" if percent else f"{value:.4g}"

    lines = []
    for name, points in finite.items():
        places = [(x_of(step), y_of(value)) for step, value in points]
        dots = [
            Dot(x, y, f"{name}: {text_of(value)} at step {step:,.0f}")
            for (x, y), (step, value) in zip(places, points, strict=True)
        ]
        path = "M" + " L".join(f"{x:g} {y:g}" for x, y in places)
        lines.append(Line(name, text_of(points[-1][1]), path, dots if len(dots) <= _FEW else []))
    x_ticks = [Tick(x_of(step), f"{step:,.0f}") for step in linear_ticks(0, last_step) if step <= last_step]
    y_ticks = [Tick(y_of(value), f"{value:.0%}" if percent else f"{value:,g}") for value in y_values]
    return LineChart(title, note, lines, x_ticks, y_ticks, logarithmic)


def linear_ticks(low: float, high: float) -> list[float]:
    """Four to seven round numbers, evenly spaced, that enclose `low` to `high`."""
    if high <= low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten that enclose `low` to `high`; within two of them also their doubles and fives."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if high / low < 100 else (1,)
    grid = [float(f"{factor}e{power}") for power in powers for factor in factors]
    first = max(number for number, value in enumerate(grid) if value <= low)
    last = next(number for number, value in enumerate(grid) if value >= high)
    return grid[first : last + 1]


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low)
