"""Base of the runs on images with captions and a vocabulary of their own, all but next-token training."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from accelerate import Accelerator

from parti.text import TextConfig, TextTokenizer
from parti.text.run_tokenizer import load_or_train_tokenizer, notes_on_captions
from vqgan.data.loader import DataConfig, DataPipeline
from vqgan.training.run import RunSettings, fit, setup_run
from vqgan.training.run_folder import RunFolder
from vqgan.training.task import Task


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
    def preview_images(self) -> int: ...


def train_on_captions(
    settings: CaptionedRunSettings, run: RunFolder, build_task: Callable[[Accelerator, TextTokenizer], Task], title: str
) -> bool:
    """Run to the end, or until interrupted; True when complete. Resumes what is in the run folder.

    Raises ConfigError, DataError or ModelFolderError with one line for the user.
    """
    accelerator = setup_run(settings.seed, settings.loop.timeout_minutes)
    data = DataPipeline(settings.data, settings.seed, require_captions=True)
    preview = data.preview_batch(settings.preview_images)
    if accelerator.is_main_process:
        run.create()
    vocabulary = load_or_train_tokenizer(settings.text, data, run, accelerator, settings.loop.timeout_minutes)
    task = build_task(accelerator, vocabulary)
    notes = notes_on_captions(settings.text, data, vocabulary, accelerator)
    return fit(settings, task, data, run, accelerator, preview, title, notes)
