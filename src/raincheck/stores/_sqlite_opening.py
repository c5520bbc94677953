"""How `SQLiteStore` opens its file, and brings what is in it up to date."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator

from raincheck.stores._sqlite_calls import Unusable

APPLICATION_ID = int.from_bytes(b"rain")
"""Marks a file as ours (SQLite's `PRAGMA application_id`)."""

# A number stands for a job in the other tables, so that what comes together lies together, and not
# where a random id would put it. `unfinished` is the state of a job until it has ended; `keyed`
# whether it was ever given keys: those that were not, which is most of them, are spared a look.
_FIRST = f"""
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    route TEXT NOT NULL,
    owner TEXT,
    version INTEGER NOT NULL,
    fence INTEGER NOT NULL,
    unfinished TEXT,
    replayable INTEGER NOT NULL,
    keyed INTEGER NOT NULL,
    lease_until REAL,
    due REAL,
    record TEXT NOT NULL
);
CREATE INDEX unfinished ON jobs (unfinished, route, owner) WHERE unfinished IS NOT NULL;
CREATE INDEX leased ON jobs (lease_until) WHERE lease_until IS NOT NULL;
CREATE INDEX due ON jobs (due) WHERE due IS NOT NULL;
CREATE TABLE keys (
    name TEXT PRIMARY KEY,
    job INTEGER NOT NULL,
    fingerprint TEXT,
    lasting INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX keys_of_job ON keys (job, lasting);
CREATE TABLE varying (route TEXT, name TEXT, PRIMARY KEY (route, name)) WITHOUT ROWID;
CREATE TABLE requests (job INTEGER PRIMARY KEY, record BLOB NOT NULL);
CREATE TABLE bodies (
    job INTEGER NOT NULL,
    fence INTEGER NOT NULL,
    start INTEGER NOT NULL,
    piece BLOB NOT NULL,
    PRIMARY KEY (job, fence, start)
);
PRAGMA application_id = {APPLICATION_ID};
"""

# What jobs are listed and counted by: `state` of those that are neither tombstones nor synchronous,
# `seconds` that those that have ended have run. They are up to date if `as_of` is the version: what
# a process of an older version writes is `behind`, until the next sweep or list. In the index the
# newest come first, as in a list.
_LISTED = """
ALTER TABLE jobs ADD created_at REAL;
ALTER TABLE jobs ADD state TEXT;
ALTER TABLE jobs ADD seconds REAL;
ALTER TABLE jobs ADD as_of INTEGER;
CREATE INDEX listed ON jobs (route, state, created_at DESC, id DESC, owner, seconds)
    WHERE state IS NOT NULL;
CREATE INDEX behind ON jobs (number) WHERE as_of IS NOT version;
"""

# How many jobs are listed of each route and state, so that nobody has to count them: whoever writes
# is alone, and triggers also see what a process of an older version deletes.
_COUNTED = """
CREATE TABLE totals (
    route TEXT NOT NULL,
    state TEXT NOT NULL,
    jobs INTEGER NOT NULL,
    seconds REAL NOT NULL,
    PRIMARY KEY (route, state)
) WITHOUT ROWID;
INSERT INTO totals SELECT route, state, count(*), total(seconds) FROM jobs
WHERE state IS NOT NULL GROUP BY route, state;
CREATE TRIGGER count_listed AFTER INSERT ON jobs WHEN new.state IS NOT NULL
BEGIN
    INSERT INTO totals VALUES (new.route, new.state, 1, coalesce(new.seconds, 0))
    ON CONFLICT (route, state)
    DO UPDATE SET jobs = jobs + 1, seconds = seconds + excluded.seconds;
END;
CREATE TRIGGER count_moved AFTER UPDATE OF state ON jobs WHEN old.state IS NOT new.state
BEGIN
    UPDATE totals SET
        jobs = jobs - 1,
        seconds = CASE jobs WHEN 1 THEN 0 ELSE seconds - coalesce(old.seconds, 0) END
    WHERE route = old.route AND state = old.state;
    INSERT INTO totals SELECT new.route, new.state, 1, coalesce(new.seconds, 0)
    WHERE new.state IS NOT NULL
    ON CONFLICT (route, state)
    DO UPDATE SET jobs = jobs + 1, seconds = seconds + excluded.seconds;
END;
CREATE TRIGGER count_unlisted AFTER DELETE ON jobs WHEN old.state IS NOT NULL
BEGIN
    UPDATE totals SET
        jobs = jobs - 1,
        seconds = CASE jobs WHEN 1 THEN 0 ELSE seconds - coalesce(old.seconds, 0) END
    WHERE route = old.route AND state = old.state;
END;
"""

# What results of an owner take on a route, of those jobs of which that is counted: `stored` is NULL
# of all others. Added up as they end and go, since whoever makes a job asks, and nobody else writes
# meanwhile. Of a tombstone `state` is NULL, also if a process of an older version has made it.
_STORED = """
ALTER TABLE jobs ADD stored INTEGER;
CREATE TABLE stored (
    route TEXT NOT NULL,
    owner TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    PRIMARY KEY (route, owner)
) WITHOUT ROWID;
CREATE TRIGGER store_other AFTER UPDATE OF state, stored ON jobs
WHEN old.stored IS NOT NULL AND (old.stored IS NOT new.stored OR old.state IS NOT new.state)
BEGIN
    INSERT INTO stored VALUES (new.route, new.owner, 0) ON CONFLICT (route, owner) DO NOTHING;
    UPDATE stored SET bytes = bytes
        + CASE WHEN new.state IS NULL THEN 0 ELSE coalesce(new.stored, 0) END
        - CASE WHEN old.state IS NULL THEN 0 ELSE old.stored END
    WHERE route = new.route AND owner = new.owner;
    DELETE FROM stored WHERE route = new.route AND owner = new.owner AND bytes <= 0;
END;
CREATE TRIGGER store_none AFTER DELETE ON jobs WHEN old.stored > 0 AND old.state IS NOT NULL
BEGIN
    UPDATE stored SET bytes = bytes - old.stored WHERE route = old.route AND owner = old.owner;
    DELETE FROM stored WHERE route = old.route AND owner = old.owner AND bytes <= 0;
END;
"""

# The jobs whose end somebody is to be told of, and when to turn to each: the message itself is in
# its record. What is here of a job that has none any more, or is not there, goes when it is found.
_TOLD = """
CREATE TABLE deliveries (job INTEGER PRIMARY KEY, due REAL NOT NULL, lease_until REAL);
CREATE INDEX deliverable ON deliveries (due);
"""

# What this file is called, wherever it lies: bodies beside it are known by that to be its own.
_NAMED = """
CREATE TABLE name (name TEXT NOT NULL);
INSERT INTO name VALUES (lower(hex(randomblob(9))));
"""

MIGRATIONS = {2: _FIRST, 3: _LISTED, 4: _COUNTED, 5: _STORED, 6: _TOLD, 7: _NAMED}
"""Each makes of a file that has the schema before what this number stands for (`PRAGMA
user_version`); the first makes it of an empty one, and what was before it nobody has. Only ever
append. A process of an older version may have the file open meanwhile, and goes on: its statements
must work as before."""

LOG_PAGES = 4000
"""Pages of the write-ahead log, some 16 MiB, after which they go into the file, and whoever writes
waits for the disk. Four times SQLite's default: new ids belong all over their index, so that each
is a page to write into a large file, unless some meet on one."""

LOG_KEPT = 16 * 1024 * 1024
"""Bytes of the write-ahead log that stay on the disk after a rush."""


def connect(path: str, timeout: float) -> sqlite3.Connection:
    """A connection that waits so many seconds for others; any thread may use it."""
    return sqlite3.connect(path, timeout=timeout, isolation_level=None, check_same_thread=False)


def prepare(db: sqlite3.Connection, path: str, synchronous: str, timeout: float) -> None:
    """See whose file it is before changing it, then make it ours, with the newest schema.

    Raises:
        Unusable: it is another application's, or that of a newer version.
    """
    db.execute("BEGIN")  # one look, though others may be making it theirs
    found = _schema(db, path)
    db.execute("COMMIT")
    if not found:
        # Free pages can be given back, and a body of 100 MB goes in 5 ms, not in 100: its pages
        # are listed. Only possible before there is any table.
        _insist(db, "PRAGMA auto_vacuum = INCREMENTAL", timeout)
    # Readers and the writer do not wait for one another, and a commit is one write to a log.
    _insist(db, "PRAGMA journal_mode = WAL", timeout)
    # FULL waits for the disk with every commit, NORMAL only when the log goes into the file.
    db.execute(f"PRAGMA synchronous = {synchronous}")
    # What is deleted is written over, also in pages that are free then: `Changes` spares bodies
    # that, which takes over a second for 100 MB.
    db.execute("PRAGMA secure_delete = ON")
    db.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}")
    db.execute(f"PRAGMA journal_size_limit = {LOG_KEPT}")  # else a log stays as long as it was
    if found < max(MIGRATIONS):
        _migrate(db, path)


def _migrate(db: sqlite3.Connection, path: str) -> None:
    """Bring the schema up to date, or leave the file as it is: SQLite's pragmas are undone, too."""
    db.execute("BEGIN IMMEDIATE")
    found = _schema(db, path)  # others may have been faster
    for number, statements in MIGRATIONS.items():
        if number > found:
            for statement in _statements(statements):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {number}")
    db.execute("COMMIT")


def _statements(text: str) -> Iterator[str]:
    """The statements in a text, one by one; a trigger has some in itself."""
    statement = ""
    for piece in text.rstrip().removesuffix(";").split(";"):
        statement += piece + ";"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _schema(db: sqlite3.Connection, path: str) -> int:
    """The number of the schema that is in it; 0 if nothing is."""
    ((application,),) = db.execute("PRAGMA application_id")
    ((version,),) = db.execute("PRAGMA user_version")
    ((tables,),) = db.execute("SELECT count(*) FROM sqlite_master")
    if not (application or version or tables):
        return 0
    if application != APPLICATION_ID:
        raise Unusable(
            f"{path}: this is the database of another application, and is left as it is: give "
            "raincheck a file of its own"
        )
    if version not in MIGRATIONS:
        raise Unusable(
            f"{path}: this file has schema {version}, and this version of raincheck knows "
            f"{max(MIGRATIONS)}: run one version, the newer one, or give each a file of its own"
        )
    return int(version)


def _insist(db: sqlite3.Connection, pragma: str, timeout: float) -> None:
    """Of several that switch at once SQLite lets all but one fail, and some without a wait."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            db.execute(pragma)
            return
        except sqlite3.OperationalError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(0.01)
