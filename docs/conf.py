"""Sphinx: the site, made by ``make docs``.

The pages are Markdown that a forge shows as well. Two things are done to them on the way into the
site: the lists of index.md become the table of contents, and links that leave docs/ lead to the
pages that stand for those files, or become text.
"""

import re
from pathlib import Path

import gpucoron

DOCS = Path(__file__).parent
ROOT = DOCS.parent
#: Pages of the site whose text is a file outside docs/.
STANDS_FOR = {
    "benchmarks": "bench/README.md",
    "changelog": "CHANGELOG.md",
    "contributing": "CONTRIBUTING.md",
}
PAGE_OF = {file: f"{page}.md" for page, file in STANDS_FOR.items()}

project = "gpucoron"
author = "The gpucoron developers"
copyright = author
version = release = gpucoron.__version__

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinxcontrib.mermaid",
]
templates_path = ["_templates"]
exclude_patterns = ["**.ipynb_checkpoints"]

html_theme = "furo"
html_title = f"gpucoron {release}"
html_show_sourcelink = False

myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["mermaid"]
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600

autosummary_ignore_module_all = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # numpydoc's Parameters have the types
numpydoc_show_class_members = False
default_role = "autolink"  # a name in backticks is a link where autodoc knows it

_LINK = re.compile(r"\[([^\]]*)\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def site_text(file: str, text: str) -> str:
    """Return a page's text with its links as they are in the site; `file` is relative to ROOT."""

    def site_link(match):
        words, target, anchor = match[1], match[2], match[3] or ""
        path = (ROOT / file).parent.joinpath(target).resolve()
        name = path.relative_to(ROOT).as_posix()
        if name in PAGE_OF:
            return f"[{words}]({PAGE_OF[name]}{anchor})"
        if path.is_relative_to(DOCS):
            return f"[{words}]({path.relative_to(DOCS).as_posix()}{anchor})"
        return words

    return _LINK.sub(site_link, text)


def contents(index: str) -> str:
    """Return the table of contents that the lists of index.md are, a part for each heading."""
    parts = []
    for section in re.split(r"^## ", index, flags=re.MULTILINE)[1:]:
        caption = section.partition("\n")[0]
        pages = re.findall(r"^(?:-|\d+\.) \[[^\]]*\]\(([\w/]+)\.(?:md|ipynb)\)", section, re.M)
        lines = ["```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```"]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def adapt_page(app, page, source):
    """Replace what Sphinx has read of a page (event source-read)."""
    if not (DOCS / f"{page}.md").is_file():  # a notebook, or made by autosummary
        return
    file = STANDS_FOR.get(page, f"docs/{page}.md")
    source[0] = site_text(file, (ROOT / file).read_text(encoding="utf-8"))
    if page == "index":
        source[0] += "\n" + contents(source[0])


def skip_field(app, what, name, member, skip, options):
    """Leave out fields of a named tuple that have no text of their own (autodoc-skip-member)."""
    return skip or (getattr(member, "__doc__", None) or "").startswith("Alias for field number")


def setup(app):
    """Connect what the site does to pages."""
    app.connect("source-read", adapt_page)
    app.connect("autodoc-skip-member", skip_field)
