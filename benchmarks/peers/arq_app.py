"""(c) FastAPI, arq and Redis.

After arq's documentation (arq-docs.helpmanual.io): "Simple Usage" for `create_pool`, `enqueue_job`
and `WorkerSettings`; "Job Results" for `Job`; "Custom job serializers" for MsgPack, "an efficient
binary serialization format"; the reference of `arq.worker.Worker` for `max_jobs` and `poll_delay`,
whose defaults of 10 jobs and half a second would be its whole result here. The pool is opened in
FastAPI's lifespan ("Lifespan Events"). A job that is not known is not told from one that waits:
that would cost a second question to Redis.

    python -m arq peers.arq_app.WorkerSettings
"""

from __future__ import annotations

import functools
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import msgpack
from arq import create_pool
from arq.connections import ArqRedis, RedisSettings
from arq.jobs import Job
from fastapi import FastAPI, HTTPException
from fastapi.responses import JSONResponse

from peers.orders import Order
from peers.work import REPORT, fill

serialize = msgpack.packb
deserialize = functools.partial(msgpack.unpackb, raw=False)
redis_settings = RedisSettings.from_dsn(os.environ["REDIS_URL"])
redis: ArqRedis


async def fill_order(context: dict[str, Any], order: dict[str, Any]) -> dict[str, Any]:
    return fill(order)


async def make_report(context: dict[str, Any], order: dict[str, Any]) -> dict[str, Any]:
    return REPORT


class WorkerSettings:
    """What the worker reads."""

    functions: ClassVar = [fill_order, make_report]
    redis_settings = redis_settings
    job_serializer = serialize
    job_deserializer = deserialize
    max_jobs = 100
    poll_delay = 0.005


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    global redis
    redis = await create_pool(
        redis_settings, job_serializer=serialize, job_deserializer=deserialize
    )
    yield
    await redis.aclose()


app = FastAPI(lifespan=lifespan)


async def accepted(task: str, order: Order) -> JSONResponse:
    job = await redis.enqueue_job(task, order.model_dump())
    assert job is not None
    content = {"job_id": job.job_id, "status": "queued"}
    return JSONResponse(content, 202, {"Location": f"/jobs/{job.job_id}", "Retry-After": "1"})


@app.post("/orders")
async def create_order(order: Order) -> JSONResponse:
    return await accepted("fill_order", order)


@app.post("/reports")
async def create_report(order: Order) -> JSONResponse:
    return await accepted("make_report", order)


@app.get("/jobs/{id}")
async def read_job(id: str) -> JSONResponse:
    done = await Job(id, redis, _deserializer=deserialize).result_info()
    if done is None:
        return JSONResponse({"job_id": id, "status": "queued"}, 202)
    if not done.success:
        raise HTTPException(500, str(done.result))
    return JSONResponse({"job_id": id, "status": "succeeded", "result": done.result})
