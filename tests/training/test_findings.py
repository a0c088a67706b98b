"""A finding is told when it appears, and again when it comes back or has persisted for long."""

from vqgan.training.findings import Findings


def test_told_when_new_then_every_twentieth_line() -> None:
    findings = Findings()
    told = [line for line in range(45) if findings.news(["collapse"])]
    assert told == [0, 20, 40]


def test_told_again_when_it_went_away_and_came_back() -> None:
    findings = Findings()
    lines = [["a"], ["a", "b"], ["b"], ["a", "b"], []]
    assert [findings.news(line) for line in lines] == [["a"], ["b"], [], ["a"], []]


def test_another_figure_makes_no_new_finding() -> None:
    findings = Findings()
    assert findings.news(["the norm is 12 of 1.5"]) == ["the norm is 12 of 1.5"]
    assert findings.news(["the norm is 1.2e+04 of 2"]) == []
    assert findings.news(["the rate is 12 of 2"]) == ["the rate is 12 of 2"]
    for figure in ("-3", "1,200", "12,345,678", "-1.2e-04", "nan", "inf", "-inf"):
        assert findings.news([f"the rate is {figure} of 2"]) == [], figure
    assert findings.news(["the info is 12 of 2"]) == ["the info is 12 of 2"]


def test_what_was_told_outlives_a_restart() -> None:
    first, second = Findings(), Findings()
    lines = [["a"]] * 7
    for line in lines:
        first.news(line)
    second.load_state_dict(first.state_dict())
    for _ in range(30):
        assert second.news(["a"]) == first.news(["a"])
