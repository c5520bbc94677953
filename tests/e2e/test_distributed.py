"""Web servers and the workers of taskiq and Celery as real processes, over real brokers.

Everything here is killed, paused or cut off as it would be. `benchmarks/fleet.py` does it longer.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.fleet import ROOT, Fleet, Web, until
from tests.servers import Missing
from tests.stores.valkey import Valkey

pytestmark = pytest.mark.real

LEASE = 2.0

ENGINES = ("taskiq", "celery")


def made(folder: Path, broker: str, engine: str = "taskiq", **environment: str) -> Fleet:
    """A fleet whose servers run; without them the test is skipped, and fails where it must not."""
    try:
        fleet = Fleet(folder, broker, engine, **environment)
        fleet.start()
    except Exception as error:
        if os.environ.get("RAINCHECK_CI") and not (
            broker == "rabbitmq" and isinstance(error, Missing)
        ):
            raise
        pytest.skip(f"no servers: {error}")
    return fleet


@pytest.fixture
def fleet_of(tmp_path: Path) -> Iterator[Callable[..., Fleet]]:
    fleets: list[Fleet] = []

    def make(broker: str, engine: str = "taskiq", **environment: str) -> Fleet:
        fleets.append(made(tmp_path, broker, engine, **environment))
        return fleets[-1]

    yield make
    for fleet in fleets:
        fleet.close()


class Standing:
    """A fleet that several tests use: two web servers and a worker.

    Attributes:
        queue: where ids of jobs whose policy names no queue wait, a list in Valkey.
        most: bytes of a message at most.
    """

    def __init__(self, fleet: Fleet, engine: str) -> None:
        self.fleet = fleet
        self.queue, self.most = {"taskiq": ("taskiq", 300), "celery": ("shop", 1200)}[engine]
        self.web, self.other = fleet.web(), fleet.web()
        self.worker = fleet.worker()
        for member in (self.web, self.other, self.worker):
            member.wait()

    def messages(self, queue: str) -> list[bytes]:
        """What waits in a queue."""
        assert isinstance(self.fleet.broker, Valkey)
        found: Any = self.fleet.broker.ask("LRANGE", queue, "0", "-1")
        return list(found)

    def bring(self, *messages: bytes) -> None:
        """Tell the worker of jobs, whoever did so before."""
        assert isinstance(self.fleet.broker, Valkey)
        self.fleet.broker.ask("DEL", "videos")
        self.fleet.broker.ask("LPUSH", self.queue, *messages)


@pytest.fixture(scope="module")
def standing_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Standing]]:
    fleets: list[Fleet] = []

    @cache
    def stand(engine: str) -> Standing:
        fleets.append(made(tmp_path_factory.mktemp(engine), "redis", engine))
        return Standing(fleets[-1], engine)

    yield stand
    for fleet in fleets:
        fleet.close()


@pytest.fixture(params=ENGINES)
def standing(request: pytest.FixtureRequest, standing_of: Callable[[str], Standing]) -> Standing:
    engine: str = request.param
    return standing_of(engine)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """The same app in one process."""
    fleet = made(tmp_path_factory.mktemp("alone"), "")
    try:
        one = fleet.web()
        one.wait()
        yield one
    finally:
        fleet.close()


@pytest.fixture(params=["in one process", *ENGINES])
def web(request: pytest.FixtureRequest, standing_of: Callable[[str], Standing]) -> Web:
    if request.param == "in one process":
        one: Web = request.getfixturevalue("alone")
        return one
    return standing_of(request.param).web


# --- the same app, the same exchange -----------------------------------------------------------


@pytest.mark.slow
def test_one_process_and_a_fleet_are_alike(web: Web) -> None:
    assert web.post("/work", headers={"authorization": "wrong"}).status_code == 401

    accepted = web.post("/work?seconds=0.8", content=b"x" * 200_000)
    assert accepted.status_code == 202
    url = accepted.headers["location"]
    document = until(lambda: _progress(web, url))
    assert document["message"] in ("1 of 4", "2 of 4", "3 of 4", "4 of 4")
    response = web.follow(url)
    assert (response.status_code, response.json()["bytes"]) == (201, 200_000)
    assert response.headers["job-status"] == "succeeded"
    assert web.client.get(url).content == response.content

    streamed = web.follow(web.accepted("/stream"))
    assert streamed.content == b"".join(b"%05d" % number * 4000 for number in range(20))
    assert streamed.headers.get_list("set-cookie") == [
        "a=1; Path=/; SameSite=lax",
        "b=2; Path=/; SameSite=lax",
    ]
    assert web.follow(web.accepted("/in-thread")).text == "from a thread"
    assert web.follow(web.accepted("/rule")).status_code == 200

    crashed = web.follow(web.accepted("/crash"))
    assert crashed.status_code == 500
    assert crashed.json()["type"] == "urn:raincheck:problem:crashed"
    assert web.follow(web.accepted("/late")).status_code == 504

    key = {"idempotency-key": '"one order"'}
    first = web.accepted("/once", headers=key)
    again = web.post("/once", headers=key)
    assert (again.status_code, again.headers["location"]) == (202, first)
    assert again.headers["idempotency-replayed"] == "true"
    assert web.follow(first).status_code == 200

    url = web.accepted("/work?seconds=30")
    until(lambda: web.state(url) == "running")
    assert web.post(url + "/cancel").status_code == 202
    until(lambda: web.state(url) == "canceled")
    assert web.client.get(url).status_code == 410
    assert web.client.delete(url).status_code == 204
    assert web.client.get(url + "/status").status_code == 410


def _progress(web: Web, url: str) -> Any:
    document = web.client.get(url + "/status").json()
    return document if document.get("message") else None


@pytest.mark.slow
def test_an_id_is_all_that_travels(standing: Standing) -> None:
    secret = b"not to be seen by the broker"
    url = standing.web.accepted("/video", content=secret, headers={"cookie": "also-secret"})
    (message,) = standing.messages("videos")  # nobody works there
    assert url.rpartition("/")[2].encode() in message
    assert b"secret" not in message
    assert len(message) < standing.most
    standing.bring(message)
    assert standing.web.follow(url).status_code == 200


# --- between processes -------------------------------------------------------------------------


@pytest.mark.slow
def test_a_cancel_from_any_web_process_reaches_the_handler_within_a_second(
    standing: Standing,
) -> None:
    url = standing.web.accepted("/work?seconds=30")
    until(lambda: standing.other.state(url) == "running")
    start = time.monotonic()
    assert standing.other.post(url + "/cancel").json()["status"] == "canceling"
    until(lambda: any(url.endswith(note[1]) for note in standing.fleet.notes("stopped")))
    took = time.monotonic() - start
    until(lambda: standing.web.state(url) == "canceled")
    assert took < 1.0


@pytest.mark.slow
def test_a_long_poll_at_another_web_process_hears_of_the_end(standing: Standing) -> None:
    url = standing.web.accepted("/work?seconds=1")
    start = time.monotonic()
    newest = standing.other.client.get(url, headers={"prefer": "wait=20"})
    while newest.status_code == 202:
        newest = standing.other.client.get(url, headers={"prefer": "wait=20"})
    assert newest.status_code == 201
    assert time.monotonic() - start < 10


@pytest.mark.slow
def test_redelivery_of_a_job_that_runs_or_has_ended_does_nothing(standing: Standing) -> None:
    web, fleet = standing.web, standing.fleet
    url = web.accepted("/video?seconds=1")
    (message,) = standing.messages("videos")
    standing.bring(message, message)
    until(lambda: web.state(url) == "running")
    standing.bring(message)
    response = web.follow(url)
    standing.bring(message, message)
    until(lambda: not standing.messages(standing.queue))
    assert web.follow(web.accepted("/work?seconds=0")).status_code == 201
    assert web.client.get(url).content == response.content
    assert [words[1] for words in fleet.notes("begin")].count(url.rpartition("/")[2]) == 1


@pytest.mark.slow
def test_a_run_that_failed_is_repeated(web: Web) -> None:
    url = web.accepted("/flaky", content=b"x" * 100_000)
    document = until(lambda: _waiting(web, url))
    assert (document["status"], document["runs"]) == ("queued", 1)
    response = web.follow(url)
    assert (response.status_code, response.json()) == (200, {"bytes": 100_000, "runs": 2})


def _waiting(web: Web, url: str) -> Any:
    document = web.client.get(url + "/status").json()
    return document if "next_run_at" in document else None


# --- what differs from one process (docs/scaling.md) -------------------------------------------


@pytest.mark.slow
def test_what_stands_before_the_handler_runs_twice(standing: Standing) -> None:
    before = len(standing.fleet.notes("checked /once"))
    standing.web.follow(standing.web.accepted("/once"))
    checks = standing.fleet.notes("checked /once")[before:]
    assert len({by for _, _, by in checks}) == len(checks) == 2


@pytest.mark.slow
def test_what_an_outer_middleware_made_does_not_travel(standing: Standing) -> None:
    url = standing.web.accepted("/surroundings", headers={"x-visitor": "alice"})
    assert standing.web.follow(url).json() == {
        "variable": "nobody",
        "outer": None,
        "header": "alice",
        "pool": "open",  # the lifespan's state is the worker's own
    }


def test_in_one_process_it_does(alone: Web) -> None:
    url = alone.accepted("/surroundings", headers={"x-visitor": "alice"})
    seen = alone.follow(url).json()
    assert (seen["variable"], seen["outer"]) == ("alice", "alice")


# --- queues ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_queue_has_workers_of_its_own(standing: Standing) -> None:
    url = standing.web.accepted("/video")
    assert standing.web.follow(standing.web.accepted("/once")).status_code == 200
    assert standing.web.state(url) == "queued"
    videos = standing.fleet.worker("videos")
    by = standing.web.follow(url).json()["by"]
    videos.wait()
    ours = {int(words[1]) for words in standing.fleet.notes("startup")}
    assert by in ours
    assert by != standing.web.follow(standing.web.accepted("/once")).json()["by"]
    videos.kill()


# --- the life of a worker ----------------------------------------------------------------------


@pytest.mark.slow
def test_a_worker_drains_in_time_and_gives_back_what_it_does_not_finish(
    fleet_of: Callable[..., Fleet],
) -> None:
    fleet = fleet_of("redis", RAINCHECK_TEST_DRAIN="1", RAINCHECK_TEST_LEASE="30")
    web, worker = fleet.web(), fleet.worker("broker", "--workers", "2")
    web.wait()
    worker.wait()
    until(lambda: len(fleet.notes("startup")) == 3)  # one lifespan in each process
    pids = {int(words[1]) for words in fleet.notes("startup")} - {web.process.pid}
    quick = [web.accepted("/work?seconds=0.8") for _ in range(30)]
    long = web.accepted("/work?seconds=3.5")
    lost = web.accepted("/once?seconds=60")
    thread = web.accepted("/in-thread?seconds=4.5")
    until(lambda: len(fleet.notes("begin")) == 32 and web.state(thread) == "running")

    worker.process.send_signal(signal.SIGTERM)
    until(lambda: len(fleet.notes("shutdown")) == 2)
    # A thread cannot be killed. taskiq alone would wait for it, and nobody would be told.
    assert worker.process.poll() is None
    assert [web.follow(url).status_code for url in (lost, thread)] == [503, 503]
    assert web.state(long) == "queued"
    assert {web.follow(url).json()["by"] for url in quick} == pids  # all finished, side by side
    assert worker.process.wait(60) == 0

    fleet.worker()
    response = web.follow(long)
    assert response.status_code == 201
    assert response.json()["by"] not in pids
    assert len(fleet.notes("begin")) == 33


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_a_worker_without_its_app_says_what_is_missing(
    engine: str, fleet_of: Callable[..., Fleet]
) -> None:
    worker = fleet_of("redis", engine).worker(RAINCHECK_TEST_FORGET="1")
    until(lambda: f"{engine.capitalize()}Runner(..., app='myapp:app')" in worker.said())
    assert worker.ready not in worker.said()


POOLS = {"threads": 30, "prefork": 4, "gevent": 30, "solo": 1}
"""Celery's pools, and how many jobs each has at once here."""


@pytest.mark.slow
@pytest.mark.parametrize("pool", POOLS)
def test_a_pool_of_celery_runs_cancels_and_drains(
    pool: str, fleet_of: Callable[..., Fleet]
) -> None:
    fleet = fleet_of("redis", "celery", RAINCHECK_TEST_DRAIN="1", RAINCHECK_TEST_LEASE="30")
    most = POOLS[pool]
    web = fleet.web()
    worker = fleet.worker("broker", f"--pool={pool}", f"--concurrency={most}")
    web.wait()
    worker.wait()
    assert len(fleet.notes("startup")) == 1  # the web server's: no job has come yet
    first = web.follow(web.accepted("/work?seconds=0.4")).json()
    assert (first["by"] == worker.process.pid) is (pool != "prefork")  # in a child, after its fork
    assert web.follow(web.accepted("/in-thread")).text == "from a thread"
    several = [web.accepted("/work?seconds=2") for _ in range(min(most, 10))]
    until(lambda: {web.state(url) for url in several} == {"running"})  # side by side
    assert {web.follow(url).status_code for url in several} == {201}

    url = web.accepted("/work?seconds=30")
    until(lambda: web.state(url) == "running")
    start = time.monotonic()
    web.post(url + "/cancel")
    until(lambda: any(url.endswith(note[1]) for note in fleet.notes("stopped")))
    assert time.monotonic() - start < 1.0
    until(lambda: web.state(url) == "canceled")

    # One after the other in the pool that has one place: the second waits in the broker.
    lost, long = web.accepted("/once?seconds=60"), web.accepted("/work?seconds=3")
    until(lambda: web.state(lost) == "running")
    until(lambda: most == 1 or web.state(long) == "running")
    assert worker.stop() < 15
    assert worker.process.returncode == 0
    assert web.follow(lost).status_code == 503
    assert web.state(long) == "queued"
    lives = [{words[1] for words in fleet.notes(word)} for word in ("startup", "shutdown")]
    assert lives[0] - lives[1] == {str(web.process.pid)}  # all apps of the worker were shut down
    fleet.worker()
    assert web.follow(long).json()["by"] != first["by"]


@pytest.mark.slow
def test_a_child_of_celery_that_dies_or_is_replaced(fleet_of: Callable[..., Fleet]) -> None:
    fleet = fleet_of("redis", "celery")
    web = fleet.web()
    options = ("--pool=prefork", "--concurrency=1", "--max-tasks-per-child=2")
    fleet.worker("broker", *options, "--soft-time-limit=4").wait()
    web.wait()
    url = web.accepted("/work?seconds=2")
    until(lambda: fleet.notes("begin"))
    os.kill(int(fleet.notes("begin")[0][3]), signal.SIGKILL)
    assert web.follow(url).status_code == 201  # another child, once the lease is over
    by = [web.follow(web.accepted("/work?seconds=0")).json()["by"] for _ in range(4)]
    assert len(set(by)) >= 2
    replaced = {str(pid) for pid in by[:-2]}
    until(lambda: replaced <= {words[1] for words in fleet.notes("shutdown")})
    # A task that Celery breaks off takes its run with it.
    assert web.follow(web.accepted("/once?seconds=40")).status_code == 503


# --- when a broker is not there ----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broker", "engine"),
    [
        ("redis", "taskiq"),
        ("nats", "taskiq"),
        ("rabbitmq", "taskiq"),
        ("redis", "celery"),
        ("rabbitmq", "celery"),
    ],
)
def test_a_broker_that_comes_late_and_goes_again(
    broker: str, engine: str, fleet_of: Callable[..., Fleet]
) -> None:
    fleet = fleet_of(broker, engine, RAINCHECK_TEST_ACK_WAIT="1")
    assert fleet.broker is not None
    fleet.broker.kill()
    web, worker = fleet.web(), fleet.worker()
    web.wait()
    refused = web.post("/work")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    assert refused.json()["type"] == "urn:raincheck:problem:runner-unavailable"
    until(lambda: _nothing_waits(fleet))

    fleet.broker.start()
    url = until(lambda: web.post("/work").headers.get("location"))
    assert web.follow(url).status_code == 201
    worker.wait()

    # It ends at once while a handler runs that may not run twice.
    url = web.accepted("/once?seconds=4")
    until(lambda: web.state(url) == "running")
    if engine == "celery":  # whose worker ends with a broker that waits for an acknowledgement
        time.sleep(1)
    fleet.broker.kill()
    time.sleep(1)
    fleet.broker.start()
    assert web.follow(url).status_code == 200
    # A worker that was idle when the broker went hears of new jobs.
    url = until(lambda: web.post("/work").headers.get("location"))
    assert web.follow(url).status_code == 201
    runs = [words[1] for words in fleet.notes("begin")]
    assert len(runs) == len(set(runs))
    if broker == "nats":  # has brought again what took longer than its ack_wait
        assert worker.said().count("Executing task") > len(runs)


def _nothing_waits(fleet: Fleet) -> bool:
    keys: Any = fleet.store.ask("KEYS", "*:request:*")
    return not keys


# --- all of it at once -------------------------------------------------------------------------


@pytest.mark.slow
def test_the_example_prints_its_exchange() -> None:
    command = [sys.executable, "-m", "examples.distributed"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert (run.returncode, run.stderr) == (0, "")
    url = r"/jobs/[A-Za-z0-9_-]{30}"
    expected = (
        r'GET /health: 200 {"by":(\d+)}\n'
        rf"POST /videos: 202, see {url}\n"
        r"  queued\n(?:  running\n)?"
        r"(?:  running \d+% [1-5] of 5 parts\n)+"
        rf'GET {url}: 200 {{"frames":5,"by":(\d+)}}\n'
        r"accepted by process \1, run by process \2\n"
    )
    match = re.fullmatch(expected, run.stdout)
    assert match is not None, run.stdout
    assert match[1] != match[2]


@pytest.mark.slow
def test_a_short_fleet_under_faults() -> None:
    command = [sys.executable, "benchmarks/fleet.py", "--broker", "redis", "--jobs", "120"]
    command += ["--workers", "2", "--kills", "3", "--lease", "2"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert run.returncode == 0, run.stdout + run.stderr
