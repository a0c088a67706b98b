"""Measure a trained model: the command `parti evaluate`."""

import sys

from parti.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
