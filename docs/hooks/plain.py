"""A chapter's text and code as any notebook program shows them: without what only the site understands."""

import re

DIRECTIVE = re.compile(r"^[ ]*(`{3,}|:{3,})\{(\w[\w-]*)\}(.*?)\n(.*?)^[ ]*\1[ ]*$", re.MULTILINE | re.DOTALL)
# A role, such as {term}`gate` or {term}`gates <gate>`; code, which is left alone; a link that is not to another site.
INLINE = re.compile(
    r"\{\w+\}`([^`<]+?)(?:\s*<[^>`]*>)?`|(`+)[^`].*?(?<!`)\2(?!`)|(?<!!)\[([^\]]+)\]\((?!https:)[^)]*\)"
)


def plain_text(text: str) -> str:
    """Return Markdown in which roles are their text, links to pages of the site likewise, and notes are quotations."""
    return DIRECTIVE.sub(_quotation, INLINE.sub(lambda match: match[1] or match[3] or match[0], text))


def _quotation(directive: re.Match[str]) -> str:
    """Return what is in a directive, such as a note, as a quotation, without its options; an equation as one."""
    _, name, title, content = directive.groups()
    lines = [line for line in content.strip().splitlines() if not re.match(r":\w[\w-]*:", line)]
    if name == "math":
        return "\n".join(["$$", *lines, "$$"])
    head = [f"**{title.strip()}**", ""] if title.strip() else []
    return "\n".join(f"> {line}".rstrip() for line in head + lines)


def plain_code(code: str) -> str:
    """Return a cell that ends with `plt.show()` where it ends with the name of its figure.

    Jupyter shows a figure of pyplot at the end of its cell of itself, and would show it once more as the last value.
    """
    return re.sub(r"(\bplt\.(?:subplots|figure)\(.*\n)fig\s*\Z", r"\1plt.show()", code, flags=re.DOTALL)
