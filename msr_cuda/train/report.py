"""What a finished run says of itself: a page of Markdown, and pictures where Matplotlib is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import checkpoint
from .config import Config
from .metrics import Confusion
from .trainer import BEST, LAST, Outcome

PAGE, CURVES, CONFUSION = "report.md", "curves.png", "confusion.png"


def write(config: Config, outcome: Outcome) -> str:
    """Writes the report into the run's folder.

    Returns:
        Its text.
    """
    out = Path(config.out)
    pictures = _pictures(out, outcome)
    text = _page(config, outcome, pictures)
    checkpoint.write_atomically(out / PAGE, text.encode())
    return text


def _page(config: Config, outcome: Outcome, pictures: list[str]) -> str:
    rows, classes, confusion = outcome.history, outcome.classes, outcome.confusion
    assert confusion is not None  # a finished run has had an epoch
    segmentation = config.task == "segmentation"
    unit, main = ("pixels", "mean_iou") if segmentation else ("images", "accuracy")
    best = max(rows, key=lambda row: row[main])
    scales = ", ".join(f"{s:g}" for s in config.scales)
    lines = [
        f"# {config.task}: {config.data}",
        "",
        f"{config.model}, width {config.width}, scales {scales}"
        + (f" fused by {config.fusion}" if len(config.scales) > 1 else "")
        + f"; {outcome.parameters:,} parameters; {outcome.seconds:.0f} s of training here.",
        "",
        f"After epoch {rows[-1]['epoch']:.0f}: accuracy {rows[-1]['accuracy']:.4f}, mean IoU "
        f"{rows[-1]['mean_iou']:.4f} ({LAST}). Best {main.replace('_', ' ')}: {best[main]:.4f}, "
        f"epoch {best['epoch']:.0f} ({BEST}).",
        "",
        f"| class | {unit} | recall | IoU |",
        "| --- | ---: | ---: | ---: |",
    ]
    occurred = confusion.counts.sum(1).tolist()
    recall, iou = confusion.recall().tolist(), confusion.intersection_over_union().tolist()
    for name, number, r, i in zip(classes, occurred, recall, iou, strict=True):
        lines.append(f"| {name} | {number} | {_share(r)} | {_share(i)} |")
    mistakes = _most_frequent_mistakes(confusion, classes)
    if mistakes:
        lines += ["", "Taken for another most often: " + "; ".join(mistakes) + "."]
    lines += ["", *[f"![{name}]({name})" for name in pictures]]
    if not pictures:
        lines.append("(no pictures: matplotlib is not installed)")
    return "\n".join(lines) + "\n"


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _most_frequent_mistakes(confusion: Confusion, classes: list[str], most: int = 3) -> list[str]:
    counts = confusion.counts.clone().fill_diagonal_(0)
    values, places = counts.flatten().topk(min(most, counts.numel()))
    return [
        f"{classes[place // len(classes)]} for {classes[place % len(classes)]} ({value})"
        for value, place in zip(values.tolist(), places.tolist(), strict=True)
        if value
    ]


def _pictures(out: Path, outcome: Outcome) -> list[str]:
    """Writes the curves and the confusion matrix; their names, or none without Matplotlib."""
    try:
        from matplotlib.figure import Figure  # not pyplot: it would look for a display
    except ImportError:
        return []
    import io

    def save(figure: Figure, name: str) -> str:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=120, bbox_inches="tight")
        checkpoint.write_atomically(out / name, buffer.getvalue())
        return name

    epochs = [row["epoch"] for row in outcome.history]
    figure = Figure(figsize=(9, 3.5))
    left, right = figure.subplots(1, 2)
    for axes, metrics in ((left, ("train_loss", "val_loss")), (right, ("accuracy", "mean_iou"))):
        for name in metrics:
            values = [row[name] for row in outcome.history]
            axes.plot(epochs, values, marker="o", label=name.replace("_", " "))
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.legend()
    names = [save(figure, CURVES)]

    assert outcome.confusion is not None
    side = 2 + 0.4 * len(outcome.classes)
    figure = Figure(figsize=(side + 1, side))
    image = draw_confusion(figure.subplots(), outcome.confusion, outcome.classes)
    figure.colorbar(image, label="share of the class")
    return [*names, save(figure, CONFUSION)]


def draw_confusion(axes: Any, confusion: Confusion, classes: Sequence[str]) -> Any:
    """The shares of each class, a row, into Matplotlib's axes; returns Matplotlib's image."""
    counts = confusion.counts.double()
    shares = (counts / counts.sum(1, keepdim=True)).nan_to_num()
    image = axes.imshow(shares.numpy(), vmin=0, vmax=1, cmap="Blues")
    axes.set_xticks(range(len(classes)), classes, rotation=90)
    axes.set_yticks(range(len(classes)), classes)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    return image
