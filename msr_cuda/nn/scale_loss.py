"""A loss that asks a network for the same answer at every scale of the image.

Example::

    >>> image = torch.rand(1, 3, 32, 32)
    >>> network = torch.nn.Conv2d(3, 4, 3, padding=1)
    >>> copies = msr_cuda.nn.ImagePyramid([1.0, 0.5])(image)
    >>> loss = msr_cuda.nn.ScaleInvarianceLoss("logits")
    >>> loss([network(copy) for copy in copies]).shape
    torch.Size([])
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import functional
from ._layers import check_choice

KINDS = ("logits", "features", "masks")


class ScaleInvarianceLoss(nn.Module):
    r"""How far outputs for rescaled copies of an image are from that for the image itself.

    The outputs are brought to the size of the first (antialiased where they get smaller) and
    compared with it; the loss is the mean over images, positions and copies. For an output
    :math:`u` and the first one :math:`v`:

    - ``"logits"``: :math:`T^2 \, \mathrm{KL}(\mathrm{softmax}(v/T) \,\|\, \mathrm{softmax}(u/T))`
      over the classes, for maps of logits and for the logits of a classifier.
    - ``"features"``: :math:`\|\hat u - \hat v\|^2 = 2 - 2\cos(u, v)` of feature vectors.
    - ``"masks"``: one minus the soft Dice coefficient :math:`2\sum pq / (\sum p^2 + \sum q^2)` of
      :math:`p = \sigma(u)` and :math:`q = \sigma(v)`, over the positions of each mask; 0 for equal
      masks, also soft ones.

    Args:
        kind: what the outputs are.
        detach: do not send gradients into the first output: it is the teacher.
        temperature: T of ``"logits"``.
        mode: of the resampling.
        eps: added to the denominator for ``"masks"``, and the least length of a feature vector.

    Shapes: a list of two or more ``[N, C, *spatial_i]``; ``[N, C]`` for logits and features of
    whole images. The result is a scalar, in float32 (float64 for float64).

    Raises:
        ValueError: an unknown kind; fewer than two outputs; masks without positions.

    Source: equivariance under rescaling as a loss: Wang et al. 2020, "Self-supervised Equivariant
    Attention Mechanism for Weakly Supervised Semantic Segmentation" (SEAM); the distance of logits:
    Hinton et al. 2015, "Distilling the Knowledge in a Neural Network"; Dice with squares:
    Milletari et al. 2016, "V-Net".
    """

    def __init__(
        self,
        kind: str = "features",
        *,
        detach: bool = True,
        temperature: float = 1.0,
        mode: str = "linear",
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        check_choice("ScaleInvarianceLoss", "kind", kind, KINDS)
        if not temperature > 0:
            raise ValueError(
                f"ScaleInvarianceLoss: expected temperature to be positive, got {temperature}"
            )
        self.kind = kind
        self.detach = detach
        self.temperature = temperature
        self.mode = mode
        self.eps = eps

    def forward(self, outputs: Sequence[Tensor]) -> Tensor:
        """The loss of the outputs; the first is that of the image itself."""
        if len(outputs) < 2:
            raise ValueError(
                f"ScaleInvarianceLoss: expected two or more outputs, got {len(outputs)}"
            )
        first = outputs[0].detach() if self.detach else outputs[0]
        if self.kind == "masks" and first.dim() < 3:
            raise ValueError(
                f"ScaleInvarianceLoss: expected masks of [N, C, *spatial], got {tuple(first.shape)}"
            )
        accumulate = torch.float64 if first.dtype == torch.float64 else torch.float32
        target = first.to(accumulate)
        losses = []
        for output in outputs[1:]:
            if output.dim() > 2 and output.shape[2:] != first.shape[2:]:
                output = functional.resample(
                    output, first.shape[2:], mode=self.mode, antialias=True
                )
            losses.append(self._distance(output.to(accumulate), target))
        return torch.stack(losses).mean()

    def _distance(self, output: Tensor, target: Tensor) -> Tensor:
        if self.kind == "logits":
            log_p = (target / self.temperature).log_softmax(1)
            log_q = (output / self.temperature).log_softmax(1)
            divergence = (log_p.exp() * (log_p - log_q)).sum(1)
            return divergence.mean() * self.temperature**2
        if self.kind == "features":
            difference = F.normalize(output, dim=1, eps=self.eps) - F.normalize(
                target, dim=1, eps=self.eps
            )
            return difference.square().sum(1).mean()
        p, q = output.sigmoid().flatten(2), target.sigmoid().flatten(2)
        overlap = 2 * (p * q).sum(2) + self.eps
        total = p.square().sum(2) + q.square().sum(2) + self.eps
        return (1 - overlap / total).mean()

    def extra_repr(self) -> str:
        """The kind."""
        temperature = f", temperature={self.temperature}" if self.kind == "logits" else ""
        return f"{self.kind!r}, detach={self.detach}{temperature}"
