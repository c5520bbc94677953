"""(b) FastAPI's own `BackgroundTasks`, and a dict for the results.

After FastAPI's tutorial, "Background Tasks" (fastapi.tiangolo.com/tutorial/background-tasks): a
parameter of type `BackgroundTasks`, and `add_task()`. Answers are returned as `JSONResponse`s,
which spares them FastAPI's serialisation ("Custom Response": "If you return a `Response` directly,
the data won't be automatically converted").
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from fastapi import BackgroundTasks, FastAPI, HTTPException
from fastapi.responses import JSONResponse

from peers.orders import Order
from peers.work import REPORT, fill

app = FastAPI()
jobs: dict[str, dict[str, Any]] = {}


async def fill_order(job: dict[str, Any], order: Order) -> None:
    job["result"] = fill(order.model_dump())
    job["status"] = "succeeded"


async def make_report(job: dict[str, Any], order: Order) -> None:
    job["result"] = REPORT
    job["status"] = "succeeded"


def accepted(work: Any, order: Order, background_tasks: BackgroundTasks) -> JSONResponse:
    id = str(uuid4())
    job = {"job_id": id, "status": "running", "created_at": datetime.now(UTC).isoformat()}
    jobs[id] = job
    background_tasks.add_task(work, job, order)
    return JSONResponse(job, 202, {"Location": f"/jobs/{id}", "Retry-After": "1"})


@app.post("/orders")
async def create_order(order: Order, background_tasks: BackgroundTasks) -> JSONResponse:
    return accepted(fill_order, order, background_tasks)


@app.post("/reports")
async def create_report(order: Order, background_tasks: BackgroundTasks) -> JSONResponse:
    return accepted(make_report, order, background_tasks)


@app.get("/jobs/{id}")
async def read_job(id: str) -> JSONResponse:
    job = jobs.get(id)
    if job is None:
        raise HTTPException(404, "There is no such job.")
    return JSONResponse(job, 202 if job["status"] == "running" else 200)
