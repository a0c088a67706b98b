"""Write an image tokenizer or an encoder for another project: the command `parti export-checkpoint`."""

import sys

from parti.cli.export_checkpoint import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
