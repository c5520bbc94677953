"""The live tail over real sockets, with clients that people have."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import Server

pytestmark = pytest.mark.real

Serve = Callable[..., Server]
TOKENS = b"".join(b"data: token %d\n\n" % number for number in range(60))


@pytest.fixture(params=["httptools", "h11"])
def server(request: pytest.FixtureRequest, standing: Serve) -> Server:
    return standing(f"--http={request.param}")


def program(name: str) -> str:
    """Where a program is: a skip that is seen where it is not, and a failure where it has to be."""
    found = shutil.which(name)
    if found is None and not os.environ.get("RAINCHECK_CI"):
        pytest.skip(f"no {name}")
    assert found is not None, f"no {name}"
    return found


def followed(server: Server, path: str = "/talk") -> str:
    url: str = server.client.post(path).json()["links"]["stream"]
    return url


def test_httpx_follows_is_cut_and_resumes_below_compression(standing: Serve) -> None:
    server = standing("--http=httptools", RAINCHECK_TEST_GZIP="1")
    url, got, tag = followed(server), b"", ""
    while got != TOKENS:
        resuming = {"range": f"bytes={len(got)}-", "if-range": tag} if got else {}
        asks = {"accept-encoding": "gzip", **resuming}
        with server.client.stream("GET", url, headers=asks) as response:
            assert response.status_code == (206 if got else 200)
            if got and len(got) < len(TOKENS):
                assert response.headers["content-range"].startswith(f"bytes {len(got)}-")
            tag = response.headers["etag"]
            until = len(got) + 100
            for chunk in response.iter_raw():
                got += chunk
                if len(got) > until:
                    break
    assert "Traceback" not in server.said()


@pytest.mark.slow
def test_curl_goes_on_where_it_was_cut(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "answer"
    command = [program("curl"), "-s", "-N", "-o", str(file)]
    url = str(server.client.base_url) + followed(server)
    cut = subprocess.run([*command, "--max-time", "1", url], check=False)
    assert cut.returncode == 28  # its time is up
    assert 0 < file.stat().st_size < len(TOKENS)
    rest = subprocess.run([*command, "-C", "-", url], check=False)
    assert rest.returncode == 0
    assert file.read_bytes() == TOKENS
    # Of one that has ended there is no more; that is no error.
    more = subprocess.run([*command, "-C", "-", url], check=False)
    assert more.returncode == 0
    assert file.read_bytes() == TOKENS


FETCH = """
const url = process.argv[1];
let got = '', tag = null;
for (let cut = 0; cut < 4; cut++) {
  const size = Buffer.byteLength(got);
  const headers = size ? { range: `bytes=${size}-`, 'if-range': tag } : {};
  const aborter = new AbortController();
  const response = await fetch(url, { headers, signal: aborter.signal });
  if (response.status !== (size ? 206 : 200)) throw new Error(`status ${response.status}`);
  tag = response.headers.get('etag');
  const reader = response.body.getReader(), decoder = new TextDecoder();
  for (let pieces = 0; cut === 3 || pieces < 4; pieces++) {
    const { done, value } = await reader.read();
    if (done) break;
    got += decoder.decode(value);
  }
  aborter.abort();
}
process.stdout.write(got);
"""


@pytest.mark.slow
def test_fetch_goes_on_where_it_was_cut(server: Server) -> None:
    url = str(server.client.base_url) + followed(server)
    command = [program("node"), "--input-type=module", "--eval", FETCH, url]
    fetched = subprocess.run(command, check=False, capture_output=True, timeout=60)
    assert fetched.stderr == b""
    assert fetched.stdout == TOKENS


def test_what_fails_in_the_middle_does_not_look_whole(server: Server) -> None:
    url = followed(server, "/talk?count=1000")
    with server.client.stream("GET", url) as response:
        chunks = response.iter_raw()
        assert next(chunks)
        server.client.post(url.replace("stream", "cancel"))
        with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message"):
            list(chunks)
    log = server.said()
    assert log.count("raincheck.errors.BrokenOff: ") == 1  # what uvicorn says of it
    assert "Traceback" not in log
    after = server.client.get(url)
    assert (after.status_code, after.json()["type"]) == (410, "urn:raincheck:problem:cancelled")


@pytest.mark.slow
@pytest.mark.parametrize("http", ["httptools", "h11"])
def test_sigterm_breaks_it_off_and_the_job_is_drained(serve: Serve, http: str) -> None:
    server = serve(f"--http={http}", RAINCHECK_TEST_DRAIN="0.5")
    url = followed(server, "/talk?count=1000")
    with ThreadPoolExecutor() as threads:

        def follow() -> float:
            broken = pytest.raises(httpx.RemoteProtocolError, match="complete message")
            with server.client.stream("GET", url) as response, broken:
                list(response.iter_raw())
            return time.monotonic()

        following = threads.submit(follow)
        time.sleep(0.5)  # nothing tells from outside that it is followed
        start = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert following.result() - start < 4
    server.client.close()
    server.process.wait(60)
    assert time.monotonic() - start < 10


def test_a_client_that_leaves_is_not_an_error(server: Server) -> None:
    url = followed(server, "/talk?count=1000")
    for _ in range(5):
        with server.client.stream("GET", url) as response:
            next(response.iter_raw())
    time.sleep(0.5)
    log = server.said()
    assert "Traceback" not in log
    assert "BrokenOff" not in log
    server.client.post(url.replace("stream", "cancel"))


def test_who_stops_reading_costs_no_memory(serve: Serve, tmp_path: Path) -> None:
    server = serve(RAINCHECK_TEST_FILE=str(tmp_path / "jobs.db"))
    before = peak_memory(server)
    links = server.client.post("/large").json()["links"]  # 40 MiB
    stalled = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
    for each in stalled:
        each.sendall(f"GET {links['stream']} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
    quick = server.client.get(links["stream"], headers={"prefer": "wait=25"})
    assert len(quick.content) == 40 * 1024 * 1024
    monitor = server.client.get(links["self"]).json()
    assert monitor["status"] == "succeeded"
    # All of it for each would be 800 MiB.
    assert peak_memory(server) - before < 200 * 1024
    for each in stalled:
        each.close()


def peak_memory(server: Server) -> int:
    """KiB that a process has had at most."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1])
