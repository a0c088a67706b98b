"""Charts: round ticks that enclose the values, and lines that run where the values are."""

import math

import pytest

from vqgan.report.line_chart import BOTTOM, LEFT, RIGHT, TOP, line_chart, linear_ticks, log_ticks


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.25, 0.5, 0.75, 1]),
        (0, 2000, [0, 500, 1000, 1500, 2000]),
        (20.2, 29.0, [20, 22.5, 25, 27.5, 30]),
        (-0.3, 0.3, [-0.4, -0.2, 0, 0.2, 0.4]),
        (5, 5, [2, 4, 6, 8]),
        (0, 0, [-0.5, -0.25, 0, 0.25, 0.5]),
    ],
)
def test_linear_ticks_are_round_and_enclose(low: float, high: float, ticks: list[float]) -> None:
    assert linear_ticks(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.03, 2.0, [0.02, 0.05, 0.1, 0.2, 0.5, 1, 2]),
        (0.0004, 3.0, [0.0001, 0.001, 0.01, 0.1, 1, 10]),
        (1, 100, [1, 10, 100]),
    ],
)
def test_log_ticks_enclose(low: float, high: float, ticks: list[float]) -> None:
    assert log_ticks(low, high) == pytest.approx(ticks)


def test_lines_run_from_corner_to_corner_of_their_axes() -> None:
    chart = line_chart("shares", "", {"one": [(0, 0.0), (50, 0.5), (100, 1.0)]}, percent=True)
    assert chart is not None
    (line,) = chart.lines
    middle = (LEFT + RIGHT) / 2, (TOP + BOTTOM) / 2
    assert line.path == f"M{LEFT} {BOTTOM} L{middle[0]:g} {middle[1]:g} L{RIGHT} {TOP}"
    assert line.latest == "100.0%"
    assert line.dots[1].text == "one: 50.0% at step 50"
    assert [tick.label for tick in chart.y_ticks] == ["0%", "25%", "50%", "75%", "100%"]
    assert [(tick.at, tick.label) for tick in chart.x_ticks][-1] == (RIGHT, "100")


def test_a_factor_of_twenty_makes_the_axis_logarithmic() -> None:
    wide = line_chart("", "", {"a": [(1, 0.01), (2, 0.1)], "b": [(1, 1.0)]})
    assert wide is not None
    assert wide.logarithmic
    assert wide.lines[0].dots[1].y == pytest.approx((TOP + BOTTOM) / 2)
    for metrics in ({"a": [(1, 0.1), (2, 1.0)]}, {"a": [(1, -0.01), (2, 1.0)]}, {"a": [(1, 0.0), (2, 1.0)]}):
        narrow = line_chart("", "", metrics)
        assert narrow is not None
        assert not narrow.logarithmic


def test_what_is_not_finite_is_not_generated() -> None:
    assert line_chart("", "", {}) is None
    assert line_chart("", "", {"a": [(1, math.nan)], "b": []}) is None
    chart = line_chart("", "", {"a": [(1, math.nan)], "b": [(1, 2.0), (2, math.inf), (3, 3.0)]})
    assert chart is not None
    assert [(line.name, line.latest) for line in chart.lines] == [("b", "3")]
    assert "nan" not in chart.lines[0].path


def test_only_few_points_get_dots() -> None:
    chart = line_chart("", "", {"many": [(step, 1.0) for step in range(100)], "few": [(0, 1.0), (99, 2.0)]})
    assert chart is not None
    assert [len(line.dots) for line in chart.lines] == [0, 2]
