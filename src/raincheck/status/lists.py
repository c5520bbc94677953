"""Lists of jobs and their totals: for an operator of all, for owners of their own."""

from __future__ import annotations

from collections import Counter

from starlette.types import Scope

from raincheck.dialects.base import Action, Census, Dialect, Listed, Mount, Reply, Selection
from raincheck.errors import MalformedCursor, Problem
from raincheck.job import State
from raincheck.jobs import Jobs
from raincheck.pages import Pages
from raincheck.preferences import is_navigation
from raincheck.status.access import Access
from raincheck.status.list_page import BLANK, Asked, ListPage, way_back
from raincheck.stores.base import Page

MALFORMED = Problem(
    "malformed-query", 400, "The query cannot be read", "No page of a list ends at this cursor."
)

_PAGE, _PAGES = 200, 5
"""Of jobs that run, of which is told where: so many are read for one answer at most."""


class Lists:
    """Answers which jobs there are.

    Args:
        jobs: the jobs.
        dialect: how they are spelt.
        access: whose a request is.
        pages: what is turned on.

    Attributes:
        on: whether anybody may ask.
    """

    def __init__(self, jobs: Jobs, dialect: Dialect, access: Access, pages: Pages) -> None:
        self._jobs = jobs
        self._dialect = dialect
        self._access = access
        self._own = pages.own_list
        self.on: bool = pages.own_list or pages.operator is not None
        self._page = ListPage(pages)

    async def reply(
        self, action: Action, tail: str, mount: Mount, scope: Scope
    ) -> Reply | Problem | None:
        """The answer to a request for a list, or for totals; None for those who may not ask.

        Args:
            action: which of them.
            tail: the path below the mount path.
            mount: where that is.
            scope: the request.
        """
        owner = None
        if not (operator := await self._access.operates(scope)):
            owner = await self._access.owner(scope) if self._own else None
            if owner is None or action is Action.TOTALS:
                return None
        if action is Action.TOTALS:
            return self._dialect.totals(await self._census())
        query = scope["query_string"].decode("latin-1")
        selection = self._dialect.selection(query)
        if isinstance(selection, Problem):
            return selection
        try:
            page = await self._select(selection, owner)
        except MalformedCursor:
            return MALFORMED
        here = f"{mount.url}{tail}"
        following = None if page.after is None else self._dialect.next(query, page.after)
        listed = Listed(
            [(job, None if job.finished else self._jobs.outlook(job)) for job in page.jobs],
            None if following is None else f"{here}?{following}",
            operator,
            f"{here}?{query}" if query else here,
            page.after,
        )
        near = _from_list(mount, tail)
        urls = self._dialect.urls(BLANK, near)
        if urls is None or not is_navigation(scope["headers"]):
            return self._dialect.listed(listed, mount)
        asked = Asked(tail, query, selection, urls, f"{near.url}/totals")
        return self._page.shown(asked, listed, await self._census() if operator else None)

    async def _select(self, selection: Selection, owner: str | None) -> Page:
        states, route, named, since, until, after, limit = selection
        if owner is not None and named not in (None, owner):
            return Page([], None)
        return await self._jobs.list(
            states=states,
            route=route,
            owner=named if owner is None else owner,
            since=since,
            until=until,
            after=after,
            limit=limit,
        )

    async def _census(self) -> Census:
        """How many jobs there are, and which processes have some that run."""
        routes = {
            group: (total.count, total.oldest, total.seconds)
            for group, total in (await self._jobs.totals()).items()
        }
        running, workers = (State.RUNNING, State.CANCELLING), Counter[str]()
        page = await self._jobs.list(states=running, limit=_PAGE)
        for _ in range(_PAGES):
            workers.update(job.holder for job in page.jobs if job.holder is not None)
            if page.after is None:
                break
            page = await self._jobs.list(states=running, limit=_PAGE, after=page.after)
        return Census(routes, workers)

    def way_back(self, mount: Mount, scope: Scope) -> str | None:
        """Where a browser goes that a button of the page has sent to a job's route; else None.

        Relative to that route, which lies two levels below the mount path.
        """
        if not is_navigation(scope["headers"]):
            return None
        last = mount.url.rpartition("/")[2]
        return way_back(
            scope["query_string"].decode("latin-1"),
            lambda tail: ".." + tail if tail else f"../../{last}",
        )


def _from_list(mount: Mount, tail: str) -> Mount:
    """The mount, relative to its own URL, or to that with a slash at its end (RFC 3986 §4.2)."""
    return Mount("." if tail else "./" + mount.url.rpartition("/")[2], absolute=False)
