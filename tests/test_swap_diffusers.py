"""Every model of diffusers, swapped."""

from __future__ import annotations

import pytest
from swap_checks import (
    check_autocast,
    check_compile,
    check_float64,
    check_sites,
    check_undo,
    get,
)
from swapping import one_thread  # noqa: F401
from zoo import models

each = pytest.mark.parametrize("name", models("diffusers"))


@each
def test_every_resampling_is_found(name: str) -> None:
    check_sites(get("diffusers", name))


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@each
def test_results_are_the_same_in_float64(name: str, training: bool) -> None:
    check_float64(get("diffusers", name), training=training)


@each
def test_only_classes_change_and_all_of_it_comes_back(name: str) -> None:
    check_undo(get("diffusers", name))


@each
def test_autocast(name: str) -> None:
    check_autocast(get("diffusers", name))


@each
def test_compiles(name: str) -> None:
    check_compile(get("diffusers", name))
