"""The matrix: every framework's app under every server's process, on the loopback interface.

`pytest` runs the cells of `DEFAULT` but those of `SLOW`; `pytest tests/matrix --matrix` runs all.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

START = 30.0
"""Seconds that a server may take to start."""

FRAMEWORKS = ("starlette", "fastapi", "litestar", "quart", "django", "falcon", "bare")

SERVERS: dict[str, tuple[str, ...]] = {
    "uvicorn-h11": ("uvicorn", "--http=h11", "--port={port}"),
    "uvicorn-httptools": ("uvicorn", "--http=httptools", "--port={port}"),
    "hypercorn-asyncio": ("hypercorn", "--worker-class=asyncio", "--bind=127.0.0.1:{port}"),
    "hypercorn-trio": ("hypercorn", "--worker-class=trio", "--bind=127.0.0.1:{port}"),
    "granian": ("granian", "--interface=asgi", "--host=127.0.0.1", "--port={port}"),
    "daphne": ("daphne", "--bind=127.0.0.1", "--port={port}"),
}
"""The module that is run with `python -m`, and its arguments before the app."""

MODULES = {"bare": "", "rest": "rest_framework", "tail": "starlette"}
"""The module of a framework that is not called like its app here."""

ASYNCIO_ONLY = ("quart", "django")
"""Frameworks that call asyncio itself, so that they cannot run on trio."""


@dataclass(frozen=True)
class Cell:
    """One framework on one server."""

    framework: str
    server: str

    def __str__(self) -> str:
        return f"{self.framework}-{self.server}"


CELLS = [
    Cell(framework, server)
    for framework in FRAMEWORKS
    for server in SERVERS
    if not (framework in ASYNCIO_ONLY and server == "hypercorn-trio")
]
IMPOSSIBLE = [Cell(framework, "hypercorn-trio") for framework in ASYNCIO_ONLY]
TYPED = [Cell("ninja", "uvicorn-h11"), Cell("blacksheep", "uvicorn-h11")]
"""Frameworks beside the matrix that find the types of annotations in ways of their own."""
PLAIN = [Cell("rest", "uvicorn-h11")]
"""One that awaits no view."""
READ = ("litestar", "quart", "django", "falcon")
"""Frameworks whose routes are read, each by its own public way."""
THREADED = [
    Cell(framework, "uvicorn-h11")
    for framework in (
        "quart_threads",
        "litestar_threads",
        "falcon_threads",
        "django_threads",
        "a2wsgi",
        "asgiref",
    )
]
"""Frameworks with threads of their own."""
BRIDGED = [cell for cell in THREADED if cell.framework in ("django_threads", "a2wsgi", "asgiref")]
"""Those with an `async def` view for which one of their threads waits."""
TAILS = [Cell("tail", server) for server in SERVERS]
"""One whose responses are followed."""
NAMES: dict[str, Sequence[object]] = {
    "cell": CELLS,
    "impossible": IMPOSSIBLE,
    "typed": TYPED,
    "plain": PLAIN,
    "read": READ,
    "by_views": ["quart"],
    "threaded": THREADED,
    "bridged": BRIDGED,
    "tail": TAILS,
}
"""The parameters of tests, and what they are run for."""
DEFAULT = ("starlette-uvicorn", "fastapi-uvicorn", "tail-uvicorn")
SLOW = ("starlette-uvicorn-h11", "fastapi-uvicorn-httptools", "tail-uvicorn-h11")
"""Those of the default that tell little more than the others."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--matrix", action="store_true", help="run every framework on every server")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "matrix: one framework on one server, in its own process")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for name, cells in NAMES.items():
        if name in metafunc.fixturenames:
            marked = [
                pytest.param(cell, marks=pytest.mark.slow) if str(cell) in SLOW else cell
                for cell in cells
            ]
            metafunc.parametrize(name, marked, ids=str)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--matrix"):
        return
    chosen: list[pytest.Item] = []
    rest: list[pytest.Item] = []
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        cell = next((parameters[name] for name in NAMES if name in parameters), None)
        (rest if cell is not None and not str(cell).startswith(DEFAULT) else chosen).append(item)
    config.hook.pytest_deselected(items=rest)
    items[:] = chosen


def require(*modules: str) -> None:
    """Fail for what is not installed: a cell that was asked for is never left out in silence."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.fail(f'{module} is not installed; install it with: pip install -e ".[matrix]"')


class Server:
    """A server process with the app of one framework, and a client of it."""

    def __init__(self, cell: Cell, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = folder / "app.log"
        self.output = folder / "server.log"
        module, *arguments = (part.format(port=self.port) for part in SERVERS[cell.server])
        app = f"tests.matrix.apps.{cell.framework}_app:app"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments, app],
                env={**os.environ, "RAINCHECK_TEST_LOG": str(self.log)},
                cwd=Path(__file__).parents[2],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a group, with the workers that it starts
            )
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30)

    def wait(self) -> None:
        """Wait until it answers."""
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
        deadline = time.monotonic() + 30
        while response.status_code == 202:
            assert time.monotonic() < deadline
            headers = {"prefer": "wait=10"}
            response = self.client.get(response.headers["location"], headers=headers)
        return response

    def notes(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def noted(self, line: str) -> bool:
        """Whether the app notes a line within a few seconds."""
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            if line in self.notes():
                return True
            time.sleep(0.02)
        return False

    def stop(self) -> float:
        """Send SIGTERM; the seconds until the process has ended."""
        start = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        return time.monotonic() - start

    def close(self) -> None:
        self.client.close()
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Cell], Server]]:
    servers: list[Server] = []

    def start(cell: Cell) -> Server:
        module = MODULES.get(cell.framework, cell.framework.removesuffix("_threads"))
        require(*([module] if module else []), SERVERS[cell.server][0])
        servers.append(Server(cell, tmp_path))
        servers[-1].wait()
        return servers[-1]

    yield start
    for server in servers:
        server.close()
        print(server.output.read_text())  # pytest shows it if the test has failed


def check_installed(config: pytest.Config, module: str) -> None:
    """The whole matrix fails without it; the default run says what it leaves out."""
    if config.getoption("--matrix", default=False):
        require(module)
    elif importlib.util.find_spec(module.partition(".")[0]) is None:
        pytest.skip(f'{module} is not installed; install it with: pip install -e ".[matrix]"')
