"""The stored response, byte for byte and header for header."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    JSONResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route

from raincheck import Job, Limits, MemoryStore
from raincheck.errors import StoreFull
from raincheck.runtime.recorder import PIECE
from raincheck.testing import follow
from tests.conftest import virtual_jobs
from tests.support import app_of, client_of, running, settled, slow_route

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]


def cookies() -> Response:
    response = JSONResponse({"a": "ü"})
    response.set_cookie("a", "1")
    response.set_cookie("b", "2")
    return response


def chunks() -> Response:
    async def many() -> Any:
        for number in range(500):
            yield b"%d," % number

    return StreamingResponse(many(), media_type="text/csv")


RESPONSES: dict[str, Callable[[Path], Response]] = {
    "json": lambda _: JSONResponse({"a": [1, None, "ü"]}),
    "binary": lambda _: Response(bytes(range(256)) * 100, media_type="application/octet-stream"),
    "cookies": lambda _: cookies(),
    "stream": lambda _: chunks(),
    "empty": lambda _: Response(),
    "204": lambda _: Response(status_code=204),
    "201": lambda _: Response(status_code=201, headers={"location": "/things/1"}),
    "303": lambda _: RedirectResponse("/elsewhere", status_code=303),
    "304": lambda _: Response(status_code=304, headers={"etag": '"x"'}),
    "404": lambda _: JSONResponse({"no": "such"}, status_code=404),
    "418": lambda _: Response("teapot", status_code=418, headers={"retry-after": "7"}),
    "503": lambda _: Response("later", status_code=503),
    "file": lambda path: FileResponse(path),
}


@pytest.mark.real
@pytest.mark.parametrize("name", RESPONSES)
async def test_the_status_url_becomes_the_handlers_own_response(name: str, tmp_path: Path) -> None:
    file = tmp_path / "report.csv"
    file.write_bytes(b"a,b\n" * 100_000)

    async def answer(request: Request) -> Response:
        return RESPONSES[name](file)

    async with client_of(slow_app := app_of(slow_route(answer)).app) as plain:
        expected = await plain.post("/slow")
    assert slow_app is not None
    async with running(app_of(slow_route(answer))) as client:
        actual = await follow(client, await client.post("/slow"))
    added = [(b"job-status", b"succeeded" if expected.status_code < 400 else b"failed")]
    added.insert(0, (b"referrer-policy", b"no-referrer"))
    if "cache-control" not in expected.headers:
        added.insert(0, (b"cache-control", b"no-store"))
    if "content-length" not in expected.headers and expected.status_code not in (204, 304):
        added.append((b"content-length", b"%d" % len(expected.content)))
    if expected.status_code == 200 and "etag" not in expected.headers:
        added.append((b"etag", actual.headers["etag"].encode()))
    if expected.headers.get("accept-ranges") == "bytes":
        added.append((b"content-encoding", b"identity"))
    assert actual.status_code == expected.status_code
    assert actual.headers.raw == expected.headers.raw + added
    assert actual.content == expected.content


async def test_50_mb_come_back_whole() -> None:
    piece = bytes(range(256)) * 4096
    digest = hashlib.sha256()

    async def answer(request: Request) -> Response:
        async def pieces() -> Any:
            for _ in range(50):
                digest.update(piece)
                yield piece

        return StreamingResponse(pieces())

    async with running(app_of(slow_route(answer))) as client:
        response = await follow(client, await client.post("/slow"))
        assert len(response.content) == 50 * 1024 * 1024
        assert hashlib.sha256(response.content).digest() == digest.digest()


async def test_a_response_that_grows_too_large_fails_the_job_and_keeps_no_more() -> None:
    sent = 0

    async def answer(request: Request) -> Response:
        async def endless() -> Any:
            nonlocal sent
            while True:
                sent += 1
                yield b"x" * 1000

        return StreamingResponse(endless())

    store = MemoryStore()
    app = app_of(slow_route(answer, max_response_size=10_000), jobs=virtual_jobs(store=store))
    async with running(app) as client:
        response = await follow(client, await client.post("/slow"))
        assert response.status_code == 500
        assert response.json()["type"] == "urn:raincheck:problem:response-too-large"
        assert "10000 bytes" in response.json()["detail"]
        await settled()
        assert sent == 11
        assert store.size < 12_000


class Disk(MemoryStore):
    """Holds so many bytes of response bodies, and when it is `broken` nothing new at all."""

    room = 2 * PIECE
    broken = False

    def __init__(self) -> None:
        super().__init__()
        self.refused = 0

    def _check(self, more: int) -> None:
        if self.broken or sum(map(self._size_of, self._bodies)) + more > self.room:
            self.refused += 1
            raise StoreFull("the disk is full")

    async def append_body(
        self, id: str, fence: int, offset: int, chunk: bytes, **more: Any
    ) -> bool:
        self._check(len(chunk))
        return await super().append_body(id, fence, offset, chunk, **more)

    async def replace(self, job: Job, *, tail: bytes = b"", **settings: Any) -> bool:
        if tail or self.broken:
            self._check(len(tail))
        return await super().replace(job, tail=tail, **settings)


class SharedDisk(Disk):
    shared = True


DISKS = pytest.mark.parametrize("disk_type", [Disk, SharedDisk])


@DISKS
async def test_a_response_that_the_store_cannot_hold_fails_the_job_and_frees_what_it_took(
    disk_type: type[Disk],
) -> None:
    class Pieces:  # no generator: Starlette leaves one to the garbage collector, and trio warns
        asked = 0

        def __aiter__(self) -> Pieces:
            return self

        async def __anext__(self) -> bytes:
            Pieces.asked += 1
            if Pieces.asked > 20:
                raise StopAsyncIteration
            return bytes(PIECE)

    async def answer(request: Request) -> Response:
        return StreamingResponse(Pieces())

    store = disk_type()
    jobs = virtual_jobs(store=store, limits=Limits(max_running=1))
    async with running(app_of(slow_route(answer), jobs=jobs)) as client:
        for _ in range(2):  # the place is free again, too
            start = anyio.current_time()
            with anyio.fail_after(60):
                accepted = await client.post("/slow")
                response = await follow(client, accepted)
            assert response.status_code == 500
            assert response.json()["type"] == "urn:raincheck:problem:response-too-large"
            assert response.json()["detail"] == "The job store has no room for the response."
            assert anyio.current_time() - start < 2
            id = accepted.json()["job_id"]
            assert [piece async for piece in store.read_body(id)] == []
    assert store.refused == 2  # it is not asked again
    assert Pieces.asked < 10


@DISKS
@pytest.mark.parametrize("after", [2.0, 20.0])
async def test_the_end_of_a_response_waits_a_while_for_room(
    after: float, disk_type: type[Disk]
) -> None:
    """Another job may be failing just now because its response is too large."""

    async def answer(request: Request) -> Response:
        return Response(b"x" * 1000)

    store = disk_type()
    store.room = 0
    async with running(app_of(slow_route(answer), jobs=virtual_jobs(store=store))) as client:
        accepted = await client.post("/slow")
        await anyio.sleep(after)
        assert store.refused > 3
        store.room = 1000
        await anyio.sleep(6)
        response = await client.get(accepted.headers["location"])
        assert response.status_code == (200 if after < 5 else 500)


@DISKS
@pytest.mark.parametrize(("room", "status"), [(1000, 200), (0, 500)])
async def test_a_disk_that_takes_nothing_any_more_is_asked_until_it_does(
    room: int, status: int, disk_type: type[Disk]
) -> None:
    async def answer(request: Request) -> Response:
        store.broken = True
        return Response(b"x" * 1000)

    store = disk_type()
    async with running(app_of(slow_route(answer), jobs=virtual_jobs(store=store))) as client:
        accepted = await client.post("/slow")
        await anyio.sleep(60)
        assert store.refused > 10
        assert (await client.get(accepted.headers["location"])).status_code == 202
        store.broken, store.room = False, room
        assert (await follow(client, accepted)).status_code == status


async def test_a_response_at_the_bound_is_kept() -> None:
    async def answer(request: Request) -> Response:
        return Response(b"x" * 10_000)

    async with running(app_of(slow_route(answer, max_response_size=10_000))) as client:
        assert len((await follow(client, await client.post("/slow"))).content) == 10_000


async def test_a_head_request_that_is_accepted_has_its_headers_kept() -> None:
    async def answer(request: Request) -> Response:
        return Response(headers={"content-length": "100"})

    async with running(app_of(slow_route(answer))) as client:
        accepted = await client.head("/slow")
        assert accepted.status_code == 202
        await settled()
        response = await client.head(accepted.headers["location"])
        assert (response.status_code, response.headers["content-length"]) == (200, "100")


@pytest.mark.parametrize("status", [200, 304])
async def test_a_length_without_its_body_does_not_break_a_get(status: int) -> None:
    """A handler that was asked by HEAD, or answers 304, announces a body that it does not send."""

    async def answer(request: Request) -> Response:
        return Response(status_code=status, headers={"content-length": "100"})

    async with running(app_of(slow_route(answer))) as client:
        accepted = await client.head("/slow")
        await settled()
        response = await client.get(accepted.headers["location"])
        assert response.status_code == status
        assert "content-length" not in response.headers


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_the_length_of_a_streamed_response_is_said(method: str) -> None:
    async def answer(request: Request) -> Response:
        return chunks()

    async with running(app_of(slow_route(answer))) as client:
        accepted = await client.post("/slow")
        await settled()
        length = len((await client.get(accepted.headers["location"])).content)
        response = await client.request(method, accepted.headers["location"])
        assert response.headers.get_list("content-length") == [str(length)]
        assert len(response.content) == (length if method == "GET" else 0)
        in_time = await client.post("/slow", headers={"prefer": "wait=5"})
        assert in_time.headers.get_list("content-length") == [str(length)]


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
async def test_no_length_is_said_of_what_has_none(method: str, status: int) -> None:
    """What a GET would have had, an answer to HEAD without a length does not tell."""

    async def answer(request: Request) -> Response:
        response = Response(status_code=status)
        response.raw_headers = []
        return response

    async with running(app_of(slow_route(answer, methods=["GET", "HEAD"]))) as client:
        accepted = await client.request(method, "/slow")
        await settled()
        response = await client.request(method, accepted.headers["location"])
        assert response.status_code == status
        assert "content-length" not in response.headers


async def test_a_synchronous_answer_is_not_touched() -> None:
    async def plain(request: Request) -> Response:
        return cookies()

    async with running(app_of(Route("/plain", plain))) as client:
        response = await client.get("/plain")
        assert isinstance(response, httpx.Response)
        assert len(response.headers.get_list("set-cookie")) == 2
