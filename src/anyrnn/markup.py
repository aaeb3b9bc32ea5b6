"""HTML of a value in a notebook: tables, equations and folded text, escaped, without scripts, in light and dark.

Styles are inline, since a notebook may drop a style sheet. Colours are those of the text around, more or less opaque.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_LINE = "1px solid rgba(128, 128, 128, 0.4)"
_CELL = f"text-align: left; vertical-align: top; padding: 0.25em 1em 0.25em 0; border: 0; border-bottom: {_LINE}; background: none; color: inherit; white-space: normal"  # noqa: E501
_WIDE = "overflow-x: auto; max-width: 100%"


def page(*blocks: str) -> str:
    """Blocks one below the other."""
    return f'<div style="line-height: 1.4; max-width: 60em">{"".join(blocks)}</div>'


def line(text: str, strong: str = "") -> str:
    """A line of text, which may begin with something strong."""
    head = f"<strong>{_escape(strong)}</strong>" if strong else ""
    return f'<p style="margin: 0.5em 0">{head}{_escape(text)}</p>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], strong: Sequence[bool] = ()) -> str:
    """A table of texts, whose first column names the row; some rows may be strong."""
    top = "".join(f'<th scope="col" style="{_CELL}; font-weight: 600">{_escape(each)}</th>' for each in head)
    body = []
    for k, (first, *others) in enumerate(rows):
        weight = "; font-weight: 600" if k < len(strong) and strong[k] else "; font-weight: inherit"
        cells = "".join(f'<td style="{_CELL}{weight}">{_escape(each)}</td>' for each in others)
        body.append(
            f'<tr style="background: none"><th scope="row" style="{_CELL}{weight}">{_escape(first)}</th>{cells}</tr>'
        )
    style = "border-collapse: collapse; border: 0; margin: 0.5em 0; font-size: inherit; color: inherit"
    parts = f'<thead style="border: 0"><tr style="background: none">{top}</tr></thead><tbody>{"".join(body)}</tbody>'
    return _scrolled(f'<table style="{style}">{parts}</table>', "table")


def folded(summary: str, body: str, is_open: bool = False) -> str:
    """What is shown when its summary is clicked."""
    opened = " open" if is_open else ""
    return (
        f'<details{opened} style="margin: 0.4em 0"><summary style="cursor: pointer">{_escape(summary)}</summary>'
        f'<div style="margin: 0.2em 0 0.6em 1em">{body}</div></details>'
    )


def code(text: str) -> str:
    """Text as it is, in letters of one width."""
    style = f"{_WIDE}; margin: 0.5em 0; padding: 0; border: 0; background: none; color: inherit; font-size: 0.9em; line-height: 1.3"  # noqa: E501
    return f'<pre tabindex="0" style="{style}">{_escape(text)}</pre>'


def display(lines: Sequence[str]) -> str:
    """Equations ``left = right`` one below the other, aligned, for MathJax."""
    aligned = r" \\ ".join(each.replace(" = ", " &= ", 1) for each in lines)
    return _mathematics(rf"$$\begin{{aligned}} {aligned} \end{{aligned}}$$")


def meanings(symbols: Iterable[tuple[str, str]]) -> str:
    """What symbols stand for: each in mathematics, then words."""
    rows = "".join(f'<li style="margin: 0.1em 0">{_inline(tex)}: {_escape(words)}</li>' for tex, words in symbols)
    return _mathematics(f'<ul style="list-style: none; margin: 0; padding: 0">{rows}</ul>', is_markup=True)


def _inline(tex: str) -> str:
    return rf"\({_escape(tex)}\)"


def _mathematics(body: str, is_markup: bool = False) -> str:
    """A block in which MathJax looks for mathematics, by the classes that Sphinx has for such a block."""
    inner = body if is_markup else _escape(body)
    return (
        f'<div class="tex2jax_process mathjax_process" tabindex="0" style="{_WIDE}; overflow-y: hidden">{inner}</div>'
    )


def _scrolled(body: str, name: str) -> str:
    return f'<div role="region" aria-label="{_escape(name)}" tabindex="0" style="{_WIDE}">{body}</div>'


def _escape(text: str) -> str:
    from html import escape  # noqa: PLC0415 - it takes milliseconds, for which `import anyrnn` need not wait

    return escape(text)
