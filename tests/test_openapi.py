"""The OpenAPI document: what it says of whose operations, and that it is what is answered."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from copy import deepcopy
from functools import partial
from typing import Any, ClassVar

import anyio
import httpx
import pytest
from fastapi import APIRouter, FastAPI, Security
from fastapi.security import HTTPBearer
from jsonschema_rs import ValidationError
from openapi_spec_validator import OpenAPIV31SpecValidator, OpenAPIV32SpecValidator
from openapi_spec_validator.validation.exceptions import OpenAPIValidationError
from openapi_spec_validator.validation.keywords import OpenAPIV31SchemaValidator
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from raincheck import (
    ConfigurationError,
    Job,
    Jobs,
    Limits,
    LongRunningMiddleware,
    Pages,
    Policy,
    State,
    long_running,
)
from raincheck.callbacks import Callbacks
from raincheck.dialects.base import Dialect, Outlook
from raincheck.dialects.base import Mount as Place
from raincheck.dialects.plain import PlainDialect
from raincheck.job import Delivery
from raincheck.messages import CapturedResponse
from raincheck.openapi import document, install
from raincheck.openapi.operations import doors
from raincheck.openapi.plain import SCHEMAS
from tests.conftest import virtual_jobs
from tests.documented import Documented, validate
from tests.doubles.stores import TrickyStore, failing, no_trick
from tests.support import Gate, app_of, gated, hidden, running, settled, slow_route

EMPTY: dict[str, Any] = {"openapi": "3.1.0", "info": {"title": "t", "version": "1"}}
STATUS = {
    "/jobs/{job_id}": {"get", "head", "delete"},
    "/jobs/{job_id}/status": {"get", "head"},
    "/jobs/{job_id}/events": {"get", "head"},
    "/jobs/{job_id}/stream": {"get", "head"},
    "/jobs/{job_id}/cancel": {"post"},
    "/jobs/{job_id}/delete": {"post"},
}


def written(**paths: Mapping[str, Any]) -> dict[str, Any]:
    """A document by hand: `orders_post={...}` is POST /orders."""
    found: dict[str, Any] = {**EMPTY, "paths": {}}
    for name, operation in paths.items():
        path, _, method = name.rpartition("_")
        plain = {"responses": {"200": {"description": "Done."}}}
        item = found["paths"].setdefault("/" + path.replace("__", "/"), {})
        item[method] = {**plain, **operation}
    return found


class Known(OpenAPIV31SchemaValidator):
    """Holds a schema against that of schemas once: most of them are in every document."""

    found: ClassVar[set[str]] = set()

    def _validate_schema_meta(self, schema: Any, schema_value: Any) -> Any:
        text = json.dumps(schema_value)
        error = None if text in self.found else super()._validate_schema_meta(schema, schema_value)
        if error is None:
            self.found.add(text)
        return error


class Validator(OpenAPIV31SpecValidator):
    keyword_validators = OpenAPIV31SpecValidator.keyword_validators | {"schema": Known}


def valid(found: dict[str, Any]) -> dict[str, Any]:
    Validator(found).validate()
    return found


def test_what_is_no_schema_is_found_in_a_document() -> None:
    found = {**EMPTY, "paths": {}, "components": {"schemas": {"Own": {"type": "nothing"}}}}
    for _ in range(2):
        with pytest.raises(OpenAPIValidationError):
            valid(found)


def completed(schema: dict[str, Any], app: Any, **settings: Any) -> dict[str, Any]:
    """What comes of it: valid, of an argument that stays as it was, and complete by itself."""
    before = deepcopy(schema)
    found = document(schema, app, **settings)
    assert schema == before
    assert document(found, app, **settings) == found
    return valid(found)


def asynchronous(found: dict[str, Any]) -> set[tuple[str, str]]:
    """The operations outside of the status routes that have a 202."""
    return {
        (path, method)
        for path, item in found["paths"].items()
        for method, operation in item.items()
        if isinstance(operation, dict) and "202" in operation["responses"]
        if "job_id" not in path
    }


def slow_api(**settings: Any) -> FastAPI:
    """A FastAPI app with one marked operation and a plain one; no middleware yet."""
    app = FastAPI()

    @app.post("/slow")
    @long_running(name="slow", **settings)
    async def slow() -> dict[str, int]:
        return {"n": 1}

    @app.get("/plain")
    async def plain() -> str:
        return ""

    return app


def operation_of(policy: Policy, schema: Mapping[str, Any] | None = None, **settings: Any) -> Any:
    """`POST /slow` under a policy, as it is completed, and the document."""
    app = LongRunningMiddleware(hidden(Starlette()), routes={"POST /slow": policy}, **settings)
    found = completed(written(slow_post=schema or {}), app)
    return found["paths"]["/slow"]["post"], found


# --- which operations --------------------------------------------------------------------------


def test_a_marked_operation_has_what_it_answers() -> None:
    app = slow_api(timeout=5)
    found = completed(app.openapi(), LongRunningMiddleware(app))
    assert asynchronous(found) == {("/slow", "post")}
    slow = found["paths"]["/slow"]["post"]
    accepted = slow["responses"]["202"]
    assert accepted["content"] == {
        "application/json": {"schema": {"$ref": "#/components/schemas/JobStatus"}}
    }
    assert {"Location", "Retry-After", "Preference-Applied", "Link", "Vary"} <= {
        *accepted["headers"]
    }
    assert {each["$ref"].split("/")[2] for each in accepted["headers"].values()} == {"headers"}
    assert slow["responses"]["200"] == app.openapi()["paths"]["/slow"]["post"]["responses"]["200"]
    assert set(slow["responses"]) == {
        *("200", "202", "303", "400", "413", "422", "500", "502", "503", "504")
    }
    assert [each["name"] for each in slow["parameters"]] == ["Prefer", "Idempotency-Key"]
    assert found["paths"]["/plain"] == app.openapi()["paths"]["/plain"]
    assert {path: {*found["paths"][path]} for path in STATUS} == STATUS


def test_the_202_links_to_the_operations_of_the_job() -> None:
    app = slow_api()
    found = completed(app.openapi(), LongRunningMiddleware(app))
    ids = {
        operation["operationId"]: (method, path)
        for path, item in found["paths"].items()
        for method, operation in item.items()
    }
    links = found["paths"]["/slow"]["post"]["responses"]["202"]["links"]
    assert {name: ids[link["operationId"]] for name, link in links.items()} == {
        "result": ("get", "/jobs/{job_id}"),
        "monitor": ("get", "/jobs/{job_id}/status"),
        "events": ("get", "/jobs/{job_id}/events"),
        "stream": ("get", "/jobs/{job_id}/stream"),
        "cancel": ("post", "/jobs/{job_id}/cancel"),
        "delete": ("delete", "/jobs/{job_id}"),
    }
    for link in links.values():
        assert link["parameters"] == {"job_id": "$response.body#/job_id"}


def test_included_routers_and_methods_of_classes_and_rules_are_found() -> None:
    router = APIRouter()

    @router.get("/reports/{id}")
    @long_running(name="report")
    async def report(id: int) -> int:
        return id

    @router.post("/reports/{id}")
    async def renew(id: int) -> int:
        return id

    class Orders(HTTPEndpoint):
        @long_running(name="orders")
        async def post(self, request: Request) -> Response:
            return Response()

        async def get(self, request: Request) -> Response:
            return Response()

    app = FastAPI()
    app.include_router(router, prefix="/v1")
    app.router.routes.append(Route("/orders/{name:str}/{rest:path}", Orders))
    by_hand = written(orders__post={}, videos__new_put={}, videos__new_get={}, other_post={})
    by_hand["paths"]["/orders/{a}/{b}"] = {
        method: {
            "parameters": [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                for name in ("a", "b")
            ],
            "responses": {"200": {"description": "Done."}},
        }
        for method in ("get", "post")
    }
    schema = {**app.openapi(), "paths": {**app.openapi()["paths"], **by_hand["paths"]}}
    app.add_api_route("/videos/new", report, methods=["PUT"])
    rules = {"PUT /videos/{name}": Policy()}
    found = completed(schema, LongRunningMiddleware(app, routes=rules))
    assert asynchronous(found) == {
        ("/v1/reports/{id}", "get"),
        ("/orders/{a}/{b}", "post"),
        ("/videos/new", "put"),
    }


@pytest.mark.parametrize(
    ("rule", "paths", "marked"),
    [
        ("POST /a/{id:int}", ["/a/{id}"], ["/a/{id}"]),
        ("/a/{rest:path}", ["/a/{id}/b/{c}", "/b"], ["/a/{id}/b/{c}"]),
        ("POST /a/latest", ["/a/{id}"], ["/a/{id}"]),  # some requests for it meet the rule
        ("POST /a/latest", ["/a/{id}", "/a/latest"], ["/a/latest"]),
        ("POST /a/{id:uuid}", ["/a/{id}", "/a/1"], ["/a/{id}"]),
        ("GET /a", ["/a"], []),
        ("POST /a", ["/a/b", "/ab"], []),
    ],
)
def test_a_path_rule_is_for_the_operations_whose_requests_meet_it(
    rule: str, paths: list[str], marked: list[str]
) -> None:
    schema = {**EMPTY, "paths": {path: {"post": {"responses": {}}} for path in paths}}
    app = LongRunningMiddleware(hidden(Starlette()), routes={rule: Policy()})
    assert [path for path, _ in asynchronous(document(schema, app))] == marked


def test_of_a_rule_and_a_mark_the_rule_counts_and_of_rules_the_first() -> None:
    app = slow_api(idempotency="required")
    first, second = Policy(idempotency="off"), Policy()
    outer = LongRunningMiddleware(app, routes={"POST /slow": first, "/{any}": second})
    slow = completed(app.openapi(), outer)["paths"]["/slow"]["post"]
    assert [each["name"] for each in slow["parameters"]] == ["Prefer"]


def test_a_middleware_around_others_is_found_and_so_is_one_inside() -> None:
    app = slow_api()
    around = CORSMiddleware(LongRunningMiddleware(app), allow_origins=["*"])
    assert asynchronous(completed(app.openapi(), around)) == {("/slow", "post")}
    app.add_middleware(LongRunningMiddleware, path="/api")
    app.add_middleware(CORSMiddleware)
    found = completed(app.openapi(), app)
    assert asynchronous(found) == {("/slow", "post")}
    assert "/api/{job_id}/status" in found["paths"]


def test_an_app_that_is_mounted_with_a_middleware_of_its_own() -> None:
    inner = slow_api()
    inner.add_middleware(LongRunningMiddleware)
    outer = Starlette(routes=[Mount("/{tenant}/v1", inner)])
    schema = written()
    tenant = {"name": "tenant", "in": "path", "required": True, "schema": {"type": "string"}}
    slow = {"parameters": [tenant], "responses": {"200": {"description": "Done."}}}
    schema["paths"] = {
        "/{tenant}/v1/slow": {"post": slow},
        "/slow": {"get": {"responses": slow["responses"]}},
    }
    found = completed(schema, outer)
    assert asynchronous(found) == {("/{tenant}/v1/slow", "post")}
    assert "/{tenant}/v1/jobs/{job_id}" in found["paths"]
    links = found["paths"]["/{tenant}/v1/slow"]["post"]["responses"]["202"]["links"]
    assert links["result"]["parameters"] == {
        "tenant": "$request.path.tenant",
        "job_id": "$response.body#/job_id",
    }
    assert {*completed(written(other_get={}), outer)["paths"]} == {"/other"}
    within = completed(inner.openapi(), outer, mounted="/{tenant}/v1")
    assert within == document(inner.openapi(), inner)


def test_a_mounted_apps_document_has_the_status_routes_of_the_middleware_around() -> None:
    inner = slow_api()
    outer = FastAPI()
    outer.root_path = "/api"
    outer.mount("/v1", inner)
    found = completed(inner.openapi(), LongRunningMiddleware(outer), mounted="/v1")
    assert asynchronous(found) == {("/slow", "post")}
    assert found["paths"]["/jobs/{job_id}"]["servers"] == [{"url": "/api"}]
    assert "servers" not in found["paths"]["/slow"]
    assert asynchronous(completed(outer.openapi(), LongRunningMiddleware(outer))) == set()


def test_two_middlewares_on_different_paths() -> None:
    app = slow_api()
    inner = LongRunningMiddleware(app)
    outer = LongRunningMiddleware(inner, path="/renders", routes={"GET /plain": Policy()})
    found = completed(app.openapi(), outer)
    assert asynchronous(found) == {("/slow", "post"), ("/plain", "get")}
    links = {
        path: found["paths"][path][method]["responses"]["202"]["links"]["result"]["operationId"]
        for path, method in asynchronous(found)
    }
    assert links == {"/slow": "jobs_result", "/plain": "renders_result"}
    app.add_middleware(LongRunningMiddleware)
    app.add_middleware(LongRunningMiddleware, path="/renders", routes={"GET /plain": Policy()})
    assert document(app.openapi(), app) == found


def test_routes_mounted_by_hand_are_where_they_are() -> None:
    jobs = virtual_jobs()
    inner = Starlette(routes=[gated(Gate()), Mount("/jobs", jobs.status_app)])
    app = LongRunningMiddleware(inner, jobs=jobs, pages=Pages(own_list=True))
    found = completed(written(slow_post={}), app)
    assert asynchronous(found) == {("/slow", "post")}
    assert {*STATUS, "/jobs/"} <= {*found["paths"]}


@pytest.mark.parametrize("base_url", [None, "https://api.example.org"])
def test_operation_location_is_there_where_urls_are_absolute(base_url: str | None) -> None:
    slow, _ = operation_of(Policy(), base_url=base_url)
    assert ("Operation-Location" in slow["responses"]["202"]["headers"]) == bool(base_url)


# --- what policies change ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "names", "required"),
    [
        (Policy(), ["Prefer", "Idempotency-Key"], False),
        (Policy(idempotency="required"), ["Prefer", "Idempotency-Key"], True),
        (Policy(idempotency="off"), ["Prefer"], False),
    ],
)
def test_parameters_by_policy(policy: Policy, names: list[str], required: bool) -> None:
    slow, _ = operation_of(policy)
    assert [each["name"] for each in slow["parameters"]] == names
    assert slow["parameters"][-1]["required"] == required


@pytest.mark.parametrize(
    ("policy", "limits", "statuses"),
    [
        (Policy(), Limits(), "200 202 303 400 413 422 500 502 503"),
        (Policy(timeout=1), Limits(), "200 202 303 400 413 422 500 502 503 504"),
        (Policy(max_wait=0, timeout=1), Limits(), "200 202 303 400 413 422 500 503"),
        (Policy(idempotency="off"), Limits(), "200 202 303 413 500 502 503"),
        (Policy(respond="preferred"), Limits(), "200 202 303 400 409 410 413 422 500 502 503"),
        (Policy(max_queued_per_owner=1), Limits(), "200 202 303 400 413 422 429 500 502 503"),
        (Policy(), Limits(require_owner=True), "200 202 303 400 401 413 422 500 502 503"),
    ],
)
def test_problems_by_policy(policy: Policy, limits: Limits, statuses: str) -> None:
    slow, _ = operation_of(policy, limits=limits)
    assert sorted(slow["responses"]) == statuses.split()


def test_lists_are_there_for_whom_they_are_turned_on() -> None:
    def nobody(connection: HTTPConnection) -> bool:
        return False

    for pages, paths in [
        (Pages(), set()),
        (Pages(own_list=True), {"/jobs"}),
        (Pages(operator=nobody), {"/jobs", "/jobs/totals", "/jobs/{job_id}/redeliver"}),
    ]:
        _, found = operation_of(Policy(), pages=pages)
        assert {*found["paths"]} - {*STATUS, "/slow"} == paths
        assert ("JobTotals" in found["components"]["schemas"]) == ("/jobs/totals" in paths)
    owners = [each["name"] for each in found["paths"]["/jobs"]["get"]["parameters"]]
    assert "owner" in owners


def test_a_page_is_an_answer_where_there_are_pages() -> None:
    for pages, kinds in [
        (Pages(), {"application/json", "text/html"}),
        (Pages(waiting=None), {"application/json"}),
        (Pages(waiting=lambda job, urls: Response()), {"application/json", "*/*"}),
    ]:
        _, found = operation_of(Policy(), pages=pages)
        pending = found["paths"]["/jobs/{job_id}"]["get"]["responses"]["202"]
        assert {*pending["content"]} == kinds


class Another(Dialect):
    """Spells as it likes."""

    place = urls = accepted = navigated = pending = monitor = None  # type: ignore[assignment] # not
    result = cancelled = deleted = problem = None  # type: ignore[assignment] # called by anybody


def test_of_another_dialect_nothing_is_said_that_may_be_false() -> None:
    slow, found = operation_of(Policy(), dialect=Another())
    assert set(slow["responses"]) == {"200", "default"}
    assert [each["name"] for each in slow["parameters"]] == ["Prefer", "Idempotency-Key"]
    assert {*found["paths"]} == {"/slow"}


# --- what the author has said ------------------------------------------------------------------


def test_what_the_author_says_of_the_same_is_kept() -> None:
    own = {
        "operationId": "slow",
        "parameters": [
            {"name": "prefer", "in": "header", "schema": {"type": "string", "enum": ["wait=1"]}},
            {"name": "Idempotency-Key", "in": "query", "schema": {"type": "integer"}},
        ],
        "responses": {
            "202": {
                "description": "My own words.",
                "headers": {"location": {"schema": {"type": "string", "maxLength": 9}}},
                "content": {"application/json": {"schema": {"type": "integer"}}},
                "links": {"cancel": {"operationId": "slow"}, "own": {"operationId": "slow"}},
            },
            "422": {
                "description": "Mine.",
                "content": {"application/problem+json": {"schema": {"type": "array"}}},
            },
            "503": {"description": "Mine too.", "content": {"application/problem+json": {}}},
        },
    }
    slow, _ = operation_of(Policy(), own)
    names = [(each["name"], each["in"]) for each in slow["parameters"]]
    assert names == [
        ("prefer", "header"),
        ("Idempotency-Key", "query"),
        ("Idempotency-Key", "header"),
    ]
    accepted = slow["responses"]["202"]
    assert accepted["description"] == "My own words."
    assert accepted["headers"]["location"] == {"schema": {"type": "string", "maxLength": 9}}
    assert "Location" not in accepted["headers"]
    # The author's own 202, in time, has none.
    assert {*accepted["headers"]["Retry-After"]} == {"description", "schema"}
    assert accepted["content"]["application/json"]["schema"] == {
        "anyOf": [{"type": "integer"}, {"$ref": "#/components/schemas/JobStatus"}]
    }
    assert accepted["links"]["cancel"] == accepted["links"]["own"] == {"operationId": "slow"}
    assert accepted["links"]["result"]["operationId"] == "jobs_result"
    (either,) = slow["responses"]["422"]["content"]["application/problem+json"].values()
    assert either["anyOf"][0] == {"type": "array"}
    assert slow["responses"]["503"]["content"]["application/problem+json"] == {}


def test_what_is_referred_to_is_looked_up() -> None:
    schema = written(slow_post={})
    schema["components"] = {
        "parameters": {"Prefer": {"name": "PREFER", "in": "header", "schema": {"type": "string"}}},
        "responses": {"Mine": {"description": "Mine."}},
        "pathItems": {
            "Slow": {
                "parameters": [{"$ref": "#/components/parameters/Prefer"}],
                "post": {"responses": {"202": {"$ref": "#/components/responses/Mine"}}},
            }
        },
    }
    schema["paths"]["/slow"] = {"$ref": "#/components/pathItems/Slow"}
    app = LongRunningMiddleware(hidden(Starlette()), routes={"POST /slow": Policy()})
    slow = completed(schema, app)["paths"]["/slow"]
    assert [each["name"] for each in slow["post"]["parameters"]] == ["Idempotency-Key"]
    assert slow["post"]["responses"]["202"]["description"] == "Mine."
    assert "content" in slow["post"]["responses"]["202"]


def test_what_is_said_elsewhere_is_left_alone() -> None:
    elsewhere = {"202": {"$ref": "other.json#/components/responses/Accepted"}}
    app = LongRunningMiddleware(hidden(Starlette()), routes={"POST /slow": Policy()})
    found = document(written(slow_post={"responses": dict(elsewhere)}), app)
    assert found["paths"]["/slow"]["post"]["responses"]["202"] == elsewhere["202"]


def test_statuses_may_be_numbers_as_yaml_and_quart_schema_have_them() -> None:
    own = {"responses": {200: {"description": "Done."}, 202: {"description": "Mine."}}}
    app = LongRunningMiddleware(hidden(Starlette()), routes={"POST /slow": Policy()})
    slow = valid(document(written(slow_post=own), app))["paths"]["/slow"]["post"]
    assert slow["responses"]["202"]["description"] == "Mine."
    assert {type(status) for status in slow["responses"]} == {str}


def test_parts_that_a_document_has_twice_are_not_the_same_afterwards() -> None:
    shared = {"responses": {"200": {"description": "Done."}}}
    app = LongRunningMiddleware(hidden(Starlette()), routes={"POST /slow": Policy()})
    schema = {**EMPTY, "paths": {"/slow": {"post": shared}, "/plain": {"post": shared}}}
    assert asynchronous(completed(schema, app)) == {("/slow", "post")}


def test_names_that_are_taken_stay_the_authors() -> None:
    schema = written(slow_post={"operationId": "jobs_result"})
    mine = {"type": "string"}
    schema["components"] = {"schemas": {"JobStatus": mine}, "headers": {}}
    app = LongRunningMiddleware(hidden(Starlette()), routes={"POST /slow": Policy()})
    found = completed(schema, app)
    assert found["components"]["schemas"]["JobStatus"] == mine
    content = found["paths"]["/slow"]["post"]["responses"]["202"]["content"]
    assert content["application/json"]["schema"] == {
        "$ref": "#/components/schemas/RaincheckJobStatus"
    }
    ids = [
        operation["operationId"] for item in found["paths"].values() for operation in item.values()
    ]
    assert len(ids) == len({*ids})
    assert "jobs_result_2" in ids


def test_a_status_route_that_the_author_has_described_is_kept() -> None:
    own = {"operationId": "poll", "responses": {"200": {"description": "Mine."}}}
    id = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    schema = written(slow_post={})
    schema["paths"]["/jobs/{id}"] = {"get": {**own, "parameters": [id]}}
    app = LongRunningMiddleware(hidden(Starlette()), routes={"POST /slow": Policy()})
    found = completed(schema, app)["paths"]
    assert found["/jobs/{id}"]["get"] == {**own, "parameters": [id]}
    assert {*found["/jobs/{id}"]} == {"get", "head", "delete"}
    links = found["/slow"]["post"]["responses"]["202"]["links"]
    assert links["result"] == {
        "operationId": "poll",
        "parameters": {"id": "$response.body#/job_id"},
    }


# --- who may ask -------------------------------------------------------------------------------

BEARER: dict[str, list[str]] = {"bearer": []}


@pytest.mark.parametrize(
    ("own", "everyones", "owned", "asked"),
    [
        (None, None, True, None),
        (None, [BEARER], True, None),  # the document's holds for them too
        ([BEARER], None, True, [BEARER]),
        ([BEARER], None, False, [BEARER, {}]),  # nothing tells raincheck whose a request is
        ([], [BEARER], True, [{}]),
        ([BEARER, {"key": []}], [{"other": []}], True, [BEARER, {"key": []}]),
    ],
)
def test_a_status_route_asks_for_what_the_operations_ask_for(
    own: Any, everyones: Any, owned: bool, asked: Any
) -> None:
    schema = written(slow_post={} if own is None else {"security": own})
    if everyones is not None:
        schema["security"] = everyones
    kinds = {name: {"type": "http", "scheme": "bearer"} for name in ("bearer", "key", "other")}
    schema["components"] = {"securitySchemes": kinds}
    owner = (lambda connection: "ann") if owned else None
    routes = {"POST /slow": Policy()}
    app = LongRunningMiddleware(hidden(Starlette()), routes=routes, owner=owner)
    found = completed(schema, app)["paths"]
    for path, methods in STATUS.items():
        for method in methods:
            assert found[path][method].get("security") == asked


def test_fastapis_own_security_is_carried_over() -> None:
    app = FastAPI()

    @app.post("/slow", dependencies=[Security(HTTPBearer())])
    @long_running(name="slow")
    async def slow() -> None: ...

    app.add_middleware(LongRunningMiddleware, owner=lambda connection: "ann")
    found = completed(app.openapi(), app)["paths"]
    assert found["/jobs/{job_id}"]["get"]["security"] == [{"HTTPBearer": []}]


# --- FastAPI's hook ----------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["install", "middleware", "routes"])
def test_install_works_in_whatever_order(first: str) -> None:
    app = FastAPI()

    async def slow() -> int:
        return 1

    def route() -> None:
        app.post("/slow")(long_running(slow))

    steps: dict[str, Callable[[], object]] = {
        "install": partial(install, app),
        "middleware": partial(app.add_middleware, LongRunningMiddleware),
        "routes": route,
    }
    steps.pop(first)()
    for step in steps.values():
        step()
    assert asynchronous(valid(app.openapi())) == {("/slow", "post")}


def test_install_keeps_what_it_has_made_as_long_as_fastapi_does() -> None:
    app = slow_api()
    install(app)
    app.add_middleware(LongRunningMiddleware)
    found = app.openapi()
    assert app.openapi() is found
    install(app)
    assert app.openapi() is found

    @app.post("/later")
    @long_running(name="later")
    async def later() -> None: ...

    assert app.openapi() is not found
    assert asynchronous(app.openapi()) == {("/slow", "post"), ("/later", "post")}
    app.add_middleware(LongRunningMiddleware, path="/work", routes={"GET /plain": Policy()})
    assert ("/plain", "get") in asynchronous(app.openapi())


def test_install_takes_an_authors_own_function() -> None:
    app = slow_api()
    app.add_middleware(LongRunningMiddleware)
    made = app.openapi

    def own() -> dict[str, Any]:
        return {**made(), "tags": [{"name": "mine"}]}

    app.openapi = own  # type: ignore[method-assign] # as FastAPI's own documentation does
    install(app)
    assert app.openapi()["tags"] == [{"name": "mine"}]
    assert asynchronous(app.openapi()) == {("/slow", "post")}


def test_install_around_and_for_what_is_mounted() -> None:
    outer, inner = FastAPI(), slow_api()
    outer.mount("/v1", inner)
    app = LongRunningMiddleware(outer)
    install(app)
    assert asynchronous(valid(inner.openapi())) == {("/slow", "post")}
    assert inner.openapi()["paths"]["/jobs/{job_id}"]["servers"] == [{"url": "/"}]
    assert asynchronous(valid(outer.openapi())) == set()
    assert "/jobs/{job_id}" in outer.openapi()["paths"]


@pytest.mark.one_loop
@pytest.mark.anyio
async def test_what_is_served_is_the_whole_document() -> None:
    app = slow_api()
    app.add_middleware(LongRunningMiddleware, jobs=virtual_jobs())
    install(app)
    async with running(app) as client:
        for _ in range(2):
            served = (await client.get("/openapi.json")).json()
            assert asynchronous(valid(served)) == {("/slow", "post")}
        assert (await client.get("/docs")).status_code == 200


def test_what_cannot_be_completed_says_why() -> None:
    app = slow_api()
    install(app)
    with pytest.raises(ConfigurationError, match="no LongRunningMiddleware; give the middleware"):
        app.openapi()
    with pytest.raises(ConfigurationError, match="there is no FastAPI app in it"):
        install(LongRunningMiddleware(Starlette()))
    for schema in ({}, {"swagger": "2.0"}, {"openapi": "3.0.3"}, None):
        with pytest.raises(ConfigurationError, match=r"give one of OpenAPI 3\.1 or 3\.2"):
            document(schema, LongRunningMiddleware(Starlette()))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"paths": None}, "its paths is None"),
        ({"paths": {"/slow": None}}, "its /slow is None"),
        ({"components": None}, "its components is None"),
        ({"components": {"schemas": None}}, "its schemas is None"),
    ],
)
def test_a_part_that_yaml_has_read_as_nothing_is_named(more: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        document({**written(slow_post={}), **more}, LongRunningMiddleware(Starlette()))


def test_where_a_document_is_mounted_begins_with_a_slash() -> None:
    with pytest.raises(ConfigurationError, match='begins with a slash, as "/v1"'):
        document(written(slow_post={}), LongRunningMiddleware(Starlette()), mounted="v1")


def test_extensions_of_the_paths_are_left_alone() -> None:
    app = LongRunningMiddleware(hidden(Starlette()), routes={"POST /slow": Policy()})
    schema = written(slow_post={})
    schema["paths"] |= {"x-owner": "team", "x-groups": {"get": {"operationId": 7}}}
    schema["components"] = {"x-source": None}
    found = document(schema, app)
    assert "202" in found["paths"]["/slow"]["post"]["responses"]
    assert found["paths"]["x-owner"] == "team"
    assert found["paths"]["x-groups"] == {"get": {"operationId": 7}}


def test_a_document_of_3_2_has_the_schema_of_each_event() -> None:
    app = LongRunningMiddleware(hidden(Starlette()), routes={"POST /slow": Policy()})
    found = document({**written(slow_post={}), "openapi": "3.2.0"}, app)
    OpenAPIV32SpecValidator(found).validate()
    events = found["paths"]["/jobs/{job_id}/events"]["get"]["responses"]["200"]["content"]
    assert events == {
        "text/event-stream": {"itemSchema": {"$ref": "#/components/schemas/JobEvent"}}
    }


TOLD = Callbacks(secrets=["whsec_" + "A" * 32])
ASKED = Callbacks(secrets=["whsec_" + "A" * 32], allow=["https://hooks.example/*"])


@pytest.mark.parametrize(
    ("url", "permitted", "told"),
    [
        (None, None, []),
        (None, TOLD, []),
        (lambda request: None, TOLD, []),  # nobody knows before the request
        ("https://a.example/ended", TOLD, ["https://a.example/ended"]),
        (None, ASKED, ["{$request.header.Prefer}"]),
        ("https://a.example", ASKED, ["https://a.example", "{$request.header.Prefer}"]),
    ],
)
def test_callback_objects_are_there_where_somebody_may_be_told(
    url: Any, permitted: Callbacks | None, told: list[str]
) -> None:
    jobs = Jobs(callbacks=permitted)
    theirs: dict[str, Any] = {
        "theirs": {"https://b.example": {"post": {"responses": {"200": {"description": "Taken."}}}}}
    }
    slow, _ = operation_of(Policy(callback=url), {"callbacks": theirs}, jobs=jobs)
    ours = {name: each for name, each in slow["callbacks"].items() if name != "theirs"}
    assert slow["callbacks"].keys() - ours.keys() == {"theirs"}
    assert [expression for each in ours.values() for expression in each] == told
    for each in ours.values():
        (posted,) = (item["post"] for item in each.values())
        assert [field["name"] for field in posted["parameters"]] == [
            *("webhook-id", "webhook-timestamp", "webhook-signature")
        ]
        schema = posted["requestBody"]["content"]["application/json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/JobStatus"}


# --- what is answered --------------------------------------------------------------------------


async def plain(request: Request) -> Response:
    return JSONResponse({"path": request.url.path})


async def empty(request: Request) -> Response:
    return Response(status_code=204)


async def refused(request: Request) -> Response:
    return JSONResponse({"why": "not"}, 409)


async def crashed(request: Request) -> Response:
    raise ValueError


def is_admin(connection: HTTPConnection) -> bool:
    return connection.headers.get("x-admin") == "yes"


class Deployment:
    """An app, and jobs of it in each state."""

    def __init__(self) -> None:
        self.gate, self.stubborn = Gate(), Gate()
        self.store = TrickyStore()
        jobs = virtual_jobs(store=self.store, limits=Limits(cancel_grace=10**6))
        routes = [
            slow_route(each, f"/{each.__name__}") for each in (plain, empty, refused, crashed)
        ]
        self.app = app_of(
            *routes,
            gated(self.gate, "/held"),
            gated(self.gate, "/turns", max_running=1),
            gated(self.gate, "/late", timeout=1),
            slow_route(plain, "/brief", ttl=1),
            slow_route(self.stay, "/stubborn"),
            jobs=jobs,
            pages=Pages(operator=is_admin),
        )
        self.documented = Documented(*doors(self.app))

    async def stay(self, request: Request) -> Response:
        try:
            await self.stubborn.wait()
        finally:
            with anyio.CancelScope(shield=True):
                await self.stubborn.wait()
        return Response()

    async def job(self, client: httpx.AsyncClient, state: str) -> str:
        """The URL of a job in a state."""
        paths = {"queued": "turns", "running": "held", "canceling": "stubborn", "canceled": "held"}
        if state == "unknown":
            return "/jobs/" + "x" * 30
        if state == "queued":
            await client.post("/turns")
        accepted = await client.post("/" + paths.get(state, {"deleted": "plain"}.get(state, state)))
        url: str = accepted.headers["location"]
        await settled()
        if state in ("canceling", "canceled"):
            await client.post(url + "/cancel")
            await settled()
        elif state in ("late", "brief"):
            await anyio.sleep(3)
        elif state == "deleted":
            await client.delete(url)
        return url


ASKING: list[dict[str, str]] = [
    {},
    {"prefer": "wait=2"},
    {"accept": "text/html", "sec-fetch-mode": "navigate"},
    {"range": "bytes=0-1"},
    {"range": "bytes=999-"},
    {"if-match": '"another"'},
    {"if-none-match": "*"},
    {"last-event-id": "2"},
]
STATES = {
    "queued": "queued",
    "running": "running",
    "canceling": "canceling",
    "canceled": "canceled",
    "plain": "succeeded",
    "empty": "succeeded",
    "refused": "failed",
    "crashed": "failed",
    "late": "failed",
    "brief": None,
    "deleted": None,
    "unknown": None,
}
CHANGES = [("POST", "/cancel"), ("DELETE", ""), ("POST", "/delete")]


async def redelivered(deployment: Deployment, ask: Callable[..., Awaitable[Any]]) -> None:
    """Have a callback sent again, as far as that can be had."""
    told = Job("r" * 30, "route", State.RUNNING, 1.7e9, fence=1, runs=1, started_at=1.7e9)
    told = told._replace(delivery=Delivery("https://example.com/", "/jobs"))
    ended = told.finish(
        State.SUCCEEDED, 1.7e9, ttl=1e9, tombstone_ttl=1e9, response=CapturedResponse(200, (), 0)
    )
    url, operator, store = f"/jobs/{told.id}/redeliver", {"x-admin": "yes"}, deployment.store
    await ask("POST", url)
    await ask("POST", url, **{"sec-fetch-site": "cross-site"})
    await store.create(told)
    assert (await ask("POST", url, **operator)).status_code == 409
    await store.replace(ended)
    assert (await ask("POST", url, **operator)).status_code == 200
    assert (await ask("POST", f"{url}?list=/", **ASKING[2], **operator)).status_code == 303
    there = await store.get(told.id)
    assert there is not None
    await store.replace(there.tombstone(1.7e9, 1e9))
    assert (await ask("POST", url, **operator)).status_code == 410


@pytest.mark.one_loop
@pytest.mark.anyio
async def test_every_answer_of_every_status_route_in_every_state_is_documented() -> None:
    deployment = Deployment()
    documented = deployment.documented
    async with running(deployment.app) as client:

        async def ask(method: str, url: str, **headers: str) -> httpx.Response:
            response = await client.request(method, url, headers=headers)
            await documented.check(response)
            return response

        for state, status in STATES.items():
            url = await deployment.job(client, state)
            for tail in ("/status", "", "/events", "/stream"):
                for method in ("GET", "HEAD"):
                    for headers in ASKING:
                        answer = await ask(method, url + tail, **headers)
                        if (method, tail, status) == ("GET", "/status", status) and status:
                            assert answer.json()["status"] == status
            for method, tail in CHANGES:
                for headers in ({"sec-fetch-site": "cross-site"}, *ASKING[:3]):
                    await ask(method, url + tail, **headers)
                    url = await deployment.job(client, state)
                await ask(method, f"{url}{tail}?list=/", **ASKING[2])
                url = await deployment.job(client, state)
        await ask("GET", "/jobs", **{"x-admin": "yes"})
        for query in ("", "?limit=x", "?status=failed&limit=2", "/totals"):
            for admin in ("yes", "no"):
                for method in ("GET", "HEAD"):
                    await ask(method, f"/jobs{query}", **{"x-admin": admin})
        await redelivered(deployment, ask)
        deployment.store.before = failing("get", "fetch", "list", "totals", "partial")
        for tail in ("/status", "/events", "/cancel", "/delete", "", "/stream", "/redeliver"):
            for method in ("GET", "HEAD", "POST", "DELETE"):
                await ask(method, "/jobs/" + "x" * 30 + tail, **{"x-admin": "yes"})
        for path in ("/jobs", "/jobs/totals"):
            for method in ("GET", "HEAD"):
                await ask(method, path, **{"x-admin": "yes"})
        deployment.store.before = no_trick
        deployment.gate.open()
        deployment.stubborn.open()
    defaults = {each for each in documented.described if each[1] == "default"}
    assert documented.described - documented.seen <= defaults  # nor is anything else said
    assert ("result", "default") in documented.seen


@pytest.mark.parametrize(
    "lie",
    [
        {"status": "cancelled"},
        {"progress": 1.5},
        {"retry_after": 0},
        {"owner": "ann"},
        {"links": {}},
        {"finished_at": "2026-11-21T12:00:00Z"},
    ],
)
def test_the_schema_of_a_document_has_no_room_for_anything_else(lie: dict[str, Any]) -> None:
    job = Job("x" * 30, "route", State.RUNNING, 1.7e9, version=1, fence=1, runs=1)
    reply = PlainDialect().monitor(job, Place("/jobs", absolute=False), Outlook(2))
    told = json.loads(reply.body)
    validate(told, SCHEMAS["JobStatus"])
    with pytest.raises(ValidationError):
        validate({**told, **lie}, SCHEMAS["JobStatus"])
