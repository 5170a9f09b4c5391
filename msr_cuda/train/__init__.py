"""Training of the networks in :mod:`msr_cuda.models`: ``python -m msr_cuda train``.

- :class:`Config`, a run's configuration; :func:`train` runs it
- :func:`load_network` and :func:`normalized`: a trained network, and images as it takes them
- :class:`TrainingError` and :class:`DataError`: what can go wrong and is not a bug

Needs safetensors and Pillow; with tqdm, TensorBoard and Matplotlib there is more to see. All of it:
``pip install 'msr-cuda[train]'``.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._errors import DataError, TrainingError
    from .checkpoint import load_network
    from .config import Config
    from .digits import Digits
    from .metrics import Confusion
    from .networks import normalized
    from .runs import train
    from .trainer import Outcome

__all__ = [
    "Config",
    "Confusion",
    "DataError",
    "Digits",
    "Outcome",
    "TrainingError",
    "load_network",
    "normalized",
    "train",
]

_MODULES = {
    "Config": "config",
    "Confusion": "metrics",
    "DataError": "_errors",
    "Digits": "digits",
    "Outcome": "trainer",
    "TrainingError": "_errors",
    "load_network": "checkpoint",
    "normalized": "networks",
    "train": "runs",
}


def __getattr__(name: str) -> Any:
    """Imported when they are asked for: ``python -m msr_cuda info`` has to run without all that."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
