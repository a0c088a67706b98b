"""Runs on a page: the command `parti report`."""

import sys

from parti.cli.report import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
