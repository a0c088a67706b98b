"""A captioning run put together: config -> data, vocabulary, captioner, task, loop. `tools/train_parti.py` calls it."""

from typing import Literal

from accelerate import Accelerator
from pydantic import Field, model_validator

from parti.captioned_run import train_on_captions
from parti.fused.captioning.captioner import Captioner, CaptionerConfig
from parti.fused.captioning.captioning_task import CaptioningTask, CaptioningTaskConfig
from parti.fused.transfer import check_vocabulary, start_from
from parti.text import TextConfig, TextTokenizer, TextTokenizerConfig
from vqgan.config.schema import Config
from vqgan.data.loader import DataConfig
from vqgan.metrics.caption_checkers import CaptionChecker, caption_checker
from vqgan.training.loop import LoopConfig
from vqgan.training.monitor.trackers import TrackersConfig
from vqgan.training.parallel.seeding import SEEDS
from vqgan.training.run_folder import RunFolder


class TrainCaptioningConfig(Config, fixed=("objective",), may_change=("run_dir", "seed", "start", "preview_images")):
    """A run that trains a captioner."""

    objective: Literal["fused_captioning"] = "fused_captioning"
    """What is trained: partially autoregressive captioning by a fused U-Net and BERT."""
    run_dir: str = "runs/fused-captioning"
    """Folder of the run. Running again with the same folder resumes."""
    seed: int = Field(0, ge=0, lt=SEEDS)
    """Seed of initial weights, data order, augmentation and drafts."""
    start: str | None = None
    """Run or model folder of a fused model to start from, e.g. of objective fused_inpainting: every part that both
    have. Its vocabulary must be the same (text.kind saved). null: from scratch, or from model.text.bert."""
    data: DataConfig = DataConfig()
    """Images and captions."""
    text: TextConfig = TextTokenizerConfig(length=30)
    """The text vocabulary; its length includes a start and an end token."""
    model: CaptionerConfig = CaptionerConfig()
    """The captioner."""
    task: CaptioningTaskConfig = CaptioningTaskConfig()
    """What is minimized, and how."""
    loop: LoopConfig = LoopConfig()
    """Length of the run and what happens when."""
    trackers: TrackersConfig = TrackersConfig()
    """Experiment trackers."""
    preview_images: int = Field(12, gt=0)
    """Validation images in each preview."""

    @model_validator(mode="after")
    def _check_parts_fit(self) -> "TrainCaptioningConfig":
        if self.data.transform.image_size != self.model.image_size:
            raise ValueError(
                f"data.transform.image_size {self.data.transform.image_size} and model.image_size "
                f"{self.model.image_size} differ; set both to the same size"
            )
        check_vocabulary(self.text, self.start, self.model.text.bert, "model.text.bert")
        if isinstance(self.text, TextTokenizerConfig) and self.text.dropout:
            raise ValueError(f"text.dropout {self.text.dropout}: a captioner tells whole words; set it to 0")
        return self


def train(config: TrainCaptioningConfig) -> bool:
    """Run to the end, or until interrupted; True when complete. Resumes what is in `run_dir`.

    Raises ConfigError, DataError or ModelFolderError with one line for the user.
    """
    check_image = caption_checker(config.data.source)

    def build(accelerator: Accelerator, tokenizer: TextTokenizer) -> CaptioningTask:
        return build_task(config, accelerator, tokenizer, check_image)

    return train_on_captions(config, RunFolder(config.run_dir, config), build, title="captioning")


def build_task(
    config: TrainCaptioningConfig,
    accelerator: Accelerator,
    tokenizer: TextTokenizer,
    check_image: CaptionChecker | None = None,
) -> CaptioningTask:
    """The captioner for this vocabulary, and the task of a run. Raises what `start_from` raises."""
    captioner = Captioner(config.model, tokenizer)
    if config.start is not None:
        start_from(captioner, config.start)
    return CaptioningTask(config.task, captioner, accelerator, config.loop.steps, config.seed, check_image)
