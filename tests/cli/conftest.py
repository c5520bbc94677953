"""Servers, and commands that are run in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from raincheck.cli.entry import main
from tests.cli.apps import marked
from tests.client.servers import serving


class Done(NamedTuple):
    """A command that has ended.

    Attributes:
        code: its exit code.
        out: what stands on stdout.
        err: what stands on stderr.
    """

    code: int
    out: bytes
    err: str


Command = Callable[..., Done]


@pytest.fixture
def raincheck(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> Command:
    """Runs the command line in this process, whose stdout and stderr are no terminal."""

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["raincheck", *arguments])
        code = main()
        sys.stdout.flush()
        out, err = capfdbinary.readouterr()
        return Done(int(code), out, err.decode())

    return run


@pytest.fixture(scope="package")
def url() -> Iterator[str]:
    """A real server of ours."""
    with serving(marked()) as url:
        yield url
