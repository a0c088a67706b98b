"""Where figures go: metrics.jsonl always, and TensorBoard, W&B or Trackio through accelerate where asked for."""

import os
from collections.abc import Mapping
from typing import Literal

from accelerate import Accelerator
from pydantic import Field

from vqgan.config import Config, ConfigError
from vqgan.training.run_folder import RunFolder

_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}


class TrackersConfig(Config):
    """Experiment trackers beside metrics.jsonl."""

    names: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = Field((), strict=False)
    """Any of tensorboard, wandb, trackio."""
    project: str = "parti"
    """Project name for those that have projects."""


class Trackers:
    """Writes a record to the run folder and to every tracker, on the main process only."""

    def __init__(self, config: TrackersConfig, run: RunFolder, accelerator: Accelerator, settings: dict[str, object]):
        self._run = run
        self._accelerator = accelerator
        self._active = bool(config.names)
        if not self._active:
            return
        _check_installed(config.names)
        os.environ.setdefault("WANDB_DIR", str(run.path))
        accelerator.project_configuration.set_directories(str(run.path))
        accelerator.log_with = [_tracker(name) for name in config.names]
        accelerator.init_trackers(config.project, config=flatten(settings))

    def log(self, values: Mapping[str, float], step: int, split: str) -> None:
        """Record figures of `split` (train, heldout) after `step` steps."""
        if not self._accelerator.is_main_process:
            return
        self._run.append_metrics({"step": step, "split": split, **values})
        if self._active:
            self._accelerator.log({f"{split}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        """Flush the trackers."""
        if self._active:
            self._accelerator.end_training()


def flatten(settings: Mapping[str, object], prefix: str = "") -> dict[str, int | float | str | bool]:
    """Nested settings under dotted names, as plain values: what every tracker can show."""
    flat: dict[str, int | float | str | bool] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat


def _tracker(name: str) -> object:
    from accelerate.utils import LoggerType

    return LoggerType(name)


def _check_installed(names: tuple[str, ...]) -> None:
    import importlib.util

    missing = [name for name in names if importlib.util.find_spec(_PACKAGES[name]) is None]
    if missing:
        raise ConfigError(f"trackers.names: {', '.join(missing)} not installed; pip install {' '.join(missing)}")
