"""Draw docs/_static/speed.svg: how many times longer others take, of the table of benchmarks.

``python docs/plots/speed.py``
"""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[1]
TABLE = DOCS.parent / "benchmarks" / "README.md"
FILE = DOCS / "_static" / "speed.svg"

# The rows to draw, by what sktl is compared with and the beginning of the question.
ROWS = {
    "fastai": ("the same from 500 files", "ten frozen epochs of ResNet-18 from files"),
    "skorch": ("the same", "ten frozen epochs of ResNet-18 from arrays"),
    "Keras": ("VGG-16", "the classic VGG-16 recipe, ten epochs"),
    "skorch search": ("search, freeze", "a search over what to freeze"),
    "skorch predict": ("predict 1,000", "predictions for 1,000 images"),
}
WIDTH, ROW, LEFT, BAR = 480, 52, 8, 410


def ratios() -> dict[str, float]:
    """How many times longer each takes, by the keys of `ROWS`."""
    lines = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line[:2] == "| "]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    found = {}
    for name, (question, _) in ROWS.items():
        peer = name.split()[0]
        for asked, _, _, beside, ratio, *_ in rows:
            times = re.match(r"([\d.,]+) times faster", ratio)
            if times and asked.startswith(question) and beside.startswith(peer):
                found[name] = float(times[1].replace(",", ""))
                break
    return found


def draw(values: dict[str, float]) -> str:
    """Make the picture, in colours that suit light and dark pages."""
    scale = BAR / max(values.values())
    height = ROW * len(values) + 44
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="system-ui, sans-serif" font-size="15">',
        "<title>How many times longer others take than sktl</title>",
        f'<text x="{LEFT}" y="22" fill="#808890">Time for the same job; sktl takes 1</text>',
    ]
    for i, (name, value) in enumerate(values.items()):
        y = 36 + ROW * i
        label = f"{name.split()[0]}: {ROWS[name][1]}"
        parts += [
            f'<text x="{LEFT}" y="{y + 15}" fill="#808890">{label}</text>',
            f'<rect x="{LEFT}" y="{y + 22}" width="{value * scale:.1f}" height="18" rx="3" '
            'fill="#8a99ab"/>',
            f'<rect x="{LEFT}" y="{y + 22}" width="{scale:.1f}" height="18" rx="3" '
            'fill="#f08c2e"/>',
            f'<text x="{LEFT + value * scale + 8:.1f}" y="{y + 37}" fill="#808890" '
            f'font-weight="bold">{value:g}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    FILE.write_text(draw(ratios()), encoding="utf-8")
