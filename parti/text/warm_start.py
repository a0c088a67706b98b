"""A pretrained text encoder as a folder: its sizes, weights and vocabulary.

Stage 2 starts from it with `model.text_encoder.start` (`parti.text_encoder` trains one; Parti, arXiv 2206.10789,
section 2.2).
"""

from pathlib import Path

from parti.text.encoders import TextEncoderSizes, TrainedTextEncoder
from parti.text.tokenizer import TextTokenizer
from vqgan.config.schema import ConfigError, validate
from vqgan.hub.model_folder import (
    ModelFolderError,
    find_model_folder,
    load_weights,
    read_model_config,
    save_model_folder,
)

_KIND = "trained_text_encoder"
_SET_BY = {
    "depth": "model.encoder_depth",
    "width": "model.width",
    "heads": "model.heads",
    "mlp_width": "model.mlp_width",
    "options": "model.options",
    "vocab_size": "the vocabulary of text.folder",
    "length": "the length of text.folder",
}
"""Settings of a run's config that determine sizes."""


def save_text_encoder(folder: Path, encoder: TrainedTextEncoder, tokenizer: TextTokenizer) -> None:
    """Writes config.json, model.safetensors and text_tokenizer.json."""
    save_model_folder(folder, {"kind": _KIND, "sizes": encoder.sizes.model_dump(mode="json")}, encoder.state_dict())
    tokenizer.save_pretrained(folder)


def warm_start(encoder: TrainedTextEncoder, start: str | Path) -> None:
    """Loads the weights from a folder of `save_text_encoder`, or a run folder with one, into `encoder`.

    Raises ModelFolderError if there is none or it is damaged, ConfigError if it has other sizes.
    """
    folder = find_model_folder(start)
    values = read_model_config(folder)
    if values.get("kind") != _KIND or not isinstance(values.get("sizes"), dict):
        raise ModelFolderError(
            f"{folder} holds no text encoder to start from; give the folder of a run of tools/train_text_encoder.py"
        )
    theirs = validate(TextEncoderSizes, values["sizes"], str(folder)).model_dump()
    ours = encoder.sizes.model_dump()
    if theirs != ours:
        wrong = [f"{key} {theirs[key]}, not {ours[key]} ({_SET_BY[key]})" for key in ours if theirs[key] != ours[key]]
        raise ConfigError(
            f"model.text_encoder.start: the text encoder in {str(start)!r} has {'; '.join(wrong)}; "
            "set this run to its sizes, or start from another"
        )
    load_weights(encoder, folder)
