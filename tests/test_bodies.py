"""Large bodies apart from the store: a process that dies at every step, and one that reads on.

Each scenario is run again and again, for each of the calls that it makes of its store and its
bodies; the process dies before that call, or after it, and later goes on where it was, as one does
that was only stopped. Meanwhile another one has taken over.

By default each call is tried once, on one of the event loops, with the death before or after it;
all of them in both ways on both:

    RAINCHECK_BODIES=long pytest tests/test_bodies.py
"""

from __future__ import annotations

import math

import anyio
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from raincheck import Limits, LongRunningMiddleware
from raincheck.bodies.base import LARGE, Bodies
from raincheck.stores.base import Store
from raincheck.testing import BodiesContract, follow, lifespan
from tests.conftest import long, virtual_jobs
from tests.doubles.bodies import Death, Durable, MemoryBodies, MortalBodies, MortalStore
from tests.doubles.stores import SharedMemory
from tests.support import app_of, client_of, running, slow_route, unfinished

LONG = long("BODIES")

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]

LEASE = 10.0
UPLOAD = bytes(range(256)) * 2048  # 512 KiB
PARTS = [b"1" * 100_000, b"2" * 200_000, b"3" * LARGE, b"4" * LARGE, b"5" * 10]
ANSWER = b"".join(PARTS)


class TestMemoryBodies(BodiesContract):
    @pytest.fixture
    def bodies(self) -> MemoryBodies:
        return MemoryBodies()


class InParts(Response):
    """A body of several messages, and no generator that a failing `send` would leave open."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in PARTS:
            await anyio.sleep(0.3)
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body"})


async def answer(request: Request) -> Response:
    assert await request.body() == UPLOAD

    return InParts()


def process(store: Store, bodies: Bodies) -> LongRunningMiddleware:
    limits = Limits(max_running=1, lease=LEASE, store_timeout=3, tombstone_ttl=20, drain_timeout=1)
    jobs = virtual_jobs(store=store, bodies=bodies, limits=limits)
    routes = [
        slow_route(answer, "/again", ttl=100, on_interrupt="rerun", live=True),
        slow_route(answer, "/once", ttl=100),
    ]
    return LongRunningMiddleware(Starlette(routes=routes), jobs=jobs)


async def followed(app: LongRunningMiddleware, location: str) -> tuple[int, bytes, str | None]:
    async with client_of(app) as client:
        with anyio.fail_after(1000):
            while True:
                found = await client.get(location, headers={"prefer": "wait=20"})
                if found.status_code != 202:
                    return found.status_code, found.content, found.headers.get("job-status")


async def play(path: str, count: int, death: Death) -> list[str]:
    """Run jobs in a process that dies, and see them to their end in another.

    Returns:
        The calls that the first process has made.
    """
    store, bodies = SharedMemory(), MemoryBodies()
    first = process(MortalStore(store, death), MortalBodies(bodies, death))
    second = process(store, bodies)
    accepted: list[str] = []

    async def submit() -> None:
        async with client_of(first) as client:
            found = await client.post(path, content=UPLOAD)
            if found.status_code == 202:
                accepted.append(found.headers["location"])

    async with lifespan(first), anyio.create_task_group() as group:
        for _ in range(count):
            group.start_soon(submit)
            await anyio.sleep(0.1)
        await anyio.sleep(8)
        calls = [*death.calls]
        async with lifespan(second):
            await anyio.sleep(3 * LEASE)
            assert await unfinished(store) == []  # law 1
            for location in accepted:
                status, body, said = await followed(second, location)
                if status == 200:  # laws 2 and 14: the whole of it, or none
                    assert body == ANSWER
                else:
                    assert (status, said, path) == (502, "failed", "/once")
            death.resurrect()
            await anyio.sleep(3 * LEASE)
            assert await unfinished(store) == []
            for location in accepted:  # law 5
                status, body, said = await followed(second, location)
                assert (status, body) == (200, ANSWER) or (status, path) == (502, "/once")
            await anyio.sleep(130)
            assert bodies.kept == {}  # nobody's
            assert len(store) == 0
        group.cancel_scope.cancel()
    return calls


@pytest.mark.parametrize(("path", "count"), [("/again", 1), ("/once", 2)])
async def test_a_process_may_die_at_every_call(
    path: str, count: int, anyio_backend_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raincheck.stores.divided.UNKNOWN", 60.0)
    calls = await play(path, count, Death(math.inf, done=True))
    assert {"append", "create", "replace"} <= set(calls)
    own = anyio_backend_name == "trio"
    for n in range(1, len(calls) + 1):
        for done in (False, True):
            if not LONG and n % 4 != 2 * own + done:
                continue
            death = Death(n, done=done)
            try:
                await play(path, count, death)
            except BaseException as error:
                error.add_note(f"{death}, {'done' if done else 'not done'}")
                raise


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("left", [-1, 0])
async def test_law_1_a_response_that_goes_while_it_is_written_fails_its_job(
    left: int, durable: bool
) -> None:
    """Deleted or torn by somebody else, or the volume is not there any more."""
    bodies = MemoryBodies()

    async def answer(request: Request) -> Response:
        class Torn(Response):
            async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
                await send({"type": "http.response.start", "status": 200, "headers": []})
                part = {"type": "http.response.body", "body": b"x" * 2 * LARGE, "more_body": True}
                await send(part)
                await anyio.wait_all_tasks_blocked()  # for it to be there
                ((name, there),) = bodies.kept.items()
                if left:
                    bodies.kept[name] = there[:left]
                else:
                    del bodies.kept[name]
                if "end" not in request.url.query:
                    await send(part)
                await send({"type": "http.response.body", "body": b"the end"})

        return Torn()

    store = Durable() if durable else SharedMemory()
    jobs = virtual_jobs(store=store, bodies=bodies)
    async with running(app_of(slow_route(answer), jobs=jobs)) as client:
        for path in ("/slow", "/slow?end"):
            accepted = await client.post(path)
            with anyio.fail_after(20):
                found = await follow(client, accepted)
            assert (found.status_code, found.headers["job-status"]) == (500, "failed")
            assert found.json()["type"] == "urn:raincheck:problem:unreadable"
