"""Pictures on one sheet, in rows with a caption; other examples draw with it."""

import math
from pathlib import Path

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


def save_sheet(file, rows):
    """Draw rows of (caption, [(path, text below the picture), ...]), and say where."""
    heights = [TEXT + math.ceil(len(tiles) / COLUMNS) * (SIDE + TEXT) for _, tiles in rows]
    sheet = Image.new("RGB", (COLUMNS * SIDE, sum(heights)), "white")
    draw = ImageDraw.Draw(sheet)
    top = 0
    for (caption, tiles), height in zip(rows, heights, strict=True):
        draw.text((4, top + 2), caption, "black")
        for i, (path, text) in enumerate(tiles):
            x, y = SIDE * (i % COLUMNS), top + TEXT + (SIDE + TEXT) * (i // COLUMNS)
            with Image.open(path) as picture:
                upright = ImageOps.exif_transpose(picture).convert("RGBA")
            tile = ImageOps.contain(upright, (SIDE - 4, SIDE - 4))
            sheet.paste(tile, (x + (SIDE - tile.width) // 2, y + (SIDE - tile.height) // 2), tile)
            draw.text((x + 4, y + SIDE), text[: SIDE // 7], "gray")
        top += height
    sheet.save(file)
    print(f"the pictures are shown in {file}")
