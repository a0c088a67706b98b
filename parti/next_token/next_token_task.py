"""What stage-2 training minimizes: cross-entropy of the image codes given the text (Parti, section 2.2).

Captions are dropped at random, so that one model gives both sides of classifier-free guidance.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from pydantic import Field
from torch import Tensor

from parti.layers.gradient_scales import GradientScales
from parti.models import Generator, Logits
from parti.pairs import PairTokenizer, TokenPair, dropped_captions
from parti.pipeline import TextToImage
from parti.sampling.generate import SamplingConfig
from parti.text.encoders import PretrainedTextEncoder
from vqgan.config.schema import Config
from vqgan.contact_sheet import contact_sheet
from vqgan.data.batch import Batch
from vqgan.data.images.transforms import to_pil
from vqgan.fingerprints import FrozenPart
from vqgan.metrics.caption_checkers import Judge
from vqgan.metrics.sums import MetricSums
from vqgan.training.monitor.diagnostics_log import about_skipped_steps
from vqgan.training.optim.ema import EMA, EMAConfig
from vqgan.training.optim.optimizer import Optimizer, OptimizerConfig
from vqgan.training.optim.precision import Precision, autocast
from vqgan.training.parallel.gradient_accumulation import accumulate, add_share, weight_of_each
from vqgan.training.prepare_model import prepare
from vqgan.training.task import Stateful

_LEARNS_BY = 0.1
"""Share of the run after which a generator that learns at all beats a uniform guess: it knows the common codes."""


class NextTokenTaskConfig(
    Config, may_change=("caption_dropout", "text_loss_share", "precision", "compile_layers", "sampled_prompts")
):
    """How a generator learns, and how it is sampled while it does."""

    caption_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of the captions that are replaced by the empty one; guidance needs some."""
    text_loss_share: float = Field(0.125, ge=0, lt=1)
    """For models that learn the text too (DALL-E): weight of its cross-entropy; the image codes' is 1 minus it."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The generator's optimizer."""
    ema: EMAConfig = EMAConfig()
    """The averaged weights that are evaluated, sampled and shipped."""
    precision: Precision = "bf16"
    """Arithmetic of the network in training; logits, loss and weights are fp32 in any case. fp16 is for GPUs without
    bf16: it scales the loss, or with decoder_only the gradients of each block, as DALL-E does."""
    compile_layers: bool = False
    """Compile each layer of the network (torch.compile): minutes at the start, then faster steps on a GPU."""
    sampling: SamplingConfig = SamplingConfig()
    """How previews and evaluated prompts are drawn; the shipped model recommends these settings."""
    sampled_prompts: int = Field(128, ge=0)
    """Validation captions drawn and judged in each evaluation, where the data set has a judge."""


class NextTokenTask:
    """Trains a generator on the codes of a frozen image tokenizer."""

    def __init__(
        self,
        config: NextTokenTaskConfig,
        generator: Generator,
        tokenizers: PairTokenizer,
        accelerator: Accelerator,
        steps: int,
        seed: int,
        check_image: Judge | None = None,
    ) -> None:
        self.config = config
        self.accelerator = accelerator
        self._seed = seed
        self._judge = check_image
        self.generator = generator
        tokenizers.image.to(accelerator.device)
        self.tokenizers = tokenizers
        self.ema = EMA(config.ema, generator)
        self._parallel_generator = prepare(
            accelerator, generator, self.ema, lambda g: g.repeated_layers(), config.precision, config.compile_layers
        )
        branches = generator.branches() if config.precision == "fp16" else []
        self.gradient_scales = GradientScales(branches) if branches else None
        has_one_scale = config.precision == "fp16" and not branches
        self.optimizer = Optimizer(config.optimizer, generator, steps, fp16=has_one_scale)

    def train_step(self, batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        metrics: dict[str, Tensor] = {}
        share = 1 / len(batches)
        parts = self._tokenized(batches, step)
        pad = self.generator.tokens.text_pad_id  # padding is read, but not a target
        per_token: Tensor | None = None
        for _, tokens in accumulate(self.accelerator, self._parallel_generator, parts):
            with autocast(self.accelerator.device, self.config.precision):
                logits: Logits = self._parallel_generator(tokens.text_ids, tokens.codes)
            total = image = F.cross_entropy(logits.image.flatten(0, 1), tokens.codes.flatten()) * share
            if logits.text is not None:
                # Every text token of the step counts alike: captions, and so parts, have different numbers of them.
                if per_token is None:
                    per_token = weight_of_each(self.accelerator, [(part.text_ids != pad).sum() for part in parts])
                nats = F.cross_entropy(
                    logits.text.flatten(0, 1), tokens.text_ids.flatten(), ignore_index=pad, reduction="sum"
                )
                text = nats * per_token
                total = self.config.text_loss_share * text + (1 - self.config.text_loss_share) * image
                add_share(metrics, {"loss_text": text}, 1.0)
            self.accelerator.backward(total * self.optimizer.scale)
            add_share(metrics, {"loss": image}, 1.0)
            add_share(metrics, {"cut_captions": torch.tensor(tokens.truncated_fraction, device=total.device)}, share)
        if self.gradient_scales is not None:
            metrics |= self.gradient_scales.unscale()
        metrics |= self.optimizer.step(step)
        self.ema.update(self.generator, step)
        return metrics

    def diagnose(self, metrics: Mapping[str, float]) -> list[str]:
        """Lost numbers, and a loss that is no better than guessing."""
        remedy = "lower task.optimizer.learning_rate, set task.optimizer.clip_norm, or set task.precision to fp32"
        findings = []
        loss, guess = metrics.get("loss"), math.log(self.tokenizers.image.vocab_size)
        if loss is not None and not math.isfinite(loss):
            findings.append(f"the loss is not finite; {remedy}.")
        findings += about_skipped_steps(metrics, remedy)
        if loss is not None and loss >= guess and metrics.get("run_share", 0.0) >= _LEARNS_BY:
            findings.append(
                f"nothing is learned: the loss {loss:.3f} is no better than a uniform guess, ln(codes) = {guess:.3f}; "
                "try task.optimizer.learning_rate lower, then higher, and look at what the tokenizer decodes."
            )
        return findings

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Nats per image code of the averaged weights; right images of validation captions where a judge is known."""
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
        if self._judge is not None and self.config.sampled_prompts:
            share = -(-self.config.sampled_prompts // self.accelerator.num_processes)  # at least one each
            wanted = [(prompt, seed) for seed, prompt in enumerate(prompts[:share])]
            with self.ema.gathered(device):
                images = to_pil(self._pipeline().generate(wanted, self.config.sampling)) if wanted else []
            right = sum(map(self._judge, images, prompts))
            sums.add("right", torch.tensor([float(right), float(len(wanted))], device=device))
        totals = sums.totals()
        metrics = {"nats_per_code": (totals["nats"] / totals["codes"]).item()}
        if "right" in totals:
            metrics["prompt_accuracy"] = (totals["right"][0] / totals["right"][1]).item()
        return metrics

    @torch.no_grad()
    def preview(self, batch: Batch) -> Image.Image:
        """Images drawn for the batch's captions."""
        prompts = batch.texts()
        images = to_pil(self._pipeline().generate([(prompt, 0) for prompt in prompts], self.config.sampling))
        marks = list(map(self._judge, images, prompts)) if self._judge else None
        return contact_sheet(images, prompts, marks=marks)

    def stateful(self) -> dict[str, Stateful]:
        parts: dict[str, Stateful] = {"generator": self.generator, "ema": self.ema, "optimizer": self.optimizer}
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
        """Averaged weights and both tokenizers: one folder that samples."""
        self._pipeline().save_pretrained(folder)

    def _tokenized(self, batches: Sequence[Batch], step: int) -> list[TokenPair]:
        """This process's micro-batches; what becomes of a caption depends on its place in the step's global batch."""
        rank, processes, local = self.accelerator.process_index, self.accelerator.num_processes, len(batches[0])
        global_size = local * processes * len(batches)
        parts = []
        for number, batch in enumerate(batches):
            start = (number * processes + rank) * local
            drop = dropped_captions(self.config.caption_dropout, global_size, self._seed, step, start, local)
            parts.append(self.tokenizers(batch, drop, (self._seed, step, start)))
        return parts

    def _pipeline(self) -> TextToImage:
        return TextToImage(self.ema.module, self.tokenizers.text, self.tokenizers.image, self.config.sampling)
