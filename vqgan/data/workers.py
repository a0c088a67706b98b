"""Loader processes that leave signals to the training process, and end with it.

A terminal sends Ctrl-C, and a scheduler SIGTERM, to every process of a run. The training process then finishes its step
and saves, for which its loaders must still be there.
"""

import signal

from vqgan.system.parent_process import signal_when_parent_ends


def worker_init_fn(_number: int) -> None:
    """What a loader process does first (`worker_init_fn`).

    It ignores Ctrl-C and the first SIGTERM; a second one, which only its own parent sends, ends it. Where the
    training process is gone, by whatever way, so is this one: at once on Linux, within seconds elsewhere, by PyTorch.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _restore_default_handler)
    signal_when_parent_ends(signal.SIGKILL)


def _restore_default_handler(number: int, _frame: object) -> None:
    signal.signal(number, signal.SIG_DFL)
