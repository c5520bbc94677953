"""Retries: a run that fails because something else is away for a moment is repeated.

`uvicorn examples.retries:app` serves it; `python examples/retries.py` prints

    POST /imports: 202
      queued, run 1 was the last, the next one at 2026-...Z
      queued, run 2 was the last, the next one at 2026-...Z
      succeeded, run 3 was the last
    GET /jobs/...: 200 {"imported":12}
"""

import asyncio
import logging

import httpx
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from raincheck import Failure, LongRunningMiddleware, Retry, current_job, long_running
from raincheck.testing import follow, lifespan


class Away(Exception):
    """What is asked for the data does not answer."""


async def fetch(attempt: int) -> int:
    if attempt == 1:
        raise Away
    return 503 if attempt == 2 else 12


def pause(failure: Failure) -> float:
    """As long as the response says; else a second."""
    return float(dict(failure.headers).get(b"retry-after", b"1"))


# A handler that may run twice: what it has done before it failed, it does again.
@long_running(retry=Retry(on=(503, Away), max_runs=4, backoff=pause))
async def imports(request: Request) -> JSONResponse:
    job = current_job()
    found = await fetch(attempt=job.runs if job else 1)
    if found == 503:
        return JSONResponse({"error": "busy"}, 503, headers={"Retry-After": "2"})
    return JSONResponse({"imported": found})


routes = [Route("/imports", imports, methods=["POST"])]
app = Starlette(routes=routes, middleware=[Middleware(LongRunningMiddleware)])


async def main() -> None:
    logging.disable()  # which has each failed run, too
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app")
    async with lifespan(app), client:
        accepted = await client.post("/imports")
        print(f"POST /imports: {accepted.status_code}")
        monitor, shown = accepted.links["monitor"]["url"], ""
        while not shown.startswith("succeeded"):
            await asyncio.sleep(0.1)
            job = (await client.get(monitor)).json()
            again = f", the next one at {job['next_run_at']}" if "next_run_at" in job else ""
            told = f"{job['status']}, run {job['runs']} was the last{again}"
            if told != shown and job["status"] != "running":
                shown = told
                print(f"  {shown}")
        response = await follow(client, accepted)
        print(f"GET {accepted.headers['location']}: {response.status_code} {response.text}")


if __name__ == "__main__":
    asyncio.run(main())
