"""segmentation_models_pytorch: every model, swapped."""

from __future__ import annotations

import pytest
from model_zoo import SMP, names_of
from swap_checks import (
    check_autocast,
    check_compile,
    check_float64,
    check_sites,
    check_undo,
)
from swapping import one_thread  # noqa: F401

each = pytest.mark.parametrize("name", names_of(SMP))


@each
def test_every_resampling_is_found(name: str) -> None:
    check_sites(name)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@each
def test_results_are_the_same_in_float64(name: str, training: bool) -> None:
    check_float64(name, training=training)


@each
def test_only_classes_change_and_all_of_it_comes_back(name: str) -> None:
    check_undo(name)


@each
def test_autocast(name: str) -> None:
    check_autocast(name)


@each
def test_compiles(name: str) -> None:
    check_compile(name)
