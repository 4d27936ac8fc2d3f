"""Pictures on one sheet, in rows with a caption; other examples draw with it."""

import math
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

SIDE = 112  # of a picture, in pixels
TEXT = 16  # height of a line
COLUMNS = 8


def find_pictures(folder):
    """Paths of all pictures in a folder and below it."""
    kinds = {".jpg", ".jpeg", ".png", ".webp"}
    paths = [str(path) for path in Path(folder).rglob("*") if path.suffix.lower() in kinds]
    if not paths:
        raise SystemExit(f"there are no pictures in {folder}")
    return sorted(paths)


def save_sheet(name, rows):
    """Draw rows of (caption, [(picture, text below it), ...]) into a new file, and say where.

    A picture is a path, a PIL image or an array.
    """
    heights = [TEXT + math.ceil(len(tiles) / COLUMNS) * (SIDE + TEXT) for _, tiles in rows]
    sheet = Image.new("RGB", (COLUMNS * SIDE, sum(heights)), "white")
    draw = ImageDraw.Draw(sheet)
    top = 0
    for (caption, tiles), height in zip(rows, heights, strict=True):
        draw.text((4, top + 2), caption, "black")
        for i, (picture, text) in enumerate(tiles):
            x, y = SIDE * (i % COLUMNS), top + TEXT + (SIDE + TEXT) * (i // COLUMNS)
            tile = ImageOps.contain(upright(picture), (SIDE - 4, SIDE - 4))
            sheet.paste(tile, (x + (SIDE - tile.width) // 2, y + (SIDE - tile.height) // 2), tile)
            draw.text((x + 4, y + SIDE), text[: SIDE // 7], "gray")
        top += height
    file = Path(tempfile.mkdtemp(prefix="sktl-sheet-")) / f"{name}.png"
    sheet.save(file)
    print(f"the pictures are shown in {file}")
    return sheet


def upright(picture):
    """The picture as it is to be seen, as an RGBA image."""
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    elif not isinstance(picture, Image.Image):
        with Image.open(picture) as file:
            file.load()
        picture = file
    return ImageOps.exif_transpose(picture).convert("RGBA")
