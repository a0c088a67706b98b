"""Training of the captioning model: the losses of `captioning_losses`, two learning rates (SPEC E.4)."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from accelerate import Accelerator
from jaxtyping import Int64
from PIL import Image
from pydantic import Field
from torch import Tensor

from parti.fused.captioning.caption_decoding import MOST_ROUNDS, ROWS, DecodingConfig, decode
from parti.fused.captioning.caption_metrics import can_compare_texts, compare_texts, describes
from parti.fused.captioning.captioner import Captioner, DraftNoise, Lesson
from parti.fused.captioning.captioning_losses import CaptioningLossesConfig, uneven_attention, weighted, word_nats
from parti.fused.two_rates import TwoRates
from vqgan.config import Config
from vqgan.contact_sheet import contact_sheet
from vqgan.data.batch import Batch
from vqgan.data.transforms import to_pil
from vqgan.metrics.judge import Judge
from vqgan.metrics.sums import MetricSums
from vqgan.training.checkpoint import Stateful
from vqgan.training.distributed import gather_things
from vqgan.training.ema import EMA, EMAConfig
from vqgan.training.findings import about_skipped_steps
from vqgan.training.micro_batches import accumulate, add_share
from vqgan.training.optimisation import OptimiserConfig

_LEARNS_BY = 0.1
"""Share of the run after which a model that learns at all does better than a guess."""
_HELD_OUT_STEP = 0
"""Held-out captions have the drafts of this step, at every evaluation."""


class CaptioningTaskConfig(Config):
    """How captions are learned."""

    losses: CaptioningLossesConfig = CaptioningLossesConfig()
    """Weights of the losses."""
    optimiser: OptimiserConfig = OptimiserConfig(learning_rate=4e-4, clip_norm=5.0)
    """Of what tells words: Show, Attend and Tell, the LSTM heads and the projections."""
    trunk_ratio: float = Field(0.125, gt=0)
    """Learning rate of the trunk (convolutions, fusions, BertLayers, word embeddings), as a share of that of the
    rest; 1 where it starts at random."""
    ema: EMAConfig = EMAConfig()
    """The averaged weights that are evaluated and shipped."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Arithmetic of the trunk in training; recurrences, logits, losses and weights are fp32 in any case."""
    rounds: int = Field(2, ge=0, le=MOST_ROUNDS)
    """Rounds of refinement in evaluations and previews."""


class _Captions(NamedTuple):
    ids: Int64[Tensor, "B T"]
    noise: DraftNoise
    cut_share: float


class CaptioningTask:
    """Trains a captioner on pairs. Without a `judge` captions are compared with the data set's own alone."""

    def __init__(
        self,
        config: CaptioningTaskConfig,
        captioner: Captioner,
        accelerator: Accelerator,
        steps: int,
        seed: int,
        judge: Judge | None = None,
    ) -> None:
        self.config = config
        self.accelerator = accelerator
        self.judge = judge
        self._seed = seed
        self.captioner = captioner.to(accelerator.device).train()
        self._parallel_captioner = accelerator.prepare_model(self.captioner)
        # After the preparation, which gives every process the first one's weights.
        self.ema = EMA(config.ema, self.captioner)
        self.optimiser = TwoRates(config.optimiser, self.captioner, [self.captioner.parts], config.trunk_ratio, steps)

    def train_step(self, batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        metrics: dict[str, Tensor] = {}
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        local = len(batches[0])
        starts = [(part * processes + rank) * local for part in range(len(batches))]
        captions = [
            self._read(batch, local * processes * len(batches), step, start)
            for batch, start in zip(batches, starts, strict=True)
        ]
        # Every word of the step counts alike, wherever it is read: gradients are averaged over the processes.
        tokens = self.captioner.tokens
        told = torch.stack([tokens.told(part.ids).sum() for part in captions]).sum()
        per_word = processes / self._sum(told)
        for _, (batch, part) in accumulate(
            self.accelerator, self._parallel_captioner, list(zip(batches, captions, strict=True))
        ):
            with self._autocast():
                lesson: Lesson = self._parallel_captioner(batch.images, part.ids, part.noise)
            asked = tokens.told(part.ids)
            rows = [word_nats(logits, part.ids, asked) * per_word for logits in lesson.logits]
            attention = uneven_attention(lesson.looks, asked) / len(batches)
            weights = self.config.losses
            loss = weighted((*weights.rows, weights.even_attention), (*rows, attention))
            self.accelerator.backward(loss)
            sums = {"loss": loss, "loss_attention": attention}
            sums |= {f"loss_row_{row}": nats for row, nats in zip(ROWS, rows, strict=True)}
            add_share(metrics, sums, 1.0)
            add_share(metrics, {"cut_captions": torch.tensor(part.cut_share, device=loss.device)}, 1 / len(batches))
        metrics |= self.optimiser.step(step)
        if not metrics["skipped"]:
            self.ema.update(self.captioner, step)
        return metrics

    def diagnose(self, figures: Mapping[str, float]) -> list[str]:
        """Lost numbers, a loss that is no better than guessing, and captions that are cut."""
        remedy = "lower task.optimiser.learning_rate, set task.optimiser.clip_norm, or set task.precision to fp32"
        findings = []
        if not math.isfinite(figures.get("loss", 0.0)):
            findings.append(f"the loss is not finite; {remedy}.")
        findings += about_skipped_steps(figures, remedy)
        nats, words = figures.get("loss_row_14"), int(self.captioner.tokens.tellable.sum())
        if nats is not None and nats >= math.log(words) and figures.get("run_share", 0.0) >= _LEARNS_BY:
            findings.append(
                f"nothing is learned: loss_row_14 {nats:.3f} is no better than guessing among {words} tokens, "
                f"{math.log(words):.3f}; try task.optimiser.learning_rate lower, then higher, with a longer "
                "task.optimiser.schedule.warmup, and task.trunk_ratio 1 where the trunk starts at random."
            )
        return findings

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Of the averaged weights on held-out pairs: nats per word behind each row, and what their captions are worth.

        `exact_row_K`: share of the pictures whose caption, told behind row K without refinement, describes them;
        `exact_round_R`: behind row 14 after R rounds. Words are compared after the last round. Raises ValueError where
        no process has a picture.
        """
        captioner = self.ema.module.eval()
        sums = MetricSums(self.accelerator)
        device = self.accelerator.device
        sums.add("pictures", torch.zeros((), device=device))
        pairs: list[tuple[str, str]] = []
        for batch in batches:
            sums.add("pictures", torch.tensor(float(len(batch)), device=device))
            captions = self._read(batch, len(batch), _HELD_OUT_STEP, 0)
            asked = captioner.tokens.told(captions.ids)
            sums.add("words", asked.sum())
            lesson = captioner(batch.images, captions.ids, captions.noise)
            for row, logits in zip(ROWS, lesson.logits, strict=True):
                sums.add(f"nats_row_{row}", word_nats(logits, captions.ids, asked))
            told = self._tell(captioner, batch)
            for name, right in self._judged(batch, told).items():
                sums.add(name, torch.tensor(float(sum(right)), device=device))
            final = told[_last(self.config.rounds)]
            pairs += [pair for pair in zip(final, batch.texts(), strict=True) if pair[1]]
        totals = {name: total.item() for name, total in sums.totals().items()}
        pictures, words = totals.pop("pictures"), totals.pop("words", 0.0)
        if not pictures:
            raise ValueError("no held-out picture to evaluate on; give at least one batch")
        figures = {name: total / (words if name.startswith("nats") else pictures) for name, total in totals.items()}
        everyone = gather_things(self.accelerator, pairs)
        if everyone and can_compare_texts():
            figures |= compare_texts([caption for caption, _ in everyone], [[truth] for _, truth in everyone])
        return figures

    @torch.no_grad()
    def preview(self, batch: Batch) -> Image.Image:
        """Each picture with its caption, marked where a judge can tell whether it describes the picture."""
        told = self._tell(self.ema.module.eval(), batch)
        last = _last(self.config.rounds)
        judged = self._judged(batch, {last: told[last]})
        return contact_sheet(to_pil(batch.images), told[last], marks=judged.get(last))

    def stateful(self) -> dict[str, Stateful]:
        return {"captioner": self.captioner, "ema": self.ema, "optimiser": self.optimiser}

    def save_model(self, folder: Path) -> None:
        """The averaged captioner as a model folder, with its vocabulary."""
        self.ema.module.save_pretrained(folder)

    def _tell(self, captioner: Captioner, batch: Batch) -> dict[str, list[str]]:
        """The captions of each row, and of each round behind the last row, by the name of their figure."""
        view = captioner.view(batch.images)
        told = {}
        for row in ROWS:
            config = DecodingConfig(exit_row=row, rounds=self.config.rounds if row == ROWS[-1] else 0)
            for number, stage in enumerate(decode(view, captioner.tokens, config).stages):
                name = f"exact_round_{number}" if number else f"exact_row_{row}"
                told[name] = captioner.tokens.texts(stage.ids)
        return told

    def _judged(self, batch: Batch, told: Mapping[str, Sequence[str]]) -> dict[str, list[bool]]:
        """Which captions describe their pictures; nothing where nobody can tell."""
        if self.judge is None:
            return {}
        judged: dict[str, list[bool]] = {name: [] for name in told}
        for number, picture in enumerate(to_pil(batch.images)):
            # Rows and rounds mostly agree, and to read a picture takes longer than to tell it.
            verdicts = {
                caption: describes(self.judge, picture, caption)
                for caption in {captions[number] for captions in told.values()}
            }
            for name, captions in told.items():
                judged[name].append(verdicts[captions[number]])
        return judged

    def _read(self, batch: Batch, batch_size: int, step: int, start: int) -> _Captions:
        """The captions of a batch that begins at row `start` of `batch_size`, and the noise of its drafts.

        A function of (seed, step, row), so it does not depend on how the batch is divided between processes.
        """
        device = batch.images.device
        ids, cut = self.captioner.tokens.frame(batch.texts())
        length = ids.shape[1]
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + step)
        drawn = torch.rand(batch_size, 2 * length + 1, generator=generator)[start : start + len(batch)].to(device)
        noise = DraftNoise(drawn[:, :length], drawn[:, length], drawn[:, length + 1 :])
        return _Captions(ids.to(device), noise, sum(cut) / len(cut))

    def _sum(self, count: Tensor) -> Tensor:
        count = count.to(self.accelerator.device)
        if self.accelerator.num_processes == 1:
            return count
        return torch.as_tensor(self.accelerator.reduce(count, reduction="sum"))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")


def _last(rounds: int) -> str:
    """The figure of the captions after all rounds."""
    return f"exact_round_{rounds}" if rounds else f"exact_row_{ROWS[-1]}"
