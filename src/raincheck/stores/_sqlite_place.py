"""Where the file of `SQLiteStore` is: made for nobody else to read, or found to be of no use."""

from __future__ import annotations

import errno
import logging
import math
import os
import shutil
import sqlite3
import stat
import threading

from raincheck.errors import StoreError
from raincheck.stores._sqlite_calls import Unusable

logger = logging.getLogger("raincheck")

OTHERS = stat.S_IRWXG | stat.S_IRWXO

# Whoever closes a handle of a file takes away the locks that SQLite has on it in the same process
# (POSIX): so nobody may open one here while it is being made.
_making = threading.Lock()


SPARE = 1024 * 1024
"""Bytes of the disk that are left to what has to be written: how jobs end that were accepted."""


class Room:
    """How much may be added in one transaction, so that the log can always be taken into the file.

    Args:
        path: the file.
    """

    def __init__(self, path: str) -> None:
        self._place = os.path.realpath(path)
        self._taken = 0
        self._free: float | None = None  # of the disk
        self._log = 0  # bytes of the log, which the file may grow by when it takes them in

    def take(self, db: sqlite3.Connection, size: int) -> bool:
        """Whether there is room for so many bytes more.

        Args:
            db: the file, inside the transaction.
            size: bytes.
        """
        if self._free is None:
            self._free, self._log = self._look()
        self._taken += size
        if self._free - self._log - SPARE >= 2 * self._taken:  # the log grows, and then the file
            return True
        ((pages,),) = db.execute("PRAGMA page_count")
        ((unused,),) = db.execute("PRAGMA freelist_count")
        ((page,),) = db.execute("PRAGMA page_size")
        grows = pages * page - os.stat(self._place).st_size + max(0, size - unused * page)
        left: float = self._free - self._taken - max(0, grows)
        return left >= SPARE

    def overwrites(self, size: int) -> bool:
        """Whether there is room to write over so many bytes of the file: the log alone grows."""
        free, _ = self._look()
        return free - size >= SPARE

    def _look(self) -> tuple[float, int]:
        try:
            free = shutil.disk_usage(os.path.dirname(self._place)).free
            return free, os.stat(f"{self._place}-wal").st_size
        except OSError:  # SQLite will say what is the matter
            return math.inf, 0


def claim(path: str) -> None:
    """Make the file unless it is there. SQLite gives those beside it the same mode.

    Raises:
        Unusable: it can never be used as it is set up.
        StoreError: it cannot be used now.
    """
    place = os.path.realpath(path)  # the others stand beside what a link leads to
    folder = os.path.dirname(place)
    try:
        with _making:
            if not os.path.exists(place):
                _make(place)
        found = os.stat(place)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Unusable(f"{path}: its directory has to exist: make {folder}") from error
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise _forbidden(path, folder) from error
        raise StoreError(f"{path}: {error.strerror}") from error
    if stat.S_ISDIR(found.st_mode):
        raise Unusable(f"{path}: this is a directory: give it a file, as {path}/jobs.db")
    if not stat.S_ISREG(found.st_mode):
        raise Unusable(f"{path}: this is not a regular file: give another path")
    if not (os.access(place, os.R_OK | os.W_OK) and os.access(folder, os.W_OK | os.X_OK)):
        raise _forbidden(path, folder)


def warn_of_readers(path: str) -> None:
    """Say so if others may read what is kept, credentials included."""
    mode = stat.S_IMODE(os.stat(path).st_mode)
    if mode & OTHERS and os.name == "posix":  # elsewhere modes say little
        logger.warning(
            "%s has mode %04o, and keeps what nobody else should read, credentials included: "
            "chmod 600 %s %s-wal %s-shm",
            path,
            mode,
            *[os.path.realpath(path)] * 3,
        )


def _make(place: str) -> None:
    try:
        os.close(os.open(place, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:  # another process was faster
        return
    os.chmod(place, 0o600)  # a umask can take even that


def _forbidden(path: str, folder: str) -> Unusable:
    return Unusable(
        f"{path}: it and its directory have to be readable and writable for this process: give "
        f"them to the user that it runs as (chown), and see that {folder} is not mounted read-only"
    )
