"""``python -m msr_cuda fuse``: what fusing does to a model, from the shell."""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import json
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from . import _fuse, _verify
from ._report import Report

#: Exit statuses beside 0.
NOTHING_FUSED, NOT_EQUAL, BAD_ARGUMENTS = 1, 1, 2

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the rank of maps
_DESCRIPTION = """\
Builds a model, fuses it, and lists each site: fused how, or left and why; with --input also the
bytes and kernels that a forward pass saves.
"""
_EPILOG = """\
examples:
  python -m msr_cuda fuse torchvision.models.segmentation:deeplabv3_resnet50 \\
      --set weights=None --set weights_backbone=None --input 1x3x512x512
  python -m msr_cuda fuse mypackage.models:build --input 2x3x224x224 --verify --json
"""


class _UsageError(Exception):
    """Something that the caller wrote is wrong: the text says what."""


def add_parser(commands: Any) -> None:
    """Adds the command to ``argparse``'s subparsers."""
    parser = commands.add_parser(
        "fuse",
        help="what fuse() does to a model: every site, with the bytes that it saves",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "factory",
        metavar="package.module:factory",
        help="what returns the model when called, or the model; the working directory is searched",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an argument of the factory, a Python literal or else a text; may be repeated",
    )
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        type=parse_shape,
        metavar="NxCxHxW",
        help="the shape of an argument of the model, normal random numbers; may be repeated",
    )
    parser.add_argument(
        "--list", action="store_true", help="pass all inputs as one list, as torchvision detectors"
    )
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--device", default="cpu", help="default: cpu")
    parser.add_argument("--channels-last", action="store_true", help="of the model and its inputs")
    parser.add_argument("--train", action="store_true", help="in training mode (default: eval)")
    parser.add_argument(
        "--verify", action="store_true", help="also compare outputs and gradients; needs --input"
    )
    parser.add_argument(
        "--strict", action="store_true", help="fail if a module has to be left alone, or none is"
    )
    parser.add_argument(
        "--algebra", action="store_true", help="also reorder 1x1 convolutions and resamplings"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=run)


def parse_shape(text: str) -> tuple[int, ...]:
    """``1x3x512x512`` as numbers.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    try:
        shape = tuple(int(part) for part in text.lower().split("x"))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"expected a shape such as 1x3x512x512, got {text!r}")
    return shape


def run(arguments: argparse.Namespace) -> int:
    """The command; returns its exit status."""
    try:
        return _run(arguments)
    except _UsageError as error:
        print(f"msr_cuda fuse: {error}", file=sys.stderr)
        return BAD_ARGUMENTS


def _run(arguments: argparse.Namespace) -> int:
    if arguments.verify and not arguments.input:
        raise _UsageError("--verify: expected an --input to run the model with, got none")
    dtype = getattr(torch, arguments.dtype)
    try:
        device = torch.device(arguments.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise _UsageError(f"--device {arguments.device}: {error}") from error
    torch.manual_seed(0)
    model = _model(arguments.factory, arguments.set).to(device, dtype)
    model.train(arguments.train)
    inputs: list[Any] = [torch.randn(shape).to(device, dtype) for shape in arguments.input]
    if arguments.channels_last:
        ranks = {len(shape) for shape in arguments.input} or {4}
        if len(ranks) > 1 or not ranks <= _CHANNELS_LAST.keys():
            raise _UsageError("--channels-last: expected every --input to be NxCxHxW, or NxCxDxHxW")
        layout = _CHANNELS_LAST[ranks.pop()]
        model.to(memory_format=layout)  # type: ignore[call-overload]  # its stub lacks it
        inputs = [x.to(memory_format=layout) for x in inputs]
    if arguments.list:
        inputs = [inputs]
    found: dict[str, Any] = {}
    verification = None
    with _quietly():
        if arguments.verify:
            verification = _verify.verify(model, inputs, algebra=arguments.algebra)
            found["verification"] = verification.to_dict()
        try:
            report = _fuse.fuse(model, strict=arguments.strict, algebra=arguments.algebra)
        except RuntimeError as error:
            raise _UsageError(f"--strict: {error}") from error
        if inputs and report.swapped:
            report.measure(*inputs)
    found["report"] = report.to_dict()
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        _print(report)
        if verification is not None:
            print(f"\n{verification}")
    if not report.swapped:
        return NOTHING_FUSED
    return NOT_EQUAL if verification is not None and not verification else 0


def _model(path: str, settings: list[str]) -> nn.Module:
    """The model that ``package.module:factory`` makes."""
    module_name, colon, attributes = path.partition(":")
    if not (module_name and colon and attributes):
        raise _UsageError(f"expected package.module:factory, got {path!r}")
    # As `python -m` has it, also where this was started by another name.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        made: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise _UsageError(f"{module_name} cannot be imported: {error}") from error
    for name in attributes.split("."):
        if not hasattr(made, name):
            raise _UsageError(f"{module_name} has no {attributes}")
        made = getattr(made, name)
    options = dict(_setting(text) for text in settings)
    if not isinstance(made, nn.Module):
        if not callable(made):
            raise _UsageError(f"{path}: expected something to call, got {type(made).__name__}")
        try:
            made = made(**options)
        except TypeError as error:
            raise _UsageError(f"{path}({', '.join(settings)}): {error}") from error
    elif options:
        raise _UsageError(f"--set: {path} is a model, and is not called")
    if not isinstance(made, nn.Module):
        raise _UsageError(f"{path}: expected a torch.nn.Module, got {type(made).__name__}")
    return made


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name.isidentifier() and equals):
        raise _UsageError(f"--set: expected NAME=VALUE, got {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the warning that nothing was fused: the output and the exit status say it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*nothing to fuse in", category=UserWarning)
        yield


def _print(report: Report) -> None:
    """With rich, if it is there and somebody looks; else as text."""
    if sys.stdout.isatty():
        with contextlib.suppress(ImportError):
            import rich

            rich.print(report)
            return
    print(report)
