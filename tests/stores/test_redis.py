from __future__ import annotations

import asyncio
import gc
import logging
import random
import re
import ssl
import subprocess
import sys
import time
import traceback
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import anyio.lowlevel
import pytest
from starlette.applications import Starlette

import raincheck.stores._redis_line as line_room
from raincheck import ConfigurationError, LongRunningMiddleware
from raincheck.errors import NoRoom, StoreError, StoreFull, UnreadableRecord
from raincheck.job import TRANSITIONS, Bounds, Job, Key, Progress, State
from raincheck.messages import Head
from raincheck.serialization import dump
from raincheck.stores._redis_rights import COMMANDS
from raincheck.stores._redis_scripts import DAY, WINDOW, place
from raincheck.stores.base import Partial, Store, Total
from raincheck.stores.redis import BATCH, LISTED, PAGE, RedisStore
from raincheck.testing import lifespan
from raincheck.testing.samples import (
    body_of,
    claim,
    finished,
    fits,
    job,
    request,
    waiting,
    with_body,
)
from tests.stores.live import LiveContract
from tests.stores.relay import Relay
from tests.stores.shared import (
    PATIENCE,
    ServedStoreContract,
    UnreadableContract,
    serves_through_a_restart,
)
from tests.stores.valkey import Valkey, valkey_server  # noqa: F401 # a fixture

pytestmark = [pytest.mark.anyio, pytest.mark.real]

Serve = Callable[..., Valkey]

CERTIFICATE = Path(__file__).parent.parent / "doubles" / "tls.example.pem"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def deployment() -> str:
    """Of one test: the server is the same for all."""
    return uuid4().hex


@pytest.fixture
async def store(valkey: Valkey, deployment: str) -> AsyncIterator[RedisStore]:
    store = RedisStore(valkey.url, deployment=deployment)
    yield store
    await store.aclose()


@pytest.fixture
def serve(valkey: Valkey, tmp_path: Path) -> Iterator[Serve]:
    """Starts a server that one test may do anything to."""
    servers = []

    def start(*options: str) -> Valkey:
        server = Valkey(tmp_path, *options)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.kill()


class TestRedisStore(ServedStoreContract, UnreadableContract, LiveContract):
    @pytest.fixture
    async def neighbour(self, valkey: Valkey) -> AsyncIterator[Store]:
        neighbour = RedisStore(valkey.url, deployment=uuid4().hex)
        yield neighbour
        await neighbour.aclose()

    @pytest.fixture
    async def relay(self, valkey: Valkey) -> AsyncIterator[Relay]:
        relay = Relay(valkey.port)
        async with relay.opened():
            yield relay

    @pytest.fixture
    async def far(self, relay: Relay, deployment: str) -> AsyncIterator[Store]:
        far = RedisStore(f"redis://127.0.0.1:{relay.port}/0", deployment=deployment)
        yield far
        await far.aclose()

    @pytest.fixture
    def opening(self, valkey: Valkey, deployment: str) -> str:
        return (
            "from raincheck.stores.redis import RedisStore\n"
            f"store = RedisStore({valkey.url!r}, deployment={deployment!r})"
        )

    async def overwrite(self, store: Store, id: str, record: bytes) -> None:
        assert isinstance(store, RedisStore)
        await tell(store, "HSET", f"job:{id}", "record", record)


async def tell(store: RedisStore, command: str, key: str, *words: str | bytes | int) -> Any:
    """Have the server do something behind the store's back."""
    return await store._line().ask(command, store._key(key), *words)


async def keys_of(store: RedisStore) -> set[str]:
    """What the store keeps, without the prefix."""
    found, cursor = set[str](), b"0"
    while True:
        answer = await store._line().ask("SCAN", cursor, "MATCH", store._key("*"), "COUNT", 1000)
        cursor, keys = answer
        found |= {key.decode().removeprefix(store._prefix) for key in keys}
        if cursor == b"0":
            return found


def clients(server: Valkey, kind: str = "normal") -> int:
    """Connections to the server, but for the one that asks."""
    listed = server.ask("CLIENT", "LIST", "TYPE", kind)
    assert isinstance(listed, bytes)
    return listed.count(b"\n") - (kind == "normal")


def statistics(server: Valkey, section: str) -> dict[str, Any]:
    answer = server.ask("INFO", section)
    assert isinstance(answer, dict)
    return answer


async def until(true: Callable[[], bool]) -> None:
    with anyio.fail_after(PATIENCE):
        while True:
            if true():
                return
            await anyio.sleep(0.01)


# --- settings --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "localhost:6379",
        "http://u:secret@localhost",
        "redis://u:sec/ret@localhost",  # not encoded: `sec` is taken for the port
        "redis://u:secret@localhost:6379?health_check_interval=secret",
        "redis://u:secret@localhost:6379?secret=1",
        "redis://u:secret@localhost:6379?protocol=secret",
        f"redis://u:secret@{'a' * 64}.example",
    ],
)
def test_a_url_that_cannot_be_read_is_refused_and_not_quoted(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"RedisStore\(url") as raised:
        RedisStore(url, deployment="shop")
    assert "sec" not in "".join(traceback.format_exception_only(raised.value))
    assert raised.value.__suppress_context__


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"deployment": ""}, "deployment"),
        ({"deployment": "a}b"}, "deployment"),
        ({"deployment": "ü"}, "deployment"),
        ({"deployment": "a" * 64}, "deployment"),
        ({"deployment": "-a"}, "deployment"),
        ({"deployment": "a\n"}, "deployment"),
        ({"deployment": None}, "deployment"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": -1.0}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"timeout": float("inf")}, "timeout"),
        ({"timeout": "5"}, "timeout"),
        ({"url": None}, "url"),
        ({"url": 5}, "url"),
    ],
)
def test_an_impossible_setting_names_itself(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        RedisStore(**{"deployment": "shop", **settings})


def test_on_trio_it_says_what_to_use_instead() -> None:
    with pytest.raises(ConfigurationError, match=r"asyncio.*SQLiteStore"):
        anyio.run(RedisStore(deployment="shop").get, "a", backend="trio")


def test_without_redis_py_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['redis'] = None; import raincheck.stores.redis"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install raincheck[redis]" in done.stderr


# --- round trips -----------------------------------------------------------------------------


async def test_every_call_is_one_command(serve: Serve) -> None:
    server = serve()
    store = RedisStore(server.url, deployment="shop")
    there = job(owner="ann")
    keys = Key("k", "f"), Key("l", lasting=False)

    async def read() -> None:
        assert await body_of(store, "a") == b"onetwo"

    async def look() -> None:
        assert [job async for job in store.abandoned()] == []

    calls: list[Callable[[], Any]] = [
        partial(store.create, there, request(), keys=keys, lease=60.0, bounds=Bounds(1, 1)),
        partial(store.get, "a"),
        partial(store.fetch, "a"),
        partial(store.find, "k"),
        partial(store.learn, "r", ["x-tenant", "x-plan"]),
        partial(store.learned, "r"),
        partial(store.request, "a"),
        partial(store.list, states=[State.RUNNING], owner="ann", limit=LISTED),
        store.totals,
        partial(store.append_body, "a", 1, 0, b"one", head=Head(200, ())),
        partial(store.partial, "a"),
        partial(store.grown, Partial(there, None, 0)),
        partial(store.renew, {"a": 1, "b": 1}, 60.0),
        look,
        partial(store.replace, there.shared(1), keys=(Key("m"),)),
        partial(store.replace, there.shared(1).cancelling(), bounds=Bounds(1, 1)),
        partial(store.replace, finished(there.shared(1).cancelling(), size=6), tail=b"two"),
        partial(store.fetch, "a"),
        read,
        partial(store.create, waiting("b"), request()),
        partial(store.claim, "b", routes=["q", "r"], holder="h", now=1.0, lease=60.0),
        partial(store.claim, "b", routes=["q", "r"], holder="h", now=1.0, lease=60.0),
        partial(store.sweep, 0.0),
    ]
    for call in calls:
        await call()  # now the server knows the script
    server.ask("FLUSHALL")
    for call in calls:
        server.ask("CONFIG", "RESETSTAT")
        await call()
        asked = statistics(server, "commandstats")
        outer = {"cmdstat_evalsha", "cmdstat_eval", "cmdstat_keys", "cmdstat_scan"}
        scripts = sum(asked[name]["calls"] for name in outer & asked.keys())
        assert scripts <= 1
        if not scripts:
            plain = {"cmdstat_hget", "cmdstat_get", "cmdstat_smembers"} & asked.keys()
            assert [asked[name]["calls"] for name in plain] == [1]
    await store.aclose()


async def test_calls_that_meet_share_their_round_trips(serve: Serve) -> None:
    server = serve()
    store = RedisStore(server.url, deployment="shop")
    await store.create(job("first"))
    before = statistics(server, "stats")["total_reads_processed"]
    async with anyio.create_task_group() as group:
        for number in range(300):
            group.start_soon(store.create, job(str(number)))
    reads = statistics(server, "stats")["total_reads_processed"] - before
    assert reads < 60  # with 16 KiB in each, and those of the question itself
    assert clients(server) == 1
    await store.aclose()


async def test_those_who_wait_for_one_job_ask_for_it_once(serve: Serve) -> None:
    server = serve()
    store = RedisStore(server.url, deployment="shop")
    await store.create(job())
    async with anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(store.changed, "a", 1)
        await until(lambda: waiting_in(store) == 50)
        server.ask("CONFIG", "RESETSTAT")
        await store.replace(job().cancelling())
    assert statistics(server, "commandstats")["cmdstat_hget"]["calls"] <= 2
    await store.aclose()


async def test_those_who_fetch_one_job_at_once_ask_for_it_once(serve: Serve) -> None:
    server = serve()
    store = RedisStore(server.url, deployment="shop")
    done = await with_body(store, "a", [b"one"])
    found: list[Any] = []

    async def fetch() -> None:
        found.append(await store.fetch("a"))

    async def look() -> None:
        found.append(await store.partial("a"))

    server.ask("CONFIG", "RESETSTAT")
    async with anyio.create_task_group() as group:
        for call in 50 * [fetch, look]:
            group.start_soon(call)
    assert statistics(server, "commandstats")["cmdstat_evalsha"]["calls"] == 2
    assert sorted(found, key=len) == 50 * [(done, b"one")] + 50 * [(done, Head(200, ()), 3)]
    await store.aclose()


def waiting_in(store: RedisStore) -> int:
    """Tasks that have looked and wait now."""
    assert store._opened is not None
    watches = store._opened.feed.waiting.watched.values()
    return sum(watch.event.statistics().tasks_waiting for watch in watches)


async def test_a_script_that_the_server_has_forgotten_is_sent_again(
    store: RedisStore, valkey: Valkey
) -> None:
    await store.create(job())
    valkey.ask("SCRIPT", "FLUSH")
    async with anyio.create_task_group() as group:
        for id in "abc":
            group.start_soon(store.create, job(id))
            group.start_soon(store.append_body, id, 1, 0, b"x")
    assert [await store.get(id) for id in "abc"] == [job(id) for id in "abc"]


async def test_in_a_cluster_all_keys_are_in_one_slot(serve: Serve) -> None:
    server = serve("--cluster-enabled", "yes")
    server.ask("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    await until(lambda: "cluster_state:ok" in str(server.ask("CLUSTER", "INFO")))
    store = RedisStore(server.url, deployment="shop")
    first = job(replayable=True, max_runs=2, owner="ann")
    keys = Key("k"), Key("l", lasting=False)
    await store.create(first, request(), keys=keys, lease=0.0, bounds=Bounds(1, 1))
    with pytest.raises(NoRoom):
        await store.create(job("b", owner="ann"), bounds=Bounds(1, 1))
    assert [there.id async for there in store.abandoned()] == ["a"]
    assert await store.find("l") == (first, None)
    assert (await store.list(owner="ann")).jobs == [first]
    assert await store.totals() == {("r", State.RUNNING): Total(1, 1000.0, 0.0)}
    assert await store.append_body("a", 1, 0, b"x" * WINDOW)
    second = first.shared(1)
    assert await store.replace(second, keys=(Key("m"),))
    assert await store.renew({"a": 1}, 60.0) == {"a": State.RUNNING}
    assert await store.create(waiting("w"), request()) == waiting("w")
    begun = await store.claim("w", routes=["r"], holder="h", now=1000.0, lease=60.0)
    assert begun == (waiting("w").start(1000.0, "h"), request(), True)
    assert await store.replace(waiting("w").start(1000.0).tombstone(1000.0, 60.0))
    assert await store.partial("a") == (second, None, WINDOW)
    assert await store.fetch("a") == (second, None)
    assert await store.replace(finished(second, size=WINDOW + 1), tail=b"y")
    assert await body_of(store, "a") == b"x" * WINDOW + b"y"
    assert await store.sweep(1060.0)
    assert not await store.sweep(1120.0)
    assert await keys_of(store) == set()
    await store.aclose()


# --- what is kept ----------------------------------------------------------------------------


async def test_all_that_was_kept_is_given_back(store: RedisStore) -> None:
    for number in range(40):
        there = job(str(number), replayable=True)
        keys = Key(f"k{number}"), Key(f"l{number}"), Key(f"m{number}", lasting=False)
        await store.create(there, request(), keys=keys, lease=60.0)
        for window in range(3):
            await store.append_body(there.id, 1, window * WINDOW, b"x" * WINDOW)
        if number % 2:
            await store.replace(there.tombstone(1000.0, 60.0))
        else:
            await store.replace(finished(there, size=3 * WINDOW + 1), tail=b"y")
    assert await store.sweep(1059.0)
    lists = {"listed", "listed:totals", "listed:-succeeded 1:r"}
    assert lists <= await keys_of(store)
    assert len(await keys_of(store)) == 1 + 3 + 20 * (1 + 3 + 4) + 20  # due, jobs, tombstones
    await store.sweep(1060.0)
    assert len(await keys_of(store)) == 1 + 1 + 20  # those deleted at 1000 are forgotten
    assert not await store.sweep(1120.0)
    assert await keys_of(store) == set()


async def test_the_server_itself_drops_what_nobody_sweeps(store: RedisStore) -> None:
    there = job(replayable=True)
    keys = Key("k"), Key("l", lasting=False)
    await store.create(there, request(), keys=keys, lease=60.0)
    await store.append_body("a", 1, 0, b"x" * (WINDOW + 1))
    every = {"job:a", "key:k", "keys:a", "body:a:0", "body:a:1"}
    passing = {"request:a", "leases", "busy", "key:l", "passing:a", "listed:-running 1:r"}
    lists = {"due", "listed", "listed:totals"}
    assert await keys_of(store) == {*every, *passing, *lists}
    assert [await tell(store, "TTL", key) for key in every] == [-1] * 5
    await store.replace(finished(there, ttl=1000.0, tombstone_ttl=500.0, size=WINDOW + 1))
    assert await keys_of(store) == {*every, *lists, "listed:-succeeded 1:r"}
    kept = [await tell(store, "TTL", key) for key in every]
    assert all(DAY + 1400 < seconds <= DAY + 1500 for seconds in kept)
    await store.sweep(2000.0)
    assert DAY + 400 < await tell(store, "TTL", "job:a") <= DAY + 500


async def test_what_the_server_has_dropped_is_forgotten(store: RedisStore) -> None:
    for id in "ab":
        await store.create(job(id), keys=(Key(id, "f"),), lease=0.0)
        await store.replace(finished(job(id)))
        await tell(store, "DEL", f"job:{id}")
    assert await store.find("a") is None
    assert await store.create(job("c"), keys=(Key("a"),)) == job("c")
    assert await store.find("a") == (job("c"), None)
    assert (await store.list()).jobs == [job("c")]
    assert await store.sweep(1060.0)
    assert await store.totals() == {("r", State.RUNNING): Total(1, 1000.0, 0.0)}
    await store.replace(job("c").tombstone(1000.0, 60.0))
    assert not await store.sweep(1060.0)
    assert not [key for key in await keys_of(store) if key.startswith("listed")]


async def test_a_chunk_that_overlaps_brings_the_rest(store: RedisStore) -> None:
    await store.create(job())
    assert await store.append_body("a", 1, 0, b"one")
    assert await store.append_body("a", 1, 0, b"onetwo")
    assert await store.append_body("a", 1, 6, b"")
    assert not await store.append_body("a", 2, 6, b"")
    assert await body_of(store, "a") == b"onetwo"


async def test_a_body_that_the_server_has_lost_is_an_error(store: RedisStore) -> None:
    await store.create(job())
    with pytest.raises(StoreError, match="lost a part"):
        await store.append_body("a", 1, 1, b"x")
    await store.append_body("a", 1, 0, b"x" * WINDOW * 2)
    await tell(store, "DEL", "body:a:1")
    with pytest.raises(StoreError, match="dropped"):
        await body_of(store, "a")


async def test_jobs_that_cannot_be_buried_do_not_keep_the_others(store: RedisStore) -> None:
    """Their records name another version than the one that the scripts go by."""
    ids = [str(number) for number in range(BATCH + 2)]
    async with anyio.create_task_group() as group:
        for id in ids:
            group.start_soon(store.create, job(id))
    for number, id in enumerate(ids):
        await store.replace(finished(job(id), now=float(number)))
    for id in ids[:BATCH]:
        await tell(store, "HSET", f"job:{id}", "version", 7)
    with anyio.fail_after(PATIENCE):
        await store.sweep(1060.0)
    there = [await store.get(id) for id in ids]
    assert [found is not None and found.gone for found in there] == [False] * BATCH + [True] * 2


# --- what can never work ---------------------------------------------------------------------


@pytest.fixture
def user(valkey: Valkey) -> Iterator[str]:
    """A user of the server, with all rights at first; its password is its name."""
    name = f"user{uuid4().hex}"
    valkey.ask("ACL", "SETUSER", name, "on", f">{name}", "~*", "&*", "+@all")
    yield name
    valkey.ask("ACL", "DELUSER", name)


@pytest.fixture
async def users(valkey: Valkey, deployment: str, user: str) -> AsyncIterator[RedisStore]:
    """The store, as that user uses it."""
    store = RedisStore(f"redis://{user}:{user}@127.0.0.1:{valkey.port}/0", deployment=deployment)
    yield store
    await store.aclose()


async def fails(store: RedisStore, why: str) -> str:
    """It can never work, which is said at the start, and to whoever asks for anything."""
    with pytest.raises(StoreError, match=why):
        await store.create(job())
    with pytest.raises(ConfigurationError, match=why) as raised:
        await store.open()
    return str(raised.value)


def cured(server: Valkey, message: str) -> None:
    """Do what a message says somebody should."""
    server.ask(*message.partition("let somebody run ")[2].split())


@pytest.mark.parametrize("command", COMMANDS)
async def test_every_right_that_is_missing_is_named_before_anything_is_done(
    valkey: Valkey, store: RedisStore, users: RedisStore, user: str, command: str
) -> None:
    valkey.ask("ACL", "SETUSER", user, f"-{command.lower()}")
    message = await fails(users, command.lower())
    assert await keys_of(store) == set()
    if command not in ("EVAL", "EVALSHA"):  # the server itself says of what it was asked first
        cured(valkey, message)
        await users.open()
        assert await users.create(job()) == job()


@pytest.mark.parametrize("lacking", [("resetchannels",), ("resetkeys", "~others:*")])
async def test_a_user_without_channels_or_keys_is_told_the_cure(
    valkey: Valkey, store: RedisStore, users: RedisStore, user: str, lacking: tuple[str, ...]
) -> None:
    """Channels are what a user lacks who was made with `~* +@all`."""
    valkey.ask("ACL", "SETUSER", user, *lacking)
    message = await fails(users, "channel of this deployment")
    assert await keys_of(store) == set()
    cured(valkey, message)
    await users.open()
    assert await users.create(job()) == job()
    assert await users.replace(job().cancelling())
    assert await users.changed("a", 1) == job().cancelling()


async def test_as_few_rights_as_the_cure_gives_are_enough(
    valkey: Valkey, users: RedisStore, user: str
) -> None:
    valkey.ask("ACL", "SETUSER", user, "reset", "on", f">{user}", "+eval", "+evalsha", "+type")
    valkey.ask("ACL", "SETUSER", user, "+publish")
    for _ in range(2):  # only once it has keys can the server tell what it may do with them
        cured(valkey, await fails(users, "channel of this deployment"))
    await users.open()
    there = job(max_runs=2, replayable=True, owner="ann")
    one = Bounds(route=1, owner=1)
    await users.create(there, request(), keys=(Key("k"),), lease=0.0, bounds=one)
    await users.learn("r", ["accept"])
    assert await users.learned("r") == {"accept"}
    assert await users.find("k") == (there, None)
    assert await users.fetch("a") == (there, None)
    assert await users.request("a") == request()
    await users.create(waiting("w", not_before=1.0), request(), lease=0.0)
    begun = await users.claim("w", routes=["r"], holder="h", now=1000.0, lease=60.0)
    assert begun == (waiting("w").start(1000.0, "h"), request(), True)
    assert await users.replace(waiting("w").start(1000.0).tombstone(1000.0, 60.0))
    assert (await users.list(owner="ann")).jobs == [there]
    assert set(await users.totals()) == {("r", State.RUNNING)}
    head = Head(200, ())
    assert await users.append_body("a", 1, 0, b"x", head=head)
    assert await users.partial("a") == await users.grown(Partial(there, None, 0))
    assert await body_of(users, "a") == b"x"
    assert [each.job async for each in users.abandoned()] == [there]
    assert await users.renew({"a": 1}, 0.0) == {"a": State.RUNNING}
    assert not await users.discard("a")
    assert await users.replace(there.shared(1), keys=(Key("l"),))
    async with anyio.create_task_group() as group:
        group.start_soon(users.changed, "a", 2)
        await until(lambda: waiting_in(users) == 1)
        assert await users.replace(finished(there.shared(1)), tail=b"y")
    assert await users.sweep(1060.0)
    assert not await users.sweep(1120.0)


async def test_a_right_that_is_taken_away_leaves_no_half_of_a_change(
    valkey: Valkey, store: RedisStore, users: RedisStore, user: str
) -> None:
    there = job(replayable=True)
    await users.create(there, request(), keys=(Key("k"),), lease=60.0)
    await users.append_body("a", 1, 0, b"x")
    before = await everything(store)
    valkey.ask("ACL", "SETUSER", user, "resetchannels")
    for version in (there.cancelling(), finished(there), there.tombstone(0.0, 0.0)):
        with pytest.raises(StoreError, match=r"(?i)permission"):
            await users.replace(version, tail=b"y")
        assert await everything(store) == before
    assert await store.replace(there.tombstone(0.0, 0.0))
    before = await everything(store)
    with pytest.raises(StoreError, match=r"(?i)permission"):
        await users.sweep(0.0)
    assert await everything(store) == before


@pytest.mark.parametrize("key", ["due", "leases", "busy", "listed", "listed:totals"])
async def test_a_name_that_another_application_has_fails_the_start(
    store: RedisStore, valkey: Valkey, deployment: str, key: str
) -> None:
    await tell(store, "SET", key, "theirs")
    another = RedisStore(valkey.url, deployment=deployment)
    await fails(another, f"{key} of another application")
    await another.aclose()


async def test_a_database_that_the_server_does_not_have_never_works(valkey: Valkey) -> None:
    store = RedisStore(f"redis://127.0.0.1:{valkey.port}/99", deployment="shop")
    await fails(store, "DB index")
    await store.aclose()


async def test_a_password_that_is_wrong_never_works(valkey: Valkey, user: str) -> None:
    store = RedisStore(f"redis://{user}:wr0ng@127.0.0.1:{valkey.port}/0", deployment="shop")
    assert "wr0ng" not in await fails(store, "password")
    await store.aclose()


async def test_another_part_of_a_cluster_never_works(serve: Serve) -> None:
    server = serve("--cluster-enabled", "yes")
    server.ask("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    await until(lambda: "cluster_state:ok" in str(server.ask("CLUSTER", "INFO")))
    store = RedisStore(server.url, deployment="shop")
    slot = server.ask("CLUSTER", "KEYSLOT", "{raincheck:shop}:due")
    assert isinstance(slot, int)
    server.ask("CLUSTER", "DELSLOTS", slot)
    server.ask("CONFIG", "SET", "cluster-require-full-coverage", "no")
    await fails(store, "cluster node")
    await store.aclose()


async def test_a_server_that_is_too_old_never_works() -> None:
    """It knows no way to ask for a user's rights."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while question := await reader.read(1 << 16):
            for command in re.findall(rb"\*\d+\r\n\$\d+\r\n(\w+)\r\n", question):
                script = b"*5\r\n:0\r\n+\r\n+\r\n*0\r\n*0\r\n"
                writer.write(script if command == b"EVALSHA" else b"+OK\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as old:
        port = old.sockets[0].getsockname()[1]
        store = RedisStore(f"redis://127.0.0.1:{port}/0", deployment="shop")
        await fails(store, "needs Redis 7, or Valkey")
        await store.aclose()


async def test_a_server_that_is_away_or_loads_may_come_back(serve: Serve) -> None:
    server = serve("--appendonly", "yes", "--key-load-delay", "100")
    store = RedisStore(server.url, deployment="shop")
    server.ask("EVAL", "for i = 1, 5000 do redis.call('SET', 'x', i) end", 0)
    server.kill()
    with pytest.raises(StoreError):
        await store.open()
    await anyio.to_thread.run_sync(server.start)
    await store.open()
    await store.aclose()


async def test_an_app_does_not_start_with_a_store_that_never_works(
    valkey: Valkey, users: RedisStore, user: str
) -> None:
    valkey.ask("ACL", "SETUSER", user, "resetchannels")
    app = LongRunningMiddleware(Starlette(), store=users)
    with pytest.raises(ConfigurationError, match="channel"):
        async with lifespan(app):
            pass


# --- keys of other applications --------------------------------------------------------------

_ENDING = {"finish", "delete"}
_MOVING = {"requeue", "create", *_ENDING}
FOREIGN: dict[str, tuple[str, set[str]]] = {
    "due": ("zset", {"create", *_ENDING}),
    "leases": ("zset", {"report", "renew", "claim", *_MOVING}),
    "busy": ("zset", {"claim", *_MOVING}),
    "job:w": ("hash", {"claim"}),
    "request:w": ("string", {"claim"}),
    "job:a": ("hash", {"report", "join", "requeue", "append", *_ENDING}),
    "body:a:0": ("string", {"finish", "append"}),
    "body:a:1": ("string", {"finish"}),
    "keys:a": ("set", {"join", *_ENDING}),
    "passing:a": ("set", {"join", *_ENDING}),
    "listed": ("hash", set()),
    "listed:totals": ("hash", {"list"}),
    "listed:-running 1:r": ("zset", {"list"}),
    "listed:3:annrunning 1:r": ("zset", {"list"}),
}
"""Keys of the store, with their kinds, and the calls that cannot go on once they are others'.

What lists and counts jobs is nothing that they need to go on.
"""


async def everything(store: RedisStore) -> dict[str, Any]:
    """All that the store keeps."""
    return {name: await tell(store, "DUMP", name) for name in await keys_of(store)}


async def occupy(store: RedisStore, key: str) -> None:
    """Put what is another application's where the store has a key."""
    await tell(store, "DEL", key)
    await tell(store, "SADD" if FOREIGN[key][0] == "string" else "SET", key, "theirs")


async def list_and_count(store: RedisStore) -> None:
    await store.list(owner="ann")
    await store.totals()


async def clear(store: RedisStore) -> None:
    for name in await keys_of(store):
        await tell(store, "DEL", name)


@pytest.mark.parametrize("key", FOREIGN)
async def test_a_key_of_another_application_is_an_error_that_changes_nothing(
    store: RedisStore, key: str
) -> None:
    """Whatever a call does, it does the whole of it or nothing."""
    there = job(owner="ann", max_runs=2, replayable=True)
    shares = (Key("k"), Key("run", None, False))
    calls: dict[str, Callable[[], Any]] = {
        "report": partial(store.replace, there.with_progress(Progress(0.5)), lease=60.0),
        "join": partial(store.replace, there.shared(1), keys=(Key("l"),)),
        "requeue": partial(store.replace, there.requeue(), lease=0.0),
        "finish": partial(store.replace, finished(there, size=WINDOW + 1), tail=b"yy"),
        "delete": partial(store.replace, there.tombstone(1000.0, 60.0)),
        "append": partial(store.append_body, "a", 1, WINDOW - 1, b"y"),
        "renew": partial(store.renew, {"a": 1}, 60.0),
        "create": partial(store.create, job("b"), request(), keys=(Key("m"),), lease=0.0),
        "list": partial(list_and_count, store),
        "claim": partial(store.claim, "w", routes="r", holder="h", now=1001.0, lease=60.0),
    }
    for name, call in calls.items():
        await store.create(there, request(), keys=shares, lease=0.0)
        await store.create(waiting("w"), request())
        await store.append_body("a", 1, 0, b"x" * (WINDOW - 1))
        await occupy(store, key)
        before = await everything(store)
        if name in FOREIGN[key][1]:
            with pytest.raises(StoreError, match=f"{key} is a "):
                await call()
            assert await everything(store) == before
        else:
            await call()
        await clear(store)


async def test_a_job_whose_key_another_application_has_keeps_no_other(store: RedisStore) -> None:
    for id in "abc":
        await store.create(job(id), lease=0.0)
    await tell(store, "DEL", "job:b")
    await tell(store, "SET", "job:b", "theirs")
    assert [(each.id, each.job) async for each in store.abandoned()] == [
        *[("a", job("a")), ("b", None), ("c", job("c"))]
    ]
    assert await store.renew(dict.fromkeys("abc", 1), 0.0) == dict.fromkeys("ac", State.RUNNING)
    assert await store.discard("b")
    assert [each.id async for each in store.abandoned()] == ["a", "c"]
    for id in "ac":
        await store.replace(finished(job(id)))
    await tell(store, "DEL", "job:c")
    await tell(store, "SET", "job:c", "theirs")
    assert await store.sweep(1060.0)
    assert not await store.sweep(1120.0)
    assert await keys_of(store) == {"busy"}  # where the first one stood, its key alone has said


async def test_leases_that_end_in_the_same_moment(store: RedisStore) -> None:
    ids = {str(number): 1 for number in range(2 * PAGE + 1)}
    for id in ids:
        await store.create(job(id))
    assert set(await store.renew(ids, 0.0)) == ids.keys()
    seen = [there.id async for there in store.abandoned()]
    assert sorted(seen) == sorted(ids)


async def test_many_leases_are_renewed_in_batches(store: RedisStore) -> None:
    ids = {str(number): 1 for number in range(BATCH + 1)}
    async with anyio.create_task_group() as group:
        for id in ids:
            group.start_soon(store.create, job(id))
    assert await store.renew(ids, 60.0) == dict.fromkeys(ids, State.RUNNING)


@pytest.mark.parametrize("id", ["", "a b\r\n", "ü", "\x00", "\ud800", "*", "{x}:y"])
async def test_any_string_is_an_id_and_a_key(store: RedisStore, id: str) -> None:
    assert await store.get(id) is None
    await store.create(job(id), keys=(Key(id, id),))
    assert await store.find(id) == (job(id), id)
    assert await store.get(id) == job(id)


# --- how many are busy -----------------------------------------------------------------------


async def counted(store: RedisStore) -> list[bytes]:
    """What the store counts, in its order."""
    members: list[bytes] = await tell(store, "ZRANGE", "busy", 0, -1)
    return members


def countable(jobs: Iterable[Job]) -> list[bytes]:
    """What it has to count when these are all there are."""
    return sorted(
        "".join(
            ("waiting " if job.state is State.QUEUED else "running ", *place(job), job.id)
        ).encode()
        for job in jobs
        if not (job.finished or job.gone)
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a", "b"), ("ab", "")),
        (("a", "1:b"), ("a1:", "b")),
        (("a", "ann"), ("a", "an")),
        (("a", "an"), ("a", "ann")),
        (("a", ""), ("a", None)),
        (("a", None), ("a", "")),
        (("a", None), ("a", "ann")),
        (("a", None), ("a", "-")),
        (("a3:ann", None), ("a", "ann")),
        (("1:a", "b"), ("1", "a1:b")),
        (("ü", "é"), ("u", "e")),
        (("\ud800", "\x00"), ("\ud800\x00", "")),
        (("\U0010ffff", "\U0010ffff"), ("\U0010ffff", None)),
    ],
)
async def test_no_route_and_owner_are_mistaken_for_others(
    store: RedisStore, one: tuple[str, str | None], other: tuple[str, str | None]
) -> None:
    ids = ("a", "3:anna", "")
    for id in ids:
        await store.create(job(id, route=one[0], owner=one[1]))
    there = one[0] == other[0]
    of_other = [job(f"other {id}", route=other[0], owner=other[1]) for id in ids]
    assert await fits(store, of_other[0], Bounds(route=1 + 3 * there, owner=1))
    assert not await fits(store, of_other[1], Bounds(route=1 + 3 * there))
    if other[1] is not None:
        assert not await fits(store, of_other[1], Bounds(owner=1))
        assert await fits(store, of_other[1], Bounds(owner=2))


async def test_a_version_that_stays_in_its_state_needs_no_room(store: RedisStore) -> None:
    one = Bounds(route=1, owner=1)
    for id in "ab":
        await store.create(job(id, owner="ann"))
    further = job(owner="ann").with_progress(Progress(0.5))
    assert await store.replace(further, bounds=one)
    assert await store.replace(further.cancelling(), bounds=one)
    assert await store.replace(finished(further.cancelling()), bounds=one)


ROUTES = ("short", "long")


async def listed_as(store: RedisStore, there: Iterable[Job]) -> None:
    """See that these are listed and counted as what they are, and no others."""
    groups: dict[tuple[str, State], dict[str, Job]] = {}
    for each in there:
        groups.setdefault((each.route, each.state), {})[each.id] = each
    counts = {group: total.count for group, total in (await store.totals()).items()}
    assert counts == {group: len(jobs) for group, jobs in groups.items()}
    for (route, state), jobs in groups.items():
        page = await store.list(route=route, states=[state])
        assert {each.id: each for each in page.jobs} == jobs
        page = await store.list(route=route, states=[state], owner="1")
        assert {each.id for each in page.jobs} == {id for id in jobs if jobs[id].owner == "1"}


@pytest.mark.slow
async def test_every_way_through_life_is_counted(
    store: RedisStore, valkey: Valkey, deployment: str
) -> None:
    """Several take any turn at once, most of them too late, and none is counted twice or missed."""
    chance = random.Random(1)
    stores = [RedisStore(valkey.url, deployment=deployment) for _ in range(3)]
    ids = [str(number) for number in range(30)]
    bounds = Bounds(route=10, owner=6)

    def new(id: str) -> Job:
        route, owner = ROUTES[len(id) > 1], id[0]
        waits = job(id, route=route, owner=owner, state=State.QUEUED)
        return waits._replace(max_runs=9, replayable=True)

    def next_of(there: Job) -> Job:
        ways: list[Job] = [there.tombstone(1000.0, 60.0)]
        if there.state is State.QUEUED:
            ways += [there.held_by("me"), *3 * [there.start(1000.0)]]
        elif not there.finished:
            ways += [there.with_progress(Progress(0.5)), finished(there)]
        if there.state is State.RUNNING:
            ways += [there.cancelling(), *([there.requeue()] if there.replayable else [])]
        return chance.choice(ways)

    async def live(store: RedisStore) -> None:
        for _ in range(300):
            id = chance.choice(ids)
            try:
                there = await store.get(id)
                if there is None:
                    await store.create(new(id), request(), bounds=bounds)
                elif there.state is State.QUEUED and chance.random() < 0.3:
                    await store.claim(id, routes=ROUTES, holder="me", now=1000.0, lease=None)
                elif not there.gone:
                    await store.replace(next_of(there), bounds=bounds)
                else:
                    await store.sweep(1120.0)
            except NoRoom:
                full.append(id)

    full: list[str] = []
    seen: set[State] = set()
    for _ in range(5):
        async with anyio.create_task_group() as group:
            for one in stores * 4:
                group.start_soon(live, one)
        there = [found for id in ids if (found := await store.get(id))]
        seen |= {found.state for found in there}
        assert await counted(store) == countable(there)
        await listed_as(store, [found for found in there if not found.gone])
    assert full
    assert {State.QUEUED, State.RUNNING, State.CANCELLING} <= seen
    for found in there:
        if not found.gone:
            await store.replace(found.tombstone(1000.0, 60.0))
    assert await counted(store) == []
    await store.sweep(1120.0)
    assert await keys_of(store) == set()
    for one in stores:
        await one.aclose()


# --- lists -----------------------------------------------------------------------------------


async def test_a_list_of_any_jobs_is_in_order(store: RedisStore) -> None:
    """Several routes, states and owners with jobs of the same time, in pages of any length."""
    chance = random.Random(1)
    ids = ["a", "B", "ab", "é", "z", "\U0001f600", " ", "a b"]
    there = []
    for number in range(400):
        state = chance.choice(list(State))
        new = job(
            f"{chance.choice(ids)}{number}",
            route=chance.choice("rstü "),
            owner=chance.choice([None, "ann", "", "-", "1:r"]),
            created_at=1000.0 + chance.choice([0.0, 0.25, chance.random()]),
            state=State.RUNNING if finishes(state) else state,
        )
        await store.create(new)
        if finishes(state):
            new = new.finish(state, 2000.0, ttl=60.0, tombstone_ttl=60.0)
            assert await store.replace(new)
        there.append(new)
    there.sort(key=lambda job: (job.created_at, job.id), reverse=True)
    for _ in range(60):
        states = chance.sample(list(State), chance.choice([0, 1, 2, 6]))
        route, owner = chance.choice([None, *"rst-"]), chance.choice([None, "ann", "", "bob"])
        since, until = (chance.choice([None, 1000.25, 1000 + chance.random()]) for _ in "ab")
        wanted = [
            job
            for job in there
            if (not states or job.state in states)
            and route in (None, job.route)
            and owner in (None, job.owner)
            and (since is None or job.created_at >= since)
            and (until is None or job.created_at < until)
        ]
        listed, after, limit = list[Job](), None, chance.choice([1, 2, 7, 100])
        while True:
            page = await store.list(
                states=states,
                route=route,
                owner=owner,
                since=since,
                until=until,
                after=after,
                limit=limit,
            )
            listed += page.jobs
            if (after := page.after) is None:
                break
            assert len(page.jobs) == limit
        assert listed == wanted


def finishes(state: State) -> bool:
    return not TRANSITIONS[state]


async def test_a_page_goes_on_where_one_ended_that_is_gone(store: RedisStore) -> None:
    """Of many jobs of one time, whether it is found or not where the page before ended."""
    ids = [f"{number:03}" for number in range(300)]
    for id in ids:
        await store.create(job(id))
    page = await store.list(limit=150)
    await store.replace(job("150").tombstone(1000.0, 60.0))
    await store.replace(job("149").cancelling())
    rest = await store.list(after=page.after, limit=200)
    assert [found.id for found in rest.jobs] == ids[149::-1]
    assert rest.after is None


async def test_a_long_page_is_asked_for_in_batches(serve: Serve) -> None:
    """So that no script holds the server for long."""
    server = serve()
    store = RedisStore(server.url, deployment="shop")
    async with anyio.create_task_group() as group:
        for number in range(2 * LISTED + 2):
            group.start_soon(store.create, job(str(number), created_at=float(number)))
    server.ask("CONFIG", "RESETSTAT")
    page = await store.list(limit=2 * LISTED + 1)
    assert [found.created_at for found in page.jobs] == list(range(2 * LISTED + 1, 0, -1))
    assert statistics(server, "commandstats")["cmdstat_evalsha"]["calls"] == 3
    assert [found.id for found in (await store.list(after=page.after)).jobs] == ["0"]
    await store.aclose()


async def test_what_an_older_version_has_changed_is_not_listed_as_it_was(store: RedisStore) -> None:
    """It does not know the lists."""
    for id in "abc":
        await store.create(job(id))
    await tell(store, "HSET", "job:a", "record", dump(job("a").cancelling()))
    await tell(store, "HSET", "job:b", "record", dump(job("b").tombstone(1000.0, 60.0)))
    assert (await store.list(states=[State.RUNNING])).jobs == [job("c")]
    await tell(store, "HDEL", "listed", "c")
    await tell(store, "ZREM", "listed:-running 1:r", "c")  # as if it had made it
    assert await store.replace(finished(job("c")))
    assert (await store.list(states=[State.FAILED])).jobs == [finished(job("c"))]


async def test_what_an_older_version_has_made_is_claimed(store: RedisStore) -> None:
    """Without a place in the lists: it has none before it ends."""
    await store.create(waiting(), request())
    await tell(store, "HDEL", "listed", "a")
    await tell(store, "DEL", "listed:-queued 1:r")
    runs = waiting().start(1001.5, "here")
    assert await claim(store) == (runs, request(), True)
    assert (await store.list()).jobs == []
    assert await store.replace(finished(runs))
    assert (await store.list()).jobs == [finished(runs)]


async def test_a_captured_request_of_another_version_is_left_alone(store: RedisStore) -> None:
    for record in (b'{"format":2}\n', b"", b"\x7f"):
        await store.create(waiting(), request())
        await tell(store, "SET", "request:a", record)
        with pytest.raises(UnreadableRecord):
            await claim(store)
        assert await store.get("a") == waiting()
        await clear(store)


async def test_the_head_of_another_run_that_an_older_version_leaves(store: RedisStore) -> None:
    """It knows of none."""
    again = job(version=2, fence=2)
    await store.create(job())
    await store.append_body("a", 1, 0, b"", head=Head(200, ()))
    await tell(store, "HSET", "job:a", "record", dump(again), "version", 2, "fence", 2)
    assert await store.partial("a") == (again, None, 0)
    await store.append_body("a", 2, 0, b"", head=Head(201, ()))
    assert await store.partial("a") == (again, Head(201, ()), 0)


async def test_what_only_a_while_needs_is_not_kept(store: RedisStore) -> None:
    fields = {b"record", b"version", b"fence", b"stage", b"size", b"counted"}
    later = waiting(max_runs=2, not_before=1001.0)
    await store.create(later, request())
    assert set(await tell(store, "HKEYS", "job:a")) == fields | {b"not_before"}
    await store.append_body("a", later.fence, 0, b"", head=Head(200, ()))
    runs = later.start(1001.5, "here")
    await claim(store)
    assert set(await tell(store, "HKEYS", "job:a")) == fields
    await store.append_body("a", runs.fence, 0, b"", head=Head(200, ()))
    assert set(await tell(store, "HKEYS", "job:a")) == fields | {b"head"}
    again = runs.requeue()._replace(not_before=1003.0)
    await store.replace(again)
    assert set(await tell(store, "HKEYS", "job:a")) == fields | {b"not_before"}
    await store.replace(again.start(1003.0))
    await store.append_body("a", again.fence + 1, 0, b"", head=Head(200, ()))
    await store.replace(finished(again.start(1003.0), size=0))
    assert set(await tell(store, "HKEYS", "job:a")) == fields


async def test_the_seconds_of_many_jobs_come_and_go(store: RedisStore) -> None:
    chance = random.Random(1)
    runs = {str(number): job(str(number), started_at=1000.0) for number in range(100)}
    for id, there in runs.items():
        await store.create(there)
        runs[id] = finished(there, now=1000.0 + chance.random())
        await store.replace(runs[id])
    for left in (100, 40, 1):
        for id in list(runs)[left:]:
            assert await store.replace(runs.pop(id).tombstone(1000.0, 60.0))
        took = sum(there.finished_at - 1000.0 for there in runs.values() if there.finished_at)
        total = (await store.totals())["r", State.FAILED]
        assert (total.count, total.oldest) == (left, 1000.0)
        assert total.seconds == pytest.approx(took, abs=1e-9)


# --- waiting ---------------------------------------------------------------------------------


async def test_a_change_between_the_look_and_the_wait_is_not_missed(
    store: RedisStore, valkey: Valkey, deployment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    another = RedisStore(valkey.url, deployment=deployment)
    for id in "ab":
        await store.create(job(id))
    looks = []
    look = store._get

    async def look_and_linger(line: Any, id: str) -> Any:
        there = await look(line, id)
        looks.append(there)
        if len(looks) == 1:
            await another.replace(job().cancelling())
            await anyio.sleep(0.1)  # the news come before it waits for them
        return there

    async with anyio.create_task_group() as group:
        group.start_soon(store.changed, "b", 1)  # so that the subscription stands
        await until(lambda: waiting_in(store) == 1)
        monkeypatch.setattr(store, "_get", look_and_linger)
        with anyio.fail_after(PATIENCE):
            assert await store.changed("a", 1) == job().cancelling()
        group.cancel_scope.cancel()
    assert looks == [job(), job().cancelling()]
    await another.aclose()


async def test_a_tombstone_that_is_forgotten_wakes_who_waits(store: RedisStore) -> None:
    tombstone = job().tombstone(1000.0, 60.0)
    await store.create(job())
    await store.replace(tombstone)
    async with anyio.create_task_group() as group:

        async def watch() -> None:
            assert await store.changed("a", tombstone.version) is None

        group.start_soon(watch)
        await until(lambda: waiting_in(store) == 1)
        await store.sweep(1060.0)


@pytest.mark.slow
async def test_two_thousand_wait(store: RedisStore) -> None:
    ids = [str(number) for number in range(2000)]
    woken = []

    async def watch(id: str) -> None:
        newest = await store.changed(id, 1)
        assert newest is not None
        woken.append(newest.id)

    async with anyio.create_task_group() as group:
        for id in ids:
            group.start_soon(store.create, job(id))
    async with anyio.create_task_group() as group:
        for id in ids:
            group.start_soon(watch, id)
        await until(lambda: waiting_in(store) == 2000)
        async with anyio.create_task_group() as changes:
            for id in ids:
                changes.start_soon(store.replace, job(id).cancelling())
    assert sorted(woken) == sorted(ids)


async def test_the_subscription_ends_when_nobody_waits(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_room, "KEEPALIVE", 0.02)
    server = serve()
    store = RedisStore(server.url, deployment="shop")
    await store.create(job())
    assert clients(server, "pubsub") == 0
    for version in (1, 2):
        async with anyio.create_task_group() as group:
            group.start_soon(store.changed, "a", version)
            await until(lambda: waiting_in(store) == 1)
            await anyio.sleep(0.1)  # several looks
            assert clients(server, "pubsub") == 1
            there = await store.get("a")
            assert there is not None
            await store.replace(there.with_progress(Progress(0.5)))
        await until(lambda: clients(server, "pubsub") == 0)
    await store.aclose()


async def test_a_subscription_that_has_gone_dead_is_opened_anew(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a firewall that forgets connections: no end is seen, and nothing comes."""
    monkeypatch.setattr(line_room, "KEEPALIVE", 0.05)
    server = serve()
    store = RedisStore(server.url, timeout=0.2, deployment="shop")
    await store.create(job())

    def subscriber() -> str:
        listed = str(server.ask("CLIENT", "LIST", "TYPE", "pubsub"))
        return listed.partition(" ")[0]

    async with anyio.create_task_group() as group:
        group.start_soon(store.changed, "a", 1)
        await until(lambda: waiting_in(store) == 1)
        before = subscriber()
        server.hang()
        await anyio.sleep(0.5)
        server.go_on()
        await until(lambda: "id=" in subscriber() and subscriber() != before)
        await until_done(partial(store.replace, job().cancelling()))
    await store.aclose()


async def until_done(call: Callable[[], Any]) -> Any:
    """Ask again until there is an answer, as callers do."""
    with anyio.fail_after(PATIENCE):
        while True:
            try:
                return await call()
            except StoreError:
                await anyio.sleep(0.01)


async def test_closing_tells_those_who_wait(store: RedisStore) -> None:
    await store.create(job())
    async with anyio.create_task_group() as group:

        async def watch() -> None:
            with pytest.raises(StoreError, match="closed"):
                await store.changed("a", 1)

        group.start_soon(watch)
        await until(lambda: waiting_in(store) == 1)
        await store.aclose()
    assert await store.get("a") == job()


# --- connections -----------------------------------------------------------------------------


async def test_closing_leaves_no_connection_and_no_task(serve: Serve) -> None:
    server = serve()
    store = RedisStore(server.url, deployment="shop")
    before = asyncio.all_tasks()
    await store.aclose()  # never opened
    await store.create(job())
    with anyio.move_on_after(0.05):
        await store.changed("a", 1)
    assert (clients(server), clients(server, "pubsub")) == (1, 1)
    await store.aclose()
    await until(lambda: clients(server) + clients(server, "pubsub") == 0)
    assert asyncio.all_tasks() == before
    await store.aclose()


def test_the_end_of_the_event_loop_closes_the_connections(serve: Serve) -> None:
    server = serve()
    store = RedisStore(server.url, deployment="shop")

    async def use() -> None:
        await store.create(job())
        with anyio.move_on_after(0.05):
            await store.changed("a", 1)

    for _ in range(3):
        anyio.run(use)
        anyio.run(partial(until, lambda: clients(server) + clients(server, "pubsub") == 0))


def test_every_event_loop_has_connections_of_its_own(valkey: Valkey, deployment: str) -> None:
    store = RedisStore(valkey.url, deployment=deployment)
    with asyncio.Runner() as first, asyncio.Runner() as second:
        assert first.run(store.create(job())) == job()
        assert second.run(store.get("a")) == job()
        assert first.run(store.get("a")) == job()


async def test_somebody_who_cancels_every_task_does_not_break_it(store: RedisStore) -> None:
    await store.create(job())
    assert store._opened is not None
    store._opened._task.cancel()
    with pytest.raises(StoreError, match="closed"):
        await store.get("a")  # it was on its way
    assert await store.get("a") == job()


async def test_it_does_not_hold_on_to_the_context_of_its_first_caller(store: RedisStore) -> None:
    class Span:
        pass

    current: ContextVar[Span] = ContextVar("current")

    async def call() -> weakref.ref[Span]:
        span = Span()
        current.set(span)
        await store.create(job())
        with anyio.move_on_after(0.05):
            await store.changed("a", 1)
        return weakref.ref(span)

    span = await asyncio.create_task(call())
    await anyio.lowlevel.checkpoint()  # the event loop lets go of the task itself
    gc.collect()
    assert span() is None


async def test_answers_are_not_mistaken_when_calls_are_cancelled(store: RedisStore) -> None:
    chance = random.Random(1)
    ids = [str(number) for number in range(50)]
    for id in ids:
        await store.create(job(id))
        await store.append_body(id, 1, 0, id.encode() * 1000)

    async def ask() -> None:
        for _ in range(40):
            id = chance.choice(ids)
            with anyio.move_on_after(chance.random() * 0.004):
                assert await store.get(id) == job(id)
                assert await body_of(store, id) == id.encode() * 1000

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(ask)
    assert [await store.get(id) for id in ids] == [job(id) for id in ids]


async def test_connections_that_were_killed_are_opened_anew(serve: Serve) -> None:
    server = serve()
    store = RedisStore(server.url, deployment="shop")
    await store.create(job())
    async with anyio.create_task_group() as group:
        group.start_soon(store.changed, "a", 1)
        await until(lambda: waiting_in(store) == 1)
        for kind in ("normal", "pubsub"):
            server.ask("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
        await anyio.sleep(0.01)
        assert await store.replace(job().cancelling())  # perhaps while it does not listen
    await store.aclose()


async def test_no_client_learns_that_the_server_was_started_again(serve: Serve) -> None:
    server = serve("--appendonly", "yes", "--appendfsync", "always")

    def restart() -> None:
        server.kill()
        server.start()

    await serves_through_a_restart(
        RedisStore(server.url, deployment="shop", timeout=PATIENCE), restart
    )


@pytest.mark.parametrize("idle", [0.001, 60.0])
async def test_a_server_that_was_started_again_costs_nobody_an_answer(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, idle: float
) -> None:
    """The event loop hears of nothing before the next call, which meets a dead connection."""
    monkeypatch.setattr(line_room, "IDLE", idle)
    server = serve("--appendonly", "yes", "--appendfsync", "always")
    store = RedisStore(server.url, deployment="shop", timeout=PATIENCE)
    there = job(replayable=True)
    calls: list[Callable[[], Any]] = [
        partial(store.create, there, request(), keys=(Key("k"),), bounds=Bounds(route=1)),
        partial(store.get, "a"),
        partial(store.find, "k"),
        partial(store.request, "a"),
        partial(store.append_body, "a", 1, 0, b"x"),
        partial(store.renew, {"a": 1}, 60.0),
    ]
    if idle < 1.0:  # which asks first whether the connection is alive
        calls.append(partial(store.replace, there.cancelling()))
    await store.get("a")
    for call in calls:
        server.kill()
        server.start()
        assert await call()
    await store.aclose()


async def test_a_demoted_server_is_left(serve: Serve) -> None:
    server = serve()
    store = RedisStore(server.url, deployment="shop")
    await store.create(job())
    connection = (await store._line().ask("CLIENT", "ID"),)
    server.ask("REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(StoreError, match="read only"):
        await store.create(job("b"))
    server.ask("REPLICAOF", "NO", "ONE")
    assert await store.create(job("b")) == job("b")
    assert (await store._line().ask("CLIENT", "ID"),) != connection
    await store.aclose()


# --- a server in trouble ---------------------------------------------------------------------


async def test_a_server_that_is_not_there() -> None:
    store = RedisStore("redis://u:secret@127.0.0.1:1/0", timeout=2.0, deployment="shop")
    for call in (partial(store.get, "a"), partial(store.changed, "a", 0)):
        with pytest.raises(StoreError, match=r"Redis at 127\.0\.0\.1:1, ") as raised:
            await call()
        assert "secret" not in "".join(traceback.format_exception(raised.value))
        assert raised.value.__cause__ is not None
    await store.aclose()


async def test_a_server_that_hangs(serve: Serve) -> None:
    server = serve()
    store = RedisStore(server.url, timeout=1.0, deployment="shop")
    await store.create(job())
    server.hang()
    took = []

    async def ask(delay: float) -> None:
        await anyio.sleep(delay)
        began = time.monotonic()
        with pytest.raises(StoreError, match="no answer for 1 seconds"):
            await store.get("a")
        took.append(time.monotonic() - began)

    async with anyio.create_task_group() as group:
        for delay in (0.0, 0.05, 0.1, 0.5, 1.3):  # the first is sent, others queue behind it
            group.start_soon(ask, delay)
    assert len(took) == 5
    assert max(took) < 1.75
    server.go_on()
    assert await until_done(partial(store.get, "a")) == job()
    server.hang()
    began = time.monotonic()
    await store.aclose()
    assert time.monotonic() - began < 1.0
    server.go_on()


async def test_nothing_acknowledged_is_lost_when_the_server_dies(serve: Serve) -> None:
    server = serve("--appendonly", "yes", "--appendfsync", "always")
    store = RedisStore(server.url, deployment="shop")
    created, replaced, failed = [], [], []

    async def accept(worker: int) -> None:
        for number in range(1000):
            there = job(f"{worker}-{number}")
            try:
                await store.create(there, keys=(Key(f"k-{there.id}"),), lease=60.0)
                created.append(there)
                assert await store.replace(finished(there), tail=b"x" * 100)
                replaced.append(there)
            except StoreError:
                failed.append(there)
                return

    async with anyio.create_task_group() as group:
        for worker in range(16):
            group.start_soon(accept, worker)
        await until(lambda: len(replaced) > 300)
        await anyio.to_thread.run_sync(server.kill)
    assert len(failed) == 16
    with pytest.raises(StoreError):
        await store.get("0-0")
    server.start()
    for there in created:
        found = await store.get(there.id)
        assert found is not None
    for there in replaced:
        assert await store.get(there.id) == finished(there)
        assert await body_of(store, there.id) == b"x" * 100
    kept = [await store.get(f"{worker}-{number}") for worker in range(16) for number in range(1000)]
    assert await counted(store) == countable(there for there in kept if there is not None)
    assert await store.create(job("new")) == job("new")
    await store.aclose()


async def test_who_waits_survives_a_restart_and_a_slow_start(serve: Serve) -> None:
    server = serve("--appendonly", "yes", "--appendfsync", "always", "--key-load-delay", "50")
    store = RedisStore(server.url, deployment="shop")
    woken = []

    async def watch(id: str) -> None:
        newest = await store.changed(id, 1)
        assert newest is not None
        woken.append(newest.id)

    ids = [str(number) for number in range(100)]
    for id in ids:
        await store.create(job(id))
    server.ask("EVAL", "for i = 1, 12000 do redis.call('SET', 'x', i) end", 0)  # a long journal
    async with anyio.create_task_group() as group:
        for id in ids:
            group.start_soon(watch, id)
        await until(lambda: waiting_in(store) == 100)
        server.kill()
        await anyio.sleep(0.3)  # some tries fail
        await anyio.to_thread.run_sync(server.start)
        assert woken == []
        for id in ids:
            await until_done(partial(store.replace, job(id).cancelling()))
    assert sorted(woken) == sorted(ids)
    await store.aclose()


async def test_a_change_that_came_while_the_server_was_away_is_not_missed(serve: Serve) -> None:
    """It is made over another connection, before this one listens again."""
    server = serve("--appendonly", "yes", "--appendfsync", "always")
    store, another = (
        RedisStore(server.url, deployment="shop"),
        RedisStore(server.url, deployment="shop"),
    )
    await store.create(job())
    async with anyio.create_task_group() as group:
        group.start_soon(store.changed, "a", 1)
        await until(lambda: waiting_in(store) == 1)
        server.kill()
        await anyio.sleep(0.05)  # it has noticed, and will try again in a quarter of a second
        server.start()
        assert await another.replace(job().cancelling())
    await store.aclose()
    await another.aclose()


async def test_a_full_server_refuses_new_jobs_and_keeps_those_it_has(serve: Serve) -> None:
    server = serve("--maxmemory-policy", "noeviction")
    store = RedisStore(server.url, deployment="shop")
    queued = job(state=State.QUEUED, fence=0, replayable=True, max_runs=2)
    await store.create(queued, request(b"x" * 1000), keys=(Key("k"),), lease=0.0)
    await store.create(job("old"))
    await store.replace(finished(job("old")))
    server.ask("CONFIG", "SET", "maxmemory", "1mb")
    with pytest.raises(StoreFull, match="is full"):
        await store.create(job("new"), request(), keys=(Key("l"),), lease=60.0)
    with pytest.raises(StoreFull, match="is full"):
        await store.replace(queued.shared(1), keys=(Key("l"),))
    assert await store.get("new") is None
    assert await store.find("l") is None
    running = queued.start(1001.0)
    assert [there.job async for there in store.abandoned()] == [queued]
    assert await store.replace(running, lease=60.0)
    assert await store.renew({"a": 1}, 60.0) == {"a": State.RUNNING}
    for number in range(10):
        assert await store.append_body("a", 1, number * WINDOW, b"y" * WINDOW)
    done = finished(running, size=10 * WINDOW + 100_000)
    assert await store.replace(done, tail=b"z" * 100_000)
    assert len(await body_of(store, "a")) == 10 * WINDOW + 100_000
    assert await store.find("k") == (done, None)
    assert await store.sweep(1060.0)
    assert not await store.sweep(1120.0)
    server.ask("CONFIG", "SET", "maxmemory", 0)
    assert await store.create(job("new")) == job("new")
    await store.aclose()


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        (("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"), 1),
        (("--maxmemory", "100mb", "--maxmemory-policy", "noeviction"), 0),
        (("--maxmemory", "0", "--maxmemory-policy", "allkeys-lru"), 0),
    ],
)
async def test_a_server_that_evicts_is_warned_of(
    serve: Serve, caplog: pytest.LogCaptureFixture, options: tuple[str, ...], warned: int
) -> None:
    store = RedisStore(serve(*options).url, deployment="shop")
    with caplog.at_level(logging.WARNING, "raincheck"):
        for id in "abc":
            await store.get(id)
    assert len(caplog.records) == warned
    assert all("maxmemory-policy" in record.message for record in caplog.records)
    await store.aclose()


async def test_what_the_server_itself_has_dropped_is_not_stored_any_more(
    store: RedisStore,
) -> None:
    most = Bounds(stored=1)
    await store.create(job("a", owner="ann"), bounds=most)
    assert await store.replace(finished(job("a", owner="ann")))
    assert not await fits(store, job("b", owner="ann"), most)
    await store._ask("DEL", store._key("job:", "a"))  # when it was not swept for a day
    await store.sweep(1060.0)
    assert await fits(store, job("b", owner="ann"), most)
    assert await store._ask("EXISTS", store._key("listed:stored")) == 0


async def test_passwords_are_used_and_never_told(serve: Serve) -> None:
    server = serve("--requirepass", "s3cret/ü")
    right = RedisStore(f"redis://:s3cret%2F%C3%BC@127.0.0.1:{server.port}/0", deployment="shop")
    assert await right.create(job()) == job()
    with anyio.move_on_after(0.05):
        await right.changed("a", 1)
    await right.aclose()
    for credentials in (":wr0ng@", "somebody:wr0ng@", ""):
        store = RedisStore(f"redis://{credentials}127.0.0.1:{server.port}/0", deployment="shop")
        for call in (partial(store.get, "a"), partial(store.changed, "a", 0)):
            with pytest.raises(StoreError, match=r"(?i)(password|authentication)") as raised:
                await call()
            assert "wr0ng" not in "".join(traceback.format_exception(raised.value))
        assert "wr0ng" not in repr(store)
        await store.aclose()


async def test_a_socket_file_will_do(serve: Serve, tmp_path: Path) -> None:
    serve("--unixsocket", str(tmp_path / "valkey.sock"))
    store = RedisStore(f"unix://{tmp_path}/valkey.sock?db=3", deployment="shop")
    assert await store.create(job()) == job()
    await store.aclose()


@pytest.mark.parametrize("size", [1, 3 * WINDOW])
async def test_tls_will_do(valkey: Valkey, deployment: str, size: int) -> None:
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(CERTIFICATE)
    relay = Relay(valkey.port)
    async with relay.opened(served):
        options = f"ssl_cert_reqs=required&ssl_ca_certs={CERTIFICATE}&ssl_check_hostname=false"
        url = f"rediss://127.0.0.1:{relay.port}/0?{options}"
        store = RedisStore(url, deployment=deployment)
        done = await with_body(store, "a", [b"x" * size])
        assert await store.get("a") == done
        assert await body_of(store, "a") == b"x" * size
        relay.lose()
        assert await store.get("a") == done
        assert relay.lost == 1
        await store.aclose()


WRITTEN: list[tuple[str | bytes | int | float, ...]] = [
    ("EVALSHA", "a" * 40, 2, b"\0\r\n", "ü", "\ud800", "", 1.5, float("inf"), -1, 1e22),
    ("PING",),
    ("SET", "ü", b"x" * 100_000, 1.5, float("inf"), -1, 1e22, b"\xff\r\n", ""),
]


def test_commands_are_written_as_redis_py_writes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_room, "pack_command", None)
    _, _, connect = line_room.server("redis://localhost")
    written = b"".join(connect().pack_commands(WRITTEN))
    assert b"".join(map(line_room.packed, WRITTEN)) == written


def test_commands_are_written_alike_with_hiredis(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is asked, and does not know every string."""
    asked = []

    def pack_command(words: tuple[str | bytes | int | float, ...]) -> bytes:
        asked.append(words)
        for word in words:
            if isinstance(word, str):
                word.encode()
        return b"packed"

    monkeypatch.setattr(line_room, "pack_command", pack_command)
    assert line_room.packed(WRITTEN[1]) == b"packed"
    surrogate = line_room.packed(WRITTEN[0])
    assert b"\xed\xa0\x80" in surrogate
    assert asked == [WRITTEN[1], WRITTEN[0]]
    hiredis = pytest.importorskip("hiredis")
    for command in WRITTEN[1:]:
        monkeypatch.setattr(line_room, "pack_command", None)
        written = line_room.packed(command)
        monkeypatch.setattr(line_room, "pack_command", hiredis.pack_command)
        assert line_room.packed(command) == written
