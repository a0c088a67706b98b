"""Complete an image and its caption with a fused inpainting model: holes by the caption, words by the image.

parti inpaint --model runs/fused-inpainting-shapes --image image.png --mask mask.png \\
    --caption "a small [MASK] circle above a large blue square" --out out

Prints the caption with the words that were filled in brackets; writes OUT/completed.png, and OUT/sheet.png with what
was given, the mask and the result.
"""

from collections.abc import Sequence

from parti.fused.inpainting.files import InpaintConfig, inpaint
from vqgan.cli.command_line import Command, print_out, run_command
from vqgan.cli.exit_codes import ExitCode


def main(argv: Sequence[str]) -> int:
    """Completes, and returns the exit code."""
    return run_command(argv, Command(InpaintConfig, _inpaint, __doc__, has_file=False))


def _inpaint(config: InpaintConfig) -> int:
    print_out(inpaint(config).caption)
    return ExitCode.DONE
