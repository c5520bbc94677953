"""Probes and metrics of real servers: two processes, a signal, a store that is killed."""

from __future__ import annotations

import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.conftest import Server
from tests.servers import free_port
from tests.stores.valkey import Valkey

pytestmark = pytest.mark.real

Start = Callable[..., Server]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    servers: list[Server] = []

    def start(store: str, *arguments: str, **environment: str) -> Server:
        folder = tmp_path / str(len(servers))
        folder.mkdir()
        settings = {"RAINCHECK_TEST_STORE": store, **environment}
        app = "tests.e2e.telemetry_app:app"
        servers.append(Server(folder, *arguments, app=app, **settings))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def scraped(server: Server) -> dict[tuple[str, ...], float]:
    """The samples of a scrape, each by its name and the values of its labels."""
    response = server.client.get("/metrics/")
    assert response.status_code == 200
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def until(done: Callable[[], bool], patience: float = 20.0) -> None:
    deadline = time.monotonic() + patience
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_two_processes_on_one_store_are_scraped(start: Start, tmp_path: Path) -> None:
    one, other = servers = [start(str(tmp_path / "jobs.db")) for _ in range(2)]
    for server, customers in ((one, ("ann", "bob", "eve")), (other, ("joe",))):
        for customer in customers:
            server.follow(server.client.post(f"/orders/{customer}"))
    for _ in range(4):
        one.client.post("/orders/ann?seconds=30")
    oldest = "raincheck_oldest_queued_seconds", "work"
    until(lambda: all(scraped(server).get(oldest, 0) > 1 for server in servers))
    found = [scraped(server) for server in servers]
    for each in found:  # what the store has is the same from both
        assert each["raincheck_jobs", "work", "succeeded"] == 4
        assert each["raincheck_jobs", "work", "running"] == 2
        assert each["raincheck_jobs", "work", "queued"] == 2
        assert 1 < each[oldest] < 10
        assert each["raincheck_figures_age_seconds",] < 2
    # What a process has done is to be added up.
    assert [each["raincheck_accepted_total", "work"] for each in found] == [7, 1]
    ended = "raincheck_finished_total", "succeeded", "", "work"
    assert [each[ended] for each in found] == [3, 1]
    assert [each["raincheck_running",] for each in found] == [2, 0]
    assert [each["raincheck_waiting",] for each in found] == [2, 0]
    labels = set(re.findall(r'route="([^"]*)"', one.client.get("/metrics/").text))
    assert labels == {"work"}  # and no customer's, whose name is in the URL


def test_the_workers_of_one_server_are_scraped_together(start: Start, tmp_path: Path) -> None:
    (folder := tmp_path / "prometheus").mkdir()
    settings = {"PROMETHEUS_MULTIPROC_DIR": str(folder)}
    server = start(str(tmp_path / "jobs.db"), "--workers=2", **settings)
    jobs = 12
    for _ in range(jobs):
        with httpx.Client(base_url=server.client.base_url) as client:  # whichever worker takes it
            accepted = client.post("/orders/ann")
        server.follow(accepted)
    until(lambda: scraped(server).get(("raincheck_jobs", "work", "succeeded")) == jobs)
    found = scraped(server)
    assert found["raincheck_accepted_total", "work"] == jobs
    assert found["raincheck_jobs", "work", "succeeded"] == jobs
    assert found["raincheck_figures_age_seconds",] < 2


@pytest.mark.slow
def test_after_sigterm_no_probe_is_told_that_it_is_ready(start: Start, tmp_path: Path) -> None:
    server = start(str(tmp_path / "jobs.db"))
    accepted = server.client.post("/orders/ann?seconds=4")
    answers: list[httpx.Response] = []
    base = f"http://127.0.0.1:{server.port}"
    late = threading.Thread(
        target=lambda: answers.append(httpx.get(f"{base}/late/ready", timeout=30))
    )
    late.start()
    time.sleep(0.5)  # it is on its way
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    time.sleep(0.3)
    seen = set[int | str]()
    while stopping.is_alive():
        try:
            seen.add(httpx.get(f"{base}/health/ready", timeout=5).status_code)
        except httpx.TransportError:
            seen.add("refused")
        time.sleep(0.05)
    stopping.join()
    late.join()
    assert [answer.status_code for answer in answers] == [503]
    assert answers[0].json() == {"status": "draining", "running": 1, "queued": 0}
    assert seen <= {503, "refused"}
    # It has drained: another process has the response.
    again = start(str(tmp_path / "jobs.db"))
    assert again.client.get(accepted.headers["location"]).text == "done"


@pytest.mark.slow
def test_a_process_whose_store_is_killed_is_not_ready_until_it_is_back(
    start: Start, tmp_path: Path
) -> None:
    (folder := tmp_path / "valkey").mkdir()
    store = Valkey(folder)
    store.start()
    try:
        server = start(store.url)

        def status(probe: str) -> int:
            return server.client.get(f"/health/{probe}").status_code

        until(lambda: (status("ready"), status("queue")) == (200, 200))
        store.kill()
        until(lambda: status("ready") == 503, 6)
        assert server.client.get("/health/ready").json()["status"] == "store-away"
        assert status("live") == 200
        assert scraped(server)["raincheck_figures_age_seconds",] > 0
        until(lambda: status("queue") == 503, 15)
        store.start()
        until(lambda: (status("ready"), status("queue")) == (200, 200), 10)
        assert server.follow(server.client.post("/orders/ann")).text == "done"
    finally:
        store.kill()


@pytest.mark.slow
def test_probes_on_a_port_of_their_own_see_the_drain(start: Start, tmp_path: Path) -> None:
    port = free_port()
    server = start(str(tmp_path / "jobs.db"), RAINCHECK_TEST_HEALTH=str(port))
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as probe:
        until(partial(listens, port))
        assert server.client.post("/orders/ann?seconds=3").status_code == 202
        ready = probe.get("/ready")
        assert (ready.status_code, ready.json()["running"]) == (200, 1)
        server.client.close()
        server.process.send_signal(signal.SIGTERM)
        time.sleep(1)
        drains = probe.get("/ready")
        assert (drains.status_code, drains.json()["status"]) == (503, "draining")
    assert server.process.wait(60) in (0, -signal.SIGTERM)
