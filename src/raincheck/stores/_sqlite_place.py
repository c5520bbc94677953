"""Where the file of `SQLiteStore` is: made for nobody else to read, or found to be of no use."""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading

from raincheck.errors import StoreError
from raincheck.stores._sqlite_calls import Unusable

logger = logging.getLogger("raincheck")

OTHERS = stat.S_IRWXG | stat.S_IRWXO

# Whoever closes a handle of a file takes away the locks that SQLite has on it in the same process
# (POSIX): so nobody may open one here while it is being made.
_making = threading.Lock()


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
