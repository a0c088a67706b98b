"""Next-token training of stage 2: cross-entropy of the image codes given the text (Parti, section 2.2).

Captions are dropped at random (classifier-free guidance), by `parti.pairs.dropped_captions`.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from pydantic import Field
from torch import Tensor

from parti.layers.gradient_scales import GradientScales
from parti.layers.lora import LORA_FOLDER, LoRAConfig, add_lora, merged_copy, save_lora
from parti.models import Generator, Logits
from parti.pairs import PairTokenizer, TokenPair, dropped_captions
from parti.pipeline import TextToImage
from parti.sampling.generate import SamplingConfig
from parti.text.encoders import PretrainedTextEncoder
from vqgan.contact_sheet import contact_sheet
from vqgan.data.batch import Batch
from vqgan.data.images.transforms import to_pil
from vqgan.errors import ConfigError
from vqgan.fingerprints import FrozenPart
from vqgan.metrics.caption_checkers import CaptionChecker
from vqgan.metrics.sums import MetricSums
from vqgan.training.learner import Learner, LearnerConfig, LossAndMetrics
from vqgan.training.monitor.findings import no_better_than_guessing, not_finite
from vqgan.training.objective import Objective
from vqgan.training.parallel.gradient_accumulation import rows_of
from vqgan.training.parallel.sharding import requested_sharding
from vqgan.training.task import Stateful


class NextTokenTaskConfig(
    LearnerConfig, fixed=("lora",), may_change=("caption_dropout", "text_loss_share", "sampled_prompts")
):
    """Loss, optimizer and sampling settings of the next-token task."""

    caption_dropout: float = Field(0.1, ge=0, lt=1)
    """Fraction of the captions that are dropped (replaced by the null caption), for guidance."""
    text_loss_share: float = Field(0.125, ge=0, lt=1)
    """For models that predict text too (DALL-E): weight of its cross-entropy; that of the image codes is 1 minus it."""
    lora: LoRAConfig | None = None
    """Train small matrices beside the frozen weights (LoRA), of a model that `start_from` names: {rank: 8}. The model
    that is sampled and shipped has them merged; model/lora holds them alone."""
    sampling: SamplingConfig = SamplingConfig()
    """Sampling settings of previews and evaluated prompts; the saved model recommends them."""
    sampled_prompts: int = Field(128, ge=0)
    """Number of validation captions sampled and checked in each evaluation, if the data set has a checker."""


class _Part(NamedTuple):
    tokens: TokenPair
    per_token: Tensor | None
    """Factor of the sum over text tokens, for models that predict them."""


class NextTokenTask(Objective[_Part]):
    """Trains a generator on the codes of a frozen image tokenizer."""

    network_name = "generator"
    evaluates_sharded = True

    def __init__(
        self,
        config: NextTokenTaskConfig,
        generator: Generator,
        tokenizers: PairTokenizer,
        accelerator: Accelerator,
        steps: int,
        seed: int,
        check_image: CaptionChecker | None = None,
    ) -> None:
        own_scales = config.precision == "fp16" and bool(generator.branches())
        tokenizers.image.to(accelerator.device)
        if config.lora is not None:
            if requested_sharding(accelerator) is not None:
                raise ConfigError("task.lora needs whole weights on each GPU; use configs/accelerate/ddp.yaml")
            add_lora(generator, config.lora)
        super().__init__(Learner(config, generator, accelerator, steps, scales_loss=not own_scales))
        # After the learner has prepared the network: sharding exchanges its parameters.
        self.gradient_scales = GradientScales(generator.branches()) if own_scales else None
        self.config = config
        self._seed = seed
        self._check_image = check_image
        self.generator = generator
        self.tokenizers = tokenizers

    def parts(self, batches: Sequence[Batch], step: int) -> list[_Part]:
        """Tokenizes a micro-batch; caption dropout depends on the position in the step's global batch."""
        pairs = []
        for batch, (start, size) in zip(batches, rows_of(self.accelerator, batches), strict=True):
            drop = dropped_captions(self.config.caption_dropout, size, self._seed, step, start, len(batch))
            pairs.append(self.tokenizers(batch, drop, (self._seed, step, start)))
        per_token = None
        if self.generator.learns_text:
            # Every text token of the step has the same weight: micro-batches have different numbers of them.
            pad = self.generator.tokens.text_pad_id  # padding is read, but not a target
            per_token = self.learner.weight_of_each([(pair.text_ids != pad).sum() for pair in pairs])
        return [_Part(pair, per_token) for pair in pairs]

    def loss(self, part: _Part, step: int) -> LossAndMetrics:
        del step
        tokens, per_token = part
        logits: Logits = self.learner(tokens.text_ids, tokens.codes)
        total = image = F.cross_entropy(logits.image.flatten(0, 1), tokens.codes.flatten())
        metrics = {"loss": image, "cut_captions": torch.tensor(tokens.truncated_fraction, device=image.device)}
        if logits.text is not None and per_token is not None:
            pad = self.generator.tokens.text_pad_id
            nats = F.cross_entropy(
                logits.text.flatten(0, 1), tokens.text_ids.flatten(), ignore_index=pad, reduction="sum"
            )
            metrics["loss_text"] = text = nats * per_token
            total = self.config.text_loss_share * text + (1 - self.config.text_loss_share) * image
        return total, metrics

    def update(self, step: int) -> dict[str, Tensor]:
        scales = {} if self.gradient_scales is None else self.gradient_scales.unscale()
        return scales | super().update(step)

    def diagnose(self, metrics: Mapping[str, float]) -> list[str]:
        """Returns findings about non-finite values, and a loss no better than chance."""
        more = ", and look at what the tokenizer decodes"
        guess = no_better_than_guessing(metrics, "loss", self.tokenizers.image.vocab_size, "codes", more)
        return not_finite(metrics) + guess

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Returns the nats per image code of the averaged weights, and the accuracy of generated images with a
        checker."""
        sums = MetricSums(self.accelerator)
        device = self.accelerator.device
        model = self._pipeline()
        model.generator.eval()
        sums.add("codes", torch.zeros((), device=device))
        prompts: list[str] = []
        for batch in batches:
            tokens = self.tokenizers(batch)
            logits = model.generator(tokens.text_ids, tokens.codes).image
            if batch.repeated:
                continue
            sums.add("nats", F.cross_entropy(logits.flatten(0, 1), tokens.codes.flatten(), reduction="sum"))
            sums.add("codes", torch.tensor(float(tokens.codes.numel()), device=device))
            prompts += batch.texts()
        if self._check_image is not None and self.config.sampled_prompts:
            share = -(-self.config.sampled_prompts // self.accelerator.num_processes)  # at least one each
            wanted = [(prompt, seed) for seed, prompt in enumerate(prompts[:share])]
            with self.ema.gathered(device):
                images = to_pil(self._pipeline().generate(wanted, self.config.sampling)) if wanted else []
            right = sum(map(self._check_image, images, prompts))
            sums.add("right", torch.tensor([float(right), float(len(wanted))], device=device))
        totals = sums.totals()
        metrics = {"nats_per_code": (totals["nats"] / totals["codes"]).item()}
        if "right" in totals:
            metrics["prompt_accuracy"] = (totals["right"][0] / totals["right"][1]).item()
        return metrics

    @torch.no_grad()
    def preview(self, batch: Batch) -> Image.Image:
        """Returns a sheet of images generated for the batch's captions."""
        prompts = batch.texts()
        images = to_pil(self._pipeline().generate([(prompt, 0) for prompt in prompts], self.config.sampling))
        marks = list(map(self._check_image, images, prompts)) if self._check_image else None
        return contact_sheet(images, prompts, marks=marks)

    def stateful(self) -> dict[str, Stateful]:
        parts = super().stateful()
        return parts if self.gradient_scales is None else parts | {"gradient_scales": self.gradient_scales}

    def frozen_parts(self) -> dict[str, FrozenPart]:
        image = self.tokenizers.image
        parts = {
            "image_tokenizer": image.codes_as_frozen_part(),
            "image_tokenizer's decoder": FrozenPart({"decoder": image.decoder_fingerprint()}, is_only_shown=True),
        }
        encoder = getattr(self.generator, "text_encoder", None)
        if isinstance(encoder, PretrainedTextEncoder):
            parts["model.text_encoder"] = encoder.as_frozen_part()
        return parts

    def save_model(self, folder: Path) -> None:
        """Saves the averaged weights and both tokenizers as a model folder."""
        self._pipeline().save_pretrained(folder)
        if self.config.lora is not None:
            save_lora(folder / LORA_FOLDER, self.ema.module, self.config.lora)

    def _pipeline(self) -> TextToImage:
        generator = self.ema.module if self.config.lora is None else merged_copy(self.ema.module)
        return TextToImage(generator, self.tokenizers.text, self.tokenizers.image, self.config.sampling)
