"""Try out `app.py` on this machine: receivers, a server that is killed, and a webhook to each.

    python -m examples.webhook_delivery

prints, with other numbers,

    POST /webhooks without a key: 400
    to http://169.254.169.254/latest/meta-data: 422 Value error, The URL is not https on a usual ...
    to steady: 202, see /jobs/kPkUysbt...
    ...
    to steady under the same key: 202, see /jobs/kPkUysbt...
    to steady: 200 Delivered. Told 1, taken 1
    to fails: 200 Delivered. Told 3, taken 1
    to busy: 200 Delivered. Told 2, taken 1
    to hangs: 200 Delivered. Told 2, taken 1
    to gone: 502 The receiver answered 410. Told 1, taken 0
    to moved: 502 The receiver answered 307. Told 3, taken 0
    to https://localhost/: 502 The host has an address that is not public. Told 0, taken 0
    to late: 202, see /jobs/p3Vw0Zbu...
    kill -9 4711, when late has taken its webhook, and has not answered
    to late: 200 Delivered. Told 2, taken 1
"""

import asyncio
import base64
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import httpx
import uvicorn

from .receivers import Receivers

ROOT = Path(__file__).parents[2]
LOOPBACK = ("127.0.0.1", 0)
NAMES = ("steady", "fails", "busy", "hangs", "gone", "moved", "https://localhost/")
METADATA = "http://169.254.169.254/latest/meta-data"


def serve(
    listener: socket.socket, folder: str, secret: str, allowed: str
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "uvicorn", "examples.webhook_delivery.app:app"]
    command += [f"--app-dir={ROOT}", f"--fd={listener.fileno()}", "--log-level=warning"]
    settings = {"WEBHOOK_SECRETS": secret, "WEBHOOK_ALLOW": f"{allowed}/*"}
    settings |= {"WEBHOOK_TIMEOUT": "2", "WEBHOOK_FIRST_WAIT": "0.5", "WEBHOOK_PATIENCE": "4"}
    environment = {**os.environ, **settings}
    return subprocess.Popen(command, cwd=folder, env=environment, pass_fds=[listener.fileno()])


class Exchange:
    """What is handed in, and what becomes of it."""

    def __init__(self, client: httpx.AsyncClient, receivers: Receivers, where: str) -> None:
        self._client, self._receivers, self._where = client, receivers, where

    async def hand_in(self, name: str, key: str | None) -> httpx.Response:
        url = name if ":" in name else f"{self._where}/{name}"
        event = {"url": url, "type": "rain.ended", "data": {"litres": 12}}
        headers = {} if key is None else {"idempotency-key": key}
        return await self._client.post("/webhooks", json=event, headers=headers)

    async def accepted(self, name: str) -> str:
        response = await self.hand_in(name, f"order-7-{name}")
        url: str = response.headers["location"]
        print(f"to {name}: {response.status_code}, see {url}")
        return url

    async def outcome(self, name: str, url: str) -> None:
        response = httpx.Response(202)
        while response.status_code == 202:
            response = await self._client.get(url, headers={"prefer": "wait=20"})
        said = "Delivered." if response.is_success else response.json()["said"]
        told, taken = self._receivers.tries[name], len(self._receivers.taken[name])
        print(f"to {name}: {response.status_code} {said} Told {told}, taken {taken}", flush=True)


async def converse(
    exchange: Exchange, receivers: Receivers, kill_and_restart: Callable[[], int]
) -> None:
    response = await exchange.hand_in("steady", None)
    print(f"POST /webhooks without a key: {response.status_code}")
    response = await exchange.hand_in(METADATA, "metadata")
    print(f"to {METADATA}: {response.status_code} {response.json()['detail'][0]['msg']}")

    jobs = {name: await exchange.accepted(name) for name in NAMES}
    response = await exchange.hand_in("steady", "order-7-steady")
    print(f"to steady under the same key: {response.status_code}, ", end="")
    print(f"see {response.headers['location']}")
    for name, url in jobs.items():
        await exchange.outcome(name, url)

    url = await exchange.accepted("late")
    await receivers.late_has_taken.wait()
    print(f"kill -9 {kill_and_restart()}, when late has taken its webhook, and has not answered")
    await exchange.outcome("late", url)


async def main() -> None:
    secret = "whsec_" + base64.b64encode(os.urandom(32)).decode()
    receivers = Receivers(secret)
    config = uvicorn.Config(receivers.app, log_level="warning", timeout_graceful_shutdown=1)
    outside = uvicorn.Server(config)
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.create_server(LOOPBACK) as listener,
        socket.create_server(LOOPBACK) as theirs,
    ):
        where = f"http://127.0.0.1:{theirs.getsockname()[1]}"
        receiving = asyncio.create_task(outside.serve([theirs]))
        server = serve(listener, folder, secret, where)

        def kill_and_restart() -> int:
            nonlocal server
            killed = server
            killed.kill()
            killed.wait()
            server = serve(listener, folder, secret, where)
            return killed.pid

        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            async with httpx.AsyncClient(base_url=url, timeout=60) as client:
                await converse(Exchange(client, receivers, where), receivers, kill_and_restart)
        finally:
            server.kill()  # as it may be at any time
            server.wait()
            receivers.over.set()
            outside.should_exit = True
            await receiving


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what it has started ends, too
    asyncio.run(main())
