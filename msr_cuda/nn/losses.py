"""Losses at full resolution of logits at a lower one, as modules."""

from __future__ import annotations

from torch import Tensor, nn

from .. import functional


class ResampleCrossEntropyLoss(nn.Module):
    """:func:`msr_cuda.resample_cross_entropy` as a module: the upsampled logits are never written.

    In place of ``nn.CrossEntropyLoss()(interpolate(logits, target.shape[-2:]), target)``::

        criterion = msr_cuda.nn.ResampleCrossEntropyLoss(mode="bilinear", ignore_index=255)
        loss = criterion(logits, target)  # [N, C, h, w] and [N, H, W]

    Args:
        mode, align_corners: of the resampling, as :func:`msr_cuda.resample`.
        weight (Tensor[C]): of each class, a buffer as in :class:`torch.nn.CrossEntropyLoss`.
        ignore_index, label_smoothing, reduction: as :class:`torch.nn.CrossEntropyLoss`.

    Shape:
        logits ``[N, C, *spatial]``; target ``[N, *size]`` of class indices or ``[N, C, *size]`` of
        probabilities; result: a scalar, or ``[N, *size]`` without reduction.
    """

    weight: Tensor | None

    def __init__(
        self,
        *,
        mode: str = "linear",
        align_corners: bool | None = None,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.mode = mode
        self.align_corners = align_corners
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.reduction = reduction

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss; see :func:`msr_cuda.resample_cross_entropy`."""
        return functional.resample_cross_entropy(
            logits,
            target,
            mode=self.mode,
            align_corners=self.align_corners,
            weight=self.weight,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        """What was chosen."""
        return (
            f"mode={self.mode!r}, align_corners={self.align_corners}, "
            f"ignore_index={self.ignore_index}, label_smoothing={self.label_smoothing}, "
            f"reduction={self.reduction!r}"
        )


class ResampleBCEWithLogitsLoss(nn.Module):
    """:func:`msr_cuda.resample_binary_cross_entropy_with_logits` as a module.

    In place of ``nn.BCEWithLogitsLoss()(interpolate(logits, target.shape[-2:]), target)``: for mask
    heads and edge detectors.

    Args:
        mode, align_corners: of the resampling, as :func:`msr_cuda.resample`.
        weight, pos_weight (Tensor): as :class:`torch.nn.BCEWithLogitsLoss`; buffers that are
            broadcast to ``[N, C, *size]``.
        reduction: as :class:`torch.nn.BCEWithLogitsLoss`.

    Shape:
        logits ``[N, C, *spatial]``; target ``[N, C, *size]``, of any dtype; result: a scalar, or
        ``[N, C, *size]`` without reduction.
    """

    weight: Tensor | None
    pos_weight: Tensor | None

    def __init__(
        self,
        *,
        mode: str = "linear",
        align_corners: bool | None = None,
        weight: Tensor | None = None,
        pos_weight: Tensor | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("pos_weight", pos_weight)
        self.mode = mode
        self.align_corners = align_corners
        self.reduction = reduction

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss; see :func:`msr_cuda.resample_binary_cross_entropy_with_logits`."""
        return functional.resample_binary_cross_entropy_with_logits(
            logits,
            target,
            mode=self.mode,
            align_corners=self.align_corners,
            weight=self.weight,
            pos_weight=self.pos_weight,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        """What was chosen."""
        return (
            f"mode={self.mode!r}, align_corners={self.align_corners}, reduction={self.reduction!r}"
        )
