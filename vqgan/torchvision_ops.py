"""Make `import torchvision` (and so timm and lpips) work where its compiled operators cannot be loaded.

torchvision's CUDA wheel on a CPU build of torch cannot load its shared library. It swallows that, then fails with
"operator torchvision::nms does not exist" because it registers shape functions for operators that were never
declared. Nothing here needs those operators; declaring their schemas is enough. Where the library loads, nothing
is done.
"""

import functools
import importlib.util
from pathlib import Path

import torch

_SCHEMAS = {
    "torchvision::nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "torchvision::qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


@functools.cache
def declare_missing_torchvision_ops() -> bool:
    """Declare torchvision's operator schemas if its library cannot be loaded; True if they had to be declared.

    Call before the first import of torchvision, timm or lpips. Safe to call again.
    """
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
        torch.library.define(name, schema)
    return True
