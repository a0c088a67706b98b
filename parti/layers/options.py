"""What later transformers changed about a block, as options of both stage-2 models. All are off by default."""

from parti.layers.feed_forward import FeedForwardKind
from parti.layers.norms import NormKind
from parti.layers.rotary import check_head_width
from vqgan.config.schema import Config


class TransformerOptions(Config, fixed=("norm", "feed_forward", "qk_norm", "rotary")):
    """Choices that neither Parti's nor DALL-E's paper makes; the defaults are the papers' blocks."""

    norm: NormKind = "layer"
    """Norms of the residual stream: layer, or rms (arXiv 1910.07467), which neither centers nor shifts."""
    feed_forward: FeedForwardKind | None = None
    """relu, gelu, or swiglu, gated and of the same size (arXiv 2002.05202). null: the paper's, relu in Parti, gelu in
    DALL-E."""
    qk_norm: bool = False
    """Normalize each head's queries and keys before they meet: no attention logit grows without bound (arXiv
    2302.05442)."""
    rotary: bool = False
    """Between image codes, positions enter each score too, as distances in rows and in columns (arXiv 2104.09864);
    the learned positions stay, text is placed by them alone."""

    def check_heads(self, width: int, heads: int) -> None:
        """Raises ValueError where `width` over `heads` does not suit the options."""
        if self.rotary:
            check_head_width(width // heads)
