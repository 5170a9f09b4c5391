"""Files that are whole or not there: weights in safetensors, and the state of a run.

Every file is written beside its place and then moved there, so that a crash or a full disk leaves
the previous one as it was. Nothing that is read can run code: weights come from safetensors, or
from ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..models import load_trunk
from . import sealing
from ._errors import TrainingError, require
from .config import Config
from .networks import build_network

#: The entry of a safetensors file's metadata that describes the network.
_DESCRIPTION = "msr_cuda"


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces a file by new content, or leaves it as it is.

    Raises:
        TrainingError: it cannot be written, with the system's reason.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        kept = "; the one from before is intact" if path.exists() else ""
        raise TrainingError(f"{path} cannot be written: {error.strerror}{kept}") from error


def save_weights(
    path: Path, weights: Mapping[str, Tensor], config: Config, classes: list[str]
) -> None:
    """Writes a network's weights, and what :func:`load_network` needs to build it."""
    from safetensors.torch import save

    # In channels_last, tensors are not contiguous, and the format knows no strides.
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    description = json.dumps({"config": config.to_dict(), "classes": classes})
    write_atomically(path, save(tensors, {_DESCRIPTION: description}))


def load_network(
    path: str | Path, key: sealing.Key | None = None
) -> tuple[nn.Module, Config, list[str]]:
    """A trained network, from one of the safetensors files that a run writes.

    Args:
        path: of the file, plain or sealed (:mod:`msr_cuda.train.sealing`).
        key: of a sealed one.

    Returns:
        The network in evaluation, on the CPU; the configuration; the names of the classes. Images
        go through :func:`msr_cuda.train.normalized` first.

    Raises:
        TrainingError: no such file, or one that no run has written; another key, or a sealed file
            that was changed.
    """
    tensors, description = read_weights(path, key)
    if description is None:
        raise TrainingError(f"{path}: expected weights of a run, got others (no description)")
    config = Config.from_dict(description["config"])
    classes = list(description["classes"])
    network = build_network(config, len(classes))
    load_exactly(network, tensors, str(path))
    return network.eval(), config, classes


def read_weights(
    path: str | Path, key: sealing.Key | None = None
) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The tensors of a safetensors file or a state_dict, and the description of the network.

    Args:
        path: of the file.
        key: of a sealed safetensors file.

    Raises:
        TrainingError: it cannot be read, or has something else in it.
    """
    try:
        if Path(path).suffix == sealing.SUFFIX:
            return _read_sealed(path, key)
        if Path(path).suffix == ".safetensors":
            require("safetensors")
            from safetensors import SafetensorError, safe_open

            try:
                with safe_open(str(path), "pt") as file:
                    text = (file.metadata() or {}).get(_DESCRIPTION)
                    names = list(file.keys())
                    tensors = {name: file.get_tensor(name) for name in names}
            except SafetensorError as error:
                raise TrainingError(f"{path}: not a whole safetensors file: {error}") from error
            return tensors, None if text is None else json.loads(text)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise TrainingError(f"{path}: {error.strerror or error}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        first = str(error).strip().splitlines()[0]
        raise TrainingError(f"{path}: not a file of weights: {first}") from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise TrainingError(f"{path}: expected a state_dict, got {type(found).__name__}")
    return found, None


def _read_sealed(
    path: str | Path, key: sealing.Key | None
) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Of a safetensors file that was sealed; it is opened in memory, and nowhere else."""
    require("safetensors")
    from safetensors import SafetensorError
    from safetensors.torch import load

    if key is None:
        raise TrainingError(f"{path}: it is sealed, and needs its key")
    content = sealing.unseal(Path(path).read_bytes(), key, str(path))
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise TrainingError(f"{path}: not a safetensors file that was sealed: {error}") from error
    # The format: the header's length in 8 bytes, little-endian, then the header in JSON.
    length = int.from_bytes(content[:8], "little")
    text = json.loads(content[8 : 8 + length]).get("__metadata__", {}).get(_DESCRIPTION)
    return tensors, None if text is None else json.loads(text)


def load_exactly(network: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Loads every tensor, or none.

    Raises:
        TrainingError: a tensor is missing, unknown or of another shape; the first few are named.
    """
    own = network.state_dict()
    wrong = [f"{name} is missing" for name in own if name not in tensors]
    wrong += [f"{name} is unknown" for name in tensors if name not in own]
    wrong += [
        f"{name}: expected {tuple(value.shape)}, got {tuple(tensors[name].shape)}"
        for name, value in own.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise TrainingError(f"{source}: not of this network: {'; '.join(wrong[:3])}{more}")
    network.load_state_dict(dict(tensors))


def load_initial(network: nn.Module, path: str) -> str:
    """Starts a network from weights: of a run exactly, of a plain ResNet into the trunk.

    Returns:
        One line that says what was loaded.
    """
    tensors, description = read_weights(path)
    if description is not None:
        load_exactly(network, tensors, path)
        return f"{path}: all {len(tensors)} tensors loaded"
    try:
        return f"{path}: {load_trunk(network, tensors, strict=True)}"
    except ValueError as error:
        raise TrainingError(f"{path}: {error}") from error


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Writes the state of a run: nestings of tensors, numbers, texts and None."""
    buffer = io.BytesIO()  # so that only the system's own errors can come from the disk
    torch.save(dict(state), buffer)
    write_atomically(path, buffer.getvalue())


def load_state(path: Path) -> dict[str, Any]:
    """Reads the state of a run.

    Raises:
        TrainingError: there is none, or the file is damaged.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise TrainingError(f"{path}: there is no run to resume") from error
    except (OSError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        first = str(error).strip().splitlines()[0]
        raise TrainingError(f"{path}: not the state of a run: {first}") from error
    return state
