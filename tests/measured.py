"""The most memory that a piece of work on this CPU really takes, by the allocator's own events."""

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def most_memory(work: Callable[[], object]) -> int:
    """Bytes that were allocated at once, at most, while `work` ran; nothing that was there before counts."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = work()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    del kept
    return most
