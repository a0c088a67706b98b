"""A config's micro-batches on another number of GPUs than it was written for."""

from vqgan.training.loop import LoopConfig


def fitted(loop: LoopConfig, batch_size: int, gpus: int) -> tuple[LoopConfig, str]:
    """`loop` as it is where the batch divides into its micro-batches on so many GPUs; else with as many as keep no more
    pictures at a time on a GPU than they do on one, and a line for the user.

    Unchanged where the batch does not divide among the GPUs at all.
    """
    share, rest = divmod(batch_size, gpus)
    if rest or share % loop.micro_batches == 0:
        return loop, ""
    most = max(1, batch_size // loop.micro_batches)
    at_a_time = max(size for size in range(1, min(most, share) + 1) if share % size == 0)
    fitting = share // at_a_time
    note = (
        f"planned with --loop.micro_batches {fitting}: the config's {loop.micro_batches} do not divide on {gpus} GPUs"
    )
    return loop.model_copy(update={"micro_batches": fitting}), note
