"""A store that fails or hangs at its n-th call, and requests that are cancelled at every step.

Each scenario is run again and again, for each of the calls that it makes. Whatever fails: the
client is told so by a 5xx, or its 202 is true and the job ends with the handler's own outcome; and
in the end nothing is left, no task, no place and no record.

All of it on a store of one process, and on one that is shared: there leases are renewed, abandoned
jobs looked for, and calls bounded, so that a call may hang for ever.

By default each call and each step is tried once: on one of the two event loops and with one of the
two kinds of stores, in turn; and of what is done from time to time, with nothing else between, the
first and the last. What is tried on trio is among the slow tests. The long run, of everything with
everything, takes minutes:

    RAINCHECK_FAULTS=long pytest tests/test_faults.py
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raincheck import (
    Job,
    Jobs,
    Limits,
    LongRunningMiddleware,
    MemoryStore,
    Policy,
    State,
    current_job,
    report,
)
from raincheck.errors import StoreError
from raincheck.messages import CapturedRequest
from raincheck.runtime.expiry import SWEEP_INTERVAL
from raincheck.runtime.leases import BEAT, LOOKS
from raincheck.runtime.recorder import PIECE
from raincheck.stores.base import Abandoned
from raincheck.testing import lifespan
from tests.conftest import long, virtual_jobs
from tests.doubles.stores import DamagedStore, TrickyStore
from tests.support import RawRequest, settled, slow_route, unfinished

LONG = long("FAULTS")

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(1200 if LONG else 120)]

POLL = 30.0
STORE_TIMEOUT = 3.0
LEASE = 60.0

LIMITS = Limits(
    max_running=1,
    max_queued=1,
    drain_timeout=5,
    tombstone_ttl=12,
    lease=LEASE,
    store_timeout=STORE_TIMEOUT,
)
"""A single place to run and to wait: one that leaks is missed at once."""


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Every call that fails is logged with its trace, thousands of times."""
    caplog.set_level(logging.CRITICAL, "raincheck")


# --- stores ---------------------------------------------------------------------------------------


SHARED = pytest.mark.parametrize("shared", [False, True])

Turns = Callable[[int], bool]
"""Whether it is this test's turn at what has that number."""


@pytest.fixture
def turns(request: pytest.FixtureRequest, anyio_backend_name: str) -> Turns:
    """By event loop, and by the kind of store where there are two."""
    ways, own = 2, int(anyio_backend_name == "trio")
    for name in ("shared", "acknowledges"):
        if (kind := request.node.callspec.params.get(name)) is not None:
            ways, own = 2 * ways, 2 * own + kind
    return lambda number: LONG or number % ways == own


class Nth:
    """Fails or hangs at the n-th call, and only there.

    Args:
        n: which call, from 1; infinity for none.
        hangs: for ever, instead of failing.

    Attributes:
        armed: whether calls count.
    """

    def __init__(self, n: float, *, hangs: bool = False) -> None:
        self._n = n
        self._hangs = hangs
        self.calls: list[str] = []
        self.armed = True

    async def __call__(self, call: str, /, *arguments: Any, **more: Any) -> None:
        if not self.armed:
            return
        self.calls.append(call)
        if len(self.calls) == self._n:
            if not self._hangs:
                raise OSError("the disk is away")
            await anyio.sleep_forever()

    def __str__(self) -> str:
        return f"call {self._n} of {self.calls}"


REFUSED, LOST, HANGS = "refuses it", "does it and cannot say so", "lets it hang"


class Outage(Nth):
    """Is away from the n-th call on.

    Args:
        n: which call, from 1.
        length: seconds.
        first: what becomes of that call: REFUSED, LOST or HANGS. The others fail, or hang as well.
    """

    def __init__(self, n: float, length: float, first: str) -> None:
        super().__init__(n, hangs=first == HANGS)
        self._length = length
        self._first = first
        self._losing: str | None = None
        self._until: float | None = None

    async def __call__(self, call: str, /, *arguments: Any, **more: Any) -> None:
        if not self.armed:
            return
        self.calls.append(call)
        if len(self.calls) == self._n:
            if self._first == LOST:
                self._losing = call
                return
            self._until = anyio.current_time() + self._length
        if self._until is not None and anyio.current_time() < self._until:
            await self._fail()

    async def after(self, call: str, /, *arguments: Any, **more: Any) -> None:
        if self._losing == call:
            self._losing = None
            self._until = anyio.current_time() + self._length
            await self._fail()

    async def _fail(self) -> None:
        if self._hangs:
            await anyio.sleep_forever()
        raise OSError("the disk is away")

    def __str__(self) -> str:
        return f"{super().__str__()}, for {self._length} seconds, the first {self._first}"


# --- a client that sees everything ---------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What a server would have sent.

    Attributes:
        status: the status; 500 if the app raised, as servers say then.
        broken: the app raised after the start: the connection would have been cut.
    """

    status: int
    headers: dict[bytes, bytes]
    body: bytes
    broken: bool = False

    @property
    def final(self) -> bool:
        """Whether it tells how the job has ended, which is no failure to ask."""
        return b"job-status" in self.headers and not self.broken


async def ask(app: ASGIApp, path: str, method: str = "GET", **headers: str) -> Answer:
    request = RawRequest(path, method, **headers)
    request.feed(b"body")
    try:
        await request.run(app)
    except (
        OSError,
        StoreError,
    ):  # a server logs it and answers 500, or cuts a response that has begun
        return Answer(500, {}, b"", broken=bool(request.sent))
    return answer_to(request)


def answer_to(request: RawRequest) -> Answer:
    assert request.status is not None
    assert not request.sent[-1].get("more_body")
    return Answer(request.status, dict(request.sent[0]["headers"]), request.body)


class Client:
    """Asks again when it is told of a failure, as clients do.

    Attributes:
        failures: how often it was told.
        longest: seconds that an answer took beyond those that it was asked to wait for.
        told: the ids of the jobs that it knows of.
        tries: how often it asks before it gives up.
    """

    def __init__(self, app: ASGIApp, tries: int = 3) -> None:
        self._app = app
        self.tries = tries
        self.failures = 0
        self.longest = 0.0
        self.told: set[str] = set()

    async def ask(
        self, path: str, method: str = "GET", *, key: str = "", wait: float = 0.0
    ) -> Answer:
        headers = {"idempotency_key": key} if key else {}
        if wait:
            headers["prefer"] = f"wait={wait:g}"
        for _ in range(self.tries):
            start = anyio.current_time()
            answer = await ask(self._app, path, method, **headers)
            self.longest = max(self.longest, anyio.current_time() - start - wait)
            if answer.status < 500 or answer.final:
                return answer
            self.failures += 1
            await anyio.sleep(5)
        raise AssertionError(f"{method} {path} failed {self.tries} times")

    async def submit(self, path: str, key: str = "") -> str:
        """The status URL of a job."""
        answer = await self.ask(path, "POST", key=key)
        assert answer.status == 202
        url = answer.headers[b"location"].decode()
        self.told.add(url.rpartition("/")[2])
        return url

    async def follow(self, url: str) -> Answer:
        """What the status URL becomes."""
        for _ in range(200):
            answer = await self.ask(url, wait=POLL)
            if answer.status != 202:
                return answer
        raise AssertionError("the job has not ended")

    async def delete(self, url: str) -> None:
        """Forget a job; to be told that it is gone already is as good."""
        failures = self.failures
        status = (await self.ask(url, "DELETE")).status
        lost = self.failures > failures  # it may have been done, and its tombstone be gone by then
        assert status in (202, 204, 410) or (lost and status == 404)
        assert (await self.ask(url)).status in (404, 410)  # its tombstone may be gone by then


# --- scenarios -----------------------------------------------------------------------------------


BODY = b"0" * PIECE + b"1" * PIECE + b"23"
"""Two pieces that are kept while the handler runs, and a tail that comes with the outcome."""


class InParts(Response):
    """A body of several messages, and no generator that a failing `send` would leave open."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in (b"0" * PIECE, b"1" * PIECE, b"2", b"3"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body"})


class House:
    """An app with routes for all scenarios.

    Attributes:
        app: the app.
        jobs: its jobs.
        ran: the ids of the jobs whose handlers were entered, in order.
        ran_in_place: how often a handler was whose client waited for it.
    """

    def __init__(self, jobs: Jobs, ttl: float = 60) -> None:
        self.jobs = jobs
        self.ran: list[str] = []
        self.ran_in_place = 0
        routes = [
            slow_route(self.work, "/work", ttl=ttl),
            slow_route(self.work, "/held", ttl=ttl, hold=True),
            slow_route(self.work, "/in-time", ttl=ttl, wait=10),
            slow_route(self.work, "/again", ttl=ttl, on_interrupt="rerun"),
            slow_route(self.work_long, "/shared", ttl=ttl, coalesce=True),
            slow_route(self.work_once, "/kept", ttl=ttl, respond="preferred"),
            slow_route(self.never, "/never", ttl=ttl),
            slow_route(self.never, "/late", ttl=ttl, timeout=5),
            slow_route(self.last, "/last", ttl=1),
            Route("/ruled", self.work, methods=["POST"]),
        ]
        self.app = LongRunningMiddleware(
            Starlette(routes=routes), routes={RULE: Policy(ttl=ttl)}, jobs=jobs
        )

    def _enter(self) -> None:
        job = current_job()
        assert job is not None
        self.ran.append(job.id)

    async def work(self, request: Request) -> Response:
        self._enter()
        report(0.5, "half of it")
        assert await request.body() == b"body"
        await anyio.sleep(1)
        return InParts()

    async def work_long(self, request: Request) -> Response:
        await anyio.sleep(20)
        return await self.work(request)

    async def work_once(self, request: Request) -> Response:
        self.ran_in_place += 1
        return InParts()

    async def never(self, request: Request) -> None:
        self._enter()
        await anyio.sleep_forever()

    async def last(self, request: Request) -> Response:
        await anyio.sleep(1)
        return Response()


RULE = "POST /ruled"


def check_end(answer: Answer) -> None:
    """The job ended with its response, the whole of it."""
    assert (answer.status, answer.final) == (200, True)
    assert answer.body == BODY


async def run_and_poll(client: Client, path: str) -> None:
    url = await client.submit(path)
    assert (await client.ask(url + "/status")).status == 200
    check_end(await client.follow(url))
    assert (await client.ask(url + "/cancel", "POST")).status == 409
    await client.delete(url)


async def finish(client: Client) -> None:
    """Submit, progress, finish, poll, cancel in vain, delete."""
    await run_and_poll(client, "/work")


async def finish_by_rule(client: Client) -> None:
    """The same on a path rule."""
    await run_and_poll(client, "/ruled")


async def answer_in_time(client: Client) -> None:
    """A response within its grace, of which the client never learns that it was a job's."""
    answer = await client.ask("/in-time", "POST", wait=10)
    if answer.status == 202:
        url = answer.headers[b"location"].decode()
        check_end(await client.follow(url))
        await client.delete(url)
    else:
        assert (answer.status, answer.body) == (200, BODY)


async def time_out(client: Client) -> None:
    """A handler that takes too long."""
    url = await client.submit("/late")
    assert (await client.follow(url)).status == 504
    await client.delete(url)


async def cancel_running(client: Client) -> None:
    """Cancel what runs, see it cancelled, delete it."""
    url = await client.submit("/never")
    assert (await client.ask(url + "/cancel", "POST")).status in (200, 202)
    assert (await client.follow(url)).status == 410
    await client.delete(url)


async def delete_running(client: Client) -> None:
    """Delete what runs."""
    await client.delete(await client.submit("/never"))


async def wait_for_a_turn(client: Client) -> None:
    """Two jobs and one place: the second is replayed."""
    urls = [await client.submit("/work") for _ in range(2)]
    for url in urls:
        check_end(await client.follow(url))
        await client.delete(url)


async def hold_for_a_turn(client: Client) -> None:
    """The same with a live request that waits."""
    urls = [await client.submit("/held") for _ in range(2)]
    for url in urls:
        check_end(await client.follow(url))
        await client.delete(url)


async def delete_waiting(client: Client) -> None:
    """Delete what waits, and what runs."""
    urls = [await client.submit("/never") for _ in range(2)]
    for url in reversed(urls):
        await client.delete(url)


async def cancel_waiting(client: Client) -> None:
    """Cancel what waits, and what runs; whoever comes next has both places."""
    urls = [await client.submit("/never") for _ in range(2)]
    for url in reversed(urls):
        assert (await client.ask(url + "/cancel", "POST")).status in (200, 202)
    for url in urls:
        assert (await client.follow(url)).status == 410
        await client.delete(url)


async def finish_what_may_run_again(client: Client) -> None:
    """The same with a captured request that is kept while it runs, on a store that is shared."""
    await run_and_poll(client, "/again")


async def ask_again_under_a_key(client: Client) -> None:
    """As a client does that has lost the answer: one job."""
    urls = {await client.submit("/work", "k") for _ in range(2)}
    (url,) = urls
    check_end(await client.follow(url))
    assert await client.submit("/work", "k") == url
    await client.delete(url)


async def share_a_run(client: Client) -> None:
    """Two that ask for the same at once."""
    urls = {await client.submit("/shared") for _ in range(2)}
    (url,) = urls
    check_end(await client.follow(url))
    assert (await client.ask(url, "DELETE")).status == 204  # it goes with its time: two share it


async def answer_under_a_key(client: Client) -> None:
    """An answer in place, and once more to the same key: itself, or that it was not kept."""
    first, again = [await client.ask("/kept", "POST", key="k") for _ in range(2)]
    assert (first.status, first.body) == (200, BODY)
    assert again.body == BODY or (again.status, again.final) == (500, True)


Scenario = Callable[[Client], Awaitable[None]]
SomeNth = TypeVar("SomeNth", bound=Nth)

SCENARIOS: list[Scenario] = [
    *(finish, finish_by_rule, finish_what_may_run_again, answer_in_time, time_out),
    *(cancel_running, delete_running, delete_waiting, cancel_waiting),
    *(wait_for_a_turn, hold_for_a_turn, ask_again_under_a_key, share_a_run),
    answer_under_a_key,
]


async def leave_jobs(store: MemoryStore) -> None:
    """What a process that has died leaves to others."""
    request = CapturedRequest("POST", "/ruled", b"/ruled", b"", (), b"body")
    queued = Job("waited", RULE, State.QUEUED, 1000.0, replayable=True, holder="the dead")
    for id in ("waited", "more"):
        await store.create(queued._replace(id=id), request, lease=0.0)
    for id, most in (("last", 1), ("again", 2), ("stopping", 3)):
        job = queued._replace(id=id, max_runs=most)
        await store.create(job, request, lease=0.0)
        await store.replace(job.start(1001.0, "the dead"))
    running = await store.get("stopping")
    assert running is not None
    await store.replace(running.cancelling())


async def take_over(client: Client) -> None:
    """A process that finds what another one has left, more than it has room for."""

    async def see_the_end_of(id: str, status: int) -> None:
        client.told.add(id)
        answer = await client.follow(f"/jobs/{id}")
        assert answer.status == status
        if status == 200:
            check_end(answer)
        problem = {200: b"", 502: b":problem:lost-worker", 410: b":problem:cancelled"}[status]
        assert problem in answer.body
        await client.delete(f"/jobs/{id}")

    ends = {"waited": 200, "more": 200, "again": 200, "last": 502, "stopping": 410}
    async with anyio.create_task_group() as group:
        for id, status in ends.items():
            group.start_soon(see_the_end_of, id, status)


async def play(
    scenario: Scenario, trick: Nth, store: TrickyStore, *, tries: int = 3, keep: float = 60
) -> tuple[float, float]:
    """Run a scenario on a new app, and check that nothing is left of it.

    Args:
        scenario: what happens.
        trick: what goes wrong.
        store: where.
        tries: how often its client asks before it gives up.
        keep: seconds that jobs are kept, and a fifth of them their tombstones.

    Returns:
        The seconds that it took, and those of its slowest answer.
    """
    limits = replace(LIMITS, tombstone_ttl=keep / 5)
    house = House(virtual_jobs(store=store, limits=limits), keep)
    client = Client(house.app, tries)
    trick.armed = False
    if scenario is take_over:
        await leave_jobs(store)
    trick.armed = True
    before = len(anyio.get_running_tasks())
    async with lifespan(house.app):
        start = anyio.current_time()
        with anyio.fail_after(3600):
            await scenario(client)
        took = anyio.current_time() - start
        await emptied(store, 3.5 * keep)  # tombstones are forgotten
        await anyio.sleep(LEASE / LOOKS)  # and are looked for once more
        trick.armed = False
        await anyio.sleep(100)
        if scenario is not answer_in_time:  # who is told of an error there knows of no job
            assert set(house.ran) <= client.told  # what was refused does not run
        await check_nothing_is_left(house, store, keep)
    await settled()
    assert len(anyio.get_running_tasks()) == before
    assert len(set(house.ran)) == len(house.ran)  # law 4: in place each of them runs once
    assert house.ran_in_place == (scenario is answer_under_a_key)
    return took, client.longest


async def check_nothing_is_left(house: House, store: MemoryStore, keep: float = 60) -> None:
    """Neither a record nor a place is taken; and the places are there for others."""
    now = house.jobs.statistics()
    assert (now.running, now.queued) == (0, 0)
    assert len(store) == 0
    assert store.size == 0
    assert [each async for each in store.abandoned()] == []
    answers = [await ask(house.app, "/last", "POST") for _ in range(3)]
    assert [answer.status for answer in answers] == [202, 202, 503]
    await emptied(store, 3.5 * keep)  # they have run and expired, and are forgotten
    assert len(store) == 0


async def emptied(store: MemoryStore, most: float) -> None:
    """Wait until nothing is stored, for so many seconds at most."""
    for _ in range(math.ceil(most / SWEEP_INTERVAL)):
        if len(store):
            await anyio.sleep(SWEEP_INTERVAL)


BACKGROUND = {"abandoned", "renew", "sweep"}
"""What is done from time to time."""


def differing(calls: list[str]) -> list[int]:
    """Numbers, from 1, of the calls that differ.

    Of those in the background, between any two others, the first and the last of each kind.
    """
    numbers: list[int] = []
    for background, row in groupby(enumerate(calls, 1), lambda numbered: numbered[1] in BACKGROUND):
        own = list(row)
        if background and not LONG:
            last = {call: n for n, call in own}
            first = {call: n for n, call in reversed(own)}
            numbers += sorted({*first.values(), *last.values()})
        else:
            numbers += [n for n, _ in own]
    return numbers


async def each_n(
    scenario: Scenario,
    turns: Turns,
    trick_of: Callable[[float], SomeNth],
    store_of: Callable[[SomeNth], TrickyStore],
    **settings: Any,
) -> list[tuple[float, float]]:
    """Play with each call of those that it makes; what each took, the first undisturbed."""
    undisturbed = trick_of(math.inf)
    took = [await play(scenario, undisturbed, store_of(undisturbed), **settings)]
    calls = differing(undisturbed.calls)
    assert len(calls) >= 8  # else nothing much is tried
    for n in filter(turns, calls):
        trick = trick_of(n)
        try:
            took.append(await play(scenario, trick, store_of(trick), **settings))
        except Exception as error:
            error.add_note(f"{scenario.__name__}, {trick}")
            raise
    return took


@pytest.mark.one_loop
@SHARED
@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_a_store_call_that_fails_costs_an_answer_at_most(
    scenario: Scenario, shared: bool, turns: Turns
) -> None:
    await each_n(scenario, turns, Nth, lambda nth: TrickyStore(nth, shared=shared))


@pytest.mark.one_loop
@SHARED
@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_a_lost_acknowledgement_costs_an_answer_at_most(
    scenario: Scenario, shared: bool, turns: Turns
) -> None:
    """The store did what it was asked, and then could not say so."""
    await each_n(scenario, turns, Nth, lambda nth: TrickyStore(after=nth, shared=shared))


def shared_store_of(acknowledges: bool) -> Callable[[Nth], TrickyStore]:
    """One that has not done what fails; or one that has, and does not acknowledge it."""
    if acknowledges:
        return lambda nth: TrickyStore(nth, shared=True)
    return lambda nth: TrickyStore(after=nth, shared=True)


@pytest.mark.slow
@pytest.mark.parametrize("acknowledges", [True, False])
@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_a_shared_stores_call_that_hangs_for_ever_costs_an_answer_at_most(
    scenario: Scenario, acknowledges: bool, turns: Turns
) -> None:
    """It counts as failed after `store_timeout`, whether the store had done it or not."""
    trick_of = partial(Nth, hangs=True)
    (undisturbed, _), *disturbed = await each_n(
        scenario, turns, trick_of, shared_store_of(acknowledges)
    )
    for took, longest in disturbed:
        assert longest <= STORE_TIMEOUT + 1  # nobody waits for an answer for longer
        assert took <= undisturbed + POLL + 1


@pytest.mark.one_loop
@pytest.mark.parametrize("hangs", [False, True])
@pytest.mark.parametrize("acknowledges", [True, False])
async def test_what_a_dead_process_left_is_taken_over_whatever_call_fails(
    acknowledges: bool, hangs: bool, turns: Turns
) -> None:
    trick_of = partial(Nth, hangs=hangs)
    (undisturbed, _), *disturbed = await each_n(
        take_over, turns, trick_of, shared_store_of(acknowledges)
    )
    for took, longest in disturbed:
        assert longest <= STORE_TIMEOUT + 1
        # Who does not know whether it has a job now finds it again when that lease has ended.
        assert took <= undisturbed + LEASE * 4 / 3


class SpoiltStore(DamagedStore):
    """One of whose records nobody can read after some calls.

    Args:
        id: whose.

    Attributes:
        calls_left: until then.
    """

    def __init__(self, id: str) -> None:
        super().__init__()
        self._id = id
        self.calls_left = math.inf

    def _count(self) -> None:
        self.calls_left -= 1
        if self.calls_left == 0:
            self.unreadable.add(self._id)

    @property
    def spoilt(self) -> bool:
        """Whether there were as many calls."""
        return self.calls_left <= 0

    async def get(self, id: str) -> Job | None:
        self._count()
        return await super().get(id)

    async def request(self, id: str) -> CapturedRequest | None:
        self._count()
        return await super().request(id)

    async def replace(self, job: Job, **settings: Any) -> bool:
        self._count()
        return await super().replace(job, **settings)

    async def renew(self, fences: Mapping[str, int], lease: float) -> dict[str, State]:
        self._count()
        return await super().renew(fences, lease)

    async def abandoned(self) -> AsyncIterator[Abandoned]:
        async for found in super().abandoned():
            self._count()
            yield found

    async def sweep(self, now: float) -> bool:
        self._count()
        return await super().sweep(now)


@pytest.mark.one_loop
@pytest.mark.parametrize("id", ["waited", "last", "again", "stopping"])
async def test_a_record_that_nobody_can_read_keeps_no_other_job_from_its_end(
    id: str, turns: Turns
) -> None:
    """Whenever it becomes so, of the jobs of a process that died."""
    n, spoilt = 0, True
    while spoilt:
        n += 1
        if not turns(n):
            continue
        store = SpoiltStore(id)
        await leave_jobs(store)
        store.calls_left = n
        limits = replace(LIMITS, abandon_after=100.0, max_running=2, max_queued=2)
        house = House(virtual_jobs(store=store, limits=limits))
        async with lifespan(house.app):
            ends = {"waited": 200, "more": 200, "again": 200, "last": 502, "stopping": 410}
            del ends[id]
            await anyio.sleep(50)  # less than a `ttl` after the first of them ends
            for other, status in ends.items():
                assert (await ask(house.app, f"/jobs/{other}")).status == status, (n, other)
            await anyio.sleep(400)
            now = house.jobs.statistics()
            assert (now.running, now.queued) == (0, 0), n
            assert len(store) == 0, n
            assert store.size == 0, n
        spoilt = store.spoilt and n < 200
    assert n >= 10


# --- a store that is away ------------------------------------------------------------------------

# Nobody else is there who could take jobs over; two of them are in `test_recovery.py`.
AWAY = (1.0, 10.0, LEASE - BEAT - STORE_TIMEOUT)
OUTAGES = [(length, first) for length in AWAY for first in (REFUSED, LOST, HANGS)]


@pytest.mark.slow
@pytest.mark.parametrize("scenario", [each for each in SCENARIOS if each is not share_a_run])
async def test_a_store_that_is_away_for_a_while_costs_answers_at_most(
    scenario: Scenario, turns: Turns
) -> None:
    """From each call on, in one way after the other: refused is refused, accepted is run.

    Of those who share a run the second could come after the end of the first.
    """

    def outage_of(n: float) -> Outage:
        which = 0 if n == math.inf else int(n) + SCENARIOS.index(scenario)
        return Outage(n, *OUTAGES[which % len(OUTAGES)])

    def store_of(outage: Outage) -> TrickyStore:
        return TrickyStore(outage, outage.after, shared=True)

    await each_n(scenario, turns, outage_of, store_of, tries=100, keep=3 * LEASE)


# --- cancellation --------------------------------------------------------------------------------


async def step(call: str = "", /, *arguments: Any, **more: Any) -> None:
    """Let the event loop go on by one step."""
    await anyio.lowlevel.checkpoint()


class SteppingRequest(RawRequest):
    """A request whose every message takes a step of the event loop."""

    async def run(self, app: ASGIApp) -> None:
        async def receive() -> Message:
            await step()
            message = await self._from_client.receive()
            await step()
            return message

        async def send(message: Message) -> None:
            await step()
            await self._send(message)
            await step()

        with self._to_app, self._from_client:
            await app(self.scope, receive, send)


MOST_STEPS = 80 if LONG else 40
"""More than acceptance takes; a request that waits for its response would go on for ever."""


async def cancelled_after(steps: int, app: ASGIApp, request: RawRequest) -> bool:
    """Run a request, and cancel it after this many steps; whether it had not ended by then."""
    scope = anyio.CancelScope()

    async def serve() -> None:
        with scope:
            await request.run(app)

    async with anyio.create_task_group() as group:
        group.start_soon(serve)
        for _ in range(steps):
            await step()
        scope.cancel()
    return scope.cancelled_caught


@pytest.mark.one_loop
@SHARED
@pytest.mark.parametrize("path", ["/work", "/held", "/in-time", "/again", "/ruled"])
@pytest.mark.parametrize("queued", [False, True])
async def test_a_request_may_be_cancelled_at_every_step_of_its_acceptance(
    path: str, queued: bool, shared: bool, turns: Turns
) -> None:
    """Either nothing is stored, or the job is there and ends; nothing leaks in any case."""
    steps = 0
    cancelled = True
    seen = set()
    while cancelled and steps < MOST_STEPS:
        steps += 1
        if not turns(steps):
            continue
        store = TrickyStore(step, step, shared=shared)
        house = House(virtual_jobs(store=store, limits=LIMITS))
        app = house.app
        tasks = len(anyio.get_running_tasks())
        async with lifespan(app):
            if queued:
                await ask(app, "/work", "POST")
            request = SteppingRequest(path)
            for part, more in ((b"bo", True), (b"d", True), (b"y", False)):
                request.feed(part, more=more)
            cancelled = await cancelled_after(steps, app, request)
            await anyio.sleep(30)
            if request.status == 202:
                url = dict(request.sent[0]["headers"])[b"location"].decode()
                check_end(await ask(app, url))
            assert await unfinished(store) == []
            seen.add(len(store) - queued)
            await emptied(store, 200)
            await check_nothing_is_left(house, store)
        await settled()
        assert len(anyio.get_running_tasks()) == tasks
    assert steps > 10
    assert steps < MOST_STEPS or path == "/in-time"
    assert seen == {0, 1}
