"""Server processes over a durable store that are killed and started again, and their clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.servers import free_port

ROOT = Path(__file__).parents[2]

PATIENCE = 60.0
"""Seconds until a server that was started has to answer, or one that was told to stop has ended."""


@dataclass(frozen=True)
class Note:
    """What a handler has noted.

    Attributes:
        at: seconds since the epoch.
        by: the process.
        what: `"begun"`, `"ended"` or `"stopped"`.
        nonce: the order's.
        run: the name of this run.
    """

    at: float
    by: int
    what: str
    nonce: str
    run: str


class Deployment:
    """A real uvicorn with one worker or more, always on one port.

    Args:
        folder: for its logs.
        store: see `durable_app.opened`.
        workers: how many processes serve.
        settings: the environment variables that `durable_app` reads, besides.
    """

    def __init__(self, folder: Path, store: str, *, workers: int = 1, **settings: str) -> None:
        self.port = free_port()
        self.output = folder / f"server-{self.port}.log"
        self._workers = workers
        self._notes = folder / "notes"
        self._settings = {
            "RAINCHECK_TEST_STORE": store,
            "RAINCHECK_TEST_LOG": str(self._notes),
            **settings,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._log_from = 0
        self._struck: set[int] = set()

    def start(self) -> None:
        """Start it; it answers some time later."""
        command = [sys.executable, "-m", "uvicorn", "tests.e2e.durable_app:app"]
        command += [f"--port={self.port}", f"--workers={self._workers}", "--lifespan=on"]
        command += ["--no-access-log", "--timeout-keep-alive=60"]
        command += ["--timeout-graceful-shutdown=5"]
        with self.output.open("ab") as output:
            self._log_from = output.tell()
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **self._settings},
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    async def answering(self) -> None:
        """Return when all its processes serve."""
        async with asyncio.timeout(PATIENCE):
            await until(self._started)
            while True:  # they listen a moment later
                with contextlib.suppress(Broken):
                    async with Line(self.port) as line:
                        await line.ask("GET", "/plain")
                        return
                await asyncio.sleep(0.02)

    def _started(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(self.log())
        return self._since_start().count("Application startup complete") >= self._workers

    def pids(self) -> list[int]:
        """Its processes that serve."""
        started = re.findall(r"Started server process \[(\d+)\]", self._since_start())
        return [pid for pid in map(int, started) if pid not in self._struck and _lives(pid)]

    def strike(self, number: int, pid: int) -> None:
        """Send a signal to one of its processes that serve."""
        if number in (signal.SIGKILL, signal.SIGTERM):
            self._struck.add(pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def kill(self) -> None:
        """End all its processes at once (SIGKILL)."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
            self._until_free()

    def stop(self) -> bool:
        """Tell it to stop (SIGTERM); returns whether it did so in time."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            return False
        finally:
            self.kill()
        return True

    def _until_free(self) -> None:
        """Return when the last of its workers, whom nobody waits for, has let go of the port."""
        deadline = time.monotonic() + PATIENCE
        while True:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", self.port))
                    return
                except OSError:
                    if time.monotonic() > deadline:
                        raise
            time.sleep(0.01)

    def notes(self) -> list[Note]:
        """What handlers have noted so far."""
        if not self._notes.exists():
            return []
        return [Note(**json.loads(line)) for line in self._notes.read_text().splitlines()]

    def _since_start(self) -> str:
        with self.output.open("rb") as log:
            log.seek(self._log_from)
            return log.read().decode(errors="replace")

    def log(self) -> str:
        return self.output.read_text(errors="replace")


async def until(true: Callable[[], bool]) -> None:
    """Return when something is true, seen from time to time."""
    while True:
        if true():
            return
        await asyncio.sleep(0.01)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# --- clients -----------------------------------------------------------------------------------


class Broken(Exception):
    """The connection broke, or there was no answer: nobody knows what was done."""


class Unreachable(Broken):
    """There was no connection: nothing was done."""


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    def document(self) -> Any:
        """The body, which is JSON."""
        return json.loads(self.body)

    @property
    def by(self) -> int:
        """The process that answered."""
        return int(self.headers["served-by"])


class Line:
    """One connection, which is opened when it is used, and again when it broke."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def __aenter__(self) -> Line:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        prefer: str | None = None,
        key: str | None = None,
        patience: float = PATIENCE,
    ) -> Answer:
        """One request and its answer.

        Args:
            method: the method.
            path: the target.
            body: the content.
            prefer: the Prefer field, if there is one.
            key: the Idempotency-Key, if there is one.
            patience: seconds that the answer may take.

        Raises:
            Unreachable: it could not be asked.
            Broken: there is no answer.
        """
        lines = [f"{method} {path} HTTP/1.1", "host: test", f"content-length: {len(body)}"]
        lines += [f"prefer: {prefer}"] if prefer else []
        lines += [f"idempotency-key: {key}"] if key else []
        answered = False
        try:
            async with asyncio.timeout(patience):
                if self._writer is None:
                    await self._open()
                assert self._writer is not None
                self._writer.write("\r\n".join([*lines, "", ""]).encode() + body)
                answer = await self._read()
            answered = True
        except (OSError, EOFError, asyncio.LimitOverrunError) as error:  # a timeout is an OSError
            raise Broken(repr(error)) from error
        finally:
            if not answered:
                self.close()
        if answer.headers.get("connection") == "close":
            self.close()
        return answer

    async def _open(self) -> None:
        try:
            opened = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError as error:
            raise Unreachable(repr(error)) from error
        self._reader, self._writer = opened

    async def _read(self) -> Answer:
        assert self._reader is not None
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip().split("\r\n")
        fields = (line.partition(":") for line in lines)
        headers = {name.lower(): value.strip() for name, _, value in fields}
        body = b""
        if headers.get("transfer-encoding") == "chunked":
            while size := int(await self._reader.readuntil(b"\r\n"), 16):
                body += (await self._reader.readexactly(size + 2))[:-2]
            await self._reader.readexactly(2)
        elif length := int(headers.get("content-length", "0")):
            body = await self._reader.readexactly(length)
        return Answer(int(first.split()[1]), headers, body)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
        self._reader = self._writer = None
