"""Every Python example of the README and of docs/ runs, page by page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
#: Relative links to files, without an anchor.
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)[^)]*\)")


def examples(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


@pytest.mark.parametrize("page", [p for p in PAGES if examples(p)], ids=lambda page: page.stem)
def test_examples_run(page: Path) -> None:
    """In order, in one namespace."""
    namespace: dict[str, object] = {"__name__": page.stem}
    for block in examples(page):
        exec(compile(block, str(page), "exec"), namespace)


def test_there_are_examples() -> None:
    assert len(examples(ROOT / "README.md")) >= 3
    assert len(examples(ROOT / "docs" / "segmentation.md")) >= 3


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files(page: Path) -> None:
    missing = [
        link
        for link in LINK.findall(page.read_text(encoding="utf-8"))
        if not (page.parent / link).exists()
    ]
    assert missing == []
