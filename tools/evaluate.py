"""Measure a trained model: every metric with the protocol that it was measured by.

python tools/evaluate.py tokenizer --model runs/vqgan-shapes --out metrics.json [--section.field value ...]
python tools/evaluate.py generator --model runs/parti-shapes --out metrics.json [--section.field value ...]
python tools/evaluate.py captioner --model runs/fused-captioning-shapes --out metrics.json [--section.field value ...]
python tools/evaluate.py inpainter --model runs/fused-inpainting-shapes --out metrics.json [--section.field value ...]

tokenizer: PSNR, SSIM, LPIPS, rFID, inception score, codebook usage, perplexity and entropy, dead codes, and images/s,
on the images of the run that the model comes from, or on others: --data.source '{kind: folder, path: images}'.
generator: nats per image code on validation pairs of the run, or of others likewise; images generated for their
captions: prompt accuracy where a judge is known, FID, inception score, CLIP score (--clip NAME); with --partiprompts
FILE (PartiPrompts.tsv) images, a sheet a category, and CLIP scores by category and challenge. A model that draws in one
pass (fused_synthesis) has all of it but the nats. captioner: right captions behind each row and round where a judge is
known, nats a word, BLEU, CIDEr, METEOR. inpainter: holes filled with the right and a wrong caption, words told with and
without the image. Where weights of a feature network are not there, its metrics are null and say what to fetch.
"""

import difflib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from parti.evaluation import fused_pairs, generator
from vqgan import evaluation as tokenizer
from vqgan.cli.command_line import print_error, print_out
from vqgan.cli.console import command
from vqgan.config.schema import Config, ConfigError, dump_config, format_help
from vqgan.errors import UserError
from vqgan.metrics.report import MetricsReport, write_report


class Evaluation(NamedTuple):
    """What a first word stands for."""

    config_type: type[Config]
    load: Callable[[Sequence[str]], Any]
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
}
WORDS = """\
  --print-config   print the resolved configuration and stop
  --help           this text; after one of the four words only its own settings"""


@command
def main(argv: list[str]) -> int:
    if "--help" in argv or "-h" in argv:
        names = [word for word in argv[:1] if word in EVALUATIONS] or list(EVALUATIONS)
        helps = [f"evaluate.py {name}\n\n{format_help(EVALUATIONS[name].config_type)}" for name in names]
        print_out("\n\n".join([(__doc__ or "").strip(), WORDS, *helps]))
        return 0
    try:
        evaluation = chosen(argv)
        words = [word for word in argv[1:] if word != "--print-config"]
        config = evaluation.load(words)
        if len(words) < len(argv) - 1:
            print_out(dump_config(config).rstrip())
            return 0
        report = evaluation.measure(config, True)
        write_report(report, config.out)
        print_out(f"{report.text()}\n\n{config.out} holds every metric with its protocol")
        return 0
    except UserError as error:
        print_error(error)
        return 2


def chosen(argv: Sequence[str]) -> Evaluation:
    """Returns what the first word names. Raises ConfigError for another, with the nearest valid one."""
    if argv and argv[0] in EVALUATIONS:
        return EVALUATIONS[argv[0]]
    given = f"received {argv[0]!r}" if argv else "nothing was given"
    nearest = difflib.get_close_matches(argv[0], EVALUATIONS, 1) if argv else []
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    raise ConfigError(f"the first word says what to evaluate: {', '.join(EVALUATIONS)}; {given}{hint}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
