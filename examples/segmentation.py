#!/usr/bin/env python3
"""Segmentation of digits on photographs, offline: trains, measures, draws.

    python examples/segmentation.py                    minutes on two cores; writes segmentation/
    python examples/segmentation.py --epochs 2 --images 500

An encoder at several scales and a decoder with residual fusion across scales learn which digit's
ink each pixel is. The loss and the decisions are those of the upsampled logits, which are never
written. The folder --out gets the run's report, weights and pictures.png: images for validation,
their masks, and what the network says.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from msr_cuda.models import SegmentationNet  # noqa: E402
from msr_cuda.train import Config, TrainingError, load_network, normalized, train  # noqa: E402
from msr_cuda.train.data import open_data  # noqa: E402

_PICTURES = 6


def predictions(weights: Path, count: int) -> tuple[Tensor, Tensor, Tensor, list[str]]:
    """Images for validation, their masks, the network's decisions, and the classes' names."""
    network, config, classes = load_network(weights)
    assert isinstance(network, SegmentationNet)
    data = open_data(config)
    items = [data.val[i] for i in range(min(count, len(data.val)))]
    images, masks = (torch.stack(parts) for parts in zip(*items, strict=True))
    with torch.no_grad():
        return images, masks, network.predict(normalized(images)), classes


def draw(weights: Path, target: Path) -> None:
    """A row for each image: it, its mask, the network's mask; one colour for each class."""
    from matplotlib.colors import BoundaryNorm
    from matplotlib.figure import Figure

    images, masks, found, classes = predictions(weights, _PICTURES)
    figure = Figure(figsize=(6.5, 2 * len(images)), layout="constrained")
    axes: Any = figure.subplots(len(images), 3, squeeze=False)
    norm = BoundaryNorm(np.arange(len(classes) + 1) - 0.5, len(classes))
    for row, image, *both in zip(axes, images, masks, found, strict=True):
        row[0].imshow(image.permute(1, 2, 0).numpy())
        for place, mask in zip(row[1:], both, strict=True):
            shown = place.imshow(mask.numpy(), cmap="tab20", norm=norm, interpolation="nearest")
        for place in row:
            place.set_axis_off()
    for place, title in zip(axes[0], ("image", "mask", "network"), strict=True):
        place.set_title(title, fontsize=9)
    bar = figure.colorbar(shown, ax=axes, ticks=range(len(classes)), shrink=0.5)
    bar.ax.set_yticklabels(classes, fontsize=7)
    figure.savefig(target, dpi=80)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--images", type=int, default=3000, help="for training, in each epoch")
    parser.add_argument("--image-size", type=int, default=48, help="in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("segmentation"), metavar="DIR")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Trains unless that is done, draws; returns the exit status."""
    arguments = parse(argv)
    try:
        config = Config(
            task="segmentation", epochs=arguments.epochs, images=arguments.images,
            image_size=arguments.image_size, seed=arguments.seed, out=str(arguments.out),
        )  # fmt: skip
        outcome = train(config, resume=(arguments.out / "state.pt").exists())
    except TrainingError as error:
        print(f"segmentation.py: {error}", file=sys.stderr)
        return 1
    if outcome.interrupted:
        return 130
    try:
        draw(arguments.out / "best.safetensors", arguments.out / "pictures.png")
    except ImportError as error:
        print(f"no pictures: {error}", file=sys.stderr)
    else:
        print(f"drawn: {arguments.out / 'pictures.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
