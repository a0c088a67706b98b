"""From prompts to a folder of pictures: what `tools/sample.py` does once its options are read.

The folder gets `0000-00.png` (number of the prompt, number of the sample), the best of several candidates where a
reranker is given, enlarged where an upsampler is given, `grid.png` with captions, and `samples.json`. What an earlier
call wrote there under the same names is replaced, other files stay; `grid.png` and `samples.json` tell of the last call
alone.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pydantic import Field, model_validator

from parti.pipeline import Drawn, TextToImage, recommended_sampling
from parti.reranking.rerank import draw_best
from parti.reranking.scorer import Scorer
from parti.sampling.generate import SamplingConfig
from parti.upsampling.upsampler import Upsampler
from vqgan.config import Config, ConfigError, validate
from vqgan.contact_sheet import contact_sheet

_GRID_COLUMNS = 8
_GRID_PICTURES = 256
"""More would be a sheet that no viewer opens; the first ones are shown."""


class SampleConfig(Config):
    """What is drawn, and where it goes."""

    model: str
    """Stage-2 run folder, or its model folder."""
    prompts: tuple[str, ...] = Field(strict=False, min_length=1)
    """Texts to draw."""
    n: int = Field(4, gt=0)
    """Pictures of each prompt, at least 1."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of each prompt's first picture, at least 0; the following ones count up, candidate by candidate."""
    sampling: SamplingConfig = SamplingConfig()
    """How codes are drawn."""
    rerank: int = Field(1, gt=0)
    """Candidates drawn for each picture, at least 1, of which the reranker's favourite is kept; 1 is off."""
    reranker: str | None = None
    """What chooses: run folder of tools/train_reranker.py, or any CLIP or SigLIP (folder or Hub name)."""
    upsample: str | None = None
    """Run folder of an upsampler (tools/train_upsampler.py), or its model folder: it enlarges every picture."""
    batch_size: int = Field(64, gt=0)
    """Pictures drawn at once, at least 1; changes memory and speed, not the pictures."""
    device: str = "cpu"
    """Where the networks run: cpu, cuda, cuda:1, ..."""
    out: str
    """Folder for the pictures, grid.png and samples.json; made where missing. Files of the same names are replaced,
    others stay."""

    @model_validator(mode="after")
    def _check_reranker(self) -> "SampleConfig":
        if self.rerank > 1 and self.reranker is None:
            raise ValueError(
                f"rerank is {self.rerank} and nothing chooses among the candidates; give --reranker FOLDER"
            )
        if self.rerank == 1 and self.reranker is not None:
            raise ValueError("reranker is given and there is one candidate to choose from; give --rerank COUNT too")
        return self


def resolve(
    prompts: list[str],
    prompts_file: str | None,
    device: str | None,
    sampling: dict[str, int | float | None],
    **given: Any,
) -> SampleConfig:
    """Options as they were typed -> complete settings; None and what is not given take their defaults.

    `sampling` overrides what the model folder recommends. Raises ConfigError or ModelFolderError: one line.
    """
    for name, meaning in (("model", "the folder of a stage-2 run"), ("out", "the folder that gets the pictures")):
        if given.get(name) is None:
            raise ConfigError(f"--{name} is missing: {meaning}")
    prompts = prompts + (read_prompts(prompts_file) if prompts_file is not None else [])
    if not prompts:
        raise ConfigError("no prompt: give --prompt TEXT, as often as you like, or --prompts-file FILE")
    if not all(prompt.strip() for prompt in prompts):
        raise ConfigError("a prompt is blank; give some text after --prompt")
    values = {name: value for name, value in given.items() if value is not None}
    values |= {"prompts": prompts, "device": usable_device(device)}
    values["sampling"] = recommended_sampling(given["model"]).overridden(**sampling).model_dump()
    return validate(SampleConfig, values, "command line")


def read_prompts(path: str) -> list[str]:
    """One prompt a line, blank lines skipped. Raises ConfigError: no such file, not UTF-8, or no prompt in it."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ConfigError(f"prompts file {path!r} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"prompts file {path!r} is not text in UTF-8") from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ConfigError(f"prompts file {path!r} is empty; write one prompt a line")
    return prompts


def usable_device(name: str | None) -> str:
    """`name`, or the best device where it is None. Raises ConfigError for one that this machine does not have."""
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name, dtype=torch.float64)  # codes are drawn in float64, which not every device has
    except (RuntimeError, AssertionError, TypeError) as error:  # torch asserts that it was built with CUDA
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"--device {name} cannot be used here: {reason[:200]}; cpu always can") from None
    return name


def write_samples(config: SampleConfig, progress: bool = False) -> list[dict[str, Any]]:
    """Draw, and write each picture as soon as it is there. Returns what samples.json holds.

    A prompt that is longer than the model reads gives a line on standard error.
    Raises ModelFolderError for a folder without a stage-2 model, a reranker or an upsampler, ConfigError when
    `config.out` cannot be written.
    """
    model = TextToImage.from_pretrained(config.model).to(config.device)
    scorer = None
    if config.reranker is not None:
        scorer = Scorer.from_pretrained(config.reranker).to(config.device)
    upsampler = None
    if config.upsample is not None:
        upsampler = Upsampler.from_pretrained(config.upsample).to(config.device)
    # Candidate j of picture i has seed + i * rerank + j.
    wanted = [(prompt, config.seed + i * config.rerank) for prompt in config.prompts for i in range(config.n)]
    for prompt, cut in zip(config.prompts, model.text_tokenizer.is_cut(config.prompts), strict=True):
        if cut:
            length = model.text_tokenizer.length
            sys.stderr.write(f"note: the model reads {length} tokens; the end of this prompt is not seen: {prompt}\n")
    folder = Path(config.out)
    records: list[dict[str, Any]] = []
    shown: list[Image.Image] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for index, (drawn, score) in enumerate(_pictures(model, scorer, wanted, config, progress)):
            name = f"{index // config.n:04d}-{index % config.n:02d}.png"
            image = drawn.image
            record: dict[str, Any] = {"file": name, "prompt": drawn.prompt, "seed": drawn.seed}
            record["settings"] = config.sampling.model_dump(mode="json")
            if score is not None:
                record["rerank"] = {"model": config.reranker, "candidates": config.rerank, "score": score}
            if upsampler is not None:
                image = upsampler.enlarge(image)
                record["upsample"] = {"model": config.upsample, "scale": upsampler.config.scale}
            image.save(folder / name)
            records.append(record)
            if len(shown) < _GRID_PICTURES:
                shown.append(image)
        captions = [record["prompt"] for record in records[: len(shown)]]
        # A row a prompt, where that makes a sheet of a usual shape.
        columns = config.n if 2 <= config.n <= _GRID_COLUMNS else _GRID_COLUMNS
        contact_sheet(shown, captions, columns=columns).save(folder / "grid.png")
        text = json.dumps(records, indent=2, ensure_ascii=False) + "\n"
        (folder / "samples.json").write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write to {config.out!r}: {error.strerror or error}") from None
    return records


def _pictures(
    model: TextToImage, scorer: Scorer | None, wanted: Sequence[tuple[str, int]], config: SampleConfig, progress: bool
) -> Iterator[tuple[Drawn, float | None]]:
    """Each picture; with a reranker the best candidate, which has a score and a seed of its own."""
    if scorer is None:
        for drawn in model.stream(wanted, config.sampling, batch_size=config.batch_size, progress=progress):
            yield drawn, None
        return
    settings, size = config.sampling, config.batch_size
    for kept in draw_best(model, scorer, wanted, config.rerank, settings, batch_size=size, progress=progress):
        yield kept.drawn, kept.score
