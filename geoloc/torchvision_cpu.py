"""Make `import torchvision` work beside a CPU build of torch; the one module that knows the trap.

torchvision's default Linux wheel is built for CUDA. Its native library needs libtorch_cuda.so, so beside a
CPU torch it does not load, its operators are never registered, and `import torchvision` dies with
`RuntimeError: operator torchvision::nms does not exist`. It takes open_clip, timm, lightning and torchmetrics
down with it, for they all import torchvision. Yet nothing of ours calls a native operator of torchvision: the
import only wants to know their schemas. So we declare the two that it asks for.

Call `ensure_importable()` before the first import of any of those packages. With a matching torchvision (CPU
or CUDA) it does nothing. Whoever imports, say, lightning before geoloc on a mismatched installation still
meets the error: no code of ours has run by then.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Any

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

_library: Any = None  # torch forgets the schemas when their Library is collected


def ensure_importable() -> None:
    """Declare torchvision's operators where its own native library cannot; imports torch, not torchvision.

    Afterwards transforms, open_clip, timm, lightning and torchmetrics import and run. Where the schemas had
    to be declared, `torchvision.ops.nms` still raises torchvision's own RuntimeError when it is called.
    """
    global _library
    if _library is not None or "torchvision" in sys.modules:
        return
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return

    import torch

    if torch.version.cuda is not None:
        return
    for native in sorted(Path(spec.origin).parent.glob("_C*.so")):
        try:
            torch.ops.load_library(native)
        except OSError:
            continue  # built for another torch: libtorch_cuda.so is missing, or a symbol is
        return  # the operators are real
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        _library.define(schema)
