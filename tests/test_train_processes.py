"""Several processes train one network: the same result, also where each has a part of it only."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from training import (
    QUIET,
    assert_same_run,
    environment,
    image_folder,  # noqa: F401
    one_thread,  # noqa: F401
    tiny,
    toml,
    trainer,
    weights,
)

from msr_cuda.train import Config, TrainingError, checkpoint, load_network, train
from msr_cuda.train.data import open_data, validation_batches
from msr_cuda.train.processes import Processes
from msr_cuda.train.trainer import LAST, STATE, Trainer


def run_two(*words: str) -> str:
    """What two processes of one command say to standard error."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    done = subprocess.run(
        [*launcher, "2", *words], env=environment(), capture_output=True, text=True, check=False,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


def losses(config: Config) -> list[float]:
    rows = Path(config.out, "metrics.csv").read_text().splitlines()[1:]
    return [float(value) for row in rows for value in row.split(",")[1:3]]


def test_two_processes_give_what_one_gives(
    image_folder: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """The same images a step; batch norms see half of them each, which is the noise."""
    options = dict(image_size=64, batch_size=24, epochs=3, lr=0.02, dropout=0.0, ema=0.0)
    alone = tiny(image_folder, tmp_path / "alone", **options)
    begun = {k: v.clone() for k, v in trainer(alone).network.state_dict().items()}
    one = train(alone, console=QUIET)
    pair = tiny(image_folder, tmp_path / "pair", **options)
    said = run_two("-m", "msr_cuda", "train", "--config", toml(pair))
    assert said.count("# classification") == 1  # of two processes, one speaks
    assert losses(pair)[::2] == pytest.approx([row["train_loss"] for row in one.history], rel=0.15)
    # The last layer, for batch norms behind it turn the noise into other gradients.
    steps = [(weights(c)["fc.weight"] - begun["fc.weight"]).flatten() for c in (pair, alone)]
    assert torch.cosine_similarity(*steps, dim=0) > 0.8
    # Sums of gradients in place of means would double it.
    assert steps[0].norm().item() == pytest.approx(steps[1].norm().item(), rel=0.4)


def test_parameters_are_shared_out(image_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    """FSDP2: numbers as with whole copies, resumed bit by bit, files that one process can read."""
    shutil.copytree(image_folder, tmp_path / "data")
    (tmp_path / "data" / "val" / "red" / "0.png").unlink()  # 11 images: 5 + 1 and 5 + none
    options = dict(
        batch_size=10, optimizer="adamw", lr=0.003, ema=0.9, save_steps=1, scales=(1.0, 0.5),
        fusion="mixture",
    )  # fmt: skip
    pair, shared, killed = (
        tiny(tmp_path / "data", tmp_path / name, fsdp=name != "pair", **options)
        for name in ("pair", "shared", "killed")
    )
    run_two(str(ROOT / "tests" / "shared_out.py"), toml(pair), toml(shared), toml(killed))

    assert losses(shared) == pytest.approx(losses(pair), rel=1e-4)
    whole = weights(pair)
    assert all(torch.allclose(v, whole[k], rtol=0, atol=1e-3) for k, v in weights(shared).items())
    assert_same_run(killed, shared)
    network, _, classes = load_network(Path(shared.out) / LAST)
    assert network.eval()(torch.zeros(1, 3, 16, 16)).shape == (1, len(classes))

    # What was there when it was killed is enough for one process, which has whole parameters.
    state = checkpoint.load_state(Path(killed.out + "-at-that-time") / STATE)
    assert state["step"] == 3
    assert {k: v.shape for k, v in state["network"].items()} == {
        k: v.shape for k, v in whole.items()
    }
    (tmp_path / "killed").rename(tmp_path / "resumed")
    Path(killed.out + "-at-that-time").rename(killed.out)
    with pytest.raises(TrainingError, match="fsdp: expected several processes, started by torch"):
        train(killed, resume=True, console=QUIET)
    alone = Config.from_dict(killed.to_dict() | {"fsdp": False})
    assert len(train(alone, resume=True, console=QUIET).history) == 2
    assert losses(alone) == pytest.approx(losses(shared), rel=0.2)


def test_a_batch_has_to_be_shared_evenly(image_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    config = tiny(image_folder, tmp_path / "out")
    with pytest.raises(TrainingError, match="expected a multiple of the 3 processes, got 8"):
        Trainer(config, Processes(torch.device("cpu"), 0, 3), QUIET)


def test_validation_is_shared(image_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    """Every image once, and as many batches for each process."""
    config = tiny(image_folder, tmp_path / "out", batch_size=5)
    data = open_data(config)
    shares = [list(validation_batches(data, config, rank, 5)) for rank in range(5)]
    assert [[len(targets) for _, targets in share] for share in shares] == [
        [1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 1, 0], [1, 1, 0],
    ]  # fmt: skip
    assert all(images.shape[1:] == (3, 16, 16) for share in shares for images, _ in share)
    found = torch.cat([targets for share in shares for _, targets in share])
    assert found.dtype == torch.int64 and found.bincount().tolist() == [4, 4, 4]
