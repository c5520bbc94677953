"""A list of jobs as a table, once or again and again."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click
import httpx2

from raincheck.cli.display import fraction, on_terminal
from raincheck.cli.outcomes import Exit, Stop
from raincheck.cli.printable import printable
from raincheck.client.wire import Document, document_of, joined, origin_of, passes, sentence_of

COLUMNS = ("id", "status", "progress", "route", "owner", "created", "message")
"""Of a line that a program reads; a table has `age` in place of `created`."""


class Listing:
    """A list of jobs at its URL.

    Args:
        client: who asks.
        request: for the list.
        limit: how many jobs are shown at most.
    """

    def __init__(self, client: httpx2.Client, request: httpx2.Request, limit: int) -> None:
        self._client = client
        self._request = request
        self._limit = limit
        self.more: bool = False

    def jobs(self) -> list[Document]:
        """The newest ones, page after page up to the limit.

        Raises:
            Stop: there is no such list for whoever asks.
            RequestError: the server cannot be reached, or answers what cannot be read.
        """
        found: list[Document] = []
        url: httpx2.URL | None = self._request.url
        while url is not None and len(found) < self._limit:
            url = self._page(url, found)
        self.more = url is not None or len(found) > self._limit
        return found[: self._limit]

    def _page(self, url: httpx2.URL, found: list[Document]) -> httpx2.URL | None:
        request = httpx2.Request(
            "GET", url, headers=self._request.headers, extensions=self._request.extensions
        )
        response = self._client.send(request, follow_redirects=False)
        document = document_of(response.content)
        jobs, following = document.get("jobs"), document.get("next")
        if response.status_code != 200 or not isinstance(jobs, list):
            raise _no_list(response, document)
        shown = [job for job in jobs if isinstance(job, dict)]
        found += shown
        after = joined(url, following) if isinstance(following, str) else None
        if after is None or not shown:
            return None
        # Nobody else gets what this request says of whoever asks.
        return after if origin_of(after) == origin_of(url) else None


def _no_list(response: httpx2.Response, document: Document) -> Stop:
    status = response.status_code
    if status == 200 or 300 <= status < 400:
        return Stop(Exit.FAILED, f"there is no list of jobs at this URL (HTTP {status})")
    reason = printable(sentence_of(document, f"HTTP {status}"))
    if status == 404:
        return Stop(
            Exit.GONE,
            f"{reason.removesuffix('.')} (there is no list, or not for you: is it the URL of the "
            "jobs, like /jobs? raincheck's are off until the server turns them on, as "
            "`raincheck serve --own-list` does)",
        )
    return Stop(Exit.UNREACHABLE if passes(response) else Exit.REFUSED, reason)


def row_of(job: Document) -> dict[str, str]:
    """What is shown of a job, by its column; all of it printable."""
    done, error = fraction(job), job.get("error")
    said, again = job.get("message"), job.get("next_run_at")
    if isinstance(again, str) and not said:
        said = f"runs again at {again}"
    if isinstance(error, Mapping) and job.get("status") == "failed":
        said = error.get("message")
    shown = {
        "id": job.get("job_id"),
        "status": job.get("status"),
        "progress": None if done is None else f"{done:.0%}",
        "route": job.get("route"),
        "owner": job.get("owner"),
        "created": job.get("created_at"),
        "message": said,
    }
    return {name: "" if value is None else printable(value) for name, value in shown.items()}


def age(created: str, now: float) -> str:
    """How long ago it was, in one unit."""
    try:
        then = datetime.fromisoformat(created)
    except ValueError:
        return ""
    seconds = max(0, int(now - (then if then.tzinfo else then.replace(tzinfo=UTC)).timestamp()))
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def show(listing: Listing) -> None:
    """Print the list once: a table on a terminal, else lines with tabs between the columns."""
    rows = [row_of(job) for job in _asked(listing)]
    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(_table(rows))
    else:
        _print(["\t".join(COLUMNS), *map(_line, rows)])
    if listing.more:
        click.echo("raincheck: there are more; see --limit", err=True)


def follow(listing: Listing, every: float) -> None:
    """Show the list until Ctrl-C: on a terminal as it is, else each job that has changed."""
    if not (sys.stdout.isatty() and on_terminal()):
        _follow_lines(listing, every)
        return
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    rows = [row_of(job) for job in _asked(listing)]
    with Live(screen=True, auto_refresh=False) as live:
        trouble = ""
        while True:
            more = " · there are more" if listing.more else ""
            foot = trouble or f"{datetime.now():%H:%M:%S} · every {every:g} s · Ctrl-C ends{more}"
            live.update(Group(_table(rows), Text(foot, style="dim")), refresh=True)
            time.sleep(every)
            try:
                rows = [row_of(job) for job in listing.jobs()]
                trouble = ""
            except httpx2.RequestError as error:
                trouble = f"the server does not answer: {printable(error)}"
            except Stop as stop:
                if stop.code is not Exit.UNREACHABLE:
                    raise
                trouble = f"the server cannot say: {stop.message}"


def _follow_lines(listing: Listing, every: float) -> None:
    seen: dict[str, str] = {}
    jobs: Sequence[Document] = _asked(listing)
    _print(["\t".join(COLUMNS)])
    while True:
        rows = [row_of(job) for job in reversed(jobs)]
        lines = {row["id"]: _line(row) for row in rows}
        _print(line for id, line in lines.items() if seen.get(id) != line)
        seen = lines
        time.sleep(every)
        try:
            jobs = listing.jobs()
        except httpx2.RequestError as error:
            click.echo(f"raincheck: the server does not answer: {printable(error)}", err=True)


def _asked(listing: Listing) -> list[Document]:
    """The jobs, for the first time: who cannot be reached now is not waited for."""
    try:
        return listing.jobs()
    except httpx2.RequestError as error:
        raise Stop(Exit.UNREACHABLE, printable(str(error) or type(error).__name__)) from error


def _table(rows: Sequence[Mapping[str, str]]) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, expand=True, pad_edge=False, padding=(0, 1, 0, 0))
    owners = ["owner"] if any(row["owner"] for row in rows) else []
    for name in ("id", "status", "route", *owners, "age", "message"):
        widest = 24 if name in ("route", "owner") else None
        rest = 1 if name == "message" else None
        table.add_column(name, no_wrap=True, overflow="ellipsis", max_width=widest, ratio=rest)
    for row in rows:
        status = Text(row["status"], style=_STYLES.get(row["status"], ""))
        if row["status"] in ("running", "canceling") and row["progress"]:
            status.append(f" {row['progress']}")
        more = [Text(row[name]) for name in owners]
        old = Text(age(row["created"], time.time()))
        table.add_row(Text(row["id"]), status, Text(row["route"]), *more, old, Text(row["message"]))
    if not rows:
        table.add_row(Text("none"))
    return table


_STYLES = {"running": "cyan", "succeeded": "green", "failed": "red", "canceled": "yellow"}


def _line(row: Mapping[str, str]) -> str:
    return "\t".join(row[name] for name in COLUMNS)


def _print(lines: Sequence[str] | Iterator[str]) -> None:
    for line in lines:
        click.echo(line)
    sys.stdout.flush()
