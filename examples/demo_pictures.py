"""The photographs that the demo's networks look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from demo_state import Demo, Photograph
from torch import Tensor


def synthetic_picture() -> Photograph:
    """Discs over a gradient: something with edges at several scales, where no photograph is."""
    y, x = np.mgrid[:300, :451].astype(np.float32)
    picture = np.stack([y / 3, x / 4, 80 + 40 * np.sin(x / 25)], -1)
    for row, column, radius, colour in (
        (90, 120, 60, (230, 60, 40)), (190, 300, 90, (40, 180, 220)), (70, 360, 25, (250, 230, 60)),
        (230, 90, 35, (20, 20, 30)),
    ):  # fmt: skip
        picture[(y - row) ** 2 + (x - column) ** 2 < radius**2] = colour
    return Photograph("synthetic picture", picture.clip(0, 255).astype(np.uint8))


def load_photographs(names: Sequence[str]) -> tuple[list[Photograph], str | None]:
    """Photographs of scikit-image; or a synthetic picture, and the reason."""
    try:
        from skimage import data

        return [Photograph(name, np.asarray(getattr(data, name)())) for name in names], None
    except (ImportError, OSError) as error:
        reason = f"photographs ({error}); a synthetic picture takes their place"
        return [synthetic_picture()], reason


def shrink(pixels: np.ndarray, longest_side: int | None) -> np.ndarray:
    """The same photograph with its longer side at most that long."""
    longest = max(pixels.shape[:2])
    if longest_side is None or longest <= longest_side:
        return pixels
    size = [round(n * longest_side / longest) for n in pixels.shape[:2]]
    image = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0).float()
    image = F.interpolate(image, size, mode="bilinear", antialias=True)
    return image[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()


def batch_of(image: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A batch of crops of one image ``[1, 3, H, W]``; enlarged first where it is too small.

    Args:
        image: the photograph as its network takes it.
        shape: ``(height, width)`` for a single crop of the middle, or ``(batch, height, width)``.
    """
    batch, height, width = shape if len(shape) == 3 else (1, *shape)
    factor = max(height / image.shape[2], width / image.shape[3], 1)
    if factor > 1:
        image = F.interpolate(image, scale_factor=factor * 1.001, mode="bilinear")
    rows, columns = image.shape[2] - height, image.shape[3] - width
    crops = []
    for i in range(batch):
        share = (i + 1) / (batch + 1)  # along the diagonal, so that the crops differ
        top, left = int(rows * share), int(columns * share)
        crops.append(image[:, :, top : top + height, left : left + width])
    return torch.cat(crops).contiguous()


def width_by_height(image: Tensor) -> str:
    """The size of a batch of images, as sizes of photographs are told."""
    return f"{image.shape[-1]} x {image.shape[-2]}"


def find_photographs(demo: Demo) -> None:
    """Loads what the networks will look at."""
    photographs, missing = load_photographs(demo.settings.photographs)
    demo.display.heading("1. Photographs")
    if missing is not None:
        demo.leave_out(missing)
    for name, pixels in photographs:
        demo.photographs.append(Photograph(name, shrink(pixels, demo.settings.longest_side)))
        small = demo.photographs[-1].pixels
        shape = " x ".join(str(n) for n in small.shape[1::-1])
        demo.display.line(f"  {name}, {shape} pixels")


def detector_input(demo: Demo) -> Tensor:
    """A photograph in 0..1."""
    pixels = torch.from_numpy(demo.photographs[0].pixels)
    return pixels.permute(2, 0, 1).unsqueeze(0).float().div(255).to(demo.device)
