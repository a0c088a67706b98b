"""A finding is told when it appears, and again when it comes back or has persisted for long."""

from vqgan.training.monitor.diagnostics_log import Diagnostics


def test_told_when_new_then_every_twentieth_line() -> None:
    findings = Diagnostics()
    told = [line for line in range(45) if findings.new_messages(["collapse"])]
    assert told == [0, 20, 40]


def test_told_again_when_it_went_away_and_came_back() -> None:
    findings = Diagnostics()
    lines = [["a"], ["a", "b"], ["b"], ["a", "b"], []]
    assert [findings.new_messages(line) for line in lines] == [["a"], ["b"], [], ["a"], []]


def test_another_metric_makes_no_new_finding() -> None:
    findings = Diagnostics()
    assert findings.new_messages(["the norm is 12 of 1.5"]) == ["the norm is 12 of 1.5"]
    assert findings.new_messages(["the norm is 1.2e+04 of 2"]) == []
    assert findings.new_messages(["the rate is 12 of 2"]) == ["the rate is 12 of 2"]
    for metric in ("-3", "1,200", "12,345,678", "-1.2e-04", "nan", "inf", "-inf"):
        assert findings.new_messages([f"the rate is {metric} of 2"]) == [], metric
    assert findings.new_messages(["the info is 12 of 2"]) == ["the info is 12 of 2"]


def test_what_was_told_outlives_a_restart() -> None:
    first, second = Diagnostics(), Diagnostics()
    lines = [["a"]] * 7
    for line in lines:
        first.new_messages(line)
    second.load_state_dict(first.state_dict())
    for _ in range(30):
        assert second.new_messages(["a"]) == first.new_messages(["a"])
