"""Draws the pictures of the pages, from the tables that the operators use.

``python docs/pictures.py`` draws them without building the site, into docs/generated.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
_SLOW, _OURS, _MAP = "#c44e52", "#4c72b0", "#dddddd"


def _matrix(mode: str, in_size: int, out_size: int) -> Any:
    """The weights ``[out_size, in_size]`` of one axis."""
    from msr_cuda._spec import Mode
    from msr_cuda.testing import axis_matrix

    return axis_matrix(Mode[mode], in_size, out_size).numpy()


def _show(axes: Axes, matrix: Any, title: str, rows: str, columns: str) -> None:
    """A table of weights, each written into its cell where two digits show it."""
    limit = abs(matrix).max()
    axes.imshow(matrix, cmap="RdBu", vmin=-limit, vmax=limit)
    for (row, column), weight in _nonzero(matrix):
        if abs(weight) < 0.005:
            continue
        text = f"{weight:.2f}".replace("0.", ".").removesuffix(".00")
        dark = abs(weight) > 0.6 * limit
        axes.text(
            column, row, text, ha="center", va="center", fontsize=6, color="w" if dark else "k"
        )
    axes.set_title(title, fontsize=9)
    axes.set_ylabel(rows, fontsize=7)
    axes.set_xlabel(columns, fontsize=7)
    axes.set_xticks(range(matrix.shape[1]))
    axes.set_yticks(range(matrix.shape[0]))
    axes.tick_params(labelsize=6, length=0)


def _nonzero(matrix: Any) -> list[tuple[tuple[int, int], float]]:
    rows, columns = matrix.nonzero()
    return [((r, c), float(matrix[r, c])) for r, c in zip(rows, columns, strict=True)]


def taps(figure: Figure) -> None:
    """What each element of a result reads, by mode."""
    figure.set_size_inches(9, 6.4)
    enlarged = ["NEAREST", "LINEAR", "LINEAR_ALIGN_CORNERS", "CUBIC"]
    reduced = ["NEAREST_EXACT", "AREA", "LINEAR_ANTIALIAS", "CUBIC_ANTIALIAS"]
    grid = figure.subplots(2, 4)
    for axes, mode in zip(grid[0], enlarged, strict=True):
        _show(axes, _matrix(mode, 4, 8), _name(mode), "of the result", "element of the map")
    for axes, mode in zip(grid[1], reduced, strict=True):
        _show(axes, _matrix(mode, 8, 3), _name(mode), "of the result", "element of the map")


def _name(mode: str) -> str:
    return mode.lower().replace("_exact", "-exact").replace("_antialias", ", antialias").replace(
        "_align_corners", ",\nalign_corners"
    )  # fmt: skip


def adjoint(figure: Figure) -> None:
    """A table and its transpose: forward and backward."""
    figure.set_size_inches(8, 3.6)
    forward, backward = figure.subplots(1, 2)
    matrix = _matrix("LINEAR", 4, 8)
    _show(forward, matrix, "forward: R, linear, 4 to 8", "y", "x")
    _show(backward, matrix.T, "backward: Rᵀ, the same numbers", "gradient of x", "gradient of y")


def responses(figure: Figure) -> None:
    """How one element of a map spreads over a result of many times its size."""
    figure.set_size_inches(7, 3)
    axes = figure.subplots()
    factor, size = 32, 9
    place = [(i + 0.5) / factor - 0.5 - size // 2 for i in range(size * factor)]
    for mode in ("NEAREST", "LINEAR", "CUBIC"):
        column = _matrix(mode, size, size * factor)[:, size // 2]
        axes.plot(place, column, label=_name(mode))
    axes.set_xlim(-2.5, 2.5)
    axes.set_xlabel("distance, in elements of the map")
    axes.set_ylabel("weight")
    axes.axhline(0, color="0.8", zorder=0)
    axes.legend(frameon=False)


def passes(figure: Figure) -> None:
    """What a chain of PyTorch operators moves, and what one pass does."""
    figure.set_size_inches(8, 4.2)
    chain, fused = figure.subplots(2, 1)
    for axes in (chain, fused):
        axes.set_xlim(0, 10)
        axes.set_ylim(0, 3)
        axes.axis("off")
    chain.set_title("relu(skip + interpolate(low)), an operator at a time", fontsize=9, loc="left")
    _box(chain, 0, 0.2, "low", small=True)
    _box(chain, 0, 1.8, "skip")
    for x, name in ((2.9, "interpolated"), (5.8, "sum"), (8.6, "relu")):
        _box(chain, x, 0.9, name)
    _arrow(chain, (0.8, 0.6), (2.9, 1.2), "interpolate", _SLOW)
    _arrow(chain, (4.1, 1.4), (5.8, 1.4), "add", _SLOW)
    _arrow(chain, (1.2, 2.4), (5.8, 1.8), "", _SLOW)
    _arrow(chain, (7.0, 1.4), (8.6, 1.4), "relu", _SLOW)
    fused.set_title('resample_sum([skip, low], activation="relu")', fontsize=9, loc="left")
    _box(fused, 0, 0.2, "low", small=True)
    _box(fused, 0, 1.8, "skip")
    _box(fused, 8.6, 0.9, "relu")
    _arrow(fused, (0.8, 0.6), (8.6, 1.2), "", _OURS)
    _arrow(fused, (1.2, 2.4), (8.6, 1.6), "one pass; sum in float32 registers, one rounding", _OURS)


def _box(axes: Axes, x: float, y: float, name: str, small: bool = False) -> None:
    from matplotlib.patches import Rectangle

    width, height = (0.8, 0.7) if small else (1.2, 1.1)
    axes.add_patch(Rectangle((x, y), width, height, facecolor=_MAP, edgecolor="k"))
    axes.text(x + width / 2, y + height / 2, name, ha="center", va="center", fontsize=7)


def _arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], name: str, color: str
) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": color, "lw": 1.5})
    middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.15)
    axes.text(*middle, name, ha="center", va="bottom", fontsize=7, color=color)


#: By the name of the file.
PICTURES: dict[str, Callable[[Figure], None]] = {
    "taps.svg": taps,
    "adjoint.svg": adjoint,
    "responses.svg": responses,
    "passes.svg": passes,
}


def draw(folder: Path) -> None:
    """Draws all of them; the same bytes each time."""
    import matplotlib
    from matplotlib.figure import Figure

    settings = {"svg.hashsalt": "msr_cuda", "svg.fonttype": "none", "font.family": "sans-serif"}
    with matplotlib.rc_context(settings):
        for name, picture in PICTURES.items():
            figure = Figure(layout="constrained", facecolor="white")
            picture(figure)
            figure.savefig(folder / name, metadata={"Date": None})


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    (HERE / "generated").mkdir(exist_ok=True)
    draw(HERE / "generated")
