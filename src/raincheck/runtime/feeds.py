"""Feeds: what becomes of a job, asked of the store once for all who follow it here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import Context
from functools import partial

import anyio

from raincheck.errors import UnreadableRecord
from raincheck.job import Job
from raincheck.runtime.environment import Environment
from raincheck.tasks import Tasks

# Seconds between two pieces of news of one job, at least: ten a second, however many there are.
_INTERVAL = 0.1


class Feeds:
    """The jobs that somebody follows in this process.

    Args:
        environment: what is fixed.
        tasks: the tasks of the event loop.
    """

    def __init__(self, environment: Environment, tasks: Tasks) -> None:
        self._environment = environment
        self._tasks = tasks
        self._feeds: dict[str, Feed] = {}

    def __len__(self) -> int:
        """Jobs that are followed."""
        return len(self._feeds)

    @contextmanager
    def follow(self, job: Job) -> Iterator[Feed]:
        """The feed of a job, as long as the block lasts.

        Args:
            job: the job as the follower knows it.
        """
        feed = self._feeds.get(job.id)
        if feed is None:
            feed = self._feeds[job.id] = Feed(job, self._environment)
            self._tasks.spawn(feed.run, Context())
        feed.enter()
        try:
            yield feed
        finally:
            if not feed.leave() and self._feeds.get(job.id) is feed:
                del self._feeds[job.id]


class Feed:
    """The news of one job, for all who follow it: each is woken once for each.

    A version that shows nothing new, as when another client comes to share a run, is no news. A
    store that does not answer is asked again: there is no news meanwhile.

    Args:
        job: as it is known first.
        environment: what is fixed.
    """

    def __init__(self, job: Job, environment: Environment) -> None:
        self._environment = environment
        self._job = job  # the newest that is news
        self._version = job.version  # the newest
        self._over = False
        self._news = anyio.Event()
        self._followers = 0
        self._scope = anyio.CancelScope()

    async def after(self, version: int) -> Job | None:
        """The job as soon as there is news of it after this version.

        None once it is gone, or cannot be read any more. Nobody waits for news after its end.
        """
        while self._job.version <= version:
            if self._over:
                return None
            await self._news.wait()
        return self._job

    def enter(self) -> None:
        """One more follows."""
        self._followers += 1

    def leave(self) -> int:
        """One follows no more; how many do."""
        self._followers -= 1
        if not self._followers:
            self._scope.cancel()
        return self._followers

    async def run(self) -> None:
        """Ask for news until there will be no more, or until nobody follows."""
        with self._scope:
            while not self._over:
                self._take(await self._newest())
                await anyio.sleep(_INTERVAL)

    async def _newest(self) -> Job | None:
        availability, job = self._environment.availability, self._job
        changed = partial(self._environment.store.changed, job.id, self._version)
        try:
            newest = await availability.patiently(changed, permanent=(UnreadableRecord,))
        except UnreadableRecord:  # whoever asks for it anew is told
            return None
        if availability.away:
            availability.answered()
        return newest

    def _take(self, newest: Job | None) -> None:
        if newest is None or newest.gone:
            self._over = True
        else:
            self._version = newest.version
            if _shown(newest) == _shown(self._job):
                return
            self._job = newest
        news, self._news = self._news, anyio.Event()
        news.set()


def _shown(job: Job) -> Job:
    """A job without what nobody is shown."""
    return job._replace(
        version=0, fence=0, holder=None, replayable=False, orphaned_at=None, clients=1
    )
