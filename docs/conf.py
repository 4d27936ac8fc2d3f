"""Settings of the documentation.

``sphinx-build -W --keep-going -n docs docs/_build/html`` makes it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

import sktl

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(DOCS))

from site_pages import NOT_EXAMPLES, rewrite_links, write_generated_pages  # noqa: E402

project = "sktl"
author = "The sktl developers"
project_copyright = author
version = release = sktl.__version__

extensions = [
    "matplotlib.sphinxext.plot_directive",
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "_static", "_templates", "generated/backbones-table.md"]
templates_path = ["_templates"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

toc_object_entries_show_parents = "hide"
autodoc_typehints = "none"  # the docstrings say more
numpydoc_show_class_members = False  # the template of classes lists them
plot_formats = [("svg", 100)]
plot_html_show_source_link = plot_html_show_formats = False

# Names of other packages have no page here.
nitpick_ignore_regex = [
    (r"py:.*", r"(numpy|np|sklearn|skorch|torch|torchvision|~?sklearn)\..*"),
]

html_theme = "pydata_sphinx_theme"
html_title = f"sktl {version}"
html_static_path = ["_static"]
html_css_files = ["sktl.css"]
html_favicon = "_static/icon.svg"
html_copy_source = html_show_sourcelink = False
html_sidebars = {"index": []}
html_theme_options = {
    "logo": {"text": "sktl", "image_light": "_static/icon.svg", "image_dark": "_static/icon.svg"},
    "navbar_align": "left",
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "footer_start": ["copyright"],
    "footer_end": [],
    "article_footer_items": [],
    "secondary_sidebar_items": {"**": ["page-toc"], "index": [], "coming-from": []},
}


sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py$",
    "ignore_pattern": rf"(^|[\\/])({'|'.join(map(re.escape, NOT_EXAMPLES))})$",
    "image_scrapers": ("matplotlib", "sheets.draw_sheets"),
    "within_subsection_order": "site_pages.gallery_order",
    "backreferences_dir": "gallery/backreferences",
    "doc_module": ("sktl",),
    "download_all_examples": False,
    "show_memory": False,
    "write_computation_times": False,
    "show_signature": False,
    "min_reported_time": 0,
    "plot_gallery": True,
    "abort_on_example_error": False,
}


def plain_roles(app, what, name, obj, options, lines):  # type: ignore[no-untyped-def]
    """Take links out of what is inherited from other packages: only their sites have the pages."""
    module = getattr(obj, "__module__", None) or ""
    if not module.startswith("sktl"):
        role = re.compile(r":(?:class|func|meth|mod|ref|term|attr):`~?([^`<]*?)( <[^`]*>)?`")
        lines[:] = [role.sub(r"\1", line) for line in lines]


def setup(app: Sphinx) -> None:
    """Register what Sphinx is to call while it builds."""
    write_generated_pages(DOCS)
    app.connect("source-read", lambda _, page, text: rewrite_links(page, text))
    app.connect("autodoc-process-docstring", plain_roles, priority=400)
