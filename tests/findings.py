"""What `diagnose` of a task says, and that its advice names settings that exist."""

import re
from collections.abc import Callable, Mapping

from vqgan.config.schema import Config, describe_fields


def check_findings(
    diagnose: Callable[[Mapping[str, float]], list[str]],
    cases: Mapping[str, Mapping[str, float]],
    config_type: type[Config],
) -> None:
    """Each case, words -> metrics, gives one finding with these words, whose remedies are settings of the task."""
    known = {f"task.{field.name}" for field in describe_fields(config_type)}
    for words, metrics in cases.items():
        (finding,) = diagnose(metrics)
        assert words in finding
        named = set(re.findall(r"task(?:\.\w+)+", finding))
        assert named
        assert named <= known
