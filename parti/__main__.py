"""`python -m parti`: the command line, for launchers (`accelerate launch -m parti train --config vqgan/shapes`)."""

import sys

from parti.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
