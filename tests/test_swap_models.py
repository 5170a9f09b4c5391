"""Models of other packages, swapped: what holds for each of the zoo's, and the table of them.

One at a time, so that each is made once: ``-k timm``, ``-k HRNet``.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest
from conftest import ROOT
from swap_checks import (
    check_autocast,
    check_compile,
    check_float64,
    check_sites,
    check_undo,
    documented,
    get,
    model_table,
)
from swapping import one_thread  # noqa: F401
from zoo import LIBRARIES, Model, models

EVERY = [(library, name) for library in LIBRARIES for name in models(library)]


class Entry(NamedTuple):
    """Where a model is in the zoo."""

    library: str
    name: str
    model: Model


@pytest.fixture(scope="module")
def entry(request: pytest.FixtureRequest) -> Entry:
    return Entry(*request.param, get(*request.param))


def each(entries: list[tuple[str, str]]) -> pytest.MarkDecorator:
    ids = [f"{library}: {name}" for library, name in entries]
    return pytest.mark.parametrize("entry", entries, ids=ids, indirect=True, scope="module")


COMPARED = [(library, name) for library, name in EVERY if models(library)[name].compared]
each_compared = each(COMPARED)
each_code = each([(k, name) for k, name in COMPARED if not models(k)[name].same_code])


@each(EVERY)
def test_every_resampling_is_found(entry: Entry) -> None:
    check_sites(*entry)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@each_compared
def test_results_are_the_same_in_float64(entry: Entry, training: bool) -> None:
    check_float64(entry.model, training=training)


@each_compared
def test_only_classes_change_and_all_of_it_comes_back(entry: Entry) -> None:
    check_undo(entry.model)


@each_code
def test_autocast(entry: Entry) -> None:
    check_autocast(entry.model)


@each_code
def test_compiles(entry: Entry) -> None:
    check_compile(entry.model)


# docs/models.md, of which test_every_resampling_is_found checks every row.


def test_document_is_what_its_rows_make() -> None:
    sections = {}
    for head, lines in documented().items():
        cells = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines]
        sections[head] = [
            model_table.Row(name, *map(int, numbers), left) for name, *numbers, left in cells
        ]
    assert model_table.document(sections) == model_table.DOCUMENT.read_text(encoding="utf-8")
    names = [[row.name for row in rows] for rows in sections.values()]
    assert names == [list(models(library)) for library in LIBRARIES]


def test_nine_in_ten_sites_are_fused() -> None:
    text = model_table.DOCUMENT.read_text(encoding="utf-8")
    (line,) = re.findall(r"^In all, .*", text, re.M)
    fused, partners = map(int, re.findall(r"\d+", line)[:2])
    assert fused >= 0.9 * partners > 0
    assert f"\n> {line}\n" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_command_prints_the_section_of_a_library(capsys: pytest.CaptureFixture[str]) -> None:
    get("torchvision", "LRASPP")  # or skip
    assert model_table.main(["torchvision"]) == 0
    (section,) = re.findall(r"^## .*", capsys.readouterr().out, re.M | re.S)
    assert f"\n{section}\n" in model_table.DOCUMENT.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "message"),
    [(["keras"], "expected some of basicsr, detectron2"), (["timm", "--write"], "takes all")],
)
def test_command_refuses(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        model_table.main(words)
    assert message in capsys.readouterr().err
