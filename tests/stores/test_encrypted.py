"""The store of examples/encrypted_store.py: any other, which is given nothing in clear."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from examples.encrypted_store import LENGTH, EncryptedStore

from raincheck import MemoryStore, State
from raincheck.errors import StoreError, UnreadableRecord
from raincheck.job import Job
from raincheck.messages import CapturedResponse, Head
from raincheck.runtime.recorder import PIECE
from raincheck.stores.base import Fetched, Partial
from raincheck.stores.sqlite import SQLiteStore
from raincheck.testing import StoreContract
from raincheck.testing.samples import body_of, finished, job, request, waiting, with_body
from tests.doubles.stores import TrickyStore, no_trick

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]

KEY, OTHER = b"k" * 64, b"o" * 64
HEAD = Head(200, ((b"set-cookie", b"secret"), (b"set-cookie", b"\xff")))


class TestOverMemory(StoreContract):
    @pytest.fixture
    def store(self) -> EncryptedStore:
        return EncryptedStore(MemoryStore(), KEY)


@pytest.mark.real
@pytest.mark.slow
class TestOverSQLite(StoreContract):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[EncryptedStore]:
        store = EncryptedStore(SQLiteStore(tmp_path / "jobs.db"), KEY)
        yield store
        await store.aclose()


def done(new: Job, size: int) -> Job:
    response = CapturedResponse(*HEAD, size)
    return new.finish(State.SUCCEEDED, 1002.0, ttl=60.0, tombstone_ttl=60.0, response=response)


async def test_the_other_store_has_nothing_in_clear() -> None:
    kept = MemoryStore()
    store = EncryptedStore(kept, KEY)
    await store.create(waiting(), request(b"secret", headers=((b"authorization", b"secret"),)))
    await store.create(job("b"))
    await store.append_body("b", 1, 0, b"secret", head=HEAD)
    captured, partial = await kept.request("a"), await kept.partial("b")
    assert captured is not None
    assert partial is not None
    assert "secret" not in repr((captured, partial, await body_of(kept, "b")))
    assert (captured.path, captured.raw_path, captured.headers) == ("", None, ())
    await store.replace(done(job("b"), 12), tail=b"secret")
    assert "secret" not in repr((await kept.fetch("b"), await body_of(kept, "b")))
    assert await store.fetch("b") == Fetched(done(job("b"), 12), b"secretsecret")


@pytest.mark.real
async def test_files_have_nothing_in_clear(tmp_path: Path) -> None:
    store = EncryptedStore(SQLiteStore(tmp_path / "jobs.db"), KEY)
    await store.create(waiting(), request(b"secret", headers=((b"authorization", b"secret"),)))
    await store.create(job("b"))
    await store.append_body("b", 1, 0, b"secret", head=HEAD)
    await store.replace(done(job("b"), 12), tail=b"secret")
    files = [await path.read_bytes() async for path in anyio.Path(tmp_path).iterdir()]
    assert len(files) > 1
    assert [b"secret" in file for file in files] == [False] * len(files)
    await store.aclose()


@pytest.mark.parametrize("pieces", [[1] * 300, [PIECE, 1, PIECE - 1, 7], [1000] * 40])
async def test_a_process_that_wrote_none_of_it_reads_from_any_byte(pieces: list[int]) -> None:
    kept = MemoryStore()
    writer = EncryptedStore(kept, KEY)
    body = bytes(number % 251 for number in range(sum(pieces)))
    start, chunks = 0, []
    for size in pieces:
        chunks.append(body[start : start + size])
        start += size
    await with_body(writer, "a", chunks[:-1], tail=chunks[-1])
    for offset in (len(body) - 1, 0, len(body) // 2, 1, pieces[0], len(body), len(body) + 9):
        assert await body_of(EncryptedStore(kept, KEY), "a", offset) == body[offset:]
    reader = EncryptedStore(kept, KEY)  # and one that has come to know where the pieces begin
    for offset in (0, len(body) - 1, len(body) // 2, 1, len(body)):
        assert await body_of(reader, "a", offset) == body[offset:]


async def test_a_range_is_not_read_from_the_beginning() -> None:
    asked = []

    async def watch(call: str, /, *arguments: Any, **more: Any) -> None:
        if call == "read_body":
            asked.append(arguments[1])

    store = EncryptedStore(TrickyStore(before=watch), KEY)
    await with_body(store, "a", [b"x" * 1000] * 9, tail=b"y" * 1000)
    asked.clear()
    assert await body_of(store, "a", 9500) == b"y" * 500
    assert asked
    assert min(asked) >= 9000


async def test_a_process_that_follows_sees_what_another_writes() -> None:
    kept = MemoryStore()
    writer, reader = EncryptedStore(kept, KEY), EncryptedStore(kept, KEY)
    await writer.create(job())
    seen: list[Partial] = []

    async def follow() -> None:
        known: Partial | None = Partial(job(), None, 0)
        while known is not None and not known.job.finished:
            known = await reader.grown(known)
            assert known is not None
            seen.append(known)

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(follow)
            for start in range(0, 50, 5):
                await anyio.wait_all_tasks_blocked()
                assert await writer.append_body("a", 1, start, b"12345", head=HEAD)
            await anyio.wait_all_tasks_blocked()
            assert await writer.replace(done(job(), 53), tail=b"end")
    assert [each.size for each in seen] == [*range(5, 55, 5), 53]
    assert {each.head for each in seen} == {HEAD}
    assert await body_of(reader, "a", 48) == b"45end"


async def test_a_lost_answer_is_asked_for_again_and_leaves_one_piece() -> None:
    kept = MemoryStore()
    for store in (EncryptedStore(kept, KEY), EncryptedStore(kept, KEY)):  # who wrote it, who not
        if await kept.get("a") is None:
            await store.create(job())
        for _ in range(2):
            assert await store.append_body("a", 1, 0, b"one", head=HEAD)
            assert await store.append_body("a", 1, 3, b"two")
    assert await body_of(EncryptedStore(kept, KEY), "a") == b"onetwo"


async def test_a_piece_that_was_altered_or_put_elsewhere_is_not_served() -> None:
    for change in ("altered", "from another job", "from another place", "cut off"):
        kept = MemoryStore()
        store = EncryptedStore(kept, KEY)
        for id in "ab":
            await with_body(store, id, [b"one", b"two"])
        theirs, length = await body_of(kept, "b"), len(await body_of(kept, "b")) // 2
        bad = {
            "altered": theirs[:-1] + bytes([theirs[-1] ^ 1]),
            "from another job": theirs,
            "from another place": theirs[length:] + theirs[:length],
            "cut off": theirs[:length],
        }[change]
        id = "a" if change == "from another job" else "b"
        kept._bodies[id] = bad  # as who can write to the database
        reader = EncryptedStore(kept, KEY)
        if change == "cut off":  # which whoever reads sees by its size
            assert await reader.fetch(id) == Fetched(finished(job(id, max_runs=2), size=6), None)
            assert await body_of(reader, id) == b"one"
        else:
            with pytest.raises(UnreadableRecord):
                await body_of(reader, id)
            with pytest.raises(UnreadableRecord):
                await reader.fetch(id)


async def test_a_length_that_was_altered_ends_the_body_early() -> None:
    kept = MemoryStore()
    store = EncryptedStore(kept, KEY)
    await with_body(store, "a", [b"one"])
    kept._bodies["a"] = LENGTH.pack(2**31) + bytes(30)
    assert await body_of(EncryptedStore(kept, KEY), "a") == b""


async def test_a_response_that_was_sealed_with_another_key_is_in_nobodys_way() -> None:
    kept = MemoryStore()
    await with_body(EncryptedStore(kept, OTHER), "a", [b"one"])
    await with_body(EncryptedStore(kept, KEY), "b", [b"two"])
    await with_body(kept, "c", [b"three"])  # and one that was not sealed
    store = EncryptedStore(kept, KEY)
    for id in "ac":
        with pytest.raises(UnreadableRecord):
            await store.get(id)
    assert [each.id for each in (await store.list()).jobs] == ["b"]
    await store.sweep(5000.0)
    assert await store.get("a") is not None  # a tombstone, of which nothing was sealed


async def test_keys_are_rotated() -> None:
    kept = MemoryStore()
    await with_body(EncryptedStore(kept, OTHER), "a", [b"one"])
    both = EncryptedStore(kept, KEY, OTHER)
    await with_body(both, "b", [b"two"])
    assert [await body_of(both, id) for id in "ab"] == [b"one", b"two"]
    assert await body_of(EncryptedStore(kept, KEY), "b") == b"two"


async def test_a_job_that_begins_anew_before_its_body_is_read() -> None:
    kept = TrickyStore()
    store = EncryptedStore(kept, KEY)
    first = job(max_runs=2, replayable=True)
    again = first.requeue().start(1001.0)
    await store.create(first, request())
    await store.append_body("a", 1, 0, b"one")

    async def begin_anew(call: str, /, *arguments: Any, **more: Any) -> None:
        if call != "get":
            return
        kept.after = no_trick
        assert await store.replace(first.requeue())
        assert await store.replace(again)
        assert await store.append_body("a", again.fence, 0, b"two")

    kept.after = begin_anew
    assert await body_of(EncryptedStore(kept, KEY), "a") == b"two"
    assert issubclass(UnreadableRecord, StoreError)
