"""Stopping an app: why, by what, and how often it is asked."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import anyio

from raincheck.tasks import Stopper, Tasks

# Seconds between looks at an app that is to stop but waits for a thread.
_THREAD_INTERVAL = 0.05


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
    """

    __slots__ = (
        "_asked",
        "_disconnect",
        "_disconnected",
        "_done",
        "_grace",
        "_listeners",
        "_stoppers",
        "_tasks",
        "_timers",
        "reason",
    )

    def __init__(self, tasks: Tasks, grace: float) -> None:
        self.reason: Reason | None = None
        self._tasks = tasks
        self._grace = grace
        self._stoppers: list[Stopper] = []
        self._timers: dict[Callable[[], None], Callable[[], None]] | None = None  # how to call off
        self._disconnect: anyio.Event | None = None
        self._disconnected = False
        self._listeners = 0
        self._asked = False
        self._done = False

    def inside(self) -> Stopper:
        """The block that is stopped: the innermost one that the app stands in."""
        return self._tasks.stopper(self._stoppers)

    def after(self, delay: float, callback: Callable[[], None]) -> None:
        """Call back after `delay` seconds, unless the app has ended by then."""
        if self._timers is None:
            self._timers = {}
        self._timers[callback] = self._tasks.call_later(delay, callback)

    def stop(self, reason: Reason) -> None:
        """Ask the app to stop: by `http.disconnect`, and by cancellation at its next await.

        The first request starts the asking; a later one may only give a weightier reason.
        """
        asked, self.reason = self.reason, reason
        if asked is Reason.LOST or (asked is Reason.INTERRUPTED and reason is not Reason.LOST):
            self.reason = asked
        if asked is not None or self._done:
            return
        if self._listeners and len(self._stoppers) == 1:
            # The app watches its `receive`, as Django, Quart and streaming responses do: it ends
            # by itself what it has begun. Cancelled from outside it would abandon its own tasks.
            self.disconnect()
            self.after(self._grace, self._cancel)
        else:
            # A handler has been entered. A framework that cancels it on `http.disconnect` would do
            # so while it cleans up, so whoever listens beside it is told later.
            self._cancel()

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
        """The app has ended: ask no more."""
        self._done = True
        if self._timers is not None:
            for call_off in self._timers.values():
                call_off()

    def spare(self) -> None:
        """Its response is complete: a cancellation comes too late for what may still run."""
        if self.reason is Reason.CANCELLED:
            self.end()

    def _cancel(self) -> None:
        if self._done or not self._stoppers:
            return
        again, cancelled = self._asked, self._stoppers[-1].stop()
        self._asked = cancelled
        if again or not cancelled:
            self.disconnect()  # it does not end by itself, or waits for a thread
        # A thread is looked at again soon; cleanup code has its grace before it is cancelled again.
        self.after(self._grace if cancelled else _THREAD_INTERVAL, self._cancel)
