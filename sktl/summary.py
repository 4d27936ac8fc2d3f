"""What an estimator has learned, as a part of its view in a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

_MOST_NAMES = 6
_LONGEST_NAME = 30
# scikit-learn's own view decides on fonts and on dark or light: text has its colour.
_SNOWFLAKE = "❄\ufe0e"  # as text, not as a coloured picture
_CELL = "padding: 0.15em 1em 0.15em 0; vertical-align: top; text-align: left; border: none;"
_CHIP = (
    "display: inline-block; margin: 0.1em 0.15em; padding: 0 0.4em; border-radius: 0.4em; "
    "font-family: monospace; border: 1px"
)
# Blue and orange that differ in grey, too; a snowflake and a solid line say it without colours.
_FROZEN = f"{_CHIP} dashed #0072B2; background: #0072B22E;"
_TRAINED = f"{_CHIP} solid #D55E00; background: #E69F0055; font-weight: bold;"


@dataclass(frozen=True)
class Summary:
    """What to tell of a fitted estimator.

    Attributes
    ----------
    facts : list of (str, str)
        Names and values.
    frozen, trained : sequence of str
        Names of the network's parts in forward order.
    """

    facts: Sequence[tuple[str, str]]
    frozen: Sequence[str]
    trained: Sequence[str] = ()

    def to_html(self) -> str:
        """A table for scikit-learn's view of the estimator."""
        chips = [_chip(f"{_SNOWFLAKE} {name}", _FROZEN, "frozen") for name in self.frozen]
        chips += [_chip(name, _TRAINED, "trained") for name in self.trained]
        cells = [(escape(name), escape(value)) for name, value in self.facts]
        line = f'<div style="line-height: 1.7;">{"".join(chips)}</div>'
        cells.insert(1, (f"Stages ({_SNOWFLAKE} frozen)", line))
        rows = "".join(
            f'<tr><th style="{_CELL} white-space: nowrap;">{name}</th>'
            f'<td style="{_CELL} white-space: normal;">{value}</td></tr>'
            for name, value in cells
        )
        return (
            '<div class="sktl-fitted" style="margin: 0.5em;"><table style="border: none;">'
            f"<tbody>{rows}</tbody></table></div>"
        )


def _chip(text: str, style: str, title: str) -> str:
    return f'<span style="{style}" title="{title}">{escape(text)}</span>'


def name_of(source: Any) -> str:
    """A backbone's name; that of its class or function where it has none."""
    if isinstance(source, str):
        return source
    return str(getattr(source, "__name__", type(source).__name__))


def listed(values: Sequence[Any]) -> str:
    """How many there are, and the first of them."""
    shown = [_cut(str(value)) for value in values[:_MOST_NAMES]]
    more = ["…"] if len(values) > _MOST_NAMES else []
    return f"{len(values)}: {', '.join(shown + more)}"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_NAME else f"{text[:_LONGEST_NAME]}…"
