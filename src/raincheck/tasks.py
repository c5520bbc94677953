"""Tasks, timers and hand-overs: the one place where asyncio and trio differ.

Everything else in raincheck is written for anyio. Here stands what anyio has no word for, or has
only at a price that the hot path feels: `benchmarks/handover.py` measures a task and a hand-over
by anyio's task group and event at several times the cost of a plain task and a future.

- A task that outlives the request it began in, without a group that somebody has to enter first:
  an app may come without a lifespan.
- A hand-over from one task to another, once.
- A timer, and a call from any thread.
- A block that ends in time, without a timer of its own.
- Stopping a handler. On asyncio that is the task's own `cancel()`, once: the cleanup code in a
  handler may `await`, as its author expects. On trio cancellation is level-triggered by nature.
"""

from __future__ import annotations

import asyncio
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future as ConcurrentFuture
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import Context, copy_context
from functools import partial
from threading import get_ident
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import anyio

from raincheck.errors import Release
from raincheck.threads import Thread, abandoned_by, threads_of

Run = Callable[[], Coroutine[Any, Any, None]]

T = TypeVar("T")

# Seconds between looks at a task of another thread that is to stop, but waits for a thread itself;
# and how many looks it may be about to: tasks that take turns are always.
_THREAD_INTERVAL, _THREAD_LOOKS = 0.05, 20

CLEANUP = 1.0
"""Seconds that what a `limit` has cancelled may clean up in, until it is cancelled again."""


class Gate(Protocol):
    """A hand-over: closed at first, opened once."""

    def open(self) -> None:
        """Let the waiting task, and every later one, through. Again is no error."""

    def is_open(self) -> bool:
        """Whether it was opened."""

    def wait(self) -> Awaitable[None]:
        """Return when it is open. One task waits at a time; another may after it was cancelled."""


class Stopper(ABC):
    """Stops the code of a block, and turns that stop into a `Release`.

    The block begins when the stopper is made, and ends with `left()`; `with` does so, too. The
    frames outside of it see no cancellation: what they clean up may `await`.

    Args:
        stack: the stoppers whose blocks are entered, the innermost last.

    Attributes:
        orphaned: whether the block was left because its event loop was thrown away: nothing can be
            awaited any more. `GeneratorExit` alone does not say so, since code may raise it, and
            may turn it into another error.
    """

    __slots__ = ("_stack", "orphaned")

    def __init__(self, stack: list[Stopper]) -> None:
        self._stack = stack
        self.orphaned: bool = False
        stack.append(self)

    @abstractmethod
    def left(self, error: BaseException | None) -> None:
        """The block has ended, by this error or without one.

        Raises:
            Release: the error is how it was stopped.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.left(exc)

    @abstractmethod
    def threads(self) -> list[Thread]:
        """The threads that the code inside waits for, which a cancellation does not reach."""

    @abstractmethod
    def stop(self) -> None:
        """Cancel the code inside at its next await."""


class Tasks(ABC):
    """The tasks of one middleware on one event loop.

    Attributes:
        thread: the one that the event loop runs in.
        time: gives the time of the event loop, in seconds; in callbacks as well.
        gate: makes a hand-over.
        stopper: makes a stopper around what the running task does next; on the stack that it is
            given until that is left.
    """

    thread: int
    time: Callable[[], float]
    gate: Callable[[], Gate]
    stopper: Callable[[list[Stopper]], Stopper]

    def remote(self) -> bool:
        """Whether the running code is on the event loop of another thread."""
        return get_ident() != self.thread and not self.here()

    async def call(self, run: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run something in a task here, for one that is remote.

        Raises:
            BaseException: whatever it raises.
        """
        result: ConcurrentFuture[T] = ConcurrentFuture()
        result.set_running_or_notify_cancel()  # so that it is set, though nobody waits any more

        async def carry() -> None:
            try:
                result.set_result(await run())
            except BaseException as error:  # it is raised where it is waited for
                result.set_exception(error)

        if not self.call_soon(partial(self.spawn, carry, copy_context())):
            raise RuntimeError("the event loop that took this request has ended")
        return await asyncio.wrap_future(result)

    @abstractmethod
    def here(self) -> bool:
        """Whether the running event loop is the one that these tasks belong to."""

    @abstractmethod
    def live(self) -> bool:
        """Whether that event loop runs, maybe in another thread; in another process it does not."""

    @abstractmethod
    def spawn(self, run: Run, context: Context, keeper: object = None) -> None:
        """Start a task. `run` must not raise.

        Args:
            run: what it does.
            context: the context variables that it runs in, and nobody else meanwhile: a request's,
                or `Context()` for what raincheck does for itself. Whoever happens to start it is
                mostly somebody else.
            keeper: what the task is kept by until that is told to `release`, at its end; None: it
                looks after itself, which takes another turn of the loop.
        """

    def release(self, keeper: object) -> None:  # noqa: B027 - trio keeps all tasks
        """The task that is kept by this ends now."""

    @abstractmethod
    def remote_stopper(self, stack: list[Stopper]) -> Stopper:
        """A stopper of a task on the event loop of another thread, by which this is called."""

    @abstractmethod
    def call_later(self, delay: float, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back after `delay` seconds, in an empty context.

        Returns:
            What calls it off.
        """

    @abstractmethod
    def call_soon(self, callback: Callable[[], None]) -> bool:
        """Call back on the event loop, in an empty context; from any thread.

        Returns:
            Whether it will: a thread may have outlived the loop, and nobody is left to be told.
        """

    @abstractmethod
    def cancelled(self) -> bool:
        """Whether the running task was cancelled, by whoever ends the event loop.

        Asked when a cancellation has come out of it: a handler may also raise one of its own, for
        instance from a future that was cancelled.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Cancel every task and wait for it."""


@contextmanager
def limit(delay: float) -> Iterator[None]:
    """A block that is cancelled after so many seconds, which ends as `TimeoutError` then."""
    limits = TimeLimits(delay)
    try:
        with limits():
            yield
    finally:
        limits.close()


class TimeLimits:
    """Makes blocks that each end like that of a `limit`, for what is done often.

    Args:
        delay: seconds, the same for all of them.
    """

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._there: AsyncioTimeLimits | None = None  # of the event loop that asked last

    def __call__(self) -> AbstractContextManager[object]:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # trio's deadlines need no timer of their own
            return anyio.fail_after(self._delay)
        there = self._there
        if there is None or there.loop is not loop:
            there = self._there = AsyncioTimeLimits(loop, self._delay)
        return there.limit()

    def close(self) -> None:
        """There are no more of them."""
        if self._there is not None:
            self._there.close()


def open_tasks() -> Tasks:
    """The tasks of the running event loop."""
    try:
        return AsyncioTasks()
    except RuntimeError:  # no asyncio loop is running, so it is trio's
        return TrioTasks()


# --- asyncio ---------------------------------------------------------------------------------


class AsyncioTasks(Tasks):
    """Plain asyncio tasks, each held in a set until it is done."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self.thread: int = get_ident()
        self.time: Callable[[], float] = self._loop.time
        self.gate: Callable[[], Gate] = partial(_AsyncioGate, self._loop)
        self.stopper: Callable[[list[Stopper]], Stopper] = _AsyncioStopper
        self._tasks: set[asyncio.Task[None]] = set()
        self._kept: dict[object, asyncio.Task[None]] = {}

    def here(self) -> bool:
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:  # another library's loop is running
            return False

    def live(self) -> bool:
        return self._pid == os.getpid() and self._loop.is_running()

    if sys.version_info >= (3, 12):

        def spawn(self, run: Run, context: Context, keeper: object = None) -> None:
            # Most requests come to their acceptance or their end without having to wait: they are
            # spared a turn of the loop, in which as many others as there are would pile up.
            task = asyncio.Task(run(), loop=self._loop, context=context, eager_start=True)
            if not task.done():
                if keeper is not None:
                    self._kept[keeper] = task
                else:
                    self._look_after(task)

    else:

        def spawn(self, run: Run, context: Context, keeper: object = None) -> None:
            task = self._loop.create_task(run(), context=context)
            if keeper is not None:
                self._kept[keeper] = task
            else:
                self._look_after(task)

    def _look_after(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def release(self, keeper: object) -> None:
        self._kept.pop(keeper, None)

    def remote_stopper(self, stack: list[Stopper]) -> Stopper:
        return _RemoteStopper(stack)

    def call_later(self, delay: float, callback: Callable[[], None]) -> Callable[[], None]:
        return self._loop.call_later(delay, callback, context=Context()).cancel

    def call_soon(self, callback: Callable[[], None]) -> bool:
        try:
            self._loop.call_soon_threadsafe(callback, context=Context())
        except RuntimeError:  # it is closed
            return False
        return True

    def cancelled(self) -> bool:
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0

    async def aclose(self) -> None:
        every = (*self._tasks, *self._kept.values())
        tasks = [task for task in every if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


class AsyncioTimeLimits:
    """Limits of the same length in one event loop, with one timer for all that are open.

    One for each would take longer than all else about it, and hardly ever goes off. They end in
    the order in which they began, so that the first that is open tells when to look again.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, delay: float) -> None:
        self.loop = loop
        self._delay = delay
        self._open: dict[AsyncioTimeLimit, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def limit(self) -> AsyncioTimeLimit:
        """A block that begins now."""
        task = asyncio.current_task(self.loop)
        assert task is not None
        one = AsyncioTimeLimit(self, task)
        self._open[one] = until = self.loop.time() + self._delay
        if self._timer is None:
            self._wait(until)
        return one

    def renew(self, one: AsyncioTimeLimit) -> None:
        """The time of a block that is open begins anew, unless it is up."""
        if self._open.pop(one, None) is not None:
            self._open[one] = self.loop.time() + self._delay

    def left(self, one: AsyncioTimeLimit) -> None:
        """A block has ended."""
        self._open.pop(one, None)

    def close(self) -> None:
        """There are no more of them."""
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self, until: float) -> None:
        self._timer = self.loop.call_at(until, self._look, context=Context())

    def _look(self) -> None:
        """End those whose time is up."""
        self._timer = None
        now = self.loop.time()
        while self._open:
            one, until = next(iter(self._open.items()))
            if until > now:
                self._wait(until)
                return
            del self._open[one]
            one.expire()


class AsyncioTimeLimit:
    """`asyncio.timeout()` without its coroutines and its timer.

    And what cleans up may wait for the same that hangs: it is cancelled again.
    """

    __slots__ = ("_again", "_cancels", "_late", "_limits", "_task")

    def __init__(self, limits: AsyncioTimeLimits, task: asyncio.Task[Any]) -> None:
        self._limits, self._task, self._cancels, self._late = limits, task, task.cancelling(), 0
        self._again: asyncio.TimerHandle | None = None

    def expire(self) -> None:
        """The time is up."""
        if self._task.cancel():
            self._late += 1
            self._again = self._task.get_loop().call_later(CLEANUP, self.expire)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._limits.left(self)
        if self._again is not None:
            self._again.cancel()
            self._uncancel(exc)

    def _uncancel(self, exc: BaseException | None) -> None:
        for _ in range(self._late):
            others = self._task.uncancel() > self._cancels
        if not others and isinstance(exc, asyncio.CancelledError):
            raise TimeoutError from exc


class _AsyncioGate:
    __slots__ = ("_future", "_open")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._future: asyncio.Future[None] = loop.create_future()
        self._open = False

    def open(self) -> None:
        self._open = True
        if not self._future.done():
            self._future.set_result(None)

    def is_open(self) -> bool:
        return self._open

    def wait(self) -> Awaitable[None]:
        if self._future.cancelled():  # a waiter was cancelled, and its future with it
            self._future = self._future.get_loop().create_future()
            if self._open:
                self._future.set_result(None)
        return self._future


class _AsyncioStopper(Stopper):
    __slots__ = ("_cancels", "_task")

    def __init__(self, stack: list[Stopper]) -> None:
        self._stack = stack  # not by way of super(): two are made for every job
        self.orphaned = False
        self._cancels = 0
        self._task: asyncio.Task[Any] | None = asyncio.current_task()
        stack.append(self)

    def left(self, error: BaseException | None) -> None:
        self._stack.remove(self)
        task, self._task = self._task, None
        if error is not None:
            self.orphaned = _running_task() is not task
        if not self._cancels or task is None:
            return
        # The cancellation ends here, so the count that asyncio.timeout() and TaskGroup in outer
        # frames go by has to be set right (Task.uncancel, Python 3.11).
        for _ in range(self._cancels):
            task.uncancel()
        if isinstance(error, asyncio.CancelledError):
            raise Release from error

    def threads(self) -> list[Thread]:
        return [] if self._task is None else threads_of(self._task)

    def stop(self) -> None:
        if self._task is not None:
            self._cancels += 1
            self._task.cancel()


def _running_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop runs
        return None


class _RemoteStopper(_AsyncioStopper):
    """Stops a block on the event loop of another thread, by way of that loop.

    Where asyncio does not run there, nothing can be told: the block ends by itself.
    """

    __slots__ = ("_asked",)

    def __init__(self, stack: list[Stopper]) -> None:
        self._asked = False
        try:
            super().__init__(stack)
        except RuntimeError:
            self._task = None
            self._stack.append(self)

    def threads(self) -> list[Thread]:
        return [thread._replace(resumes=None) for thread in super().threads()]

    def stop(self) -> None:
        if self._task is not None and not self._asked:
            self._asked = True
            with suppress(RuntimeError):  # that loop has ended, and the block with it
                self._task.get_loop().call_soon_threadsafe(self._stop_there)

    def _stop_there(self, looks: int = _THREAD_LOOKS) -> None:
        """On that loop, where alone the task cannot go on to a thread meanwhile."""
        if self._task is None:
            return
        running = [thread for thread in self.threads() if thread.waited and thread.runs]
        if any(looks > 0 or not thread.next for thread in running):
            self._task.get_loop().call_later(_THREAD_INTERVAL, self._stop_there, looks - 1)
        else:
            self._asked = False
            super().stop()


# --- trio ------------------------------------------------------------------------------------


class TrioTasks(Tasks):
    """trio system tasks: they belong to the run, not to the request that they began in."""

    def __init__(self) -> None:
        import trio

        self._trio = trio.lowlevel
        self._finished = trio.RunFinishedError
        self._token = trio.lowlevel.current_trio_token()
        self._pid = os.getpid()
        self.thread: int = get_ident()
        self.time: Callable[[], float] = trio.current_time
        self.gate: Callable[[], Gate] = _EventGate
        current_task = trio.lowlevel.current_task
        self.stopper: Callable[[list[Stopper]], Stopper] = partial(
            _ScopeStopper, here=self.here, current_task=current_task
        )
        self._scopes: set[anyio.CancelScope] = set()
        self._empty = anyio.Event()

    def here(self) -> bool:
        return self._trio.in_trio_run() and self._trio.current_trio_token() is self._token

    def live(self) -> bool:
        return self._pid == os.getpid() and self.call_soon(lambda: None)

    def spawn(self, run: Run, context: Context, keeper: object = None) -> None:
        self._start(run, context)

    def _start(self, run: Run, context: Context) -> anyio.CancelScope:
        scope = anyio.CancelScope()
        self._scopes.add(scope)

        async def task() -> None:
            try:
                with scope:
                    await run()
            finally:
                self._scopes.discard(scope)
                if not self._scopes:
                    self._empty.set()

        self._trio.spawn_system_task(task, context=context)
        return scope

    def remote_stopper(self, stack: list[Stopper]) -> Stopper:
        return _RemoteStopper(stack)

    def call_later(self, delay: float, callback: Callable[[], None]) -> Callable[[], None]:
        async def timer() -> None:
            await anyio.sleep(delay)
            callback()

        return self._start(timer, Context()).cancel

    def call_soon(self, callback: Callable[[], None]) -> bool:
        try:
            self._token.run_sync_soon(Context().run, callback)
        except self._finished:
            return False
        return True

    def cancelled(self) -> bool:
        return True

    async def aclose(self) -> None:
        for scope in tuple(self._scopes):
            scope.cancel()
        while self._scopes:
            self._empty = anyio.Event()
            await self._empty.wait()


class _EventGate:
    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = anyio.Event()

    def open(self) -> None:
        self._event.set()

    def is_open(self) -> bool:
        return self._event.is_set()

    def wait(self) -> Awaitable[None]:
        return self._event.wait()


class _ScopeStopper(Stopper):
    __slots__ = ("_here", "_scope", "_task")

    def __init__(
        self, stack: list[Stopper], here: Callable[[], bool], current_task: Callable[[], Any]
    ) -> None:
        super().__init__(stack)
        self._here = here
        self._task = current_task()
        self._scope = anyio.CancelScope()
        self._scope.__enter__()

    def left(self, error: BaseException | None) -> None:
        self._stack.remove(self)
        if error is not None and not self._here():
            self.orphaned = True
            return
        kind, trace = (None, None) if error is None else (type(error), error.__traceback__)
        self._scope.__exit__(kind, error, trace)
        if self._scope.cancelled_caught:
            raise Release from error

    def threads(self) -> list[Thread]:
        return abandoned_by(self._task)

    def stop(self) -> None:
        self._scope.cancel()
