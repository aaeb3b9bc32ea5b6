"""Check the links of the built site: every file and every place in a page that one leads to is there.

Sphinx checks what it resolves; this checks what came out, included files and copies among it. Links to other sites are
not fetched, so that a build needs no network: they have to be well-formed and https.

    python docs/check_links.py build/site
"""

from __future__ import annotations

import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Links(HTMLParser):
    """The links and the places of a page.

    Attributes:
        links: What each `href` and `src` says.
        places: Each `id` and `name`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.places: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag's links and places."""
        for key, value in attrs:
            if key in ("href", "src", "poster") and value:
                self.links.add(value)
            elif key in ("id", "name") and value:
                self.places.add(value)


@cache
def read(page: Path) -> Links:
    """Return the links and places of a page."""
    parser = Links()
    parser.feed(page.read_text(encoding="utf-8"))
    return parser


def problem(page: Path, link: str) -> str | None:
    """Say what is wrong with a link of a page, if anything is."""
    parts = urlsplit(link)
    if parts.scheme in ("data", "mailto"):
        return None
    if parts.scheme or parts.netloc:
        well_formed = parts.scheme == "https" and "." in parts.netloc and " " not in link
        return None if well_formed else "a link to another site is https"
    target = page if not parts.path else page.parent / unquote(parts.path)
    if not target.is_file():
        return "no such file"
    if parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in read(target).places:
        return "no such place in the page"
    return None


def main(site: Path) -> int:
    """Check all pages; return 1 if something is wrong."""
    pages = sorted(site.rglob("*.html"))
    links = [(page, link) for page in pages for link in sorted(read(page).links)]
    wrong = [f"{page}: {link}: {said}" for page, link in links if (said := problem(page, link))]
    others = {link for _, link in links if urlsplit(link).scheme == "https"}
    print("\n".join([*wrong, f"{len(pages)} pages, {len(links)} links, {len(wrong)} of them wrong"]))  # noqa: T201
    print(f"{len(others)} addresses of other sites are well-formed; they were not fetched")  # noqa: T201
    return bool(wrong) or not pages


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
