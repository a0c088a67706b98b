"""Tell what images show, with a captioner.

parti caption --model runs/fused-captioning-shapes image.png other.png --heatmaps looks

Prints each file with its caption. A draft is refined up to --refine times; --exit 7 or 11 tells earlier and faster.
With --heatmaps DIR, DIR/NAME.png shows where the model looked for each word.
"""

from collections.abc import Sequence

from parti.fused.captioning.files import CaptionConfig, caption_files
from vqgan.cli.command_line import Command, print_out, run_command
from vqgan.cli.exit_codes import ExitCode
from vqgan.config.options import Shortcuts


def main(argv: Sequence[str]) -> int:
    """Captions, and returns the exit code."""
    images = Shortcuts(one_by_one=("images",), words="images")
    return run_command(argv, Command(CaptionConfig, _caption, __doc__, shortcuts=images, has_file=False))


def _caption(config: CaptionConfig) -> int:
    for caption in caption_files(config):
        print_out(f"{caption.file}: {caption.text}")
    return ExitCode.DONE
