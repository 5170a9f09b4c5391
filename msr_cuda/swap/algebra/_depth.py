"""The fusion layers of DPT and its descendants in transformers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ... import functional
from .._hooks import has_hooks
from ._pointwise import pointwise_reasons, resample_projected


def projection_reasons(module: Any) -> list[str]:
    """Why the projection has to stay behind the resampling."""
    reasons = pointwise_reasons(module.projection, "projection")
    if has_hooks(module.projection):
        reasons.append("a hook on projection would see another map than now")
    return reasons


def fuse_levels(
    module: Any,
    hidden_state: Tensor,
    residual: Tensor | None,
    size: Any = None,
    *,
    align_corners: bool,
    prompt_depth: Tensor | None = None,
) -> Tensor:
    """The forward of a fusion layer, with the projection before the resampling.

    What else is resampled goes through convolutions before it is added, and only where its shape
    differs: there is nothing to fuse it with.
    """

    def resized(x: Tensor, like: Tensor) -> Tensor:
        return functional.resample(x, like.shape[2:], mode="bilinear", align_corners=False)

    if residual is not None:
        if hidden_state.shape != residual.shape:
            residual = resized(residual, hidden_state)
        hidden_state = hidden_state + module.residual_layer1(residual)
    hidden_state = module.residual_layer2(hidden_state)
    if prompt_depth is not None:
        hidden_state = hidden_state + module.prompt_depth_layer(resized(prompt_depth, hidden_state))
    return resample_projected(
        module.projection,
        hidden_state,
        size=size,
        scale_factor=2 if size is None else None,
        mode="bilinear",
        align_corners=align_corners,
    )
