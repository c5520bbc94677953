"""The page that lists jobs to an operator, or their own to an owner."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from raincheck.dialects.base import Census, Listed, Reply, Selection, Urls
from raincheck.dialects.documents import timestamp
from raincheck.dialects.plain import WORDS as SPELT
from raincheck.job import TRANSITIONS, Job, State
from raincheck.pages import WORDS, Pages
from raincheck.status.pages import Markup, Template, as_page, styled, unless

BACK = "list"
"""The parameter of what a button of the page sends a browser to: the list to come back to."""

BLANK = Job(id="-" * 30, route="", state=State.QUEUED, created_at=0.0)
"""What stands for a job in a row that the page, or its script, makes others of."""

_ROWS = re.compile(r"<!-- (\w+) -->\n?(.*?)<!-- /\1 -->", re.DOTALL)
_HEADS = (
    *("accepted", "route", "owner", "status", "progress", "runs", "actions"),
    *("queued", "oldest", "running", "succeeded", "failed", "cancelled", "mean"),
)


@dataclass(frozen=True, slots=True)
class Asked:
    """What somebody's browser has asked for.

    Attributes:
        tail: the path below the mount path: nothing, or a slash.
        query: that of its URL.
        selection: the same as it was understood.
        urls: where the routes of `BLANK` are, from where the page is.
        totals: where the totals are.
    """

    tail: str
    query: str
    selection: Selection
    urls: Urls
    totals: str


class ListPage:
    """Shows lists of jobs to people.

    Args:
        pages: the settings.
    """

    def __init__(self, pages: Pages) -> None:
        words = {**WORDS, **pages.words}
        self._words = {**words, **{state.value: words[f"{state.value}_short"] for state in State}}
        text = styled("list.html")
        self._rows = {name: Template(row) for name, row in _ROWS.findall(text)}
        self._page = Template(_ROWS.sub("", text))
        self._heads = {f"head {name}": self._words[name] for name in _HEADS}

    def shown(self, asked: Asked, listed: Listed, census: Census | None) -> Reply:
        """The page.

        Args:
            asked: what was asked for.
            listed: the jobs.
            census: how many there are, for an operator.
        """
        words, wanted = self._words, asked.selection
        routes = {} if census is None else census.by_route()
        workers = 0 if census is None else len(census.workers)
        older = "" if listed.next is None else "?" + listed.next.partition("?")[2]
        first = urlencode([each for each in parse_qsl(asked.query) if each[0] != "cursor"])
        holes = {
            **words,
            "no totals": unless(census),
            "workers": words["workers"].replace("{count}", str(workers)),
            "routes": self._all("route", map(self._route, routes.items())),
            "statuses": self._all("status", map(self._status, State, [wanted.states] * len(State))),
            "known": self._all("known", ({"route": route} for route in routes)),
            "of route": wanted.route or "",
            "of owner": (wanted.owner or "") if listed.operator else "",
            "of since": _local(wanted.since),
            "of before": _local(wanted.until),
            "no owner": unless(listed.operator),
            "rows": self._all("row", (self._row(job, listed, asked) for job, _ in listed.jobs)),
            "some": unless(not listed.jobs),
            "newest url": f"?{first}",
            "no newest": unless(wanted.after),
            "older url": older,
            "no older": unless(older),
            "blank row": self._all("row", [self._row(BLANK, listed, asked)]),
            "blank route": self._all("route", [self._route((BLANK.id, {}))]),
            "totals url": asked.totals if census is not None else "",
            "words": json.dumps(self._for_script()),
        }
        return as_page(Reply(200, [(b"cache-control", b"no-store")]), self._page, holes)

    def _all(self, kind: str, rows: Iterable[Mapping[str, str]]) -> Markup:
        return Markup("".join(self._rows[kind].filled(row).decode() for row in rows))

    def _status(self, state: State, wanted: Iterable[State]) -> Mapping[str, str]:
        checked = "checked" if state in wanted else ""
        return {"word": SPELT[state], "state": self._words[state.value], "checked": checked}

    def _route(self, of: tuple[str, Mapping[State, tuple[int, float | None, float]]]) -> Any:
        route, totals = of
        none = (0, None, 0.0)
        counts = {state: totals.get(state, none)[0] for state in State}
        succeeded, _, seconds = totals.get(State.SUCCEEDED, none)
        waiting = totals.get(State.QUEUED, none)[1]
        return {
            **self._heads,
            **{state.value: str(count) for state, count in counts.items()},
            "running": str(counts[State.RUNNING] + counts[State.CANCELLING]),
            "key": route,
            "route": route,
            "oldest": _spelt(waiting),
            "oldest at": timestamp(waiting) or "",
            "mean": f"{seconds / succeeded:.3g}" if succeeded else "",
        }

    def _row(self, job: Job, listed: Listed, asked: Asked) -> Mapping[str, str]:
        urls, progress = asked.urls, job.progress
        message = None if progress is None else progress.message
        if not message and job.next_run_at is not None:
            message = self._words["again"].replace("{time}", _spelt(job.next_run_at))
        fraction = None if progress is None else progress.fraction
        back = f"?{BACK}={quote(f'{asked.tail}?{asked.query}', safe='')}"

        def url(of: str | None) -> str:
            return "" if of is None else of.replace(BLANK.id, quote(job.id, safe=""))

        stoppable = State.CANCELLED in TRANSITIONS[job.state] and job.state is not State.CANCELLING
        return {
            **self._heads,
            "id": job.id,
            "word": SPELT[job.state],
            "url": url(urls.monitor if listed.operator else urls.result),
            "accepted": _spelt(job.created_at),
            "accepted at": timestamp(job.created_at) or "",
            "route": job.route,
            "owner": job.owner or "",
            "no owner": unless(listed.operator),
            "state": self._words[job.state.value],
            "error": _error(job),
            "value": "" if fraction is None else f"value={fraction:.4f}",
            "no progress": unless(fraction is not None),
            "percent": "" if fraction is None else f"{int(100 * fraction)}%",
            "message": message or "",
            "runs": str(job.runs),
            "cancel": self._words["cancel"],
            "cancel url": url(urls.cancel) + back,
            "no cancel": unless(stoppable and urls.cancel is not None),
            "delete": self._words["delete"],
            "delete_note": self._words["delete_note"],
            "delete url": url(urls.delete) + back,
            "no delete": unless(urls.delete),
            "redeliver": self._words["redeliver"],
            "redeliver url": url(urls.redeliver) + back,
            "no redeliver": unless(listed.operator and job.finished and job.delivery),
        }

    def _for_script(self) -> dict[str, Any]:
        """What the page's script puts in, by how documents spell it."""
        counted = (State.QUEUED, State.SUCCEEDED, State.FAILED, State.CANCELLED)
        return {
            "blank": BLANK.id,
            "states": {SPELT[state]: self._words[state.value] for state in State},
            "cancellable": [SPELT[state] for state in (State.QUEUED, State.RUNNING)],
            "counted": {state.value: SPELT[state] for state in counted},
            "workers": self._words["workers"],
            "again": self._words["again"],
        }


def way_back(query: str, urls: Callable[[str], str]) -> str | None:
    """Where a browser goes once a button of the page has done what it does.

    Args:
        query: that of the URL that the button has sent it to.
        urls: the URL of the list, by its tail.

    Returns:
        A URL of the list and nothing else, whatever the query says; None if it says nothing.
    """
    found = dict(parse_qsl(query, keep_blank_values=True)).get(BACK)
    if found is None:
        return None
    tail, _, filters = found.partition("?")
    kept = urlencode(parse_qsl(filters))
    return urls("/" if tail == "/" else "") + (f"?{kept}" if kept else "")


def _error(job: Job) -> str:
    if job.error is not None:
        return job.error.detail
    if job.state is State.FAILED and job.response is not None:
        return f"The response has status {job.response.status}."
    return ""


def _spelt(moment: float | None) -> str:
    return "" if moment is None else time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(moment))


def _local(moment: float | None) -> str:
    """A time as a form has it, in UTC."""
    return "" if moment is None else time.strftime("%Y-%m-%dT%H:%M", time.gmtime(moment))
