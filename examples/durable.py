"""Durable: with `on_interrupt="rerun"` a job outlives the process that runs it.

`python examples/durable.py` starts a server, kills it in the middle of a job and starts it again:

    POST /reports: 202, see /jobs/...
      running 25% page 1 of 4 by process 4711
      running 50% page 2 of 4 by process 4711
    kill -9 4711
      queued 0%
      running 25% page 1 of 4 by process 4712
      ...
    GET /jobs/...: 200 {"pages":4}

By hand: `uvicorn examples.durable:app`, `curl -i -X POST localhost:8000/reports`, kill the server,
start it again, and `curl -i localhost:8000/jobs/...`. The jobs are in the file jobs.db.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from raincheck import Limits, LongRunningMiddleware, long_running, report
from raincheck.stores.sqlite import SQLiteStore


@long_running(on_interrupt="rerun", max_runs=3)
async def render(request: Request) -> JSONResponse:
    for page in (1, 2, 3, 4):
        await asyncio.sleep(1.1)
        report(page / 4, f"page {page} of 4 by process {os.getpid()}")
    return JSONResponse({"pages": 4})


# A lease is how long a job counts as somebody's who is not heard of any more; 30 s by default.
jobs = Middleware(LongRunningMiddleware, store=SQLiteStore("jobs.db"), limits=Limits(lease=2))
app = Starlette(routes=[Route("/reports", render, methods=["POST"])], middleware=[jobs])

LOOPBACK = ("127.0.0.1", 0)


def serve(listener: socket.socket, folder: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "uvicorn", "durable:app", "--log-level=warning"]
    command += [f"--app-dir={Path(__file__).parent.absolute()}", f"--fd={listener.fileno()}"]
    return subprocess.Popen(command, cwd=folder, pass_fds=[listener.fileno()])


def follow(client: httpx.Client, monitor: str, until: str) -> None:
    """Print what long polls of the monitor say, until they say this."""
    job = {"status": "queued", "message": None}
    while job["status"] in ("queued", "running") and until not in (job["message"] or ""):
        job = client.get(monitor, headers={"Prefer": "wait=10"}).json()
        print(f"  {job['status']} {job['progress'] or 0:.0%} {job['message'] or ''}".rstrip())


def main() -> None:
    # The socket is this process's: requests wait there while there is no server.
    with tempfile.TemporaryDirectory() as folder, socket.create_server(LOOPBACK) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = serve(listener, folder)
        try:
            with httpx.Client(base_url=url, timeout=60) as client:
                accepted = client.post("/reports")
                result, monitor = accepted.headers["location"], accepted.links["monitor"]["url"]
                print(f"POST /reports: {accepted.status_code}, see {result}")
                follow(client, monitor, until="page 2")
                print(f"kill -9 {server.pid}")
                server.kill()
                server.wait()
                server = serve(listener, folder)
                follow(client, monitor, until="for good")
                response = client.get(result)
                print(f"GET {result}: {response.status_code} {response.text}")
        finally:
            server.kill()  # as it may be at any time
            server.wait()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what it has started ends, too
    main()
