"""The contract of stores: what is kept of a response, and read of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from raincheck.job import Job, Progress, State
from raincheck.messages import CapturedResponse, Head
from raincheck.runtime.recorder import PIECE
from raincheck.stores.base import (
    SMALL,
    Fetched,
    Partial,
    Store,
    told,
)
from raincheck.testing.samples import (
    BODIES,
    body_of,
    finished,
    job,
    keeps,
    read_on,
    request,
    with_body,
)


class BodyContract:
    """What is kept of a response, and read of it."""

    async def test_a_body_comes_back_in_order(self, store: Store) -> None:
        await store.create(job())
        await store.create(job("b"))
        size = 0
        for number, chunk in enumerate((b"one", b"\x00\xff", b"three")):
            assert await store.append_body("a", 1, size, chunk)
            assert await store.append_body("b", 1, number, b"x")
            size += len(chunk)
        assert await body_of(store, "a") == b"one\x00\xffthree"
        assert await body_of(store, "b") == b"xxx"

    async def test_a_body_is_read_from_any_offset(self, store: Store) -> None:
        await store.create(job())
        whole = bytes(range(256)) * 10
        for start in range(0, len(whole), 100):
            await store.append_body("a", 1, start, whole[start : start + 100])
        for offset in (0, 1, 99, 100, 101, 255, 2559, 2560, 9999):
            assert await body_of(store, "a", offset) == whole[offset:]

    async def test_a_large_body_comes_back_in_chunks(self, store: Store) -> None:
        await store.create(job())
        piece = bytes(range(256)) * 4096  # 1 MiB
        for number in range(10):
            assert await store.append_body("a", 1, number * len(piece), piece)
        largest, size = 0, 0
        async for chunk in store.read_body("a"):
            largest = max(largest, len(chunk))
            size += len(chunk)
        assert size == 10 * len(piece)
        assert largest <= len(piece)

    async def test_a_body_of_any_size_comes_back(self, store: Store) -> None:
        for size in (0, 1, PIECE, PIECE + 1):
            body = b"x" * size
            pieces = [body[start : start + PIECE] for start in range(0, size, PIECE)]
            await with_body(store, f"in pieces {size}", pieces)
            await with_body(store, f"at once {size}", (), tail=body)
            await with_body(store, f"both {size}", [body[:1]] if body else (), tail=body[1:])
            for how in ("in pieces", "at once", "both"):
                assert await body_of(store, f"{how} {size}") == body

    async def test_a_body_that_goes_while_it_is_read_does_not_end_early(self, store: Store) -> None:
        """Whoever reads it may get the rest all the same, as from memory, but no end before."""
        for number, (pieces, tail) in enumerate(BODIES):
            for chunks in (1, 2):
                done = await with_body(store, f"{number} {chunks}", pieces, tail=tail)

                async def bury(done: Job = done) -> None:
                    assert await store.replace(done.tombstone(1000.0, 60.0))

                had, ended = await read_on(store, done.id, chunks, bury)
                assert (b"".join(pieces) + tail).startswith(had)
                assert done.response is not None
                assert len(had) == done.response.size or not ended

    async def test_nor_does_one_that_expires(self, store: Store) -> None:
        for number, (pieces, tail) in enumerate(BODIES):
            for chunks, times in ((1, (1060.0,)), (2, (1060.0, 1120.0))):
                done = await with_body(store, f"{number} {chunks}", pieces, tail=tail)

                async def expire(times: tuple[float, ...] = times) -> None:
                    for now in times:
                        await store.sweep(now)

                had, ended = await read_on(store, done.id, chunks, expire)
                assert (b"".join(pieces) + tail).startswith(had)
                assert done.response is not None
                assert len(had) == done.response.size or not ended

    async def test_nor_does_it_go_on_with_that_of_another_run(self, store: Store) -> None:
        for number, (pieces, _) in enumerate(BODIES):
            body = b"".join(pieces)
            for chunks, other in ((1, b""), (1, b"!"), (2, b"!")):
                first = job(f"{number} {chunks} {other!r}", max_runs=2, replayable=True)
                await store.create(first, request())
                for start in range(0, len(body), PIECE):
                    assert await store.append_body(first.id, 1, start, body[start : start + PIECE])

                async def begin_anew(first: Job = first, other: bytes = other) -> None:
                    again = first.requeue().start(1001.0)
                    assert await store.replace(first.requeue())
                    assert await store.replace(again)
                    for start in range(0, 4 * PIECE, PIECE):
                        if other:
                            chunk = other * PIECE
                            assert await store.append_body(again.id, again.fence, start, chunk)

                had, ended = await read_on(store, first.id, chunks, begin_anew)
                assert body.startswith(had)
                assert had == body or not ended

    async def test_a_body_that_grows_is_read_as_it_is(self, store: Store) -> None:
        await store.create(job())
        await store.append_body("a", 1, 0, b"x" * PIECE)

        async def grow() -> None:
            await store.append_body("a", 1, PIECE, b"y" * PIECE)

        had, ended = await read_on(store, "a", 1, grow)
        assert ended
        assert had in (b"x" * PIECE, b"x" * PIECE + b"y" * PIECE)

    async def test_a_chunk_that_is_there_is_not_put_there_again(self, store: Store) -> None:
        await store.create(job())
        for offset, chunk in ((0, b"one"), (0, b"one"), (3, b"two"), (3, b"two"), (0, b"one")):
            assert await store.append_body("a", 1, offset, chunk)
        assert await body_of(store, "a") == b"onetwo"

    async def test_the_tail_of_a_body_comes_with_the_outcome(self, store: Store) -> None:
        await store.create(job())
        await store.append_body("a", 1, 0, b"one")
        response = CapturedResponse(200, (), 6)
        done = job().finish(
            State.SUCCEEDED, 1002.0, ttl=60.0, tombstone_ttl=60.0, response=response
        )
        assert await store.replace(done, tail=b"two")
        assert not await store.replace(done, tail=b"two")
        assert await body_of(store, "a") == b"onetwo"
        assert await body_of(store, "a", 4) == b"wo"

    async def test_no_body_is_empty(self, store: Store) -> None:
        await store.create(job())
        assert await body_of(store, "a") == b""
        assert await body_of(store, "unknown") == b""

    async def test_appending_to_nothing_keeps_nothing(self, store: Store) -> None:
        assert not await store.append_body("a", 1, 0, b"x")
        await store.create(job())
        assert await body_of(store, "a") == b""

    async def test_appending_to_what_has_ended_keeps_nothing(self, store: Store) -> None:
        await store.create(job())
        await store.replace(finished(job()))
        assert not await store.append_body("a", 1, 0, b"x")
        assert await body_of(store, "a") == b""

    async def test_only_the_newest_run_has_a_body(self, store: Store) -> None:
        first = job(max_runs=2, replayable=True)
        await store.create(first, request())
        assert await store.append_body("a", 1, 0, b"first")
        second = first.requeue().start(1001.0)
        assert await store.replace(first.requeue())
        assert await store.replace(second)
        assert await body_of(store, "a") == b""
        assert not await store.append_body("a", 1, 5, b"stale")
        assert await store.append_body("a", 3, 0, b"second")
        assert not await store.replace(finished(first))
        assert await body_of(store, "a") == b"second"

    async def test_a_small_body_comes_with_its_job(self, store: Store) -> None:
        if keeps(store, "fetch"):
            return
        for size in (0, 1, 1000, SMALL):
            body = bytes(range(256)) * (SMALL // 256)
            pieces = [body[:size][start : start + 30_000] for start in range(0, size, 30_000)]
            done = await with_body(store, f"in pieces {size}", pieces)
            assert await store.fetch(done.id) == Fetched(done, body[:size])
            done = await with_body(store, f"at once {size}", (), tail=body[:size])
            assert await store.fetch(done.id) == Fetched(done, body[:size])
        done = await with_body(store, "both", [b"one", b"two"], tail=b"three")
        assert await store.fetch("both") == Fetched(done, b"onetwothree")

    async def test_a_large_body_does_not(self, store: Store) -> None:
        large = b"x" * (SMALL + 1)
        done = await with_body(store, "in pieces", [large[:-1]], tail=large[-1:])
        assert await store.fetch("in pieces") == Fetched(done, None)
        done = await with_body(store, "at once", (), tail=large)
        assert await store.fetch("at once") == Fetched(done, None)

    async def test_a_job_without_a_response_comes_alone(self, store: Store) -> None:
        assert await store.fetch("a") is None
        await store.create(job())
        assert await store.fetch("a") == Fetched(job(), None)
        assert await store.append_body("a", 1, 0, b"x")
        assert await store.fetch("a") == Fetched(job(), None)
        assert await store.replace(finished(job()))
        assert await store.fetch("a") == Fetched(finished(job()), None)
        gone = (await with_body(store, "b", [b"x"])).tombstone(1000.0, 60.0)
        assert await store.replace(gone)
        assert await store.fetch("b") == Fetched(gone, None)

    async def test_a_small_body_that_is_not_whole_is_left_to_who_reads_it(
        self, store: Store
    ) -> None:
        for id, pieces in (("none", ()), ("some", (b"on",)), ("more", (b"one", b"two"))):
            await store.create(job(id))
            size = 0
            for piece in pieces:
                assert await store.append_body(id, 1, size, piece)
                size += len(piece)
            done = finished(job(id), size=4)
            assert await store.replace(done)
            assert await store.fetch(id) == Fetched(done, None)

    async def test_a_response_is_seen_before_its_end(self, store: Store) -> None:
        if keeps(store, "partial"):
            return
        assert await store.partial("a") is None
        await store.create(job())
        assert await store.partial("a") == Partial(job(), None, 0)
        head = Head(207, ((b"set-cookie", b"a"), (b"set-cookie", b"\xff")))
        for _ in range(2):
            assert await store.append_body("a", 1, 0, b"one", head=head)
            assert await store.partial("a") == Partial(job(), head, 3)
        for _ in range(2):
            assert await store.append_body("a", 1, 3, b"three")
            assert await store.partial("a") == Partial(job(), head, 8)
        reported = job().with_progress(Progress(0.5))
        assert await store.replace(reported)
        assert await store.partial("a") == Partial(reported, head, 8)
        assert await body_of(store, "a") == b"onethree"

    async def test_a_head_may_come_before_the_body(self, store: Store) -> None:
        if keeps(store, "partial"):
            return
        await store.create(job())
        for _ in range(2):
            assert await store.append_body("a", 1, 0, b"", head=Head(200, ()))
            assert await store.partial("a") == Partial(job(), Head(200, ()), 0)
        assert await store.append_body("a", 1, 0, b"one")
        assert await store.partial("a") == Partial(job(), Head(200, ()), 3)
        assert await body_of(store, "a") == b"one"
        assert await store.replace(finished(job(), size=3))
        assert await store.fetch("a") == Fetched(finished(job(), size=3), b"one")

    async def test_a_body_without_a_head_is_counted_too(self, store: Store) -> None:
        if keeps(store, "partial"):
            return
        await store.create(job())
        assert await store.append_body("a", 1, 0, b"x" * 3 * PIECE)
        assert await store.partial("a") == Partial(job(), None, 3 * PIECE)

    async def test_only_the_newest_run_has_a_head(self, store: Store) -> None:
        if keeps(store, "partial"):
            return
        first = job(max_runs=2, replayable=True)
        await store.create(first, request())
        assert await store.append_body("a", 1, 0, b"one", head=Head(200, ()))
        assert await store.replace(first.requeue())
        assert await store.partial("a") == Partial(first.requeue(), None, 0)
        second = first.requeue().start(1001.0)
        assert await store.replace(second)
        assert not await store.append_body("a", 1, 0, b"one", head=Head(200, ()))
        assert await store.partial("a") == Partial(second, None, 0)
        assert await store.append_body("a", 3, 0, b"two!", head=Head(201, ()))
        assert await store.partial("a") == Partial(second, Head(201, ()), 4)

    async def test_a_response_that_is_complete_has_its_own_head(self, store: Store) -> None:
        for id in "abc":
            await store.create(job(id))
            assert await store.append_body(id, 1, 0, b"one", head=Head(200, ()))
        response = CapturedResponse(404, ((b"x", b"\xff"),), 6)
        done = job().finish(State.FAILED, 1002.0, ttl=60.0, tombstone_ttl=60.0, response=response)
        assert await store.replace(done, tail=b"two")
        assert await store.partial("a") == Partial(done, Head(404, ((b"x", b"\xff"),)), 6)
        assert await store.replace(done.tombstone(1003.0))
        assert await store.partial("a") == Partial(done.tombstone(1003.0), None, 0)
        assert await store.replace(finished(job("b")))
        assert await store.partial("b") == Partial(finished(job("b")), None, 0)
        assert await store.replace(job("c").tombstone(1000.0, 60.0))
        assert await store.partial("c") == Partial(job("c").tombstone(1000.0, 60.0), None, 0)

    async def test_who_follows_a_response_is_told_at_once_of_what_is_there(
        self, store: Store
    ) -> None:
        if keeps(store, "partial"):
            return
        unknown = Partial(job(), None, 0)
        assert await store.grown(unknown) is None
        await store.create(job())
        await store.append_body("a", 1, 0, b"", head=Head(200, ()))
        head = Partial(job(), Head(200, ()), 0)
        assert await store.grown(unknown) == head
        await store.append_body("a", 1, 0, b"one")
        assert await store.grown(head) == Partial(job(), Head(200, ()), 3)
        reported = job().with_progress(Progress(0.5))
        await store.replace(reported)
        there = Partial(reported, Head(200, ()), 3)
        assert await store.grown(Partial(job(), Head(200, ()), 3)) == there
        await store.replace(reported.tombstone(1000.0, 60.0))
        assert await store.grown(there) == Partial(reported.tombstone(1000.0, 60.0), None, 0)

    async def test_everybody_who_follows_a_response_is_woken(self, store: Store) -> None:
        if keeps(store, "partial"):
            return
        head = Head(200, ((b"x", b"y"),))
        new = job(max_runs=2, replayable=True)
        await store.create(new, request())
        again = new.requeue().start(1001.0)
        done = finished(again, size=3)
        steps: list[tuple[Callable[[], Awaitable[bool]], Partial]] = [
            (lambda: store.append_body("a", 1, 0, b"", head=head), Partial(new, head, 0)),
            (lambda: store.append_body("a", 1, 0, b"one"), Partial(new, head, 3)),
            (lambda: store.append_body("a", 1, 3, b"two"), Partial(new, head, 6)),
            (lambda: store.replace(new.requeue()), Partial(new.requeue(), None, 0)),
            (lambda: store.replace(again), Partial(again, None, 0)),
            (lambda: store.append_body("a", 3, 0, b"o"), Partial(again, None, 1)),
            (lambda: store.replace(done, tail=b"ne"), Partial(done, Head(200, ()), 3)),
            (lambda: store.replace(done.tombstone(1060.0)), told(done.tombstone(1060.0))),
        ]
        known: Partial | None = Partial(new, None, 0)
        for step, found in steps:
            seen: list[Partial | None] = []

            async def watch(known: Partial | None = known, seen: Any = seen) -> None:
                assert known is not None
                seen.append(await store.grown(known))

            with anyio.fail_after(30):
                async with anyio.create_task_group() as group:
                    for _ in range(3):
                        group.start_soon(watch)
                    await anyio.wait_all_tasks_blocked()
                    assert seen == []
                    assert await step()
            assert seen == [found] * 3
            known = found

    async def test_who_follows_a_response_sees_it_to_its_end(self, store: Store) -> None:
        if keeps(store, "partial"):
            return
        await store.create(job())
        done = finished(job(), size=100)
        seen: list[list[Partial]] = [[], [], []]

        async def follow(had: list[Partial]) -> None:
            known: Partial | None = Partial(job(), None, 0)
            while known is not None and not known.job.finished:
                known = await store.grown(known)
                assert known is not None
                had.append(known)

        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                for had in seen:
                    group.start_soon(follow, had)
                for size in range(0, 100, 5):
                    assert await store.append_body("a", 1, size, b"12345", head=Head(200, ()))
                assert await store.replace(done)
        for had in seen:
            assert had[-1] == told(done)
            sizes = [each.size for each in had]
            assert sizes == sorted(sizes)
            assert all(each.head == Head(200, ()) for each in had)

    async def test_who_follows_a_job_that_is_forgotten_is_told(self, store: Store) -> None:
        gone = job().tombstone(1000.0, 60.0)
        await store.create(job())
        await store.replace(gone)
        seen = []

        async def watch() -> None:
            seen.append(await store.grown(Partial(gone, None, 0)))

        with anyio.fail_after(30):
            async with anyio.create_task_group() as group:
                group.start_soon(watch)
                await anyio.wait_all_tasks_blocked()
                await store.sweep(1060.0)
        assert seen == [None]

    async def test_following_can_be_cancelled(self, store: Store) -> None:
        await store.create(job())
        with anyio.move_on_after(0.01) as scope:
            await store.grown(Partial(job(), None, 0))
        assert scope.cancelled_caught
        assert await store.append_body("a", 1, 0, b"one")
