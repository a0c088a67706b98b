"""A run of the pretraining task put together: config -> data, vocabulary, network, task, loop."""

from functools import partial
from typing import Literal

from accelerate import Accelerator
from pydantic import model_validator

from parti.captioned_run import CaptionedRunConfig, train_on_captions
from parti.fused.inpainting.inpainting_task import InpaintingTask, InpaintingTaskConfig
from parti.fused.inpainting.network import InpaintingNetwork
from parti.fused.rows import TrunkConfig
from parti.fused.text_side import text_space
from parti.fused.transfer import check_vocabulary, start_rows_from
from parti.text import TextConfig, TextTokenizer, TextTokenizerConfig
from vqgan.data.sources.shapes import ShapesConfig
from vqgan.fine_tuning import start
from vqgan.hub.construction import within_memory


class TrainInpaintingConfig(CaptionedRunConfig, may_change=("start_from",)):
    """A run that pretrains the fused trunk: image inpainting and language completion."""

    objective: Literal["fused_inpainting"] = "fused_inpainting"
    run_dir: str = "runs/fused-inpainting"
    text: TextConfig = TextTokenizerConfig(length=30)
    model: TrunkConfig = TrunkConfig()
    """The trunk."""
    start_from: str | None = None
    """Run or model folder of another fused model whose parts this one starts from, with text.kind saved and
    text.folder the same folder. null: random weights, or those of model.text.bert."""
    task: InpaintingTaskConfig = InpaintingTaskConfig()
    """What is minimized, and how."""

    @model_validator(mode="after")
    def _check_parts_fit(self) -> "TrainInpaintingConfig":
        check_vocabulary(self.text, self.start_from, self.model.text.bert, "model.text.bert")
        return self


def train(config: TrainInpaintingConfig) -> bool:
    """Run to the end, or until interrupted; True when complete. Resumes what is in `run_dir`.

    Raises ConfigError, DataError or ModelFolderError with one line for the user.
    """
    build = partial(build_task, config)
    return train_on_captions(config, build, title="inpainting")


def build_task(config: TrainInpaintingConfig, accelerator: Accelerator, tokenizer: TextTokenizer) -> InpaintingTask:
    """The network for this vocabulary, and the task of a run.

    Raises ConfigError or ModelFolderError where what it starts from is not there or does not fit.
    """
    network = within_memory(lambda: InpaintingNetwork(config.model, text_space(tokenizer)))
    start(config.start_from, config.run_dir, accelerator, partial(start_rows_from, network))
    shapes = isinstance(config.data.source, ShapesConfig)
    return InpaintingTask(config.task, network, tokenizer, accelerator, config.loop.steps, config.seed, shapes)
