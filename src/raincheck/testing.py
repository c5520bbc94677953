"""For tests: of apps that use raincheck, and of stores and runners written for it.

An endpoint marked `@long_running` is a plain one without the middleware, so most tests of an app
need nothing from here. Those that want the 202 follow it with `follow()`.

Authors of a store or a runner subclass `StoreContract` or `RunnerContract` and give a fixture:

    @pytest.mark.anyio
    class TestMyStore(StoreContract):
        @pytest.fixture
        def store(self): return MyStore()
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

import anyio

from raincheck.errors import MalformedCursor, NoRoom, StoreError, crashed
from raincheck.job import Bounds, Job, Key, Progress, State
from raincheck.lifespan import lifespan as lifespan
from raincheck.messages import CapturedRequest, CapturedResponse, Head
from raincheck.runners.base import Run, Runner, Stop
from raincheck.runtime.recorder import PIECE
from raincheck.stores.base import (
    SMALL,
    Claim,
    Fetched,
    Found,
    Partial,
    Store,
    Total,
    told,
)


class Response(Protocol):
    """What `follow()` needs of a response; httpx's has it."""

    @property
    def status_code(self) -> int: ...
    @property
    def headers(self) -> Any: ...


R = TypeVar("R", bound=Response)
R_co = TypeVar("R_co", bound=Response, covariant=True)


class Client(Protocol[R_co]):
    """What `follow()` needs of a client; `httpx.AsyncClient` has it."""

    async def get(self, url: str, *, headers: dict[str, str]) -> R_co: ...


async def follow(client: Client[R], response: R, *, wait: int = 30) -> R:
    """Follow a 202 to the response that its status URL becomes.

    Args:
        client: e.g. an `httpx.AsyncClient` with an `ASGITransport`.
        response: the answer to the request; anything but a 202 is returned as it is.
        wait: seconds that each poll may wait for a change.
    """
    while response.status_code == 202:
        url = response.headers["location"]
        response = await client.get(url, headers={"prefer": f"wait={wait}"})
    return response


def job(id: str = "a", **fields: Any) -> Job:
    """A running job, for tests of stores."""
    known = {"id": id, "route": "r", "state": State.RUNNING, "created_at": 1000.0, "fence": 1}
    return Job(**{**known, **fields})


def waiting(id: str = "a", **fields: Any) -> Job:
    """A job that waits and whose captured request is kept, for tests of stores."""
    return job(id, **{"state": State.QUEUED, "replayable": True, **fields})


def request(body: bytes = b"\x00\xff", **fields: Any) -> CapturedRequest:
    """A captured request, for tests of stores."""
    known: dict[str, Any] = {
        "method": "POST",
        "path": "/ü",
        "raw_path": b"/%C3%BC",
        "query_string": b"q=1",
        "headers": ((b"x-a", b"\xff"), (b"x-a", b"2")),
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", None),
        "path_params": (("tenant", "ü"), ("n", 7)),
        "app_root_path": "",
    }
    return CapturedRequest(**{**known, **fields}, body=body)


def finished(
    job: Job,
    now: float = 1000.0,
    ttl: float = 60.0,
    tombstone_ttl: float = 60.0,
    size: int | None = None,
) -> Job:
    """The job's next version: failed without a response, or with one that has a body of a size."""
    if size is not None:
        response = CapturedResponse(200, (), size)
        return job.finish(
            State.SUCCEEDED, now, ttl=ttl, tombstone_ttl=tombstone_ttl, response=response
        )
    return job.finish(
        State.FAILED, now, ttl=ttl, tombstone_ttl=tombstone_ttl, error=crashed("The handler broke.")
    )


async def fits(store: Store, job: Job, bounds: Bounds | None) -> bool:
    """Whether a store has room for a new job within these bounds; if so, it is there."""
    try:
        await store.create(job, bounds=bounds)
    except NoRoom:
        assert await store.get(job.id) is None
        return False
    return True


def keeps(store: Store, method: str) -> bool:
    """Whether a store leaves it at the default of a method."""
    return getattr(type(store), method) is getattr(Store, method)


async def claim(store: Store, id: str = "a", **changes: Any) -> Claim | None:
    """Who asks for a job."""
    asked: dict[str, Any] = {"routes": {"r"}, "holder": "here", "now": 1001.5, "lease": None}
    return await store.claim(id, **asked | changes)


async def pages(store: Store, limit: int = 100, **of: Any) -> list[Job]:
    """All jobs of a list, however many pages it has."""
    page = await store.list(limit=limit, **of)
    jobs = [*page.jobs]
    while page.after is not None:
        page = await store.list(limit=limit, after=page.after, **of)
        assert len(page.jobs) <= limit
        jobs += page.jobs
    return jobs


async def many_kinds(store: Store) -> list[Job]:
    """Jobs of all kinds, in a store, and several that are not to be listed; newest first."""
    found = []
    for number in range(48):
        new = waiting(
            f"{number * 7 % 48:02}",
            created_at=1000.0 + number // 3 * 0.5,
            route=f"r{number % 2}",
            owner=(None, "ann", "bob ü")[number % 3],
        )
        await store.create(new, request())
        stopping = new.start(1010.0, "h").cancelling()
        done = finished(stopping, 1010.25 + number, size=0 if number % 8 == 3 else None)
        versions = (new, new.start(1010.0, "h"), stopping, done)[: number % 4 + 1]
        for version in versions[1:]:
            assert await store.replace(version)
        found.append(versions[-1])
    for n, forgotten in enumerate((waiting("50"), job("51"), job("52"))):
        await store.create(forgotten)
        assert await store.replace(forgotten.tombstone(1000.0 + n, 60.0))
    await store.create(job("53", synchronous=True))
    await store.create(job("54", synchronous=True))
    assert await store.replace(finished(job("54", synchronous=True)))
    return sorted(found, key=lambda each: (each.created_at, each.id), reverse=True)


async def body_of(store: Store, id: str, offset: int = 0) -> bytes:
    """A response body as a store has it."""
    return b"".join([chunk async for chunk in store.read_body(id, offset)])


async def with_body(store: Store, id: str, pieces: Sequence[bytes], *, tail: bytes = b"") -> Job:
    """A job that has succeeded with this body, for tests of stores."""
    new = job(id, max_runs=2, replayable=True)
    await store.create(new, request())
    size = 0
    for piece in pieces:
        assert await store.append_body(id, 1, size, piece)
        size += len(piece)
    done = finished(new, size=size + len(tail))
    assert await store.replace(done, tail=tail)
    return done


async def read_on(
    store: Store, id: str, chunks: int, meanwhile: Callable[[], Awaitable[object]]
) -> tuple[bytes, bool]:
    """What a reader has had of a body of which something becomes after so many chunks.

    Returns:
        It, and whether it came to an end, as if that were all.
    """
    had, count = b"", 0
    reader = store.read_body(id)
    try:
        async for chunk in reader:
            assert chunk
            had += chunk
            count += 1
            if count == chunks:
                await meanwhile()
    except StoreError:
        return had, False
    return had, True


BODIES: tuple[tuple[Sequence[bytes], bytes], ...] = (
    ((b"x" * PIECE, b"y" * PIECE, b"z" * PIECE), b""),
    ((b"x" * PIECE,), b"y"),
    ((b"x" * (PIECE - 1), b"y" * (PIECE + 1)), b"z" * 10),
    ((b"x" * 100_000, b"y" * 70_000, b"z" * 100_000, b"a" * 70_000), b""),
    (tuple(bytes([number % 251]) * 1000 for number in range(300)), b"z"),
)
"""Pieces and the tail of bodies that come in several chunks."""


class StoreContract:
    """What every store promises. Subclass it, with a fixture `store`."""

    async def test_a_created_job_is_there(self, store: Store) -> None:
        assert await store.create(job()) == job()
        assert await store.get("a") == job()

    async def test_an_unknown_job_is_none(self, store: Store) -> None:
        assert await store.get("a") is None

    async def test_every_field_comes_back(self, store: Store) -> None:
        full = job(
            fence=2,
            runs=1,
            max_runs=3,
            replayable=True,
            queue="videos",
            started_at=1.5,
            progress=Progress(0.5, "halb fertig: ½"),
            owner="user ü",
            clients=2,
            synchronous=True,
            not_before=1003.5,
        )
        await store.create(full, request())
        assert await store.get("a") == full
        response = CapturedResponse(200, ((b"set-cookie", b"a"), (b"set-cookie", b"\xff")), 3)
        done = full.finish(State.SUCCEEDED, 1002.0, ttl=60.0, tombstone_ttl=60.0, response=response)
        assert await store.replace(done, tail=b"abc")
        assert await store.get("a") == done
        await store.create(job("b"))
        failed = finished(job("b"))
        assert await store.replace(failed)
        assert await store.get("b") == failed

    async def test_what_only_a_newer_version_knows_stays_with_its_job(self, store: Store) -> None:
        unknown = {"minor": 1, "weight": [1.5, {"of": None}]}
        await store.create(job(extra=unknown))
        there = await store.get("a")
        assert there == job(extra=unknown)
        for later in (there.cancelling(), finished(there.cancelling())):
            assert await store.replace(later)
            assert await store.get("a") == later
            assert later.extra == unknown

    async def test_a_captured_request_is_kept_as_long_as_it_may_be_replayed(
        self, store: Store
    ) -> None:
        queued = job(state=State.QUEUED, fence=0, max_runs=2, replayable=True)
        await store.create(queued, request())
        assert await store.request("a") == request()
        first = queued.start(1001.0)
        assert await store.replace(first)
        assert await store.request("a") == request()
        again = first.requeue()
        assert await store.replace(again)
        assert await store.request("a") == request()
        assert await store.replace(again.start(1002.0))
        assert await store.request("a") is None

    async def test_no_request_is_none(self, store: Store) -> None:
        await store.create(job())
        assert await store.request("a") is None
        assert await store.request("unknown") is None

    async def test_a_captured_request_may_be_empty_or_large(self, store: Store) -> None:
        for id, body in (("a", b""), ("b", bytes(range(256)) * 20_000)):
            await store.create(job(id, replayable=True), request(body))
            assert await store.request(id) == request(body)

    async def test_a_captured_request_goes_with_the_outcome(self, store: Store) -> None:
        for id in "ab":
            await store.create(job(id, replayable=True), request())
        await store.replace(finished(job("a", replayable=True)))
        await store.replace(job("b", replayable=True).tombstone(1000.0, 60.0))
        assert await store.request("a") is None
        assert await store.request("b") is None

    async def test_of_many_creators_of_one_id_one_wins(self, store: Store) -> None:
        winners = []

        async def create(number: int) -> None:
            there = await store.create(job(route=str(number)))
            winners.append(there.route)

        async with anyio.create_task_group() as group:
            for number in range(100):
                group.start_soon(create, number)
        assert len(winners) == 100
        assert len(set(winners)) == 1

    async def test_of_many_creators_under_one_key_one_wins(self, store: Store) -> None:
        there = set()

        async def create(number: int) -> None:
            keys = Key("k"), Key(f"own-{number}")
            there.add((await store.create(job(str(number)), keys=keys)).id)

        async with anyio.create_task_group() as group:
            for number in range(100):
                group.start_soon(create, number)
        assert len(there) == 1
        (winner,) = there
        assert await store.find("k") == (await store.get(winner), None)
        losers = {str(number) for number in range(100)} - there
        assert [await store.get(id) for id in losers] == [None] * 99
        assert [await store.find(f"own-{id}") for id in losers] == [None] * 99

    async def test_an_unknown_key_is_nobodys(self, store: Store) -> None:
        await store.create(job())
        assert await store.find("k") is None

    async def test_each_key_has_a_fingerprint_of_its_own(self, store: Store) -> None:
        keys = Key("k", "f1"), Key("l", "ü" * 100, lasting=False), Key("m")
        await store.create(job(), keys=keys)
        joined = job().shared(1)
        assert await store.replace(joined, keys=(Key("n", "f2"),))
        for name, fingerprint in (*(key[:2] for key in keys), ("n", "f2")):
            assert await store.find(name) == Found(joined, fingerprint)

    async def test_a_key_that_does_not_last_is_free_once_nobody_can_join(
        self, store: Store
    ) -> None:
        lasting, passing = Key("k", "f"), Key("l", lasting=False)
        waits = job(state=State.QUEUED, max_runs=2, replayable=True)
        for last in ("cancelling", "finished", "gone"):
            queued = waits._replace(id=last)
            keys = [key._replace(name=f"{key.name} of {last}") for key in (lasting, passing)]
            await store.create(queued, request(), keys=keys)
            again = queued.start(1001.0).requeue()
            for version in (queued.start(1001.0), again, again.start(1002.0)):
                assert await store.replace(version)
                assert [await store.find(key.name) for key in keys] == [
                    *((version, "f"), (version, None))
                ]
            runs = again.start(1002.0)
            ends = {
                "cancelling": runs.cancelling(),
                "finished": finished(runs),
                "gone": runs.tombstone(1003.0, 60.0),
            }[last]
            assert await store.replace(ends)
            assert await store.find(keys[1].name) is None
            assert await store.find(keys[0].name) == (None if last == "gone" else (ends, "f"))
            another = job(f"after {last}")
            assert await store.create(another, keys=keys[1:]) == another

    async def test_a_key_that_lasts_is_free_once_its_job_is_gone(self, store: Store) -> None:
        await store.create(job(), keys=(Key("k"),))
        joined, stopping = job().shared(1), job().shared(1).cancelling()
        assert await store.replace(joined, keys=(Key("l"),))
        assert await store.replace(stopping)
        assert await store.replace(finished(stopping))
        for name in "kl":
            there = await store.create(job("b"), keys=(Key(name),))
            assert there == finished(stopping)
        await store.sweep(1060.0)
        assert [await store.find(name) for name in "kl"] == [None, None]
        assert await store.create(job("b"), keys=(Key("k"), Key("l"))) == job("b")

    async def test_a_key_that_a_job_gets_later_is_its_own(self, store: Store) -> None:
        await store.create(job(), keys=(Key("k", lasting=False),))
        joined = job().shared(1)
        assert await store.replace(joined, keys=(Key("l", "f"), Key("m", lasting=False)))
        assert await store.find("l") == (joined, "f")
        assert await store.find("m") == (joined, None)
        assert (await store.create(job("b"), keys=(Key("l"),))).id == "a"
        assert await store.replace(finished(joined))
        assert [await store.find(name) for name in "km"] == [None, None]
        assert await store.find("l") == (finished(joined), "f")

    async def test_a_key_that_is_taken_keeps_a_version_out(self, store: Store) -> None:
        """Be it another job's or this one's: who brought it has yet to look whose it is."""
        await store.create(job(), keys=(Key("k", "f"),))
        await store.create(job("b"), keys=(Key("l", "g"),))
        for name in "kl":
            assert not await store.replace(job().shared(1), keys=(Key("free"), Key(name)))
        assert await store.get("a") == job()
        assert await store.find("free") is None
        assert [await store.find(name) for name in "kl"] == [(job(), "f"), (job("b"), "g")]
        assert await store.replace(job().shared(1), keys=(Key("free"),))

    async def test_of_many_who_bring_one_key_one_wins(self, store: Store) -> None:
        """Be it to a job that is there or with one of their own."""
        await store.create(job())
        won = []

        async def join() -> None:
            there: Job | None = job()
            while there is not None and await store.find("k") is None:
                if await store.replace(there.shared(1), keys=(Key("k"),)):
                    won.append("a")
                there = await store.get("a")

        async def create(number: int) -> None:
            there = await store.create(job(str(number)), keys=(Key("k"),))
            if there.id == str(number):
                won.append(there.id)

        async with anyio.create_task_group() as group:
            for number in range(30):
                group.start_soon(join)
                group.start_soon(create, number)
        found = await store.find("k")
        assert found is not None
        assert won == [found.job.id]

    async def test_a_job_may_have_very_many_keys(self, store: Store) -> None:
        version = job()
        await store.create(version, keys=[Key(f"k{number}") for number in range(100)])
        for first in range(100, 10_000, 900):
            version = version.shared(1)
            keys = [Key(f"k{n}", f"f{n}", lasting=n % 2 == 0) for n in range(first, first + 900)]
            assert await store.replace(version, keys=keys)
        assert await store.find("k9999") == (version, "f9999")
        version = finished(version)
        assert await store.replace(version)
        assert await store.find("k9999") is None
        assert await store.find("k9998") == (version, "f9998")
        assert await store.replace(version.tombstone(1000.0, 60.0))
        assert await store.find("k9998") is None
        assert await store.create(job("b"), keys=(Key("k9998"),)) == job("b")

    async def test_what_a_route_varies_by_is_remembered(self, store: Store) -> None:
        route = "POST /vidéos/{id:int} " * 100
        assert await store.learned(route) == frozenset()
        await store.learn(route, {"x-tenant", "*"})
        await store.learn(route, ["x-tenant", "x-plan"])
        await store.learn(route, [])
        assert await store.learned(route) == {"x-tenant", "x-plan", "*"}
        assert await store.learned("another") == frozenset()
        async with anyio.create_task_group() as group:
            for number in range(20):
                group.start_soon(store.learn, route, [f"x-{number}", f"x-{(number + 1) % 20}"])
        assert len(await store.learned(route)) == 23
        await store.create(job(route=route))
        await store.replace(finished(job(route=route)))
        await store.sweep(1060.0)
        await store.sweep(1120.0)
        assert len(await store.learned(route)) == 23

    async def test_a_route_has_room_for_so_many(self, store: Store) -> None:
        two = Bounds(route=2)
        assert [await fits(store, job(id), two) for id in "abc"] == [True, True, False]
        assert await fits(store, job("elsewhere", route="other"), two)
        assert [await fits(store, job(id, state=State.QUEUED), two) for id in "def"] == [
            *(True, True, False)
        ]
        assert await fits(store, job("g"), Bounds(route=3))
        assert await fits(store, job("h"), None)
        assert not await fits(store, job("i"), Bounds(route=4))

    async def test_a_synchronous_job_takes_no_room(self, store: Store) -> None:
        one = Bounds(route=1, owner=1)
        in_place = job("in place", owner="ann", synchronous=True)
        await store.create(in_place, keys=(Key("k"),))
        assert await fits(store, job("a", owner="ann"), one)
        assert not await fits(store, job("b", owner="ann"), one)
        assert await store.replace(finished(in_place))
        assert not await fits(store, job("b", owner="ann"), one)
        assert await store.find("k") == (finished(in_place), None)

    async def test_an_owner_has_room_for_so_many_on_each_route(self, store: Store) -> None:
        one = Bounds(owner=1)
        assert await fits(store, job("a", owner="ann"), one)
        assert not await fits(store, job("b", owner="ann"), one)
        assert await fits(store, job("b", owner="ann", route="other"), one)
        assert await fits(store, job("c", owner="ann", state=State.QUEUED), one)
        assert await fits(store, job("d", owner="bob"), one)
        assert [await fits(store, job(id), one) for id in "ef"] == [True, True]

    async def test_it_tells_which_bound_there_is_no_room_within(self, store: Store) -> None:
        await store.create(job("a", owner="ann"))
        told = []
        for bounds in (Bounds(route=1, owner=1), Bounds(route=1, owner=2), Bounds(2, 1)):
            try:
                await store.create(job("b", owner="ann"), bounds=bounds)
            except NoRoom as error:
                told.append(error.owner)
        assert told == [True, False, True]

    async def test_a_job_gives_room_when_it_leaves_its_state(self, store: Store) -> None:
        one = Bounds(route=1, owner=1)
        waits = job("a", state=State.QUEUED, owner="ann", max_runs=2, replayable=True)
        await store.create(waits, request())
        runs = waits.start(1001.0)
        assert await store.replace(runs, bounds=one)
        assert await fits(store, job("b", state=State.QUEUED, owner="ann"), one)
        assert not await fits(store, job("c", owner="ann"), one)
        assert await store.replace(runs.requeue())
        assert await fits(store, job("c", owner="ann"), one)
        assert not await fits(store, job("d", owner="ann", state=State.QUEUED), Bounds(route=2))
        await store.replace(job("b", state=State.QUEUED, owner="ann").tombstone(1000.0, 60.0))
        assert await fits(store, job("d", owner="ann", state=State.QUEUED), Bounds(route=2))
        assert await store.replace(finished(job("c", owner="ann")))
        assert await fits(store, job("e", owner="ann"), one)
        stopping = job("e", owner="ann").cancelling()
        assert await store.replace(stopping)
        assert not await fits(store, job("f", owner="ann"), one)
        assert await store.replace(finished(stopping))
        assert await fits(store, job("f", owner="ann"), one)
        await store.sweep(2000.0)
        assert not await fits(store, job("g", owner="ann"), one)

    async def test_a_job_begins_only_if_there_is_room(self, store: Store) -> None:
        one = Bounds(route=1, owner=1)
        await store.create(job("a", owner="ann"))
        waits = job("b", state=State.QUEUED, owner="ann", max_runs=2, replayable=True)
        await store.create(waits, request())
        try:
            await store.replace(waits.start(1001.0), bounds=one)
        except NoRoom:
            assert await store.get("b") == waits
            assert await store.request("b") == request()
        else:
            raise AssertionError("there was room")
        assert await store.replace(finished(job("a", owner="ann")))
        assert await store.replace(waits.start(1001.0), bounds=one)
        assert not await store.replace(waits.start(1001.0), bounds=one)

    async def test_a_job_that_stays_in_its_state_or_ends_needs_no_room(self, store: Store) -> None:
        none = Bounds(route=0, owner=0)
        await store.create(job(owner="ann"))
        reported = job(owner="ann").with_progress(Progress(0.5))
        assert await store.replace(reported, bounds=none)
        stopping = reported.cancelling()
        assert await store.replace(stopping, bounds=none)
        assert await store.replace(finished(stopping), bounds=none)
        assert await store.replace(finished(stopping).tombstone(1000.0, 60.0), bounds=none)

    async def test_a_twin_is_found_though_there_is_no_room(self, store: Store) -> None:
        one = Bounds(route=1)
        await store.create(job(), keys=(Key("k"),), bounds=one)
        assert (await store.create(job(), bounds=one)).id == "a"
        assert (await store.create(job("b"), keys=(Key("k"),), bounds=one)).id == "a"

    async def test_of_many_creators_as_many_win_as_there_is_room_for(self, store: Store) -> None:
        fit = []

        async def create(number: int) -> None:
            owner = "ann" if number % 2 else "bob"
            waits = job(str(number), state=State.QUEUED, owner=owner)
            fit.append(await fits(store, waits, Bounds(route=20, owner=12)))

        async with anyio.create_task_group() as group:
            for number in range(100):
                group.start_soon(create, number)
        assert sum(fit) == 20

    async def test_replace_takes_the_next_version_only(self, store: Store) -> None:
        await store.create(job())
        second = job().cancelling()
        assert await store.replace(second)
        assert not await store.replace(job().with_progress(Progress(0.5)))
        assert await store.get("a") == second

    async def test_of_many_replacers_one_wins(self, store: Store) -> None:
        await store.create(job())
        outcomes = []

        async def replace(number: int) -> None:
            outcomes.append(await store.replace(job().with_progress(Progress(0.0, str(number)))))

        async with anyio.create_task_group() as group:
            for number in range(50):
                group.start_soon(replace, number)
        assert sorted(outcomes) == [False] * 49 + [True]

    async def test_replace_of_an_unknown_job_changes_nothing(self, store: Store) -> None:
        assert not await store.replace(job().cancelling())
        assert await store.get("a") is None

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

    async def test_who_claims_a_job_that_waits_runs_it(self, store: Store) -> None:
        new = waiting(holder="there", queue="q", owner="ü", extra={"minor": [1]}, orphaned_at=9.5)
        await store.create(new, request(), keys=(Key("k", lasting=False),))
        runs = new.start(1001.5, 'hére "1"')
        begun = await claim(store, routes=("s", "r"), holder=runs.holder)
        assert begun == Claim(runs, request(), True)
        assert await store.get("a") == runs
        assert await store.find("k") == (runs, None)
        assert await store.renew({"a": new.fence}, 60.0) == {}
        assert await store.renew({"a": runs.fence}, 60.0) == {"a": State.RUNNING}
        assert not await store.append_body("a", new.fence, 0, b"x")
        assert await store.append_body("a", runs.fence, 0, b"x")
        assert not await store.replace(new.start(1002.0))
        stopping = runs.cancelling()
        assert await store.replace(stopping)
        assert await store.get("a") == stopping
        assert await store.replace(finished(stopping))

    async def test_who_has_lost_a_claim_asks_again(self, store: Store) -> None:
        if keeps(store, "claim"):
            return
        for max_runs in (1, 2):
            new = waiting(f"{max_runs}", max_runs=max_runs)
            await store.create(new, request())
            begun = Claim(new.start(1001.5, "here"), request(), True)
            for _ in range(3):
                assert await claim(store, new.id) == begun
            others = Claim(begun.job, None, False)
            assert await claim(store, new.id, holder="there") == others
            assert await claim(store, new.id, now=1001.75) == others
            assert await store.get(new.id) == begun.job
            assert await claim(store, new.id) == begun

    async def test_a_claimed_request_is_dropped_with_the_version_after(self, store: Store) -> None:
        later: list[Callable[[Job], Job]] = [
            lambda runs: runs.with_progress(Progress(0.5)),
            lambda runs: runs.cancelling(),
            lambda runs: runs.shared(1),
            lambda runs: finished(runs, size=0),
        ]
        for number, change in enumerate(later):
            id = str(number)
            await store.create(waiting(id), request())
            assert await claim(store, id)
            assert await store.request(id) is None
            version = change(waiting(id).start(1001.5, "here"))
            assert await store.replace(version)
            assert await store.request(id) is None
            assert await claim(store, id) == Claim(version, None, False)

    async def test_a_claimed_request_stays_for_a_run_that_is_still_to_come(
        self, store: Store
    ) -> None:
        if keeps(store, "claim"):
            return
        new = waiting(max_runs=2)
        await store.create(new, request())
        first = new.start(1001.5, "here")
        assert await claim(store) == Claim(first, request(), True)
        assert await store.request("a") == request()
        assert await store.replace(first.requeue())
        second = first.requeue().start(1002.5, "there")
        begun = Claim(second, request(), True)
        assert await claim(store, now=1002.5, holder="there") == begun
        assert await store.request("a") is None
        assert await claim(store, now=1002.5, holder="there") == begun

    async def test_what_cannot_begin_is_left_as_it_is(self, store: Store) -> None:
        running = job("runs", replayable=True, max_runs=2)
        kept = {
            "of another route": waiting("of another route", route="s"),
            "not yet": waiting("not yet", not_before=1001.75),
            "without a request": waiting("without a request", replayable=False),
            "runs": running,
            "stops": running._replace(id="stops", state=State.CANCELLING),
        }
        for new in kept.values():
            await store.create(new, request(), lease=0.0)
        await store.create(running._replace(id="ended"), request())
        kept["ended"] = finished(running._replace(id="ended"))
        assert await store.replace(kept["ended"])
        for id, there in kept.items():
            assert await claim(store, id, lease=60.0) == Claim(there, None, False)
            assert await store.get(id) == there
            assert await store.request(id) == (request() if there.replayable else None)
        assert {each.id async for each in store.abandoned()} == kept.keys() - {"ended"}
        assert await claim(store, "runs", routes=()) == Claim(running, None, False)

    async def test_a_job_does_not_begin_before_its_time(self, store: Store) -> None:
        for id, not_before in (("a", 1001.5), ("b", 1001.25)):
            new = waiting(id, not_before=not_before)
            await store.create(new, request())
            assert await claim(store, id, now=1001.0) == Claim(new, None, False)
            assert await claim(store, id) == Claim(new.start(1001.5, "here"), request(), True)
        again = waiting("c", max_runs=2).start(1001.0).requeue()._replace(not_before=1003.5)
        await store.create(again._replace(version=1, not_before=None), request())
        later = again._replace(version=2)
        assert await store.replace(later)
        assert await claim(store, "c", now=1003.0) == Claim(later, None, False)
        begun = await claim(store, "c", now=1003.5)
        assert begun == Claim(later.start(1003.5, "here"), request(), True)
        assert begun.job.not_before is None

    async def test_what_is_not_there_cannot_be_claimed(self, store: Store) -> None:
        assert await claim(store, "unknown") is None
        await store.create(waiting(), request())
        await store.replace(waiting().tombstone(1000.0, 60.0))
        assert await claim(store) is None

    async def test_a_claim_is_held_for_its_lease(self, store: Store) -> None:
        for id in "abcd":
            await store.create(waiting(id), request(), lease=60.0 if id in "cd" else 0.0)
        leases = {"a": 60.0, "b": None, "c": None, "d": 0.0}
        for id, lease in leases.items():
            begun = await claim(store, id, lease=lease)
            assert begun is not None
            assert begun.begun
        assert {each.id async for each in store.abandoned()} == {"b", "d"}

    async def test_of_many_who_claim_a_job_one_runs_it(self, store: Store) -> None:
        await store.create(waiting(max_runs=2), request())
        told = []

        async def ask(number: int) -> None:
            told.append(await claim(store, holder=str(number)))

        async with anyio.create_task_group() as group:
            for number in range(30):
                group.start_soon(ask, number)
        (begun,) = [each for each in told if each is not None and each.begun]
        assert begun.request == request()
        assert begun.job == await store.get("a")
        assert [each for each in told if each != begun] == [Claim(begun.job, None, False)] * 29

    async def test_a_claim_wakes_who_waits(self, store: Store) -> None:
        await store.create(waiting(), request())
        seen = []

        async def watch() -> None:
            seen.append(await store.changed("a", 1))

        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            group.start_soon(watch)
            await anyio.wait_all_tasks_blocked()
            assert await claim(store)
        assert seen == [waiting().start(1001.5, "here")] * 2

    async def test_a_claimed_job_counts_with_those_that_run(self, store: Store) -> None:
        one = Bounds(route=1, owner=1)
        await store.create(waiting(owner="ann"), request())
        assert not await fits(store, waiting("b", owner="ann"), one)
        assert await fits(store, job("c", owner="ann"), one)
        assert await store.replace(finished(job("c", owner="ann")))
        assert await claim(store)
        assert await fits(store, waiting("b", owner="ann"), one)
        assert not await fits(store, job("d", owner="ann"), one)
        assert await store.replace(finished(waiting(owner="ann").start(1001.5, "here")))
        assert await fits(store, job("d", owner="ann"), one)

    async def test_a_claimed_job_has_a_body_of_its_own(self, store: Store) -> None:
        await store.create(waiting(), request())
        head = Head(200, ())
        assert await store.append_body("a", 1, 0, b"of nobody", head=head)
        assert await claim(store)
        runs = waiting().start(1001.5, "here")
        assert await body_of(store, "a") == b""
        assert await store.partial("a") == Partial(runs, None, 0)
        assert await store.append_body("a", 2, 0, b"one")
        assert await body_of(store, "a") == b"one"

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

    async def test_jobs_are_listed_newest_first(self, store: Store) -> None:
        assert await pages(store) == []
        assert await store.totals() == {}
        jobs = await many_kinds(store)
        assert [*(await store.list()).jobs] == jobs
        assert (await store.list()).after is None
        for limit in (1, 5, 47, 48, 49):
            assert await pages(store, limit) == jobs
        assert [*(await store.list(limit=5)).jobs] == jobs[:5]

    async def test_jobs_are_listed_by_what_they_are(self, store: Store) -> None:
        jobs = await many_kinds(store)
        ended = {State.FAILED, State.SUCCEEDED}
        for states in ((), [State.QUEUED], {State.RUNNING, State.CANCELLING}, ended):
            for route in (None, "r0", "r1", "r"):
                for owner in (None, "ann", "bob ü", ""):
                    for since, until in ((None, None), (1002.0, None), (None, 1006.0), (1e3, 1e3)):
                        expected = [
                            each
                            for each in jobs
                            if (not states or each.state in states)
                            and (route is None or each.route == route)
                            and (owner is None or each.owner == owner)
                            and (since is None or each.created_at >= since)
                            and (until is None or each.created_at < until)
                        ]
                        of: dict[str, Any] = {"states": states, "route": route, "owner": owner}
                        of |= {"since": since, "until": until}
                        assert [*(await store.list(**of)).jobs] == expected
                        if len(expected) > 5:
                            assert await pages(store, 5, **of) == expected

    async def test_a_list_goes_on_whatever_becomes_of_its_jobs(self, store: Store) -> None:
        """None that stays is missed or shown twice."""
        jobs = [waiting(f"{n:02}", created_at=1000.0 + n // 2) for n in range(30)]
        for each in jobs:
            await store.create(each, request())
        stay = [each.id for n, each in enumerate(jobs) if n % 3]
        page = await store.list(limit=4, states=(State.QUEUED,))
        shown = [each.id for each in page.jobs]
        for n in range(27, -1, -3):  # what a page ended with among them
            assert page.after is not None
            version = jobs[n].start(1100.0)
            for later in (version, finished(version), finished(version).tombstone(1100.0, 0.0)):
                assert await store.replace(later)
                if n % 2:
                    break
            await store.sweep(1100.0)
            await store.create(waiting(f"new {n}", created_at=1200.0 + n), request())
            await store.create(waiting(f"00 {n}", created_at=1014.0), request())
            page = await store.list(limit=4, states=(State.QUEUED,), after=page.after)
            shown += [each.id for each in page.jobs]
            if page.after is None:
                break
        seen = [id for id in shown if id in stay]
        assert seen == stay[::-1]
        assert len(shown) == len(set(shown))
        assert not [id for id in shown if id.startswith("new")]

    async def test_a_list_shows_what_became_of_its_jobs(self, store: Store) -> None:
        await store.create(waiting(), request())
        await store.create(waiting("b", created_at=999.0), request())
        assert await claim(store)
        runs = waiting().start(1001.5, "here")
        assert [*(await store.list(states=(State.RUNNING,))).jobs] == [runs]
        assert [each.id for each in (await store.list(states=(State.QUEUED,))).jobs] == ["b"]
        assert await store.totals() == {
            ("r", State.RUNNING): Total(1, 1000.0, 0.0),
            ("r", State.QUEUED): Total(1, 999.0, 0.0),
        }
        assert await store.replace(runs.cancelling())
        assert await store.replace(finished(runs.cancelling(), 1003.0))
        assert await pages(store, states=(State.RUNNING, State.CANCELLING)) == []
        assert [each.id for each in (await store.list()).jobs] == ["a", "b"]
        await store.sweep(1063.0)
        assert [each.id for each in (await store.list()).jobs] == ["b"]

    async def test_a_list_does_not_go_on_after_just_anything(self, store: Store) -> None:
        await store.create(job())
        for after in ("", "a", "~", "ü", "\0", "9" * 99, "1000.0", "nan~a", "\udc80"):
            try:
                await store.list(after=after)
            except MalformedCursor:
                continue
            raise AssertionError(f"it went on after {after!r}")

    async def test_jobs_are_counted_by_route_and_state(self, store: Store) -> None:
        jobs = await many_kinds(store)
        expected: dict[tuple[str, State], Total] = {}
        for each in jobs:
            count, oldest, seconds = 0, each.created_at, 0.0
            if (known := expected.get((each.route, each.state))) is not None:
                count, seconds = known.count, known.seconds
            if each.finished_at is not None and each.started_at is not None:
                seconds += each.finished_at - each.started_at
            expected[each.route, each.state] = Total(count + 1, oldest, seconds)
        assert await store.totals() == expected
        assert {state for _, state in expected} == set(State) - {State.CANCELLED}

    async def test_what_is_forgotten_counts_no_more(self, store: Store) -> None:
        ends = (1004.5, 1003.0, 1002.25)
        for n, end in enumerate(ends):
            new = waiting(f"{n}", created_at=1000.0 - n)
            await store.create(new, request())
            assert await store.replace(new.start(1002.0))
            assert await store.replace(finished(new.start(1002.0), end))
        await store.create(waiting("never ran", created_at=990.0), request())
        assert await store.replace(finished(waiting("never ran", created_at=990.0), 1009.0))
        failed = "r", State.FAILED
        assert await store.totals() == {failed: Total(4, 990.0, 3.75)}
        await store.sweep(1062.25)
        assert await store.totals() == {failed: Total(3, 990.0, 3.5)}
        await store.replace(
            finished(waiting("never ran", created_at=990.0), 1009.0).tombstone(1063.0)
        )
        assert await store.totals() == {failed: Total(2, 999.0, 3.5)}
        for now in (1063.0, 1200.0, 1200.0):
            await store.sweep(now)
        assert await store.totals() == {}
        assert await pages(store) == []

    async def test_changed_answers_at_once_if_it_is_newer(self, store: Store) -> None:
        await store.create(job())
        assert await store.changed("a", 0) == job()

    async def test_changed_of_an_unknown_job_is_none(self, store: Store) -> None:
        assert await store.changed("a", 0) is None

    async def test_changed_wakes_everybody_who_waits(self, store: Store) -> None:
        await store.create(job())
        seen = []

        async def watch() -> None:
            seen.append(await store.changed("a", 1))

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(watch)
            await anyio.wait_all_tasks_blocked()
            assert seen == []
            assert await store.replace(job().cancelling())
        assert seen == [job().cancelling()] * 5

    async def test_waiting_can_be_cancelled(self, store: Store) -> None:
        await store.create(job())
        with anyio.move_on_after(0.01) as scope:
            await store.changed("a", 1)
        assert scope.cancelled_caught
        assert await store.replace(job().cancelling())

    async def test_what_nobody_holds_is_abandoned(self, store: Store) -> None:
        for id in "abcd":
            await store.create(job(id), lease=0.0)
        await store.create(job("q", state=State.QUEUED, fence=0), lease=0.0)
        await store.create(job("held"), lease=60.0)
        await store.create(job("without a lease"))
        assert {job.id async for job in store.abandoned()} == {*"abcd", "q"}
        await store.replace(finished(job("b")))
        await store.replace(job("c").tombstone(1000.0, 60.0))
        await store.replace(job("d").cancelling(), lease=60.0)
        assert await store.renew({"q": 0}, 60.0) == {"q": State.QUEUED}
        assert {job.id async for job in store.abandoned()} == {"a"}

    async def test_a_new_version_leaves_the_lease_as_it_is(self, store: Store) -> None:
        await store.create(job("a"), lease=0.0)
        await store.create(job("b"), lease=60.0)
        for id in "ab":
            await store.replace(job(id).with_progress(Progress(0.5)))
        assert {job.id async for job in store.abandoned()} == {"a"}
        await store.replace(job("b").with_progress(Progress(0.5)).cancelling(), lease=0.0)
        assert {job.id async for job in store.abandoned()} == {"a", "b"}

    async def test_a_lease_ends(self, store: Store) -> None:
        await store.create(job(), lease=0.02)
        for _ in range(100):
            await anyio.sleep(0.03)
            if found := [each async for each in store.abandoned()]:
                break
        assert [each.job for each in found] == [job()]
        assert found[0].idle >= 0.0

    async def test_only_who_holds_a_job_renews_its_lease(self, store: Store) -> None:
        await store.create(job("stale", fence=2), lease=0.0)
        await store.create(job("ended"), lease=0.0)
        await store.replace(finished(job("ended")))
        await store.create(job("gone"), lease=0.0)
        await store.replace(job("gone").tombstone(1000.0, 60.0))
        await store.create(job("stopping"), lease=0.0)
        await store.replace(job("stopping").cancelling())
        ids = ("stale", "ended", "gone", "stopping", "unknown")
        held = await store.renew(dict.fromkeys(ids, 1), 60.0)
        assert held == {"stopping": State.CANCELLING}
        assert {job.id async for job in store.abandoned()} == {"stale"}
        assert await store.get("stopping") == job("stopping").cancelling()

    async def test_nothing_to_renew(self, store: Store) -> None:
        assert await store.renew({}, 60.0) == {}

    async def test_a_job_that_ends_without_a_response_keeps_nothing_of_one(
        self, store: Store
    ) -> None:
        await store.create(job())
        await store.create(job("b"))
        for id in "ab":
            await store.append_body(id, 1, 0, b"x" * PIECE)
        assert await store.replace(finished(job()))
        cancelled = job("b").finish(State.CANCELLED, 1000.0, ttl=60.0, tombstone_ttl=60.0)
        assert await store.replace(cancelled)
        assert [await body_of(store, id) for id in "ab"] == [b"", b""]

    async def test_a_tombstone_drops_the_body(self, store: Store) -> None:
        await store.create(job())
        await store.append_body("a", 1, 0, b"x")
        tombstone = job().tombstone(1000.0, 60.0)
        assert await store.replace(tombstone)
        assert await store.get("a") == tombstone
        assert await body_of(store, "a") == b""
        assert not await store.append_body("a", 1, 0, b"x")
        assert await body_of(store, "a") == b""

    async def test_a_sweep_leaves_what_has_not_expired(self, store: Store) -> None:
        await store.create(job())
        await store.create(job("b"))
        done = finished(job("b"), ttl=60.0, size=1)
        await store.append_body("b", 1, 0, b"x")
        await store.replace(done)
        assert await store.sweep(1059.9)
        assert await store.get("a") == job()
        assert await store.get("b") == done
        assert await body_of(store, "b") == b"x"

    async def test_a_sweep_buries_what_has_expired_and_then_forgets_it(self, store: Store) -> None:
        await store.create(job())
        await store.append_body("a", 1, 0, b"x")
        await store.replace(finished(job(), ttl=60.0, tombstone_ttl=60.0))
        assert await store.sweep(1060.0)
        tombstone = await store.get("a")
        assert tombstone is not None
        assert tombstone.gone
        assert tombstone.error is None
        assert await body_of(store, "a") == b""
        assert not await store.sweep(1120.0)
        assert await store.get("a") is None

    async def test_a_buried_job_wakes_those_who_wait(self, store: Store) -> None:
        await store.create(job())
        done = finished(job())
        await store.replace(done)

        async with anyio.create_task_group() as group:

            async def watch() -> None:
                newest = await store.changed("a", done.version)
                assert newest is not None
                assert newest.gone

            group.start_soon(watch)
            await anyio.wait_all_tasks_blocked()
            await store.sweep(1060.0)

    async def test_a_forgotten_job_wakes_those_who_wait(self, store: Store) -> None:
        await store.create(job())
        tombstone = job().tombstone(1000.0, 60.0)
        await store.replace(tombstone)

        async with anyio.create_task_group() as group:

            async def watch() -> None:
                assert await store.changed("a", tombstone.version) is None

            group.start_soon(watch)
            await anyio.wait_all_tasks_blocked()
            await store.sweep(1060.0)

    async def test_a_closed_store_can_be_used_again(self, store: Store) -> None:
        await store.create(job())
        await store.aclose()
        await store.create(job("b"))
        assert await store.get("b") == job("b")


class RunnerContract:
    """What every runner promises. Subclass it, with a fixture `runner`.

    For one whose jobs run in the workers of an engine, override `workers`, too.
    """

    @asynccontextmanager
    async def workers(self, runner: Runner) -> AsyncIterator[None]:
        """Let the engine's workers run, in this process, while a test does."""
        yield

    async def test_every_submitted_job_runs(self, runner: Runner) -> None:
        wanted = {str(number) for number in range(20)}
        begun, all_of_them = set[str](), anyio.Event()

        async def run(id: str) -> None:
            begun.add(id)
            if begun == wanted:
                all_of_them.set()

        async with self._bound(runner, run):
            for id in wanted:
                await runner.submit(id)
            with anyio.fail_after(10):
                await all_of_them.wait()

    async def test_jobs_run_side_by_side(self, runner: Runner) -> None:
        both = anyio.Event()
        running: set[str] = set()

        async def run(id: str) -> None:
            running.add(id)
            if len(running) == 2:
                both.set()
            with anyio.fail_after(10):
                await both.wait()

        async with self._bound(runner, run):
            await runner.submit("a")
            await runner.submit("b")
            with anyio.fail_after(10):
                await both.wait()

    async def test_a_cancelled_job_is_told_to_stop(self, runner: Runner) -> None:
        started, told = anyio.Event(), anyio.Event()

        async def run(id: str) -> None:
            started.set()
            with anyio.fail_after(10):
                await told.wait()

        def stop(id: str) -> None:
            assert id == "a"
            told.set()

        async with self._bound(runner, run, stop):
            await runner.submit("a")
            with anyio.fail_after(10):
                await started.wait()
            await runner.cancel("a")

    async def test_cancelling_what_does_not_run_is_no_error(self, runner: Runner) -> None:
        async def run(id: str) -> None:
            raise AssertionError("nothing was submitted")

        async with self._bound(runner, run):
            await runner.cancel("unknown")

    async def test_it_can_be_opened_again(self, runner: Runner) -> None:
        await runner.open()
        await runner.aclose()
        await self.test_every_submitted_job_runs(runner)

    @asynccontextmanager
    async def _bound(
        self, runner: Runner, run: Run, stop: Stop = lambda _: None
    ) -> AsyncIterator[None]:
        """A runner that is bound and open, until its runs have ended."""
        async with anyio.create_task_group() as group:

            def spawn(run: Run, id: str) -> None:
                group.start_soon(run, id)

            runner.bind(run, stop, spawn)
            await runner.open()
            async with self.workers(runner):
                yield
            await runner.aclose()
