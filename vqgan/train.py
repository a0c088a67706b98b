"""Stage 1 put together: config -> data, networks, task, loop. `tools/train_vqgan.py` calls `train`."""

from accelerate import Accelerator
from pydantic import Field, model_validator

from vqgan.command_line import print_out
from vqgan.config import Config, ConfigError
from vqgan.construction import within_memory
from vqgan.data.loader import DataConfig, DataPipeline
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.metrics.judge import caption_judge
from vqgan.models import AnyAutoencoderConfig, Autoencoder, build_autoencoder
from vqgan.models.vit_vqgan import ViTVQGANConfig
from vqgan.tasks import AutoencoderTask, AutoencoderTaskConfig
from vqgan.training.loop import LoopConfig
from vqgan.training.run import begin, run_to_end
from vqgan.training.run_folder import RunFolder
from vqgan.training.schedule import in_steps
from vqgan.training.seeding import SEEDS
from vqgan.training.trackers import TrackersConfig


class TrainVQGANConfig(Config, may_change=("run_dir", "seed", "codes_from", "preview_pictures")):
    """A stage-1 run."""

    run_dir: str = "runs/vqgan"
    """Folder of the run. Running again with the same folder resumes."""
    seed: int = Field(0, ge=0, lt=SEEDS)
    """Of initial weights, data order and augmentation."""
    data: DataConfig = DataConfig()
    """Pictures."""
    model: AnyAutoencoderConfig = ViTVQGANConfig()
    """The image tokenizer."""
    codes_from: str | None = None
    """A stage-1 run or model folder whose encoder and codebook this run keeps, frozen: only the decoder learns, and may
    be larger than the one that they were trained with (the second phase of Parti's tokenizer)."""
    task: AutoencoderTaskConfig = AutoencoderTaskConfig()
    """What is minimised, and how."""
    loop: LoopConfig = LoopConfig()
    """Length of the run and what happens when."""
    trackers: TrackersConfig = TrackersConfig()
    """Experiment trackers."""
    preview_pictures: int = Field(12, gt=0)
    """Held-out pictures in each preview."""

    @model_validator(mode="after")
    def _check_parts_fit(self) -> "TrainVQGANConfig":
        if self.data.transform.image_size != self.model.image_size:
            raise ValueError(
                f"data.transform.image_size {self.data.transform.image_size} and model.image_size "
                f"{self.model.image_size} differ; set both to the same size"
            )
        if self.task.logit_laplace_weight and self.model.output != "logit_laplace":
            raise ValueError(
                f"task.logit_laplace_weight is {self.task.logit_laplace_weight} but model.output is "
                f"{self.model.output}; set model.output to logit_laplace or the weight to 0"
            )
        care = self.task.codebook_care
        places_codes = in_steps(care.continuous, self.loop.steps) > 0 or care.revive_every > 0
        remedy = "set task.codebook_care.continuous and task.codebook_care.revive_every to 0"
        if places_codes and self.codes_from:
            raise ValueError(f"task.codebook_care moves codes, but those of codes_from are frozen; {remedy}")
        if places_codes and not self.model.quantizer.has_codebook:
            kind = self.model.quantizer.kind
            raise ValueError(f"task.codebook_care places learned codes, but a {kind} quantizer has none; {remedy}")
        return self


def train(config: TrainVQGANConfig) -> bool:
    """Run to the end, or until interrupted; True when complete. Resumes what is in `run_dir`.

    Raises ConfigError, DataError or ValueError with one line for the user.
    """
    accelerator = begin(config.seed, config.loop.minutes_to_wait)
    data = DataPipeline(config.data, config.seed)
    preview = data.preview_batch(config.preview_pictures)
    task = build_task(config, accelerator)
    run = RunFolder(config.run_dir, config)
    if accelerator.is_main_process:
        run.create()
    return run_to_end(config, task, data, run, accelerator, preview, title="stage 1")


def build_task(config: TrainVQGANConfig, accelerator: Accelerator) -> AutoencoderTask:
    """The networks and the task of a run."""
    autoencoder = within_memory(lambda: build_autoencoder(config.model))
    if config.codes_from:
        taken, total = keep_codes(autoencoder, config.codes_from)
        if accelerator.is_main_process:
            print_out(
                f"codes of {config.codes_from}, frozen; {taken} of the decoder's {total} weights start from there"
            )
    judge = caption_judge(config.data.source)
    return AutoencoderTask(config.task, autoencoder, accelerator, config.loop.steps, config.seed, judge)


def keep_codes(autoencoder: Autoencoder, folder: str) -> tuple[int, int]:
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
