"""Documents for people: the same blocks as Markdown and as an HTML page."""

import base64
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
    """A PNG or SVG file, which Markdown has no place for."""

    data: bytes
    caption: str = ""
    kind: str = "png"

    @property
    def source(self) -> str:
        """The file as a URL."""
        kind = {"png": "png", "svg": "svg+xml"}[self.kind]
        return f"data:image/{kind};base64,{base64.b64encode(self.data).decode()}"


Block = Heading | Text | Table | Picture


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


def page(blocks: list[Block]) -> str:
    """Returns blocks as an HTML page that needs no other file.

    Args:
        blocks: The blocks of a document, in order.

    Example:
    >>> print(page([Heading("Cats", level=1), Text("A < B")]).splitlines()[-2])
    <p>A &lt; B</p>
    """
    return rendered("page.html", blocks=blocks)


def rendered(template: str, **values) -> str:
    """Returns the HTML that a template of the package makes of values.

    Args:
        template: Path of the template within the package.
        **values: What it names; text among them is escaped.

    Example:
    >>> "<b>" in rendered("page.html", blocks=[Heading("<b>")])
    False
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("keras_hsakd", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(values)
