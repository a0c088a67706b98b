"""The lines of a run's metrics.jsonl as curves; what does not look like a line of metrics is passed over."""

from collections.abc import Mapping, Sequence

Records = Sequence[Mapping[str, object]]
"""The lines of a run's metrics.jsonl."""


def curves(records: Records, split: str) -> dict[str, list[tuple[float, float]]]:
    """Each metric of a split as (step, value) points."""
    points: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        step = _number(record.get("step"))
        if record.get("split") != split or step is None:
            continue
        for name, entry in record.items():
            value = _number(entry)
            if value is not None and name not in ("step", "split"):
                points.setdefault(name, []).append((step, value))
    return points


def last_step(records: Records) -> int:
    """The last step with metrics; 0 where there is none."""
    steps = [_number(record.get("step")) for record in records if record.get("split") in ("train", "val")]
    return int(max((step for step in steps if step is not None), default=0))


def training_seconds(records: Records) -> float:
    """What a run itself counted: the time of all its steps, without evaluation, images and checkpoints."""
    seconds = curves(records, "train").get("seconds", [])
    return seconds[-1][1] if seconds else 0.0


def images_per_second(records: Records, batch_size: int) -> float:
    """Images per second over all steps of a run."""
    seconds = curves(records, "train").get("seconds", [])
    return seconds[-1][0] * batch_size / seconds[-1][1] if seconds and seconds[-1][1] > 0 else 0.0


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
