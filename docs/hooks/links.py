"""Links that hold in the repository and on the site.

A page of docs/ may link to any file of the repository, as `[text](../benchmarks/cells.py)`, and files outside docs/,
such as the README, are pages of the site by way of a page that includes them. On the site a link leads to the page that
has the file, if there is one, and else to a copy of the file.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
INCLUDE = re.compile(r"^```\{include\} (\S+)", re.MULTILINE)
# A fence, a code span, or a link's text and target. Code is matched so as to be left alone.
LINK = re.compile(r"^(`{3,}).*?^\1|(`+)[^`].*?(?<!`)\2(?!`)|\]\(([^)\s]+)\)", re.MULTILINE | re.DOTALL)


def pages_of_files() -> dict[Path, Path]:
    """Return the page of each file that has one: its own, or the page that includes it."""
    pages = {path: path for path in DOCS.rglob("*.md")}
    for path in list(pages):
        if target := INCLUDE.search(path.read_text(encoding="utf-8")):
            pages[(path.parent / target[1]).resolve()] = path
    return pages


def rewritten(text: str, source: Path, page: Path, pages: dict[Path, Path]) -> str:
    """Rewrite the relative links of a text.

    Args:
        text: Markdown.
        source: The file that it stands in, to which its links are relative.
        page: The page that it will be part of.
        pages: `pages_of_files()`.
    """

    def link(match: re.Match[str]) -> str:
        if match[3] is None or re.match(r"[a-z]+:|#", match[3]):
            return match[0]
        path, _, anchor = match[3].partition("#")
        target = (source.parent / path).resolve()
        if not target.is_relative_to(ROOT) or not target.is_file():
            return match[0]  # which Sphinx then refuses
        relative = os.path.relpath(pages.get(target, target), page.parent)
        if target not in pages and target.suffix == ".md":  # Sphinx would look for a page
            relative = f"path:{relative}"
        return f"]({relative}{'#' if anchor else ''}{anchor})"

    return LINK.sub(link, text)


def on_source(app: Sphinx, docname: str, source: list[str]) -> None:
    """Rewrite the links of a page of docs/."""
    page = Path(app.env.doc2path(docname))
    source[0] = rewritten(source[0], page, page, pages_of_files())


def on_include(app: Sphinx, relative_path: Path, parent: str, content: list[str]) -> None:
    """Rewrite the links of an included file."""
    source = (Path(app.srcdir) / relative_path).resolve()
    pages = pages_of_files()
    content[0] = rewritten(content[0], source, pages[source], pages)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("source-read", on_source)
    app.connect("include-read", on_include)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
