"""One process, or those that ``torchrun`` started."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ._errors import TrainingError


@dataclass(frozen=True)
class Processes:
    """This process and how many there are.

    Attributes:
        device: of this process.
        rank: its number; 0 writes the files.
        size: how many there are.
    """

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes, the same bits in each."""
        if self.size > 1:
            values = values.to(self.device, copy=True)
            dist.all_reduce(values)
        return values

    def spread(self, values: Tensor) -> None:
        """Replaces a tensor by that of the first process."""
        if self.size > 1:
            dist.broadcast(values, 0)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


@contextlib.contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Joins the other processes, if ``torchrun`` started this one; leaves them at the end.

    Processes that have joined before stay together.

    Args:
        device: ``"auto"``: CUDA where there is some; with an index of its own for each process.

    Raises:
        TrainingError: a device that is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise TrainingError(f"device {device}: {str(error).splitlines()[0]}") from error
    if not dist.is_available() or not (dist.is_initialized() or dist.is_torchelastic_launched()):
        yield Processes(chosen)
        return
    if device == "cuda":
        chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if dist.is_initialized():
        yield Processes(chosen, dist.get_rank(), dist.get_world_size())
        return
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        processes = Processes(chosen, dist.get_rank(), dist.get_world_size())
        yield processes
        # Until the first has written its files. A process that is gone before a thread of gloo's
        # has freed the tensors of the last exchange aborts.
        with contextlib.suppress(RuntimeError):  # others may have failed
            processes.wait()
    finally:
        dist.destroy_process_group()
