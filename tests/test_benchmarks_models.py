"""Whole models in the benchmarks: the comparison, on models of the tests' own; nothing is timed."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import require_or_skip
from torch import Tensor, nn

import msr_cuda
from benchmarks.models import __main__ as command
from benchmarks.models import compare, zoo
from benchmarks.models.compare import INFERENCE, STEP, Settings
from benchmarks.models.table import models_table
from benchmarks.models.zoo import SUBJECTS, Subject, UNet3d
from benchmarks.results import RUN_COLUMNS

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Plain(nn.Module):
    """Nothing in it is known to fuse."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.conv(x), scale_factor=2)


def subject(build: Any, size: tuple[int, ...] = (1, 3, 8, 8)) -> Subject:
    return Subject("tiny", "a model", {}, build, {"cpu": size, "cuda": size}, zoo._mean_square)


def upsampling() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.Upsample(scale_factor=2), nn.Conv2d(4, 2, 1))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("layout", ["NCHW", "channels_last"])
def test_both_directions_of_a_model_are_compared(layout: str) -> None:
    steps: list[str] = []
    found = compare.compare(
        subject(upsampling), "float32", layout, Settings(CPU, rounds=1, seconds=0.0), steps.append
    )
    assert [row.direction for row in found] == [INFERENCE, STEP]
    for row in found:
        assert row.sites == 1
        assert row.remark == "1 FusedUpsample"
        assert row.speedup == pytest.approx(row.plain_seconds / row.swapped_seconds)
        assert 0 < row.plain_share < 1
        assert 0 < row.swapped_share < 1
        assert row.plain_peak_bytes > 0
        assert row.error <= 1e-5
        assert row.layout == layout
    assert "timing step" in steps


@pytest.mark.usefixtures("kernels")
def test_a_model_without_sites_says_so() -> None:
    rows = compare.compare(subject(Plain), "amp", "NCHW", Settings(CPU, rounds=1, seconds=0.0))
    assert {row.sites for row in rows} == {0}
    assert rows[0].remark.startswith("no site is fused")
    assert rows[0].swapped_share == pytest.approx(rows[0].plain_share, abs=0.9)
    assert rows[0].error == 0.0


@pytest.mark.usefixtures("kernels")
def test_a_swapped_model_that_differs_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = msr_cuda.fuse

    def wrong(model: nn.Module) -> Any:
        with torch.no_grad():
            model[2].weight.mul_(1.1)
        return real(model)

    monkeypatch.setattr(msr_cuda, "fuse", wrong)
    with pytest.raises(ArithmeticError, match=r"outputs differ by .* allowed 1e-03"):
        compare.compare(subject(upsampling), "float32", "NCHW", Settings(CPU, rounds=1))


@pytest.mark.usefixtures("kernels")
def test_the_share_is_that_of_resampling() -> None:
    x = torch.randn(1, 8, 64, 64)

    def only_resampling() -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="bilinear")

    assert compare.resampling_share(only_resampling, CPU) > 0.5
    assert compare.resampling_share(lambda: msr_cuda.resample(x, scale_factor=2), CPU) > 0.5
    assert compare.resampling_share(lambda: x.exp(), CPU) == 0.0


@pytest.mark.usefixtures("kernels")
def test_the_3d_network_and_its_twin() -> None:
    """Outputs and every gradient in float64."""
    torch.manual_seed(0)
    plain = UNet3d((4, 6, 8)).double()
    swapped = UNet3d((4, 6, 8)).double()
    swapped.load_state_dict(plain.state_dict())
    report = msr_cuda.fuse(swapped)
    assert [site.twin.rpartition(".")[2] for site in report.swapped] == ["FusedUpBlock3d"] * 2
    x = torch.randn(1, 1, 8, 12, 16, dtype=torch.float64)
    outputs = []
    for model in (plain, swapped):
        outputs.append(model(x))
        zoo._cross_entropy(model, x).backward()
    assert outputs[0].shape == (1, 3, 8, 12, 16)
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-9, atol=1e-9)
    for ours, theirs in zip(swapped.parameters(), plain.parameters(), strict=True):
        scale = theirs.grad.abs().max()
        assert (ours.grad - theirs.grad).abs().max() <= 1e-9 * scale
        assert scale > 0


@pytest.mark.parametrize("name", list(SUBJECTS))
def test_every_model_is_built_and_its_sites_are_found(name: str) -> None:
    subject = SUBJECTS[name]
    require_or_skip("torchvision_on_cpu")
    for module in subject.packages:
        require_or_skip(module)
    model = subject.build()
    report = msr_cuda.fuse(model)
    expected = {
        "smp-unet": 5,
        "yolov8n": 2,
        "retinanet": 1,
        "hrnet": 3,
        "segformer": 2,
        "unet3d": 3,
    }
    assert len(report.swapped) == expected[name], str(report)
    assert set(subject.sizes) == {"cpu", "cuda"}


def test_losses_reach_every_parameter() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 1))
    x = torch.randn(2, 3, 4, 4)
    for loss in (zoo._cross_entropy, zoo._mean_square):
        model.zero_grad()
        loss(model, x).backward()
        assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


def test_tensors_are_found_in_any_output() -> None:
    a, b = torch.ones(1), torch.ones(2)
    nested = [{"boxes": a, "labels": torch.ones(1, dtype=torch.int64)}, (b, None, "text")]
    assert [x is y for x, y in zip(zoo.tensors_of(nested), [a, b], strict=True)] == [True, True]


# ---------------------------------------------------------------------------- the command


def test_list_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needy = Subject("needy", "needs much", {"no_such_module": "no-such-package"}, upsampling, {},
                    zoo._mean_square)  # fmt: skip
    monkeypatch.setattr(command, "SUBJECTS", {"needy": needy, "tiny": subject(upsampling)})
    assert command.main(["--list", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "needy: needs much  (missing: pip install --no-deps no-such-package)",
        "tiny: a model",
    ]


@pytest.mark.usefixtures("kernels")
def test_a_run_writes_what_it_measured_and_names_what_it_could_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> nn.Module:
        raise RuntimeError("no such encoder\nand more")

    subjects = {
        "tiny": subject(upsampling),
        "needy": Subject("needy", "", {"no_such_module": "pkg"}, upsampling, {}, zoo._mean_square),
        "broken": Subject("broken", "", {}, broken, {"cpu": (1, 3, 8, 8)}, zoo._mean_square),
    }
    monkeypatch.setattr(command, "SUBJECTS", subjects)
    arguments = ["--device", "cpu", "--rounds", "1", "--allocator", "default", "--threads", "1"]
    assert command.main([*arguments, "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "models.json").read_text(encoding="utf-8"))
    assert content["complete"] is True
    assert content["left_out"] == [
        "needy: missing, pip install --no-deps pkg",
        "broken float32 NCHW: RuntimeError: no such encoder",
    ]
    assert [row["direction"] for row in content["measurements"]] == [INFERENCE, STEP]
    assert content["machine"]["threads"] == 1
    with open(tmp_path / "models.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == (*command.TABLE.columns, *RUN_COLUMNS)
    printed = capsys.readouterr().out
    assert models_table(content["measurements"]) in printed
    assert "left out: needy: missing" in printed


@pytest.mark.usefixtures("kernels")
def test_a_models_run_whose_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "SUBJECTS", {"tiny": subject(upsampling)})
    arguments = ["--device", "cpu", "--budget", "-1", "--allocator", "default"]
    assert command.main([*arguments, "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "models.json").read_text(encoding="utf-8"))
    assert content["left_out"] == ["1 runs: -1 s were up"]
    assert content["complete"] is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "unett"], "invalid choice"),
        (["--rounds", "0"], "--rounds: expected at least 1, got 0"),
        (["--precision", "int8"], "invalid choice"),
    ],
)
def test_mistakes_on_the_command_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
