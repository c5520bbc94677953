"""One script of assertions, for every framework on every server.

Two workers with the memory store are tested in `tests/e2e`.
"""

from __future__ import annotations

import hashlib
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from tests.event_stream import Reader
from tests.matrix.conftest import Cell, Server

pytestmark = [pytest.mark.matrix, pytest.mark.real]

Serve = Callable[[Cell], Server]

ORDER = {"item": "tea", "count": 2}
BODY = random.Random(1).randbytes(2_000_000)

INVALID = {"litestar": 400}
"""What a framework answers to an invalid body, where that is not 422."""

NO_LIFESPAN = ("daphne",)
"""Servers that run no lifespan, and so do not wait for anybody at SIGTERM."""

WHOLE_BODIES = ("daphne", "django")
"""Servers and frameworks that read all of a body before anything of theirs is called with it."""

NO_WEBSOCKETS = ("django", "quart-daphne", "falcon-hypercorn-trio")
"""Frameworks that speak HTTP only, and those whose websockets are a 500 there without us, too."""


def test_cell(cell: Cell, serve: Serve) -> None:
    server = serve(cell)
    refusals_are_synchronous(server, cell)
    a_job_from_its_202_to_its_response(server)
    an_upload_is_there_after_the_202(server)
    a_multipart_upload_is_there_after_the_202(server)
    a_body_that_comes_in_parts(server)
    a_streamed_response(server)
    a_handler_in_a_thread(server)
    a_path_rule(server)
    an_unmarked_upload_passes_as_it_comes(server, cell)
    if not str(cell).startswith(NO_WEBSOCKETS):
        websockets_pass(server)
    if cell.framework == "fastapi":
        what_fastapi_adds(server)
    if cell.framework == "bare":
        every_poll_can_be_answered(server)
    events_come_while_it_goes_on(server)
    cancel_reaches_the_handler(server)
    a_client_that_leaves_after_the_202_stops_nothing(server)
    if cell.framework != "bare":  # whose impossible answers are in the log
        assert "Traceback" not in server.output.read_text(), server.output.read_text()
    what_sigterm_does(server, cell)


def refusals_are_synchronous(server: Server, cell: Cell) -> None:
    client = server.client
    assert client.get("/plain").text == "plain"
    assert client.post("/nothing").status_code == 404
    assert client.get("/slow").status_code == 405
    invalid = client.post("/orders", json={"item": "tea"})
    assert invalid.status_code == INVALID.get(cell.framework, 422)
    assert "location" not in invalid.headers
    assert "count" in invalid.text


def a_job_from_its_202_to_its_response(server: Server) -> None:
    accepted = server.client.post("/orders", json=ORDER)
    assert accepted.status_code == 202
    assert accepted.headers["content-length"] == str(len(accepted.content))
    assert accepted.json()["status"] == "running"
    poll = server.client.get(accepted.headers["location"])
    assert (poll.status_code, poll.headers["cache-control"]) == (202, "no-store")
    response = server.follow(accepted)
    assert (response.status_code, response.json()) == (201, {"item": "tea", "total": 4})
    assert response.headers["job-status"] == "succeeded"
    again = server.client.get(accepted.headers["location"])
    assert again.content == response.content
    assert server.client.head(accepted.headers["location"]).content == b""
    monitor = server.client.get(accepted.json()["links"]["self"])
    assert monitor.json()["status"] == "succeeded"


def an_upload_is_there_after_the_202(server: Server) -> None:
    accepted = server.client.post("/upload", content=BODY)
    assert accepted.status_code == 202
    response = server.follow(accepted)
    assert response.status_code == 200
    assert response.content == BODY[::-1]
    cookies = response.headers.get_list("set-cookie")
    assert [cookie.partition(";")[0] for cookie in cookies] == ["a=1", "b=2"]


def a_multipart_upload_is_there_after_the_202(server: Server) -> None:
    accepted = server.client.post("/file", files={"film": ("film.mp4", b"x" * 2_000_000)})
    assert accepted.status_code == 202
    assert server.follow(accepted).json() == {"name": "film.mp4", "size": 2_000_000}


def a_body_that_comes_in_parts(server: Server) -> None:
    """Slowly, so that the handler may be entered long before its end."""
    parts = [b"one,", b"two,", b"three"]
    length = sum(map(len, parts))
    head = f"POST /upload HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(head.encode())
        for part in parts:
            # Nothing tells from outside how far the server is, so this gives it a little time.
            with pytest.raises(TimeoutError):
                receive(connection, timeout=0.1)
            connection.sendall(part)
        answer = receive(connection, timeout=30)
    response = server.client.get(location_of(answer), headers={"prefer": "wait=10"})
    assert server.follow(response).content == b"".join(parts)[::-1]


def a_streamed_response(server: Server) -> None:
    accepted = server.client.post("/stream")
    assert accepted.status_code == 202
    response = server.follow(accepted)
    assert response.text == "".join(f"{number}," for number in range(20))
    assert response.headers["content-type"].startswith("text/csv")


def a_handler_in_a_thread(server: Server) -> None:
    accepted = server.client.post("/in-thread")
    assert accepted.status_code == 202
    assert server.follow(accepted).text == "from a thread"


def a_path_rule(server: Server) -> None:
    accepted = server.client.post("/videos")
    assert accepted.status_code == 202
    assert server.follow(accepted).text == "video is done"
    assert "video finished" in server.notes()


def an_unmarked_upload_passes_as_it_comes(server: Server, cell: Cell) -> None:
    """In chunks, and larger than what is kept of one in memory before an entry."""
    whole = BODY[:10] + BODY
    head = "POST /meter HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(head.encode() + chunk(BODY[:10]))
        if not {cell.server, cell.framework} & set(WHOLE_BODIES):
            assert server.noted("first part")
        connection.sendall(chunk(BODY) + chunk(b""))
        answer = receive(connection, status=200, timeout=30)
        while b"}" not in answer:
            answer += connection.recv(4096)
    assert b"location" not in answer.lower()
    assert str(len(whole)).encode() in answer
    assert hashlib.sha256(whole).hexdigest().encode() in answer


def chunk(part: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(part), part)


def websockets_pass(server: Server) -> None:
    from websockets.sync.client import connect

    with connect(f"ws://127.0.0.1:{server.port}/echo") as websocket:
        for text in ("one", "two" * 100_000):
            websocket.send(text)
            assert websocket.recv(timeout=30) == text


def what_fastapi_adds(server: Server) -> None:
    """The order's `yield` dependency was open, and closed afterwards; its background task ran."""
    assert server.noted("session open")
    assert server.noted("background task")
    assert server.noted("session closed")
    assert server.client.post("/mounted/slow/x").status_code == 422
    accepted = server.client.post("/mounted/slow/7")
    assert accepted.status_code == 202
    assert server.follow(accepted).json() == 7


ODD: list[tuple[int, list[tuple[str, str]], str]] = [
    (200, [("x-note", "caf\xe9 \xa0\t\x85!")], "ok"),
    (200, [("x-note", "")], "ok"),
    (200, [("x-Note", "~" * 4000)], "ok"),
    (200, [("content-length", "002")], "ok"),
    (200, [("content-length", "2"), ("Content-Length", "2")], "ok"),
    (200, [("job-status", "running"), ("Job-Status", "queued")], "ok"),
    (299, [], "ok"),
    (204, [("content-length", "0")], ""),
    (304, [("content-length", "5"), ("etag", '"a"')], ""),
    (404, [("retry-after", "5")], "ok"),
    (599, [], "ok"),
]
"""What a server may dislike, and RFC 9110 does not forbid."""

IMPOSSIBLE: list[tuple[object, list[tuple[str, str]], str]] = [
    *((200, [("x-note", value)], "ok") for value in ("a ", " a", "\t", "a\tb\t")),
    *((200, [("x-note", f"a{chr(code)}b")], "ok") for code in (0, 1, 10, 11, 12, 13, 31, 127)),
    *((200, [(name, "a")], "ok") for name in ("", "x note", "x-note:", ":status", "x-\xe9")),
    *((200, [("content-length", value)], "ok") for value in ("3", "1", "two", "2,2", "-2", "")),
    (200, [("content-length", "2"), ("content-length", "3")], "ok"),
    *((status, [], "body") for status in (204, 304)),
    *((status, [], "ok") for status in (0, 99, 103, 199, 600, 999, -1, "200", None, 200.0)),
]
"""What no server could send (law 14)."""


def every_poll_can_be_answered(server: Server) -> None:
    """Again and again; the failure says of a field which it is."""
    for status, headers, body in ODD:
        accepted = server.client.post("/odd", json=odd(status, headers, body))
        response = server.follow(accepted)
        for _ in range(2):
            assert (response.status_code, response.text) == (status, body), headers
            outcome = "succeeded" if status < 400 else "failed"
            assert response.headers.get_list("job-status") == [outcome]
            response = server.client.get(accepted.headers["location"])
        head = server.client.head(accepted.headers["location"])
        assert (head.status_code, head.content) == (status, b""), headers
    for wrong, headers, body in IMPOSSIBLE:
        accepted = server.client.post("/odd", json=odd(wrong, headers, body))
        response = server.follow(accepted)
        assert response.status_code == 500, (wrong, headers)
        assert response.headers.get_list("job-status") == ["failed"]
        assert response.json()["type"] == "urn:raincheck:problem:invalid-response"
        if headers and headers[0][0] == "x-note":
            assert "'x-note'" in response.json()["detail"]
        monitor = server.client.get(accepted.json()["links"]["self"]).json()
        assert monitor["error"]["message"] == response.json()["detail"]


def odd(status: object, headers: list[tuple[str, str]], body: str) -> dict[str, object]:
    return {"status": status, "headers": headers, "body": body}


def events_come_while_it_goes_on(server: Server) -> None:
    links = server.client.post("/slow?name=events&seconds=2").json()["links"]
    times, statuses = [], []
    for _ in range(2):  # the first of whom leaves in the middle
        reader = Reader()
        with server.client.stream("GET", links["events"]) as stream:
            assert stream.headers["content-type"] == "text/event-stream"
            for event in (event for chunk in stream.iter_raw() for event in reader.feed(chunk)):
                times.append(time.monotonic())
                statuses.append(event.document["status"])
                if len(times) == 3:
                    break
    assert statuses[-1] == "succeeded"
    assert len(times) > 6
    assert times[-1] - times[0] > 1
    last = server.client.get(links["events"], headers={"last-event-id": reader.id})
    assert (last.status_code, last.content) == (204, b"")
    assert server.client.head(links["events"]).content == b""


def cancel_reaches_the_handler(server: Server) -> None:
    """Decorated, and under a path rule. What it cleans up, it cleans up before `cancelled`."""
    for name, path in (("cancel", "/slow?name=cancel&seconds=60"), ("export", "/exports")):
        accepted = server.client.post(path)
        assert accepted.status_code == 202
        assert server.noted(f"{name} began")
        links = accepted.json()["links"]
        assert server.client.post(links["cancel"]).status_code == 202
        for _ in range(10):
            monitor = server.client.get(links["self"], headers={"prefer": "wait=10"})
            if monitor.json()["status"] != "canceling":
                break
        assert monitor.json()["status"] == "canceled"
        assert f"{name} cancelled" in server.notes()
        assert server.client.get(accepted.headers["location"]).status_code == 410


def a_client_that_leaves_after_the_202_stops_nothing(server: Server) -> None:
    head = "POST /slow?name=leave&seconds=0.5 HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(head.encode())
        answer = receive(connection, timeout=30)
    response = server.client.get(location_of(answer), headers={"prefer": "wait=10"})
    assert response.status_code == 200 or response.json()["status"] == "running"
    assert server.follow(response).text == "leave is done"
    assert "leave finished" in server.notes()


def what_sigterm_does(server: Server, cell: Cell) -> None:
    accepted = server.client.post("/slow?name=drain&seconds=1")
    assert accepted.status_code == 202
    server.client.close()
    seconds = server.stop()
    assert seconds < 8
    assert "drain cancelled" not in server.notes()
    waits = cell.server not in NO_LIFESPAN
    assert ("drain finished" in server.notes()) == waits
    unready = "no lifespan reached raincheck" in server.output.read_text()
    assert unready != waits


def test_what_cannot_work_says_so(impossible: Cell, serve: Serve) -> None:
    """On trio a framework that calls asyncio fails each request, marked or not."""
    server = serve(impossible)
    assert server.client.get("/plain").status_code == 500
    assert server.client.post("/orders", json=ORDER).status_code == 500


def test_types_are_found_by_their_names(typed: Cell, serve: Serve) -> None:
    """The modules of these apps postpone their annotations (PEP 563), as all of the matrix do."""
    server = serve(typed)
    for path in ("/orders", "/in-thread"):
        assert server.client.post(path, json={"item": "tea"}).status_code in (400, 422)
        accepted = server.client.post(path, json=ORDER)
        assert accepted.status_code == 202
        assert server.follow(accepted).json() == {"item": "tea", "total": 4}


def test_a_framework_that_awaits_no_view_has_its_marks_around_it(plain: Cell, serve: Serve) -> None:
    server = serve(plain)
    for path in ("/function", "/class", "/rule"):
        accepted = server.client.post(path, json=ORDER)
        assert accepted.status_code == 202
        response = server.follow(accepted)
        assert (response.status_code, response.json()) == (200, {"item": "tea", "total": 4})
    for name in ("function", "class"):
        start = f"from tests.matrix.apps.rest_app import start; start({name!r})"
        command = [sys.executable, "-c", start]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "ConfigurationError" in done.stderr
        assert "put @long_running above @api_view, or around the view" in done.stderr


def receive(connection: socket.socket, *, status: int = 202, timeout: float) -> bytes:
    connection.settimeout(timeout)
    answer = b""
    while b"\r\n\r\n" not in answer:
        part = connection.recv(4096)
        assert part, answer
        answer += part
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer
    return answer


def location_of(head: bytes) -> str:
    answer = head.decode()
    fields = dict(line.lower().split(": ", 1) for line in answer.split("\r\n")[1:] if ": " in line)
    start = answer.lower().index(fields["location"])
    return answer[start:].partition("\r\n")[0]
