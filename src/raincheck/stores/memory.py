"""Jobs in the memory of one process."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from typing import ClassVar

import anyio
from cachetools import TLRUCache

from raincheck.errors import ConfigurationError, StoreFull
from raincheck.job import Job
from raincheck.messages import RawHeaders
from raincheck.stores.base import Store

RECORD_COST = 1024
"""Bytes that a record counts for besides its bodies and headers."""


class MemoryStore(Store):
    """Jobs in the memory of one process: fast, and gone with the process.

    Several processes, such as uvicorn's workers, do not see each other's jobs: use a shared store
    there.

    Args:
        max_bytes: how much may be kept, each record counted with its headers, its bodies and 1 KiB
            besides. From there on new jobs are refused; results are never evicted, and a job that
            was accepted before may end beyond the bound. Default 512 MiB.

    Raises:
        ConfigurationError: `max_bytes` is not a positive whole number.
    """

    shared: ClassVar[bool] = False

    def __init__(self, *, max_bytes: int = 512 * 1024 * 1024) -> None:
        if not isinstance(max_bytes, int) or max_bytes < 1:
            raise ConfigurationError(
                f"MemoryStore(max_bytes={max_bytes!r}): max_bytes is a whole number of bytes, "
                "at least 1"
            )
        self._max_bytes = max_bytes
        self._bytes = 0
        # Time moves for the caches only when sweep() is told so, which takes what they expire.
        self._now = -math.inf
        self._jobs: TLRUCache[str, Job] = TLRUCache(
            math.inf, ttu=lambda _, job, __: _or_never(job.expires_at), timer=lambda: self._now
        )
        self._tombstones: TLRUCache[str, Job] = TLRUCache(
            math.inf, ttu=lambda _, job, __: _or_never(job.purge_at), timer=lambda: self._now
        )
        self._bodies: dict[str, list[bytes]] = {}
        self._waiting: dict[str, _Waiting] = {}

    @property
    def size(self) -> int:
        """Bytes kept, as `max_bytes` counts them."""
        return self._bytes

    def __len__(self) -> int:
        """Jobs and tombstones kept."""
        return len(self._jobs) + len(self._tombstones)

    async def create(self, job: Job) -> Job:
        there = await self.get(job.id)
        if there is not None:
            return there
        cost = _cost(job)
        if self._bytes + cost > self._max_bytes:
            raise StoreFull(f"the memory store holds {self._bytes} of {self._max_bytes} bytes")
        self._jobs[job.id] = job
        self._bytes += cost
        return job

    async def get(self, id: str) -> Job | None:
        job = self._jobs.get(id)
        return job if job is not None else self._tombstones.get(id)

    async def replace(self, job: Job) -> bool:
        old = await self.get(job.id)
        if old is None or old.version + 1 != job.version:
            return False
        if job.gone:
            self._bury(old, job)
        else:
            self._jobs[job.id] = job
            self._bytes += _cost(job) - _cost(old)
        self._wake(job.id)
        return True

    async def append_body(self, id: str, chunk: bytes) -> None:
        if id in self._jobs:
            self._bodies.setdefault(id, []).append(chunk)
            self._bytes += len(chunk)

    async def read_body(self, id: str, offset: int = 0) -> AsyncIterator[bytes]:
        for chunk in tuple(self._bodies.get(id, ())):
            if offset < len(chunk):
                yield chunk[offset:] if offset else chunk
            offset = max(0, offset - len(chunk))

    async def changed(self, id: str, after_version: int) -> Job | None:
        while (job := await self.get(id)) is not None and job.version <= after_version:
            waiting = self._waiting.setdefault(id, _Waiting())
            waiting.tasks += 1
            try:
                await waiting.event.wait()
            finally:
                waiting.tasks -= 1
                if not waiting.tasks and self._waiting.get(id) is waiting:
                    del self._waiting[id]
        return job

    async def unfinished(self) -> AsyncIterator[Job]:
        for job in list(self._jobs.values()):
            if not job.finished:
                yield job

    async def sweep(self, now: float) -> bool:
        # Tombstones first, and only then the time: a cache drops what is due without a word
        # whenever something is put into it.
        for _, job in self._tombstones.expire(now):
            self._bytes -= _cost(job)
        self._now = now
        for id, job in self._jobs.expire(now):
            self._bury(job, job.tombstone(now))
            self._wake(id)
        return bool(self._jobs or self._tombstones)

    async def aclose(self) -> None:
        """Nothing to release: the jobs stay readable as long as the store is there."""

    def _bury(self, job: Job, tombstone: Job) -> None:
        self._jobs.pop(job.id, None)
        body = self._bodies.pop(job.id, ())
        self._bytes -= _cost(job) + sum(map(len, body))
        self._tombstones[job.id] = tombstone
        if job.id in self._tombstones:
            self._bytes += _cost(tombstone)

    def _wake(self, id: str) -> None:
        if waiting := self._waiting.pop(id, None):
            waiting.event.set()


class _Waiting:
    """The tasks that wait for the next version of one job."""

    __slots__ = ("event", "tasks")

    def __init__(self) -> None:
        self.event = anyio.Event()
        self.tasks = 0


def _or_never(time: float | None) -> float:
    return math.inf if time is None else time


def _cost(job: Job) -> int:
    """What a record counts for, without its response body."""
    cost = RECORD_COST
    if job.request is not None:
        cost += len(job.request.body) + _size(job.request.headers)
    if job.response is not None:
        cost += _size(job.response.headers)
    return cost


def _size(headers: RawHeaders) -> int:
    return sum(len(name) + len(value) for name, value in headers)
