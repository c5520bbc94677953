"""What holds in every dialect: laws, refusals, keys, browsers, and two beside each other."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount

from raincheck import ConfigurationError, Job, Jobs, LongRunningMiddleware, Pages, State
from raincheck.dialects import (
    Dialect,
    GoogleDialect,
    OGCDialect,
    OpenAIDialect,
    PlainDialect,
    ReplicateDialect,
)
from raincheck.dialects.base import Asked, Census, Content, Listed, Outlook, Place, Reply
from raincheck.dialects.base import Mount as Where
from raincheck.errors import Problem
from raincheck.stores.base import SMALL
from raincheck.stores.memory import MemoryStore
from raincheck.stores.sqlite import SQLiteStore
from raincheck.testing import lifespan
from tests.conftest import virtual_jobs
from tests.doubles.stores import SharedMemory, TrickyStore, failing
from tests.exchanges import by_header, staged
from tests.support import Gate, RawRequest, app_of, client_of, gated, hidden, running, settled
from tests.support import slow_route as route_of

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]

SPOKEN: dict[str, tuple[Dialect, str]] = {
    "ogc": (OGCDialect(), "/jobs"),
    "google": (GoogleDialect(), "/v1/operations"),
    "openai": (OpenAIDialect(), "/v1/responses"),
    "replicate": (ReplicateDialect(), "/v1/predictions"),
}
EMBEDDING = {name: SPOKEN[name] for name in ("google", "openai", "replicate")}
TAILS = ("", ":cancel", ":wait", "/cancel", "/results", "/output", "/status", "/delete")
METHODS = ("GET", "HEAD", "POST", "DELETE", "PUT")

every = pytest.mark.parametrize(("dialect", "path"), SPOKEN.values(), ids=SPOKEN.keys())
embedding = pytest.mark.parametrize(("dialect", "path"), EMBEDDING.values(), ids=EMBEDDING.keys())


def told(response: httpx.Response) -> Any:
    """The sentence of a problem, wherever a dialect has it."""
    document = response.json()
    return document["error"]["message"] if "error" in document else document["detail"]


def cancel_of(path: str) -> str:
    """The request that asks a job to stop."""
    if path == "/jobs":
        return "DELETE /jobs/ID"
    return f"POST {path}/ID:cancel" if "operations" in path else f"POST {path}/ID/cancel"


# --- law 7: whose a job is -----------------------------------------------------------------------


@every
@pytest.mark.parametrize("state", ["running", "succeeded"])
async def test_a_foreign_job_is_like_one_that_is_not_there(
    dialect: Dialect, path: str, state: str
) -> None:
    async with staged(dialect, path, state) as stage:
        for tail, method in itertools.product(TAILS, METHODS):
            bob = {"x-user": "bob"}
            foreign = await stage.ask(f"{method} {path}/ID{tail}", headers=bob)
            unknown = await stage.ask(f"{method} {path}/NOBODY{tail}", headers=bob)
            assert foreign.status_code == unknown.status_code in (404, 405), (method, tail)
            assert foreign.content == unknown.content
            assert foreign.headers == unknown.headers
        there = await stage.jobs.get(stage.job.id)
        assert there is not None
        assert (there.state, there.gone) == (State(state), False)


@every
async def test_an_operator_sees_how_a_job_stands_and_never_its_response(
    dialect: Dialect, path: str
) -> None:
    async with staged(dialect, path, "succeeded", answer=JSONResponse({"secret": 1})) as stage:
        owner, operator = {"x-user": "ann"}, {"x-user": "root", "x-admin": "yes"}
        response_of = f"GET {path}/ID" + ("/results" if path == "/jobs" else "")
        assert "secret" in (await stage.ask(response_of, headers=owner)).text
        shown = await stage.ask(f"GET {path}/ID", headers=operator)
        assert shown.status_code == 200
        listed = await stage.ask(f"GET {path}", headers=operator)
        late = await stage.ask(cancel_of(path), headers=operator)
        result = await stage.ask(f"GET {path}/ID/results", headers=operator)
        file = await stage.ask(f"GET {path}/ID/output", headers=operator)
        for response in (shown, listed, late, result, file):
            assert "secret" not in response.text


# --- law 1: what has ended can be read -----------------------------------------------------------

ODD = [
    pytest.param(b"wet \xff", "text/plain; charset=idna", id="a charset that is none of a body's"),
    pytest.param(b"wet \xff", "text/plain; charset=undefined", id="one that reads nothing"),
    pytest.param(b"wet \xff", "text/plain; charset*=idna''%00", id="one with a NUL"),
    pytest.param(b"[" * 900 + b"]" * 900, "application/json", id="lists in lists"),
    pytest.param(b'{"detail":' * 900 + b"1" + b"}" * 900, "application/json", id="deep detail"),
]


@embedding
@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize(("body", "kind"), ODD)
async def test_a_response_that_nobody_expected_can_be_read(
    body: bytes, kind: str, status: int, dialect: Dialect, path: str
) -> None:
    answer = Response(body, status, {"content-type": kind})
    async with staged(dialect, path, "succeeded", answer=answer) as stage:
        assert (await stage.ask(f"GET {path}/ID")).status_code == 200


# --- law 6: a cancel tells the truth -------------------------------------------------------------


@every
async def test_a_cancel_that_was_overtaken_does_not_say_that_it_was_in_time(
    dialect: Dialect, path: str
) -> None:
    """What was asked to stop, and finished all the same, has succeeded."""
    gate = Gate()

    async def work(request: Request) -> Response:
        try:
            await gate.wait()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1)
            return JSONResponse({"sent": 3})
        raise AssertionError

    app = app_of(route_of(work), dialect=dialect, path=path)
    async with running(app) as client:
        await client.post("/slow")
        await settled()
        (job,) = (await app.jobs.list()).jobs
        method, _, url = cancel_of(path).replace("ID", job.id).partition(" ")
        answer = await client.request(method, url)
        await anyio.sleep(2)
        ended = await app.jobs.get(job.id)
        assert ended is not None
        assert ended.state is State.SUCCEEDED
        shown = (await client.get(f"{path}/{job.id}")).json()
        if answer.status_code == 400:
            assert told(answer) == "A finished job cannot be cancelled."
        else:
            assert answer.json() in ({}, shown)


@every
async def test_a_cancel_that_one_of_several_sends_stops_nothing_for_the_others(
    dialect: Dialect, path: str
) -> None:
    async with staged(dialect, path, coalesce=True) as stage:
        await stage.client.post("/slow")
        answer = await stage.ask(cancel_of(path))
        assert answer.status_code == 200
        going_on = ("running", "in_progress", "processing")
        assert answer.json() == {} or answer.json()["status"] in going_on
        job = await stage.jobs.get(stage.job.id)
        assert job is not None
        assert job.state is State.RUNNING


# --- law 14: what is served as whole is whole ----------------------------------------------------


@embedding
async def test_a_response_that_is_not_whole_any_more_is_in_no_document(
    dialect: Dialect, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    answer = JSONResponse("x" * 2 * SMALL)

    async def torn(id: str, offset: int = 0) -> AsyncIterator[bytes]:
        yield b"x"

    async with staged(dialect, path, "succeeded", store=store, answer=answer) as stage:
        assert len((await stage.ask(f"GET {path}/ID")).content) > SMALL
        monkeypatch.setattr(store, "read_body", torn)
        broken = await stage.ask(f"GET {path}/ID")
        assert broken.status_code == 500
        assert "retry-after" not in broken.headers  # it stays what it is
        assert told(broken) == "What is left of the kept response is not all of it."


@embedding
async def test_a_job_that_goes_while_its_response_is_read_is_gone(
    dialect: Dialect, path: str
) -> None:
    store = TrickyStore()
    answer = JSONResponse("x" * 2 * SMALL)
    async with staged(dialect, path, "succeeded", store=store, answer=answer) as stage:

        async def goes(call: str, /, *arguments: Any, **more: Any) -> None:
            if call == "read_body":
                store.before = no_more
                await stage.jobs.delete(stage.job.id)

        async def no_more(call: str, /, *arguments: Any, **more: Any) -> None: ...

        store.before = goes
        gone = await stage.ask(f"GET {path}/ID")
        assert (gone.status_code, told(gone)) == (410, "The job has expired, or was deleted.")


# --- outages -------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("tail", ["", "/results", "/output"])
async def test_a_store_that_is_away_is_told_of_as_something_that_passes(
    dialect: Dialect, path: str, tail: str
) -> None:
    store = TrickyStore()
    async with staged(dialect, path, "succeeded", store=store) as stage:
        store.before = failing("get", "fetch")
        answer = await stage.ask(f"GET {path}/ID{tail}")
        if answer.status_code != 404:  # there is nothing there
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
            assert told(answer) == "The job store does not answer; the job is kept."
            assert "job-status" not in answer.headers


@embedding
async def test_a_store_that_fails_costs_who_waits_only_the_response(
    dialect: Dialect, path: str
) -> None:
    store = TrickyStore(failing("changed", "fetch"))
    headers = {"prefer": "wait=5"}
    async with staged(dialect, path, "succeeded", store=store, headers=headers) as stage:
        assert stage.submitted.status_code in (200, 201)
        document = stage.read(stage.submitted)
        assert document.get("done", document.get("status")) in (False, "in_progress", "starting")


@embedding
async def test_a_response_that_cannot_be_read_is_not_replayed(dialect: Dialect, path: str) -> None:
    store = TrickyStore()
    headers = {"idempotency-key": "one"}
    async with staged(dialect, path, "succeeded", store=store, headers=headers) as stage:
        store.before = failing("fetch")
        answer = await stage.client.post("/slow", headers=headers)
        assert (answer.status_code, told(answer)) == (503, "The job store does not answer.")


# --- refusals, in the words of the dialect -------------------------------------------------------


@every
@pytest.mark.parametrize(
    ("headers", "status", "sentence"),
    [
        pytest.param(
            {"idempotency-key": '"'}, 400, "The Idempotency-Key is a string in quotes", id="a key"
        ),
        pytest.param({"content-length": "999999999"}, 413, "The request body may have", id="size"),
    ],
)
async def test_a_refusal_is_told_in_the_dialects_own_way(
    dialect: Dialect, path: str, headers: dict[str, str], status: int, sentence: str
) -> None:
    async with staged(dialect, path) as stage:
        answer = await stage.client.post("/slow", headers=headers)
        assert answer.status_code == status
        assert told(answer).startswith(sentence)
        assert answer.headers["vary"] == "Prefer"


@every
async def test_a_full_queue_says_when_to_come_again(dialect: Dialect, path: str) -> None:
    async with staged(dialect, path, max_queued=0) as stage:
        answer = await stage.client.post("/slow")
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert "urn:raincheck" in answer.text or "error" in answer.json()


@every
async def test_a_page_of_another_site_can_stop_nothing(dialect: Dialect, path: str) -> None:
    async with staged(dialect, path) as stage:
        headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
        answer = await stage.ask(cancel_of(path), headers=headers)
        assert answer.status_code == 403
        assert told(answer).startswith("Pages of other sites")


# --- idempotency ---------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("state", ["running", "succeeded", "failed", "cancelled"])
async def test_a_key_seen_before_has_the_same_job(dialect: Dialect, path: str, state: str) -> None:
    headers = {"idempotency-key": "one"}
    async with staged(dialect, path, state, headers=headers) as stage:
        again = await stage.client.post("/slow", headers=headers)
        assert again.status_code == stage.submitted.status_code
        assert again.headers["idempotency-replayed"] == "true"
        assert stage.job.id in again.text
        now = stage.read(await stage.ask(f"GET {path}/ID"))
        if now.get("status") == "processing":  # which a prediction says to a poll alone
            now["status"] = "starting"
        assert stage.read(again) == now
        other = await stage.client.post("/slow", headers=headers, content=b"other")
        assert other.status_code == 422
        assert told(other)


# --- who waits -----------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("state", ["succeeded", "failed"])
async def test_who_waits_gets_what_the_job_has_come_to(
    dialect: Dialect, path: str, state: str
) -> None:
    """In a document, and the job stays; or as it is, as if there had been none."""
    headers = {"prefer": "respond-async, wait=5"}
    counts = path != "/jobs"
    async with staged(dialect, path, state, headers=headers, counts=counts) as stage:
        if counts:
            shown = await stage.ask(f"GET {path}/ID")
            assert stage.read(stage.submitted) == stage.read(shown)
            assert stage.submitted.headers["job-status"] == state
            assert stage.submitted.headers["preference-applied"] == "respond-async"
        else:
            assert stage.submitted.status_code == (200 if state == "succeeded" else 422)
            assert (await stage.jobs.list()).jobs == []


@every
async def test_a_poll_may_be_a_long_one(dialect: Dialect, path: str) -> None:
    async with staged(dialect, path) as stage:
        begun = anyio.current_time()
        shown = await stage.ask(f"GET {path}/ID", headers={"prefer": "wait=5"})
        assert (shown.status_code, int(shown.headers["retry-after"]) > 0) == (200, True)
        assert 4.9 < anyio.current_time() - begun < 5.5
        short = await stage.ask(f"HEAD {path}/ID")
        assert (short.status_code, short.content) == (200, b"")
        assert short.headers["content-type"] == "application/json"


# --- people --------------------------------------------------------------------------------------

BROWSER = {"accept": "text/html", "sec-fetch-mode": "navigate", "sec-fetch-site": "same-origin"}


@every
async def test_a_browser_gets_documents_as_they_are_and_problems_as_pages(
    dialect: Dialect, path: str
) -> None:
    async with staged(dialect, path, headers=BROWSER) as stage:
        assert stage.submitted.headers["content-type"] == "application/json"
        assert stage.job.id in stage.submitted.text
        shown = await stage.ask(f"GET {path}/ID", headers=BROWSER)
        assert shown.headers["content-type"] == "application/json"
        unknown = await stage.ask(f"GET {path}/NOBODY", headers=BROWSER)
        assert unknown.status_code == 404
        assert unknown.headers["content-type"].startswith("text/html")
        listed = await stage.client.get(path, headers=BROWSER)
        assert listed.headers["content-type"].startswith(("application/json", "text/plain"))
        stopped = await stage.ask(cancel_of(path), headers=BROWSER)
        assert stopped.headers["content-type"] == "application/json"


# --- where it stands -----------------------------------------------------------------------------


@every
async def test_urls_are_those_of_the_base(dialect: Dialect, path: str) -> None:
    outside = {"base_url": "https://api.example.org/app"}
    async with staged(dialect, path, outside=outside) as stage:
        document = stage.read(stage.submitted)
        url = f"https://api.example.org/app{path}/ID"
        if isinstance(dialect, OGCDialect):
            assert document["links"][0]["href"] == url
        elif isinstance(dialect, ReplicateDialect):
            assert document["urls"] == {"get": url, "cancel": url + "/cancel"}
        elif isinstance(dialect, GoogleDialect):
            assert document["name"] == "operations/ID"


@every
async def test_it_may_stand_below_a_prefix(dialect: Dialect, path: str) -> None:
    inner = app_of(gated(gate := Gate()), dialect=dialect, path=path)
    app = Starlette(routes=[Mount("/below", inner)])
    async with client_of(app) as client:
        await client.post("/below/slow")
        (job,) = (await inner.jobs.list()).jobs
        assert (await client.get(f"/below{path}/{job.id}")).status_code == 200
        gate.open()
        await inner.jobs.close()


@every
async def test_it_may_be_mounted_by_hand(dialect: Dialect, path: str) -> None:
    jobs = virtual_jobs()
    routes = [gated(gate := Gate()), Mount(path, jobs.status_app)]
    app = LongRunningMiddleware(Starlette(routes=routes), jobs=jobs, dialect=dialect, path=path)
    async with running(app) as client:
        await client.post("/slow")
        (job,) = (await jobs.list()).jobs
        assert job.id in (await client.get(f"{path}/{job.id}")).text
        method, _, url = cancel_of(path).replace("ID", job.id).partition(" ")
        assert (await client.request(method, url)).status_code == 200
        gate.open()


@every
async def test_its_routes_are_its_own_beside_an_app_that_cannot_be_read(
    dialect: Dialect, path: str
) -> None:
    """`ID:cancel` is no id, and is still no path of the app's."""
    app = app_of(gated(Gate()))
    jobs = virtual_jobs()
    outer = LongRunningMiddleware(hidden(app.app), jobs=jobs, dialect=dialect, path=path)
    async with running(outer) as client:
        await client.post("/slow")
        await settled()
        (job,) = (await jobs.list()).jobs
        method, _, url = cancel_of(path).replace("ID", job.id).partition(" ")
        assert (await client.request(method, url)).status_code == 200
        await settled()
        ended = await jobs.get(job.id)
        assert ended is not None
        assert ended.state is State.CANCELLED
        assert (await client.get(f"{path}/other/page")).text == "Not Found"  # Starlette's own


async def test_what_a_dialect_lists_nowhere_is_the_apps_own() -> None:
    path, pages = "/v1/responses", Pages(own_list=True)
    app = app_of(gated(gate := Gate(), path), dialect=OpenAIDialect(), path=path, pages=pages)
    async with running(app) as client:
        assert (await client.get(path)).json()["object"] == "response"  # its GET is marked as well
        gate.open()


async def test_a_wait_reads_no_more_than_it_has_to() -> None:
    async with staged(GoogleDialect(), "/v1/operations") as stage:
        request = RawRequest(f"/v1/operations/{stage.job.id}:wait", x_user="ann")
        for _ in range(3):
            request.feed(b"x" * 4096, more=True)  # and its end never comes
        app = stage.client._transport.app  # type: ignore[attr-defined] # httpx's own
        with anyio.fail_after(60):
            await request.run(app)
        assert request.status == 200
        request = RawRequest(f"/v1/operations/{stage.job.id}:wait", x_user="ann")
        request.leave()
        await request.run(app)
        assert request.status == 200


# --- two dialects --------------------------------------------------------------------------------


async def test_two_middlewares_speak_two_dialects_of_the_jobs_of_one_store() -> None:
    store = SharedMemory()
    gate = Gate()
    inner = LongRunningMiddleware(
        Starlette(routes=[gated(gate, "/slow", methods=["POST"])]),
        jobs=virtual_jobs(store=store),
        path="/jobs",
        owner=by_header,
        dialect=PlainDialect(),
    )
    outer = LongRunningMiddleware(
        inner,
        jobs=virtual_jobs(store=store),
        path="/v1/operations",
        owner=by_header,
        dialect=GoogleDialect(),
    )
    async with running(outer) as client:
        client.headers["x-user"] = "ann"
        accepted = await client.post("/slow")
        assert accepted.status_code == 202  # the marked route is the inner one's
        id = accepted.json()["job_id"]
        plain, google = f"/jobs/{id}", f"/v1/operations/{id}"
        assert (await client.get(plain)).json()["status"] == "running"
        assert (await client.get(google)).json()["done"] is False
        assert (await client.get(google, headers={"x-user": "bob"})).status_code == 404
        assert (await client.get(plain + ":cancel")).status_code == 404
        assert (await client.get(google + "/status")).status_code == 404
        gate.open()
        await settled()
        assert (await client.get(plain)).json() == {"path": "/slow"}
        operation = (await client.get(google)).json()
        assert operation["response"]["value"] == {"path": "/slow"}
        assert (await client.delete(google)).json() == {}
        assert (await client.get(plain)).status_code == 410


async def test_two_middlewares_do_not_have_one_store_that_is_for_one() -> None:
    """A cancel would be lost between them, and its client told that it was not."""
    store = MemoryStore()

    def app() -> LongRunningMiddleware:
        return app_of(gated(Gate(), methods=["POST"]), jobs=virtual_jobs(store=store))

    for _ in range(2):  # one after the other they may
        async with running(app()) as client:
            assert (await client.post("/slow")).status_code == 202
    async with running(app()):
        with pytest.raises(ConfigurationError, match="the same MemoryStore"):
            async with running(app()):
                pass


async def test_each_of_two_apps_has_its_dialect() -> None:
    store = SharedMemory()
    gates = Gate(), Gate()
    ogc = app_of(
        gated(gates[0], "/processes/echo/execution"),
        jobs=virtual_jobs(store=store),
        dialect=OGCDialect(),
    )
    openai = app_of(
        gated(gates[1], "/responses", methods=["POST"]),
        jobs=virtual_jobs(store=store),
        dialect=OpenAIDialect(),
        path="/responses",
    )
    app = Starlette(routes=[Mount("/ogc", ogc), Mount("/v1", openai)])
    async with client_of(app) as client:
        job = (await client.post("/ogc/processes/echo/execution")).json()
        response = (await client.post("/v1/responses")).json()
        assert (job["status"], response["status"]) == ("running", "in_progress")
        assert (await client.get(f"/v1/responses/{job['jobID']}")).json()["object"] == "response"
        assert (await client.get(f"/ogc/jobs/{response['id']}")).json()["jobID"] == response["id"]
        for gate in gates:
            gate.open()
        await settled()
        for one in (ogc, openai):
            await one.jobs.close()


@pytest.mark.real
async def test_two_processes_speak_two_dialects_of_a_file(tmp_path: Any) -> None:
    """A job that one of them runs is seen, and stopped, by a client of the other."""
    file = tmp_path / "jobs.db"
    plain = LongRunningMiddleware(
        Starlette(routes=[gated(Gate())]), jobs=Jobs(store=SQLiteStore(file))
    )
    other = LongRunningMiddleware(
        Starlette(),
        jobs=Jobs(store=SQLiteStore(file)),
        path="/v1/predictions",
        dialect=ReplicateDialect(),
    )
    async with lifespan(plain), lifespan(other), client_of(plain) as one, client_of(other) as two:
        id = (await one.post("/slow")).json()["job_id"]
        url = f"/v1/predictions/{id}"
        assert (await two.get(url)).json()["status"] == "processing"
        assert (await two.post(url + "/cancel")).json()["status"] in ("processing", "canceled")
        for _ in range(20):
            shown = await two.get(url, headers={"prefer": "wait=5"})
            if shown.json()["status"] == "canceled":
                break
        assert (await one.get(f"/jobs/{id}")).status_code == 410


# --- a dialect of somebody's own -----------------------------------------------------------------


class Terse(Dialect):
    """It has a place for nothing, and so needs no more than this."""

    def place(self, path: str) -> Place | None:
        return None

    def accepted(
        self,
        job: Job,
        mount: Where,
        outlook: Outlook,
        applied: bytes | None,
        content: Content | None = None,
    ) -> Reply:
        return Reply(202, [])

    def problem(
        self, problem: Problem, *, job: Job | None = None, retry_after: int | None = None
    ) -> Reply:
        return Reply(problem.status, [])


async def test_a_dialect_has_only_what_its_places_need() -> None:
    app = app_of(gated(gate := Gate()), dialect=Terse(), pages=Pages(own_list=True))
    async with running(app) as client:
        assert (await client.post("/slow", headers=BROWSER)).status_code == 202
        assert (await client.get("/jobs/x")).status_code == 404
        gate.open()


def test_what_no_place_leads_to_a_dialect_need_not_have() -> None:
    terse = Terse()
    job = Job(id="a", route="r", state=State.QUEUED, created_at=0.0)
    mount, outlook = Where("/jobs", absolute=False), Outlook(1)
    calls: list[Callable[[], object]] = [
        lambda: terse.monitor(job, mount, outlook),
        lambda: terse.pending(job, mount, outlook),
        lambda: terse.result(job),
        lambda: terse.cancelled(job, mount, outlook),
        lambda: terse.deleted(job, mount, outlook, finished=True),
        lambda: terse.selection(""),
        lambda: terse.next("", ""),
        lambda: terse.listed(Listed([], None, False), mount),
        lambda: terse.totals(Census({}, {})),
    ]
    for call in calls:
        with pytest.raises(NotImplementedError):
            call()
    assert terse.late(job, mount, None) is terse.navigated(job, mount) is None
    assert terse.unable(Asked("", [])) is None
    assert terse.patience(Asked("", [(b"prefer", b"wait=3")])) == 3.0
