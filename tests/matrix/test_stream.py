"""The live tail on every server: how it comes, how it is broken off, what the log says of it."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from tests.matrix.conftest import Cell, Server

pytestmark = [pytest.mark.matrix, pytest.mark.real]

Serve = Callable[[Cell], Server]

NEVER_BREAKS_OFF = ("daphne",)
"""Servers that leave the connection open when an app does not complete its response."""

LOGGED = {"uvicorn-h11": 1, "uvicorn-httptools": 1}
"""Lines of servers that log everything that an app leaves unfinished."""

LAST_CHUNK = b"\r\n0\r\n\r\n"


def test_a_response_is_followed(tail: Cell, serve: Serve) -> None:
    server = serve(tail)
    comes_as_it_is_said_and_is_resumed(server)
    clients_that_leave_are_nothing_special(server)
    what_fails_in_the_middle_does_not_look_whole(server, tail)
    log = server.output.read_text()
    assert "Traceback" not in log
    assert log.count("BrokenOff") == LOGGED.get(tail.server, 0)
    assert server.client.get("/plain").text == "plain"


def comes_as_it_is_said_and_is_resumed(server: Server) -> None:
    said = b"".join(b"data: token %d\n\n" % number for number in range(40))
    url = server.client.post("/talk?count=40").json()["links"]["stream"]
    got, tag = b"", ""
    for cut in (100, 300, len(said)):
        resuming = {"range": f"bytes={len(got)}-", "if-range": tag} if got else {}
        with server.client.stream("GET", url, headers=resuming) as response:
            assert response.status_code == (206 if got else 200)
            assert response.headers["content-type"].startswith("text/event-stream")
            tag = response.headers["etag"]
            for chunk in response.iter_raw():
                got += chunk
                if cut <= len(got) < len(said):
                    break
    assert got == said


def clients_that_leave_are_nothing_special(server: Server) -> None:
    links = server.client.post("/talk?count=1000").json()["links"]
    for _ in range(3):
        with server.client.stream("GET", links["stream"]) as response:
            assert next(response.iter_raw())
    server.client.post(links["cancel"])


def what_fails_in_the_middle_does_not_look_whole(server: Server, cell: Cell) -> None:
    links = server.client.post("/talk?count=1000").json()["links"]
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(f"GET {links['stream']} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        got = b""
        while b"token 3\n" not in got:
            got += connection.recv(4096)
        server.client.post(links["cancel"])
        if cell.server in NEVER_BREAKS_OFF:
            connection.settimeout(3)
        try:
            while some := connection.recv(4096):
                got += some
        except TimeoutError:
            assert cell.server in NEVER_BREAKS_OFF
        else:
            assert cell.server not in NEVER_BREAKS_OFF
    assert b"transfer-encoding: chunked" in got.lower()
    assert not got.endswith(LAST_CHUNK)
