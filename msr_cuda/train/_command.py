"""``python -m msr_cuda train``: from the shell."""

from __future__ import annotations

import argparse
import sys
from typing import Any

#: Exit statuses beside 0; a run that was stopped by a signal says so as shells do.
FAILED, STOPPED = 1, 130

_DESCRIPTION = """\
Trains a multi-scale ResNet for classification or segmentation, on images in folders or on digits of
many sizes on photographs, which need no network. Writes checkpoints, metrics and a report to --out.
"""
_EPILOG = """\
folders:
  classification   FOLDER/train/CLASS/*.jpg, FOLDER/val/CLASS/*.jpg
  segmentation     FOLDER/train/images/*.jpg, FOLDER/train/masks/*.png, FOLDER/val/...,
                   FOLDER/classes.txt with a name a line; masks have class numbers, 255: none

examples:
  python -m msr_cuda train
  python -m msr_cuda train --config run.toml --epochs 20
  python -m msr_cuda train --resume --out runs/train
  torchrun --nproc-per-node 2 -m msr_cuda train --task segmentation
  torchrun --nproc-per-node 8 -m msr_cuda train --fsdp --model resnet50 --width 64
"""


def add_parser(commands: Any) -> None:
    """Adds the command to ``argparse``'s subparsers."""
    from . import config

    parser = commands.add_parser(
        "train",
        help="trains a multi-scale ResNet, on folders of images or on data that is there",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE", help="TOML; flags count more than the file")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --out, whose configuration holds",
    )
    config.add_flags(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """The command; returns its exit status."""
    from ._errors import TrainingError
    from .runs import train

    try:
        outcome = train(_configuration(arguments), resume=arguments.resume)
    except TrainingError as error:
        print(f"msr_cuda train: {error}", file=sys.stderr)
        return FAILED
    return STOPPED if outcome.interrupted else 0


def _configuration(arguments: argparse.Namespace) -> Any:
    from ._errors import TrainingError
    from .config import Config, given_flags, read_toml
    from .runs import config_of_run

    values = read_toml(arguments.config) if arguments.config else {}
    values |= given_flags(arguments)
    config = Config.from_dict(values)
    if not arguments.resume:
        return config
    before = config_of_run(config.out)
    asked = config.to_dict()
    # The folder may have been moved, and another machine may have other devices. A state is the
    # same whether parameters were shared out or not.
    free = {"out", "device", "workers", "fsdp"}
    for name, value in before.to_dict().items():
        if name in values and name not in free and asked[name] != value:
            raise TrainingError(
                f"{name}: the run in {config.out} has {value!r}, and cannot be resumed with "
                f"{asked[name]!r}"
            )
    kept = {name: asked[name] for name in free & values.keys()}
    return Config.from_dict(before.to_dict() | kept | {"out": config.out})
