"""Text encoders: from ids to what the image decoder attends to.

Trained from scratch with the decoder, or a pretrained network of transformers (T5, CLIP's text side, BERT and others),
frozen or as a warm start. Parti found a marginal gain from a warm start at 3B (arXiv 2206.10789).

Legend: B batch, T text positions, D width of the generator, E width of a pretrained network.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor, nn

from parti.layers.activation_checkpointing import checkpointed
from parti.layers.attention import SelfAttention
from parti.layers.feed_forward import feed_forward
from parti.layers.norms import norm
from parti.layers.options import TransformerOptions
from parti.text.architecture import architecture_fingerprint
from parti.text.checkpoint import WEIGHT_FILES, find_checkpoint
from parti.text.transformers_folder import SAFE_WEIGHTS, SAFELY, UnsafeFolderError, check_settings
from parti.text.usable_length import usable_length
from vqgan.config.schema import Config, ConfigError
from vqgan.fingerprints import FrozenPart, network_fingerprint
from vqgan.hub.construction import TooLargeError
from vqgan.system.torchvision_ops import declare_missing_torchvision_ops

_KNOWN = (
    *("albert", "bert", "big_bird", "camembert", "clip_text_model", "convbert", "data2vec-text", "deberta"),
    *("deberta-v2", "distilbert", "electra", "ernie", "flaubert", "ibert", "longformer", "megatron-bert", "mobilebert"),
    *("modernbert", "mpnet", "mt5", "nystromformer", "rembert", "roberta", "roberta-prelayernorm", "roc_bert"),
    *("roformer", "squeezebert", "t5", "umt5", "xlm", "xlm-roberta", "xlm-roberta-xl", "xlnet", "xmod", "gpt2"),
    *("gemma", "gemma2", "gemma3_text", "llama", "mistral", "qwen2", "qwen3"),
)
"""Networks of transformers that read text, by `model_type`. A model folder names none of the others: some of those
fetch weights or run what their config names."""
_LEFT_BY_OTHERS = {
    *("decoder_start_token_id", "position_embedding_type", "gradient_checkpointing", "task_specific_params"),
    *("n_positions", "output_past", "directionality", "pooler_fc_size", "pooler_num_attention_heads"),
    *("pooler_num_fc_layers", "pooler_size_per_head", "pooler_type", "n_ctx", "summary_activation", "model_max_length"),
}
"""Keys of published configs that no network reads; models saved by earlier versions have them."""


class TextEncoder(nn.Module, ABC):
    """Reads the text once; `mask` is true where there is text."""

    is_initialized: bool
    """Whether the weights are set when it is built, so that nobody else must."""

    @abstractmethod
    def repeated_layers(self) -> list[nn.Module]:
        """Its stack, as `Generator.repeated_layers`."""

    @abstractmethod
    def forward(self, ids: Int64[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """What is known of each position; positions outside the mask count for nothing, and hold anything."""


class TextEncoderSizes(Config):
    """What the shapes of a trained text encoder's weights follow from."""

    vocab_size: int = Field(gt=0)
    """Text tokens."""
    length: int = Field(gt=0)
    """Text positions T."""
    depth: int = Field(gt=0)
    """Blocks."""
    width: int = Field(gt=0)
    """Model width D."""
    heads: int = Field(gt=0)
    """Attention heads."""
    mlp_width: int = Field(gt=0)
    """Hidden width of each feed-forward."""
    options: TransformerOptions = TransformerOptions()
    """What its blocks do otherwise than Parti's; rotary is for image codes and means nothing here."""


class TrainedTextEncoderConfig(Config, fixed=("kind",), may_change=("start",)):
    """A text encoder that learns with the decoder."""

    kind: Literal["trained"] = "trained"
    """Parti's: as many blocks as `encoder_depth` says, of the decoder's width."""
    start: str | None = None
    """Run or model folder of tools/train_text_encoder.py whose weights it starts from, with text.kind saved and
    text.folder the same folder. null: random weights. Read when a run starts or resumes; a saved model needs it no
    more."""


class TrainedTextEncoder(TextEncoder):
    """Parti's text encoder: pre-LN blocks, learned positions, LayerNorm at the output."""

    is_initialized = False

    def __init__(
        self,
        vocab_size: int,
        length: int,
        depth: int,
        width: int,
        heads: int,
        mlp_width: int,
        dropout: float,
        options: TransformerOptions = TransformerOptions(),  # noqa: B008 - frozen
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        self.checkpoint_activations = checkpoint_activations
        options = options.model_copy(update={"rotary": False})
        self.sizes = TextEncoderSizes(
            vocab_size=vocab_size,
            length=length,
            depth=depth,
            width=width,
            heads=heads,
            mlp_width=mlp_width,
            options=options,
        )
        self.embedding = nn.Embedding(vocab_size, width)
        self.positions = nn.Parameter(torch.empty(length, width))
        self.blocks = nn.ModuleList(EncoderBlock(width, heads, mlp_width, dropout, options) for _ in range(depth))
        self.norm = norm(width, options.norm)
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: Int64[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        return self.read(self.embedding(ids), mask)

    def read(self, embedded: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """`forward` from the embeddings on: the warm-up hides tokens behind a vector that is none of the vocabulary."""
        x = self.dropout(embedded + self.positions)
        for block in self.blocks:
            x = checkpointed(block, self.checkpoint_activations)(x, mask)
        return self.norm(x)

    def repeated_layers(self) -> list[nn.Module]:
        return list(self.blocks)


class EncoderBlock(nn.Module):
    """Pre-LN self-attention over the text, then the feed-forward."""

    def __init__(self, width: int, heads: int, mlp_width: int, dropout: float, options: TransformerOptions) -> None:
        super().__init__()
        self.self_attention_norm = norm(width, options.norm)
        self.self_attention = SelfAttention(width, heads, options.qk_norm)
        self.mlp_norm = norm(width, options.norm)
        self.mlp = feed_forward(width, mlp_width, options.feed_forward or "relu")
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        x = x + self.dropout(self.self_attention(self.self_attention_norm(x), mask[:, None, None, :]))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class PretrainedTextEncoderConfig(Config, fixed=("kind", "frozen"), may_change=("name", "architecture")):
    """A text encoder of transformers, with its weights. Its tokenizer must be the run's: text.kind pretrained."""

    kind: Literal["pretrained"] = "pretrained"
    """A network that others trained."""
    name: str
    """Folder, or name on the Hugging Face Hub (owner/name); with weights in safetensors."""
    frozen: bool = True
    """Keep its weights as they are. false: a warm start, all of it learns with the decoder."""
    architecture: dict[str, Any] | None = None
    """The network's own config, which a saved model has in it: then the weights are in the model too and `name` is not
    read. null in a run: `name` is read."""


class PretrainedTextEncoder(TextEncoder):
    """The network's last states, brought to the generator's width and normalized.

    Raises ConfigError for a network that cannot be had, is no text encoder, or is too small for these ids.
    """

    is_initialized = True

    def __init__(self, config: PretrainedTextEncoderConfig, vocab_size: int, length: int, width: int) -> None:
        super().__init__()
        network = _load(config.name) if config.architecture is None else _build(config.architecture)
        own = network.config
        # The last id is padding, which the network does not know (see `parti.text.pretrained_tokenizer`).
        if vocab_size - 1 > own.vocab_size:
            raise ConfigError(
                f"text encoder {config.name!r} knows {own.vocab_size} tokens, the text tokenizer gives "
                f"{vocab_size - 1}; set text.name to {config.name!r} too"
            )
        longest = usable_length(network)
        if longest is not None and length > longest:
            raise ConfigError(
                f"text encoder {config.name!r} reads at most {longest} tokens; set text.length to {longest}, not "
                f"{length}"
            )
        self.config = config.model_copy(update={"architecture": _settings(own)})
        # Of a network that learns the weights are in the checkpoints; its folder then decides the architecture alone.
        self._fingerprints: dict[str, str] = {}
        if config.architecture is None:
            self._fingerprints |= {"architecture": architecture_fingerprint(own)}
            self._fingerprints |= {"weights": network_fingerprint(network)} if config.frozen else {}
        self.network: nn.Module = network.requires_grad_(not config.frozen)
        self.projection = nn.Linear(own.hidden_size, width)
        self.norm = nn.LayerNorm(width)
        pad = own.pad_token_id
        self._pad_id = pad if pad is not None and pad < own.vocab_size else 0
        self.train()

    def as_frozen_part(self) -> FrozenPart:
        """The network as it was read."""
        return FrozenPart(self._fingerprints)

    def forward(self, ids: Int64[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.frozen):
            states = self.states(ids, mask)
        return self.norm(self.projection(states))

    def states(self, ids: Int64[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T E"]:
        """What the pretrained network itself gives; in fp32 where training is in fp16, which T5's states exceed."""
        ids = ids.masked_fill(~mask, self._pad_id)
        device = ids.device.type
        in_fp16 = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) is torch.float16
        with torch.autocast(device, enabled=False) if in_fp16 else nullcontext():
            return self.network(input_ids=ids, attention_mask=mask.long()).last_hidden_state

    def repeated_layers(self) -> list[nn.Module]:
        """The elements of the outermost lists of modules, as transformers builds its stacks."""
        return _elements_of_lists(self.network)

    def train(self, mode: bool = True) -> "PretrainedTextEncoder":
        """As of every module, but a frozen network has no dropout at any time."""
        super().train(mode)
        if self.config.frozen:
            self.network.eval()
        return self


TextEncoderConfig = Annotated[
    TrainedTextEncoderConfig | PretrainedTextEncoderConfig,
    Field(discriminator="kind"),
]


def _elements_of_lists(module: nn.Module) -> list[nn.Module]:
    if isinstance(module, nn.ModuleList):
        return list(module)
    return [layer for child in module.children() for layer in _elements_of_lists(child)]


def _load(name: str) -> Any:
    """The network with its weights, in fp32."""
    folder = find_checkpoint(name, WEIGHT_FILES)
    declare_missing_torchvision_ops()  # transformers may import torchvision, and takes seconds: imported on use
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, **SAFELY)
        config = getattr(config, "text_config", config)  # of CLIP the text side alone
        with _warnings_off():
            network, report = _family(config).from_pretrained(
                folder, config=config, dtype=torch.float32, output_loading_info=True, **SAFE_WEIGHTS
            )
    except ConfigError:
        raise
    except Exception as error:  # whatever the files of others lead to
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"transformers reads no text encoder from {name!r}: {reason}") from None
    # transformers fills what a file lacks with random numbers. The pooler is not used.
    if missing := sorted(key for key in report["missing_keys"] if "pooler" not in key):
        raise ConfigError(f"the weights in {name!r} are not of a {config.model_type}: {missing[0]} is missing")
    return _states_alone(network)


@contextmanager
def _warnings_off() -> Iterator[None]:
    """transformers lists all that a file has besides, such as CLIP's image side; what is missing, `_load` says."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _build(architecture: dict[str, Any]) -> Any:
    """The network with weights that are yet to be filled in.

    Raises ConfigError where `architecture` is not what `_settings` gives of a network.
    """
    declare_missing_torchvision_ops()
    from transformers import AutoConfig

    where = "model.text_encoder.architecture"
    kind = architecture.get("model_type")
    if kind not in _KNOWN:
        raise ConfigError(f"{where}: model_type {str(kind)[:80]!r} is no text encoder; one of: {', '.join(_KNOWN)}")
    try:
        check_settings(architecture, where)
        known = _keys_of(AutoConfig.for_model(kind))
        if unknown := sorted(architecture.keys() - known - _LEFT_BY_OTHERS):
            raise ConfigError(f"{where}: a {kind} has no {', '.join(unknown)[:200]}; remove it")
        settings = {key: value for key, value in architecture.items() if key in known and key != "model_type"}
        config = AutoConfig.for_model(kind, **settings)
        return _states_alone(_family(config).from_config(config, trust_remote_code=False))
    except (ConfigError, TooLargeError):
        raise
    except UnsafeFolderError as error:
        raise ConfigError(str(error)) from None
    except Exception as error:  # whatever the settings of others lead to
        raise ConfigError(
            f"{where}: transformers builds no {kind} of it: {' '.join(str(error).split())[:300]}"
        ) from None


def _settings(config: Any) -> dict[str, Any]:
    """What a network is built from again: the keys of its kind, without what others left in their file besides."""
    known = _keys_of(type(config)())
    return {key: value for key, value in json.loads(config.to_json_string()).items() if key in known}


def _keys_of(config: Any) -> set[str]:
    """The keys that a kind of network has."""
    return {*config.to_dict(), *json.loads(config.to_json_string(use_diff=False)), "model_type"}


def _family(config: Any) -> Any:
    """transformers' class of classes that has the encoder for `config`: of T5 without its decoder.

    Raises ConfigError for a kind of network that is not known here.
    """
    from transformers import MODEL_FOR_TEXT_ENCODING_MAPPING, AutoModel, AutoModelForTextEncoding

    if config.model_type not in _KNOWN and not config.is_encoder_decoder:
        raise ConfigError(f"a {config.model_type} is no text encoder that is known here; one of: {', '.join(_KNOWN)}")
    if type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING:
        return AutoModelForTextEncoding
    if config.is_encoder_decoder:
        raise ConfigError(f"a {config.model_type} has no text encoder of its own; use a T5, CLIP or BERT")
    return AutoModel


def _states_alone(network: Any) -> Any:
    """Without what does not serve the states, and each weight under one name."""
    if getattr(network, "pooler", None) is not None:
        network.pooler = None
    # T5 has its embedding twice, as `shared` and in the stack, and a file of weights has each once.
    return network.encoder if hasattr(network, "shared") else network
