"""Options of the transformer blocks of both stage-2 models, from later transformers. All are off by default."""

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
    """QK-norm: normalize each head's queries and keys, which bounds the attention logits (arXiv 2302.05442)."""
    rotary: bool = False
    """Rotary positions between image codes, by rows and columns (arXiv 2104.09864), in addition to the learned
    positions; text has learned positions only."""

    def check_heads(self, width: int, heads: int) -> None:
        """Raises ValueError if `width` / `heads` does not fit the options."""
        if self.rotary:
            check_head_width(width // heads)
