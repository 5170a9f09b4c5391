"""Parameters, gradients and the optimizer's state shared out over processes: PyTorch's FSDP2.

What is written to files is whole: a run's checkpoints do not tell how many processes made them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ..nn import BasicBlock, Bottleneck
from .processes import Processes


def share_out(network: nn.Module, processes: Processes) -> None:
    """Leaves each process its part of a network, which is the same in all of them; in place.

    A residual block's parameters are brought together while it runs, forward and backward, and
    those outside of blocks while the network runs.
    """
    mesh = init_device_mesh(processes.device.type, (processes.size,))
    blocks = [m for m in network.modules() if isinstance(m, BasicBlock | Bottleneck)]
    for module in (*blocks, network):
        # Also the network itself after a forward, for evaluation has no backward that does it.
        fully_shard(module, mesh=mesh, reshard_after_forward=True)


def whole(values: Any) -> Any:
    """Nestings of dicts and lists with whole tensors; all processes have to call it together."""
    if isinstance(values, DTensor):
        return values.full_tensor()
    if isinstance(values, dict):
        return {key: whole(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [whole(value) for value in values]
    return values


def own_part(tensor: Tensor) -> Tensor:
    """What of a tensor this process has."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads a state of whole tensors; parameters that are shared out get their part."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    entries = {}
    for index, entry in state["state"].items():
        parameter = parameters[index]
        entries[index] = dict(entry)
        if isinstance(parameter, DTensor):
            for name, value in entry.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    entries[index][name] = distribute_tensor(
                        value.to(parameter.device), parameter.device_mesh, parameter.placements,
                        src_data_rank=None,  # all have the same file
                    )  # fmt: skip
    optimizer.load_state_dict({**state, "state": entries})
