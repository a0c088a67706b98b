"""Train both stages on embedded images, and show the result: the command `parti demo`."""

import sys

from parti.cli.demo import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
