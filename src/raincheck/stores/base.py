"""The store port: keeps jobs and response bodies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import ClassVar

from raincheck.job import Job


class Store(ABC):
    """Keeps jobs and response bodies.

    To write one, copy `stores/memory.py`, and run `raincheck.testing.StoreContract` over it.
    Meaning lives above this port: records carry their own times and the caller passes `now`.
    A method that cannot do what it promises raises `StoreError`; what it acknowledged stays.
    """

    shared: ClassVar[bool]
    """Whether other processes that open the same store see the same jobs."""

    @abstractmethod
    async def create(self, job: Job) -> Job:
        """Insert a job unless there is one of this id, or one under any of its keys.

        Returns:
            The job that is there now: this one, or the earlier one.

        Raises:
            StoreFull: there is no room; nothing was evicted and nothing stored.
        """

    @abstractmethod
    async def get(self, id: str) -> Job | None:
        """The newest version of a job or of its tombstone; None if there is neither."""

    @abstractmethod
    async def find(self, key: str) -> Job | None:
        """The job that has this key among its `keys` now; None if there is none."""

    @abstractmethod
    async def replace(self, job: Job) -> bool:
        """Put the next version in the place of the last (compare and swap).

        Keys that it has no more are free again, and new ones are its own. A tombstone (`job.gone`)
        drops the body with it.
        There is always room for a newer version.

        Returns:
            Whether `job.version` was the next one. If not, nothing has changed.
        """

    @abstractmethod
    async def append_body(self, id: str, chunk: bytes) -> None:
        """Add to the end of a job's response body. There is always room for it.

        A job that is unknown or gone keeps nothing; that is no error.
        """

    @abstractmethod
    def read_body(self, id: str, offset: int = 0) -> AsyncIterator[bytes]:
        """The response body as it is now, in non-empty chunks, from this byte on."""

    @abstractmethod
    async def changed(self, id: str, after_version: int) -> Job | None:
        """Wait until a job is newer than `after_version`.

        Returns:
            The newest version, at once if it is newer already; None if there is no such job.
        """

    @abstractmethod
    def unfinished(self) -> AsyncIterator[Job]:
        """Every job whose state is not terminal and that is not gone."""

    @abstractmethod
    async def sweep(self, now: float) -> bool:
        """Turn jobs that have expired into tombstones, and drop the tombstones due by `purge_at`.

        Args:
            now: seconds since the epoch.

        Returns:
            Whether anything is left that can expire later.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Release what the store holds. It may be used again afterwards."""
