"""A Siamese tracker over maps of several scales.

Example::

    >>> from msr_cuda.models import SiameseTracker, multiscale_encoder
    >>> encoder = multiscale_encoder("resnet18", scales=[1.0, 0.5], out_indices=[1, 2])
    >>> tracker = SiameseTracker(encoder, channels=32).eval()
    >>> tracker(torch.rand(1, 3, 64, 64), torch.rand(1, 3, 128, 128)).shape
    torch.Size([1, 1, 17, 17])
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import functional
from ..nn import ResampleSum
from ..nn._layers import convolution
from ._features import encoder_dims, feature_info
from .resnet import MultiScaleEncoder

_CORRELATE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def cross_correlation(template: Tensor, search: Tensor) -> Tensor:
    r"""How well a template fits at each place of a map, image by image.

    .. math:: r_{n,p} = \frac{1}{C |T|} \sum_{c, q \in T} t_{n,c,q} \, s_{n,c,p+q}

    Args:
        template (Tensor[N, C, *size_t]): not larger than the map.
        search (Tensor[N, C, *size_s]): the map.

    Returns:
        Tensor[N, 1, *(size_s - size_t + 1)].

    Source: Bertinetto et al. 2016, "Fully-Convolutional Siamese Networks for Object Tracking",
    equation 1, divided by the number of terms.
    """
    n, channels = search.shape[:2]
    if template.shape[:2] != search.shape[:2] or any(
        t > s for t, s in zip(template.shape[2:], search.shape[2:], strict=True)
    ):
        raise ValueError(
            "cross_correlation: expected a template of the map's N and C and not larger, got "
            f"{tuple(template.shape)} for {tuple(search.shape)}"
        )
    terms = channels * template[0, 0].numel()
    response = _CORRELATE[search.dim() - 2](
        search.reshape(1, n * channels, *search.shape[2:]), template, groups=n
    )
    return response.transpose(0, 1) / terms


class SiameseTracker(nn.Module):
    r"""Finds a template in a larger image, by correlation at each stage of an encoder.

    .. math:: y = b + g \sum_k a_k \, R\bigl(t_k \star s_k\bigr), \qquad
        a = \mathrm{softmax}(w)

    :math:`t_k` and :math:`s_k` are the maps of template and image at stage k, through a 1×1
    convolution and scaled to unit length at each position. Responses are resampled to that of the
    finest stage. In training, the batch norms of a :class:`MultiScaleEncoder`'s trunk take their
    statistics over templates and images together, so that both go through one function, as they do
    in evaluation; other encoders are called on one after the other.

    Args:
        encoder: gives a list of maps, finest first, and has ``feature_info``:
            :func:`multiscale_encoder`, or one of timm's.
        channels: in which maps are compared.

    Shapes: a template ``[N, C, *size_t]`` and an image ``[N, C, *size_s]`` to logits
    ``[N, 1, *size_r]``; the template's coarsest map must not be larger than the image's.

    Source: Bertinetto et al. 2016, "Fully-Convolutional Siamese Networks for Object Tracking"; the
    weighted sum over stages: Li et al. 2019, "SiamRPN++", section 3.3.
    """

    def __init__(self, encoder: nn.Module, *, channels: int = 128) -> None:
        super().__init__()
        info = feature_info("SiameseTracker", encoder)
        self.encoder = encoder
        self.adjust = nn.ModuleList(
            convolution(encoder_dims(encoder), c, channels) for c in info.channels()
        )
        # Corners on corners: the first and the last place of a response are the same shifts of the
        # template at every stage.
        self.merge = ResampleSum(
            len(self.adjust), normalize="softmax", mode="linear", align_corners=True
        )
        self.gain = nn.Parameter(torch.tensor(float(channels)))  # of a mean over unit vectors
        self.bias = nn.Parameter(torch.zeros(()))

    def embed(self, x: Tensor) -> list[Tensor]:
        """The maps that are compared; a template's are computed once for a whole video."""
        return self._adjusted(self.encoder(x))

    def respond(self, template: list[Tensor], image: Tensor) -> Tensor:
        """The logits for an embedded template."""
        return self._correlated(template, self.embed(image))

    def forward(self, template: Tensor, image: Tensor) -> Tensor:
        """The logits: how well the template fits at each place of the image."""
        if self.training and isinstance(self.encoder, MultiScaleEncoder):
            maps = self.encoder.forward_jointly([template, image])
            return self._correlated(*[self._adjusted(each) for each in maps])
        return self.respond(self.embed(template), image)

    def _adjusted(self, maps: list[Tensor]) -> list[Tensor]:
        pairs = zip(self.adjust, maps, strict=True)
        return [F.normalize(adjust(map_), dim=1) for adjust, map_ in pairs]

    def _correlated(self, template: list[Tensor], image: list[Tensor]) -> Tensor:
        pairs = zip(template, image, strict=True)
        responses = [cross_correlation(t, s) for t, s in pairs]
        merged: Tensor = self.merge(responses)
        return merged * self.gain + self.bias

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """The mean logistic loss.

        Args:
            logits: what the network gives.
            target (Tensor[N, 1, *size]): 1 where the template's corner lies, else 0; a map of
                places of any size, to which the logits are resampled.
        """
        return functional.resample_binary_cross_entropy_with_logits(
            logits, target, mode="linear", align_corners=True
        )

    @torch.no_grad()
    def locate(self, template: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Where the template fits best.

        Returns:
            Tensor[N, dims]: the first pixel of the template in the image, and Tensor[N]: the
            probability there.
        """
        logits = self(template, image)
        free = [s - t for s, t in zip(image.shape[2:], template.shape[2:], strict=True)]
        best, index = logits.flatten(1).max(1)
        places = torch.stack(torch.unravel_index(index, logits.shape[2:]), 1)
        steps = [f / max(1, n - 1) for f, n in zip(free, logits.shape[2:], strict=True)]
        return places * places.new_tensor(steps, dtype=logits.dtype), best.sigmoid()
