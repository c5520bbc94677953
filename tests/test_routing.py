"""Which request may meet which policy: path rules, decorated endpoints, and start-up errors."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from fastapi import APIRouter, FastAPI
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import (
    BaseRoute,
    Host,
    Mount,
    Route,
    Router,
    WebSocketRoute,
    compile_path,
)
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from raincheck import ConfigurationError, LongRunningMiddleware, Policy, long_running
from raincheck.decorator import Mark
from raincheck.routing.discovery import METHODS
from raincheck.routing.table import Candidate, Routing, Rule, route_path

POLICY = Policy(max_wait=7)


def plain(request: object) -> Any: ...


@long_running(ttl=5)
async def slow(request: object) -> Any: ...


@long_running(ttl=6)
def slower(request: object) -> Any: ...


async def raw(scope: Scope, receive: Receive, send: Send) -> None: ...


class Reports(HTTPEndpoint):
    def get(self, request: object) -> Any: ...

    @long_running(ttl=8)
    async def post(self, request: object) -> Any: ...


class Readings(HTTPEndpoint):
    @long_running(ttl=9)
    async def get(self, request: object) -> Any: ...


def route_of(mark: Mark) -> tuple[str, Policy]:
    return mark.name, POLICY.with_settings(mark.settings)


def routing(
    app: ASGIApp, rules: Mapping[str, Policy] | None = None, *, path: str = "/jobs"
) -> Routing:
    return Routing(app, rules or {}, policy=POLICY, route_of=route_of, path=path)


def find(
    app: ASGIApp | Routing,
    request: str,
    *,
    rules: Mapping[str, Policy] | None = None,
    root_path: str = "",
) -> Candidate | None:
    """The candidate that e.g. `"POST /videos"` is."""
    method, _, path = request.partition(" ")
    scope = {"type": "http", "method": method, "path": path, "headers": []}
    if root_path:
        scope["root_path"] = root_path
    return candidate_of(app if isinstance(app, Routing) else routing(app, rules), scope)


def candidate_of(table: Routing, scope: Scope) -> Candidate | None:
    """As the middleware asks."""
    path = table.near(scope)
    return None if path is None else table.find(path, scope["method"])


def ttl(candidate: Candidate | None) -> float | None:
    if candidate is None:
        return None
    assert isinstance(candidate.policy.ttl, float)
    return candidate.policy.ttl


# --- decorated endpoints -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("route", "request_line", "expected"),
    [
        pytest.param(Route("/a", slow), "GET /a", 5, id="literal"),
        pytest.param(Route("/a", plain), "GET /a", None, id="unmarked"),
        pytest.param(Route("/a", slow), "GET /a/", None, id="another path"),
        pytest.param(Route("/a", slow), "GET /ab", None, id="a longer path"),
        pytest.param(Route("/a", slow), "HEAD /a", 5, id="GET answers HEAD too"),
        pytest.param(Route("/a", slow), "POST /a", None, id="another method"),
        pytest.param(Route("/a", slow, methods=["POST"]), "POST /a", 5, id="the route's method"),
        pytest.param(Route("/a", slow, methods=["POST"]), "HEAD /a", None, id="POST has no HEAD"),
        pytest.param(Route("/a/{b}", slow), "GET /a/x", 5, id="pattern"),
        pytest.param(Route("/a/{b}", slow), "GET /a/x/y", None, id="pattern of one segment"),
        pytest.param(Route("/a/{b:int}", slow), "GET /a/1", 5, id="convertor"),
        pytest.param(Route("/a/{b:int}", slow), "GET /a/x", None, id="convertor says no"),
        pytest.param(Route("/a/{b:path}", slow), "GET /a/x/y", 5, id="the rest of the path"),
        pytest.param(Route("/a/{b}", slow, methods=["PUT"]), "GET /a/x", None, id="its method"),
        pytest.param(Route("/", slow), "GET /", 5, id="the root"),
        pytest.param(Route("/a.b", slow), "GET /axb", None, id="a dot is a dot"),
        pytest.param(Route("/é", slow), "GET /é", 5, id="beyond ASCII"),
        pytest.param(Mount("/m", routes=[Route("/a", slow)]), "GET /m/a", 5, id="mount"),
        pytest.param(Mount("/m", routes=[Route("/a", slow)]), "GET /a", None, id="not above it"),
        pytest.param(Mount("/m", routes=[Route("/a", plain)]), "GET /m/a", None, id="unmarked in"),
        pytest.param(Mount("/m", routes=[Route("/", slow)]), "GET /m/", 5, id="a mount's root"),
        pytest.param(Mount("/m", app=Router([Route("/a", slow)])), "GET /m/a", 5, id="a router"),
        pytest.param(
            Mount("/m", app=Starlette(routes=[Route("/a", slow)])), "GET /m/a", 5, id="an app"
        ),
        pytest.param(
            Mount("/m", routes=[Mount("/n", routes=[Route("/{a}", slow)])]),
            "GET /m/n/x",
            5,
            id="a mount in a mount",
        ),
        pytest.param(
            Mount("/{m}", routes=[Route("/a", slow)]), "GET /x/a", 5, id="a mount with a parameter"
        ),
        pytest.param(Mount("", routes=[Route("/a", slow)]), "GET /a", 5, id="a mount at the root"),
        pytest.param(
            Mount("/m", routes=[Route("/a", slow)], middleware=[Middleware(GZipMiddleware)]),
            "GET /m/a",
            5,
            id="a mount with middleware",
        ),
        pytest.param(
            Route("/a", slow, middleware=[Middleware(GZipMiddleware)]),
            "GET /a",
            5,
            id="a route with middleware",
        ),
        pytest.param(
            Host("api.example.org", Router([Route("/a", slow)])), "GET /a", 5, id="whatever host"
        ),
        pytest.param(
            Host("api.example.org", Router([Route("/a", plain)])), "GET /a", None, id="host, plain"
        ),
        pytest.param(WebSocketRoute("/a", plain), "GET /a", None, id="a websocket is not ours"),
        pytest.param(Mount("/m", StaticFiles(packages=[])), "GET /m/a", None, id="static files"),
        pytest.param(Route("/a", Reports), "POST /a", 8, id="a marked method of a class"),
        pytest.param(Route("/a", Reports), "GET /a", None, id="its unmarked one"),
        pytest.param(Route("/a", Reports), "HEAD /a", None, id="its HEAD, like its GET"),
        pytest.param(Route("/a", Readings), "GET /a", 9, id="a marked GET"),
        pytest.param(Route("/a", Readings), "HEAD /a", 9, id="a marked GET answers HEAD"),
        pytest.param(Route("/a", Readings), "POST /a", None, id="a method it does not have"),
        pytest.param(
            Route("/a", functools.partial(slow, 1)), "GET /a", 5, id="a partial of a marked one"
        ),
        pytest.param(Route("/a", functools.partial(plain, 1)), "GET /a", None, id="of another"),
        pytest.param(Route("/a", Reports.get), "GET /a", None, id="an unmarked method"),
        pytest.param(Route("/a", slower), "GET /a", 6, id="def"),
    ],
)
def test_a_decorated_endpoint_makes_a_candidate(
    route: BaseRoute, request_line: str, expected: float | None
) -> None:
    candidate = find(Starlette(routes=[route]), request_line)
    assert ttl(candidate) == expected
    if candidate is not None:
        assert candidate == Candidate(Policy(max_wait=7, ttl=expected or 0), None, certain=True)


def test_of_several_routes_the_first_that_matches_counts() -> None:
    app = Starlette(
        routes=[Route("/a", plain, methods=["POST"]), Route("/a", slow), Route("/a", slower)]
    )
    assert ttl(find(app, "GET /a")) == 5


PATHS = [
    *("/a/{x}", "/{y}/b", "/a/b", "/{whole:path}", "/b/{x:int}/c", "/a{x}/b", "/a/{rest:path}"),
    *("/b/{x}/c", "//{x}", "/a", "/b/1/c"),
]


@given(st.lists(st.sampled_from(PATHS), unique=True), st.sampled_from(["GET", "POST"]))
def test_the_first_of_all_that_match_counts_whatever_is_looked_at(
    paths: list[str], method: str
) -> None:
    """Only patterns with a path's first segment are tried: the result is that of trying all."""
    rules = {f"GET {path}": Policy(ttl=number + 1) for number, path in enumerate(paths)}
    found = routing(raw, rules)
    for path in ("/a/b", "/a/c", "/b/1/c", "/b/x/c", "/ax/b", "/", "//", "//z", "/a", "/a/", ""):
        first = next(
            (n + 1 for n, each in enumerate(paths) if compile_path(each)[0].match(path)), None
        )
        expected = first if method == "GET" else None
        candidate = candidate_of(found, {"type": "http", "method": method, "path": path})
        rule = None if candidate is None else candidate.rule
        assert (None if rule is None else rule.policy.ttl) == expected


def test_the_middlewares_policy_is_the_ground_of_a_decorators_settings() -> None:
    candidate = find(Starlette(routes=[Route("/a", slow)]), "GET /a")
    assert candidate is not None
    assert candidate.policy == POLICY.with_settings({"ttl": 5})


def dispatch(request: Any, call_next: Any) -> Any: ...


@pytest.mark.parametrize(
    "app",
    [
        pytest.param(Starlette(routes=[Route("/a", slow)]), id="an app"),
        pytest.param(Router([Route("/a", slow)]), id="a router"),
        pytest.param(
            GZipMiddleware(BaseHTTPMiddleware(Router([Route("/a", slow)]), dispatch)),
            id="below middlewares",
        ),
    ],
)
def test_routes_are_read_through_middleware(app: ASGIApp) -> None:
    candidate = find(app, "GET /a")
    assert candidate is not None
    assert candidate.certain
    assert find(app, "GET /b") is None


def test_routes_are_read_from_inside_the_app() -> None:
    built: list[Routing] = []

    class Inner:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app
            built.append(routing(app))

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...

    app = Starlette(routes=[Route("/a", slow)], middleware=[Middleware(Inner)])
    app.middleware_stack = app.build_middleware_stack()
    assert ttl(find(built[0], "GET /a")) == 5
    assert find(built[0], "GET /b") is None


# --- apps that cannot be read ------------------------------------------------------------------


class Slots:
    """An ASGI app with an attribute that looks like Starlette's, and is not."""

    routes: ClassVar = ["GET /a"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


class Odd(BaseRoute):
    """A route of a kind that nobody has heard of."""


class Wrapper:
    """An endpoint that is an ASGI app, and may call anything."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


@pytest.mark.parametrize(
    ("app", "request_line"),
    [
        pytest.param(raw, "GET /a", id="a bare ASGI app"),
        pytest.param(raw, "BREW /a/b/c", id="whatever the request"),
        pytest.param(raw, "GET /", id="whatever the path"),
        pytest.param(GZipMiddleware(raw), "GET /a", id="below middleware"),
        pytest.param(Slots(), "GET /a", id="an app of another framework"),
        pytest.param(Starlette(routes=[Mount("/m", raw)]), "GET /m/a", id="mounted"),
        pytest.param(Starlette(routes=[Mount("/m", raw)]), "GET /m/", id="the mount's root"),
        pytest.param(Starlette(routes=[Host("h", raw)]), "GET /a", id="on a host"),
        pytest.param(Starlette(routes=[Odd()]), "GET /a", id="an unknown kind of route"),
        pytest.param(Starlette(routes=[Route("/a", Wrapper())]), "GET /a", id="an object"),
        pytest.param(Starlette(routes=[Route("/a", Wrapper)]), "GET /a", id="a class"),
    ],
)
def test_what_cannot_be_read_makes_every_request_an_uncertain_candidate(
    app: ASGIApp, request_line: str
) -> None:
    assert find(app, request_line) == Candidate(POLICY, None, certain=False)


def test_only_what_cannot_be_read_is_uncertain() -> None:
    app = Starlette(routes=[Mount("/m", raw), Route("/a", slow), Route("/b", plain)])
    found = routing(app)
    candidate = find(found, "GET /a")
    assert candidate is not None
    assert candidate.certain
    assert find(found, "GET /b") is None


def test_routes_below_another_middleware_are_its_own() -> None:
    inner = LongRunningMiddleware(Starlette(routes=[Route("/a", slow)]))
    assert find(inner, "GET /a") is None
    app = Starlette(routes=[Mount("/m", inner), Mount("/n", GZipMiddleware(inner))])
    assert find(app, "GET /m/a") is None
    assert find(app, "GET /n/a") is None


# --- when routes are read ----------------------------------------------------------------------


def test_routes_added_later_are_seen() -> None:
    app = Starlette(routes=[Route("/a", slow)])
    found = routing(app)
    assert find(found, "GET /b") is None
    app.router.routes.append(Route("/b", slower))
    assert ttl(find(found, "GET /b")) == 6
    assert ttl(find(found, "GET /a")) == 5


def test_routes_taken_away_later_are_gone() -> None:
    app = Starlette(routes=[Route("/a", slow)])
    found = routing(app)
    assert ttl(find(found, "GET /a")) == 5
    app.router.routes.clear()
    assert find(found, "GET /a") is None


def test_routes_added_after_start_up_are_seen() -> None:
    app = Starlette()
    found = routing(app)
    found.read(mounted=False)
    app.router.routes.append(Route("/b", slow))
    assert ttl(find(found, "GET /b")) == 5


def test_routes_are_not_read_again_without_need() -> None:
    marks: list[Mark] = []

    def noted(mark: Mark) -> tuple[str, Policy]:
        marks.append(mark)
        return route_of(mark)

    app = Starlette(routes=[Route("/a", slow)])
    found = Routing(app, {}, policy=POLICY, route_of=noted, path="/jobs")
    for _ in range(3):
        assert find(found, "GET /a")
        assert not find(found, "GET /b")
    assert len(marks) == 1


# --- root_path ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "root_path", "below"),
    [
        ("/a", "", "/a"),
        ("/api/a", "/api", "/a"),
        ("/api", "/api", ""),
        ("/api/", "/api", "/"),
        ("/a", "/api", "/a"),
        ("/apis/a", "/api", "/apis/a"),
        ("/api/api/a", "/api", "/api/a"),
    ],
)
def test_a_path_is_read_below_the_root_path(path: str, root_path: str, below: str) -> None:
    assert route_path(path, root_path) == below
    assert route_path(below, "") == below


@pytest.mark.parametrize(
    ("request_line", "expected"), [("GET /api/a", 5), ("GET /a", 5), ("GET /other/a", None)]
)
def test_candidates_are_found_below_the_root_path(
    request_line: str, expected: float | None
) -> None:
    app = Starlette(routes=[Route("/a", slow)])
    assert ttl(find(app, request_line, root_path="/api")) == expected


# --- FastAPI -----------------------------------------------------------------------------------


def fastapi_app() -> FastAPI:
    inner, outer = APIRouter(prefix="/inner"), APIRouter(prefix="/outer")

    @inner.post("/videos/{id}")
    @long_running(ttl=11)
    def make(id: int) -> None: ...

    @inner.get("/videos/{id}")
    def show(id: int) -> None: ...

    @outer.get("")
    @long_running(ttl=12)
    async def root_of_the_router() -> None: ...

    outer.include_router(inner)
    app = FastAPI()
    app.include_router(outer, prefix="/v1")

    @app.put("/direct")
    @long_running(ttl=13)
    async def direct() -> None: ...

    sub = FastAPI()
    sub.include_router(inner)
    app.mount("/sub", sub)
    return app


@pytest.mark.parametrize(
    ("request_line", "expected"),
    [
        ("POST /v1/outer/inner/videos/1", 11),
        ("POST /sub/inner/videos/1", 11),
        ("GET /v1/outer", 12),
        ("PUT /direct", 13),
        ("GET /direct", None),
        ("GET /v1/outer/inner/videos/1", None),
        ("POST /inner/videos/1", None),
        ("GET /docs", None),
        ("GET /openapi.json", None),
    ],
)
def test_included_routers_are_read(request_line: str, expected: float | None) -> None:
    candidate = find(fastapi_app(), request_line)
    assert ttl(candidate) == expected
    assert candidate is None or candidate.certain


def test_a_fastapi_app_may_grow() -> None:
    app = fastapi_app()
    found = routing(app)
    assert find(found, "GET /late/slow") is None
    late = APIRouter()
    late.get("/slow")(slow)
    app.include_router(late, prefix="/late")
    assert ttl(find(found, "GET /late/slow")) == 5


def test_a_starlette_app_is_read_where_fastapi_is_imported() -> None:
    assert ttl(find(Starlette(routes=[Route("/a", slow)]), "GET /a")) == 5


# --- path rules --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "methods", "path"),
    [
        ("/reports", METHODS, "/reports"),
        ("POST /videos", ["POST"], "/videos"),
        ("post /videos", ["POST"], "/videos"),
        ("POST   /videos", ["POST"], "/videos"),
        ("HEAD /videos", ["HEAD"], "/videos"),
        ("REPORT /caldav", ["REPORT"], "/caldav"),
        ("version-control /dav", ["VERSION-CONTROL"], "/dav"),
        ("QUERY /videos", ["QUERY"], "/videos"),
        ("/", METHODS, "/"),
        ("/videos/", METHODS, "/videos/"),
        ("GET /reports/{id:int}/{rest:path}", ["GET"], "/reports/{id:int}/{rest:path}"),
    ],
)
def test_a_key_is_a_path_or_a_method_and_a_path(key: str, methods: list[str], path: str) -> None:
    rule = Rule.parse(key, POLICY)
    assert (rule.name, rule.methods, rule.path, rule.policy) == (
        key,
        frozenset(methods),
        path,
        POLICY,
    )


@pytest.mark.parametrize(
    "key",
    [
        "",
        "videos",
        "POST",
        "POST videos",
        " /videos",
        "/videos ",
        "POST\t/videos",
        "POST, GET /videos",
        "GET|POST /videos",
        "/my videos",
        "POST /videos /reports",
        "/videos\n",
        "https://example.org/videos",
        "{rest:path}",
        "/videos/{id:integer}",
        "/videos/{id}/{id}",
        "PSOT /videos",
        "delte /videos",
        "FETCH /videos",
        "POST-X /videos",
        "POST /videos?draft=1",
        "/videos#new",
        "POST /videos/*",
        "/*",
        None,
        5,
        b"/videos",
        ("POST", "/videos"),
    ],
)
def test_a_malformed_key_is_refused(key: Any) -> None:
    with pytest.raises(ConfigurationError) as raised:
        routing(raw, {key: POLICY})
    assert str(raised.value).startswith(f"routes={{{key!r}: ...}}: ")


def test_a_slip_in_a_method_is_told_from_a_method() -> None:
    with pytest.raises(ConfigurationError, match="there is no method PSOT; do you mean POST"):
        routing(raw, {"PSOT /videos": POLICY})
    with pytest.raises(ConfigurationError, match=r"there is no method FETCH$"):
        routing(raw, {"FETCH /videos": POLICY})


@pytest.mark.parametrize("value", [None, {}, 5, Policy, {"timeout": 5}])
def test_a_rule_without_a_policy_is_refused(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"routes=\{'/a': .*\}: a value is a Policy"):
        routing(raw, {"/a": value})


@pytest.mark.parametrize(
    ("key", "request_line", "meets"),
    [
        *(("/a", f"{method} /a", True) for method in METHODS),
        ("/a", "HEAD /a", False),
        ("/a", "OPTIONS /a", False),
        ("/a", "GET /a/", False),
        ("POST /a", "POST /a", True),
        ("POST /a", "GET /a", False),
        ("HEAD /a", "HEAD /a", True),
        ("/a/{id:int}", "GET /a/1", True),
        ("/a/{id:int}", "GET /a/x", False),
        ("POST /a/{id:int}", "GET /a/1", False),
        ("/a/{rest:path}", "GET /a/x/y", True),
    ],
)
def test_a_rule_meets_requests(key: str, request_line: str, meets: bool) -> None:
    app = Starlette(routes=[Route("/a", plain)])
    candidate = find(app, request_line, rules={key: Policy(ttl=1)})
    if not meets:
        assert candidate is None
        return
    assert candidate is not None
    assert candidate.certain
    assert candidate.policy == Policy(ttl=1)
    assert candidate.rule == Rule.parse(key, Policy(ttl=1))


def test_a_rule_is_met_below_the_root_path() -> None:
    rules = {"/a": Policy(ttl=1)}
    assert ttl(find(Starlette(), "GET /api/a", rules=rules, root_path="/api")) == 1


@pytest.mark.parametrize(
    ("rules", "request_line", "expected"),
    [
        ({"GET /a": 1, "/a": 2}, "GET /a", 1),
        ({"GET /a": 1, "/a": 2}, "POST /a", 2),
        ({"/a/{id:int}": 1, "/a/{id}": 2}, "GET /a/1", 1),
        ({"/a/{id:int}": 1, "/a/{id}": 2}, "GET /a/x", 2),
        ({"/a/{id}": 1, "/a/{id:int}": 2}, "GET /a/1", 1),
        ({"/a/new": 1, "/a/{id}": 2}, "GET /a/new", 1),
    ],
)
def test_of_two_rules_that_match_the_first_counts(
    rules: dict[str, float], request_line: str, expected: float
) -> None:
    policies = {key: Policy(ttl=value) for key, value in rules.items()}
    assert ttl(find(raw, request_line, rules=policies)) == expected


@pytest.mark.parametrize(
    "app",
    [
        pytest.param(Starlette(routes=[Route("/a", slow)]), id="a decorated endpoint"),
        pytest.param(raw, id="an app that cannot be read"),
    ],
)
def test_a_rule_takes_precedence(app: ASGIApp) -> None:
    candidate = find(app, "GET /a", rules={"/{x}": Policy(ttl=1)})
    assert candidate is not None
    assert candidate.rule is not None
    assert ttl(candidate) == 1


# --- mistakes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "shadowed", "by"),
    [
        (["/a", "GET /a"], "GET /a", "/a"),
        (["GET /a", "GET  /a"], "GET  /a", "GET /a"),
        (["GET /a", "get /a"], "get /a", "GET /a"),
        (["/a/{id}", "POST /a/{id}"], "POST /a/{id}", "/a/{id}"),
        (["/b", "/a", "/c", "PUT /a"], "PUT /a", "/a"),
    ],
)
def test_a_rule_that_can_never_match_is_refused(rules: list[str], shadowed: str, by: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        routing(raw, dict.fromkeys(rules, POLICY))
    assert f"routes={{{shadowed!r}: ...}} can never match: {by!r} comes first" in str(raised.value)


@pytest.mark.parametrize(
    "rules", [["GET /a", "/a"], ["GET /a", "POST /a"], ["/a", "HEAD /a"], ["/a", "/b"]]
)
def test_a_rule_that_is_shadowed_in_part_is_taken(rules: list[str]) -> None:
    routing(raw, dict.fromkeys(rules, POLICY))


@pytest.mark.parametrize("key", ["/jobs/x", "POST /jobs/x", "/jobs/{id}", "/jobs/"])
def test_a_rule_below_the_status_routes_is_refused(key: str) -> None:
    with pytest.raises(ConfigurationError, match="lies below the status routes at /jobs"):
        routing(raw, {key: POLICY})
    routing(raw, {key: POLICY}, path="/_jobs")


@pytest.mark.parametrize("key", ["/jobs", "POST /jobs", "/jobsite/x"])
def test_a_rule_beside_the_status_routes_is_taken(key: str) -> None:
    routing(raw, {key: POLICY})


START_UP: list[Callable[[], Route | Mount | Host]] = [
    lambda: Route("/a", plain),
    lambda: Route("/a/{id:int}", plain),
    lambda: Mount("/m", routes=[Route("/a", plain, methods=["POST"])]),
    lambda: Route("/r/{id:uuid}/{x:float}", plain, methods=["POST"]),
    lambda: Route("/u/{a:uuid}/{b:uuid}", plain),
    lambda: Route("/f/{rest:path}", plain),
]


@pytest.mark.parametrize(
    "key",
    [
        "/a",
        "GET /a",
        "HEAD /a",
        "/a/{id:int}",
        "/a/{id}",
        "GET /a/{number:int}",
        "/m/a",
        "POST /m/a",
        "/r/{id:uuid}/{x:float}",
        "POST /r/{id}/{x}",
        "/u/{a}/{b}",
        "/f/{rest:path}",
        "/f/static",
        "/a/7",
    ],
)
def test_a_rule_that_a_route_matches_is_taken_at_start_up(key: str) -> None:
    app = Starlette(routes=[make() for make in START_UP])
    routing(app, {key: POLICY}).read(mounted=False)


@pytest.mark.parametrize(
    "key", ["/b", "POST /a", "/a/{id}/x", "/a/", "/api/a", "PUT /r/{id}/{x}", "/a/seven", "/x/{id"]
)
def test_a_rule_that_no_route_matches_is_refused_at_start_up(key: str) -> None:
    app = Starlette(routes=[make() for make in START_UP])
    found = routing(app, {key: POLICY})
    with pytest.raises(ConfigurationError) as raised:
        found.read(mounted=False)
    message = f"routes={{{key!r}: ...}} matches none of the app's routes"
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(
    "app",
    [
        pytest.param(raw, id="an app that cannot be read"),
        pytest.param(Slots(), id="an app of another framework"),
        pytest.param(
            LongRunningMiddleware(Starlette(), path="/inner"), id="below another middleware"
        ),
        pytest.param(Starlette(routes=[Mount("/b", raw)]), id="a mount that cannot be read"),
        pytest.param(
            Starlette(routes=[Host("x.example.org", Router([Route("/b", plain)]))]), id="a host"
        ),
    ],
)
def test_a_rule_that_may_match_is_taken_at_start_up(app: ASGIApp) -> None:
    routing(app, {"/b/{id}": POLICY}).read(mounted=False)


def test_a_rule_may_match_a_route_of_an_included_router() -> None:
    app = fastapi_app()
    routing(app, {"GET /v1/outer/inner/videos/{id}": POLICY}).read(mounted=False)
    found = routing(app, {"DELETE /v1/outer/inner/videos/{id}": POLICY})
    with pytest.raises(ConfigurationError, match="matches none"):
        found.read(mounted=False)


@pytest.mark.parametrize(
    "route",
    [
        pytest.param(Route("/jobs/{id}", plain), id="a route"),
        pytest.param(Route("/jobs/x", plain, methods=["POST"]), id="whatever its method"),
        pytest.param(Route("/jobs/", plain), id="the slash itself"),
        pytest.param(Mount("/jobs", routes=[Route("/a", plain)]), id="a mount there"),
        pytest.param(Mount("/jobs", raw), id="a mount that cannot be read"),
        pytest.param(Mount("/jobs/x", StaticFiles(packages=[])), id="a mount below"),
        pytest.param(Mount("", routes=[Route("/jobs/x", plain)]), id="a route below a mount"),
    ],
)
def test_a_route_below_the_status_routes_is_refused_at_start_up(route: BaseRoute) -> None:
    found = routing(Starlette(routes=[route]))
    with pytest.raises(ConfigurationError, match="'/jobs': the app's own route '/jobs/"):
        found.read(mounted=False)
    routing(Starlette(routes=[route]), path="/_jobs").read(mounted=False)


@pytest.mark.parametrize("path", ["/jobs", "/jobsite/x", "/x/jobs/y"])
def test_a_route_beside_the_status_routes_is_taken(path: str) -> None:
    routing(Starlette(routes=[Route(path, plain)])).read(mounted=False)


def test_status_routes_that_are_taken_must_be_mounted_where_the_path_says() -> None:
    status = Router([Route("/{id}", plain)])
    mount = Mount("/api", routes=[Mount("/jobs", status)])
    app = Starlette(routes=[Route("/a", plain), mount])
    routing(app, path="/api/jobs").read(mounted=True)
    with pytest.raises(ConfigurationError, match="no mount at path='/jobs'"):
        routing(app).read(mounted=True)


async def status(scope: Scope, receive: Receive, send: Send) -> None: ...


MOUNTS: dict[str, Callable[[str], list[BaseRoute]]] = {
    "a mount": lambda path: [Mount(path, status)],
    "with middleware": lambda path: [Mount(path, status, middleware=[Middleware(GZipMiddleware)])],
    "in a mount": lambda path: [Mount("/api", routes=[Mount(path.removeprefix("/api"), status)])],
    "beside what cannot be read": lambda path: [
        Mount("/raw", raw),
        Mount(path, GZipMiddleware(status)),
    ],
}


@pytest.mark.parametrize("name", MOUNTS)
def test_status_routes_are_known_where_they_are_mounted(name: str) -> None:
    def mounted(path: str) -> Routing:
        app = Starlette(routes=[Route("/a", slow), *MOUNTS[name]("/api/tasks")])
        return Routing(
            app,
            {},
            policy=POLICY,
            route_of=route_of,
            path=path,
            is_status=lambda app: app == status,
        )

    mounted("/api/tasks").read(mounted=True)
    with pytest.raises(ConfigurationError, match="is mounted at '/api/tasks', and path='/jobs'"):
        mounted("/jobs").read(mounted=True)


def test_an_app_that_cannot_be_read_may_have_the_status_routes_anywhere() -> None:
    for mounted in (False, True):
        routing(raw).read(mounted=mounted)
        routing(Starlette(routes=[Mount("/x", raw)]), path="/x/jobs").read(mounted=True)
    assert find(raw, "GET /jobs/x")


def test_of_two_rules_the_first_counts_whatever_their_kind() -> None:
    wide, narrow = Policy(ttl=1), Policy(ttl=2)
    for rules, expected in (
        ({"/r/{id}": wide, "/r/new": narrow}, wide),
        ({"/r/new": narrow, "/r/{id}": wide}, narrow),
    ):
        candidate = candidate_of(routing(raw, rules), {"method": "GET", "path": "/r/new"})
        assert candidate is not None
        assert candidate.policy is expected


def test_a_rule_wider_than_the_routes_matches_them() -> None:
    app = Starlette(routes=[Route("/videos/today", plain)])
    routing(app, {"/{rest:path}": Policy()}).read(mounted=False)
    with pytest.raises(ConfigurationError, match="none of the app's routes"):
        routing(app, {"/films/{rest:path}": Policy()}).read(mounted=False)


def test_a_mount_and_its_route_may_call_their_parameters_the_same() -> None:
    app = Starlette(routes=[Mount("/{id}", routes=[Route("/x/{id}", slow)])])
    assert find(app, "GET /a/x/b")


def test_the_default_of_a_router_is_read_too() -> None:
    app = Router([Route("/a", plain)], default=Starlette(routes=[Route("/b", slow)]))
    assert find(app, "GET /b")
    assert not find(app, "GET /a")


def test_routes_added_to_a_mounted_router_later_are_seen() -> None:
    inner = Router()
    table = routing(Starlette(routes=[Mount("/in", inner)]))
    scope = {"method": "GET", "path": "/in/late"}
    assert candidate_of(table, scope) is None
    inner.routes.append(Route("/late", slow))
    assert candidate_of(table, scope) is not None


def websocket_of_a_router() -> ASGIApp:
    app, router = FastAPI(), APIRouter()
    router.websocket("/ws")(slow)
    app.include_router(router)
    return app


@pytest.mark.parametrize(
    "app",
    [
        pytest.param(Starlette(routes=[WebSocketRoute("/ws", slow)]), id="a route"),
        pytest.param(
            Starlette(routes=[Mount("/m", routes=[WebSocketRoute("/ws", slow)])]), id="in a mount"
        ),
        pytest.param(websocket_of_a_router(), id="in an included router"),
    ],
)
def test_a_marked_websocket_is_refused_at_start_up(app: ASGIApp) -> None:
    with pytest.raises(ConfigurationError, match=r"marks the websocket route '.*/ws'"):
        routing(app).read(mounted=False)


def test_start_up_reads_the_routes_once_for_all_requests() -> None:
    found = routing(Starlette(routes=[Route("/a", slow)]), {"/a": Policy(ttl=1)})
    found.read(mounted=False)
    assert ttl(find(found, "GET /a")) == 1
    assert ttl(find(found, "HEAD /a")) == 5


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("/hello", False),
        ("/video", False),
        ("/videos", True),
        ("/videos-of-last-year", True),  # `find` says no
        ("/reports", False),
        ("/reports/", True),
        ("/reports/1", True),
        ("/jobs", False),
        ("/jobs/x", True),
        ("", False),
        ("*", False),
    ],
)
def test_most_requests_are_told_apart_by_how_their_paths_begin(path: str, near: bool) -> None:
    rules = {"POST /videos": POLICY, "/reports/{id:int}": POLICY, "/reports/{id}/x": POLICY}
    table = routing(Starlette(), rules, path="/jobs")
    table.read(mounted=False, check=False)
    for root_path in ("", "/root"):
        scope = {"type": "http", "path": root_path + path, "root_path": root_path}
        assert (table.near(scope) == path) is near
        assert near or table.near(scope) is None


def test_every_path_is_near_to_an_app_that_cannot_be_read() -> None:
    table = routing(raw)
    assert [table.near({"path": path}) for path in ("/", "", "*", "/x")] == ["/", "", "*", "/x"]


# --- marks that no request can enter -----------------------------------------------------------


def marked(function: Callable[..., Any]) -> Callable[..., Any]:
    return long_running(function)


def above(*registered: Callable[..., Any]) -> Starlette:
    return Starlette(routes=[Route(f"/{n}", each) for n, each in enumerate(registered)])


async def work(request: object) -> Any: ...


def tagged(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapper(request: object) -> Any: ...

    return wrapper


class Views:
    """An app that keeps its functions by their names."""

    def __init__(self, *functions: Callable[..., Any]) -> None:
        self.view_functions = {str(n): each for n, each in enumerate(functions)}

    async def asgi_app(self, scope: Scope, receive: Receive, send: Send) -> None: ...


@pytest.mark.parametrize("make", [above, lambda *each: Views(*each).asgi_app], ids=["read", "kept"])
def test_a_mark_above_the_route_decorator_is_refused(make: Callable[..., ASGIApp]) -> None:
    async def registered(request: object) -> Any: ...

    routing(make(registered)).read(mounted=False)
    decorated = tagged(registered)
    for function in registered, decorated:
        marked(function)
        with pytest.raises(ConfigurationError) as raised:
            routing(make(plain, function)).read(mounted=False)
        assert "@long_running stands above the route decorator" in str(raised.value)
        assert "test_routing.test_a_mark_above" in str(raised.value)
        assert "@app.post(...), then @long_running, then def" in str(raised.value)


@pytest.mark.parametrize("make", [above, lambda *each: Views(*each).asgi_app], ids=["read", "kept"])
def test_a_function_may_be_registered_with_its_mark_and_without(
    make: Callable[..., ASGIApp],
) -> None:
    slow_work = marked(work)
    routing(make(work, slow_work)).read(mounted=False)
    routing(make(tagged(slow_work), work)).read(mounted=False)
    routing(make(tagged(work))).read(mounted=False)  # another function, of which no mark was made


class View:
    """As Django REST framework's, which calls its methods and awaits nothing."""

    def dispatch(self) -> None: ...


def api_view(function: Callable[..., Any]) -> Any:
    def handler(self: object) -> Any:
        return function()

    return as_view(type("WrappedView", (View,), {"post": handler}))


def as_view(kind: type) -> Any:
    def view(request: object) -> None: ...

    view.cls = kind  # type: ignore[attr-defined] # as the framework does
    return view


def views_of(function: Callable[..., Any]) -> list[Any]:
    return [api_view(function), as_view(type("Reports", (View,), {"post": function}))]


@pytest.fixture
def urls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The views of a Django, of which a project's URLs were imported."""
    views: list[Any] = []
    patterns = [SimpleNamespace(callback=None), SimpleNamespace(url_patterns=views)]
    modules = {
        "rest_framework.views": SimpleNamespace(APIView=View),
        "django.conf": SimpleNamespace(settings=SimpleNamespace(ROOT_URLCONF="project.urls")),
        "django.urls": SimpleNamespace(get_resolver=lambda: SimpleNamespace(url_patterns=patterns)),
        "project.urls": SimpleNamespace(urlpatterns=patterns),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return views


@pytest.mark.parametrize("kind", [0, 1], ids=["api_view", "APIView"])
def test_a_marked_view_that_is_called_plainly_is_refused(urls: list[Any], kind: int) -> None:
    urls.append(SimpleNamespace(callback=views_of(plain)[kind]))
    found = routing(raw)
    urls.append(SimpleNamespace(callback=views_of(slow)[kind]))
    cure = r"slow is marked long-running.*long_running\(View.as_view\(\)\)"
    with pytest.raises(ConfigurationError, match=cure):
        found.read(mounted=False)
    with pytest.raises(ConfigurationError, match=cure):
        routing(raw)  # the URLs are imported: no need to wait for the start


def test_a_mark_around_such_a_view_is_entered(urls: list[Any]) -> None:
    urls += [SimpleNamespace(callback=marked(view)) for view in views_of(plain)]
    urls.append(SimpleNamespace(callback=as_view(type("Async", (), {"post": slow}))))
    routing(raw).read(mounted=False)


def test_urls_that_cannot_be_read_are_left_to_django(
    urls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def get_resolver() -> Any:
        raise ImportError("no module named 'reports'")

    urls.append(SimpleNamespace(callback=api_view(slow)))
    monkeypatch.setattr(sys.modules["django.urls"], "get_resolver", get_resolver)
    monkeypatch.delitem(sys.modules, "project.urls")
    routing(raw).read(mounted=False)
