"""Stopping an app: why, by what, and how often it is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from types import MethodType
from typing import Any

import anyio

from raincheck.tasks import Stopper, Tasks
from raincheck.threads import Thread, on_return

# Seconds between looks at an app that is to stop but waits for a thread, at first and at most; and
# looks, in as many turns of the loop, in which what threads have returned comes to it by others.
_FIRST_PAUSE, _LAST_PAUSE, _TURNS = 0.05, 0.5, 20


class Reason(Enum):
    """Why an app is to stop."""

    CANCELLED = "its job was cancelled, or its client's task before acceptance"
    TIMEOUT = "it took too long"
    INTERRUPTED = "the server stops"
    LOST = "another process runs it now"


class Stopping:
    """Stops one app and whatever it runs.

    Args:
        tasks: the tasks it is one of.
        grace: seconds that its cleanup code has before it is cancelled again.

    Attributes:
        inside: makes the block that is stopped: the innermost one that the app stands in.
        reason: why it is to stop; None if it is not.
        torn: whether code that asked has stopped where it was, amid a response.
    """

    __slots__ = (
        "_asked",
        "_disconnect",
        "_disconnected",
        "_done",
        "_grace",
        "_listeners",
        "_noted",
        "_spared",
        "_stoppers",
        "_tasks",
        "_threads",
        "_timers",
        "inside",
        "reason",
        "torn",
    )

    def __init__(self, tasks: Tasks, grace: float) -> None:
        self.reason: Reason | None = None
        self.torn: bool = False
        self._tasks = tasks
        self._grace = grace
        self._stoppers: list[Stopper] = []
        # As `partial` would, with nothing beside it.
        self.inside: Callable[[], Stopper] = MethodType(tasks.stopper, self._stoppers)
        self._timers: dict[Callable[[], None], Callable[[], None]] | None = None  # how to call off
        self._disconnect: anyio.Event | None = None
        self._disconnected = False
        self._listeners = 0
        self._asked = False
        self._done = False
        self._noted = False
        self._spared = False
        self._threads: _Threads | None = None

    def inside_remotely(self) -> Stopper:
        """As `inside`, of a task on the event loop of another thread."""
        return self._tasks.remote_stopper(self._stoppers)

    def after(self, delay: float, callback: Callable[[], None]) -> None:
        """Call back after `delay` seconds from now, unless the app has ended by then."""
        if self._timers is None:
            self._timers = {}
        if call_off := self._timers.get(callback):
            call_off()
        self._timers[callback] = self._tasks.call_later(delay, callback)

    @property
    def wanted(self) -> bool:
        """Whether the app is to stop, or what it has left behind, and neither has been spared."""
        return self.reason is not None and not self._spared

    @contextmanager
    def noted(self) -> Iterator[None]:
        """The block in which a request to stop is only noted; whoever enters it looks after it."""
        self._noted = True
        try:
            yield
        finally:
            self._noted = False

    def stop(self, reason: Reason) -> None:
        """Ask the app to stop: by `http.disconnect`, and by cancellation at its next await.

        The first request starts the asking; a later one may only give a weightier reason.
        """
        asked, self.reason = self.reason, reason
        if asked is Reason.LOST or (asked is Reason.INTERRUPTED and reason is not Reason.LOST):
            self.reason = asked
        if asked is None and not self._done and not self._noted:
            self._threads = _Threads(self._ask, self._tasks.time, self._grace)
            self._ask()

    def tear(self) -> None:
        """Code that asked stops where it is, amid a response."""
        self.torn = True

    def disconnect(self) -> None:
        """Tell the app, by `http.disconnect`, that nobody listens any more."""
        self._disconnected = True
        if self._disconnect is not None:
            self._disconnect.set()

    async def disconnected(self) -> None:
        """Return when the app is to hear that its client has left."""
        if self.reason is None and not self._disconnected:
            if self._disconnect is None:
                self._disconnect = anyio.Event()
            self._listeners += 1
            try:
                await self._disconnect.wait()
            finally:
                self._listeners -= 1

    def end(self) -> None:
        """The app has ended: ask no more. Threads that it was stopped with may ask on."""
        self._done = True
        self._spared = self._spared or self.reason is None
        if self._timers is not None:
            for call_off in self._timers.values():
                call_off()

    def spare(self) -> None:
        """Its response is complete: a cancellation comes too late for what may still run."""
        if self.reason is Reason.CANCELLED:
            self._spared = True
            self.end()

    async def stopped(self) -> None:
        """Return when the threads that it was seen to wait for have, though it did not stay."""
        if self._threads is not None:
            await self._threads.returned()

    def _ask(self) -> None:
        stoppers = self._stoppers[-1:]  # in one step: another thread may leave its block
        if self._done or not stoppers or self._threads is None:
            return
        (stopper,) = stoppers
        if self._threads.computing(stopper.threads()):
            # Nor is it told that its client has left: Quart and Django would cancel the task that
            # waits for the thread. Who asks from now on is told, and may ask from the thread.
            self.after(self._threads.pause(), self._ask)
            return
        self.after(self._grace, self._ask)  # cleanup code has its grace before it is asked again
        if self._listeners and len(self._stoppers) == 1 and not (self._asked or self._disconnected):
            # The app watches its `receive`, as Django, Quart and streaming responses do: it ends
            # by itself what it has begun. Cancelled from outside it would abandon its own tasks.
            self.disconnect()
        else:
            # A handler has been entered. A framework that cancels it on `http.disconnect` would do
            # so while it cleans up, so whoever listens beside it is told later.
            stopper.stop()
            if self._asked:
                self.disconnect()  # it does not end by itself
            self._asked = True


class _Threads:
    """The threads that an app waits for which is to stop, from look to look.

    Those that ran at the first look are waited for, and the app may make its response of what they
    return. If it begins others, it is asked as one of them returns. If it never stands
    without any, as tasks do that take turns, it is asked all the same after the grace, and has not
    stopped before they have returned.

    Args:
        look: asks for the next look at once.
        time: gives the time of the event loop, in seconds.
        grace: seconds from now that threads are waited for which are seen to return without it.
    """

    __slots__ = (
        "_first",
        "_first_resume",
        "_impatient_at",
        "_known",
        "_look",
        "_pause",
        "_time",
        "_turns",
        "_waits",
        "_watched",
    )

    def __init__(self, look: Callable[[], None], time: Callable[[], float], grace: float) -> None:
        self._look = look
        self._time = time
        self._impatient_at = time() + grace
        self._first: set[Any] | None = None
        self._first_resume: set[Any] = set()  # what lets those go on that wait for them
        self._known: set[Any] = set()
        self._watched: set[Any] = set()
        self._waits = False
        self._pause = _FIRST_PAUSE
        self._turns = 0  # until what the first have returned has come to the app

    def computing(self, threads: list[Thread]) -> bool:
        """Whether a cancellation now would leave threads to themselves."""
        if not threads and self._first is None:  # as of most apps
            self._first = set()
            return False
        # Of the task itself that counts only if it is to have what a thread has returned.
        nexts = [t for t in threads if t.next and (not t.own or t.resumes in self._first_resume)]
        goes_on = bool(nexts) and any(thread.resumes not in self._watched for thread in nexts)
        running = [t for t in threads if t.waited and t.runs and not t.next]
        lost = [thread for thread in running if not thread.safe]
        self._known.update(t.end for t in threads if (t.waited or t.runs) and not t.next)
        if self._first is None:
            self._first = {thread.end for thread in running}
            if running:
                self._first_resume = {thread.resumes for thread in running}
        if any(thread.end in self._first for thread in running):
            self._waits, self._turns = True, _TURNS
        else:
            self._turns -= 1
            patient = bool(lost or goes_on) and self._time() < self._impatient_at
            self._waits = patient or self._turns >= 0 or any(t.hidden for t in lost)
            self._watch(lost)
        return self._waits

    def _watch(self, threads: list[Thread]) -> None:
        for resumes in {thread.resumes for thread in threads} - self._watched:
            if resumes is not None:
                self._watched.add(resumes)
                on_return(resumes, self._returned)

    def _returned(self) -> bool:
        if self._waits:
            self._look()
        return not self._waits

    def pause(self) -> float:
        """Seconds until the next look."""
        if 0 <= self._turns < _TURNS:
            return 0.0
        pause, self._pause = self._pause, min(2 * self._pause, _LAST_PAUSE)
        return pause

    async def returned(self) -> None:
        """Return when all of them have."""
        while any(not end.done() for end in self._known):  # noqa: ASYNC110 - nobody tells
            await anyio.sleep(_FIRST_PAUSE)
