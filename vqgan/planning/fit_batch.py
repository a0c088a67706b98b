"""A config's micro-batches on another number of GPUs than it was written for."""

from vqgan.config.schema import ConfigError
from vqgan.training.loop import LoopConfig


def fit_batch(loop: LoopConfig, batch_size: int, gpus: int) -> tuple[LoopConfig, str]:
    """`loop` as it is where the batch divides into its micro-batches on so many GPUs; else with as many as keep no more
    images at a time on a GPU than they do on one, and a line for the user.

    Raises ConfigError where the batch does not divide among the GPUs at all.
    """
    share, rest = divmod(batch_size, gpus)
    if rest:
        raise ConfigError(
            f"data.batch_size {batch_size} does not divide among {gpus} GPUs; take {_near(gpus, batch_size)}, or "
            f"data.batch_size {' or '.join(str(gpus * part) for part in (share, share + 1) if part)}"
        )
    if share % loop.gradient_accumulation_steps == 0:
        return loop, ""
    most = max(1, batch_size // loop.gradient_accumulation_steps)
    at_a_time = max(size for size in range(1, min(most, share) + 1) if share % size == 0)
    fitting = share // at_a_time
    given = loop.gradient_accumulation_steps
    note = (
        f"planned with --loop.gradient_accumulation_steps {fitting}: the config's {given} do not divide on {gpus} GPUs"
    )
    return loop.model_copy(update={"gradient_accumulation_steps": fitting}), note


def _near(gpus: int, batch_size: int) -> str:
    """Returns the numbers of GPUs that divide the batch, next below and above."""
    dividing = [number for number in range(1, batch_size + 1) if batch_size % number == 0]
    below = max(number for number in dividing if number < gpus)
    above = min((number for number in dividing if number > gpus), default=None)
    if above is None:
        return f"{below} GPU{'s' * (below > 1)}"
    return f"{below} or {above} GPUs"
