"""(d) FastAPI, Celery and Redis.

After Celery's documentation (docs.celeryq.dev): "First Steps with Celery" for `delay()` and
`AsyncResult`, "Using Redis" for broker and result backend, and "Optimizing" for short tasks, where
"throughput/round trip latency is important to you": a prefetch multiplier of 64 or 128. `delay()`
blocks for a round trip to Redis. FastAPI's "Concurrency and async / await" has `def` for that, in a
thread; on loopback `async def` accepts half as many jobs again, so that is what is here. A job that
is not known is not told from one that waits: Celery calls both `PENDING`.

    python -m celery -A peers.celery_app:celery_app worker --without-gossip --without-mingle
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery, Task
from celery.result import AsyncResult
from fastapi import FastAPI, HTTPException
from fastapi.responses import JSONResponse

from peers.orders import Order
from peers.work import REPORT, fill

celery_app = Celery(
    "peers.celery_app", broker=os.environ["REDIS_URL"], backend=os.environ["REDIS_URL"]
)
celery_app.conf.update(
    result_expires=3600,
    worker_concurrency=2,
    worker_prefetch_multiplier=128,
)


@celery_app.task
def fill_order(order: dict[str, Any]) -> dict[str, Any]:
    return fill(order)


@celery_app.task
def make_report(order: dict[str, Any]) -> dict[str, Any]:
    return REPORT


app = FastAPI()


def accepted(task: Task, order: Order) -> JSONResponse:
    id = task.delay(order.model_dump()).id
    content = {"job_id": id, "status": "queued"}
    return JSONResponse(content, 202, {"Location": f"/jobs/{id}", "Retry-After": "1"})


@app.post("/orders")
async def create_order(order: Order) -> JSONResponse:
    return accepted(fill_order, order)


@app.post("/reports")
async def create_report(order: Order) -> JSONResponse:
    return accepted(make_report, order)


@app.get("/jobs/{id}")
async def read_job(id: str) -> JSONResponse:
    job = AsyncResult(id, app=celery_app)
    if not job.ready():
        return JSONResponse({"job_id": id, "status": "queued"}, 202)
    if job.failed():
        raise HTTPException(500, str(job.result))
    return JSONResponse({"job_id": id, "status": "succeeded", "result": job.result})
