"""Check a data set before training: the command `parti check-data`."""

import sys

from parti.cli.check_data import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
