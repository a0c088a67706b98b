"""Draw images of prompts with a trained text-to-image model.

parti sample --model runs/parti-shapes --prompt "a small red circle above a large blue square" --out out

Writes OUT/0000-00.png (number of the prompt, number of the sample), OUT/grid.png with captions, and OUT/samples.json
(file, prompt, seed and settings of each). An image depends on model, prompt, seed and settings alone, and on the
upsampler where one is given. With --rerank K it is the best of K by --reranker, and the seed is the one that won.
With --image FILE and --keep-top SHARE or --mask FILE images are completed; OUT/given.png shows what is given.
With --image-tokenizer the codes are decoded by another tokenizer that has the same: the larger decoder of the second
phase.
A model that draws at several scales at once (fused_synthesis) draws its largest, with --all-scales all side by side.

--prompt is given as often as wanted, each as it stands; --prompts-file FILE holds more, one a line. How codes are drawn
(--guidance-scale, --temperature, ...) is as the model recommends, where it is not given.
"""

from collections.abc import Sequence
from pathlib import Path

from parti.open_pipeline import StoredPipeline
from parti.sample_files import SampleConfig, load_sample_config, shortcuts, write_samples
from vqgan.cli.command_line import Command, print_out, run_command
from vqgan.cli.exit_codes import ExitCode
from vqgan.config.options import Option


def main(argv: Sequence[str]) -> int:
    """Draws, and returns the exit code."""
    found: list[StoredPipeline] = []

    def load(_: Path | None, options: list[Option]) -> SampleConfig:
        config, stored = load_sample_config(options)
        found.append(stored)
        return config

    def sample(config: SampleConfig) -> int:
        records = write_samples(config, found[0], progress=True)
        print_out(f"{len(records)} images in {config.out}, all on one sheet in {config.out}/grid.png")
        return ExitCode.DONE

    return run_command(argv, Command(SampleConfig, sample, __doc__, load, shortcuts(), has_file=False))
