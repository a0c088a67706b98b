"""Files that a row of a data set names: of the data set's own folder, and none other of this machine.

Whoever wrote the rows may name anything: `/dev/zero`, a pipe that nobody writes to, a private file, an address inside
a network. So a path counts only where it leads, links resolved, to a regular file below the data set's folder or below
what the library `datasets` fetched and unpacked of it; an address only where it is of the data set's own repository.
"""

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from vqgan.data.images.decode import MAX_BYTES
from vqgan.data.source import UnusableSample
from vqgan.system.bounded_file import read_bounded


class RowFiles:
    """What the rows of one data set may name."""

    def __init__(self, folder: Path | None, repository: str | None) -> None:
        """`folder`: where a local data set lies; `repository`: name of one on the Hub."""
        self._folder = None if folder is None else folder.resolve()
        self._repository = repository
        self._roots = [root.resolve() for root in (folder, *_fetched(repository)) if root is not None]

    def read(self, path: str, name: str) -> bytes:
        """Returns the content of a file or address that row `name` gives. Raises UnusableSample where it may not, or
        cannot."""
        try:
            if "://" in path:
                return self._read_address(path, name)
            return read_bounded(self._local(path, name), MAX_BYTES)
        except FileNotFoundError:
            raise UnusableSample(name, f"the file is missing: {path!r:.200}") from None
        except (OSError, ValueError, RuntimeError) as error:  # also a NUL character, links in a circle
            cause = getattr(error, "strerror", None) or error
            raise UnusableSample(name, f"its file {path!r:.200} cannot be read: {cause}") from None

    def _local(self, path: str, name: str) -> Path:
        # A relative path is relative to the data set, wherever the program was started.
        resolved = ((self._folder or Path()) / path).resolve()
        if any(resolved.is_relative_to(root) for root in self._roots):
            return resolved
        where = f", {str(self._folder)!r}" if self._folder is not None else ""
        raise UnusableSample(
            name,
            f"refused: its path {path!r:.200} leads out of the data set's folder{where}; put the images there, or "
            "their bytes into the data set",
        )

    def _read_address(self, address: str, name: str) -> bytes:
        import fsspec  # type: ignore[import-untyped]

        # Of a chain such as zip://a.png::hf://datasets/owner/name/a.zip the last one says where it is; fsspec knows
        # many kinds of links, of which only archives are needed here.
        *inner, place = address.split("::")
        is_own = self._is_own_address(place) if "://" in place else self._is_own_path(place)
        if not is_own or not all(link.startswith("zip://") for link in inner):
            raise UnusableSample(
                name,
                f"refused: the address {address!r:.200} is not of this data set's repository; put the images' bytes "
                "into the data set",
            )
        try:
            with fsspec.open(address, "rb") as file:
                content: bytes = file.read(MAX_BYTES + 1)
        except Exception as error:  # every protocol raises its own kinds
            raise UnusableSample(name, f"cannot be read: {' '.join(str(error).split())[:300]}") from None
        if len(content) > MAX_BYTES:
            raise UnusableSample(name, f"too large: more than the limit of {MAX_BYTES:,} bytes")
        return content

    def _is_own_address(self, place: str) -> bool:
        if self._repository is None or ".." in unquote(place):
            return False
        start = f"hf://datasets/{self._repository}"
        return place.startswith((f"{start}/", f"{start}@"))

    def _is_own_path(self, place: str) -> bool:
        resolved = Path(place).resolve()
        return resolved.is_file() and any(resolved.is_relative_to(root) for root in self._roots)


def _fetched(repository: str | None) -> Sequence[Path]:
    """Returns where `datasets` puts what it fetches of a repository, and what it unpacks of any."""
    import datasets

    unpacked = Path(datasets.config.EXTRACTED_DATASETS_PATH)
    if repository is None:
        return [unpacked]
    from huggingface_hub.constants import HF_HUB_CACHE

    return [unpacked, Path(HF_HUB_CACHE) / f"datasets--{repository.replace('/', '--')}"]
