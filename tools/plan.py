"""What a run will need: the command `parti plan`."""

import sys

from parti.cli.plan import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
