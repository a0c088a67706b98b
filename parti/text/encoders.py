"""Text encoders: from ids to the states that the image decoder attends to.

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
from parti.text.transformers_folder import SAFE_WEIGHTS, SAFELY, UnsafeFolderError, check_settings, check_weights
from parti.text.usable_length import usable_length
from vqgan.config.schema import Config, ConfigError
from vqgan.fingerprints import FrozenPart, network_fingerprint
from vqgan.hub.construction import TooLargeError, is_only_sized
from vqgan.hub.initial_weights import Resizer, first_rows

_KNOWN = (
    *("albert", "bert", "big_bird", "camembert", "clip_text_model", "convbert", "data2vec-text", "deberta"),
    *("deberta-v2", "distilbert", "electra", "ernie", "flaubert", "ibert", "longformer", "megatron-bert", "mobilebert"),
    *("modernbert", "mpnet", "mt5", "nystromformer", "rembert", "roberta", "roberta-prelayernorm", "roc_bert"),
    *("roformer", "t5", "umt5", "xlm", "xlm-roberta", "xlm-roberta-xl", "xlnet", "gpt2"),
    *("gemma", "gemma2", "gemma3_text", "llama", "mistral", "qwen2", "qwen3"),
)
"""Text networks of transformers by `model_type`. Others are refused: some of them download weights or run code that
their config names, squeezebert does not run without its pooler, and xmod not without a language."""
_LEFT_BY_OTHERS = {
    *("decoder_start_token_id", "position_embedding_type", "gradient_checkpointing", "task_specific_params"),
    *("n_positions", "output_past", "directionality", "pooler_fc_size", "pooler_num_attention_heads"),
    *("pooler_num_fc_layers", "pooler_size_per_head", "pooler_type", "n_ctx", "summary_activation", "model_max_length"),
}
"""Keys of published configs that no network reads; models saved by earlier versions have them."""


class TextEncoder(nn.Module, ABC):
    """Encodes text; `mask` is false at padding."""

    is_initialized: bool
    """Whether the constructor sets the weights, so that they must not be initialized again."""

    @abstractmethod
    def repeated_layers(self) -> list[nn.Module]:
        """Returns its layers, as `Generator.repeated_layers`."""

    @abstractmethod
    def forward(self, ids: Int64[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """Returns the state of each position; those of masked positions are undefined."""


class TextEncoderSizes(Config):
    """Settings that determine the shapes of a trained text encoder."""

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
    """Options of its blocks; rotary applies to image codes only."""


class TrainedTextEncoderConfig(Config, fixed=("kind",), may_change=("start",)):
    """A text encoder that is trained with the decoder."""

    kind: Literal["trained"] = "trained"
    """Parti's: `encoder_depth` blocks of the decoder's width."""
    start: str | None = None
    """Run or model folder of tools/train_text_encoder.py that initializes it, with text.kind saved and text.folder the
    same folder. null: random weights. Needed to start or resume a run, not by a saved model."""


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
        """Runs `forward` from the embeddings on: pretraining masks tokens with a vector outside the vocabulary."""
        x = self.dropout(embedded + self.positions)
        for block in self.blocks:
            x = checkpointed(block, self.checkpoint_activations)(x, mask)
        return self.norm(x)

    def repeated_layers(self) -> list[nn.Module]:
        return list(self.blocks)

    def resizers(self) -> dict[str, Resizer]:
        """See `vqgan.hub.initial_weights.HasResizers`."""
        return {"positions": first_rows}


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
    """Freeze its weights. false: a warm start, the whole network is trained with the decoder."""
    architecture: dict[str, Any] | None = None
    """The network's own config, stored in a saved model, which also holds the weights, so that `name` is not read. null
    in a run: `name` is read."""


class PretrainedTextEncoder(TextEncoder):
    """The network's last states, projected to the generator's width and normalized.

    Raises ConfigError for a network that cannot be loaded, is not a text encoder, or is too small for these ids.
    """

    is_initialized = True

    def __init__(self, config: PretrainedTextEncoderConfig, vocab_size: int, length: int, width: int) -> None:
        super().__init__()
        network = _load(config.name) if config.architecture is None else _build(config.architecture)
        own = network.config
        # The last id is padding, which is not in the network's vocabulary (see `parti.text.pretrained_tokenizer`).
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
        # The weights of a trained network are in the checkpoints; its folder then only defines the architecture.
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
        """Returns the network as a frozen part of a run."""
        return FrozenPart(self._fingerprints)

    def forward(self, ids: Int64[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.frozen):
            states = self.states(ids, mask)
        return self.norm(self.projection(states))

    def states(self, ids: Int64[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T E"]:
        """Returns the output of the pretrained network; fp32 in fp16 training, whose range T5's states exceed."""
        ids = ids.masked_fill(~mask, self._pad_id)
        device = ids.device.type
        in_fp16 = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) is torch.float16
        with torch.autocast(device, enabled=False) if in_fp16 else nullcontext():
            return self.network(input_ids=ids, attention_mask=mask.long()).last_hidden_state

    def repeated_layers(self) -> list[nn.Module]:
        """Returns the elements of the outermost lists of modules, as transformers builds its stacks."""
        return _elements_of_lists(self.network)

    def train(self, mode: bool = True) -> "PretrainedTextEncoder":
        """Sets the training mode, but a frozen network never has dropout."""
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
    """Returns the network with its weights, in fp32."""
    folder = find_checkpoint(name, WEIGHT_FILES)
    # It takes seconds: imported on use.
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, **SAFELY)
        config = getattr(config, "text_config", config)  # only the text side of CLIP
        if is_only_sized():
            return _states_alone(_family(config).from_config(config, trust_remote_code=False))
        check_weights(folder, lambda: _family(config).from_config(config, trust_remote_code=False))
        with _warnings_off():
            network, report = _family(config).from_pretrained(
                folder, config=config, dtype=torch.float32, output_loading_info=True, **SAFE_WEIGHTS
            )
    except (ConfigError, TooLargeError):
        raise
    except Exception as error:  # a damaged or foreign file may raise anything
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"transformers reads no text encoder from {name!r}: {reason}") from None
    # transformers initializes missing weights at random. The pooler is not used.
    if missing := sorted(key for key in report["missing_keys"] if "pooler" not in key):
        raise ConfigError(f"the weights in {name!r} are not of a {config.model_type}: {missing[0]} is missing")
    return _states_alone(network)


@contextmanager
def _warnings_off() -> Iterator[None]:
    """Hides transformers' list of unused weights, such as CLIP's image side; `_load` reports missing ones."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _build(architecture: dict[str, Any]) -> Any:
    """Builds the network without loading its weights.

    Raises ConfigError if `architecture` is not a result of `_settings`.
    """
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
    except Exception as error:  # foreign settings may raise anything
        raise ConfigError(
            f"{where}: transformers builds no {kind} of it: {' '.join(str(error).split())[:300]}"
        ) from None


def _settings(config: Any) -> dict[str, Any]:
    """Returns the settings that rebuild a network: the keys of its kind, without unrelated ones of the file."""
    known = _keys_of(type(config)())
    return {key: value for key, value in json.loads(config.to_json_string()).items() if key in known}


def _keys_of(config: Any) -> set[str]:
    """Returns the keys that a kind of network has."""
    return {*config.to_dict(), *json.loads(config.to_json_string(use_diff=False)), "model_type"}


def _family(config: Any) -> Any:
    """Returns transformers' auto class for the encoder of `config`: for T5 without its decoder.

    Raises ConfigError for an unsupported kind of network.
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
    """Returns the state dict without weights that do not affect the states, and without duplicates."""
    if getattr(network, "pooler", None) is not None:
        network.pooler = None
    # T5 has its embedding twice, as `shared` and in the stack; a file stores each weight once.
    return network.encoder if hasattr(network, "shared") else network
