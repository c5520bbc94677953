"""A stream that survives its connection: follow a job's response live, and go on where it was cut.

`uvicorn examples.resumable_stream:app` serves it. Then

    curl -X POST localhost:8000/answers                 # note the link called "stream"
    curl -N localhost:8000/jobs/ID/stream -o answer     # and Ctrl+C, whenever you like
    curl -N localhost:8000/jobs/ID/stream -o answer -C -

The handler runs once, whoever reads. `python examples/resumable_stream.py` does so, and prints

    POST /answers: 202, see /jobs/kG3f…/stream
    curl, and cut after a second: 9 of 40 tokens
    curl -C -: 40 of 40 tokens, each once
"""

import asyncio
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from raincheck import LongRunningMiddleware, long_running

TOKENS = [f"data: token {number}\n\n" for number in range(40)]


@long_running
async def answer(request: Request) -> StreamingResponse:
    async def think() -> AsyncIterator[str]:
        for token in TOKENS:
            await asyncio.sleep(0.1)
            yield token

    # Another media type would take `@long_running(live=True)`.
    return StreamingResponse(think(), media_type="text/event-stream")


routes = [Route("/answers", answer, methods=["POST"])]
app = Starlette(routes=routes, middleware=[Middleware(LongRunningMiddleware)])


def curl(url: str, file: Path, *options: str) -> int:
    """Let curl write what it gets into a file; how many tokens that has afterwards."""
    subprocess.run(["curl", "--silent", "--no-buffer", "-o", file, *options, url], check=False)
    return file.read_text().count("\n\n")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as port:
        command = [sys.executable, "-m", "uvicorn", "resumable_stream:app", "--log-level=warning"]
        command += [f"--app-dir={Path(__file__).parent.absolute()}", f"--fd={port.fileno()}"]
        with subprocess.Popen(command, pass_fds=[port.fileno()]) as server:
            try:
                exchange(f"http://127.0.0.1:{port.getsockname()[1]}", Path(folder) / "answer")
            finally:
                server.terminate()


def exchange(base: str, file: Path) -> None:
    accepted = httpx.post(f"{base}/answers", timeout=60)
    stream = accepted.json()["links"]["stream"]
    print(f"POST /answers: {accepted.status_code}, see {stream}")
    count = curl(base + stream, file, "--max-time", "1")
    print(f"curl, and cut after a second: {count} of {len(TOKENS)} tokens")
    count = curl(base + stream, file, "-C", "-")
    once = "each once" if file.read_text() == "".join(TOKENS) else "not as they were"
    print(f"curl -C -: {count} of {len(TOKENS)} tokens, {once}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what it has started ends, too
    main()
