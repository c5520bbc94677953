"""The app of an example on a real uvicorn, which is killed and started again behind one socket."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import anyio
import httpx

ROOT = Path(__file__).parents[2]

PATIENCE = 60.0


class Served:
    """One process at a time. The socket is the test's: requests wait there while there is none.

    Args:
        app: where it is, as `"examples.durable:app"`.
        folder: for what it keeps, and its log.
        settings: variables of its environment.

    Attributes:
        client: of it.
        kills: how often it was killed.
    """

    client: httpx.AsyncClient

    def __init__(self, app: str, folder: Path, **settings: str) -> None:
        self._app, self._folder, self._settings = app, folder, settings
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.kills = 0

    async def __aenter__(self) -> Self:
        url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.client = httpx.AsyncClient(base_url=url, timeout=PATIENCE)
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.aclose()
        self._process.kill()
        self._process.wait()
        self._listener.close()

    def start(self) -> None:
        descriptor = self._listener.fileno()
        command = [sys.executable, "-m", "uvicorn", self._app, f"--app-dir={ROOT}"]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, f"--fd={descriptor}"],
                cwd=self._folder,
                env={**os.environ, **self._settings},
                pass_fds=[descriptor],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        """End it by SIGKILL, and start it again."""
        self._process.kill()
        self._process.wait()
        self.kills += 1
        self.start()

    async def accepted(self, path: str, **request: Any) -> str:
        """Post a request; the status URL of its job."""
        response = await self.client.post(path, **request)
        assert response.status_code == 202, response.text
        return str(response.headers["location"])

    async def outcome(self, url: str) -> httpx.Response:
        """The response of a job, as soon as it is there."""
        while True:
            response = await self.client.get(url, headers={"prefer": "wait=10"})
            if response.status_code != 202:
                return response

    async def job(self, url: str) -> Mapping[str, Any]:
        """What its monitor says."""
        document: dict[str, Any] = (await self.client.get(f"{url}/status")).json()
        return document


async def until(seen: Callable[[], bool]) -> None:
    """Wait until this is true of what other threads and processes do."""
    with anyio.fail_after(PATIENCE):
        while not seen():  # noqa: ASYNC110 - others set no events
            await anyio.sleep(0.01)
