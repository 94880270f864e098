"""The site, which `make docs` makes of README and of the Markdown files in this folder.

README is the front page, and the lists at its end are the parts of the sidebar, so that
links are the same on GitHub and here. Pages of the API are made of docstrings.
"""

import inspect
import pathlib
import re
import shutil
import textwrap

from sphinx.util.inspect import stringify_signature

import keras_hsakd
from keras_hsakd import runs  # noqa: F401

ROOT = pathlib.Path(__file__).parent.parent
API = ROOT / "docs" / "api"  # ignored by Git
MODULES = [
    "keras_hsakd",
    *(
        f"keras_hsakd.{name}"
        for name in [*keras_hsakd.__all__, "runs"]
        if not callable(getattr(keras_hsakd, name))
    ),
]

project = "keras_hsakd"
version = release = keras_hsakd.__version__
author = copyright = "the authors of keras_hsakd"
root_doc = "README"
include_patterns = ["*.md", "docs/**", "examples/*.md", "examples/*.ipynb"]
exclude_patterns = [".*", "build", "keras_hsakd", "benchmarks", "tests"]
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinxarg.ext",
]
html_theme = "furo"
html_title = f"keras_hsakd {version}"

myst_heading_anchors = 3  # those of GitHub
nb_execution_mode = "off"
myst_ref_domains = ["std", "py"]
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"


def write_api(app):
    """Writes a page for each public module."""
    API.mkdir(exist_ok=True)
    for module in MODULES:
        page = f"""# {module}

```{{eval-rst}}
.. automodule:: {module}
   :members:
```
"""
        (API / f"{module}.md").write_text(page)


def read_markdown(app, what, name, thing, options, lines):
    """Makes reStructuredText of a docstring, which is Markdown as in Keras."""

    def inline(found):
        words, address, code, ending = found.groups()
        if code:
            return f"``{' '.join(code.split())}``" + (ending and f"\\ {ending}")
        return f"`{words} <{address}>`__"

    text = "\n".join(lines)
    text = re.sub(
        r"\[([^]]+)\]\(\s*(https[^)]+)\)|(?<!`)`([^`]+)`(?!`)(\w?)", inline, text
    )
    text = re.sub(
        r"^( *)```\w*\n(.*?)^ *```$",
        lambda block: f"\n{block[1]}::\n\n{textwrap.indent(block[2], '    ')}\n",
        text,
        flags=re.S | re.M,
    )
    text = re.sub(r"(?<!:):\n\n(?=    )", "::\n\n", text)
    text = re.sub(r":\n(?= *>>> )", ":\n\n", text)
    lines[:] = text.splitlines()


def sign(app, what, name, thing, options, signature, returned):
    """Returns the arguments of a layer or model, which Keras' `__new__` hides."""
    if what == "class" and signature == "(*args, **kwargs)":
        arguments = list(inspect.signature(thing.__init__).parameters.values())
        shown = inspect.Signature(arguments[1:])
        return stringify_signature(shown, unqualified_typehints=True), returned


def add_sidebar(app, name, source):
    """Makes parts of the sidebar of README's lists of pages."""
    if name != root_doc:
        return
    read_on = source[0].partition("## Read on")[2]
    for part, links in re.findall(r"^- \*\*(.*?)\*\*:(.*?\.$)", read_on, re.S | re.M):
        pages = "\n".join(re.findall(r"\]\((.*?)\)", links))
        source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {part}\n\n{pages}\n```\n"


def add_index(app, exception):
    """Gives the front page the name that servers look for."""
    if exception is None and app.builder.name == "html":
        shutil.copy(app.outdir / "README.html", app.outdir / "index.html")


def setup(app):
    """Connects the functions above."""
    app.connect("builder-inited", write_api)
    app.connect("autodoc-process-docstring", read_markdown, priority=100)
    app.connect("autodoc-process-signature", sign)
    app.connect("source-read", add_sidebar)
    app.connect("build-finished", add_index)
