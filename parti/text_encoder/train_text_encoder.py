"""Assembles a pretraining run: config -> data, vocabulary, network, task, loop. `tools/train_text_encoder.py` calls
it."""

from functools import partial
from typing import Literal

from accelerate import Accelerator
from pydantic import model_validator

from parti.captioned_run import CaptionedRunConfig, train_on_captions
from parti.text import TextTokenizer
from parti.text_encoder.corpus import Corpus
from parti.text_encoder.network import TextEncoderPretraining, TextPretrainingConfig
from parti.text_encoder.pretraining_task import TextPretrainingTask, TextPretrainingTaskConfig
from vqgan.data.loader import DataConfig
from vqgan.hub.construction import within_memory


class TrainTextEncoderConfig(CaptionedRunConfig, may_change=("corpus",)):
    """A run that warms up the text encoder of stage 2."""

    objective: Literal["text_encoder"] = "text_encoder"
    run_dir: str = "runs/text-encoder"
    data: DataConfig = DataConfig()
    """Images and captions. Every pair of a batch is compared with all others: larger batches teach more."""
    corpus: str | None = None
    """Text file, one passage a line: the masked tokens are then of its texts. null: of the captions."""
    model: TextPretrainingConfig = TextPretrainingConfig()
    """The text encoder, and the heads and image encoder for its training."""
    task: TextPretrainingTaskConfig = TextPretrainingTaskConfig()
    """What is minimized, and how."""

    @model_validator(mode="after")
    def _check_parts_fit(self) -> "TrainTextEncoderConfig":
        image_size, patch_size = self.data.transform.image_size, self.model.patch_size
        if image_size % patch_size:
            raise ValueError(
                f"data.transform.image_size {image_size} does not divide into patches of {patch_size}; set "
                "model.patch_size to a divisor"
            )
        self.check_others_to_compare("two pairs to compare")
        self.check_whole_words("a warm-up reads whole words")
        return self


def train(config: TrainTextEncoderConfig) -> bool:
    """Run to the end, or until interrupted; True when complete. Resumes what is in `run_dir`.

    Raises ConfigError, DataError or ModelFolderError with one line for the user.
    """
    build = partial(build_task, config)
    return train_on_captions(config, build, title="text encoder")


def build_task(
    config: TrainTextEncoderConfig, accelerator: Accelerator, tokenizer: TextTokenizer
) -> TextPretrainingTask:
    """The network for this vocabulary, and the task of a run. Raises DataError where the passages are not there."""
    corpus = None if config.corpus is None else Corpus(config.corpus)
    network = within_memory(
        lambda: TextEncoderPretraining(
            config.model,
            vocab_size=tokenizer.vocab_size,
            length=tokenizer.length,
            pad_id=tokenizer.pad_id,
            image_size=config.data.transform.image_size,
        )
    )
    pairs = config.data.batch_size // config.loop.gradient_accumulation_steps
    return TextPretrainingTask(
        config.task, network, tokenizer, accelerator, config.loop.steps, config.seed, pairs, corpus
    )
