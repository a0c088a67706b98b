"""Encode a data set once, for stage 2: the command `parti encode-dataset`."""

import sys

from parti.cli.encode_dataset import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
