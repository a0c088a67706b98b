"""What the configuration of every training run has, whatever its objective."""

from typing import Any

from pydantic import Field, model_validator

from vqgan.config.schema import Config
from vqgan.data.loader import DataConfig
from vqgan.training.loop import LoopConfig
from vqgan.training.monitor.trackers import TrackersConfig
from vqgan.training.parallel.seeding import SEEDS


class RunConfig(Config, fixed=("objective",), may_change=("run_dir", "seed", "preview_images")):
    """The head of a run. A run of an objective adds its networks and its task, `model` and `task`."""

    objective: str
    """What is trained: every config file says it, and every command reads it."""
    run_dir: str
    """Folder of the run. Running again with the same folder resumes."""
    seed: int = Field(0, ge=0, lt=SEEDS)
    """Of all that is random: initial weights, data order, augmentation, what is dropped, hidden or drawn."""
    data: DataConfig = DataConfig()
    """Images."""
    loop: LoopConfig = LoopConfig()
    """Length of the run and what happens when."""
    trackers: TrackersConfig = TrackersConfig()
    """Experiment trackers."""
    preview_images: int = Field(12, gt=0)
    """Validation images in each preview."""

    @model_validator(mode="after")
    def _check_image_sizes_agree(self) -> Any:
        name, size = self.model_image_size()
        if size is not None and size != self.data.transform.image_size:
            raise ValueError(
                f"data.transform.image_size {self.data.transform.image_size} and {name} {size} differ; set both to the "
                "same size"
            )
        return self

    def model_image_size(self) -> tuple[str, int | None]:
        """The key of the size of images that the network is built for, and the size; None where it takes any."""
        return "model.image_size", getattr(getattr(self, "model", None), "image_size", None)
