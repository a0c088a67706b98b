"""What to change where a run does not fit: each change alone, then all together, measured like the plan itself."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from vqgan.planning.plan import Hardware, Suggestion

Measure = Callable[[Any, Hardware], int]
"""Bytes on each GPU of a config on these machines."""


@dataclass(frozen=True)
class Change:
    """An option of plan.py, and what it does to a config and to the machines."""

    option: str
    apply: Callable[[Any, Hardware], tuple[Any, Hardware]]


def find_remedies(
    measure: Measure, config: Any, hardware: Hardware, needed: int, room: float, changes: Sequence[Change] = ()
) -> list[Suggestion]:
    """Smaller micro-batches and each of `changes` alone; where none of these is enough, all of them together.

    The last remedy fits, unless nothing here helps.
    """
    suggestions = smaller_parts(measure, config, hardware, needed, room)
    for change in changes:
        suggestions.append(Suggestion(change.option, measure(*change.apply(config, hardware))))
    if not changes or any(remedy.bytes <= room for remedy in suggestions):
        return suggestions
    options = " ".join(change.option for change in changes)
    for change in changes:
        config, hardware = change.apply(config, hardware)
    together = suggestions[-1].bytes if len(changes) == 1 else measure(config, hardware)
    if together <= room:
        return [*suggestions, Suggestion(options, together)]
    parts = smaller_parts(measure, config, hardware, together, room)
    return [*suggestions, *(Suggestion(f"{remedy.change} {options}", remedy.bytes) for remedy in parts)]


def smaller_parts(measure: Measure, config: Any, hardware: Hardware, needed: int, room: float) -> list[Suggestion]:
    """More micro-batches, as few as fit: memory grows by nearly the same with each image more at a time."""
    share = config.data.batch_size // hardware.parallelism.gpus
    at_a_time = share // config.loop.gradient_accumulation_steps
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
        known[size] = measure(_in_parts(config, share // size), hardware)
    fitting = [size for size, bytes_ in known.items() if bytes_ <= room]
    size = max(fitting) if fitting else min(known)
    return [Suggestion(f"--loop.gradient_accumulation_steps {share // size}", known[size])]


_TRIES = 5
"""Steps that are rehearsed at most to find a number of micro-batches."""


def _expected(known: Mapping[int, int], room: float) -> float:
    """Returns how many images at a time should fit: by the line through the two smallest measured, or as all memory
    shrinks with their number where there is but one, which is too few."""
    if len(known) == 1:
        ((size, bytes_),) = known.items()
        return size * room / bytes_
    low, high = sorted(known)[:2]
    an_image = (known[high] - known[low]) / (high - low)
    return low + (room - known[low]) / an_image if an_image > 0 else high


def _is_valid(config: Any) -> bool:
    """Returns whether a run takes it: some compare the pairs of a micro-batch, and need two."""
    try:
        type(config).model_validate(config.model_dump())
    except ValidationError:
        return False
    return True


def _in_parts(config: Any, gradient_accumulation_steps: int) -> Any:
    return config.model_copy(
        update={"loop": config.loop.model_copy(update={"gradient_accumulation_steps": gradient_accumulation_steps})}
    )
