"""A run of the pretraining task put together: config -> data, vocabulary, network, task, loop."""

from functools import partial
from typing import Literal

from accelerate import Accelerator
from pydantic import Field, model_validator

from parti.captioned_run import train_on_captions
from parti.fused.inpainting.inpainting_task import InpaintingTask, InpaintingTaskConfig
from parti.fused.inpainting.network import InpaintingNetwork
from parti.fused.rows import TrunkConfig
from parti.fused.text_side import text_space
from parti.fused.transfer import check_vocabulary, start_from
from parti.text import TextConfig, TextTokenizer, TextTokenizerConfig
from vqgan.config.schema import Config
from vqgan.data.loader import DataConfig
from vqgan.data.sources.shapes import ShapesConfig
from vqgan.training.loop import LoopConfig
from vqgan.training.monitor.trackers import TrackersConfig
from vqgan.training.parallel.seeding import SEEDS
from vqgan.training.run_folder import RunFolder


class TrainInpaintingConfig(Config, fixed=("objective",), may_change=("run_dir", "seed", "start", "preview_images")):
    """A run that pretrains the fused trunk: image inpainting and language completion."""

    objective: Literal["fused_inpainting"] = "fused_inpainting"
    """What is trained."""
    run_dir: str = "runs/fused-inpainting"
    """Folder of the run. Running again with the same folder resumes."""
    seed: int = Field(0, ge=0, lt=SEEDS)
    """Seed of initial weights, data order, augmentation, holes and masked words."""
    data: DataConfig = DataConfig()
    """Images and captions."""
    text: TextConfig = TextTokenizerConfig(length=30)
    """The text vocabulary."""
    model: TrunkConfig = TrunkConfig()
    """The trunk."""
    start: str | None = None
    """Run or model folder of another fused model whose parts this one starts from, with text.kind saved and
    text.folder the same folder. null: random weights, or those of model.text.bert."""
    task: InpaintingTaskConfig = InpaintingTaskConfig()
    """What is minimized, and how."""
    loop: LoopConfig = LoopConfig()
    """Length of the run and what happens when."""
    trackers: TrackersConfig = TrackersConfig()
    """Experiment trackers."""
    preview_images: int = Field(12, gt=0)
    """Validation pairs in each preview."""

    @model_validator(mode="after")
    def _check_parts_fit(self) -> "TrainInpaintingConfig":
        if self.data.transform.image_size != self.model.image_size:
            raise ValueError(
                f"data.transform.image_size is {self.data.transform.image_size}, model.image_size "
                f"{self.model.image_size}; set both to the same"
            )
        check_vocabulary(self.text, self.start, self.model.text.bert, "model.text.bert")
        return self


def train(config: TrainInpaintingConfig) -> bool:
    """Run to the end, or until interrupted; True when complete. Resumes what is in `run_dir`.

    Raises ConfigError, DataError or ModelFolderError with one line for the user.
    """
    build = partial(build_task, config)
    return train_on_captions(config, RunFolder(config.run_dir, config), build, title="inpainting")


def build_task(config: TrainInpaintingConfig, accelerator: Accelerator, tokenizer: TextTokenizer) -> InpaintingTask:
    """The network for this vocabulary, and the task of a run.

    Raises ConfigError or ModelFolderError where what it starts from is not there or does not fit.
    """
    network = InpaintingNetwork(config.model, text_space(tokenizer))
    if config.start is not None:
        start_from(network, config.start)
    shapes = isinstance(config.data.source, ShapesConfig)
    return InpaintingTask(config.task, network, tokenizer, accelerator, config.loop.steps, config.seed, shapes)
