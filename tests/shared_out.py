"""What `test_train_processes.py` runs in two processes: torchrun ... shared_out.py PAIR SHARED ...

The arguments are TOML files of configurations: the first two are trained to their end, the third is
killed in its second epoch, and resumed.
"""

from __future__ import annotations

import shutil
import sys

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from msr_cuda.train import Config, train
from msr_cuda.train.processes import joined
from msr_cuda.train.trainer import Trainer

KILLED_AT = 3  # of two steps an epoch


class Killed(BaseException):
    """Nothing gets to write."""


def main(pair: str, shared: str, killed: str) -> None:
    """Trains them all."""
    torch.set_num_threads(1)
    original = Trainer._train_step
    states: list[str] = []

    def train_step(self: Trainer, images: Tensor, targets: Tensor) -> None:
        if self.step == KILLED_AT and states == ["to be killed"]:
            raise Killed
        original(self, images, targets)
        if self.config.fsdp:
            assert all(isinstance(p, DTensor) for p in self.network.parameters())
            entries = self.optimizer.state.values()
            held = [e["exp_avg"].to_local().numel() for e in entries]
            assert 0.4 < sum(held) / sum(e["exp_avg"].numel() for e in entries) < 0.6

    Trainer._train_step = train_step  # type: ignore[method-assign]
    with joined("cpu") as processes:
        train(Config.from_toml(pair))
        train(Config.from_toml(shared))
        config = Config.from_toml(killed)
        states.append("to be killed")
        try:
            train(config)
        except Killed:
            states.clear()
        assert not states
        if processes.is_first:
            shutil.copytree(config.out, config.out + "-at-that-time")
        processes.wait()  # nobody resumes before the last state is written
        train(config, resume=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
