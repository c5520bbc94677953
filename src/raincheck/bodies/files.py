"""Bodies in files: one for each, in a directory of theirs."""

from __future__ import annotations

import errno
import logging
import os
import stat
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import IO, TypeVar
from urllib.parse import quote, unquote

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar, checkpoint

from raincheck.bodies.base import Bodies
from raincheck.errors import BodyLost, ConfigurationError, StoreError, StoreFull

logger: logging.Logger = logging.getLogger("raincheck")

T = TypeVar("T")

PIECE = 256 * 1024
"""Bytes that are read at a time."""

THREADS = 8
"""Calls at most that wait for the disk at the same time, on each event loop."""

SPARE = 2 * 1024 * 1024
"""Bytes of the disk that are left to what has to be written: the outcomes of accepted jobs, and
twice what `SQLiteStore` leaves to them, if it is on the same disk."""

_FOR_GOOD = frozenset({errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR})
"""What of a path time alone does not change."""

_NOWAIT: int | None = getattr(os, "RWF_NOWAIT", None)
"""Read what is in memory, and fail where that is nothing (preadv2(2), on Linux)."""

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class FileBodies(Bodies):
    """Large bodies as files in a directory, for all processes of the stores whose they are.

    Each is written from its beginning to its end, in threads, and nothing else. The files are for
    nobody else to read (mode 0600), and so is the directory, if it is made here (0700). Processes
    on several machines need one file system that all of them see.

    Args:
        directory: made with the first body, in a directory that is there.

    Attributes:
        directory: its absolute path.

    Raises:
        ConfigurationError: `directory` is no path.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        if not isinstance(directory, str | os.PathLike) or not os.fspath(directory):
            raise ConfigurationError(
                f"FileBodies({directory!r}): directory is the path of a directory, "
                'such as "/var/lib/shop/bodies"'
            )
        self.directory: str = os.path.abspath(directory)
        # Their own: they wait for a disk, and must not make synchronous handlers wait for it.
        self._threads = RunVar[anyio.CapacityLimiter]("raincheck_body_threads")

    async def open(self) -> None:
        """See whether files can be kept there.

        Raises:
            ConfigurationError: they never can: it is no directory, or this process may not write
                there; or it is not there, and neither is the one that it would be made in.
            StoreError: that cannot be seen now.
        """
        await self._in_thread(self._look)

    async def append(self, name: str, offset: int, chunk: bytes) -> None:
        await self._in_thread(partial(self._append, name, offset, chunk))

    async def read(self, name: str, offset: int = 0) -> AsyncIterator[bytes]:
        file = await self._in_thread(partial(self._open, name, offset))
        if file is None:
            return
        try:
            while chunk := file.there() or await self._in_thread(file.read):
                yield chunk
                await checkpoint()
        finally:  # if it was deleted meanwhile, that frees all of it
            with anyio.CancelScope(shield=True):
                await self._in_thread(file.close)

    async def size(self, name: str) -> int | None:
        return await self._in_thread(partial(self._size, name))

    async def sync(self, name: str) -> None:
        await self._in_thread(partial(self._sync, name))

    async def delete(self, names: Collection[str]) -> None:
        if names:
            await self._in_thread(partial(self._delete, names))

    async def names(self) -> Mapping[str, float]:
        return await self._in_thread(self._names)

    def temporary(self) -> IO[bytes]:
        self._make()  # not in the system's own place, which may be memory
        return tempfile.TemporaryFile(dir=self.directory, buffering=0)

    # --- in a thread ---------------------------------------------------------------------------

    async def _in_thread(self, call: Callable[[], T]) -> T:
        try:
            threads = self._threads.get()
        except LookupError:
            threads = anyio.CapacityLimiter(THREADS)
            self._threads.set(threads)
        with self._explained():
            return await anyio.to_thread.run_sync(call, limiter=threads)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """The block in which errors of the disk are the store's."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._full() from error
            raise StoreError(f"{self.directory}: {error.strerror or error}") from error

    def _full(self) -> StoreFull:
        return StoreFull(f"{self.directory}: the disk is full")

    def _path(self, name: str) -> str:
        # No name leads out of the directory, or to what is not meant for it.
        quoted = quote(name, safe="")
        quoted = f"%2E{quoted[1:]}" if quoted.startswith(".") else quoted
        return os.path.join(self.directory, quoted)

    def _make(self) -> None:
        """Make the directory, if it is not there, for good."""
        try:
            os.mkdir(self.directory, 0o700)
        except FileExistsError:
            return
        _flush(os.path.dirname(self.directory))

    def _append(self, name: str, offset: int, chunk: bytes) -> None:
        try:
            file = self._to_write(name, os.O_CREAT if offset == 0 else 0)
        except FileNotFoundError:
            if offset:
                raise BodyLost(f"{self.directory}: {name} is not there any more") from None
            self._make()
            file = self._to_write(name, os.O_CREAT)
        try:
            there = os.fstat(file).st_size
            if there < offset:
                raise BodyLost(f"{self.directory}: {name} has {there} bytes, and not {offset}")
            rest = memoryview(chunk)[there - offset :]
            disk = os.fstatvfs(file)
            if rest and disk.f_bavail * disk.f_frsize - len(rest) < SPARE:
                raise self._full()
            while rest:
                written = os.pwrite(file, rest, there)
                rest, there = rest[written:], there + written
        finally:
            os.close(file)

    def _to_write(self, name: str, flags: int) -> int:
        return os.open(self._path(name), os.O_WRONLY | os.O_CLOEXEC | flags, 0o600)

    def _open(self, name: str, offset: int) -> _Reading | None:
        with suppress(FileNotFoundError):
            return _Reading(self._path(name), offset)
        return None

    def _size(self, name: str) -> int | None:
        try:
            return os.stat(self._path(name)).st_size
        except FileNotFoundError:
            return None

    def _sync(self, name: str) -> None:
        try:
            _flush(self._path(name))
        except FileNotFoundError:
            raise BodyLost(f"{self.directory}: {name} is not there any more") from None
        _flush(self.directory)

    def _delete(self, names: Collection[str]) -> None:
        for name in names:
            with suppress(FileNotFoundError):
                os.unlink(self._path(name))

    def _names(self) -> dict[str, float]:
        found, now = dict[str, float](), time.time()
        with suppress(FileNotFoundError), os.scandir(self.directory) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # deleted meanwhile
                    found[unquote(entry.name)] = max(0.0, now - entry.stat().st_mtime)
        return found

    def _look(self) -> None:
        directory = self.directory
        try:
            found = os.stat(directory)
        except FileNotFoundError:
            if os.path.islink(directory):
                raise ConfigurationError(
                    f"FileBodies({directory!r}): this link leads nowhere: make the directory "
                    f"{os.path.realpath(directory)}, or remove the link"
                ) from None
            parent = os.path.dirname(directory)
            if os.path.isdir(parent) and os.access(parent, os.W_OK | os.X_OK):
                return
            raise ConfigurationError(
                f"FileBodies({directory!r}): there is no such directory, and it cannot be made: "
                f"{parent} has to be there, and writable for this process"
            ) from None
        except OSError as error:
            if error.errno not in _FOR_GOOD:
                raise
            raise ConfigurationError(
                f"FileBodies({directory!r}): {error.strerror}: give the path of a directory that "
                "this process can read and write"
            ) from error
        if not stat.S_ISDIR(found.st_mode):
            raise ConfigurationError(f"FileBodies({directory!r}): this is no directory")
        if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
            raise ConfigurationError(
                f"FileBodies({directory!r}): it has to be readable and writable for this process: "
                "give it to the user that it runs as (chown)"
            )
        if found.st_mode & _OTHERS:
            logger.warning(
                "%s has mode %04o, and the names of its files are ids, which nobody else should "
                "see: chmod 700 %s",
                *(directory, stat.S_IMODE(found.st_mode), directory),
            )


class _Reading:
    """A body that is read, from a byte on.

    Args:
        path: its file.
        offset: the byte.

    Raises:
        FileNotFoundError: there is none.
    """

    def __init__(self, path: str, offset: int) -> None:
        self._path = path
        self._start = self._offset = offset
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._buffer = bytearray(PIECE)

    def read(self) -> bytes:
        """The next chunk, at its end none; in a thread. Raises `BodyLost`, or as the disk does."""
        return self._taken(os.pread(self._file, PIECE, self._offset))

    def there(self) -> bytes:
        """What of the next chunk is in the system's memory, if it tells; never waits for the disk.

        To have a thread bring that would take longer than to copy it. Raises `BodyLost`.
        """
        if _NOWAIT is None:
            return b""
        try:
            size = os.preadv(self._file, [self._buffer], self._offset, _NOWAIT)
        except OSError:  # the disk has to be asked, or this kind of file system
            return b""
        return self._taken(bytes(memoryview(self._buffer)[:size]))

    def _taken(self, chunk: bytes) -> bytes:
        begun = self._offset > self._start
        if begun and chunk and not os.fstat(self._file).st_nlink:  # its reader alone still has it
            raise BodyLost(f"{self._path} was deleted while it was read")
        self._offset += len(chunk)
        return chunk

    def close(self) -> None:
        """Read no more."""
        os.close(self._file)


def _flush(path: str) -> None:
    """Have the disk keep what is in a file, or which files are in a directory."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
