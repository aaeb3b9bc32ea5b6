"""Figures to take away from the report: each as an SVG file that stands alone, and its numbers as CSV.

Both are data: URLs in the page, so that it stays one file that asks nothing of a network. A program that draws the SVG
may know neither the page's style sheet nor CSS variables: the rules for drawings go into the file, in light colours.
"""

import base64
import csv
import io
import re
from collections.abc import Sequence
from functools import cache
from importlib import resources

from markupsafe import Markup

from anyrnn.workbench import charts

_AIR = 8  # around the drawing: the page lets labels stand out a little, a file would cut them off
_NOT_XML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
_ONLY_ON_THE_PAGE = re.compile(r'<title>.*?</title>|<rect class="hover"[^>]*/>|<image class="dark"[^>]*/>', re.DOTALL)


def with_downloads(
    chart: Markup, name: str, header: Sequence[str] = (), rows: Sequence[Sequence[object]] = ()
) -> Markup:
    """Give a figure with links below it that save it, and its numbers if there are any.

    Args:
        chart: A drawing of charts.py; a sentence in its place stays as it is.
        name: Of the files, without their ends.
        header: What the columns of the numbers are.
        rows: The numbers.
    """
    if not chart.startswith("<svg"):
        return chart
    link = Markup('<a download="{0}.{1}" href="data:{2};base64,{3}">{4}</a>')
    links = [link.format(name, "svg", "image/svg+xml", _base64(_standalone(chart)), "SVG")]
    if rows:
        links.append(link.format(name, "csv", "text/csv;charset=utf-8", _base64(_csv([header, *rows])), "CSV"))
    whole = Markup('<div class="scroll">{}</div><p class="downloads">{}</p>')  # scrolls where it has no room
    return whole.format(chart, Markup("").join(links))


def curves(lines: Sequence[charts.Line], label: str, name: str, along: str) -> Markup:
    """Draw curves over epochs or steps, with their numbers to take away: see `charts.curves` and `with_downloads`."""
    rows = [(line.title, *point) for line in lines for point in line.points]
    header = ("network", along, "mean", "lowest", "highest")
    return with_downloads(charts.curves(lines, label, along=along), name, header, rows)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode("utf-8", "replace")).decode()


def _csv(rows: Sequence[Sequence[object]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue()


def _standalone(chart: str) -> str:
    """A drawing of the page as an SVG file: without tooltips, and with the style of what is in it."""
    body = _NOT_XML.sub("", _ONLY_ON_THE_PAGE.sub("", chart.removesuffix("</svg>").split(">", 1)[1]))
    width, height = map(int, re.findall(r'viewBox="0 0 (\d+) (\d+)"', chart)[0])
    wide, high = width + 2 * _AIR, height + 2 * _AIR
    colours = sorted({int(k) for k in re.findall(r'class="s(\d) ', body)})
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{high}" '
        f'viewBox="{-_AIR} {-_AIR} {wide} {high}" font-family="sans-serif">'
        f"<style>{_style(tuple(colours))}</style>"
        f'<rect x="{-_AIR}" y="{-_AIR}" width="{wide}" height="{high}" fill="{_light()["card"]}"/>{body}</svg>'
    )


@cache
def _light() -> dict[str, str]:
    """The colours of the light page by their names."""
    return dict(re.findall(r"--([\w-]+): ([^;{}]+);", _source("report.css.j2").split("@media")[0]))


@cache
def _style(colours: tuple[int, ...]) -> str:
    """The rules for drawings with colours for variables; --s is one of the colours of lines, a rule for each."""
    rules = []
    for selector, body in re.findall(r"([^{}]+)\{([^{}]+)\}", re.sub(r"\{#.*?#\}", "", _source("chart.css.j2"))):
        declared = [part.strip() for part in body.split(";") if part.strip() and not part.strip().startswith("--s:")]
        # Only what is of that colour: a rule for two classes outweighs what a later rule for one says.
        coloured = [part for part in declared if "var(--s)" in part]
        rules.append(f"{selector.strip()} {{ {'; '.join(part for part in declared if part not in coloured)} }}")
        if coloured:
            own = "; ".join(coloured)
            rules += [f".s{k}{selector.strip()} {{ {own.replace('var(--s)', _light()[f'c{k}'])} }}" for k in colours]
    return re.sub(r"var\(--([\w-]+)\)", lambda name: _light()[name[1]], "\n".join(rules))


def _source(name: str) -> str:
    return (resources.files("anyrnn.workbench") / name).read_text(encoding="utf-8")
