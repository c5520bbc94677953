from __future__ import annotations

import asyncio
import json
import random
import re
import shlex
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import Any
from uuid import uuid4

import anyio
import anyio.to_thread
import asyncpg  # type: ignore[import-untyped]  # it brings no types
import pytest
from anyio.abc import SocketAttribute, SocketStream

from raincheck import ConfigurationError
from raincheck.errors import NoRoom, StoreError, StoreFull
from raincheck.job import Bounds, Job, Key, Progress, State
from raincheck.messages import CapturedResponse, Head
from raincheck.serialization import dump, dump_request
from raincheck.stores import (
    _postgres_batches,
    _postgres_changes,
    _postgres_schema,
    _postgres_server,
    _postgres_session,
)
from raincheck.stores import postgres as module
from raincheck.stores._postgres_schema import MIGRATIONS
from raincheck.stores._postgres_statements import (
    CREATE_MANY,
    END_MANY,
    PIECE,
    RENEW,
    RENEW_FREE,
    REPLACE,
    columns,
    digest,
    pieces,
)
from raincheck.stores.base import Claim, Fetched, Page, Partial, Store, Total
from raincheck.stores.bounded import BoundedStore
from raincheck.stores.postgres import PAGE, PostgresStore
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
from tests.stores.postgres import Postgres
from tests.stores.relay import Relay
from tests.stores.shared import (
    PATIENCE,
    ServedStoreContract,
    UnreadableContract,
    changes_jobs,
    child,
    serves_through_a_restart,
)

pytestmark = [pytest.mark.anyio, pytest.mark.real]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def schema() -> str:
    """Of one test: the server is the same for all."""
    return f'test "{uuid4().hex}'


@pytest.fixture
def opening(postgres: Postgres, schema: str) -> str:
    return (
        "from raincheck.stores.postgres import PostgresStore\n"
        f"store = PostgresStore({postgres.url!r}, deployment='shop', schema={schema!r}, "
        "connections=4)"
    )


Open = Callable[..., PostgresStore]


@pytest.fixture
async def open_store(postgres: Postgres, schema: str) -> AsyncIterator[Open]:
    """Makes stores with other settings, all in the schema of the test."""
    stores = []

    def make(url: str = postgres.url, **settings: Any) -> PostgresStore:
        stores.append(PostgresStore(url, **{"deployment": "shop", "schema": schema, **settings}))
        return stores[-1]

    yield make
    for store in stores:
        await store.aclose()


@pytest.fixture
def store(open_store: Open) -> PostgresStore:
    return open_store()


LOCKED = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
ENDED = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE wait_event_type"


async def until(true: Callable[[], bool]) -> None:
    """Wait for what happens elsewhere."""
    with anyio.fail_after(PATIENCE):
        while not true():  # noqa: ASYNC110 # there is no event of it
            await anyio.sleep(0.02)


@asynccontextmanager
async def connected(postgres: Postgres, schema: str) -> AsyncIterator[Any]:
    """A connection that can hold locks; names without a schema are those of the test's tables."""
    connection = await asyncpg.connect(
        postgres.url, server_settings={"search_path": f'"{schema.replace(chr(34), chr(34) * 2)}"'}
    )
    try:
        yield connection
    finally:
        await connection.close()


class TestPostgresStore(ServedStoreContract, UnreadableContract, LiveContract):
    @pytest.fixture
    def schema(self, postgres: Postgres) -> Iterator[str]:
        """Of all these tests, each of which leaves it empty: to make one takes longer than most."""
        yield "contract"
        postgres.empty("contract")

    @pytest.fixture
    def neighbour(self, open_store: Open) -> Store:
        return open_store(deployment="bank")

    @pytest.fixture
    async def relay(self, postgres: Postgres) -> AsyncIterator[Relay]:
        relay = Relay(postgres.port)
        async with relay.opened():
            yield relay

    @pytest.fixture
    async def far(self, relay: Relay, postgres: Postgres, open_store: Open) -> Store:
        return open_store(postgres.url.replace(f":{postgres.port}/", f":{relay.port}/"))

    async def overwrite(self, store: Store, id: str, record: bytes) -> None:
        assert isinstance(store, PostgresStore)
        await store._rows(
            "UPDATE raincheck.jobs SET record = $2 WHERE id = $1", id, record.decode()
        )


# --- settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dsn", "settings", "names"),
    [
        ("mysql://host/database", {}, "dsn"),
        ("host=localhost", {}, "dsn"),
        ("postgresql://user:se/c@ret@host/database", {}, "dsn"),
        ("postgresql://user:se?c@host/database", {}, "dsn"),
        ("postgresql://user:se#c@host/database", {}, "dsn"),
        ("postgresql://host/database", {"deployment": ""}, "deployment"),
        ("postgresql://host/database", {"deployment": "a'b"}, "deployment"),
        ("postgresql://host/database", {"deployment": "ü"}, "deployment"),
        ("postgresql://host/database", {"deployment": "a" * 64}, "deployment"),
        ("postgresql://host/database", {"deployment": None}, "deployment"),
        ("postgresql://host/database", {"schema": ""}, "schema"),
        ("postgresql://host/database", {"schema": "ü" * 32}, "schema"),
        ("postgresql://host/database", {"schema": "a\0"}, "schema"),
        ("postgresql://host/database", {"timeout": 0}, "timeout"),
        ("postgresql://host/database", {"timeout": float("inf")}, "timeout"),
        ("postgresql://host/database", {"connections": 0}, "connections"),
        ("postgresql://host/database", {"connections": 1.5}, "connections"),
        ("postgresql://host/database", {"listen": "host"}, "listen"),
        ("postgresql://host/database", {"listen": 5}, "listen"),
        ("postgresql://host/database", {"schema": None}, "schema"),
        ("postgresql://host/database", {"timeout": "5"}, "timeout"),
        (None, {}, "dsn"),
        (5, {}, "dsn"),
    ],
)
def test_an_impossible_setting_names_itself(dsn: Any, settings: dict[str, Any], names: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{names}") as raised:
        PostgresStore(dsn, **{"deployment": "shop", **settings})
    assert "se" not in str(raised.value).split()
    assert "ret" not in str(raised.value)


def test_on_trio_it_says_what_to_use_instead() -> None:
    store = PostgresStore("postgresql://host/database", deployment="shop")
    with pytest.raises(ConfigurationError, match="SQLiteStore"):
        anyio.run(store.get, "a", backend="trio")


async def test_a_port_that_is_none_is_an_error(open_store: Open) -> None:
    with pytest.raises(ConfigurationError, match="dsn"):
        await open_store("postgresql://user:secret@127.0.0.1:port/database").get("a")


def chain(error: BaseException | None) -> str:
    """What an error and those behind it say."""
    said = ""
    while error is not None:
        said += f"{error!r} {error}\n"
        error = error.__cause__ or error.__context__
    return said


async def fails(store: PostgresStore, why: str) -> None:
    """It can never work, which is said at the start, and later to whoever asks."""
    with pytest.raises(ConfigurationError, match=why):
        await store.open()
    with pytest.raises((StoreError, ConfigurationError), match=why):
        await store.get("a")


# --- opening -----------------------------------------------------------------------------------


async def test_a_server_that_is_not_there_is_named_without_the_password(open_store: Open) -> None:
    store = open_store("postgresql://user:secret@127.0.0.1:9/database")
    for call in (store.get("a"), store.changed("a", 0)):
        with pytest.raises(StoreError, match=r"^127\.0\.0\.1:9/database: ") as raised:
            await call
        assert "secret" not in chain(raised.value)


async def test_nobody_tries_for_ever_to_reach_a_server(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    accepted = []

    async def refuse(stream: SocketStream) -> None:
        accepted.append(stream)
        await stream.aclose()

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, refuse)
        store = open_store()
        await store.create(job())
        monkeypatch.setattr(store._server, "dsn", f"postgresql://127.0.0.1:{port}/postgres")
        for _ in range(2):
            with pytest.raises(StoreError):
                await store.changed("a", 1)
        tried = len(accepted)
        assert tried
        await anyio.sleep(0.3)
        assert len(accepted) == tried
        group.cancel_scope.cancel()


async def test_a_wrong_password_is_an_error_that_does_not_show_it(
    postgres: Postgres, open_store: Open
) -> None:
    role = f"locked{uuid4().hex}"
    postgres.ask(f"CREATE ROLE {role} LOGIN PASSWORD 'right'")
    url = postgres.url_of(role).replace("@", ":{}@")
    store = open_store(url.format("wrong-one"))
    await fails(store, "password authentication failed")
    with pytest.raises(StoreError) as raised:
        await store.get("a")
    assert "wrong-one" not in chain(raised.value)
    await fails(open_store(url.format("right")), "CREATE SCHEMA")  # it was let in


async def test_a_role_that_may_not_create_the_schema_is_told_the_cure(
    postgres: Postgres, open_store: Open
) -> None:
    role = f"role {uuid4().hex}"
    postgres.ask(f'CREATE ROLE "{role}" LOGIN')
    store = open_store(postgres.url_of(role.replace(" ", "%20")), schema="Not mine")
    cure = f'CREATE SCHEMA "Not mine" AUTHORIZATION "{role}"'
    await fails(store, cure + "$")
    postgres.ask(cure)
    await store.open()
    assert await store.create(job()) == job()


async def test_a_role_that_may_not_use_the_tables_of_another_is_told_which(
    postgres: Postgres, schema: str, open_store: Open
) -> None:
    role = f"guest{uuid4().hex}"
    postgres.ask(f"CREATE ROLE {role} LOGIN")
    await open_store().create(job())
    store = open_store(postgres.url_of(role))
    await fails(store, "permission denied")
    quoted = f'"{schema.replace(chr(34), chr(34) * 2)}"'
    postgres.ask(f"GRANT USAGE ON SCHEMA {quoted} TO {role}")
    await fails(store, "permission denied")
    postgres.ask(f"GRANT SELECT ON ALL TABLES IN SCHEMA {quoted} TO {role}")
    await fails(store, f'"{role}" lacks DELETE ON chunks, INSERT ON chunks, .* grant')
    postgres.ask(f"GRANT ALL ON ALL TABLES IN SCHEMA {quoted} TO {role}")
    await store.open()
    assert await store.get("a") == job()


@pytest.mark.parametrize(
    "theirs", ["version (name text)", "version (number text)", "jobs (id integer)"]
)
async def test_tables_of_another_application_are_left_alone(
    postgres: Postgres, schema: str, open_store: Open, theirs: str
) -> None:
    async with connected(postgres, schema) as other:
        quoted = f'"{schema.replace(chr(34), chr(34) * 2)}"'
        await other.execute(f"CREATE SCHEMA {quoted}")
        await other.execute(f"CREATE TABLE {theirs}")
        await fails(open_store(), "another application's")
        tables = "SELECT count(*) FROM pg_tables WHERE schemaname = $1"
        assert await other.fetchval(tables, schema) == 1


async def test_a_database_that_is_not_there_never_works(
    postgres: Postgres, open_store: Open
) -> None:
    await fails(
        open_store(postgres.url.removesuffix("postgres") + "nowhere"),
        'database "nowhere" does not exist',
    )


async def test_a_host_that_is_none_never_works(open_store: Open) -> None:
    await fails(open_store(f"postgresql://{'a' * 64}.example/database"), "dsn")


async def test_a_server_that_is_away_may_come_back(open_store: Open) -> None:
    away = (open_store("postgresql://127.0.0.1:9/database"), open_store(timeout=0.000001))
    for store in away:
        with pytest.raises(StoreError):
            await store.open()


async def test_tables_of_a_newer_version_are_refused(open_store: Open) -> None:
    store = open_store()
    await store.create(job())
    newer = len(MIGRATIONS) + 1
    await store._rows("UPDATE raincheck.version SET number = $1", newer)
    await fails(open_store(), f"version {newer}.*knows {len(MIGRATIONS)}")
    await store._rows("UPDATE raincheck.version SET number = $1", len(MIGRATIONS))
    assert await open_store().get("a") == job()


async def command(*arguments: str) -> tuple[int, str, str]:
    """What the command line does: its status, what it prints, and what it says of its failure."""
    program = [sys.executable, "-W", "error", "-m", "raincheck.stores.postgres", *arguments]
    done = await anyio.run_process(program, check=False)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


async def test_a_store_that_may_not_migrate_names_the_command(
    postgres: Postgres, schema: str, open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    careful = open_store(migrate=False)
    cure = f"migrate DSN --schema {shlex.quote(schema)}`"
    await fails(careful, f"version 0,.* needs {len(MIGRATIONS)}.*{re.escape(cure)}")
    tables = f"SELECT count(*) FROM pg_namespace WHERE nspname = '{schema}'"
    assert postgres.ask(tables) == "0"
    status, said, _ = await command("migrate", postgres.url, "--schema", schema)
    assert (status, said) == (
        0,
        f"schema {schema}: the tables have version {len(MIGRATIONS)}, and had 0\n",
    )
    await careful.open()
    assert await careful.create(job()) == job()
    _, said, _ = await command("migrate", postgres.url, "--schema", schema)
    assert said.endswith(f"version {len(MIGRATIONS)}, and had {len(MIGRATIONS)}\n")
    monkeypatch.setattr(_postgres_schema, "MIGRATIONS", (*MIGRATIONS, "SELECT 1"))
    await fails(
        open_store(migrate=False), f"version {len(MIGRATIONS)},.* needs {len(MIGRATIONS) + 1}"
    )
    assert await open_store().get("a") == job()


async def test_what_is_printed_is_what_somebody_else_has_to_run(
    postgres: Postgres, schema: str, open_store: Open
) -> None:
    role = f"guest {uuid4().hex}"
    postgres.ask(f'CREATE ROLE "{role}" LOGIN')
    dsn = postgres.url_of(role.replace(" ", "%20"))
    status, _, why = await command("migrate", dsn, "--schema", schema)
    assert status == 1
    assert "permission denied" in why
    assert "Traceback" not in why
    status, printed, _ = await command("migrate", "--print", dsn, "--schema", schema)
    assert status == 0
    store = open_store(dsn)
    await fails(store, "permission denied.* migrate DSN")
    postgres.ask(printed)
    await store.open()
    assert await store.create(job()) == job()
    one = Bounds(route=1)
    assert not await fits(store, job("b"), one)
    assert await open_store(dsn, migrate=False).get("a") == job()


async def test_only_what_is_missing_is_printed(
    postgres: Postgres, schema: str, open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    await open_store().create(job())
    _, printed, _ = await command("migrate", "--print", postgres.url, "--schema", schema)
    assert "CREATE" not in printed
    assert "UPDATE" not in printed.replace("SELECT, INSERT, UPDATE, DELETE", "")
    postgres.ask(printed)
    assert await open_store(migrate=False).get("a") == job()


async def test_a_command_that_cannot_work_says_why(schema: str) -> None:
    for dsn, why in (
        ("mysql://host/database", "dsn begins with"),
        ("postgresql://127.0.0.1:9/database", "127.0.0.1:9/database: "),
    ):
        status, said, told = await command("migrate", dsn, "--schema", schema)
        assert (status, said) == (1, "")
        assert told.startswith(why)
        assert "Traceback" not in told


@pytest.mark.parametrize("theirs", ["name text", "number text", "number integer"])
@pytest.mark.parametrize("printed", [pytest.param(True, marks=pytest.mark.slow), False])
async def test_a_command_for_tables_of_another_application_says_so(
    postgres: Postgres, schema: str, theirs: str, printed: bool
) -> None:
    quoted = f'"{schema.replace(chr(34), chr(34) * 2)}"'
    postgres.ask(f"CREATE SCHEMA {quoted}")
    postgres.ask(f"CREATE TABLE {quoted}.version ({theirs})")
    asked = ["migrate", postgres.url, "--schema", schema, *["--print"][: int(printed)]]
    status, said, told = await command(*asked)
    assert (status, said) == (1, "")
    assert "another application's" in told
    assert "Traceback" not in told


async def test_older_tables_are_brought_up_to_date(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    await open_store().create(job())
    later = "ALTER TABLE raincheck.jobs ADD later integer"
    monkeypatch.setattr(_postgres_schema, "MIGRATIONS", (*MIGRATIONS, later))
    store = open_store()
    assert await store.get("a") == job()
    assert await store._value("SELECT number FROM raincheck.version") == len(MIGRATIONS) + 1
    assert await store._value("SELECT count(later) FROM raincheck.jobs") == 0


async def test_what_was_there_before_deployments_goes_to_the_first(
    postgres: Postgres, schema: str, open_store: Open
) -> None:
    quoted = f'"{schema.replace(chr(34), chr(34) * 2)}"'
    async with connected(postgres, schema) as connection:
        await connection.execute(f"CREATE SCHEMA {quoted}")
        await connection.execute(MIGRATIONS[0].replace("raincheck.", f"{quoted}."))
        await connection.execute("UPDATE version SET number = 1")
        record = json.loads(dump(job(replayable=True))) | {"fingerprint": "f"}
        whole = json.dumps(record, separators=(",", ":"))
        for id, text in (("a", whole), ("b", "damaged")):
            await connection.execute(
                "INSERT INTO jobs (id, version, fence, gone, state, record, route, lease_until) "
                "VALUES ($1, 1, 1, false, 'running', $2, $3, now())",
                *(id, text, digest("r")),
            )
        await connection.execute("INSERT INTO keys VALUES ('key-1', 'a'), ('run-1', 'a')")
        await connection.execute("INSERT INTO keys VALUES ('key-2', 'b')")
        await connection.execute("INSERT INTO requests VALUES ('a', $1)", dump_request(request()))
        await connection.execute("INSERT INTO chunks VALUES ('a', 1, 0, 'x')")
    store, neighbour = open_store(), open_store(deployment="bank")
    there = await store.get("a")
    assert there is not None
    assert there._replace(extra=None) == job(replayable=True)
    assert await neighbour.get("a") is None
    assert await store.find("key-1") == (there, "f")
    assert await store.find("run-1") == (there, None)
    assert await store.request("a") == request()
    assert await body_of(store, "a") == b"x"
    assert not await fits(store, job("c"), Bounds(route=2))
    assert await fits(neighbour, job("c"), Bounds(route=1))
    assert {job.id async for job in store.abandoned()} == {"a", "b"}
    assert await store.replace(finished(there))
    assert await store.find("key-1") is not None
    assert await store.find("run-1") is None


async def test_a_deployment_may_have_the_name_of_the_schema(open_store: Open) -> None:
    for name in ("raincheck", "raincheck.jobs", "deployment"):
        store = open_store(deployment=name, schema="raincheck")
        assert await store.create(job(route=name)) == job(route=name)
        assert await store.get("a") == job(route=name)


async def test_many_may_open_it_first(open_store: Open) -> None:
    async with anyio.create_task_group() as group:
        for _ in range(12):
            group.start_soon(open_store().get, "a")


async def test_what_is_no_text_is_no_id(store: PostgresStore) -> None:
    assert await store.get("a\0") is None


# --- connections -------------------------------------------------------------------------------


async def test_calls_wait_for_a_connection_and_give_up_in_time(
    postgres: Postgres, schema: str, open_store: Open
) -> None:
    store = open_store(connections=2, timeout=1.5)
    await open_store().create(job())
    failed = []

    async def cancel() -> None:
        with pytest.raises(StoreError, match=r"did not answer within 1\.5 seconds"):
            await store.replace(job().cancelling())
        failed.append(1)

    async with connected(postgres, schema) as other, other.transaction():
        await other.execute("SELECT FROM jobs FOR UPDATE")
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(cancel)
            await until(lambda: postgres.ask(LOCKED) == "2")
        assert len(failed) == 5
        await until(lambda: postgres.ask(LOCKED) == "0")  # nor does the server wait for ever
    assert await store.create(job("b")) == job("b")
    assert await store.get("b") == job("b")


async def test_a_call_cancelled_in_the_middle_leaves_room_for_others(
    postgres: Postgres, schema: str, open_store: Open
) -> None:
    store = open_store(connections=1)
    await store.create(job())

    async def renew_again_and_again() -> None:
        while True:  # each of them waits for the row, but not for long
            await store.renew({"a": 1}, 60.0)

    async with connected(postgres, schema) as other:
        for _ in range(3):
            async with other.transaction():
                await other.execute("SELECT FROM jobs FOR UPDATE")
                async with anyio.create_task_group() as group:
                    group.start_soon(renew_again_and_again)
                    await until(lambda: postgres.ask(LOCKED) == "1")
                    group.cancel_scope.cancel()
                assert await store.get("a") == job()
            await until(lambda: postgres.ask(LOCKED) == "0")
    assert await store.renew({"a": 1}, 60.0) == {"a": State.RUNNING}


async def test_a_sweep_cancelled_in_the_middle_changes_nothing(
    postgres: Postgres, schema: str, open_store: Open
) -> None:
    store = open_store(connections=1)
    done = finished(job())
    await store.create(job(), keys=(Key("k"),))
    await store.replace(done)
    async with connected(postgres, schema) as other, other.transaction():
        await other.execute("LOCK keys")
        with anyio.move_on_after(0.2):
            await store.sweep(1060.0)
        assert await store.get("a") == done
    with anyio.fail_after(30):
        # The server may not have ended the one before, whose rows are passed over.
        while True:
            assert await store.sweep(1060.0)
            there = await store.get("a")
            assert there is not None
            if there.gone:
                break


async def test_connections_that_are_ended_while_idle_are_replaced(
    postgres: Postgres, open_store: Open
) -> None:
    name = uuid4().hex
    store = open_store(f"{postgres.url}?application_name={name}")
    await store.create(job())
    for _ in range(3):
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(store.get, "a")
        ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name"
        assert postgres.ask(f"{ended} = '{name}'")
        await anyio.sleep(0.05)
        assert await store.get("a") == job()


async def test_a_connection_that_was_idle_for_long_is_not_used_again(
    postgres: Postgres, open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = uuid4().hex
    store = open_store(f"{postgres.url}?application_name={name}")
    pids = f"SELECT pid FROM pg_stat_activity WHERE application_name = '{name}'"
    await store.get("a")
    first = postgres.ask(pids)
    await store.get("a")
    assert postgres.ask(pids) == first
    monkeypatch.setattr(_postgres_session, "IDLE", -1.0)
    await store.get("a")
    assert first not in postgres.ask(pids)


async def test_no_statement_is_planned_for_each_call(open_store: Open) -> None:
    store = open_store(connections=1)
    for number in range(8):
        await store.create(job(str(number)))
        await store.renew({str(number): 1}, 60.0)
        await store.partial(str(number))
    planned = "SELECT sum(custom_plans)::integer FROM pg_prepared_statements"
    assert await store._value(planned) == 0


async def test_closing_leaves_nothing_open(postgres: Postgres, open_store: Open) -> None:
    name = uuid4().hex
    store = open_store(f"{postgres.url}?application_name={name}")
    await store.create(job())
    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(store.get, "a")
        with anyio.move_on_after(0.1):
            await store.changed("a", 1)
    opened = f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{name}'"
    assert int(postgres.ask(opened)) > 1
    await store.aclose()
    await until(lambda: postgres.ask(opened) == "0")


async def test_a_connection_in_use_when_the_store_is_closed_is_closed_after_it(
    postgres: Postgres, schema: str, open_store: Open
) -> None:
    name = uuid4().hex
    store = open_store(f"{postgres.url}?application_name={name}")
    await store.create(job())
    cancelled = []

    async def cancel() -> None:
        cancelled.append(await store.replace(job().cancelling()))

    async with anyio.create_task_group() as group:
        async with connected(postgres, schema) as other, other.transaction():
            await other.execute("SELECT FROM jobs FOR UPDATE")
            group.start_soon(cancel)
            await until(lambda: postgres.ask(LOCKED) == "1")
            await store.aclose()
        await until(lambda: bool(cancelled))
    opened = f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{name}'"
    await until(lambda: postgres.ask(opened) == "0")


async def test_a_statement_that_another_connection_prepared_names_the_cure(
    open_store: Open,
) -> None:
    store = open_store(connections=1)
    await store.get("a")
    await store._rows("DEALLOCATE ALL")  # as if the next one went to another connection
    with pytest.raises(StoreError, match="`listen`"):
        await store.get("a")
    assert await store.get("a") is None


async def test_no_client_learns_that_the_server_was_started_again(
    postgres: Postgres, store: PostgresStore
) -> None:
    def restart() -> None:
        postgres.kill()
        postgres.start()

    await serves_through_a_restart(store, restart)


@pytest.mark.parametrize("rested", [0.0, 60.0])
async def test_a_server_that_was_started_again_costs_nobody_an_answer(
    postgres: Postgres, open_store: Open, monkeypatch: pytest.MonkeyPatch, rested: float
) -> None:
    """The event loop hears of nothing before the next call, which meets dead connections."""
    monkeypatch.setattr(_postgres_session, "RESTED", rested)
    store = open_store()
    there = job(replayable=True, max_runs=2)
    calls: list[Callable[[], Any]] = [
        lambda: store.create(there, request(), bounds=ONE),
        lambda: store.get("a"),
        lambda: store.request("a"),
        lambda: store.append_body("a", 1, 0, b"x"),
        lambda: store.renew({"a": 1}, 60.0),
    ]
    if not rested:  # which asks first whether a connection is alive
        calls.append(lambda: store.replace(there.cancelling()))
    for call in calls:
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(store.get, "a")
        postgres.kill()
        postgres.start()
        assert await call()


# --- a server in trouble -----------------------------------------------------------------------


async def test_what_was_acknowledged_survives_a_crash_of_the_server(
    postgres: Postgres, store: PostgresStore
) -> None:
    acknowledged, failed, enough = [], [], anyio.Event()

    async def work(worker: int) -> None:
        for number in count():
            id = f"{worker}-{number}"
            try:
                await store.create(job(id), keys=(Key(f"key-{id}"),))
                assert await store.replace(finished(job(id)), tail=b"x")
                acknowledged.append(id)
            except StoreError:
                failed.append(id)
                await anyio.sleep(0.02)
            if enough.is_set():
                return

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            for worker in range(8):
                group.start_soon(work, worker)
            await until(lambda: len(acknowledged) >= 50)
            await anyio.to_thread.run_sync(postgres.kill)
            before = len(acknowledged)
            await anyio.to_thread.run_sync(postgres.start)
            await until(lambda: len(acknowledged) >= before + 50)
            enough.set()
    assert failed
    for id in acknowledged:
        assert await store.get(id) == finished(job(id))
        assert await store.find(f"key-{id}") is not None
        assert await body_of(store, id) == b"x"


async def test_who_begins_to_wait_when_a_connection_dies_hears_of_what_comes_after(
    postgres: Postgres, schema: str, open_store: Open
) -> None:
    store, another = open_store(timeout=PATIENCE), open_store()
    await store.create(job())
    seen = []

    async def watch() -> None:
        seen.append(await store.changed("a", 1))

    async with anyio.create_task_group() as group, connected(postgres, schema) as other:
        async with other.transaction():
            await other.execute("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
            group.start_soon(watch)
            await until(lambda: postgres.ask(LOCKED) == "1")  # with its first look
            postgres.ask(f"{ENDED} = 'Lock'")
            await until(lambda: postgres.ask(LOCKED) == "1")
        assert await another.replace(job().cancelling())
    assert seen == [job().cancelling()]


async def test_who_waits_when_the_server_restarts_hears_of_what_comes_after(
    postgres: Postgres, open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_postgres_changes, "LOOK", 3600.0)
    name = uuid4().hex
    store = open_store(f"{postgres.url}?application_name={name}", timeout=PATIENCE)
    another = open_store()
    looked = (
        f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{name}'"
        " AND state = 'idle' AND query LIKE '%AS known%'"
    )
    await store.create(job())
    await store.create(job("b"))
    seen = []

    async def watch(id: str) -> None:
        seen.append(await store.changed(id, 1))

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            for id in ("a", "b", "a"):
                group.start_soon(watch, id)
            await until(lambda: postgres.ask(looked) == "1")
            postgres.kill()
            postgres.start()
            while not seen:
                try:
                    assert await another.replace(job().cancelling())
                    assert await another.replace(job("b").cancelling())
                    break
                except StoreError:
                    await anyio.sleep(0.05)
    assert [job and job.version for job in seen] == [2, 2, 2]


async def test_a_server_that_hangs_fails_calls_in_time(
    postgres: Postgres, open_store: Open
) -> None:
    name = uuid4().hex
    store = open_store(f"{postgres.url}?application_name={name}", timeout=1.0)
    opened = f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{name}'"
    await open_store().create(job())
    failed = []

    async def fail(call: Callable[[], Any]) -> None:
        with pytest.raises(StoreError, match="did not answer within 1 seconds"):
            await call()
        failed.append(call)

    calls: list[Callable[[], Any]] = [
        lambda: store.get("a"),
        lambda: store.create(job("b")),
        lambda: store.replace(job().cancelling()),
        lambda: store.append_body("a", 1, 0, b"x"),
        lambda: store.renew({"a": 1}, 60.0),
        lambda: store.sweep(0.0),
        lambda: store.changed("a", 1),
    ]
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(fail, calls.pop())
            await until(lambda: postgres.ask(opened) == "2")  # it waits already
            pids = postgres.hang()
            try:
                started = anyio.current_time()
                async with anyio.create_task_group() as others:
                    for call in calls * 5:
                        others.start_soon(fail, call)
                assert anyio.current_time() - started < 10.0
                await until(lambda: len(failed) == 31)
            finally:
                postgres.go_on(pids)
        there = await store.get("a")
        assert there is not None
        assert there in (job(), job().cancelling())


@pytest.mark.parametrize("bounded", [False, True])
async def test_a_server_that_hangs_in_a_transaction_fails_calls_in_time(
    postgres: Postgres, schema: str, open_store: Open, bounded: bool
) -> None:
    """It cannot even be rolled back."""
    store = open_store(timeout=1.0)
    await store.create(job())
    calls: Store = BoundedStore(store, 1.0) if bounded else store
    with anyio.fail_after(PATIENCE):
        async with connected(postgres, schema) as other:
            await other.execute("BEGIN; LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
            asking = asyncio.create_task(calls.discard("a"))
            await until(lambda: postgres.ask(LOCKED) != "0")
            pids = postgres.hang()
            try:
                ended, _ = await asyncio.wait([asking], timeout=5.0)
            finally:
                postgres.go_on(pids)
        assert ended
        with pytest.raises(StoreError, match="answer"):
            await asking
        assert await calls.discard("a") is False


async def test_a_full_disk_refuses_new_jobs(
    postgres: Postgres, schema: str, store: PostgresStore
) -> None:
    await store.create(job())
    async with connected(postgres, schema) as other:
        await other.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE 'no space left' USING ERRCODE = 'disk_full'; END $$;"
            "CREATE TRIGGER refuse BEFORE INSERT ON keys FOR EACH ROW EXECUTE FUNCTION refuse()"
        )
    with pytest.raises(StoreFull, match="no space left"):
        await store.create(job("b"), keys=(Key("k"),))
    with pytest.raises(StoreFull, match="no space left"):
        await store.replace(job().shared(1), keys=(Key("k"),))
    assert await store.get("a") == job()
    assert await store.get("b") is None


async def test_what_can_never_be_inserted_is_not_tried_for_ever(store: PostgresStore) -> None:
    await store.get("a")
    await store._rows("INSERT INTO raincheck.requests VALUES ('a', 'left over', 'shop')")
    with pytest.raises(StoreError, match="others were faster"):
        await store.create(job(replayable=True), request())
    assert await store.get("a") is None


# --- races -------------------------------------------------------------------------------------


# What the server, or the role, has for its default. Without `listen` the store leaves it at that.
ISOLATIONS = pytest.mark.parametrize(
    ("isolation", "listen"), [("read%20committed", True), ("repeatable%20read", False)]
)


@ISOLATIONS
@pytest.mark.parametrize(
    ("mine", "names"), [(job("mine"), "lk"), (job("theirs", route="mine"), "")]
)
async def test_a_creator_waits_for_another_and_sees_what_it_did(
    postgres: Postgres,
    schema: str,
    open_store: Open,
    isolation: str,
    listen: bool,
    mine: Job,
    names: str,
) -> None:
    url = f"{postgres.url}?default_transaction_isolation={isolation}"
    store = open_store(url, listen=listen)
    theirs = job("theirs")
    await store.get("a")
    for outcome in ("rollback", "commit"):
        there: list[Job] = []

        async def create(there: list[Job] = there) -> None:
            there.append(await store.create(mine, keys=[*map(Key, names)]))

        async with connected(postgres, schema) as other, anyio.create_task_group() as group:
            transaction = other.transaction()
            await transaction.start()
            await other.execute("DELETE FROM jobs; DELETE FROM keys")
            await other.execute(
                "INSERT INTO jobs (deployment, id, version, fence, gone, record, route) "
                "VALUES ('shop', 'theirs', 1, 1, false, $1, '')",
                dump(theirs).decode(),
            )
            await other.execute("INSERT INTO keys VALUES ('k', 'theirs', 'shop', NULL, true)")
            group.start_soon(create)
            await until(lambda: postgres.ask(LOCKED) == "1")
            assert await store.get(mine.id) is None
            # All go in one order, so that nobody has this key already.
            await other.execute("SET LOCAL lock_timeout = '1s'")
            await other.execute("INSERT INTO keys VALUES ('l', 'theirs', 'shop', NULL, true)")
            await getattr(transaction, outcome)()
        if outcome == "rollback":
            assert there == [mine]
            assert await store.replace(mine.tombstone(0.0, 0.0))
            await store.sweep(0.0)
        else:
            assert there == [theirs]
            assert await store.find("l") == (theirs, None)
            assert mine.id == "theirs" or await store.get("mine") is None


@pytest.mark.parametrize("isolation", ["read committed", "serializable"])
async def test_each_key_is_that_of_one_creator(
    postgres: Postgres, open_store: Open, isolation: str
) -> None:
    url = f"{postgres.url}?default_transaction_isolation={isolation.replace(' ', '%20')}"
    stores = [open_store(url), open_store(url)]
    keys = [Key(f"key-{number}") for number in range(30)]
    asked: dict[str, list[Key]] = {}
    won: list[Job] = []

    async def create(number: int, some: list[Key]) -> None:
        mine = job(str(number))
        asked[mine.id] = some
        there = await stores[number % 2].create(mine, keys=some)
        assert set(asked[there.id]) & set(some)
        if there == mine:
            won.append(mine)

    dice = random.Random(1)
    async with anyio.create_task_group() as group:
        for number in range(120):
            group.start_soon(create, number, dice.sample(keys, 4))
    taken = [key for winner in won for key in asked[winner.id]]
    assert len(taken) == len(set(taken))
    for winner in won:
        for key in asked[winner.id]:
            assert await stores[0].find(key.name) == (winner, None)


@ISOLATIONS
async def test_a_replacer_waits_for_another_and_loses(
    postgres: Postgres, schema: str, open_store: Open, isolation: str, listen: bool
) -> None:
    url = f"{postgres.url}?default_transaction_isolation={isolation}"
    store = open_store(url, listen=listen)
    await store.create(job(), keys=(Key("k"),))
    outcomes = []

    async def replace() -> None:
        outcomes.append(await store.replace(finished(job()), tail=b"x"))

    async with (
        anyio.create_task_group() as group,
        connected(postgres, schema) as other,
        other.transaction(),
    ):
        await other.execute("UPDATE jobs SET version = 2")
        group.start_soon(replace)
        await until(lambda: postgres.ask(LOCKED) == "1")
    assert outcomes == [False]
    assert await store.find("k") == (job(), None)
    assert await body_of(store, "a") == b""


async def test_replacers_win_once_where_transactions_are_serializable(
    postgres: Postgres, open_store: Open
) -> None:
    store = open_store(f"{postgres.url}?default_transaction_isolation=serializable")
    await store.create(job())
    outcomes = []

    async def replace(number: int) -> None:
        outcomes.append(await store.replace(job().with_progress(Progress(0.0, str(number)))))

    async with anyio.create_task_group() as group:
        for number in range(50):
            group.start_soon(replace, number)
    assert sorted(outcomes) == [False] * 49 + [True]


# --- room --------------------------------------------------------------------------------------


ONE = Bounds(route=1)


@asynccontextmanager
async def somebody_within(
    postgres: Postgres, schema: str, theirs: Job, *keys: str
) -> AsyncIterator[Any]:
    """A transaction that has found room for a job, and has put it there."""
    async with connected(postgres, schema) as other:
        transaction = other.transaction()
        await transaction.start()
        states = ["queued"] if theirs.state is State.QUEUED else ["running", "cancelling"]
        room: list[Any] = [
            "shop",
            theirs.id,
            0,
            [],
            schema,
            digest(theirs.route),
            None,
            states,
            1,
            None,
        ]
        holes = ", ".join(f"${number + 1}" for number in range(len(room)))
        assert await other.fetchval(f"SELECT no_room({holes})", *room) is None
        await other.execute(
            "INSERT INTO jobs (deployment, id, version, fence, gone, state, record, route) "
            "VALUES ('shop', $1, 1, 1, false, $2, $3, $4) ON CONFLICT (deployment, id) DO UPDATE "
            "SET version = jobs.version + 1, state = excluded.state, record = excluded.record",
            *(theirs.id, theirs.state.value, dump(theirs).decode(), digest(theirs.route)),
        )
        for key in keys:
            row = key, theirs.id, "shop"
            await other.execute("INSERT INTO keys VALUES ($1, $2, $3, NULL, true)", *row)
        yield transaction


@ISOLATIONS
async def test_who_looks_for_room_waits_for_who_looks_already(
    postgres: Postgres, schema: str, open_store: Open, isolation: str, listen: bool
) -> None:
    url = f"{postgres.url}?default_transaction_isolation={isolation}"
    store = open_store(url, listen=listen)
    fit = []

    async def create() -> None:
        fit.append(await fits(store, job("mine"), ONE))

    await store.get("a")
    for outcome in ("commit", "rollback"):
        async with (
            anyio.create_task_group() as group,
            somebody_within(postgres, schema, job("theirs")) as transaction,
        ):
            group.start_soon(create)
            await until(lambda: postgres.ask(LOCKED) == "1")
            await getattr(transaction, outcome)()
        await store._rows("DELETE FROM raincheck.jobs WHERE id = 'theirs'")
    assert fit == [False, True]


@ISOLATIONS
@pytest.mark.parametrize(("mine", "names"), [(job("mine"), "lk"), (job("theirs", route="r"), "")])
async def test_who_waits_for_room_sees_an_earlier_job_that_took_it(
    postgres: Postgres,
    schema: str,
    open_store: Open,
    isolation: str,
    listen: bool,
    mine: Job,
    names: str,
) -> None:
    url = f"{postgres.url}?default_transaction_isolation={isolation}"
    store = open_store(url, listen=listen)
    theirs = job("theirs")
    there = []

    async def create() -> None:
        there.append(await store.create(mine, keys=[*map(Key, names)], bounds=ONE))

    await store.get("a")
    async with (
        anyio.create_task_group() as group,
        somebody_within(postgres, schema, theirs, "k") as transaction,
    ):
        group.start_soon(create)
        await until(lambda: postgres.ask(LOCKED) == "1")
        await transaction.commit()
    assert there == [theirs]


@ISOLATIONS
async def test_who_waits_for_room_to_begin_sees_that_another_began(
    postgres: Postgres, schema: str, open_store: Open, isolation: str, listen: bool
) -> None:
    url = f"{postgres.url}?default_transaction_isolation={isolation}"
    store = open_store(url, listen=listen)
    waits = job("a", state=State.QUEUED)
    await store.create(waits)
    began = []

    async def begin() -> None:
        began.append(await store.replace(waits.start(1001.0, "mine"), bounds=ONE))

    theirs = waits.start(1001.0, "theirs")
    async with (
        anyio.create_task_group() as group,
        somebody_within(postgres, schema, theirs) as transaction,
    ):
        group.start_soon(begin)
        await until(lambda: postgres.ask(LOCKED) == "1")
        await transaction.commit()
    assert began == [False]
    assert await store.get("a") == theirs


async def test_who_need_not_look_for_room_does_not_wait(
    postgres: Postgres, schema: str, open_store: Open
) -> None:
    store = open_store(timeout=5.0)
    await store.create(job("earlier"), keys=(Key("k"),))
    async with somebody_within(postgres, schema, job("theirs", route="their route")):
        mine = {"route": "their route", "owner": "ann"}
        assert await fits(store, job("a", **mine), None)
        assert await fits(store, job("b", **mine), Bounds())
        assert await fits(store, job("c", **{**mine, "owner": None}), Bounds(owner=1))
        assert await fits(store, job("d", state=State.QUEUED, **mine), ONE)
        assert await fits(open_store(deployment="bank", timeout=5.0), job("a", **mine), ONE)
        assert await fits(store, job("e"), Bounds(route=2))
        assert (await store.create(job("earlier", **mine), bounds=ONE)).route == "r"
        there = await store.create(job("f", **mine), keys=(Key("k"),), bounds=ONE)
        assert there.id == "earlier"
        assert await store.replace(job("a", **mine).cancelling(), bounds=ONE)  # as it ran before
        assert await store.replace(finished(job("d", state=State.QUEUED, **mine)), bounds=ONE)
        assert not await store.replace(job("unknown", **mine).cancelling(), bounds=ONE)


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
async def test_behind_a_proxy_no_more_come_in_than_there_is_room_for(
    postgres: Postgres, open_store: Open, isolation: str
) -> None:
    url = f"{postgres.url}?default_transaction_isolation={isolation.replace(' ', '%20')}"
    stores = [open_store(url, listen=False), open_store(url, listen=False)]
    fit = []

    async def create(number: int) -> None:
        fit.append(await fits(stores[number % 2], job(str(number)), Bounds(route=7)))

    async with anyio.create_task_group() as group:
        for number in range(60):
            group.start_soon(create, number)
    assert sum(fit) == 7


async def test_of_many_who_begin_as_many_win_as_there_is_room_for(open_store: Open) -> None:
    stores = [open_store(), open_store()]
    waiting = [job(str(number), state=State.QUEUED, owner=str(number % 2)) for number in range(40)]
    began = []

    async def begin(number: int, waits: Job) -> None:
        with suppress(NoRoom):
            bounds = Bounds(route=9, owner=5)
            began.append(await stores[number % 2].replace(waits.start(1001.0), bounds=bounds))

    for waits in waiting:
        await stores[0].create(waits)
    async with anyio.create_task_group() as group:
        for number, waits in enumerate(waiting * 2):
            group.start_soon(begin, number, waits)
    assert sum(began) == 9


async def test_an_owner_and_a_route_may_have_any_name(store: PostgresStore) -> None:
    long = "".join(uuid4().hex for _ in range(1000))  # nor can it be compressed
    names = (long, "a\0b", "\udcff", "ü")
    for number, name in enumerate(names):
        of_name = {"route": name, "owner": name}
        assert await fits(store, job(f"{number}", **of_name), Bounds(owner=1))
        assert not await fits(store, job("another", **of_name), Bounds(owner=1))


async def test_there_may_be_no_room_at_all(store: PostgresStore) -> None:
    assert not await fits(store, job(), Bounds(route=0))
    assert not await fits(store, job(owner="ann"), Bounds(owner=0))
    assert await fits(store, job(), Bounds(owner=0))


# --- keys and bodies ---------------------------------------------------------------------------


async def test_who_brings_a_key_waits_for_another_and_loses(
    postgres: Postgres, schema: str, store: PostgresStore
) -> None:
    await store.create(job())
    outcomes = []

    async def join() -> None:
        outcomes.append(await store.replace(job().shared(1), keys=(Key("k"),)))

    for outcome in ("commit", "rollback"):
        async with connected(postgres, schema) as other, anyio.create_task_group() as group:
            transaction = other.transaction()
            await transaction.start()
            await other.execute("INSERT INTO keys VALUES ('k', 'theirs', 'shop', NULL, true)")
            group.start_soon(join)
            await until(lambda: postgres.ask(LOCKED) == "1")
            await getattr(transaction, outcome)()
        await store._rows("DELETE FROM raincheck.keys WHERE id = 'theirs'")
    assert outcomes == [False, True]
    assert await store.find("k") == (job().shared(1), None)


async def test_a_chunk_waits_for_who_replaces_its_job(
    postgres: Postgres, schema: str, store: PostgresStore
) -> None:
    await store.create(job())
    kept = []

    async def append() -> None:
        kept.append(await store.append_body("a", 1, 0, b"stale"))

    async with (
        anyio.create_task_group() as group,
        connected(postgres, schema) as other,
        other.transaction(),
    ):
        await other.execute("UPDATE jobs SET fence = 2, version = 2")
        group.start_soon(append)
        await until(lambda: postgres.ask(LOCKED) == "1")
    assert kept == [False]
    assert await store._value("SELECT count(*) FROM raincheck.chunks") == 0


async def test_a_chunk_that_is_out_of_place_is_left_out(store: PostgresStore) -> None:
    await store.create(job())
    whole = bytes(range(256)) * 4 * 1024
    for start, end in (
        (0, PIECE + 1),
        (0, 5),
        (5, PIECE),
        (PIECE + 2, PIECE + 9),
        (PIECE + 1, 3 * PIECE),
        (PIECE, 4 * PIECE),
    ):
        assert await store.append_body("a", 1, start, whole[start:end])
    assert await body_of(store, "a") == whole[: 3 * PIECE]


async def test_a_body_that_is_dropped_while_it_is_read_is_an_error(store: PostgresStore) -> None:
    for id in "ab":
        await store.create(job(id))
        await store.append_body(id, 1, 0, bytes((PAGE + 1) * PIECE))
    for id in "ab":
        reader = store.read_body(id)
        await anext(reader)
        assert await store.replace(job(id).tombstone(1000.0, 0.0 if id == "b" else 60.0))
        await store.sweep(1000.0)
        with pytest.raises(StoreError, match="dropped while it was read"):
            await body_after(reader)


async def test_a_body_of_which_a_part_is_lost_does_not_end(store: PostgresStore) -> None:
    await store.create(job())
    for number in range(3):
        await store.append_body("a", 1, number * PIECE, bytes(PIECE))
    await store._rows("DELETE FROM raincheck.chunks WHERE start = $1", PIECE)
    assert await body_of(store, "a", 2 * PIECE) == bytes(PIECE)
    for offset in (0, PIECE, PIECE + 1):
        with pytest.raises(StoreError, match="dropped"):
            await body_of(store, "a", offset)


async def body_after(reader: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in reader])


async def test_a_body_of_whole_pages_ends(store: PostgresStore) -> None:
    await store.create(job())
    await store.append_body("a", 1, 0, bytes(2 * PAGE * PIECE))
    assert await body_of(store, "a") == bytes(2 * PAGE * PIECE)
    assert await body_of(store, "a", 2 * PAGE * PIECE) == b""
    assert len(await body_of(store, "a", PIECE - 1)) == 2 * PAGE * PIECE - PIECE + 1


async def test_the_tail_of_a_body_may_come_after_the_head_alone(store: PostgresStore) -> None:
    await store.create(job())
    for _ in range(2):
        assert await store.append_body("a", 1, 0, b"", head=Head(200, ()))
    assert await store.append_body("a", 1, 0, b"")
    assert await body_of(store, "a") == b""
    done = finished(job(), size=3)
    assert await store.replace(done, tail=b"one")
    assert await store.fetch("a") == Fetched(done, b"one")
    assert await body_of(store, "a") == b"one"
    assert await store._value("SELECT count(*) FROM raincheck.chunks") == 1


async def test_a_large_chunk_has_one_head(store: PostgresStore) -> None:
    await store.create(job())
    head = Head(200, ((b"x", b"\xff"),))
    assert await store.append_body("a", 1, 0, bytes(3 * PIECE), head=head)
    assert await store.append_body("a", 1, 3 * PIECE, b"x", head=Head(500, ()))
    assert await store.partial("a") == Partial(job(), head, 3 * PIECE + 1)
    assert await store._value("SELECT count(head) FROM raincheck.chunks") == 1


# --- changes -----------------------------------------------------------------------------------


async def test_a_change_is_told_at_once(
    store: PostgresStore, open_store: Open, opening: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_postgres_changes, "LOOK", 3600.0)  # so that who is not told waits for long
    another = open_store()
    for id in "abc":
        await store.create(job(id))

    async def watch(id: str) -> None:
        assert await store.changed(id, 1) is not None

    with anyio.fail_after(PATIENCE):
        async with child(opening, changes_jobs) as other, anyio.create_task_group() as group:
            for id in "abc":
                group.start_soon(watch, id)
            await anyio.sleep(0.2)
            await store.replace(job("a").cancelling())
            await another.replace(job("b").cancelling())
            await other.say(["c"])
            await other.say(None)
        async with anyio.create_task_group() as group:
            done = job("a").cancelling().finish(State.FAILED, 1000.0, ttl=0.0, tombstone_ttl=60.0)
            assert await store.replace(done)
            group.start_soon(watch, "a")
            await anyio.sleep(0.05)
            await another.sweep(1000.0)


async def test_what_a_response_grows_by_is_told_at_once_to_those_who_follow_it(
    store: PostgresStore, open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_postgres_changes, "LOOK", 3600.0)  # so that who is not told waits for long
    another = open_store()
    await store.create(job())
    seen: list[Partial | None] = []

    async def follow() -> None:
        seen.append(await store.grown(Partial(job(), None, 0)))

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(store.changed, "a", 1)
            group.start_soon(follow)
            await anyio.sleep(0.2)
            assert await another.append_body("a", 1, 0, b"one")
            await until(lambda: bool(seen))
            assert store._session is not None
            changes, looks = store._session.changes, 0
            look = changes._look

            async def counted(connection: Any) -> None:
                nonlocal looks
                looks += 1
                await look(connection)

            monkeypatch.setattr(changes, "_look", counted)
            for size in range(3, 9):  # nobody follows it any more
                assert await another.append_body("a", 1, size, b"x")
                await anyio.sleep(0.02)
            assert looks == 0
            assert await another.replace(finished(job()))
    assert seen == [Partial(job(), None, 3)]


@pytest.mark.parametrize("listen", [True, False])
async def test_growth_that_nobody_told_of_is_seen(open_store: Open, listen: bool) -> None:
    store = open_store(listen=listen)
    await store.create(job())
    seen = []

    async def follow(known: Partial) -> None:
        seen.append(await store.grown(known))

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(follow, Partial(job(), None, 0))
            await anyio.sleep(0.1)
            await store._rows("INSERT INTO raincheck.chunks VALUES ('a', 1, 0, 'one', 'shop')")
    assert seen == [Partial(job(), None, 3)]


UNTOLD = "UPDATE raincheck.jobs SET version = 2, record = $1 WHERE id = 'a'"


async def test_changes_that_come_one_after_the_other_share_an_announcement(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [str(number) for number in range(20)]
    for id in ids:
        await store.create(job(id))
    assert store._session is not None
    changes = store._session.changes
    connection, announcements = changes._connection, 0

    def counted() -> Any:
        nonlocal announcements
        announcements += 1
        return connection()

    monkeypatch.setattr(_postgres_changes, "PAUSE", 0.5)
    monkeypatch.setattr(changes, "_connection", counted)
    for id in ids:
        assert await store.replace(finished(job(id)))
    await changes.told()
    assert announcements == 2  # of the first one at once, and of all others


@pytest.mark.parametrize("listen", [True, False])
async def test_a_change_that_nobody_told_of_is_seen(open_store: Open, listen: bool) -> None:
    store = open_store(listen=listen)
    await store.create(job())
    await store.create(job("b"))
    seen = []

    async def watch(id: str) -> None:
        seen.append(await store.changed(id, 1))

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(watch, "a")
            group.start_soon(watch, "b")
            await anyio.sleep(0.1)
            second = job().with_progress(Progress(0.5))
            await store._rows(UNTOLD, dump(second).decode())
            await store._rows("DELETE FROM raincheck.jobs WHERE id = 'b'")
    assert sorted(seen, key=str) == [second, None]


async def test_a_look_is_not_put_off_by_other_changes(open_store: Open) -> None:
    store = open_store(listen=True)
    for id in "ab":
        await store.create(job(id))
    busy = job("b")

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                await store.changed("a", 1)
                group.cancel_scope.cancel()

            async def follow() -> None:
                version = 1
                while newest := await store.changed("b", version):
                    version = newest.version

            group.start_soon(watch)
            group.start_soon(follow)
            await anyio.sleep(0.1)
            await store._rows(UNTOLD, dump(job().with_progress(Progress(0.5))).decode())
            while True:
                busy = busy.with_progress(Progress(0.5))
                assert await store.replace(busy)


async def test_many_may_wait(
    postgres: Postgres, open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_postgres_changes, "LOOK", 3600.0)
    name = uuid4().hex
    store = open_store(f"{postgres.url}?application_name={name}", connections=4)
    ids = [f"job-{number}" for number in range(100)]
    woken = []

    async def watch(id: str) -> None:
        newest = await store.changed(id, 1)
        assert newest is not None
        woken.append(newest.id)

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            for id in ids:
                group.start_soon(store.create, job(id))
        async with anyio.create_task_group() as group:
            for id in ids * 20:
                group.start_soon(watch, id)
            await anyio.sleep(0.2)
            assert woken == []
            opened = f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{name}'"
            assert int(postgres.ask(opened)) <= 5
            for id in ids:
                await store.replace(job(id).cancelling())
    assert sorted(woken) == sorted(ids * 20)


async def test_who_waits_for_an_unreadable_record_is_told(store: PostgresStore) -> None:
    for id in "ab":
        await store.create(job(id))
    async with anyio.create_task_group() as group:
        group.start_soon(store.changed, "b", 1)
        await store._rows("""UPDATE raincheck.jobs SET record = '{"format": 0}' WHERE id = 'a'""")
        with pytest.raises(StoreError, match="format 0"):
            await store.changed("a", 0)
        assert await store.replace(job("b").cancelling())


async def test_closing_fails_those_who_wait(store: PostgresStore) -> None:
    await store.create(job())
    async with anyio.create_task_group() as group:

        async def watch() -> None:
            with pytest.raises(StoreError, match="closed"):
                await store.changed("a", 1)

        group.start_soon(watch)
        await anyio.sleep(0.1)
        await store.aclose()
    assert await store.get("a") == job()


async def test_nobody_listens_for_long_when_nobody_waits(
    postgres: Postgres, open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_postgres_changes, "LOOK", 0.05)
    name = uuid4().hex
    store = open_store(f"{postgres.url}?application_name={name}")
    await store.create(job())
    listening = (
        "SELECT count(*) FROM pg_stat_activity "
        f"WHERE application_name = '{name}' AND query LIKE '%known%'"
    )
    async with anyio.create_task_group() as group:
        group.start_soon(store.changed, "a", 1)
        await until(lambda: postgres.ask(listening) == "1")
        group.cancel_scope.cancel()
    monkeypatch.setattr(_postgres_changes, "LINGER", 0.1)
    with anyio.fail_after(PATIENCE):
        await until(lambda: postgres.ask(listening) == "0")
        async with anyio.create_task_group() as group:
            group.start_soon(store.changed, "a", 1)
            await anyio.sleep(0.05)
            assert await store.replace(job().cancelling())


# --- one round trip ----------------------------------------------------------------------------


async def asked(store: PostgresStore, call: Callable[[], Awaitable[Any]]) -> list[str]:
    """How often a call asked the server, and what; `store` has one connection."""
    await store.get("a")
    assert store._session is not None
    await store._session.changes.told()
    ((connection, _),) = store._session._idle
    said: list[str] = []
    with connection.query_logger(lambda query: said.append(query.query)):
        await call()
        await store._session.changes.told()
    return [statement for statement in said if "pg_notify" not in statement]


async def test_a_claim_is_one_round_trip(open_store: Open) -> None:
    store = open_store(connections=1)
    for id in "ab":
        await store.create(waiting(id), request(), lease=60.0)
    await claim(store, "unknown")  # asyncpg asks once for the types of a statement
    for id, begun in (("a", True), ("a", True), ("b", False), ("unknown", None)):
        told: list[Claim | None] = []

        async def ask(id: str = id, told: list[Claim | None] = told) -> None:
            told.append(await claim(store, id, routes={"r"} if id == "a" else {"s"}))

        assert len(await asked(store, ask)) == 1
        assert [each and each.begun for each in told] == [begun]


async def test_a_small_body_is_one_round_trip_with_its_job(open_store: Open) -> None:
    store = open_store(connections=1)
    done = await with_body(store, "a", [b"one", b"two"], tail=b"three")

    async def ask() -> None:
        assert await store.fetch("a") == Fetched(done, b"onetwothree")

    assert len(await asked(store, ask)) == 1


@ISOLATIONS
@pytest.mark.parametrize("outcome", ["claimed", "ended"])
async def test_who_loses_a_claim_is_told_what_became_of_the_job(
    postgres: Postgres, schema: str, open_store: Open, isolation: str, listen: bool, outcome: str
) -> None:
    url = f"{postgres.url}?default_transaction_isolation={isolation}"
    store = open_store(url, listen=listen)
    await store.create(waiting(), request())
    theirs = waiting().start(1001.0, "there")
    if outcome == "ended":
        theirs = finished(waiting())
    told: list[Claim | None] = []

    async def ask() -> None:
        told.append(await claim(store))

    async with (
        anyio.create_task_group() as group,
        connected(postgres, schema) as other,
        other.transaction(),
    ):
        await other.execute(
            "UPDATE jobs SET version = 2, fence = $1, state = $2, record = $3",
            *(theirs.fence, theirs.stage, dump(theirs).decode()),
        )
        group.start_soon(ask)
        await until(lambda: postgres.ask(LOCKED) == "1")
    assert told == [Claim(theirs, None, False)]
    assert await store.get("a") == theirs


async def test_a_job_that_an_older_process_has_made_is_claimed_and_listed(
    postgres: Postgres, schema: str, store: PostgresStore
) -> None:
    await store.open()
    async with connected(postgres, schema) as connection:
        await write_as_before_lists(connection, waiting())
        kept = dump_request(request())
        await connection.execute("INSERT INTO requests VALUES ('a', $1, 'shop')", kept)
    runs = waiting().start(1001.5, "here")
    assert await claim(store) == Claim(runs, request(), True)
    assert await store.sweep(1000.0)
    assert [*(await store.list(states=(State.RUNNING,))).jobs] == [runs]


async def test_the_time_before_which_a_job_does_not_begin_is_its_own(store: PostgresStore) -> None:
    said = r'"not_before":9999,"not_before\":9999'
    new = waiting(holder=said, queue=said, extra={"before": said})
    await store.create(new, request())
    assert await claim(store) == Claim(new.start(1001.5, "here"), request(), True)
    for number, time in enumerate((1001.5, 0, -1e-7, 1e22, 1001.5000000000002)):
        new = waiting(str(number), not_before=time)
        await store.create(new, request())
        begun = await claim(store, str(number))
        assert begun is not None
        assert begun.begun == (time <= 1001.5)


# --- together ----------------------------------------------------------------------------------


async def end_all(store: PostgresStore, jobs: list[Job]) -> None:
    async def end(each: Job) -> None:
        assert await store.replace(finished(each, size=1), tail=b"x")

    await asyncio.gather(*map(end, jobs))


async def test_jobs_that_meet_share_a_statement(open_store: Open) -> None:
    store = open_store(connections=1)
    jobs = [job(str(number)) for number in range(30)]
    queued = [waiting(f"q{number}") for number in range(5)]

    async def create() -> None:
        created = [store.create(each, lease=60.0) for each in jobs]
        created += [store.create(each, request()) for each in queued]
        assert await asyncio.gather(*created) == jobs + queued

    async def end() -> None:
        await end_all(store, jobs)

    await store.create(job())  # asyncpg asks once for the types of a statement
    await end_all(store, [job()])
    assert len(await asked(store, create)) == 1
    assert await store.renew({"0": 1, "29": 1}, 60.0) == dict.fromkeys(("0", "29"), State.RUNNING)
    assert await store.request("q4") == request()
    assert len(await asked(store, end)) == 1
    for each in jobs:
        assert await store.fetch(each.id) == Fetched(finished(each, size=1), b"x")
    assert await store.request("q4") == request()


async def test_of_jobs_that_meet_each_has_its_own_answer(store: PostgresStore) -> None:
    earlier = job("b", route="earlier")
    await store.create(earlier)
    new = [job("a"), job("b"), job("c\0"), job("d"), job("e\udcff")]
    there = await asyncio.gather(*map(store.create, new), return_exceptions=True)
    assert [there[0], there[1], there[3]] == [new[0], earlier, new[3]]
    assert [type(there[2]), type(there[4])] == [StoreError, StoreError]
    assert await store.replace(earlier.cancelling())
    await store.append_body("d", 1, 0, b"", head=Head(200, ()))  # where the body is to begin
    outcomes = [finished(each, size=1) for each in (new[0], earlier, new[3], job("unknown"))]
    done = await asyncio.gather(*(store.replace(each, tail=b"x") for each in outcomes))
    assert done == [True, False, True, False]
    assert await store.fetch("a") == Fetched(outcomes[0], b"x")
    assert await store.get("b") == earlier.cancelling()
    assert await store.fetch("d") == Fetched(outcomes[2], b"x")


async def test_of_ends_of_one_job_that_meet_one_is_made(store: PostgresStore) -> None:
    assert await asyncio.gather(*map(store.create, [job("a")] * 3)) == [job("a")] * 3
    ends = [finished(job("a"), size=size) for size in (None, 1, 2)]
    bodies = [b"", b"x", b"yy"]
    done = await asyncio.gather(
        *(store.replace(end, tail=body) for end, body in zip(ends, bodies, strict=True))
    )
    assert sorted(done) == [False, False, True]
    made = done.index(True)
    assert await store.get("a") == ends[made]
    assert await body_of(store, "a") == bodies[made]


def test_who_ends_with_the_event_loop_can_still_record_it(
    postgres: Postgres, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_postgres_batches, "PATIENCE", PATIENCE)
    store = PostgresStore(postgres.url, deployment="shop", schema=schema)
    recorded = []

    async def work(other: Any) -> None:
        try:
            await asyncio.sleep(PATIENCE)
        finally:
            try:
                async with asyncio.timeout(10.0):
                    recorded.append(await store.replace(finished(job("a"))))
            finally:
                other.terminate()
                await store.aclose()

    async def main() -> None:
        await asyncio.gather(*(store.create(job(id)) for id in "ab"))
        other = await asyncpg.connect(postgres.url)
        jobs = f"{_postgres_server.quoted(schema)}.jobs"
        await other.execute(f"BEGIN; SELECT FROM {jobs} WHERE id = 'b' FOR UPDATE")
        for coroutine in (work(other), store.replace(finished(job("b")))):
            tasks.append(asyncio.create_task(coroutine))
        await until(lambda: postgres.ask(LOCKED) == "1")

    tasks: list[asyncio.Task[Any]] = []
    asyncio.run(main())
    assert recorded == [True]


@pytest.mark.parametrize("renews", [False, True])
async def test_of_several_jobs_none_is_held_while_an_earlier_one_is_waited_for(
    postgres: Postgres,
    schema: str,
    store: PostgresStore,
    renews: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_postgres_batches, "PATIENCE", PATIENCE)
    monkeypatch.setattr(module, "LOCKED", "60s")
    jobs = [job(id) for id in "ba"]
    await asyncio.gather(*map(store.create, jobs))

    async def change() -> None:
        if renews:
            await store.renew({each.id: 1 for each in jobs}, 60.0)
        else:
            await end_all(store, jobs)

    async with (
        anyio.create_task_group() as group,
        connected(postgres, schema) as other,
        other.transaction(),
    ):
        await other.execute("SELECT FROM jobs WHERE id = 'a' FOR UPDATE")
        group.start_soon(change)
        await until(lambda: postgres.ask(LOCKED) == "1")
        await other.execute("SELECT FROM jobs WHERE id = 'b' FOR UPDATE NOWAIT")


async def test_what_ends_together_leaves_nothing_but_its_body(store: PostgresStore) -> None:
    jobs = [job(id, max_runs=2, replayable=True) for id in "ab"]
    for each in jobs:
        await store.create(each, request(), keys=(Key(each.id), Key(f"-{each.id}", None, False)))
        await store.append_body(each.id, 1, 0, b"of the first run")
    again = [each.requeue().start(1000.0) for each in jobs]
    for each in jobs:
        assert await store.replace(each.requeue())
    for each in again:
        assert await store.replace(each)
    await end_all(store, again)
    for each in again:
        assert await store.fetch(each.id) == Fetched(finished(each, size=1), b"x")
        assert await store.find(each.id) == (finished(each, size=1), None)
        assert await store.find(f"-{each.id}") is None
        assert await store.request(each.id) is None
    assert await store._value("SELECT count(*) FROM raincheck.chunks") == 2


async def test_nobody_waits_for_who_waits_for_a_lock(
    postgres: Postgres, schema: str, store: PostgresStore
) -> None:
    jobs = [job(id) for id in "abc"]
    for each in jobs:
        await store.create(each)
    ended: list[str] = []

    async def end(each: Job) -> None:
        assert await store.replace(finished(each))
        ended.append(each.id)

    async with (
        anyio.create_task_group() as group,
        connected(postgres, schema) as other,
        other.transaction(),
    ):
        await other.execute("SELECT FROM jobs WHERE id = 'a' FOR UPDATE")
        group.start_soon(end, jobs[0])
        await until(lambda: postgres.ask(LOCKED) == "1")
        for each in jobs[1:]:  # the second goes by another connection, and so does the third
            group.start_soon(end, each)
            await until(lambda each=each: each.id in ended)  # type: ignore[misc]
        assert ended == ["b", "c"]
    assert ended == ["b", "c", "a"]


async def test_of_jobs_that_meet_one_alone_waits_for_a_lock(
    postgres: Postgres, schema: str, open_store: Open
) -> None:
    store = open_store(timeout=2.0)
    jobs = [job(id) for id in "abcde"]
    await asyncio.gather(*map(store.create, jobs))
    async with connected(postgres, schema) as other, other.transaction():
        await other.execute("SELECT FROM jobs WHERE id = 'c' FOR UPDATE")
        await other.execute("INSERT INTO requests VALUES ('h', '', 'shop')")
        changes: list[Awaitable[object]] = [store.replace(finished(each)) for each in jobs]
        changes += [store.create(waiting(id), request()) for id in "fgh"]
        done = await asyncio.gather(*changes, return_exceptions=True)
    told = [str(done.pop(place)) for place in (7, 2)]
    assert all("did not answer within 2 seconds" in each for each in told)
    assert done == [True, True, True, True, waiting("f"), waiting("g")]
    for id in "abde":
        assert await store.get(id) == finished(job(id))


async def test_a_lock_on_one_job_leaves_the_others_their_leases(
    postgres: Postgres, schema: str, open_store: Open
) -> None:
    store = open_store(timeout=2.0)
    for id in "abc":
        await store.create(job(id), lease=1.0)
    held = dict.fromkeys("abc", 1)
    async with connected(postgres, schema) as other:
        async with other.transaction():
            await other.execute("SELECT FROM jobs WHERE id = 'b' FOR UPDATE")
            for fences in (held, held | {"a": 2}):
                states = await store.renew(fences, 60.0)
                kept = [id for id, fence in fences.items() if fence == 1]
                assert states == dict.fromkeys(kept, State.RUNNING)
        leased = "SELECT id FROM jobs WHERE lease_until > now() + interval '30s' ORDER BY id"
        assert [id for (id,) in await other.fetch(leased)] == ["a", "c"]
        await store.renew(held, 60.0)
        assert [id for (id,) in await other.fetch(leased)] == ["a", "b", "c"]


async def test_who_gives_up_before_it_is_sent_changes_nothing(
    postgres: Postgres, schema: str, open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_postgres_batches, "PATIENCE", PATIENCE)
    store = open_store()
    for id in "ab":
        await store.create(job(id))
    async with (
        anyio.create_task_group() as group,
        connected(postgres, schema) as other,
        other.transaction(),
    ):
        await other.execute("SELECT FROM jobs WHERE id = 'a' FOR UPDATE")
        group.start_soon(store.replace, finished(job("a")))
        await until(lambda: postgres.ask(LOCKED) == "1")
        with anyio.move_on_after(0.1) as scope:
            await store.replace(finished(job("b")))
        assert scope.cancelled_caught
    assert await store.get("a") == finished(job("a"))
    await store.create(job("c"))
    assert await store.get("b") == job("b")


async def test_a_connection_that_dies_under_many_is_no_answer_to_any(
    postgres: Postgres, schema: str, store: PostgresStore
) -> None:
    jobs, new = [job(id) for id in "abc"], [job(id) for id in "de"]
    await asyncio.gather(*map(store.create, jobs))
    async with connected(postgres, schema) as other, other.transaction():
        await other.execute("LOCK TABLE jobs IN SHARE ROW EXCLUSIVE MODE")
        ending = asyncio.gather(
            *(store.replace(finished(each)) for each in jobs), return_exceptions=True
        )
        await until(lambda: postgres.ask(LOCKED) == "1")
        creating = asyncio.gather(*map(store.create, new))
        await until(lambda: postgres.ask(LOCKED) == "2")
        assert postgres.ask(f"{ENDED} = 'Lock'") == "2"
        failed = await ending
    assert [type(each) for each in failed] == [StoreError] * 3  # they may have been done
    assert await creating == new  # which may be asked for again
    for each in jobs:
        assert await store.get(each.id) == each
        assert await store.replace(finished(each))


async def test_what_ends_together_is_counted_once_whoever_forgets_it(store: PostgresStore) -> None:
    ours = [job(f"o{number}", started_at=990.0, route="rs"[number % 2]) for number in range(6)]
    theirs = [job(f"t{number}", started_at=990.0) for number in range(3)]
    await asyncio.gather(*map(store.create, ours + theirs))
    assert await rows_of_ended(store) == 0
    await end_all(store, ours)
    assert await rows_of_ended(store) == 2
    for each in theirs:  # as the version before ends them
        done = finished(each)
        words = [*columns(done, ()), None, False, False, *pieces(b""), done.stored]
        assert await store._value(REPLACE, *words) == "replaced"
    counted = {
        ("r", State.SUCCEEDED): Total(3, 1000.0, 30.0),
        ("s", State.SUCCEEDED): Total(3, 1000.0, 30.0),
        ("r", State.FAILED): Total(3, 1000.0, 30.0),
    }
    assert await store.totals() == counted
    assert await store.replace(finished(ours[0], size=1).tombstone(1001.0, 60.0))
    assert (await store.totals())["r", State.SUCCEEDED] == Total(2, 1000.0, 20.0)
    await store.sweep(1060.0)
    assert await store.totals() == {}
    assert await rows_of_ended(store) == 0


@pytest.mark.parametrize("statement", [CREATE_MANY, END_MANY, RENEW, RENEW_FREE])
async def test_jobs_that_meet_are_found_by_their_ids_in_whatever_table(
    postgres: Postgres, store: PostgresStore, statement: str
) -> None:
    await store.open()
    settings = _postgres_server.SETTINGS.format(1000)
    own = store._server.in_schema(statement)
    plan = postgres.ask(f"{settings}; EXPLAIN (GENERIC_PLAN) {own}")
    assert "Join" not in plan
    assert "Seq Scan" not in plan
    for found in re.findall(r"Index Cond: .*", plan):
        assert re.search(r"\(deployment = .*\bid = ", found), found


# --- lists -------------------------------------------------------------------------------------


async def write_as_before_lists(connection: Any, job: Job) -> None:
    """What the version before lists does to create a job, and to replace it."""
    await connection.execute(
        "INSERT INTO jobs (deployment, id, version, fence, state, gone, due, record, route, owner) "
        "VALUES ('shop', $1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (deployment, id) "
        "DO UPDATE SET version = excluded.version, fence = excluded.fence, state = excluded.state, "
        "gone = excluded.gone, due = excluded.due, record = excluded.record",
        *(job.id, job.version, job.fence, job.stage, job.gone, job.due_at, dump(job).decode()),
        *(digest(job.counts_for), None if job.owner is None else digest(job.owner)),
    )


def totals_of(*jobs: Job) -> dict[tuple[str, State], Total]:
    """Of jobs that have no state on their route in common."""
    return {
        (job.route, job.state): Total(1, job.created_at, (job.finished_at or 1001.0) - 1001.0)
        for job in jobs
    }


def of_all_kinds() -> list[Job]:
    """Jobs in all states, oldest first."""
    ids = iter("abcdef")
    waiting = [job(next(ids), state=State.QUEUED, owner="ann", route=r"\"created_at\":1, ü")]
    running = [job(next(ids), started_at=1001.0, owner="bob") for _ in range(5)]
    running[1] = running[1].cancelling()
    for n, state in enumerate((State.SUCCEEDED, State.FAILED, State.CANCELLED), start=2):
        running[n] = running[n].finish(state, 1002.5, ttl=60.0, tombstone_ttl=60.0)
    return [each._replace(created_at=1000.0 + n) for n, each in enumerate(waiting + running)]


async def test_what_was_there_before_lists_is_listed(
    postgres: Postgres, schema: str, open_store: Open
) -> None:
    jobs = of_all_kinds()
    quoted = f'"{schema.replace(chr(34), chr(34) * 2)}"'
    async with connected(postgres, schema) as connection:
        await connection.execute(f"CREATE SCHEMA {quoted}")
        for migration in MIGRATIONS[:4]:
            own = migration.replace("raincheck.", f"{quoted}.").replace("'deployment'", "'shop'")
            await connection.execute(own)
        await connection.execute("UPDATE version SET number = 4")
        others = job("sync", synchronous=True), finished(job("sync 2", synchronous=True))
        for each in (*jobs, *others, job("gone").tombstone(1000.0, 60.0)):
            await write_as_before_lists(connection, each)
        await write_as_before_lists(connection, job("damaged"))
        await connection.execute("UPDATE jobs SET record = 'damaged' WHERE id = 'damaged'")
    store = open_store()
    assert [*(await store.list()).jobs] == jobs[::-1]
    assert [*(await store.list(owner="ann")).jobs] == jobs[:1]
    assert await store.totals() == totals_of(*jobs)


async def test_what_an_older_process_writes_is_listed_after_a_sweep(
    postgres: Postgres, schema: str, store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 4)
    jobs = of_all_kinds()
    await store.create(job("began here", route="s", created_at=999.0))
    await store.create(job("gone"))
    waits = job("claimed here", state=State.QUEUED, replayable=True, created_at=998.0)
    ended = finished(job("began here", route="s", created_at=999.0, started_at=1001.0), 1003.0)
    async with connected(postgres, schema) as connection:
        for each in (*jobs, ended, waits, job("sync", synchronous=True)):
            await write_as_before_lists(connection, each)
        await write_as_before_lists(connection, job("gone").tombstone(1000.0, 60.0))
        await connection.execute(
            "INSERT INTO requests VALUES ($1, $2, 'shop')", waits.id, dump_request(request())
        )
    assert "gone" not in {each.id for each in (await store.list()).jobs}
    assert await store.sweep(1000.0)
    assert [*(await store.list()).jobs] == [*jobs[::-1], ended, waits]
    assert await store.totals() == totals_of(*jobs, ended) | {
        ("r", State.QUEUED): Total(1, 998.0, 0.0)
    }
    stale = "SELECT count(*) FROM raincheck.jobs WHERE NOT gone AND status IS NULL"
    assert await store._value(stale) == 0


async def test_a_list_goes_on_past_what_cannot_be_read(store: PostgresStore) -> None:
    for number in range(9):
        await store.create(job(str(number)))
    await store._rows("UPDATE raincheck.jobs SET record = 'damaged' WHERE id IN ('8', '5', '4')")
    found: list[str] = []
    sizes: list[int] = []
    after = None
    while not sizes or after is not None:
        page = await store.list(limit=2, after=after)
        found += [each.id for each in page.jobs]
        sizes.append(len(page.jobs))
        after = page.after
    assert found == ["7", "6", "3", "2", "1", "0"]
    assert sizes == [1, 1, 1, 2, 1]
    await store._rows("UPDATE raincheck.jobs SET record = 'damaged' WHERE id = '0'")
    assert await store.totals() == {("r", State.RUNNING): Total(9, 1000.0, 0.0)}
    await store._rows("UPDATE raincheck.jobs SET record = 'damaged'")
    assert await store.totals() == {}
    assert await store.list() == Page([], None)


async def test_a_listed_route_and_owner_may_have_any_name(store: PostgresStore) -> None:
    long = "".join(uuid4().hex for _ in range(1000))  # nor can it be compressed
    names = (long, "a\0b", "\udcff", 'ü"\\"', r"\"route\":", "")
    for number, name in enumerate(names):
        mine = job(str(number), route=name or "r", owner=name)
        await store.create(mine)
        assert [*(await store.list(route=mine.route, owner=name)).jobs] == [mine]
        assert [*(await store.list(owner=name)).jobs] == [mine]
    assert await store.totals() == {
        (name or "r", State.RUNNING): Total(1, 1000.0, 0.0) for name in names
    }


async def rows_of_ended(store: PostgresStore) -> int:
    return int(await store._value("SELECT count(*) FROM raincheck.ended"))


async def test_what_has_ended_is_counted_when_it_does_and_a_sweep_adds_it_up(
    store: PostgresStore,
) -> None:
    for number in range(12):
        new = job(str(number), started_at=1000.0, route="rs"[number % 2])
        await store.create(new)
        assert await store.replace(finished(new, 1000.0 + number))
    await store.create(job("runs"))
    counted = {
        ("r", State.FAILED): Total(6, 1000.0, 30.0),
        ("s", State.FAILED): Total(6, 1000.0, 36.0),
        ("r", State.RUNNING): Total(1, 1000.0, 0.0),
    }
    assert (await store.totals(), await rows_of_ended(store)) == (counted, 12)
    await asyncio.gather(*(store.sweep(1000.0) for _ in range(5)))
    assert (await store.totals(), await rows_of_ended(store)) == (counted, 2)
    await store.sweep(1200.0)
    assert await store.totals() == {("r", State.RUNNING): counted["r", State.RUNNING]}
    assert await rows_of_ended(store) == 0


async def test_what_was_there_before_it_was_counted_is_counted(
    postgres: Postgres, schema: str, open_store: Open
) -> None:
    store = open_store()
    for number in range(3):
        new = job(str(number), started_at=1000.0)
        await store.create(new)
        assert await store.replace(finished(new, 1000.0 + number))
    async with connected(postgres, schema) as connection:  # as the version before left it
        await connection.execute(
            "DROP TABLE ended, deliveries; DROP FUNCTION count_ended CASCADE;"
            " ALTER TABLE jobs DROP stored, DROP counted; UPDATE version SET number = 6"
        )
    await store.aclose()
    assert await open_store().totals() == {("r", State.FAILED): Total(3, 1000.0, 3.0)}


async def test_a_damaged_job_that_is_dropped_counts_no_more(store: PostgresStore) -> None:
    for id in "ab":
        await store.create(job(id))
        assert await store.replace(finished(job(id)))
    await store._rows("UPDATE raincheck.jobs SET record = 'damaged' WHERE id = 'a'")
    await store.sweep(1060.0)
    assert await store.totals() == {}
    assert await rows_of_ended(store) == 0


# --- sweeping ----------------------------------------------------------------------------------


async def test_a_sweep_goes_in_steps(store: PostgresStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 3)
    monkeypatch.setattr(module, "BATCH_BYTES", 15)
    response = CapturedResponse(200, (), 10)
    for number in range(10):
        keys = (Key(f"k{number}"),)
        await store.create(job(str(number), replayable=True), request(), keys=keys)
        done = job(str(number)).finish(
            State.SUCCEEDED, 1000.0, ttl=60.0, tombstone_ttl=60.0, response=response
        )
        assert await store.replace(done, tail=bytes(10))
    assert await store.sweep(1060.0)
    for table, left in (("jobs", 10), ("keys", 0), ("requests", 0), ("chunks", 0)):
        assert await store._value(f"SELECT count(*) FROM raincheck.{table}") == left
    assert not await store.sweep(1120.0)


async def test_a_sweep_passes_over_what_others_are_changing(
    postgres: Postgres, schema: str, store: PostgresStore
) -> None:
    for id in "ab":
        await store.create(job(id))
        await store.replace(finished(job(id)))
    for now, left in ((1060.0, [True, True]), (1120.0, [False, False])):
        async with connected(postgres, schema) as other, other.transaction():
            await other.execute("SELECT FROM jobs WHERE id = 'a' FOR UPDATE")
            assert await store.sweep(now)
            there = await store.get("a")
            assert there is not None
            assert there.gone == (now == 1120.0)
        assert await store.sweep(now) == (now == 1060.0)
        assert [await store.get(id) is not None for id in "ab"] == left


async def test_another_run_drops_what_the_first_has_written(store: PostgresStore) -> None:
    await store.create(job())
    assert await store.append_body("a", 1, 0, b"x")
    assert await store.replace(job(version=2, fence=2))
    assert await store._value("SELECT count(*) FROM raincheck.chunks") == 0


async def test_what_was_left_over_goes_with_the_tombstone(store: PostgresStore) -> None:
    await store.create(job())
    assert await store.replace(job().tombstone(1000.0, 60.0))
    await store._rows("INSERT INTO raincheck.chunks VALUES ('a', 1, 0, 'x', 'shop')")
    assert await body_of(store, "a") == b""
    assert not await store.sweep(1060.0)
    assert await store._value("SELECT count(*) FROM raincheck.chunks") == 0


async def test_abandoned_jobs_come_in_order_however_many(store: PostgresStore) -> None:
    for number in range(120):
        await store.create(job(f"{number:03}"), lease=0.0)
    assert [job.id async for job in store.abandoned()] == [f"{number:03}" for number in range(120)]
