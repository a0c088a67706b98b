"""A reranker put together: config -> data, vocabulary, dual encoder, task, loop. `tools/train_reranker.py` calls it."""

from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator
from pydantic import model_validator

from parti.captioned_run import CaptionedRunConfig, train_on_captions
from parti.reranker.contrastive_task import ContrastiveTask, ContrastiveTaskConfig
from parti.reranker.dual_encoder import DualEncoderConfig, build_dual_encoder, build_processor
from parti.text.tokenizer import TextTokenizer, TextTokenizerConfig
from vqgan.data.loader import DataConfig
from vqgan.hub.construction import within_memory


class TrainRerankerConfig(CaptionedRunConfig):
    """A run that trains a reranker."""

    objective: Literal["reranker"] = "reranker"
    run_dir: str = "runs/reranker"
    data: DataConfig = DataConfig()
    """Images and captions. Every pair of a batch is compared with all others: larger batches teach more."""
    text: TextTokenizerConfig = TextTokenizerConfig()
    """The text vocabulary; its length includes a start and an end token here."""
    model: DualEncoderConfig = DualEncoderConfig()
    """The dual encoder."""
    task: ContrastiveTaskConfig = ContrastiveTaskConfig()
    """What is minimized, and how."""

    @model_validator(mode="after")
    def _check_parts_fit(self) -> "TrainRerankerConfig":
        self.check_others_to_compare("two pairs to compare")
        return self


def train(config: TrainRerankerConfig) -> bool:
    """Run to the end, or until interrupted; True when complete. Resumes what is in `run_dir`.

    Raises ConfigError, DataError or ModelFolderError with one line for the user.
    """

    def build(accelerator: Accelerator, _: TextTokenizer) -> ContrastiveTask:
        return build_task(config, accelerator, build_processor(config.model, Path(config.run_dir)))

    return train_on_captions(config, build, title="reranker")


def build_task(config: TrainRerankerConfig, accelerator: Accelerator, processor: Any) -> ContrastiveTask:
    """The dual encoder for this vocabulary, and the task of a run."""
    model = within_memory(lambda: build_dual_encoder(config.model, processor))
    pairs = config.data.batch_size // config.loop.gradient_accumulation_steps
    return ContrastiveTask(config.task, model, processor, accelerator, config.loop.steps, pairs)
