"""Fine-tuning: an image tokenizer, and its discriminator, that start from another one's weights."""

from pathlib import Path

from torch import nn

from vqgan.config.changes import changes, fixed_settings
from vqgan.hub.initial_weights import take_weights
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.models import Autoencoder
from vqgan.training.checkpoints.store import Checkpoints
from vqgan.training.run_folder import RunFolder


def start_tokenizer_from(autoencoder: Autoencoder, source: str | Path) -> list[str]:
    """Fills `autoencoder` from the image tokenizer in `source`: a run, a model folder (imported ones too), a Hub name.

    Positions are resized to another image size, the codebook stays. Returns lines for a person: what was taken, resized
    and left as initialized. Raises ModelFolderError where there is no image tokenizer, ConfigError where nothing fits.
    """
    theirs = ImageTokenizer.from_pretrained(source).autoencoder
    report = take_weights(autoencoder, theirs.state_dict(), str(source))
    lines = report.lines(str(source))
    if changed := changes(fixed_settings(theirs.config), fixed_settings(autoencoder.config)):
        listed = "; ".join(f"model.{change}" for change in changed)
        lines.append(f"these weights learned under other settings: {listed}")
    return lines


def start_discriminator_from(discriminator: nn.Module, source: str | Path) -> list[str]:
    """Fills `discriminator` from the newest checkpoint of the run in `source`; where there is none it stays fresh.

    A fresh discriminator beside a trained tokenizer loses for a while, and pulls at the images while it does. Returns
    lines for a person. Raises CheckpointError where the checkpoint is damaged, ConfigError where nothing fits.
    """
    folder = RunFolder(source).checkpoints
    checkpoints = Checkpoints(folder, keep=1)
    steps = checkpoints.steps()
    if not steps:
        return [f"the discriminator starts fresh: there is no checkpoint of one in {folder}"]
    state = checkpoints.read_part(steps[-1], "state.pt")
    if "discriminator" not in state:
        return [f"the discriminator starts fresh: the run in {source} trained none"]
    return take_weights(discriminator, state["discriminator"], f"{source}, discriminator").lines(
        f"{source}, discriminator"
    )
