"""Owners, idempotency keys, shared runs and quotas, as clients meet them."""

from __future__ import annotations

from typing import Any

import anyio
import httpx
import pytest
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from raincheck import ConfigurationError, Limits, LongRunningMiddleware, MemoryStore, Policy
from raincheck.owners import authenticated_user, cookie, header
from raincheck.testing import follow
from tests.conftest import virtual_jobs
from tests.doubles.stores import TrickyStore, no_trick, taking
from tests.support import Gate, app_of, gated, running, said, settled, slow_route

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]


class Backend(AuthenticationBackend):
    async def authenticate(self, conn: HTTPConnection) -> Any:
        name = conn.headers.get("authorization")
        return None if name is None else (AuthCredentials(), SimpleUser(name))


def by_header(connection: HTTPConnection) -> str | None:
    return connection.headers.get("x-user")


async def by_header_later(connection: HTTPConnection) -> str | None:
    await anyio.sleep(0.001)
    return connection.headers.get("x-user")


OWNERS: dict[str, Any] = {
    "sync": by_header,
    "async": by_header_later,
    "header": header("x-user", secret="s"),
    "cookie": cookie("session", secret=b"s"),
}


def user(name: str) -> dict[str, str]:
    return {"x-user": name, "cookie": f"session={name}"}


async def routes_of(client: httpx.AsyncClient, url: str, headers: Any) -> list[httpx.Response]:
    """Every route of a job, those that end it last."""
    return [
        await client.get(url, headers=headers),
        await client.head(url, headers=headers),
        await client.get(url + "/status", headers=headers),
        await client.head(url + "/events", headers=headers),
        await client.post(url + "/cancel", headers=headers),
        await client.delete(url, headers=headers),
    ]


@pytest.mark.parametrize(
    ("headers", "served"), [({}, "max-age=60, public"), (user("ann"), "max-age=60, private")]
)
async def test_no_shared_cache_is_given_an_owners_response(
    headers: dict[str, str], served: str
) -> None:
    async def answer(request: Request) -> Response:
        return Response(headers={"cache-control": "max-age=60, public"})

    async with running(app_of(slow_route(answer), owner=by_header)) as client:
        url = (await client.post("/slow", headers=headers)).headers["location"]
        await settled()
        response = await client.get(url, headers=headers)
        assert response.headers.get_list("cache-control") == [served]


@pytest.mark.parametrize("marked", ["decorated", "by a path rule"])
async def test_where_owners_are_required_what_has_none_is_refused(marked: str) -> None:
    store = MemoryStore()
    jobs = virtual_jobs(store=store, limits=Limits(require_owner=True))
    if marked == "decorated":
        app = app_of(gated(gate := Gate()), jobs=jobs, owner=by_header)
    else:
        gate = Gate()
        rules = {"POST /plain": Policy()}
        app = app_of(Route("/plain", waits(gate), methods=["POST"]), jobs=jobs, routes=rules)
    async with running(app) as client:
        path = "/slow" if marked == "decorated" else "/plain"
        refused = await client.post(path, content=b"x", headers={"idempotency-key": "k"})
        assert (refused.status_code, len(store)) == (401, 0)
        assert refused.headers["www-authenticate"] == "Bearer"
        assert refused.json()["type"] == "urn:raincheck:problem:owner-required"
        assert "retry-after" not in refused.headers
        assert gate.entered == 0
        if marked == "decorated":
            accepted = await client.post(path, headers=user("ann") | {"idempotency-key": "k"})
            assert accepted.status_code == 202
        gate.open()


async def test_a_synchronous_answer_needs_no_owner_unless_it_is_kept() -> None:
    jobs = virtual_jobs(limits=Limits(require_owner=True))
    gate = Gate()
    gate.open()
    app = app_of(gated(gate, respond="preferred"), jobs=jobs)
    async with running(app) as client:
        assert (await client.post("/slow")).status_code == 200
        for fields in ({"prefer": "respond-async"}, {"idempotency-key": "k"}):
            assert (await client.post("/slow", headers=fields)).status_code == 401


def waits(gate: Gate) -> Any:
    async def endpoint(request: Request) -> Response:
        await gate.wait()
        return Response()

    return endpoint


@pytest.mark.parametrize("kind", OWNERS)
async def test_law_7_a_foreign_job_is_like_one_that_is_not_there(kind: str) -> None:
    app = app_of(gated(gate := Gate()), owner=OWNERS[kind])
    async with running(app) as client:
        url = (await client.post("/slow", headers=user("ann"))).headers["location"]
        unknown = "/jobs/" + "x" * 30
        for stranger in (user("bob"), {}):
            foreign = await routes_of(client, url, stranger)
            missing = await routes_of(client, unknown, stranger)
            assert [r.status_code for r in foreign] == [404] * 6
            assert [(r.content, r.headers) for r in foreign] == [
                (r.content, r.headers) for r in missing
            ]
        assert (await client.get(url, headers=user("ann"))).status_code == 202
        gate.open()
        await settled()
        assert (await client.get(url, headers=user("bob"))).status_code == 404
        assert (await client.get(url, headers=user("ann"))).json() == {"path": "/slow"}
        assert (await client.delete(url, headers=user("ann"))).status_code == 204
        assert (await client.get(url, headers=user("ann"))).status_code == 410
        assert (await client.get(url, headers=user("bob"))).status_code == 404


async def test_a_header_is_kept_as_a_keyed_hash_only() -> None:
    jobs = virtual_jobs()
    app = app_of(gated(gate := Gate()), jobs=jobs, owner=header("x-user", secret="s"))
    async with running(app) as client:
        id = (await client.post("/slow", headers=user("ann"))).json()["job_id"]
        job = await jobs.get(id)
        assert job is not None
        assert job.owner is not None
        assert "ann" not in job.owner
        gate.open()
    wrong: Any = None
    for secret in "", b"", wrong:
        with pytest.raises(ConfigurationError, match="secret"):
            header("x-user", secret=secret)
    for name in "", wrong:
        with pytest.raises(ConfigurationError, match="its name is a string"):
            cookie(name, secret="s")
    for name in " x-user", "x user", "x-user:", "x-üser", "x-user\n":
        with pytest.raises(ConfigurationError, match="no header can have this name"):
            header(name, secret="s")
    for name in " session", "session ", "session;", "session=1":
        with pytest.raises(ConfigurationError, match="no cookie can have this name"):
            cookie(name, secret="s")
    cookie("__Host-session[1]", secret="s")  # browsers send it


async def test_the_user_of_outer_authentication_owns_the_job_by_default() -> None:
    inner = app_of(gated(gate := Gate()))
    app = AuthenticationMiddleware(inner, backend=Backend())
    async with running(app) as client:
        ann, bob = {"authorization": "ann"}, {"authorization": "bob"}
        url = (await client.post("/slow", headers=ann)).headers["location"]
        assert (await client.get(url, headers=ann)).status_code == 202
        assert (await client.get(url, headers=bob)).status_code == 404
        assert (await client.get(url)).status_code == 404
        open_to_all = (await client.post("/slow")).headers["location"]
        assert (await client.get(open_to_all, headers=bob)).status_code == 202
        gate.open()


async def test_authentication_inside_owns_nothing_that_its_user_could_not_reach(
    caplog: pytest.LogCaptureFixture,
) -> None:
    inner = Starlette(
        routes=[gated(gate := Gate())],
        middleware=[Middleware(AuthenticationMiddleware, backend=Backend())],
    )
    async with running(LongRunningMiddleware(inner, jobs=virtual_jobs())) as client:
        for _ in range(2):
            accepted = await client.post("/slow", headers={"authorization": "ann"})
            assert (await client.get(accepted.headers["location"])).status_code == 202
        gate.open()
    assert caplog.text.count("authentication runs inside raincheck") == 1


async def test_with_status_routes_mounted_inside_it_inner_authentication_owns_its_jobs() -> None:
    jobs = virtual_jobs()
    inner = Starlette(
        routes=[gated(gate := Gate()), Mount("/jobs", jobs.status_app)],
        middleware=[Middleware(AuthenticationMiddleware, backend=Backend())],
    )
    async with running(LongRunningMiddleware(inner, jobs=jobs)) as client:
        ann = {"authorization": "ann"}
        url = (await client.post("/slow", headers=ann)).headers["location"]
        assert (await client.get(url, headers=ann)).status_code == 202
        assert (await client.get(url)).status_code == 404
        gate.open()


async def test_an_owner_that_cannot_be_determined_is_let_to_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = False
    store = MemoryStore()

    def extract(connection: HTTPConnection) -> Any:
        if broken:
            raise LookupError("no directory")
        return connection.headers.get("x-user")

    app = app_of(gated(gate := Gate()), owner=extract, jobs=virtual_jobs(store=store))
    async with running(app) as client:
        owned = (await client.post("/slow", headers=user("ann"))).headers["location"]
        free = (await client.post("/slow")).headers["location"]
        broken = True
        for url in (owned, free):
            for response in await routes_of(client, url, user("ann")):
                assert response.status_code == 404
        refused = await client.post("/slow", headers=user("ann"))
        assert refused.status_code == 500
        assert refused.json()["type"].endswith("owner-unknown")
        assert len(store) == 2
        broken = False
        assert (await client.get(owned, headers=user("ann"))).status_code == 202
        gate.open()
    assert "no directory" in caplog.text


async def test_an_extractor_that_gives_no_string_is_a_mistake() -> None:
    def number(connection: HTTPConnection) -> Any:
        return 7

    async with running(app_of(gated(Gate()), owner=number)) as client:
        assert (await client.post("/slow")).status_code == 500


@pytest.mark.parametrize("owner", ["\ud800", "ann\udc80"])
async def test_an_owner_that_no_utf_8_can_say_is_a_mistake(
    owner: str, caplog: pytest.LogCaptureFixture
) -> None:
    """JSON, and so a claim of a token, may have halves of characters; SQLite keeps none."""

    def whose(connection: HTTPConnection) -> str:
        return owner if by_header(connection) == "odd" else "bob"

    async with running(app_of(gated(gate := Gate()), owner=whose)) as client:
        refused = await client.post("/slow", headers=user("odd"))
        assert refused.status_code == 500
        assert refused.json()["type"] == "urn:raincheck:problem:owner-unknown"
        accepted = await client.post("/slow", headers=user("bob"))
        url = accepted.headers["location"]
        assert (await client.get(url, headers=user("odd"))).status_code == 404
        assert (await client.get(url, headers=user("bob"))).status_code == 202
        gate.open()
    lines = {record.getMessage() for record in said(caplog)}
    assert lines == {"the owner of a request could not be determined"}


def test_a_user_without_an_identity_is_known_by_its_name() -> None:
    class Named(SimpleUser):
        @property
        def identity(self) -> str:
            return "id-7"

    def connection(who: Any) -> HTTPConnection:
        return HTTPConnection({"type": "http", "headers": [], "user": who})

    assert authenticated_user(connection(SimpleUser("ann"))) == "ann"
    assert authenticated_user(connection(Named("ann"))) == "id-7"
    assert authenticated_user(HTTPConnection({"type": "http", "headers": []})) is None


# --- Idempotency-Key -----------------------------------------------------------------------------


async def echo(request: Request) -> Any:
    return {"body": (await request.body()).decode()}


@pytest.mark.parametrize("key", ['"8e03978e-40d5"', "8e03978e-40d5", '"a \\"b\\" c"', '"x";p=1'])
async def test_a_key_seen_before_is_answered_with_the_same_job(key: str) -> None:
    runs = 0

    async def answer(request: Request) -> int:
        nonlocal runs
        runs += 1
        await anyio.sleep(5)
        return runs

    async with running(app_of(slow_route(answer))) as client:
        headers = {"idempotency-key": key}
        first = await client.post("/slow", content=b"x", headers=headers)
        again = await client.post("/slow", content=b"x", headers=headers)
        assert (again.status_code, again.headers["location"]) == (202, first.headers["location"])
        assert again.headers["idempotency-replayed"] == "true"
        assert "idempotency-replayed" not in first.headers
        assert (await follow(client, first)).json() == 1
        later = await client.post("/slow", content=b"x", headers=headers)
        assert (later.status_code, later.headers["location"]) == (202, first.headers["location"])
        assert later.json()["status"] == "succeeded"
        assert runs == 1


async def test_a_key_in_quotes_and_bare_is_one_key() -> None:
    async with running(app_of(slow_route(echo))) as client:
        quoted = await client.post("/slow", headers={"idempotency-key": '"k"'})
        bare = await client.post("/slow", headers={"idempotency-key": "k"})
        assert quoted.headers["location"] == bare.headers["location"]


@pytest.mark.parametrize(
    "other",
    [
        {"content": b"y"},
        {"params": {"q": "1"}},
        {"headers": {"content-type": "text/plain"}},
        {"method": "GET"},
    ],
)
async def test_a_key_reused_for_another_request_is_422(other: dict[str, Any]) -> None:
    store = MemoryStore()
    async with running(app_of(slow_route(echo), jobs=virtual_jobs(store=store))) as client:
        base: dict[str, Any] = {"method": "POST", "url": "/slow", "content": b"x"}
        headers = {"idempotency-key": "k", "content-type": "text/csv"}
        await client.request(**base, headers=headers)
        changed = {**base, **other, "headers": {**headers, **other.get("headers", {})}}
        response = await client.request(**changed)
        assert response.status_code == 422
        assert response.json()["type"].endswith("idempotency-key-reused")
        assert len(store) == 1


MALFORMED = ["", '""', '"a', 'a"', "a b", "a,b", "é", '"é"', "x" * 256, '"\\x"']


@pytest.mark.parametrize("key", MALFORMED)
async def test_a_malformed_key_is_400(key: str) -> None:
    store = MemoryStore()
    async with running(app_of(slow_route(echo), jobs=virtual_jobs(store=store))) as client:
        response = await client.post("/slow", headers=[(b"idempotency-key", key.encode())])
        assert response.status_code == 400
        assert response.json()["type"].endswith("idempotency-key-malformed")
        two = [("idempotency-key", "a"), ("idempotency-key", "a")]
        assert (await client.post("/slow", headers=two)).status_code == 400
        assert len(store) == 0


async def test_a_missing_key_is_400_where_it_is_required() -> None:
    async with running(app_of(slow_route(echo, idempotency="required"))) as client:
        response = await client.post("/slow")
        assert response.status_code == 400
        assert response.json()["type"].endswith("idempotency-key-missing")
        assert (await client.post("/slow", headers={"idempotency-key": "k"})).status_code == 202


async def test_where_keys_are_off_they_are_ignored() -> None:
    async with running(app_of(slow_route(echo, idempotency="off"))) as client:
        headers = {"idempotency-key": '"'}
        urls = {(await client.post("/slow", headers=headers)).headers["location"] for _ in "ab"}
        assert len(urls) == 2


async def test_a_key_is_bound_to_its_owner() -> None:
    async with running(app_of(slow_route(echo), owner=by_header)) as client:
        urls = set()
        for name in ("ann", "bob"):
            headers = {**user(name), "idempotency-key": "k"}
            urls.add((await client.post("/slow", headers=headers)).headers["location"])
        assert len(urls) == 2


async def test_an_upload_sent_again_is_the_same_though_its_boundary_is_another() -> None:
    def upload(content: bytes) -> dict[str, Any]:
        return {"files": {"file": ("a.bin", content, "application/octet-stream")}}

    shared = slow_route(answer_late, "/shared", coalesce=True)
    async with running(app_of(slow_route(answer_late, "/keyed"), shared)) as client:
        for path, headers in (("/keyed", {"idempotency-key": "k"}), ("/shared", {})):
            first, again = [
                await client.post(path, **upload(b"x" * 1000), headers=headers) for _ in "ab"
            ]
            assert first.request.headers["content-type"] != again.request.headers["content-type"]
            assert (again.status_code, again.headers["location"]) == (
                202,
                first.headers["location"],
            )
        other = await client.post("/keyed", **upload(b"y"), headers={"idempotency-key": "k"})
        assert other.status_code == 422
        other = await client.post("/shared", **upload(b"y"))
        assert other.headers["location"] != first.headers["location"]


async def answer_late(request: Request) -> Any:
    await anyio.sleep(5)
    return {}


async def test_a_key_is_bound_to_its_route() -> None:
    async with running(app_of(slow_route(echo), slow_route(echo, "/other"))) as client:
        headers = {"idempotency-key": "k"}
        responses = [await client.post(path, headers=headers) for path in ("/slow", "/other")]
        assert [r.status_code for r in responses] == [202, 202]
        assert len({r.headers["location"] for r in responses}) == 2


async def test_an_invalid_request_does_not_burn_its_key() -> None:
    import functools

    endpoint = slow_route(echo).endpoint

    @functools.wraps(endpoint)
    async def validating(request: Request) -> Response:
        if not await request.body():
            return JSONResponse({}, status_code=422)
        return await endpoint(request)  # type: ignore[no-any-return]

    from starlette.routing import Route

    async with running(app_of(Route("/slow", validating, methods=["POST"]))) as client:
        headers = {"idempotency-key": "k"}
        assert (await client.post("/slow", headers=headers)).status_code == 422
        assert (await client.post("/slow", content=b"x", headers=headers)).status_code == 202


async def test_two_simultaneous_first_requests_make_one_job() -> None:
    runs = 0

    async def answer(request: Request) -> int:
        nonlocal runs
        runs += 1
        return runs

    jobs = virtual_jobs(store=TrickyStore(after=taking(find=1)))
    async with running(app_of(slow_route(answer), jobs=jobs)) as client:
        urls = []

        async def submit() -> None:
            response = await client.post("/slow", headers={"idempotency-key": "k"})
            urls.append(response.headers["location"])

        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(submit)
        assert len(urls) == 20
        assert len(set(urls)) == 1
        assert runs == 1
        assert jobs.statistics().running == 0


def forgetful() -> TrickyStore:
    """Takes its first job at once, says so a second later, and then only that it could not."""

    async def forget(call: str, /, *arguments: Any, **more: Any) -> None:
        if call == "create":
            store.after = no_trick
            await anyio.sleep(1)
            raise OSError("connection reset")

    store = TrickyStore(after=forget)
    return store


@pytest.mark.parametrize("coalesce", [False, True])
async def test_a_request_is_not_one_with_another_that_may_yet_be_refused(coalesce: bool) -> None:
    store = forgetful()
    jobs = virtual_jobs(store=store)
    answers = []
    async with running(app_of(slow_route(echo, coalesce=coalesce), jobs=jobs)) as client:

        async def submit() -> None:
            headers = {} if coalesce else {"idempotency-key": "k"}
            answers.append(await client.post("/slow", content=b"x", headers=headers))

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(submit)
                await anyio.sleep(0.3)
        assert store.after is no_trick  # it has lost one
        assert sorted(answer.status_code for answer in answers) == [202, 202, 503]
        for answer in answers:
            if answer.status_code == 202:
                assert (await follow(client, answer)).json() == {"body": "x"}


async def test_a_replay_has_room_in_a_full_queue() -> None:
    jobs = virtual_jobs(limits=Limits(max_running=1, max_queued=0))
    async with running(app_of(gated(gate := Gate()), jobs=jobs)) as client:
        headers = {"idempotency-key": "k"}
        first = await client.post("/slow", headers=headers)
        assert (await client.post("/slow")).status_code == 503
        assert (await client.post("/slow", headers=headers)).status_code == 202
        gate.open()
        await follow(client, first)


async def test_a_key_expires_with_its_job() -> None:
    async with running(app_of(slow_route(echo, ttl=60))) as client:
        headers = {"idempotency-key": "k"}
        first = await client.post("/slow", headers=headers)
        await anyio.sleep(61)
        second = await client.post("/slow", headers=headers)
        assert second.headers["location"] != first.headers["location"]
        await settled()
        await client.delete(second.headers["location"])
        third = await client.post("/slow", headers=headers)
        assert third.headers["location"] != second.headers["location"]


async def test_a_response_in_time_can_be_asked_for_again_under_its_key() -> None:
    async with running(app_of(slow_route(echo, wait=5))) as client:
        headers = {"idempotency-key": "k"}
        first = await client.post("/slow", content=b"x", headers=headers)
        assert (first.status_code, first.json()) == (200, {"body": "x"})
        again = await client.post("/slow", content=b"x", headers=headers)
        assert (again.status_code, again.json()) == (200, {"body": "x"})
        assert again.headers["idempotency-replayed"] == "true"
        assert "idempotency-replayed" not in first.headers
        assert again.headers["vary"] == first.headers["vary"] == "Prefer"


@pytest.mark.parametrize(
    ("prefer", "policy"), [({"prefer": "wait=5"}, {}), ({}, {"wait": 5})], ids=["asked", "hybrid"]
)
async def test_who_is_ready_to_wait_is_answered_under_a_known_key(
    prefer: dict[str, str], policy: dict[str, Any]
) -> None:
    """With the response once it is there, whatever its status; with the 202 if it is late."""

    async def answer(request: Request) -> Response:
        await anyio.sleep(8)
        return Response("no", 402, {"x-a": "b", "vary": "Accept"})

    async with running(app_of(slow_route(answer, **policy))) as client:
        headers = {"idempotency-key": "k", **prefer}
        first = await client.post("/slow", headers=headers)
        assert first.status_code == 202
        second = await client.post("/slow", headers=headers)  # in time: it has run for 5 s already
        third = await client.post("/slow", headers=headers)
        for replay in (second, third):
            assert (replay.status_code, replay.text, replay.headers["x-a"]) == (402, "no", "b")
            assert replay.headers["idempotency-replayed"] == "true"
            assert replay.headers.get_list("vary") == ["Accept", "Prefer"]
            assert "job-status" not in replay.headers
        hasty = await client.post("/slow", headers={**headers, "prefer": "wait=0"})
        assert (hasty.status_code, hasty.headers["location"]) == (202, first.headers["location"])


async def test_who_asks_again_is_told_whether_it_is_the_job_that_failed() -> None:
    async def answer(request: Request) -> Any:
        await anyio.sleep_forever()

    async with running(app_of(slow_route(answer, timeout=1, wait=5))) as client:
        first, again = [
            await client.post("/slow", headers={"idempotency-key": "k"}) for _ in range(2)
        ]
        for response in (first, again):
            assert response.json()["type"].endswith("timeout")
            assert response.headers["vary"] == "Prefer"
        assert again.headers["job-status"] == "failed"
        assert again.headers["idempotency-replayed"] == "true"


# --- shared runs ---------------------------------------------------------------------------------


async def test_identical_requests_share_one_run_while_it_lasts() -> None:
    gate = Gate()
    async with running(app_of(gated(gate, coalesce=True))) as client:
        responses = [await client.post("/slow", content=b"x") for _ in range(5)]
        assert {r.headers["location"] for r in responses} == {responses[0].headers["location"]}
        assert "idempotency-replayed" not in responses[-1].headers
        await settled()
        assert gate.entered == 1
        gate.open()
        for response in responses:
            assert (await follow(client, response)).status_code == 200
        after = await client.post("/slow", content=b"x")
        assert after.headers["location"] != responses[0].headers["location"]


@pytest.mark.parametrize(
    "other",
    [
        {"content": b"y"},
        {"params": {"q": "1"}},
        {"headers": {"accept": "text/csv"}},
        {"headers": {"authorization": "bob"}},
        {"headers": {"cookie": "a=b"}},
        {"headers": {"range": "bytes=0-9"}},
        {"headers": {"if-none-match": '"v1"'}},
        {"headers": {"host": "other.example"}},
        {"method": "GET"},
        {"headers": {"x-user": "bob"}},
    ],
)
async def test_a_request_that_differs_runs_by_itself(other: dict[str, Any]) -> None:
    gate = Gate()
    async with running(app_of(gated(gate, coalesce=True), owner=by_header)) as client:
        base: dict[str, Any] = {"method": "POST", "url": "/slow", "content": b"x"}
        await client.request(**base)
        await client.request(**{**base, **other})
        await settled()
        assert gate.entered == 2
        gate.open()


async def test_what_earlier_responses_vary_by_tells_requests_apart() -> None:
    async def answer(request: Request) -> Response:
        await anyio.sleep(5)
        return Response(headers={"vary": "X-Tenant, Accept"})

    async with running(app_of(slow_route(answer, coalesce=True))) as client:
        await follow(client, await client.post("/slow"))
        urls = {
            (await client.post("/slow", headers={"x-tenant": tenant})).headers["location"]
            for tenant in ("a", "b", "a")
        }
        assert len(urls) == 2


async def test_a_key_of_ones_own_decides_what_is_shared() -> None:
    gate = Gate()

    def first_letter(request: Any) -> str | None:
        return request.body[:1].decode() or None

    async with running(app_of(gated(gate, coalesce=first_letter))) as client:
        for body in (b"ab", b"ac", b"b", b"", b""):
            await client.post("/slow", content=body)
        await settled()
        assert gate.entered == 4
        gate.open()


@pytest.mark.parametrize("how", ["cancel", "delete"])
async def test_a_shared_run_is_cancelled_when_nobody_is_left(how: str) -> None:
    gate = Gate()
    async with running(app_of(gated(gate, coalesce=True))) as client:
        responses = [await client.post("/slow") for _ in range(3)]
        url = responses[0].headers["location"]
        await settled()

        async def give_up() -> httpx.Response:
            if how == "cancel":
                return await client.post(url + "/cancel")
            return await client.delete(url)

        for _ in range(2):
            response = await give_up()
            assert (response.status_code, response.json()["status"]) == (202, "running")
            assert (await client.get(url)).status_code == 202
        await give_up()
        await settled()
        assert (await client.get(url)).status_code == 410
        assert gate.cleaned_up == 1
        assert (await client.post("/slow")).headers["location"] != url
        gate.open()


# --- quotas and fairness -------------------------------------------------------------------------


async def test_an_owner_over_quota_is_429_and_others_are_not() -> None:
    policy: dict[str, Any] = {"max_running_per_owner": 1, "max_queued_per_owner": 2}
    async with running(app_of(gated(gate := Gate(), **policy), owner=by_header)) as client:
        statuses = [(await client.post("/slow", headers=user("ann"))) for _ in range(4)]
        assert [r.status_code for r in statuses] == [202, 202, 202, 429]
        assert int(statuses[-1].headers["retry-after"]) >= 1
        assert statuses[-1].json()["type"].endswith("over-quota")
        other = await client.post("/slow", headers=user("bob"))
        assert (other.status_code, other.json()["status"]) == (202, "running")
        await settled()
        assert gate.entered == 2
        gate.open()


async def test_one_owners_backlog_does_not_starve_anothers_first_job() -> None:
    order: list[str] = []
    gate = Gate()

    async def answer(request: Request) -> None:
        order.append(request.headers["x-user"])
        await gate.wait() if len(order) == 1 else await anyio.sleep(1)

    app = app_of(slow_route(answer, max_running=1), owner=by_header)
    async with running(app) as client:
        for name in ("ann", "ann", "ann", "ann", "bob", "bob", "cy"):
            last = await client.post("/slow", headers=user(name))
        assert last.json()["queue_position"] == 3
        gate.open()
        await follow_as(client, last, "cy")
        await anyio.sleep(20)
        assert order == ["ann", "ann", "bob", "cy", "ann", "bob", "ann"]


async def follow_as(client: httpx.AsyncClient, response: httpx.Response, name: str) -> None:
    url = response.headers["location"]
    while response.status_code == 202:
        headers = {**user(name), "prefer": "wait=30"}
        response = await client.get(url, headers=headers)


async def test_an_expired_job_gives_its_key_back_before_any_sweep() -> None:
    async with running(app_of(slow_route(echo, ttl=62))) as client:
        headers = {"idempotency-key": "k"}
        first = await client.post("/slow", headers=headers)
        await anyio.sleep(64)  # the sweeps are at 60 and at 70
        second = await client.post("/slow", headers=headers)
        assert second.status_code == 202
        assert second.headers["location"] != first.headers["location"]


async def test_nobody_joins_a_run_that_is_being_cancelled() -> None:
    async def answer(request: Request) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(3)

    async with running(app_of(slow_route(answer, coalesce=True))) as client:
        first = await client.post("/slow")
        await settled()
        await client.post(first.json()["links"]["cancel"])
        second = await client.post("/slow")
        assert second.status_code == 202
        assert second.headers["location"] != first.headers["location"]


async def test_a_key_that_joined_a_shared_run_is_remembered() -> None:
    gate = Gate()
    async with running(app_of(gated(gate, coalesce=True))) as client:
        urls = [
            (await client.post("/slow", headers={"idempotency-key": key})).headers["location"]
            for key in ("k1", "k2")
        ]
        assert urls[0] == urls[1]
        gate.open()
        await settled()
        again = await client.post("/slow", headers={"idempotency-key": "k2"})
        assert (again.headers["location"], again.headers["idempotency-replayed"]) == (
            urls[0],
            "true",
        )
        assert gate.entered == 1


async def test_a_key_that_joined_a_shared_run_is_compared_with_its_own_request() -> None:
    gate = Gate()
    async with running(app_of(gated(gate, coalesce=lambda request: "all"))) as client:

        async def send(key: str, content: str) -> httpx.Response:
            return await client.post("/slow", content=content, headers={"idempotency-key": key})

        urls = {(await send(key, key)).headers["location"] for key in ("k1", "k2", "k3")}
        assert len(urls) == 1
        await settled()
        assert gate.entered == 1
        for key, other in (("k1", "k2"), ("k2", "k1")):
            again = await send(key, key)
            assert again.headers["location"] in urls
            assert again.headers["idempotency-replayed"] == "true"
            assert (await send(key, other)).status_code == 422
        gate.open()


def test_a_user_whose_identity_is_none_is_known_by_its_name() -> None:
    class Unidentified(SimpleUser):
        @property
        def identity(self) -> Any:
            return None

    def connection(who: Any) -> HTTPConnection:
        return HTTPConnection({"type": "http", "headers": [], "user": who})

    assert authenticated_user(connection(Unidentified("ann"))) == "ann"
    assert authenticated_user(connection(Unidentified(""))) is None
