"""mmcv: the cells of NAS-FPN and NAS-FCOS, which merge two maps. The forward is that of 2.1."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import functional
from ..._pool import Pool
from .._rewrite import Rewrites

REWRITES = Rewrites(__name__)
__getattr__ = REWRITES.find


def source(cell: Any, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, str | Pool]:
    """What ``cell._resize(x, size)`` reads, and how.

    A larger map is padded with zeros, around it, to a multiple of the size, and max-pooled.
    """
    if x.shape[-2:] <= size:
        return x, cell.upsample_mode
    windows = [math.ceil(n / m) for n, m in zip(x.shape[-2:], size, strict=True)]
    missing = [k * m - n for k, m, n in zip(windows, size, x.shape[-2:], strict=True)]
    if any(missing):
        rows, columns = missing
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
    return x, Pool("max", tuple(windows))


def summed(cell: Any, x1: Tensor, x2: Tensor, size: tuple[int, int]) -> Tensor:
    """A ``SumCell`` between its convolutions."""
    (x1, mode1), (x2, mode2) = source(cell, x1, size), source(cell, x2, size)
    return functional.resample_sum([x1, x2], size, mode=[mode1, mode2])


def concatenated(cell: Any, x1: Tensor, x2: Tensor, size: tuple[int, int]) -> Tensor:
    """A ``ConcatCell`` between its convolutions."""
    (x1, mode1), (x2, mode2) = source(cell, x1, size), source(cell, x2, size)
    return functional.resample_cat([x1, x2], size, mode=[mode1, mode2])


def gated_sum(cell: Any, x1: Tensor, x2: Tensor, size: tuple[int, int]) -> Tensor:
    """A ``GlobalPoolingCell`` between its convolutions: the mean of one map gates the other."""
    x2 = cell._resize(x2, size)
    gate = cell.global_pool(x2).sigmoid().flatten(2).transpose(1, 2)
    x1, mode = source(cell, x1, size)
    return functional.resample_sum(
        [x2, x1],
        size,
        weights=torch.cat([torch.ones_like(gate), gate], 1),
        mode=[cell.upsample_mode, mode],
    )


for _cell, _operator, _binary_op, _summary in (
    ("SumCell", "summed", "35c5b2542abe80d2", "Resampling and sum in one pass."),
    (
        "ConcatCell",
        "concatenated",
        "236bac727084ba83",
        "Resampling straight into the concatenation.",
    ),
    ("GlobalPoolingCell", "gated_sum", "6e60a38de568a03d", "Resampling, gate and sum at once."),
):
    REWRITES.add(
        f"mmcv.ops.merge_cells:{_cell}",
        fingerprints=["f1758e1b6eddeace"],
        methods={"_resize": ["4822266f0ad78777"], "_binary_op": [_binary_op]},
        summary=_summary,
        edits={
            "x1 = self._resize(x1, out_size)\n"
            "x2 = self._resize(x2, out_size)\n"
            "x = self._binary_op(x1, x2)": f"x = recipe.{_operator}(self, x1, x2, out_size)"
        },
    )
