"""Assembles a pretraining run: config -> data, vocabulary, network, task, loop. `tools/train_text_encoder.py` calls
it."""

from functools import partial

from accelerate import Accelerator
from pydantic import Field, model_validator

from parti.captioned_run import train_on_captions
from parti.text import TextConfig, TextTokenizer, TextTokenizerConfig
from parti.text_encoder.corpus import Corpus
from parti.text_encoder.network import TextEncoderPretraining, TextPretrainingConfig
from parti.text_encoder.pretraining_task import TextPretrainingTask, TextPretrainingTaskConfig
from vqgan.config.schema import Config
from vqgan.data.loader import DataConfig
from vqgan.training.loop import LoopConfig
from vqgan.training.monitor.trackers import TrackersConfig
from vqgan.training.parallel.seeding import SEEDS
from vqgan.training.run_folder import RunFolder


class TrainTextEncoderConfig(Config, may_change=("run_dir", "seed", "corpus", "preview_images")):
    """A run that pretrains the text encoder of stage 2."""

    run_dir: str = "runs/text-encoder"
    """Folder of the run. Running again with the same folder resumes."""
    seed: int = Field(0, ge=0, lt=SEEDS)
    """Seed of initial weights, data order, augmentation and masks."""
    data: DataConfig = DataConfig()
    """Images and captions. Every pair of a batch is compared with all others: larger batches teach more."""
    corpus: str | None = None
    """Text file, one passage a line: the masked tokens are then of its texts. null: of the captions."""
    text: TextConfig = TextTokenizerConfig()
    """The text vocabulary, which stage 2 takes over with text.kind saved."""
    model: TextPretrainingConfig = TextPretrainingConfig()
    """The text encoder, and the heads and image encoder for its training."""
    task: TextPretrainingTaskConfig = TextPretrainingTaskConfig()
    """What is minimized, and how."""
    loop: LoopConfig = LoopConfig()
    """Length of the run and what happens when."""
    trackers: TrackersConfig = TrackersConfig()
    """Experiment trackers."""
    preview_images: int = Field(12, gt=0)
    """Validation images in each preview."""

    @model_validator(mode="after")
    def _check_parts_fit(self) -> "TrainTextEncoderConfig":
        image_size, patch_size = self.data.transform.image_size, self.model.patch_size
        if image_size % patch_size:
            raise ValueError(
                f"data.transform.image_size {image_size} does not divide into patches of {patch_size}; set "
                "model.patch_size to a divisor"
            )
        if self.data.batch_size // self.loop.gradient_accumulation_steps < 2:
            raise ValueError(
                f"data.batch_size {self.data.batch_size} in loop.gradient_accumulation_steps "
                f"{self.loop.gradient_accumulation_steps} leaves no two "
                "pairs to compare; raise the one or lower the other"
            )
        if isinstance(self.text, TextTokenizerConfig) and self.text.dropout:
            raise ValueError(f"text.dropout {self.text.dropout}: a warm-up reads whole words; set it to 0")
        return self


def train(config: TrainTextEncoderConfig) -> bool:
    """Run to the end, or until interrupted; True when complete. Resumes what is in `run_dir`.

    Raises ConfigError, DataError or ModelFolderError with one line for the user.
    """
    build = partial(build_task, config)
    return train_on_captions(config, RunFolder(config.run_dir, config), build, title="text encoder")


def build_task(
    config: TrainTextEncoderConfig, accelerator: Accelerator, tokenizer: TextTokenizer
) -> TextPretrainingTask:
    """The network for this vocabulary, and the task of a run. Raises DataError where the passages are not there."""
    corpus = None if config.corpus is None else Corpus(config.corpus)
    network = TextEncoderPretraining(
        config.model,
        vocab_size=tokenizer.vocab_size,
        length=tokenizer.length,
        pad_id=tokenizer.pad_id,
        image_size=config.data.transform.image_size,
    )
    pairs = config.data.batch_size // config.loop.gradient_accumulation_steps
    return TextPretrainingTask(
        config.task, network, tokenizer, accelerator, config.loop.steps, config.seed, pairs, corpus
    )
