"""Measure a trained model: every metric with the protocol that it was measured by.

parti evaluate --model runs/vqgan-shapes --out metrics.json [--section.field value ...]
parti evaluate tokenizer|generator|captioner|inpainter|encoder --model FOLDER --out metrics.json [--section.field ...]

Without the word, the objective of the run that the model comes from says which. --help behind it lists its settings.

tokenizer: PSNR, SSIM, LPIPS, rFID, inception score, codebook usage, perplexity and entropy, dead codes, and images/s,
on the images of the run that the model comes from, or on others: --data.source '{kind: folder, path: images}'.
generator: nats per image code on validation pairs of the run, or of others likewise; images generated for their
captions: prompt accuracy where a judge is known, FID, inception score, CLIP score (--clip NAME); with --partiprompts
FILE (PartiPrompts.tsv) images, a sheet a category, and CLIP scores by category and challenge. A model that draws in one
pass (fused_synthesis) has all of it but the nats. captioner: right captions behind each row and round where a judge is
known, nats a word, BLEU, CIDEr, METEOR. inpainter: holes filled with the right and a wrong caption, words told with and
without the image. encoder (masked image modeling): a linear probe and nearest neighbors on frozen features, beside the
same network before training and beside the image made small. Where weights of a feature network are not there, its
metrics are null and say what to fetch.
"""

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from parti.evaluation import encoder, fused_pairs, generator
from vqgan import evaluation as tokenizer
from vqgan.cli.command_line import Command, print_out, run_command
from vqgan.cli.exit_codes import ExitCode
from vqgan.config.options import Option
from vqgan.config.schema import Config, format_help, read_yaml
from vqgan.errors import ConfigError
from vqgan.metrics.report import MetricsReport, write_report
from vqgan.metrics.run_defaults import find_model


class Evaluation(NamedTuple):
    """What a first word stands for."""

    config_type: type[Config]
    load: Callable[[Sequence[Option]], Any]
    measure: Callable[[Any, bool], MetricsReport]


EVALUATIONS = {
    "tokenizer": Evaluation(
        tokenizer.TokenizerEvaluationConfig, tokenizer.load_evaluation, tokenizer.measure_tokenizer
    ),
    "generator": Evaluation(
        generator.GeneratorEvaluationConfig, generator.load_evaluation, generator.measure_generator
    ),
    "captioner": Evaluation(
        fused_pairs.CaptionerEvaluationConfig, fused_pairs.load_captioner_evaluation, fused_pairs.measure_captioner
    ),
    "inpainter": Evaluation(
        fused_pairs.InpainterEvaluationConfig, fused_pairs.load_inpainter_evaluation, fused_pairs.measure_inpainter
    ),
    "encoder": Evaluation(encoder.EncoderEvaluationConfig, encoder.load_evaluation, encoder.measure_encoder),
}
_OF_OBJECTIVE = {
    "image_tokenizer": "tokenizer",
    "next_token": "generator",
    "fused_synthesis": "generator",
    "fused_captioning": "captioner",
    "fused_inpainting": "inpainter",
    **dict.fromkeys(("mae", "simmim", "beit", "mpp"), "encoder"),
}


def main(argv: Sequence[str]) -> int:
    """Measures, and returns the exit code."""
    words = list(argv)
    word = words.pop(0) if words and not words[0].startswith("-") else None

    def choose(_: Path | None, options: list[Option]) -> Command:
        given = {option.name: option.word for option in options}
        if word is None and "help" in given:
            rest = "\n\n".join(f"{name}:\n\n{format_help(one.config_type)}" for name, one in EVALUATIONS.items())
            return _command(EVALUATIONS["tokenizer"], f"{__doc__}\n{rest}\n\nevery evaluation:")
        return _command(EVALUATIONS[_checked(word) if word is not None else _word_of_run(given.get("model"))], __doc__)

    return run_command(words, choose)


def _command(chosen: Evaluation, about: str | None) -> Command:
    def evaluate(config: Any) -> int:
        report = chosen.measure(config, True)
        write_report(report, config.out)
        print_out(f"{report.text()}\n\n{config.out} holds every metric with its protocol")
        return ExitCode.DONE

    return Command(chosen.config_type, evaluate, about, load=lambda _, options: chosen.load(options), has_file=False)


def _checked(word: str) -> str:
    """Raises ConfigError for a first word that names no evaluation, with the nearest that does."""
    if word in EVALUATIONS:
        return word
    nearest = difflib.get_close_matches(word, EVALUATIONS, 1)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    raise ConfigError(f"the first word says what to evaluate: {', '.join(EVALUATIONS)}; received {word!r}{hint}")


def _word_of_run(model: str | None) -> str:
    """By the objective of the run that the model comes from. Raises ConfigError where nothing tells it."""
    if model is None:
        raise ConfigError("--model is missing: the run folder or model folder to evaluate")
    folder, run_config = find_model(model)
    objective = None if run_config is None else read_yaml(run_config).get("objective")
    if objective not in _OF_OBJECTIVE:
        found = f"is of a run of {objective}" if objective else "is of no run that says its objective"
        raise ConfigError(f"{folder} {found}; say in the first word what to evaluate: {', '.join(EVALUATIONS)}")
    return _OF_OBJECTIVE[objective]
