"""A run on images with captions and a vocabulary of its own: what the objectives of stage 2 have in common."""

from collections.abc import Callable
from functools import partial

from accelerate import Accelerator

from parti.text import TextConfig, TextTokenizer, TextTokenizerConfig
from parti.text.run_tokenizer import load_or_train_tokenizer, notes_on_captions
from vqgan.data.loader import DataConfig, DataPipeline
from vqgan.training.run import fit, setup_run
from vqgan.training.run_config import RunConfig
from vqgan.training.run_folder import RunFolder
from vqgan.training.task import Task


class CaptionedRunConfig(RunConfig):
    """The head of such a run."""

    data: DataConfig = DataConfig()
    """Images and captions."""
    text: TextConfig = TextTokenizerConfig()
    """The text vocabulary."""

    def check_others_to_compare(self, others: str) -> None:
        """Raises ValueError where a caption is alone in its micro-batch, without `others`."""
        parts = self.loop.gradient_accumulation_steps
        if self.data.batch_size // parts < 2:
            raise ValueError(
                f"data.batch_size {self.data.batch_size} in loop.gradient_accumulation_steps {parts} leaves no "
                f"{others}; raise the one or lower the other"
            )

    def check_whole_words(self, why: str) -> None:
        """Raises ValueError where the vocabulary takes words apart at random."""
        if isinstance(self.text, TextTokenizerConfig) and self.text.dropout:
            raise ValueError(f"text.dropout {self.text.dropout}: {why}; set it to 0")


def train_on_captions(
    config: CaptionedRunConfig, build_task: Callable[[Accelerator, TextTokenizer], Task], title: str
) -> bool:
    """Run to the end, or until interrupted; True when complete. Resumes what is in the run folder.

    Raises ConfigError, DataError or ModelFolderError with one line for the user.
    """
    accelerator = setup_run(config.seed, config.loop.timeout_minutes)
    data = DataPipeline(config.data, config.seed, require_captions=True)
    preview = data.preview_batch(config.preview_images)
    run = RunFolder(config.run_dir, config)
    if accelerator.is_main_process:
        run.create()
    vocabulary = load_or_train_tokenizer(config.text, data, run, accelerator, config.loop.timeout_minutes)
    notes = notes_on_captions(config.text, data, vocabulary, accelerator)
    task = partial(build_task, accelerator, vocabulary)
    return fit(config, task, data, run, accelerator, preview, title, notes)
