"""How the threads of OpenMP wait for one another; set before torch loads, by importing either package.

Importing does nothing elsewhere in this project. Here it must: the runtime that torch links reads the environment
once, when it is loaded, and no call changes it afterwards. By default a thread that waits at the end of a parallel
loop spins for about a millisecond or more. Where another process needs a core, the thread that is waited for has none
while the other burns it, at each of the hundreds of such ends in a training step: two cores and one busy process are
enough to make a run several times slower (benchmarks/busy_machine.py). Threads that soon sleep leave the core to
others.

The variables are those of GNU's runtime, which torch's own wheels for Linux bring (GOMP_SPINCOUNT: turns before a
thread sleeps), and of LLVM's and Intel's, as in conda's builds and on macOS (KMP_BLOCKTIME: milliseconds). A user's
own setting wins. Where torch was imported first, nothing can be done and nothing is: the processes that are started
from here on would otherwise behave in another way than this one.
"""

import os
import sys
from collections.abc import Collection, MutableMapping

SHORT_WAIT = {"GOMP_SPINCOUNT": "2000", "KMP_BLOCKTIME": "0"}
"""What makes threads sleep soon while they wait. Not at once: on an idle machine a sleeping thread is woken too late,
which cost a quarter of the speed; 2,000 turns are some microseconds."""

_OF_A_USER = (*SHORT_WAIT, "OMP_WAIT_POLICY", "KMP_LIBRARY")


def wait_asleep(environment: MutableMapping[str, str], loaded: Collection[str]) -> bool:
    """Have OpenMP's threads sleep soon where nobody said how they should wait; `loaded` are imported modules.

    True where that takes effect.
    """
    if "torch" in loaded or any(name in environment for name in _OF_A_USER):
        return False
    environment.update(SHORT_WAIT)
    return True


wait_asleep(os.environ, sys.modules)
