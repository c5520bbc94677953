"""(a) Written by hand: Starlette, 202, `asyncio.create_task`, a dict and a status route.

The set of tasks is what the Python documentation asks for: "asyncio.create_task: Save a reference
to the result of this function" (docs.python.org, Coroutines and Tasks). Nothing superfluous, and
nothing left out that it needs. It forgets every job with the process, and no job before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from peers.work import REPORT, fill

jobs: dict[str, dict[str, Any]] = {}
tasks: set[asyncio.Task[None]] = set()

Work = Callable[[Any], Awaitable[Any]]


async def run(job: dict[str, Any], work: Work, order: Any) -> None:
    try:
        job["result"] = await work(order)
        job["status"] = "succeeded"
    except Exception as error:
        job["error"] = str(error)
        job["status"] = "failed"
    job["finished_at"] = datetime.now(UTC).isoformat()


def accepting(work: Work) -> Callable[[Request], Awaitable[Response]]:
    async def accept(request: Request) -> Response:
        order = await request.json()
        id = str(uuid4())
        created_at = datetime.now(UTC).isoformat()
        job = {"job_id": id, "status": "running", "created_at": created_at}
        jobs[id] = job
        task = asyncio.create_task(run(job, work, order))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return JSONResponse(job, 202, {"Location": f"/jobs/{id}", "Retry-After": "1"})

    return accept


async def status(request: Request) -> Response:
    job = jobs.get(request.path_params["id"])
    if job is None:
        return JSONResponse({"detail": "There is no such job."}, 404)
    if job["status"] == "running":
        return JSONResponse(job, 202, {"Retry-After": "1", "Cache-Control": "no-store"})
    return JSONResponse(job, headers={"Cache-Control": "no-store"})


async def order_work(order: Any) -> Any:
    await asyncio.sleep(0)
    return fill(order)


async def report_work(order: Any) -> Any:
    return REPORT


async def endless_work(order: Any) -> Any:
    await asyncio.Event().wait()


app = Starlette(
    routes=[
        Route("/orders", accepting(order_work), methods=["POST"]),
        Route("/reports", accepting(report_work), methods=["POST"]),
        Route("/never", accepting(endless_work), methods=["POST"]),
        Route("/jobs/{id}", status),
    ]
)
