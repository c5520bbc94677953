"""Environments are whole, and made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients import environments
from tests.clients.environments import Environments, NotInstalled


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is run; "broken" cannot be installed."""
    found: list[str] = []

    def run(*command: str | Path, cwd: Path | None = None) -> None:
        found.append(str(command[-1]))
        if command[1:3] == ("-m", "venv"):
            Path(command[3], "bin").mkdir(parents=True)
        if command[-1] == "broken":
            raise NotInstalled("broken")

    monkeypatch.setattr(environments, "run", run)
    return found


def test_one_is_made_for_what_it_has(tmp_path: Path, commands: list[str]) -> None:
    kept = Environments(tmp_path)
    assert kept.python(["rain==1"]) == kept.python(["rain==1"])
    assert commands.count("rain==1") == 1
    assert kept.python(["rain==2"]) != kept.python(["rain==1"])
    assert kept.node_modules() == Environments(tmp_path).node_modules()
    assert commands.count("--ignore-scripts") == 1


def test_what_could_not_be_installed_is_not_kept(tmp_path: Path, commands: list[str]) -> None:
    for _ in range(2):
        with pytest.raises(NotInstalled):
            Environments(tmp_path).python(["broken"])
        assert list(tmp_path.iterdir()) == []
    assert commands.count("broken") == 2


def test_one_that_another_process_has_made_meanwhile_is_taken(
    tmp_path: Path, commands: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def late(new: Path, kept: Path) -> Path:
        (kept / "bin").mkdir(parents=True)
        return rename(new, kept)

    monkeypatch.setattr(Path, "rename", late)
    python = Environments(tmp_path).python(["rain==1"])
    assert [python.parents[1]] == list(tmp_path.iterdir())
