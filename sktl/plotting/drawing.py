"""What the displays share: axes, colours, legends, and pictures in a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]

# Okabe and Ito's colours, which those who see red and green alike tell apart, without the yellow
# that is hard to see on white.
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, BLACK = "#CC79A7", "#56B4E9", "#000000"
COLOURS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, BLACK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#767676"

_FONT = 8.0  # points, of captions
_CHARACTER = 0.6  # mean width, of the font's size
_LINE = 1.3  # height, of the font's size
_FULL_CELL = 1.2  # inches; in narrower ones captions are smaller
_GAP = 0.06  # between pictures, of a cell's width


def check_matplotlib(caller: str) -> None:
    """Raise an ImportError that names the extra, if matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{caller} requires matplotlib. You can install it, and all that sktl draws with, by "
            "`pip install 'sktl[plot]'`"
        ) from error


def axes_to_draw_on(ax: Any, figsize: tuple[float, float]) -> tuple[Any, bool]:
    """Give the axes, made with a figure where None is given; and whether they were made."""
    import matplotlib.pyplot as plt

    if ax is not None:
        return ax, False
    _, made = plt.subplots(figsize=figsize, layout="constrained")
    return made, True


def size_in_inches(ax: Any) -> tuple[float, float]:
    """Width and height of axes."""
    place, figure = ax.get_position(), ax.figure
    return place.width * figure.get_figwidth(), place.height * figure.get_figheight()


def legend_columns(names: Sequence[str], width: float) -> int:
    """How many entries of a legend stand side by side in a figure of this width in inches."""
    room = width * 72 / (_CHARACTER * _FONT)
    return max(1, min(len(names), int(room / (max(map(len, names)) + 8))))


def legend_height(names: Sequence[str], width: float) -> float:
    """Height in inches that a legend takes below axes of this width."""
    return math.ceil(len(names) / legend_columns(names, width)) * 1.5 * _FONT / 72


def add_legend(ax: Any, handles: Sequence[Any], own_figure: bool, place: str = "best") -> None:
    """Below the axes in a figure of our own; in a given one, at a place on the axes."""
    if not own_figure:
        ax.legend(handles=handles, fontsize="small", framealpha=0.9, loc=place)
        return
    names = [str(handle.get_label()) for handle in handles]
    ax.figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=legend_columns(names, ax.figure.get_figwidth()),
        fontsize="small",
        frameon=False,
    )


def shortened(text: str, length: int) -> str:
    """Cut letters out of the middle: long names often differ at their ends."""
    if len(text) <= length:
        return text
    kept = max(2, length - 1)
    return f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"


def stage_name(name: str, length: int) -> str:
    """The last part of a stage's path where that isn't a mere number, and not too long."""
    last = name.rpartition(".")[2]
    return shortened(name if last.isdecimal() else last, length)


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
    note : str
        A last line in grey, such as a file's name.
    """

    picture: Picture
    lines: Sequence[tuple[str, str]] = ()
    colour: str = BLACK
    note: str = ""

    @property
    def n_lines(self) -> int:
        """How many lines of text stand below the picture."""
        return len(self.lines) + bool(self.note)


def draw_grid(
    ax: Any, tiles: Sequence[Tile], n_columns: int, cell: float, *, together: int = 1
) -> tuple[Any, Any]:
    """Draw pictures in rows on one axes.

    Parameters
    ----------
    ax : matplotlib Axes or None
        None makes a figure of a suitable size; on a given one, pictures are as large as they can
        be.
    tiles : sequence of Tile
    n_columns : int
        At most, and as few as the same number of rows allows. Counts where `ax` is None.
    cell : float
        Width for a picture in inches, where `ax` is None.
    together : int, default=1
        How many tiles must follow one another in a row.

    Returns
    -------
    ax : matplotlib Axes
    images : list of matplotlib AxesImage
    """
    n_lines = max(tile.n_lines for tile in tiles)
    text = (n_lines + 0.5) * _LINE * _FONT / 72 if n_lines else 0.0  # in inches
    n_groups = len(tiles) // together
    if ax is None:
        groups = math.ceil(n_groups / math.ceil(n_groups / max(1, n_columns // together)))
    else:
        room = size_in_inches(ax)
        groups, cell = max(
            (
                (n, _cell_width(room, n * together, len(tiles), text))
                for n in range(1, n_groups + 1)
            ),
            key=lambda choice: choice[1],
        )
    n_columns = groups * together
    n_rows = math.ceil(len(tiles) / n_columns)
    height = 1 + text / cell  # of a cell, as a multiple of its width
    size = round(n_columns * cell, 1), round(n_rows * height * cell + 0.3, 1)
    ax, _ = axes_to_draw_on(ax, size)
    images = [
        _draw_tile(ax, tile, i % n_columns, i // n_columns * height, cell)
        for i, tile in enumerate(tiles)
    ]
    ax.set(xlim=(0, n_columns), ylim=(n_rows * height, 0), aspect="equal")
    ax.set_axis_off()
    return ax, images


def _cell_width(room: tuple[float, float], n_columns: int, n_tiles: int, text: float) -> float:
    """How wide a cell can be with so many in a row, in inches."""
    n_rows = math.ceil(n_tiles / n_columns)
    return max(0.1, min(room[0] / n_columns, room[1] / n_rows - text))


def _draw_tile(ax: Any, tile: Tile, left: float, top: float, cell: float) -> Any:
    height, width = tile.picture.shape[:2]
    scale = (1 - _GAP) / max(height, width)
    x = left + (1 - width * scale) / 2
    bottom = top + 1 - _GAP / 2
    extent = (x, x + width * scale, bottom, bottom - height * scale)
    image = ax.imshow(tile.picture, extent=extent)
    if tile.colour != BLACK:  # a white line parts frame and picture
        ax.add_patch(frame(extent, "white", 3.0))
        ax.add_patch(frame(extent, tile.colour, 1.8))
    font = min(_FONT, max(4.0, _FONT * cell / _FULL_CELL))
    length = int(cell * (1 - _GAP) * 72 / (_CHARACTER * font))
    lines = [(shortened(name, length - len(rest)) + rest, tile.colour) for name, rest in tile.lines]
    if tile.note:
        lines.append((shortened(tile.note, length), GREY))
    for number, (text, colour) in enumerate(lines):
        ax.text(
            left + 0.5,
            top + 1 + (number + 0.25) * _LINE * font / 72 / cell,
            text,
            ha="center",
            va="top",
            fontsize=font,
            color=colour,
        )
    return image


def frame(extent: tuple[float, float, float, float], colour: str, width: float) -> Any:
    """Draw the edge of a picture; the extent is as imshow has it, the width in points."""
    from matplotlib.patches import Rectangle

    left, right, bottom, top = extent
    return Rectangle(
        (left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=width
    )
