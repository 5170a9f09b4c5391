"""What can go wrong and is not a bug; the text says what to do."""

from __future__ import annotations


class TrainingError(Exception):
    """Training cannot go on or cannot begin: the configuration, the disk, the numbers."""


class DataError(TrainingError):
    """The data are not as they have to be."""


def require(module: str, advice: str = "") -> None:
    """Raises unless an optional package can be imported; ``advice`` is for one of an example."""
    import importlib.util

    if importlib.util.find_spec(module) is None:
        raise TrainingError(
            advice
            or f"{module} is not installed; all that training needs: pip install 'msr-cuda[train]'"
        )
