"""The stored response in parts, or not at all: ranges and conditions at the status URL."""

from __future__ import annotations

import gc
import hashlib
import re
from collections.abc import AsyncIterator, Callable, Iterator
from email import message_from_bytes
from email.policy import HTTP
from pathlib import Path
from typing import Any

import httpx
import pytest
from brotli_asgi import BrotliMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message

from raincheck import Job, State
from raincheck.messages import CapturedResponse
from raincheck.ranges import LARGE
from raincheck.status.results import negotiated
from raincheck.stores.base import SMALL
from raincheck.stores.sqlite import SQLiteStore
from raincheck.testing import follow
from tests.conftest import virtual_jobs
from tests.doubles.stores import TrickyStore
from tests.support import Gate, RawRequest, app_of, client_of, gated, running, settled, slow_route

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]

SIZES = {"small": 1000, "small at most": SMALL, "large": 3 * LARGE + 7}


def bytes_of(size: int) -> bytes:
    """Bytes of which no two parts are alike."""
    return b"".join(b"%08d" % number for number in range(size // 8 + 1))[:size]


def picture(body: bytes) -> Callable[[Request], Any]:
    """Answers with a body of a kind that does not compress, in chunks."""

    async def answer(request: Request) -> Response:
        async def chunks() -> AsyncIterator[bytes]:
            for start in range(0, len(body), 100_000):
                yield body[start : start + 100_000]

        return StreamingResponse(chunks(), media_type="image/png", headers={"x-own": "1"})

    return answer


def responding(make: Callable[[], Response], **settings: Any) -> ASGIApp:
    async def answer(request: Request) -> Response:
        return make()

    return app_of(slow_route(answer, **settings))


async def stored(client: httpx.AsyncClient) -> tuple[str, httpx.Response]:
    """The status URL of a job that has finished, and its response."""
    accepted = await client.post("/slow")
    return accepted.headers["location"], await follow(client, accepted)


def parts_of(response: httpx.Response) -> Iterator[tuple[str, str, bytes]]:
    """Content-Type, Content-Range and content of each part, as a stranger reads them."""
    head = f"Content-Type: {response.headers['content-type']}\r\n\r\n".encode()
    for part in message_from_bytes(head + response.content, policy=HTTP).iter_parts():
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        yield part["content-type"], part["content-range"], content


# --- ranges --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SIZES)
async def test_one_range_of_a_result(name: str) -> None:
    size = SIZES[name]
    body = bytes_of(size)
    async with running(app_of(slow_route(picture(body)))) as client:
        url, whole = await stored(client)
        assert whole.headers["accept-ranges"] == "bytes"
        assert whole.headers["content-encoding"] == "identity"
        assert whole.content == body
        middle = size // 2
        for range, start, stop in [
            ("0-9", 0, 10),
            (f"{middle}-", middle, size),
            (f"{middle}-{middle}", middle, middle + 1),
            ("-5", size - 5, size),
            ("0-4,2-7", 0, 8),
            (f"3-{10 * size}", 3, size),
        ]:
            part = await client.get(url, headers={"range": f"bytes={range}"})
            assert part.status_code == 206
            assert part.content == body[start:stop]
            assert part.headers["content-range"] == f"bytes {start}-{stop - 1}/{size}"
            assert part.headers["content-length"] == str(stop - start)
            less = {"content-length"}
            same = [field for field in whole.headers.multi_items() if field[0] not in less]
            assert [field for field in part.headers.multi_items() if field in same] == same
            assert len(part.headers.multi_items()) == len(same) + 2


@pytest.mark.parametrize("name", SIZES)
async def test_several_ranges_of_a_result(name: str) -> None:
    size = SIZES[name]
    body = bytes_of(size)
    async with running(app_of(slow_route(picture(body)))) as client:
        url, whole = await stored(client)
        field = f"bytes=-9, 0-99,{size // 2}-{size // 2 + 4}, {size + 1}-"
        several = await client.get(url, headers={"range": field})
        assert several.status_code == 206
        assert re.match(r"multipart/byteranges; boundary=\w{32}$", several.headers["content-type"])
        assert several.headers["content-length"] == str(len(several.content))
        assert "content-range" not in several.headers
        assert several.headers["job-status"] == "succeeded"
        assert several.headers["etag"] == whole.headers["etag"]
        spans = [(size - 9, size), (0, 100), (size // 2, size // 2 + 5)]
        assert list(parts_of(several)) == [
            ("image/png", f"bytes {start}-{stop - 1}/{size}", body[start:stop])
            for start, stop in spans
        ]
        again = await client.get(url, headers={"range": field})
        assert again.headers["content-type"] != several.headers["content-type"]


async def test_no_range_that_is_there_is_416() -> None:
    async with running(app_of(slow_route(picture(bytes(1000))))) as client:
        url, _ = await stored(client)
        refused = await client.get(url, headers={"range": "bytes=1000-"})
        assert refused.status_code == 416
        assert refused.headers["content-range"] == "bytes */1000"
        assert refused.headers["job-status"] == "succeeded"
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.json()["type"] == "urn:raincheck:problem:range-not-satisfiable"


@pytest.mark.parametrize("range", ["bytes=5-1", "bytes=x", "items=0-1", "bytes=" + "0-1," * 17])
async def test_ranges_that_cannot_be_read_are_as_if_absent(range: str) -> None:
    async with running(app_of(slow_route(picture(bytes(1000))))) as client:
        url, whole = await stored(client)
        answer = await client.get(url, headers={"range": range})
        assert (answer.status_code, answer.headers) == (200, whole.headers)
        assert len(answer.content) == 1000


@pytest.mark.parametrize(
    ("media", "size", "own", "offers"),
    [
        ("image/png", 10, {}, True),
        ("text/csv", LARGE, {}, True),
        ("text/csv", LARGE - 1, {}, False),
        ("text/csv", 10, {"accept-ranges": "bytes"}, True),
        ("image/png", 10, {"accept-ranges": "none"}, False),
    ],
)
async def test_what_is_offered_is_served_and_nothing_else(
    media: str, size: int, own: dict[str, str], offers: bool
) -> None:
    app = responding(lambda: Response(bytes(size), media_type=media, headers=own))
    async with running(app) as client:
        url, whole = await stored(client)
        assert (whole.headers.get("accept-ranges") == "bytes") is offers
        assert (whole.headers.get("content-encoding") == "identity") is offers
        part = await client.get(url, headers={"range": "bytes=0-4"})
        assert part.status_code == (206 if offers else 200)
        assert len(part.content) == (5 if offers else size)


@pytest.mark.real
async def test_a_file_keeps_what_it_promises(tmp_path: Path) -> None:
    file = tmp_path / "film.mp4"
    file.write_bytes(body := bytes_of(400_000))
    app = responding(lambda: FileResponse(file, media_type="video/mp4"))
    async with running(app) as client:
        url, whole = await stored(client)
        assert whole.headers.get_list("accept-ranges") == ["bytes"]
        assert len(whole.headers.get_list("etag")) == 1
        own = whole.headers["etag"]
        part = await client.get(url, headers={"range": "bytes=9-19", "if-range": own})
        assert (part.status_code, part.content) == (206, body[9:20])
        assert (await client.get(url, headers={"if-none-match": own})).status_code == 304


async def test_a_coding_of_the_handlers_own_stays() -> None:
    coded = b"not really gzip" * 10
    own = {"content-encoding": "gzip", "accept-ranges": "bytes"}
    app = responding(lambda: Response(coded, media_type="text/csv", headers=own))
    async with running(app) as client:
        accepted = await client.post("/slow")
        await settled()
        url = accepted.headers["location"]
        async with client.stream("GET", url, headers={"range": "bytes=1-4"}) as part:
            assert part.headers.get_list("content-encoding") == ["gzip"]
            assert b"".join([chunk async for chunk in part.aiter_raw()]) == coded[1:5]


async def test_what_a_handler_says_of_all_of_it_is_not_said_of_a_part() -> None:
    own = {"content-range": "items 0-9/10", "content-digest": "sha-256=:x:", "x-own": "1"}
    app = responding(lambda: Response(bytes(100), media_type="image/png", headers=own))
    async with running(app) as client:
        url, whole = await stored(client)
        assert {name: whole.headers[name] for name in own} == own
        part = await client.get(url, headers={"range": "bytes=0-4"})
        assert part.headers.get_list("content-range") == ["bytes 0-4/100"]
        assert "content-digest" not in part.headers
        assert part.headers["x-own"] == "1"


@pytest.mark.real
async def test_a_shared_store_is_asked_for_no_more_than_the_part(tmp_path: Path) -> None:
    body = bytes_of(3 * LARGE)
    store = SQLiteStore(tmp_path / "jobs.db")
    async with running(app_of(slow_route(picture(body)), jobs=virtual_jobs(store=store))) as client:
        url, whole = await stored(client)
        start = len(body) - 11
        field = {"range": f"bytes={start}-{start + 4},5-9", "if-range": whole.headers["etag"]}
        parts = list(parts_of(await client.get(url, headers=field)))
        assert [part[2] for part in parts] == [body[start : start + 5], body[5:10]]
        part = await client.get(url, headers={"range": f"bytes={LARGE - 2}-{LARGE + 2}"})
        assert part.content == body[LARGE - 2 : LARGE + 3]


async def test_a_part_of_a_small_result_is_one_call_to_the_store() -> None:
    asked: list[str] = []

    async def note(call: str, /, *arguments: Any, **more: Any) -> None:
        asked.append(call)

    store = TrickyStore(note)
    app = app_of(slow_route(picture(bytes(1000))), jobs=virtual_jobs(store=store))
    async with running(app) as client:
        url, _ = await stored(client)
        await settled()
        for range in ("bytes=5-9", "bytes=5-9,20-29", "bytes=9999-"):
            asked.clear()
            await client.get(url, headers={"range": range})
            assert asked == ["fetch"]


async def test_a_client_that_goes_leaves_nothing_open() -> None:
    app = app_of(slow_route(picture(bytes_of(LARGE))))
    async with running(app) as client:
        url, _ = await stored(client)
        for range in ("bytes=5-", "bytes=5-9,20-"):
            await cut_off(app, url, 100_000, range=range)
        gc.collect()  # what has not been closed warns


# --- conditions ----------------------------------------------------------------------------------


async def test_a_result_that_is_known_is_304() -> None:
    headers = {"vary": "Accept", "cache-control": "private", "x-own": "1"}
    async with running(responding(lambda: JSONResponse({"a": 1}, headers=headers))) as client:
        url, whole = await stored(client)
        etag = whole.headers["etag"]
        assert re.fullmatch(r'"[!#-~]+"', etag)
        assert "accept-ranges" not in whole.headers
        for method in ("GET", "HEAD"):
            known = await client.request(method, url, headers={"if-none-match": f'"x", W/{etag}'})
            assert (known.status_code, known.content) == (304, b"")
            expected = {
                **headers,
                "referrer-policy": "no-referrer",
                "job-status": "succeeded",
                "etag": etag,
            }
            assert dict(known.headers) == expected
        other = await client.get(url, headers={"if-none-match": '"x"'})
        assert (other.status_code, other.content) == (200, whole.content)


async def test_another_result_than_the_one_that_is_meant_is_412() -> None:
    async with running(app_of(slow_route(picture(bytes(1000))))) as client:
        url, whole = await stored(client)
        for method in ("GET", "HEAD"):
            refused = await client.request(method, url, headers={"if-match": '"x"'})
            assert refused.status_code == 412
            assert refused.headers["job-status"] == "succeeded"
            assert refused.headers["content-type"] == "application/problem+json"
        assert refused.content == b""
        fields = {"if-match": whole.headers["etag"], "range": "bytes=0-4"}
        assert (await client.get(url, headers=fields)).status_code == 206


async def test_a_range_of_another_result_is_all_of_this_one() -> None:
    async with running(app_of(slow_route(picture(bytes(1000))))) as client:
        url, whole = await stored(client)
        _, other = await stored(client)
        assert other.headers["etag"] != whole.headers["etag"]
        for etag, size in ((whole.headers["etag"], 5), (other.headers["etag"], 1000)):
            fields = {"range": "bytes=0-4", "if-range": etag}
            assert len((await client.get(url, headers=fields)).content) == size


async def test_head_says_what_get_would_and_has_no_ranges() -> None:
    async with running(app_of(slow_route(picture(bytes(1000))))) as client:
        url, whole = await stored(client)
        for fields in ({}, {"range": "bytes=0-4"}, {"range": "bytes=9999-"}):
            head = await client.head(url, headers=fields)
            assert (head.status_code, head.headers, head.content) == (200, whole.headers, b"")


def test_the_tag_is_of_one_job_one_run_and_one_version() -> None:
    response = CapturedResponse(200, (), 1)
    job = Job("a", "r", State.SUCCEEDED, 1.0, 4, 2, response=response)
    others = [job._replace(id="b"), job._replace(fence=3), job._replace(version=5)]
    tags = [dict(negotiated(each, (), (), "GET")[0])[b"etag"] for each in (job, *others)]
    assert tags[0] == b'"a.2.4"'
    assert len(set(tags)) == 4


# --- where none of this holds --------------------------------------------------------------------

ALL_AT_ONCE = [
    {"range": "bytes=0-0"},
    {"range": "bytes=9999-"},
    {"if-none-match": "*"},
    {"if-match": '"x"'},
]


@pytest.mark.parametrize("status", [201, 202, 206, 301, 404, 500])
async def test_ranges_and_conditions_are_of_200s_only(status: int) -> None:
    def make() -> Response:
        return Response(b"0123456789", status_code=status, media_type="image/png")

    async with running(responding(make)) as client:
        url, whole = await stored(client)
        assert {"etag", "accept-ranges", "content-encoding"}.isdisjoint(whole.headers)
        for fields in ALL_AT_ONCE:
            answer = await client.get(url, headers=fields)
            assert (answer.status_code, answer.headers) == (whole.status_code, whole.headers)
            assert answer.content == whole.content


async def test_ranges_and_conditions_are_of_results_only() -> None:
    gate = Gate()
    async with running(app_of(gated(gate))) as client:
        accepted = await client.post("/slow", headers=ALL_AT_ONCE[2])
        links = accepted.json()["links"]
        for fields in ALL_AT_ONCE:
            assert (await client.get(links["result"], headers=fields)).status_code == 202
            assert (await client.get(links["self"], headers=fields)).status_code == 200
        await client.post(links["cancel"])
        await settled()
        for fields in ALL_AT_ONCE:
            assert (await client.get(links["result"], headers=fields)).status_code == 410


async def test_an_answer_in_time_is_the_handlers_alone() -> None:
    async with running(app_of(slow_route(picture(bytes(1000)), wait=5))) as client:
        answer = await client.post("/slow", headers={"range": "bytes=0-4"})
        assert (answer.status_code, len(answer.content)) == (200, 1000)
        assert {"etag", "accept-ranges", "content-encoding"}.isdisjoint(answer.headers)


# --- compression outside -------------------------------------------------------------------------


COMPRESSIONS = [GZipMiddleware, BrotliMiddleware]


class Cut(Exception):
    """The connection broke."""


async def cut_off(
    app: ASGIApp, url: str, after: int, **fields: str
) -> tuple[dict[bytes, bytes], bytes]:
    """Header fields, and what has come of a body when its connection breaks."""
    request = RawRequest(url, "GET", accept_encoding="gzip, br", **fields)
    got = b""

    async def send(message: Message) -> None:
        nonlocal got
        await keep(message)
        got += message.get("body", b"")
        if len(got) >= after:
            raise Cut

    keep, request._send = request._send, send  # type: ignore[method-assign] # it breaks off
    request.feed()
    with pytest.raises(Cut):
        await request.run(app)
    return dict(request.sent[0]["headers"]), got[:after]


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("size", [2 * LARGE, 500_000])
async def test_a_download_that_is_resumed_is_the_same_below_compression(
    compression: Callable[[ASGIApp], ASGIApp], size: int
) -> None:
    body = bytes_of(size)

    async def answer(request: Request) -> Response:
        offers = {} if size >= LARGE else {"accept-ranges": "bytes"}
        return Response(body, media_type="text/csv", headers=offers)

    inner = app_of(slow_route(answer))
    outer = compression(inner)
    async with running(inner) as client:
        url = (await client.post("/slow")).headers["location"]
        await settled()
        headers, got = await cut_off(outer, url, 300_001)
        async with client_of(outer) as other:
            asks = {
                "range": f"bytes={len(got)}-",
                "if-range": headers[b"etag"].decode(),
                "accept-encoding": "gzip, br",
            }
            async with other.stream("GET", url, headers=asks) as rest:
                assert rest.status_code == 206
                got += b"".join([chunk async for chunk in rest.aiter_raw()])
    assert hashlib.sha256(got).digest() == hashlib.sha256(body).digest()


@pytest.mark.parametrize("compression", COMPRESSIONS)
async def test_what_offers_no_ranges_is_compressed(
    compression: Callable[[ASGIApp], ASGIApp],
) -> None:
    inner = responding(lambda: Response(bytes(LARGE - 1), media_type="text/csv"))
    async with running(inner) as client, client_of(compression(inner)) as other:
        url, _ = await stored(client)
        asks = {"accept-encoding": "gzip, br", "range": "bytes=5-"}
        answer = await other.get(url, headers=asks)
        assert answer.status_code == 200
        assert int(answer.headers["content-length"]) < LARGE // 10
        assert answer.content == bytes(LARGE - 1)
