"""`@long_running`: how an endpoint says, at its entry, that it takes its time."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ParamSpec, Protocol, TypeVar, Unpack, cast, overload

import anyio
import anyio.to_thread

from raincheck.errors import ConfigurationError
from raincheck.job import Job, Progress
from raincheck.policy import Policy, PolicySettings, setting_names

P = ParamSpec("P")
T = TypeVar("T")

MARK = "__raincheck_mark__"
"""The attribute of a decorated endpoint that holds its `Mark`."""


@dataclass(frozen=True, slots=True, eq=False)
class Mark:
    """What `@long_running` leaves on an endpoint.

    Attributes:
        name: the endpoint's qualified name.
        settings: the fields of `Policy` that the decorator was given.
    """

    name: str
    settings: PolicySettings


class Entrance(Protocol):
    """The handoff as handlers see it: at their entry, and when they report."""

    job: Job | None

    def report(self, progress: Progress) -> None:
        """Note how far the handler is."""

    async def enter(self, mark: Mark) -> bool:
        """Ask to be accepted at the handler's entry.

        Returns:
            Whether the handler runs in the background now. False: it is a plain one.

        Raises:
            Release: it does not run now; the request must unwind.
        """

    def inside(self) -> AbstractContextManager[object]:
        """The block in which the handler runs and can be stopped."""

    @property
    def limiter(self) -> anyio.CapacityLimiter:
        """The threads for synchronous handlers, apart from the framework's own."""


current_handoff: ContextVar[Entrance | None] = ContextVar("raincheck_handoff", default=None)
"""The handoff of the request that the running code serves."""


@overload
def long_running(endpoint: Callable[P, Awaitable[T]], /) -> Callable[P, Coroutine[Any, Any, T]]: ...


@overload
def long_running(endpoint: Callable[P, T], /) -> Callable[P, Coroutine[Any, Any, T]]: ...


@overload
def long_running(
    **settings: Unpack[PolicySettings],
) -> Callable[[Callable[P, Any]], Callable[P, Coroutine[Any, Any, Any]]]: ...


def long_running(
    endpoint: Callable[..., Any] | None = None, /, **settings: Unpack[PolicySettings]
) -> Any:
    """Mark an endpoint as long-running: `@long_running` or `@long_running(timeout=600)`.

    Under a `LongRunningMiddleware` a request is accepted when it enters the endpoint: routing,
    authentication, validation and dependencies have answered by then, or let it through. Without
    one the endpoint is a plain one. Works on `async def` and `def`, on functions and on methods,
    and keeps the signature. A decorated `def` becomes a coroutine function that runs the original
    in a thread: one of raincheck's own, so that slow handlers cannot starve the framework's.

    Decorators put on top of this one must use `functools.wraps`, as Starlette's and FastAPI's do.

    Args:
        endpoint: the endpoint, when used without parentheses.
        **settings: fields of `Policy`; those not named are the middleware's.

    Raises:
        ConfigurationError: an unknown or impossible setting, or an endpoint that is a class, a
            generator function or no callable at all.
    """
    if unknown := settings.keys() - setting_names():
        known = ", ".join(sorted(setting_names()))
        raise ConfigurationError(
            f"long_running() has no setting {', '.join(sorted(unknown))}; it takes {known}"
        )
    Policy(**settings)  # says now, not at the first request, what cannot work

    def decorate(endpoint: Callable[..., Any]) -> Callable[..., Any]:
        return _mark(endpoint, settings)

    return decorate if endpoint is None else decorate(endpoint)


def _mark(endpoint: Callable[..., Any], settings: PolicySettings) -> Callable[..., Any]:
    if not callable(endpoint) or inspect.isclass(endpoint):
        raise ConfigurationError(
            f"@long_running marks functions and methods, not {endpoint!r}; "
            "put it on the methods of a class-based endpoint"
        )
    if isinstance(endpoint, staticmethod | classmethod):
        raise ConfigurationError(
            f"@long_running stands above @{type(endpoint).__name__}; put it below, on the function"
        )
    plain = endpoint
    while isinstance(plain, functools.partial):
        plain = plain.func
    if any(inspect.isgeneratorfunction(f) or inspect.isasyncgenfunction(f) for f in _bodies(plain)):
        raise ConfigurationError(
            f"@long_running cannot mark the generator function {_name(plain)}: nothing of it "
            "runs at its entry; return a streaming response, or use a path rule (routes=...)"
        )
    on_loop = _is_async(plain)
    in_thread = _in_thread(endpoint)
    mark = Mark(_name(plain), settings)

    @functools.wraps(plain)
    async def entered(*args: Any, **kwargs: Any) -> Any:
        handoff = current_handoff.get()
        if handoff is None or not await handoff.enter(mark):
            return await (endpoint(*args, **kwargs) if on_loop else in_thread(None, args, kwargs))
        with handoff.inside():
            if on_loop:
                return await endpoint(*args, **kwargs)
            return await in_thread(handoff.limiter, args, kwargs)

    if plain is not endpoint:  # the arguments that a partial binds are taken
        entered.__signature__ = inspect.signature(endpoint)  # type: ignore[attr-defined] # set so
    setattr(entered, MARK, mark)
    return entered


def _in_thread(endpoint: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    async def run(limiter: anyio.CapacityLimiter | None, args: Any, kwargs: Any) -> Any:
        call = functools.partial(endpoint, *args, **kwargs)
        return await anyio.to_thread.run_sync(call, limiter=limiter)

    return run


def _is_async(endpoint: Callable[..., Any]) -> bool:
    return any(inspect.iscoroutinefunction(body) for body in _bodies(endpoint))


def _bodies(endpoint: Callable[..., Any]) -> tuple[Any, Any]:
    """What may hold an endpoint's code: itself, or a callable object's `__call__`."""
    return endpoint, getattr(type(endpoint), "__call__", None)  # noqa: B004 - that method's code


def _name(endpoint: Callable[..., Any]) -> str:
    named = endpoint if hasattr(endpoint, "__qualname__") else type(endpoint)
    return f"{named.__module__}.{cast(Any, named).__qualname__}"


def mark_of(endpoint: object) -> Mark | None:
    """The mark on an endpoint, also below `functools.partial`; None if it has none."""
    while isinstance(endpoint, functools.partial):
        endpoint = endpoint.func
    mark = getattr(endpoint, MARK, None)
    return mark if isinstance(mark, Mark) else None
