#!/usr/bin/env python3
"""A support vector machine on the features of a multi-scale network; offline.

    python examples/svm.py                      minutes on one core; writes svm/
    python examples/svm.py --epochs 1 --images 500

A multi-scale ResNet learns to tell digits on photographs apart. Then its linear layer is left out:
what it gets (`forward_features`), of images that the network was not trained on, is what support
vector machines of scikit-learn learn from, a linear one and one with a Gaussian kernel, from few
images and from many. All are tested on the same images for validation, which have no digit and no
photograph in common with the others. The folder --out gets the network's run, the table, svm.md,
and confusion.png of the linear layer and of the last machine.

Needs scikit-learn: pip install scikit-learn
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from msr_cuda.models import MultiScaleResNet  # noqa: E402
from msr_cuda.train import (  # noqa: E402
    Config,
    Confusion,
    TrainingError,
    load_network,
    normalized,
    train,
)
from msr_cuda.train._errors import require  # noqa: E402
from msr_cuda.train.data import open_data  # noqa: E402
from msr_cuda.train.report import draw_confusion  # noqa: E402

KERNELS = {"linear": "SVM, linear", "rbf": "SVM, Gaussian kernel"}
_BATCH = 100
_FEWER = 10  # times, as the first machines get
TABLE, CONFUSION = "svm.md", "confusion.png"


class Row(NamedTuple):
    """A classifier, and how it does on the images for validation.

    Attributes:
        name: in the table.
        images: that it learnt from, as text.
        seconds: that this took; None for the layer, which learns with the network.
        confusion: of the images for validation.
    """

    name: str
    images: str
    seconds: float | None
    confusion: Confusion


@torch.no_grad()
def features(network: MultiScaleResNet, images: Any, count: int) -> tuple[Tensor, Tensor]:
    """``[count, C]``, what the linear layer gets for images of a data set, and their classes."""
    found, labels = [], []
    for first in range(0, count, _BATCH):
        items = [images[i] for i in range(first, min(first + _BATCH, count))]
        found.append(network.forward_features(normalized(torch.stack([x for x, _ in items]))))
        labels += [label for _, label in items]
    return torch.cat(found), torch.stack(labels)


def compare(network: MultiScaleResNet, config: Config) -> list[Row]:
    """The network's linear layer, and machines on what it gets."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    data = open_data(config)
    data.train.set_epoch(config.epochs)  # the epoch after the last: images made of the same digits
    known, known_labels = features(network, data.train, config.images)
    new, labels = features(network, data.val, len(data.val))
    with torch.no_grad():
        decided = network.fc(new).argmax(1)
    classes = len(data.classes)
    seen = f"{config.epochs} × {config.images}"
    layer = "the network's linear layer"
    rows = [Row(layer, seen, None, Confusion.of(decided, labels, classes))]
    for count in (max(1, config.images // _FEWER), config.images):
        for kernel, name in KERNELS.items():
            begun = time.monotonic()
            machine = make_pipeline(StandardScaler(), SVC(kernel=kernel))
            machine.fit(known[:count].numpy(), known_labels[:count].numpy())
            seconds = time.monotonic() - begun
            said = torch.from_numpy(np.asarray(machine.predict(new.numpy()), np.int64))
            rows.append(Row(name, str(count), seconds, Confusion.of(said, labels, classes)))
    return rows


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    count = int(rows[0].confusion.counts.sum())
    lines = [
        f"On {count} images for validation:",
        "",
        "| classifier | images it learnt from | seconds | accuracy |",
        "| --- | ---: | ---: | ---: |",
    ]
    for row in rows:
        seconds = "with the network" if row.seconds is None else f"{row.seconds:.2f}"
        lines.append(f"| {row.name} | {row.images} | {seconds} | {row.confusion.accuracy:.3f} |")
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Row], classes: Sequence[str], target: Path) -> None:
    """The confusions of the linear layer and of the last machine.

    Raises:
        ImportError: Matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes: Any = figure.subplots(1, 2)
    for place, row in zip(axes, (rows[0], rows[-1]), strict=True):
        image = draw_confusion(place, row.confusion, classes)
        place.set_title(f"{row.name}: accuracy {row.confusion.accuracy:.3f}", fontsize=9)
    figure.colorbar(image, ax=axes, label="share of the class")
    figure.savefig(target, dpi=100)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--images", type=int, default=3000, help="for training, in each epoch")
    parser.add_argument("--image-size", type=int, default=32, help="in pixels")
    parser.add_argument("--width", type=int, default=12, help="channels of the network's stem")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("svm"), metavar="DIR")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Trains unless that is done, compares, draws; returns the exit status."""
    arguments = parse(argv)
    try:
        require("sklearn", "this example needs scikit-learn: pip install scikit-learn")
        config = Config(
            epochs=arguments.epochs, images=arguments.images, image_size=arguments.image_size,
            width=arguments.width, digit_sizes=(0.5, 1.0), seed=arguments.seed, device="cpu",
            out=str(arguments.out),
        )  # fmt: skip
        outcome = train(config, resume=(arguments.out / "state.pt").exists())
        if outcome.interrupted:
            return 130
        network, _, classes = load_network(arguments.out / "last.safetensors")
        assert isinstance(network, MultiScaleResNet)
        rows = compare(network, config)
        (arguments.out / TABLE).write_text(table(rows), encoding="utf-8")
    except (TrainingError, OSError) as error:
        print(f"svm.py: {error}", file=sys.stderr)
        return 1
    print(table(rows))
    try:
        draw(rows, classes, arguments.out / CONFUSION)
    except ImportError as error:
        print(f"no pictures: {error}", file=sys.stderr)
    else:
        print(f"drawn: {arguments.out / CONFUSION}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
