"""Gumbel-softmax relaxation of a categorical code (DALL-E's discrete VAE, arXiv 2102.12092, section 2.1, appendix A).

A linear map gives the logits of q(code | image) at each position. In training the decoder reads the mean of the
codebook under softmax((logits + Gumbel noise) / temperature), soft in the forward and in the backward pass, and the
temperature goes down; in evaluation it reads the code with the largest logit. The loss is the KL divergence to the
uniform prior, `ln V - entropy(q)`, of the softmax without noise and at temperature 1.

The paper divides the whole ELBO by the number of values in an image: 3 * H * W. A mean over positions, as here, then
carries `kl_weight / (3 * pixels of a code)`: at 8 x 8 pixels to a code, give the loss the weight 1/192
(`codebook_weight` of the task) and the likelihood, a mean over all values, the weight 1.

Departures: codes start as N(0, 1), the scale at which one code keeps the variance of what follows; the public decoder
starts this 1x1 convolution at 1/sqrt(V), which left an error of four times as much after 400 steps on 64 known modes.
`straight_through` is the variant of VQGAN's public code.
"""

import math
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vqgan.config.schedule import Span, in_steps
from vqgan.config.schema import Config
from vqgan.quantizers.quantizer import Quantized, Quantizer, straight_through


class AnnealingConfig(Config, may_change=("start", "end", "over")):
    """A value that goes from `start` to `end` along half a cosine, and stays there."""

    start: float = Field(ge=0)
    """Value at the first step."""
    end: float = Field(ge=0)
    """Value from the end of `over` on."""
    over: Span
    """Steps that the way takes, or a share of the run such as 10%."""

    def value(self, step: int, steps: int) -> float:
        """Returns the value at `step` (0-based) of a run of `steps`."""
        over = in_steps(self.over, steps)
        progress = min(1.0, step / over) if over > 0 else 1.0
        return self.end + (self.start - self.end) * 0.5 * (1 + math.cos(math.pi * progress))


class GumbelConfig(Config, fixed=("kind", "codebook_size", "latent_dim", "code_dim"), may_change=("straight_through",)):
    """Gumbel-softmax relaxation. The defaults are DALL-E's (appendix A.2 and A.3)."""

    has_codebook: ClassVar[bool] = False

    kind: Literal["gumbel"] = "gumbel"
    """A categorical distribution at each position, relaxed in training."""
    codebook_size: int = Field(8192, gt=1)
    """Number of codes."""
    latent_dim: int = Field(2048, gt=0)
    """Width of the encoder's output, from which the logits are read."""
    code_dim: int = Field(128, gt=0)
    """Width of a code, which the decoder reads."""
    temperature: AnnealingConfig = AnnealingConfig(start=1.0, end=1 / 16, over=150_000)
    """Temperature of the relaxation; near 0 a sample is nearly one code."""
    kl_weight: AnnealingConfig = AnnealingConfig(start=0.0, end=6.6, over=5_000)
    """Weight (beta) of the KL divergence to the uniform prior, in the loss of this quantizer."""
    straight_through: bool = False
    """Decode the sample's one code, with the gradient of the soft sample."""

    @model_validator(mode="after")
    def _check_temperature(self) -> "GumbelConfig":
        if min(self.temperature.start, self.temperature.end) <= 0:
            raise ValueError(
                f"a temperature is above 0, received {self.temperature.start} to {self.temperature.end}; "
                "end the schedule at a small number such as 0.0625"
            )
        return self


class GumbelQuantizer(Quantizer):
    """Draws each position's code from a categorical distribution."""

    def __init__(self, config: GumbelConfig) -> None:
        super().__init__()
        self.config = config
        self.codebook_size = config.codebook_size
        self.latent_dim = config.latent_dim
        self.code_dim = config.code_dim
        self.proj = nn.Linear(config.latent_dim, config.codebook_size)
        nn.init.normal_(self.proj.weight, std=config.latent_dim**-0.5)
        nn.init.zeros_(self.proj.bias)
        self.codebook = nn.Parameter(torch.randn(config.codebook_size, config.code_dim))
        self.at_step(0, 1)

    def at_step(self, step: int, steps: int) -> None:
        self.temperature = self.config.temperature.value(step, steps)
        self.kl_weight = self.config.kl_weight.value(step, steps)

    def forward(self, latents: Float[Tensor, "B N D"]) -> Quantized:
        with torch.autocast(latents.device.type, enabled=False):
            logits = self._logits(latents)
            codes = logits.argmax(-1)
            kl = _kl_to_uniform(logits).mean()
            return Quantized(
                latents=self._sample(logits) if self.training else self.embed(codes),
                codes=codes,
                loss=self.kl_weight * kl,
                stats={
                    "kl": kl.detach(),
                    "temperature": torch.full_like(kl, self.temperature),
                    "kl_weight": torch.full_like(kl, self.kl_weight),
                },
            )

    def encode(self, latents: Float[Tensor, "B N D"]) -> Int64[Tensor, "B N"]:
        with torch.autocast(latents.device.type, enabled=False):
            return self._logits(latents).argmax(-1)

    def embed(self, codes: Int64[Tensor, "B N"]) -> Float[Tensor, "B N E"]:
        return F.embedding(codes, self.codebook)

    def unquantized(self, latents: Float[Tensor, "B N D"]) -> Float[Tensor, "B N E"]:
        """Returns the mean of the codebook under q, without noise."""
        with torch.autocast(latents.device.type, enabled=False):
            return self._logits(latents).softmax(-1) @ self.codebook

    def _logits(self, latents: Float[Tensor, "B N D"]) -> Float[Tensor, "B N V"]:
        # fp32, as in the paper (appendix A.3): in half precision nearby logits are equal.
        return self.proj(latents.float())

    def _sample(self, logits: Float[Tensor, "B N V"]) -> Float[Tensor, "B N E"]:
        # Such tensors are the largest of the model (32 MiB an image): all but the softmax's is made in one place.
        # Gumbel noise is -ln(E), E exponential; a drawn 0 would make it infinite.
        noise = torch.empty_like(logits).exponential_().clamp_(min=torch.finfo(torch.float32).tiny).log_().neg_()
        perturbed = noise.add_(logits).div_(self.temperature)
        soft = perturbed.softmax(-1)
        if not self.config.straight_through:
            return soft @ self.codebook
        # The gradients of (one_hot - sg(soft) + soft) @ codebook, without a one-hot as large as the logits.
        chosen = F.embedding(perturbed.argmax(-1), self.codebook)
        return chosen + straight_through(torch.zeros_like(chosen), soft @ self.codebook.detach())


class _KLToUniform(torch.autograd.Function):
    """KL(q || uniform) at each position in nats, sum_k q_k ln(V q_k), of q = softmax(logits).

    Written out because autograd would keep q besides ln q, which is as large as the logits and quickly made again.
    """

    @staticmethod
    def forward(ctx: Any, logits: Float[Tensor, "B N V"]) -> Float[Tensor, "B N"]:
        log_q = logits.log_softmax(-1)
        mean_log_q = torch.einsum("bnv,bnv->bn", log_q.exp(), log_q)
        ctx.save_for_backward(log_q, mean_log_q)
        return math.log(logits.shape[-1]) + mean_log_q

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "B N"]) -> Float[Tensor, "B N V"]:
        log_q, mean_log_q = ctx.saved_tensors
        return (log_q - mean_log_q[..., None]).mul_(log_q.exp()).mul_(gradient[..., None])


def _kl_to_uniform(logits: Float[Tensor, "B N V"]) -> Float[Tensor, "B N"]:
    """KL(q || uniform) at each position in nats (the second term of equation 1)."""
    divergence: Tensor = _KLToUniform.apply(logits)
    return divergence
