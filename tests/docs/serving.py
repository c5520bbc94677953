"""Servers, as the commands of a page start them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.docs.blocks import ROOT
from tests.servers import free_port

START = 30.0
"""Seconds that a server may take to start."""


class Server:
    """A process, and where it listens.

    Args:
        command: how it is started.
        folder: where.
        port: where it will listen.

    Attributes:
        environ: its environment.
    """

    def __init__(self, command: Sequence[str], folder: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._log = folder / f"{port}.log"
        path = os.pathsep.join([str(folder), str(ROOT / "src"), str(ROOT)])
        self.environ = {**os.environ, "PYTHONPATH": path}
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env=self.environ, stdout=log, stderr=subprocess.STDOUT
            )

    @property
    def log(self) -> str:
        """What it has said."""
        return self._log.read_text()

    def wait(self) -> None:
        """Wait until it answers, whatever that is."""
        deadline = time.monotonic() + START
        while True:
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            try:
                httpx.get(self.url)
                return
            except httpx.TransportError:
                time.sleep(0.05)

    def stop(self) -> int:
        """Ask it to stop, as a supervisor does, and wait until it has."""
        self.process.terminate()
        return self.process.wait(60)


@contextmanager
def running(command: Sequence[str], folder: Path, port: int) -> Iterator[Server]:
    """A server that has started, and is stopped at the end."""
    server = Server(command, folder, port)
    try:
        server.wait()
        yield server
    finally:
        if server.process.poll() is None:
            server.stop()


@contextmanager
def serving(command: str, folder: Path) -> Iterator[Server]:
    """A server of an app, by the command of a page, on a port of its own."""
    port = free_port()
    program, *arguments = shlex.split(command)
    where = {"gunicorn": ["--bind", f"127.0.0.1:{port}"]}.get(program, ["--port", str(port)])
    with running([sys.executable, "-m", program, *arguments, *where], folder, port) as server:
        yield server
