"""The example that segments digits: a tiny run, its pictures, and going on with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import segmentation
from conftest import require_or_skip

from msr_cuda.train import load_network

TINY = ["--epochs", "1", "--images", "48", "--image-size", "24"]


@pytest.fixture
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmentation, "_PICTURES", 2)


@pytest.mark.usefixtures("_few")
def test_a_run_is_drawn_and_not_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("safetensors", "mlxtend", "skimage", "PIL", "matplotlib"):
        require_or_skip(package)
    out = tmp_path / "out"
    assert segmentation.main([*TINY, "--out", str(out)]) == 0
    assert "drawn: " in capsys.readouterr().out
    picture = out / "pictures.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert 1000 < picture.stat().st_size < 200_000
    weights = (out / "best.safetensors").stat().st_mtime_ns
    picture.unlink()
    assert segmentation.main([*TINY, "--out", str(out)]) == 0
    assert picture.exists()
    assert (out / "best.safetensors").stat().st_mtime_ns == weights

    images, masks, found, classes = segmentation.predictions(out / "best.safetensors", 3)
    assert images.shape == (3, 3, 24, 24)
    assert masks.shape == found.shape == (3, 24, 24)
    assert classes == load_network(out / "best.safetensors")[2]
    assert found.max() < len(classes) == 11


def test_mistakes_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    require_or_skip("safetensors")
    assert segmentation.main(["--epochs", "0", "--out", str(tmp_path / "out")]) == 1
    assert "segmentation.py: epochs: expected 1 or more, got 0" in capsys.readouterr().err
