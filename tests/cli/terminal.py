"""A person at a terminal: a command in a pseudo-terminal, and what is to be seen on its screen."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pexpect
import pyte

PATIENCE = 20.0


class Terminal:
    """A terminal in which one command runs.

    Args:
        command: its words.
        columns: how wide the terminal is.
        environment: variables besides this process's own.
    """

    def __init__(self, command: list[str], *, columns: int = 100, **environment: str) -> None:
        self._screen = pyte.Screen(columns, 24)
        self._stream = pyte.ByteStream(self._screen)
        self.received = b""
        # A shell does not export its size, and pytest-xdist does.
        inherited = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
        self._process = pexpect.spawn(
            command[0],
            command[1:],
            dimensions=(24, columns),
            env={**inherited, "TERM": "xterm-256color", **environment},
        )

    def screen(self) -> list[str]:
        """The lines that are to be seen now, without empty ones."""
        return [line.rstrip() for line in self._screen.display if line.strip()]

    def shows(self, what: Callable[[list[str]], object] | str) -> list[str]:
        """Wait until the screen shows something, and return it."""
        until = time.monotonic() + PATIENCE
        while not self._found(what):
            if not self._read() or time.monotonic() > until:
                assert self._found(what), "\n".join([f"{what!r} is not on:", *self.screen()])
        return self.screen()

    def keys(self, text: str) -> None:
        """Press keys: `\\x03` is Ctrl-C, which the terminal makes SIGINT of."""
        self._process.send(text)

    def ends(self) -> int:
        """Wait for the end of the command, and return its exit code."""
        until = time.monotonic() + PATIENCE
        while self._read():
            assert time.monotonic() < until, self.screen()
        self._process.close()
        assert self._process.signalstatus is None
        code: int = self._process.exitstatus
        return code

    def close(self) -> None:
        """End it, whatever it does."""
        self._process.close(force=True)

    @property
    def cursor_hidden(self) -> bool:
        """Whether the cursor is not to be seen."""
        return bool(self._screen.cursor.hidden)

    def _found(self, what: Callable[[list[str]], object] | str) -> bool:
        lines = self.screen()
        if callable(what):
            return bool(what(lines))
        return any(what in line for line in lines)

    def _read(self) -> bool:
        """Take in what has come; whether there may be more."""
        try:
            piece = self._process.read_nonblocking(65536, timeout=0.2)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.received += piece
        self._stream.feed(piece)
        return True


@contextmanager
def terminal(*arguments: str, columns: int = 100, **environment: str) -> Iterator[Terminal]:
    """`raincheck` in a terminal."""
    command = [sys.executable, "-m", "raincheck", *arguments]
    opened = Terminal(command, columns=columns, **environment)
    try:
        yield opened
    finally:
        opened.close()
