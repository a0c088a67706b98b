"""The configs that come with the packages, by name: `vqgan/shapes` is configs/vqgan/shapes.yaml.

`shipped` beside this file is a link to configs/ in a checkout, and a copy of it in an installation.
"""

import difflib
from pathlib import Path

from vqgan.errors import ConfigError

_FOLDER = Path(__file__).parent / "shipped"


def shipped_configs() -> dict[str, Path]:
    """Name to file of every config of a run."""
    files = sorted(_FOLDER.glob("*/*.yaml"))
    return {f"{file.parent.name}/{file.stem}": file for file in files if file.parent.name != "accelerate"}


def find_config(name: str | Path) -> Path:
    """The file of that path, or else the shipped config of that name.

    Raises ConfigError with the nearest names where there is neither; a path that looks like a file is left to its
    reader.
    """
    path, shipped = Path(name).expanduser(), shipped_configs()
    if str(name) in shipped and not path.is_file():
        return shipped[str(name)]
    if path.exists() or path.suffix:
        return path
    nearest = difflib.get_close_matches(str(name), shipped, 3, 0.5) or sorted(shipped)
    raise ConfigError(
        f"{str(name)!r} is neither a config file nor the name of a shipped config; nearest: {', '.join(nearest)}"
    )


def nearest_configs(path: Path) -> list[str]:
    """What may have been meant by the path of a file that is not there: files beside it, shipped configs."""
    beside = [str(file) for file in sorted(path.parent.glob("*.y*ml"))]
    shipped = {f"configs/{name}.yaml": name for name in shipped_configs()}
    found = difflib.get_close_matches(str(path), [*beside, *shipped], 1, 0.7)
    return [shipped.get(name, name) for name in found]
