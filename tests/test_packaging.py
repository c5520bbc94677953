"""What is declared of other packages is what is tested."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]

TOOLS = {"dev", "docs", "matrix"}
"""The extras of those who work on the project; all others are of those who use it."""

_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(?P<extras>\[[^\]]*\])?(?P<versions>[^;]*)(;.*)?")


def declared(project: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The name of each requirement, and its lowest version if it has one."""
    extras = project["optional-dependencies"]
    for extra in [None, *extras.keys() - TOOLS]:
        for requirement in project["dependencies"] if extra is None else extras[extra]:
            match = _REQUIREMENT.fullmatch(requirement)
            assert match is not None, requirement
            lowest = re.search(r">=\s*([\w.]+)", match["versions"])
            yield match["name"], "" if lowest is None else lowest[1]


def pinned(text: str) -> dict[str, str]:
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return dict(line.split("==") for line in lines if line)


@pytest.fixture
def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def test_the_lowest_versions_that_are_tested_are_those_that_are_declared(
    project: dict[str, Any],
) -> None:
    lowest = {name: version for name, version in declared(project) if version}
    assert pinned((ROOT / ".ci" / "lowest.txt").read_text()) == lowest


def test_every_requirement_of_users_says_what_it_needs_at_least(project: dict[str, Any]) -> None:
    lowest = [name for name, version in declared(project) if version]
    assert {name for name, _ in declared(project)} - set(lowest) == {"typer"}  # at most, that is


def test_ci_installs_the_lowest_versions() -> None:
    assert '-c .ci/lowest.txt -e ".[dev]"' in (ROOT / ".ci" / "run").read_text()


def test_ci_installs_typescript() -> None:
    assert "npm install --prefix tests/client/types" in (ROOT / ".ci" / "run").read_text()


def test_ci_wants_the_type_of_every_public_name() -> None:
    """From outside of the tree, where it finds what is installed."""
    command = "pyright --verifytypes raincheck --ignoreexternal"
    assert f'(cd "$environments" && {command})\n' in (ROOT / ".ci" / "run").read_text()
    words = ", ".join(f'"{word}"' for word in command.split())
    assert f"session.run({words})" in (ROOT / "noxfile.py").read_text()


def test_types_are_those_with_every_extra(project: dict[str, Any]) -> None:
    """What is not installed has none."""
    extras = ",".join(sorted(project["optional-dependencies"].keys() - TOOLS - {"examples"}))
    assert f'"{extras}"\n' in (ROOT / "noxfile.py").read_text()


def test_ci_builds_the_site() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    assert """pip install -e ".[docs]" && pytest tests/docs --docs""" in ci


@pytest.mark.real
def test_what_tries_the_wheel_works() -> None:
    """Of the tree, where it cannot see what the wheel may lack."""
    script = ROOT / ".ci" / "smoke.py"
    tried = subprocess.run([sys.executable, "-W", "error", script], capture_output=True, text=True)
    assert tried.returncode == 0, tried.stderr
    assert "works with no extra" in tried.stdout


def test_every_picture_that_is_shown_is_there() -> None:
    """Those of the pages are made by `docs/screenshots.py`."""
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    for document in documents:
        for picture in re.findall(r"[\w./-]+\.(?:png|svg)", document.read_text()):
            assert (document.parent / picture).is_file(), (document, picture)


def test_links_of_the_readme_lead_somewhere_wherever_it_is_shown() -> None:
    """As `hatch_build.py` makes them for an index: each is absolute, and of what is there."""
    build = runpy.run_path(str(ROOT / "hatch_build.py"))
    repository = "https://example.org/someone/raincheck"
    text = build["absolute"]((ROOT / "README.md").read_text(), repository, "1.2")
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert len(links) > 10
    for link in links:
        assert link.startswith(f"{repository}/blob/v1.2/"), link
        assert (ROOT / link.removeprefix(f"{repository}/blob/v1.2/")).exists(), link


def test_what_the_sdist_has_is_what_its_tests_need() -> None:
    """All that is in the tree, so that whoever packages it elsewhere can run them."""
    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]
    for path in hatch["build"]["targets"]["sdist"]["include"]:
        assert (ROOT / path.removeprefix("/")).exists(), path
