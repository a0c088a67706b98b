"""Fine-tuning (`start_from`): networks that start from the weights of a run, a model folder or a model on the Hub."""

from collections.abc import Callable, Sequence
from pathlib import Path

from accelerate import Accelerator
from torch import nn

from vqgan.cli.command_line import print_out
from vqgan.config.changes import changes, fixed_settings
from vqgan.config.schema import Config
from vqgan.hub.initial_weights import take_weights
from vqgan.hub.model_folder import find_model_folder, read_weights
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.models import Autoencoder
from vqgan.training.checkpoints.store import Checkpoints
from vqgan.training.run_folder import RunFolder


def start(source: str | None, run_dir: str, accelerator: Accelerator, fill: Callable[[str], Sequence[str]]) -> None:
    """Lets `fill` take the weights of `source`, if there is one, and prints the lines that it returns.

    A run that has a checkpoint goes on from that: then the source is not read, and may be gone.
    """
    if source is None or Checkpoints(RunFolder(run_dir).checkpoints, keep=1).steps():
        return
    lines = fill(source)
    if accelerator.is_main_process:
        for line in lines:
            print_out(line)


def start_tokenizer_from(autoencoder: Autoencoder, source: str | Path) -> list[str]:
    """Fills `autoencoder` from the image tokenizer in `source`: a run, a model folder (imported ones too), a Hub name.

    Positions are resized to another image size, the codebook stays. Returns lines for a person: what was taken, resized
    and left as initialized. Raises ModelFolderError where there is no image tokenizer, ConfigError where nothing fits.
    """
    theirs = ImageTokenizer.from_pretrained(source).autoencoder
    report = take_weights(autoencoder, theirs.state_dict(), str(source))
    return report.lines() + about_other_settings(theirs.config, autoencoder.config)


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
    return take_weights(discriminator, state["discriminator"], f"{source}, discriminator").lines()


def start_network_from(network: nn.Module, source: str | Path) -> list[str]:
    """Fills `network` from the weights in a model folder, whatever they are of; returns lines for a person.

    Raises ModelFolderError where there are no weights, ConfigError where next to nothing of them fits.
    """
    return take_weights(network, read_weights(find_model_folder(source)), str(source)).lines()


def about_other_settings(theirs: Config, ours: Config) -> list[str]:
    """A line where the weights of a model with the config `theirs` learned under settings that no tensor shows."""
    changed = [f"model.{change}" for change in changes(fixed_settings(theirs), fixed_settings(ours))]
    return [f"these weights learned under other settings: {'; '.join(changed)}"] if changed else []
