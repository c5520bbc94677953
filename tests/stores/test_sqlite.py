from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import anyio
import pytest

from raincheck import ConfigurationError
from raincheck.errors import BodyLost, StoreError, StoreFull, UnreadableRecord
from raincheck.job import Bounds, Job, Key, Progress, State
from raincheck.messages import CapturedRequest, CapturedResponse, Head
from raincheck.serialization import dump
from raincheck.stores import _sqlite_changes, _sqlite_file, _sqlite_opening
from raincheck.stores._sqlite_changes import Changes
from raincheck.stores._sqlite_file import LOOK_EVERY, SCRUB_EVERY, File
from raincheck.stores._sqlite_opening import APPLICATION_ID, MIGRATIONS
from raincheck.stores._sqlite_place import SPARE
from raincheck.stores._sqlite_queries import BEHIND, ROUTES, TOTALS, listing
from raincheck.stores.base import Fetched, Partial, Store, Total
from raincheck.stores.sqlite import ROWS, SQLiteStore
from raincheck.stores.watchers import Watchers
from raincheck.testing.samples import body_of, finished, fits, job, pages, request, with_body
from tests.stores import left
from tests.stores.live import LiveContract
from tests.stores.shared import MEBIBYTE, PATIENCE, Parent, UnreadableContract, child, children

pytestmark = [pytest.mark.anyio, pytest.mark.real, pytest.mark.one_loop]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
def opening(path: Path) -> str:
    return f"from raincheck.stores.sqlite import SQLiteStore\nstore = SQLiteStore({str(path)!r})"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SQLiteStore]:
    store = SQLiteStore(path)
    yield store
    await store.aclose()


def content(path: Path) -> bytes:
    return path.read_bytes()


def beside(path: Path) -> list[str]:
    """The names of the files in its directory."""
    return [file.name for file in path.parent.iterdir()]


def size_of(path: Path) -> int:
    """Of the file, when it has taken in its log."""
    look(path, "PRAGMA wal_checkpoint(TRUNCATE)")
    return path.stat().st_size


def open_files() -> list[Path]:
    return [link.resolve() for link in Path("/proc/self/fd").iterdir()]


def look(path: Path, sql: str, *parameters: object) -> list[Any]:
    """What another program sees in the file, or does to it."""
    with closing(sqlite3.connect(path, timeout=0.0)) as db, db:
        return db.execute(sql, parameters).fetchall()


class TestSQLiteStore(UnreadableContract, LiveContract):
    @pytest.fixture(autouse=True)
    def _at(self, path: Path) -> None:
        self.path = path

    async def overwrite(self, store: Store, id: str, record: bytes) -> None:
        look(self.path, "UPDATE jobs SET record = ? WHERE id = ?", record.decode(), id)


# --- crashes ---------------------------------------------------------------------------------

ANSWER = b"x" * 300_000  # two rows of a body


async def works_at_full_speed(store: Store, parent: Parent) -> None:
    """Accept and finish jobs until somebody kills the process; tell of each that is kept."""
    life = await parent.hear()

    async def work(worker: int) -> None:
        number = 0
        while True:
            accepted = job(f"{life}-{worker}-{number}")
            await store.create(accepted, keys=(Key(f"key-{accepted.id}"),), lease=60.0)
            parent.say(accepted.id)
            if number % 10 == 0:
                response = CapturedResponse(200, (), len(ANSWER))
                done = accepted.finish(
                    State.SUCCEEDED, 1.0, ttl=1.0, tombstone_ttl=1.0, response=response
                )
                assert await store.replace(done, tail=ANSWER)
                parent.say(f"finished {accepted.id}")
            number += 1

    async with anyio.create_task_group() as group:
        for worker in range(16):
            group.start_soon(work, worker)


async def test_what_was_acknowledged_outlives_a_crash(path: Path, opening: str) -> None:
    told: list[str] = []
    for life in range(4):
        async with child(opening, works_at_full_speed) as worker:
            await worker.say(life)
            enough = len(told) + random.randint(1, 400)
            while len(told) < enough:
                told.append(await worker.hear())
            await worker.kill()
            while True:  # what it still said
                try:
                    told.append(await worker.hear())
                except EOFError:
                    break
        assert look(path, "PRAGMA integrity_check") == [("ok",)]
        store = SQLiteStore(path)
        for word in told:
            id = word.removeprefix("finished ")
            there = await store.get(id)
            assert there is not None
            assert await store.find(f"key-{id}") == (there, None)
            if word != id:
                assert there.finished
            body = await body_of(store, id)
            assert body == (ANSWER if there.finished else b"")
        await store.aclose()
        assert beside(path) == ["jobs.db"]


# --- the file --------------------------------------------------------------------------------


async def opens_new_files(store: Store, parent: Parent) -> None:
    """Each at the moment that all have agreed upon."""
    me, start, paths = await parent.hear()
    for number, path in enumerate(paths):
        another = SQLiteStore(path)
        await anyio.sleep(max(0.0, start + number * 0.02 - time.monotonic()))
        assert await another.create(job(me)) == job(me)
        await another.aclose()


async def test_several_processes_make_a_file_at_once(path: Path, opening: str) -> None:
    paths = [str(path.with_name(f"new-{number}.db")) for number in range(20)]
    async with children(opening, opens_new_files, 5) as family:
        start = time.monotonic() + 0.1
        for number, child in enumerate(family):
            await child.say((str(number), start, paths))
    for new in paths:
        assert sorted(look(Path(new), "SELECT id FROM jobs")) == [(str(id),) for id in range(5)]


@pytest.mark.parametrize("path", [":memory:", "", None, 5, b"jobs.db"])
def test_no_file_is_refused(path: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"path is that of a file.*MemoryStore\(\)"):
        SQLiteStore(path)


@pytest.mark.parametrize("synchronous", ["OFF", "full", True])
def test_an_unknown_synchronous_is_refused(synchronous: Literal["FULL"]) -> None:
    with pytest.raises(ConfigurationError, match="synchronous"):
        SQLiteStore("jobs.db", synchronous=synchronous)


@pytest.mark.parametrize("timeout", [-1, float("inf"), float("nan"), "5"])
def test_an_impossible_timeout_is_refused(timeout: float) -> None:
    with pytest.raises(ConfigurationError, match="timeout"):
        SQLiteStore("jobs.db", timeout=timeout)


# --- where it can never work -------------------------------------------------------------------


def put_nothing(path: Path) -> None:
    pass


def put_a_folder(path: Path) -> None:
    path.mkdir()


def put_a_pipe(path: Path) -> None:
    os.mkfifo(path)


def put_a_text(path: Path) -> None:
    path.write_text("no database" * 1000)


def put_their_tables(path: Path) -> None:
    look(path, "CREATE TABLE orders (n)")


def put_their_version(path: Path) -> None:
    look(path, "PRAGMA user_version = 7")


def put_their_mark(path: Path) -> None:
    look(path, "PRAGMA application_id = 7")


def put_their_log(path: Path) -> None:
    put_their_tables(path)
    look(path, "PRAGMA journal_mode = WAL")


def put_another_schema(path: Path) -> None:
    look(path, f"PRAGMA application_id = {APPLICATION_ID}")
    look(path, "PRAGMA user_version = 99")


NEVER: list[tuple[Callable[[Path], None], str, str]] = [
    (put_nothing, "missing/jobs.db", r"its directory has to exist: make \S+/missing$"),
    (put_a_text, "jobs.db/below.db", r"its directory has to exist: make \S+/jobs\.db$"),
    (put_a_folder, "jobs.db", r"this is a directory: give it a file, as \S+/jobs\.db/jobs\.db$"),
    (put_a_pipe, "jobs.db", "not a regular file: give another path"),
    (put_a_text, "jobs.db", "not a database; give it a file of its own"),
    (put_their_tables, "jobs.db", "another application.* give raincheck a file of its own"),
    (put_their_version, "jobs.db", "another application.* give raincheck a file of its own"),
    (put_their_mark, "jobs.db", "another application.* give raincheck a file of its own"),
    (put_their_log, "jobs.db", "another application.* give raincheck a file of its own"),
    (put_another_schema, "jobs.db", "schema 99.* run one version, the newer one"),
]


@pytest.mark.parametrize(("put", "name", "cure"), NEVER)
async def test_a_path_that_can_never_work_is_a_mistake_that_names_the_cure(
    path: Path, put: Callable[[Path], None], name: str, cure: str
) -> None:
    put(path)
    there = {file: file.is_file() and file.read_bytes() for file in path.parent.rglob("*")}
    store = SQLiteStore(path.with_name(name) if "/" not in name else path.parent / name)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=cure) as raised:
            await store.open()
        assert str(path.parent / name) in str(raised.value)
    with pytest.raises(StoreError, match=cure):  # who has not heard of it
        await store.get("a")
    await store.aclose()
    now = {file: file.is_file() and file.read_bytes() for file in path.parent.rglob("*")}
    assert now == there  # its version and its mark, too


# What a later version may add: what it needs of jobs that are there already, too.
LATER = """
ALTER TABLE jobs ADD later TEXT;
UPDATE jobs SET later = json_extract(record, '$.route');
CREATE INDEX later ON jobs (later);
"""


def schema_of(path: Path) -> tuple[int, list[str]]:
    with closing(sqlite3.connect(path)) as db:
        ((version,),) = db.execute("PRAGMA user_version")
        return version, sorted(name for (name,) in db.execute("SELECT name FROM sqlite_master"))


async def test_a_file_of_an_older_version_is_brought_up_to_date(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a process of that version has it open, which goes on."""
    older, newer = SQLiteStore(path), SQLiteStore(path)
    done = await with_body(older, "a", [b"body"])
    await older.create(job("b"), keys=(Key("k"),), lease=60.0)
    first, tables = schema_of(path)
    monkeypatch.setattr(_sqlite_opening, "MIGRATIONS", {**MIGRATIONS, first + 1: LATER})
    await newer.open()
    assert schema_of(path) == (first + 1, sorted([*tables, "later"]))
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT DISTINCT later FROM jobs").fetchall() == [("r",)]
    for store in (older, newer, older):
        assert await store.get("a") == done
        assert await body_of(store, "a") == b"body"
        there = await store.find("k")
        assert there is not None
        assert await store.replace(there.job.with_progress(Progress(0.5)))
    assert await older.create(job("c")) == await newer.get("c")
    await older.aclose()
    await newer.aclose()


# --- what a process of version 0.1.0 does with a file of this one -------------------------------

INSERT_OF_0_1_0 = """
INSERT INTO jobs (id, route, owner, version, fence, unfinished, replayable, due, record, keyed,
    lease_until)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, FALSE, NULL) ON CONFLICT (id) DO NOTHING
"""
UPDATE_OF_0_1_0 = """
UPDATE jobs SET version = ?, fence = ?, unfinished = ?, replayable = ?, due = ?, record = ?
WHERE id = ?
"""


def columns_of_0_1_0(job: Job) -> tuple[object, ...]:
    unfinished = None if job.finished or job.gone else job.state
    due = job.purge_at if job.gone else job.expires_at
    return job.version, job.fence, unfinished, job.replayable, due, dump(job).decode()


def older_creates(path: Path, job: Job) -> None:
    owner = job.counts_for, job.owner
    look(path, INSERT_OF_0_1_0, job.id, *owner, *columns_of_0_1_0(job))


def older_replaces(path: Path, job: Job) -> None:
    look(path, UPDATE_OF_0_1_0, *columns_of_0_1_0(job), job.id)


async def listed(store: Store) -> tuple[list[Job], dict[tuple[str, State], Total]]:
    return [*(await store.list()).jobs], await store.totals()


async def test_what_a_process_of_an_older_version_writes_is_listed(
    path: Path, store: SQLiteStore
) -> None:
    await store.open()
    waits = job(state=State.QUEUED, created_at=999.0)
    older_creates(path, waits)
    older_creates(path, job("answer", synchronous=True))
    assert await listed(store) == ([waits], {("r", State.QUEUED): Total(1, 999.0, 0.0)})
    runs = waits.start(1001.0)
    older_replaces(path, runs)
    assert await listed(store) == ([runs], {("r", State.RUNNING): Total(1, 999.0, 0.0)})
    done = finished(runs, 1003.5)
    older_replaces(path, done)
    assert await listed(store) == ([done], {("r", State.FAILED): Total(1, 999.0, 2.5)})
    older_replaces(path, done.tombstone(1004.0, 60.0))
    assert await listed(store) == ([], {})


async def test_what_a_process_of_an_older_version_deletes_is_not_stored_any_more(
    path: Path, store: SQLiteStore
) -> None:
    one = Bounds(stored=1)
    mine = job("a", owner="ann")
    await store.create(mine, bounds=one)
    done = finished(mine)
    assert await store.replace(done)
    assert not await fits(store, job("b", owner="ann"), one)
    older_replaces(path, done.tombstone(1001.0, 60.0))
    await store.sweep(1002.0)
    assert await fits(store, job("b", owner="ann"), one)
    await store.sweep(1100.0)
    assert await store.get("a") is None
    older_replaces(path, finished(job("b", owner="ann")))  # which it does not count
    assert await fits(store, job("c", owner="ann"), one)


async def test_a_job_of_an_older_version_is_listed_when_a_newer_one_goes_on_with_it(
    path: Path, store: SQLiteStore
) -> None:
    await store.open()
    older_creates(path, job())
    told = job().with_progress(Progress(0.5))
    assert await store.replace(told)
    assert await listed(store) == ([told], {("r", State.RUNNING): Total(1, 1000.0, 0.0)})
    older_replaces(path, told.cancelling())
    done = finished(told.cancelling(), 1003.5)
    assert await store.replace(done)
    jobs, totals = await listed(store)
    assert (jobs, [*totals]) == ([done], [("r", State.FAILED)])


async def test_what_an_older_version_has_left_is_listed_in_small_steps(
    path: Path, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.open()
    jobs = [job(f"{n:02}") for n in range(25)]
    for each in jobs:
        older_creates(path, each)
    look(path, "UPDATE jobs SET record = 'damaged' WHERE id = '07'")
    monkeypatch.setattr(_sqlite_changes, "SWEPT", 10)
    commits = []
    commit = File._commit

    def counted(self: File, calls: list[Any]) -> list[str]:
        commits.append(len(calls))
        return commit(self, calls)

    monkeypatch.setattr(File, "_commit", counted)
    for _ in range(2):
        assert [*(await store.list()).jobs] == [each for each in jobs[::-1] if each.id != "07"]
    assert commits == [1, 1, 1]


async def test_a_sweep_lists_what_an_older_version_has_left(path: Path, store: SQLiteStore) -> None:
    await store.open()
    older_creates(path, job())
    await store.sweep(0.0)
    assert look(path, BEHIND) == []
    assert [*(await store.list()).jobs] == [job()]


async def test_the_file_of_an_older_version_is_listed(tmp_path: Path) -> None:
    fixture = Path(__file__).with_name("before_lists.sqlite")
    store = SQLiteStore(shutil.copyfile(fixture, tmp_path / "jobs.db"))
    (tmp_path / "jobs.db").chmod(0o600)
    assert [*(await store.list()).jobs] == [left.RUNNING, left.QUEUED, left.DONE]
    assert await store.totals() == {
        ("POST /vidéos", State.QUEUED): Total(1, 1700000000.25, 0.0),
        ("r", State.RUNNING): Total(1, 1700000000.25, 0.0),
        ("r", State.SUCCEEDED): Total(1, 1700000000.25, 1.5),
    }
    await store.aclose()


MANY_ROUTES = tuple(f"r{number}" for number in range(600))


async def test_jobs_of_more_routes_than_a_query_may_have_parts_are_listed(
    store: SQLiteStore,
) -> None:
    jobs = [job(f"{n:03}", route=route, created_at=n) for n, route in enumerate(MANY_ROUTES)]
    for each in jobs:
        await store.create(each)
    assert await pages(store, 200) == jobs[::-1]
    assert await pages(store, 200, states=(State.RUNNING, State.QUEUED)) == jobs[::-1]
    assert await pages(store, 200, states=(State.FAILED,)) == []
    assert await pages(store, route="r7") == [jobs[7]]


@pytest.mark.parametrize(
    ("states", "routes", "owner", "after"),
    [
        *itertools.product(
            ((), (State.QUEUED,), (State.FAILED, State.SUCCEEDED)),
            (("r", "s"), ("r",), MANY_ROUTES),
            (None, "o"),
            (None, "1~a"),
        )
    ],
)
async def test_a_list_reads_what_it_does_not_show_from_an_index_alone(
    path: Path,
    store: SQLiteStore,
    states: tuple[State, ...],
    routes: tuple[str, ...],
    owner: str | None,
    after: str | None,
) -> None:
    await store.open()
    for sql, parameters in (
        listing(states, routes, owner, 1.0, 2.0, after, 100),
        (ROUTES, []),
        (TOTALS, []),
        (BEHIND, []),
    ):
        plan = [row[3] for row in look(path, f"EXPLAIN QUERY PLAN {sql}", *parameters)]
        assert [step for step in plan if "COVERING INDEX" in step] or "INDEX behind" in plan[0]
        assert "SCAN jobs" not in plan


async def test_a_new_file_has_the_newest_schema(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_sqlite_opening, "MIGRATIONS", {**MIGRATIONS, 98: LATER})
    store = SQLiteStore(path)
    assert await store.create(job()) == job()
    assert schema_of(path)[0] == 98
    await store.aclose()


async def test_of_many_that_bring_a_file_up_to_date_one_does(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SQLiteStore(path)
    await store.create(job())
    await store.aclose()
    monkeypatch.setattr(_sqlite_opening, "MIGRATIONS", {**MIGRATIONS, 98: LATER})
    stores = [SQLiteStore(path) for _ in range(8)]
    async with anyio.create_task_group() as group:
        for each in stores:
            group.start_soon(each.open)
    for each in stores:
        assert await each.get("a") == job()
        await each.aclose()


# Dies in the middle of a change of the schema: the next statement never comes.
HALFWAY = """
import anyio, os, signal, sys
from raincheck.stores import _sqlite_opening
from raincheck.stores.sqlite import SQLiteStore

connect = _sqlite_opening.connect
def watched(*arguments):
    db = connect(*arguments)
    def heard(statement):
        if statement.strip().startswith(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
    db.set_trace_callback(heard)
    return db

from raincheck.stores import _sqlite_file
_sqlite_file.connect = watched
later = "ALTER TABLE jobs ADD later TEXT; CREATE TABLE more (n);"
_sqlite_opening.MIGRATIONS[98] = later
anyio.run(SQLiteStore(sys.argv[1]).open)
"""


@pytest.mark.parametrize("at", ["CREATE TABLE more", "PRAGMA user_version = 98"])
async def test_who_dies_while_bringing_a_file_up_to_date_leaves_it_as_it_was(
    path: Path, at: str
) -> None:
    store = SQLiteStore(path)
    await store.create(job())
    await store.aclose()
    before = schema_of(path)
    died = await anyio.run_process(
        [sys.executable, "-c", HALFWAY, str(path), at], check=False, stderr=None
    )
    assert died.returncode == -signal.SIGKILL
    assert schema_of(path) == before
    assert await store.get("a") == job()
    assert await store.replace(finished(job()))
    await store.aclose()


async def test_what_was_a_mistake_works_when_it_is_mended(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "missing" / "jobs.db")
    with pytest.raises(ConfigurationError):
        await store.open()
    (tmp_path / "missing").mkdir()
    await store.open()
    assert await store.create(job()) == job()
    await store.aclose()


async def test_a_file_that_somebody_else_writes_to_is_merely_away(path: Path) -> None:
    store = SQLiteStore(path, timeout=0.05)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreError, match="locked; another process writes to it"):
            await store.open()
        other.execute("ROLLBACK")
        await store.open()
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked; another process writes to it"):
            await store.open()
    await store.open()
    await store.aclose()


# As a user who owns nothing of it, where the tests run as one to whom everything is allowed.
WITHOUT_PERMISSION = """
import os, sys, anyio
from raincheck import ConfigurationError
from raincheck.stores.sqlite import SQLiteStore

async def main():
    warm = SQLiteStore(sys.argv[1])  # whatever has to be imported is, before it is not allowed
    await warm.open()
    await warm.aclose()
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    store = SQLiteStore(sys.argv[2])
    try:
        await store.open()
    except ConfigurationError as error:
        print(error)
    await store.aclose()

anyio.run(main)
"""


@pytest.mark.parametrize(
    ("of_the_folder", "of_the_file"),
    [(0o555, None), (0o555, 0o444), (0o755, 0o444), (0o555, 0o666), (0o000, None), (0o000, 0o666)],
)
def test_a_file_that_may_not_be_written_is_a_mistake(
    tmp_path: Path, of_the_folder: int, of_the_file: int | None
) -> None:
    with TemporaryDirectory() as folder:  # pytest's own are closed to others
        os.chmod(folder, 0o755)
        place = Path(folder) / "place"
        place.mkdir()
        path = place / "jobs.db"
        if of_the_file is not None:
            look(path, "VACUUM")
            path.chmod(of_the_file)
        place.chmod(of_the_folder)
        warm = str(tmp_path / "warm.db")
        code = [sys.executable, "-c", WITHOUT_PERMISSION, warm, str(path)]
        done = subprocess.run(code, capture_output=True, text=True, timeout=PATIENCE, check=False)
        place.chmod(0o700)
        assert done.stderr == ""
        assert f"{path}: it and its directory have to be readable and writable" in done.stdout
        assert "chown" in done.stdout
        assert [*place.iterdir()] == [] if of_the_file is None else [path]


# --- who may read it ---------------------------------------------------------------------------


def modes(path: Path) -> dict[str, int]:
    return {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o277], indirect=True)
@pytest.mark.usefixtures("umask")
async def test_nobody_else_may_read_what_it_keeps(
    path: Path, store: SQLiteStore, caplog: pytest.LogCaptureFixture
) -> None:
    await store.create(job())
    assert modes(path) == dict.fromkeys(["jobs.db", "jobs.db-wal", "jobs.db-shm"], 0o600)
    assert caplog.messages == []


async def test_a_file_that_others_may_read_is_named_once(
    path: Path, store: SQLiteStore, caplog: pytest.LogCaptureFixture
) -> None:
    look(path, "VACUUM")
    os.chmod(path, 0o644)
    for _ in range(3):
        await store.open()
        await store.create(job())
    (told,) = caplog.messages
    assert f"{path} has mode 0644" in told
    assert f"chmod 600 {path} {path}-wal {path}-shm" in told
    assert {*modes(path).values()} == {0o644}  # it is somebody's choice


async def test_a_link_to_a_file_elsewhere_is_followed(tmp_path: Path) -> None:
    for name in ("there", "here"):
        (tmp_path / name).mkdir()
    (tmp_path / "here" / "jobs.db").symlink_to(tmp_path / "there" / "jobs.db")
    store = SQLiteStore(tmp_path / "here" / "jobs.db")
    await store.create(job())
    assert modes(tmp_path / "there" / "jobs.db") == dict.fromkeys(
        ["jobs.db", "jobs.db-wal", "jobs.db-shm"], 0o600
    )
    await store.aclose()


async def test_of_many_who_make_the_file_at_once_nobody_is_in_anothers_way(path: Path) -> None:
    stores = [SQLiteStore(path) for _ in range(8)]
    async with anyio.create_task_group() as group:
        for number, one in enumerate(stores):
            group.start_soon(one.create, job(str(number)))
    assert [await stores[0].get(str(number)) for number in range(8)] == [
        job(str(number)) for number in range(8)
    ]
    for one in stores:
        await one.aclose()


# --- where there is no room ---------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory on a disk of 8 MiB, where one may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if os.name != "posix" or os.getuid() != 0 or subprocess.run(mount, check=False).returncode:
        pytest.skip("no small disk may be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


async def grow(store: Store, id: str, fence: int = 1) -> int:
    """Append to a body until there is no room; how much it has then."""
    size = 0
    with suppress(StoreFull):
        while size < 16 * MEBIBYTE:
            assert await store.append_body(id, fence, size, random.randbytes(256 * 1024))
            size += 256 * 1024
    return size


async def test_a_response_that_the_disk_cannot_hold_leaves_room_for_all_others(
    small_disk: Path,
) -> None:
    store = SQLiteStore(small_disk / "jobs.db")
    small = [job(f"small-{number}") for number in range(20)]
    for each in small:
        await store.create(each, lease=60.0)
    grown = []
    for number in range(4):
        large = job(f"large-{number}")
        await store.create(large)
        grown.append(await grow(store, large.id))
        assert await body_of(store, large.id) != b""
        with pytest.raises(StoreFull, match="the disk is full"):
            await store.replace(finished(large, size=grown[-1] + 1), tail=bytes(256 * 1024))
        assert await store.get(large.id) == large
        # What was accepted before can begin and end, and the large one can fail ...
        for each in small[5 * number : 5 * number + 5]:
            assert await store.renew({each.id: 1}, 60.0) == {each.id: State.RUNNING}
            assert await store.replace(each.with_progress(Progress(0.5)))
            assert await store.replace(finished(each.with_progress(Progress(0.5))))
        assert await store.replace(finished(large))
        # ... with which its room is free: new ones are accepted.
        new = job(f"new-{number}", replayable=True, max_runs=2)
        assert await store.create(new, request(bytes(100_000)), lease=60.0) == new
        assert await store.append_body(new.id, 1, 0, bytes(MEBIBYTE))
        assert await store.replace(new.tombstone(1000.0, 60.0))
    assert min(grown) > 4 * MEBIBYTE  # each had most of the disk
    await store.aclose()


async def test_no_job_is_accepted_without_room_for_how_it_ends(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the disk is full: what is left of it is for those that were accepted."""
    there = job(replayable=True, max_runs=2)
    await store.create(there, request())

    def nearly_full(folder: str) -> shutil._ntuple_diskusage:
        return shutil._ntuple_diskusage(10**9, 10**9 - SPARE, SPARE)

    monkeypatch.setattr(shutil, "disk_usage", nearly_full)
    with pytest.raises(StoreFull, match=r"jobs\.db: the disk is full"):
        await store.create(job("b"))
    with pytest.raises(StoreFull, match=r"jobs\.db: the disk is full"):
        await store.append_body("a", 1, 0, b"x")
    with pytest.raises(StoreFull, match=r"jobs\.db: the disk is full"):
        await store.replace(there.shared(1), keys=(Key("k"),))
    assert await store.get("b") is None
    assert await store.find("k") is None
    assert await store.create(there) == there  # it is there already
    assert await store.replace(there.requeue())
    assert await store.replace(there.requeue().start(1001.0))
    assert await store.replace(finished(there.requeue().start(1001.0)))
    monkeypatch.undo()
    assert await store.create(job("b")) == job("b")


# --- what is dropped ---------------------------------------------------------------------------


def secret(id: str) -> bytes:
    return f"Bearer <{id}>".encode()


def with_secret(id: str, size: int) -> CapturedRequest:
    """A captured request, with something secret in its header fields."""
    fields = ((b"x-trace", b"t" * min(size, 4000)), (b"authorization", secret(id)))
    return request(b"x" * size, headers=fields)


async def drop(store: Store, id: str) -> None:
    """Let a job come and end, with its captured request."""
    await store.create(job(id, replayable=True), with_secret(id, 1000))
    assert await store.replace(finished(job(id, replayable=True)))


def found(path: Path, ids: Iterable[str]) -> set[str]:
    """Those whose secret is anywhere in the three files."""
    files = path.parent.iterdir()
    content = b"".join(file.read_bytes() for file in files)
    return {id for id in ids if secret(id) in content}


async def no_more(path: Path, ids: Collection[str]) -> None:
    """Return when none of their secrets is to be found."""
    with anyio.fail_after(PATIENCE):
        while found(path, ids):  # noqa: ASYNC110  # nobody tells when a file changes
            await anyio.sleep(0.02)


async def test_no_outcome_waits_for_room_to_write_a_request_over(small_disk: Path) -> None:
    path, ids = small_disk / "jobs.db", ("ends", "expires")
    store = SQLiteStore(path)
    for id in ids:
        await store.create(job(id, replayable=True), with_secret(id, MEBIBYTE * 3 // 2), lease=60.0)
    await store.create(job("large"))
    await grow(store, "large")
    for id, ttl in zip(ids, (10_000.0, 60.0), strict=True):
        ended = finished(job(id, replayable=True), ttl=ttl)
        assert await store.replace(ended)
        assert (await store.get(id), await store.request(id)) == (ended, None)
    # What is left of them stands in nobody's way ...
    assert await store.replace(finished(job("other", version=2))) is False
    for now in (1100.0, 1200.0, 1300.0):
        with anyio.fail_after(PATIENCE):
            assert await store.sweep(now)
    tombstone = await store.get("expires")
    assert tombstone is not None
    assert tombstone.gone
    assert found(path, ids) == set(ids)
    # ... and is found by whoever comes next, and goes as soon as there is room.
    await store.aclose()
    store = SQLiteStore(path)
    assert await store.replace(finished(job("large"), ttl=10_000.0))
    assert await store.sweep(1300.0)
    await no_more(path, ids)
    assert look(path, "SELECT count(*) FROM requests") == [(0,)]
    assert await store.sweep(1300.0)
    assert await store.get("expires") is None
    await store.aclose()


@pytest.mark.slow
async def test_secrets_go_from_all_files_when_a_request_is_dropped(
    path: Path, store: SQLiteStore
) -> None:
    chance = random.Random(7)
    kept: dict[str, Job] = {}
    dropped = set()
    for number in range(600):
        if chance.random() < 0.6 or not kept:
            size = chance.choice([0, 100, 1000, 3000, 9000, 50_000])
            new = job(str(number), state=State.QUEUED, replayable=True, max_runs=2)
            kept[new.id] = new
            await store.create(new, with_secret(new.id, size), lease=0.0)
        else:
            old = kept.pop(chance.choice([*kept]))
            dropped.add(old.id)
            begun = old._replace(max_runs=1).start(1001.0)
            ended = [finished(old), old.tombstone(1000.0, 60.0), begun]
            assert await store.replace(chance.choice(ended))
    assert len(dropped) > 100
    await no_more(path, dropped)
    assert found(path, kept) == {*kept}  # it is found where it is


@pytest.mark.slow
async def test_they_are_gone_within_seconds_while_others_come_and_go(
    path: Path, store: SQLiteStore
) -> None:
    gone_after = []
    async with anyio.create_task_group() as group:

        async def come_and_go() -> None:
            for number in itertools.count():
                await drop(store, f"passing-{number}")

        group.start_soon(come_and_go)
        for id in "abc":
            await drop(store, id)
            start = time.monotonic()
            await no_more(path, [id])
            gone_after.append(time.monotonic() - start)
        group.cancel_scope.cancel()
    assert min(gone_after) < 2 * SCRUB_EVERY


async def drops_and_leaves_it(store: Store, parent: Parent) -> None:
    _sqlite_file.SCRUB_EVERY = 1000.0  # it is killed before
    await drop(store, "a")
    await anyio.sleep(1.2 * SCRUB_EVERY)  # what was begun before is done
    await drop(store, "b")
    parent.say()
    await parent.hear()


@pytest.mark.one_loop
@pytest.mark.parametrize("opened", [True, False])
async def test_what_a_dead_process_has_dropped_goes_with_the_next_sweep_or_start(
    path: Path, opening: str, opened: bool
) -> None:
    beside = SQLiteStore(path)
    if opened:
        await beside.open()
    async with child(opening, drops_and_leaves_it) as other:
        await other.hear()
        await other.kill()
    assert "b" in found(path, "ab")
    if opened:
        await beside.sweep(0.0)
    else:
        await beside.open()
    await no_more(path, "ab")
    await beside.aclose()


@pytest.mark.slow
async def test_who_reads_for_long_is_not_waited_for_and_holds_up_nobody(
    path: Path, store: SQLiteStore
) -> None:
    await store.create(job(replayable=True), with_secret("a", 1000))
    await store.create(job("b"))
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM jobs").fetchall()
        await store.replace(finished(job(replayable=True)))
        there = job("b")
        slowest, end = 0.0, time.monotonic() + 2.5 * SCRUB_EVERY
        while time.monotonic() < end:
            start = time.monotonic()
            there = there.with_progress(Progress(0.5))
            assert await store.replace(there)
            slowest = max(slowest, time.monotonic() - start)
        assert found(path, "a") == {"a"}
    assert slowest < 1.0  # others may be busy, but nobody waits for five seconds
    await no_more(path, "a")


async def test_a_store_that_is_closed_leaves_nothing_that_was_dropped(
    path: Path, store: SQLiteStore
) -> None:
    beside = SQLiteStore(path)  # so that the log stays
    await beside.open()
    for id in "ab":
        await drop(store, id)
    await store.aclose()
    assert found(path, "ab") == set()
    await beside.aclose()


async def test_a_body_is_dropped_without_being_written_over(path: Path, store: SQLiteStore) -> None:
    """It may be large, and whoever writes meanwhile waits."""
    log = path.with_name("jobs.db-wal")
    for id in "abc":
        await store.create(job(id))
        await store.append_body(id, 1, 0, random.randbytes(8 * MEBIBYTE))
    for id in "abc":
        assert size_of(path) > 24 * MEBIBYTE
        assert log.stat().st_size == 0
        await store.replace(job(id).tombstone(1000.0, 60.0))
        assert 0 < log.stat().st_size < MEBIBYTE


@pytest.mark.parametrize("replaced", [False, True])
async def test_nothing_is_accepted_into_a_file_that_is_gone(
    path: Path, store: SQLiteStore, replaced: bool
) -> None:
    await store.create(job())
    path.rename(path.with_name("elsewhere.db"))  # noqa: ASYNC240
    another = SQLiteStore(path)
    if replaced:
        await another.create(job("b"))
    with pytest.raises(StoreError, match=r"jobs\.db: the file was moved or deleted"):
        await store.create(job("c"))
    await store.aclose()
    assert await store.create(job("c")) == job("c")
    assert (await another.get("b") is not None) == replaced
    assert await another.get("c") == job("c")
    await another.aclose()


async def test_a_damaged_file_is_told_to_everybody(path: Path, store: SQLiteStore) -> None:
    await store.create(job(replayable=True), request())
    look(path, "DROP TABLE requests")
    with pytest.raises(StoreError, match=r"jobs\.db: no such table: requests"):
        await store.request("a")
    told = []

    async def wait() -> None:
        with pytest.raises(StoreError, match=r"jobs\.db: no such table: jobs"):
            await store.changed("a", 1)
        told.append("a")

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(wait)
        await anyio.sleep(0.05)
        look(path, "DROP TABLE jobs")
    assert told == ["a"] * 3


async def test_a_file_that_somebody_reads_in_the_old_way_is_waited_for(path: Path) -> None:
    """He has to let go before there can be a write-ahead log."""
    store = SQLiteStore(path, timeout=0.05)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN")
        assert db.execute("SELECT * FROM sqlite_master").fetchall() == []
        with pytest.raises(StoreError, match=r"jobs\.db: database is locked"):
            await store.create(job())
    assert await store.create(job()) == job()
    await store.aclose()


async def test_a_relative_path_is_that_of_the_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = SQLiteStore("jobs.db")
    monkeypatch.chdir("/")
    await store.create(job())
    await store.aclose()
    assert (tmp_path / "jobs.db").exists()


@pytest.mark.parametrize(("synchronous", "level"), [("NORMAL", 1), ("FULL", 2)])
async def test_how_much_is_synchronous(
    path: Path, synchronous: Literal["NORMAL", "FULL"], level: int
) -> None:
    store = SQLiteStore(path, synchronous=synchronous)
    await store.create(job())
    assert store._use is not None
    assert store._use.file._writer is not None
    assert [*store._use.file._writer.execute("PRAGMA synchronous")] == [(level,)]
    await store.aclose()


async def test_what_is_dropped_leaves_no_rows(path: Path, store: SQLiteStore) -> None:
    def rows() -> list[int]:
        tables = ("jobs", "keys", "requests", "bodies")
        return [look(path, f"SELECT count(*) FROM {table}")[0][0] for table in tables]

    first = job(max_runs=2, replayable=True)
    await store.create(first, request(), keys=(Key("k"), Key("l", lasting=False)))
    await store.append_body("a", 1, 0, bytes(MEBIBYTE))
    assert rows() == [1, 2, 1, 4]
    assert await store.replace(first.requeue())
    assert rows() == [1, 2, 1, 0]
    last = first.requeue().start(1001.0)
    assert await store.replace(last)
    await store.append_body("a", last.fence, 0, bytes(MEBIBYTE))
    done = finished(last, size=MEBIBYTE + 1)
    assert await store.replace(done, tail=b"x")
    assert rows() == [1, 1, 0, 5]
    await store.sweep(1060.0)
    assert rows() == [1, 0, 0, 0]
    await store.sweep(1120.0)
    assert rows() == [0, 0, 0, 0]


async def test_the_file_shrinks_when_most_of_it_is_empty(path: Path, store: SQLiteStore) -> None:
    for id in "abc":
        await store.create(job(id))
        await store.append_body(id, 1, 0, bytes(2 * MEBIBYTE))
        await store.replace(finished(job(id), size=2 * MEBIBYTE))
    assert size_of(path) > 6 * MEBIBYTE
    await store.sweep(1060.0)
    assert size_of(path) < MEBIBYTE
    assert look(path, "PRAGMA integrity_check") == [("ok",)]


async def test_a_file_that_cannot_shrink_is_swept(path: Path, store: SQLiteStore) -> None:
    await store.create(job())
    await store.aclose()
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA auto_vacuum = NONE")
        db.execute("VACUUM")
    await store.append_body("a", 1, 0, bytes(2 * MEBIBYTE))
    await store.replace(finished(job()))
    with anyio.fail_after(PATIENCE):
        await store.sweep(1060.0)


# --- changes ---------------------------------------------------------------------------------


async def test_changes_share_a_transaction(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    commit = File._commit

    def counted(self: File, calls: list[Any]) -> list[str]:
        sizes.append(len(calls))
        return commit(self, calls)

    monkeypatch.setattr(File, "_commit", counted)
    async with anyio.create_task_group() as group:
        for number in range(200):
            group.start_soon(store.create, job(str(number)))
    assert sizes == [1, 199]  # the first does not wait for others, and they wait for it


async def test_a_change_that_fails_spoils_no_other(store: SQLiteStore) -> None:
    await store.create(job("before"), keys=(Key("k"),))
    failed = []

    async def fail() -> None:
        try:
            await store.create(job("not to be written", created_at=object()))
        except TypeError as error:
            failed.append(error)

    async with anyio.create_task_group() as group:
        for number in range(20):
            keys = (Key(f"key-{number}"),)
            group.start_soon(partial(store.create, job(str(number)), keys=keys))
            if number % 5 == 0:
                group.start_soon(fail)
        group.start_soon(store.replace, job("before").cancelling())
    assert len(failed) == 4
    assert await store.get("not to be written") is None
    assert [await store.find(f"key-{id}") for id in range(20)] == [
        (job(str(id)), None) for id in range(20)
    ]
    assert await store.get("before") == job("before").cancelling()


async def test_a_job_without_room_spoils_no_other(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = []
    commit = File._commit

    def counted(self: File, calls: list[Any]) -> list[str]:
        commits.append(len(calls))
        return commit(self, calls)

    monkeypatch.setattr(File, "_commit", counted)
    told = {}

    async def create(number: int) -> None:
        told[number] = await fits(store, job(str(number)), Bounds(route=5))

    async with anyio.create_task_group() as group:
        for number in range(40):
            group.start_soon(create, number)
    assert commits == [1, 39]
    assert sum(told.values()) == 5
    assert {number for number in told if await store.get(str(number))} == {
        number for number, fit in told.items() if fit
    }


async def test_who_had_no_room_is_asked_again_when_its_transaction_fails(
    store: SQLiteStore,
) -> None:
    """What took the room has not been kept, then."""
    runs, told = [], []

    def takes_the_room(changes: Changes) -> None:
        runs.append(changes)
        if len(runs) > 1:
            raise ValueError("not again")
        changes.create(job("b"), None, (), None, None)

    def fails(changes: Changes) -> None:
        raise ValueError("not at all")

    async def change(change: Callable[[Changes], None]) -> None:
        with pytest.raises(ValueError, match="not"):
            await store._here().write(change)

    async def create() -> None:
        told.append(await fits(store, job(), Bounds(route=1)))

    async with anyio.create_task_group() as group:
        group.start_soon(store.get, "a")  # the first is alone, and opens the file
        await anyio.lowlevel.checkpoint()
        group.start_soon(change, takes_the_room)
        await anyio.lowlevel.checkpoint()
        group.start_soon(create)
        await anyio.lowlevel.checkpoint()
        group.start_soon(change, fails)
    assert (len(runs), told) == (2, [True])
    assert await store.get("b") is None


async def test_a_full_disk_refuses_what_is_too_large_and_nothing_else(store: SQLiteStore) -> None:
    await store.create(job())
    assert store._use is not None
    db = store._use.file._writer
    assert db is not None
    ((pages,),) = db.execute("PRAGMA page_count")
    db.execute(f"PRAGMA max_page_count = {pages + 20}")
    refused = []

    async def create(id: str, size: int) -> None:
        try:
            await store.create(job(id, replayable=True), request(bytes(size)))
        except StoreFull as error:
            refused.append((id, str(error)))

    async with anyio.create_task_group() as group:
        for id, size in (("first", 1), ("small", 1), ("large", MEBIBYTE), ("last", 1)):
            group.start_soon(create, id, size)
    ((id, message),) = refused
    assert id == "large"
    assert message.endswith("jobs.db: the disk is full")
    assert [id for id in ("first", "small", "large", "last") if await store.get(id)] == [
        "first",
        "small",
        "last",
    ]
    db.execute("PRAGMA max_page_count = 1000000")
    await create("large", MEBIBYTE)
    assert await store.request("large") == request(bytes(MEBIBYTE))


async def test_a_body_that_fills_the_disk_makes_room_again_when_its_job_has_failed(
    store: SQLiteStore,
) -> None:
    await store.create(job())
    assert store._use is not None
    db = store._use.file._writer
    assert db is not None
    ((pages,),) = db.execute("PRAGMA page_count")
    db.execute(f"PRAGMA max_page_count = {pages + 200}")
    piece, size = bytes(MEBIBYTE // 4), 0

    async def fill() -> None:
        nonlocal size
        while size < 10 * MEBIBYTE:
            await store.append_body("a", job().fence, size, piece)
            size += len(piece)

    with pytest.raises(StoreFull):
        await fill()
    assert size > 0
    with pytest.raises(StoreFull):
        await store.replace(finished(job(), size=size + len(piece)), tail=piece)
    assert await store.replace(finished(job()))
    assert await body_of(store, "a") == b""
    await store.create(job("b"))
    assert await store.append_body("b", job().fence, 0, piece)


async def test_who_reads_waits_for_nobody_who_writes(path: Path, store: SQLiteStore) -> None:
    await store.create(job(), keys=(Key("k"),))
    await store.append_body("a", 1, 0, bytes(MEBIBYTE))
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        async with anyio.create_task_group() as group:
            group.start_soon(store.create, job("b"))
            await anyio.sleep(0.01)
            with anyio.fail_after(3):  # less than a change would wait
                assert await store.get("a") == job()
                assert await store.find("k") == (job(), None)
                assert len(await body_of(store, "a")) == MEBIBYTE
                assert await store.get("b") is None
            db.execute("ROLLBACK")
    assert await store.get("b") == job("b")


async def test_who_writes_waits_only_so_long(path: Path) -> None:
    store = SQLiteStore(path, timeout=0.05)
    await store.create(job())
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match=r"jobs\.db: database is locked; another process"):
            await store.create(job("b"))
    assert await store.create(job("b")) == job("b")
    await store.aclose()


async def test_changes_by_others_are_seen_between_ones_own(path: Path, store: SQLiteStore) -> None:
    """The thread that writes also looks, and finds time for it."""
    another = SQLiteStore(path)
    await store.create(job("waited for"))

    async def write() -> None:
        number = 0
        while True:
            await store.create(job(str(number)))
            number += 1

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(write)
            there = job("waited for")
            for version in range(1, 20):
                async with anyio.create_task_group() as pair:
                    pair.start_soon(store.changed, "waited for", version)
                    await anyio.lowlevel.checkpoint()
                    there = there.with_progress(Progress(0.5))
                    assert await another.replace(there)
            group.cancel_scope.cancel()
    await another.aclose()


async def test_a_piece_that_is_dropped_before_it_is_read_is_no_end(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.create(job())
    await store.append_body("a", 1, 0, bytes(MEBIBYTE))
    read = store._read_large

    async def late(sql: str, *parameters: object) -> list[Any]:
        await store.replace(job().tombstone(1000.0, 60.0))
        return await read(sql, *parameters)

    monkeypatch.setattr(store, "_read_large", late)
    with pytest.raises(BodyLost, match="job a was dropped while it was read"):
        await body_of(store, "a")


async def test_small_pieces_of_a_body_are_read_together(store: SQLiteStore) -> None:
    await store.create(job())
    whole = b""
    small, large = [3] * 250, [200_000, 1, 40_000, 40_000, 65_536, 65_537, 7]
    for size in small + large:
        chunk = random.randbytes(size)
        assert await store.append_body("a", 1, len(whole), chunk)
        whole += chunk
    parts = [part async for part in store.read_body("a")]
    assert b"".join(parts) == whole
    assert [len(part) for part in parts] == [
        *(300, 300, 150),
        *(200_000, 80_001, 65_536, 65_537, 7),
    ]
    for start in (1, 299, 300, 301, 749, 750, 751, 200_750, 200_751, 280_000, len(whole) - 1):
        assert await body_of(store, "a", start) == whole[start:]
    assert await body_of(store, "a", len(whole)) == b""


async def test_a_small_body_in_many_pieces_is_left_to_who_reads_it(store: SQLiteStore) -> None:
    """Of whom the event loop is not to wait for long."""
    few = await with_body(store, "few", [b"x"] * ROWS)
    assert await store.fetch("few") == Fetched(few, b"x" * ROWS)
    many = await with_body(store, "many", [b"x"] * (ROWS + 1))
    assert await store.fetch("many") == Fetched(many, None)
    assert await body_of(store, "many") == b"x" * (ROWS + 1)


async def test_a_job_whose_request_cannot_be_read_does_not_begin(
    path: Path, store: SQLiteStore
) -> None:
    waits = job(state=State.QUEUED, replayable=True)
    await store.create(waits, request())
    look(path, "UPDATE requests SET record = x'00'")
    with pytest.raises(UnreadableRecord):
        await store.claim("a", routes=["r"], holder="h", now=1001.0, lease=None)
    assert await store.get("a") == waits


async def test_a_claimed_request_leaves_no_row_behind_the_next_version(
    path: Path, store: SQLiteStore
) -> None:
    await store.create(job(state=State.QUEUED, replayable=True), request())
    begun = await store.claim("a", routes=["r"], holder="h", now=1001.0, lease=None)
    assert begun is not None
    assert look(path, "SELECT count(*) FROM requests") == [(1,)]
    assert await store.replace(begun.job.with_progress(Progress(0.5)))
    assert look(path, "SELECT count(*) FROM requests") == [(0,)]


async def test_no_look_misses_who_comes_meanwhile(path: Path, store: SQLiteStore) -> None:
    await store.create(job())
    assert store._use is not None
    file = store._use.file

    class Crowd(Watchers):
        """Nobody is here yet, and while it is counted, another process changes the job."""

        def __len__(self) -> int:
            return 1

        def known(self) -> dict[str, tuple[int, int | None]]:
            look(path, "UPDATE jobs SET version = 2")
            return {}

    assert file.look(Crowd()) == []
    file._look_at = 0.0
    with store._use.waiting.newer("a", 1):
        assert file.look(store._use.waiting) == ["a"]


async def test_the_head_of_a_response_is_no_part_of_its_body(
    path: Path, store: SQLiteStore
) -> None:
    """And goes with it, whoever drops that: in the row that has it, too."""
    first = job(fence=0, max_runs=2, replayable=True)
    again = first.requeue().start(1001.0)
    await store.create(first, request())
    for runs, next_version in ((first, first.requeue()), (again, finished(again))):
        if runs is again:
            assert await store.replace(again)
        assert await store.append_body("a", runs.fence, 0, b"", head=Head(200, ()))
        assert await store.append_body("a", runs.fence, 0, b"one", head=Head(201, ()))
        assert await body_of(store, "a") == b"one"
        assert await store.partial("a") == Partial(runs, Head(200, ()), 3)
        assert look(path, "SELECT count(*) FROM bodies") == [(2,)]
        assert await store.replace(next_version)
        assert look(path, "SELECT count(*) FROM bodies") == [(0,)]


async def test_who_follows_a_response_does_not_look_while_others_write_elsewhere(
    path: Path, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that writes sees whether it has grown."""
    another = SQLiteStore(path)
    head = Head(200, ())
    await store.create(job())
    await store.append_body("a", 1, 0, b"one", head=head)
    await another.create(job("b"))
    looks = []
    partial = store.partial

    async def counted(id: str) -> Partial | None:
        looks.append(id)
        return await partial(id)

    monkeypatch.setattr(store, "partial", counted)
    seen = []

    async def follow() -> None:
        seen.append(await store.grown(Partial(job(), head, 3)))

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(follow)
            group.start_soon(store.changed, "a", 1)
            for number in range(10):
                assert await another.append_body("b", 1, number, b"x")
                await anyio.sleep(2 * LOOK_EVERY)
            assert looks == ["a"]
            assert await another.append_body("a", 1, 3, b"two")
            await anyio.sleep(10 * LOOK_EVERY)
            assert await another.replace(job().cancelling())
    assert seen == [Partial(job(), head, 6)]
    assert looks == ["a", "a"]
    await another.aclose()


async def test_a_sweep_takes_small_steps(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        await store.create(job(str(number)))
        await store.append_body(str(number), 1, 0, bytes(MEBIBYTE))
        await store.replace(finished(job(str(number)), size=MEBIBYTE))
    monkeypatch.setattr(_sqlite_changes, "SWEPT", 10)
    swept = []
    sweep = Changes.sweep

    def counted(self: Changes, now: float) -> tuple[bool, list[str]]:
        before = self._db.total_changes
        found = sweep(self, now)
        swept.append(self._db.total_changes - before)
        return found

    monkeypatch.setattr(Changes, "sweep", counted)
    await store.sweep(1060.0)
    assert swept == [12] * 3 + [0]  # two jobs: each a row, four of its body, one of the totals


# --- threads and processes -------------------------------------------------------------------


async def test_a_closed_store_leaves_nothing_behind(path: Path, store: SQLiteStore) -> None:
    await store.create(job(replayable=True), request())
    await store.request("a")
    with anyio.move_on_after(0.05):
        await store.changed("a", 1)

    def threads() -> list[str]:
        return [each.name for each in threading.enumerate() if "raincheck" in each.name]

    assert len(threads()) == 2
    await store.aclose()
    assert threads() == []
    assert [file for file in open_files() if file.name.startswith(path.name)] == []


async def test_who_waits_goes_on_when_the_store_is_closed(store: SQLiteStore) -> None:
    await store.create(job())
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(store.changed, "a", 1)
            await anyio.wait_all_tasks_blocked()
            await store.aclose()
            await store.replace(job().cancelling())


async def test_what_is_under_way_is_done_before_a_store_is_closed(store: SQLiteStore) -> None:
    await store.create(job(replayable=True), request())
    done = []

    async def create(id: str) -> None:
        await store.create(job(id))
        done.append(id)

    async def read() -> None:
        assert await store.request("a") == request()
        done.append("a")

    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(create, str(number))
        group.start_soon(read)
        await anyio.lowlevel.checkpoint()
        group.start_soon(store.aclose)
    assert len(done) == 21


def test_one_store_on_several_kinds_of_event_loop(path: Path) -> None:
    store = SQLiteStore(path)

    async def use(id: str) -> None:
        await store.create(job(id))
        async with anyio.create_task_group() as group:
            group.start_soon(store.changed, id, 1)
            await anyio.wait_all_tasks_blocked()
            await store.replace(job(id).cancelling())

    for number, backend in enumerate(("asyncio", "trio", "asyncio")):
        anyio.run(use, str(number), backend=backend)
    anyio.run(store.aclose, backend="trio")


SCRIPT = """
import anyio, os, sys
from raincheck.stores.sqlite import SQLiteStore
from raincheck.testing.samples import job

store = SQLiteStore(sys.argv[1])
"""


def run(path: Path, script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", SCRIPT + script, path],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    return done.stdout


@pytest.mark.parametrize(
    "end",
    [
        pytest.param("asyncio.run(use())", id="plain"),
        pytest.param(
            "loop = asyncio.new_event_loop()\n"
            "loop.run_until_complete(use())\n"
            "waiting = loop.create_task(store.changed('a', 1))\n"
            "loop.run_until_complete(asyncio.sleep(0.1))\n"
            "os.write(1, b'')",
            id="with a task that waits",
        ),
    ],
)
def test_the_interpreter_ends_although_nobody_closed_the_store(path: Path, end: str) -> None:
    run(path, "import asyncio\nasync def use(): await store.create(job())\n" + end)
    assert look(path, "SELECT id FROM jobs") == [("a",)]


@pytest.mark.parametrize("closed", [False, True])
async def test_what_a_parent_has_opened_is_not_used(store: SQLiteStore, closed: bool) -> None:
    """As in a forked child, but seen from within."""
    await store.create(job())
    assert store._use is not None
    inherited = store._use.file
    inherited._pid += 1
    if closed:
        await store.aclose()
    assert await store.get("a") == job()
    assert store._use is not None
    assert store._use.file is not inherited
    inherited.close()


def test_a_forked_child_opens_the_file_anew(path: Path) -> None:
    """And holds its locks: else the parent would think itself the last, and remove the log."""
    run(
        path,
        """
read, write = os.pipe()
anyio.run(store.create, job("parent"))
if os.fork() == 0:
    anyio.run(store.create, job("child"))
    os.read(read, 1)
    anyio.run(store.create, job("orphan"))
    os._exit(0)
anyio.run(store.create, job("parent again"))
anyio.run(store.aclose)
os.write(write, b"x")
os.wait()
""",
    )
    assert {id for (id,) in look(path, "SELECT id FROM jobs")} == {
        "parent",
        "parent again",
        "child",
        "orphan",
    }
    assert look(path, "PRAGMA integrity_check") == [("ok",)]


def test_a_child_that_was_forked_in_the_middle_is_told_so(path: Path) -> None:
    told = run(
        path,
        """
import sqlite3, threading

async def middle():
    await store.get("a")
    db = sqlite3.connect(sys.argv[1], isolation_level=None)
    db.execute("BEGIN IMMEDIATE")
    async with anyio.create_task_group() as group:
        group.start_soon(store.create, job())
        await anyio.sleep(0.1)
        child = os.fork()
        if child == 0:
            try:
                await store.get("a")
            except Exception as error:
                os.write(1, repr(error).encode())
            os._exit(0)
        os.waitpid(child, 0)
        db.execute("ROLLBACK")
    await store.aclose()

anyio.run(middle)
""",
    )
    assert told.startswith("StoreError(")
    assert "forked" in told
