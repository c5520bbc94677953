"""End to end: a real uvicorn, real sockets, real signals."""

from __future__ import annotations

import hashlib
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import pytest

from tests.e2e.conftest import Server

pytestmark = pytest.mark.real

Serve = Callable[..., Server]


@pytest.fixture(params=["httptools", "h11"])
def http(request: pytest.FixtureRequest) -> str:
    return f"--http={request.param}"


@pytest.fixture
def server(http: str, standing: Serve) -> Server:
    return standing(http)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of jobs; of each server that has one."""
    return str(tmp_path_factory.mktemp("store") / "jobs.db")


def submit(server: Server, path: str = "/slow", body: bytes = b"") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    )


def test_a_job_from_its_202_to_its_response(server: Server) -> None:
    accepted = server.client.post("/slow", content=b"x" * 2_000_000)
    assert accepted.status_code == 202
    assert accepted.headers["content-length"] == str(len(accepted.content))
    poll = server.client.get(accepted.headers["location"])
    assert poll.status_code == 202
    response = server.follow(accepted)
    assert (response.status_code, response.json()) == (200, {"size": 2_000_000})
    assert server.client.head(accepted.headers["location"]).content == b""


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_law_14_a_body_that_goes_while_it_is_sent_does_not_look_whole(
    standing: Serve, file: str, http: str, version: str
) -> None:
    server = standing(http, RAINCHECK_TEST_FILE=file)
    location = server.client.post("/large").headers["location"]
    size = server.client.get(location + "/status").json().get("response", {}).get("size")
    while size is None:
        time.sleep(0.1)
        size = server.client.get(location + "/status").json().get("response", {}).get("size")
    got = b""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(f"GET {location} HTTP/{version}\r\nHost: test\r\n\r\n".encode())
        while len(got) < 100_000:  # slow: the server has most of it to read yet
            got += connection.recv(65_536)
        assert server.client.delete(location).status_code == 204
        connection.settimeout(30)
        with suppress(ConnectionResetError):
            while some := connection.recv(1 << 20):
                got += some
    head, _, body = got.partition(b"\r\n\r\n")
    assert f"content-length: {size}".encode() in head.lower()
    assert 0 < len(body) < size  # the fault has happened, and shows
    assert "BodyLost" in server.said()
    assert server.client.get(location).status_code == 410


def test_a_download_below_compression_is_cut_and_resumed(standing: Serve, http: str) -> None:
    server = standing(http, RAINCHECK_TEST_GZIP="1")
    accepted = server.client.post("/table")
    whole = server.follow(accepted)
    location, size = accepted.headers["location"], int(whole.headers["content-length"])
    asks = {"accept-encoding": "gzip"}
    digest, got = hashlib.sha256(), 0
    with server.client.stream("GET", location, headers=asks) as first:
        for chunk in first.iter_raw(65_536):
            digest.update(chunk)
            got += len(chunk)
            if got > size // 3:
                break  # whereupon the connection is closed
    asks |= {"range": f"bytes={got}-", "if-range": first.headers["etag"]}
    with server.client.stream("GET", location, headers=asks) as rest:
        assert rest.status_code == 206
        assert rest.headers["content-range"] == f"bytes {got}-{size - 1}/{size}"
        for chunk in rest.iter_raw():
            digest.update(chunk)
    assert digest.digest() == hashlib.sha256(whole.content).digest()
    known = server.client.get(location, headers={"if-none-match": first.headers["etag"]})
    assert (known.status_code, known.content) == (304, b"")


def test_a_streaming_handler(server: Server) -> None:
    response = server.follow(server.client.post("/stream"))
    assert response.text == "".join(f"{number}," for number in range(20))


def test_a_handler_in_a_thread(server: Server) -> None:
    assert server.follow(server.client.post("/in-thread")).text == "from a thread"


def test_a_client_that_leaves_after_the_202_does_not_stop_the_job(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(submit(server))
        head = connection.recv(4096).decode()
    assert head.startswith("HTTP/1.1 202")
    (location,) = [
        line.partition(": ")[2] for line in head.splitlines() if line.startswith("location:")
    ]
    response = server.client.get(location, headers={"prefer": "wait=10"})
    while response.status_code == 202:
        response = server.client.get(location, headers={"prefer": "wait=10"})
    assert response.json() == {"size": 0}
    assert server.notes() == ["finished"]


@pytest.mark.slow
def test_a_client_that_leaves_during_its_upload_leaves_nothing_behind(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(submit(server, body=b"x" * 1000)[:-500])
    time.sleep(0.5)
    assert server.notes() == []
    assert server.client.get("/plain").text == "plain"
    assert "Traceback" not in server.said()


@pytest.mark.slow
def test_the_connection_is_used_again_while_the_job_runs(server: Server) -> None:
    with httpx.Client(base_url=str(server.client.base_url), timeout=30) as client:
        client.get("/plain")
        accepted = client.post("/slow?seconds=1")
        for _ in range(5):
            assert client.get("/plain").text == "plain"
        poll = client.get(accepted.headers["location"])
        assert poll.status_code == 202
        (connection,) = client._transport._pool.connections  # type: ignore[attr-defined] # httpx's
        assert "Request Count: 8" in connection.info()
        assert server.follow(accepted).status_code == 200


def test_cancel_reaches_the_handler(server: Server) -> None:
    accepted = server.client.post("/slow?seconds=60")
    links = accepted.json()["links"]
    assert server.client.post(links["cancel"]).status_code == 202
    response = server.client.get(links["self"], headers={"prefer": "wait=10"})
    assert response.json()["status"] == "canceled"
    assert server.notes() == ["cancelled"]


def test_sigterm_waits_for_the_jobs_in_flight(serve: Serve, http: str) -> None:
    server = serve(http)
    for _ in range(3):
        assert server.client.post("/slow?seconds=1").status_code == 202
    server.client.close()
    assert server.stop() < 8
    assert server.notes() == ["finished"] * 3
    assert "Traceback" not in server.output.read_text()


def test_sigterm_interrupts_what_takes_too_long(serve: Serve) -> None:
    server = serve(RAINCHECK_TEST_DRAIN="0.5")
    server.client.post("/slow?seconds=60")
    server.client.close()
    assert server.stop() < 8
    assert server.notes() == ["cancelled"]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("--http=h11",), ("--http=httptools",), ("--reload",)])
def test_sigterm_does_not_wait_for_a_long_poll(serve: Serve, arguments: tuple[str, ...]) -> None:
    """uvicorn tells the lifespan when all responses have ended, and not before."""
    server = serve(*arguments, RAINCHECK_TEST_DRAIN="0.5")
    links = server.client.post("/slow?seconds=60").json()["links"]
    with ThreadPoolExecutor() as threads:
        wait = {"prefer": "wait=25"}
        asked = ("GET", links["result"]), ("POST", "/slow?seconds=60")  # which waits for its end
        polls = [threads.submit(server.client.request, *ask, headers=wait) for ask in asked]
        time.sleep(1.0)  # nothing tells from outside that both are waited for
        start = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        answers = [poll.result() for poll in polls]
        assert time.monotonic() - start < 4  # 2 and what a busy machine takes
    assert [answer.status_code for answer in answers] == [202, 202]
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers)
    server.client.close()
    server.process.wait(60)
    assert time.monotonic() - start < 10
    assert server.notes() == ["cancelled", "cancelled"]


def test_without_a_lifespan_it_works_and_says_what_that_means(serve: Serve) -> None:
    server = serve("--lifespan=off")
    for _ in range(2):
        assert server.follow(server.client.post("/slow")).json() == {"size": 0}
    assert server.output.read_text().count("no lifespan reached raincheck") == 1


def test_behind_a_prefix_the_urls_carry_it(serve: Serve) -> None:
    """uvicorn's --root-path, as behind a proxy that takes the prefix away."""
    server = serve("--root-path=/api")
    accepted = server.client.post("/slow")
    assert accepted.headers["location"].startswith("/api/jobs/")
    stripped = accepted.headers["location"].removeprefix("/api")
    response = server.client.get(stripped, headers={"prefer": "wait=10"})
    while response.status_code == 202:
        response = server.client.get(stripped, headers={"prefer": "wait=10"})
    assert response.json() == {"size": 0}


def test_two_workers_with_a_memory_store_say_what_is_wrong(serve: Serve) -> None:
    server = serve("--workers=2")
    statuses: set[int] = set()
    end = time.monotonic() + 10  # the second one may take longer to come
    while 503 not in statuses and time.monotonic() < end:
        with httpx.Client(base_url=str(server.client.base_url)) as client:
            url = client.post("/slow?seconds=5").headers["location"]
        with httpx.Client(base_url=str(server.client.base_url)) as client:
            response = client.get(url)
            statuses.add(response.status_code)
            if response.status_code == 503:
                assert "shared store" in response.json()["detail"]
        time.sleep(0.1)
    assert statuses <= {202, 503}
    assert 503 in statuses
