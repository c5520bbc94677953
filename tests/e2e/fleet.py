"""A fleet: web servers and an engine's workers, each a process, over one store and one broker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from uuid import uuid4

import httpx

from tests.servers import Nats, RabbitMQ, free_port
from tests.stores.valkey import Valkey

T = TypeVar("T")

ROOT = Path(__file__).parents[2]

PATIENCE = 60.0
"""Seconds that anything may take on a loaded machine."""

APP = "tests.e2e.distributed_app"


class Member:
    """A process of the fleet, with what it starts."""

    def __init__(self, log: Path, *command: str, **environment: str) -> None:
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def tell(self, number: signal.Signals) -> None:
        """Send a signal to all of it."""
        os.killpg(self.process.pid, number)

    def stop(self) -> float:
        """Send SIGTERM to the first process, as a supervisor does; the seconds until all end."""
        start = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE)
        return time.monotonic() - start

    def kill(self) -> None:
        """End all of it at once (SIGKILL)."""
        with suppress(ProcessLookupError):
            self.tell(signal.SIGKILL)
        self.process.wait()

    def _wait(self, ready: Callable[[], bool]) -> None:
        def over() -> bool:
            assert self.process.poll() is None, self.said()
            return ready()

        until(over)


class Web(Member):
    """A web server, and a client of it."""

    def __init__(self, log: Path, **environment: str) -> None:
        port = free_port()
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE)
        command = ("-m", "uvicorn", f"{APP}:app", "--port", str(port), "--no-access-log")
        super().__init__(log, *command, **environment)

    def wait(self) -> None:
        def answers() -> bool:
            with suppress(httpx.TransportError):
                return self.client.get("/plain").status_code == 200
            return False

        self._wait(answers)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.client.post(path, **options)

    def accepted(self, path: str, **options: Any) -> str:
        """Start a job; its status URL."""
        response = self.post(path, **options)
        assert response.status_code == 202, response.text
        return str(response.headers["location"])

    def state(self, url: str) -> str:
        return str(self.client.get(url + "/status").json()["status"])

    def follow(self, url: str) -> httpx.Response:
        """The response of a job, as soon as it is there."""
        last = time.monotonic() + PATIENCE
        while True:
            response = self.client.get(url, headers={"prefer": "wait=10"})
            if response.status_code != 202 or time.monotonic() > last:
                return response

    def kill(self) -> None:
        self.client.close()
        super().kill()


class Worker(Member):
    """`taskiq worker`, with one process that works unless told otherwise."""

    ready: ClassVar[str] = "Listening started."
    """What it says when it takes jobs."""

    begins: ClassVar[str] = "Executing task"
    """What it says when it begins one."""

    def __init__(self, log: Path, queue: str, *options: str, **environment: str) -> None:
        super().__init__(log, "-m", *self.command(queue), *(options or self.usual), **environment)

    usual: ClassVar[tuple[str, ...]] = ("--workers", "1")
    """Options of one that is told none."""

    def command(self, queue: str) -> tuple[str, ...]:
        """What starts it; for the queue `"broker"`, the one of most jobs, or `"videos"`."""
        return ("taskiq", "worker", f"{APP}:{queue}")

    def wait(self) -> None:
        self._wait(lambda: self.ready in self.said())


class CeleryWorker(Worker):
    """`celery worker`, with a pool of threads unless told otherwise."""

    ready = "ready."
    begins = "received"
    usual = ("--pool=threads", "--concurrency=100")

    def command(self, queue: str) -> tuple[str, ...]:
        queue, name = "shop" if queue == "broker" else queue, f"{uuid4().hex}@%h"
        app = ("celery", "-A", f"{APP}:broker")
        return (*app, "worker", "-Q", queue, "-n", name, "--loglevel=INFO")


WORKERS = {"taskiq": Worker, "celery": CeleryWorker}


class Fleet:
    """A store, a broker if there is to be one, and the processes that share them.

    Args:
        folder: for logs and for what the servers keep.
        broker: `"redis"`, `"nats"` or `"rabbitmq"`; empty for jobs that run where they come in.
        engine: `"taskiq"` or `"celery"`, whose workers run them otherwise.
        environment: the app's.
    """

    def __init__(
        self, folder: Path, broker: str = "", engine: str = "taskiq", **environment: str
    ) -> None:
        self._folder = folder
        self._worker = WORKERS[engine]
        self._log = folder / "notes"
        self.members: list[Member] = []
        for name in ("store", "broker"):
            (folder / name).mkdir()
        self.store = Valkey(folder / "store")
        self.broker: Valkey | Nats | RabbitMQ | None = None
        if broker == "redis":
            self.broker = Valkey(folder / "broker")
        elif broker == "nats":
            self.broker = Nats(folder / "broker")
        elif broker == "rabbitmq":
            self.broker = RabbitMQ(folder / "broker")
        self._environment = {
            "RAINCHECK_TEST_STORE": self.store.url,
            "RAINCHECK_TEST_BROKER": self.broker.url if self.broker else "",
            "RAINCHECK_TEST_ENGINE": engine,
            "RAINCHECK_TEST_LOG": str(self._log),
            **environment,
        }

    def start(self, *members: Member) -> None:
        """Start the servers."""
        self.store.start()
        if self.broker is not None:
            self.broker.start()

    def web(self, **environment: str) -> Web:
        """One more web server; it may not answer yet."""
        web = Web(self._file("web"), **{**self._environment, **environment})
        self.members.append(web)
        return web

    def worker(self, queue: str = "broker", *options: str, **environment: str) -> Worker:
        """One more worker; it may not listen yet."""
        environment = {**self._environment, **environment}
        worker = self._worker(self._file("worker"), queue, *options, **environment)
        self.members.append(worker)
        return worker

    def notes(self, word: str = "") -> list[list[str]]:
        """What handlers have noted, each line in words, of which this is the first."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return [line.split() for line in lines if line.startswith(word)]

    def close(self) -> None:
        for member in self.members:
            member.kill()
        if self.broker is not None:
            self.broker.kill()
        self.store.kill()

    def _file(self, kind: str) -> Path:
        return self._folder / f"{kind}{len(self.members)}.log"


def until(seen: Callable[[], T], patience: float = PATIENCE) -> T:
    """Wait until this is true; what it then was."""
    last = time.monotonic() + patience
    while not (value := seen()):
        assert time.monotonic() < last
        time.sleep(0.02)
    return value
