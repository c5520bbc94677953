"""A store of which the large bodies are kept elsewhere."""

from __future__ import annotations

import math
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from dataclasses import replace
from functools import partial

import anyio
from anyio.lowlevel import current_token

from raincheck.bodies.base import LARGE, Bodies, closing
from raincheck.bodies.own import OwnBodies
from raincheck.errors import BodyLost, NoRoom, StoreError, StoreFull, UnreadableRecord
from raincheck.job import Bounds, Job, Key, State
from raincheck.messages import Apart, CapturedRequest, Head
from raincheck.stores.availability import Availability
from raincheck.stores.base import Claim, Partial, Store
from raincheck.stores.bounded import BoundedStore
from raincheck.stores.watchers import Watchers

LOOK_EVERY = 0.05
"""Seconds between two looks at a body that another process writes, of which nobody tells. Nobody
looks when nobody waits."""

CHECK_EVERY = 0.2
"""Seconds between two looks whether a run that writes its response is still wanted."""

UNKNOWN = 3600.0
"""Seconds after which a body is nobody's whose job is not there. A captured request is there before
its job is, and a store that is away for good is not to lose what it has."""

_REQUEST = "request"


class DividedStore(BoundedStore):
    """Another store, with bodies of `LARGE` bytes or more apart from it. Its calls end in time.

    A body that is small is in the store, and nothing is different. A response that becomes large
    is in the bodies from its first byte on, by the job's id and its fence: each run writes one of
    its own, whose end is there, as safely as the store itself keeps things, before the outcome is
    recorded. The record says how long it is, so that a body that is not whole is not served. A
    captured request is there before its job is, by the job's id, until the job has ended.

    What becomes of jobs here takes their bodies with it; a sweep finds what others have left, who
    died, or to whom a job was lost.

    Args:
        store: the other one.
        bodies: where its large bodies are, under its name.
        timeout: seconds for each call of the store; what bodies take is not bounded.
        availability: told of each answer while the store is away.
    """

    def __init__(
        self,
        store: Store,
        bodies: Bodies,
        timeout: float,
        availability: Availability | None = None,
    ) -> None:
        super().__init__(store, timeout, availability)
        self.shared: bool = store.shared  # type: ignore[misc] # that of the other one
        self._bodies = OwnBodies(bodies, self.name)
        self._durable = store.durable
        self._own_name = secrets.token_urlsafe(9)
        self._writing: dict[str, int] = {}  # the fences of jobs with a response that is begun here
        self._checked: dict[str, float] = {}  # when that was last seen to be so
        self._requested: set[str] = set()  # jobs whose captured request is known here to be apart
        self._later: dict[str, float] = {}  # until when a body is known to be somebody's
        self._waiting: tuple[object, Watchers] | None = None  # of the event loop

    async def open(self) -> None:
        await super().open()
        await self._bodies.open()

    async def name(self) -> str:
        # Of a store that others see too, theirs as well; of one that nobody does, its own alone.
        return await super().name() if self.shared else self._own_name

    # --- captured requests ---------------------------------------------------------------------

    async def create(
        self,
        job: Job,
        request: CapturedRequest | None = None,
        *,
        keys: Collection[Key] = (),
        lease: float | None = None,
        bounds: Bounds | None = None,
    ) -> Job:
        if request is None or request.apart is None or not job.replayable:
            return await super().create(job, request, keys=keys, lease=lease, bounds=bounds)
        name, apart = self._request_of(job.id), Apart(request.apart.size)
        await self._keep(name, request.apart)
        request = replace(request, apart=apart)
        try:
            there = await super().create(job, request, keys=keys, lease=lease, bounds=bounds)
        except (NoRoom, StoreFull):
            await self._delete(name)
            raise
        if there.id != job.id:
            await self._delete(name)
            return there
        self._requested.add(job.id)
        if await self._bodies.size(name) != apart.size:  # it stood still here, and others swept
            raise StoreError(f"the captured request of job {job.id} was taken for nobody's")
        return there

    async def _keep(self, name: str, apart: Apart) -> None:
        """Keep all of a body under a name. Raises StoreError."""
        assert apart.read is not None
        size = 0
        try:
            async with closing(apart.read(0)) as chunks:
                async for chunk in chunks:
                    await self._bodies.append(name, size, chunk)
                    size += len(chunk)
            if self._durable:
                await self._bodies.sync(name)
        except StoreFull:
            await self._delete(name)
            raise

    async def request(self, id: str) -> CapturedRequest | None:
        found = await super().request(id)
        return None if found is None else await self._whole(id, found)

    async def claim(
        self, id: str, *, routes: Collection[str], holder: str, now: float, lease: float | None
    ) -> Claim | None:
        claim = await super().claim(id, routes=routes, holder=holder, now=now, lease=lease)
        if claim is None or claim.request is None or claim.request.apart is None:
            return claim
        return claim._replace(request=await self._whole(id, claim.request))

    async def _whole(self, id: str, request: CapturedRequest) -> CapturedRequest:
        """A captured request with its body, wherever that is.

        Raises:
            UnreadableRecord: not all of it is there.
        """
        if request.apart is None:
            return request
        name, size = self._request_of(id), request.apart.size
        there = await self._bodies.size(name)
        if there != size:
            raise UnreadableRecord(f"of {size} bytes of a captured request {there or 0} are there")
        self._requested.add(id)
        return replace(request, apart=Apart(size, partial(self._bodies.read, name)))

    # --- responses -----------------------------------------------------------------------------

    async def append_body(
        self, id: str, fence: int, offset: int, chunk: bytes, *, head: Head | None = None
    ) -> bool:
        if offset + len(chunk) < LARGE:
            return await super().append_body(id, fence, offset, chunk, head=head)
        if not await self._is_run(id, fence):
            return False
        await self._forget_earlier(id, fence)
        # What small pieces have come to before stays in the store, up to this one: whoever reads
        # it there sees by that that it goes on elsewhere.
        more = chunk[: LARGE - offset] if 0 < offset < LARGE else b""
        if (more or head is not None) and not await super().append_body(
            id, fence, offset, more, head=head
        ):
            return False
        try:
            await self._append(id, fence, offset, chunk)
        except StoreError:  # since it was dropped?
            self._checked.pop(id, None)
            if await self._is_run(id, fence):
                raise
            return False
        if self._waiting is not None:
            self._watchers().wake((id,))
        return True

    async def _is_run(self, id: str, fence: int) -> bool:
        """Whether a job is in this fence, or was a moment ago: who is late writes what is nobody's.

        What was written in a fence that nobody has any more is forgotten.
        """
        now = anyio.current_time()
        if now - self._checked.get(id, -math.inf) < CHECK_EVERY and self._writing.get(id) == fence:
            return True
        job = await self.get(id)
        if job is not None and job.fence == fence and job.stage is not None:
            self._checked[id] = now
            return True
        if self._writing.get(id) == fence:
            self._stop_writing(id)
            await self._delete(self._response_of(id, fence))
        return False

    def _stop_writing(self, id: str) -> None:
        self._writing.pop(id, None)
        self._checked.pop(id, None)

    async def _forget_earlier(self, id: str, fence: int) -> None:
        """Before a run's response begins to be apart: no other's may be there in its name.

        A store that has come back from a backup, or has lost its last moments, gives a fence again
        in which it had forgotten that a run has written.
        """
        if self._writing.get(id) != fence:
            await self._bodies.delete((self._response_of(id, fence),))

    async def _append(self, id: str, fence: int, offset: int, chunk: bytes) -> None:
        """Append to the body of a response, which begins with what of it is in the store."""
        name = self._response_of(id, fence)
        if offset and self._writing.get(id) != fence:
            begun = b"".join([each async for each in super().read_body(id)])[:offset]
            if len(begun) != offset:
                raise BodyLost(f"the body of job {id} was dropped while it was written")
            offset, chunk = 0, begun + chunk
        if chunk:
            await self._bodies.append(name, offset, chunk)
        self._writing[id] = fence

    async def replace(
        self,
        job: Job,
        *,
        keys: Collection[Key] = (),
        tail: bytes = b"",
        lease: float | None = None,
        bounds: Bounds | None = None,
    ) -> bool:
        response, begun = job.response, self._writing.get(job.id)
        if response is not None and response.size >= LARGE and (tail or begun == job.fence):
            await self._forget_earlier(job.id, job.fence)
            await self._append(job.id, job.fence, response.size - len(tail), tail)
            if self._durable:
                await self._bodies.sync(self._response_of(job.id, job.fence))
            tail, begun = b"", job.fence
        if not await super().replace(job, keys=keys, tail=tail, lease=lease, bounds=bounds):
            return False
        if job.gone or begun is not None or job.id in self._requested:
            await self._follow(job, begun)
        return True

    async def _follow(self, job: Job, begun: int | None) -> None:
        """Do with the bodies of a job what its new version does with those in the store."""
        id, ended, dropped = job.id, job.finished or job.gone, set[str]()
        if begun is not None:
            if not job.bodied or job.fence != begun:
                dropped.add(self._response_of(id, begun))
            elif job.due_at is not None:
                self._later[self._response_of(id, begun)] = job.due_at
            if ended or job.fence != begun:
                self._stop_writing(id)
            self._watchers().wake((id,))
        if job.gone:  # by whomever they were written
            dropped |= {self._response_of(id, job.fence), self._request_of(id)}
        elif ended and id in self._requested:
            dropped.add(self._request_of(id))
        if ended:
            self._requested.discard(id)
        await self._delete(*dropped)

    async def read_body(self, id: str, offset: int = 0) -> AsyncIterator[bytes]:
        name = await self._place_of(id)
        body = super().read_body(id, offset) if name is None else self._bodies.read(name, offset)
        async with closing(body) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _place_of(self, id: str) -> str | None:
        """The name of a response's body; None if it is in the store.

        Raises:
            BodyLost: it is not whole.
        """
        job = await self.get(id)
        if job is None or not job.bodied:
            return None
        name, response = self._response_of(id, job.fence), job.response
        if response is None:
            inside = await super().partial(id)
            apart = inside is not None and await self._seen(inside) is not inside
            return name if apart else None
        size = None if response.size < LARGE else await self._bodies.size(name)
        if size is not None and size != response.size:
            raise BodyLost(f"of {response.size} bytes of a stored response {size} are there")
        return None if size is None else name  # of an earlier version, it is in the store

    # --- what is produced ----------------------------------------------------------------------

    async def partial(self, id: str) -> Partial | None:
        inside = await super().partial(id)
        return None if inside is None else await self._seen(inside)

    async def _seen(self, inside: Partial) -> Partial:
        """What there is of a response, wherever it is; the same if that is what is in the store."""
        job, size = inside.job, inside.size
        if job.stage in (None, State.QUEUED) or 0 < size < LARGE:
            return inside
        there = await self._bodies.size(self._response_of(job.id, job.fence))
        return inside if there is None or there <= size else inside._replace(size=there)

    async def grown(self, known: Partial) -> Partial | None:
        id = known.job.id
        while True:
            with self._watchers().newer(id, known.job.version) as event:
                inside = await super().partial(id)
                found = None if inside is None else await self._seen(inside)
                if inside is None or found is None or found.beyond(known):
                    return found
                if 0 < inside.size < LARGE:
                    await super().grown(inside)
                    continue
                waits: list[Callable[[], Awaitable[object]]] = [
                    partial(super().grown, inside),
                    event.wait,
                ]
                begun = inside.size or inside.head is not None
                if begun and self.shared and self._writing.get(id) != inside.job.fence:
                    waits.append(partial(self._until_beyond, found))
                await _any_of(waits)

    async def _until_beyond(self, known: Partial) -> None:
        name = self._response_of(known.job.id, known.job.fence)
        while (await self._bodies.size(name) or 0) <= known.size:  # noqa: ASYNC110 - nobody tells
            await anyio.sleep(LOOK_EVERY)

    def _watchers(self) -> Watchers:
        """Those who wait on this event loop."""
        token = current_token()
        if self._waiting is None or self._waiting[0] != token:
            self._waiting = token, Watchers()
        return self._waiting[1]

    # --- orphans -------------------------------------------------------------------------------

    async def sweep(self, now: float) -> bool:
        left = await super().sweep(now)
        return await self._sweep_bodies(now) or left

    async def _sweep_bodies(self, now: float) -> bool:
        """Forget bodies that are nobody's; whether any are left."""
        writing = [*self._writing.items()]
        found = await self._bodies.names()
        places = dict(self._places(found))
        self._later = {name: at for name, at in self._later.items() if name in places}
        orphans = []
        for name, (id, of) in places.items():
            due = self._later.get(name)
            if due is not None and due > now:
                continue
            try:
                job = await self.get(id)
            except UnreadableRecord:
                continue
            # What was there, and had its time, has not even left a tombstone.
            if _orphaned(job, of, found[name] if due is None else math.inf):
                orphans.append(name)
            elif job is not None and job.due_at is not None:
                self._later[name] = job.due_at
        await self._bodies.delete(orphans)
        for id, fence in writing:
            if self._response_of(id, fence) not in places and self._writing.get(id) == fence:
                self._stop_writing(id)  # it was lost to others, and nobody has asked for it since
        return len(places) > len(orphans)

    def _places(self, names: Collection[str]) -> Iterator[tuple[str, tuple[str, int | None]]]:
        """Those of these names that were given here, with the job and its fence."""
        for name in names:
            id, _, of = name.rpartition(".")
            if id and "/" not in id and (of == _REQUEST or of.isdecimal()):
                yield name, (id, None if of == _REQUEST else int(of))

    async def _delete(self, *names: str) -> None:
        """Forget what nobody needs any more; if that fails, a sweep finds it."""
        for name in names:
            self._later.pop(name, None)
        try:
            await self._bodies.delete(names)
        except StoreError as error:
            self._availability.failed(error)

    def _response_of(self, id: str, fence: int) -> str:
        return f"{id}.{fence}"

    def _request_of(self, id: str) -> str:
        return f"{id}.{_REQUEST}"


def _orphaned(job: Job | None, fence: int | None, idle: float) -> bool:
    """Whether a body is nobody's.

    Args:
        job: whose it was.
        fence: of the run that has written it; None if it is that of a captured request.
        idle: seconds since something was appended to it; without end if its job has been there.
    """
    if job is None:
        return idle >= UNKNOWN
    if fence is None:
        return job.gone or job.finished
    return not job.bodied or job.fence > fence


async def _any_of(waits: Collection[Callable[[], Awaitable[object]]]) -> None:
    """Wait for one of several things. Raises what that one raises."""
    errors: list[Exception] = []

    async def one(wait: Callable[[], Awaitable[object]]) -> None:
        try:
            await wait()
        except Exception as error:
            errors.append(error)
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for wait in waits:
            group.start_soon(one, wait)
    for error in errors:
        raise error
