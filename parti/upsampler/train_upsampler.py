"""An upsampler's run put together: config -> data, networks, task, loop. `tools/train_upsampler.py` calls `train`."""

from functools import partial
from typing import Literal

from accelerate import Accelerator

from parti.upsampler.upsampler import Upsampler, UpsamplerConfig
from parti.upsampler.upsampler_task import UpsamplerTask, UpsamplerTaskConfig
from vqgan.config.schema import ConfigError
from vqgan.data.loader import DataConfig, DataPipeline
from vqgan.fine_tuning import start, start_network_from
from vqgan.hub.construction import within_memory
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.training.run import fit, setup_run
from vqgan.training.run_config import RunConfig
from vqgan.training.run_folder import RunFolder


class TrainUpsamplerConfig(RunConfig, may_change=("image_tokenizer", "start_from")):
    """A run that trains an upsampler."""

    objective: Literal["upsampler"] = "upsampler"
    run_dir: str = "runs/upsampler"
    image_tokenizer: str
    """Stage-1 run folder, or its model folder: its reconstructions are enlarged. It is frozen."""
    data: DataConfig = DataConfig()
    """Large images: data.transform.image_size is model.scale times the image tokenizer's."""
    model: UpsamplerConfig = UpsamplerConfig()
    """The network."""
    start_from: str | None = None
    """Fine-tuning: an upsampler's run or model folder whose weights this run starts from, as far as they fit; what was
    taken is listed. Not read when the run is resumed."""
    task: UpsamplerTaskConfig = UpsamplerTaskConfig()
    """What is minimized, and how."""


def train(config: TrainUpsamplerConfig) -> bool:
    """Run to the end, or until interrupted; True when complete. Resumes what is in `run_dir`.

    Raises ConfigError, DataError or ModelFolderError with one line for the user.
    """
    accelerator = setup_run(config.seed, config.loop.timeout_minutes)
    image_tokenizer = ImageTokenizer.from_pretrained(config.image_tokenizer)
    large = config.model.scale * image_tokenizer.image_size
    if config.data.transform.image_size != large:
        raise ConfigError(
            f"data.transform.image_size is {config.data.transform.image_size}, but images of the image tokenizer in "
            f"{config.image_tokenizer} have {image_tokenizer.image_size} pixels, and {config.model.scale} times as "
            f"many are {large}; set data.transform.image_size to that"
        )
    data = DataPipeline(config.data, config.seed)
    preview = data.preview_batch(config.preview_images)
    run = RunFolder(config.run_dir, config)
    task = partial(build_task, config, accelerator, image_tokenizer)
    return fit(config, task, data, run, accelerator, preview, title="upsampler")


def build_task(
    config: TrainUpsamplerConfig, accelerator: Accelerator, image_tokenizer: ImageTokenizer
) -> UpsamplerTask:
    """The network, and the task of a run."""
    upsampler = within_memory(lambda: Upsampler(config.model))
    start(config.start_from, config.run_dir, accelerator, partial(start_network_from, upsampler))
    return UpsamplerTask(config.task, upsampler, image_tokenizer, accelerator, config.loop.steps)
