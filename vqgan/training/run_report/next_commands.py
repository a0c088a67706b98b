"""The commands to type next, by what a run has trained."""

import shlex
from typing import Any, NamedTuple

from vqgan.config.fields import default_of
from vqgan.config.schema import Config
from vqgan.config.yaml_dialect import dump
from vqgan.training.run_report.recorded_run import RecordedRun


class NextCommand(NamedTuple):
    """A command, and what it does."""

    what: str
    command: str


_EVALUATE = NextCommand(
    "Measure it, every metric with its protocol", "parti evaluate --model {run} --out {out}/metrics.json"
)
_SAMPLE = NextCommand(
    "Draw images of a prompt", 'parti sample --model {run} --prompt "your prompt" --n 4 --out {out}/samples'
)
_BY_OBJECTIVE: dict[str, list[NextCommand]] = {
    "image_tokenizer": [
        _EVALUATE,
        NextCommand(
            "Train a text-to-image model over its codes, on the same images with captions",
            "parti train --config parti/shapes --run_dir {run}-parti --image_tokenizer {run} --data.source {source} "
            "--data.transform.image_size {size}",
        ),
        NextCommand(
            "Or encode the data set once before, so that stage 2 trains without the image tokenizer",
            "parti encode-dataset --tokenizer {run} --out {out}/codes --data.source {source} "
            "--data.transform.image_size {size}",
        ),
    ],
    "next_token": [_SAMPLE, _EVALUATE],
    "fused_synthesis": [_SAMPLE, _EVALUATE],
    "fused_captioning": [NextCommand("Caption an image", "parti caption --model {run} image.png"), _EVALUATE],
    "fused_inpainting": [
        NextCommand("See which options complete an image and its caption", "parti inpaint --help"),
        _EVALUATE,
    ],
    "mae": [_EVALUATE],
    "simmim": [_EVALUATE],
    "beit": [_EVALUATE],
    "mpp": [_EVALUATE],
    "reranker": [
        NextCommand(
            "Draw with it: the best of 8 for every image",
            'parti sample --model STAGE_2_RUN --reranker {run} --rerank 8 --prompt "your prompt" --out {out}/samples',
        )
    ],
    "text_encoder": [
        NextCommand(
            "Train a text-to-image model that starts from it",
            "parti train --config parti/shapes --run_dir {run}-parti --image_tokenizer STAGE_1_RUN --text.kind saved "
            "--text.folder {run} --model.text_encoder.kind trained --model.text_encoder.start {run}",
        )
    ],
    "upsampler": [
        NextCommand(
            "Draw enlarged images",
            'parti sample --model STAGE_2_RUN --upsample {run} --prompt "your prompt" --out {out}/samples',
        )
    ],
}


def next_commands(run: RecordedRun) -> list[NextCommand]:
    """What to type next; of a run that is not complete first what goes on with it."""
    folder = str(run.folder)
    values = {
        "run": shlex.quote(folder),
        "out": shlex.quote(f"{folder}-out"),
        "source": shlex.quote(_source(run)),
        "size": str(run.setting("data.transform.image_size")),
    }
    commands = [NextCommand(each.what, each.command.format(**values)) for each in _BY_OBJECTIVE.get(run.objective, [])]
    if run.steps and run.done < run.steps:
        config = shlex.quote(str(run.folder / "config.yaml"))
        commands.insert(0, NextCommand("Go on from the last checkpoint", f"parti train --config {config}"))
    return commands


def _source(run: RecordedRun) -> str:
    """The run's data.source as a value of an option, without what is at its default."""
    source: Any = getattr(getattr(run.config, "data", None), "source", None)
    if not isinstance(source, Config):
        return "{kind: folder, path: IMAGES}"
    chosen = {
        name: value
        for name, value in source.model_dump(mode="json").items()
        if name == "kind" or getattr(source, name) != default_of(type(source).model_fields[name])
    }
    return dump(chosen, default_flow_style=True, width=10**9, sort_keys=False).strip()
