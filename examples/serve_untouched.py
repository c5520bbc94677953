"""An app that knows nothing of raincheck, and one command that makes its slow routes answer 202.

`raincheck serve examples.serve_untouched:app --config examples/serve_untouched.toml` serves it;
`raincheck request localhost:8000/videos -d frame` is a client. `python examples/serve_untouched.py`
does both on a free port, and prints

    $ raincheck serve ... --check
    POST /videos
        POST /videos
    /reports/{id:int}
        GET /reports/{id:int}
    answered as before
        GET /health
    $ raincheck request http://.../videos -d frame
    running
    succeeded
    {"bytes":5}
    exit code 0
"""

import asyncio
import shlex
import signal
import socket
import subprocess
import sys
import time

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


async def health(request: Request) -> JSONResponse:
    return JSONResponse({"ok": True})


async def transcode(request: Request) -> JSONResponse:
    video = await request.body()
    await asyncio.sleep(2)
    return JSONResponse({"bytes": len(video)}, 201)


async def render_report(request: Request) -> JSONResponse:
    await asyncio.sleep(2)
    return JSONResponse({"report": request.path_params["id"]})


videos = Route("/videos", transcode, methods=["POST"])
reports = Route("/reports/{id:int}", render_report)
app = Starlette(routes=[Route("/health", health), videos, reports])

SERVE = "serve examples.serve_untouched:app --config examples/serve_untouched.toml"
RAINCHECK = [sys.executable, "-m", "raincheck"]  # where no `raincheck` is on the PATH


def run(command: str) -> int:
    print(f"$ raincheck {command}", flush=True)
    return subprocess.run([*RAINCHECK, *shlex.split(command)], stderr=subprocess.STDOUT).returncode


def main(port: int) -> None:
    run(f"{SERVE} --check")
    command = [*RAINCHECK, *SERVE.split(), "--port", str(port), "--", "--log-level", "warning"]
    with subprocess.Popen(command) as server:
        try:
            while server.poll() is None and not listens(port):
                time.sleep(0.1)
            code = run(f"request http://127.0.0.1:{port}/videos -d frame")
            print(f"\nexit code {code}")
        finally:
            server.terminate()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what it has started ends, too
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    main(port)
