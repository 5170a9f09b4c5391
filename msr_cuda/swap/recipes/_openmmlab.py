"""What the libraries of OpenMMLab have copies of: pyramids, the necks of YOLO, and HRNet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from .._gather import MAX_MAPS
from .._glue import (
    Part,
    Upsampled,
    add,
    upsampled_by,
    upsampling_modules,
    upsampling_reasons,
)
from .._rewrite import Rewrites

SUMS = "Upsampling and lateral sum of each level in one pass."
CONCATENATIONS = "Upsampling straight into the concatenation of each level."
ONE_CONCATENATION = "Every level is upsampled straight into the concatenation."


def top_down(resize: str, options: str) -> dict[str, str]:
    """The edit of ``lateral + resize(the coarser one)``.

    Args:
        resize: what the library calls its interpolation.
        options: its arguments, but for the map.
    """
    return {
        f"laterals[i - 1] + {resize}(laterals[i], {options})": (
            f"msr.add(laterals[i - 1], msr.up(laterals[i], {options}))"
        )
    }


def add_pyramid(rewrites: Rewrites, *targets: str, resize: str, fingerprints: list[str]) -> None:
    """The recipe of an ``FPN``."""
    rewrites.add(
        *targets,
        fingerprints=fingerprints,
        summary=SUMS,
        edits={
            **top_down(resize, "**self.upsample_cfg"),
            **top_down(resize, "size=prev_shape, **self.upsample_cfg"),
        },
    )


def add_yolo_necks(
    rewrites: Rewrites, *targets: str, feature: str, fingerprints: list[str]
) -> None:
    """The recipe of ``YOLOXPAFPN`` and ``CSPNeXtPAFPN``.

    Args:
        rewrites: of the library.
        targets: the classes.
        feature: what the forward calls the coarser map.
        fingerprints: of the forwards.
    """
    rewrites.add(
        *targets,
        fingerprints=fingerprints,
        summary=CONCATENATIONS,
        skip_reasons=lambda module: upsampling_reasons(module.upsample, "upsample"),
        absorbed_modules=lambda module: upsampling_modules(module.upsample),
        edits={
            f"self.upsample({feature})": f"msr.upsampled_by(self.upsample, {feature})",
            "torch.cat([upsample_feat, feat_low], 1)": "msr.cat([upsample_feat, feat_low])",
        },
    )


# HRNet: every resolution gets the sum of all.

Path = Callable[[nn.Module, Tensor, Sequence[int]], Upsampled]


def branch_sum(
    layers: Sequence[nn.Module],
    x: Sequence[Tensor],
    i: int,
    path: Path | None = None,
) -> Tensor:
    """Sum and ReLU of one branch of an ``HRModule``.

    Args:
        layers: what leads to it from each branch; not called for the branch itself.
        x: the maps of all branches.
        i: its index. Finer branches come before it.
        path: ``path(layer, map, size)`` of a coarser branch, whose result the original adds out of
            place; None: the layer ends in an Upsample, and the sum keeps the dtype of its first.
    """
    parts: list[Part] = []
    for j, layer in enumerate(layers):
        if j < i:
            parts.append(layer(x[j]))
        elif j == i:
            parts.append(x[j])
        elif path is None:
            parts.append(upsampled_by(layer, x[j]))
        else:
            parts.append(path(layer, x[j], x[i].shape[2:]))
    first = parts[0]
    assert isinstance(first, Tensor)  # no branch is finer than the first
    return add(*parts, dtype=first.dtype if path is None else None, relu=True)


def _upward_paths(module: Any) -> list[tuple[str, nn.Module]]:
    """What leads from a coarser branch to a finer one, by name."""
    return [
        (f"fuse_layers.{i}.{j}", layer)
        for i, layers in enumerate(module.fuse_layers)
        for j, layer in enumerate(layers)
        if j > i
    ]


def add_hrnet(
    rewrites: Rewrites,
    target: str,
    *,
    fingerprints: list[str],
    old: str,
    new: str,
    path_reasons: Callable[[nn.Module, str], list[str]] = upsampling_reasons,
) -> None:
    """The recipe of an ``HRModule``.

    Args:
        rewrites: of the library.
        target: the class.
        fingerprints: of the forward.
        old: the statements that sum the maps of one branch.
        new: those that do it with :func:`branch_sum`.
        path_reasons: why a path from a coarser branch cannot be absorbed; also gets its name.
    """

    def skip_reasons(module: Any) -> list[str]:
        if module.num_branches == 1:
            return ["it has a single branch"]
        reasons = []
        if module.num_branches > MAX_MAPS:
            reasons.append(f"{module.num_branches} branches are more than one operator takes")
        if type(module.relu) is not nn.ReLU:
            reasons.append(f"relu is no ReLU, but a {type(module.relu).__name__}")
        for name, path in _upward_paths(module):
            reasons += path_reasons(path, name)
        return reasons

    def absorbed_modules(module: Any) -> list[nn.Module]:
        absorbed = [module.relu]
        for _, path in _upward_paths(module):
            absorbed += upsampling_modules(path)
        return absorbed

    rewrites.add(
        target,
        fingerprints=fingerprints,
        summary="Upsampling, sum and ReLU of each resolution in one pass.",
        skip_reasons=skip_reasons,
        absorbed_modules=absorbed_modules,
        edits={old: new},
    )


#: The statements of mmdet's and mmpose's HRModule.
PLAIN_SUM = """\
y = 0
for j in range(self.num_branches):
    if i == j:
        y += x[j]
    else:
        y += self.fuse_layers[i][j](x[j])
x_fuse.append(self.relu(y))
"""
PLAIN_BRANCH_SUM = "x_fuse.append(recipe.branch_sum(self.fuse_layers[i], x, i))"
