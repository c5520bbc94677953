"""`@long_running`: how an endpoint says, at its entry, that it takes its time."""

from __future__ import annotations

import functools
import inspect
import logging
import re
import types
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ParamSpec, Protocol, TypeVar, Unpack, overload

import anyio
import anyio.to_thread
import starlette.authentication
from starlette.background import BackgroundTask
from starlette.endpoints import HTTPEndpoint
from starlette.responses import Response
from starlette.routing import Router
from starlette.types import Scope

from raincheck.errors import ConfigurationError, Release
from raincheck.job import Job, Progress
from raincheck.policy import Policy, PolicySettings, setting_names
from raincheck.tasks import Stopper

# What cannot be taken for the name of a path rule, and fits into a log line and a URL's query.
_NAME = re.compile(r"[\w.:<>#-]{1,200}")

P = ParamSpec("P")
T = TypeVar("T")

logger: logging.Logger = logging.getLogger("raincheck")

MARK = "__raincheck_mark__"
"""The attribute of a decorated endpoint that holds its `Mark`."""

MARKED = "__raincheck_marked__"
"""The attribute of the function below a decorated endpoint that holds all that was made of it."""


@dataclass(frozen=True, slots=True, eq=False)
class Mark:
    """What `@long_running` leaves on an endpoint.

    Attributes:
        name: the route's: the endpoint's qualified name, unless the decorator was given one.
        settings: the fields of `Policy` that the decorator was given.
    """

    name: str
    settings: PolicySettings


class Entrance(Protocol):
    """The handoff as handlers see it: at their entry, and when they report."""

    scope: Scope

    @property
    def job(self) -> Job | None:
        """The job as last recorded; None if it is none."""

    @property
    def known(self) -> Job | None:
        """The job, `cancelling` as soon as its handler is asked to stop because of that."""

    @property
    def stops(self) -> bool:
        """Whether the handler is to stop, for whatever reason."""

    def unwind(self) -> None:
        """Note that it does, from where it is: what it has sent of a response is not all of it."""

    def report(self, progress: Progress) -> None:
        """Note how far the handler is."""

    def raised(self, error: Exception) -> None:
        """Note what the handler raises, whatever is made of it further out."""

    async def enter(self, mark: Mark) -> Stopper | None:
        """Ask to be accepted at the handler's entry.

        Returns:
            What can stop the handler, if it runs in the background now: whoever asks tells it when
            that has ended. None: it is a plain one.

        Raises:
            Release: it does not run now; the request must unwind.
        """

    @property
    def limiter(self) -> anyio.CapacityLimiter | None:
        """The threads for synchronous handlers, apart from the framework's own.

        None on the event loop of another thread, which cannot share them.
        """


current_handoff: ContextVar[Entrance | None] = ContextVar("raincheck_handoff", default=None)
"""The handoff of the request that the running code serves."""


@overload
def long_running(endpoint: Callable[P, Awaitable[T]], /) -> Callable[P, Coroutine[Any, Any, T]]: ...


@overload
def long_running(endpoint: Callable[P, T], /) -> Callable[P, Coroutine[Any, Any, T]]: ...


@overload
def long_running(
    *, name: str | None = None, **settings: Unpack[PolicySettings]
) -> Callable[[Callable[P, Any]], Callable[P, Coroutine[Any, Any, Any]]]: ...


def long_running(
    endpoint: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    **settings: Unpack[PolicySettings],
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
        name: what its route is called in records and logs; jobs that a store keeps find their
            endpoint by it. Default: its module and qualified name, so that it needs one to be
            renamed or moved while jobs wait, and where a factory makes several of it.
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
    if name is not None and not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise ConfigurationError(
            f"long_running(name={name!r}): a name is up to 200 letters, digits and any of ._:<>#-, "
            'like "videos.encode"'
        )

    def decorate(endpoint: Callable[..., Any]) -> Callable[..., Any]:
        return _mark(endpoint, name, settings)

    return decorate if endpoint is None else decorate(endpoint)


def _mark(
    endpoint: Callable[..., Any], name: str | None, settings: PolicySettings
) -> Callable[..., Any]:
    if not callable(endpoint):
        raise ConfigurationError(
            f"@long_running marks functions and methods, not {endpoint!r}; its settings are given "
            "by name, like @long_running(timeout=600)"
        )
    if inspect.isclass(endpoint):
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
    mark = Mark(name or _name(plain), settings)
    entrance = _entrance(endpoint, mark, on_loop=_is_async(plain))
    entered = functools.update_wrapper(_at_home(entrance, plain), plain)
    if plain is not endpoint:  # the arguments that a partial binds are taken
        entered.__signature__ = inspect.signature(endpoint)  # type: ignore[attr-defined] # set so
    setattr(entered, MARK, mark)
    with suppress(AttributeError):  # a bound method keeps nothing
        setattr(plain, MARKED, (*getattr(plain, MARKED, ()), entered))
    return entered


def _entrance(
    endpoint: Callable[..., Any], mark: Mark, *, on_loop: bool
) -> Callable[..., Coroutine[Any, Any, Any]]:
    """What stands in an endpoint's place."""
    # The inner function may only use what is in here: `_at_home` gives it other globals.
    handoffs, in_thread = current_handoff, _in_thread(endpoint)
    release, instead = Release, _instead
    unasked = functools.cache(lambda: _warn_of_no_middleware(mark))

    async def entered(*args: Any, **kwargs: Any) -> Any:
        handoff = handoffs.get()
        if handoff is None:
            unasked()
        else:
            try:
                stopper = await handoff.enter(mark)
            except release as released:
                return instead(released, mark, entered.__code__, handoff.scope)
            if stopper is not None:
                try:  # as a `with` would, in a third of the calls
                    if on_loop:
                        result = await endpoint(*args, **kwargs)
                    else:
                        result = await in_thread(handoff.limiter, args, kwargs)
                except BaseException as error:
                    if isinstance(error, Exception):
                        handoff.raised(error)
                    stopper.left(error)
                    raise
                stopper.left(None)
                return result
        return await (endpoint(*args, **kwargs) if on_loop else in_thread(None, args, kwargs))

    return entered


def _instead(release: Release, mark: Mark, entrance: types.CodeType, scope: Scope) -> Response:
    """What an endpoint returns when it is not to run now; it goes nowhere.

    Starlette and FastAPI take a response as an endpoint's value: so what stands between us and the
    endpoint sees an answer like any other, and no error that it would count or report.

    Args:
        release: why it is not to run.
        mark: the endpoint's.
        entrance: the code that asks.
        scope: the request's.

    Raises:
        Release: the response would not go straight to one of them. A decorator above may do
            anything with what it decorates returns, such as keep it in a cache.
    """
    if release.status is None or not _is_endpoint_of(scope, mark, entrance):
        raise release
    # With a task of its own, FastAPI does not add those of the dependencies: the replay does.
    headers = {"cache-control": "no-store"}
    return Response(None, release.status, headers, background=BackgroundTask(_nothing))


async def _nothing() -> None:
    pass


def _is_endpoint_of(scope: Scope, mark: Mark, entrance: types.CodeType) -> bool:
    """Whether Starlette or FastAPI calls a decorated endpoint itself."""
    if not isinstance(scope.get("router"), Router):
        return False
    endpoint = scope.get("endpoint")
    if inspect.isclass(endpoint) and issubclass(endpoint, HTTPEndpoint):
        method = scope["method"].lower()
        if method == "head" and not hasattr(endpoint, method):
            method = "get"
        endpoint = getattr(endpoint, method, None)
    while True:
        if isinstance(endpoint, functools.partial):
            endpoint = endpoint.func
        elif inspect.ismethod(endpoint):
            endpoint = endpoint.__func__
        elif getattr(endpoint, "__globals__", None) is vars(starlette.authentication):
            endpoint = getattr(endpoint, "__wrapped__", None)  # `@requires` returns what it gets
        else:
            return getattr(endpoint, "__code__", None) is entrance and mark_of(endpoint) is mark


def _at_home(function: Callable[..., Any], endpoint: Any) -> types.FunctionType:
    """The same function, in the module of the endpoint.

    With `from __future__ import annotations` a framework has to look types up by their names. Some
    do that in the globals of the function that they are given, and never ask what it wraps.
    """
    assert isinstance(function, types.FunctionType)
    inner = inspect.unwrap(endpoint)
    if not inspect.isroutine(inner):  # a callable object
        inner = type(inner).__call__
    home = getattr(inner, "__globals__", function.__globals__)
    return types.FunctionType(function.__code__, home, closure=function.__closure__)


def _warn_of_no_middleware(mark: Mark) -> None:
    logger.warning(
        "%s is marked long-running, and was entered without a LongRunningMiddleware: it is "
        "synchronous. If the app has one: does each decorator above @long_running use "
        "functools.wraps, and does nothing inside of the middleware rewrite the path?",
        mark.name,
    )


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


def _name(endpoint: Any) -> str:
    view = getattr(endpoint, "view_class", None)
    if inspect.isclass(view):  # all that Django's `as_view()` makes have one qualified name
        return f"{view.__module__}.{view.__name__}"
    named = endpoint if hasattr(endpoint, "__qualname__") else type(endpoint)
    return f"{named.__module__}.{named.__qualname__}"


def mark_of(endpoint: object) -> Mark | None:
    """The mark on an endpoint, also below `functools.partial`; None if it has none."""
    while isinstance(endpoint, functools.partial):
        endpoint = endpoint.func
    mark = getattr(endpoint, MARK, None)
    return mark if isinstance(mark, Mark) else None


def marked_above(endpoint: object) -> tuple[Mark, ...]:
    """The marks of what `@long_running` has made of an endpoint that has none itself."""
    made = getattr(endpoint, MARKED, ())
    if mark_of(endpoint) is not None or not isinstance(made, tuple):
        return ()
    marks = (mark_of(each) for each in made if getattr(each, "__wrapped__", None) is endpoint)
    return tuple(mark for mark in marks if mark is not None)
