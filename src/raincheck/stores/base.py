"""The store port: keeps jobs, captured requests and response bodies."""

from __future__ import annotations

import builtins
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import anyio

from raincheck.bodies.base import Bodies
from raincheck.job import LOOK_AGAIN, TRANSITIONS, Bounds, Job, Key, State
from raincheck.messages import CapturedRequest, Head

SMALL = 64 * 1024
"""Bytes of a response body, at most, that comes with its job (see `Store.fetch`)."""

PAUSE = 0.25
"""Seconds after which whoever waits for a response to grow looks again, in a store that does not
say when it does."""


class Abandoned(NamedTuple):
    """An unfinished job that nobody holds.

    Attributes:
        id: its id.
        job: the job; None if its record cannot be read.
        idle: seconds since its lease ended, by the store's clock.
    """

    id: str
    job: Job | None
    idle: float


class Found(NamedTuple):
    """The job that has a key.

    Attributes:
        job: the job.
        fingerprint: what came with that key.
    """

    job: Job
    fingerprint: str | None


class Claim(NamedTuple):
    """What became of asking for a job in order to run it.

    Attributes:
        job: the newest version: the one that runs, if it has begun.
        request: its captured request, if it has begun.
        begun: whether it is whoever asked that runs it now.
    """

    job: Job
    request: CapturedRequest | None
    begun: bool


class Fetched(NamedTuple):
    """A job, and the body of its response if that is small.

    Attributes:
        job: the job.
        body: all of it; None if `read_body` has to be asked.
    """

    job: Job
    body: bytes | None


class Partial(NamedTuple):
    """What there is of a response.

    Attributes:
        job: the newest version of its job.
        head: its status and its header fields, if they are known.
        size: bytes of its body that are kept.
    """

    job: Job
    head: Head | None
    size: int

    def beyond(self, known: Partial) -> bool:
        """Whether there is more than what is known, or something else."""
        return (
            self.job.version > known.job.version
            or self.size > known.size
            or (known.head is None and self.head is not None)
        )


class Page(NamedTuple):
    """A part of a list of jobs.

    Attributes:
        jobs: the jobs, newest first.
        after: what to ask for the next page with; None if there is no more.
    """

    jobs: Sequence[Job]
    after: str | None


@dataclass(frozen=True, slots=True)
class Total:
    """Some jobs, counted.

    Attributes:
        count: how many there are.
        oldest: when the first of them was accepted; None if there are none.
        seconds: how long all that have ended have run, together.
    """

    count: int
    oldest: float | None
    seconds: float


class Store(ABC):
    """Keeps jobs, captured requests and response bodies.

    To write one, copy `stores/memory.py`, and run `raincheck.testing.StoreContract` over it.
    Meaning lives above this port: records carry their own times and the caller passes `now`. Only
    leases go by the store's own clock, so that processes whose clocks differ agree about them.

    A method that cannot do what it promises raises `StoreError`; what it acknowledged stays.
    Whoever is told of an error does not know whether it was done, and may ask again: a version
    replaces only the one before it, and a chunk has its place. A record that cannot be read raises
    `UnreadableRecord`, for whoever asks for that job and for nobody else.
    """

    shared: ClassVar[bool]
    """Whether other processes that open the same store see the same jobs."""

    immediate: ClassVar[bool] = False
    """Whether a change is made before its call could wait for anything, so that a cancellation of
    whoever calls cannot cut it short."""

    durable: bool = True
    """Whether what it acknowledged is to outlive the machine's crash: then what is kept beside it
    is, too."""

    bodies: Bodies | None = None
    """Where large bodies are kept unless somebody says otherwise; None: in the store itself."""

    deployment: str | None = None
    """What keeps the jobs apart from others' on the same server; None: nobody else has it."""

    async def open(self) -> None:  # noqa: B027  # a store may have nothing to see
        """See whether it can work as it is set up; called when the jobs open.

        Whoever does not call it loses nothing but the early word. Default: nothing to see.

        Raises:
            ConfigurationError: it never can; the message names the cure.
            StoreError: it cannot now, and may later.
        """

    async def name(self) -> str:
        """The name of what is stored here: no other store has it, and each process finds the same.

        Large bodies that are kept elsewhere are under it, so that several stores may have theirs in
        one place. `""`: it has none, and needs a place of its own for them. Default: its
        deployment, if it has one.
        """
        return self.deployment or ""

    @abstractmethod
    async def create(
        self,
        job: Job,
        request: CapturedRequest | None = None,
        *,
        keys: Collection[Key] = (),
        lease: float | None = None,
        bounds: Bounds | None = None,
    ) -> Job:
        """Insert a job unless there is one of this id, or one under any of these keys.

        Args:
            job: the job.
            request: kept with it if it is `replayable`.
            keys: its own from now on; all of them, or none. No name stands there twice.
            lease: seconds until it counts as abandoned; None: it never does.
            bounds: how many may be in its state, this one counted, and what its owner may have
                `stored`. An earlier job is returned whatever they say.

        Returns:
            The job that is there now: this one, or the earlier one.

        Raises:
            NoRoom: as many are in its state as `bounds` allows, or as much is stored; nothing was
                stored. What is stored is the first to be looked at, and then the owner's bound.
            StoreFull: there is no room; nothing was evicted and nothing stored.
        """

    @abstractmethod
    async def get(self, id: str) -> Job | None:
        """The newest version of a job or of its tombstone; None if there is neither."""

    async def fetch(self, id: str) -> Fetched | None:
        """The newest version of a job, with its response body if that is whole and `SMALL` at most.

        A body that is not what the job says of it is left to `read_body`, which finds out. Default:
        so is every other.

        Returns:
            None if there is neither a job nor its tombstone.
        """
        job = await self.get(id)
        return None if job is None else Fetched(job, None)

    @abstractmethod
    async def find(self, name: str) -> Found | None:
        """The job that has the key of this name now; None if there is none."""

    @abstractmethod
    async def learn(self, route: str, names: Collection[str]) -> None:
        """Remember by which request header fields a route's responses vary, besides those known.

        There is always room for them: whoever calls sees to it that they are few.
        """

    @abstractmethod
    async def learned(self, route: str) -> frozenset[str]:
        """All that `learn` was told of a route."""

    @abstractmethod
    async def request(self, id: str) -> CapturedRequest | None:
        """The captured request of a job that is `replayable`; else None."""

    async def claim(
        self, id: str, *, routes: Collection[str], holder: str, now: float, lease: float | None
    ) -> Claim | None:
        """Begin a job that waits: look at it, start it and take its captured request, in one step.

        It begins if it is `ready` and its captured request is kept. That goes with the version
        after the one that runs, be that `replayable` or not: whoever has lost the answer, and asks
        again with the same holder and time, is given the same. `request` gives it to nobody
        meanwhile, if it is not. If it does not begin, nothing has changed.

        Default: in several steps, so that the captured request of the last run may be lost with the
        answer; who asks again is then told that it has not begun.

        Args:
            id: the job.
            routes: of which it may be.
            holder: who asks.
            now: seconds since the epoch.
            lease: seconds until it counts as abandoned; None leaves that as it is.

        Returns:
            None if there is no such job, or it is gone.

        Raises:
            UnreadableRecord: it is in the format of another version, and left as it is; or it is
                damaged.
        """
        while (job := await self.get(id)) is not None and not job.gone:
            begun = job.begun_by(holder, now)
            if not (begun or job.ready(routes, now)):
                return Claim(job, None, False)
            if (request := await self.request(id)) is None:
                return Claim(job, None, False)
            if begun:
                return Claim(job, request, True)
            runs = job.start(now, holder)
            if await self.replace(runs, lease=lease):
                return Claim(runs, request, True)
        return None

    @abstractmethod
    async def replace(
        self,
        job: Job,
        *,
        keys: Collection[Key] = (),
        tail: bytes = b"",
        lease: float | None = None,
        bounds: Bounds | None = None,
    ) -> bool:
        """Put the next version in the place of the last (compare and swap).

        A version that is not `joinable` gives up the keys that are not `lasting`, a tombstone
        (`job.gone`) all of them. A version that is not `replayable` drops the captured request, one
        that is not `bodied`, or of another `fence`, the response body. There is room for a newer
        version that brings neither keys nor a tail, if the disk has any at all. What a key costs
        does not grow with their number.

        Args:
            job: the next version.
            keys: further ones, its own from now on, if none of them is anybody's yet.
            tail: the last bytes of the response body, if this version has the response.
            lease: seconds until it counts as abandoned; None leaves that as it is. A job that is
                terminal or gone has no lease any more.
            bounds: how many may be in its state, if it comes to it by this version. What may be
                `stored` is not looked at.

        Returns:
            Whether `job.version` was the next one, and all of `keys` were free. If not, nothing
            has changed.

        Raises:
            NoRoom: as many are in its state as `bounds` allows; nothing has changed.
            StoreFull: there is no room for `keys` or `tail`, or on the disk; nothing has changed.
        """

    @abstractmethod
    async def append_body(
        self, id: str, fence: int, offset: int, chunk: bytes, *, head: Head | None = None
    ) -> bool:
        """Put a chunk of a job's response body in its place.

        There is room for it beyond any bound at which new jobs are refused. Chunks come in order,
        without gaps; one that is there already is left as it is.

        Args:
            id: the job.
            fence: who writes it.
            offset: bytes of the body before this chunk.
            chunk: may be empty, if it comes with a head.
            head: of the response, with its first chunk, if it may be read before its end (see
                `partial`). It goes with the body.

        Returns:
            Whether the job is in this fence. If not, or if it is unknown, terminal or gone, the
            chunk was not kept.

        Raises:
            StoreFull: the disk has no room for it, or the server; it was not kept.
        """

    @abstractmethod
    def read_body(self, id: str, offset: int = 0) -> AsyncIterator[bytes]:
        """The response body as it is now, in non-empty chunks, from this byte on.

        All of it is of one fence. Whoever knows how long it is to be has to count: a job that is
        not there, or is gone, has an empty one.

        Raises:
            StoreError: the job went, or began anew, after the first chunk: the rest is not there
                any more.
        """

    async def partial(self, id: str) -> Partial | None:
        """What there is of a job's response now: its head, and the size of its body.

        All of it is of the job's fence. Of a response that is complete it is what the job says.
        Default: of any other there is nothing yet.

        Returns:
            None if there is neither a job nor its tombstone.
        """
        job = await self.get(id)
        return None if job is None else told(job)

    async def grown(self, known: Partial) -> Partial | None:
        """Wait until `partial` is `beyond` what is known of a response.

        Whoever waits is woken by `append_body`, in other processes too. Default: looks again after
        a `PAUSE`.

        Returns:
            What there is, at once if that is more already; None if there is no such job.
        """
        id, version = known.job.id, known.job.version
        while (found := await self.partial(id)) is not None and not found.beyond(known):
            with anyio.move_on_after(PAUSE):
                await self.changed(id, version)
        return found

    @abstractmethod
    async def changed(self, id: str, after_version: int) -> Job | None:
        """Wait until a job is newer than `after_version`.

        Returns:
            The newest version, at once if it is newer already; None if there is no such job.
        """

    @abstractmethod
    async def list(
        self,
        *,
        states: Collection[State] = (),
        route: str | None = None,
        owner: str | None = None,
        since: float | None = None,
        until: float | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Page:
        """Jobs, newest first: by when they were accepted, and those of one time by their ids.

        Neither tombstones nor those that are `synchronous`, nor one that cannot be read. A job that
        stays among those that are asked for is on one page, and on one only, whatever begins or
        ends between pages.

        Args:
            states: any of these; none: any.
            route: of this route; None: of any.
            owner: of this owner; None: of any, or none.
            since: accepted then or later, in seconds since the epoch.
            until: accepted before.
            after: where the page before ended, as it says; None: the first page.
            limit: how many at most, at least 1.

        Raises:
            MalformedCursor: no page says this of its end.
        """

    @abstractmethod
    async def totals(self) -> dict[tuple[str, State], Total]:
        """The jobs of each route and state that has any.

        Neither tombstones are counted nor those that are `synchronous`. It costs little to ask
        every second.
        """

    @abstractmethod
    async def renew(self, fences: Mapping[str, int], lease: float) -> dict[str, State]:
        """Extend leases; the versions of the jobs stay what they are.

        Args:
            fences: the jobs, by id, each with the fence that holds it.
            lease: seconds from now.

        Returns:
            The state of each job that is unfinished and still in this fence. Those that are not
            among them belong to somebody else now, or to nobody.
        """

    @abstractmethod
    def abandoned(self) -> AsyncIterator[Abandoned]:
        """Unfinished jobs whose lease has ended, those that have been so the longest first."""

    async def discard(self, id: str) -> bool:
        """Forget an abandoned job that cannot be read, with all that is its.

        Default: every job can be read, and nothing changes.

        Returns:
            Whether it is gone. If not, it can be read, or its lease has not ended.
        """
        return False

    async def claim_deliveries(self, now: float, lease: float, limit: int) -> Sequence[Job]:
        """Take jobs whose message is to be delivered, in one step, those due longest first.

        Jobs that are `owed` one and whose `deliver_at` has come; also those whose outcome was
        written by who knows nothing of messages, within a time of `LOOK_AGAIN`. Nobody else is
        given them before the lease has ended or a newer version is there, and their versions stay
        what they are. One that cannot be read is left to those who can.

        Default: looks at every job that has ended, and takes one by a version of its own, so that
        no expired job is among them.

        Args:
            now: seconds since the epoch.
            lease: seconds.
            limit: how many at most, at least 1.
        """
        taken: builtins.list[Job] = []
        after: str | None = None
        ended = [state for state in State if not TRANSITIONS[state]]
        while True:
            page = await self.list(states=ended, after=after)
            for job in page.jobs:
                if (delivery := job.owed) is None or delivery.not_before > now:
                    continue
                mine = job.noted(delivery._replace(not_before=now + lease))
                if await self.replace(mine):
                    taken.append(mine)
                if len(taken) == limit:
                    return taken
            if (after := page.after) is None:
                return taken

    @abstractmethod
    async def sweep(self, now: float) -> bool:
        """Turn jobs that have expired into tombstones, and drop the tombstones due by `purge_at`.

        One that cannot be read goes at once when it is due, without a tombstone.

        Args:
            now: seconds since the epoch.

        Returns:
            Whether anything is left that can expire later.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Release what the store holds. It may be used again afterwards."""


def turns_to(job: Job, now: float) -> float | None:
    """When whoever delivers messages turns to a job again that has one; None: now."""
    if job.owed is None:
        return now + LOOK_AGAIN
    return job.owed.not_before if job.owed.not_before > now else None


def told(job: Job) -> Partial:
    """What a job itself says of its response."""
    if job.response is None:
        return Partial(job, None, 0)
    status, headers, size = job.response
    return Partial(job, Head(status, headers), size)
