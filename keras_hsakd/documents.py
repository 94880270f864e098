"""Documents for people: the same blocks as Markdown and as an HTML page."""

import base64
import html
from typing import NamedTuple


class Heading(NamedTuple):
    """The title of the page, level 1, or of a part of it."""

    text: str
    level: int = 2


class Text(NamedTuple):
    """A paragraph."""

    text: str


class Table(NamedTuple):
    """Rows of words, the first of which is the head."""

    rows: list[list[str]]


class Picture(NamedTuple):
    """A PNG file, which Markdown has no place for."""

    png: bytes
    caption: str = ""


class Drawing(NamedTuple):
    """An SVG element, which Markdown has no place for either."""

    svg: str
    caption: str = ""


Block = Heading | Text | Table | Picture | Drawing


def markdown(blocks: list[Block]) -> str:
    r"""Returns blocks as Markdown, without the pictures.

    Args:
        blocks: The blocks of a document, in order.

    Example:
    >>> print(markdown([Heading("Mistakes"), Table([["label"], ["cat|dog"]])]))
    ## Mistakes
    <BLANKLINE>
    | label |
    | --- |
    | cat\|dog |
    <BLANKLINE>
    """
    parts = []
    for block in blocks:
        match block:
            case Heading(text, level):
                parts.append(f"{'#' * level} {text}")
            case Text(text):
                parts.append(text)
            case Table([head, *rows]):
                rows = [head, ["---"] * len(head), *rows]
                parts.append("\n".join(map(_markdown_row, rows)))
    return "\n\n".join(parts) + "\n"


def _markdown_row(cells):
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { border: 1px solid #ccc; padding: .3rem .7rem; text-align: right }
th:first-child, td:first-child { text-align: left }
figure { display: inline-block; margin: .5rem; vertical-align: top; max-width: 100% }
figure img { max-width: 100%; min-width: 8rem; image-rendering: pixelated }
figure svg { max-width: 100%; height: auto }
figcaption { font-size: .85rem; max-width: 20rem }
"""


def page(blocks: list[Block]) -> str:
    """Returns blocks as an HTML page that needs no other file.

    Args:
        blocks: The blocks of a document, in order.

    Example:
    >>> print(page([Heading("Cats", level=1), Text("A < B")]).splitlines()[-2])
    <p>A &lt; B</p>
    """
    title = next(block.text for block in blocks if isinstance(block, Heading))
    parts = [
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">',
        f"<title>{html.escape(title)}</title>",
        f"<style>{_STYLE}</style>",
    ]
    for block in blocks:
        match block:
            case Heading(text, level):
                parts.append(f"<h{level}>{html.escape(text)}</h{level}>")
            case Text(text):
                parts.append(f"<p>{html.escape(text)}</p>")
            case Table([head, *rows]):
                lines = [_html_row(head, "th"), *(_html_row(row, "td") for row in rows)]
                parts.append("<table>\n" + "\n".join(lines) + "\n</table>")
            case Picture(png, caption):
                caption, data = html.escape(caption), base64.b64encode(png).decode()
                parts.append(
                    f'<figure><img src="data:image/png;base64,{data}" alt="{caption}">'
                    f"<figcaption>{caption}</figcaption></figure>"
                )
            case Drawing(svg, caption):
                caption = html.escape(caption)
                parts.append(
                    f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"
                )
    return "\n".join([*parts, "</html>\n"])


def _html_row(cells, tag):
    inner = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
    return f"<tr>{inner}</tr>"
