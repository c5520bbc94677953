"""Large bodies through SQLite and the files beside it: how fast, and in how much memory.

    python benchmarks/bodies.py [--rounds 5] [--size 5] [--folder DIRECTORY]

Needs `pip install raincheck[dev]`, and room on the disk for twice `--size` GB. The server is a real
uvicorn with one worker. In each round 50 MB are written to a file and synced to the disk
(fdatasync) by Python alone, streamed by a route that is not marked, and streamed by one that is:
captured, and served from its status URL, from the request to the last byte. Beside that the floor:
the least server that does the same, without a store and its promises. Then a response of
`--size` GB is captured and served, and an upload of as much is read by a handler in place and by
one that had to wait for its turn; the server's memory is its peak beyond what it had before.

The run fails (exit status 1) unless what is captured and served is at 0.7 or more of the write and
at 0.25 or more of direct, bodies come back as they were, and the memory stays under 64 MB.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import anyio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from raincheck import Limits, LongRunningMiddleware, long_running
from raincheck.stores.sqlite import SQLiteStore

MB, GB = 1_000_000, 1_000_000_000
CHUNK, PIECE = 64 * 1024, 256 * 1024
BLOCK = random.Random(20).randbytes(1024 * 1024)  # the servers know it too
MOST = 64 * MB
HUGE = 1 << 40


def chunks(size: int) -> Iterator[bytes]:
    """New bytes for each chunk, as a file's would be."""
    for start in range(0, size, CHUNK):
        at = start // CHUNK * 4099 % (len(BLOCK) - CHUNK)
        yield BLOCK[at : at + min(CHUNK, size - start)]


def streamed(request: Request) -> StreamingResponse:
    size = int(request.query_params["size"])

    async def body() -> AsyncIterator[bytes]:
        for chunk in chunks(size):
            yield chunk

    return StreamingResponse(body(), headers={"content-length": str(size)})


async def direct(request: Request) -> Response:
    return streamed(request)


@long_running(max_response_size=HUGE)
async def slow(request: Request) -> Response:
    return streamed(request)


@long_running(max_request_size=HUGE)
async def upload(request: Request) -> Response:
    size, crc = 0, 0
    async for chunk in request.stream():
        size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return JSONResponse({"size": size, "crc": crc})


@long_running
async def busy(request: Request) -> Response:
    """Hold the only place until the file that is named is gone."""
    while os.path.exists(request.query_params["while"]):  # noqa: ASYNC110, ASYNC240
        await asyncio.sleep(0.05)
    return Response()


app = Starlette(
    routes=[
        Route("/direct", direct),
        *[Route(f"/{f.__name__}", f, methods=["POST"]) for f in (slow, upload, busy)],
    ]
)
if folder := os.environ.get("RAINCHECK_BENCH_FOLDER"):
    store = SQLiteStore(f"{folder}/jobs.db")
    app.add_middleware(LongRunningMiddleware, store=store, limits=Limits(max_running=1))


class Floor:
    """The least that captures a response in a file and then serves it: no store, and no promises.

    One piece is written in a thread while the next comes together; what is in the system's memory
    is served from there, without a thread.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._captures: list[asyncio.Task[int]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["method"] == "GET":
            await self._serve(int(scope["path"][1:]), send)
            return
        number = len(self._captures)
        self._captures.append(asyncio.create_task(self._capture(scope, number)))
        headers = [(b"location", b"/%d" % number), (b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 202, "headers": headers})
        await send({"type": "http.response.body"})

    async def _capture(self, scope: Scope, number: int) -> int:
        """Keep what a handler sends; how much it is."""
        loop, size, pieces, writing = asyncio.get_running_loop(), 0, list[bytes](), None
        file = os.open(f"{self._folder}/floor{number}", os.O_WRONLY | os.O_CREAT)

        async def take(message: Message) -> None:
            nonlocal size, writing
            if chunk := message.get("body"):
                pieces.append(chunk)
            if sum(map(len, pieces)) >= PIECE or (pieces and not message.get("more_body")):
                piece = b"".join(pieces)
                pieces.clear()
                if writing is not None:
                    await writing
                writing = loop.run_in_executor(None, os.pwrite, file, piece, size)
                size += len(piece)

        await streamed(Request(scope))(scope, anyio.sleep_forever, take)
        assert writing is not None
        await writing
        os.close(file)
        return size

    async def _serve(self, number: int, send: Send) -> None:
        left, at, buffer = await self._captures[number], 0, bytearray(PIECE)
        headers = [(b"content-length", b"%d" % left)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        file = os.open(f"{self._folder}/floor{number}", os.O_RDONLY)
        while left:
            try:
                size = os.preadv(file, [buffer], at, os.RWF_NOWAIT)
            except BlockingIOError:
                size = await asyncio.to_thread(os.preadv, file, [buffer], at)
            left, at, piece = left - size, at + size, bytes(memoryview(buffer)[:size])
            await send({"type": "http.response.body", "body": piece, "more_body": left > 0})
        os.close(file)


floor = Floor(folder or "")


class Answer(NamedTuple):
    """What a server has answered: its body has this size, checksum and beginning."""

    status: int
    location: str
    size: int
    crc: int
    begun: bytes


class Server:
    """A uvicorn, and what is asked of it."""

    def __init__(self, folder: Path, name: str = "app") -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        command = [sys.executable, "-m", "uvicorn", f"bodies:{name}", f"--port={self.port}"]
        self._process = subprocess.Popen(
            [*command, "--log-level=warning"],
            cwd=Path(__file__).parent,
            env={**os.environ, "RAINCHECK_BENCH_FOLDER": str(folder)},
        )

    def ask(
        self, method: str, path: str, body: Any = None, *, check: bool = False, **headers: str
    ) -> Answer:
        """Ask for something, and read all of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        size, crc, begun = 0, 0, b""
        buffer = memoryview(bytearray(1024 * 1024))
        while count := response.readinto(buffer):
            size, crc = size + count, zlib.crc32(buffer[:count], crc) if check else 0
            begun = begun or bytes(buffer[: min(count, CHUNK)])
        connection.close()
        return Answer(response.status, response.getheader("location", ""), size, crc, begun)

    def follow(self, accepted: Answer, *, check: bool = False) -> Answer:
        """What a job becomes."""
        assert accepted.status == 202, accepted
        while True:
            answer = self.ask("GET", accepted.location, prefer="wait=30", check=check)
            if answer.status != 202:
                assert answer.status == 200, answer
                return answer

    def captured(self, size: int, *, check: bool = False) -> Answer:
        """A response that was captured, and is served."""
        return self.follow(self.ask("POST", f"/slow?size={size}"), check=check)

    def answering(self) -> None:
        for _ in range(300):
            try:
                self.captured(1)
                return
            except OSError:
                time.sleep(0.1)
        raise RuntimeError("the server does not answer")

    def memory(self, which: str) -> int:
        """Resident memory now (VmRSS) or at most (VmHWM), in bytes."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith(which))
        return int(line.split()[1]) * 1024

    @contextmanager
    def growth(self, title: str, faults: list[str]) -> Iterator[None]:
        """The block in which its memory may not grow by `MOST`."""
        Path(f"/proc/{self._process.pid}/clear_refs").write_text("5")  # the peak is the present
        before, start = self.memory("VmRSS"), time.monotonic()
        yield
        grown = self.memory("VmHWM") - before
        print(f"{title}: {grown / MB:.1f} MB of memory, {time.monotonic() - start:.1f} s")
        if grown >= MOST:
            faults.append(f"{title}: {grown / MB:.1f} MB of memory")

    def end(self) -> None:
        self._process.terminate()
        self._process.wait()


def written(file: Path, size: int) -> float:
    """Seconds that Python alone takes to write as much and sync it to the disk.

    The file stays, as the server's do: what is deleted would leave its memory to the next one.
    """
    pieces = [BLOCK[:PIECE]] * (size // PIECE)
    start = time.monotonic()
    with open(file, "wb", buffering=0) as plain:
        for piece in pieces:
            plain.write(piece)
        os.fdatasync(plain.fileno())
    return time.monotonic() - start


def timed(ask: Callable[[], Answer], size: int) -> float:
    """Seconds until all that is asked for has come."""
    start = time.monotonic()
    answer = ask()
    seconds = time.monotonic() - start
    assert answer.size == size, answer
    return seconds


def speeds(server: Server, least: Server, folder: Path, rounds: int, faults: list[str]) -> None:
    size = 50 * MB
    whole = server.ask("GET", f"/direct?size={size}", check=True)
    for one in (server, least):
        found = one.captured(size, check=True)
        if (found.size, found.crc) != (size, whole.crc):
            faults.append("what was served is not what was captured")
    taken: dict[str, list[float]] = {name: [] for name in ("write", "direct", "floor", "both")}
    for number in range(rounds):
        taken["write"].append(written(folder / f"plain{number}", size))
        taken["direct"].append(timed(lambda: server.ask("GET", f"/direct?size={size}"), size))
        for name, one in (("floor", least), ("both", server)):
            taken[name].append(timed(partial(one.captured, size), size))
    for title, name, bound in (
        ("a plain write and fdatasync", "write", 0.7),
        ("direct", "direct", 0.25),
        ("the floor", "floor", 0.0),
    ):
        ratios, of_floor = (
            [one / other for one, other in zip(taken[name], taken[what], strict=True)]
            for what in ("both", "floor")
        )
        median = statistics.median(ratios)
        print(
            f"50 MB captured and served, over {title}: {median:.2f} "
            f"[{min(ratios):.2f}..{max(ratios):.2f}], at least {bound};"
            f" the floor has {statistics.median(of_floor):.2f}"
        )
        if median < bound:
            faults.append(f"{median:.2f} of {title}")
    rates = {name: size / MB / statistics.median(seconds) for name, seconds in taken.items()}
    print(
        "MB/s: {write:.0f} written and synced, {direct:.0f} direct, {floor:.0f} the floor,"
        " {both:.0f} both".format(**rates)
    )


def sizes(server: Server, folder: Path, size: int, faults: list[str]) -> None:
    whole = 0
    for chunk in chunks(size):
        whole = zlib.crc32(chunk, whole)
    with server.growth(f"a response of {size / GB:g} GB", faults):
        found = server.captured(size)
    if found.size != size:
        faults.append(f"of {size} bytes of a response {found.size} came")
    length, said = str(size), f'{{"size":{size},"crc":{whole}}}'.encode()
    with server.growth(f"an upload of {size / GB:g} GB, in place", faults):
        accepted = server.ask("POST", "/upload", chunks(size), **{"content-length": length})
        found = server.follow(accepted)
    if found.begun != said:
        faults.append(f"an upload was read as {found.begun!r}, and not {said!r}")
    (folder / "busy").touch()
    server.ask("POST", f"/busy?while={folder / 'busy'}")
    with server.growth(f"an upload of {size / GB:g} GB that waits for its turn", faults):
        accepted = server.ask("POST", "/upload", chunks(size), **{"content-length": length})
        (folder / "busy").unlink()
        found = server.follow(accepted)
    if found.begun != said:
        faults.append(f"an upload was read as {found.begun!r}, and not {said!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=float, default=5, help="GB of the largest bodies")
    parser.add_argument("--folder", help="where the store is; default: the system's for such files")
    arguments = parser.parse_args()
    faults: list[str] = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        server, least = Server(folder), Server(folder, "floor")
        try:
            server.answering()
            least.answering()
            speeds(server, least, folder, arguments.rounds, faults)
            if arguments.size:
                sizes(server, folder, int(arguments.size * GB), faults)
        finally:
            server.end()
            least.end()
    for fault in faults:
        print(f"FAILED: {fault}")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
