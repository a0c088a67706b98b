"""Make `import torchvision` (and so timm and lpips) work where its compiled operators cannot be loaded.

torchvision's CUDA wheel on a CPU build of torch cannot load its shared library. It swallows that, then fails with
"operator torchvision::nms does not exist" because it registers shape functions for operators that were never
declared. Nothing here needs those operators; declaring their schemas is enough. Where the library loads, nothing
is done.

Programs of others stumble too: the `accelerate` command imports timm before it does anything. So

    python -m vqgan.system.torchvision_ops

repairs an environment for good, if it needs it: a copy of this file in its site-packages, started by a .pth file, lets
every interpreter declare the schemas right before torchvision is first imported. `make` does this.
"""

import functools
import importlib.util
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType

_SCHEMAS = {
    "torchvision::nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "torchvision::qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

_STARTUP_MODULE = "_torchvision_ops"
_STARTUP_LINE = f"import {_STARTUP_MODULE}; {_STARTUP_MODULE}.declare_on_import()\n"


@functools.cache
def declare_missing_torchvision_ops() -> bool:
    """Declare torchvision's operator schemas if its library cannot be loaded; True if it cannot.

    Call before the first import of torchvision, timm or lpips. Safe to call again.
    """
    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return False
    for library in Path(spec.submodule_search_locations[0]).glob("_C*.so"):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            break
        return False
    for name, schema in _SCHEMAS.items():
        # The start-up copy of this module may have been here before.
        if not hasattr(torch.ops.torchvision, name.removeprefix("torchvision::")):
            torch.library.define(name, schema)
    return True


class _BeforeTorchvision(MetaPathFinder):
    """Finds nothing; declares the schemas when torchvision is first looked for."""

    def find_spec(self, name: str, _path: Sequence[str] | None, _target: ModuleType | None = None) -> None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            declare_missing_torchvision_ops()


def declare_on_import() -> None:
    """Declare missing schemas as soon as anything imports torchvision; costs nothing until then."""
    sys.meta_path.insert(0, _BeforeTorchvision())


def repair_environment(site_packages: Path) -> bool:
    """Write both start-up files into `site_packages` if torchvision needs them there; True if it does."""
    needed = declare_missing_torchvision_ops()
    if needed:
        shutil.copyfile(__file__, site_packages / f"{_STARTUP_MODULE}.py")
        (site_packages / f"{_STARTUP_MODULE}.pth").write_text(_STARTUP_LINE, encoding="utf-8")
    return needed


if __name__ == "__main__":
    repaired = repair_environment(Path(sysconfig.get_path("purelib")))
    done = f"wrote {_STARTUP_MODULE}.pth into site-packages" if repaired else "nothing to do"
    sys.stdout.write(f"torchvision's operators {'cannot be loaded' if repaired else 'load'}: {done}\n")
