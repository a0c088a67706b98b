"""From a file of another project to a model folder of ours, and back. The tables of formats by name.

tokenizer = import_checkpoint("taming", Path("last.ckpt"), Path("project.yaml"), Path("tokenizers/taming-f16"))
"""

import math
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from pydantic import ValidationError
from torch import Tensor

from vqgan.config.schema import read_yaml
from vqgan.foreign.enhancing import from_enhancing
from vqgan.foreign.llamagen import from_llamagen
from vqgan.foreign.openai_dvae import from_openai_dvae
from vqgan.foreign.reading import ForeignCheckpointError, read_tensors, unpacked
from vqgan.foreign.taming import from_taming, refuse_ibq, to_taming
from vqgan.foreign.wrappers import section_of, unwrapped
from vqgan.hub.model_folder import CONFIG_FILE
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.models import Autoencoder

_FIRST_OF_CNN = "encoder.conv_in.weight"


class Source(NamedTuple):
    """What is imported: the file, its YAML where there is one, and the training resolution if the user gives it."""

    checkpoint: Path
    config: Mapping[str, Any] | None
    image_size: int | None
    tell: Callable[[str], object]
    """Takes what was chosen in the file, and what is assumed because no tensor tells it; a line each."""


def _taming(source: Source) -> Autoencoder:
    config = source.config
    if config is None and source.image_size is not None:
        config = {"model": {"params": {"ddconfig": {"resolution": source.image_size}}}}
    else:
        _refuse_image_size(source, "the YAML says it")
    tensors = _weights(source, _FIRST_OF_CNN, "state_dict")
    if source.config is None:
        refuse_ibq(tensors)
        source.tell(
            f"assumed without a YAML: trained at {source.image_size or 256} pixels, and the nearest code by plain "
            "distance (not by inner product, as IBQ's)"
        )
    return from_taming(tensors, config)


def _llamagen(source: Source) -> Autoencoder:
    _refuse_config(source)
    tensors = _weights(source, _FIRST_OF_CNN, "ema", "model")
    source.tell(f"assumed: codes are l2-normalized, as in every published model; trained at {source.image_size or 256}")
    return from_llamagen(tensors, source.image_size or 256)


def _enhancing(source: Source) -> Autoencoder:
    _refuse_image_size(source, "the positions say it")
    tensors = _weights(source, "encoder.to_patch_embedding.0.weight", "state_dict")
    model = from_enhancing(tensors, source.config)  # whose errors say what the file is
    if source.config is None:
        raise ForeignCheckpointError(
            "an enhancing-transformers checkpoint needs the YAML that belongs to it (--config): no tensor tells "
            "quantizer.use_norm and quantizer.use_residual, and with the wrong one every image would be wrong; the "
            "project has its models' YAMLs in configs/"
        )
    return model


def _openai_dvae(source: Source) -> Autoencoder:
    """The checkpoint is the folder of encoder.pkl and decoder.pkl, or one of them beside the other."""
    _refuse_config(source)
    _refuse_image_size(source, "it is 256")
    folder = source.checkpoint if source.checkpoint.is_dir() else source.checkpoint.parent
    files = [source._replace(checkpoint=folder / f"{side}.pkl") for side in ("encoder", "decoder")]
    encoder, decoder = (_weights(file, "blocks.input.w") for file in files)
    return from_openai_dvae(encoder, decoder)


def _mindalle(source: Source) -> Autoencoder:
    """The checkpoint is the published tar, or the stage1_last.ckpt in it."""
    _refuse_config(source)
    if not source.checkpoint.is_file() or not tarfile.is_tarfile(source.checkpoint):
        return _taming(source)
    with unpacked(source.checkpoint, "stage1_last.ckpt") as stage1:
        return _taming(source._replace(checkpoint=stage1))


IMPORTS: dict[str, Callable[[Source], Autoencoder]] = {
    "taming": _taming,
    "llamagen": _llamagen,
    "enhancing": _enhancing,
    "openai-dvae": _openai_dvae,
    "mindalle": _mindalle,
}
"""What can be imported."""

EXPORTS: dict[str, Callable[[Autoencoder], tuple[dict[str, Tensor], dict[str, Any]]]] = {"taming": to_taming}
"""What can be exported, as `state_dict` and YAML."""


def import_checkpoint(
    format: str,
    checkpoint: Path,
    config: Path | None,
    out: Path,
    image_size: int | None = None,
    tell: Callable[[str], object] = lambda _: None,
) -> ImageTokenizer:
    """Convert, write the model folder `out`, and give what it holds: read back, and compared on a test image.

    `image_size` is the training resolution where the file does not say it; `tell` is given a line for what was chosen
    in the file or is assumed of it. Raises ForeignCheckpointError, and ConfigError for a YAML that cannot be read.
    Nothing is written on an error, and no model folder is overwritten.
    """
    if format not in IMPORTS:
        raise ForeignCheckpointError(f"there is no format {format!r}; give one of {', '.join(IMPORTS)}")
    if (out / CONFIG_FILE).exists():
        raise ForeignCheckpointError(f"{out} already holds a model; give another folder, or remove it first")
    values = None if config is None else read_yaml(config)
    try:
        tokenizer = ImageTokenizer(IMPORTS[format](Source(checkpoint, values, image_size, tell)))
    except ValidationError as error:  # sizes that no model of ours has
        first = error.errors(include_url=False)[0]
        raise ForeignCheckpointError(
            f"{checkpoint}: not a possible {error.title}: {'.'.join(map(str, first['loc']))}: {first['msg']}; "
            "give another file or other options"
        ) from None
    codes, image = _round_trip(tokenizer)
    if not image.isfinite().all():
        raise ForeignCheckpointError(f"{checkpoint}: its weights decode to numbers that are not finite; it is damaged")
    try:
        tokenizer.save_pretrained(out)
    except OSError as error:
        raise ForeignCheckpointError(f"cannot write to {out}: {error.strerror or error}; give another folder") from None
    saved = ImageTokenizer.from_pretrained(out)
    codes_again, image_again = _round_trip(saved)
    if not torch.equal(codes, codes_again) or not torch.equal(image, image_again):
        raise ForeignCheckpointError(f"{out} does not decode to what {checkpoint} does; the disk may be failing")
    return saved


def export_checkpoint(format: str, tokenizer: ImageTokenizer, out: Path) -> Path:
    """Write `out` ({"state_dict": ...}, by torch.save) and its YAML beside it, whose path is returned.

    Raises ForeignCheckpointError where the format has no such model, or one of the files is there already.
    """
    if format not in EXPORTS:
        raise ForeignCheckpointError(f"there is no format {format!r}; give one of {', '.join(EXPORTS)}")
    config_path = out.with_suffix(".yaml")
    for path in (out, config_path):
        if path.exists() or out == config_path:
            raise ForeignCheckpointError(f"{path} is there already, or is where the YAML goes; give another file")
    state, config = EXPORTS[format](tokenizer.autoencoder)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        config_path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        torch.save({"state_dict": {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}}, out)
    except OSError as error:
        raise ForeignCheckpointError(f"cannot write to {out}: {error.strerror or error}; give another file") from None
    return config_path


def _weights(source: Source, first: str, *sections: str) -> dict[str, Tensor]:
    """The tokenizer's tensors: in the first of these sections that the file has, or in what files have besides, without
    what stands in front of the name `first`."""
    path, content = source.checkpoint, read_tensors(source.checkpoint)
    found, section = section_of(content, sections)
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    if section not in ("", *sections[-1:]):
        source.tell(f"read from the file's {section}")
    if not tensors:
        raise ForeignCheckpointError(
            f"{path} has no tensors under {' or '.join(sections) or 'its top'}; it holds "
            f"{', '.join(str(name)[:40] for name in [*content][:6]) or 'nothing'}; "
            "give a file of this format, or another --format"
        )
    tensors, notes = unwrapped(tensors, first)
    for note in notes:
        source.tell(note)
    return tensors


def _refuse_config(source: Source) -> None:
    if source.config is not None:
        raise ForeignCheckpointError("this format needs no config: the tensors say everything; leave out --config")


def _refuse_image_size(source: Source, reason: str) -> None:
    if source.image_size is not None:
        raise ForeignCheckpointError(f"the training resolution of this file is known: {reason}; leave out --image-size")


@torch.no_grad()
def _round_trip(tokenizer: ImageTokenizer) -> tuple[Tensor, Tensor]:
    """Codes and reconstruction of a smooth image in which no two places are alike."""
    ramp = torch.linspace(-1, 1, tokenizer.image_size)
    red, green = torch.meshgrid(ramp, ramp, indexing="ij")
    image = torch.stack((red, green, torch.sin(2 * math.pi * red * green)))[None]
    codes = tokenizer.encode(image)
    # Not `tokenizer.decode`: its clamp would hide infinities.
    return codes, tokenizer.autoencoder.decode(tokenizer.embed(codes)).images
