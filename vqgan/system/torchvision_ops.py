"""Make `import torchvision` (and so timm and lpips) work where its compiled operators cannot be loaded.

torchvision's CUDA wheel on a CPU build of torch cannot load its shared library. It swallows that, then fails with
"operator torchvision::nms does not exist" because it registers shape functions for operators that were never
declared. Nothing here needs those operators; declaring their schemas is enough. `vqgan/__init__.py` has that done right
before torchvision is first imported, and nobody else needs to know. Where the library loads, nothing is done.

Programs of others stumble too: the `accelerate` command imports timm before it does anything. So

    python -m vqgan.system.torchvision_ops

repairs a broken environment for every program in it, by a copy of this file in its site-packages that a .pth file
starts; a sound one is left as it is. `make` does this.
"""

import importlib.util
import shutil
import sys
import sysconfig
from importlib.abc import MetaPathFinder
from pathlib import Path

_SCHEMAS = {
    "torchvision::nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "torchvision::qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

_STARTUP_MODULE = "_torchvision_ops"
_STARTUP_LINE = f"import {_STARTUP_MODULE}; {_STARTUP_MODULE}.declare_on_import()\n"


def declare_missing_torchvision_ops() -> bool:
    """Declares torchvision's operator schemas if its library cannot be loaded; returns whether it cannot."""
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
    """Finds nothing; declares the schemas when torchvision is first looked for, once."""

    def find_spec(self, name: str, _path: object, _target: object = None) -> None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            declare_missing_torchvision_ops()


def declare_on_import() -> None:
    """Has missing schemas declared as soon as anything imports torchvision; costs nothing until then."""
    if "torchvision" not in sys.modules:
        sys.meta_path.insert(0, _BeforeTorchvision())


def repair_environment(site_packages: Path) -> bool:
    """Writes both start-up files into `site_packages` if torchvision needs them there; returns whether it does."""
    needed = declare_missing_torchvision_ops()
    if needed:
        shutil.copyfile(__file__, site_packages / f"{_STARTUP_MODULE}.py")
        (site_packages / f"{_STARTUP_MODULE}.pth").write_text(_STARTUP_LINE, encoding="utf-8")
    return needed


if __name__ == "__main__":
    repaired = repair_environment(Path(sysconfig.get_path("purelib")))
    done = f"wrote {_STARTUP_MODULE}.pth into site-packages" if repaired else "nothing to do"
    sys.stdout.write(f"torchvision's operators {'cannot be loaded' if repaired else 'load'}: {done}\n")
