"""Jobs in the memory of one process."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import astuple
from functools import lru_cache
from heapq import merge, nsmallest
from itertools import chain, islice
from sys import getsizeof
from typing import Any, ClassVar

import anyio
from cachetools import TLRUCache

from raincheck.errors import ConfigurationError, NoRoom, Problem, StoreFull
from raincheck.job import TRANSITIONS, Bounds, Delivery, Job, Key, Progress, State
from raincheck.messages import CapturedRequest, CapturedResponse, Head, RawHeaders
from raincheck.serialization import dump_cursor, load_cursor
from raincheck.stores._memory_bodies import Body
from raincheck.stores._memory_ended import End, Ended, ran
from raincheck.stores._memory_order import Order, Place, within
from raincheck.stores.base import (
    SMALL,
    Abandoned,
    Claim,
    Fetched,
    Found,
    Page,
    Partial,
    Store,
    Total,
    told,
)
from raincheck.stores.watchers import Watchers

RECORD_COST = 1024
"""Bytes that a record counts for besides its bodies and headers."""

KEY_COST = 256
"""Bytes that a key counts for besides its name and its fingerprint."""


class MemoryStore(Store):
    """Jobs in the memory of one process: fast, and gone with the process.

    Several processes, such as uvicorn's workers, do not see each other's jobs: use a shared store
    there.

    Args:
        max_bytes: how much may be kept, each record counted with its headers, its bodies, its keys,
            the message of its last report, the URL of its callback, and 1 KiB besides. From there
            on new jobs are refused; results are never evicted, and a job that was accepted before
            may end beyond the bound. Default 512 MiB.

    Raises:
        ConfigurationError: `max_bytes` is not a positive whole number.
    """

    shared: ClassVar[bool] = False
    immediate: ClassVar[bool] = True
    durable: bool = False

    _clock: Callable[[], float] = staticmethod(anyio.current_time)

    def __init__(self, *, max_bytes: int = 512 * 1024 * 1024) -> None:
        if not isinstance(max_bytes, int) or max_bytes < 1:
            raise ConfigurationError(
                f"MemoryStore(max_bytes={max_bytes!r}): max_bytes is a whole number of bytes, "
                "at least 1"
            )
        self._max_bytes = max_bytes
        self._bytes = 0
        self._live: dict[str, Job] = {}
        self._at_rest: dict[str, _Packed] = {}  # those that are finished or gone
        self._requests: dict[str, CapturedRequest] = {}
        self._bodies: dict[str, bytes | Body] = {}
        self._heads: dict[str, Head] = {}  # of responses that are still to end
        self._leases: dict[str, float] = {}
        # When each message is due, and until when somebody has it.
        self._owed: dict[str, tuple[float, float]] = {}
        self._keys: dict[str, tuple[str, str | None, bool]] = {}  # whose each is, and the rest
        self._names: dict[str, list[str]] = {}  # of the keys of each job that has any
        self._varying: dict[str, frozenset[str]] = {}  # what each route's responses vary by
        self._waiting = Watchers()
        # When each job that can expire, and each tombstone, is due: what the last sweep saw, and
        # what has come since.
        self._newly_due: dict[str, float] = {}
        self._due = _due_dates()
        # What results of each route and owner take, of those jobs of which that is counted.
        self._counted: set[str] = set()
        self._stored: dict[tuple[str, str | None], int] = {}
        self._order = Order(self._listed)
        self._ended = Ended(self._end_of)
        self._most = 0  # jobs, since the dicts were made

    @property
    def size(self) -> int:
        """Bytes kept, as `max_bytes` counts them."""
        return self._bytes

    def __len__(self) -> int:
        """Jobs and tombstones kept."""
        return len(self._live) + len(self._at_rest)

    async def create(
        self,
        job: Job,
        request: CapturedRequest | None = None,
        *,
        keys: Collection[Key] = (),
        lease: float | None = None,
        bounds: Bounds | None = None,
    ) -> Job:
        id = job.id
        if id in self._live or id in self._at_rest:
            return self._there(id)
        for key in keys:
            if (taken := self._keys.get(key.name)) is not None:
                return self._there(taken[0])
        if bounds is not None:
            self._check_room(job, bounds)
        if not job.replayable:
            request = None
        cost = RECORD_COST if request is None else RECORD_COST + _cost(request)
        if keys:
            cost += _cost_of(keys)
        if job.progress is not None:
            cost += _said(job.progress)
        if self._bytes + cost > self._max_bytes:
            raise self._full()
        if job.delivery is not None:
            cost += len(job.delivery.url)
        self._live[id] = job
        self._order.add(id)
        self._bytes += cost
        if bounds is not None and bounds.stored is not None and job.owner is not None:
            self._counted.add(id)
        if keys:
            self._give(id, keys)
        if request is not None:
            self._requests[id] = request
        if lease is not None:
            self._leases[id] = self._clock() + lease
        return job

    async def get(self, id: str) -> Job | None:
        return self._get(id)

    async def fetch(self, id: str) -> Fetched | None:
        if (job := self._live.get(id)) is not None:  # it has no response yet
            return _new(Fetched, (job, None))
        if (packed := self._at_rest.get(id)) is None:
            return None
        job = _unpacked(packed)
        if (response := job.response) is None or (size := response.size) > SMALL:
            return Fetched(job, None)
        body = self._bodies.get(id, b"")
        if isinstance(body, Body):
            body = b"".join(body.read())
        return _new(Fetched, (job, body if len(body) == size else None))

    async def find(self, name: str) -> Found | None:
        if (key := self._keys.get(name)) is None:
            return None
        id, fingerprint, _ = key
        return Found(self._there(id), fingerprint)

    async def learn(self, route: str, names: Collection[str]) -> None:
        self._varying[route] = self._varying.get(route, frozenset()).union(names)

    async def learned(self, route: str) -> frozenset[str]:
        return self._varying.get(route, frozenset())

    async def request(self, id: str) -> CapturedRequest | None:
        job = self._live.get(id)
        return self._requests.get(id) if job is not None and job.replayable else None

    async def claim(
        self, id: str, *, routes: Collection[str], holder: str, now: float, lease: float | None
    ) -> Claim | None:
        job = self._get(id)
        if job is None or job.gone:
            return None
        request = self._requests.get(id)
        if request is not None and job.begun_by(holder, now):
            return Claim(job, request, True)
        if request is None or not job.ready(routes, now):
            return Claim(job, None, False)
        runs = self._live[id] = job.start(now, holder)
        self._drop_body(id)
        if lease is not None:
            self._leases[id] = self._clock() + lease
        self._waiting.wake((id,))
        return Claim(runs, request, True)

    async def replace(
        self,
        job: Job,
        *,
        keys: Collection[Key] = (),
        tail: bytes = b"",
        lease: float | None = None,
        bounds: Bounds | None = None,
    ) -> bool:
        id = job.id
        old = self._live.get(id) or self._get(id)
        if old is None or old.version + 1 != job.version:
            return False
        if keys and any(key.name in self._keys for key in keys):
            return False
        cost = _cost_of(keys) if keys else 0
        if cost and self._bytes + cost > self._max_bytes:
            raise self._full()
        if bounds is not None and not (job.stage is None or _alike(old, job)):
            self._check_room(job, bounds)
        if job.fence != old.fence:
            self._drop_body(id)
        if tail:
            self._append(id, tail)
        if lease is not None:
            self._leases[id] = self._clock() + lease
        self._put(old, job)
        if keys:
            self._bytes += cost
            self._give(id, keys)
        return True

    async def append_body(
        self, id: str, fence: int, offset: int, chunk: bytes, *, head: Head | None = None
    ) -> bool:
        job = self._live.get(id)
        if job is None or job.fence != fence:
            return False
        if offset == self._size_of(id):
            if head is not None and id not in self._heads:
                self._heads[id] = head
                self._bytes += _size(head.headers)
            if chunk:
                self._append(id, chunk)
            if self._waiting.watched:
                self._waiting.wake((id,))
        return True

    async def read_body(self, id: str, offset: int = 0) -> AsyncIterator[bytes]:
        body = self._bodies.get(id, b"")
        for chunk in body.read(offset) if isinstance(body, Body) else (body[offset:],):
            if chunk:
                yield chunk

    async def partial(self, id: str) -> Partial | None:
        return self._partial(id)

    async def grown(self, known: Partial) -> Partial | None:
        id = known.job.id
        while (found := self._partial(id)) is not None and not found.beyond(known):
            with self._waiting.newer(id, known.job.version) as event:
                await event.wait()
        return found

    async def changed(self, id: str, after_version: int) -> Job | None:
        while (job := self._get(id)) is not None and job.version <= after_version:
            with self._waiting.newer(id, after_version) as event:
                await event.wait()
        return job

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
        of: dict[str, Any] = {"route": route, "owner": owner, "since": since, "until": until}
        of["before"] = None if after is None else load_cursor(after)
        places = self._in_states(states, **of) if states else self._order.newest_first(**of)
        names = tuple(state.value for state in states)
        live, at_rest = self._live, self._at_rest
        matching = (
            row
            for created_at, id in places
            if (row := live.get(id) or at_rest.get(id)) is not None
            and (not names or row[_STATE] in names)
            and not row[_GONE]
            and row[_CREATED_AT] == created_at  # or it is another of this id
        )
        jobs = [_unpacked(row) for row in islice(matching, limit)]
        more = next(matching, None) is not None
        return Page(jobs, dump_cursor(jobs[-1].created_at, jobs[-1].id) if more else None)

    def _in_states(self, states: Collection[State], **of: Any) -> Iterator[Place]:
        """The places of jobs in some states, as `Order` has them; the live ones are looked for."""
        narrowed = any(bound is not None for bound in of.values())
        live = sorted(
            (
                (job.created_at, id)
                for id, job in self._live.items()
                if job.state in states
                and not job.synchronous
                and (not narrowed or within(job, **of))
            ),
            reverse=True,
        )
        ended = map(self._ended.order, _FINAL.intersection(states))
        return merge(live, *(order.newest_first(**of) for order in ended), reverse=True)

    async def totals(self) -> dict[tuple[str, State], Total]:
        found = self._ended.totals()
        live: defaultdict[tuple[str, State], list[float]] = defaultdict(list)
        for job in self._live.values():
            if not job.synchronous:
                live[job.route, job.state].append(job.created_at)
        for group, times in live.items():  # of none has any ended
            found[group] = Total(len(times), min(times), 0.0)
        return found

    async def renew(self, fences: Mapping[str, int], lease: float) -> dict[str, State]:
        held = {}
        for id, fence in fences.items():
            job = self._live.get(id)
            if job is not None and job.fence == fence:
                self._leases[id] = self._clock() + lease
                held[id] = job.state
        return held

    async def abandoned(self) -> AsyncIterator[Abandoned]:
        now = self._clock()
        for id, _ in sorted(self._leases.items(), key=lambda item: item[1]):
            if (until := self._leases.get(id, math.inf)) <= now:
                yield Abandoned(id, self._live[id], now - until)

    async def claim_deliveries(self, now: float, lease: float, limit: int) -> Sequence[Job]:
        clock = self._clock()
        due = ((at, id) for id, (at, until) in self._owed.items() if at <= now and until <= clock)
        taken = nsmallest(limit, due)
        for at, id in taken:
            self._owed[id] = at, clock + lease
        return [self._there(id) for _, id in taken]

    async def sweep(self, now: float) -> bool:
        self._most = max(self._most, len(self))
        self._due.update(self._newly_due)
        self._newly_due.clear()
        for id, _ in self._due.expire(now):
            job = self._there(id)
            if not job.gone:
                self._put(job, job.tombstone(now))
            else:
                del self._at_rest[id]
                self._bytes -= RECORD_COST + _kept(job)
                self._owed.pop(id, None)
                self._waiting.wake((id,))
        self._order.prune(len(self), self._has)
        self._ended.prune(len(self), self._has)
        if len(self) < self._most // 4:
            self._shrink()
        return bool(self._live or self._at_rest)

    async def aclose(self) -> None:
        """Nothing to release: the jobs stay readable as long as the store is there."""

    def _get(self, id: str) -> Job | None:
        job = self._live.get(id)
        if job is None and (packed := self._at_rest.get(id)) is not None:
            job = _unpacked(packed)
        return job

    def _partial(self, id: str) -> Partial | None:
        if (job := self._get(id)) is None:
            return None
        if job.response is not None:
            return told(job)
        return Partial(job, self._heads.get(id), self._size_of(id))

    def _listed(self, id: str) -> tuple[float, str, str | None] | None:
        row = self._live.get(id) or self._at_rest.get(id)
        if row is None or row[_GONE] or row[_SYNCHRONOUS]:
            return None
        return row[_CREATED_AT], row[_ROUTE], row[_OWNER]

    def _end_of(self, id: str) -> End | None:
        row = self._at_rest.get(id)
        if row is None or row[_GONE] or row[_SYNCHRONOUS]:
            return None
        seconds = ran(row[_STARTED_AT], row[_FINISHED_AT])
        return End(row[_CREATED_AT], row[_ROUTE], row[_OWNER], _STATES[row[_STATE]], seconds)

    def _has(self, id: str) -> bool:
        return id in self._live or id in self._at_rest

    def _there(self, id: str) -> Job:
        job = self._get(id)
        assert job is not None
        return job

    def _full(self) -> StoreFull:
        return StoreFull(f"the memory store holds {self._bytes} of {self._max_bytes} bytes")

    def _check_room(self, job: Job, bounds: Bounds) -> None:
        most = bounds.stored if job.owner is not None else None
        if most is not None and self._stored.get((job.counts_for, job.owner), 0) >= most:
            raise NoRoom(owner=True, stored=True)
        if bounds.route is None and bounds.owner is None:
            return
        states, counts_for = job.counts_with, job.counts_for
        owners = [
            each.owner
            for each in self._live.values()
            if each.state in states and each.counts_for == counts_for
        ]
        quota = bounds.owner if job.owner is not None else None
        if quota is not None and owners.count(job.owner) >= quota:
            raise NoRoom(owner=True)
        if bounds.route is not None and len(owners) >= bounds.route:
            raise NoRoom(owner=False)

    def _shrink(self) -> None:
        """Make the dicts anew: what is deleted from one leaves its room behind."""
        self._live = dict(self._live)
        self._at_rest = dict(self._at_rest)
        self._requests = dict(self._requests)
        self._bodies = dict(self._bodies)
        self._heads = dict(self._heads)
        self._leases = dict(self._leases)
        self._owed = dict(self._owed)
        self._keys = dict(self._keys)
        self._names = dict(self._names)
        self._newly_due = dict(self._newly_due)
        self._counted = set(self._counted)
        self._stored = dict(self._stored)
        due, self._due = self._due, _due_dates()
        self._due.update(due)
        self._most = len(self)

    def _put(self, old: Job, job: Job) -> None:
        id, gone, response = job.id, job.gone, job.response
        rests = gone or job.state in _FINAL
        if rests:
            if self._live.pop(id, None) is not None:
                if not gone:
                    self._ended.come(id)
            elif gone:
                self._ended.go(old)
            self._at_rest[id] = _packed(job)
            if job.delivery is not None or id in self._owed:
                self._owe(job)
        else:
            self._live[id] = job
        if id in self._names and not job.joinable:
            self._take_keys(job)
        if id in self._requests and not job.replayable:
            self._bytes -= _cost(self._requests.pop(id))
        if old.response is not None or old.delivery is not None:
            self._bytes += _kept(job) - _kept(old)
        elif response is not None:
            self._bytes += _size(response.headers)
        if job.progress is not old.progress:
            self._bytes += _said(job.progress) - _said(old.progress)
        if rests and self._leases:
            self._leases.pop(id, None)
        if gone or (rests and response is None):  # not `bodied`
            self._drop_body(id)
        elif rests and id in self._heads:  # its response has one of its own
            self._drop_head(id)
        if (due := job.due_at) is not None:
            self._newly_due[id] = due
        if rests and id in self._counted:
            self._count_stored(old, job)
        if self._waiting.watched:
            self._waiting.wake((id,))

    def _count_stored(self, old: Job, job: Job) -> None:
        """Count what a job has stored, until it is gone."""
        group = job.counts_for, job.owner
        total = self._stored.get(group, 0) + job.stored - old.stored
        if total:
            self._stored[group] = total
        else:
            self._stored.pop(group, None)
        if job.gone:
            self._counted.discard(job.id)

    def _owe(self, job: Job) -> None:
        """A job that has ended has a message, or had one."""
        _, until = self._owed.pop(job.id, (0.0, -math.inf))
        if (at := job.deliver_at) is not None:
            self._owed[job.id] = at, until if job.gone else -math.inf

    def _give(self, id: str, keys: Collection[Key]) -> None:
        for name, fingerprint, lasting in keys:
            self._keys[name] = id, fingerprint, lasting
        self._names.setdefault(id, []).extend(key.name for key in keys)

    def _take_keys(self, job: Job) -> None:
        """Free the keys that a job has no more now that nobody can join it."""
        kept = []
        for name in self._names.pop(job.id):
            if job.gone or not self._keys[name][2]:
                _, fingerprint, lasting = self._keys.pop(name)
                self._bytes -= _cost_of((Key(name, fingerprint, lasting),))
            else:
                kept.append(name)
        if kept:
            self._names[job.id] = kept

    def _append(self, id: str, chunk: bytes) -> None:
        self._bytes += len(chunk)
        body = self._bodies.get(id)
        if body is None:
            self._bodies[id] = chunk  # most bodies are of one piece, and need no list
            return
        if not isinstance(body, Body):
            body = self._bodies[id] = Body(body)
        body.append(chunk)

    def _size_of(self, id: str) -> int:
        body = self._bodies.get(id, b"")
        return body.size if isinstance(body, Body) else len(body)

    def _drop_body(self, id: str) -> None:
        self._bytes -= self._size_of(id)
        self._bodies.pop(id, None)
        if id in self._heads:
            self._drop_head(id)

    def _drop_head(self, id: str) -> None:
        self._bytes -= _size(self._heads.pop(id).headers)


def _due_dates() -> TLRUCache[str, float]:
    """Ids by when they are due. Its clock stands still, so that only `expire()` empties it."""
    return TLRUCache(math.inf, ttu=lambda _, due, __: due, timer=lambda: -math.inf)


def _alike(one: Job, other: Job) -> bool:
    """Whether two jobs count together."""
    return one.state in other.counts_with and one.counts_for == other.counts_for


_Packed = tuple[Any, ...]
"""A job at rest: plain values in a plain tuple, and those of its response behind them.

The garbage collector looks at such a tuple once, and then leaves it alone (CPython's "untracked"
objects); at one with tuples in it, of which a few have some, once for each of them. At a Job, and
all that it refers to, it would look in every full collection, and be called to many more of them.
"""

_new = tuple.__new__

# Bytes of header fields that are parted once for all jobs that have the same, and outlive them.
_SHORT = 1024

_PROGRESS, _RESPONSE, _ERROR = map(Job._fields.index, ("progress", "response", "error"))
_DELIVERY = Job._fields.index("delivery")
_GONE, _SYNCHRONOUS, _OWNER = map(Job._fields.index, ("gone", "synchronous", "owner"))
_ROUTE, _STATE, _CREATED_AT = map(Job._fields.index, ("route", "state", "created_at"))
_STARTED_AT, _FINISHED_AT = map(Job._fields.index, ("started_at", "finished_at"))

_STATES = {state.value: state for state in State}
_WORDS = {state: word for word, state in _STATES.items()}
_FINAL = {state for state in State if not TRANSITIONS[state]}


def _packed(job: Job) -> _Packed:
    fields: list[Any] = list(job)
    fields[_STATE] = _WORDS[fields[_STATE]]
    if (progress := fields[_PROGRESS]) is not None:
        fields[_PROGRESS] = astuple(progress)
    if (response := fields[_RESPONSE]) is not None:
        status, headers, size = response
        joined = b"\n".join(chain.from_iterable(headers))
        # But not if some have what parts them, as none on the wire has.
        fields[_RESPONSE] = joined if joined.count(b"\n") == 2 * len(headers) - 1 else headers
        fields += status, size
    if (error := fields[_ERROR]) is not None:
        fields[_ERROR] = astuple(error)
    if (delivery := fields[_DELIVERY]) is not None:
        fields[_DELIVERY] = tuple(delivery)
    return tuple(fields)


def _unpacked(packed: _Packed) -> Job:
    if isinstance(packed, Job):
        return packed
    fields = [*packed]
    fields[_STATE] = _STATES[fields[_STATE]]
    if (headers := fields[_RESPONSE]) is not None:
        size, status = fields.pop(), fields.pop()
        parted = _parted if len(headers) <= _SHORT else _parted.__wrapped__
        fields[_RESPONSE] = _new(CapturedResponse, (status, parted(headers), size))
    if (progress := fields[_PROGRESS]) is not None:
        fields[_PROGRESS] = Progress(*progress)
    if (error := fields[_ERROR]) is not None:
        fields[_ERROR] = Problem(*error)
    if (delivery := fields[_DELIVERY]) is not None:
        fields[_DELIVERY] = Delivery._make(delivery)
    return _new(Job, fields)  # of the right number, which `_make` would look at again


# Those of one route have mostly the same few.
@lru_cache(maxsize=1024)
def _parted(headers: bytes | RawHeaders) -> RawHeaders:
    """Header fields as they were."""
    if isinstance(headers, bytes):
        parts = iter(headers.split(b"\n"))
        return tuple(zip(parts, parts, strict=True))
    return headers


def _cost_of(keys: Collection[Key]) -> int:
    return sum(KEY_COST + len(key.name) + len(key.fingerprint or "") for key in keys)


def _kept(job: Job) -> int:
    """What a record counts for by what it says of a response and a message."""
    size = 0 if job.response is None else _size(job.response.headers)
    return size if job.delivery is None else size + len(job.delivery.url)


def _said(progress: Progress | None) -> int:
    # As Python keeps text: up to four bytes for each character.
    return 0 if progress is None or progress.message is None else getsizeof(progress.message)


def _cost(request: CapturedRequest) -> int:
    return len(request.body) + _size(request.headers)


def _size(headers: RawHeaders) -> int:
    size = 0
    for name, value in headers:
        size += len(name) + len(value)
    return size
