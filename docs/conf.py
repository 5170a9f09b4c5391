"""The site of `make docs`: Sphinx on the Markdown of this folder and the docstrings.

Nothing is fetched while it is built or read: no web fonts, no scripts from elsewhere;
formulas are MathML.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import generated_pages  # noqa: E402
import pictures  # noqa: E402

from msr_cuda import __version__  # noqa: E402

project = "msr_cuda"
author = "The msr_cuda authors"
copyright = author
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["generated/*.md"]
highlight_language = "none"  # blocks that name no language are commands and formulas
html_theme = "furo"
html_title = f"msr_cuda {release}"
html_show_sphinx = False
html_math_renderer = "mathml"

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say more: shapes, dtypes, units
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# References to this package have to lead somewhere; those to torch's pages would need the network.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!msr_cuda\.).*"), (r"py:.*", r".*\._.*")]
# A starred name in a shape: `[N, C, *size]`; beside it, what must stay: literals and examples.
STAR = re.compile(r"``.*?``|(?<=[\[ ])\*(?=[a-z_]+[\],]|\()")


def escape_stars(
    app: Sphinx, what: str, name: str, of: object, options: object, lines: list[str]
) -> None:
    """Shapes as our docstrings write them, for reStructuredText, to which a star is emphasis."""
    for i, line in enumerate(lines):
        if not line.lstrip().startswith(">>>"):
            lines[i] = STAR.sub(lambda m: m[0] if len(m[0]) > 1 else r"\*", line)


def formula(translator: Any, node: nodes.Element) -> None:
    """A formula as MathML, which browsers draw by themselves."""
    block = isinstance(node, nodes.math_block)
    text = tex2mathml(node.astext(), as_block=block)
    translator.body.append(f'<div class="math">{text}</div>' if block else text)
    raise nodes.SkipNode


def make_pages(app: Sphinx) -> None:
    """What is computed: pictures, and tables from result files and from the code."""
    folder = HERE / "generated"
    folder.mkdir(exist_ok=True)
    pictures.draw(folder)
    generated_pages.write(folder)


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx calls it before it reads the pages."""
    app.add_html_math_renderer(
        "mathml", inline_renderers=(formula, None), block_renderers=(formula, None)
    )
    app.connect("builder-inited", make_pages)
    app.connect("autodoc-process-docstring", escape_stars)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
