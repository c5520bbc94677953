"""The blocks of the pages, and what stands around those that are parts of something."""

from __future__ import annotations

import builtins
import dis
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NamedTuple
from unittest.mock import patch

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

_FENCE = re.compile(r"^( *)```([\w-]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# (\S+\.py)\n")


class Block(NamedTuple):
    """A block of code in a page.

    Attributes:
        page: the name of the page.
        line: where it begins there, from 1.
        language: what it is marked as; empty if it is not.
        source: what stands in it.
    """

    page: str
    line: int
    language: str
    source: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str | None:
        """The name of the file that it shows, if its first line says one."""
        found = _FILE.match(self.source)
        return None if found is None else found[1]


def blocks(page: Path) -> Iterator[Block]:
    """Those of one page, in order."""
    text = page.read_text()
    for found in _FENCE.finditer(text):
        line = text.count("\n", 0, found.start()) + 2
        yield Block(page.name, line, found[2], textwrap.dedent(found[3]))


def files(page: str) -> dict[str, str]:
    """The files that a page of the docs shows, by name."""
    found = [block for block in blocks(ROOT / "docs" / page) if block.file]
    return {str(block.file): block.source for block in found}


def run(block: Block, given: dict[str, Any]) -> dict[str, Any]:
    """Run a block among the names that it is given.

    Raises:
        NameError: it uses a name, if only in a function that is not called, which nobody has.
    """
    code = compile(block.source, str(block), "exec")
    module = ModuleType(f"{block.page}_{block.line}")
    names = vars(module)
    names |= given
    with patch.dict(sys.modules, {module.__name__: module}):  # where annotations are looked up
        exec(code, names)
    if missing := _globals(code) - names.keys() - vars(builtins).keys():
        raise NameError(f"{block} uses {', '.join(sorted(missing))}")
    return names


def _globals(code: CodeType) -> set[str]:
    found = {each.argval for each in dis.get_instructions(code) if each.opname == "LOAD_GLOBAL"}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= _globals(constant)
    return found
