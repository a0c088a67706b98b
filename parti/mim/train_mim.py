"""Runs of masked image modeling put together: config -> data, network, targets, task, loop."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

from accelerate import Accelerator
from pydantic import Field

from parti.mim.beit import BEiT, BEiTConfig
from parti.mim.mae import MAE, MAEConfig
from parti.mim.mim_task import AbsoluteErrorTask, ClassTask, MaskedImageTask, SquaredErrorTask
from parti.mim.mpp import MPP, MPPConfig
from parti.mim.simmim import SimMIM, SimMIMConfig
from parti.mim.targets import MeanColors, TokenizerCodes
from vqgan.data.loader import DataPipeline
from vqgan.fingerprints import FrozenPart
from vqgan.hub.construction import within_memory
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.training.learner import LearnerConfig
from vqgan.training.run import fit, setup_run
from vqgan.training.run_config import RunConfig
from vqgan.training.run_folder import RunFolder


class TrainMIMConfig(RunConfig):
    """The head of such a run; of its data captions are not read."""

    task: LearnerConfig = LearnerConfig()
    """How the network learns."""
    preview_images: int = Field(6, gt=0)

    def model_image_size(self) -> tuple[str, int]:
        """The encoder's."""
        return "model.encoder.image_size", self.model.encoder.image_size  # type: ignore[attr-defined]


class TrainMAEConfig(TrainMIMConfig):
    """A run that trains a masked autoencoder."""

    objective: Literal["mae"] = "mae"
    run_dir: str = "runs/mae"
    model: MAEConfig = MAEConfig()
    """Encoder, decoder, masks and targets."""


class TrainSimMIMConfig(TrainMIMConfig):
    """A run of SimMIM."""

    objective: Literal["simmim"] = "simmim"
    run_dir: str = "runs/simmim"
    model: SimMIMConfig = SimMIMConfig()
    """Encoder and masks."""


class TrainBEiTConfig(TrainMIMConfig, fixed=("target_size",), may_change=("image_tokenizer",)):
    """A run of BEiT."""

    objective: Literal["beit"] = "beit"
    run_dir: str = "runs/beit"
    image_tokenizer: str
    """Stage-1 run folder, or its model folder: its codes are the targets. It stays as it is."""
    target_size: int | None = Field(None, gt=0)
    """Side in pixels at which the image tokenizer reads the images, so that there is one code a patch. null: the
    images' own."""
    model: BEiTConfig = BEiTConfig()
    """Encoder and masks."""


class TrainMPPConfig(TrainMIMConfig):
    """A run of ViT's masked patch prediction."""

    objective: Literal["mpp"] = "mpp"
    run_dir: str = "runs/mpp"
    model: MPPConfig = MPPConfig()
    """Encoder and corruption."""


def train(config: TrainMIMConfig) -> bool:
    """Run to the end, or until interrupted; True when complete. Resumes what is in `run_dir`.

    Raises ConfigError, DataError or ModelFolderError with one line for the user.
    """
    accelerator = setup_run(config.seed, config.loop.timeout_minutes)
    data = DataPipeline(config.data, config.seed)
    preview = data.preview_batch(config.preview_images)
    run = RunFolder(config.run_dir, config)
    return fit(
        config, partial(build_task, config, accelerator), data, run, accelerator, preview, title=config.objective
    )


def build_task(config: TrainMIMConfig, accelerator: Accelerator) -> MaskedImageTask:
    """The network of the config and its task. Raises ConfigError or ModelFolderError for an image tokenizer that is
    not there or does not fit."""
    return _BUILDERS[type(config)](config, accelerator)


def _mae(config: TrainMAEConfig, accelerator: Accelerator) -> MaskedImageTask:
    return SquaredErrorTask(
        config.task, within_memory(lambda: MAE(config.model)), accelerator, config.loop.steps, config.seed
    )


def _simmim(config: TrainSimMIMConfig, accelerator: Accelerator) -> MaskedImageTask:
    network = within_memory(lambda: SimMIM(config.model))
    return AbsoluteErrorTask(config.task, network, accelerator, config.loop.steps, config.seed)


def _beit(config: TrainBEiTConfig, accelerator: Accelerator) -> MaskedImageTask:
    tokenizer = ImageTokenizer.from_pretrained(config.image_tokenizer)
    return build_beit_task(config, accelerator, tokenizer, {"image_tokenizer": tokenizer.codes_as_frozen_part()})


def build_beit_task(
    config: TrainBEiTConfig,
    accelerator: Accelerator,
    tokenizer: ImageTokenizer,
    frozen: Mapping[str, FrozenPart] | None = None,
) -> ClassTask:
    """The task for codes of this image tokenizer. Raises ConfigError for one whose codes are not one a patch."""
    encoder = config.model.encoder
    size = config.target_size or encoder.image_size
    targets = TokenizerCodes(tokenizer.to(accelerator.device), encoder.grid, size)
    network = within_memory(partial(BEiT, config.model, targets.classes))
    return ClassTask(config.task, network, targets, accelerator, config.loop.steps, config.seed, frozen)


def _mpp(config: TrainMPPConfig, accelerator: Accelerator) -> MaskedImageTask:
    targets = MeanColors(config.model.encoder.patch_size)
    network = within_memory(lambda: MPP(config.model))
    return ClassTask(config.task, network, targets, accelerator, config.loop.steps, config.seed)


_BUILDERS: dict[type[TrainMIMConfig], Callable[[Any, Accelerator], MaskedImageTask]] = {
    TrainMAEConfig: _mae,
    TrainSimMIMConfig: _simmim,
    TrainBEiTConfig: _beit,
    TrainMPPConfig: _mpp,
}
