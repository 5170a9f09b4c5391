#!/usr/bin/env python3
"""Networks that were trained at one size, tested on images that are smaller and larger.

    python examples/scale_test.py                     three seeds; writes scale_test/
    python examples/scale_test.py --seeds 1 --epochs 2 --images 1000

Trains a multi-scale ResNet, whose scales share their weights and classify each by itself, and two
plain ones on digits of one size on photographs (data that packages ship): a plain one with the same
width, which has the same trunk and thus the same parameters, and a wider one that needs about as
many operations. Then it rescales the images for validation, antialiased, and measures the accuracy
at each size. The table, the figures of every seed and a plot go to the folder --out; runs that are
there already are not trained again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import msr_cuda  # noqa: E402
from msr_cuda.train import Config, TrainingError, load_network, normalized, train  # noqa: E402
from msr_cuda.train.data import open_data  # noqa: E402
from msr_cuda.train.networks import build_network  # noqa: E402

FACTORS = (0.5, 0.75, 1.0, 1.5, 2.0)
_CLASSES = 10
_BATCH = 100


@dataclass(frozen=True)
class Contender:
    """A network that takes part.

    Attributes:
        name: in the table.
        config: of its runs, but for the seed and the folder.
        parameters: how many it has.
        operations: multiply-adds of its convolutions and of the classifier, for one image.
    """

    name: str
    config: Config
    parameters: int
    operations: int


def operations(network: nn.Module, *shape: int) -> int:
    """Multiply-adds of convolutions and linear layers for one item, without the resampling."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network.eval()(torch.zeros(1, *shape))
    return int(counter.get_total_flops()) // 2


def contender(name: str, config: Config) -> Contender:
    """A contender, its cost counted."""
    network = build_network(config, _CLASSES)
    parameters = sum(p.numel() for p in network.parameters())
    return Contender(name, config, parameters, operations(network, 3, *[config.image_size] * 2))


def contenders(config: Config) -> list[Contender]:
    """The multi-scale network, and the plain ones of its width and of its operations."""
    several = contender("multi-scale", config)

    def plain(width: int) -> Contender:
        changed = config.to_dict() | {"scales": [1.0], "fusion": "sum", "width": width}
        return contender("plain", Config.from_dict(changed))

    same = plain(config.width)
    wider = min(
        (plain(config.width + extra) for extra in range(config.width + 1)),
        key=lambda c: abs(c.operations - several.operations),
    )
    found = [several, replace(same, name="plain, same width")]
    if wider.config.width > config.width:
        found.append(replace(wider, name="plain, same operations"))
    return found


def accuracies(weights: Path) -> list[float]:
    """The accuracy of a trained network at each of the factors."""
    network, config, _ = load_network(weights)
    data = open_data(config)
    right = [0] * len(FACTORS)
    for first in range(0, len(data.val), _BATCH):
        items = [data.val[i] for i in range(first, min(first + _BATCH, len(data.val)))]
        images = normalized(torch.stack([image for image, _ in items]))
        labels = torch.stack([label for _, label in items])
        for place, factor in enumerate(FACTORS):
            size = [round(config.image_size * factor)] * 2
            with torch.no_grad():
                scaled = msr_cuda.resample(images, size, mode="bilinear", antialias=True)
                right[place] += int((network(scaled).argmax(1) == labels).sum())
    return [count / len(data.val) for count in right]


def run(one: Contender, seed: int, out: Path) -> list[float]:
    """Trains a contender unless that is done, and tests it."""
    folder = out / f"{one.name.replace(', ', '-').replace(' ', '-')}-{seed}"
    changed = one.config.to_dict() | {"seed": seed, "out": str(folder)}
    outcome = train(Config.from_dict(changed), resume=(folder / "state.pt").exists())
    if outcome.interrupted:
        raise TrainingError("stopped; the same command goes on")
    return accuracies(folder / "last.safetensors")


def table(found: Sequence[Contender], results: dict[str, list[list[float]]]) -> str:
    """Markdown: the mean over seeds, and how far the seeds are from each other."""
    config = found[0].config
    seeds = len(results[found[0].name])
    lines = [
        f"Accuracy on {max(1, config.images // 4)} images of digits on photographs, trained at "
        f"{config.image_size} x {config.image_size} (factor 1), {config.epochs} epochs of "
        f"{config.images}: "
        + (
            f"the mean over {seeds} seeds, ± the standard deviation between them."
            if seeds > 1
            else "one seed."
        ),
        "",
        "| network | width | parameters | multiply-adds | "
        + " | ".join(f"{f:g}×" for f in FACTORS)
        + " |",
        "| --- | ---: | ---: | ---: |" + " ---: |" * len(FACTORS),
    ]
    for one in found:
        cells = []
        for values in zip(*results[one.name], strict=True):
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}")
        lines.append(
            f"| {one.name} | {one.config.width} | {one.parameters:,} | "
            f"{one.operations / 1e6:.1f} M | " + " | ".join(cells) + " |"
        )
    scales = ", ".join(f"{s:g}" for s in config.scales)
    lines += ["", f"Scales of the multi-scale network: {scales}, fused by {config.fusion}."]
    return "\n".join(lines) + "\n"


def draw_line(axes: Any, label: str, accuracies: Sequence[Sequence[float]]) -> None:
    """The mean over seeds by factor, with a band from the worst to the best seed.

    Args:
        axes: Matplotlib's.
        accuracies: of each of the factors those of all seeds.
    """
    means = [statistics.mean(seeds) for seeds in accuracies]
    (line,) = axes.plot(FACTORS, means, marker="o", label=label)
    low, high = [min(seeds) for seeds in accuracies], [max(seeds) for seeds in accuracies]
    axes.fill_between(FACTORS, low, high, color=line.get_color(), alpha=0.2)


def finish_lines(axes: Any, xlabel: str) -> None:
    """Axes and legend of what :func:`draw_line` drew."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(FACTORS, [f"{f:g}×" for f in FACTORS])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(xlabel)
    axes.set_ylabel("accuracy")
    axes.grid(alpha=0.3)
    axes.legend()


def plot(found: Sequence[Contender], results: dict[str, list[list[float]]], path: Path) -> bool:
    """A line for each contender with a band from its worst to its best seed; needs Matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(6, 4))
    axes = figure.subplots()
    for one in found:
        label = f"{one.name} ({one.parameters:,} parameters)"
        draw_line(axes, label, list(zip(*results[one.name], strict=True)))
    finish_lines(axes, "size of the test images; 1×: that of training")
    figure.savefig(path, dpi=120, bbox_inches="tight")
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the test; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("scale_test"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--images", type=int, default=4000, help="an epoch")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--digit-size", type=float, default=0.7, help="as a share of the image")
    parser.add_argument("--width", type=int, default=12)
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 0.71, 0.5])
    parser.add_argument("--fusion", default="mixture")
    parser.add_argument("--device", default="auto")
    given = parser.parse_args(argv)
    try:
        config = Config.from_dict(
            {
                "epochs": given.epochs,
                "images": given.images,
                "image_size": given.image_size,
                "digit_sizes": [given.digit_size, given.digit_size],
                "width": given.width,
                "scales": given.scales,
                "fusion": given.fusion,
                "device": given.device,
            }
        )
        found = contenders(config)
        results = {
            one.name: [run(one, seed, given.out) for seed in range(given.seeds)] for one in found
        }
    except TrainingError as error:
        print(f"scale_test: {error}", file=sys.stderr)
        return 1
    text = table(found, results)
    (given.out / "scale_test.md").write_text(text, encoding="utf-8")
    figures = {"factors": FACTORS, "config": config.to_dict(), "accuracy": results}
    (given.out / "scale_test.json").write_text(json.dumps(figures, indent=1) + "\n")
    drawn = plot(found, results, given.out / "scale_test.png")
    print(text)
    print(f"{given.out}: scale_test.md, scale_test.json" + (", scale_test.png" if drawn else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
