"""The table of cases from which the operator tests are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

import msr_cuda
from msr_cuda import _spec, _validate

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """One call: an operator, the shapes and layouts of its maps, and its arguments."""

    name: str
    operator: str
    shapes: tuple[Shape, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    weights: bool = False
    layouts: tuple[str, ...] = ()
    parameters: dict[str, Shape] = field(default_factory=dict)

    def maps(self, dtype: torch.dtype, device: str, *, requires_grad: bool = False) -> list[Tensor]:
        layouts = self.layouts or ("contiguous",) * len(self.shapes)
        return [
            make_map(shape, layout, dtype, device).requires_grad_(requires_grad)
            for shape, layout in zip(self.shapes, layouts, strict=True)
        ]

    def make_weights(
        self, dtype: torch.dtype, device: str, *, requires_grad: bool = False
    ) -> Tensor | None:
        if not self.weights:
            return None
        weights = torch.randn(len(self.shapes), dtype=dtype, device=device)
        return weights.requires_grad_(requires_grad)

    def make_parameters(
        self, dtype: torch.dtype, device: str, *, requires_grad: bool = False
    ) -> dict[str, Tensor]:
        """Tensor arguments other than the maps, by name."""
        made = {}
        weights = self.make_weights(dtype, device, requires_grad=requires_grad)
        if weights is not None:
            made["weights"] = weights
        for name, shape in self.parameters.items():
            values = torch.randn(shape, dtype=dtype, device=device)
            if len(shape) == 1 and self.kwargs.get("normalize") == "fast":
                values = values.abs()  # a negative one would silence its map
            made[name] = values.requires_grad_(requires_grad)
        return made

    def call(
        self,
        maps: list[Tensor],
        parameters: dict[str, Tensor] | None = None,
        impl: str = "auto",
    ) -> Tensor:
        function: Callable[..., Tensor] = getattr(msr_cuda, self.operator)
        if self.operator == "resample":
            return function(maps[0], **self.kwargs, impl=impl)
        return function(maps, **(parameters or {}), **self.kwargs, impl=impl)

    def prepared(self, maps: list[Tensor]) -> _spec.Call:
        """What the public function makes of the call: modes, scales and packed arguments."""
        kwargs = dict(self.kwargs)
        single = self.operator == "resample"
        keep = not kwargs.pop("recompute_scale_factor", False)
        scales = [kwargs.get("scale_factor")] if single else kwargs.get("scale_factors")
        return _validate.prepare(
            self.operator, maps, kwargs.get("size"), kwargs.get("mode", "nearest"),
            kwargs.get("align_corners"), kwargs.get("antialias", False), scales,
            kwargs.get("activation"), kwargs.get("dtype"),
            cat=self.operator == "resample_cat", maximum=self.operator == "resample_max",
            keep_scales=keep,
        )  # fmt: skip


def make_map(shape: Shape, layout: str, dtype: torch.dtype, device: str) -> Tensor:
    """A map of normal values, laid out in memory as told."""
    base = torch.randn(shape, dtype=torch.float64, device=device).to(dtype)
    if layout == "contiguous":
        return base
    if layout == "channels_last":
        return base.to(memory_format=_spec.memory_format(True, len(shape)))
    if layout == "strided":  # a view with gaps on every axis, and an offset
        room = torch.zeros([2 * s + 1 for s in shape], dtype=dtype, device=device)
        view = room[tuple(slice(1, None, 2) for _ in shape)]
        view.copy_(base)
        return view.detach()
    if layout == "tokens":  # [N, H * W, C] seen as [N, C, H, W], as transformers do
        return base.flatten(2).transpose(1, 2).contiguous().transpose(1, 2).unflatten(2, shape[2:])
    if layout == "expanded":  # one channel, seen many times
        return base[:, :1].expand(shape)
    raise ValueError(layout)


def _cases() -> list[Case]:
    cases: list[Case] = []

    def add(name: str, operator: str, *shapes: Shape, weights: bool = False,
            layouts: tuple[str, ...] = (), **kwargs: Any) -> None:  # fmt: skip
        cases.append(Case(name, operator, shapes, kwargs, weights, layouts))

    modes: list[dict[str, Any]] = [
        dict(mode="nearest"), dict(mode="nearest-exact"),
        dict(mode="linear"), dict(mode="linear", align_corners=True),
    ]  # fmt: skip
    for arguments in modes:
        label = arguments["mode"] + ("-corners" if "align_corners" in arguments else "")
        add(f"1d-{label}", "resample", (2, 3, 7), size=11, **arguments)
        add(f"2d-{label}", "resample", (2, 3, 5, 7), size=(8, 13), **arguments)
        add(f"3d-{label}", "resample", (2, 2, 3, 4, 5), size=(5, 3, 7), **arguments)
        add(f"2d-{label}-down", "resample", (2, 3, 13, 11), size=(4, 3), **arguments)
        add(f"2d-{label}-factor", "resample", (2, 3, 7, 5), scale_factor=1.5, **arguments)
        add(f"2d-{label}-one-axis", "resample", (2, 3, 6, 5), size=(6, 9), **arguments)
        add(f"2d-{label}-from-one-pixel", "resample", (2, 3, 1, 1), size=(4, 5), **arguments)
        add(f"2d-{label}-to-one-pixel", "resample", (2, 3, 4, 5), size=1, **arguments)
        add(f"sum-{label}", "resample_sum", (2, 3, 4, 6), (2, 3, 2, 3), (2, 3, 9, 5), **arguments)
        add(f"cat-{label}", "resample_cat", (2, 3, 4, 6), (2, 1, 2, 3), (2, 4, 9, 5), **arguments)
    add("2d-factors", "resample", (2, 3, 7, 9), scale_factor=(0.6, 1.7), mode="bilinear")
    add("2d-recomputed", "resample", (2, 3, 7, 9), scale_factor=1.3, mode="bilinear",
        recompute_scale_factor=True)  # fmt: skip
    add("2d-same-size", "resample", (2, 3, 4, 5), size=(4, 5), mode="bilinear")
    add("empty-batch", "resample_sum", (0, 3, 4, 4), (0, 3, 2, 2), activation="relu")
    add("many-tiny-planes", "resample", (3, 300, 2, 2), size=4, mode="bilinear")
    add("x16", "resample", (1, 2, 3, 4), size=(48, 64), mode="bilinear")
    add("down-strongly", "resample_sum", (1, 2, 3, 3), (1, 2, 40, 50), mode="linear")

    add("sum-fpn", "resample_sum", (2, 8, 9, 7), (2, 8, 5, 4), mode="nearest")
    add("sum-relu", "resample_sum", (2, 5, 8, 6), (2, 5, 4, 3), (2, 5, 2, 2), activation="relu")
    add("sum-weights", "resample_sum", (2, 3, 5, 6), (2, 3, 3, 3), weights=True, mode="linear")
    add("sum-weights-relu", "resample_sum", (2, 3, 5, 6), (2, 3, 3, 3), (2, 3, 10, 4), weights=True,
        mode="linear", activation="relu")  # fmt: skip
    add("sum-one-input-relu", "resample_sum", (2, 3, 5, 6), size=(7, 7), activation="relu")
    add("sum-batch-broadcast", "resample_sum", (3, 2, 4, 4), (1, 2, 2, 2), (1, 2, 4, 4),
        weights=True, mode="linear", activation="relu")  # fmt: skip
    add("sum-batch-of-one-first", "resample_sum", (1, 2, 4, 4), (3, 2, 2, 2))
    add("sum-pixel-broadcast", "resample_sum", (2, 3, 4, 5), (2, 3, 1, 1), mode="linear")
    add("sum-mixed-modes", "resample_sum", (2, 3, 6, 6), (2, 3, 3, 3), (2, 3, 4, 4),
        mode=["nearest", "linear", "nearest-exact"], align_corners=[None, True, None])  # fmt: skip
    add("sum-factors", "resample_sum", (2, 3, 6, 9), (2, 3, 4, 6), mode="linear",
        scale_factors=[None, 1.5], size=(6, 9))  # fmt: skip
    add("sum-factors-give-size", "resample_sum", (2, 3, 5, 7), (2, 3, 10, 14), mode="nearest",
        scale_factors=[1.3, None])  # fmt: skip
    add("sum-eight", "resample_sum", *[(1, 2, 1 + i, 9 - i) for i in range(8)], size=(5, 6),
        weights=True, mode="linear")  # fmt: skip
    add("sum-1d-relu", "resample_sum", (2, 4, 16), (2, 4, 5), mode="linear", activation="relu")
    add("sum-3d-weights", "resample_sum", (2, 2, 4, 3, 5), (2, 2, 2, 2, 2), weights=True,
        mode="linear", activation="relu")  # fmt: skip
    add("sum-one-channel", "resample_sum", (2, 1, 5, 5), (2, 1, 3, 3), mode="linear")
    add("sum-one-image", "resample_sum", (1, 3, 5, 5), (1, 3, 3, 3), activation="relu")
    add("sum-33-columns-relu", "resample_sum", (1, 3, 3, 33), (1, 3, 2, 9), activation="relu")

    add("cat-unet", "resample_cat", (2, 4, 4, 4), (2, 3, 8, 8), size=(8, 8))
    add("cat-relu", "resample_cat", (2, 3, 5, 5), (2, 4, 3, 2), mode="linear", activation="relu")
    add("cat-no-channels", "resample_cat", (2, 3, 4, 4), (2, 0, 2, 2), (2, 1, 2, 2))
    add("cat-batch-broadcast", "resample_cat", (3, 2, 4, 4), (1, 3, 2, 2), mode="linear")
    add("cat-3d", "resample_cat", (2, 2, 2, 3, 4), (2, 1, 4, 6, 8), size=(4, 6, 8), mode="linear")
    add("cat-aspp", "resample_cat", (2, 3, 5, 5), (2, 3, 5, 5), (2, 3, 1, 1), mode="bilinear")

    last = "channels_last"
    add("sum-channels-last", "resample_sum", (2, 5, 6, 7), (2, 5, 3, 4), layouts=(last, last),
        mode="linear", activation="relu", weights=True)  # fmt: skip
    add("sum-mixed-layouts", "resample_sum", (2, 5, 6, 7), (2, 5, 3, 4), (2, 5, 2, 2),
        layouts=("contiguous", last, "tokens"), mode="linear", activation="relu")  # fmt: skip
    add("sum-strided", "resample_sum", (2, 3, 4, 5), (2, 3, 2, 3), layouts=("strided", "strided"),
        mode="linear", weights=True, activation="relu")  # fmt: skip
    add("sum-strided-then-last", "resample_sum", (2, 3, 4, 5), (2, 3, 2, 3),
        layouts=("strided", last), activation="relu")  # fmt: skip
    add("sum-expanded", "resample_sum", (2, 3, 4, 5), (2, 3, 2, 3),
        layouts=("expanded", "expanded"), mode="linear")  # fmt: skip
    add("sum-last-one-image", "resample_sum", (1, 4, 5, 5), (1, 4, 3, 3), layouts=(last, last))
    add("sum-last-one-pixel-first", "resample_sum", (2, 4, 1, 1), (2, 4, 3, 3), size=(3, 3),
        layouts=(last, last))  # fmt: skip
    add("sum-last-to-one-pixel", "resample_sum", (2, 4, 3, 3), (2, 4, 2, 2), size=1,
        layouts=(last, last), activation="relu")  # fmt: skip
    add("sum-last-3d", "resample_sum", (2, 3, 2, 3, 4), (2, 3, 4, 3, 2), layouts=(last, last),
        mode="linear", activation="relu")  # fmt: skip
    add("cat-channels-last", "resample_cat", (2, 3, 6, 6), (2, 4, 3, 3), (2, 1, 2, 2),
        layouts=(last, last, last), mode="linear", activation="relu")  # fmt: skip
    add("cat-mixed-layouts", "resample_cat", (2, 3, 6, 6), (2, 4, 3, 3),
        layouts=(last, "contiguous"), mode="linear")  # fmt: skip
    return cases


def _window_cases() -> list[Case]:
    cases: list[Case] = []

    def add(name: str, operator: str, *shapes: Shape, weights: bool = False,
            layouts: tuple[str, ...] = (), **kwargs: Any) -> None:  # fmt: skip
        cases.append(Case(name, operator, shapes, kwargs, weights, layouts))

    last = "channels_last"
    modes: list[dict[str, Any]] = [
        dict(mode="cubic"), dict(mode="cubic", align_corners=True), dict(mode="area"),
        dict(mode="linear", antialias=True),
        dict(mode="linear", antialias=True, align_corners=True),
        dict(mode="cubic", antialias=True),
        dict(mode="cubic", antialias=True, align_corners=True),
        dict(mode="lanczos", antialias=True),
    ]  # fmt: skip
    for arguments in modes:
        label = arguments["mode"]
        label += "-antialias" if "antialias" in arguments else ""
        label += "-corners" if "align_corners" in arguments else ""
        add(f"1d-{label}", "resample", (2, 3, 7), size=11, **arguments)
        add(f"2d-{label}", "resample", (2, 3, 5, 11), size=(8, 4), **arguments)
        add(f"3d-{label}", "resample", (2, 2, 3, 8, 5), size=(5, 3, 7), **arguments)
        add(f"2d-{label}-to-one-pixel", "resample", (2, 3, 4, 5), size=1, **arguments)
        if "corners" not in label:
            add(f"2d-{label}-factor", "resample", (2, 3, 7, 9), scale_factor=(0.6, 1.7),
                **arguments)  # fmt: skip
        add(f"sum-{label}", "resample_sum", (2, 3, 4, 6), (2, 3, 2, 3), (2, 3, 9, 15),
            weights=True, activation="relu", **arguments)  # fmt: skip
        add(f"sum-last-{label}", "resample_sum", (2, 9, 4, 6), (2, 9, 2, 3), (2, 9, 9, 15),
            layouts=(last, last, last), activation="relu", **arguments)  # fmt: skip
        add(f"cat-last-{label}", "resample_cat", (2, 3, 4, 6), (2, 4, 2, 3), (2, 1, 9, 15),
            layouts=(last, last, last), **arguments)  # fmt: skip
    add("2d-many-taps", "resample", (1, 2, 45, 3), size=(2, 3), mode="bicubic", antialias=True)
    add("cat-mixed-windows", "resample_cat", (2, 3, 4, 6), (2, 1, 2, 3), (2, 4, 9, 5), (2, 2, 4, 6),
        mode=["area", "bicubic", "bilinear", "nearest"],
        align_corners=[None, True, False, None], antialias=[False, False, True, False])  # fmt: skip
    add("sum-mixed-windows", "resample_sum", (2, 3, 4, 6), (2, 3, 2, 3), (2, 3, 9, 5), (1, 3, 1, 1),
        mode=["nearest", "bicubic", "bilinear", "area"], antialias=[False, False, True, False],
        weights=True)  # fmt: skip
    add("bicubic-x2-wide", "resample", (1, 3, 5, 35), size=(10, 70), mode="bicubic")
    add("bicubic-x2-tokens", "resample", (2, 5, 4, 6), size=(8, 12), mode="bicubic",
        layouts=("tokens",))  # fmt: skip
    add("area-strided", "resample", (2, 3, 9, 8), size=(4, 3), mode="area", layouts=("strided",))
    add("sum-batch-broadcast-cubic", "resample_sum", (3, 2, 4, 4), (1, 2, 2, 2), weights=True,
        mode="bicubic", activation="relu")  # fmt: skip
    add("sum-3d-antialias-last", "resample_sum", (1, 4, 3, 4, 5), (1, 4, 7, 9, 11),
        layouts=(last, last), mode="linear", antialias=True, activation="relu")  # fmt: skip
    add("sum-one-tap-windows", "resample_sum", (2, 3, 8, 8), (2, 3, 4, 4), mode="area")
    return cases


def _extended_cases() -> list[Case]:
    cases: list[Case] = []

    def add(name: str, operator: str, *shapes: Shape, layouts: tuple[str, ...] = (),
            parameters: dict[str, Shape] | None = None, **kwargs: Any) -> None:  # fmt: skip
        cases.append(Case(name, operator, shapes, kwargs, False, layouts, parameters or {}))

    pair = ((2, 3, 4, 6), (2, 3, 2, 3))
    linear, last = dict(mode="linear"), "channels_last"
    add("sum-weights-sc-relu6", "resample_sum", *pair, parameters={"weights": (2, 3)},
        activation="relu6", out_scale=4.0, **linear)  # fmt: skip
    add("sum-weights-nsc-leaky", "resample_sum", *pair, parameters={"weights": (2, 2, 3)},
        activation="leaky_relu", **linear)  # fmt: skip
    add("sum-weights-1sc", "resample_sum", *pair, parameters={"weights": (1, 2, 3)}, **linear)
    add("sum-weights-pixels", "resample_sum", *pair, parameters={"weights": (2, 2, 1, 4, 6)},
        **linear)  # fmt: skip
    add("sum-softmax-pixels-sigmoid", "resample_sum", *pair, activation="sigmoid",
        parameters={"weights": (2, 2, 1, 4, 6)}, normalize="softmax", **linear)  # fmt: skip
    add("sum-softmax-sc", "resample_sum", *pair, parameters={"weights": (2, 3)},
        normalize="softmax", **linear)  # fmt: skip
    add("sum-fast-nsc", "resample_sum", *pair, parameters={"weights": (2, 2, 3)},
        normalize="fast", eps=0.01, **linear)  # fmt: skip
    add("sum-affine-hardswish", "resample_sum", *pair, parameters={"scale": (3,), "bias": (3,)},
        activation="hardswish", out_scale=3.0, **linear)  # fmt: skip
    add("sum-bias-gelu", "resample_sum", *pair, parameters={"bias": (3,)}, activation="gelu",
        mode="bicubic")  # fmt: skip
    add("sum-all", "resample_sum", (1, 3, 5), (3, 3, 9), (3, 3, 2), size=7,
        parameters={"weights": (3, 3, 1, 7), "scale": (3,), "bias": (3,)}, normalize="softmax",
        mode=["cubic", "area", "linear"], out_scale=0.5, activation="silu")  # fmt: skip
    add("sum-weights-sc-last", "resample_sum", *pair, parameters={"weights": (2, 3)},
        layouts=(last, last), activation="silu", **linear)  # fmt: skip
    add("sum-one-map-silu", "resample_sum", (2, 3, 4, 4), activation="silu")
    add("sum-empty-batch", "resample_sum", (0, 3, 4, 4), (0, 3, 2, 2), mode="bicubic",
        activation="sigmoid")  # fmt: skip

    for activation in ("relu", "relu6", "leaky_relu", "silu", "gelu", "hardswish", "sigmoid"):
        add(f"sum-{activation}", "resample_sum", *pair, activation=activation, out_scale=3.0,
            **linear)  # fmt: skip
        add(f"cat-last-{activation}", "resample_cat", (2, 3, 4, 6), (2, 2, 2, 3), (2, 8, 9, 5),
            layouts=(last, last, last), activation=activation, **linear)  # fmt: skip
        add(f"max-{activation}", "resample_max", *pair, activation=activation, **linear)
    add("sum-pixels-scale-bias-last", "resample_sum", (2, 5, 4, 6), (2, 5, 2, 3),
        parameters={"weights": (1, 2, 1, 4, 6), "scale": (5,), "bias": (5,)}, activation="relu",
        layouts=(last, last), **linear)  # fmt: skip
    add("sum-nsc-last", "resample_sum", (2, 5, 4, 6), (1, 5, 2, 3), layouts=(last, last),
        parameters={"weights": (2, 2, 5)}, **linear)  # fmt: skip
    add("sum-nsc-broadcast", "resample_sum", (3, 4, 4, 6), (1, 4, 2, 3),
        parameters={"weights": (3, 2, 4), "bias": (4,)}, activation="relu6", **linear)  # fmt: skip
    add("sum-pixels-3d", "resample_sum", (2, 2, 3, 4, 5), (2, 2, 2, 2, 2), (1, 2, 1, 1, 1),
        parameters={"weights": (2, 3, 1, 3, 4, 5)}, activation="leaky_relu", **linear)  # fmt: skip
    add("sum-weights-bias", "resample_sum", *pair, parameters={"weights": (2,), "bias": (3,)},
        activation="relu", **linear)  # fmt: skip
    add("sum-bias", "resample_sum", *pair, parameters={"bias": (3,)}, **linear)
    add("sum-eight-bias", "resample_sum", *[(1, 2, 1 + i, 9 - i) for i in range(8)], size=(5, 6),
        parameters={"weights": (8, 2), "bias": (2,)}, mode="linear")  # fmt: skip
    add("sum-factors-bias", "resample_sum", (2, 3, 6, 9), (2, 3, 4, 6), mode="linear",
        scale_factors=[None, 1.5], size=(6, 9), parameters={"bias": (3,)})  # fmt: skip
    add("sum-one-bias", "resample_sum", (2, 3, 5, 5), parameters={"scale": (3,), "bias": (3,)},
        activation="relu")  # fmt: skip

    # A node of a BiFPN: the level itself, the one above, the one below.
    levels = ((2, 3, 4, 6), (2, 3, 2, 3), (2, 3, 8, 12))
    for padding in (1, "same"):
        pool = msr_cuda.Pool("max", 3, 2, padding)  # type: ignore[arg-type]
        add(f"sum-bifpn-{padding}", "resample_sum", *levels, parameters={"weights": (3,)},
            mode=["nearest", "nearest", pool], normalize="fast", activation="silu")  # fmt: skip
    for name, pool in POOLS.items():
        add(f"cat-pool-{name}", "resample_cat", (2, 3, 7, 8), mode=pool,
            size=pool.output_size((7, 8)))  # fmt: skip
    for rank in (1, 3):
        add(f"sum-pool-{rank}d", "resample_sum", (2, 2, 3, 3, 3)[: rank + 2],
            (2, 2, 5, 5, 5)[: rank + 2], (2, 2, 6, 6, 6)[: rank + 2],
            mode=["nearest", msr_cuda.Pool("avg", 3, 2, 1), msr_cuda.Pool("max", 3, 2, "same")],
            activation="relu")  # fmt: skip
    add("cat-pool-last", "resample_cat", (2, 3, 8, 6), (2, 3, 4, 3), size=(4, 3),
        mode=[msr_cuda.Pool("max", 2), "nearest"], layouts=(last, last))  # fmt: skip
    add("sum-pool-last-pixels", "resample_sum", (2, 3, 7, 6), (1, 3, 14, 12), (2, 3, 7, 6),
        mode=[msr_cuda.Pool("avg", 3, 1, 1), msr_cuda.Pool("max", 3, 2, 1), "nearest"],
        parameters={"weights": (2, 3, 1, 7, 6)}, layouts=(last, last, last), size=(7, 6),
        normalize="softmax", activation="relu")  # fmt: skip
    add("sum-wide-pool", "resample_sum", (2, 2, 2, 3), (1, 2, 40, 60), activation="silu",
        mode=["nearest", msr_cuda.Pool("max", 20)])  # fmt: skip

    add("max", "resample_max", (2, 3, 4, 6), (2, 3, 2, 3), (2, 3, 9, 5), **linear)
    add("max-relu-broadcast", "resample_max", (3, 2, 4, 4), (1, 2, 2, 2), (3, 2, 1, 1),
        mode=["nearest", "bicubic", "area"], activation="relu")  # fmt: skip
    add("max-last", "resample_max", *pair, layouts=(last, last), **linear)
    add("max-3d-pool", "resample_max", (1, 2, 3, 4, 2), (1, 2, 6, 8, 4),
        mode=["nearest", msr_cuda.Pool("max", 2)])  # fmt: skip
    return cases


POOLS = {
    "max-valid": msr_cuda.Pool("max", 3, 2),
    "max-symmetric": msr_cuda.Pool("max", 3, 2, 1),
    "max-same": msr_cuda.Pool("max", 3, 2, "same"),
    "max-wide": msr_cuda.Pool("max", (2, 3), 1, ((0, 1), (2, 0))),
    "avg-valid": msr_cuda.Pool("avg", 2),
    "avg-symmetric": msr_cuda.Pool("avg", 3, 2, 1),
    "avg-inside": msr_cuda.Pool("avg", 3, 2, "same", count_include_pad=False),
    "avg-uneven": msr_cuda.Pool("avg", (3, 2), (1, 2), ((2, 0), (0, 1))),
}
#: Modes of up to two taps per axis, weights [S], ReLU.
CASES = _cases()
#: Modes of more than two taps.
WINDOW_CASES = _window_cases()
#: All weights, activations and sources, the maximum.
EXTENDED_CASES = _extended_cases()


def _name(case: Case) -> str:
    return case.name


every_case = pytest.mark.parametrize("case", [*CASES, *WINDOW_CASES, *EXTENDED_CASES], ids=_name)
every_rare_case = pytest.mark.parametrize("case", [*WINDOW_CASES, *EXTENDED_CASES], ids=_name)
