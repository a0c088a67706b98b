"""Defaults of an evaluation from the run that the model comes from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vqgan.config.schema import read_yaml
from vqgan.hub.model_folder import find_model_folder
from vqgan.metrics.reference_set import ReferenceSetConfig


def find_model(folder: str | Path) -> tuple[Path, Path | None]:
    """Returns the model folder (`folder` itself, or its `model/`), and config.yaml of the run that it belongs to, if
    any."""
    folder = find_model_folder(folder)
    run_config = folder.resolve().parent / "config.yaml"
    return folder, run_config if folder.resolve().name == "model" and run_config.is_file() else None


def data_of_run(run_config: Path | None) -> dict[str, Any]:
    """Returns the run's `data` section, as far as it says what is seen; empty without a run. Raises ConfigError."""
    section = read_yaml(run_config).get("data", {}) if run_config is not None else {}
    return {name: section[name] for name in ReferenceSetConfig.model_fields if name in section}


def with_image_size(data: Mapping[str, Any], size: int) -> dict[str, Any]:
    """Returns a `data` section whose images are of that size, whatever it says."""
    return {**data, "transform": {**(data.get("transform") or {}), "image_size": size}}
