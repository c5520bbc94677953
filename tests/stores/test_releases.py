"""Every release's stores are read by this one: see `fixtures/write.py`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from raincheck.stores.postgres import PostgresStore
from raincheck.stores.redis import RedisStore
from raincheck.stores.sqlite import SQLiteStore
from tests.stores.left import DEPLOYMENT, SCHEMA, find
from tests.stores.postgres import Postgres
from tests.stores.valkey import Valkey, valkey_server  # noqa: F401 # a fixture

pytestmark = [pytest.mark.anyio, pytest.mark.real]

FIXTURES = Path(__file__).with_name("fixtures")


def left(kind: str) -> list[Path]:
    """What the releases have left in stores of one kind."""
    found = sorted(FIXTURES.glob(f"*.{kind}"))
    assert found
    return found


def put(path: Path, valkey: Valkey) -> None:
    for command, key, *rest in json.loads(path.read_text()):
        valkey.ask("DEL", key.encode("latin-1"))
        valkey.ask(command, *(word.encode("latin-1") for word in (key, *rest)))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize("path", left("sqlite"), ids=lambda path: path.name)
async def test_a_file_of_a_release_is_read(path: Path, tmp_path: Path) -> None:
    store = SQLiteStore(shutil.copyfile(path, tmp_path / "jobs.db"))
    (tmp_path / "jobs.db").chmod(0o600)
    await store.open()
    await find(store)
    await store.aclose()


@pytest.mark.parametrize("path", left("redis.json"), ids=lambda path: path.name)
async def test_the_keys_of_a_release_are_read(path: Path, valkey: Valkey) -> None:
    put(path, valkey)
    store = RedisStore(valkey.url, deployment=DEPLOYMENT)
    await store.open()
    await find(store)
    await store.aclose()


@pytest.mark.parametrize("path", left("postgres.sql"), ids=lambda path: path.name)
async def test_the_tables_of_a_release_are_read(path: Path, postgres: Postgres) -> None:
    postgres.ask(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
    postgres.run(path)
    store = PostgresStore(postgres.url, deployment=DEPLOYMENT, schema=SCHEMA)
    await store.open()
    await find(store)
    await store.aclose()
