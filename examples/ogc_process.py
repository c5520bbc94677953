"""A process of OGC API - Processes: executed, polled, its results fetched, another one dismissed.

`uvicorn examples.ogc_process:app` serves it; `python examples/ogc_process.py` starts it on a free
port and prints

    POST /processes/buffer/execution: 201, see /jobs/kG3f…
    GET /jobs/kG3f…/results: 404 result-not-ready
      running 25%
      running 50%
      running 75%
      successful
    GET /jobs/kG3f…/results: 200 {"area":12.5}
    without distance: 201, failed, then 422 There is no distance.
    DELETE: 200 dismissed
    GET /jobs: dismissed, failed, successful
"""

import asyncio
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

from raincheck import LongRunningMiddleware, Pages, long_running, report
from raincheck.dialects import OGCDialect


# With `respond="preferred"` it would be synchronous but for `Prefer: respond-async`: for a process
# whose jobControlOptions are both.
@long_running(name="buffer")
async def buffer(request: Request) -> JSONResponse:
    inputs = (await request.json())["inputs"]
    if "distance" not in inputs:
        exception = {"type": "InvalidParameterValue", "detail": "There is no distance."}
        return JSONResponse(exception, 422)
    for tile in (1, 2, 3, 4):
        await asyncio.sleep(1)
        report(tile / 4, f"tile {tile} of 4")
    return JSONResponse({"area": inputs["distance"] * 2.5})


routes = [Route("/processes/buffer/execution", buffer, methods=["POST"])]
speaking = Middleware(
    LongRunningMiddleware,
    dialect=OGCDialect(processes={"buffer": "buffer"}),
    owner=lambda connection: connection.headers.get("x-user"),  # your own authentication
    pages=Pages(own_list=True),  # GET /jobs
)
app = Starlette(routes=routes, middleware=[speaking])


def wait(client: httpx.Client, url: str) -> str:
    """Poll a job to its end."""
    while (job := client.get(url, headers={"Prefer": "wait=2"}).json())["status"] == "running":
        print(f"  running {job.get('progress', 0)}%")
    return str(job["status"])


def main(client: httpx.Client) -> None:
    def execute(**inputs: float) -> httpx.Response:
        return client.post("/processes/buffer/execution", json={"inputs": inputs})

    created = execute(distance=5)
    url = created.headers["Location"]
    print(f"POST /processes/buffer/execution: {created.status_code}, see {url}")
    early = client.get(f"{url}/results")
    print(f"GET {url}/results: {early.status_code} {early.json()['type'].rpartition('/')[2]}")
    print(f"  {wait(client, url)}")
    results = client.get(f"{url}/results")
    print(f"GET {url}/results: {results.status_code} {results.text}")

    broken = execute()
    status = wait(client, broken.headers["Location"])
    results = client.get(f"{broken.headers['Location']}/results")
    reason = f"{results.status_code} {results.json()['detail']}"
    print(f"without distance: {broken.status_code}, {status}, then {reason}")

    dismissed = client.delete(execute(distance=9).headers["Location"])
    print(f"DELETE: {dismissed.status_code} {dismissed.json()['status']}")
    jobs = client.get("/jobs").json()["jobs"]
    print("GET /jobs:", ", ".join(job["status"] for job in jobs))


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
    with serving() as url, httpx.Client(base_url=url, headers={"X-User": "ann"}) as client:
        main(client)
