"""``python -m msr_cuda fuse``."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from typing import Any

import pytest
from swapping import one_thread  # noqa: F401

from msr_cuda.__main__ import main

MODELS = """
import torch
from torch import nn
from torch.nn import functional as F

class Up(nn.Module):
    def __init__(self, mode="nearest", channels=3):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 1)
        self.up = nn.Upsample(scale_factor=2, mode=mode)
    def forward(self, x, *others):
        if isinstance(x, list):
            x, *others = x
        assert not others or others[0].shape[1] == 5
        return self.up(self.conv(x))

class Volumes(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Upsample(scale_factor=2)
        self.conv = nn.Conv3d(3, 2, 1)
    def forward(self, x):
        assert x.is_contiguous(memory_format=torch.channels_last_3d)
        return self.up(self.conv(x))

ready = Up()
number = 3
text = lambda: "no module"
plain = lambda: nn.Conv2d(3, 3, 1)
unknown = lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.Upsample(scale_factor=2, mode="lanczos"))
"""


@pytest.fixture
def models(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shell_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "shell_models", raising=False)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    status = main(["fuse", *arguments])
    captured = capsys.readouterr()
    return status, captured.out + captured.err


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    status, text = run(capsys, *arguments, "--json")
    return status, json.loads(text)


@pytest.mark.usefixtures("models")
def test_prints_the_sites(capsys: pytest.CaptureFixture[str]) -> None:
    status, text = run(capsys, "shell_models:Up", "--set", "mode=bilinear", "--set", "channels=7")
    assert status == 0
    assert text.startswith("1 fused, 0 left alone")
    assert "bytes saved" not in text
    status, text = run(capsys, "shell_models:ready", "--input", "1x3x4x5", "--verify")
    assert status == 0
    assert "bytes saved" in text
    assert "pass: 1 modules fused" in text
    assert "Warning" not in text


@pytest.mark.usefixtures("models")
def test_data(capsys: pytest.CaptureFixture[str]) -> None:
    status, found = run_json(capsys, "shell_models:Up", "--set", "channels=7", "--input", "2x3x4x5")
    assert status == 0
    assert list(found) == ["report"]
    (site,) = found["report"]["swapped"]
    assert site["names"] == ["up"]
    small, large = 2 * 7 * 20 * 4, 2 * 7 * 80 * 4
    assert site["traffic"]["fused_bytes"] == small + large
    half = ("--dtype", "bfloat16", "--train", "--channels-last")
    _, found = run_json(capsys, "shell_models:Up", "--input", "2x3x4x5", "--verify", *half)
    assert found["report"]["total"]["fused_bytes"] == 2 * 3 * 100 * 2
    assert found["verification"]["passed"]
    assert found["verification"]["dtype"] == "bfloat16"


@pytest.mark.usefixtures("models")
def test_inputs(capsys: pytest.CaptureFixture[str]) -> None:
    two = ("--input", "1x3x4x4", "--input", "1x5x4x4")
    assert run(capsys, "shell_models:Up", *two)[0] == 0
    assert run(capsys, "shell_models:Up", *two, "--list")[0] == 0
    assert run(capsys, "shell_models:Volumes", "--input", "1x3x4x4x4", "--channels-last")[0] == 0


@pytest.mark.usefixtures("models")
def test_nothing_fused_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    status, text = run(capsys, "shell_models:plain")
    assert (status, text.splitlines()[0]) == (1, "0 fused, 0 left alone")
    status, text = run(capsys, "shell_models:unknown")
    assert status == 1
    assert "unknown mode 'lanczos'" in text
    status, text = run(capsys, "shell_models:unknown", "--strict")
    assert status == 2
    assert "--strict: fuse: strict=True, but 1 of 1 modules have to be left alone" in text


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere:x"], "nowhere cannot be imported: No module named 'nowhere'"),
        (["shell_models"], "expected package.module:factory, got 'shell_models'"),
        (["shell_models:absent"], "shell_models has no absent"),
        (["shell_models:number"], "shell_models:number: expected something to call, got int"),
        (["shell_models:text"], "shell_models:text: expected a torch.nn.Module, got str"),
        (["shell_models:Up", "--set", "size=3"], "unexpected keyword argument 'size'"),
        (["shell_models:Up", "--set", "size"], "--set: expected NAME=VALUE, got 'size'"),
        (["shell_models:ready", "--set", "mode=area"], "is a model, and is not called"),
        (["shell_models:Up", "--verify"], "--verify: expected an --input"),
        (["shell_models:Up", "--device", "abacus"], "--device abacus: "),
        (["shell_models:Up", "--input", "3x4", "--channels-last"], "--channels-last: expected"),
    ],
)
def test_mistakes(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    status, text = run(capsys, *arguments)
    assert status == 2
    assert text.startswith("msr_cuda fuse: ")
    assert message in text
    assert len(text.splitlines()) == 1 or "abacus" in text


def test_shapes(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("1x3x", "", "axb", "1x0"):
        with pytest.raises(SystemExit):
            main(["fuse", "m:f", "--input", text])
        assert "expected a shape such as 1x3x512x512" in capsys.readouterr().err


@pytest.mark.usefixtures("models")
def test_from_the_shell(tmp_path: pathlib.Path) -> None:
    """The working directory is searched, as by ``python -m``."""
    done = subprocess.run(
        [sys.executable, "-m", "msr_cuda", "fuse", "shell_models:Up", "--input", "1x3x8x8"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "in all" in done.stdout
    assert done.stderr == ""
