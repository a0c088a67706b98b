"""A run of progressive text-to-image generation put together: config -> data, vocabulary, networks, task, loop."""

from functools import partial
from typing import Literal

from accelerate import Accelerator
from pydantic import model_validator

from parti.captioned_run import CaptionedRunConfig, train_on_captions
from parti.fused.synthesis.discriminators import Discriminators, DiscriminatorsConfig
from parti.fused.synthesis.generator import SynthesisConfig, SynthesisGenerator
from parti.fused.synthesis.matching import JointMatchingConfig
from parti.fused.synthesis.posterior_encoder import PosteriorEncoder, PosteriorEncoderConfig
from parti.fused.synthesis.synthesis_task import SynthesisTask, SynthesisTaskConfig
from parti.fused.text_side import text_space
from parti.fused.transfer import check_vocabulary, start_rows_from
from parti.text import TextConfig, TextTokenizer, TextTokenizerConfig
from vqgan.config.schedule import in_steps
from vqgan.data.loader import DataConfig
from vqgan.fine_tuning import start
from vqgan.hub.construction import within_memory
from vqgan.metrics.caption_checkers import CaptionChecker, caption_checker


class TrainSynthesisConfig(CaptionedRunConfig, fixed=("encoder",), may_change=("start_from",)):
    """A run that trains a generator of images at three scales against a discriminator for each."""

    objective: Literal["fused_synthesis"] = "fused_synthesis"
    run_dir: str = "runs/fused-synthesis"
    data: DataConfig = DataConfig()
    """Images and captions, of the largest scale's size."""
    text: TextConfig = TextTokenizerConfig(length=30)
    model: SynthesisConfig = SynthesisConfig()
    """The generator."""
    encoder: PosteriorEncoderConfig | None = None
    """The encoder from real images to noise, for training only; null, as in the diagram: none."""
    discriminators: DiscriminatorsConfig = DiscriminatorsConfig()
    """The discriminators."""
    start_from: str | None = None
    """Run or model folder of another fused model whose parts the generator starts from, with text.kind saved and
    text.folder the same folder. null: random weights, or those of model.trunk.text.bert."""
    task: SynthesisTaskConfig = SynthesisTaskConfig()
    """What is minimized, and how."""

    def model_image_size(self) -> tuple[str, int]:
        """The largest scale's."""
        return "model.trunk.image_size", self.model.trunk.image_size

    @model_validator(mode="after")
    def _check_parts_fit(self) -> "TrainSynthesisConfig":
        smallest = self.model.sides[0]
        if smallest < 8 or smallest.bit_count() != 1:
            raise ValueError(
                f"the smallest images have {smallest} pixels, and a discriminator reads a power of two from 8 on; "
                "set model.trunk.image_size and data.transform.image_size to a power of two from 32 on"
            )
        self.check_others_to_compare("second caption that would be a wrong one")
        task, steps = self.task, self.loop.steps
        starts = [in_steps(start, steps) for start in (*task.scale_starts, task.adversarial.start)]
        if starts[0] or starts != sorted(starts):
            raise ValueError(
                f"task.scale_starts are {task.scale_starts} and task.adversarial.start is {task.adversarial.start}, "
                "but the smallest "
                "images are drawn from step 0, each larger size joins no earlier than the one before, and the game "
                "when all are there; put them into this order"
            )
        check_vocabulary(self.text, self.start_from, self.model.trunk.text.bert, "model.trunk.text.bert")
        return self


def train(config: TrainSynthesisConfig) -> bool:
    """Run to the end, or until interrupted; True when complete. Resumes what is in `run_dir`.

    Raises ConfigError, DataError or ModelFolderError with one line for the user.
    """
    build = partial(build_task, config, check_image=caption_checker(config.data.source))
    return train_on_captions(config, build, title="synthesis")


def build_task(
    config: TrainSynthesisConfig,
    accelerator: Accelerator,
    tokenizer: TextTokenizer,
    check_image: CaptionChecker | None = None,
) -> SynthesisTask:
    """The networks for this vocabulary, and the task of a run.

    Raises ConfigError or ModelFolderError where what they start from is not there or does not fit.
    """
    tokens = text_space(tokenizer)
    generator = within_memory(lambda: SynthesisGenerator(config.model, tokens))
    start(config.start_from, config.run_dir, accelerator, partial(start_rows_from, generator))
    joint = isinstance(config.task.matching, JointMatchingConfig)
    text, sides = config.model.trunk.text, config.model.sides
    discriminators = within_memory(lambda: Discriminators(config.discriminators, text, tokens, sides, matching=joint))
    chosen = config.encoder
    encoder = None if chosen is None else within_memory(lambda: PosteriorEncoder(chosen, config.model))
    return SynthesisTask(
        config.task,
        generator,
        encoder,
        discriminators,
        tokenizer,
        accelerator,
        config.loop.steps,
        config.seed,
        check_image,
    )
