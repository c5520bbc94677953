"""How a job stands, on stderr: a bar on a terminal, a line for each change elsewhere."""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, Self

import click

from raincheck.cli.printable import printable
from raincheck.client.wire import Document


def fraction(document: Document) -> float | None:
    """How far a job is, 0 to 1, as ours says it, or as Azure's do; None if nobody does."""
    for name, whole in (("progress", 1), ("percentComplete", 100)):
        said = document.get(name)
        if isinstance(said, int | float) and not isinstance(said, bool) and 0 <= said <= whole:
            return said / whole
    return None


def sentence(document: Document) -> str:
    """How a job stands, in words."""
    word = printable(document.get("status") or "running", longest=40)
    position, message = document.get("queue_position"), document.get("message")
    again = document.get("next_run_at")
    if isinstance(again, str) and not message:
        message = f"runs again at {again}"
    elif isinstance(position, int) and not message:
        message = f"number {position} in the queue"
    return f"{word} {printable(message)}" if message else word


class Display(ABC):
    """Shows how a job stands, while it is open.

    It can be opened and closed again and again.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(  # noqa: B027 - of most of them nothing stays
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""

    @abstractmethod
    def update(self, document: Document) -> None:
        """Show a status document."""

    @abstractmethod
    def trouble(self, what: str) -> None:
        """Show what is in the way for now."""


class Silent(Display):
    """Shows nothing."""

    def update(self, document: Document) -> None: ...

    def trouble(self, what: str) -> None: ...


class Lines(Display):
    """Writes a line when something has changed."""

    def __init__(self) -> None:
        self._last = ""

    def update(self, document: Document) -> None:
        done = fraction(document)
        word, _, message = sentence(document).partition(" ")
        percent = "" if done is None else f"{done:.0%}"
        self._say(" ".join(filter(None, [word, percent, message])))

    def trouble(self, what: str) -> None:
        self._say(f"waiting for the server: {printable(what)}")

    def _say(self, line: str) -> None:
        if line != self._last:
            self._last = line
            click.echo(line, err=True)


class Bar(Display):
    """Draws a bar that goes when it is closed."""

    def __init__(self) -> None:
        self._progress = _bar()
        self._task = self._progress.add_task("sending", total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def update(self, document: Document) -> None:
        done, words = fraction(document), sentence(document)
        total = None if done is None else 1.0
        self._progress.update(self._task, description=words, total=total, completed=done or 0)

    def trouble(self, what: str) -> None:
        words = f"waiting for the server: {printable(what)}"
        self._progress.update(self._task, description=words)


def _bar() -> Any:
    """A line of words, a bar, a percentage and the time since it was made; nothing is markup."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.table import Column

    words = Column(ratio=2, no_wrap=True, overflow="ellipsis")
    return Progress(
        TextColumn("{task.description}", markup=False, table_column=words),
        BarColumn(bar_width=None, table_column=Column(ratio=1)),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        expand=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )


def display_for(*, silent: bool) -> Display:
    """The display that stderr can have."""
    if silent:
        return Silent()
    return Bar() if on_terminal() else Lines()


def on_terminal() -> bool:
    """Whether stderr is a terminal on which something can be drawn again."""
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
