"""Stage 2 put together: config -> data, tokenizers, generator, task, loop. `tools/train_parti.py` calls `train`."""

from functools import partial
from typing import Literal, cast

from accelerate import Accelerator
from pydantic import Field, model_validator

from parti.captioned_run import CaptionedRunConfig
from parti.code_cache.batch import CodedBatch
from parti.code_cache.data import CodeCache, CodedPipeline, PairDataConfig
from parti.models import GENERATORS, EncoderDecoderConfig, GeneratorConfig
from parti.next_token.next_token_task import NextTokenTask, NextTokenTaskConfig
from parti.next_token.start_from import start_generator_from
from parti.pairs import PairTokenizer, token_space
from parti.text import (
    PretrainedTokenizerConfig,
    SavedTokenizerConfig,
    TextTokenizer,
    TextTokenizerConfig,
)
from parti.text.encoders import PretrainedTextEncoderConfig, TrainedTextEncoder, TrainedTextEncoderConfig
from parti.text.run_tokenizer import load_or_train_tokenizer, notes_on_captions
from parti.text.warm_start import warm_start
from vqgan.config.schema import ConfigError
from vqgan.data.batch import Batch
from vqgan.data.loader import DataPipeline
from vqgan.fine_tuning import start
from vqgan.hub.construction import within_memory
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.metrics.caption_checkers import CaptionChecker, caption_checker
from vqgan.stored_tokenizer import StoredImageTokenizer
from vqgan.training.parallel.sharding import is_sharding_requested
from vqgan.training.run import fit, setup_run
from vqgan.training.run_folder import RunFolder


class TrainPartiConfig(CaptionedRunConfig, may_change=("image_tokenizer", "start_from", "preview_prompts")):
    """A stage-2 run."""

    objective: Literal["next_token"] = "next_token"
    run_dir: str = "runs/parti"
    image_tokenizer: str
    """Stage-1 run folder, or its model folder: gives the codes to learn, and decodes sampled codes."""
    data: PairDataConfig = PairDataConfig()
    """Images, or their codes, and captions."""
    model: GeneratorConfig = EncoderDecoderConfig()
    """The generator."""
    start_from: str | None = None
    """Fine-tuning: a stage-2 run, a model folder or a Hub name whose weights this run starts from, as far as they fit:
    the text vocabulary is mapped token by token, codes of another image tokenizer start anew; what was taken is listed.
    Not read when the run is resumed."""
    task: NextTokenTaskConfig = NextTokenTaskConfig()
    """What is minimized, and how."""
    preview_prompts: tuple[str, ...] = Field((), strict=False)
    """Prompts drawn in each preview; none: the captions of the first validation images."""

    @model_validator(mode="after")
    def _check_adapters_have_a_base(self) -> "TrainPartiConfig":
        if self.task.lora is not None and self.start_from is None:
            raise ValueError("task.lora trains beside frozen weights, and those are random; name a model in start_from")
        return self

    @model_validator(mode="after")
    def _check_text_encoder_has_its_tokenizer(self) -> "TrainPartiConfig":
        encoder = getattr(self.model, "text_encoder", None)
        if isinstance(encoder, PretrainedTextEncoderConfig):
            name = self.text.name if isinstance(self.text, PretrainedTokenizerConfig) else None
            if name != encoder.name:
                raise ValueError(
                    f"model.text_encoder {encoder.name!r} was trained on the ids of its own tokenizer, but text is "
                    f"{self.text.kind} {name or ''}; set text.kind to pretrained and text.name to {encoder.name!r}"
                )
        if isinstance(encoder, TrainedTextEncoderConfig) and encoder.start is not None:
            folder = self.text.folder if isinstance(self.text, SavedTokenizerConfig) else None
            if folder != encoder.start:
                raise ValueError(
                    f"model.text_encoder.start {encoder.start!r} was trained on the ids of its own vocabulary, but "
                    f"text is {self.text.kind} {folder or ''}; set text.kind to saved and text.folder to "
                    f"{encoder.start!r}"
                )
        return self


def train(config: TrainPartiConfig) -> bool:
    """Run to the end, or until interrupted; True when complete. Resumes what is in `run_dir`.

    Raises ConfigError, DataError or ModelFolderError with one line for the user.
    """
    accelerator = setup_run(config.seed, config.loop.timeout_minutes)
    cache: CodeCache | None = None
    if config.data.codes is None:
        image_tokenizer = ImageTokenizer.from_pretrained(config.image_tokenizer)
    else:
        cache = CodeCache(config.data.codes)
        image_tokenizer = StoredImageTokenizer(config.image_tokenizer)
        cache.check_tokenizer(image_tokenizer, config.image_tokenizer)
        config = config.model_copy(update={"data": cache.resolved(config.data)})
    if config.data.transform.image_size != image_tokenizer.image_size:
        raise ConfigError(
            f"data.transform.image_size is {config.data.transform.image_size}, the image tokenizer in "
            f"{config.image_tokenizer} reads {image_tokenizer.image_size}; set data.transform.image_size to that"
        )
    if cache is None:
        data = DataPipeline(config.data, config.seed, require_captions=True)
    else:
        data = CodedPipeline(config.data, config.seed, cache)
    preview = _preview_batch(config, data)
    run = RunFolder(config.run_dir, config)
    if accelerator.is_main_process:
        run.create()
    text_tokenizer = load_or_train_tokenizer(config.text, data, run, accelerator, config.loop.timeout_minutes)
    check_image = caption_checker(config.data.source)
    cut = notes_on_captions(config.text, data, text_tokenizer, accelerator)
    ids_are_ours = cache is not None and cache.has_ids_of(run.path)
    task = partial(
        build_task, config, accelerator, text_tokenizer, image_tokenizer, check_image, ids_are_ours=ids_are_ours
    )
    return fit(config, task, data, run, accelerator, preview, title="stage 2", notes=cut)


def build_task(
    config: TrainPartiConfig,
    accelerator: Accelerator,
    text_tokenizer: TextTokenizer,
    image_tokenizer: ImageTokenizer,
    check_image: CaptionChecker | None = None,
    *,
    ids_are_ours: bool = False,
) -> NextTokenTask:
    """The generator for these tokenizers, and the task of a run; `ids_are_ours` says whether a code cache's text ids
    are of this text tokenizer. Raises what `warm_start` raises."""
    tokens = token_space(text_tokenizer, image_tokenizer)
    generator = within_memory(lambda: GENERATORS[config.model.kind](config.model, tokens))
    chosen = getattr(config.model, "text_encoder", None)
    if isinstance(chosen, PretrainedTextEncoderConfig) and config.task.precision == "fp16" and is_sharding_requested():
        raise ConfigError(
            "task.precision fp16 with sharded weights would run model.text_encoder in fp16, which T5's states exceed; "
            "set task.precision to bf16 or fp32, or use configs/accelerate/ddp.yaml"
        )
    if isinstance(chosen, TrainedTextEncoderConfig) and chosen.start is not None:
        warm_start(cast(TrainedTextEncoder, generator.text_encoder), chosen.start)
    fill = partial(start_generator_from, generator, text_tokenizer, image_tokenizer)
    start(config.start_from, config.run_dir, accelerator, fill)
    bpe_dropout = config.text.dropout if isinstance(config.text, TextTokenizerConfig) else 0.0
    tokenizers = PairTokenizer(text_tokenizer, image_tokenizer, bpe_dropout, ids_are_ours)
    return NextTokenTask(config.task, generator, tokenizers, accelerator, config.loop.steps, config.seed, check_image)


def _preview_batch(config: TrainPartiConfig, data: DataPipeline) -> Batch:
    batch = data.preview_batch(config.preview_images)
    if not config.preview_prompts:
        return batch
    prompts = list(config.preview_prompts)
    rows = [index % len(batch) for index in range(len(prompts))]
    names = [f"prompt {index}" for index in range(len(prompts))]
    shown = Batch(batch.images[rows], list(prompts), names)
    if not isinstance(batch, CodedBatch):
        return shown
    codes, cut = batch.codes[rows], batch.text_truncated[rows]
    return CodedBatch(shown.images, shown.captions, names, codes=codes, text_ids=None, text_truncated=cut)
