"""Complete an image and its caption: the command `parti inpaint`."""

import sys

from parti.cli.inpaint import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
