"""Output files of a check: paths that cannot be written to are refused before anything is read."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from parti.data_check.settings import CheckConfig
from vqgan.config.schema import ConfigError
from vqgan.system.atomic_files import CannotWriteError


def check_targets(config: CheckConfig) -> None:
    """Raises ConfigError if the image or the report cannot be written."""
    for name, target in (("image", config.image), ("report", config.report)):
        cause = None if target is None else _obstacle(Path(target))
        if cause is not None:
            raise ConfigError(f"{name}: {target!r} cannot be written: {cause}; choose another --{name}")
    if config.image is not None:
        ending = Path(config.image).suffix.lower()
        if Image.registered_extensions().get(ending) not in Image.SAVE:
            raise ConfigError(f"image: {config.image!r} is of no known format; choose a name that ends with .png")


@contextmanager
def writing_target(name: str, path: str) -> Iterator[None]:
    """Creates the folder and turns errors of writing into CannotWriteError."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, ValueError) as error:  # ValueError: of Pillow
        cause = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise CannotWriteError(f"cannot write {path}: {cause}; mend that, or choose another --{name}") from None


def _obstacle(path: Path) -> str | None:
    """Returns why a file cannot be written to a path, as far as that is known without writing it."""
    if path.is_dir():
        return "it is a folder"
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if there != path and not there.is_dir():
        return f"{str(there)!r} is a file, not a folder"
    return None if os.access(there, os.W_OK) else f"{str(there)!r} is write-protected"
