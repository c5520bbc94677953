"""What `SQLiteStore` does to its tables, inside a transaction."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Collection, Mapping

from raincheck.errors import NoRoom, StoreFull
from raincheck.job import Bounds, Job, Key, State
from raincheck.messages import CapturedRequest, Head
from raincheck.serialization import dump, dump_head, dump_request, load, load_request, readable
from raincheck.stores._sqlite_place import Room
from raincheck.stores.base import Claim, turns_to

# Seconds since the epoch by SQLite's own clock, to the millisecond: the same for every process of
# the machine, whatever Python's clock says in one.
NOW = "(julianday('now') - 2440587.5) * 86400.0"

# A lease of NULL seconds ends never.
INSERT = """
INSERT INTO jobs (version, as_of, fence, replayable, record, unfinished, due, state, seconds, keyed,
    lease_until, id, route, owner, created_at, stored)
VALUES (?1, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, NOW + ?10, ?11, ?12, ?13, ?14, ?15)
ON CONFLICT (id) DO NOTHING
""".replace("NOW", NOW)

UPDATE = """
UPDATE jobs SET version = ?1, as_of = as_of + 1, fence = ?2, replayable = ?3, record = ?4,
    unfinished = ?5, due = ?6, state = ?7, seconds = ?8, keyed = keyed OR ?9,
    lease_until = CASE WHEN ?5 IS NULL THEN NULL ELSE coalesce(NOW + ?10, lease_until) END,
    stored = CASE WHEN stored IS NOT NULL THEN ?12 END
WHERE number = ?11
""".replace("NOW", NOW)

# The same of a job that stays where it is: what it is found by is not written again.
UPDATE_THERE = """
UPDATE jobs SET version = ?, as_of = as_of + 1, fence = ?, replayable = ?, record = ?,
    keyed = keyed OR ?, lease_until = coalesce(NOW + ?, lease_until)
WHERE number = ?
""".replace("NOW", NOW)

RENEW = "UPDATE jobs SET lease_until = NOW + ? WHERE number = ?".replace("NOW", NOW)

# The head of a response is a piece beside its body, of a fence that no job has: it goes with that,
# and no version of raincheck reads it as a part of it. It stays as it came first.
PUT_HEAD = "INSERT OR IGNORE INTO bodies VALUES (?, ~?, 0, ?)"

# Who delivers the message of a job has it also when that expires meanwhile.
OWE = """
INSERT INTO deliveries VALUES (?1, ?2, NULL) ON CONFLICT (job)
DO UPDATE SET due = ?2, lease_until = CASE WHEN ?3 THEN lease_until END
"""

OWED = """
SELECT deliveries.job, record FROM deliveries LEFT JOIN jobs ON number = job
WHERE deliveries.due <= ? AND coalesce(deliveries.lease_until <= NOW, true)
ORDER BY deliveries.due LIMIT ?
""".replace("NOW", NOW)

LEASE_DELIVERY = "UPDATE deliveries SET lease_until = NOW + ? WHERE job = ?".replace("NOW", NOW)

UNHELD = "SELECT number, record FROM jobs WHERE id = ? AND lease_until <= NOW".replace("NOW", NOW)

CLAIMED = 2
"""In place of whether a job is `replayable`: it is not, but its captured request is still there for
whoever has claimed it, and goes with the next version."""

LEFT = 3
"""The same: its captured request is still there because there was no room to write it over, and
goes when there is, or with the next version."""

LEFT_THERE = "SELECT job FROM requests CROSS JOIN jobs ON number = job WHERE replayable = ?"

ROW = 32 * 1024
"""Bytes of the log that a change of a row takes at most: each page that it touches, with its
indexes'."""

PIECE = 256 * 1024
"""Bytes of a body in one row, which SQLite reads as a whole."""

SWEPT = 400
"""Rows that a sweep changes in one transaction, or a few more: some milliseconds, in which nobody
else writes, or some ten if they are pieces of bodies."""

VACUUMED = 1024
"""Pages given back to the disk in one transaction: some milliseconds, too."""


class Changes:
    """What may be done in a transaction, which may be repeated in another.

    Args:
        db: the file.
        room: what may be added to it.
        leaves: whether captured requests are left for later: to write them over takes about as
            much of the disk as they have, which an outcome is not to wait for.

    Attributes:
        ids: of the jobs that have a new version, or more of a response.
        dropped: whether a captured request went, of which the log may have a copy.
        left: the numbers of jobs whose captured requests were left.
    """

    def __init__(self, db: sqlite3.Connection, room: Room, *, leaves: bool = False) -> None:
        self.ids: list[str] = []
        self.dropped = False
        self.left: list[int] = []
        self._leaves = leaves
        self._room = room
        self._db = db
        self._execute = db.execute

    def create(
        self,
        job: Job,
        request: CapturedRequest | None,
        keys: Collection[Key],
        lease: float | None,
        bounds: Bounds | None,
    ) -> str | None:
        """Insert a job; the record that is there instead."""
        for key in keys:
            there = self._execute(
                "SELECT record FROM jobs WHERE id = ? UNION ALL"
                " SELECT record FROM keys JOIN jobs ON number = job WHERE name = ?",
                (job.id, key.name),
            ).fetchone()
            if there is not None:
                return str(there[0])
        if bounds is not None:
            if (record := self._record(job.id)) is not None:
                return record
            self._check_room(job, bounds)
        counted = None
        if bounds is not None and bounds.stored is not None and job.owner is not None:
            counted = 0
        own = job.id, job.counts_for, job.owner, job.created_at, counted
        inserted = self._execute(
            INSERT,
            (*_columns(job, int(job.replayable)), *_places(job, job.stage), len(keys), lease, *own),
        )
        if not inserted.rowcount:
            return self._record(job.id)
        number = inserted.lastrowid
        kept = dump_request(request) if request is not None and job.replayable else b""
        self._take(ROW + len(kept))
        if keys:
            self._give(number, keys)
        if kept:
            self._execute("INSERT INTO requests VALUES (?, ?)", (number, kept))
        if job.delivery is not None:
            self._owe(number, job)
        return None

    def replace(
        self,
        job: Job,
        keys: Collection[Key] = (),
        tail: bytes = b"",
        lease: float | None = None,
        bounds: Bounds | None = None,
    ) -> bool:
        old = self._execute(
            "SELECT number, fence, unfinished, replayable, keyed FROM jobs"
            " WHERE id = ? AND version = ?",
            (job.id, job.version - 1),
        ).fetchone()
        if old is None:
            return False
        number, fence, state, replayable, keyed = old
        for key in keys:
            if self._execute("SELECT 1 FROM keys WHERE name = ?", key[:1]).fetchone():
                return False
        if bounds is not None and not (job.finished or job.gone or state in job.counts_with):
            self._check_room(job, bounds)
        if keys or tail:
            self._take(ROW + len(tail))
        if keyed and not job.joinable:
            # All of them if it is gone, else those that do not last.
            self._execute("DELETE FROM keys WHERE job = ? AND lasting <= ?", (number, job.gone))
        if keys:
            self._give(number, keys)
        kept = int(job.replayable)
        if replayable and not kept:
            kept = self._let_go(number)
        if job.fence != fence or not job.bodied:
            self._drop_body(number)
        if tail:
            whole = job.response is not None and job.response.size == len(tail)
            end = 0 if whole else self._size_of_body(number, job.fence)
            self._append(number, job.fence, end, tail)
        # Plain types: one that is derived from one takes sqlite3 longer to bind than all others.
        columns, stage = _columns(job, kept), job.stage
        if stage is not None and stage == state:
            self._execute(UPDATE_THERE, (*columns, len(keys), lease, number))
        else:
            places = _places(job, stage)
            self._execute(UPDATE, (*columns, *places, len(keys), lease, number, job.stored))
            if job.delivery is not None and stage is None:
                self._owe(number, job)
        self.ids.append(job.id)
        return True

    def claim(
        self, id: str, routes: Collection[str], holder: str, now: float, lease: float | None
    ) -> Claim | None:
        row = self._execute(
            "SELECT number, jobs.record, requests.record FROM jobs LEFT JOIN requests"
            " ON job = number WHERE id = ?",
            (id,),
        ).fetchone()
        job = None if row is None else load(row[1])
        if job is None or job.gone:
            return None
        number, _, kept = row
        again = job.begun_by(holder, now)
        if kept is None or not (again or job.ready(routes, now)):
            return Claim(job, None, False)
        request = load_request(kept)
        if again:
            return Claim(job, request, True)
        runs = job.start(now, holder)
        self._drop_body(number)
        replayable = 1 if runs.replayable else CLAIMED
        self._execute(
            UPDATE, (*_columns(runs, replayable), *_places(runs, runs.stage), 0, lease, number, 0)
        )
        self.ids.append(id)
        return Claim(runs, request, True)

    def learn(self, route: str, names: Collection[str]) -> None:
        rows = [(route, name) for name in names]
        self._db.executemany("INSERT OR IGNORE INTO varying VALUES (?, ?)", rows)

    def append_body(
        self, id: str, fence: int, offset: int, chunk: bytes, head: Head | None
    ) -> bool:
        row = self._execute(
            "SELECT number FROM jobs WHERE id = ? AND fence = ? AND unfinished IS NOT NULL",
            (id, fence),
        ).fetchone()
        if row is not None and self._size_of_body(row[0], fence) == offset:
            start = b"" if head is None else dump_head(head)
            self._take(ROW + len(start) + len(chunk))
            if start:
                self._execute(PUT_HEAD, (row[0], fence, start))
            self._append(row[0], fence, offset, chunk)
            self.ids.append(id)
        return row is not None

    def renew(self, fences: Mapping[str, int], lease: float) -> dict[str, State]:
        held = self._execute(
            "SELECT number, jobs.id, unfinished FROM json_each(?) JOIN jobs ON jobs.id = key"
            " WHERE fence = value AND unfinished IS NOT NULL",
            (json.dumps(dict(fences)),),
        ).fetchall()
        self._db.executemany(RENEW, [(lease, number) for number, _, _ in held])
        return {id: State(state) for _, id, state in held}

    def discard(self, id: str) -> bool:
        row = self._execute(UNHELD, (id,)).fetchone()
        if row is None or readable(row[1]) is not None:
            return False
        self._forget(row[0], id)
        return True

    def claim_deliveries(self, now: float, lease: float, limit: int) -> list[Job]:
        taken = []
        for number, record in self._execute(OWED, (now, limit)).fetchall():
            job = readable(record or "")
            if record is None or (job is not None and job.deliver_at is None):
                self._execute("DELETE FROM deliveries WHERE job = ?", (number,))
            elif job is not None and (later := turns_to(job, now)) is not None:
                self._execute("UPDATE deliveries SET due = ? WHERE job = ?", (later, number))
            else:
                self._execute(LEASE_DELIVERY, (lease, number))
                taken += [] if job is None else [job]
        return taken

    def sweep(self, now: float) -> tuple[bool, list[str]]:
        """Bury or forget some jobs.

        Returns:
            Whether there may be more, and the ids of those that could not be read.
        """
        due = self._execute(
            "SELECT number, id, record, replayable FROM jobs WHERE due <= ? ORDER BY due LIMIT ?",
            (now, SWEPT),
        ).fetchall()
        self.dropped = True  # perhaps by a process that has died since
        unread, waiting = [], 0
        end = self._db.total_changes + SWEPT
        for number, id, record, replayable in due:
            job = readable(record)
            if replayable and self._leaves and (job is None or job.gone):
                waiting += 1  # until there is room to write its request over
            elif job is None:
                unread.append(id)
                self._forget(number, id)
            elif job.gone:
                if replayable:
                    self._drop_request(number)
                self._execute("DELETE FROM jobs WHERE number = ?", (number,))
                self.ids.append(id)
            else:
                self.replace(job.tombstone(now))
            if self._db.total_changes >= end:
                break
        self._execute("DELETE FROM deliveries WHERE job NOT IN (SELECT number FROM jobs)")
        return len(due) > waiting, unread

    def drop_left(self, number: int) -> None:
        """Drop a captured request that was left, if it is there and there is room by now."""
        row = self._execute(
            "SELECT length(requests.record) FROM requests JOIN jobs ON number = job"
            " WHERE number = ? AND replayable = ?",
            (number, LEFT),
        ).fetchone()
        if row is not None:
            if not self._room.overwrites(row[0]):
                raise StoreFull
            self._drop_request(number)
            self._execute("UPDATE jobs SET replayable = 0 WHERE number = ?", (number,))

    def catch_up(self) -> None:
        """List some jobs as they are that a process of an older version has written."""
        behind = self._execute(
            "SELECT number, record FROM jobs WHERE as_of IS NOT version LIMIT ?", (SWEPT,)
        ).fetchall()
        for number, record in behind:
            job = readable(record)
            listed = (None,) * 3 if job is None else (job.created_at, *_listed(job))
            self._execute(
                "UPDATE jobs SET as_of = version, created_at = ?, state = ?, seconds = ?"
                " WHERE number = ?",
                (*listed, number),
            )

    def vacuum(self) -> bool:
        """Give back some of the pages that are free, if most are; whether that was of use."""
        ((pages,),) = self._execute("PRAGMA page_count")
        ((free,),) = self._execute("PRAGMA freelist_count")
        if free <= pages // 2:
            return False
        # A page with every row that is fetched.
        self._execute(f"PRAGMA incremental_vacuum({VACUUMED})").fetchall()
        ((left,),) = self._execute("PRAGMA page_count")
        return bool(left < pages)

    def _owe(self, number: int | None, job: Job) -> None:
        """Somebody is to be told of a job, or is not any more."""
        if (at := job.deliver_at) is None:
            self._execute("DELETE FROM deliveries WHERE job = ?", (number,))
        else:
            self._execute(OWE, (number, at, job.gone))

    def _forget(self, number: int, id: str) -> None:
        """Drop a job with all that is its, whatever its record says."""
        self._execute("DELETE FROM keys WHERE job = ?", (number,))
        self._drop_request(number)
        self._drop_body(number)
        self._execute("DELETE FROM jobs WHERE number = ?", (number,))
        self.ids.append(id)

    def _take(self, size: int) -> None:
        """Take room for something that may be refused."""
        if not self._room.take(self._db, size):
            raise StoreFull

    def _let_go(self, number: int) -> int:
        """Drop a captured request, or leave it for later; what its job has in place of it."""
        if not self._leaves:
            self._drop_request(number)
            return 0
        self.left.append(number)
        return LEFT

    def _drop_request(self, number: int) -> None:
        self.dropped = True
        self._execute("DELETE FROM requests WHERE job = ?", (number,))

    def _drop_body(self, number: int) -> None:
        """Drop what may be large, and is no secret: its pages need not be written over."""
        if not self._execute("SELECT 1 FROM bodies WHERE job = ? LIMIT 1", (number,)).fetchone():
            return  # as a rule
        try:
            self._overwrite("FAST")
            self._execute("DELETE FROM bodies WHERE job = ?", (number,))
        finally:
            self._overwrite("ON")

    def _overwrite(self, mode: str) -> None:
        # SQLite may do this when it is prepared, and Python keeps what is: so no text comes twice.
        self._execute(f"PRAGMA secure_delete = {mode} -- {time.monotonic_ns()}")

    def _record(self, id: str) -> str | None:
        row = self._execute("SELECT record FROM jobs WHERE id = ?", (id,)).fetchone()
        return None if row is None else str(row[0])

    def _give(self, number: int | None, keys: Collection[Key]) -> None:
        rows = [(name, number, fingerprint, lasting) for name, fingerprint, lasting in keys]
        self._db.executemany("INSERT INTO keys VALUES (?, ?, ?, ?)", rows)

    def _check_room(self, job: Job, bounds: Bounds) -> None:
        """Nobody else writes, so that what is counted is so still when this one is written."""
        alike = job.counts_with
        if bounds.stored is not None and job.owner is not None:
            stored = self._execute(
                "SELECT bytes FROM stored WHERE route = ? AND owner = ? AND bytes >= ?",
                (job.route, job.owner, bounds.stored),
            ).fetchone()
            if stored is not None:
                raise NoRoom(owner=True, stored=True)
        if bounds.owner is not None and job.owner is not None:
            ((others,),) = self._execute(
                "SELECT count(*) FROM (SELECT 1 FROM jobs WHERE unfinished IN (?, ?)"
                " AND route = ? AND owner = ? LIMIT ?)",
                (alike[0], alike[-1], job.route, job.owner, bounds.owner),
            )
            if others >= bounds.owner:
                raise NoRoom(owner=True)
        if bounds.route is not None:
            ((others,),) = self._execute(
                "SELECT count(*) FROM (SELECT 1 FROM jobs WHERE unfinished IN (?, ?)"
                " AND route = ? LIMIT ?)",
                (alike[0], alike[-1], job.route, bounds.route),
            )
            if others >= bounds.route:
                raise NoRoom(owner=False)

    def _size_of_body(self, number: int, fence: int) -> int:
        last = self._execute(
            "SELECT start + length(piece) FROM bodies WHERE job = ? AND fence = ?"
            " ORDER BY start DESC LIMIT 1",
            (number, fence),
        ).fetchone()
        return last[0] if last is not None else 0

    def _append(self, number: int, fence: int, end: int, chunk: bytes) -> None:
        for start in range(0, len(chunk), PIECE):
            self._execute(
                "INSERT INTO bodies VALUES (?, ?, ?, ?)",
                (number, fence, end + start, chunk[start : start + PIECE]),
            )


def _columns(job: Job, replayable: int) -> tuple[object, ...]:
    return job.version, job.fence, replayable, dump(job).decode()


def _places(job: Job, stage: State | None) -> tuple[object, ...]:
    """What a job is found by as long as it is unfinished, and by when it is due."""
    return None if stage is None else str(stage), job.due_at, *_listed(job)


def _listed(job: Job) -> tuple[str | None, float | None]:
    """The state that a job is listed in, and how long it has run."""
    state = None if job.gone or job.synchronous else str(job.state)
    ended, began = job.finished_at, job.started_at
    return state, None if ended is None or began is None else ended - began
