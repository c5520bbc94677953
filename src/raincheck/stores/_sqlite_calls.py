"""What passes between the event loop and the threads of `SQLiteStore`."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from raincheck.errors import NoRoom, StoreError, StoreFull

CURES = {
    sqlite3.SQLITE_BUSY: "; another process writes to it, and did not let go in time",
    sqlite3.SQLITE_CANTOPEN: "; its directory has to exist, and both have to be writable",
    sqlite3.SQLITE_READONLY: "; it has to be writable, and to stay where it is",
    sqlite3.SQLITE_NOTADB: "; give it a file of its own",
    sqlite3.SQLITE_CORRUPT: "; move it away, or bring back a copy",
}

# What does not pass by itself.
LASTING = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT}

T = TypeVar("T")


class Unusable(StoreError):
    """The file can never be used as it is set up."""


class Call(Generic[T]):
    """Something that a thread does, and what came of it."""

    __slots__ = ("error", "result", "run")

    def __init__(self, run: Callable[[Any], T]) -> None:
        self.run = run
        self.result: T
        self.error: Exception | None = None

    def attempt(self, means: Any) -> None:
        """Do it, perhaps once more; that there is no room is an outcome like any other."""
        self.error = None
        try:
            self.result = self.run(means)
        except NoRoom as error:  # nothing was written yet
            self.error = error

    def read(self, means: Any) -> None:
        """Do it, or fail."""
        try:
            self.result = self.run(means)
        except Exception as error:  # whose it is raises it
            self.error = error

    def fail(self, error: Exception) -> None:
        """It was not done."""
        self.error = error

    def outcome(self, path: str) -> T:
        """What came of it, for the caller.

        Raises:
            StoreError: it failed; the message begins with the file's path.
        """
        if self.error is None:
            return self.result
        if isinstance(self.error, sqlite3.Error | StoreError):
            raise explained(path, self.error) from self.error
        raise self.error


def is_full(error: Exception) -> bool:
    """Whether there is no room for it on the disk."""
    return isinstance(error, StoreFull) or _code(error) == sqlite3.SQLITE_FULL


def _code(error: Exception) -> int:
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF  # without its extension


def explained(path: str, error: Exception) -> StoreError:
    """What a caller is told of an error."""
    if is_full(error):
        return StoreFull(f"{path}: the disk is full")
    if isinstance(error, StoreError):
        return type(error)(*error.args)
    code = _code(error)
    kind = Unusable if code in LASTING else StoreError
    return kind(f"{path}: {error}{CURES.get(code, '')}")
