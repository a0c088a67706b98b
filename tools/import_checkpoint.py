"""Convert an image tokenizer of another project: the command `parti import-checkpoint`."""

import sys

from parti.cli.import_checkpoint import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
