"""Threads of the frameworks' own: a job has not stopped before they have returned.

In what ways a handler may wait for a thread is tested in `tests/test_threads.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx
import pytest

from tests.matrix.conftest import Cell, Server

pytestmark = [pytest.mark.matrix, pytest.mark.real]

Serve = Callable[[Cell], Server]


def served(cell: Cell, serve: Serve) -> Server:
    """A server with a new connection for each request.

    On one that is kept asgiref leaves the next request the context variables of the last, also
    without raincheck: it fails, or waits for ever.
    """
    server = serve(cell)
    server.client.close()
    limits = httpx.Limits(max_keepalive_connections=0)
    server.client = httpx.Client(base_url=server.client.base_url, limits=limits, timeout=30)
    return server


def end_of(server: Server, accepted: httpx.Response) -> str:
    """How a cancelled job ends."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        status: str = server.client.get(accepted.json()["links"]["self"]).json()["status"]
        if status != "canceling":
            return status
        time.sleep(0.02)
    raise AssertionError(server.output.read_text())


@pytest.mark.parametrize("name", ["marked", "awaiting", "rule"])
def test_law_6_of_the_threads_of_a_framework(threaded: Cell, name: str, serve: Serve) -> None:
    server = served(threaded, serve)
    first = server.client.post(f"/{name}")
    assert server.noted(f"{name} began")
    # asgiref has one thread for all requests, so that another one would wait for it.
    second = None if threaded.framework == "asgiref" else server.client.post(f"/{name}")
    assert server.client.post(first.json()["links"]["cancel"]).status_code == 202
    assert end_of(server, first) in ("succeeded", "canceled")
    assert server.notes()[1] == f"{name} returned"
    if second is not None:
        assert second.json()["status"] == "queued"
        assert server.follow(second).text == f"{name} is done"
        assert server.notes() == [f"{name} began", f"{name} returned"] * 2


def test_a_coroutine_is_stopped_for_which_a_thread_waits(bridged: Cell, serve: Serve) -> None:
    server = served(bridged, serve)
    accepted = server.client.post("/coroutine")
    assert server.noted("coroutine began")
    begin = time.monotonic()
    server.client.post(accepted.json()["links"]["cancel"])
    assert end_of(server, accepted) == "canceled"
    assert time.monotonic() - begin < 5
    assert server.notes() == ["coroutine began", "coroutine cancelled"]
    if bridged.framework != "django_threads":
        response = server.follow(server.client.post("/timeout"))
        assert response.status_code == 504
        assert server.noted("timeout cancelled")
