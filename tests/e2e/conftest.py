"""Real servers: a process each, on a free port of the loopback interface."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser

from tests.e2e.browser import chromium

ROOT = Path(__file__).parents[2]

START = 60.0
"""Seconds that a server may take to start."""


class Server:
    """A server process, and a client of it.

    Args:
        folder: for its logs.
        arguments: of uvicorn's.
        app: what it serves.
        home: its working directory.
        environment: variables, besides this process's own.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        app: str = "tests.e2e.app:app",
        home: str = str(ROOT),
        **environment: str,
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = folder / "app.log"
        self.output = folder / "server.log"
        self._noted = self._said = 0
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "uvicorn",
                    app,
                    f"--app-dir={ROOT}",
                    f"--port={self.port}",
                    *arguments,
                ],
                env={**os.environ, "RAINCHECK_TEST_LOG": str(self.log), **environment},
                cwd=home,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30)
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        deadline = time.monotonic() + START
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.output.read_text()
            try:
                self.client.get("/plain")
                return
            except httpx.TransportError:
                time.sleep(0.05)
        raise AssertionError(self.output.read_text())

    def follow(self, response: httpx.Response) -> httpx.Response:
        while response.status_code == 202:
            headers = {"prefer": "wait=10"}
            response = self.client.get(response.headers["location"], headers=headers)
        return response

    def begin(self) -> Server:
        """Let another test begin, which hears of nothing that was before."""
        self._noted, self._said = 0, 0
        self._noted, self._said = len(self.notes()), len(self.said())
        return self

    def notes(self) -> list[str]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return lines[self._noted :]

    def said(self) -> str:
        """What it has written to its terminal."""
        return self.output.read_text()[self._said :]

    def stop(self) -> float:
        """Send SIGTERM; the seconds until the process has ended."""
        start = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        return time.monotonic() - start

    def close(self) -> None:
        self.client.close()
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)  # and its workers
        self.process.wait()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(*arguments: str, **settings: str) -> Server:
        servers.append(Server(tmp_path, *arguments, **settings))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(scope="session")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Servers, by their arguments, for all tests that leave them as they were."""
    servers: dict[object, Server] = {}

    def find(*arguments: str, **settings: str) -> Server:
        which = arguments, tuple(settings.items())
        if which not in servers:
            servers[which] = Server(tmp_path_factory.mktemp("server"), *arguments, **settings)
        return servers[which].begin()

    yield find
    for server in servers.values():
        server.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser
