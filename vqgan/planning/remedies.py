"""What to change where a run does not fit: each change alone, then all together, measured like the plan itself."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from vqgan.planning.plan import Machines, Remedy

Measure = Callable[[Any, Machines], int]
"""Bytes on each GPU of a config on these machines."""


@dataclass(frozen=True)
class Change:
    """An option of plan.py, and what it does to a config and to the machines."""

    option: str
    apply: Callable[[Any, Machines], tuple[Any, Machines]]


def find_remedies(
    measure: Measure, config: Any, machines: Machines, needed: int, room: float, changes: Sequence[Change] = ()
) -> list[Remedy]:
    """Smaller micro-batches and each of `changes` alone; where none of these is enough, all of them together.

    The last remedy fits, unless nothing here helps.
    """
    remedies = smaller_parts(measure, config, machines, needed, room)
    for change in changes:
        remedies.append(Remedy(change.option, measure(*change.apply(config, machines))))
    if not changes or any(remedy.bytes <= room for remedy in remedies):
        return remedies
    options = " ".join(change.option for change in changes)
    for change in changes:
        config, machines = change.apply(config, machines)
    together = remedies[-1].bytes if len(changes) == 1 else measure(config, machines)
    if together <= room:
        return [*remedies, Remedy(options, together)]
    parts = smaller_parts(measure, config, machines, together, room)
    return [*remedies, *(Remedy(f"{remedy.change} {options}", remedy.bytes) for remedy in parts)]


def smaller_parts(measure: Measure, config: Any, machines: Machines, needed: int, room: float) -> list[Remedy]:
    """More micro-batches, as few as fit: memory grows by nearly the same with each picture more at a time."""
    share = config.data.batch_size // machines.division.gpus
    at_a_time = share // config.loop.micro_batches
    sizes = [size for size in range(1, at_a_time) if share % size == 0 and _is_valid(_in_parts(config, share // size))]
    if not sizes:
        return []
    known = {at_a_time: needed}
    for _ in range(_TRIES):
        low = max((size for size, bytes_ in known.items() if bytes_ <= room), default=0)
        high = min(size for size, bytes_ in known.items() if bytes_ > room)
        between = [size for size in sizes if low < size < high]
        if not between:
            break
        wanted = _expected(known, room)
        size = max((size for size in between if size <= wanted), default=between[0])
        known[size] = measure(_in_parts(config, share // size), machines)
    fitting = [size for size, bytes_ in known.items() if bytes_ <= room]
    size = max(fitting) if fitting else min(known)
    return [Remedy(f"--loop.micro_batches {share // size}", known[size])]


_TRIES = 5
"""Steps that are rehearsed at most to find a number of micro-batches."""


def _expected(known: Mapping[int, int], room: float) -> float:
    """How many pictures at a time should fit: by the line through the two smallest measured, or as all memory shrinks
    with their number where there is but one, which is too few."""
    if len(known) == 1:
        ((size, bytes_),) = known.items()
        return size * room / bytes_
    low, high = sorted(known)[:2]
    a_picture = (known[high] - known[low]) / (high - low)
    return low + (room - known[low]) / a_picture if a_picture > 0 else high


def _is_valid(config: Any) -> bool:
    """Whether a run takes it: some compare the pairs of a micro-batch, and need two."""
    try:
        type(config).model_validate(config.model_dump())
    except ValidationError:
        return False
    return True


def _in_parts(config: Any, micro_batches: int) -> Any:
    return config.model_copy(update={"loop": config.loop.model_copy(update={"micro_batches": micro_batches})})
