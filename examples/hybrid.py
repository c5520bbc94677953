"""Hybrid: the response itself if it is in time, a 202 if not; author and client have a say.

`uvicorn examples.hybrid:app` serves it; `python examples/hybrid.py` prints

    GET /search?seconds=0: 200 slept 0.0 s
    GET /search?seconds=1: 202 /jobs/... 200 slept 1.0 s
    GET /search?seconds=1, Prefer: wait=5: 200 slept 1.0 s
    GET /export?seconds=1: 200 slept 1.0 s
    GET /export?seconds=1, Prefer: respond-async: 202 /jobs/... 200 slept 1.0 s
    GET /export?seconds=1, Prefer: respond-async, wait=5: 200 slept 1.0 s
"""

import asyncio

import httpx
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from raincheck import LongRunningMiddleware, long_running
from raincheck.testing import follow, lifespan


@long_running(wait=0.5)  # half a second before the 202, unless the client prefers another time
async def search(request: Request) -> PlainTextResponse:
    return await work(request)


@long_running(respond="preferred")  # synchronous, unless the client prefers `respond-async`
async def export(request: Request) -> PlainTextResponse:
    return await work(request)


async def work(request: Request) -> PlainTextResponse:
    seconds = float(request.query_params["seconds"])
    await asyncio.sleep(seconds)
    return PlainTextResponse(f"slept {seconds} s")


routes = [Route("/search", search), Route("/export", export)]
app = Starlette(routes=routes, middleware=[Middleware(LongRunningMiddleware)])


async def main() -> None:
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app")
    async with lifespan(app), client:
        for request in (
            "/search?seconds=0",
            "/search?seconds=1",
            "/search?seconds=1, Prefer: wait=5",
            "/export?seconds=1",
            "/export?seconds=1, Prefer: respond-async",
            "/export?seconds=1, Prefer: respond-async, wait=5",
        ):
            url, _, prefer = request.partition(", Prefer: ")
            response = await client.get(url, headers={"Prefer": prefer})
            print(f"GET {request}: {response.status_code}", end=" ")
            if response.status_code == 202:
                print(response.headers["location"], end=" ")
                response = await follow(client, response)
                print(response.status_code, end=" ")
            print(response.text)


if __name__ == "__main__":
    asyncio.run(main())
