"""Contact sheets of the examples as pictures of the gallery."""

from __future__ import annotations

from typing import Any

from PIL import Image
from sphinx_gallery.scrapers import figure_rst


def draw_sheets(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """Show what an example calls `sheet`, a PIL image, below the block that has made it."""
    names = block_vars["example_globals"]
    sheet = names.get("sheet")
    if not isinstance(sheet, Image.Image) or names.get("_shown") is sheet:
        return ""
    names["_shown"] = sheet
    file = next(block_vars["image_path_iterator"])
    sheet.save(file)
    return str(figure_rst([file], gallery_conf["src_dir"]))
