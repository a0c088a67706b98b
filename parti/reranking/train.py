"""A reranker put together: config -> data, vocabulary, dual encoder, task, loop. `tools/train_reranker.py` calls it."""

from typing import Any

from accelerate import Accelerator
from pydantic import Field, model_validator

from parti.reranking.dual_encoder import DualEncoderConfig, build_dual_encoder, build_processor
from parti.reranking.tasks import ContrastiveTask, ContrastiveTaskConfig
from parti.text.run_vocabulary import run_vocabulary
from parti.text.tokenizer import TextTokenizerConfig
from vqgan.config import Config
from vqgan.data.loader import DataConfig, DataPipeline
from vqgan.training.loop import LoopConfig
from vqgan.training.run import begin, run_to_end
from vqgan.training.run_folder import RunFolder
from vqgan.training.seeding import SEEDS
from vqgan.training.trackers import TrackersConfig


class TrainRerankerConfig(Config, may_change=("run_dir", "seed", "preview_pictures")):
    """A run that trains a reranker."""

    run_dir: str = "runs/reranker"
    """Folder of the run. Running again with the same folder resumes."""
    seed: int = Field(0, ge=0, lt=SEEDS)
    """Of initial weights, data order and augmentation."""
    data: DataConfig = DataConfig()
    """Pictures and captions. Every pair of a batch is compared with all others: larger batches teach more."""
    text: TextTokenizerConfig = TextTokenizerConfig()
    """The text vocabulary; its length includes a start and an end token here."""
    model: DualEncoderConfig = DualEncoderConfig()
    """The dual encoder."""
    task: ContrastiveTaskConfig = ContrastiveTaskConfig()
    """What is minimised, and how."""
    loop: LoopConfig = LoopConfig()
    """Length of the run and what happens when."""
    trackers: TrackersConfig = TrackersConfig()
    """Experiment trackers."""
    preview_pictures: int = Field(12, gt=0)
    """Held-out pictures in each preview."""

    @model_validator(mode="after")
    def _check_parts_fit(self) -> "TrainRerankerConfig":
        if self.data.transform.image_size != self.model.image_size:
            raise ValueError(
                f"data.transform.image_size {self.data.transform.image_size} and model.image_size "
                f"{self.model.image_size} differ; set both to the same size"
            )
        if self.data.batch_size // self.loop.micro_batches < 2:
            raise ValueError(
                f"data.batch_size {self.data.batch_size} in loop.micro_batches {self.loop.micro_batches} leaves no two "
                "pairs to compare; raise the one or lower the other"
            )
        return self


def train(config: TrainRerankerConfig) -> bool:
    """Run to the end, or until interrupted; True when complete. Resumes what is in `run_dir`.

    Raises ConfigError, DataError or ModelFolderError with one line for the user.
    """
    accelerator = begin(config.seed, config.loop.minutes_to_wait)
    data = DataPipeline(config.data, config.seed, require_captions=True)
    preview = data.preview_batch(config.preview_pictures)
    run = RunFolder(config.run_dir, config)
    if accelerator.is_main_process:
        run.create()
    run_vocabulary(config.text, data, run, accelerator, config.loop.minutes_to_wait)
    task = build_task(config, accelerator, build_processor(config.model, run.path))
    return run_to_end(config, task, data, run, accelerator, preview, title="reranker")


def build_task(config: TrainRerankerConfig, accelerator: Accelerator, processor: Any) -> ContrastiveTask:
    """The dual encoder for this vocabulary, and the task of a run."""
    model = build_dual_encoder(config.model, processor)
    pairs = config.data.batch_size // config.loop.micro_batches
    return ContrastiveTask(config.task, model, processor, accelerator, config.loop.steps, pairs)
