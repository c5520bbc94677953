"""The testing kit: what it follows, asserts and bends, its plugin, and the tests in the docs."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import warnings
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from raincheck import Jobs, Limits, LongRunningMiddleware, Policy, long_running, owners, report
from raincheck.testing import Gate, assert_job, follow, hold, later, lifespan, synchronous
from tests.conftest import Clock
from tests.support import app_of, client_of, running, settled, slow_route

with warnings.catch_warnings():  # where httpx2 is not installed
    warnings.simplefilter("ignore")
    from starlette.testclient import TestClient

ROOT = Path(__file__).parents[1]


async def two(request: Request) -> Response:
    report(0.5, "1 of 2")
    return JSONResponse({"sent": 2}, 201)


def untouched(calls: list[str], **settings: Any) -> LongRunningMiddleware:
    """An app whose route is marked by a path rule."""

    async def endpoint(request: Request) -> Response:
        calls.append("called")
        return JSONResponse({"sent": 2}, 201)

    app = Starlette(routes=[Route("/slow", endpoint, methods=["POST"])])
    return LongRunningMiddleware(app, routes={"POST /slow": Policy(**settings)})


# --- following and asserting ---------------------------------------------------------------------


@pytest.fixture
def blocking() -> Iterator[TestClient]:
    """A client that blocks, of an app on an event loop in another thread."""
    with TestClient(app_of(slow_route(two), jobs=Jobs())) as client:
        yield client


@pytest.mark.real
class TestBlocking:
    def test_a_202_is_followed_to_its_response(self, blocking: TestClient) -> None:
        accepted = blocking.post("/slow")
        assert accepted.status_code == 202
        response = follow(blocking, accepted)
        assert (response.status_code, response.json()) == (201, {"sent": 2})
        assert follow(blocking, response) is response

    def test_a_job_is_what_is_said_of_it(self, blocking: TestClient) -> None:
        accepted = blocking.post("/slow")
        document = assert_job(blocking, accepted, status="succeeded", progress=0.5)
        assert document["message"] == "1 of 2"
        with pytest.raises(AssertionError, match=r"'failed'.*it is \{(?s:.*)\"succeeded\""):
            assert_job(blocking, accepted, status="failed", timeout=3600)

    @pytest.mark.parametrize("backend", ["asyncio", "trio"])
    def test_a_gate_opens_across_threads(self, backend: Any) -> None:
        with Gate() as gate:

            async def answer(request: Request) -> Any:
                await gate.wait()
                return {}

            @long_running(name="in.a.thread")
            def endpoint(request: Request) -> Response:
                anyio.from_thread.run(gate.wait)
                return Response()

            app = app_of(slow_route(answer), Route("/def", endpoint), jobs=Jobs())
            with TestClient(app, backend=backend) as client:
                both = [client.get("/slow"), client.get("/def")]
                for accepted in both:
                    assert_job(client, accepted, status="running")
                gate.open()
                assert [follow(client, each).status_code for each in both] == [200, 200]

    def test_a_job_that_does_not_end_fails_a_test(self, blocking: TestClient) -> None:
        with hold():
            accepted = blocking.post("/slow")
            with pytest.raises(TimeoutError, match=r"after 0\.5 s .*\"running\""):
                follow(blocking, accepted, timeout=0.5)

    @pytest.mark.parametrize("backend", ["asyncio", "trio"])
    def test_a_client_without_a_lifespan_is_told_what_to_do(
        self, backend: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        with Gate() as gate:

            async def answer(request: Request) -> Any:
                await gate.wait()
                return {}

            client = TestClient(app_of(slow_route(answer), jobs=Jobs()), backend=backend)
            accepted = client.post("/slow")
            response = follow(client, accepted)
            assert response.status_code == 503
            assert "with TestClient(app) as client" in response.json()["detail"]
            assert "with TestClient(app) as client" in caplog.text

    def test_a_client_without_a_lifespan_is_enough_for_synchronous_answers(self) -> None:
        client = TestClient(app_of(slow_route(two), jobs=Jobs()))
        with synchronous():
            assert [client.post("/slow").status_code for _ in range(2)] == [201, 201]


@pytest.mark.anyio
async def test_a_drain_says_nothing_of_test_clients() -> None:
    with Gate() as gate:

        async def answer(request: Request) -> Any:
            await gate.wait()

        jobs = Jobs(clock=Clock(), limits=Limits(drain_timeout=1))
        app = app_of(slow_route(answer), jobs=jobs)
        async with running(app) as client:
            accepted = await client.post("/slow")
        job = await jobs.get(accepted.json()["job_id"])
        assert job is not None
        assert job.error is not None
        assert (job.error.name, "TestClient" in job.error.detail) == ("interrupted", False)


@pytest.mark.anyio
async def test_polls_have_the_credentials_of_the_request() -> None:
    async def answer(request: Request) -> Any:
        return {}

    app = app_of(slow_route(answer), owner=owners.header("x-api-key", secret="s" * 32))
    async with running(app) as client:
        fields = {"x-api-key": "ann", "if-none-match": "*", "prefer": "respond-async"}
        accepted = await client.post("/slow", json=[1], headers=fields)
        assert (await client.get(accepted.headers["location"])).status_code == 404
        assert (await follow(client, accepted)).status_code == 200
        assert (await assert_job(client, accepted))["status"] == "succeeded"


@pytest.mark.anyio
async def test_a_202_without_a_url_is_an_answer() -> None:
    app = Starlette(routes=[Route("/", lambda request: Response(status_code=202))])
    async with client_of(app) as client:
        accepted = await client.get("/")
        assert await follow(client, accepted) is accepted
        with pytest.raises(AssertionError, match="no 202 with the URL of a job"):
            await assert_job(client, accepted)


@pytest.mark.one_loop
@pytest.mark.anyio
async def test_what_is_asserted_of_a_job_may_come_later() -> None:
    with Gate() as gate:

        async def answer(request: Request) -> Any:
            await anyio.sleep(1)
            report(0.25)
            await gate.wait()
            return {}

        async with running(app_of(slow_route(answer))) as client:
            accepted = await client.post("/slow")
            await assert_job(client, accepted, progress=0.25, status="running")
            with pytest.raises(AssertionError, match=r"'progress': 0\.5"):
                await assert_job(client, accepted, progress=0.5)
            gate.open()
            await assert_job(client, accepted, status="succeeded")
            await client.delete(accepted.headers["location"])
            with pytest.raises(AssertionError, match="cannot be looked at: 410"):
                await assert_job(client, accepted)


@pytest.mark.anyio
async def test_httpx2_is_followed_as_well() -> None:
    httpx2 = pytest.importorskip("httpx2")
    app = app_of(slow_route(two))
    transport = httpx2.ASGITransport(app)
    async with lifespan(app), httpx2.AsyncClient(transport=transport, base_url="http://t") as c:
        accepted = await c.post("/slow")
        assert (await follow(c, accepted)).json() == {"sent": 2}
        assert (await assert_job(c, accepted))["progress"] == 0.5


# --- synchronous answers -------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["decorated", "path rule"])
async def test_marked_routes_answer_synchronously(how: str) -> None:
    app = app_of(slow_route(two)) if how == "decorated" else untouched([])
    async with running(app) as client:
        for _ in range(2):
            with synchronous():
                for prefer in ("respond-async", "wait=0"):
                    answer = await client.post("/slow", headers={"prefer": prefer})
                    assert (answer.status_code, answer.json()) == (201, {"sent": 2})
                    assert "location" not in answer.headers
            assert (await client.post("/slow")).status_code == 202


@pytest.mark.anyio
async def test_what_a_synchronous_handler_raises_is_raised() -> None:
    async def answer(request: Request) -> Any:
        raise KeyError("mine")

    async with running(app_of(slow_route(answer))) as client:
        with synchronous(), pytest.raises(KeyError, match="mine"):
            await client.post("/slow")


@pytest.mark.anyio
async def test_jobs_that_wait_stay_jobs_while_others_are_synchronous() -> None:
    async with running(app_of(slow_route(two, max_running=1))) as client:
        with hold() as gate:
            jobs = [await client.post("/slow") for _ in range(2)]
            with synchronous():
                assert (await client.post("/slow")).status_code == 201
                gate.open()
                assert [(await follow(client, each)).status_code for each in jobs] == [201, 201]


# --- held jobs -----------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["decorated", "path rule"])
@pytest.mark.parametrize("way", ["open", "end of the block"])
async def test_jobs_are_held_at_their_entry(how: str, way: str) -> None:
    calls: list[str] = []

    async def answer(request: Request) -> Any:
        calls.append("called")
        return {}

    decorated = app_of(slow_route(answer, max_running=1))
    app = decorated if how == "decorated" else untouched(calls, max_running=1)
    async with running(app) as client:
        with hold() as gate:
            first = await client.post("/slow")
            second = await client.post("/slow")  # it waits for its turn, and is replayed
            await settled()
            assert calls == []
            await assert_job(client, first, status="running")
            await assert_job(client, second, status="queued")
            if way == "open":
                gate.open()
                await follow(client, second)
        for accepted in (first, second):
            assert (await follow(client, accepted)).is_success
        assert calls == ["called"] * 2


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["decorated", "path rule"])
async def test_a_replay_is_held_as_well(how: str) -> None:
    calls: list[str] = []
    with Gate() as busy:

        async def answer(request: Request) -> Any:
            await busy.wait()
            calls.append("called")
            return {}

        rules = {"POST /ruled": Policy(max_running=1)}
        decorated = slow_route(answer, max_running=1)
        ruled = Route("/ruled", _plain(answer), methods=["POST"])
        path = "/slow" if how == "decorated" else "/ruled"
        async with running(app_of(decorated, ruled, routes=rules)) as client:
            first, second = await client.post(path), await client.post(path)
            await settled()
            with hold():
                busy.open()
                await follow(client, first)
                await assert_job(client, second, status="running")
                await settled()
                assert calls == ["called"]
            await follow(client, second)
            assert calls == ["called"] * 2


def _plain(answer: Any) -> Any:
    async def endpoint(request: Request) -> Response:
        return JSONResponse(await answer(request))

    return endpoint


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["decorated", "path rule"])
async def test_a_held_job_is_cancelled_before_its_handler_begins(how: str) -> None:
    calls: list[str] = []

    async def answer(request: Request) -> Any:
        calls.append("called")

    app = app_of(slow_route(answer)) if how == "decorated" else untouched(calls)
    async with running(app) as client:
        with hold():
            accepted = await client.post("/slow")
            await settled()
            await client.post(accepted.headers["location"] + "/cancel")
            await assert_job(client, accepted, status="canceled")
        await settled()
        assert calls == []


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["decorated", "path rule"])
@pytest.mark.parametrize("key", [{}, {"idempotency-key": "a"}])
async def test_only_jobs_are_held(how: str, key: dict[str, str]) -> None:
    settings: dict[str, Any] = {"respond": "preferred"}
    decorated = how == "decorated"
    app = app_of(slow_route(two, **settings)) if decorated else untouched([], **settings)
    async with running(app) as client:
        with hold():
            assert (await client.post("/slow", headers=key)).status_code == 201


# --- another time --------------------------------------------------------------------------------


@pytest.fixture
async def jumping() -> AsyncIterator[httpx.AsyncClient]:
    app = app_of(slow_route(two, ttl=3600), jobs=Jobs(clock=Clock()))
    async with running(app) as client:
        yield client


@pytest.mark.anyio
async def test_jobs_expire_when_the_clock_jumps(jumping: httpx.AsyncClient) -> None:
    accepted = await jumping.post("/slow", headers={"idempotency-key": "a"})
    url = accepted.headers["location"]
    assert (await follow(jumping, accepted)).status_code == 201
    with later(3599):
        assert (await jumping.get(url)).status_code == 201
        with later(timedelta(seconds=2)):
            assert (await jumping.get(url)).status_code == 410
        assert (await jumping.get(url)).status_code == 201
    assert (await jumping.get(url)).status_code == 201
    with later(3601):  # its key is free, too
        again = await jumping.post("/slow", headers={"idempotency-key": "a"})
        assert again.headers["location"] != url


@pytest.mark.anyio
async def test_what_happens_later_is_recorded_as_later() -> None:
    clock = Clock()
    jobs = Jobs(clock=clock)
    async with running(app_of(slow_route(two, max_running=1), jobs=jobs)) as client:
        with hold() as gate:
            ids = [(await client.post("/slow")).json()["job_id"] for _ in range(2)]
            with later(10_000):
                gate.open()
                await settled()
                ids.append((await client.post("/slow")).json()["job_id"])
                await settled()
        first, second, third = [await jobs.get(id) for id in ids]
    assert first is not None
    assert second is not None
    assert third is not None
    assert first.finished_at is not None
    assert second.started_at is not None
    now = clock()
    assert first.created_at <= now < first.finished_at - 9_000
    assert now < second.started_at - 9_000
    assert now < third.created_at - 9_000
    assert jobs.clock is clock


def test_what_is_made_while_the_clock_has_jumped_goes_on_without() -> None:
    with later(100):
        jobs = Jobs(clock=lambda: 5.0)
        assert jobs.clock() == 105.0
        with later(10):
            assert jobs.clock() == 115.0
    assert jobs.clock() == 5.0
    assert "clock" not in vars(Jobs)


# --- the plugin, and the docs --------------------------------------------------------------------


def pytest_run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """A run of pytest as that of a project that has the plugin."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "pytest_raincheck", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.real
def test_the_plugin_imports_nothing_before_a_fixture_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import sys\n"
        "def test_before():\n"
        "    assert 'pytest_raincheck' in sys.modules\n"
        "    assert not {'raincheck', 'starlette', 'httpx'} & set(sys.modules)\n"
        "def test_with(raincheck_synchronous):\n"
        "    assert 'raincheck.testing.bending' in sys.modules\n"
    )
    isolated = ("-p", "no:anyio", "-p", "no:cacheprovider")
    done = pytest_run(tmp_path, *isolated)
    assert "2 passed" in done.stdout, done.stdout


def test_the_plugin_is_found_by_pytest() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["entry-points"]["pytest11"] == {
        "pytest_raincheck": "pytest_raincheck"
    }
    shipped = project["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    assert all((ROOT / path).exists() for path in shipped)


@pytest.mark.slow
@pytest.mark.real
def test_the_fixtures_last_as_long_as_a_test(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "from raincheck import Jobs\n"
        "from raincheck.acceptance.handoff import Handoff\n"
        "enter = Handoff.enter\n"
        "jobs = Jobs(clock=lambda: 1.0)\n"
        "def test_hold(raincheck_hold):\n"
        "    assert Handoff.enter is not enter\n"
        "    raincheck_hold.open()\n"
        "def test_jump(raincheck_jump):\n"
        "    raincheck_jump(10)\n"
        "    raincheck_jump(100)\n"
        "    assert jobs.clock() == 111.0\n"
        "def test_after():\n"
        "    assert Handoff.enter is enter\n"
        "    assert jobs.clock() == 1.0\n"
    )
    done = pytest_run(tmp_path)
    assert "3 passed" in done.stdout, done.stdout


BLOCK = re.compile(r"^```python\n# (\S+\.py)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.real
def test_the_tests_in_the_docs_pass(tmp_path: Path) -> None:
    files = BLOCK.findall((ROOT / "docs" / "testing.md").read_text())
    assert len(files) == (ROOT / "docs" / "testing.md").read_text().count("```python")
    for name, content in files:
        (tmp_path / name).write_text(content)
    done = pytest_run(tmp_path, "-rA")
    tests = sum(content.count("def test_") for _, content in files)
    assert done.returncode == 0, done.stdout
    assert f"{tests + 1} passed" in done.stdout, done.stdout  # one on both event loops
