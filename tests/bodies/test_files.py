"""Bodies in files: the contract, whose they are, and a disk that is full or not there."""

from __future__ import annotations

import errno
import logging
import os
import stat
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from raincheck import ConfigurationError, Jobs
from raincheck.bodies.base import closing
from raincheck.bodies.files import SPARE, THREADS, FileBodies
from raincheck.errors import StoreError, StoreFull
from raincheck.testing import BodiesContract
from raincheck.testing.apart import content

pytestmark = [pytest.mark.anyio, pytest.mark.real, pytest.mark.one_loop]


@pytest.fixture
def bodies(tmp_path: Path) -> FileBodies:
    return FileBodies(tmp_path / "bodies")


class TestFileBodies(BodiesContract):
    pass


async def test_they_are_for_nobody_else_to_read(bodies: FileBodies, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        await bodies.append("a.1", 0, b"one")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "bodies").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "bodies" / "a.1").stat().st_mode) == 0o600


async def test_no_name_leads_elsewhere(bodies: FileBodies, tmp_path: Path) -> None:
    for name in ("../a", "/a", "..", ".", "a/../../b", "shop/a.1"):
        await bodies.append(name, 0, name.encode())
        assert await content(bodies, name) == name.encode()
    assert os.listdir(tmp_path) == ["bodies"]
    assert len(os.listdir(bodies.directory)) == 6


async def test_a_directory_that_is_open_to_others_is_told_of(
    bodies: FileBodies, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "bodies").mkdir(mode=0o755)
    with caplog.at_level(logging.WARNING, "raincheck"):
        await bodies.open()
    assert f"chmod 700 {tmp_path / 'bodies'}" in caplog.text


async def test_what_can_never_work_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("b")
    for place, reason in (
        (tmp_path / "file", "no directory"),
        (tmp_path / "a" / "b", "no such"),
        (tmp_path / "link", f"make the directory {tmp_path}/b"),
        (tmp_path / "file" / "a", "Not a directory"),
        (tmp_path / ("a" * 300), "File name too long"),
    ):
        with pytest.raises(ConfigurationError, match=reason):
            await FileBodies(place).open()
        with pytest.raises(StoreError):
            await FileBodies(place).append("a.1", 0, b"one")
    await FileBodies(tmp_path / "a").open()
    assert not (tmp_path / "a").exists()  # with the first body, and not before


@pytest.mark.parametrize("directory", ["", None, 3])
def test_what_is_no_path_is_refused(directory: Any) -> None:
    with pytest.raises(ConfigurationError, match="directory is the path of a directory"):
        FileBodies(directory)


def test_what_are_no_bodies_are_refused() -> None:
    given: Any = "bodies"
    with pytest.raises(ConfigurationError, match="FileBodies"):
        Jobs(bodies=given)


async def test_a_disk_that_is_full_is_told_of(
    bodies: FileBodies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a chunk; the rest is appended when there is room again."""
    await bodies.append("a.1", 0, b"one")
    write = os.pwrite

    def full(file: int, some: memoryview, offset: int) -> int:
        if offset >= 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, some[:1], offset)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(StoreFull, match=f"{tmp_path}/bodies: the disk is full"):
            await bodies.append("a.1", 3, b"three")
    assert await bodies.size("a.1") == 5
    await bodies.append("a.1", 3, b"three")
    assert await content(bodies) == b"onethree"


async def test_some_of_the_disk_is_left_to_others(
    bodies: FileBodies, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bodies.append("a.1", 0, b"one")
    free = os.statvfs(bodies.directory)

    class Little:
        f_frsize = 1
        f_bavail = SPARE + 4

    monkeypatch.setattr(os, "fstatvfs", lambda file: Little)
    with pytest.raises(StoreFull):
        await bodies.append("a.1", 3, b"three")
    await bodies.append("a.1", 3, b"four")
    await bodies.append("a.1", 0, b"onefour")  # it is there
    assert free.f_bavail  # else this test says nothing


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE])
async def test_a_disk_that_fails_is_the_stores_error(
    bodies: FileBodies, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    await bodies.append("a.1", 0, b"one")

    def fail(*arguments: Any, **more: Any) -> None:
        raise OSError(code, os.strerror(code))

    for call in ("open", "stat", "unlink", "scandir"):
        monkeypatch.setattr(os, call, fail)
    monkeypatch.setattr("builtins.open", fail)
    for ask in (
        bodies.append("a.1", 3, b"two"),
        bodies.size("a.1"),
        bodies.delete(["a.1"]),
        bodies.names(),
        bodies.sync("a.1"),
        content(bodies),
    ):
        with pytest.raises(StoreError, match=os.strerror(code)):
            await ask


async def test_file_and_directory_are_synced(
    bodies: FileBodies, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    sync = os.fsync

    def note(file: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{file}"))
        sync(file)

    monkeypatch.setattr(os, "fsync", note)
    await bodies.append("a.1", 0, b"one")
    assert synced == [os.path.dirname(bodies.directory)]  # which has a new directory
    await bodies.append("a.1", 3, b"two")
    await bodies.sync("a.1")
    assert synced[1:] == [f"{bodies.directory}/a.1", bodies.directory]


async def test_whoever_waits_for_the_disk_takes_no_thread_of_others(
    bodies: FileBodies, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And none waits on the event loop."""
    most = anyio.to_thread.current_default_thread_limiter().borrowed_tokens
    seen: list[float] = []
    size = bodies._size

    def look(name: str) -> int | None:
        seen.append(most)
        return size(name)

    monkeypatch.setattr(bodies, "_size", look)
    limiter = anyio.to_thread.current_default_thread_limiter()
    limiter.total_tokens, before = 1, limiter.total_tokens
    try:
        async with limiter, anyio.create_task_group() as group:
            for _ in range(2 * THREADS):
                group.start_soon(bodies.size, "a.1")
    finally:
        limiter.total_tokens = before
    assert len(seen) == 2 * THREADS


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="only Linux tells what is in memory")
async def test_what_is_in_memory_is_read_without_a_thread(
    bodies: FileBodies, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = os.urandom(1_000_000)
    await bodies.append("a.1", 0, body)
    asked, pread = [], os.pread

    def count(file: int, size: int, offset: int) -> bytes:
        asked.append(offset)
        return pread(file, size, offset)

    monkeypatch.setattr(os, "pread", count)
    assert await content(bodies) == body
    assert asked == [len(body)]  # where the end is, the disk says


@pytest.mark.parametrize("there", [None, 0, 1, 3, 100_000])
async def test_what_is_not_in_memory_is_read_all_the_same(
    bodies: FileBodies, monkeypatch: pytest.MonkeyPatch, there: int | None
) -> None:
    """Nothing of it, some of it, or it cannot be told."""
    body = os.urandom(1_000_000)
    await bodies.append("a.1", 0, body)
    times, preadv = 0, getattr(os, "preadv", None)

    def some(file: int, buffers: list[bytearray], offset: int, flags: int) -> int:
        nonlocal times
        times += 1
        if not there or times % 2 or preadv is None:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return int(preadv(file, [memoryview(buffers[0])[:there]], offset, flags))

    if there is None:
        monkeypatch.setattr("raincheck.bodies.files._NOWAIT", None)
    monkeypatch.setattr(os, "preadv", some)
    for offset in (0, 1, 999_999, 1_000_000):
        assert await content(bodies, offset=offset) == body[offset:]
    assert bool(times) is (there is not None)


async def test_a_body_that_is_deleted_is_not_read_on(bodies: FileBodies) -> None:
    await bodies.append("a.1", 0, b"x" * 1_000_000)
    async with closing(bodies.read("a.1")) as chunks:
        assert await anext(chunks)
        await bodies.delete(["a.1"])
        with pytest.raises(StoreError, match="was deleted while it was read"):
            await anext(chunks)


async def test_a_file_is_closed_when_nobody_reads_it(bodies: FileBodies) -> None:
    await bodies.append("a.1", 0, b"x" * 1_000_000)
    before = len(os.listdir("/proc/self/fd"))
    chunks: Any = bodies.read("a.1")
    await anext(chunks)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    await chunks.aclose()
    assert len(os.listdir("/proc/self/fd")) == before
