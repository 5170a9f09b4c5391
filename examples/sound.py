#!/usr/bin/env python3
"""Who speaks? Networks on recorded speech, tested at tempos at which nobody spoke; offline.

    python examples/sound.py                    minutes on one core; writes sound/
    python examples/sound.py --seeds 1 --steps 50

The data are recorded speech: nine men say the vowels a and e, 270 times for training and 370 times
for testing (Japanese Vowels, Kudo et al. 1999), as the package aeon ships them. They are no
waveforms, of which no package was found that ships enough, but what the authors computed from them:
12 cepstral coefficients of a linear prediction for each of 7 to 29 frames. A network for signals
takes them as it takes a signal of 12 channels.

Networks learn whose voice it is at the tempo of the recordings. Then the frames for testing are
resampled, antialiased: 0.5x is twice the tempo, 2x is half of it. Four networks take part:
one whose scales share their weights and decide each by itself, one that fuses the features of its
scales, and two plain ones, of as many parameters and of about as many operations. The folder --out
gets the table, sound.md, accuracy.png, and confusion.png of the first network.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scale_test import FACTORS, draw_line, finish_lines, operations  # noqa: E402

import msr_cuda  # noqa: E402
from msr_cuda.models import (  # noqa: E402
    MultiScaleResNet,
    ScaleMixtureResNet,
    multiscale_encoder,
    multiscale_speech_resnet18,
)
from msr_cuda.train import Confusion, TrainingError  # noqa: E402
from msr_cuda.train.digits import shipped  # noqa: E402
from msr_cuda.train.report import draw_confusion  # noqa: E402

CLASSES = [f"speaker {i}" for i in range(1, 10)]
SCALES = (1.0, 0.71, 0.5)
_COEFFICIENTS = 12
_FRAMES = 32  # of what networks get; silence follows what was said
_BATCH = 32
_LR = 3e-3
_SMOOTHING = 0.05  # of labels
_DROPOUT = 0.3
TABLE, ACCURACY, CONFUSION = "sound.md", "accuracy.png", "confusion.png"

#: Of one network, by factor.
Results = list[Confusion]


class Utterance(NamedTuple):
    """What was said once.

    Attributes:
        frames (Tensor[12, T]): float32, as in the file.
        speaker: class number.
    """

    frames: Tensor
    speaker: int


def read(split: str) -> list[Utterance]:
    """The utterances of ``"TRAIN"`` or ``"TEST"``.

    Raises:
        DataError: the package that has them is not installed.
    """
    path = shipped(
        "aeon", "datasets", "data", "JapaneseVowels", f"JapaneseVowels_{split}.ts",
        data="the speech data", advice="pip install --no-deps aeon (Python 3.11 or newer)",
    )  # fmt: skip
    lines = path.read_text(encoding="utf-8").splitlines()
    found = []
    for line in lines[lines.index("@data") + 1 :]:
        *channels, speaker = line.split(":")
        frames = [[float(value) for value in channel.split(",")] for channel in channels]
        found.append(Utterance(torch.tensor(frames), int(speaker) - 1))
    return found


def standardized(utterances: Sequence[Utterance], like: Sequence[Utterance]) -> list[Utterance]:
    """With mean 0 and variance 1 of each coefficient over the frames of ``like``."""
    frames = torch.cat([utterance.frames for utterance in like], 1)
    mean, std = frames.mean(1, keepdim=True), frames.std(1, keepdim=True)
    return [Utterance((u.frames - mean) / std, u.speaker) for u in utterances]


def batch(utterances: Sequence[Utterance], factor: float = 1.0) -> tuple[Tensor, Tensor]:
    """``[N, 12, T]``, spoken ``factor`` times as long, with zeros after each; and the speakers."""
    length = round(_FRAMES * factor)
    items = []
    for utterance in utterances:
        size = [max(1, round(utterance.frames.shape[1] * factor))]
        frames = msr_cuda.resample(utterance.frames[None], size, mode="linear", antialias=True)[0]
        items.append(F.pad(frames, (0, length - frames.shape[1])))
    return torch.stack(items), torch.tensor([utterance.speaker for utterance in utterances])


def decides(width: int) -> ScaleMixtureResNet:
    """Several scales, each of which decides."""
    encoder = multiscale_encoder(
        "resnet18", scales=SCALES, fusion=None, dims=1, in_channels=_COEFFICIENTS, width=width,
        stem_kernel=3, stem_stride=1, out_indices=(4,),
    )  # fmt: skip
    return ScaleMixtureResNet(encoder, len(CLASSES), dropout=_DROPOUT)


def fuses(width: int, scales: Sequence[float] = SCALES) -> MultiScaleResNet:
    """Several scales, whose features are fused with learned weights; with one, a plain ResNet."""
    return multiscale_speech_resnet18(
        num_classes=len(CLASSES), scales=scales, in_channels=_COEFFICIENTS, fusion="softmax",
        width=width, stem_kernel=3, stem_stride=1, dropout=_DROPOUT,
    )  # fmt: skip


def plain(width: int) -> MultiScaleResNet:
    """One scale."""
    return fuses(width, scales=(1.0,))


def cost(network: nn.Module) -> int:
    """Multiply-adds for one utterance at the tempo of the recordings."""
    return operations(network, _COEFFICIENTS, _FRAMES)


def contenders(width: int) -> dict[str, Callable[[], nn.Module]]:
    """What makes the networks that take part, by their names."""
    wanted = cost(decides(width))
    widths = range(width + 1, 2 * width + 2)
    wider = min(widths, key=lambda other: abs(cost(plain(other)) - wanted))
    return {
        "3 scales, each decides": partial(decides, width),
        "3 scales, features fused": partial(fuses, width),
        "plain, same width": partial(plain, width),
        "plain, same operations": partial(plain, wider),
    }


def learn(network: nn.Module, training: Sequence[Utterance], steps: int) -> None:
    """Trains at the tempo of the recordings, on random batches.

    Raises:
        TrainingError: the loss is not finite.
    """
    optimizer = torch.optim.AdamW(network.parameters(), _LR, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LR, total_steps=steps)
    inputs, speakers = batch(training)
    network.train()
    for step in range(steps):
        chosen = torch.randint(len(training), (_BATCH,))
        scores, targets = network(inputs[chosen]), speakers[chosen]
        if isinstance(network, ScaleMixtureResNet):
            loss = network.loss(scores, targets, label_smoothing=_SMOOTHING)
        else:
            loss = F.cross_entropy(scores, targets, label_smoothing=_SMOOTHING)
        if not math.isfinite(loss.item()):
            raise TrainingError(f"the loss is {loss.item()} at step {step + 1}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def test(network: nn.Module, testing: Sequence[Utterance]) -> list[Confusion]:
    """What a network says at each of the factors."""
    network.eval()
    found = []
    for factor in FACTORS:
        inputs, speakers = batch(testing, factor)
        found.append(Confusion.of(network(inputs).argmax(1), speakers, len(CLASSES)))
    return found


def run(arguments: argparse.Namespace) -> tuple[dict[str, nn.Module], dict[str, list[Results]]]:
    """Trains and tests all networks: the last of each, and the results of all seeds."""
    recorded = read("TRAIN")
    training, testing = (standardized(found, recorded) for found in (recorded, read("TEST")))
    networks: dict[str, nn.Module] = {}
    results: dict[str, list[Results]] = {}
    for name, make in contenders(arguments.width).items():
        for seed in range(arguments.seeds):
            begun = time.monotonic()
            torch.manual_seed(seed)
            networks[name] = make()
            learn(networks[name], training, arguments.steps)
            found = test(networks[name], testing)
            results.setdefault(name, []).append(found)
            shown = "  ".join(
                f"{f:g}x {c.accuracy:.3f}" for f, c in zip(FACTORS, found, strict=True)
            )
            print(f"{name}, seed {seed}: {shown} ({time.monotonic() - begun:.0f} s)", flush=True)
    return networks, results


def accuracies(results: Sequence[Results]) -> list[list[float]]:
    """Of each factor those of all seeds."""
    return [[one.accuracy for one in seeds] for seeds in zip(*results, strict=True)]


def table(networks: dict[str, nn.Module], results: dict[str, list[Results]]) -> str:
    """Markdown: the mean over seeds, and how far the seeds are from each other."""
    first = next(iter(results.values()))
    seeds, count = len(first), int(first[0][0].counts.sum())
    spread = f"mean and standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    lines = [
        f"Accuracy on {count} utterances of {len(CLASSES)} speakers, at several lengths; {spread}.",
        "",
        "| network | parameters | multiply-adds | " + " | ".join(f"{f:g}×" for f in FACTORS) + " |",
        "| --- | ---: | ---: |" + " ---: |" * len(FACTORS),
    ]
    for name, network in networks.items():
        parameters = sum(p.numel() for p in network.parameters())
        cells = []
        for values in accuracies(results[name]):
            deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{deviation}")
        lines.append(
            f"| {name} | {parameters:,} | {cost(network) / 1e6:.2f} M | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines) + "\n"


def draw(results: dict[str, list[Results]], out: Path) -> None:
    """The accuracies, a line for each network, and the confusions of the first one's first seed.

    Raises:
        ImportError: Matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4))
    axes: Any = figure.subplots()
    for name, found in results.items():
        draw_line(axes, name, accuracies(found))
    finish_lines(axes, "length of what is said; 1×: as recorded")
    figure.savefig(out / ACCURACY, dpi=100, bbox_inches="tight")

    name, found = next(iter(results.items()))
    shown = (0, FACTORS.index(1.0), len(FACTORS) - 1)
    figure = Figure(figsize=(4 * len(shown), 4), layout="constrained")
    axes = figure.subplots(1, len(shown))
    for place, index in zip(axes, shown, strict=True):
        image = draw_confusion(place, found[0][index], CLASSES)
        place.set_title(f"{name}: {FACTORS[index]:g}×", fontsize=9)
    figure.colorbar(image, ax=axes, label="share of the speaker's utterances")
    figure.savefig(out / CONFUSION, dpi=100)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200, help="of training, 32 utterances each")
    parser.add_argument("--width", type=int, default=16, help="channels of the networks' stem")
    parser.add_argument("--out", type=Path, default=Path("sound"), metavar="DIR")
    arguments = parser.parse_args(argv)
    for name in ("seeds", "steps", "width"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name}: expected 1 or more, got {getattr(arguments, name)}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, tests, writes; returns the exit status."""
    arguments = parse(argv)
    try:
        networks, results = run(arguments)
        arguments.out.mkdir(parents=True, exist_ok=True)
        text = table(networks, results)
        (arguments.out / TABLE).write_text(text, encoding="utf-8")
    except (TrainingError, OSError) as error:
        print(f"sound.py: {error}", file=sys.stderr)
        return 1
    print("\n" + text)
    try:
        draw(results, arguments.out)
    except ImportError as error:
        print(f"no pictures: {error}", file=sys.stderr)
    else:
        print(f"drawn: {arguments.out / ACCURACY}, {arguments.out / CONFUSION}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
