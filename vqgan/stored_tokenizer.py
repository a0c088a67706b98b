"""An image tokenizer that is loaded only while it is used.

For training on codes that are there already (parti/code_cache): images are drawn now and then, and between two
drawings the tokenizer's memory belongs to the training.
"""

import hashlib
import shutil
from pathlib import Path
from typing import Literal, overload

import torch
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor

from vqgan.data.images.inputs import ImagesInput, OutputType, as_output
from vqgan.hub.model_folder import CONFIG_FILE, WEIGHTS_FILE, ModelFolderError, find_model_folder
from vqgan.image_tokenizer import CodesFingerprint, ImageTokenizer
from vqgan.models.autoencoder import Grid
from vqgan.system.checksums import add_checksums


class StoredImageTokenizer(ImageTokenizer):
    """The face of the tokenizer in `folder`, which is read for each translation and let go after it.

    It is read once here too: a tokenizer that cannot be read shows before the training, and random draws (its weights
    are drawn before they are replaced) are those of a run that keeps it. Later reading leaves the random state alone.
    Raises what `ImageTokenizer.from_pretrained` raises.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = find_model_folder(folder)
        read = ImageTokenizer.from_pretrained(self.folder)
        fingerprints = read.codes_fingerprint(), read.decoder_fingerprint()
        super().__init__(read.autoencoder.to("meta"))
        self._codes_fingerprint, self._decoder_fingerprint = fingerprints

    def codes_fingerprint(self) -> CodesFingerprint:
        """That of the tokenizer that was in the folder at the start."""
        return self._codes_fingerprint

    def decoder_fingerprint(self) -> str:
        return self._decoder_fingerprint

    @property
    def device(self) -> torch.device:
        """Where images that are no tensors are translated; tensors are where they lie."""
        return torch.device("cpu")

    def encode(self, images: ImagesInput, *, check_range: bool = True) -> Int64[Tensor, "B N"]:
        device = images.device if isinstance(images, Tensor) else self.device
        return self._in_memory(device).encode(images, check_range=check_range)

    def embed(self, codes: Int64[Tensor, "B N"]) -> Float[Tensor, "B P D"]:
        return self._in_memory(codes.device).embed(codes)

    @overload
    def decode(
        self, codes: Int64[Tensor, "B N"], grid: Grid | None = None, output_type: Literal["pt"] = "pt"
    ) -> Float[Tensor, "B 3 H W"]: ...

    @overload
    def decode(
        self, codes: Int64[Tensor, "B N"], grid: Grid | None = None, *, output_type: Literal["pil"]
    ) -> list[Image.Image]: ...

    def decode(
        self, codes: Int64[Tensor, "B N"], grid: Grid | None = None, output_type: OutputType = "pt"
    ) -> Float[Tensor, "B 3 H W"] | list[Image.Image]:
        return as_output(self._in_memory(codes.device).decode(codes, grid), output_type)

    def save_pretrained(self, folder: str | Path) -> None:
        """Copy the files as they are."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            shutil.copyfile(self.folder / name, Path(folder) / name)
        add_checksums(Path(folder), (CONFIG_FILE, WEIGHTS_FILE))

    def _apply(self, fn: object, recurse: bool = True) -> "StoredImageTokenizer":  # noqa: ARG002
        """Nothing to move: it is read onto the device of what it translates."""
        return self

    def _in_memory(self, device: torch.device) -> ImageTokenizer:
        with torch.random.fork_rng(devices=[]):
            return ImageTokenizer.from_pretrained(self.folder, device=device)


def files_fingerprint(folder: str | Path) -> str:
    """SHA-256 over config.json and then model.safetensors of a model folder, each as it is on the disk: for each file
    its name, a zero byte, its length as eight bytes (big-endian), its bytes.

    What code caches of an earlier version have of the tokenizer that made them: it tells decoders apart too, which
    `ImageTokenizer.codes_fingerprint` does not. Raises ModelFolderError where a file is missing.
    """
    found = find_model_folder(folder)
    digest = hashlib.sha256()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        try:
            digest.update(name.encode() + b"\0" + (found / name).stat().st_size.to_bytes(8, "big"))
            _add(digest, found / name)
        except OSError:
            raise ModelFolderError(f"no model in {folder}: {name} is missing; give a model folder") from None
    return digest.hexdigest()


def _add(digest: "hashlib._Hash", path: Path) -> None:
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
