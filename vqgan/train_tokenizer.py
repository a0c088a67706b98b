"""Stage 1 put together: config -> data, networks, task, loop. `tools/train_vqgan.py` calls `train`."""

from functools import partial
from typing import Literal

from accelerate import Accelerator
from pydantic import model_validator

from vqgan.autoencoder_task import AutoencoderTask, AutoencoderTaskConfig
from vqgan.cli.command_line import print_out
from vqgan.config.schedule import in_steps
from vqgan.config.schema import ConfigError
from vqgan.data.loader import DataPipeline
from vqgan.fine_tuning import start, start_discriminator_from, start_tokenizer_from
from vqgan.hub.construction import within_memory
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.metrics.caption_checkers import caption_checker
from vqgan.models import AnyAutoencoderConfig, Autoencoder, build_autoencoder
from vqgan.models.vit_vqgan import ViTVQGANConfig
from vqgan.training.run import fit, setup_run
from vqgan.training.run_config import RunConfig
from vqgan.training.run_folder import RunFolder


class TrainVQGANConfig(RunConfig, may_change=("codes_from", "start_from")):
    """A stage-1 run."""

    objective: Literal["image_tokenizer"] = "image_tokenizer"
    run_dir: str = "runs/vqgan"
    model: AnyAutoencoderConfig = ViTVQGANConfig()
    """The image tokenizer."""
    codes_from: str | None = None
    """A stage-1 run or model folder whose encoder and codebook this run keeps, frozen: only the decoder learns, and may
    be larger than the one that they were trained with (the second phase of Parti's tokenizer)."""
    start_from: str | None = None
    """Fine-tuning: a run, a model folder (an imported one too) or a Hub name whose weights this run starts from, as far
    as they fit; what was taken is listed. Of a run the discriminator too. Not read when the run is resumed."""
    task: AutoencoderTaskConfig = AutoencoderTaskConfig()
    """What is minimized, and how."""

    @model_validator(mode="after")
    def _check_parts_fit(self) -> "TrainVQGANConfig":
        if self.task.logit_laplace_weight and self.model.output != "logit_laplace":
            raise ValueError(
                f"task.logit_laplace_weight is {self.task.logit_laplace_weight} but model.output is "
                f"{self.model.output}; set model.output to logit_laplace or the weight to 0"
            )
        maintenance = self.task.codebook_maintenance
        places_codes = in_steps(maintenance.unquantized, self.loop.steps) > 0 or maintenance.restart_every > 0
        remedy = "set task.codebook_maintenance.unquantized and task.codebook_maintenance.restart_every to 0"
        if self.codes_from and self.start_from:
            both = f"codes_from {self.codes_from!r} and start_from {self.start_from!r}"
            raise ValueError(f"{both} both give the encoder; set one to null")
        if places_codes and self.codes_from:
            raise ValueError(f"task.codebook_maintenance moves codes, but those of codes_from are frozen; {remedy}")
        if places_codes and not self.model.quantizer.has_codebook:
            kind = self.model.quantizer.kind
            raise ValueError(
                f"task.codebook_maintenance places learned codes, but a {kind} quantizer has none; {remedy}"
            )
        return self


def train(config: TrainVQGANConfig) -> bool:
    """Run to the end, or until interrupted; True when complete. Resumes what is in `run_dir`.

    Raises ConfigError, DataError or ValueError with one line for the user.
    """
    accelerator = setup_run(config.seed, config.loop.timeout_minutes)
    data = DataPipeline(config.data, config.seed)
    preview = data.preview_batch(config.preview_images)
    run = RunFolder(config.run_dir, config)
    return fit(config, partial(build_task, config, accelerator), data, run, accelerator, preview, title="stage 1")


def build_task(config: TrainVQGANConfig, accelerator: Accelerator) -> AutoencoderTask:
    """The networks and the task of a run."""
    autoencoder = within_memory(lambda: build_autoencoder(config.model))
    if config.codes_from:
        taken, total = load_frozen_codes(autoencoder, config.codes_from)
        if accelerator.is_main_process:
            print_out(
                f"codes of {config.codes_from}, frozen; {taken} of the decoder's {total} weights start from there"
            )
    start(config.start_from, config.run_dir, accelerator, partial(start_tokenizer_from, autoencoder))
    check_image = caption_checker(config.data.source)
    task = AutoencoderTask(config.task, autoencoder, accelerator, config.loop.steps, config.seed, check_image)
    if (trainer := task.discriminator_trainer) is not None:
        start(config.start_from, config.run_dir, accelerator, partial(start_discriminator_from, trainer.discriminator))
    return task


def load_frozen_codes(autoencoder: Autoencoder, folder: str) -> tuple[int, int]:
    """Take the encoder and codebook of a tokenizer, frozen, and of its decoder what has the same names and shapes.

    Returns how many of the decoder's tensors were taken, and of how many. Raises ConfigError where the two differ in
    anything but their decoders.
    """
    source = ImageTokenizer.from_pretrained(folder).autoencoder
    ours, theirs = autoencoder.config.settings_of_codes(), source.config.settings_of_codes()
    if differing := sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)):
        key = "quantizer.kind" if "quantizer.kind" in differing else differing[0]
        raise ConfigError(
            f"codes_from: {folder} has model.{key} {theirs.get(key)}, this run {ours.get(key)}; only the decoder and "
            "the output may differ"
        )
    autoencoder.encoder.load_state_dict(source.encoder.state_dict())
    autoencoder.quantizer.load_state_dict(source.quantizer.state_dict())
    fresh = autoencoder.decoder.state_dict()
    known = {
        name: weight
        for name, weight in source.decoder.state_dict().items()
        if name in fresh and fresh[name].shape == weight.shape
    }
    autoencoder.decoder.load_state_dict(fresh | known)
    autoencoder.freeze_codes()
    return len(known), len(fresh)
