"""Documents: their examples run, their links lead somewhere, and their site is built."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from conftest import require_or_skip

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
#: Relative links to files, without an anchor; and files that a page includes.
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)[^)]*\)|^```{include} (.+)$", re.M)
#: What the build of the site makes: nothing of it is committed.
MADE = "generated/"


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
    assert len(examples(DOCS / "segmentation.md")) >= 3


def links(page: Path) -> list[str]:
    found = LINK.findall(page.read_text(encoding="utf-8"))
    return [link or included for link, included in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files(page: Path) -> None:
    lost = [
        link
        for link in links(page)
        if not link.startswith(MADE) and not (page.parent / link).exists()
    ]
    assert lost == []


#: Files and folders of the checkout, as text and commands name them.
NAMED = re.compile(
    r"(?<![\w/.-])((?:benchmarks|build_tools|csrc|docs|examples|msr_cuda|tests)/[\w./-]*\w)"
)


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "benchmarks" / "README.md"], ids=lambda page: page.stem
)
def test_named_files_are_there(page: Path) -> None:
    named = NAMED.findall(page.read_text(encoding="utf-8"))
    lost = [name for name in named if not (ROOT / name).exists()]
    assert [name for name in lost if not name.endswith("/DIR")] == []


# ---------------------------------------------------------------------------- messages

TROUBLESHOOTING = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
#: What differs from case to case.
ELLIPSIS = "…"
#: What begins a command or an expression on that page; other code with a space in it is a message.
NO_MESSAGE = ("python ", "pip ", "git ", "make ", "floor(")


def source_messages() -> list[str]:
    """Every text of the package's and the build's code but docstrings; values as ellipses."""
    texts = []
    for path in [ROOT / "setup.py", *ROOT.glob("build_tools/*.py"), *ROOT.glob("msr_cuda/**/*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        silent = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else ELLIPSIS for p in node.values]
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and id(node) not in silent:
                texts.append(str(node.value))
    for path in ROOT.glob("csrc/**/*.cpp"):
        texts += re.findall(r'"([^"\n]*)"', path.read_text(encoding="utf-8"))
    return texts


def quoted_messages() -> list[str]:
    headings = re.findall(r"^### `(.+)`$", TROUBLESHOOTING, re.M)
    prose = re.sub(r"^#.*$", "", TROUBLESHOOTING, flags=re.M).replace("\n", " ")
    code = [text for text in re.findall(r"`([^`]+)`", prose) if " " in text]
    return [*headings, *(text for text in code if not text.startswith(NO_MESSAGE))]


def is_in(message: str, texts: list[str]) -> bool:
    """Whether one of the texts has the parts of the message between its ellipses, in order."""
    pattern = re.compile(".*?".join(map(re.escape, message.split(ELLIPSIS))), re.S)
    return any(pattern.search(text) for text in texts)


def test_messages_are_those_of_the_source() -> None:
    assert len(quoted_messages()) > TROUBLESHOOTING.count("\n### ") > 0
    texts = source_messages()
    assert [message for message in quoted_messages() if not is_in(message, texts)] == []
    assert not is_in("expected this … message", texts)


# ---------------------------------------------------------------------------- the site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as `make docs` builds it."""
    if sys.version_info < (3, 11):
        pytest.skip("the generator of the site needs Python 3.11")
    for name in ("sphinx", "myst_parser", "furo", "matplotlib"):
        require_or_skip(name)
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    done = subprocess.run(
        [*command, "-d", folder / "doctrees", DOCS, folder / "html"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "html"


def test_site_is_built_without_warnings(site: Path) -> None:
    pages = {path.stem for path in DOCS.glob("*.md")}
    assert pages <= {path.stem for path in site.glob("*.html")}


def test_site_needs_no_network(site: Path) -> None:
    loads = re.compile(
        r"""(?:\bsrc=|<link\b[^>]*\bhref=|@import|url\()["'(]*(?:https?:)?//[^"')]+"""
    )
    for path in [*site.glob("*.html"), *site.glob("_static/**/*.css")]:
        found = loads.findall(path.read_text(encoding="utf-8"))
        assert found == [], path
    assert loads.search('<script src="https://example.org/x.js">')
    assert "<math" in (site / "api.html").read_text(encoding="utf-8")


class _Links(HTMLParser):
    """What a page links to and shows, and what can be linked to in it."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value and not re.match(r"\w+:", value):
                self.links.add(value)
            elif name == "id" and value:
                self.anchors.add(value)


def lost_links(folder: Path) -> list[tuple[str, str]]:
    """Page and link, of pages, files, pictures and anchors that are not there."""
    pages = {path.resolve(): _Links(path) for path in folder.rglob("*.html")}
    lost = []
    for page, found in pages.items():
        for link in sorted(found.links):
            name, _, anchor = unquote(link).partition("#")
            target = (page.parent / name.partition("?")[0]).resolve() if name else page
            there = target.exists() and (target not in pages or not anchor or
                                         anchor in pages[target].anchors)  # fmt: skip
            if not there:
                lost.append((page.name, link))
    return lost


def test_site_links_lead_somewhere(site: Path, tmp_path: Path) -> None:
    assert lost_links(site) == []
    text = '<a href="#there" id="there"></a><a href="#x"></a><img src="x.png"><a href="x.html">'
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    assert [link for _, link in lost_links(tmp_path)] == ["#x", "x.html", "x.png"]


def test_start_page_leads_to_every_page() -> None:
    """Also without the side bar: by a link in its text, or in that of a page it leads to."""
    text = (DOCS / "index.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\((\S+)\.md\)", text))
    pages = {path.stem for path in DOCS.glob("*.md")} - {"index"}
    assert pages - linked <= {"api-swap", "api-train"}  # of which swap and train speak
    for name in ("swap", "train"):
        assert f"(api-{name}.md)" in (DOCS / f"{name}.md").read_text(encoding="utf-8")


def test_site_has_every_public_name(site: Path) -> None:
    anchors = {
        anchor
        for path in site.glob("api*.html")
        for anchor in re.findall(r'id="([\w.]+)"', path.read_text(encoding="utf-8"))
    }
    absent = []
    for name in ("msr_cuda", "msr_cuda.nn", "msr_cuda.models", "msr_cuda.swap", "msr_cuda.train"):
        module = importlib.import_module(name)
        public = [n for n in module.__all__ if n not in ("__version__", "nn", "swap")]
        homes = {name, "msr_cuda"}
        absent += [n for n in public if not anchors & {f"{home}.{n}" for home in homes}]
    assert absent == []


def test_site_has_its_pictures(site: Path) -> None:
    drawn = {Path(link).name for page in PAGES for link in links(page) if link.endswith(".svg")}
    assert drawn
    assert drawn <= {path.name for path in site.glob("_images/*.svg")}
