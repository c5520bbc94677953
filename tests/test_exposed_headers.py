"""`EXPOSE_HEADERS` is what a script of another origin needs, and what the docs say."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from raincheck import EXPOSE_HEADERS, LongRunningMiddleware, Policy
from raincheck.testing import follow
from tests.conftest import virtual_jobs
from tests.support import Gate, gated, running, settled, slow_route

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]

SAFELISTED = {
    *("cache-control", "content-language", "content-length", "content-type", "expires"),
    *("last-modified", "pragma"),
}
"""What every script may read (Fetch, "CORS-safelisted response-header name")."""

OF_THE_BROWSER = {
    *("vary", "content-encoding", "referrer-policy", "x-accel-buffering", "allow"),
    *("www-authenticate", "access-control-expose-headers", "access-control-allow-origin"),
}
"""What is said to browsers, proxies and people, and to no script."""


def seen(*responses: httpx.Response) -> set[str]:
    """The names of the fields that a script has to be told that it may read."""
    names = {name.lower() for response in responses for name in response.headers}
    return names - SAFELISTED - OF_THE_BROWSER


async def file(request: Request) -> Response:
    return Response(
        b"abc", media_type="application/octet-stream", headers={"accept-ranges": "bytes"}
    )


async def accepted_elsewhere(request: Request) -> Response:
    return JSONResponse({}, 202)


async def test_it_is_all_that_our_answers_carry_and_nothing_else() -> None:
    gate = Gate()
    routes = [
        gated(gate),
        slow_route(file, "/file"),
        slow_route(accepted_elsewhere, "/202"),
    ]
    jobs = virtual_jobs()
    app = LongRunningMiddleware(Starlette(routes=routes), jobs=jobs, base_url="http://test")
    answers: list[httpx.Response] = []
    async with running(app) as client:
        keyed = {"prefer": "respond-async", "idempotency-key": "1"}
        answers += [await client.post("/slow", headers=keyed) for _ in range(2)]
        url = answers[0].headers["location"]
        await settled()
        for suffix in ("", "/status", "/nothing"):
            answers.append(await client.get(url + suffix, headers={"prefer": "wait=1"}))
        gate.open()
        for path in ("/file", "/202"):
            done = await follow(client, await client.get(path))
            answers += [done, await client.get(str(done.url), headers={"range": "bytes=0-0"})]
            answers.append(await client.get(str(done.url), headers={"range": "bytes=9-"}))
        answers += [await client.post(url + "/cancel"), await client.delete(url)]
        answers += [await client.get(url), await client.put(url), await client.get("/jobs/x")]
    assert seen(*answers) == {name.lower() for name in EXPOSE_HEADERS}


async def test_starlettes_middleware_takes_it() -> None:
    cors = Middleware(CORSMiddleware, allow_origins=["*"], expose_headers=EXPOSE_HEADERS)
    ours = Middleware(LongRunningMiddleware, jobs=virtual_jobs(), policy=Policy(ttl=60))
    app = Starlette(routes=[gated(gate := Gate())], middleware=[cors, ours])
    gate.open()
    async with running(app) as client:
        answer = await client.get("/slow", headers={"origin": "https://app.example.org"})
        assert answer.headers["access-control-expose-headers"] == ", ".join(EXPOSE_HEADERS)


def test_the_page_about_clients_has_the_same_list() -> None:
    page = (Path(__file__).parents[1] / "docs" / "clients.md").read_text()
    match = re.search(r"^Access-Control-Expose-Headers: ([\w\s,-]+?)^```", page, re.MULTILINE)
    assert match is not None
    assert tuple(re.split(r",\s+", match[1].strip())) == EXPOSE_HEADERS
