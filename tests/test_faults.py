"""A store that fails or hangs at its n-th call, and requests that are cancelled at every step.

Each scenario is run again and again, with n one larger each time, until n is more than the calls
that it makes. Whatever fails: the client is told so by a 5xx, or its 202 is true and the job ends
in a state that can be read; and in the end nothing is left, no task, no place and no record.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raincheck import Job, Jobs, Limits, LongRunningMiddleware, MemoryStore, Policy, report
from raincheck.testing import lifespan
from tests.conftest import virtual_jobs
from tests.support import RawRequest, settled, slow_route

pytestmark = pytest.mark.anyio

HOUR = 3600.0

LIMITS = Limits(max_running=1, max_queued=1, drain_timeout=5, tombstone_ttl=30)
"""A single place to run and to wait: one that leaks is missed at once."""


# --- stores ------------------------------------------------------------------------------------


Trick = Callable[[str], Awaitable[None]]


async def no_trick(name: str) -> None:
    """Does nothing."""


class TrickyStore(MemoryStore):
    """Does something before and after each call, given the call's name."""

    def __init__(self, before: Trick = no_trick, after: Trick = no_trick) -> None:
        super().__init__()
        self._before = before
        self._after = after

    async def create(self, job: Job) -> Job:
        await self._before("create")
        there = await super().create(job)
        await self._after("create")
        return there

    async def get(self, id: str) -> Job | None:
        await self._before("get")
        job = await super().get(id)
        await self._after("get")
        return job

    async def replace(self, job: Job) -> bool:
        await self._before("replace")
        replaced = await super().replace(job)
        await self._after("replace")
        return replaced

    async def append_body(self, id: str, chunk: bytes) -> None:
        await self._before("append_body")
        await super().append_body(id, chunk)
        await self._after("append_body")

    async def read_body(self, id: str, offset: int = 0) -> AsyncIterator[bytes]:
        for chunk in [chunk async for chunk in super().read_body(id, offset)]:
            await self._before("read_body")
            yield chunk

    async def changed(self, id: str, after_version: int) -> Job | None:
        await self._before("changed")
        job = await super().changed(id, after_version)
        await self._after("changed")
        return job

    async def unfinished(self) -> AsyncIterator[Job]:
        await self._before("unfinished")
        async for job in super().unfinished():
            yield job

    async def sweep(self, now: float) -> bool:
        await self._before("sweep")
        left = await super().sweep(now)
        await self._after("sweep")
        return left


class Nth:
    """Fails or hangs at the n-th call, and only there.

    Args:
        n: which call, from 1.
        hangs: seconds that it takes, instead of failing.

    Attributes:
        armed: whether calls count.
    """

    def __init__(self, n: int, hangs: float | None = None) -> None:
        self._n = n
        self._hangs = hangs
        self.calls: list[str] = []
        self.armed = True

    async def __call__(self, name: str) -> None:
        if not self.armed:
            return
        self.calls.append(name)
        if len(self.calls) == self._n:
            if self._hangs is None:
                raise OSError("the disk is away")
            await anyio.sleep(self._hangs)

    @property
    def came(self) -> bool:
        """Whether there was an n-th call."""
        return len(self.calls) >= self._n

    def __str__(self) -> str:
        return f"call {self._n}: {self.calls[self._n - 1] if self.came else 'none'}"


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
    def stored(self) -> bool:
        """Whether it is the handler's response."""
        return b"job-status" in self.headers and not self.broken


async def ask(app: ASGIApp, path: str, method: str = "GET", **headers: str) -> Answer:
    request = RawRequest(path, method, **headers)
    request.feed(b"body")
    try:
        await request.run(app)
    except OSError:  # a server logs it and answers 500, or cuts a response that has begun
        return Answer(500, {}, b"", broken=bool(request.sent))
    return answer_to(request)


def answer_to(request: RawRequest) -> Answer:
    assert request.status is not None
    assert not request.sent[-1].get("more_body")
    return Answer(request.status, dict(request.sent[0]["headers"]), request.body)


class Client:
    """Asks again when it is told of a failure, as clients do, and remembers that it was told."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.failures = 0

    async def ask(self, path: str, method: str = "GET", **headers: str) -> Answer:
        for _ in range(3):
            answer = await ask(self._app, path, method, **headers)
            # What a job without a response says of itself is its outcome, and no failure to ask.
            outcome = b":problem:crashed" in answer.body or b":problem:timeout" in answer.body
            if answer.status < 500 or answer.stored or outcome:
                return answer
            self.failures += 1
            await anyio.sleep(5)
        raise AssertionError(f"{method} {path} failed three times")

    async def submit(self, path: str) -> str:
        """The status URL of a job."""
        answer = await self.ask(path, "POST")
        assert answer.status == 202
        return answer.headers[b"location"].decode()

    async def follow(self, url: str) -> Answer:
        """What the status URL becomes."""
        for _ in range(200):
            answer = await self.ask(url, prefer="wait=30")
            if answer.status != 202:
                return answer
        raise AssertionError("the job has not ended")

    async def delete(self, url: str) -> None:
        """Forget a job; to be told that it is gone already is as good."""
        assert (await self.ask(url, "DELETE")).status in (202, 204, 410)
        assert (await self.ask(url)).status in (404, 410)  # its tombstone may be gone by then


# --- scenarios -----------------------------------------------------------------------------------


class InParts(Response):
    """A body of several messages, and no generator that a failing `send` would leave open."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(4):
            await send({"type": "http.response.body", "body": b"%d" % number, "more_body": True})
        await send({"type": "http.response.body"})


async def work(request: Request) -> Response:
    report(0.5, "half of it")
    await request.body()
    await anyio.sleep(1)
    return InParts()


async def never(request: Request) -> None:
    await anyio.sleep_forever()


def house(jobs: Jobs, ttl: float = 60.0) -> LongRunningMiddleware:
    """An app with routes for all scenarios."""
    inner = Starlette(
        routes=[
            slow_route(work, "/work", ttl=ttl),
            slow_route(work, "/brief", ttl=60),
            slow_route(work, "/held", ttl=ttl, hold=True),
            slow_route(work, "/in-time", ttl=ttl, wait=10),
            slow_route(never, "/never", ttl=ttl),
            slow_route(never, "/late", ttl=ttl, timeout=5),
            Route("/ruled", work, methods=["POST"]),
        ]
    )
    return LongRunningMiddleware(inner, routes={"POST /ruled": Policy(ttl=ttl)}, jobs=jobs)


def check_end(answer: Answer) -> None:
    """The job ended with its response, or with a problem that says that it has none."""
    if answer.status == 200:
        assert answer.body == b"0123"
    else:
        assert answer.status == 500


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
    answer = await client.ask("/in-time", "POST")
    if answer.status == 202:
        url = answer.headers[b"location"].decode()
        check_end(await client.follow(url))
        await client.delete(url)
    else:
        check_end(answer)


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


SCENARIOS = [
    *(finish, finish_by_rule, answer_in_time, time_out, cancel_running, delete_running),
    *(delete_waiting, cancel_waiting, wait_for_a_turn, hold_for_a_turn),
]

Scenario = Callable[[Client], Awaitable[None]]


async def play(scenario: Scenario, trick: Nth, store: TrickyStore, ttl: float = 60.0) -> None:
    """Run a scenario on a new app, and check that nothing is left of it."""
    jobs = virtual_jobs(store=store, limits=LIMITS)
    app = house(jobs, ttl)
    before = len(anyio.get_running_tasks())
    async with lifespan(app):
        await scenario(Client(app))
        await anyio.sleep(2 * HOUR)  # what hangs has come back, tombstones are forgotten
        trick.armed = False
        await anyio.sleep(100)
        await check_nothing_is_left(app, jobs, store)
    await settled()
    assert len(anyio.get_running_tasks()) == before


async def check_nothing_is_left(app: ASGIApp, jobs: Jobs, store: MemoryStore) -> None:
    """Neither a record nor a place is taken; and the places are there for others."""
    now = jobs.statistics()
    assert (now.running, now.queued) == (0, 0)
    assert len(store) == 0
    assert store.size == 0
    answers = [await ask(app, "/brief", "POST") for _ in range(3)]
    assert [answer.status for answer in answers] == [202, 202, 503]
    await anyio.sleep(200)  # they have run and expired, and are forgotten
    assert len(store) == 0


async def each_n(scenario: Scenario, play: Callable[[Nth], Awaitable[None]], **trick: Any) -> None:
    """Play with n = 1, 2, ... until there is no n-th call."""
    n = 0
    came = True
    while came:
        n += 1
        nth = Nth(n, **trick)
        try:
            await play(nth)
        except Exception as error:
            error.add_note(f"{scenario.__name__}, {nth}")
            raise
        came = nth.came
    assert n > 10


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_a_store_call_that_fails_costs_an_answer_at_most(scenario: Scenario) -> None:
    await each_n(scenario, lambda nth: play(scenario, nth, TrickyStore(nth)))


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_a_lost_acknowledgement_costs_an_answer_at_most(scenario: Scenario) -> None:
    """The store did what it was asked, and then could not say so."""
    await each_n(scenario, lambda nth: play(scenario, nth, TrickyStore(after=nth)))


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_a_store_call_that_hangs_for_an_hour_costs_an_hour_at_most(
    scenario: Scenario,
) -> None:
    """Nothing bounds a call to the store: who asked waits as long as it takes, and goes on."""
    await each_n(
        scenario, lambda nth: play(scenario, nth, TrickyStore(nth), ttl=3 * HOUR), hangs=HOUR
    )


# --- cancellation --------------------------------------------------------------------------------


async def step(name: str = "") -> None:
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


MOST_STEPS = 80
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


@pytest.mark.parametrize("path", ["/work", "/held", "/in-time", "/ruled"])
@pytest.mark.parametrize("queued", [False, True])
async def test_a_request_may_be_cancelled_at_every_step_of_its_acceptance(
    path: str, queued: bool
) -> None:
    """Either nothing is stored, or the job is there and ends; nothing leaks in any case."""
    steps = 0
    cancelled = True
    seen = set()
    while cancelled and steps < MOST_STEPS:
        steps += 1
        store = TrickyStore(step, step)
        jobs = virtual_jobs(store=store, limits=LIMITS)
        app = house(jobs)
        tasks = len(anyio.get_running_tasks())
        async with lifespan(app):
            if queued:
                await ask(app, "/work", "POST")
            request = SteppingRequest(path)
            for more in (True, True, False):
                request.feed(b"12", more=more)
            cancelled = await cancelled_after(steps, app, request)
            await anyio.sleep(30)
            if request.status == 202:
                url = dict(request.sent[0]["headers"])[b"location"].decode()
                assert (await ask(app, url)).stored
            assert [job async for job in store.unfinished()] == []
            seen.add(len(store) - queued)
            await anyio.sleep(200)
            await check_nothing_is_left(app, jobs, store)
        await settled()
        assert len(anyio.get_running_tasks()) == tasks
    assert steps > 10
    assert steps < MOST_STEPS or path == "/in-time"
    assert seen == {0, 1}
