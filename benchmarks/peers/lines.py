"""Apps that are made of some lines of a file: what is not there costs nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_MARKS = re.compile(r"  # ((?:[+-]\w+ ?)+)$")


def module(file: str, name: str, there: Iterable[str]) -> dict[str, Any]:
    """The names of a file of which some lines are left out.

    Args:
        file: where it is. A line that ends with `# +NAME` is there if that name is, one that ends
            with `# -NAME` if it is not; with several all of them count.
        name: what the module is called.
        there: the names that are there.
    """
    names, lines = set(there), []
    for line in Path(file).read_text().splitlines():
        said = _MARKS.search(line)
        marks = said[1].split() if said else ()
        fits = all((mark[1:] in names) is (mark[0] == "+") for mark in marks)
        lines.append(line if fits else "")
    found: dict[str, Any] = {"__name__": name, "__file__": file}
    exec(compile("\n".join(lines), file, "exec"), found)
    return found
