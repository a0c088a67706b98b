"""Train an upsampler, which enlarges what an image tokenizer decodes.

accelerate launch tools/train_upsampler.py --config configs/upsampler/shapes_2x.yaml [--section.field value ...]

Then: python tools/sample.py --model runs/parti-shapes --prompt "..." --upsample runs/upsampler-shapes --out out
"""

import sys
from functools import partial

from parti.cli import train

main = partial(train.main, choices=("upsampler",), about=__doc__)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
