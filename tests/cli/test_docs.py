"""What docs/cli.md says of options, settings and exit codes is what there is."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import click

from raincheck.cli.commands import raincheck
from raincheck.cli.outcomes import Exit
from raincheck.cli.settings import Settings, read

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()


def test_every_exit_code_is_explained() -> None:
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)] == list(Exit)
    assert "`serve` ends as uvicorn does: with 3 if it\ncannot start" in PAGE  # see test_serve.py


def test_every_option_is_explained_and_no_other() -> None:
    said = set(re.findall(r"(?<![\w-])--?[a-zA-Z][a-z-]*", PAGE))
    for command in raincheck.commands.values():
        for option in command.params:
            if isinstance(option, click.Option):
                assert said & {*option.opts}, (command.name, option.opts)
    known = {
        name
        for command in raincheck.commands.values()
        for option in command.params
        for name in (*option.opts, *option.secondary_opts)
    }
    assert said - known == {"--root-path", "-m"}  # uvicorn's, Python's


def test_the_file_that_is_shown_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "raincheck.toml"
    path.write_text(re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)[0])
    settings = read(path)
    assert list(settings.rules()) == ["POST /videos", "/reports/{id}"]
    assert settings.rules()["POST /videos"].timeout == 3600


def test_every_key_of_the_file_is_named() -> None:
    sentence = PAGE[PAGE.index("The keys are") :].partition(";")[0]
    assert re.findall(r"`(\w+)`", sentence) == [each.name for each in fields(Settings)]
