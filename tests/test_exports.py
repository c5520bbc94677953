"""The public surface is spelt once."""

from __future__ import annotations

import ast
import inspect
from importlib.metadata import version
from pathlib import Path

import pytest

import raincheck
import raincheck.dialects

TREE = ast.parse(Path(raincheck.__file__).read_text())


def imported() -> list[str]:
    return [
        alias.asname or alias.name
        for node in TREE.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]


def test_all_is_what_is_imported() -> None:
    assert sorted(raincheck.__all__) == sorted(imported())


def test_all_is_sorted_and_says_nothing_twice() -> None:
    assert raincheck.__all__ == sorted(set(raincheck.__all__), key=str.casefold)


def test_the_package_root_holds_no_logic() -> None:
    docstring, *rest = TREE.body
    assert isinstance(docstring, ast.Expr)
    for node in rest:
        assert isinstance(node, ast.ImportFrom | ast.Assign), ast.unparse(node)
    assigned = [ast.unparse(node.targets[0]) for node in rest if isinstance(node, ast.Assign)]
    assert assigned == ["__version__", "__all__"]


@pytest.mark.parametrize("name", raincheck.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    documentation = inspect.getdoc(getattr(raincheck, name))
    assert documentation
    assert documentation.splitlines()[0].endswith((".", ":"))


def test_the_dialects_are_spelt_once_as_well() -> None:
    assert raincheck.dialects.__all__ == sorted(raincheck.dialects.__all__, key=str.casefold)
    for name in raincheck.dialects.__all__:
        assert inspect.getdoc(getattr(raincheck.dialects, name))


def test_the_version_is_the_distributions() -> None:
    assert version("raincheck") == raincheck.__version__


def test_the_script_for_pages_is_shipped_alone() -> None:
    folder = Path(raincheck.__file__).with_name("static")
    assert {path.name for path in folder.iterdir()} == {"raincheck.js", "raincheck.d.ts"}


def test_types_are_shipped() -> None:
    assert Path(raincheck.__file__).with_name("py.typed").exists()
