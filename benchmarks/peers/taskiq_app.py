"""(e) FastAPI, taskiq and Redis.

After the README of taskiq-redis (`RedisStreamBroker` with `RedisAsyncResultBackend`: "It is highly
recommended to use expire time"), and taskiq's "Taskiq + FastAPI" (taskiq-python.github.io) for who
calls `startup()`. The result is asked for at once, and not whether it is ready before: one question
to Redis instead of two. A job that is not known is not told from one that waits.

    python -m taskiq worker peers.taskiq_app:broker
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException
from fastapi.responses import JSONResponse
from taskiq import AsyncTaskiqDecoratedTask
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker
from taskiq_redis.exceptions import ResultIsMissingError

from peers.orders import Order
from peers.work import REPORT, fill

backend: RedisAsyncResultBackend[Any] = RedisAsyncResultBackend(
    os.environ["REDIS_URL"], result_ex_time=3600
)
broker = RedisStreamBroker(os.environ["REDIS_URL"]).with_result_backend(backend)


@broker.task
async def fill_order(order: dict[str, Any]) -> dict[str, Any]:
    return fill(order)


@broker.task
async def make_report(order: dict[str, Any]) -> dict[str, Any]:
    return REPORT


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    if not broker.is_worker_process:
        await broker.startup()
    yield
    if not broker.is_worker_process:
        await broker.shutdown()


app = FastAPI(lifespan=lifespan)


async def accepted(task: AsyncTaskiqDecoratedTask[Any, Any], order: Order) -> JSONResponse:
    id = (await task.kiq(order.model_dump())).task_id
    content = {"job_id": id, "status": "queued"}
    return JSONResponse(content, 202, {"Location": f"/jobs/{id}", "Retry-After": "1"})


@app.post("/orders")
async def create_order(order: Order) -> JSONResponse:
    return await accepted(fill_order, order)


@app.post("/reports")
async def create_report(order: Order) -> JSONResponse:
    return await accepted(make_report, order)


@app.get("/jobs/{id}")
async def read_job(id: str) -> JSONResponse:
    try:
        done = await backend.get_result(id)
    except ResultIsMissingError:
        return JSONResponse({"job_id": id, "status": "queued"}, 202)
    if done.is_err:
        raise HTTPException(500, str(done.error))
    return JSONResponse({"job_id": id, "status": "succeeded", "result": done.return_value})
