"""Draw docs/_static/photographs.svg: accuracy with few labels, of benchmarks/photographs.csv.

``python docs/plots/photographs.py``
"""

from __future__ import annotations

import csv
from pathlib import Path

DOCS = Path(__file__).parents[1]
TABLE = DOCS.parent / "benchmarks" / "photographs.csv"
FILE = DOCS / "_static" / "photographs.svg"
WIDTH, ROW, LEFT, LABEL, BAR = 480, 24, 8, 205, 215
COLOURS = ("#f08c2e", "#8a99ab", "#b4bfcc")


def read() -> list[tuple[str, str, float]]:
    """Read numbers of labels, classifiers and accuracies."""
    _, *lines = TABLE.read_text(encoding="utf-8").splitlines()
    rows = csv.DictReader(lines)
    return [(row["labels"], row["classifier"], float(row["accuracy"])) for row in rows]


def draw(rows: list[tuple[str, str, float]]) -> str:
    """Make the picture, in colours that suit light and dark pages."""
    groups = list(dict.fromkeys(labels for labels, _, _ in rows))
    names = list(dict.fromkeys(name for _, name, _ in rows))
    height = 34 + len(groups) * (ROW * len(names) + 34)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="system-ui, sans-serif" font-size="14">',
        "<title>Accuracy by the number of labels</title>",
        f'<text x="{LEFT}" y="20" fill="#808890">Accuracy on pieces of 13 photographs</text>',
    ]
    y = 34
    for group in groups:
        parts.append(
            f'<text x="{LEFT}" y="{y + 16}" fill="#808890" font-weight="bold">'
            f"{group} labels of each</text>"
        )
        y += 24
        for colour, (_, name, accuracy) in zip(
            COLOURS, (row for row in rows if row[0] == group), strict=True
        ):
            parts += [
                f'<text x="{LEFT}" y="{y + 15}" fill="#808890">{name}</text>',
                f'<rect x="{LABEL}" y="{y + 3}" width="{accuracy * BAR:.1f}" height="16" rx="3" '
                f'fill="{colour}"/>',
                f'<text x="{LABEL + accuracy * BAR + 6:.1f}" y="{y + 16}" fill="#808890" '
                f'font-weight="bold">{accuracy:.2f}</text>',
            ]
            y += ROW
        y += 10
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    FILE.write_text(draw(read()), encoding="utf-8")
