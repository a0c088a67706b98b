"""Draw images of prompts: the command `parti sample`."""

import sys

from parti.cli.sample import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
