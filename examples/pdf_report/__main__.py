"""Try out `app.py` on this machine: a server, and a client that follows one report.

    python -m examples.pdf_report

Needs `pip install raincheck[examples]`. It leaves the file `orders-2025.pdf`, and prints

    POST /reports, year=1066: 422 Input should be greater than or equal to 2000
    POST /reports, year=2025: 202, see http://127.0.0.1:40123/jobs/bLq7...
      running 8% 1 of 12 months
      ...
      succeeded 100% 12 of 12 months
    GET http://...: 200 application/pdf, 143 kB, orders-2025.pdf
"""

import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

from raincheck.client import submit_sync

ROOT = Path(__file__).parents[2]


@contextmanager
def server(folder: str) -> Iterator[str]:
    """The app under uvicorn, on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-m", "uvicorn", "examples.pdf_report.app:app"]
        command += ["--log-level=warning", f"--app-dir={ROOT}", f"--fd={listener.fileno()}"]
        running = subprocess.Popen(command, cwd=folder, pass_fds=[listener.fileno()])
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        yield url
    finally:
        running.terminate()
        running.wait()


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        server(folder) as url,
        httpx2.Client(base_url=url, timeout=60) as client,
    ):
        refused = client.post("/reports", data={"year": 1066})
        problem = refused.json()["detail"][0]["msg"]
        print(f"POST /reports, year=1066: {refused.status_code} {problem}")

        job = submit_sync(client, client.build_request("POST", "/reports", data={"year": 2025}))
        print(f"POST /reports, year=2025: 202, see {job.status_url}")
        for update in job.updates():
            if update["message"]:
                print(f"  {update['status']} {update['progress']:.0%} {update['message']}")
        response = job.response()
        response.raise_for_status()
        file = Path(response.headers["content-disposition"].split('"')[1])
        size = file.write_bytes(response.content) // 1000
        kind = response.headers["content-type"]
        print(f"GET {job.status_url}: {response.status_code} {kind}, {size} kB, {file}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what it has started ends, too
    main()
