"""Threads: those that a task waits for, as far as that can be seen from outside.

A thread cannot be cancelled. A task that waits for one and is cancelled abandons it, computing on,
and what the task stood for would be called stopped when it is not. Event loops have no word for
"what does this task wait for", so it is read from what suspended coroutines and futures refer to:

- `asyncio.to_thread`, executors of threads and of processes, asgiref and the frameworks' own: an
  asyncio future that follows a concurrent one.
- anyio's worker threads, and those of trio that are abandoned by a cancellation: by the coroutine
  that waits for them.
- `gather`, `wait`, `wait_for`, `shield`, `as_completed`, and the groups of asyncio, anyio and trio:
  by the tasks and futures that they were given.

What tells of its end by a bare future, as a library with a thread of its own does, cannot be seen.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future as ConcurrentFuture
from enum import Enum, auto
from functools import lru_cache
from types import (
    AsyncGeneratorType,
    CellType,
    CodeType,
    CoroutineType,
    FrameType,
    FunctionType,
    GeneratorType,
    MethodType,
    NoneType,
)
from typing import Any, NamedTuple

import anyio
import anyio.abc
import anyio.to_thread

_ASYNCIO = os.path.dirname(asyncio.__file__) + os.sep

_RUN_SYNC = anyio.to_thread.run_sync.__code__

# What awaits a thread of asgiref's.
_BRIDGE = "SyncToAsync.__call__"

# Turns of an event loop in which a cancellation comes through groups within groups.
_TURNS = 20

_CONTAINERS = (dict, list, tuple, set, frozenset, deque)

_WRAPPERS = (CellType, MethodType)

# What is no future, has none in it, and is what coroutines refer to for the most part.
_PLAIN = frozenset({CodeType, CoroutineType, FrameType, FunctionType, NoneType, bytes, int, str})

# What asyncio tells a future by, and what is asked of one here.
_OF_FUTURES = frozenset({"_asyncio_future_blocking", "done", "get_loop"})

# What has another one, or none, is the type of classes that are no futures, and not to be kept.
_HASH: Any = type.__hash__


class Thread(NamedTuple):
    """Work in a thread or a process.

    Attributes:
        end: tells by its `done()` whether it has returned; one and the same at every look.
        resumes: the future whose end lets the task that waits for it go on, if there is one.
        waited: whether that task waits for it; if not, it only refers to it.
        runs: whether it has begun; what has not is called off together with its task.
        safe: whether the task may be cancelled meanwhile: it stays until this has returned, or was
            written to abandon it.
        hidden: whether its end cannot be seen any more once the task is cancelled.
        next: whether it is none so far, but what a task may go on to that is about to run.
        own: of such a one, whether it is the task itself that was asked about: it may be about to
            have what a thread has returned.
    """

    end: Any
    resumes: asyncio.Future[Any] | None
    waited: bool
    runs: bool = True
    safe: bool = False
    hidden: bool = False
    next: bool = False
    own: bool = False


class _Way(NamedTuple):
    """How the search has come to something.

    Attributes:
        waited, resumes: as in `Thread`.
        scoped: whether a cancellation comes this way by anyio's scopes, which a shield stops.
        follows: whether a future that is not done follows it.
    """

    waited: bool = True
    scoped: bool = False
    resumes: asyncio.Future[Any] | None = None
    follows: bool = False

    def natively(self) -> _Way:
        """Further on, where a cancellation comes by the task's own `cancel()`."""
        return self._replace(scoped=False)


# --- asyncio -----------------------------------------------------------------------------------


def threads_of(task: asyncio.Task[Any]) -> list[Thread]:
    """The threads that a suspended task waits for or refers to, directly or by other tasks."""
    found: list[Thread] = []
    loop, seen = task.get_loop(), dict[int, Any]()
    waited: list[tuple[Any, _Way]] = [(task, _Way())]
    others: list[tuple[Any, _Way]] = []
    while waited or others:  # what is waited for comes first: that counts, however it is met again
        node, way = (waited or others).pop()
        foreign = isinstance(node, ConcurrentFuture)
        # What follows a thread and is not done hears in a moment that the thread has returned.
        if id(node) in seen or (node.done() and not (foreign and way.follows)):
            continue
        seen[id(node)] = node  # kept, so that no other takes its place in memory
        if foreign:
            runs = node.running() or node.done()
            found.append(Thread(node, way.resumes, way.waited, runs=runs))
        elif node.get_loop() is not loop:  # of another thread: it is told, and has its clean-up
            runs = _executes(node)  # perhaps on its way to a thread
            found.append(Thread(node, way.resumes, way.waited, runs=runs))
        if not hasattr(node, "get_coro"):
            steps = _in_future(node, way)
        else:
            steps = _in_task(node, way, found)
            resumes = getattr(node, "_fut_waiter", None)
            own, runs = node is task, resumes is None or resumes.done()
            if way.waited and runs and not (own and resumes is None):
                found.append(Thread(node, resumes, waited=True, next=True, own=own))
        for step, further in steps:
            (waited if further.waited else others).append((step, further))
    return [_of_loop(loop, thread) for thread in found]


def _of_loop(loop: asyncio.AbstractEventLoop, thread: Thread) -> Thread:
    """Without the future of another loop, which nobody may listen to from here."""
    foreign = thread.resumes is not None and thread.resumes.get_loop() is not loop
    return thread._replace(resumes=None) if foreign else thread


def on_return(resumes: asyncio.Future[Any], ask: Callable[[], bool]) -> None:
    """Ask when a thread has returned, before the task that waits for it goes on.

    Args:
        resumes: the thread's, as in `Thread`.
        ask: tells whether the task is to be cancelled. That may have to come to it by others, which
            takes a few turns of the loop: meanwhile it does not go on to another thread.
    """
    loop = resumes.get_loop()
    callbacks: Any = getattr(resumes, "_callbacks", None) or ()
    wakeups = [
        (wakeup, context)
        for wakeup, context in callbacks
        if isinstance(getattr(wakeup, "__self__", None), asyncio.Task)
    ]

    def resume(turns: int) -> None:
        if turns:
            loop.call_soon(resume, turns - 1)
        else:
            for wakeup, context in wakeups:
                loop.call_soon(wakeup, resumes, context=context)

    resumes.add_done_callback(lambda _: resume(_TURNS if ask() else 0))
    for wakeup, _ in wakeups:
        resumes.remove_done_callback(wakeup)


def _in_future(future: Any, way: _Way) -> Iterator[tuple[Any, _Way]]:
    """The futures that one follows: gathered, shielded, of an executor or of another loop.

    They are looked up in the callbacks by which asyncio passes a cancellation on to them.
    """
    way = _Way(way.waited, resumes=way.resumes or future, follows=True)
    yield from ((child, way) for child in getattr(future, "_children", ()))
    own, foreign = getattr(future, "_callbacks", None), getattr(future, "_done_callbacks", None)
    for entry in tuple(own or foreign or ()):
        callback = entry[0] if isinstance(entry, tuple) else entry
        if isinstance(callback, FunctionType) and _of_asyncio(callback.__code__):
            cells = zip(callback.__code__.co_freevars, callback.__closure__ or (), strict=True)
            yield from ((c.cell_contents, way) for name, c in cells if name in ("source", "inner"))


def _in_task(task: Any, way: _Way, found: list[Thread]) -> Iterator[tuple[Any, _Way]]:
    """What a task depends on; a thread that it stands at directly is `found`."""
    resumes = getattr(task, "_fut_waiter", None)
    way = way._replace(resumes=resumes, follows=False)
    natively, looked = way.natively(), dict[tuple[int, bool], Any]()
    for coroutine, code in _chain(task.get_coro()):
        if code is _RUN_SYNC and (thread := _anyio_thread(coroutine, way)) is not None:
            found.append(thread)
            return
        if code is not None and code.co_qualname == _BRIDGE and (tasks := _bridged(coroutine)):
            yield from ((child, natively) for child in tasks)
            return
        own = _of_asyncio(code)
        if things := _referents(coroutine, looked, own=own):
            yield from _referred(things, task, natively, own=own)
    if resumes is not None:
        yield resumes, natively


def _anyio_thread(coroutine: Any, way: _Way) -> Thread | None:
    """The thread that `anyio.to_thread.run_sync` waits for, once it has one."""
    end = way.resumes
    if end is None or end.done() or inspect.iscoroutine(_awaited(coroutine.cr_await)):
        return None  # it waits for its turn, and does not begin once it is cancelled
    safe = way.scoped and not coroutine.cr_frame.f_locals["abandon_on_cancel"]
    return Thread(end, end, way.waited, safe=safe, hidden=way.waited and not safe)


def _bridged(coroutine: Any) -> list[Any]:
    """The tasks here that a thread of asgiref's waits for, if it does.

    When who waits for the thread is cancelled, they are, and it goes on when the thread does.
    """
    return [*coroutine.cr_frame.f_locals.get("task_context", ())]


class _Role(Enum):
    """Why what a coroutine refers to may lead to a thread."""

    FUTURE = auto()
    CONTAINER = auto()
    TASK_GROUP = auto()
    ANYIO_TASK_GROUP = auto()
    AS_COMPLETED = auto()
    GENERATOR = auto()


def _role_of(kind: type) -> _Role | None:
    if kind in _CONTAINERS:
        return _Role.CONTAINER
    if kind is GeneratorType:
        return _Role.GENERATOR
    if issubclass(kind, asyncio.TaskGroup):
        return _Role.TASK_GROUP
    if issubclass(kind, anyio.abc.TaskGroup):
        return _Role.ANYIO_TASK_GROUP
    if kind.__name__ == "_AsCompletedIterator":
        return _Role.AS_COMPLETED
    names = {name for each in kind.__mro__ for name in vars(each)}  # it may have a metaclass
    return _Role.FUTURE if names >= _OF_FUTURES or issubclass(kind, ConcurrentFuture) else None


_role: Callable[[type], _Role | None] = lru_cache(maxsize=1024)(_role_of)
"""The role of things of a type; None for most. Of the thing itself nothing is asked: it may be a
proxy that raises."""


def _referents(coroutine: Any, looked: dict[tuple[int, bool], Any], *, own: bool) -> list[Any]:
    """What may lead to a thread of all that a suspended coroutine refers to.

    And no other of its task, so that it is looked into once: frameworks hand much the same from
    coroutine to coroutine, such as the scope.

    Args:
        coroutine: which; or a suspended generator.
        looked: what was found so far, each by its id and `own`; kept, as what is `seen` is.
        own: whether the coroutine is one of asyncio's.
    """
    new = []
    things = gc.get_referents(coroutine)
    for thing in things:
        kind = type(thing)
        if type(kind).__hash__ is not _HASH or kind in _PLAIN or (id(thing), own) in looked:
            continue
        looked[id(thing), own] = thing
        if kind in _WRAPPERS:
            things += gc.get_referents(thing)  # which come next
        elif _role(kind) is not None:
            new.append(thing)
    return new


def _referred(
    things: list[Any], task: Any, natively: _Way, *, own: bool
) -> Iterator[tuple[Any, _Way]]:
    """The futures and tasks that are, or are in, what a suspended coroutine of a task refers to.

    asyncio's own coroutines refer to what they wait for. Others may refer to what is meant to
    outlive them, and only what is in their groups is theirs for certain.
    """
    for thing in things:
        role = _role(type(thing))
        if role is _Role.TASK_GROUP:
            if getattr(thing, "_parent_task", task) is task:
                yield from ((child, natively) for child in tuple(getattr(thing, "_tasks", ())))
        elif role is _Role.ANYIO_TASK_GROUP:
            if getattr(getattr(thing, "cancel_scope", None), "_host_task", task) is task:
                scoped = natively._replace(scoped=True)
                yield from ((child, scoped) for child in tuple(getattr(thing, "_tasks", ())))
        elif role is _Role.AS_COMPLETED:  # as_completed(), since Python 3.13
            yield from ((future, natively) for future in _futures(getattr(thing, "_todo", ())))
        elif role is _Role.GENERATOR:  # and before
            inner = _referents(thing, {}, own=True) if _of_asyncio(thing.gi_code) else []
            yield from ((future, natively) for each in inner for future in _futures(each))
        elif own or natively.waited:
            for future in _futures(thing):
                yield future, natively if own else _Way(waited=False)


def _futures(thing: Any) -> list[Any]:
    """The futures that the value of a local variable is, or contains."""
    role = _role(type(thing))
    if role is not _Role.CONTAINER:
        return [thing] if role is _Role.FUTURE else []
    things = tuple(thing.values() if type(thing) is dict else thing)
    try:
        return [t for t in things if type(t) not in _PLAIN and _role(type(t)) is _Role.FUTURE]
    except TypeError:  # not all of their types have a hash
        return _futures([each for each in things if type(type(each)).__hash__ is _HASH])


def _executes(node: Any) -> bool:
    coroutine = node.get_coro() if hasattr(node, "get_coro") else None
    return bool(getattr(coroutine, "cr_running", False))


def _of_asyncio(code: CodeType | None) -> bool:
    return code is not None and code.co_filename.startswith(_ASYNCIO)


# --- trio --------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """What a thread of trio's holds until it has really returned, abandoned or not."""

    limiter: Any
    borrower: Any

    def done(self) -> bool:
        """Whether it has given it back."""
        return self.borrower not in self.limiter.statistics().borrowers


def abandoned_by(task: Any) -> list[Thread]:
    """The threads that a trio task and its children wait for, and will not once cancelled.

    For all others trio waits by itself.
    """
    found: list[Thread] = []
    tasks = [task]
    while tasks:
        task = tasks.pop()
        for coroutine, code in _chain(task.coro):
            if code is not None and code.co_name == "to_thread_run_sync":
                waits, names = _code(_awaited(coroutine)), coroutine.cr_frame.f_locals
                began = waits is not None and waits.co_name == "wait_task_rescheduled"
                if began and names["abandon_on_cancel"]:
                    place = _Place(names["limiter"], names["placeholder"])
                    found.append(Thread(place, None, waited=True, safe=True))
        tasks.extend(child for nursery in task.child_nurseries for child in nursery.child_tasks)
    return found


# --- coroutines --------------------------------------------------------------------------------


def _chain(coroutine: Any) -> list[tuple[Any, CodeType | None]]:
    """A suspended coroutine, what it awaits, what that awaits, and so on; each with its code."""
    chain: list[tuple[Any, CodeType | None]] = []
    others = set[int]()
    while coroutine is not None:
        if type(coroutine) is CoroutineType:  # as most are
            chain.append((coroutine, coroutine.cr_code))
            coroutine = coroutine.cr_await
        elif id(coroutine) in others:  # it refers to what awaits it
            break
        else:
            others.add(id(coroutine))
            chain.append((coroutine, _code(coroutine)))
            coroutine = _awaited(coroutine)
    return chain


def _awaited(coroutine: Any) -> Any:
    """What a suspended coroutine or generator awaits, or None."""
    for attribute in ("cr_await", "ag_await", "gi_yieldfrom"):
        if hasattr(type(coroutine), attribute):  # which may be a proxy, too
            return getattr(coroutine, attribute)
    # `coroutine.__await__()` and an async generator's `__anext__()` have no such attribute, but
    # refer to what they drive.
    for referent in gc.get_referents(coroutine):
        if type(referent) in (CoroutineType, AsyncGeneratorType):
            return referent
    return None


def _code(coroutine: Any) -> CodeType | None:
    for attribute in ("cr_code", "ag_code", "gi_code"):
        if hasattr(type(coroutine), attribute):
            code: CodeType | None = getattr(coroutine, attribute)
            return code
    return None
