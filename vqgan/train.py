"""Stage 1 put together: config -> data, networks, task, loop. `tools/train_vqgan.py` calls `train`."""

from accelerate import Accelerator
from pydantic import Field, model_validator

from vqgan.config import Config
from vqgan.data.loader import DataConfig, DataPipeline
from vqgan.metrics.judge import caption_judge
from vqgan.models import AUTOENCODERS, AutoencoderConfig
from vqgan.models.vit_vqgan import ViTVQGANConfig
from vqgan.tasks import AutoencoderTask, AutoencoderTaskConfig
from vqgan.training.distributed import build_accelerator
from vqgan.training.host_memory import keep_freed_memory
from vqgan.training.loop import LoopConfig, TrainingLoop
from vqgan.training.run_folder import RunFolder
from vqgan.training.seeding import seed_everything
from vqgan.training.trackers import Trackers, TrackersConfig


class TrainVQGANConfig(Config):
    """A stage-1 run."""

    run_dir: str = "runs/vqgan"
    """Folder of the run. Running again with the same folder resumes."""
    seed: int = Field(0, ge=0)
    """Of initial weights, data order and augmentation."""
    data: DataConfig = DataConfig()
    """Pictures."""
    model: AutoencoderConfig = ViTVQGANConfig()
    """The image tokenizer."""
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
        return self


def train(config: TrainVQGANConfig) -> bool:
    """Run to the end, or until interrupted; True when complete. Resumes what is in `run_dir`.

    Raises ConfigError, DataError or ValueError with one line for the user.
    """
    keep_freed_memory()
    accelerator = build_accelerator()
    seed_everything(config.seed, accelerator.process_index)
    data = DataPipeline(config.data, config.seed)
    preview = data.preview_batch(config.preview_pictures)
    task = build_task(config, accelerator)
    run = RunFolder(config.run_dir)
    if accelerator.is_main_process:
        run.create(config)
    trackers = Trackers(config.trackers, run, accelerator, config.model_dump(mode="json"))
    loop = TrainingLoop(config.loop, task, data, run, accelerator, trackers, preview, title="stage 1")
    return loop.run()


def build_task(config: TrainVQGANConfig, accelerator: Accelerator) -> AutoencoderTask:
    """The networks and the task of a run."""
    autoencoder = AUTOENCODERS[config.model.kind](config.model)
    judge = caption_judge(config.data.source)
    return AutoencoderTask(config.task, autoencoder, accelerator, config.loop.steps, config.seed, judge)
