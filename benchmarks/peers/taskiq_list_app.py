"""FastAPI and taskiq by hand, over the broker that `docs/scaling.md` recommends first.

As `taskiq_app`, but with `ListQueueBroker`: the same broker and server as raincheck's in
`engine.py`. The work takes the order and gives its result; what it is asked for does not survive
the end of a worker.

    python -m taskiq worker peers.taskiq_list_app:broker
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException
from fastapi.responses import JSONResponse
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend
from taskiq_redis.exceptions import ResultIsMissingError

from peers.orders import Order
from peers.work import fill

backend: RedisAsyncResultBackend[Any] = RedisAsyncResultBackend(
    os.environ["REDIS_URL"], result_ex_time=3600
)
broker = ListQueueBroker(os.environ["REDIS_URL"], socket_timeout=None).with_result_backend(backend)


@broker.task
async def fill_order(order: dict[str, Any]) -> dict[str, Any]:
    return {**fill(order), "began": time.monotonic()}


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    if not broker.is_worker_process:
        await broker.startup()
    yield
    if not broker.is_worker_process:
        await broker.shutdown()


app = FastAPI(lifespan=lifespan)


@app.post("/orders")
async def create_order(order: Order) -> JSONResponse:
    id = (await fill_order.kiq(order.model_dump())).task_id
    content = {"job_id": id, "status": "queued"}
    return JSONResponse(content, 202, {"Location": f"/jobs/{id}", "Retry-After": "1"})


@app.get("/jobs/{id}")
async def read_job(id: str) -> JSONResponse:
    try:
        done = await backend.get_result(id)
    except ResultIsMissingError:
        return JSONResponse({"job_id": id, "status": "queued"}, 202)
    if done.is_err:
        raise HTTPException(500, str(done.error))
    return JSONResponse(done.return_value)
