"""Lets torchvision be imported beside a torch that its compiled library was not built for.

The wheel on PyPI is built for CUDA. Beside a CPU build of torch its library cannot be loaded, and
``import torchvision`` ends with ``operator torchvision::nms does not exist``: a fake implementation
is registered for an operator that nobody has defined. Import this module first::

    import torchvision_on_cpu  # noqa: F401
    import torchvision

Where torchvision's own library loads, or torchvision is missing, nothing happens. Otherwise the
operators that torchvision expects at import are declared, and non-maximum suppression is
implemented for the CPU, so that its detection models run (RoI align has a fallback of torchvision's
own). Everything else that needs the library still raises.
"""

from __future__ import annotations

import importlib
import importlib.util
import pathlib
import sys

import numpy as np
import torch
from torch import Tensor

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_ROWS = 256  # of boxes that are compared with all at once


def nms(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Non-maximum suppression: indices of the boxes that stay, best score first.

    Args:
        dets (Tensor[N, 4]): boxes as x1, y1, x2, y2.
        scores (Tensor[N]): their scores.
        iou_threshold: a box goes if its overlap with a better one that stays is larger than this.

    Returns:
        Tensor[K]: int64.
    """
    order = scores.argsort(descending=True, stable=True)
    x1, y1, x2, y2 = dets[order].unbind(1)
    area = (x2 - x1) * (y2 - y1)
    alive = np.ones(len(order), np.bool_)
    kept = []
    for first in range(0, len(order), _ROWS):
        rows = first + alive[first : first + _ROWS].nonzero()[0]
        chosen = torch.from_numpy(rows)[:, None]
        width = (torch.minimum(x2[chosen], x2) - torch.maximum(x1[chosen], x1)).clamp_(min=0)
        height = (torch.minimum(y2[chosen], y2) - torch.maximum(y1[chosen], y1)).clamp_(min=0)
        overlap = width * height
        beside = (overlap <= iou_threshold * (area[chosen] + area - overlap)).numpy()
        for i, others in zip(rows.tolist(), beside, strict=True):
            if alive[i]:
                kept.append(i)
                alive &= others
    return order[torch.tensor(kept, dtype=torch.int64)]


def _assert_has_ops() -> None:
    # A plain function, because torchvision's nms is scripted through it.
    pass


def _library_loads(package: pathlib.Path) -> bool:
    for path in (*package.glob("_C*.so"), *package.glob("_C*.pyd")):
        try:
            torch.ops.load_library(str(path))
        except OSError:
            continue
        return True
    return False


def install() -> torch.library.Library | None:
    """Declares the operators and imports torchvision, if its own library cannot be loaded.

    Returns:
        The library of the declared operators, which live as long as it does; None if torchvision is
        missing, was imported already, or needs no help.
    """
    if "torchvision" in sys.modules:
        return None
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or _library_loads(pathlib.Path(spec.origin).parent):
        return None
    library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        library.define(schema)
    library.impl("nms", nms, "CPU")
    # Of the module with the box functions only: elsewhere the check selects fallbacks.
    boxes = importlib.import_module("torchvision.ops.boxes")
    boxes._assert_has_ops = _assert_has_ops
    return library


LIBRARY = install()
ACTIVE = LIBRARY is not None
