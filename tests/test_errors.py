"""Bad input: an error that names function, argument, expected and got; never a crash."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from conftest import missing
from torch import Tensor

import msr_cuda
from msr_cuda import _extension, _ops, _spec, resample, resample_cat, resample_sum


def x(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape or (2, 3, 4, 5), dtype=dtype)


Call = Callable[[str], object]
ERRORS: list[tuple[str, type[Exception], str, Call]] = [
    ("not-a-tensor", TypeError, r"resample: expected input to be a Tensor, got list",
     lambda i: resample([[1.0]], 3, impl=i)),
    ("inputs-not-a-list", TypeError, r"resample_sum: expected inputs to be a list of tensors, got Tensor",
     lambda i: resample_sum(x(), impl=i)),
    ("input-not-a-tensor", TypeError, r"resample_cat: expected inputs\[1\] to be a Tensor, got float",
     lambda i: resample_cat([x(), 1.0], impl=i)),
    ("no-inputs", ValueError, r"resample_sum: expected 1 to 8 inputs, got 0",
     lambda i: resample_sum([], impl=i)),
    ("nine-inputs", ValueError, r"resample_cat: expected 1 to 8 inputs, got 9",
     lambda i: resample_cat([x()] * 9, impl=i)),
    ("rank-2", ValueError, r"resample: expected input to be \[N, C, \*spatial\] with 1 to 3 spatial axes, got 2",
     lambda i: resample(x(3, 4), 3, impl=i)),
    ("rank-6", ValueError, r"with 1 to 3 spatial axes, got 6 dimensions",
     lambda i: resample_sum([x(1, 1, 1, 1, 1, 1)], impl=i)),
    ("mixed-ranks", ValueError, r"resample_sum: expected inputs\[1\] to have 4 dimensions like inputs\[0\], got 3",
     lambda i: resample_sum([x(), x(2, 3, 4)], impl=i)),
    ("integers", TypeError, r"resample: expected input to be one of float32, float16, bfloat16, float64, got torch.int64",
     lambda i: resample(x(dtype=torch.int64), 3, impl=i)),
    ("complex", TypeError, r"got torch.complex64",
     lambda i: resample_cat([x(dtype=torch.complex64)], impl=i)),
    ("devices", ValueError, r"resample_sum: expected inputs\[1\] on cpu like inputs\[0\], got meta",
     lambda i: resample_sum([x(), torch.empty(2, 3, 4, 5, device="meta")], impl=i)),
    ("channels", ValueError, r"resample_sum: expected inputs\[1\] to have 3 channels like inputs\[0\], got 4",
     lambda i: resample_sum([x(), x(2, 4, 2, 2)], impl=i)),
    ("batch", ValueError, r"resample_cat: expected inputs\[2\] to have batch size 2 or 1, got 3",
     lambda i: resample_cat([x(), x(1, 3, 2, 2), x(3, 3, 2, 2)], impl=i)),
    ("empty-axis", ValueError, r"resample: expected input to have no spatial axis of size 0, got shape \(2, 3, 0, 5\)",
     lambda i: resample(x(2, 3, 0, 5), 3, impl=i)),
    ("size-0", ValueError, r"resample: expected size to be at least 1, got \(0, 3\)",
     lambda i: resample(x(), (0, 3), impl=i)),
    ("size-negative", ValueError, r"expected size to be at least 1, got \(-1, -1\)",
     lambda i: resample_sum([x()], -1, impl=i)),
    ("size-entries", ValueError, r"resample_sum: expected size to have 2 entries \[H, W\], got 3",
     lambda i: resample_sum([x()], (1, 2, 3), impl=i)),
    ("size-float", TypeError, r"resample: expected size to be integers, got 3.5",
     lambda i: resample(x(), 3.5, impl=i)),
    ("size-and-factor", ValueError, r"resample: expected exactly one of size and scale_factor, got both",
     lambda i: resample(x(), 3, 2.0, impl=i)),
    ("no-size", ValueError, r"resample: expected exactly one of size and scale_factor, got neither",
     lambda i: resample(x(), impl=i)),
    ("factor-nan", ValueError, r"resample: expected scale_factor to be positive and finite, got nan",
     lambda i: resample(x(), scale_factor=math.nan, impl=i)),
    ("factor-inf", ValueError, r"resample_sum: expected scale_factors to be positive and finite, got inf",
     lambda i: resample_sum([x()], scale_factors=math.inf, impl=i)),
    ("factor-0", ValueError, r"positive and finite, got 0",
     lambda i: resample(x(), scale_factor=0, impl=i)),
    ("factor-too-small", ValueError, r"expected a result of at least one element per axis, got \(0, 0\)",
     lambda i: resample(x(), scale_factor=0.1, impl=i)),
    ("factor-type", TypeError, r"resample: expected scale_factor to be numbers, got str",
     lambda i: resample(x(), scale_factor=["a", "b"], impl=i)),
    ("factor-entries", ValueError, r"resample: expected scale_factor to have one factor per spatial axis \(2\), got 3",
     lambda i: resample(x(), scale_factor=(1.0, 2.0, 3.0), impl=i)),
    ("factors-per-input", ValueError, r"resample_sum: expected scale_factors to have one entry per input \(1\), got 2",
     lambda i: resample_sum([x()], scale_factors=[2.0, 2.0], impl=i)),
    ("factors-disagree", ValueError, r"resample_sum: expected scale_factors\[1\] to give the size \(8, 10\) of scale_factors\[0\], got \(12, 15\)",
     lambda i: resample_sum([x(), x()], scale_factors=[2.0, 3.0], impl=i)),
    ("factor-against-size", ValueError, r"resample_cat: expected scale_factors\[0\] to give the size \(9, 9\) of size, got \(8, 10\)",
     lambda i: resample_cat([x()], 9, scale_factors=2.0, impl=i)),
    ("recompute-without-factor", ValueError, r"resample: recompute_scale_factor=True needs scale_factor",
     lambda i: resample(x(), 3, recompute_scale_factor=True, impl=i)),
    ("mode", ValueError, r"resample: expected mode to be one of \('nearest', 'nearest-exact', 'linear', 'bilinear'\) for 2 spatial axes \[N, C, H, W\], got 'cubic'",
     lambda i: resample(x(), 3, mode="cubic", impl=i)),
    ("mode-none", ValueError, r"expected mode to be one of .* got None",
     lambda i: resample_sum([x()], mode=None, impl=i)),
    ("mode-of-other-rank", ValueError, r"expected mode to be one of .* got 'trilinear'",
     lambda i: resample(x(), 3, mode="trilinear", impl=i)),
    ("modes-per-input", ValueError, r"resample_sum: expected mode to have one entry per input \(2\), got 1",
     lambda i: resample_sum([x(), x()], mode=["nearest"], impl=i)),
    ("corners-with-nearest", ValueError, r"resample: expected align_corners=None with mode 'nearest', got True",
     lambda i: resample(x(), 3, align_corners=True, impl=i)),
    ("corners-false-with-nearest", ValueError, r"expected align_corners=None with mode 'nearest-exact', got False",
     lambda i: resample_sum([x()], 3, mode="nearest-exact", align_corners=False, impl=i)),
    ("corners-per-input", ValueError, r"expected align_corners=None with mode 'nearest', got True",
     lambda i: resample_sum([x(), x()], mode=["linear", "nearest"], align_corners=[True, True], impl=i)),
    ("corners-type", ValueError, r"expected align_corners to be None, True or False, got 'yes'",
     lambda i: resample(x(), 3, mode="linear", align_corners=["yes"], impl=i)),
    ("antialias", ValueError, r"resample: expected antialias=False with mode 'bilinear', got True",
     lambda i: resample(x(), 3, mode="bilinear", antialias=True, impl=i)),
    ("activation", ValueError, r"resample_sum: expected activation to be one of \(None, 'relu'\), got 'tanh'",
     lambda i: resample_sum([x()], activation="tanh", impl=i)),
    ("dtype", TypeError, r"resample_sum: expected dtype to be one of float32, .*, got torch.int8",
     lambda i: resample_sum([x()], dtype=torch.int8, impl=i)),
    ("weights-shape", ValueError, r"resample_sum: expected weights \[2\], one per input, got \(3,\)",
     lambda i: resample_sum([x(), x()], weights=x(3), impl=i)),
    ("weights-rank", ValueError, r"resample_sum: expected weights \[1\], one per input, got \(1, 1\)",
     lambda i: resample_sum([x()], weights=x(1, 1), impl=i)),
    ("weights-type", TypeError, r"resample_sum: expected weights to be a Tensor, got list",
     lambda i: resample_sum([x()], weights=[1.0], impl=i)),
    ("weights-dtype", TypeError, r"resample_sum: expected weights to be one of float32.*got torch.int64",
     lambda i: resample_sum([x()], weights=torch.ones(1, dtype=torch.int64), impl=i)),
    ("weights-device", ValueError, r"resample_sum: expected weights on cpu like inputs\[0\], got meta",
     lambda i: resample_sum([x()], weights=torch.ones(1, device="meta"), impl=i)),
]  # fmt: skip


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda e: e[0])
def test_error_text(error: tuple[str, type[Exception], str, Call], impl: str) -> None:
    _, kind, text, call = error
    with pytest.raises(kind, match=text) as caught:
        call(impl)
    assert str(caught.value).startswith("resample")


def test_unknown_impl() -> None:
    with pytest.raises(
        ValueError, match=r'resample: expected impl to be "auto", "kernel" or "reference"'
    ):
        resample(x(), 3, impl="cuda")  # type: ignore[arg-type]


def test_the_message_survives_full_graph_capture() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda a, b: resample_sum([a, b]), fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match=r"expected inputs\[1\] to have 3 channels"):
        compiled(x(), x(2, 4, 2, 2))


def test_kernel_on_request_says_every_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_extension, "has_kernels", lambda device: False)
    monkeypatch.setattr(_extension, "WHY_NOT", "it was not built")
    with pytest.raises(RuntimeError, match=r'resample: impl="kernel", but it was not built$'):
        resample(x(), 3, impl="kernel")
    with pytest.raises(RuntimeError, match=r"it was not built; a torch\.func transform is active"):
        torch.func.vmap(lambda a: resample(a, 3, impl="kernel"))(x(2, 1, 3, 4, 5))


def test_raw_operators_refuse_what_would_read_out_of_bounds() -> None:
    if not _extension.LOADED:
        missing(f"no kernels: {_extension.WHY_NOT}")
    maps = [x(), x(2, 3, 2, 2)]
    spec = _spec.pack([_spec.Mode.LINEAR] * 2, cat=False, activation="relu", channels_last=False,
                      dtype=torch.float32, accumulate_double=False)  # fmt: skip
    gate = torch.zeros(16, dtype=torch.uint8)
    shapes = [2, 3, 4, 5, 2, 3, 2, 2]
    good = [1 | 1 << 4]
    calls: list[tuple[str, Callable[[], object]]] = [
        ("no tensor arguments", lambda: _ops.gather([], [4, 5], spec)),  # the dispatcher's own
        ("expected 1 to 8 inputs, got 9", lambda: _ops.gather([x()] * 9, [4, 5], spec)),
        ("expected 1 to 3 spatial", lambda: _ops.gather(maps, [4, 5, 6, 7], spec)),
        ("expected a map of 3 dimensions", lambda: _ops.gather(maps, [4], spec)),
        ("unknown mode 15", lambda: _ops.gather(maps, [4, 5], spec | 15)),
        ("unknown activation", lambda: _ops.gather(maps, [4, 5], spec | 15 << 32)),
        ("expected spatial sizes above 0", lambda: _ops.gather(maps, [4, 0], spec)),
        ("expected every axis below", lambda: _ops.gather(maps, [4, 2**31], spec)),
        ("expected 3 channels", lambda: _ops.gather([x(), x(2, 4, 2, 2)], [4, 5], spec)),
        ("expected a batch of 3 or 1", lambda: _ops.gather([x(), x(3, 3, 2, 2)], [4, 5], spec)),
        ("expected float32", lambda: _ops.gather([x(dtype=torch.int32)], [4, 5], spec)),
        ("expected 4 scales", lambda: _ops.gather_full(maps, None, None, [4, 5], spec, [1.0])),
        ("contiguous weights", lambda: _ops.gather_full(maps, x(3), None, [4, 5], spec, [])),
        ("accumulation type", lambda: _ops.gather_full(maps, x(2).double(), None, [4, 5], spec, [])),
        ("a mask of 16", lambda: _ops.gather_full(maps, None, gate[:9], [4, 5], spec, [])),
        ("expected shapes of 1 to 8", lambda: _ops.spread(x(), [2, 3, 4], spec, *good)),
        ("3 to 5 dimensions", lambda: _ops.spread(x(2, 3), [2, 3], spec, *good)),
        ("expected 3 channels", lambda: _ops.spread(x(), [2, 4, 4, 5], spec, *good)),
        ("sizes of at least 0", lambda: _ops.spread(x(), [-2, 3, 4, 5], spec, *good)),
        ("a batch of 2 or 1", lambda: _ops.spread(x(), [5, 3, 4, 5], spec, *good)),
        ("expected no inputs or 2", lambda: _ops.spread_full(
            x(), None, None, [x()], shapes, spec, *good, [])),
        ("its given shape", lambda: _ops.spread_full(
            x(), None, None, [x(), x()], shapes, spec, *good, [])),
        ("a mask of 16", lambda: _ops.spread_full(
            x(), gate[:8], None, [], shapes, spec, *good, [])),
    ]  # fmt: skip
    for text, call in calls:
        with pytest.raises(RuntimeError, match=text):
            call()
    assert _ops.gather(maps, [4, 5], spec).shape == (2, 3, 4, 5)


def test_a_cuda_fallback_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from msr_cuda import functional

    class OnCuda:
        is_cuda = True
        device = torch.device("cuda")

    monkeypatch.setattr(_extension, "has_kernels", lambda device: False)
    monkeypatch.setattr(_extension, "WHY_NOT", "no nvcc was found")
    monkeypatch.setattr(functional, "_warned", set())
    with pytest.warns(UserWarning, match="resample_sum runs in plain PyTorch: no nvcc was found"):
        assert functional._use_reference("resample_sum", "auto", [OnCuda()])  # type: ignore[list-item]
    assert functional._use_reference("resample_sum", "auto", [OnCuda()])  # type: ignore[list-item]


def test_public_names_are_documented() -> None:
    for name in msr_cuda.__all__:
        item = getattr(msr_cuda, name)
        assert isinstance(item, str) or item.__doc__
