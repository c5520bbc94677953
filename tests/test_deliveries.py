"""Deliveries over real sockets: many receivers, several processes, and one that is killed."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import anyio
import httpx
import pytest
from starlette.requests import Request

from raincheck import ConfigurationError, Jobs, Limits, MemoryStore
from raincheck.callbacks import Callbacks, Target, Unreachable
from raincheck.runtime.posting import Poster
from raincheck.stores.base import Store
from raincheck.stores.postgres import PostgresStore
from raincheck.stores.redis import RedisStore
from raincheck.stores.sqlite import SQLiteStore
from tests.doubles.receivers import SECRET, Sites
from tests.stores.postgres import Postgres
from tests.stores.valkey import Valkey, valkey_server  # noqa: F401 # a fixture
from tests.support import app_of, running, slow_route

pytestmark = [pytest.mark.anyio, pytest.mark.real]

RECEIVERS = 1000

CERTIFICATE = Path(__file__).parent / "doubles" / "tls.example.pem"
"""Of a host of that name, with its key; it vouches for itself."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def told(allow: list[str], store: Store | None = None, **of: Any) -> Jobs:
    limits = Limits(max_running=2000, max_queued=0)
    callbacks = Callbacks(secrets=[SECRET], allow=allow, **of)
    return Jobs(store=store, limits=limits, callbacks=callbacks)


async def done(request: Request) -> Any:
    return {"rows": 7}


async def ask(client: httpx.AsyncClient, url: str) -> httpx.Response:
    prefer = f'respond-async, callback; url="{url}"'
    accepted = await client.post("/slow", headers={"prefer": prefer})
    assert accepted.headers["preference-applied"] == "respond-async, callback"
    return accepted


async def until(found: Callable[[], bool], within: float = 20.0) -> None:
    with anyio.fail_after(within):
        while not found():  # noqa: ASYNC110 # other processes set no event
            await anyio.sleep(0.02)


def site(number: int) -> str:
    return f"127.1.{number // 250}.{number % 250 + 1}"


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["in memory", "in a file"])
async def test_of_a_thousand_receivers_a_third_hang_or_fail_and_the_others_get_theirs_in_seconds(
    kept: str, tmp_path: Path
) -> None:
    """A ninth of them hang, a ninth answer 500 for ever, and where a ninth should be is nobody."""
    behaviour = {site(n): (0, 500, 204)[n % 9] if n % 9 < 2 else 204 for n in range(RECEIVERS)}
    nobody = {site(n) for n in range(RECEIVERS) if n % 9 == 2}
    well = {address for address, status in behaviour.items() if status == 204} - nobody
    store = MemoryStore() if kept == "in memory" else SQLiteStore(tmp_path / "jobs.db")
    async with Sites(behaviour.__getitem__) as sites:
        ports = {address: 9 if address in nobody else sites.port for address in behaviour}
        urls = [f"http://{address}:{port}/hook" for address, port in ports.items()]
        jobs = told(urls, store)
        async with running(app_of(slow_route(done), jobs=jobs)) as client:
            began = time.monotonic()
            for url in urls:
                await ask(client, url)
            asked = time.monotonic()
            await until(lambda: well <= sites.got.keys())
            took = time.monotonic() - asked
            assert took < 10, f"{took:.1f} s after {asked - began:.1f} s of asking"
    for address in well:
        (body,) = sites.got[address]
        assert json.loads(body)["status"] == "succeeded"


async def test_names_that_nobody_answers_for_take_no_others_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolve, end = socket.getaddrinfo, threading.Event()

    def answer(host: Any, port: int, *of: Any, **more: Any) -> Any:
        if str(host).startswith("hangs"):
            end.wait(20)
        named = str(host).endswith(".example")
        return resolve("127.0.0.1" if named else host, port, *of, **more)

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    async with Sites(lambda address: 204) as sites:
        names = [f"{'hangs' if n % 2 else 'well'}{n}.example:{sites.port}" for n in range(200)]
        jobs = told([f"http://{name}/" for name in names])
        async with running(app_of(slow_route(done), jobs=jobs)) as client:
            for name in names:
                await ask(client, f"http://{name}/")
            await until(lambda: len(sites.got.get("127.0.0.1", ())) >= 100, within=8)
            end.set()


@pytest.fixture(params=["SQLite", "Redis", "PostgreSQL"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
    """Opens a store that others share, as another process would."""
    kind: str = request.param
    if kind == "SQLite":
        return lambda: SQLiteStore(tmp_path / "jobs.db")
    name = f"deliveries{time.time_ns()}"
    if kind == "Redis":
        valkey: Valkey = request.getfixturevalue("valkey")
        return lambda: RedisStore(valkey.url, deployment=name)
    postgres: Postgres = request.getfixturevalue("postgres")
    return lambda: PostgresStore(postgres.url, deployment=name, schema="deliveries")


@pytest.mark.slow
async def test_two_processes_over_one_store_deliver_each_message_once(
    opened: Callable[[], Store],
) -> None:
    """Also those that were turned away once, each of which waits for its time."""
    turned: set[str] = set()

    def behaves(address: str) -> int:
        id = json.loads(sites.got[address][-1])["job_id"]
        if crc32(id.encode()) % 4 or id in turned:
            return 204
        turned.add(id)
        return 503

    async with Sites(behaves) as sites:
        url = f"http://127.0.0.1:{sites.port}/hook"
        apps = [app_of(slow_route(done), jobs=told([url], opened())) for _ in range(2)]
        async with running(apps[0]) as one, running(apps[1]) as other:
            for n in range(100):
                await ask((one, other)[n % 2], url)
            await until(lambda: len(sites.got.get("127.0.0.1", ())) >= 100 + len(turned))
            await anyio.sleep(1.5)
    sent = Counter(headers["webhook-id"] for headers in sites.headers["127.0.0.1"])
    assert len(sent) == 100
    assert turned
    assert all(times == 1 + (id in turned) for id, times in sent.items())


async def test_another_process_delivers_what_one_without_callbacks_has_ended(
    tmp_path: Path,
) -> None:
    """A worker that is not told of callbacks ends the job; the outcome says all that it takes."""
    async with Sites(lambda address: 204) as sites:
        url = f"http://127.0.0.1:{sites.port}/hook"
        gate = anyio.Event()

        async def held(request: Request) -> Any:
            await gate.wait()

        first = told([url], SQLiteStore(tmp_path / "jobs.db"))
        async with running(app_of(slow_route(held), jobs=first)) as client:
            accepted = await ask(client, url)
            unaware = Jobs(store=SQLiteStore(tmp_path / "jobs.db"))
            async with running(app_of(slow_route(done), jobs=unaware)) as other:
                await other.post(accepted.headers["location"] + "/cancel")
                await until(lambda: "127.0.0.1" in sites.got)
    assert json.loads(sites.got["127.0.0.1"][0])["status"] == "canceled"


@pytest.mark.slow
async def test_a_process_without_a_middleware_delivers_what_others_have_left(
    tmp_path: Path,
) -> None:
    status = 500
    async with Sites(lambda address: status) as sites:
        url = f"http://127.0.0.1:{sites.port}/hook"
        jobs = told([url], SQLiteStore(tmp_path / "jobs.db"))
        async with running(app_of(slow_route(done), jobs=jobs)) as client:
            await ask(client, url)
            await until(lambda: "127.0.0.1" in sites.got)
        status = 204
        alone = told([url], SQLiteStore(tmp_path / "jobs.db"))
        async with anyio.create_task_group() as group:
            group.start_soon(alone.deliver)
            await until(lambda: len(sites.got["127.0.0.1"]) == 2)  # five seconds later
            group.cancel_scope.cancel()
    once, again = sites.got["127.0.0.1"]
    assert once == again
    with pytest.raises(ConfigurationError, match="callbacks="):
        await Jobs().deliver()


@pytest.mark.slow
async def test_what_a_killed_process_was_delivering_is_delivered_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has posted, and is killed before it could note that: at least once is twice here."""
    path = tmp_path / "jobs.db"
    first = True

    def behaves(address: str) -> int:
        return 0 if first else 204

    async with Sites(behaves) as sites:
        url = f"http://127.0.0.1:{sites.port}/hook"
        command = [sys.executable, "-m", "tests.doubles.delivering", str(path), url]
        process = await anyio.open_process(command, stdout=subprocess.DEVNULL)
        try:
            await until(lambda: "127.0.0.1" in sites.got)
        finally:
            process.send_signal(signal.SIGKILL)
            await process.aclose()
        first = False
        monkeypatch.setattr("raincheck.runtime.deliveries._MARGIN", 1.0)
        jobs = told([url], SQLiteStore(path))
        async with running(app_of(slow_route(done), jobs=jobs)):
            await until(lambda: len(sites.got["127.0.0.1"]) == 2)
            await anyio.sleep(1.0)
            (job,) = (await jobs.list()).jobs
    assert job.delivery is not None
    assert (job.delivery.status, job.delivery.deliveries) == ("delivered", 1)
    once, again = (headers["webhook-id"] for headers in sites.headers["127.0.0.1"])
    assert once == again == job.id
    assert len(sites.got["127.0.0.1"]) == 2


@pytest.mark.parametrize(("name", "taken"), [("tls.example", True), ("other.example", False)])
async def test_a_receiver_is_who_its_name_says_by_its_certificate(
    monkeypatch: pytest.MonkeyPatch, name: str, taken: bool
) -> None:
    """Connected to by its address, it is verified by its name, and asked for by that (SNI)."""
    asked: list[str | None] = []
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(CERTIFICATE)
    served.sni_callback = lambda socket, name, context: asked.append(name)
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]
    trusted = ssl.create_default_context(cafile=str(CERTIFICATE))
    async with Sites(lambda address: 204, tls=served) as sites:
        target = Target.of(f"https://{name}:{sites.port}/")
        allow = [f"https://{name}:{sites.port}/"]
        poster = Poster(Callbacks(secrets=[SECRET], allow=allow, ssl_context=trusted))
        monkeypatch.setattr("raincheck.runtime.posting.socket.getaddrinfo", lambda *_, **__: found)
        if taken:
            assert (await poster.post(target, {}, b"{}")).status == 204
            assert sites.headers["127.0.0.1"][0]["host"] == f"tls.example:{sites.port}"
        else:
            with pytest.raises(Unreachable):
                await poster.post(target, {}, b"{}")
        await poster.aclose()
    assert asked == [name]
    assert len(sites.got) == taken
