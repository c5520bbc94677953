"""What of the wire stands in the code, read from it: problems and header fields."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import raincheck
from raincheck import errors
from raincheck.errors import Refusal

HOUSE = Path(raincheck.__file__).parent

NO_WIRE = ("cli", "client", "stores", "testing", "telemetry")
"""Rooms that answer no request."""

_FIELD = re.compile(r"[a-z]+(-[a-z]+)*")


@cache
def nodes() -> list[ast.AST]:
    """What stands in the modules of the server's side."""
    found: list[ast.AST] = []
    for path in sorted(HOUSE.rglob("*.py")):
        if path.relative_to(HOUSE).parts[0].removesuffix(".py") not in NO_WIRE:
            found += ast.walk(ast.parse(path.read_text()))
    return found


def refusals(kind: type[Refusal] = Refusal) -> Iterator[type[Refusal]]:
    """The kinds of refusals."""
    for each in kind.__subclasses__():
        yield each
        yield from refusals(each)


def problems() -> set[tuple[str, int, str]]:
    """Each problem's name, status and title."""
    found = {(each.name, each.status, each.title) for each in refusals()}
    for node in nodes():
        match node:
            case ast.Call(
                func=ast.Name(id="Problem"),
                args=[name, ast.Constant(int(status)), ast.Constant(str(title)), *_],
            ):
                found.add((_text(name), status, title))
    return found


def _text(node: ast.expr) -> str:
    """What a constant says, or one that `errors` has a name for."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    assert isinstance(node, ast.Name), ast.unparse(node)
    return str(getattr(errors, node.id))


def lower_names() -> set[str]:
    """What could be the name of a header field, among what stands in the code."""
    found = set()
    for node in nodes():
        match node:
            case ast.Constant(bytes(value)) if _FIELD.fullmatch(value.decode("latin-1")):
                found.add(value.decode())
            case ast.Constant(str(text)) if "-" in text and _FIELD.fullmatch(text):
                found.add(text)
    return found
