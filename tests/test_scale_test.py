"""The scale test: what is compared, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import scale_test
import torch
from conftest import missing, require_or_skip
from torch import nn

from msr_cuda.train import Config, DataError, Digits, TrainingError


@pytest.fixture
def digits() -> None:
    """The pictures that packages ship."""
    require_or_skip("PIL")
    require_or_skip("safetensors")
    try:
        Digits("val", "classification", 1, 16, (0.5, 0.5))
    except DataError as error:
        missing(str(error))


def test_operations_are_those_of_the_layers() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )
    assert scale_test.operations(network, 3, 10, 10) == 10 * 10 * 3 * 4 * 9 + 4 * 5


@pytest.mark.parametrize(("fusion", "weights"), [("softmax", 2), ("mixture", 0)])
def test_plain_networks_cost_as_much(fusion: str, weights: int) -> None:
    config = Config(width=12, image_size=48, fusion=fusion)
    several, same, wider = scale_test.contenders(config)
    assert same.config.scales == wider.config.scales == (1.0,)
    assert same.config.width == several.config.width
    assert several.parameters - same.parameters == weights
    assert same.operations < several.operations
    assert wider.config.width > same.config.width
    assert abs(wider.operations / several.operations - 1) < 0.1


@pytest.mark.usefixtures("digits")
def test_it_writes_a_table_and_trains_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"seeds": 2, "epochs": 1, "images": 32, "image-size": 24, "width": 4}
    words = [f"--{name}={value}" for name, value in options.items()]
    words += ["--scales", "1", "0.5", "--out", str(tmp_path), "--device=cpu"]
    assert scale_test.main(words) == 0
    text = (tmp_path / "scale_test.md").read_text()
    assert text in capsys.readouterr().out
    rows = [line for line in text.splitlines() if line.startswith(("| multi", "| plain"))]
    assert len(rows) == 3
    found = json.loads((tmp_path / "scale_test.json").read_text())
    assert found["factors"] == [0.5, 0.75, 1.0, 1.5, 2.0]
    for row, (name, seeds) in zip(rows, found["accuracy"].items(), strict=True):
        assert len(seeds) == 2 and all(0 <= a <= 1 for values in seeds for a in values)
        assert row.startswith(f"| {name} | ")
        mean = torch.tensor(seeds).mean(0)
        assert f"| {mean[2]:.3f} ± " in row
    # At factor 1 it is the accuracy that the run itself has found.
    history = (tmp_path / "multi-scale-1" / "metrics.csv").read_text().splitlines()
    assert found["accuracy"]["multi-scale"][1][2] == float(history[-1].split(",")[3])

    from msr_cuda.train.trainer import Trainer

    monkeypatch.setattr(Trainer, "_train_step", None)
    assert scale_test.main(words) == 0
    assert json.loads((tmp_path / "scale_test.json").read_text()) == found


def test_a_signal_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only the run that it hits."""
    outcome = SimpleNamespace(interrupted=True)
    monkeypatch.setattr(scale_test, "train", lambda config, resume: outcome)
    several = scale_test.contender("multi-scale", Config(width=2))
    with pytest.raises(TrainingError, match="stopped; the same command goes on"):
        scale_test.run(several, 0, tmp_path)


def test_it_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scale_test.main(["--out", str(tmp_path), "--digit-size", "2"]) == 1
    assert "scale_test: digit_sizes: expected" in capsys.readouterr().err
