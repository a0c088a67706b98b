"""Writes metrics and images to the run folder, and to TensorBoard, W&B or Trackio through accelerate if configured."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
from accelerate import Accelerator
from jaxtyping import Int64
from PIL import Image
from pydantic import Field
from torch import Tensor

from vqgan.config.schema import Config, ConfigError, flatten
from vqgan.training.monitor.code_usage import in_bins, usage_chart
from vqgan.training.run_folder import RunFolder

_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}


class TrackersConfig(Config, may_change=("names", "project")):
    """Experiment trackers beside metrics.jsonl."""

    names: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = Field((), strict=False)
    """Any of tensorboard (its files are in the run folder: `tensorboard --logdir RUN_DIR`), wandb, trackio."""
    project: str = "parti"
    """Project name for those that have projects."""


class Trackers:
    """Writes to the run folder and to every tracker, on the main process only."""

    def __init__(self, config: TrackersConfig, run: RunFolder, accelerator: Accelerator, settings: dict[str, object]):
        self._run = run
        self._accelerator = accelerator
        self._names = config.names
        if not self._names:
            return
        _check_installed(config.names)
        os.environ.setdefault("WANDB_DIR", str(run.path))
        accelerator.project_configuration.set_directories(str(run.path))
        accelerator.log_with = [_tracker(name) for name in config.names]
        with _refusals_in_one_line():
            accelerator.init_trackers(config.project, config=flatten(settings))

    def log(self, values: Mapping[str, float], step: int, split: str) -> None:
        """Logs metrics of `split` (train, val) after `step` steps."""
        if not self._accelerator.is_main_process:
            return
        self._run.append_metrics({"step": step, "split": split, **values})
        if self._names:
            self._accelerator.log({f"{split}/{name}": value for name, value in values.items()}, step=step)

    def preview(self, image: Image.Image, step: int) -> None:
        """Logs a preview image after `step` steps, also as samples/step-XXXXXXX.png."""
        self._record(image, "preview", step, file="step")

    def code_counts(self, counts: Int64[Tensor, "V"], step: int) -> None:
        """Logs how often each code was hit: a chart, also as samples/codes-XXXXXXX.png, and a histogram over ranks."""
        self._record(usage_chart(counts), "code_usage", step, file="codes")
        if self._accelerator.is_main_process:
            for name in self._names:
                _HISTOGRAMS[name](self._native(name), "val/codes_by_use", *in_bins(counts), step)

    def close(self) -> None:
        """Flushes the trackers."""
        if self._names:
            self._accelerator.end_training()

    def _record(self, image: Image.Image, title: str, step: int, *, file: str) -> None:
        if not self._accelerator.is_main_process:
            return
        self._run.save_image(image, step, file)
        for name in self._names:
            _IMAGES[name](self._native(name), f"val/{title}", image, step)

    def _native(self, name: str) -> Any:
        return self._accelerator.get_tracker(name, unwrap=True)


def _tensorboard_image(writer: Any, title: str, image: Image.Image, step: int) -> None:
    writer.add_image(title, np.asarray(image.convert("RGB")), step, dataformats="HWC")


def _wandb_image(run: Any, title: str, image: Image.Image, step: int) -> None:
    import wandb

    run.log({title: wandb.Image(image)}, step=step)


def _trackio_image(run: Any, title: str, image: Image.Image, step: int) -> None:
    import trackio

    run.log({title: trackio.Image(image)}, step=step)


def _tensorboard_histogram(writer: Any, title: str, hits: list[int], edges: list[float], step: int) -> None:
    places = (np.array(edges[:-1]) + np.array(edges[1:])) / 2
    total = float(sum(hits))
    writer.add_histogram_raw(
        title,
        min=edges[0],
        max=edges[-1],
        num=total,
        sum=float(places @ hits),
        sum_squares=float(places**2 @ hits),
        bucket_limits=edges[1:],
        bucket_counts=hits,
        global_step=step,
    )


def _wandb_histogram(run: Any, title: str, hits: list[int], edges: list[float], step: int) -> None:
    import wandb

    run.log({title: wandb.Histogram(np_histogram=(np.array(hits), np.array(edges)))}, step=step)


def _trackio_histogram(run: Any, title: str, hits: list[int], edges: list[float], step: int) -> None:
    import trackio

    run.log({title: trackio.Histogram(np_histogram=(hits, edges))}, step=step)


_IMAGES: dict[str, Callable[[Any, str, Image.Image, int], None]] = {
    "tensorboard": _tensorboard_image,
    "wandb": _wandb_image,
    "trackio": _trackio_image,
}
_HISTOGRAMS: dict[str, Callable[[Any, str, list[int], list[float], int], None]] = {
    "tensorboard": _tensorboard_histogram,
    "wandb": _wandb_histogram,
    "trackio": _trackio_histogram,
}


def _tracker(name: str) -> object:
    from accelerate.utils import LoggerType

    return LoggerType(name)


@contextmanager
def _refusals_in_one_line() -> Iterator[None]:
    """W&B refuses to start without an account or a connection; the others write files alone."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "wandb":
            raise
        raise ConfigError(
            f"trackers.names: wandb does not start ({' '.join(str(error).split())}); run `wandb login`, or set "
            "WANDB_MODE=offline to record on this machine alone"
        ) from None


def _check_installed(names: tuple[str, ...]) -> None:
    import importlib.util

    missing = [name for name in names if importlib.util.find_spec(_PACKAGES[name]) is None]
    if missing:
        raise ConfigError(f"trackers.names: {', '.join(missing)} not installed; pip install {' '.join(missing)}")
