"""End to end: large bodies through a real uvicorn, its memory, its death, and another process."""

from __future__ import annotations

import stat
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.e2e.bodies_app import CHUNK, part
from tests.e2e.conftest import Server

pytestmark = pytest.mark.real

MEGABYTE = 1_000_000
COUNT = 150 * MEGABYTE // CHUNK
PATIENCE = 60.0


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Server]]:
    """Starts one more process of the same app on the same store."""
    servers: list[Server] = []

    def begin() -> Server:
        folder = tmp_path / f"server{len(servers)}"
        folder.mkdir()
        server = Server(
            folder, app="tests.e2e.bodies_app:app", RAINCHECK_TEST_FILE=str(tmp_path / "jobs.db")
        )
        servers.append(server)
        return server

    yield begin
    for server in servers:
        server.close()


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def memory(server: Server, which: str) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith(which))
    return int(line.split()[1]) * 1024


@contextmanager
def little_memory(server: Server) -> Iterator[None]:
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")  # the peak is the present
    before = memory(server, "VmRSS")
    yield
    assert memory(server, "VmHWM") - before < 64 * MEGABYTE


def sent(count: int) -> Iterator[bytes]:
    return map(part, range(count))


def check_download(server: Server, location: str, count: int, start: int = 0) -> None:
    """What comes is those chunks, and no more."""
    number, rest = start, b""
    headers = {"range": f"bytes={start * CHUNK}-"} if start else {}
    with server.client.stream("GET", location, headers=headers) as response:
        assert response.status_code == (206 if start else 200)
        for some in response.iter_bytes(1 << 20):
            rest += some
            while len(rest) >= CHUNK:
                assert rest[:CHUNK] == part(number)
                number, rest = number + 1, rest[CHUNK:]
    assert (number, rest) == (count, b"")


def finished(server: Server, location: str) -> httpx.Response:
    until(lambda: server.client.get(location + "/status").json()["status"] == "succeeded")
    return server.client.head(location)


def files(folder: Path) -> dict[str, Path]:
    """Those of bodies, by what follows the name of their store."""
    found = [*(folder / "jobs.db-bodies").glob("*")]
    (store,) = {file.name.partition("%2F")[0] for file in found} or {""}
    assert len(store) == 18 or not found
    return {file.name.partition("%2F")[2]: file for file in found}


def bodies(folder: Path) -> dict[str, int]:
    return {name: file.stat().st_size for name, file in files(folder).items()}


@pytest.mark.slow
def test_bodies_larger_than_its_memory_come_and_go(
    start: Callable[[], Server], tmp_path: Path
) -> None:
    server = start()
    server.follow(server.client.post("/fill?chunks=9"))  # what is made once
    with little_memory(server):
        location = server.client.post(f"/fill?chunks={COUNT}").headers["location"]
        assert finished(server, location).headers["content-length"] == str(COUNT * CHUNK)
        check_download(server, location, COUNT)
        check_download(server, location, COUNT, start=COUNT - 3)
    folder = tmp_path / "jobs.db-bodies"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    found = files(tmp_path)
    assert found.keys() >= {location.rpartition("/")[2] + ".1"}  # by the fence of its run
    assert {stat.S_IMODE(file.stat().st_mode) for file in found.values()} == {0o600}
    assert (tmp_path / "jobs.db").stat().st_size < MEGABYTE
    whole = 0
    for number in range(COUNT):
        whole = zlib.crc32(part(number), whole)
    with little_memory(server):
        answer = server.follow(server.client.post("/measure", content=sent(COUNT)))
    assert answer.json() == {"size": COUNT * CHUNK, "crc": whole}
    assert server.client.delete(location).status_code == 204
    (tmp_path / "gate").touch()
    server.client.post("/busy", params={"gate": str(tmp_path / "gate")})
    with little_memory(server):
        queued = server.client.post("/measure", content=sent(COUNT), timeout=PATIENCE)
        name = queued.headers["location"].rpartition("/")[2] + ".request"
        assert bodies(tmp_path)[name] == COUNT * CHUNK
        (tmp_path / "gate").unlink()
        assert server.follow(queued).json() == {"size": COUNT * CHUNK, "crc": whole}
    until(lambda: name not in bodies(tmp_path))


def test_another_process_follows_what_is_written(
    start: Callable[[], Server], tmp_path: Path
) -> None:
    """Through the place where the body leaves the store, and to its end."""
    writer, reader = start(), start()
    location = writer.client.post("/tail", params={"folder": str(tmp_path)}).headers["location"]
    (tmp_path / "0").touch()
    delays = []
    with reader.client.stream("GET", location + "/stream") as response:
        assert response.status_code == 200
        come, chunks = b"", response.iter_raw()
        for number in range(1, 13):
            while len(come) < number * CHUNK:
                come += next(chunks)
            (tmp_path / str(number)).touch()
            asked = time.monotonic()
            come += next(chunks)
            delays.append(time.monotonic() - asked)
        (tmp_path / "end").touch()
        come += b"".join(chunks)
    assert come == b"".join(map(part, range(13)))
    assert sorted(delays)[len(delays) // 2] < 2
    check_download(reader, location + "/stream", 13, start=12)


@pytest.mark.slow
def test_what_a_process_leaves_that_is_killed_is_swept(
    start: Callable[[], Server], tmp_path: Path
) -> None:
    dies = start()
    (tmp_path / "gate").touch()
    answer = dies.client.post("/fill", params={"chunks": 40, "gate": str(tmp_path / "gate")})
    location = answer.headers["location"]
    name = location.rpartition("/")[2] + ".1"
    until(lambda: bodies(tmp_path).get(name, 0) >= 16 * CHUNK)
    lives = start()
    gate = str(tmp_path / "gate")
    kept = lives.client.post("/fill", params={"chunks": 40, "gate": gate}).headers["location"]
    own = kept.rpartition("/")[2] + ".1"
    until(lambda: bodies(tmp_path).get(own, 0) >= 16 * CHUNK)
    dies.process.kill()
    until(lambda: lives.client.get(location).status_code == 502)
    until(lambda: name not in bodies(tmp_path))
    assert bodies(tmp_path)[own] >= 16 * CHUNK  # somebody writes it
    (tmp_path / "gate").unlink()
    finished(lives, kept)
    check_download(lives, kept, 40)


@pytest.mark.parametrize("how", ["torn", "missing"])
def test_law_14_a_body_that_is_not_whole_is_a_problem(
    start: Callable[[], Server], tmp_path: Path, how: str
) -> None:
    server = start()
    location = server.client.post("/fill?chunks=40").headers["location"]
    finished(server, location)
    file = files(tmp_path)[location.rpartition("/")[2] + ".1"]
    if how == "torn":
        with file.open("r+b") as torn:
            torn.truncate(39 * CHUNK)
    else:
        file.unlink()
    for headers in ({}, {"range": "bytes=5-"}, {"range": "bytes=0-9"}):
        for path in (location, location + "/stream"):
            answer = server.client.get(path, headers=headers)
            assert (answer.status_code, answer.headers["job-status"]) == (500, "succeeded")
            assert answer.json()["type"] == "urn:raincheck:problem:unreadable"
    assert server.client.get(location + "/status").json()["status"] == "succeeded"
    assert server.output.read_text().count("cannot be read") == 1
    assert server.client.get("/plain").status_code == 200
    assert server.client.post("/busy?gate=none").status_code == 202  # the store is not away
