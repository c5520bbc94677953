"""`@long_running`: what it marks, what it rejects, and what it leaves as it was."""

from __future__ import annotations

import functools
import inspect
import logging
import threading
import typing
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest
from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Scope

from raincheck import ConfigurationError, Policy, current_job, long_running, report
from raincheck.decorator import Mark, current_handoff, mark_of
from raincheck.errors import Release
from raincheck.job import Job, Progress
from raincheck.tasks import Stopper
from raincheck.threads import Thread
from tests.support import said

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]


class Block(Stopper):
    """The block that a handler runs in."""

    def __init__(self, events: list[str]) -> None:
        super().__init__([])
        self._events = events
        events.append("inside")

    def left(self, error: BaseException | None) -> None:
        self._events.append("outside")

    def threads(self) -> list[Thread]:
        return []

    def stop(self) -> None:
        pass


class Door:
    """A handoff that notes what handlers do at it."""

    job: Job | None = None

    def __init__(self, *, accepts: bool = True, releases: bool = False) -> None:
        self.events: list[str] = []
        self.marks: list[Mark] = []
        self.limiter = anyio.CapacityLimiter(1)
        self.scope: Scope = {}
        self._accepts = accepts
        self._releases = releases

    @property
    def known(self) -> Job | None:
        return self.job

    @property
    def stops(self) -> bool:
        return False

    def unwind(self) -> None:
        raise AssertionError("nothing asks to stop")

    def raised(self, error: Exception) -> None:
        self.events.append(f"raised {error!r}")

    def report(self, progress: Progress) -> None:
        self.events.append(f"reported {progress.fraction}")

    async def enter(self, mark: Mark) -> Stopper | None:
        await anyio.lowlevel.checkpoint()
        self.events.append("entered")
        self.marks.append(mark)
        if self._releases:
            raise Release
        return Block(self.events) if self._accepts else None


@contextmanager
def behind(door: Door) -> Iterator[Door]:
    token = current_handoff.set(door)
    try:
        yield door
    finally:
        current_handoff.reset(token)


@long_running
async def on_loop(a: int, b: str = "b", *, c: float = 0.5) -> str:
    """An endpoint."""
    return f"{a} {b} {c}"


@long_running
def in_thread(a: int, b: str = "b", *, c: float = 0.5) -> str:
    """An endpoint."""
    return f"{a} {b} {c}"


class Methods:
    def __init__(self) -> None:
        self.seen: list[object] = []

    @long_running
    async def on_loop(self, a: int, b: str = "b", *, c: float = 0.5) -> str:
        self.seen.append(self)
        return f"{a} {b} {c}"

    @long_running(ttl=5)
    def in_thread(self, a: int, b: str = "b", *, c: float = 0.5) -> str:
        self.seen.append(self)
        return f"{a} {b} {c}"


class AsyncCallable:
    async def __call__(self, a: int, b: str = "b", *, c: float = 0.5) -> str:
        return f"{a} {b} {c}"


class SyncCallable:
    def __call__(self, a: int, b: str = "b", *, c: float = 0.5) -> str:
        return f"{a} {b} {c}"


async def three_async(z: int, a: int, b: str = "b", *, c: float = 0.5) -> str:
    return f"{a} {b} {c}"


def three(z: int, a: int, b: str = "b", *, c: float = 0.5) -> str:
    return f"{a} {b} {c}"


Endpoint = Callable[..., Coroutine[Any, Any, Any]]

ENDPOINTS = [
    pytest.param(on_loop, id="async def"),
    pytest.param(in_thread, id="def"),
    pytest.param(Methods().on_loop, id="async method"),
    pytest.param(Methods().in_thread, id="method"),
    pytest.param(long_running(AsyncCallable()), id="async callable object"),
    pytest.param(long_running(SyncCallable()), id="callable object"),
    pytest.param(long_running(functools.partial(three_async, 0)), id="partial of async def"),
    pytest.param(long_running(functools.partial(three, 0)), id="partial of def"),
    pytest.param(
        long_running(functools.partial(functools.partial(three_async), 0)), id="partial of partial"
    ),
    pytest.param(functools.partial(long_running(three_async), 0), id="partial on top"),
    pytest.param(long_running()(three_async).__get__(0), id="empty parentheses"),
]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_without_a_middleware_an_endpoint_is_plain(endpoint: Endpoint) -> None:
    assert current_handoff.get() is None
    assert await endpoint(1, "x", c=2.0) == "1 x 2.0"
    assert await endpoint(1) == "1 b 0.5"


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize(
    ("accepts", "events"),
    [(True, ["entered", "inside", "outside"]), (False, ["entered"])],
    ids=["accepted", "synchronous"],
)
async def test_an_endpoint_asks_to_be_accepted_once(
    endpoint: Endpoint, accepts: bool, events: list[str]
) -> None:
    with behind(Door(accepts=accepts)) as door:
        assert await endpoint(1, "x", c=2.0) == "1 x 2.0"
    assert door.events == events


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_a_released_endpoint_does_not_run(endpoint: Endpoint) -> None:
    with behind(Door(releases=True)) as door, pytest.raises(Release):
        await endpoint("no such argument", no="such argument")
    assert door.events == ["entered"]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_an_endpoint_is_marked_and_a_coroutine_function(endpoint: Endpoint) -> None:
    assert isinstance(mark_of(endpoint), Mark)
    assert inspect.iscoroutinefunction(endpoint)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_the_signature_is_kept(endpoint: Endpoint) -> None:
    signature = str(inspect.signature(endpoint)).replace("'int'", "int")
    assert signature == "(a: int, b: 'str' = 'b', *, c: 'float' = 0.5) -> 'str'"


def test_name_and_docstring_are_kept() -> None:
    assert (on_loop.__name__, on_loop.__doc__) == ("on_loop", "An endpoint.")
    assert on_loop.__module__ == __name__
    assert long_running(functools.partial(three, 0)).__name__ == "three"


@pytest.mark.parametrize(
    ("endpoint", "name"),
    [
        (on_loop, "on_loop"),
        (Methods.in_thread, "Methods.in_thread"),
        (Methods().in_thread, "Methods.in_thread"),
        (long_running(AsyncCallable()), "AsyncCallable"),
        (long_running(functools.partial(three, 0)), "three"),
    ],
)
def test_a_mark_is_called_by_the_endpoints_qualified_name(endpoint: Endpoint, name: str) -> None:
    mark = mark_of(endpoint)
    assert mark is not None
    assert mark.name == f"{__name__}.{name}"


async def test_the_mark_that_is_entered_is_the_one_that_is_read() -> None:
    methods = Methods()
    with behind(Door()) as door:
        await methods.in_thread(1)
    assert door.marks == [mark_of(methods.in_thread)]
    assert door.marks[0] is mark_of(Methods.in_thread)
    assert door.marks[0].settings == {"ttl": 5}
    assert methods.seen == [methods]


def test_two_endpoints_have_two_marks() -> None:
    first, second = long_running(three), long_running(three)
    assert mark_of(first) != mark_of(second)


@pytest.mark.parametrize("name", ["videos.encode", "encode-v2", "a:b#1", "\u00e9", "x" * 200])
def test_a_mark_is_called_as_the_decorator_says(name: str) -> None:
    mark = mark_of(long_running(name=name, ttl=5)(three))
    assert mark is not None
    assert (mark.name, mark.settings) == (name, {"ttl": 5})


@pytest.mark.parametrize("name", ["", "POST /videos", "/videos", "a b", "a\n", "x" * 201, 5, b"x"])
def test_a_name_that_could_be_anything_else_is_refused(name: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"long_running\(name=.*: a name is up to 200"):
        long_running(name=name)


def test_views_that_a_class_has_made_are_called_by_the_class() -> None:
    """As Django's `as_view()` makes them: all of them have one qualified name."""

    def view(request: object) -> None: ...

    view.view_class = Methods  # type: ignore[attr-defined] # as Django does
    mark = mark_of(long_running(view))
    assert mark is not None
    assert mark.name == f"{__name__}.Methods"


# --- annotations that are strings --------------------------------------------------------------

POSTPONED = """
from __future__ import annotations

import functools

from raincheck import long_running
from raincheck.tasks import Stopper
from raincheck.threads import Thread


@long_running
async def function(order: Order) -> Receipt: ...


class Methods:
    @long_running(ttl=5)
    def method(self, order: Order) -> Receipt: ...


class Callable:
    async def __call__(self, order: Order) -> Receipt: ...


def decorated(function):
    @functools.wraps(function)
    async def wrapper(*args, **kwargs): ...

    return wrapper


endpoints = [
    function,
    Methods.method,
    Methods().method,
    long_running(Methods().method),
    long_running(Callable()),
    long_running(decorated(function)),
    long_running(functools.partial(function)),
]


class Order: ...


class Receipt: ...
"""


def test_a_framework_finds_the_types_of_annotations_in_the_wrapper_itself() -> None:
    """Also of types that the module defines later; not all frameworks ask what it wraps."""
    module: dict[str, Any] = {"__name__": "app"}
    exec(POSTPONED, module)
    for endpoint in module["endpoints"]:
        signature = inspect.signature(endpoint)
        names = [signature.parameters["order"].annotation, signature.return_annotation]
        assert names == ["Order", "Receipt"]
        types = [module["Order"], module["Receipt"]]
        assert [eval(name, endpoint.__globals__) for name in names] == types
        if inspect.get_annotations(endpoint):  # a callable object has its own elsewhere
            assert list(typing.get_type_hints(endpoint).values()) == types


async def test_an_endpoint_runs_whatever_its_module_calls_its_own() -> None:
    module: dict[str, Any] = {"__name__": "app", "current_handoff": None, "mark": 5, "in_thread": 5}
    source = "@mark_as\nasync def endpoint(handoff, mark, on_loop): return handoff, mark, on_loop"
    exec(source, module | {"mark_as": long_running}, module)
    assert await module["endpoint"](1, on_loop=3, mark=2) == (1, 2, 3)


# --- threads -----------------------------------------------------------------------------------


def where() -> tuple[threading.Thread, object]:
    return threading.current_thread(), current_handoff.get()


@long_running
def thread_of_def() -> tuple[threading.Thread, object]:
    return where()


@long_running
async def thread_of_async_def() -> tuple[threading.Thread, object]:
    return where()


@pytest.mark.real
async def test_a_sync_endpoint_runs_in_a_thread_and_keeps_its_context() -> None:
    with behind(Door()) as door:
        assert (await thread_of_async_def())[0] is threading.current_thread()
        thread, handoff = await thread_of_def()
    assert thread is not threading.current_thread()
    assert handoff is door


@pytest.mark.real
async def test_an_accepted_sync_endpoint_uses_raincheck_threads_and_not_the_frameworks() -> None:
    frameworks = anyio.to_thread.current_default_thread_limiter()
    borrowed: list[tuple[float, float]] = []

    @long_running
    def look() -> None:
        anyio.from_thread.run_sync(note)

    def note() -> None:
        borrowed.append((door.limiter.borrowed_tokens, frameworks.borrowed_tokens))

    with behind(Door()) as door:
        await look()
    with behind(Door(accepts=False)) as door:
        await look()
    assert borrowed == [(1, 0), (0, 1)]


# --- class-based endpoints ---------------------------------------------------------------------


class Reports(HTTPEndpoint):
    async def get(self, request: Request) -> Response:
        return PlainTextResponse("read")

    @long_running(timeout=9)
    async def post(self, request: Request) -> Response:
        return PlainTextResponse("written")


async def test_a_method_of_a_class_based_endpoint_is_marked_alone() -> None:
    assert mark_of(Reports) is None
    assert mark_of(Reports.get) is None
    mark = mark_of(Reports.post)
    assert mark is not None
    assert mark.settings == {"timeout": 9}
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError

    for method, events in ("GET", []), ("POST", ["entered", "inside", "outside"]):
        scope = {"type": "http", "method": method, "path": "/", "headers": []}
        with behind(Door()) as door:
            await Reports(scope, receive, send)
        assert door.events == events
    assert [message.get("body") for message in sent if "body" in message] == [b"read", b"written"]


# --- what cannot be marked ---------------------------------------------------------------------


def generator() -> Iterator[bytes]:
    yield b""


async def async_generator() -> AsyncIterator[bytes]:
    yield b""


@pytest.mark.parametrize(
    ("endpoint", "reason"),
    [
        pytest.param(generator, "generator function .*generator", id="generator"),
        pytest.param(async_generator, "generator function .*async_generator", id="async generator"),
        pytest.param(functools.partial(generator), "generator function", id="partial of one"),
        pytest.param(Reports, "put it on the methods", id="class-based endpoint"),
        pytest.param(AsyncCallable, "functions and methods", id="class"),
        pytest.param(staticmethod(in_thread), "above @staticmethod", id="static method"),
        pytest.param(5, "functions and methods, not 5", id="no callable"),
        pytest.param("POST /videos", "functions and methods", id="a path"),
        pytest.param(Policy(ttl=5), "by name, like @long_running", id="a policy"),
    ],
)
def test_what_has_no_entry_is_refused(endpoint: Any, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        long_running(endpoint)
    with pytest.raises(ConfigurationError, match=reason):
        long_running(ttl=5)(endpoint)


def test_an_unknown_setting_is_refused_by_name() -> None:
    settings: dict[str, Any] = {"time_out": 5, "ttl": 5}
    with pytest.raises(ConfigurationError, match=r"has no setting time_out; it takes .*timeout"):
        long_running(**settings)


def test_an_impossible_setting_is_refused_where_it_is_written() -> None:
    with pytest.raises(ConfigurationError, match="timeout is more than 0 seconds"):
        long_running(timeout=0)


# --- decorators on top -------------------------------------------------------------------------


def wrapped(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(endpoint)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await endpoint(*args, **kwargs)

    return wrapper


def bare(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await endpoint(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize(
    ("endpoint", "marked"),
    [
        pytest.param(wrapped(on_loop), True, id="functools.wraps"),
        pytest.param(wrapped(wrapped(on_loop)), True, id="twice"),
        pytest.param(functools.partial(wrapped(on_loop), 1), True, id="below a partial"),
        pytest.param(bare(on_loop), False, id="without functools.wraps"),
        pytest.param(three, False, id="an endpoint without a mark"),
        pytest.param(None, False, id="nothing"),
    ],
)
def test_a_mark_is_seen_through_functools_wraps(endpoint: Any, marked: bool) -> None:
    assert (mark_of(endpoint) is not None) is marked
    if marked:
        assert mark_of(endpoint) is mark_of(on_loop)


def test_what_only_looks_like_a_mark_is_none() -> None:
    class Anything:
        def __getattr__(self, name: str) -> object:
            return object()

    assert mark_of(Anything()) is None


# --- outside a job -----------------------------------------------------------------------------


def test_reports_go_nowhere_outside_a_job() -> None:
    report(0.5, "half")
    assert current_job() is None
    with behind(Door()) as door:
        report(0.5)
        assert current_job() is None
    assert door.events == []


def test_the_settings_of_a_decorator_are_those_of_a_policy() -> None:
    mark = mark_of(long_running(ttl=5, hold=True)(three))
    assert mark is not None
    assert Policy().with_settings(mark.settings) == Policy(ttl=5, hold=True)


@pytest.mark.parametrize("endpoint", [on_loop, in_thread], ids=["async def", "def"])
async def test_an_endpoint_without_a_middleware_says_so_once(
    endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    anew = long_running(name="slow")(inspect.unwrap(endpoint))
    for _ in range(3):
        assert await anew(1) == "1 b 0.5"
    (record,) = said(caplog)
    assert record.levelno == logging.WARNING
    assert "slow is marked long-running, and was entered without" in record.getMessage()
    with behind(Door(accepts=False)):
        await long_running(three)(0, 1)
    assert len(said(caplog)) == 1
