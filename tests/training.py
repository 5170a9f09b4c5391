"""What the tests of training share: tiny data, tiny configurations."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, require_or_skip
from torch import Tensor

from msr_cuda.train import Config, checkpoint
from msr_cuda.train.processes import Processes
from msr_cuda.train.progress import Console
from msr_cuda.train.trainer import LAST, Trainer

QUIET = Console(silent=True)
COLOURS = {"blue": (40, 40, 200), "green": (40, 200, 40), "red": (200, 40, 40)}


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Sums over threads may be in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes that differ in colour: 12 noisy images of each, of several shapes."""
    image = require_or_skip("PIL.Image")
    require_or_skip("safetensors")
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for name, colour in COLOURS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                shape = (16 + i, 20 - i, 3)
                pixels = np.clip(random.normal(colour, 40, shape), 0, 255).astype(np.uint8)
                image.fromarray(pixels).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def mask_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright rectangles on dark noise, and their masks."""
    image = require_or_skip("PIL.Image")
    require_or_skip("safetensors")
    root = tmp_path_factory.mktemp("masks")
    random = np.random.default_rng(0)
    (root / "classes.txt").write_text("ground\nrectangle\n")
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for i in range(8):
            mask = np.zeros((24, 20), np.uint8)
            top, left = random.integers(0, 10, 2)
            mask[top : top + 12, left : left + 10] = 1
            pixels = np.clip(random.normal(60 + 140 * mask[..., None], 20, (24, 20, 3)), 0, 255)
            mask[-1] = 255
            image.fromarray(pixels.astype(np.uint8)).save(root / split / "images" / f"{i}.jpg")
            image.fromarray(mask).save(root / split / "masks" / f"{i}.png")
    return root


def tiny(data: Path, out: Path, **options: Any) -> Config:
    """A run of two epochs of three steps."""
    defaults = dict(
        data=str(data), out=str(out), image_size=16, width=4, stem_stride=2, epochs=2, batch_size=8,
        optimizer="sgd", lr=0.02, label_smoothing=0.1, dropout=0.2, device="cpu", log_steps=2,
    )  # fmt: skip
    return Config(**{**defaults, **options})


def trainer(config: Config) -> Trainer:
    """Of one process."""
    return Trainer(config, Processes(torch.device("cpu")), QUIET)


def weights(config: Config, name: str = LAST) -> dict[str, Tensor]:
    """The tensors of a run's checkpoint."""
    return checkpoint.read_weights(Path(config.out) / name)[0]


def assert_same_run(one: Config, other: Config) -> None:
    """Bitwise the same weights and metrics."""
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    files = [Path(config.out, "metrics.csv").read_text() for config in (one, other)]
    assert files[0] == files[1]


def toml(config: Config) -> str:
    """The path of a file with a configuration, beside the run's folder."""
    path = Path(config.out + ".toml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(config.to_toml(), encoding="utf-8")
    return str(path)


def environment() -> dict[str, str]:
    """Of a process that trains."""
    return dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
