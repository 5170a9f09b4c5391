"""The configuration of a run."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from msr_cuda.__main__ import main
from msr_cuda.train import Config, TrainingError
from msr_cuda.train.config import add_flags, given_flags

OTHER = Config(
    task="segmentation", data='a folder/with "quotes" and ü', scales=(1.0, 0.7, 1e-05), lr=3e-05,
    epochs=3, channels_last=True, amp="bfloat16", digit_sizes=(0.5, 0.5), warmup=0.5,
)  # fmt: skip


@pytest.mark.parametrize("config", [Config(), OTHER])
def test_files_give_back_what_was_written(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    assert Config.from_toml(path) == config
    assert Config.from_dict(config.to_dict()) == config


def test_every_field_has_a_flag() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    assert given_flags(parser.parse_args([])) == {}
    words = []
    for field in dataclasses.fields(Config):
        value = getattr(OTHER, field.name)
        flag = "--" + field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-"))
        elif isinstance(value, tuple):
            words += [flag, *map(str, value)]
        else:
            words.append(f"{flag}={value}")
    assert Config.from_dict(given_flags(parser.parse_args(words))) == OTHER


REJECTED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"epoch": 3}, "there is no option 'epoch'; did you mean epochs?"),
    "text": ({"epochs": "3"}, "epochs: expected int, got '3'"),
    "fraction": ({"epochs": 2.5}, "epochs: expected int, got 2.5"),
    "truth": ({"lr": True}, "lr: expected float, got True"),
    "list": ({"scales": ["a"]}, "scales: expected a list of numbers, got ['a']"),
    "infinite": ({"lr": float("inf")}, "lr: expected float, got inf"),
    "choice": ({"task": "detection"}, "task: expected one of ('classification', 'segmentation')"),
    "low": ({"batch_size": 0}, "batch_size: expected 1 or more, got 0"),
    "zero": ({"lr": 0}, "lr: expected a positive number, got 0.0"),
    "high": ({"ema": 1}, "ema: expected less than 1, got 1.0"),
    "scales": ({"scales": []}, "scales: expected positive numbers, got ()"),
    "mixture": (
        {"task": "segmentation", "fusion": "mixture"},
        "fusion: mixture is for classification, not for segmentation",
    ),
    "contiguous": (
        {"fsdp": True, "channels_last": True},
        "fsdp: PyTorch's fully_shard takes contiguous weights only, got channels_last",
    ),
    "digits": ({"digit_sizes": [0.9, 0.3]}, "digit_sizes: expected two ascending numbers"),
}


@pytest.mark.parametrize("case", REJECTED)
def test_rejects(case: str) -> None:
    values, message = REJECTED[case]
    with pytest.raises(TrainingError) as raised:
        Config.from_dict(values)
    assert message in str(raised.value)


def test_files_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.toml"
    assert main(["train", "--config", str(path)]) == 1
    assert capsys.readouterr().err == f"msr_cuda train: {path}: No such file or directory\n"
    path.write_text("epochs = ")
    assert main(["train", "--config", str(path)]) == 1
    assert "not a TOML file" in capsys.readouterr().err
