"""The open file of `SQLiteStore`: its connections, and the threads that wait for its disk."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

from raincheck.errors import StoreError
from raincheck.stores._sqlite_calls import Call, is_full
from raincheck.stores._sqlite_changes import LEFT, LEFT_THERE, Changes
from raincheck.stores._sqlite_opening import connect, prepare
from raincheck.stores._sqlite_place import Room, claim, warn_of_readers
from raincheck.stores._sqlite_queries import NEWS
from raincheck.stores.watchers import Watchers

LOOK_EVERY = 0.01
"""Seconds between two looks for changes by other processes, of which SQLite does not tell. Nobody
looks when nobody waits; else it takes about a hundredth of a core, however many wait."""

LOOKS = 100
"""Looks after which the event loop has to ask for more: it may have ended."""

READ_TIMEOUT = 0.1
"""Seconds that a read on the event loop may wait for others. None does, as a rule; but somebody has
to mend the log of a process that crashed."""

READER_CACHE = 8192
"""KiB of the file that the event loop keeps in memory. SQLite's 2 MiB do not hold what a hundred
jobs that are polled in turn take of a large file, with the way to them: 8 % of each poll."""


SCRUB_EVERY = 1.0
"""Seconds between two times that the log is emptied, since captured requests were dropped of which
it has copies. Each waits for the disk, some milliseconds as a rule."""

SCRUB_TIMEOUT = 0.1
"""Seconds that it may wait for others, who wait for it meanwhile; then it is tried again later."""


SCRUBS_AT_THE_END = 5
"""How often it is tried when the file is closed: the next sweep elsewhere does it as well."""


class File:
    """An open file: its connections, and the threads that wait for its disk."""

    def __init__(self, path: str, synchronous: str, timeout: float) -> None:
        self.path = path
        # One thread for all writing, since SQLite has one writer at a time, and one to read what
        # is large. Of executors, since they end with the interpreter if nobody closes the store.
        self.writing = ThreadPoolExecutor(1, "raincheck-sqlite-writing")
        self.reading = ThreadPoolExecutor(1, "raincheck-sqlite-reading")
        self.stir = threading.Event()  # there is something to write: the watch gives way
        self.reader: sqlite3.Connection | None = None
        self._writer: sqlite3.Connection | None = None
        self._large_reader: sqlite3.Connection | None = None
        self._synchronous = synchronous
        self._timeout = timeout
        self._opened: tuple[int, int] | None = None
        self._seen: int | None = None
        self._look_at = 0.0
        self._pid = os.getpid()
        self._at_work: set[str] = set()
        self._left: set[int] = set()  # the jobs whose requests wait for room to be written over
        self._scrub_at = 0.0  # not before
        self._scrub_due: threading.Timer | Future[None] | None = None

    def commit(self, calls: list[Call[Any]], waiting: Watchers) -> list[str]:
        """Make changes, all in one transaction; the ids of the jobs that have changed."""
        with self._work("writing"):
            changed = self._commit(calls)
        return changed + self.look(waiting)

    def _commit(
        self, calls: list[Call[Any]], *, again: bool = False, leaves: bool = False
    ) -> list[str]:
        try:
            db = self._writer or self._open()
            if self._identity() != self._opened:  # SQLite would write to what nobody finds again
                raise StoreError(f"{self.path}: the file was moved or deleted; restart to go on")
            db.execute("BEGIN IMMEDIATE")  # now waits for other writers; a later write could not
        except (sqlite3.Error, StoreError) as error:
            for call in calls:
                call.fail(error)
            return []
        changes = Changes(db, Room(self.path), leaves=leaves)
        try:
            for call in calls:
                call.attempt(changes)
            db.execute("COMMIT")
        except Exception as error:  # whose it is raises it
            with suppress(sqlite3.Error):  # some errors have rolled back already
                db.execute("ROLLBACK")
            if len(calls) > 1:  # the others are not to suffer: to each a transaction of its own
                return [id for call in calls for id in self._commit([call])]
            if is_full(error) and not again and self._make_room(db):
                return self._commit(calls, again=True)
            if is_full(error) and changes.dropped and not leaves:
                return self._commit(calls, again=True, leaves=True)
            calls[0].fail(error)
            return []
        self._left.update(changes.left)
        if changes.dropped:
            self._scrub_soon()
        return changes.ids

    def _make_room(self, db: sqlite3.Connection) -> bool:
        """Give back to the disk what the log takes, and the free part of the file."""
        if not self._empty_log(db):
            return False
        try:
            more = True
            while more:
                db.execute("BEGIN IMMEDIATE")
                more = Changes(db, Room(self.path)).vacuum()
                db.execute("COMMIT")
        except sqlite3.Error:  # not even for that
            with suppress(sqlite3.Error):
                db.execute("ROLLBACK")
        return self._empty_log(db)

    def _scrub_soon(self) -> None:
        """Empty the log, at once or a little later: not for each request that was dropped."""
        if self._scrub_due is not None:
            return
        wait = self._scrub_at - time.monotonic()
        if wait <= 0:
            self._scrub_due = self.writing.submit(self._scrub)
            return
        timer = self._scrub_due = threading.Timer(wait, self._submit_scrub)
        timer.daemon = True  # it keeps no process from ending: who opens the file does it then
        timer.start()

    def _submit_scrub(self) -> None:
        with suppress(RuntimeError):  # it was closed
            self.writing.submit(self._scrub)

    def _scrub(self) -> None:
        self._scrub_due = None
        if self._writer is not None:
            with self._work("writing"):
                self._scrub_now(self._writer)

    def _scrub_now(self, db: sqlite3.Connection) -> None:
        self._drop_left(db)
        done = self._empty_log(db)
        self._scrub_at = time.monotonic() + SCRUB_EVERY
        if not done:
            self._scrub_soon()

    def _drop_left(self, db: sqlite3.Connection) -> None:
        """Drop the requests that were left, each by itself, as long as there is room for that."""
        try:
            while self._left:
                number = min(self._left)
                db.execute("BEGIN IMMEDIATE")
                Changes(db, Room(self.path)).drop_left(number)
                db.execute("COMMIT")
                self._left.remove(number)
        except (sqlite3.Error, StoreError):  # the next sweep comes by here as well
            with suppress(sqlite3.Error):
                db.execute("ROLLBACK")

    def _empty_log(self, db: sqlite3.Connection) -> bool:
        """Take the log into the file, and cut it off; whether nobody was in the way."""
        try:
            db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()  # others write on meanwhile
            db.execute(f"PRAGMA busy_timeout = {int(SCRUB_TIMEOUT * 1000)}")
            ((busy, _, _),) = db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            return not busy
        except sqlite3.Error:  # the disk is full or failing, as the next change will tell
            return False
        finally:
            db.execute(f"PRAGMA busy_timeout = {int(self._timeout * 1000)}")

    def watch(self, waiting: Watchers) -> list[str]:
        """Look for changes by others until there are some, or something else is to be done."""
        changed: list[str] = []
        for _ in range(LOOKS):
            if not waiting or changed or self.stir.wait(LOOK_EVERY):
                break
            changed = self.look(waiting)
        return changed

    def look(self, waiting: Watchers) -> list[str]:
        """The ids of jobs waited for that others have changed, if it is time to look again."""
        now = time.monotonic()
        if not waiting or self._writer is None or now < self._look_at:
            return []
        self._look_at = now + LOOK_EVERY
        with self._work("writing"):
            try:
                ((version,),) = self._writer.execute("PRAGMA data_version")
                if version == self._seen:
                    return []
                self._seen = version
                # Who waits is asked after that: whoever comes later has yet to look at his job,
                # and sees the change.
                known = waiting.known()
                return [id for (id,) in self._writer.execute(NEWS, (json.dumps(known),))]
            except sqlite3.Error:  # all look for themselves, and are told
                return list(waiting.known())

    def read(self, call: Call[Any]) -> None:
        """Read what is large."""
        with self._work("reading"):
            try:
                if self._large_reader is None:
                    self._large_reader = connect(self.path, self._timeout)
            except Exception as error:  # whose it is raises it
                call.fail(error)
            else:
                call.read(self._large_reader)

    def close(self) -> None:
        """Close what the threads use, when they have done what there was."""
        self.reading.shutdown()
        if isinstance(self._scrub_due, threading.Timer):
            self._scrub_due.cancel()
        if self._scrub_due is not None and self._writer is not None:
            for _ in range(SCRUBS_AT_THE_END):
                if self._empty_log(self._writer):
                    break
                time.sleep(SCRUB_TIMEOUT / 2)
        for db in (self._large_reader, self._writer):
            if db is not None:
                db.close()
        self._writer = None

    def inherited(self) -> bool:
        """Whether it was opened by a process that has then forked into this one."""
        return self._pid != os.getpid()

    def disinherit(self) -> None:
        """Close in a forked child what its parent has opened.

        SQLite keeps a process's locks on a file in memory. It would find those of the parent there
        and take none, and others, who see nobody, could take away from under the child what it
        writes.

        Raises:
            StoreError: a thread was using it, which the child does not have: it cannot be closed.
        """
        if self._at_work:
            raise StoreError(
                f"{self.path}: this process was forked while the file was in use, and cannot use "
                "it any more; fork before the store is used, or spawn"
            )
        for db in (self.reader, self._large_reader, self._writer):
            if db is not None:
                db.close()

    @contextmanager
    def _work(self, what: str) -> Iterator[None]:
        self._at_work.add(what)
        try:
            yield
        finally:
            self._at_work.discard(what)

    def _open(self) -> sqlite3.Connection:
        claim(self.path)
        db = connect(self.path, self._timeout)
        try:
            prepare(db, self.path, self._synchronous, self._timeout)
            if self.reader is None:
                self.reader = connect(self.path, READ_TIMEOUT)
                self.reader.execute(f"PRAGMA cache_size = -{READER_CACHE}")
        except BaseException:
            db.close()
            raise
        warn_of_readers(self.path)
        self._writer = db
        self._opened = self._identity()
        # Whoever had it open may have died before.
        self._left.update(number for (number,) in db.execute(LEFT_THERE, (LEFT,)))
        self._scrub_now(db)
        return db

    def _identity(self) -> tuple[int, int] | None:
        """Which file the path leads to now."""
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino
