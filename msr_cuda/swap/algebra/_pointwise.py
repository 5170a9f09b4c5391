"""1x1 convolutions on the far side of a resampling, and what that saves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ... import functional
from .._gather import MAX_MAPS
from .._hooks import has_hooks

#: Activations that a fused sum applies, with the options that it applies them with.
_ACTIVATIONS: dict[type[nn.Module], tuple[str, dict[str, Any]]] = {
    nn.ReLU: ("relu", {}),
    nn.ReLU6: ("relu6", {}),
    nn.LeakyReLU: ("leaky_relu", {"negative_slope": 0.01}),
    nn.SiLU: ("silu", {}),
    nn.GELU: ("gelu", {"approximate": "none"}),
    nn.Hardswish: ("hardswish", {}),
    nn.Sigmoid: ("sigmoid", {}),
}
_CONVOLUTIONS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}  # by the rank of maps


class Reordering(NamedTuple):
    """What :data:`observers` are told of one reordered convolution.

    Attributes:
        maps: what the original resamples, and concatenates, before the convolution.
        convolved: what the convolutions read here.
        projected: what they gave.
        output: the result.
        calls: how many calls of fused operators, the last ones, belong to it.
        passes: further passes of the original that those calls do: how many maps of the result's
            size each reads and writes, as 2 for a norm or an activation, 3 for a sum.
    """

    maps: tuple[Tensor, ...]
    convolved: tuple[Tensor, ...]
    projected: tuple[Tensor, ...]
    output: Tensor
    calls: int
    passes: tuple[int, ...] = ()


#: Called after every reordered convolution, and after the observers of the fused operator.
observers: list[Callable[[Reordering], None]] = []


def pointwise_reasons(conv: nn.Module, name: str) -> list[str]:
    """Why a module is no 1x1 convolution that may move; empty: it is one."""
    if type(conv) not in _CONVOLUTIONS.values():
        return [f"{name} is a {type(conv).__name__}, not a plain convolution"]
    assert isinstance(conv, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    reasons = []
    if set(conv.kernel_size) != {1} or set(conv.stride) != {1} or conv.groups != 1:
        reasons.append(f"{name} is not a 1x1 convolution of stride 1 and one group")
    if not isinstance(conv.padding, str) and any(conv.padding):
        reasons.append(f"{name} pads")
    return reasons


def is_plain(*modules: nn.Module | None) -> bool:
    """Whether calling these modules is no more than what their parameters say.

    What reads the parameters itself would go past hooks (of pruning, FSDP or a user), shards and
    parametrizations, which can come after fusing: then it has to run the original forward.
    """
    return all(
        module is None
        or not (
            has_hooks(module)
            or parametrize.is_parametrized(module)
            or "forward" in vars(module)
            or any(
                type(p) is not nn.Parameter for p in module._parameters.values() if p is not None
            )
        )
        for module in modules
    )


def project(
    conv: nn.Conv1d | nn.Conv2d | nn.Conv3d,
    maps: Sequence[Tensor],
    size: Sequence[int],
    *,
    mode: str,
    align_corners: bool | None = None,
    norm: nn.Module | None = None,
    activation: nn.Module | None = None,
) -> Tensor:
    """``activation(norm(conv(cat(resample(x_i)))))``, each map convolved at its own size.

    Args:
        conv: has a 1x1 kernel, see :func:`pointwise_reasons`, and is plain.
        maps: ``[N, C_i, *spatial_i]``, in the order of the concatenation. Those that have no fewer
            pixels than the result are resampled first, and convolved together.
        size: spatial size of the result.
        mode, align_corners: of the resampling.
        norm: a batch norm that normalises by its running statistics becomes factors of the sum;
            any other module is called.
        activation: likewise.
    """
    size = torch.Size(size)
    weights = conv.weight.split([x.shape[1] for x in maps], dim=1)
    large = [i for i, x in enumerate(maps) if x.shape[2:].numel() >= size.numel()]
    convolved = [x for i, x in enumerate(maps) if i not in large]
    used = [weight for i, weight in enumerate(weights) if i not in large]
    calls = 1
    if large:
        x = maps[large[0]]
        if len(large) > 1 or x.shape[2:] != size:
            joined = [maps[i] for i in large]
            x = functional.resample_cat(joined, size, mode=mode, align_corners=align_corners)
            calls += 1
        convolved.insert(0, x)
        whole = len(large) == len(maps)
        used.insert(0, conv.weight if whole else torch.cat([weights[i] for i in large], 1))
    projected = [_CONVOLVE[x.dim()](x, w) for x, w in zip(convolved, used, strict=True)]
    scale, bias = _folded(norm)
    if conv.bias is not None:
        bias = conv.bias if bias is None or scale is None else bias + conv.bias * scale
    name = _activation_name(activation) if norm is None or scale is not None else None
    y = functional.resample_sum(
        projected, size, mode=mode, align_corners=align_corners, scale=scale, bias=bias,
        activation=name,
    )  # fmt: skip
    passes = (2,) * ((scale is not None) + (name is not None))
    _tell(Reordering(tuple(maps), tuple(convolved), tuple(projected), y, calls, passes))
    if norm is not None and scale is None:
        y = norm(y)
    return y if activation is None or name is not None else activation(y)


def resample_projected(
    conv: nn.Module,
    x: Tensor,
    *,
    size: Sequence[int] | None = None,
    scale_factor: float | None = None,
    mode: str,
    align_corners: bool | None = None,
) -> Tensor:
    """``conv(resample(x))``, convolved before; the convolution is called as the module it is."""
    projected = conv(x)
    y = functional.resample(
        projected, None if size is None else tuple(size), scale_factor, mode, align_corners
    )
    _tell(Reordering((x,), (x,), (projected,), y, 1))
    return y


def add_projected(
    conv: nn.Module, x: Tensor, y: Tensor, *, mode: str, align_corners: bool | None = None
) -> Tensor:
    """``y + conv(resample(x))`` at the size of ``y``, convolved before."""
    projected = conv(x)
    output = functional.resample_sum(
        [y, projected], tuple(y.shape[2:]), mode=mode, align_corners=align_corners
    )
    _tell(Reordering((x,), (x,), (projected,), output, 1, (3,)))
    return output


def sum_reasons(count: int) -> list[str]:
    """Why that many maps have to be left alone."""
    return [] if count <= MAX_MAPS else [f"{count} maps are more than one operator takes"]


_CONVOLVE: dict[int, Callable[[Tensor, Tensor], Tensor]] = {
    3: F.conv1d, 4: F.conv2d, 5: F.conv3d,
}  # fmt: skip


def _folded(norm: nn.Module | None) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """``norm(y) = scale * y + bias`` per channel; None: not at this moment, if it ever is.

    Differentiable, and in float32 at least.
    """
    if not isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
        return None, None
    if type(norm).__module__ != nn.BatchNorm2d.__module__ or norm.training:
        return None, None
    if norm.running_mean is None or norm.running_var is None:
        return None, None
    dtype = torch.promote_types(norm.running_var.dtype, torch.float32)
    scale = torch.rsqrt(norm.running_var.to(dtype) + norm.eps)
    if norm.weight is not None:
        scale = norm.weight.to(dtype) * scale
    bias = -norm.running_mean.to(dtype) * scale
    return scale, bias if norm.bias is None else norm.bias.to(dtype) + bias


def _activation_name(activation: nn.Module | None) -> str | None:
    """What a fused sum calls it; None: it has to be called."""
    if activation is None or has_hooks(activation):
        return None
    name, options = _ACTIVATIONS.get(type(activation), (None, {}))
    same = all(getattr(activation, option) == value for option, value in options.items())
    return name if same else None


def _tell(reordering: Reordering) -> None:
    if observers and not torch.compiler.is_compiling():
        for observer in observers:
            observer(reordering)
