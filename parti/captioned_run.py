"""A run on pictures with captions and a vocabulary of its own: what the tasks beside the next token have in common."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from accelerate import Accelerator

from parti.text import TextConfig, TextTokenizer
from parti.text.run_vocabulary import notes_on_captions, run_vocabulary
from vqgan.data.loader import DataConfig, DataPipeline
from vqgan.training.protocol import Task
from vqgan.training.run import RunSettings, begin, run_to_end
from vqgan.training.run_folder import RunFolder


@runtime_checkable
class CaptionedRunSettings(RunSettings, Protocol):
    """What the config of such a run has."""

    @property
    def seed(self) -> int: ...

    @property
    def data(self) -> DataConfig: ...

    @property
    def text(self) -> TextConfig: ...

    @property
    def preview_pictures(self) -> int: ...


def train_on_captions(
    settings: CaptionedRunSettings, run: RunFolder, build_task: Callable[[Accelerator, TextTokenizer], Task], title: str
) -> bool:
    """Run to the end, or until interrupted; True when complete. Resumes what is in the run folder.

    Raises ConfigError, DataError or ModelFolderError with one line for the user.
    """
    accelerator = begin(settings.seed, settings.loop.minutes_to_wait)
    data = DataPipeline(settings.data, settings.seed, require_captions=True)
    preview = data.preview_batch(settings.preview_pictures)
    if accelerator.is_main_process:
        run.create()
    vocabulary = run_vocabulary(settings.text, data, run, accelerator, settings.loop.minutes_to_wait)
    task = build_task(accelerator, vocabulary)
    notes = notes_on_captions(settings.text, data, vocabulary, accelerator)
    return run_to_end(settings, task, data, run, accelerator, preview, title, notes)
