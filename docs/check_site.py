"""Look through a built site for links, anchors and pictures that lead nowhere.

``python docs/check_site.py docs/_build/html``
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Page(HTMLParser):
    """What a page refers to, and the anchors in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" or (tag == "a" and name == "name"):
                self.anchors.add(value or "")
            elif name in ("href", "src") and value:
                self.links.append(value)
            elif name == "srcset" and value:
                self.links += [part.split()[0] for part in value.split(",")]


def broken_links(site: Path) -> list[str]:
    """Describe each link on the site's pages that leads nowhere on it.

    Parameters
    ----------
    site : Path
        Folder of HTML files. Links to other sites are passed over.
    """
    root = site.resolve()
    files = sorted(p for p in root.rglob("*.html") if "_static" not in p.parts)
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in files}
    broken = []
    for path, page in pages.items():
        for link in page.links:
            fault = _fault(path, link, pages, root)
            if fault:
                broken.append(f"{path.relative_to(root)}: {link} ({fault})")
    return broken


def _fault(path: Path, link: str, pages: dict[Path, _Page], root: Path) -> str:
    """Say what is wrong with a link, if anything is."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return ""
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if target.is_dir():
        target /= "index.html"
    if not target.is_relative_to(root):
        return "outside the site"
    if not target.is_file():
        return "no such file"
    anchor = unquote(parts.fragment)
    if anchor and target in pages and anchor not in pages[target].anchors:
        return "no such anchor"
    return ""


def main() -> None:
    """Check the folder given, and fail where something is broken."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    site = Path(sys.argv[1])
    n_pages = len(list(site.rglob("*.html")))
    if not n_pages:
        raise SystemExit(f"there are no pages in {site}")
    broken = broken_links(site)
    print("\n".join(broken))
    print(f"{n_pages} pages, {len(broken)} broken links")
    if broken:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
