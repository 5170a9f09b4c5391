"""Bad input: an error that names function, argument, expected and got; never a crash."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import pytest
import torch
from conftest import missing
from torch import Tensor

import msr_cuda
from msr_cuda import (
    Pool,
    _dispatch,
    _extension,
    _ops,
    _spec,
    resample,
    resample_argmax,
    resample_cat,
    resample_max,
    resample_pyramid,
    resample_sum,
)
from msr_cuda import resample_binary_cross_entropy_with_logits as resample_bce
from msr_cuda import resample_cross_entropy as resample_ce


def x(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape or (2, 3, 4, 5), dtype=dtype)


def labels(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.zeros(shape or (2, 8, 8), dtype=dtype)


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
    ("mode", ValueError, r"resample: expected mode to be one of \('nearest', 'nearest-exact', 'area', 'linear', 'bilinear', 'cubic', 'bicubic', 'lanczos'\) for 2 spatial axes \[N, C, H, W\], got 'quintic'",
     lambda i: resample(x(), 3, mode="quintic", impl=i)),
    ("mode-list", ValueError, r"resample_sum: expected mode to be one of .*, got \['nearest'\]",
     lambda i: resample_sum([x()], mode=[["nearest"]], impl=i)),
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
    ("corners-with-area", ValueError, r"resample: expected align_corners=None with mode 'area', got True",
     lambda i: resample(x(), 3, mode="area", align_corners=True, impl=i)),
    ("corners-with-lanczos", ValueError, r"resample: expected align_corners=None with mode 'lanczos', got True",
     lambda i: resample(x(), 3, mode="lanczos", align_corners=True, antialias=True, impl=i)),
    ("antialias", ValueError, r"resample: expected antialias=False with mode 'nearest', got True",
     lambda i: resample(x(), 3, antialias=True, impl=i)),
    ("antialias-area", ValueError, r"resample_max: expected antialias=False with mode 'area', got True",
     lambda i: resample_max([x()], 3, mode="area", antialias=True, impl=i)),
    ("antialias-lanczos", ValueError, r"resample: expected antialias=True with mode 'lanczos', got False",
     lambda i: resample(x(), 3, mode="lanczos", impl=i)),
    ("antialias-type", TypeError, r"resample_cat: expected antialias to be True or False, got 'yes'",
     lambda i: resample_cat([x()], 3, mode="linear", antialias=["yes"], impl=i)),
    ("antialias-per-input", ValueError, r"resample_sum: expected antialias to have one entry per input \(1\), got 2",
     lambda i: resample_sum([x()], 3, mode="linear", antialias=[True, True], impl=i)),
    ("activation", ValueError, r"resample_sum: expected activation to be one of \(None, 'relu', .*\), got 'tanh'",
     lambda i: resample_sum([x()], activation="tanh", impl=i)),
    ("dtype", TypeError, r"resample_sum: expected dtype to be one of float32, .*, got torch.int8",
     lambda i: resample_sum([x()], dtype=torch.int8, impl=i)),
    ("weights-shape", ValueError, r"resample_sum: expected weights to be \[S\], \[S, C\], \[N, S, C\] or \[N, S, 1, \*size\] with S = 2, C = 3, N = 2 and size \(4, 5\), got \(3,\)",
     lambda i: resample_sum([x(), x()], weights=x(3), impl=i)),
    ("weights-channels", ValueError, r"expected weights to be .* got \(1, 1\)",
     lambda i: resample_sum([x()], weights=x(1, 1), impl=i)),
    ("weights-batch", ValueError, r"expected weights to be .* got \(3, 1, 3\)",
     lambda i: resample_sum([x()], weights=x(3, 1, 3), impl=i)),
    ("weights-pixels", ValueError, r"expected weights to be .* got \(2, 1, 1, 5, 4\)",
     lambda i: resample_sum([x()], weights=x(2, 1, 1, 5, 4), impl=i)),
    ("weights-0d", ValueError, r"expected weights to be .* got \(\)",
     lambda i: resample_sum([x()], weights=torch.tensor(1.0), impl=i)),
    ("weights-type", TypeError, r"resample_sum: expected weights to be a Tensor, got list",
     lambda i: resample_sum([x()], weights=[1.0], impl=i)),
    ("weights-dtype", TypeError, r"resample_sum: expected weights to be one of float32.*got torch.int64",
     lambda i: resample_sum([x()], weights=torch.ones(1, dtype=torch.int64), impl=i)),
    ("weights-device", ValueError, r"resample_sum: expected weights on cpu like inputs\[0\], got meta",
     lambda i: resample_sum([x()], weights=torch.ones(1, device="meta"), impl=i)),
    ("normalize", ValueError, r"resample_sum: expected normalize to be one of \(None, 'softmax', 'fast'\), got 'sum'",
     lambda i: resample_sum([x()], weights=x(1), normalize="sum", impl=i)),
    ("normalize-nothing", ValueError, r"resample_sum: expected weights with normalize='softmax', got None",
     lambda i: resample_sum([x()], normalize="softmax", impl=i)),
    ("eps-type", TypeError, r"resample_sum: expected eps to be a number, got str",
     lambda i: resample_sum([x()], weights=x(1), normalize="fast", eps="1", impl=i)),
    ("eps", ValueError, r"resample_sum: expected eps to be finite and at least 0, got -1",
     lambda i: resample_sum([x()], weights=x(1), normalize="fast", eps=-1, impl=i)),
    ("out-scale", TypeError, r"resample_sum: expected out_scale to be a number, got Tensor",
     lambda i: resample_sum([x()], out_scale=torch.tensor(2.0), impl=i)),
    ("scale", ValueError, r"resample_sum: expected scale \[3\], one per channel, got \(2,\)",
     lambda i: resample_sum([x()], scale=x(2), impl=i)),
    ("bias-type", TypeError, r"resample_sum: expected bias to be a Tensor, got float",
     lambda i: resample_sum([x()], bias=1.0, impl=i)),
    ("bias-dtype", TypeError, r"resample_sum: expected bias to be one of float32.*, got torch.int64",
     lambda i: resample_sum([x()], bias=labels(3), impl=i)),
    ("bias-device", ValueError, r"resample_sum: expected bias on cpu like inputs\[0\], got meta",
     lambda i: resample_sum([x()], bias=torch.ones(3, device="meta"), impl=i)),

    ("pool-in-resample", ValueError, r"resample: expected mode to be one of .*, got Pool\(",
     lambda i: resample(x(), 2, mode=Pool("max", 2), impl=i)),
    ("pool-size", ValueError, r"resample_sum: expected inputs\[1\] to have the result's size \(2, 2\) after Pool\(kind='max', .*, got \(2, 3\) from \(4, 5\)",
     lambda i: resample_sum([x(2, 3, 2, 2), x()], mode=["nearest", Pool("max", 3, 2, 1)], impl=i)),
    ("pool-too-large", ValueError, r"expected inputs\[0\] to have the result's size .* got \(-1, 0\) from \(4, 5\)",
     lambda i: resample_cat([x()], 2, mode=Pool("avg", 6, 1), impl=i)),
    ("pool-factor", ValueError, r"resample_sum: expected scale_factors\[0\]=None with a Pool, got \(0.5, 0.5\)",
     lambda i: resample_sum([x(1, 1, 4, 4)], mode=Pool("max", 2), scale_factors=0.5, impl=i)),
    ("pool-rank", ValueError, r"resample_sum: expected a Pool for 2 spatial axes \[H, W\], got Pool",
     lambda i: resample_sum([x()], 2, mode=Pool("max", (2, 2, 2)), impl=i)),
    ("pool-corners", ValueError, r"resample_sum: expected align_corners=None with a Pool, got True",
     lambda i: resample_sum([x()], 2, mode=Pool("max", 2), align_corners=True, impl=i)),
    ("pool-antialias", ValueError, r"resample_sum: expected antialias=False with a Pool, got True",
     lambda i: resample_sum([x()], 2, mode=Pool("max", 2), antialias=True, impl=i)),

    ("max-channels", ValueError, r"resample_max: expected inputs\[1\] to have 3 channels like inputs\[0\], got 4",
     lambda i: resample_max([x(), x(2, 4, 2, 2)], impl=i)),
    ("pyramid-nothing", ValueError, r"resample_pyramid: expected exactly one of sizes and scale_factors, got neither",
     lambda i: resample_pyramid(x(), impl=i)),
    ("pyramid-both", ValueError, r"resample_pyramid: expected exactly one of sizes and scale_factors, got both",
     lambda i: resample_pyramid(x(), [3], [2.0], impl=i)),
    ("pyramid-one", TypeError, r"resample_pyramid: expected sizes to be a list with one entry per level, got int",
     lambda i: resample_pyramid(x(), 3, impl=i)),
    ("pyramid-empty", ValueError, r"resample_pyramid: expected 1 to 8 levels in scale_factors, got 0",
     lambda i: resample_pyramid(x(), scale_factors=[], impl=i)),
    ("pyramid-none", TypeError, r"resample_pyramid: expected sizes\[1\] to be given, got None",
     lambda i: resample_pyramid(x(), [3, None], impl=i)),
    ("pyramid-not-a-tensor", TypeError, r"resample_pyramid: expected input to be a Tensor, got float",
     lambda i: resample_pyramid(1.0, [3], impl=i)),

    ("logits", TypeError, r"resample_cross_entropy: expected logits to be a Tensor, got list",
     lambda i: resample_ce([1.0], labels(), impl=i)),
    ("logits-integers", TypeError, r"resample_cross_entropy: expected logits to be one of float32.*, got torch.int64",
     lambda i: resample_ce(x(dtype=torch.int64), labels(), impl=i)),
    ("target", TypeError, r"resample_cross_entropy: expected target to be a Tensor, got None",
     lambda i: resample_ce(x(), None, impl=i)),
    ("target-shape", ValueError, r"resample_cross_entropy: expected target \[2, \*size\] of 3 dimensions for logits \(2, 3, 4, 5\), got \(3, 8, 8\)",
     lambda i: resample_ce(x(), labels(3, 8, 8), impl=i)),
    ("target-probabilities", ValueError, r"resample_cross_entropy: expected target \[2, 3, \*size\] of 4 dimensions for logits \(2, 3, 4, 5\), got \(2, 4, 8, 8\)",
     lambda i: resample_ce(x(), x(2, 4, 8, 8), impl=i)),
    ("target-bool", TypeError, r"resample_cross_entropy: expected target to be class indices \(uint8, int16, int32, int64\) or floating-point probabilities, got torch.bool",
     lambda i: resample_ce(x(), labels(dtype=torch.bool), impl=i)),
    ("target-device", ValueError, r"resample_cross_entropy: expected target on cpu like logits, got meta",
     lambda i: resample_ce(x(), labels().to("meta"), impl=i)),
    ("ignored-probabilities", ValueError, r"resample_cross_entropy: expected ignore_index below 0 with class probabilities, got 255",
     lambda i: resample_ce(x(), x(2, 3, 8, 8), ignore_index=255, impl=i)),
    ("ignore-type", TypeError, r"resample_cross_entropy: expected ignore_index to be an integer, got float",
     lambda i: resample_ce(x(), labels(), ignore_index=1.0, impl=i)),
    ("smoothing", ValueError, r"resample_cross_entropy: expected label_smoothing from 0 to 1, got 1.5",
     lambda i: resample_ce(x(), labels(), label_smoothing=1.5, impl=i)),
    ("class-weights", ValueError, r"resample_cross_entropy: expected weight \[3\], one per channel, got \(4,\)",
     lambda i: resample_ce(x(), labels(), weight=x(4), impl=i)),
    ("reduction", ValueError, r"resample_cross_entropy: expected reduction to be one of \('none', 'mean', 'sum'\), got 'max'",
     lambda i: resample_ce(x(), labels(), reduction="max", impl=i)),
    ("logits-mode", ValueError, r"resample_cross_entropy: expected mode to be one of .*, got 'quintic'",
     lambda i: resample_ce(x(), labels(), mode="quintic", impl=i)),
    ("binary-target", ValueError, r"resample_binary_cross_entropy_with_logits: expected target \[2, 3, \*size\] of 4 dimensions for logits \(2, 3, 4, 5\), got \(2, 8, 8\)",
     lambda i: resample_bce(x(), labels(), impl=i)),
    ("binary-weight", ValueError, r"resample_binary_cross_entropy_with_logits: expected pos_weight that can be broadcast to \(2, 3, 8, 8\), got \(3,\)",
     lambda i: resample_bce(x(), x(2, 3, 8, 8), pos_weight=x(3), impl=i)),
    ("binary-weight-rank", ValueError, r"expected weight that can be broadcast to \(2, 3, 8, 8\), got \(1, 1, 1, 1, 1\)",
     lambda i: resample_bce(x(), x(2, 3, 8, 8), weight=x(1, 1, 1, 1, 1), impl=i)),
    ("binary-reduction", ValueError, r"with_logits: expected reduction to be one of",
     lambda i: resample_bce(x(), x(2, 3, 8, 8), reduction=None, impl=i)),
    ("argmax-dtype", TypeError, r"resample_argmax: expected dtype to be one of int64, int32, uint8, got torch.int8",
     lambda i: resample_argmax(x(), 8, dtype=torch.int8, impl=i)),
    ("argmax-classes", ValueError, r"resample_argmax: expected 1 to 256 channels for dtype uint8, got 300",
     lambda i: resample_argmax(x(1, 300, 2, 2), 8, dtype=torch.uint8, impl=i)),
    ("argmax-no-classes", ValueError, r"resample_argmax: expected 1 to 2147483648 channels for dtype int64, got 0",
     lambda i: resample_argmax(x(1, 0, 2, 2), 8, impl=i)),
    ("argmax-logits", TypeError, r"resample_argmax: expected logits to be a Tensor, got float",
     lambda i: resample_argmax(1.0, 8, impl=i)),
]  # fmt: skip


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda e: e[0])
def test_error_text(error: tuple[str, type[Exception], str, Call], impl: str) -> None:
    _, kind, text, call = error
    with pytest.raises(kind, match=text) as caught:
        call(impl)
    assert str(caught.value).startswith("resample")


POOL_ERRORS: list[tuple[type[Exception], str, Callable[[], object]]] = [
    (ValueError, r'Pool: expected kind to be "max" or "avg", got \'min\'', lambda: Pool("min", 2)),
    (TypeError, r"Pool: expected kernel_size to be integers, got 2.0", lambda: Pool("max", 2.0)),
    (ValueError, r"Pool: expected kernel_size to be at least 1, .*, got 0", lambda: Pool("max", 0)),
    (ValueError, r"Pool: expected stride to be at least 1, .*, got \(2, 0\)", lambda: Pool("max", 3, (2, 0))),
    (TypeError, r"Pool: expected stride to be integers, got True", lambda: Pool("max", 3, True)),
    (TypeError, r'Pool: expected padding to be an integer, "same" or one \(lo, hi\) per spatial axis, got \(0, 1\)', lambda: Pool("max", 3, 2, (0, 1))),
    (TypeError, r"expected padding to be .* got 'valid'", lambda: Pool("max", 3, 2, "valid")),
    (ValueError, r"Pool: expected padding from 0 to below kernel_size 3, got 3", lambda: Pool("max", 3, 2, 3)),
    (ValueError, r"padding from 0 to below kernel_size 2, got \(\(0, 1\), \(2, 0\)\)", lambda: Pool("avg", (3, 2), 2, ((0, 1), (2, 0)))),
    (ValueError, r"Pool: expected kernel_size, stride and padding for one number of spatial axes, got", lambda: Pool("max", (3, 3), 2, ((0, 1),) * 3)),
    (TypeError, r"Pool: expected count_include_pad to be a bool, got int", lambda: Pool("avg", 3, count_include_pad=1)),
]  # fmt: skip


@pytest.mark.parametrize("error", POOL_ERRORS, ids=lambda e: e[1][:40])
def test_pool_error_text(error: tuple[type[Exception], str, Callable[[], object]]) -> None:
    kind, text, call = error
    with pytest.raises(kind, match=text):
        call()


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
    pool = spec | _spec.MAX_POOL << 4

    def extended(
        spec: int = spec, weights: Tensor | None = None, pixels: Tensor | None = None,
        grad: Tensor | None = None, scales: Sequence[float] = (), windows: Sequence[int] = (),
    ) -> Tensor:  # fmt: skip
        found: Tensor = _ops.gather_extended(
            maps, weights, pixels, None, grad, [4, 5], spec, list(scales), list(windows)
        )[0]
        return found

    calls: list[tuple[str, Callable[[], object]]] = [
        ("no tensor arguments", lambda: _ops.gather([], [4, 5], spec)),  # the dispatcher's own
        ("expected 1 to 9 inputs, got 10", lambda: _ops.gather([x()] * 10, [4, 5], spec)),
        ("expected 1 to 3 spatial", lambda: _ops.gather(maps, [4, 5, 6, 7], spec)),
        ("expected a map of 3 dimensions", lambda: _ops.gather(maps, [4], spec)),
        ("unknown mode 15", lambda: _ops.gather(maps, [4, 5], spec | 15)),
        ("unknown activation", lambda: _ops.gather(maps, [4, 5], spec | 15 << _spec.ACTIVATION_SHIFT)),
        ("expected spatial sizes above 0", lambda: _ops.gather(maps, [4, 0], spec)),
        ("expected every axis below", lambda: _ops.gather(maps, [4, 2**31], spec)),
        ("expected 3 channels", lambda: _ops.gather([x(), x(2, 4, 2, 2)], [4, 5], spec)),
        ("expected a batch of 3 or 1", lambda: _ops.gather([x(), x(3, 3, 2, 2)], [4, 5], spec)),
        ("expected float32", lambda: _ops.gather([x(dtype=torch.int32)], [4, 5], spec)),
        ("expected 4 scales", lambda: _ops.gather_full(maps, None, None, [4, 5], spec, [1.0])),
        (r"expected weights \[2\]", lambda: _ops.gather_full(maps, x(3), None, [4, 5], spec, [])),
        ("accumulation type", lambda: _ops.gather_full(maps, x(2).double(), None, [4, 5], spec, [])),
        ("a mask of 16", lambda: _ops.gather_full(maps, None, gate[:9], [4, 5], spec, [])),
        ("expected shapes of 1 to 9", lambda: _ops.spread(x(), [2, 3, 4], spec, *good)),
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
        ("expected 4 scales", lambda: extended(scales=[1.0])),
        ("expected 12 numbers of windows", lambda: extended(windows=[1, 1])),
        ("expected windows for a pool", lambda: extended(spec=pool)),
        ("windows that reach into the map", lambda: extended(spec=pool, windows=[1, 1, 0] * 2 + [3, 9, 0] * 2)),
        ("windows that reach into the map", lambda: extended(spec=pool, windows=[1, 1, 0] * 2 + [2, 1, 2] * 2)),
        (r"weights \[1 or 2, up to 2, 1 or 3\]", lambda: extended(weights=x(2, 3, 3))),
        (r"pixel weights \[1 or 2, up to 2, 1, \*size\]", lambda: extended(pixels=x(2, 2, 1, 5, 4))),
        ("a gradient of the result's size", lambda: extended(grad=x(2, 3, 5, 5))),
        ("a maximum or a concatenation", lambda: extended(spec=spec | _spec.MAX | _spec.CAT)),
        ("out of the result's size", lambda: _ops.gather_out(
            maps, None, None, spec, [], [], out=x(2, 4, 4, 5))),
        ("indices of every max-pooled branch", lambda: _ops.spread_extended(
            x(), None, None, None, [], [], [2, 3, 8, 10], _spec.MAX_POOL, *good, [],
            [2, 2, 0, 2, 2, 0])),
        ("contiguous indices of input 0", lambda: _ops.spread_extended(
            x(), None, None, None, [], [gate], [2, 3, 8, 10], _spec.MAX_POOL, *good, [],
            [2, 2, 0, 2, 2, 0])),
        ("a mask of 32", lambda: _ops.spread_extended(
            x(), gate, None, None, [], [], shapes, spec | _spec.MAX, *good, [], [])),
        ("expected weights with inputs", lambda: _ops.spread_extended(
            x(), None, None, None, maps, [], shapes, spec, *good, [], [])),
        ("inputs and a gradient", lambda: _ops.pixel_weight_grads(x(), [], None, None, spec, [], [])),
    ]  # fmt: skip
    for text, call in calls:
        with pytest.raises(RuntimeError, match=text):
            call()
    assert _ops.gather(maps, [4, 5], spec).shape == (2, 3, 4, 5)


def test_kernel_on_request_says_what_has_no_kernel(kernel: str) -> None:
    a = x().to(kernel)
    probabilities = x(2, 3, 8, 8).to(kernel).requires_grad_()
    for call in (resample_ce, resample_bce):
        with pytest.raises(RuntimeError, match=r'^resample\w*: impl="kernel", but ') as e:
            call(a, probabilities, impl="kernel")
        assert "the target requires a gradient" in str(e.value)


def test_classes_out_of_range_are_named(kernel: str) -> None:
    if kernel != "cpu":
        pytest.skip("about the CPU")
    target = labels()
    for bad in (3, -1, -100):
        target[1, 2, 3] = bad
        text = rf"expected targets in \[0, 3\) or ignore_index=255, got {bad}$"
        with pytest.raises(RuntimeError, match=f"resample_cross_entropy: {text}"):
            resample_ce(x(), target, ignore_index=255, impl="kernel")
    assert resample_ce(x(), target, impl="kernel").isfinite()


def test_a_cuda_fallback_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnCuda:
        is_cuda = True
        device = torch.device("cuda")

    monkeypatch.setattr(_extension, "has_kernels", lambda device: False)
    monkeypatch.setattr(_extension, "WHY_NOT", "no nvcc was found")
    monkeypatch.setattr(_dispatch, "_warned", set())

    def run(impl: str, reasons: list[str]) -> list[str]:
        maps = [OnCuda()]
        return _dispatch.reasons_for_reference("resample_sum", impl, maps, reasons)  # type: ignore[arg-type]

    with pytest.warns(UserWarning, match="resample_sum runs in plain PyTorch: no nvcc was found$"):
        assert run("auto", []) == ["no nvcc was found"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run("auto", []) == ["no nvcc was found"]
        assert run("reference", ["rare"]) == ['impl="reference"']
    with pytest.warns(UserWarning, match="in plain PyTorch: no nvcc was found; a rare mode$"):
        assert run("auto", ["a rare mode"]) == ["no nvcc was found", "a rare mode"]


def test_a_cpu_fallback_is_silent(device: str) -> None:
    if device != "cpu":
        pytest.skip("about the CPU")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resample(x(), 3, mode="area")


def test_public_names_are_documented() -> None:
    for name in msr_cuda.__all__:
        item = getattr(msr_cuda, name)
        assert isinstance(item, str) or item.__doc__
