"""Who may see a job: its owner, or an operator, and nobody else learns that it is there."""

from __future__ import annotations

import inspect
import logging
from typing import Any

from starlette.requests import HTTPConnection
from starlette.types import Scope

from raincheck.job import Job, State
from raincheck.jobs import Jobs
from raincheck.messages import CapturedResponse
from raincheck.owners import OwnerError, Owners, same
from raincheck.pages import OperatorOf
from raincheck.serialization import dump, load
from raincheck.stores.base import Fetched

logger: logging.Logger = logging.getLogger("raincheck")

# What is done with a job that is there is done with this one where there is none.
_DECOY = Job(
    id="x" * 30,
    route="app.endpoints.report",
    state=State.SUCCEEDED,
    created_at=1.7e9,
    version=2,
    fence=1,
    runs=1,
    started_at=1.7e9,
    finished_at=1.7e9,
    expires_at=1.7e12,
    purge_at=1.7e12,
    response=CapturedResponse(
        200, ((b"content-length", b"1000"), (b"content-type", b"application/json")), 1000
    ),
    owner="x" * 30,
)
_DECOY_RECORD = dump(_DECOY)


class Access:
    """Finds jobs for those who may see them.

    Args:
        jobs: the jobs.
        owners: says whose a request is.
        operator: says whether it is an operator's; None: there are none.
    """

    def __init__(self, jobs: Jobs, owners: Owners, operator: OperatorOf | None) -> None:
        self._jobs = jobs
        self._owners = owners
        self._asks = not owners.nobody({})
        self._operator = operator

    async def job(self, id: str, scope: Scope, *, here: Job | None = None) -> Job | None:
        """A job, if it is the asker's; a foreign one is like one that is not there (law 7).

        Args:
            id: the job's.
            scope: the request.
            here: the job as it is known without asking the store, if that is enough.
        """
        asking = await self._asker(scope) if self._asks or "user" in scope else None
        if isinstance(asking, OwnerError):
            return None
        if here is not None and (here.owner is None or same(here.owner, asking)):
            return here
        job = await self._jobs.get(id)
        return job if self._opens(job, asking) else None

    async def answer(self, id: str, scope: Scope) -> Fetched | None:
        """The same, with the body of its response if that is small: for the poll."""
        asking: str | None = None
        if not self._owners.nobody(scope):
            asker = await self._asker(scope)
            if isinstance(asker, OwnerError):
                return None
            asking = asker
        found = self._jobs.aged(await self._jobs.store.fetch(id))
        if found is not None and found.job.owner is None:  # its id alone opens it
            return found
        return found if self._opens(None if found is None else found.job, asking) else None

    async def operates(self, scope: Scope) -> bool:
        """Whether a request is an operator's; if nobody can tell, it is not. Logged."""
        if self._operator is None:
            return False
        try:
            said: Any = self._operator(HTTPConnection(scope))
            if inspect.isawaitable(said):
                said = await said
            if not isinstance(said, bool):
                raise TypeError(f"Pages(operator=...) gave {type(said).__name__}; it is a bool")
        except Exception:
            logger.exception("whether a request is an operator's could not be determined")
            return False
        return said

    async def listed(self, id: str, scope: Scope) -> Job | None:
        """A job, if it is an operator who asks and could see it in the list."""
        job = await self._jobs.get(id) if await self.operates(scope) else None
        return None if job is None or job.synchronous else job

    async def owner(self, scope: Scope) -> str | None:
        """Whose a request is; None if it is nobody's, or nobody can tell."""
        asking = await self._asker(scope)
        return None if isinstance(asking, OwnerError) else asking

    async def _asker(self, scope: Scope) -> str | OwnerError | None:
        """Whose a request is, or why nobody knows: then the answer is no."""
        try:
            return await self._owners.of(scope)
        except OwnerError as error:
            return error

    def _opens(self, job: Job | None, asking: str | None) -> bool:
        if job is None:  # so that an unknown id takes as long as a foreign one
            if self._jobs.store.shared:
                load(_DECOY_RECORD)
            _DECOY.expired(self._jobs.clock())
        return same("nobody" if job is None else job.owner, asking)
