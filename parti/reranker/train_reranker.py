"""A reranker put together: config -> data, vocabulary, dual encoder, task, loop. `tools/train_reranker.py` calls it."""

from typing import Any

from accelerate import Accelerator
from pydantic import Field, model_validator

from parti.reranker.contrastive_task import ContrastiveTask, ContrastiveTaskConfig
from parti.reranker.dual_encoder import DualEncoderConfig, build_dual_encoder, build_processor
from parti.text.run_tokenizer import load_or_train_tokenizer
from parti.text.tokenizer import TextTokenizerConfig
from vqgan.config.schema import Config
from vqgan.data.loader import DataConfig, DataPipeline
from vqgan.training.loop import LoopConfig
from vqgan.training.monitor.trackers import TrackersConfig
from vqgan.training.parallel.seeding import SEEDS
from vqgan.training.run import fit, setup_run
from vqgan.training.run_folder import RunFolder


class TrainRerankerConfig(Config, may_change=("run_dir", "seed", "preview_images")):
    """A run that trains a reranker."""

    run_dir: str = "runs/reranker"
    """Folder of the run. Running again with the same folder resumes."""
    seed: int = Field(0, ge=0, lt=SEEDS)
    """Seed of initial weights, data order and augmentation."""
    data: DataConfig = DataConfig()
    """Images and captions. Every pair of a batch is compared with all others: larger batches teach more."""
    text: TextTokenizerConfig = TextTokenizerConfig()
    """The text vocabulary; its length includes a start and an end token here."""
    model: DualEncoderConfig = DualEncoderConfig()
    """The dual encoder."""
    task: ContrastiveTaskConfig = ContrastiveTaskConfig()
    """What is minimized, and how."""
    loop: LoopConfig = LoopConfig()
    """Length of the run and what happens when."""
    trackers: TrackersConfig = TrackersConfig()
    """Experiment trackers."""
    preview_images: int = Field(12, gt=0)
    """Validation images in each preview."""

    @model_validator(mode="after")
    def _check_parts_fit(self) -> "TrainRerankerConfig":
        if self.data.transform.image_size != self.model.image_size:
            raise ValueError(
                f"data.transform.image_size {self.data.transform.image_size} and model.image_size "
                f"{self.model.image_size} differ; set both to the same size"
            )
        if self.data.batch_size // self.loop.gradient_accumulation_steps < 2:
            raise ValueError(
                f"data.batch_size {self.data.batch_size} in loop.gradient_accumulation_steps "
                f"{self.loop.gradient_accumulation_steps} leaves no two "
                "pairs to compare; raise the one or lower the other"
            )
        return self


def train(config: TrainRerankerConfig) -> bool:
    """Run to the end, or until interrupted; True when complete. Resumes what is in `run_dir`.

    Raises ConfigError, DataError or ModelFolderError with one line for the user.
    """
    accelerator = setup_run(config.seed, config.loop.timeout_minutes)
    data = DataPipeline(config.data, config.seed, require_captions=True)
    preview = data.preview_batch(config.preview_images)
    run = RunFolder(config.run_dir, config)
    if accelerator.is_main_process:
        run.create()
    load_or_train_tokenizer(config.text, data, run, accelerator, config.loop.timeout_minutes)
    task = build_task(config, accelerator, build_processor(config.model, run.path))
    return fit(config, task, data, run, accelerator, preview, title="reranker")


def build_task(config: TrainRerankerConfig, accelerator: Accelerator, processor: Any) -> ContrastiveTask:
    """The dual encoder for this vocabulary, and the task of a run."""
    model = build_dual_encoder(config.model, processor)
    pairs = config.data.batch_size // config.loop.gradient_accumulation_steps
    return ContrastiveTask(config.task, model, processor, accelerator, config.loop.steps, pairs)
