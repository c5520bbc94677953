"""The other side: a client that follows a 202 by itself, and one that watches.

`uvicorn examples.client:app` serves it; `python examples/client.py` starts it on a free port and
prints

    followed: 201 {"pages":3}
      running page 1 of 3
      running page 2 of 3
      running page 3 of 3
      succeeded page 3 of 3
    watched: 201 {"pages":3}
    late: the job has not ended within 0.5 seconds; its status URL is http://...
    resumed: 201 {"pages":3}
    cancelled: canceled
"""

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

import httpx2
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from raincheck import LongRunningMiddleware, long_running, report
from raincheck.client import DeadlineExceeded, RemoteJob, follow, submit


@long_running
async def render(request: Request) -> JSONResponse:
    for page in (1, 2, 3):
        await asyncio.sleep(1.1)
        report(page / 3, f"page {page} of 3")
    await asyncio.sleep(1.1)
    return JSONResponse({"pages": 3}, 201)


routes = [Route("/reports", render, methods=["POST"])]
app = Starlette(routes=routes, middleware=[Middleware(LongRunningMiddleware)])

FollowTransport, AsyncFollowTransport = follow(httpx2)


async def main(url: str) -> None:
    async with httpx2.AsyncClient(transport=AsyncFollowTransport(), base_url=url) as client:
        response = await client.post("/reports")  # as if it were an ordinary route
        print(f"followed: {response.status_code} {response.text}")

    async with httpx2.AsyncClient(base_url=url) as client:
        job = await submit(client, client.build_request("POST", "/reports"))
        async for update in job.updates():
            if update["message"]:
                print(f"  {update['status']} {update['message']}")
        response = await job.response()
        print(f"watched: {response.status_code} {response.text}")

    hasty = AsyncFollowTransport(deadline=0.5)
    async with httpx2.AsyncClient(transport=hasty, base_url=url) as client:
        try:
            await client.post("/reports")
        except DeadlineExceeded as late:
            print(f"late: {late}")
            job = RemoteJob.from_url(client, late.status_url)  # here, or in another process
            response = await job.response(deadline=60)
            print(f"resumed: {response.status_code} {response.text}")

        job = await submit(client, client.build_request("POST", "/reports"))
        await job.cancel()
        outcome = [update["status"] async for update in job.updates()][-1]
        print(f"cancelled: {outcome}")


@contextmanager
def serving() -> Iterator[str]:
    """A real uvicorn on a free port, in a thread of its own."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


if __name__ == "__main__":
    with serving() as url:
        asyncio.run(main(url))
