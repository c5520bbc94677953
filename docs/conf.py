"""The site: `python -m sphinx -W --keep-going docs build/docs`, without a network.

Pages are the Markdown of this folder, which reads well without the site, too. Diagrams are pictures
that `python -m docs.diagrams` has made of their source, and kept here.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from docs.diagrams import picture  # noqa: E402

import raincheck  # noqa: E402

project = "raincheck"
author = "the authors of raincheck"
project_copyright = "the authors of raincheck, MIT license"
version = release = raincheck.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["**/__pycache__"]

myst_heading_anchors = 4
myst_fence_as_directive = ["mermaid"]

default_role = "code"  # docstrings quote code as Markdown does
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_type_aliases = {"ASGIApp": "ASGIApp"}  # by its name, not all that it is made of
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_ivar = True

highlight_language = "text"  # of blocks that name none: what is typed, and what comes
pygments_style = "friendly"  # the theme's own has no colour for what is added
pygments_dark_style = "monokai"
html_theme = "furo"
html_title = f"raincheck {release}"
html_extra_path = ["llms.txt"]
html_copy_source = False

linkcheck_anchors = False
linkcheck_ignore = [r"https?://(localhost|127\.0\.0\.1)", r"examples/", r"_images/"]


_NAMES = re.compile(r" +\w+(, \w+)+(?=: )")


class Mermaid(SphinxDirective):
    """A diagram, as the picture that is kept of its source."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """The picture; a warning if there is none of this source."""
        source = "\n".join(self.content)
        found = picture(source)
        if not found.exists():
            told = "no picture of this diagram; make it with: python -m docs.diagrams"
            return [self.state.document.reporter.warning(told, line=self.lineno)]
        path = f"/{found.relative_to(self.env.srcdir)}"
        image = nodes.image(source, uri=path, alt=source, classes=["diagram"])
        # On a phone it is too small to read, and by itself it can be enlarged.
        return [nodes.reference("", "", image, refuri=f"_images/{found.name}")]


def tidy_docstring(
    app: Sphinx, what: str, name: str, it: object, options: object, lines: list[str]
) -> None:
    """Spare our docstrings what napoleon would read into them."""
    if what == "module":  # the page says what a module is for
        lines.clear()
    if what in ("property", "attribute", "data") and lines:
        lines.insert(0, "\\")  # else what stands before a colon is taken for a type
    for number, line in enumerate(lines):
        if names := _NAMES.match(line):  # else what stands before a comma is taken for a type
            lines[number] = names[0].replace(", ", "/") + line[names.end() :]


def skip_fields(
    app: Sphinx, what: str, name: str, it: object, skip: bool, options: object
) -> bool | None:
    """Leave out the fields of tuples, which their class has explained."""
    return True if type(it).__name__ == "_tuplegetter" else None


def lead_to_examples(app: Sphinx, page: nodes.document) -> None:
    """Resolve links to examples in folders, and those of the changes, which stand at the root."""
    for node in [each for each in page.findall(pending_xref) if each["reftype"] == "myst"]:
        for base in (Path(app.srcdir), ROOT):
            path = (base / node["reftarget"]).resolve()
            if path.exists() and path.is_relative_to(EXAMPLES):
                where = path / "README.md" if path.is_dir() else path
                place = where.relative_to(ROOT).as_posix()
                node.replace_self(nodes.reference("", "", *node.children, refuri=place))
                break


def keep_examples(app: Sphinx, error: Exception | None) -> None:
    """Put the examples into the site as they are."""
    if error is None and app.builder.format == "html":
        target = Path(app.outdir) / EXAMPLES.name
        passed_over = shutil.ignore_patterns("__pycache__", "*.db*")
        shutil.copytree(EXAMPLES, target, ignore=passed_over, dirs_exist_ok=True)


def keep_markdown(app: Sphinx, error: Exception | None) -> None:
    """Put the pages beside their HTML as they are: `llms.txt` names them so."""
    if error is None and app.builder.format == "html":
        for page in app.env.found_docs:
            target = Path(app.outdir) / f"{page}.md"
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(app.env.doc2path(page), target)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register what the site needs beside its extensions."""
    app.add_directive("mermaid", Mermaid)
    app.connect("autodoc-process-docstring", tidy_docstring, priority=400)
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("doctree-read", lead_to_examples)
    app.connect("build-finished", keep_examples)
    app.connect("build-finished", keep_markdown)
    return {"parallel_read_safe": True}
