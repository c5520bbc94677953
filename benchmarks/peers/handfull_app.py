"""(a+) Written by hand, with the duties that raincheck has as well, and nothing superfluous.

The response is kept whole, with its status and header fields, and served again as it was; what runs
is bounded; jobs expire; ids have 128 random bits; a job can be cancelled. It forgets every job with
the process.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from peers.work import REPORT, fill

MAX_RUNNING = 1000
TTL = 3600.0

Work = Callable[[Any], Awaitable[Any]]


@dataclass(slots=True)
class Job:
    """One job: what runs, or what has come of it."""

    id: str
    created_at: str
    status: str = "running"
    task: asyncio.Task[None] | None = None
    response: tuple[int, list[tuple[bytes, bytes]], bytes] | None = None
    expires_at: float = 0.0


jobs: dict[str, Job] = {}
running: set[asyncio.Task[None]] = set()
due: deque[Job] = deque()


async def run(job: Job, work: Work, order: Any) -> None:
    try:
        response = JSONResponse(await work(order))
        job.status = "succeeded"
    except asyncio.CancelledError:
        response = JSONResponse({"detail": "The job was cancelled."}, 410)
        job.status = "cancelled"
    except Exception:
        response = JSONResponse({"detail": "The job has failed."}, 500)
        job.status = "failed"
    job.response = response.status_code, response.raw_headers, bytes(response.body)
    job.task = None
    job.expires_at = time.time() + TTL
    due.append(job)


def sweep() -> None:
    now = time.time()
    while due and due[0].expires_at <= now:
        jobs.pop(due.popleft().id, None)


def document(job: Job) -> dict[str, Any]:
    url = f"/jobs/{job.id}"
    links = {"self": url, "cancel": f"{url}/cancel"}
    return {"job_id": job.id, "status": job.status, "created_at": job.created_at, "links": links}


def accepting(work: Work) -> Callable[[Request], Awaitable[Response]]:
    async def accept(request: Request) -> Response:
        if len(running) >= MAX_RUNNING:
            return JSONResponse({"detail": "Too much runs."}, 503, {"Retry-After": "1"})
        sweep()
        order = await request.json()
        job = Job(secrets.token_urlsafe(16), datetime.now(UTC).isoformat())
        jobs[job.id] = job
        task = job.task = asyncio.create_task(run(job, work, order))
        running.add(task)
        task.add_done_callback(running.discard)
        headers = {
            "Location": f"/jobs/{job.id}",
            "Retry-After": "1",
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
            "Vary": "Prefer",
        }
        return JSONResponse(document(job), 202, headers)

    return accept


def found(request: Request) -> Job | None:
    return jobs.get(request.path_params["id"])


async def status(request: Request) -> Response:
    job = found(request)
    if job is None:
        return JSONResponse({"detail": "There is no such job."}, 404)
    if job.response is None:
        headers = {
            "Location": f"/jobs/{job.id}",
            "Retry-After": "1",
            "Cache-Control": "no-store",
        }
        return JSONResponse(document(job), 202, headers)
    code, fields, body = job.response
    response = Response(body, code)
    response.raw_headers = [
        *fields,
        (b"cache-control", b"no-store"),
        (b"job-status", job.status.encode()),
    ]
    return response


async def cancel(request: Request) -> Response:
    job = found(request)
    if job is None:
        return JSONResponse({"detail": "There is no such job."}, 404)
    if job.task is None:
        return JSONResponse({"detail": "The job has finished."}, 409)
    job.task.cancel()
    return JSONResponse(document(job), 202)


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
        Route("/jobs/{id}/cancel", cancel, methods=["POST"]),
    ]
)
