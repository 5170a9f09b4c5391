"""detectron2: its pyramid, and the heads of Panoptic FPN, DeepLabV3 and DeepLabV3+."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import functional
from .._glue import (
    Part,
    Upsampled,
    add,
    cat,
    cross_entropy,
    upsampled_by,
    upsampling_modules,
    upsampling_reasons,
)
from .._rewrite import Rewrites

REWRITES = Rewrites(__name__)
__getattr__ = REWRITES.find

# In each list of fingerprints, the last is that of the model that the tests have for the package.


def pyramid(self: Any, x: Tensor) -> dict[str, Tensor]:
    """The new forward of ``FPN``."""
    found = self.bottom_up(x)
    mean = self._fuse_type == "avg"
    merged = self.lateral_convs[0](found[self.in_features[-1]])
    results = [self.output_convs[0](merged)]
    for name, lateral_conv, output_conv in zip(
        self.in_features[-2::-1], self.lateral_convs[1:], self.output_convs[1:], strict=True
    ):
        coarser = Upsampled(merged, scale_factor=2.0)
        merged = add(lateral_conv(found[name]), coarser, out_scale=0.5 if mean else 1)
        results.insert(0, output_conv(merged))
    if self.top_block is not None:
        source = found.get(self.top_block.in_feature)
        if source is None:
            source = results[self._out_features.index(self.top_block.in_feature)]
        results += self.top_block(source)
    return dict(zip(self._out_features, results, strict=True))


REWRITES.add(
    "detectron2.modeling.backbone.fpn:FPN",
    fingerprints=["2f845cb45079d5c0", "bda818a05bf70290", "28c41790861a4654"],
    summary="Upsampling and lateral sum, or mean, of each level in one pass.",
    forward=pyramid,
)


def _logits_and_losses(self: Any, logits: Tensor, targets: Any, loss: Any) -> Any:
    """What a head returns: losses in training, else upsampled logits."""
    upsampled = Upsampled(logits, None, self.common_stride, "bilinear", False)
    if self.training:
        return None, {"loss_sem_seg": loss(upsampled, targets) * self.loss_weight}
    return functional.resample(*upsampled), {}


def _is_upsampled(head: nn.Module) -> bool:
    """Whether a Sequential ends in an ``nn.Upsample``, swapped or not."""
    return isinstance(list(head.children())[-1], nn.Upsample)


def _upsampling_heads(module: Any) -> list[tuple[str, nn.Module]]:
    pairs = zip(module.in_features, module.scale_heads, strict=True)
    return [(name, head) for name, head in pairs if _is_upsampled(head)]


def semantic_head(self: Any, features: dict[str, Tensor], targets: Any = None) -> Any:
    """The new forward of ``SemSegFPNHead``."""
    parts: list[Part] = []
    for name, head in zip(self.in_features, self.scale_heads, strict=True):
        x = features[name]
        parts.append(upsampled_by(head, x) if _is_upsampled(head) else head(x))
    logits = self.predictor(add(*parts))

    def loss(logits: Upsampled, targets: Tensor) -> Tensor:
        # The library has it in float32, whatever the model's dtype.
        rounded = logits._replace(input=logits.input.float())
        return cross_entropy(rounded, targets, ignore_index=self.ignore_value)

    if self.training and logits.dtype == torch.float64:
        return None, self.losses(logits, targets)
    return _logits_and_losses(self, logits, targets, loss)


REWRITES.add(
    "detectron2.modeling.meta_arch.semantic_seg:SemSegFPNHead",
    fingerprints=["67f20415cdef4f4c", "a4b09c976abf5916"],
    methods={
        "layers": ["ea1924c95b1fe9e1", "f7faec9e117237d8"],
        "losses": ["a63bf581e950177f", "e9a1dcf9ac2da31b"],
    },
    summary="All levels are upsampled and summed in one pass; the loss, without upsampled logits.",
    forward=semantic_head,
    skip_reasons=lambda module: [
        reason
        for name, head in _upsampling_heads(module)
        for reason in upsampling_reasons(head, name)
    ],
    absorbed_modules=lambda module: [
        absorbed for _, head in _upsampling_heads(module) for absorbed in upsampling_modules(head)
    ],
)


def aspp(self: Any, x: Tensor) -> Tensor:
    """The new forward of ``ASPP``."""
    size = x.shape[-2:]
    kernel = self.pool_kernel_size
    if kernel is not None and (size[0] % kernel[0] or size[1] % kernel[1]):
        raise ValueError(
            f"expected maps whose size is divisible by pool_kernel_size {kernel}, got {size}"
        )
    *convs, pooling = self.convs
    parts: list[Part] = [conv(x) for conv in convs]
    parts.append(Upsampled(pooling(x), size, mode="bilinear", align_corners=False))
    result: Tensor = self.project(cat(parts))
    return F.dropout(result, self.dropout, self.training) if self.dropout > 0 else result


REWRITES.add(
    "detectron2.layers.aspp:ASPP",
    fingerprints=["abefa9e81462eceb", "fa24b38f88ba4939"],
    summary="The pooled branch is spread straight into the concatenation.",
    forward=aspp,
)


def _is_plain(loss: Any) -> bool:
    """Whether an operator does what a head's ``loss`` does."""
    return (
        type(loss) is nn.CrossEntropyLoss
        and loss.weight is None
        and loss.reduction == "mean"
        and loss.label_smoothing == 0
    )


def _plain_losses(module: Any) -> list[nn.Module]:
    return [module.loss] if _is_plain(getattr(module, "loss", None)) else []


def _loss_of(module: Any) -> Any:
    """The loss of a head, of logits that wait."""
    if _is_plain(module.loss):
        return lambda x, targets: cross_entropy(x, targets, ignore_index=module.loss.ignore_index)
    return lambda x, targets: module.loss(x.computed(), targets)


def deeplab_plus(self: Any, features: dict[str, Tensor], targets: Any = None) -> Any:
    """The new forward of ``DeepLabV3PlusHead``."""
    y: Any = None
    for name in self.in_features[::-1]:
        stage = self.decoder[name]
        projected = stage["project_conv"](features[name])
        if stage["fuse_conv"] is None:
            y = projected
        else:
            size = projected.shape[2:]
            y = Upsampled(y, size, mode="bilinear", align_corners=False)
            y = stage["fuse_conv"](cat([projected, y]))
    if self.decoder_only:
        return y
    return _logits_and_losses(self, self.predictor(y), targets, _loss_of(self))


def deeplab(self: Any, features: dict[str, Tensor], targets: Any = None) -> Any:
    """The new forward of ``DeepLabV3Head``."""
    logits = self.predictor(self.aspp(features[self.in_features[0]]))
    return _logits_and_losses(self, logits, targets, _loss_of(self))


_DEEPLAB = "detectron2.projects.deeplab.semantic_seg"
REWRITES.add(
    f"{_DEEPLAB}:DeepLabV3PlusHead",
    fingerprints=["c1be3e65c0417f32", "5e6f9142bcf06d41"],
    methods={
        "layers": ["c583e06aaa3ebec9", "0cd5a967caeee52b"],
        "losses": ["1f10b3db7f1e7e3c", "303dcf5d3106875f"],
    },
    summary="Upsampling straight into concatenations; the loss, without upsampled logits.",
    forward=deeplab_plus,
    absorbed_modules=_plain_losses,
)
REWRITES.add(
    f"{_DEEPLAB}:DeepLabV3Head",
    fingerprints=["a31263572e1b3519", "12f5a8fe8a04d32c"],
    methods={"losses": ["1f10b3db7f1e7e3c", "303dcf5d3106875f"]},
    summary="The loss, without the upsampled logits.",
    forward=deeplab,
    absorbed_modules=_plain_losses,
)
