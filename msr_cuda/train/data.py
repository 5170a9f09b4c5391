"""Folders of images as data sets, and batches of them.

Classification::

    folder/train/<class>/*.jpg      folder/val/<class>/*.jpg

Segmentation, where each mask has the name of its image, and its pixels are class numbers (255: of
no class)::

    folder/classes.txt              one name a line
    folder/train/images/*.jpg       folder/train/masks/*.png
    folder/val/images/*.jpg         folder/val/masks/*.png
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler

from ._errors import DataError, require
from .config import Config
from .digits import CLASSES, Digits

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
IGNORED = 255  # in masks: of no class
_CROP_AREA = (0.35, 1.0)  # shares of the image that a training crop has
_CROP_ASPECT = 4 / 3


@dataclass(frozen=True)
class Data:
    """What a run learns from.

    Attributes:
        train, val: data sets of (uint8 image, int64 target); ``train`` has ``set_epoch``.
        classes: names, by number.
    """

    train: Any
    val: Any
    classes: list[str]


def open_data(config: Config) -> Data:
    """The data sets of a configuration; looks at names, not at pixels.

    Raises:
        DataError: folders, classes or labels that are not there.
    """
    require("PIL")
    segmentation = config.task == "segmentation"
    if config.data == "digits":
        counts = {"train": config.images, "val": max(1, config.images // 4)}
        sets = [
            Digits(split, config.task, n, config.image_size, config.digit_sizes, config.seed)
            for split, n in counts.items()
        ]
        background = ["photograph"] if segmentation else []
        return Data(sets[0], sets[1], [*background, *CLASSES])
    root = Path(config.data)
    for folder in (root, root / "train", root / "val"):
        if not folder.is_dir():
            raise DataError(
                f"{folder}: there is no such folder; expected train/ and val/ in {root}"
            )
    if segmentation:
        classes = _class_names(root / "classes.txt")
        found = [_pairs(root / split) for split in ("train", "val")]
    else:
        classes = sorted(p.name for p in (root / "train").iterdir() if p.is_dir())
        if len(classes) < 2:
            names = ", ".join(classes) or "none"
            raise DataError(
                f"{root / 'train'}: expected two or more classes, a folder each, got {names}"
            )
        found = [_labelled(root / split, classes) for split in ("train", "val")]
    train, val = (
        Folder(files, len(classes), config.image_size, config.seed, training=training)
        for files, training in zip(found, (True, False), strict=True)
    )
    return Data(train, val, classes)


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder")
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    if not found:
        raise DataError(f"{folder}: there are no images in it ({', '.join(SUFFIXES)})")
    return found


def _class_names(path: Path) -> list[str]:
    if not path.is_file():
        raise DataError(f"{path}: not there; expected the names of the classes, one a line")
    names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    names = [name for name in names if name]
    if len(names) < 2:
        raise DataError(f"{path}: expected two or more classes, got {len(names)}")
    return names


def _labelled(folder: Path, classes: Sequence[str]) -> list[tuple[Path, int | Path]]:
    """Images and class numbers."""
    unknown = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name not in classes)
    if unknown:
        raise DataError(f"{folder}: classes that train/ does not have: {', '.join(unknown)}")
    return [(path, i) for i, name in enumerate(classes) for path in _images(folder / name)]


def _pairs(folder: Path) -> list[tuple[Path, int | Path]]:
    """Images and the files of their masks."""
    images = _images(folder / "images")
    masks = {p.stem: p for p in _images(folder / "masks")}
    missing = [p.name for p in images if p.stem not in masks]
    if missing:
        raise DataError(
            f"{folder / 'masks'}: {len(missing)} of {len(images)} images have no mask there: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
        )
    return [(path, masks[path.stem]) for path in images]


class Folder(Dataset[tuple[Tensor, Tensor]]):
    """Images in files, with class numbers or masks.

    In training a random crop of random shape, which half the time is mirrored; else the largest
    square in the middle. Both are resized with antialiasing, masks to the nearest pixel. What is
    random depends on the seed, the epoch and the image's number alone.

    Args:
        files: of each image its path, and its class or the path of its mask.
        num_classes: how many there are.
        size: height and width of an item.
        seed: of what is random.
        training: random crops.

    Items: image (Tensor[3, size, size], uint8), target (a scalar, or Tensor[size, size], int64).
    """

    def __init__(
        self,
        files: Sequence[tuple[Path, int | Path]],
        num_classes: int,
        size: int,
        seed: int = 0,
        *,
        training: bool,
    ) -> None:
        self.files = list(files)
        self.num_classes = num_classes
        self.size = size
        self.seed = seed
        self.training = training
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Other crops in every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        from PIL import Image

        path, label = self.files[index]
        image = _read(path, "RGB")
        width, height = image.size
        box, mirror = self._crop(index, width, height)
        shape = (self.size, self.size)
        image = image.resize(shape, Image.Resampling.BILINEAR, box=box)
        if mirror:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        if isinstance(label, int):
            return pixels, torch.tensor(label)
        mask = _read(label, None)
        if mask.size != (width, height):
            raise DataError(
                f"{label}: expected a mask of {width}x{height}, as the image {path.name} is, got "
                f"{mask.size[0]}x{mask.size[1]}"
            )
        mask = mask.resize(shape, Image.Resampling.NEAREST, box=box)
        if mirror:
            mask = mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        values = torch.from_numpy(np.array(mask).astype(np.int64))
        if values.dim() != 2:
            raise DataError(f"{label}: expected one channel, or a palette, got {mask.mode}")
        classes = values[values != IGNORED]
        if classes.numel() and not 0 <= int(classes.min()) <= int(classes.max()) < self.num_classes:
            raise DataError(
                f"{label}: expected classes of 0 to {self.num_classes - 1} and {IGNORED}, got "
                f"{int(classes.max())}"
            )
        return pixels, values

    def _crop(
        self, index: int, width: int, height: int
    ) -> tuple[tuple[float, float, float, float], bool]:
        """Left, top, right and bottom of what is taken from the image, and whether mirrored."""
        if not self.training:
            side = min(width, height)
            left, top = (width - side) / 2, (height - side) / 2
            return (left, top, left + side, top + side), False
        random = np.random.default_rng((self.seed, self.epoch, index))
        area = width * height * random.uniform(*_CROP_AREA)
        aspect = math.exp(random.uniform(-math.log(_CROP_ASPECT), math.log(_CROP_ASPECT)))
        w = min(width, math.sqrt(area * aspect))
        h = min(height, math.sqrt(area / aspect))
        left, top = random.uniform(0, width - w), random.uniform(0, height - h)
        return (left, top, left + w, top + h), bool(random.integers(2))


def _read(path: Path, mode: str | None) -> Any:
    """An image of Pillow's, all of its pixels read."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            image.load()
            return image if mode is None else image.convert(mode)
    # Packages that teach Pillow more formats (ultralytics, once it is imported) raise ImportError
    # where they lack a decoder for what is no image at all.
    except (UnidentifiedImageError, ImportError) as error:
        raise DataError(f"{path}: not an image that can be read") from error
    # What Pillow raises at broken files, and at ones of more pixels than an image can have.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: the image is broken: {error}") from error


def training_batches(
    data: Data, config: Config, epoch: int, first: int, rank: int, world_size: int
) -> tuple[Iterator[tuple[Tensor, Tensor]], int]:
    """The batches of an epoch for one process, from batch ``first`` on, and how many it has.

    Raises:
        DataError: fewer images than one batch; while iterating: an image that cannot be used.
    """
    data.train.set_epoch(epoch)
    sampler: DistributedSampler[Any] = DistributedSampler(
        data.train, world_size, rank, shuffle=True, seed=config.seed, drop_last=True
    )
    sampler.set_epoch(epoch)
    batches = list(BatchSampler(sampler, config.batch_size // world_size, drop_last=True))
    if not batches:
        raise DataError(
            f"expected at least batch_size={config.batch_size} images for training, got "
            f"{len(data.train)}"
        )
    return _load(data.train, batches[first:], config), len(batches)


def validation_batches(
    data: Data, config: Config, rank: int, world_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of a process's share of the images for validation; no image comes twice.

    All processes get as many: where images run out, the last batch is empty.
    """
    size = max(1, config.batch_size // world_size)
    share = range(rank, len(data.val), world_size)
    batches = [list(share[i : i + size]) for i in range(0, len(share), size)]
    yield from _load(data.val, batches, config)
    if len(batches) < -(-len(data.val) // (size * world_size)):
        image, target = data.val[0]
        yield image.new_empty(0, *image.shape), target.new_empty(0, *target.shape)


def _load(
    dataset: Dataset[Any], batches: list[list[int]], config: Config
) -> Iterator[tuple[Tensor, Tensor]]:
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=config.workers,
        pin_memory=torch.cuda.is_available(),
        # Else it would draw from torch's own generator.
        generator=torch.Generator().manual_seed(config.seed),
    )
    try:
        yield from loader
    except DataError as error:
        # From a worker it comes with the text of the worker's traceback before its own.
        raise DataError(str(error).rsplit("DataError: ", 1)[-1].strip()) from error
