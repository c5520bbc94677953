"""How a command has ended, as its exit code says it."""

from __future__ import annotations

from enum import IntEnum
from typing import IO, Any

import click
import httpx2

from raincheck.client.errors import DeadlineExceeded, FollowError, NoResponse, Unreachable
from raincheck.client.wire import Document


class Exit(IntEnum):
    """The exit codes. 7, 18, 23 and 28 are curl's; 4 and 5 are HTTPie's; 2 is everybody's."""

    SUCCEEDED = 0
    FAILED = 1
    USAGE = 2
    CLIENT_ERROR = 4
    SERVER_ERROR = 5
    CANCELLED = 6
    UNREACHABLE = 7
    REFUSED = 8
    GONE = 9
    ENDED_BEFORE = 10
    BROKEN_OFF = 18
    UNWRITTEN = 23
    LATE = 28
    INTERRUPTED = 130


class Stop(click.ClickException):
    """The command ends here.

    Args:
        code: its exit code.
        message: for people, on stderr; nothing if it is empty.

    Attributes:
        code: as given.
    """

    def __init__(self, code: Exit, message: str = "") -> None:
        super().__init__(message)
        self.code = code

    def show(self, file: IO[Any] | None = None) -> None:
        if self.message:
            say(self.message)


def say(message: str) -> None:
    """A line of ours on stderr. What it has from others is to be `printable` already."""
    click.echo(f"raincheck: {message}", err=True)


def of_answer(response: httpx2.Response) -> Exit:
    """What an answer means that came at once, so that there is no job."""
    return Exit.SUCCEEDED if response.status_code < 400 else Exit.REFUSED


def of_job(response: httpx2.Response) -> Exit:
    """What the final answer about a job means."""
    said = response.headers.get("job-status", "")
    status = response.status_code
    if said in ("canceled", "cancelled"):
        return Exit.CANCELLED
    if status < 400:
        return Exit.SUCCEEDED
    if not said and status in (401, 403):
        return Exit.REFUSED
    if not said and status in (404, 410):
        return Exit.GONE
    return Exit.CLIENT_ERROR if status < 500 else Exit.SERVER_ERROR


def of_error(error: FollowError, document: Document) -> Exit:
    """What it means that there is no final answer.

    Args:
        error: why.
        document: the last that was heard of the job.
    """
    if isinstance(error, DeadlineExceeded):
        return Exit.LATE
    if isinstance(error, Unreachable):
        return Exit.UNREACHABLE
    if not isinstance(error, NoResponse):
        return Exit.FAILED
    word = str(document.get("status", "")).lower()
    if word in ("canceled", "cancelled"):
        return Exit.CANCELLED
    return Exit.SERVER_ERROR if word in ("failed", "error") else Exit.GONE
