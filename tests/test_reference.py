"""What runs in plain PyTorch, against explicit chains of other PyTorch functions and loops."""

from __future__ import annotations

import pytest
import torch
from cases import EXTENDED_CASES, POOLS, WINDOW_CASES, Case, every_rare_case
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from truth import in_float64, leaves, map_term_norms, parameter_term_norms, transcription

import msr_cuda
from msr_cuda import _spec, functional, testing

LOW = (torch.float32, torch.float16, torch.bfloat16)
every_low_dtype = pytest.mark.parametrize("dtype", LOW, ids=lambda d: str(d).removeprefix("torch."))


@every_rare_case
def test_values_and_gradients_in_float64(case: Case) -> None:
    maps, parameters = leaves(case, torch.float64)
    output = case.call(maps, parameters, "reference")
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
@every_rare_case
def test_values_and_gradients_in_low_precision(case: Case, dtype: torch.dtype) -> None:
    maps, parameters = leaves(case, dtype)
    output = case.call(maps, parameters, "reference")
    assert output.dtype == dtype
    maps64, parameters64 = in_float64(maps, parameters)
    expected, _ = transcription(case, maps64, parameters64)
    testing.assert_within(output, expected, what="output")

    grad = torch.randn_like(expected).to(dtype)
    wanted, wanted64 = [*maps, *parameters.values()], [*maps64, *parameters64.values()]
    actual = torch.autograd.grad(output, wanted, grad)
    truth = torch.autograd.grad(expected, wanted64, grad.double())
    norms = [
        *map_term_norms(case, maps64, parameters64, grad),
        *parameter_term_norms(case, maps64, parameters64, grad).values(),
    ]
    for a, t, norm, x in zip(actual, truth, norms, wanted, strict=True):
        testing.assert_within(a, t, term_norm=norm, what=f"gradient of {tuple(x.shape)}")
        assert a.dtype == x.dtype


@every_rare_case
def test_gradcheck(case: Case) -> None:
    maps, parameters = leaves(case, torch.float64)
    inputs = (*maps, *parameters.values())

    def call(*tensors: Tensor) -> Tensor:
        named = dict(zip(parameters, tensors[len(maps) :], strict=True))
        return case.call(list(tensors[: len(maps)]), named, "reference")

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


@every_rare_case
def test_layout_and_aliasing(case: Case) -> None:
    maps, parameters = leaves(case, torch.float32)
    output = case.call(maps, parameters, "reference")
    layout = next((a for a in map(_spec.is_channels_last, maps) if a is not None), False)
    assert output.stride() == _spec.dense_strides(output.shape, layout)
    if output.numel():
        bases = {x.untyped_storage().data_ptr() for x in maps}
        assert output.untyped_storage().data_ptr() not in bases
    # An in-place layer after the call is legal, for every activation and mode.
    grads = torch.autograd.grad(output, maps, torch.ones_like(output), retain_graph=True)
    again = torch.autograd.grad(output.mul_(1.0), maps, torch.ones_like(output))
    assert all(torch.equal(a, b) for a, b in zip(grads, again, strict=True))


@every_rare_case
def test_torch_func_and_forward_ad(case: Case) -> None:
    maps, parameters = leaves(case, torch.float64)
    if maps[0].numel() == 0:
        return
    primals = tuple(x.detach() for x in maps)
    constants = {name: p.detach() for name, p in parameters.items()}
    tangents = tuple(torch.randn_like(x) for x in primals)

    def call(*tensors: Tensor) -> Tensor:
        return case.call(list(tensors), constants)

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
    case = next(c for c in (*EXTENDED_CASES, *WINDOW_CASES) if c.name == name)
    maps, parameters = leaves(case, torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(lambda m, p: case.call(m, p), fullgraph=True, backend="aot_eager")
    output, graph = case.call(maps, parameters), compiled(maps, parameters)
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
    # In the kernels' absence the first and the last say so.
    why = tuple(functional.unsupported_reasons([x]))
    assert [o.reasons for o in told] == [why, ('impl="reference"',), why, why]
    assert [o.output.shape[-1] for o in told[2:]] == [2, 8]
