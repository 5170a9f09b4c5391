"""The configuration of a run: a dataclass, a TOML file, and flags of the command line."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..nn.fusion import FUSIONS
from ._errors import TrainingError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TASKS = ("classification", "segmentation")
#: Of maps, or of each scale's decisions (classification only).
FUSION_CHOICES = (*FUSIONS, "mixture")
MODELS = ("resnet18", "resnet34", "resnet50")


def _option(default: Any, text: str, choices: Sequence[str] = ()) -> Any:
    return dataclasses.field(default=default, metadata={"help": text, "choices": tuple(choices)})


@dataclass(frozen=True)
class Config:
    """What a run is made of. Two runs with one configuration are the same run.

    Each field's meaning is the help text of its flag, ``python -m msr_cuda train --help``.

    Raises:
        TrainingError: a value of another type or out of its range.
    """

    task: str = _option("classification", "what is learned", TASKS)
    data: str = _option("digits", '"digits", or a folder with train/ and val/')
    out: str = _option("runs/train", "folder for checkpoints, metrics and the report")
    init: str = _option("", "weights to start from: of a run, or of a plain ResNet")

    model: str = _option("resnet18", "trunk", MODELS)
    scales: tuple[float, ...] = _option((1.0, 0.5), "of the image pyramid; one: a plain ResNet")
    fusion: str = _option("softmax", "of the scales; mixture: of their decisions", FUSION_CHOICES)
    width: int = _option(12, "channels of the stem; 64 is the published width")
    stem_stride: int = _option(1, "of the first convolution")
    decoder_channels: int = _option(64, "of the decoder, for segmentation")
    dropout: float = _option(0.0, "before the classifier")

    image_size: int = _option(48, "height and width of the images that the network gets")
    images: int = _option(4000, "how many digits images an epoch has")
    digit_sizes: tuple[float, ...] = _option((0.45, 1.0), "of digits, least and largest, in images")

    epochs: int = _option(8, "passes over the data")
    batch_size: int = _option(32, "images a step, of all processes together")
    optimizer: str = _option("adamw", "AdamW, or Nesterov's momentum 0.9", ("adamw", "sgd"))
    lr: float = _option(3e-3, "largest learning rate")
    weight_decay: float = _option(0.02, "of weights; not of biases and batch norms")
    warmup: float = _option(1.0, "epochs in which the learning rate rises; then a cosine")
    label_smoothing: float = _option(0.05, "share of the target that goes to all classes")
    clip_norm: float = _option(5.0, "largest norm of the gradient; 0: any")
    ema: float = _option(0.99, "decay of the moving average of the weights; 0: none")

    device: str = _option("auto", '"auto", "cpu", "cuda", ...')
    amp: str = _option("off", "mixed precision", ("off", "bfloat16", "float16"))
    compile: bool = _option(False, "torch.compile the network")
    channels_last: bool = _option(False, "memory layout of the network and the images")
    deterministic: bool = _option(False, "only deterministic algorithms, also on CUDA")
    workers: int = _option(0, "processes that load data, for each training process")
    fsdp: bool = _option(False, "share parameters out over the processes of torchrun, by FSDP2")
    seed: int = _option(0, "of everything random")
    log_steps: int = _option(10, "after how many steps the loss is looked at")
    save_steps: int = _option(0, "after how many steps the state is saved; 0: after epochs only")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = _checked_type(field, getattr(self, field.name))
            object.__setattr__(self, field.name, value)
            choices = field.metadata["choices"]
            if choices and value not in choices:
                raise TrainingError(f"{field.name}: expected one of {choices}, got {value!r}")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if not value >= least:
                raise TrainingError(f"{name}: expected {least} or more, got {value!r}")
        if not self.lr > 0:
            raise TrainingError(f"lr: expected a positive number, got {self.lr}")
        for name in ("dropout", "label_smoothing", "ema"):
            value = getattr(self, name)
            if not value < 1:
                raise TrainingError(f"{name}: expected less than 1, got {value}")
        if self.fusion == "mixture" and self.task != "classification":
            raise TrainingError(f"fusion: mixture is for classification, not for {self.task}")
        if self.fsdp and self.channels_last:
            raise TrainingError(
                "fsdp: PyTorch's fully_shard takes contiguous weights only, got channels_last"
            )
        if not self.scales or not all(s > 0 for s in self.scales):
            raise TrainingError(f"scales: expected positive numbers, got {self.scales}")
        if len(self.digit_sizes) != 2 or not 0 < self.digit_sizes[0] <= self.digit_sizes[1] <= 1:
            raise TrainingError(
                "digit_sizes: expected two ascending numbers above 0, at most 1, got "
                f"{self.digit_sizes}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in vars(self).items()}

    def to_toml(self) -> str:
        """The text of a TOML file that :meth:`from_toml` reads back."""
        # JSON's strings, numbers, booleans and lists are TOML's.
        values = {n: json.dumps(v, ensure_ascii=False) for n, v in self.to_dict().items()}
        return "".join(f"{name} = {value}\n" for name, value in values.items())

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """From plain data; names that are no field are an error."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise TrainingError(f"there is no option {name!r}{hint}")
        return cls(**values)

    @classmethod
    def from_toml(cls, path: str | Path) -> Config:
        """From a file."""
        return cls.from_dict(read_toml(path))


_LEAST: dict[str, float] = {
    "width": 1, "stem_stride": 1, "decoder_channels": 1, "dropout": 0, "image_size": 8, "images": 1,
    "epochs": 1, "batch_size": 1, "weight_decay": 0, "warmup": 0, "label_smoothing": 0,
    "clip_norm": 0, "ema": 0, "workers": 0, "seed": 0, "log_steps": 1, "save_steps": 0,
}  # fmt: skip


def read_toml(path: str | Path) -> dict[str, Any]:
    """The values of a TOML file.

    Raises:
        TrainingError: it cannot be read, or is no TOML.
    """
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise TrainingError(f"{path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise TrainingError(f"{path}: not a TOML file: {error}") from error


def _checked_type(field: dataclasses.Field[Any], value: Any) -> Any:
    """The value in the type of the field's default."""
    kind = type(field.default)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    elif kind is tuple and isinstance(value, list | tuple):
        numbers = [isinstance(v, int | float) and not isinstance(v, bool) for v in value]
        if all(numbers):
            value = tuple(float(v) for v in value)
    wrong = type(value) is not kind
    if kind is tuple and not wrong:
        wrong = not all(isinstance(v, float) and math.isfinite(v) for v in value)
    elif kind is float and not wrong:
        wrong = not math.isfinite(value)
    if wrong:
        wanted = "a list of numbers" if kind is tuple else kind.__name__
        raise TrainingError(f"{field.name}: expected {wanted}, got {value!r}")
    return value


def add_flags(parser: argparse.ArgumentParser) -> None:
    """One flag for each field; what is not given is absent from the namespace."""
    for field in dataclasses.fields(Config):
        flag = "--" + field.name.replace("_", "-")
        shown = field.default
        if isinstance(shown, tuple):
            shown = " ".join(map(str, shown))
        options: dict[str, Any] = {
            "default": argparse.SUPPRESS,
            "help": f"{field.metadata['help']} (default: {shown if shown != '' else 'none'})",
        }
        if isinstance(field.default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
        elif isinstance(field.default, tuple):
            parser.add_argument(flag, type=float, nargs="+", metavar="NUMBER", **options)
        else:
            options["choices"] = field.metadata["choices"] or None
            parser.add_argument(flag, type=type(field.default), **options)


def given_flags(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that the command line names."""
    names = {field.name for field in dataclasses.fields(Config)}
    return {name: value for name, value in vars(arguments).items() if name in names}
