"""A captioning run put together: config -> data, vocabulary, captioner, task, loop. `tools/train_parti.py` calls it."""

from functools import partial
from typing import Literal

from accelerate import Accelerator
from pydantic import model_validator

from parti.captioned_run import CaptionedRunConfig, train_on_captions
from parti.fused.captioning.captioner import Captioner, CaptionerConfig
from parti.fused.captioning.captioning_task import CaptioningTask, CaptioningTaskConfig
from parti.fused.transfer import check_vocabulary, start_rows_from
from parti.text import TextConfig, TextTokenizer, TextTokenizerConfig
from vqgan.fine_tuning import start
from vqgan.hub.construction import within_memory
from vqgan.metrics.caption_checkers import CaptionChecker, caption_checker


class TrainCaptioningConfig(CaptionedRunConfig, may_change=("start_from",)):
    """A run that trains a captioner."""

    objective: Literal["fused_captioning"] = "fused_captioning"
    """What is trained: partially autoregressive captioning by a fused U-Net and BERT."""
    run_dir: str = "runs/fused-captioning"
    start_from: str | None = None
    """Run or model folder of a fused model to start from, e.g. of objective fused_inpainting: every part that both
    have. Its vocabulary must be the same (text.kind saved). null: from scratch, or from model.text.bert."""
    text: TextConfig = TextTokenizerConfig(length=30)
    """The text vocabulary; its length includes a start and an end token."""
    model: CaptionerConfig = CaptionerConfig()
    """The captioner."""
    task: CaptioningTaskConfig = CaptioningTaskConfig()
    """What is minimized, and how."""

    @model_validator(mode="after")
    def _check_parts_fit(self) -> "TrainCaptioningConfig":
        check_vocabulary(self.text, self.start_from, self.model.text.bert, "model.text.bert")
        self.check_whole_words("a captioner tells whole words")
        return self


def train(config: TrainCaptioningConfig) -> bool:
    """Run to the end, or until interrupted; True when complete. Resumes what is in `run_dir`.

    Raises ConfigError, DataError or ModelFolderError with one line for the user.
    """
    build = partial(build_task, config, check_image=caption_checker(config.data.source))
    return train_on_captions(config, build, title="captioning")


def build_task(
    config: TrainCaptioningConfig,
    accelerator: Accelerator,
    tokenizer: TextTokenizer,
    check_image: CaptionChecker | None = None,
) -> CaptioningTask:
    """The captioner for this vocabulary, and the task of a run. Raises what `start_rows_from` raises."""
    captioner = within_memory(lambda: Captioner(config.model, tokenizer))
    start(config.start_from, config.run_dir, accelerator, partial(start_rows_from, captioner))
    return CaptioningTask(config.task, captioner, accelerator, config.loop.steps, config.seed, check_image)
