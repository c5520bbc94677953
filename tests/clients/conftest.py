"""Real clients, unmodified, against a real server that speaks their dialect.

`pytest` runs one client of each dialect, from the environment that runs the tests;
`pytest tests/clients --clients` installs all of them in the versions that are named here, in
environments of their own that pytest's cache keeps, and runs them. It needs npm and the network.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clients.clients import CLIENTS, SCENARIOS, Client, Trial
from tests.clients.environments import Environments

ROOT = Path(__file__).parents[2]
DRIVERS = Path(__file__).parent / "drivers"
START = 30.0
"""Seconds that a server may take to start."""

LIMIT = 120.0
"""Seconds that a client may take for all its scenarios."""

AT_ONCE = 4
"""How many clients run at a time."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--clients", action="store_true", help="install and run every real client")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "trial" in metafunc.fixturenames:
        trials = [Trial(client, scenario) for client in CLIENTS for scenario in SCENARIOS]
        metafunc.parametrize("trial", trials, ids=str)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--clients"):
        rest = [item for item in items if (trial := trial_of(item)) and not trial.client.module]
        config.hook.pytest_deselected(items=rest)
        items[:] = [item for item in items if item not in rest]


def trial_of(item: pytest.Item) -> Trial | None:
    found = item.callspec.params.get("trial") if hasattr(item, "callspec") else None
    return found if isinstance(found, Trial) else None


class Server:
    """The app of a dialect, in a process of uvicorn."""

    def __init__(self, dialect: str, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / f"{dialect}.log"
        self.output = folder / f"{dialect}.out"
        app = f"tests.clients.apps.{dialect}_app:app"
        told = {"RAINCHECK_TEST_LOG": str(self.log), "RAINCHECK_TEST_URL": self.url}
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "uvicorn", f"--port={port}", app],
                env={**os.environ, **told},
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def wait(self) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + START
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.output.read_text()
            try:
                httpx.get(self.url)
                return
            except httpx.TransportError:
                time.sleep(0.05)
        raise AssertionError(self.output.read_text())

    def notes(self, name: str) -> list[str]:
        """What the handler has noted of the job of this name."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [what for job, _, what in (line.partition(" ") for line in lines) if job == name]

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(60)


class Bench:
    """Runs clients, each once with all its scenarios, several at a time.

    Args:
        trials: what will be asked for.
        environments: where clients are installed; None: they are in this environment.
        folder: for files.
    """

    def __init__(
        self, trials: Sequence[Trial], environments: Environments | None, folder: Path
    ) -> None:
        self._environments = environments
        self._folder = folder
        self._installing = threading.Lock()
        self._starting = threading.Lock()
        self._servers: dict[str, Server] = {}
        self._pool = ThreadPoolExecutor(AT_ONCE)
        self._outcomes: dict[Client, Future[dict[str, Any]]] = {}
        for client in dict.fromkeys(trial.client for trial in trials):
            names = [trial.name for trial in trials if trial.client == client]
            self._outcomes[client] = self._pool.submit(self._run, client, names)

    def outcome(self, trial: Trial) -> dict[str, Any]:
        """What came of it: its `value`, or its `error` and `message`."""
        run = self._outcomes[trial.client]
        if error := run.exception():
            pytest.fail(f"{trial.client}: {error}", pytrace=False)
        found: dict[str, Any] = run.result()[trial.name]
        return found

    def server(self, dialect: str) -> Server:
        with self._starting:
            if dialect not in self._servers:
                self._servers[dialect] = Server(dialect, self._folder)
                self._servers[dialect].wait()
        return self._servers[dialect]

    def _run(self, client: Client, names: Sequence[str]) -> dict[str, Any]:
        command = self._command(client)
        outcomes = self._folder / f"{client}.json"
        done = subprocess.run(
            [*command, self.server(client.dialect).url, outcomes, *names],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
        assert done.returncode == 0, f"{done.stdout}{done.stderr}"
        found: dict[str, Any] = json.loads(outcomes.read_text())
        return found

    def _command(self, client: Client) -> list[str | Path]:
        with self._installing:
            if not client.requirements:
                return ["node", self._with_node_modules() / f"{client}.mjs"]
            python = Path(sys.executable)
            if self._environments is not None:
                python = self._environments.python(client.requirements)
        return [python, "-m", f"tests.clients.drivers.{client}"]

    def _with_node_modules(self) -> Path:
        """The drivers in JavaScript, where they find what they import."""
        assert self._environments is not None
        folder = self._folder / "node"
        if not folder.exists():
            modules = self._environments.node_modules()
            folder.mkdir()
            (folder / "node_modules").symlink_to(modules)
            for driver in DRIVERS.glob("*.mjs"):
                shutil.copy(driver, folder)
        return folder

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        for server in self._servers.values():
            server.close()


@pytest.fixture(scope="session")
def bench(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bench]:
    trials = [trial for item in request.session.items if (trial := trial_of(item))]
    environments = None
    if request.config.getoption("--clients"):
        environments = Environments(request.config.cache.mkdir("clients"))
    else:
        check_installed(trial.client for trial in trials)
    bench = Bench(trials, environments, tmp_path_factory.mktemp("clients"))
    yield bench
    bench.close()


def check_installed(clients: Iterable[Client]) -> None:
    for module in {client.module for client in clients} - {None}:
        if importlib.util.find_spec(str(module)) is None:
            pytest.fail(f'{module} is not installed; install it with: pip install -e ".[dev]"')
