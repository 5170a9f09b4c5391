"""A detector with a feature pyramid: torchvision's RetinaNet, or a stand-in without torchvision.

Weights are random: what counts is that a swapped network computes the same, not what it sees.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from checks import Subject, Tensors
from torch import Tensor, nn

import msr_cuda


def merge_in_steps(laterals: Sequence[Tensor]) -> list[Tensor]:
    """The top-down path of a feature pyramid in plain PyTorch.

    Args:
        laterals: one map per level, finest first.

    Returns:
        The merged levels, finest first: each is its lateral plus the upsampled coarser level.
    """
    levels = [laterals[-1]]
    for lateral in reversed(laterals[:-1]):
        upsampled = F.interpolate(levels[0], size=lateral.shape[-2:], mode="nearest")
        levels.insert(0, lateral + upsampled)
    return levels


def merge_in_one_pass(laterals: Sequence[Tensor]) -> list[Tensor]:
    """The same with one pass per level: the upsampled map is never written."""
    levels = [laterals[-1]]
    for lateral in reversed(laterals[:-1]):
        levels.insert(0, msr_cuda.resample_sum([lateral, levels[0]], mode="nearest"))
    return levels


def retinanet() -> Subject:
    """RetinaNet on a ResNet-50, by torchvision: random weights, the 20 classes of Pascal VOC.

    Raises:
        ImportError: torchvision is not installed, or cannot be imported.
    """
    import torchvision_on_cpu  # noqa: F401

    try:
        from torchvision.models.detection import retinanet_resnet50_fpn
    except RuntimeError as error:  # built for another torch
        raise ImportError(f"torchvision does not work with this torch: {error}") from error

    torch.manual_seed(0)
    model = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=21)
    return Subject(
        "RetinaNet",
        "torchvision's, on a ResNet-50, random weights",
        model.eval(),
        lambda model, image: (_images(model, image),),
        _predict,
        _learn,
    )


def _images(model: nn.Module, image: Tensor) -> list[Tensor]:
    """The batch as detectors take it, at the size it has."""
    size = image.shape[-2:]
    model.transform.min_size, model.transform.max_size = (min(size),), max(size)
    return list(image)


def _predict(model: nn.Module, image: Tensor) -> Tensors:
    """The boxes of every image, and the pyramid they come from."""
    model.eval()
    levels: Tensors = {}
    with model.backbone.register_forward_hook(lambda module, inputs, output: levels.update(output)):
        detections = model(_images(model, image))
    outputs = {f"pyramid {name}": level for name, level in levels.items()}
    for i, detection in enumerate(detections):
        outputs.update({f"image {i} {name}": value for name, value in detection.items()})
    return outputs


def _learn(model: nn.Module, image: Tensor) -> tuple[Tensors, Tensor]:
    """The training loss of one box in the middle of every image."""
    model.train()
    height, width = image.shape[-2:]
    box = image.new_tensor([[width / 4, height / 4, width * 3 / 4, height * 3 / 4]])
    label = torch.ones(1, dtype=torch.int64, device=image.device)
    levels: Tensors = {}
    with model.backbone.register_forward_hook(lambda module, inputs, output: levels.update(output)):
        losses = model(_images(model, image), [{"boxes": box, "labels": label} for _ in image])
    outputs = {f"pyramid {name}": level for name, level in levels.items()}
    outputs.update({f"loss {name}": loss for name, loss in losses.items()})
    return outputs, sum(losses.values(), image.new_zeros(()))


class PlainFeaturePyramid(msr_cuda.nn.FeaturePyramidNetwork):
    """The same convolutions as the module it derives from; merged in plain PyTorch."""

    def forward(self, x: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
        pairs = zip(self.inner_blocks, x.values(), strict=True)
        levels = merge_in_steps([block(map_) for block, map_ in pairs])
        outputs = [block(level) for block, level in zip(self.layer_blocks, levels, strict=True)]
        return OrderedDict(zip(x, outputs, strict=True))


@msr_cuda.swap.register(PlainFeaturePyramid)
class FusedFeaturePyramid(PlainFeaturePyramid):
    """Upsampling and lateral sum of each level in one pass."""

    def forward(self, x: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
        return msr_cuda.nn.FeaturePyramidNetwork.forward(self, x)


class PyramidClassifier(nn.Module):
    """Three strided stages, a feature pyramid over them and a score per pixel of each level."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 128)
        self.stages = nn.ModuleList(
            nn.Sequential(
                # No bias: the normalization takes it out again.
                nn.Conv2d(before, after, 3, stride=4 if i == 0 else 2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            )
            for i, (before, after) in enumerate(pairwise(widths))
        )
        self.fpn = PlainFeaturePyramid(widths[1:], 64)
        self.score = nn.Conv2d(64, 1, 1)

    def forward(self, image: Tensor) -> Tensors:
        maps: OrderedDict[str, Tensor] = OrderedDict()
        for i, stage in enumerate(self.stages):
            image = stage(image)
            maps[str(i)] = image
        return {f"scores {name}": self.score(level) for name, level in self.fpn(maps).items()}


def stand_in() -> Subject:
    """A small network around a feature pyramid, without torchvision."""
    torch.manual_seed(0)

    def learn(model: nn.Module, image: Tensor) -> tuple[Tensors, Tensor]:
        scores = model.train()(image)
        return scores, torch.stack([F.softplus(score).mean() for score in scores.values()]).sum()

    def predict(model: nn.Module, image: Tensor) -> Tensors:
        return model.eval()(image)

    about = "three stages and a feature pyramid, random weights"
    return Subject(
        "Small pyramid network",
        about,
        PyramidClassifier().eval(),
        lambda model, image: (image,),
        predict,
        learn,
    )
