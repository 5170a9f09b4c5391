"""A convolution that may have a norm and an activation."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class Conv2d(nn.Conv2d):
    """Convolution, norm, activation."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        dilation: int = 1,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        padding = dilation * (kernel // 2)
        super().__init__(
            inputs, outputs, kernel, padding=padding, dilation=dilation, bias=norm is None
        )
        self.norm = norm
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)
