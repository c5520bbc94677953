"""Try out `app.py` on this machine: an SMTP server, a web server that is killed, and one campaign.

    python -m examples.email_campaign

prints, with other numbers,

    POST /campaigns/november/send: 202, see /jobs/kPkUysbt...
      running 52% 20 sent, 1 refused, of 40
    kill -9 4711, when slow@example.com has the letter, and nobody was told so
      running 57% 22 sent, 1 refused, of 40
      succeeded 100% 39 sent, 1 refused, of 40
    GET /jobs/kPkUysbt...: 200 {"refused": 1, "sent": 39}
      busy@example.com: sent at try 2: 250
      nobody@example.com: refused at try 1: 550 5.1.1 No such mailbox
      slow@example.com: sent at try 2: 250
    39 mailboxes have 39 letters; 1 came twice, and was dropped by its Message-ID
    POST /campaigns/november/send, once more: 200 {"refused": 1, "sent": 39}
    39 mailboxes have 39 letters; 1 came twice, and was dropped by its Message-ID
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import httpx
from aiosmtpd.smtp import SMTP

from .mailboxes import Mailboxes

ROOT = Path(__file__).parents[2]
PATH = "/campaigns/november/send"
NAMES = [*(f"ann{number:02}" for number in range(20)), "busy", "nobody", "slow"]
NAMES += [f"tom{number:02}" for number in range(17)]
CAMPAIGN = {
    "subject": "November",
    "text": "Dear $name,\n\nit has rained.\n",
    "recipients": {f"{name}@example.com": name.title() for name in NAMES},
}
LOOPBACK = ("127.0.0.1", 0)
SUSPECTS = ("busy@example.com", "nobody@example.com", "slow@example.com")


def serve(listener: socket.socket, folder: str, smtp_port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "uvicorn", "examples.email_campaign.app:app"]
    command += [f"--app-dir={ROOT}", f"--fd={listener.fileno()}", "--log-level=warning"]
    environment = {**os.environ, "SMTP_PORT": str(smtp_port), "SMTP_WAITS": "1 1 1"}
    return subprocess.Popen(command, cwd=folder, env=environment, pass_fds=[listener.fileno()])


def said(response: httpx.Response) -> str:
    return f"{response.status_code} {json.dumps(response.json()['counts'])}"


def told(job: dict[str, str | float]) -> str:
    return f"  {job['status']} {job['progress'] or 0:.0%} {job['message'] or ''}".rstrip()


async def exchange(
    client: httpx.AsyncClient, mailboxes: Mailboxes, kill_and_restart: Callable[[], int]
) -> None:
    accepted = await client.post(PATH, json=CAMPAIGN)
    url, monitor = accepted.headers["location"], accepted.json()["links"]["self"]
    print(f"POST {PATH}: {accepted.status_code}, see {url}")
    await mailboxes.slow_has_its_letter.wait()
    print(told((await client.get(monitor)).json()))
    killed = kill_and_restart()
    print(f"kill -9 {killed}, when slow@example.com has the letter, and nobody was told so")

    job = {"status": "running"}
    while job["status"] in ("queued", "running"):
        job = (await client.get(monitor, headers={"prefer": "wait=10"})).json()
        print(told(job), flush=True)
    response = await client.get(url)
    print(f"GET {url}: {said(response)}")
    for letter in response.json()["letters"]:
        if letter["address"] in SUSPECTS:
            print("  {address}: {state} at try {tries}: {reply}".format(**letter))
    print(mailboxes)

    again = await client.post(PATH, json=CAMPAIGN, headers={"prefer": "wait=30"})
    print(f"POST {PATH}, once more: {said(again)}")
    print(mailboxes)


async def main() -> None:
    mailboxes, loop = Mailboxes(), asyncio.get_running_loop()
    smtp = await loop.create_server(lambda: SMTP(mailboxes, loop=loop), *LOOPBACK)
    smtp_port = smtp.sockets[0].getsockname()[1]
    # The socket is this process's: requests wait there while there is no web server.
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        server = serve(listener, folder, smtp_port)

        def kill_and_restart() -> int:
            nonlocal server
            killed = server
            killed.kill()
            killed.wait()
            server = serve(listener, folder, smtp_port)
            return killed.pid

        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            async with httpx.AsyncClient(base_url=url, timeout=60) as client:
                await exchange(client, mailboxes, kill_and_restart)
        finally:
            server.kill()  # as it may be at any time
            server.wait()
            smtp.close()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what it has started ends, too
    asyncio.run(main())
