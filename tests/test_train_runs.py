"""Runs: what they write, and that nothing is lost when they are stopped."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import require_or_skip
from torch import Tensor, nn
from training import (
    COLOURS,
    QUIET,
    assert_same_run,
    environment,
    image_folder,  # noqa: F401
    mask_folder,  # noqa: F401
    one_thread,  # noqa: F401
    tiny,
    toml,
    trainer,
    weights,
)

from msr_cuda.__main__ import main
from msr_cuda.models import multiscale_resnet18
from msr_cuda.train import Config, Confusion, TrainingError, checkpoint, load_network, train
from msr_cuda.train._errors import require
from msr_cuda.train.data import open_data
from msr_cuda.train.networks import normalized
from msr_cuda.train.trainer import BEST, LAST, STATE, Trainer, _deterministic


@pytest.fixture(scope="module")
def whole_run(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:  # noqa: F811
    """A run that nothing disturbed."""
    config = tiny(image_folder, tmp_path_factory.mktemp("whole") / "out")
    torch.set_num_threads(1)
    train(config, console=QUIET)
    return config


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "msr_cuda", "train", *words]


# What a run writes


def test_a_run_learns_and_reports(image_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    config = tiny(image_folder, tmp_path / "out", epochs=8, lr=0.05, dropout=0.0, ema=0.9)
    outcome = train(config, console=QUIET)
    assert outcome.history[-1]["accuracy"] == 1.0
    assert not outcome.interrupted
    assert outcome.confusion is not None
    assert outcome.confusion.counts.tolist() == [[4, 0, 0], [0, 4, 0], [0, 0, 4]]
    out = Path(config.out)
    page = (out / "report.md").read_text()
    assert "After epoch 8: accuracy 1.0000, mean IoU 1.0000" in page
    assert all(f"| {name} | 4 | 1.000 | 1.000 |" in page for name in COLOURS)
    lines = (out / "metrics.csv").read_text().splitlines()
    assert lines[0] == "epoch,train_loss,val_loss,accuracy,mean_iou,lr"
    assert len(lines) == 9
    assert Config.from_toml(out / "config.toml") == config
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        assert "(no pictures: matplotlib is not installed)" in page
    else:
        for name in ("curves.png", "confusion.png"):
            assert (out / name).read_bytes().startswith(b"\x89PNG")
            assert f"![{name}]({name})" in page
    assert not list(out.glob(".*.tmp"))


def test_segmentation_learns(mask_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    config = tiny(
        mask_folder, tmp_path / "out", task="segmentation", epochs=30, lr=0.1, batch_size=8,
        stem_stride=1, decoder_channels=8, ema=0.0, label_smoothing=0.0, image_size=24,
    )  # fmt: skip
    outcome = train(config, console=QUIET)
    assert outcome.history[-1]["mean_iou"] > 0.6, outcome.history  # 0.37: ground everywhere
    assert outcome.confusion is not None
    network, _, classes = load_network(Path(config.out) / LAST)
    data = open_data(config)
    images, masks = (torch.stack(x) for x in zip(*[data.val[i] for i in range(8)], strict=True))
    found = Confusion.of(network.predict(normalized(images)), masks, len(classes))
    assert torch.equal(found.counts, outcome.confusion.counts)


def test_a_trained_network_loads_and_predicts_as_in_the_report(whole_run: Config) -> None:
    network, config, classes = load_network(Path(whole_run.out) / LAST)
    assert config == whole_run
    assert classes == list(COLOURS)
    assert not network.training
    data = open_data(config)
    images, labels = (torch.stack(x) for x in zip(*[data.val[i] for i in range(12)], strict=True))
    with torch.no_grad():
        accuracy = (network(normalized(images)).argmax(1) == labels).double().mean().item()
    last = Path(config.out, "metrics.csv").read_text().splitlines()[-1]
    assert accuracy == float(last.split(",")[3])


def test_the_best_checkpoint_is_that_of_the_best_epoch(
    image_folder: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scores = iter([0.5, 0.9, 0.7])
    monkeypatch.setattr(Trainer, "score", lambda self, row: next(scores))
    kept = []
    original = checkpoint.save_weights

    def record(path: Path, weights: dict[str, Tensor], *rest: Any) -> None:
        original(path, weights, *rest)
        kept.append((path.name, {k: v.clone() for k, v in weights.items()}))

    monkeypatch.setattr(checkpoint, "save_weights", record)
    config = tiny(image_folder, tmp_path / "out", epochs=3)
    train(config, console=QUIET)
    assert [name for name, _ in kept] == [LAST, BEST, LAST, BEST, LAST]
    assert all(torch.equal(v, kept[3][1][k]) for k, v in weights(config, BEST).items())
    assert all(torch.equal(v, kept[4][1][k]) for k, v in weights(config, LAST).items())


def test_tensorboard_gets_every_epoch(
    image_folder: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[tuple[Any, ...]] = []

    class Writer:
        """As torch's SummaryWriter is called."""

        def __init__(self, log_dir: str, purge_step: int) -> None:
            written.append((log_dir, purge_step))

        def __enter__(self) -> Writer:
            return self

        def __exit__(self, *error: object) -> None:
            written.append(("closed",))

        def add_scalar(self, tag: str, value: float, step: int) -> None:
            written.append((tag, value, step))

    module = types.SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    config = tiny(image_folder, tmp_path / "out")
    history = train(config, console=QUIET).history
    folder = str(Path(config.out) / "tensorboard")
    for epoch, row in enumerate(history, 1):
        assert (folder, epoch) in written
        for name in ("train_loss", "val_loss", "accuracy", "mean_iou", "lr"):
            assert (name, row[name], epoch) in written
    assert written.count(("closed",)) == 2


def test_a_missing_package_is_named() -> None:
    with pytest.raises(TrainingError, match=r"nopackage is not installed; .* 'msr-cuda\[train\]'"):
        require("nopackage")


# The parts of a step


def test_learning_rate_and_average(image_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    """Linear to the largest, then cosine to 0; the average is that of its formula."""
    config = tiny(image_folder, tmp_path / "out", epochs=4, warmup=1.0, lr=0.1, ema=0.5)
    run = trainer(config)
    assert run.steps_per_epoch == 3
    rates, states = [], []
    original = run._train_step

    def step(images: Tensor, targets: Tensor) -> None:
        rates.append(run.optimizer.param_groups[0]["lr"])
        original(images, targets)
        states.append({k: v.clone() for k, v in run.network.state_dict().items()})

    run._train_step = step  # type: ignore[method-assign]
    run.run()
    rise = [0.1 * (0.01 + 0.99 * i / 3) for i in range(3)]
    fall = [0.05 * (1 + math.cos(math.pi * i / 9)) for i in range(9)]
    assert rates == pytest.approx([*rise, *fall])
    assert run.average is not None
    expected = {k: v.double() for k, v in states[0].items()}
    for i, state in enumerate(states[1:], 1):
        decay = min(0.5, (1 + i) / (10 + i))
        expected = {k: decay * v + (1 - decay) * state[k] for k, v in expected.items()}
    average = run.average.module.state_dict()
    for name, value in expected.items():
        if value.is_floating_point() and not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(average[name].double(), value, rtol=1e-5, atol=1e-6)
    decays = {group["weight_decay"] for group in run.optimizer.param_groups}
    assert decays == {0.0, config.weight_decay}


def test_gradients_are_clipped(image_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    config = tiny(
        image_folder, tmp_path / "out", epochs=1, clip_norm=0.01, weight_decay=0.0, warmup=0.0,
    )  # fmt: skip
    run = trainer(config)
    before = [p.detach().clone() for p in run.network.parameters()]
    images, targets = next(iter(torch.utils.data.DataLoader(run.data.train, 8)))
    run._train_step(images, targets)
    changes = [p - b for p, b in zip(run.network.parameters(), before, strict=True)]
    norm = torch.stack([c.square().sum() for c in changes]).sum().sqrt().item()
    # Nesterov's first step: lr (1 + momentum) g.
    assert norm == pytest.approx(config.lr * 1.9 * 0.01, rel=1e-3)


SETTINGS: dict[str, dict[str, Any]] = {
    "bfloat16": dict(amp="bfloat16"),
    "float16": dict(amp="float16"),
    "channels_last": dict(channels_last=True),
    "deterministic": dict(deterministic=True),
    "no average": dict(ema=0.0),
    "workers": dict(workers=1),
    "adamw": dict(optimizer="adamw", lr=0.003),
    "any norm": dict(clip_norm=0.0),
    "one scale": dict(scales=(1.0,)),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_run_and_end_near_the_plain_run(
    name: str,
    image_folder: Path,  # noqa: F811
    whole_run: Config,
    tmp_path: Path,
) -> None:
    same = name in ("deterministic", "workers")  # neither may change a bit
    config = tiny(image_folder, tmp_path / "out", epochs=2 if same else 1, **SETTINGS[name])
    outcome = train(config, console=QUIET)
    assert outcome.history[-1]["train_loss"] < 1.5  # log(3) is 1.1
    ours, plain = weights(config), weights(whole_run)
    assert same is (
        ours.keys() == plain.keys() and all(torch.equal(v, plain[k]) for k, v in ours.items())
    )
    assert not torch.are_deterministic_algorithms_enabled()


def test_determinism_is_set_back() -> None:
    cudnn = torch.backends.cudnn
    with cudnn.flags(enabled=True, benchmark=True):
        with _deterministic(True):
            assert torch.are_deterministic_algorithms_enabled()
            assert not cudnn.benchmark
        assert cudnn.benchmark
        assert not torch.are_deterministic_algorithms_enabled()
        with _deterministic(False):
            assert cudnn.benchmark
            assert not torch.are_deterministic_algorithms_enabled()


def test_compiled_training_is_the_same(
    image_folder: Path,  # noqa: F811
    whole_run: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With Dynamo's graphs run as they are: Inductor takes long, and rounds in its own way."""
    compiled = []
    original = nn.Module.compile

    def compile_eager(self: nn.Module) -> None:
        compiled.append(self)
        original(self, backend="eager")

    monkeypatch.setattr(nn.Module, "compile", compile_eager)
    torch._dynamo.reset()
    config = tiny(image_folder, tmp_path / "out", compile=True)
    train(config, console=QUIET)
    assert len(compiled) == 1
    assert_same_run(config, whole_run)


# Stopped and resumed


class Killed(BaseException):
    """Ends a run as a kill does: nothing gets to write."""


def killed_at(step: int, monkeypatch: pytest.MonkeyPatch, how: Callable[[], None]) -> None:
    original = Trainer._train_step

    def train_step(self: Trainer, images: Tensor, targets: Tensor) -> None:
        if self.step == step:
            how()
        original(self, images, targets)

    monkeypatch.setattr(Trainer, "_train_step", train_step)


def die() -> None:
    raise Killed


@pytest.mark.parametrize(("step", "save_steps"), [(4, 0), (3, 0), (5, 2)])
def test_a_killed_run_resumes_bitwise(
    step: int,
    save_steps: int,
    image_folder: Path,  # noqa: F811
    whole_run: Config,
    tmp_path: Path,
) -> None:
    """In the second epoch: from the end of the first, or from a state within the second."""
    config = tiny(image_folder, tmp_path / "out", save_steps=save_steps)
    with pytest.MonkeyPatch.context() as patch:
        killed_at(step, patch, die)
        with pytest.raises(Killed):
            train(config, console=QUIET)
    saved = checkpoint.load_state(Path(config.out) / STATE)
    assert saved["step"] == (4 if save_steps else 3)
    outcome = train(config, resume=True, console=QUIET)
    assert len(outcome.history) == 2
    assert_same_run(config, whole_run)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_run_resumes_bitwise(
    number: signal.Signals,
    image_folder: Path,  # noqa: F811
    whole_run: Config,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tiny(image_folder, tmp_path / "out")
    before = signal.getsignal(number)
    with pytest.MonkeyPatch.context() as patch:
        killed_at(1, patch, lambda: os.kill(os.getpid(), number))
        assert main(["train", "--config", toml(config)]) == 130
    assert signal.getsignal(number) == before
    assert f"stopped; --resume --out {config.out} goes on" in capsys.readouterr().err
    assert checkpoint.load_state(Path(config.out) / STATE)["step"] == 2
    assert main(["train", "--resume", "--out", config.out]) == 0
    assert_same_run(config, whole_run)


def test_a_killed_process_resumes_bitwise(
    image_folder: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """SIGKILL at some time after the first state; whenever that is, the end is the same."""
    options = dict(epochs=6, save_steps=1, ema=0.9, optimizer="adamw", lr=0.003)
    config = tiny(image_folder, tmp_path / "killed", **options)
    process = subprocess.Popen(
        command("--config", toml(config)), env=environment(), stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (Path(config.out) / STATE).exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert checkpoint.load_state(Path(config.out) / STATE)["step"] < 18
    train(config, resume=True, console=QUIET)
    undisturbed = tiny(image_folder, tmp_path / "whole", **options)
    train(undisturbed, console=QUIET)
    assert_same_run(config, undisturbed)


def test_what_cannot_be_resumed(
    whole_run: Config,
    image_folder: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def said(*words: str) -> str:
        assert main(["train", *words]) == 1
        return capsys.readouterr().err

    nothing = str(tmp_path / "nothing")
    assert "state.pt: there is no run to resume" in said("--resume", "--out", nothing)
    assert "there is a run already; --resume goes on with it" in said("--config", toml(whole_run))
    assert "width: the run in" in said("--resume", "--out", whole_run.out, "--width", "8")
    fewer = Config.from_dict(whole_run.to_dict() | {"out": str(tmp_path / "fewer")})
    (tmp_path / "fewer").mkdir()
    state = checkpoint.load_state(Path(whole_run.out) / STATE)
    state["config"]["out"] = fewer.out
    checkpoint.save_state(Path(fewer.out) / STATE, state | {"steps_per_epoch": 4})
    assert "expected the 4 steps an epoch of the run, got 3" in said("--resume", "--out", fewer.out)
    checkpoint.save_state(Path(fewer.out) / STATE, state | {"classes": ["cat", "dog"]})
    assert "expected the classes ['cat', 'dog'] of the run" in said("--resume", "--out", fewer.out)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    content = (Path(whole_run.out) / STATE).read_bytes()
    (damaged / STATE).write_bytes(content[: len(content) // 2])
    assert "state.pt: not the state of a run" in said("--resume", "--out", str(damaged))
    # A finished run has nothing left to do, and says so by its report.
    assert main(["train", "--resume", "--out", whole_run.out]) == 0
    assert "# classification" in capsys.readouterr().err


# What goes wrong


def test_nan_stops_and_keeps_the_checkpoint(
    image_folder: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tiny(image_folder, tmp_path / "out")
    original = Trainer._loss

    def loss(self: Trainer, logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        value = original(self, logits, targets, smoothing)
        return value * math.nan if self.step == 4 and self.network.training else value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_loss", loss)
        assert main(["train", "--config", toml(config)]) == 1
    written = capsys.readouterr().err
    assert "the loss is nan at step 5 (epoch 2): training stops" in written
    assert all(v.isfinite().all() for v in weights(config).values())
    state = checkpoint.load_state(Path(config.out) / STATE)
    assert state["step"] == 3
    assert all(v.isfinite().all() for v in state["network"].values())


def test_images_without_labels_teach_nothing(
    mask_folder: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    image = require_or_skip("PIL.Image")
    shutil.copytree(mask_folder, tmp_path / "data")
    for mask in sorted((tmp_path / "data" / "train" / "masks").iterdir())[1:]:
        image.new("L", image.open(mask).size, 255).save(mask)  # so, most batches have none
    config = tiny(
        tmp_path / "data", tmp_path / "out", task="segmentation", batch_size=2, epochs=1,
        label_smoothing=0.0,
    )  # fmt: skip
    outcome = train(config)
    assert math.isfinite(outcome.history[0]["train_loss"])
    assert all(v.isfinite().all() for v in weights(config).values())


def test_weights_that_are_not_finite_are_not_saved(
    image_folder: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The last step of the second epoch spoils them; no later loss could tell."""
    config = tiny(image_folder, tmp_path / "out")
    original = Trainer._train_step

    def train_step(self: Trainer, images: Tensor, targets: Tensor) -> None:
        original(self, images, targets)
        if self.step == 6:
            with torch.no_grad():
                self.network.fc.bias.fill_(math.inf)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_train_step", train_step)
        assert main(["train", "--config", toml(config)]) == 1
    assert "fc.bias is not finite after step 6: training stops" in capsys.readouterr().err
    assert checkpoint.load_state(Path(config.out) / STATE)["step"] == 3
    assert all(v.isfinite().all() for v in weights(config).values())


def test_too_large_a_learning_rate_is_noticed(
    image_folder: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tiny(image_folder, tmp_path / "out", lr=1e30, warmup=0.0, clip_norm=0.0, epochs=4)
    assert main(["train", "--config", toml(config)]) == 1
    assert "; a smaller --lr, a longer --warmup" in capsys.readouterr().err


def test_a_full_disk_keeps_the_checkpoint(
    image_folder: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The disk is full from the second epoch on: files get shorter than they should."""
    config = tiny(image_folder, tmp_path / "out")
    out = Path(config.out)
    before: dict[str, bytes] = {}
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if (out / STATE).exists():
            before.update({p.name: p.read_bytes() for p in out.iterdir() if p.suffix != ".tmp"})
            os.ftruncate(descriptor, 10)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    assert main(["train", "--config", toml(config)]) == 1
    written = capsys.readouterr().err
    assert (
        f"msr_cuda train: {out / LAST} cannot be written: No space left on device; the one from "
        "before is intact" in written
    )
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    monkeypatch.setattr(os, "fsync", real)
    train(config, resume=True, console=QUIET)
    assert_same_run(config, _again(config, tmp_path))


def _again(config: Config, tmp_path: Path) -> Config:
    other = Config.from_dict(config.to_dict() | {"out": str(tmp_path / "again")})
    train(other, console=QUIET)
    return other


def test_a_file_that_the_system_cuts_short_is_not_kept(tmp_path: Path) -> None:
    """With a limit of the operating system's own on the size of files."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "weights"
    checkpoint.write_atomically(path, b"before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(TrainingError, match=r"cannot be written: File too large; the one from"):
            checkpoint.write_atomically(path, bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


# Weights from elsewhere


def test_initial_weights(whole_run: Config, image_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    """Of a run all tensors; of a plain ResNet those of the trunk."""
    path = str(Path(whole_run.out) / LAST)
    run = trainer(tiny(image_folder, tmp_path / "a", init=path))
    assert all(torch.equal(v, run.network.state_dict()[k]) for k, v in weights(whole_run).items())
    plain = multiscale_resnet18(width=4, scales=[1.0], num_classes=1000)
    state = {k.removeprefix("encoder.trunk."): v for k, v in plain.state_dict().items()}
    torch.save(state, tmp_path / "resnet.pth")
    run = trainer(tiny(image_folder, tmp_path / "b", init=str(tmp_path / "resnet.pth")))
    assert torch.equal(run.network.encoder.trunk.conv1.weight, state["conv1.weight"])  # type: ignore[union-attr]


def write_pickle(path: Path) -> None:
    torch.save({"weight": torch.zeros(1), "code": print}, path)


def write_text(path: Path) -> None:
    path.write_text("no weights")


def write_description(path: Path) -> None:
    from safetensors.torch import save

    path.write_bytes(save({"a": torch.zeros(1)}, {"msr_cuda": json.dumps({"config": {}})}))


UNFIT: dict[str, tuple[Callable[[Path], None] | None, str, str]] = {
    "shape": (None, LAST, "encoder.trunk.conv1.weight: expected (8, 3, 7, 7), got (4, 3, 7, 7)"),
    "nothing": (lambda path: None, "absent.safetensors", "absent.safetensors: "),
    "code": (write_pickle, "code.pth", "code.pth: not a file of weights: Weights only load failed"),
    "text": (write_text, "text.safetensors", "text.safetensors: not a whole safetensors file"),
    "others": (write_description, "others.safetensors", "not of this network: "),
}


@pytest.mark.parametrize("case", UNFIT)
def test_weights_that_do_not_fit(
    case: str,
    whole_run: Config,
    image_folder: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make, name, message = UNFIT[case]
    path = Path(whole_run.out) / name
    if make is not None:
        path = tmp_path / name
        make(path)
    config = tiny(image_folder, tmp_path / "out", init=str(path), width=8)
    assert main(["train", "--config", toml(config)]) == 1
    written = capsys.readouterr().err
    assert message in written
    assert "Traceback" not in written
    assert not Path(config.out).exists()


# Metrics


def test_confusion() -> None:
    truth = torch.tensor([0, 0, 1, 1, 2, 255, -1])
    found = Confusion.of(torch.tensor([0, 1, 1, 1, 0, 0, 0]), truth, 3)
    assert found.counts.tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]
    assert found.accuracy == pytest.approx(3 / 5)
    assert found.recall().tolist() == pytest.approx([0.5, 1.0, 0.0])
    assert found.intersection_over_union().tolist() == pytest.approx([1 / 3, 2 / 3, 0.0])
    assert found.mean_iou == pytest.approx(1 / 3)
