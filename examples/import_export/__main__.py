"""Try out `app.py` on this machine: a server, and a client that imports and exports 100,000 rows.

    python -m examples.import_export

Needs `pip install raincheck[examples]`. It prints

    POST /products, 100000 rows, 3 of them wrong: 202
      running 12% 24000 rows checked
      ...
    422, 0 imported
      row 17, price: Input should be a valid decimal
      row 50000, sku: Row 49999 has the same
      row 100001, name: String should have at least 1 character
    POST /products, 100000 rows: 202
      running 9% 18000 rows checked
      ...
      running 95% 91000 of 100000 rows written
    201, 100000 imported
    GET /products.csv: 202
      running 40% 40000 of 100000 rows
    200, 100000 rows, as they were sent
"""

import csv
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from filecmp import cmp
from pathlib import Path

import httpx2

from raincheck.client import SyncRemoteJob, submit_sync

ROOT = Path(__file__).parents[2]
ROWS = 100_000


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """The app under uvicorn, on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-m", "uvicorn", "examples.import_export.app:app"]
        command += ["--log-level=warning", f"--app-dir={ROOT}", f"--fd={listener.fileno()}"]
        running = subprocess.Popen(command, cwd=folder, pass_fds=[listener.fileno()])
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        yield url
    finally:
        running.terminate()
        running.wait()


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        good, bad, back = (folder / f"{name}.csv" for name in ("good", "bad", "back"))
        make(good, {})
        make(bad, {17: {2: "free"}, 50_000: {0: "AB-049999"}, 100_001: {1: ""}})
        with server(folder) as url, httpx2.Client(base_url=url, timeout=60) as client:
            send(client, bad, f"{ROWS} rows, 3 of them wrong")
            send(client, good, f"{ROWS} rows")
            fetch(client, back)
        same = "as they were sent" if cmp(good, back, shallow=False) else "and not those"
        print(f"200, {len(back.read_text().splitlines()) - 1} rows, {same}")


def make(path: Path, changes: dict[int, dict[int, str]]) -> None:
    """A file of products, some cells of it changed: by row and column."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["sku", "name", "price", "stock"])
        for number in range(2, ROWS + 2):
            row = [
                f"AB-{number:06}",
                f"Umbrella {number}",
                f"{number % 900}.{number % 90 + 10}",
                number,
            ]
            for column, cell in changes.get(number, {}).items():
                row[column] = cell
            rows.writerow(row)


def send(client: httpx2.Client, path: Path, what: str) -> None:
    with path.open("rb") as file:
        request = client.build_request("POST", "/products", files={"file": (path.name, file)})
        job = submit_sync(client, request)
    print(f"POST /products, {what}: 202")
    watch(job)
    response = job.response()
    print(f"{response.status_code}, {response.json()['imported']} imported")
    for problem in response.json()["report"]:
        print(f"  row {problem['row']}, {problem['column']}: {problem['problem']}")


def fetch(client: httpx2.Client, path: Path) -> None:
    job = submit_sync(client, client.build_request("GET", "/products.csv"))
    print("GET /products.csv: 202")
    watch(job)
    with path.open("wb") as file, client.stream("GET", job.status_url) as response:
        for chunk in response.iter_bytes():
            file.write(chunk)


def watch(job: SyncRemoteJob) -> None:
    for update in job.updates():
        if update["status"] == "running" and update["message"]:
            print(f"  running {update['progress']:.0%} {update['message']}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what it has started ends, too
    main()
