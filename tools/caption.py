"""Tell what images show: the command `parti caption`."""

import sys

from parti.cli.caption import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
