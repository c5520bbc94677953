"""Progress: `report()` is one plain function, the same in `async def` and in `def` handlers.

`uvicorn examples.progress:app` serves it; `python examples/progress.py` prints what long polls of
the monitor say, for /async and for /thread:

    GET /async: 202
      running 33% resized 1 of 3
      running 67% resized 2 of 3
      running 100% resized 3 of 3
      succeeded 100% resized 3 of 3
"""

import asyncio
import time

import httpx
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from raincheck import LongRunningMiddleware, long_running, report
from raincheck.testing import lifespan


@long_running
async def resize_on_the_loop(request: Request) -> JSONResponse:
    for done in (1, 2, 3):
        await asyncio.sleep(1.1)
        report(done / 3, f"resized {done} of 3")
    await asyncio.sleep(1.1)
    return JSONResponse({"resized": 3})


@long_running
def resize_in_a_thread(request: Request) -> JSONResponse:
    for done in (1, 2, 3):
        time.sleep(1.1)
        report(done / 3, f"resized {done} of 3")
    time.sleep(1.1)
    return JSONResponse({"resized": 3})


routes = [Route("/async", resize_on_the_loop), Route("/thread", resize_in_a_thread)]
app = Starlette(routes=routes, middleware=[Middleware(LongRunningMiddleware)])


async def main() -> None:
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app")
    async with lifespan(app), client:
        for path in ("/async", "/thread"):
            response = await client.get(path)
            print(f"GET {path}: {response.status_code}")
            while (job := response.json())["status"] in ("queued", "running"):
                # Answers when the job changes, after a second at the earliest and 10 at most.
                response = await client.get(job["links"]["self"], headers={"Prefer": "wait=10"})
                job = response.json()
                print(f"  {job['status']} {job['progress']:.0%} {job['message']}")


if __name__ == "__main__":
    asyncio.run(main())
