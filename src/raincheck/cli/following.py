"""One job, from its request or its status URL to the answer that is printed."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import click
import httpx2

from raincheck.cli.display import Display
from raincheck.cli.outcomes import Exit, Stop, of_error, say
from raincheck.cli.printable import printable
from raincheck.client.credentials import Credentials
from raincheck.client.errors import FollowError
from raincheck.client.flow import Flow, Following
from raincheck.client.knowledge import Knowledge, Place
from raincheck.client.transport import Driver
from raincheck.client.wire import Document, passes

CONNECT = 30.0
"""Seconds in which a server has to take a connection."""

POLL = 30.0
"""Seconds in which it has to answer a poll, besides those for which the poll lets it wait."""

WAIT = 5.0
"""Seconds for which a poll lets it wait: how old a position in the queue may be on the screen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Where an answer goes.

    Attributes:
        path: the file; `-` is stdout, and so is None, but not for what would spoil a terminal.
        include: whether its status and fields come first.
    """

    path: str | None = None
    include: bool = False

    def write(self, response: httpx2.Response, pieces: Iterator[bytes]) -> None:
        """Write it, as it comes; on a terminal what follows begins on a line of its own."""
        head, last = _head(response) if self.include else b"", b"\n"
        with self._open() as file:
            for piece in pieces:
                if self.path is None and b"\0" in piece and sys.stdout.isatty():
                    raise Stop(
                        Exit.UNWRITTEN,
                        "the response is binary and would spoil your terminal; give -o FILE, or "
                        "-o - to print it all the same",
                    )
                file.write(head + piece)
                head, last = b"", piece[-1:]
            file.write(head)
            if self.path is None and last != b"\n" and sys.stdout.isatty():
                file.write(b"\n")
            file.flush()

    @contextmanager
    def _open(self) -> Iterator[BinaryIO]:
        try:
            if self.path in (None, "-"):
                yield sys.stdout.buffer
            else:
                with Path(str(self.path)).open("wb") as file:
                    yield file
        except BrokenPipeError as error:  # `| head` has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise Stop(Exit.UNWRITTEN) from error
        except OSError as error:
            where = "stdout" if self.path in (None, "-") else self.path
            raise Stop(Exit.UNWRITTEN, f"{where} cannot be written: {error.strerror}") from error


class Conversation:
    """Sends requests about one job, and shows what is in the way.

    Args:
        client: who sends them.
        request: what the job is asked for by, with its credentials.
        display: where it is shown.
        known: the job, if there is one.
        deadline: seconds from now, in all.
        resume: what is written before its status URL to go on later, as words of a shell.

    Attributes:
        known: the job; None as long as there is none.
    """

    def __init__(
        self,
        client: httpx2.Client,
        request: httpx2.Request,
        display: Display,
        *,
        known: Knowledge | None = None,
        deadline: float | None = None,
        resume: Sequence[str] = ("raincheck", "watch"),
    ) -> None:
        self.known = known
        self._client = client
        self._request = request
        self._display = display
        self._credentials = Credentials(httpx2, request)
        self._ends = None if deadline is None else time.monotonic() + deadline
        self._deadline = deadline
        self._resume = resume
        self._answered = False
        self._driver = Driver(httpx2, self._send)

    # --- what is asked ---------------------------------------------------------------------------

    def submit(self) -> httpx2.Response | None:
        """Send the request.

        Returns:
            Its answer; None if it has become a job, which is known now.
        """
        flow = self._flow(self._display.update)
        try:
            with self._display:
                response: httpx2.Response = self._driver.run(flow.submitted())
        except KeyboardInterrupt:
            if flow.known is None:
                raise Stop(Exit.INTERRUPTED, self._unanswered()) from None
            self.known = flow.known
            self._ask()
            return None
        except httpx2.TransportError as error:
            if self.late:
                raise Stop(Exit.LATE, f"no answer within {self._deadline:g} seconds") from error
            raise Stop(Exit.UNREACHABLE, f"{self._host()}: {_reason(error)}") from error
        self.known = flow.known
        return response if self.known is None else None

    def wait(self) -> httpx2.Response:
        """Wait until the job has ended; Ctrl-C asks what is to become of it.

        Returns:
            Its response, whose body has not been read.
        """
        while True:
            try:
                with self._telling(), self._display:
                    if not self._job().document:  # a poll that waits says nothing until the end
                        self._display.update(self._driver.run(self._flow().status()))
                    ended = self._flow(self._display.update).ended()
                    response: httpx2.Response = self._driver.run(ended)
                    return response
            except KeyboardInterrupt:
                self._driver.close()
                self._ask()

    def cancel(self) -> Document:
        """Ask the job to stop, and return how it stands then."""
        with self._telling():
            return self._driver.run(self._flow().cancelled())

    def body(self, response: httpx2.Response) -> Iterator[bytes]:
        """The body of an answer as it was sent, as long as the deadline lets it come.

        Raises:
            TransportError: it breaks off, or the deadline has passed.
        """
        if response.is_stream_consumed:
            yield response.content
            return
        for piece in response.iter_raw():
            if self.late:
                raise httpx2.ReadTimeout(f"it was not whole after {self._deadline:g} seconds")
            yield piece

    @property
    def late(self) -> bool:
        """Whether the deadline has passed."""
        return self._ends is not None and time.monotonic() >= self._ends - 0.05

    @property
    def status_url(self) -> str:
        """Where the job is."""
        return printable(self._job().place.url, longest=10_000)

    def resume(self) -> str:
        """The command that goes on with the job."""
        return shlex.join([*self._resume, self.status_url])

    # --- how -------------------------------------------------------------------------------------

    def _flow(self, on_update: Callable[[Document], object] | None = None) -> Flow:
        left = None if self._ends is None else max(0.0, self._ends - time.monotonic())
        request = self._request
        if self.known is not None:
            timeout = httpx2.Timeout(POLL, connect=CONNECT).as_dict()
            request = httpx2.Request(
                "GET", request.url, headers=request.headers, extensions={"timeout": timeout}
            )
        settings = Following(deadline=left, wait=WAIT, on_update=on_update)
        return Flow(httpx2, request, settings, known=self.known, credentials=self._credentials)

    def _send(self, request: httpx2.Request) -> httpx2.Response:
        try:
            response = self._client.send(request, stream=True, follow_redirects=False)
        except httpx2.TransportError as error:
            if not self._answered and self.known is not None:
                raise Stop(Exit.UNREACHABLE, f"{self._host()}: {_reason(error)}") from error
            if self._answered:
                self._display.trouble(_reason(error))
            raise
        self._answered = True
        if self.known is not None and passes(response):
            self._display.trouble(f"HTTP {response.status_code}")
        return response

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Say in our words why there is no answer."""
        try:
            yield
        except FollowError as error:
            known = self._job()
            code = of_error(error, known.document)
            if code is Exit.LATE:
                message = f"the job has not ended within {self._deadline:g} seconds, and goes on"
            else:
                message = printable(str(error).partition("; its status URL is ")[0])
            going_on = code in (Exit.LATE, Exit.UNREACHABLE)
            raise Stop(code, message + (self._how_to_go_on() if going_on else "")) from error
        except httpx2.RequestError as error:
            raise Stop(Exit.UNREACHABLE, f"{self._host()}: {_reason(error)}") from error

    def _ask(self) -> None:
        """Ask what is to become of the job: it is left alone unless somebody says otherwise."""
        answer = "l"
        if sys.stdin.isatty() and sys.stderr.isatty():
            question = "[c]ancel the job, [l]eave it running, or [w]ait on?"
            choice = click.Choice(["c", "l", "w"], case_sensitive=False)
            try:
                answer = click.prompt(
                    question, type=choice, default="l", show_choices=False, err=True
                )
            except (click.Abort, KeyboardInterrupt):
                click.echo(err=True)
        if answer == "l":
            raise Stop(Exit.INTERRUPTED, "the job goes on" + self._how_to_go_on())
        if answer == "c":
            try:
                self.cancel()
            except KeyboardInterrupt:
                message = "interrupted; whether it is canceled is not known"
                raise Stop(Exit.INTERRUPTED, message + self._how_to_go_on()) from None

    def _how_to_go_on(self) -> str:
        return f"; wait for it again with:\n  {self.resume()}"

    def _unanswered(self) -> str:
        """What is known of a request that nobody has waited for."""
        message = "interrupted before the server had answered"
        key = printable(self._request.headers.get("idempotency-key", ""))
        if not key:
            return message
        field = shlex.quote(f"Idempotency-Key: {key}")
        return f"{message}; if it has become a job, send it again with -H {field} to get that"

    def _host(self) -> str:
        url = self._request.url
        return printable(f"{url.scheme}://{url.netloc.decode('ascii', 'replace')}")

    def _job(self) -> Knowledge:
        assert self.known is not None
        return self.known


def job_at(request: httpx2.Request) -> Knowledge:
    """The job whose status URL a request is for."""
    return Knowledge(request, Place(request.url, "either"))


def deliver(response: httpx2.Response, output: Output, code: Exit, talk: Conversation) -> Exit:
    """Write an answer, and say what is wrong with it.

    Args:
        response: the answer, perhaps unread.
        output: where it goes.
        code: what it means.
        talk: what it came of; if that is a job, it can be had again.

    Returns:
        The exit code.
    """
    again = "" if talk.known is None else f"; get it again with:\n  {talk.resume()}"
    try:
        output.write(response, talk.body(response))
    except httpx2.TransportError as error:
        broken = Exit.LATE if talk.late else Exit.BROKEN_OFF
        raise Stop(broken, f"the response broke off: {_reason(error)}{again}") from error
    except KeyboardInterrupt:
        raise Stop(Exit.INTERRUPTED, f"interrupted; the response is not whole{again}") from None
    finally:
        response.close()
    if code is not Exit.SUCCEEDED:
        say(_failure(response, code))
    return code


def _failure(response: httpx2.Response, code: Exit) -> str:
    status = f"HTTP {response.status_code}"
    if code is Exit.REFUSED:
        return f"refused: {status}"
    if code is Exit.CANCELLED:
        return "the job was canceled"
    if code is Exit.GONE:
        return f"there is no such job, or not any more: {status}"
    return f"the job has failed: {status}"


def _head(response: httpx2.Response) -> bytes:
    first = f"{response.http_version} {response.status_code} {response.reason_phrase}".rstrip()
    fields = [name + b": " + value for name, value in response.headers.raw]
    return b"\r\n".join([first.encode("ascii", "replace"), *fields, b"", b""])


def _reason(error: httpx2.RequestError) -> str:
    return printable(str(error) or type(error).__name__)
