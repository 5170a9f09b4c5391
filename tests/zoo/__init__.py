"""Models of other packages whose swapping is tested and listed: tiny, with random weights.

Used by the tests (``swap_checks``) and by ``build_tools/model_table.py``. One file per library.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import importlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from swapping import Outputs, images
from torch import Tensor, nn

_OPENMMLAB = ("torchvision_on_cpu", "torchvision", "mmcv_without_operators", "mmcv.ops")

#: File -> what has to be importable before its models can be made.
LIBRARIES = {
    "basicsr": ("minimal_packages", "basicsr.archs"),
    "detectron2": (
        "minimal_packages",
        "detectron2.projects.deeplab.semantic_seg",
        "detectron2.modeling",
    ),
    "diffusers": ("torchvision_on_cpu", "torchvision", "diffusers"),
    "effdet": ("torchvision_on_cpu", "torchvision", "effdet"),
    "mmdet": (*_OPENMMLAB, "mmdet.models"),
    "mmpose": (*_OPENMMLAB, "mmpose.models"),
    "mmseg": (*_OPENMMLAB, "mmseg.models"),
    "monai": ("torchvision_on_cpu", "torchvision", "monai"),
    "smp": ("torchvision_on_cpu", "torchvision", "segmentation_models_pytorch"),
    "timm": ("torchvision_on_cpu", "torchvision", "timm"),
    "torchvision": ("torchvision_on_cpu", "torchvision"),
    "transformers": ("torchvision_on_cpu", "torchvision", "transformers"),
    "ultralytics": ("torchvision_on_cpu", "ultralytics.nn.tasks"),
    "yolox": ("minimal_packages", "yolox.models"),
}


@dataclasses.dataclass(frozen=True)
class Model:
    """One model.

    Attributes:
        make: makes it.
        shape: of the images, odd where the model takes that.
        call: runs it on images; its result is nested maps.
        training: whether it is compared in training mode, too; some need targets there.
        only_in_training: whether the model resamples in training only.
        compared: whether its results are compared. Not where there is nothing to fuse, or where
            another test does it; such models are only traced and listed.
        same_code: whether the library has the same code in another model: that is tested more.
        no_gradient: patterns of names of weights that the result does not depend on.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    call: Callable[[nn.Module, Tensor], Any] = lambda model, x: model(x)
    training: bool = True
    only_in_training: bool = False
    compared: bool = True
    same_code: bool = False
    no_gradient: tuple[str, ...] = ()

    def new(self) -> nn.Module:
        """A model whose weights all matter, in eval mode, if it resamples there."""
        return copy.deepcopy(_made(self)).train(self.only_in_training)

    def images(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Its input."""
        return images(*self.shape).to(dtype)

    def run(self, model: nn.Module, x: Tensor) -> Outputs:
        """Named results."""
        return dict(maps(self.call(model, x), "output"))


@functools.lru_cache(maxsize=1)
def _made(entry: Model) -> nn.Module:
    torch.manual_seed(3)
    model = entry.make()
    randomize(model)
    return model


def maps(result: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """All floating-point tensors of a nested result, by where they are in it."""
    if isinstance(result, Tensor):
        if result.is_floating_point():
            yield name, result
    elif isinstance(result, dict):
        for key, value in result.items():
            yield from maps(value, f"{name}.{key}")
    elif isinstance(result, (list, tuple)):
        for i, value in enumerate(result):
            yield from maps(value, f"{name}.{i}")


def randomize(model: nn.Module) -> None:
    """Weights that keep the scale of the maps, none of them zero.

    Libraries start some at zero (the last norm of a residual block, biases, position embeddings,
    offsets), and then what comes before them does not matter.
    """
    generator = torch.Generator().manual_seed(4)

    def normal(parameter: Tensor, scale: float) -> Tensor:
        return torch.randn(parameter.shape, generator=generator) * scale

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.copy_(normal(parameter, parameter[0].numel() ** -0.5))
            elif name.endswith("bias"):
                # Above zero: a ReLU on one or two channels must not be dead.
                parameter.copy_(0.3 + normal(parameter, 0.1))
            else:
                parameter.copy_(1 + normal(parameter, 0.1))


class OnPyramid(nn.Module):
    """A part of a model, on maps that are made of an image.

    Args:
        part: it gets the list of maps.
        channels: of each map.
        sizes: divisors of the image's size, of each map.
        call: ``call(part, maps)``.
    """

    def __init__(
        self,
        part: nn.Module,
        channels: Sequence[int],
        sizes: Sequence[int],
        call: Callable[[Any, list[Tensor]], Any] = lambda part, maps: part(maps),
    ) -> None:
        super().__init__()
        self.part = part
        self.stems = nn.ModuleList(
            nn.Conv2d(3, c, s, s) for c, s in zip(channels, sizes, strict=True)
        )
        self.call = call

    def forward(self, x: Tensor) -> Any:
        return self.call(self.part, [stem(x) for stem in self.stems])


def models(library: str) -> dict[str, Model]:
    """The models of a library, by name. Imports nothing of it."""
    found: dict[str, Model] = importlib.import_module(f"zoo.{library}").MODELS
    return found


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """For the import of a library: no downloads, settings in a temporary folder, and no traces.

    ultralytics sets variables that would reach the subprocesses of other tests.
    """
    before = dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(
            HF_HUB_OFFLINE="1",
            YOLO_CONFIG_DIR=folder,
            YOLO_OFFLINE="true",
            YOLO_AUTOINSTALL="false",
            YOLO_VERBOSE="false",
        )
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)
