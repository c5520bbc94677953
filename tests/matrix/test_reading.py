"""Unmarked requests of other frameworks are told apart by reading their routes.

What the entry decides is the matrix's own: here is what is read, app by app.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import anyio
import pytest

from raincheck import LongRunningMiddleware, long_running
from raincheck.decorator import current_handoff
from raincheck.routing.frameworks import foreign_routes
from tests.matrix.conftest import require

pytestmark = [pytest.mark.matrix, pytest.mark.anyio]


SCOPE: dict[str, Any] = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.3"},
    "http_version": "1.1",
    "scheme": "http",
    "query_string": b"",
    "root_path": "",
    "headers": [(b"host", b"x")],
    "client": ("127.0.0.1", 1),
    "server": ("x", 80),
}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # Quart and Django know no other


def hiding(function: Any) -> Any:
    """A decorator that does not say what it wraps."""

    async def hidden(*args: Any, **kwargs: Any) -> Any:
        return await function(*args, **kwargs)

    return hidden


def litestar_app() -> Any:
    from litestar import Litestar, Router, get, post
    from litestar.params import FromPath

    @get("/plain")  # type: ignore[untyped-decorator] # not installed everywhere
    async def plain() -> str:
        return ""

    @post("/slow/{number:int}")  # type: ignore[untyped-decorator] # not installed everywhere
    @long_running(name="slow")
    async def slow(number: FromPath[int]) -> str:
        return ""

    @get("/files/{rest:path}")  # type: ignore[untyped-decorator] # not installed everywhere
    @long_running(name="files")
    async def files(rest: FromPath[str]) -> str:
        return ""

    return Litestar([plain, Router("/in", route_handlers=[slow, files])])


def quart_app() -> Any:
    from quart import Blueprint, Quart

    async def plain() -> str:
        return ""

    @long_running(name="slow")
    async def slow(number: int) -> str:
        return ""

    @long_running(name="files")
    async def files(rest: str) -> str:
        return ""

    app, blueprint = Quart("reading"), Blueprint("in", "in", url_prefix="/in")
    app.add_url_rule("/plain", view_func=plain)
    blueprint.add_url_rule("/slow/<int:number>", "slow", hiding(slow), methods=["POST"])
    blueprint.add_url_rule("/files/<path:rest>", view_func=files)
    app.register_blueprint(blueprint)
    return app


def django_app() -> Any:
    import django
    from django.conf import settings
    from django.core.asgi import get_asgi_application
    from django.http import HttpRequest, HttpResponse
    from django.urls import include, path
    from django.views import View

    async def plain(request: HttpRequest) -> HttpResponse:
        return HttpResponse()

    class Slow(View):  # type: ignore[misc] # not installed everywhere
        @long_running(name="slow")
        async def post(self, request: HttpRequest, number: int) -> HttpResponse:
            return HttpResponse()

    @long_running(name="files")
    async def files(request: HttpRequest, rest: str) -> HttpResponse:
        return HttpResponse()

    inner = [path("slow/<int:number>", Slow.as_view()), path("files/<path:rest>", hiding(files))]
    urls = sys.modules["reading_urls"] = ModuleType("reading_urls")
    vars(urls)["urlpatterns"] = [path("plain", plain), path("in/", include(inner))]
    if not settings.configured:
        settings.configure(SECRET_KEY="x", ALLOWED_HOSTS=["*"])
        django.setup()
    settings.ROOT_URLCONF = "reading_urls"
    return get_asgi_application()


class Plain:
    async def on_get(self, request: Any, response: Any) -> None:
        response.text = ""


class Slow:
    @long_running(name="slow")
    async def on_post(self, request: Any, response: Any, number: int) -> None:
        response.text = ""


class Files:
    @long_running(name="files")
    async def on_get(self, request: Any, response: Any, rest: str) -> None:
        response.text = ""


def falcon_app() -> Any:
    from falcon.asgi import App

    app = App()
    app.add_route("/plain", Plain())
    app.add_route("/in/slow/{number:int}", Slow())
    app.add_route("/in/files/{rest:path}", Files())
    return app


MAKE: dict[str, Callable[[], Any]] = {
    "litestar": litestar_app,
    "quart": quart_app,
    "django": django_app,
    "falcon": falcon_app,
}


def test_the_marks_of_an_app_are_found(read: str) -> None:
    require(read)
    routes = foreign_routes(MAKE[read]())
    assert routes is not None
    found: dict[str, list[str]] = {}
    for route in routes:
        found.setdefault(route.path, []).extend(mark.name for mark in route.marks or ())
    marked = {path: names for path, names in found.items() if names}
    assert marked == {
        "/in/slow/{p}": ["slow"],
        "/in/slow/{p}/": ["slow"],
        "/in/files/{p:path}": ["files"],
    }
    assert found["/plain"] == []
    assert all(route.marks is not None for route in routes)


async def test_only_requests_that_may_meet_a_marked_endpoint_are_candidates(read: str) -> None:
    """What passes straight through knows no handoff; a candidate's app runs in one."""
    require(read)
    app = LongRunningMiddleware(MAKE[read]())
    answers = [await answer_of(app, path) for path in ("/plain", "/nowhere", "/in/files/a/b")]
    assert answers == [(200, True), (404, True), (202, True)]
    with_handoff = [await answer_of(app, "/in/slow/7", "GET")]
    assert with_handoff[0][0] in (404, 405)


async def answer_of(app: LongRunningMiddleware, path: str, method: str = "GET") -> tuple[int, bool]:
    """The status, and whether it was sent outside of any handoff."""
    done = anyio.Event()
    scope = {**SCOPE, "path": path, "raw_path": path.encode(), "method": method, "state": {}}
    found: list[tuple[int, bool]] = []
    body = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Any:
        if body:
            return body.pop()
        await done.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            found.append((message["status"], current_handoff.get() is None))
        elif not message.get("more_body"):
            done.set()

    with anyio.fail_after(5):
        await app(scope, receive, send)
    return found[0]


def test_what_cannot_be_read_is_a_candidate(read: str, monkeypatch: pytest.MonkeyPatch) -> None:
    require(read)
    app = MAKE[read]()

    def refuse(*arguments: object) -> None:
        raise RuntimeError("another version")

    where = {
        "litestar": ("litestar.app.Litestar.routes", property(refuse)),
        "quart": ("quart.routing.QuartMap.iter_rules", refuse),
        "django": ("django.urls.get_resolver", refuse),
        "falcon": ("falcon.inspect.inspect_routes", refuse),
    }
    monkeypatch.setattr(*where[read], raising=False)
    assert foreign_routes(app) is None


class Behind:
    """What has the endpoint that it calls, as an object."""

    def __init__(self, endpoint: Any) -> None:
        self._endpoint = endpoint

    def view(self) -> Any:
        async def view(*args: Any, **kwargs: Any) -> Any:
            return await self._endpoint(*args, **kwargs)

        return view


@pytest.mark.parametrize("marked", [True, False])
def test_a_view_that_may_hide_a_mark_behind_an_object_cannot_be_looked_into(
    by_views: str, marked: bool
) -> None:
    require(by_views)
    from quart import Quart

    async def work() -> str:
        return ""

    endpoint = long_running(work) if marked else work
    app = Quart("hidden")
    views = {"/behind": Behind(endpoint).view(), "/around": hiding(hiding(work)), "/plain": work}
    for path, view in views.items():
        app.add_url_rule(path, path, view)
    routes = foreign_routes(app)
    assert routes is not None
    found = {route.path: route.marks for route in routes}
    assert (found["/behind"], found["/around"], found["/plain"]) == (None, [], [])


def test_what_is_no_framework_of_these_is_not_read() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        """A bare app."""

    assert foreign_routes(app) is None
