"""Look through a built site for links that lead nowhere, and for what windows cut off.

``python docs/check_site.py docs/_build/html``

Links, anchors and pictures are looked up in the files. What is wider than its box and can't be
scrolled to is found in headless Chromium, at the widths of a small laptop's window and of a phone;
where there is no Chromium, that is said, and not looked for.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, Queue
from typing import Any
from urllib.parse import quote, unquote, urlsplit

WIDTHS = (1300, 400)  # pixels
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_SECONDS_A_PAGE = 120  # a busy machine takes its time
_FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-sync",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
# Opens one page after the other in a frame, so that narrow windows can be had, and tells of each.
_LOOKER = """<!doctype html><meta charset="utf-8"><body><script>
const pages = PAGES, widths = WIDTHS;

function name(element) {
  const kind = element.classList.length ? "." + element.classList[0] : "";
  const text = element.textContent.trim().replace(/\\s+/g, " ").slice(0, 40);
  return `${element.localName}${kind} "${text}"`;
}

function isHidden(element, style, box) {
  return !box.width || !box.height || style.visibility === "hidden" ||
    box.width <= 1 || box.height <= 1;  // for screen readers
}

// How the content of an element that is wider than its box can be seen, if it can.
function fault(element, view) {
  const over = element.scrollWidth - element.clientWidth;
  const style = view.getComputedStyle(element), box = element.getBoundingClientRect();
  if (over <= 2 || style.display.startsWith("inline") || isHidden(element, style, box)) return "";
  const by = `${element.scrollWidth} px in ${element.clientWidth}`;
  if (["hidden", "clip"].includes(style.overflowX))
    return style.textOverflow === "ellipsis" ? "" : `cut off: ${by}`;
  if (style.overflowX === "visible") return "";  // it is judged by what holds it
  const borders = parseFloat(style.borderTopWidth) + parseFloat(style.borderBottomWidth);
  const bar = element.offsetHeight - element.clientHeight - borders;
  return bar < 1 ? `scrolls without a scroll bar: ${by}` : "";
}

// What sticks out of the page's text to the right, and no element around it scrolls or cuts.
function sticksOut(element, article, view) {
  const box = element.getBoundingClientRect(), style = view.getComputedStyle(element);
  if (isHidden(element, style, box)) return "";
  const edge = article.getBoundingClientRect().right;
  if (box.right <= edge + 2) return "";
  for (let outer = element.parentElement; outer && outer !== article.parentElement;
       outer = outer.parentElement)
    if (view.getComputedStyle(outer).overflowX !== "visible") return "";
  return `sticks out of the text by ${Math.round(box.right - edge)} px`;
}

function look(frame) {
  const view = frame.contentWindow, page = view.document, found = [];
  const root = page.scrollingElement;
  if (root.scrollWidth > root.clientWidth + 1)
    found.push(`the page: ${root.scrollWidth} px in ${root.clientWidth}`);
  for (const element of page.body.querySelectorAll("*")) {
    if (element.closest("svg, .MathJax")) continue;
    const what = fault(element, view);
    if (what) found.push(`${name(element)} ${what}`);
  }
  const article = page.querySelector("article") || page.body;
  for (const element of article.querySelectorAll("*")) {
    if (element.closest("svg, .MathJax")) continue;
    const what = sticksOut(element, article, view);
    if (what) { found.push(`${name(element)} ${what}`); break; }  // those within do, too
  }
  return found;
}

async function lookAt(page) {
  const frame = document.createElement("iframe");
  frame.style.height = "900px";
  frame.style.border = "none";
  frame.style.width = widths[0] + "px";
  const loaded = new Promise(resolve => { frame.onload = resolve; });
  frame.src = page;
  document.body.append(frame);
  await loaded;
  await frame.contentWindow.document.fonts.ready;
  const found = [];
  for (const width of widths) {
    frame.style.width = width + "px";
    await new Promise(resolve => setTimeout(resolve, 50));
    found.push(...look(frame).map(what => `at ${width} px: ${what}`));
  }
  frame.remove();
  return found;
}

async function all() {
  for (const page of pages) {
    let found;
    try { found = await lookAt("/" + page); }
    catch (error) { found = ["can't be looked at: " + error]; }
    await fetch("/found", {method: "POST", body: JSON.stringify([page, found])});
  }
}
all();
</script>"""


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


class _Handler(SimpleHTTPRequestHandler):
    """Serves the site, and a page that looks at its pages and posts what it finds."""

    def __init__(self, looker: str, found: Queue[Any], *args: Any, **kwargs: Any) -> None:
        self.looker, self.found = looker, found
        super().__init__(*args, **kwargs)

    def do_GET(self) -> None:  # noqa: N802
        if self.path != "/looker":
            super().do_GET()
            return
        self._answer(self.looker.encode())

    def do_POST(self) -> None:  # noqa: N802
        self.found.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self._answer(b"")

    def _answer(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


def find_browser() -> str | None:
    """Find Chromium's program, if it is installed."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def too_wide(site: Path, browser: str, widths: tuple[int, ...] = WIDTHS) -> list[str]:
    """Describe what is wider than its box, and isn't seen to scroll.

    Parameters
    ----------
    site : Path
        Folder of HTML files.
    browser : str
        Chromium's program.
    widths : tuple of int, default=(1300, 400)
        Of the windows in which the pages are looked at, in pixels.

    Raises
    ------
    RuntimeError
        If the browser ends, or doesn't answer.
    """
    files = sorted(p for p in site.rglob("*.html") if "_static" not in p.parts)
    pages = [str(path.relative_to(site)) for path in files]
    looker = _LOOKER.replace("PAGES", json.dumps([quote(page) for page in pages]), 1)
    looker = looker.replace("WIDTHS", json.dumps(widths), 1)
    found: Queue[Any] = Queue()
    handler = partial(_Handler, looker, found, directory=str(site))
    faults = []
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), handler) as server,
        tempfile.TemporaryDirectory(prefix="sktl-site-", ignore_cleanup_errors=True) as profile,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/looker"
        window = f"--window-size={max(widths) + 100},1000"
        command = [browser, *_FLAGS, window, f"--user-data-dir={profile}", address]
        with (
            open(Path(profile) / "log", "wb") as log,
            subprocess.Popen(command, stdout=log, stderr=log) as running,
        ):
            try:
                for page in pages:
                    named, faults_of_page = _next(found, running, page)
                    faults += [f"{unquote(named)}: {fault}" for fault in faults_of_page]
            finally:
                running.terminate()
                server.shutdown()
    return faults


def _next(found: Queue[Any], running: subprocess.Popen[bytes], page: str) -> Any:
    """Wait for what the browser finds on a page."""
    for _ in range(_SECONDS_A_PAGE):
        try:
            return found.get(timeout=1)
        except Empty:
            if running.poll() is not None:
                raise RuntimeError(f"the browser ended with code {running.returncode}") from None
    raise RuntimeError(f"the browser hasn't looked at {page} in {_SECONDS_A_PAGE} s")


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
    browser = find_browser()
    if browser is None:
        print(f"none of {', '.join(BROWSERS)} is installed: widths were NOT looked at")
        wide = []
    else:
        wide = too_wide(site.resolve(), browser)
        print("\n".join(wide))
        print(f"{len(wide)} contents wider than their box, at {' and '.join(map(str, WIDTHS))} px")
    if broken or wide:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
