"""Request bodies that are large: in a temporary file as they arrive, and apart while they wait."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from raincheck import Jobs, Limits, LongRunningMiddleware, MemoryStore
from raincheck.acceptance import request_body
from raincheck.acceptance.request_body import IN_MEMORY, RequestBody
from raincheck.bodies.base import Bodies
from raincheck.bodies.files import FileBodies
from raincheck.messages import CapturedRequest
from raincheck.testing import follow
from tests.doubles.stores import SharedMemory
from tests.support import Gate, RawRequest, hidden, running, slow_route

pytestmark = [pytest.mark.anyio, pytest.mark.real, pytest.mark.one_loop]

LARGE = bytes(range(256)) * 16384  # 4 MiB
HUGE = 1 << 30


@pytest.fixture(params=["in files", "in the store"])
def bodies(request: pytest.FixtureRequest, tmp_path: Path) -> FileBodies | None:
    return FileBodies(tmp_path / "bodies") if request.param == "in files" else None


async def digest(request: Request) -> dict[str, object]:
    seen, size = hashlib.sha256(), 0
    async for chunk in request.stream():
        seen.update(chunk)
        size += len(chunk)
    return {"size": size, "digest": seen.hexdigest()}


def answer_to(body: bytes) -> dict[str, object]:
    return {"size": len(body), "digest": hashlib.sha256(body).hexdigest()}


async def in_chunks(body: bytes, size: int = 70_000) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


def app_of(
    bodies: Bodies | None, gate: Gate | None = None, hide: bool = False, **policy: Any
) -> LongRunningMiddleware:
    async def answer(request: Request) -> dict[str, object]:
        if gate is not None and "held" in request.url.query:
            await gate.wait()
        return await digest(request)

    jobs = Jobs(store=SharedMemory(), bodies=bodies, limits=Limits(max_running=1))
    app = Starlette(routes=[slow_route(answer, max_request_size=HUGE, **policy)])
    return LongRunningMiddleware(hidden(app) if hide else app, jobs=jobs)


def left(bodies: Bodies | None) -> list[str]:
    if not isinstance(bodies, FileBodies) or not os.path.exists(bodies.directory):
        return []
    return os.listdir(bodies.directory)


async def nothing_left(bodies: Bodies | None) -> None:
    """A client may have heard of a job's end a moment before its files are gone."""
    with anyio.fail_after(10):
        while left(bodies):  # noqa: ASYNC110
            await anyio.sleep(0.01)


@pytest.mark.parametrize("again", [False, True])
async def test_an_upload_is_read_in_place(bodies: FileBodies | None, again: bool) -> None:
    more: Any = {"on_interrupt": "rerun"} if again else {}
    async with running(app_of(bodies, **more)) as client:
        for size in (0, 1, IN_MEMORY - 1, IN_MEMORY + 1, len(LARGE)):
            body = LARGE[:size]
            accepted = await client.post("/slow", content=in_chunks(body))
            assert (await follow(client, accepted)).json() == answer_to(body)
        await nothing_left(bodies)


async def test_an_upload_that_nobody_reads_leaves_no_file_open(bodies: FileBodies | None) -> None:
    async def answer(request: Request) -> str:
        await request.receive()
        return "enough"

    jobs = Jobs(store=SharedMemory(), bodies=bodies)
    app = Starlette(routes=[slow_route(answer, max_request_size=HUGE)])
    async with running(LongRunningMiddleware(app, jobs=jobs)) as client:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            accepted = await client.post("/slow", content=in_chunks(LARGE))
            assert (await follow(client, accepted)).json() == "enough"
        await anyio.sleep(0.05)
        assert len(os.listdir("/proc/self/fd")) <= before + 2  # threads of the event loop's


async def test_an_upload_that_waits_is_read_when_its_turn_comes(
    bodies: FileBodies | None,
) -> None:
    gate = Gate()
    async with running(app_of(bodies, gate)) as client:
        first = await client.post("/slow?held", content=in_chunks(LARGE))
        second = await client.post("/slow", content=in_chunks(LARGE[5:]))
        third = await client.post("/slow", content=LARGE[:5])
        id = second.headers["location"].rpartition("/")[2]
        assert left(bodies) == ([] if bodies is None else [f"{id}.request"])
        gate.open()
        for accepted, body in ((first, LARGE), (second, LARGE[5:]), (third, LARGE[:5])):
            assert (await follow(client, accepted)).json() == answer_to(body)
        await nothing_left(bodies)


async def test_what_the_app_read_before_its_entry_is_kept_too(bodies: FileBodies | None) -> None:
    """Where the routes cannot be read, and something inside looks at the body first."""

    class Looks:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                await self.app(scope, receive, send)
                return
            had = [await receive()]
            while had[-1]["more_body"] and len(had) < 30:
                had.append(await receive())

            async def replayed() -> Any:
                return had.pop(0) if had else await receive()

            await self.app(scope, replayed, send)

    gate = Gate()

    async def answer(request: Request) -> dict[str, object]:
        if "held" in request.url.query:
            await gate.wait()
        return await digest(request)

    inner = Starlette(routes=[slow_route(answer, max_request_size=HUGE)])
    jobs = Jobs(store=SharedMemory(), bodies=bodies, limits=Limits(max_running=1))
    async with running(LongRunningMiddleware(hidden(Looks(inner)), jobs=jobs)) as client:
        first = await client.post("/slow?held", content=in_chunks(LARGE))
        second = await client.post("/slow", content=in_chunks(LARGE))
        gate.open()
        for accepted in (first, second):
            assert (await follow(client, accepted)).json() == answer_to(LARGE)


@pytest.mark.parametrize("kind", ["application/octet-stream", "multipart/form-data"])
async def test_a_key_goes_by_the_whole_of_an_upload(bodies: FileBodies | None, kind: str) -> None:
    def of(body: bytes, boundary: str) -> dict[str, Any]:
        headers = {"idempotency-key": "k", "content-type": kind}
        if kind.startswith("multipart"):
            headers["content-type"] = f"{kind}; boundary={boundary}"
            line = f"--{boundary}".encode()
            body = line + b"\r\n\r\n" + body + b"\r\n" + line + b"--\r\n"
        return {"content": in_chunks(body), "headers": headers}

    async with running(app_of(bodies)) as client:
        first = await client.post("/slow", **of(LARGE, "one"))
        again = await client.post("/slow", **of(LARGE, "two"))
        other = await client.post("/slow", **of(LARGE[:-1] + b"x", "one"))
        assert again.headers["location"] == first.headers["location"]
        assert (first.status_code, other.status_code) == (202, 422)
        await follow(client, first)


async def test_a_fingerprint_is_the_same_wherever_a_body_is(tmp_path: Path) -> None:
    """Of two processes one may keep it apart."""
    store = SharedMemory()
    locations = []
    for bodies in (None, FileBodies(tmp_path / "bodies")):
        jobs = Jobs(store=store, bodies=bodies)
        app = Starlette(routes=[slow_route(digest, max_request_size=HUGE)])
        async with running(LongRunningMiddleware(app, jobs=jobs)) as client:
            for kind in ("text/plain", "multipart/form-data; boundary=7"):
                headers = {"idempotency-key": kind[:4], "content-type": kind}
                body = b"--7\r\n\r\n" + LARGE + b"\r\n--7--"
                accepted = await client.post("/slow", content=in_chunks(body), headers=headers)
                assert accepted.status_code == 202
                locations.append(accepted.headers["location"])
                await follow(client, accepted)
    assert locations[:2] == locations[2:]


async def test_a_function_that_says_who_shares_sees_all_of_it(bodies: FileBodies | None) -> None:
    seen = []

    def share(request: CapturedRequest) -> str:
        seen.append(request.body)
        return "all"

    gate = Gate()
    async with running(app_of(bodies, gate, coalesce=share)) as client:
        locations = set()
        for _ in range(2):
            accepted = await client.post("/slow?held", content=in_chunks(LARGE))
            locations.add(accepted.headers["location"])
        gate.open()
        await follow(client, accepted)
    assert len(locations) == 1
    assert seen == [LARGE, LARGE]


async def test_an_upload_for_which_there_is_no_room_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies = FileBodies(tmp_path / "bodies")

    def full() -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bodies, "temporary", full)
    app = app_of(bodies)
    async with running(app) as client:
        refused = RawRequest()
        refused.feed(LARGE)
        await refused.run(app)
        assert refused.status == 503
        assert (b"retry-after", b"5") in refused.sent[0]["headers"]
        assert (await client.post("/slow", content=LARGE[:9])).status_code == 202


async def test_a_key_goes_by_no_part_of_an_upload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full when the end of it is to be put into the file, where its key is computed."""
    bodies = FileBodies(tmp_path / "bodies")
    write, half = request_body._write, LARGE[: len(LARGE) // 2]

    def full(file: Any, content: bytes) -> None:
        if file.tell() + len(content) > len(half):
            raise OSError(28, "No space left on device")
        write(file, content)

    monkeypatch.setattr(request_body, "_write", full)
    app = app_of(bodies)
    async with running(app) as client:
        refused = RawRequest(idempotency_key="k")
        refused.feed(half, more=True)
        refused.feed(LARGE[:IN_MEMORY])
        with anyio.fail_after(10):
            await refused.run(app)
        assert refused.status == 503
        assert (b"retry-after", b"5") in refused.sent[0]["headers"]
        headers = {"idempotency-key": "k"}  # which is free
        accepted = await client.post("/slow", content=in_chunks(half), headers=headers)
        assert accepted.status_code == 202
        assert (await follow(client, accepted)).json() == answer_to(half)


async def test_a_request_that_is_torn_while_it_waits_fails_its_job(tmp_path: Path) -> None:
    bodies, gate = FileBodies(tmp_path / "bodies"), Gate()
    async with running(app_of(bodies, gate)) as client:
        first = await client.post("/slow?held", content=b"x")
        waits = await client.post("/slow", content=in_chunks(LARGE))
        (name,) = left(bodies)
        os.truncate(f"{bodies.directory}/{name}", 100)
        gate.open()
        await follow(client, first)
        failed = await follow(client, waits)
        assert failed.status_code == 500
        assert failed.json()["type"] == "urn:raincheck:problem:unreadable"
        await nothing_left(bodies)


async def test_a_process_that_has_no_bodies_says_so(tmp_path: Path) -> None:
    """A worker that was not told where they are."""
    bodies, gate, store = FileBodies(tmp_path / "bodies"), Gate(), SharedMemory()

    async def held(request: Request) -> Any:
        await gate.wait()

    def process(bodies: FileBodies | None) -> LongRunningMiddleware:
        limits = Limits(max_running=1, lease=0.3, drain_timeout=0.1)
        jobs = Jobs(store=store, bodies=bodies, limits=limits)
        routes = [slow_route(held, "/held"), slow_route(digest, max_request_size=HUGE)]
        return LongRunningMiddleware(Starlette(routes=routes), jobs=jobs)

    async with running(process(bodies)) as client:
        await client.post("/held")
        waits = await client.post("/slow", content=in_chunks(LARGE))
    async with running(process(None)) as other:
        with anyio.fail_after(30):
            failed = await follow(other, waits)
        assert failed.status_code == 500
        assert failed.json()["type"] == "urn:raincheck:problem:unreadable"


async def test_two_tasks_may_read_one_body(tmp_path: Path) -> None:
    """Quart reads beside its handlers: no part comes twice, and none is lost."""
    upload = RequestBody(HUGE, FileBodies(tmp_path / "bodies"))
    for start in range(0, len(LARGE), 60_000):
        more = start + 60_000 < len(LARGE)
        message = {"type": "http.request", "body": LARGE[start : start + 60_000], "more_body": more}
        if upload.arrive(message):
            assert await upload.spill()
    parts: list[bytes] = []

    async def read() -> None:
        while (message := await upload.next()) is not None:
            parts.append(message["body"])

    async with anyio.create_task_group() as group:
        group.start_soon(read)
        group.start_soon(read)
    assert sum(map(len, parts)) == len(LARGE)
    assert sorted(b"".join(parts)) == sorted(LARGE)
    assert await upload.body() == LARGE
    upload.close()


async def test_what_an_owner_may_store_counts_what_is_in_files(tmp_path: Path) -> None:
    async def answer(request: Request) -> Response:
        return Response(LARGE)

    route = slow_route(answer, max_stored_bytes_per_owner=len(LARGE))
    bodies = FileBodies(tmp_path / "bodies")
    jobs = Jobs(store=MemoryStore(), bodies=bodies)
    app = LongRunningMiddleware(
        Starlette(routes=[route]), jobs=jobs, owner=lambda request: request.headers["x-owner"]
    )
    async with running(app) as client:
        client.headers["x-owner"] = "ann"
        done = await client.post("/slow")
        response = await follow(client, done)
        assert response.content == LARGE
        assert len(left(bodies)) == 1
        refused = await client.post("/slow")
        assert refused.status_code == 429
        await client.delete(done.headers["location"])
        await nothing_left(bodies)
        assert (await client.post("/slow")).status_code == 202
