"""Measure a trained model: every figure with the protocol that it was measured by.

python tools/evaluate.py tokenizer --model runs/vqgan-shapes --out metrics.json [--section.field value ...]

tokenizer: PSNR, SSIM, LPIPS, rFID, inception score, codebook usage, perplexity and entropy, dead codes, and images/s,
on the pictures of the run that the model comes from, or on others: --data.source '{kind: folder, path: pictures}'.
Where weights of a feature network are not there, its figures are null and say what to fetch.
"""

import sys

from vqgan.command_line import USER_ERRORS, print_error, print_out
from vqgan.config import ConfigError, dump_config, format_help
from vqgan.evaluation import TokenizerEvaluationConfig, load_evaluation, measure_tokenizer, write_report

WORDS = """\
  --print-config   print the resolved configuration and stop
  --help           this text"""


def main(argv: list[str]) -> int:
    if "--help" in argv or "-h" in argv:
        print_out(f"{(__doc__ or '').strip()}\n\n{WORDS}\n\n{format_help(TokenizerEvaluationConfig)}")
        return 0
    try:
        if argv[:1] != ["tokenizer"]:
            given = f"received {argv[0]!r}" if argv else "nothing was given"
            raise ConfigError(f"the first word says what to evaluate: tokenizer; {given}")
        words = [word for word in argv[1:] if word != "--print-config"]
        config = load_evaluation(words)
        if len(words) < len(argv) - 1:
            print_out(dump_config(config).rstrip())
            return 0
        report = measure_tokenizer(config, progress=True)
        write_report(report, config.out)
        print_out(f"{report.text()}\n\n{config.out} holds every figure with its protocol")
        return 0
    except USER_ERRORS as error:
        print_error(error)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
