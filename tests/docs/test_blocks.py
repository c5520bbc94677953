"""Every block of Python in the pages and the README runs."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY

from tests.docs.blocks import PAGES, ROOT, Block, blocks, run
from tests.docs.given import names

ELSEWHERE = {
    "agents.md": "tests/docs/test_agents.py",
    "clients.md": "tests/client/test_docs.py",
    "deploy.md": "tests/docs/test_deploy.py",
    "how-to.md": "tests/docs/test_how_to.py",
    "start.md": "tests/docs/test_start.py",
    "testing.md": "tests/test_testing.py",
}
"""Pages whose blocks are run against servers, or as the tests that they are."""

EXTRA = re.compile(
    r"litestar|quart|django|falcon|flask|google\.cloud|@require_POST|@api_view", re.IGNORECASE
)
"""What the extra docs brings, in a block."""

ALL = [block for page in PAGES for block in blocks(page)]


def parameters() -> Iterator[object]:
    for block in ALL:
        if block.language == "python" and block.page not in ELSEWHERE:
            extra = [pytest.mark.extra_docs] if EXTRA.search(block.source) else []
            yield pytest.param(block, id=str(block), marks=extra)


@pytest.fixture
def metrics() -> Iterator[None]:
    """Leaves the metrics of the process as they were."""
    before = {*REGISTRY._collector_to_names}
    yield
    for collector in {*REGISTRY._collector_to_names} - before:
        REGISTRY.unregister(collector)


@pytest.mark.parametrize("block", [*parameters()])
@pytest.mark.usefixtures("metrics")
def test_a_block_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(block, names(block.source))


def test_what_a_block_uses_in_a_function_is_looked_for() -> None:
    with pytest.raises(NameError, match=r"a\.md:1 uses missing"):
        run(Block("a.md", 1, "python", "def f():\n    return [missing for _ in ()]\n"), {})


@pytest.mark.parametrize(("page", "where"), ELSEWHERE.items())
def test_the_others_are_run_elsewhere(page: str, where: str) -> None:
    assert page in (ROOT / where).read_text()


def test_what_is_run_as_files_is_all_files() -> None:
    """So that none is left out there."""
    pages = {"deploy.md", "how-to.md", "start.md", "testing.md"}
    assert [str(b) for b in ALL if b.page in pages and b.language == "python" and not b.file] == []


def test_every_block_is_said_to_be_something() -> None:
    """One in no language is of a shell or of the wire, and not code that nobody marked."""
    unmarked = [block for block in ALL if not block.language]
    code = re.compile(r"^(from \w+ import|import \w+$|@\w+|(async )?def |class )", re.MULTILINE)
    assert [str(block) for block in unmarked if code.search(block.source)] == []


@pytest.mark.parametrize(
    "block", [each for each in ALL if each.language in {"yaml", "toml", "json"}]
)
def test_what_is_no_program_can_be_read(block: Block) -> None:
    read: dict[str, Callable[[str], Any]] = {
        "yaml": yaml.safe_load_all,
        "toml": tomllib.loads,
        "json": json.loads,
    }
    assert list(read[block.language](block.source))
