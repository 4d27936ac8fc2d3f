"""What the displays share: axes, colours, legends, and pictures in a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.utils import check_matplotlib_support

Picture = npt.NDArray[np.uint8]

# Okabe and Ito's colours, which those who see red and green alike tell apart, without the yellow
# that is hard to see on white.
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, BLACK = "#CC79A7", "#56B4E9", "#000000"
COLOURS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, BLACK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#767676"

_FONT = 8.0  # points, of captions
_CHARACTER = 0.56  # mean width, of the font's size
_LINE = 1.3  # height, of the font's size
_GAP = 0.06  # between pictures, of a cell's width


def check_matplotlib(caller: str) -> None:
    """Raise an ImportError that names the extra, if matplotlib is missing."""
    try:
        check_matplotlib_support(caller)
    except ImportError as error:
        raise ImportError(f"{error}, or all that sktl draws with: pip install 'sktl[plot]'") from (
            error.__cause__
        )


def axes_to_draw_on(ax: Any, figsize: tuple[float, float]) -> tuple[Any, bool]:
    """Give the axes, made with a figure where None is given; and whether they were made."""
    import matplotlib.pyplot as plt

    if ax is not None:
        return ax, False
    _, made = plt.subplots(figsize=figsize, layout="constrained")
    return made, True


def add_legend(ax: Any, handles: Sequence[Any], own_figure: bool) -> None:
    """Below the axes in a figure of our own; in a given one, where there is room."""
    if not handles:
        return
    if not own_figure:
        ax.legend(handles=handles, fontsize="small", framealpha=0.8)
        return
    longest = max(len(str(handle.get_label())) for handle in handles)
    n_columns = max(1, min(len(handles), int(80 / (longest + 6))))
    ax.figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=n_columns,
        fontsize="small",
        frameon=False,
    )


def shortened(text: str, length: int) -> str:
    """Cut letters out of the middle: long names often differ at their ends."""
    if len(text) <= length:
        return text
    kept = max(2, length - 1)
    return f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"


@dataclass(frozen=True)
class Tile:
    """A picture of a grid.

    Attributes
    ----------
    picture : uint8 array of shape (h, w, 3)
    lines : sequence of (str, str)
        Text below the picture and what must stay of it when it is cut, line by line: a name, and
        what follows it.
    colour : str
        Of frame and text.
    """

    picture: Picture
    lines: Sequence[tuple[str, str]] = ()
    colour: str = BLACK


def draw_grid(ax: Any, tiles: Sequence[Tile], n_columns: int, cell_width: float) -> tuple[Any, Any]:
    """Draw pictures in rows on one axes.

    Parameters
    ----------
    ax : matplotlib Axes or None
        None makes a figure of a suitable size.
    tiles : sequence of Tile
    n_columns : int
    cell_width : float
        In inches, where the figure is made here.

    Returns
    -------
    ax : matplotlib Axes
    images : list of matplotlib AxesImage
    """
    n_columns = min(n_columns, len(tiles))
    n_rows = math.ceil(len(tiles) / n_columns)
    n_lines = max(len(tile.lines) for tile in tiles)
    if ax is not None:
        cell_width = ax.get_position().width * ax.figure.get_figwidth() / n_columns
    line = _LINE * _FONT / 72 / cell_width
    cell_height = 1 + n_lines * line + (line / 2 if n_lines else 0)
    size = (n_columns * cell_width, n_rows * cell_height * cell_width + 0.3)
    ax, _ = axes_to_draw_on(ax, size)
    length = int(cell_width * (1 - _GAP) * 72 / (_CHARACTER * _FONT))
    images = []
    for i, tile in enumerate(tiles):
        left, top = i % n_columns, i // n_columns * cell_height
        images.append(_draw_tile(ax, tile, left, top, line, length))
    ax.set(xlim=(0, n_columns), ylim=(n_rows * cell_height, 0), aspect="equal")
    ax.set_axis_off()
    return ax, images


def _draw_tile(
    ax: Any, tile: Tile, left: float, top: float, line: float, length: int
) -> Any:
    height, width = tile.picture.shape[:2]
    scale = (1 - _GAP) / max(height, width)
    x = left + (1 - width * scale) / 2
    bottom = top + 1 - _GAP / 2
    extent = (x, x + width * scale, bottom, bottom - height * scale)
    image = ax.imshow(tile.picture, extent=extent)
    for side in range(2 if tile.colour != BLACK else 0):  # a white line parts frame and picture
        ax.add_patch(_frame(extent, ("white", tile.colour)[side], (3.0, 1.8)[side]))
    for number, (name, rest) in enumerate(tile.lines):
        ax.text(
            left + 0.5,
            top + 1 + (number + 0.25) * line,
            shortened(name, length - len(rest)) + rest,
            ha="center",
            va="top",
            fontsize=_FONT,
            color=tile.colour,
        )
    return image


def _frame(extent: tuple[float, float, float, float], colour: str, width: float) -> Any:
    from matplotlib.patches import Rectangle

    left, right, bottom, top = extent
    return Rectangle(
        (left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=width
    )
