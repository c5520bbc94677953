"""Events: `GET /jobs/{id}/events` tells of each change as it comes (Server-Sent Events).

`python examples/events.py` serves the app, and follows a job as `new EventSource(url)` does in a
browser: it comes back when a stream ends, as each does within 25 seconds, and stops at a 204.

    POST /resize: 202
      event 1: running
      event 2: running 33% resized 1 of 3
      event 3: running 67% resized 2 of 3
      event 4: running 100% resized 3 of 3
      event 5: succeeded 100% resized 3 of 3
    Last-Event-ID: 5: 204

By hand: `uvicorn examples.events:app`, `curl -i -X POST localhost:8000/resize`, and
`curl -N localhost:8000/jobs/.../events`.
"""

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from raincheck import LongRunningMiddleware, long_running, report


@long_running
async def resize(request: Request) -> JSONResponse:
    for done in (1, 2, 3):
        await asyncio.sleep(0.5)
        report(done / 3, f"resized {done} of 3")
    await asyncio.sleep(0.5)
    return JSONResponse({"resized": 3})


routes = [Route("/resize", resize, methods=["POST"])]
app = Starlette(routes=routes, middleware=[Middleware(LongRunningMiddleware)])


def follow(client: httpx.Client, events: str) -> None:
    """Print each event. An event of ours has one line of data; httpx2 has `client.sse()`."""
    headers: dict[str, str] = {}
    retry = 3.0
    while True:
        with client.stream("GET", events, headers=headers) as stream:
            if stream.status_code == 204:
                print(f"Last-Event-ID: {headers['Last-Event-ID']}: 204")
                return
            stream.raise_for_status()
            for line in stream.iter_lines():
                field, _, value = line.partition(": ")
                if field == "retry":
                    retry = int(value) / 1000
                elif field == "id":
                    headers = {"Last-Event-ID": value}
                elif field == "data":
                    job = json.loads(value)
                    said = "" if job["progress"] is None else f" {job['progress']:.0%}"
                    said += "" if job["message"] is None else f" {job['message']}"
                    print(f"  event {headers['Last-Event-ID']}: {job['status']}{said}")
        time.sleep(retry)


@contextmanager
def serving() -> Iterator[str]:
    """A real uvicorn on a free port, in a thread of its own: events come while the job goes on."""
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


def main() -> None:
    with serving() as url, httpx.Client(base_url=url, timeout=30) as client:
        accepted = client.post("/resize")
        print(f"POST /resize: {accepted.status_code}")
        follow(client, accepted.json()["links"]["events"])


if __name__ == "__main__":
    main()
