"""Atrous spatial pyramid pooling, which torchvision and segmentation_models_pytorch share."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor, nn

from .._hooks import has_hooks
from .._source import fingerprint
from ._pointwise import is_plain, pointwise_reasons, project


def aspp_reasons(
    module: Any, pooling: type[nn.Module], forward_fingerprints: Collection[str]
) -> list[str]:
    """Why an ASPP module has to be left alone.

    Args:
        module: has ``convs``, the last of which pools, and ``project``.
        pooling: the class of that last one.
        forward_fingerprints: of the forward of ``pooling`` that this was written for.
    """
    branches, last = list(module.convs), module.convs[-1]
    reasons = []
    if len(branches) < 2 or type(last) is not pooling:
        reasons.append(f"its last branch is no {pooling.__name__}")
    elif fingerprint(pooling.forward) not in forward_fingerprints:
        reasons.append(f"{pooling.__name__}.forward is not one that this was written for")
    if len(module.project) < 3:
        return [*reasons, "project is no convolution, norm and activation"]
    return reasons + pointwise_reasons(module.project[0], "project.0")


def aspp_absorbed(module: Any) -> list[nn.Module]:
    """Modules that :func:`aspp_forward` does not call."""
    return [module.convs[-1], module.project, *list(module.project)[:3]]


def aspp_forward(module: Any, x: Tensor, original: Callable[[Tensor], Tensor]) -> Tensor:
    """The forward of an ASPP module; ``original``, where modules have changed since fusing."""
    *branches, pooling = module.convs
    conv, norm, activation, *rest = module.project
    if not is_plain(conv, norm) or has_hooks(pooling) or has_hooks(module.project):
        return original(x)
    maps = [branch(x) for branch in branches]
    pooled = x
    for layer in pooling:
        pooled = layer(pooled)
    y = project(
        conv, [*maps, pooled], maps[0].shape[2:], mode="bilinear", align_corners=False,
        norm=norm, activation=activation,
    )  # fmt: skip
    for layer in rest:
        y = layer(y)
    return y
