"""What the tests of dialects share: a job in each state that there is, and exchanges about it."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import anyio
import httpx
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response

from raincheck import Job, Jobs, Limits, Pages, State, report
from raincheck.dialects import Dialect
from raincheck.stores.base import Store
from tests.conftest import virtual_jobs
from tests.support import Gate, app_of, running, settled, slow_route

TIMEOUT, TTL = 600.0, 3600.0
UNKNOWN = "x" * 30
NO_JOB = Job(id=UNKNOWN, route="", state=State.QUEUED, created_at=0.0)
TIME = "2026-11-29T12:00:00Z"
"""What stands for every time in the documents that are compared."""

_TIMES = re.compile(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ")


def by_header(connection: HTTPConnection) -> str | None:
    return connection.headers.get("x-user")


class Stage(NamedTuple):
    """An app that speaks a dialect.

    Attributes:
        client: of the app.
        jobs: its jobs.
        submitted: the answer to the request that made the one that counts.
        job: that one, as it was accepted.
    """

    client: httpx.AsyncClient
    jobs: Jobs
    submitted: httpx.Response
    job: Job

    async def ask(self, request: str, **options: Any) -> httpx.Response:
        """Send `"GET /jobs/ID"`, with the job's id for ID; or one that nobody has, for NOBODY."""
        method, _, path = request.partition(" ")
        path = path.replace("/ID", f"/{self.job.id}").replace("/NOBODY", f"/{UNKNOWN}")
        return await self.client.request(method, path, **options)

    def read(self, response: httpx.Response) -> Any:
        """Its document, with ID for the job's id, TIME for all times; its text, if it is none."""
        text = response.text.replace(self.job.id, "ID").replace(UNKNOWN, "NOBODY")
        if "json" not in response.headers.get("content-type", ""):
            return text
        return json.loads(_TIMES.sub(TIME, text))


@asynccontextmanager
async def staged(
    dialect: Dialect,
    path: str,
    state: str = "running",
    *,
    submit: str = "/slow",
    answer: Response | None = None,
    headers: Mapping[str, str] | None = None,
    counts: bool = True,
    store: Store | None = None,
    outside: Mapping[str, Any] | None = None,
    **settings: Any,
) -> AsyncIterator[Stage]:
    """An app with one job, which is brought to a state.

    Args:
        dialect: what the app speaks.
        path: where its status routes are.
        state: `queued`, `running`, `cancelling`, `succeeded`, `failed` (with a 422), `crashed`,
            `timed out`, `cancelled`, `expired` or `deleted`.
        submit: the path of the route.
        answer: of the handler, where the job succeeds.
        headers: of the request.
        counts: whether the request makes a job that is still there when it is answered.
        store: where the jobs are.
        outside: settings of the middleware.
        settings: of the route.
    """
    gate, stubborn = Gate(), anyio.Event()

    async def work(request: Request) -> Any:
        report(0.4, "two of five")
        try:
            await gate.wait()
        finally:
            if state == "cancelling":
                with anyio.CancelScope(shield=True):
                    await stubborn.wait()
        if state == "failed":
            return JSONResponse({"detail": "There is no such file."}, 422)
        if state == "crashed":
            raise RuntimeError("an exception's own words")
        return JSONResponse({"sent": 3}) if answer is None else answer

    route = slow_route(work, submit, methods=["POST"], timeout=TIMEOUT, ttl=TTL, **settings)
    jobs = virtual_jobs(limits=Limits(max_running=1, cancel_grace=3600), store=store)
    pages = Pages(own_list=True, operator=lambda c: c.headers.get("x-admin") == "yes")
    given = {"dialect": dialect, "path": path, "owner": by_header, "pages": pages}
    app = app_of(route, jobs=jobs, **given | dict(outside or {}))
    async with running(app) as client:
        client.headers["x-user"] = "ann"
        if state == "queued":
            await client.post(submit, headers={"x-user": "bob"})
        if state not in ("queued", "running", "cancelling", "cancelled", "timed out"):
            gate.open()
        submitted = await client.post(submit, headers=headers)
        await settled()
        made = (await jobs.list(owner="ann")).jobs
        stage = Stage(client, jobs, submitted, made[0] if counts else NO_JOB)
        await _bring(stage, state)
        yield stage
        stubborn.set()
        gate.open()


async def _bring(stage: Stage, state: str) -> None:
    id = stage.job.id
    if state in ("cancelling", "cancelled"):
        await stage.jobs.cancel(id)
    elif state == "timed out":
        await anyio.sleep(TIMEOUT + 1)
    elif state == "expired":
        await anyio.sleep(TTL + 1)
    elif state == "deleted":
        await stage.jobs.delete(id)
    await settled()
    await anyio.sleep(1)


class Exchange(NamedTuple):
    """One request about a job in some state, and its answer.

    Attributes:
        state: as `staged` has them.
        request: as `Stage.ask` has it; empty: the one that was accepted.
        status: of the answer.
        document: the whole document of the answer, as `Stage.read` has it; None: not compared.
        fields: header fields of the answer, in full; None: the field is not there.
    """

    state: str
    request: str
    status: int
    document: Any = None
    fields: Mapping[str, str | None] = {}

    async def check(self, dialect: Dialect, path: str, **settings: Any) -> None:
        """Have this exchange, and compare."""
        async with staged(dialect, path, self.state, **settings) as stage:
            response = await stage.ask(self.request) if self.request else stage.submitted
            assert response.status_code == self.status, response.text
            if self.document is not None:
                assert stage.read(response) == self.document
            for name, value in self.fields.items():
                found = response.headers.get(name)
                assert (found and found.replace(stage.job.id, "ID")) == value, name
