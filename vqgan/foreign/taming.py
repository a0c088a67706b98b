"""VQGANs of CompVis/taming-transformers (arXiv 2012.09841), and of those that kept its format.

Latent diffusion's VQ-regularized first stages (arXiv 2112.10752) and minDALL-E's `stage1_last.ckpt` have the same
tensors by the same names. The YAML beside a checkpoint holds `model.params` with `embed_dim`, `n_embed` and `ddconfig`;
all that but the resolution can be read from the tensors' shapes, which win: a YAML that disagrees is an error.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from vqgan.foreign.cnn_layout import GROUPS, CNNNames, build_cnn, cnn_config, original_names_of, shape_of
from vqgan.foreign.reading import ForeignCheckpointError
from vqgan.models.autoencoder import Autoencoder
from vqgan.models.cnn_vqgan import CNNVQGAN, CNNVQGANConfig
from vqgan.quantizers import AnnealingConfig, GumbelConfig, NearestConfig, QuantizerConfig

_NAMES = CNNNames(
    project="taming-transformers",
    encoder_levels="encoder.down",
    decoder_levels="decoder.up",
    decoder_from_full=True,
    blocks="block",
    attentions="attn",
    middle=("block_1", "attn_1", "block_2"),
    quantizer={"quantizer.codebook": "quantize.embedding.weight"},
)
_GUMBEL_NAMES = _NAMES._replace(
    quantizer={
        "quantizer.codebook": "quantize.embed.weight",
        "quantizer.proj.weight": "quantize.proj.weight",
        "quantizer.proj.bias": "quantize.proj.bias",
    }
)
_MODELS = ("VQModel", "VQModelInterface", "VQNoDiscModel", "EMAVQ", "GumbelVQ", "VQSegmentationModel")
"""Last parts of `model.target` of those whose codes are the nearest ones, or Gumbel's."""
_TRAINING_ONLY = "loss."
"""What the discriminator and the perceptual network are under."""


def from_taming(state: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> Autoencoder:
    """The autoencoder of a checkpoint's `state_dict`; a Gumbel one where it has `quantize.embed`.

    `config` is the YAML beside it; without it the training resolution is taken for 256 pixels. Raises
    ForeignCheckpointError where tensors are missing, unknown or of another shape, or disagree with the YAML.
    """
    tensors = {name: tensor for name, tensor in state.items() if not name.startswith(_TRAINING_ONLY)}
    told = _Told.read(config)
    is_gumbel = "quantize.embed.weight" in tensors
    names = _GUMBEL_NAMES if is_gumbel else _NAMES
    found = cnn_config(tensors, names, _quantizer(tensors, is_gumbel), told.resolution, told.dropout)
    _check_agreement(told, found, shape_of(tensors, names.quantizer["quantizer.codebook"], 2, names.project))
    if is_gumbel:
        tensors["quantize.proj.weight"] = tensors["quantize.proj.weight"].flatten(1)  # (V, D, 1, 1) to (V, D)
    return build_cnn(found, tensors, names)


def refuse_ibq(tensors: Mapping[str, Tensor]) -> None:
    """Raises ForeignCheckpointError for what may be one of IBQ's tokenizers, whose tensors have taming's names.

    Their codes are those of the largest inner product, not of the smallest distance. No tensor tells that; but they
    have four residual blocks a level, where all that taming-transformers and latent diffusion published have two.
    """
    if "encoder.down.0.block.3.conv1.weight" in tensors:
        raise ForeignCheckpointError(
            "the encoder has 4 residual blocks a level, as IBQ's tokenizers have, which choose codes by inner product "
            "and are not read; if it is one of taming-transformers, give its YAML (--config)"
        )


def to_taming(autoencoder: Autoencoder) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The `state_dict` and the YAML's content that taming-transformers reads; the tensors are not copied.

    Raises ForeignCheckpointError where taming has no such model.
    """
    config = autoencoder.config
    if not isinstance(autoencoder, CNNVQGAN) or not isinstance(config, CNNVQGANConfig):
        raise ForeignCheckpointError(
            f"taming-transformers has convolutional VQGANs only, received a {type(autoencoder).__name__}; keep it as a "
            "model folder"
        )
    quantizer = config.quantizer
    obstacles = {
        f"model.quantizer.kind is {quantizer.kind}, not nearest": not isinstance(quantizer, NearestConfig),
        "model.quantizer.l2_normalize is on (as in LlamaGen): taming compares plain distances": isinstance(
            quantizer, NearestConfig
        )
        and quantizer.l2_normalize,
        f"model.groups is {config.groups}, taming's are {GROUPS}": config.groups != GROUPS,
        f"model.output is {config.output}, taming's is rgb": config.output != "rgb",
        "model.middle_attention is off, taming's middle always attends": not config.middle_attention,
    }
    if any(obstacles.values()):
        reasons = "; ".join(reason for reason, stands in obstacles.items() if stands)
        raise ForeignCheckpointError(f"taming-transformers has no such model: {reasons}; keep it as a model folder")
    names, own = original_names_of(autoencoder, _NAMES), autoencoder.state_dict()
    return {names[name]: tensor for name, tensor in own.items()}, {
        "model": {
            "target": "taming.models.vqgan.VQModel",
            "params": {
                "embed_dim": autoencoder.quantizer.code_dim,
                "n_embed": autoencoder.quantizer.codebook_size,
                "ddconfig": {
                    **{"double_z": False, "in_channels": 3, "out_ch": 3},
                    "z_channels": config.latent_channels,
                    "resolution": config.image_size,
                    "ch": config.base_channels,
                    "ch_mult": list(config.channel_multipliers),
                    "num_res_blocks": config.residual_blocks,
                    "attn_resolutions": list(config.attention_resolutions),
                    "dropout": config.dropout,
                },
                # Without losses of its own: for use, or as the first stage of taming's transformers.
                "lossconfig": {"target": "taming.modules.losses.vqperceptual.DummyLoss"},
            },
        }
    }


class _Told(NamedTuple):
    """What a YAML says."""

    params: Mapping[str, Any]
    resolution: int = 256
    dropout: float = 0.0

    @classmethod
    def read(cls, config: Mapping[str, Any] | None) -> "_Told":
        """Of no YAML: nothing. Raises ForeignCheckpointError for the YAML of something else."""
        if config is None:
            return cls({})
        target = (config.get("model") or {}).get("target") if isinstance(config.get("model"), Mapping) else None
        if isinstance(target, str) and target.rpartition(".")[2] not in _MODELS:
            raise ForeignCheckpointError(
                f"the config is of a {target[:80]}, which looks codes up in a way of its own; models of taming's "
                f"tensors that are read are {', '.join(_MODELS)}"
            )
        try:
            params = config["model"]["params"]
            return cls(
                {**params["ddconfig"], **{name: params[name] for name in ("embed_dim", "n_embed") if name in params}},
                int(params["ddconfig"]["resolution"]),
                float(params["ddconfig"].get("dropout", 0.0)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ForeignCheckpointError(
                f"this is no config of a taming-transformers VQGAN ({type(error).__name__}: {error}); pass the YAML "
                "that has model.params.ddconfig with a resolution, or none"
            ) from error


def _quantizer(tensors: Mapping[str, Tensor], is_gumbel: bool) -> QuantizerConfig:
    if is_gumbel:
        codebook_size, code_dim = shape_of(tensors, "quantize.embed.weight", 2, _NAMES.project)
        latent_dim = shape_of(tensors, "quantize.proj.weight", 4, _NAMES.project)[1]
        return GumbelConfig(
            codebook_size=codebook_size,
            latent_dim=latent_dim,
            code_dim=code_dim,
            # These two matter to further training only: taming's defaults.
            kl_weight=AnnealingConfig(start=1e-8, end=1e-8, over=0),
            straight_through=True,
        )
    codebook_size, code_dim = shape_of(tensors, "quantize.embedding.weight", 2, _NAMES.project)
    return NearestConfig(codebook_size=codebook_size, code_dim=code_dim, l2_normalize=False)


def _check_agreement(told: _Told, found: CNNVQGANConfig, codebook: tuple[int, ...]) -> None:
    """Raise where the YAML says another network than the tensors are."""
    sides = {found.image_size // 2**level for level in range(len(found.channel_multipliers))}
    facts: dict[str, Any] = {
        **{"double_z": False, "in_channels": 3, "out_ch": 3, "tanh_out": False, "resamp_with_conv": True},
        "attn_type": "vanilla" if found.middle_attention else "none",
        "z_channels": found.latent_channels,
        "ch": found.base_channels,
        "ch_mult": list(found.channel_multipliers),
        "num_res_blocks": found.residual_blocks,
        "embed_dim": codebook[1],
        "n_embed": codebook[0],
        "attn_resolutions": sorted(found.attention_resolutions),
    }
    for name, fact in facts.items():
        value = told.params.get(name, fact)
        if isinstance(value, list | tuple):
            value = list(value)
        if name == "attn_resolutions":  # taming ignores those that no level has
            value = sorted(sides.intersection(value))
        if value != fact:
            raise ForeignCheckpointError(
                f"the config says {name} {value}, the tensors are those of {name} {fact}; pass the YAML that belongs "
                "to this checkpoint, or none"
            )
