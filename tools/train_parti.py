"""Train a text-to-image model (stage 2): a transformer on the codes of a trained image tokenizer.

accelerate launch tools/train_parti.py --config configs/parti/shapes.yaml [--section.field value ...]

A config whose `objective` is another (fused_inpainting, fused_captioning, fused_synthesis) trains that, with options of
its own: --help beside --config lists them.
"""

import sys
from functools import partial

from parti.cli import train
from parti.objectives import OBJECTIVES

OTHERS = {"image_tokenizer", "reranker", "text_encoder", "upsampler"}
"""Objectives with a tool of their own."""
CHOICES = [name for name in OBJECTIVES if name not in OTHERS]
main = partial(train.main, choices=CHOICES, about=__doc__)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
