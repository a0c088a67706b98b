"""What test_rank_zero_first.py starts twice. Arguments: a folder, what the first process does: works, fails, hangs."""

import os
import sys
import time
from pathlib import Path

from vqgan.training.parallel import rank_zero_first as first_process
from vqgan.training.parallel.distributed import RankFailure, build_accelerator
from vqgan.training.parallel.rank_zero_first import first_process_alone

SECONDS = 3.0
"""After which an exchange between the processes gives up."""


def main(folder: Path, fate: str) -> None:
    first_process._BEAT = 60.0 if fate == "hangs" else 0.2
    accelerator = build_accelerator(SECONDS / 60)
    try:
        with first_process_alone(accelerator, folder, SECONDS / 60) as to_be_made:
            if to_be_made:
                time.sleep(0.5 if fate == "fails" else 2 * SECONDS)
                if fate == "fails":
                    raise ZeroDivisionError("of the work itself")
                (folder / "made").write_text("by the first")
        said = (folder / "made").read_text()
    except RankFailure as lost:
        said = str(lost)
    except ZeroDivisionError as error:
        said = str(error)
    (folder / f"said-{os.environ['RANK']}.txt").write_text(said)
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
