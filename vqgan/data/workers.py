"""Loader processes that leave signals to the training process, and end with it.

A terminal sends Ctrl-C, and a scheduler SIGTERM, to every process of a run. The training process then finishes its step
and saves, for which its loaders must still be there.
"""

import signal

from vqgan.parent_process import signal_when_parent_ends


def settle_worker(_number: int) -> None:
    """What a loader process does first (`worker_init_fn`).

    It passes over Ctrl-C and the first SIGTERM; a second one, which only its own parent sends, ends it. Where the
    training process is gone, by whatever way, so is this one: at once on Linux, within seconds elsewhere, by PyTorch.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _obey_the_next)
    signal_when_parent_ends(signal.SIGKILL)


def _obey_the_next(number: int, _frame: object) -> None:
    signal.signal(number, signal.SIG_DFL)
