"""Makes `import torchvision` work beside a CPU build of torch, whose missing CUDA libraries break its extension."""

from __future__ import annotations

import importlib
import sys

# The two operators that torchvision registers fake kernels for without checking that its extension was loaded.
_OPERATORS = ("torchvision::nms", "torchvision::qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def ensure_torchvision() -> None:
    """Import torchvision; on the known failure declare its two operators and import again.

    Call it before anything imports open_clip or timm. Transforms work afterwards; `torchvision.ops.nms` and
    `torchvision.io` stay unusable where the extension cannot load, so images are decoded with Pillow.

    Raises:
        ImportError: torchvision is not installed.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]  # half imported
        _declare_operators()
        importlib.import_module("torchvision")


def _declare_operators() -> None:
    import torch

    for operator in _OPERATORS:
        # `define` opens a fragment, which leaves the single definition of the namespace to the real extension.
        torch.library.define(operator, _SCHEMA)
