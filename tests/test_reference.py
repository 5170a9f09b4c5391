"""What runs in plain PyTorch, against explicit chains of other PyTorch functions and loops."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import POOLS, REFERENCE_CASES, WINDOW_CASES, Case, every_reference_case
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import msr_cuda
from msr_cuda import _spec, functional, reference, testing

LOW = (torch.float32, torch.float16, torch.bfloat16)
every_low_dtype = pytest.mark.parametrize("dtype", LOW, ids=lambda d: str(d).removeprefix("torch."))


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
    factors = kwargs.get("scale_factor")
    if factors is not None:
        size = tuple(math.floor(n * f) for n, f in zip(maps[0].shape[2:], factors, strict=True))
    terms = []
    for x, mode, corners, antialias in zip(
        maps, each("mode", "nearest"), each("align_corners"), each("antialias", False), strict=True
    ):
        if isinstance(mode, msr_cuda.Pool):
            terms.append(pooled(x, mode))
        elif tuple(x.shape[2:]) == tuple(size):
            terms.append(x)
        else:
            terms.append(interpolated(x, size, mode, corners, antialias, factors))
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


def leaves(case: Case, dtype: torch.dtype) -> tuple[list[Tensor], dict[str, Tensor]]:
    parameters = torch.float64 if dtype == torch.float64 else torch.float32
    return (
        case.maps(dtype, "cpu", requires_grad=True),
        case.make_parameters(parameters, "cpu", requires_grad=True),
    )


def doubled(tensor: Tensor) -> Tensor:
    return tensor.detach().double().requires_grad_()


@every_reference_case
def test_values_and_gradients_in_float64(case: Case) -> None:
    maps, parameters = leaves(case, torch.float64)
    output = case.call(maps, None, "reference", parameters)
    expected, _ = transcription(case, maps, parameters)
    testing.assert_within(output, expected, what="output")
    wanted = [*maps, *parameters.values()]
    grad = torch.randn_like(output)
    actual = torch.autograd.grad(output, wanted, grad)
    truth = torch.autograd.grad(expected, wanted, grad)
    for a, t, x in zip(actual, truth, wanted, strict=True):
        testing.assert_within(a, t, what=f"gradient of {tuple(x.shape)}")
        assert x.numel() == 0 or a.abs().max() > 0


@every_low_dtype
@every_reference_case
def test_values_and_gradients_in_low_precision(case: Case, dtype: torch.dtype) -> None:
    maps, parameters = leaves(case, dtype)
    output = case.call(maps, None, "reference", parameters)
    assert output.dtype == dtype
    maps64 = [doubled(x) for x in maps]
    parameters64 = {name: doubled(p) for name, p in parameters.items()}
    expected, wide = transcription(case, maps64, parameters64)
    testing.assert_within(output, expected, what="output")

    grad = torch.randn_like(expected).to(dtype)
    actual = torch.autograd.grad(output, maps, grad, retain_graph=True)
    truth = torch.autograd.grad(expected, maps64, grad.double(), retain_graph=True)
    for a, t, norm, x in zip(
        actual, truth, map_term_norms(case, maps64, parameters64, grad), maps, strict=True
    ):
        testing.assert_within(a, t, term_norm=norm, what="gradient of a map")
        assert a.dtype == x.dtype
    if case.kwargs.get("normalize") is None:
        for name, p in parameters.items():
            (a,) = torch.autograd.grad(output, p, grad, retain_graph=True)
            (t,) = torch.autograd.grad(
                expected, parameters64[name], grad.double(), retain_graph=True
            )
            (terms,) = torch.autograd.grad(expected, wide[name], grad.double(), retain_graph=True)
            # Back along the broadcast: the squares add where the terms did.
            (squares,) = torch.autograd.grad(
                wide[name], parameters64[name], terms**2, retain_graph=True
            )
            testing.assert_within(a, t, term_norm=squares.sqrt(), what=f"gradient of {name}")
            assert a.dtype == torch.float32


def map_term_norms(
    case: Case, maps: list[Tensor], parameters: dict[str, Tensor], grad: Tensor
) -> list[Tensor]:
    """The terms of each map's gradient: those that reach the resampled map, times the weights."""
    call = case.prepared(maps)
    resampled = [
        doubled(reference.resample_map(x.detach(), call.size, mode, scale))
        for x, mode, scale in zip(maps, call.modes, call.scale_factors, strict=True)
    ]
    kwargs = {k: v for k, v in case.kwargs.items() if k in ("activation", "normalize", "eps",
                                                            "out_scale")}  # fmt: skip
    operator = "resample_sum" if case.operator == "resample" else case.operator
    same_size = Case(case.name, operator, (), kwargs, False, (), case.parameters)
    output = same_size.call(resampled, None, "reference", parameters)
    upstream = torch.autograd.grad(output, resampled, grad.double())
    norms = []
    for g, x, mode, scale in zip(upstream, maps, call.modes, call.scale_factors, strict=True):
        norms.append(testing.gradient_term_norm(g, x.shape, mode, scale))
    return norms


@every_reference_case
def test_gradcheck(case: Case) -> None:
    maps, parameters = leaves(case, torch.float64)
    inputs = (*maps, *parameters.values())

    def call(*tensors: Tensor) -> Tensor:
        named = dict(zip(parameters, tensors[len(maps) :], strict=True))
        return case.call(list(tensors[: len(maps)]), None, "reference", named)

    output = call(*inputs)
    if output.numel() == 0:
        assert all(g.numel() == 0 for g in torch.autograd.grad(output.sum(), inputs))
        return
    assert gradcheck(call, inputs, fast_mode=True)
    # gradgradcheck alone passes vacuously where the first gradient does not require grad.
    first = torch.autograd.grad(
        output, inputs, torch.randn_like(output).requires_grad_(), create_graph=True
    )
    assert all(g.requires_grad for g in first)
    assert gradgradcheck(call, inputs, fast_mode=True)


@every_reference_case
def test_layout_and_aliasing(case: Case) -> None:
    maps, parameters = leaves(case, torch.float32)
    output = case.call(maps, None, "reference", parameters)
    layout = next((a for a in map(_spec.is_channels_last, maps) if a is not None), False)
    assert output.stride() == _spec.dense_strides(output.shape, layout)
    if output.numel():
        bases = {x.untyped_storage().data_ptr() for x in maps}
        assert output.untyped_storage().data_ptr() not in bases
    # An in-place layer after the call is legal, for every activation and mode.
    grads = torch.autograd.grad(output, maps, torch.ones_like(output), retain_graph=True)
    again = torch.autograd.grad(output.mul_(1.0), maps, torch.ones_like(output))
    assert all(torch.equal(a, b) for a, b in zip(grads, again, strict=True))


@every_reference_case
def test_torch_func_and_forward_ad(case: Case) -> None:
    maps, parameters = leaves(case, torch.float64)
    if maps[0].numel() == 0:
        return
    primals = tuple(x.detach() for x in maps)
    constants = {name: p.detach() for name, p in parameters.items()}
    tangents = tuple(torch.randn_like(x) for x in primals)

    def call(*tensors: Tensor) -> Tensor:
        return case.call(list(tensors), None, "auto", constants)

    step = 1e-6
    ahead = call(*[x + step * t for x, t in zip(primals, tangents, strict=True)])
    behind = call(*[x - step * t for x, t in zip(primals, tangents, strict=True)])
    numeric = (ahead - behind) / (2 * step)
    assert numeric.abs().max() > 0.01
    _, jvp = torch.func.jvp(call, primals, tangents)
    torch.testing.assert_close(jvp, numeric, rtol=1e-5, atol=1e-6)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, t) for x, t in zip(primals, tangents, strict=True)]
        tangent = forward_ad.unpack_dual(call(*duals)).tangent
    torch.testing.assert_close(tangent, numeric, rtol=1e-5, atol=1e-6)

    expected = torch.autograd.grad(call(*maps).pow(2).sum(), maps[0])[0]
    grad = torch.func.grad(lambda x: call(x, *primals[1:]).pow(2).sum())(primals[0])
    assert grad.abs().max() > 0.001
    torch.testing.assert_close(grad, expected, rtol=1e-9, atol=1e-9)
    mapped = torch.func.vmap(call)(*[torch.stack([x, 2 * x]) for x in primals])
    torch.testing.assert_close(mapped[1], call(*[2 * x for x in primals]), rtol=1e-9, atol=1e-9)


COMPILED = ("2d-cubic-antialias-factor", "2d-many-taps", "sum-bifpn-same", "max-relu-broadcast")


@pytest.mark.parametrize("name", COMPILED)
def test_compiles_into_one_graph(name: str) -> None:
    case = next(c for c in (*REFERENCE_CASES, *WINDOW_CASES) if c.name == name)
    maps, parameters = leaves(case, torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda m, p: case.call(m, None, "auto", p), fullgraph=True, backend="aot_eager"
    )
    output, graph = case.call(maps, None, "auto", parameters), compiled(maps, parameters)
    torch.testing.assert_close(graph, output)
    assert graph.stride() == output.stride()
    inputs = [*maps, *parameters.values()]
    grad = torch.randn_like(output)
    for a, b in zip(
        torch.autograd.grad(graph, inputs, grad),
        torch.autograd.grad(output, inputs, grad),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_autocast_keeps_the_dtype() -> None:
    x = torch.randn(2, 3, 8, 8, dtype=torch.bfloat16)
    half = x[:, :, ::2, ::2]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for result in (
            msr_cuda.resample(x, 5, mode="bicubic", antialias=True),
            msr_cuda.resample_sum([x, half], weights=torch.ones(2, 3), activation="gelu"),
            msr_cuda.resample_sum([half, x], mode=["nearest", msr_cuda.Pool("max", 2)]),
            msr_cuda.resample_max([x, half]),
            *msr_cuda.resample_pyramid(x, [4, 16], mode="area"),
        ):
            assert result.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [*LOW, torch.float64], ids=str)
def test_constant_maps_stay_constant(dtype: torch.dtype) -> None:
    modes: list[dict[str, Any]] = [
        dict(mode="bicubic"), dict(mode="bicubic", align_corners=True), dict(mode="area"),
        dict(mode="bilinear", antialias=True), dict(mode="bicubic", antialias=True),
        dict(mode="lanczos", antialias=True),
    ]  # fmt: skip
    eps = torch.finfo(dtype).eps
    for value in (1.0, 0.1, -3.14159, 1000.7):
        x = torch.full((1, 1, 15, 21), value, dtype=dtype)
        truth = float(x.flatten()[0])
        for size in ((31, 33), (4, 5), (33, 2), (1, 50)):
            for arguments in modes:
                y = msr_cuda.resample(x, size, **arguments, impl="reference").double()
                error = (y - truth).abs().max().item()
                if dtype in (torch.float16, torch.bfloat16):
                    assert error == 0, (arguments, size)
                else:
                    # Two units, and four of the sum of up to n terms t_k: sqrt(sum t_k^2) <= 1.3
                    # for the filters with negative lobes, in either direction.
                    assert error <= (2 + 4 * 1.3) * eps * abs(truth), (arguments, size)


def test_infinity_stays_where_it_is() -> None:
    """No tap of another window, nor a weight of zero, turns it into NaN."""
    x = torch.randn(1, 1, 24, 24)
    x[0, 0, 12, 12] = torch.inf
    for arguments in (dict(mode="area"), dict(mode="bilinear", antialias=True)):
        for size in (5, 7, 10, 37):
            ours = msr_cuda.resample(x, size, **arguments, impl="reference")  # type: ignore[arg-type]
            assert not ours.isnan().any() and ours.isinf().any() and ours.isfinite().any()
    y = msr_cuda.resample_cat(
        [x], mode=msr_cuda.Pool("avg", 3, 2, "same"), size=12, impl="reference"
    )
    assert not y.isnan().any() and int(y.isinf().sum()) == 4


def test_maximum_of_equal_values_goes_to_the_first() -> None:
    a = torch.tensor([[[1.0, 5.0, -torch.inf, torch.nan]]], requires_grad=True)
    b = torch.tensor([[[1.0, 5.0, -torch.inf, 2.0]]], requires_grad=True)
    c = torch.tensor([[[0.0, 7.0, torch.nan, torch.nan]]], requires_grad=True)
    y = msr_cuda.resample_max([a, b, c])
    assert y.nan_to_num(nan=-1.0).tolist() == [[[1.0, 7.0, -1.0, -1.0]]]
    grads = torch.autograd.grad(y.sum(), (a, b, c))
    assert [g.tolist()[0][0] for g in grads] == [[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 0]]


def test_pool_is_a_value() -> None:
    assert msr_cuda.Pool("max", [3, 3], 2, [[0, 1], [1, 0]]) == msr_cuda.Pool(  # type: ignore[arg-type]
        "max", (3, 3), 2, ((0, 1), (1, 0))
    )
    assert msr_cuda.Pool("avg", 2) == msr_cuda.Pool("avg", 2, 2, 0)
    assert len({*POOLS.values(), *POOLS.values()}) == len(POOLS)
    # PyTorch's and TensorFlow's BiFPN pooling: same sizes on even axes, other windows.
    symmetric, same = msr_cuda.Pool("max", 3, 2, 1), msr_cuda.Pool("max", 3, 2, "same")
    assert symmetric.output_size((8, 7)) == same.output_size((8, 7)) == (4, 4)
    assert symmetric.window(0, 8) == (3, 2, 1, 1) and same.window(0, 8) == (3, 2, 0, 1)
    assert same.window(1, 7) == (3, 2, 1, 1)


def test_pyramid_is_one_resample_per_level(impl: str, device: str) -> None:
    x = torch.randn(2, 3, 9, 14, device=device, requires_grad=True)
    for given, arguments in (
        (dict(sizes=[(4, 5), 20, (9, 14)]), [dict(size=(4, 5)), dict(size=20), dict(size=(9, 14))]),
        (dict(scale_factors=[0.5, (1.3, 2)]),
         [dict(scale_factor=0.5), dict(scale_factor=(1.3, 2))]),
    ):  # fmt: skip
        levels = msr_cuda.resample_pyramid(x, **given, mode="bilinear", impl=impl)  # type: ignore[arg-type]
        single = [msr_cuda.resample(x, **a, mode="bilinear", impl=impl) for a in arguments]  # type: ignore[arg-type]
        assert isinstance(levels, list) and len(levels) == len(single)
        assert all(torch.equal(a, b) for a, b in zip(levels, single, strict=True))
        total = sum((level.pow(2).sum() for level in levels), torch.zeros((), device=device))
        expected = sum((s.pow(2).sum() for s in single), torch.zeros((), device=device))
        torch.testing.assert_close(
            torch.autograd.grad(total, x)[0], torch.autograd.grad(expected, x)[0]
        )


def test_observers_learn_why_it_ran_in_plain_pytorch(device: str) -> None:
    told: list[functional.Observation] = []
    functional.observers.append(told.append)
    try:
        x = torch.randn(1, 2, 4, 4, device=device)
        weights = torch.ones(2, 2, device=device)
        msr_cuda.resample_sum([x, x], weights=weights, activation="silu", impl="auto")
        msr_cuda.resample_max([x, x], impl="reference")
        msr_cuda.resample_pyramid(x, [2, 8], mode="area")
    finally:
        functional.observers.remove(told.append)
    assert [o.function for o in told] == [
        "resample_sum", "resample_max", "resample_pyramid", "resample_pyramid",
    ]  # fmt: skip
    assert told[0].weighted and told[0].activation == "silu" and len(told[0].inputs) == 2
    assert told[0].reasons[-2:] == (
        "there is no kernel for activation='silu'",
        "there is no kernel for weights of 2 dimensions",
    )
    assert told[1].reasons == ('impl="reference"',) and not told[1].weighted
    assert [o.output.shape[-1] for o in told[2:]] == [2, 8]
    for o in told[2:]:
        assert ("there is no CUDA kernel for mode area" in o.reasons) == (device == "cuda")
