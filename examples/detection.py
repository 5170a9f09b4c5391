#!/usr/bin/env python3
"""Detection of digits on photographs, offline: trains, measures, draws.

    python examples/detection.py                    ten minutes; writes detection/
    python examples/detection.py --quick            a minute: shows that it runs, learns nothing

First a classifier learns digits of one size, each scale by itself. Then torchvision's Faster R-CNN
starts from its trunk, with a feature pyramid network, and learns where digits of many sizes are,
and which. Training and validation have no digit and no photograph in common. The folder --out gets
the classifier's run, the detector's weights, metrics.csv (the loss and the average precision of
each epoch) and pictures.png: images for validation, with the boxes that are true and those that
were found. A network that is there already is not trained again.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import msr_cuda.train.checkpoint as checkpoint  # noqa: E402
from msr_cuda.models import PyramidBackbone, load_trunk, multiscale_encoder  # noqa: E402
from msr_cuda.train import Config, Digits, TrainingError, load_network, train  # noqa: E402
from msr_cuda.train.digits import CLASSES  # noqa: E402

_PICTURES = 8
_SCALES = (1.0, 0.71, 0.5)
_BATCH = 8
_LR = 2e-3
_ROI = 7  # rows and columns of a box's features
_HIDDEN = 128  # of the box head
_CLIP_NORM = 5.0
_DIGIT_SIZES = (0.22, 0.7)  # as shares of the image
#: The sides of the anchors at reductions of 4, 8 and 16, in pixels; digits' boxes are squares.
_ANCHORS = ((14.0, 18.0), (24.0, 32.0), (40.0, 50.0))
_LEAST_IOU = 0.5  # of a box that counts as found
_SHOWN_SCORE = 0.4  # of the least sure box that is drawn
WEIGHTS, METRICS, PICTURES = "weights.safetensors", "metrics.csv", "pictures.png"


class Boxes(NamedTuple):
    """Boxes on one image.

    Attributes:
        boxes (Tensor[K, 4]): float32; left, top, right, bottom in pixels.
        labels (Tensor[K]): int64; 1 + class, 0 is the background.
        scores (Tensor[K]): float32; ones for those that are true.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor


class Setting(NamedTuple):
    """What decides a run's result."""

    epochs: int
    images: int
    image_size: int
    width: int
    channels: int
    classifier_epochs: int
    classifier_images: int
    seed: int


def scene(data: Digits, index: int) -> tuple[Tensor, Boxes]:
    """An image as detectors take it, float32 from 0 to 1, and its true boxes.

    A box is the square that a digit's picture was pasted to: the ink, and a margin of a seventh on
    each side, as MNIST's pictures have it.
    """
    image, _, placed = data.scene(index)
    corners = [[p.left, p.top, p.left + p.size, p.top + p.size] for p in placed]
    boxes = torch.tensor(corners, dtype=torch.float32)
    labels = torch.tensor([1 + p.label for p in placed])
    return image.float() / 255, Boxes(boxes, labels, torch.ones(len(placed)))


def build(setting: Setting) -> nn.Module:
    """A Faster R-CNN with random weights.

    Raises:
        ImportError: torchvision is not installed, or cannot be imported.
    """
    import torchvision_on_cpu  # noqa: F401
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.ops import MultiScaleRoIAlign

    encoder = multiscale_encoder(
        "resnet18", scales=_SCALES, fusion="max", out_indices=(2, 3, 4), width=setting.width,
        stem_stride=1,
    )  # fmt: skip
    backbone = PyramidBackbone(encoder, stages=(2, 3, 4), out_channels=setting.channels)
    levels = [str(i) for i in range(len(_ANCHORS))]
    model: nn.Module = FasterRCNN(
        backbone,
        min_size=setting.image_size,
        max_size=setting.image_size,
        rpn_anchor_generator=AnchorGenerator(_ANCHORS, ((1.0,),) * len(_ANCHORS)),
        rpn_pre_nms_top_n_train=100,  # on each level
        rpn_pre_nms_top_n_test=100,
        rpn_post_nms_top_n_train=60,
        rpn_post_nms_top_n_test=30,
        rpn_batch_size_per_image=64,
        box_roi_pool=MultiScaleRoIAlign(levels, _ROI, 2),
        box_head=TwoMLPHead(setting.channels * _ROI**2, _HIDDEN),
        box_predictor=FastRCNNPredictor(_HIDDEN, 1 + len(CLASSES)),
        box_batch_size_per_image=32,
        box_detections_per_img=20,  # there are three digits at most
    )
    return model


def classifier(setting: Setting, out: Path) -> nn.Module:
    """A classifier of digits of one size; trained unless that is done.

    Raises:
        TrainingError: what is wrong, or it was interrupted.
    """
    config = Config(
        scales=_SCALES, fusion="mixture", width=setting.width, image_size=32,
        digit_sizes=(0.7, 0.7), images=setting.classifier_images,
        epochs=setting.classifier_epochs, seed=setting.seed, device="cpu", out=str(out),
    )  # fmt: skip
    if train(config, resume=(out / "state.pt").exists()).interrupted:
        raise TrainingError("stopped; the same command goes on")
    return load_network(out / "last.safetensors")[0]


def average_precision(
    found: Sequence[Boxes], truth: Sequence[Boxes], label: int, least: float = _LEAST_IOU
) -> float:
    r"""The area under precision over recall for one class, over all images.

    Boxes are taken with falling score. One is right if, of the true boxes of its class and image
    that it overlaps by ``least`` or more, the one that it overlaps most has not been found by a
    box before. Precision at a recall is the largest at that recall or above.

    Args:
        found: of each image.
        truth: of each image; in the same order.
        label: of the class.
        least: intersection over union.

    Returns:
        0 to 1; NaN if the class has no true box.

    Source: Everingham et al. 2015, "The PASCAL Visual Object Classes Challenge: A Retrospective",
    with the area under all points, as from 2010 on.
    """
    import torchvision_on_cpu  # noqa: F401
    from torchvision.ops import box_iou

    scores: list[float] = []
    right: list[bool] = []
    count = 0
    for ours, theirs in zip(found, truth, strict=True):
        targets = theirs.boxes[theirs.labels == label]
        count += len(targets)
        mine = ours.labels == label
        order = ours.scores[mine].argsort(descending=True, stable=True)
        taken = [False] * len(targets)
        for overlap in box_iou(ours.boxes[mine][order], targets):
            best = int(overlap.argmax()) if len(targets) else -1
            good = best >= 0 and float(overlap[best]) >= least and not taken[best]
            if good:
                taken[best] = True
            right.append(good)
        scores += ours.scores[mine][order].tolist()
    if not count:
        return float("nan")
    if not scores:
        return 0.0
    ranked = torch.tensor(scores).argsort(descending=True, stable=True)
    hits = torch.tensor(right, dtype=torch.float64)[ranked].cumsum(0)
    precision = hits / torch.arange(1, len(hits) + 1)
    precision = precision.flip(0).cummax(0).values.flip(0)
    steps = torch.diff(hits / count, prepend=hits.new_zeros(1))
    return float((steps * precision).sum())


def mean_average_precision(found: Sequence[Boxes], truth: Sequence[Boxes]) -> float:
    """The mean of :func:`average_precision` over the classes that occur."""
    labels = range(1, 1 + len(CLASSES))
    each = torch.tensor([average_precision(found, truth, label) for label in labels])
    return float(each.nanmean())


@torch.no_grad()
def detect(model: nn.Module, images: Sequence[Tensor]) -> list[Boxes]:
    """The boxes that a model finds on images ``[3, H, W]``."""
    model.eval()
    results: list[Boxes] = []
    for first in range(0, len(images), _BATCH):
        for result in model(list(images[first : first + _BATCH])):
            results.append(Boxes(result["boxes"], result["labels"], result["scores"]))
    return results


def datasets(setting: Setting) -> tuple[Digits, Digits]:
    """For training, and a quarter as many for validation."""
    training, validation = (
        Digits(split, "segmentation", n, setting.image_size, _DIGIT_SIZES, setting.seed)
        for split, n in (("train", setting.images), ("val", max(1, setting.images // 4)))
    )
    return training, validation


def learn(model: nn.Module, setting: Setting) -> list[dict[str, float]]:
    """Trains a model; a row of metrics for each epoch.

    Raises:
        TrainingError: the loss is not finite.
    """
    training, validation = datasets(setting)
    scenes = [scene(validation, i) for i in range(len(validation))]
    images, truth = [image for image, _ in scenes], [boxes for _, boxes in scenes]
    size = min(_BATCH, len(training))
    steps = setting.epochs * (len(training) // size)
    optimizer = torch.optim.AdamW(model.parameters(), _LR, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LR, total_steps=steps)
    random = torch.Generator().manual_seed(setting.seed)
    rows = []
    for epoch in range(setting.epochs):
        begun = time.monotonic()
        training.set_epoch(epoch)
        model.train()
        total = 0.0
        batches = torch.randperm(len(training), generator=random).split(size)
        batches = tuple(batch for batch in batches if len(batch) == size)
        for batch in batches:
            items = [scene(training, i) for i in batch.tolist()]
            targets = [{"boxes": b.boxes, "labels": b.labels} for _, b in items]
            losses = model([image for image, _ in items], targets)
            loss = torch.stack(list(losses.values())).sum()
            value = loss.item()
            if not math.isfinite(value):
                raise TrainingError(f"the loss is {value} in epoch {epoch + 1}")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), _CLIP_NORM)
            optimizer.step()
            schedule.step()
            total += value
        precision = mean_average_precision(detect(model, images), truth)
        loss_mean = total / len(batches)
        rows.append({"epoch": epoch + 1.0, "loss": loss_mean, "average_precision": precision})
        print(
            f"epoch {epoch + 1}: loss {loss_mean:.4f}, average precision {precision:.4f} "
            f"({time.monotonic() - begun:.1f} s)",
            file=sys.stderr,
            flush=True,
        )
    return rows


def save(out: Path, model: nn.Module, setting: Setting, rows: list[dict[str, float]]) -> None:
    """Writes metrics and, after them, weights with the setting that they are of."""
    from safetensors.torch import save as packed

    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    checkpoint.write_atomically(out / METRICS, table.getvalue().encode())
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    checkpoint.write_atomically(out / WEIGHTS, packed(tensors, {"setting": repr(setting)}))


def restore(path: Path, model: nn.Module, setting: Setting) -> None:
    """Loads what :func:`save` has written.

    Raises:
        TrainingError: the weights are of another setting.
    """
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        written = (file.metadata() or {}).get("setting")
        if written != repr(setting):
            raise TrainingError(f"{path}: of {written}, not of {setting!r}; take another --out")
        model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118


def draw(model: nn.Module, setting: Setting, target: Path) -> None:
    """Images for validation with their true boxes, dashed, and those found, with class and score.

    Raises:
        ImportError: Matplotlib is not installed.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    _, validation = datasets(setting)
    scenes = [scene(validation, i) for i in range(min(_PICTURES, len(validation)))]
    found = detect(model, [image for image, _ in scenes])
    columns = min(4, len(scenes))
    rows = -(-len(scenes) // columns)
    figure = Figure(figsize=(2.4 * columns, 2.4 * rows), layout="constrained")
    places: Any = figure.subplots(rows, columns, squeeze=False)
    for place in places.flat:
        place.set_axis_off()
    for place, (image, truth), ours in zip(places.flat, scenes, found, strict=False):
        place.imshow(image.permute(1, 2, 0).numpy(), extent=(0, image.shape[2], image.shape[1], 0))
        for boxes, colour, style in ((truth, "white", "--"), (ours, "tab:orange", "-")):
            for (left, top, right, bottom), label, score in zip(
                boxes.boxes.tolist(), boxes.labels.tolist(), boxes.scores.tolist(), strict=True
            ):
                if score < _SHOWN_SCORE:
                    continue
                size = (right - left, bottom - top)
                place.add_patch(
                    Rectangle((left, top), *size, fill=False, edgecolor=colour, linestyle=style)
                )
                if boxes is ours:
                    text = f"{CLASSES[label - 1]} {score:.2f}"
                    place.text(left, top, text, color="black", fontsize=6, va="bottom",
                               bbox={"facecolor": colour, "pad": 0.5, "linewidth": 0})  # fmt: skip
    figure.savefig(target, dpi=100)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--images", type=int, default=1000, help="for training, in each epoch")
    parser.add_argument("--image-size", type=int, default=64, help="in pixels")
    parser.add_argument("--width", type=int, default=12, help="channels of the encoder's stem")
    parser.add_argument("--channels", type=int, default=32, help="of the pyramid and the head")
    parser.add_argument("--classifier-epochs", type=int, default=6)
    parser.add_argument("--classifier-images", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="one epoch of 64 images each")
    parser.add_argument("--out", type=Path, default=Path("detection"), metavar="DIR")
    arguments = parser.parse_args(argv)
    for name, least in (("epochs", 1), ("images", 1), ("image_size", 32), ("width", 1)):
        if getattr(arguments, name) < least:
            flag = "--" + name.replace("_", "-")
            parser.error(f"{flag}: expected {least} or more, got {getattr(arguments, name)}")
    if arguments.channels < 8 or arguments.channels % 8:
        parser.error(f"--channels: expected a multiple of 8, got {arguments.channels}")
    if arguments.quick:
        arguments.epochs = arguments.classifier_epochs = 1
        arguments.images = arguments.classifier_images = 64
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Trains unless that is done, measures, draws; returns the exit status."""
    arguments = parse(argv)
    setting = Setting(*(getattr(arguments, name) for name in Setting._fields))
    weights = arguments.out / WEIGHTS
    torch.manual_seed(setting.seed)
    try:
        model = build(setting)
        if weights.exists():
            restore(weights, model, setting)
        else:
            arguments.out.mkdir(parents=True, exist_ok=True)
            load_trunk(
                model, classifier(setting, arguments.out / "classifier").state_dict(), strict=True
            )
            save(arguments.out, model, setting, learn(model, setting))
    except (TrainingError, ImportError, OSError) as error:
        print(f"detection.py: {error}", file=sys.stderr)
        return 1
    with (arguments.out / METRICS).open(newline="", encoding="utf-8") as file:
        last = list(csv.DictReader(file))[-1]
    print(
        f"average precision at IoU {_LEAST_IOU}: {float(last['average_precision']):.3f}, the mean "
        f"over {len(CLASSES)} classes, {max(1, setting.images // 4)} images for validation"
    )
    try:
        draw(model, setting, arguments.out / PICTURES)
    except ImportError as error:
        print(f"no pictures: {error}", file=sys.stderr)
    else:
        print(f"drawn: {arguments.out / PICTURES}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
