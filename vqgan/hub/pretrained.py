"""`save_pretrained`, `from_pretrained` and `push_to_hub`: the one way in which models lie in folders."""

from abc import ABCMeta, abstractmethod
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from torch import nn

from vqgan.hub.huggingface import push_model
from vqgan.hub.model_folder import ModelFolder, ModelFolderError, open_model_folder, save_model_folder

# Not typing.Self, which beartype checks in decorated classes alone.
PretrainedT = TypeVar("PretrainedT", bound="PretrainedMixin")


class PretrainedMixin(metaclass=ABCMeta):  # not ABC: FSDP2 could not exchange the class of a network of this kind
    """Saving and loading of a class whose objects are one network in a model folder.

    A class names its `kinds`, says what it stores (`_stored`) and how it is put together again (`_load`). One that has
    more files than config.json and model.safetensors writes them in its own `save_pretrained`, after this one.
    """

    kinds: ClassVar[Collection[str]]
    """Kinds of model that config.json may name."""
    folder_holds: ClassVar[tuple[str, str]]
    """What such a folder holds, and the remedy where one holds something else: `("upsampler", "give the folder ...")`.
    """

    @abstractmethod
    def _stored(self) -> tuple[Mapping[str, Any], nn.Module]:
        """Returns the content of config.json, and the network whose weights are saved."""

    @classmethod
    @abstractmethod
    def _load(cls: type[PretrainedT], folder: ModelFolder) -> PretrainedT:
        """Returns what lies in a folder of one of `kinds`, in evaluation mode."""

    @classmethod
    def open_folder(cls, folder: str | Path | ModelFolder) -> ModelFolder:
        """Finds a folder of this class and reads its config.json. Raises ModelFolderError for another kind of model."""
        found = open_model_folder(folder)
        if found.kind not in cls.kinds:
            what, remedy = cls.folder_holds
            kind = f", of kind {found.kind!r}," if found.kind is not None else ""
            raise ModelFolderError(f"{found}{kind} holds no {what}; {remedy}")
        return found

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `config.json`, `model.safetensors`, their checksums, and the files of tokenizers where there are any.

        The folder is made where it is missing.
        """
        config, network = self._stored()
        save_model_folder(Path(folder), config, network.state_dict())

    @classmethod
    def from_pretrained(cls: type[PretrainedT], folder: str | Path | ModelFolder) -> PretrainedT:
        """Reads a model folder, the run folder that has one in `model/`, or a Hub name (owner/name[@revision]).

        Raises ModelFolderError when the folder holds no such model or a damaged one, ConfigError when its config.json
        holds what the config does not admit.
        """
        return cls._load(cls.open_folder(folder))


class PushToHubMixin(PretrainedMixin):
    """A class whose model folders go to the Hugging Face Hub with a card."""

    @abstractmethod
    def model_card(self, name: str) -> str:
        """Returns the text of README.md of the model that is called `name` (owner/name) on the Hub."""

    def push_to_hub(
        self, name: str, *, private: bool = False, token: str | None = None, commit_message: str = "Upload model"
    ) -> str:
        """Uploads the model folder and a card to the Hugging Face Hub as `name` (owner/name); returns the address.

        `private` matters for a new model; a card that is there stays. Raises what huggingface_hub raises.
        """
        return push_model(
            name, self.save_pretrained, self.model_card, private=private, token=token, commit_message=commit_message
        )
