"""What results and gradients are compared with.

Plain chains of PyTorch functions and loops, and how large the terms of each gradient are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from cases import Case
from torch import Tensor

import msr_cuda
from msr_cuda import reference, testing

# Plain transcriptions. Nothing here uses the package.


def keys(x: float, a: float) -> float:
    """Keys' cubic convolution kernel."""
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def sinc(x: float) -> float:
    return math.sin(math.pi * x) / (math.pi * x) if x else 1.0


FILTERS: dict[str, tuple[float, Callable[[float], float]]] = {
    "linear": (1, lambda x: max(1 - abs(x), 0.0)),
    "cubic": (2, lambda x: keys(x, -0.5)),
    "lanczos": (3, lambda x: sinc(x) * sinc(x / 3) if abs(x) < 3 else 0.0),
}


def antialias_matrix(
    mode: str, in_size: int, out_size: int, align_corners: bool, factor: float | None
) -> Tensor:
    """One axis, element by element, as Pillow and ATen do it."""
    radius, kernel = FILTERS[mode]
    if align_corners:
        scale = (in_size - 1) / (out_size - 1) if out_size > 1 else 0.0
    else:
        scale = in_size / out_size if factor is None else 1 / factor
    stretch = max(scale, 1.0)
    matrix = torch.zeros(out_size, in_size, dtype=torch.float64)
    for o in range(out_size):
        centre = scale * (o + 0.5)
        begin = max(int(centre - radius * stretch + 0.5), 0)
        end = min(int(centre + radius * stretch + 0.5), in_size)
        for s in range(begin, end):
            matrix[o, s] = kernel((s - centre + 0.5) / stretch)
    return matrix / matrix.sum(1, keepdim=True)


def cubic_matrix(in_size: int, out_size: int, align_corners: bool, factor: float | None) -> Tensor:
    """One axis of cubic interpolation; elements beyond the ends repeat the last."""
    matrix = torch.zeros(out_size, in_size, dtype=torch.float64)
    for o in range(out_size):
        if align_corners:
            at = o * (in_size - 1) / (out_size - 1) if out_size > 1 else 0.0
        else:
            at = (o + 0.5) * (in_size / out_size if factor is None else 1 / factor) - 0.5
        for s in range(math.floor(at) - 1, math.floor(at) + 3):
            matrix[o, min(max(s, 0), in_size - 1)] += keys(s - at, -0.75)
    return matrix


def interpolated(
    x: Tensor,
    size: Sequence[int],
    mode: str,
    align_corners: bool | None,
    antialias: bool,
    factors: Sequence[float] | None,
) -> Tensor:
    """R(x), by F.interpolate where it can."""
    mode = mode.removeprefix("bi").removeprefix("tri")
    names = {"linear": ("linear", "bilinear", "trilinear"), "cubic": ("", "bicubic", "")}
    name = names.get(mode, (mode,) * 3)[x.dim() - 3]
    if name and mode != "lanczos" and (not antialias or x.dim() == 4):
        if factors is not None and not align_corners:
            return F.interpolate(x, scale_factor=tuple(factors), mode=name,
                                 align_corners=align_corners, antialias=antialias)  # fmt: skip
        return F.interpolate(x, tuple(size), mode=name, align_corners=align_corners,
                             antialias=antialias)  # fmt: skip
    for axis, out_size in enumerate(size, start=2):
        in_size = x.shape[axis]
        factor = None if factors is None else factors[axis - 2]
        if antialias:
            matrix = antialias_matrix(mode, in_size, out_size, bool(align_corners), factor)
        else:
            matrix = cubic_matrix(in_size, out_size, bool(align_corners), factor)
        x = torch.movedim(torch.movedim(x, axis, -1) @ matrix.T, -1, axis)
    return x


def pooled(x: Tensor, pool: msr_cuda.Pool) -> Tensor:
    """Pooling after explicit padding, as TensorFlow ports do it."""
    rank = x.dim() - 2

    def per_axis(value: Any) -> list[Any]:
        return list(value) if isinstance(value, tuple) else [value] * rank

    kernel, stride = per_axis(pool.kernel_size), per_axis(pool.stride)
    padding = per_axis(pool.padding)
    ends: list[int] = []
    for n, k, s, p in reversed(list(zip(x.shape[2:], kernel, stride, padding, strict=True))):
        if p == "same":
            total = max((math.ceil(n / s) - 1) * s + k - n, 0)
            ends += [total // 2, total - total // 2]
        else:
            ends += list(p) if isinstance(p, tuple) else [p, p]
    if pool.kind == "max":
        function = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]
        return function(F.pad(x, ends, value=-math.inf), kernel, stride)
    function = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
    total = function(F.pad(x, ends), kernel, stride)
    if pool.count_include_pad:
        return total
    return total / function(F.pad(torch.ones_like(x), ends), kernel, stride)


def wide_weights(weights: Tensor, term: Tensor, count: int) -> Tensor:
    """Weights of any form as [N, S, C, *size]."""
    ones = [1] * (term.dim() - 2)
    if weights.dim() == 1:
        weights = weights.view(1, -1, 1, *ones)
    elif weights.dim() == 2:
        weights = weights.view(1, *weights.shape, *ones)
    elif weights.dim() == 3:
        weights = weights.view(*weights.shape, *ones)
    return weights.expand(term.shape[0], count, *term.shape[1:])


ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda z: z, "relu": F.relu, "relu6": F.relu6, "leaky_relu": F.leaky_relu,
    "silu": F.silu, "gelu": F.gelu, "hardswish": F.hardswish, "sigmoid": torch.sigmoid,
}  # fmt: skip


def transcription(
    case: Case, maps: list[Tensor], parameters: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The result of a case, and its parameters broadcast to every element that they act on."""
    kwargs = case.kwargs
    count = len(maps)

    def each(name: str, default: Any = None) -> list[Any]:
        value = kwargs.get(name, default)
        return list(value) if isinstance(value, list) else [value] * count

    size = kwargs.get("size", tuple(maps[0].shape[2:]))
    size = (size,) * (maps[0].dim() - 2) if isinstance(size, int) else size
    factors = each("scale_factors")
    if "scale_factor" in kwargs:
        factors = [kwargs["scale_factor"]]
        size = tuple(math.floor(n * f) for n, f in zip(maps[0].shape[2:], factors[0], strict=True))
    terms = []
    for x, mode, corners, antialias, factor in zip(
        maps, each("mode", "nearest"), each("align_corners"), each("antialias", False), factors,
        strict=True,
    ):  # fmt: skip
        if isinstance(factor, float):
            factor = (factor,) * len(size)
        if isinstance(mode, msr_cuda.Pool):
            terms.append(pooled(x, mode))
        elif tuple(x.shape[2:]) == tuple(size):
            terms.append(x)
        else:
            terms.append(interpolated(x, size, mode, corners, antialias, factor))
    batch = max(t.shape[0] for t in terms) if all(t.shape[0] for t in terms) else 0
    terms = [t.expand(batch, *t.shape[1:]) for t in terms]
    wide: dict[str, Tensor] = {}
    if case.operator == "resample_cat":
        result = torch.cat(terms, 1)
    elif case.operator == "resample_max":
        result = torch.stack(terms).max(0).values
    else:
        stacked = torch.stack(terms, 1)
        if "weights" in parameters:
            weights = parameters["weights"]
            axis = 0 if weights.dim() < 3 else 1
            if kwargs.get("normalize") == "softmax":
                weights = F.softmax(weights, axis)
            if kwargs.get("normalize") == "fast":
                positive = F.relu(weights)
                weights = positive / (positive.sum(axis, keepdim=True) + kwargs.get("eps", 1e-4))
            wide["weights"] = wide_weights(weights, terms[0], count)
            stacked = stacked * wide["weights"]
        result = stacked.sum(1) * kwargs.get("out_scale", 1.0)
        for name in ("scale", "bias"):
            if name in parameters:
                column = parameters[name].view(-1, *[1] * len(size))
                wide[name] = column.expand(result.shape)
                result = result * wide[name] if name == "scale" else result + wide[name]
    return ACTIVATIONS[kwargs.get("activation")](result), wide


def leaves(
    case: Case, dtype: torch.dtype, device: str = "cpu"
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Maps and parameters that require grad; parameters are float32, or float64 like the maps."""
    parameters = torch.float64 if dtype == torch.float64 else torch.float32
    return (
        case.maps(dtype, device, requires_grad=True),
        case.make_parameters(parameters, device, requires_grad=True),
    )


def doubled(tensor: Tensor) -> Tensor:
    """The same values in float64, with the same strides."""
    return tensor.detach().double().requires_grad_()


def in_float64(
    maps: Sequence[Tensor], parameters: dict[str, Tensor]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    return [doubled(x) for x in maps], {name: doubled(p) for name, p in parameters.items()}


def map_term_norms(
    case: Case, maps: Sequence[Tensor], parameters: dict[str, Tensor], grad: Tensor
) -> list[Tensor]:
    """``sqrt(sum t_k^2)`` of the terms of each map's gradient: those that reach the resampled map,
    times the weights."""
    call = case.prepared(list(maps))
    # Full batches: what a broadcast sums up are terms too.
    resampled = []
    for x, mode, scale in zip(maps, call.modes, call.scale_factors, strict=True):
        resized = reference.resample_map(x.detach(), call.size, mode, scale)
        resampled.append(doubled(resized.expand(call.batch, *resized.shape[1:]).contiguous()))
    kwargs = {k: v for k, v in case.kwargs.items() if k in ("activation", "normalize", "eps",
                                                            "out_scale")}  # fmt: skip
    operator = "resample_sum" if case.operator == "resample" else case.operator
    same_size = Case(case.name, operator, (), kwargs, case.weights, (), case.parameters)
    output = same_size.call(resampled, parameters, "reference")
    upstream = torch.autograd.grad(output, resampled, grad.double())
    return [
        testing.gradient_term_norm(g, x.shape, mode, scale)
        for g, x, mode, scale in zip(upstream, maps, call.modes, call.scale_factors, strict=True)
    ]


def parameter_term_norms(
    case: Case, maps: list[Tensor], parameters: dict[str, Tensor], grad: Tensor
) -> dict[str, Tensor]:
    """The same of each parameter's gradient. Normalised weights pass theirs on by the absolute
    values of the derivatives."""
    kwargs = dict(case.kwargs)
    normalize, eps = kwargs.pop("normalize", None), kwargs.pop("eps", 1e-4)
    plain = dict(parameters)

    def normalized(weights: Tensor) -> Tensor:
        return reference.normalized_weights(weights, normalize, eps, torch.float64)

    if normalize is not None:
        plain["weights"] = doubled(normalized(parameters["weights"]))
    operator = "resample_sum" if case.operator == "resample" else case.operator
    bare = Case(case.name, operator, case.shapes, kwargs, case.weights, (), case.parameters)
    expected, wide = transcription(bare, maps, plain)
    norms = {}
    for name, p in plain.items():
        (terms,) = torch.autograd.grad(expected, wide[name], grad.double(), retain_graph=True)
        # Back along the broadcast: the squares add where the terms did.
        (squares,) = torch.autograd.grad(wide[name], p, terms**2, retain_graph=True)
        norms[name] = squares.sqrt()
    if normalize is not None:
        of_weights = parameters["weights"].detach()
        slopes = torch.autograd.functional.jacobian(normalized, of_weights).abs()
        shares = norms["weights"].flatten() @ slopes.reshape(of_weights.numel(), -1)
        norms["weights"] = shares.view(of_weights.shape)
    return norms


def assert_values_and_gradients(
    case: Case,
    maps: list[Tensor],
    parameters: dict[str, Tensor],
    impl: str,
    *,
    keep: Tensor | None = None,
) -> Tensor:
    """Holds a call and its first derivatives to the float64 reference, and returns its result.

    Args:
        case: the call.
        maps, parameters: its tensors; gradients are taken of those that require one.
        impl: what runs it.
        keep (Tensor of bools, of the shape of the result): elements that pass a gradient on; None:
            all of them.
    """
    output = case.call(maps, parameters, impl)
    maps64, parameters64 = in_float64(maps, parameters)
    expected = case.call(maps64, parameters64, "reference")
    testing.assert_within(output, expected, what="output")

    given = {**{f"map {i}": x for i, x in enumerate(maps)}, **parameters}
    wanted = {name: x for name, x in given.items() if x.requires_grad}
    grad = torch.randn_like(expected).to(output.dtype)
    if keep is not None:
        grad = grad * keep
    actual = torch.autograd.grad(output, list(wanted.values()), grad)
    truth = torch.autograd.grad(expected, [*maps64, *parameters64.values()], grad.double())
    norms = map_term_norms(case, maps64, parameters64, grad)
    if parameters:
        norms += parameter_term_norms(case, maps64, parameters64, grad).values()
    of = {name: pair for name, *pair in zip(given, truth, norms, strict=True)}
    for a, (name, x) in zip(actual, wanted.items(), strict=True):
        testing.assert_within(a, of[name][0], term_norm=of[name][1], what=f"gradient of {name}")
        assert a.dtype == x.dtype, name
    return output
