"""The app of the distributed tests: in one process without a broker, else over an engine's workers.

uvicorn tests.e2e.distributed_app:app
taskiq worker tests.e2e.distributed_app:broker        (or :videos)
celery -A tests.e2e.distributed_app:broker worker     (or -Q videos)
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from taskiq import AsyncBroker

from raincheck import Limits, LongRunningMiddleware, Policy, Retry, long_running, report
from raincheck.progress import current_job
from raincheck.runners.base import Runner
from raincheck.runners.taskiq import TaskiqRunner
from raincheck.stores.redis import RedisStore

LOG = Path(os.environ["RAINCHECK_TEST_LOG"])
BROKER = os.environ.get("RAINCHECK_TEST_BROKER", "")
ENGINE = os.environ.get("RAINCHECK_TEST_ENGINE", "taskiq")

visitor: ContextVar[str] = ContextVar("visitor", default="nobody")


def broker_at(url: str, queue: str) -> AsyncBroker:
    """A broker as `docs/scaling.md` makes it."""
    if url.startswith("redis"):
        from taskiq_redis import ListQueueBroker

        return ListQueueBroker(url, queue_name=queue, socket_timeout=None)
    if url.startswith("amqp"):
        from taskiq_aio_pika import AioPikaBroker, Queue

        return AioPikaBroker(url, qos=100, task_queues=[Queue(name=queue)])
    from nats.js.api import ConsumerConfig, RetentionPolicy, StreamConfig
    from taskiq_nats import PullBasedJetStreamBroker

    return PullBasedJetStreamBroker(
        url,
        subject=queue,
        stream_name=queue,
        durable=queue,
        stream_config=StreamConfig(retention=RetentionPolicy.WORK_QUEUE),
        consumer_config=ConsumerConfig(
            durable_name=queue, ack_wait=float(os.environ.get("RAINCHECK_TEST_ACK_WAIT", "30"))
        ),
        pull_consume_timeout=5,
        max_reconnect_attempts=-1,
        reconnect_time_wait=1,
    )


def note(*words: object) -> None:
    with LOG.open("a") as log:
        log.write(" ".join(map(str, words)) + "\n")


def run_of(job: Any) -> str:
    return f"{job.id} {job.fence}" if job is not None else "none 0"


# --- endpoints ---------------------------------------------------------------------------------


@long_running(on_interrupt="rerun", max_runs=20)
async def work(request: Request) -> Response:
    seconds = float(request.query_params.get("seconds", "0.2"))
    run = run_of(current_job())
    note("begin", run, os.getpid())
    try:
        for step in range(1, 5):
            await anyio.sleep(seconds / 4)
            report(step / 4, f"{step} of 4")
    except BaseException:
        note("stopped", run, os.getpid())
        raise
    note("end", run, os.getpid())
    body = await request.body()
    return JSONResponse(
        {
            "bytes": len(body),
            "order": body.decode()[:20],
            "fence": int(run.split()[1]),
            "by": os.getpid(),
        },
        status_code=201,
    )


@long_running
async def once(request: Request) -> Response:
    note("begin", run_of(current_job()), os.getpid())
    await anyio.sleep(float(request.query_params.get("seconds", "0.2")))
    return JSONResponse({"by": os.getpid()})


@long_running
async def stream(request: Request) -> Response:
    async def pieces() -> AsyncIterator[bytes]:
        for number in range(20):
            yield b"%05d" % number * 4000
            await anyio.sleep(0.01)

    response = StreamingResponse(pieces(), media_type="text/csv")
    response.set_cookie("a", "1")
    response.set_cookie("b", "2")
    return response


@long_running
def in_thread(request: Request) -> Response:
    time.sleep(float(request.query_params.get("seconds", "0.2")))
    return PlainTextResponse("from a thread")


@long_running
async def crash(request: Request) -> Response:
    raise ValueError("as it must")


@long_running(timeout=0.3)
async def late(request: Request) -> Response:
    await anyio.sleep(60)
    return PlainTextResponse("never")


@long_running(retry=Retry(backoff=1))
async def flaky(request: Request) -> Response:
    job = current_job()
    assert job is not None
    body = await request.body()
    told = {"bytes": len(body), "runs": job.runs}
    return JSONResponse(told, 503 if job.runs == 1 else 200)


@long_running(queue="videos")
async def video(request: Request) -> Response:
    note("begin", run_of(current_job()), os.getpid())
    await anyio.sleep(float(request.query_params.get("seconds", "0")))
    return JSONResponse({"by": os.getpid()})


@long_running
async def surroundings(request: Request) -> Response:
    """What of an outer middleware, and of the lifespan, a handler sees."""
    return JSONResponse(
        {
            "variable": visitor.get(),
            "outer": request.scope.get("outer"),
            "header": request.headers.get("x-visitor"),
            "pool": request.state.pool,
        }
    )


async def plain(request: Request) -> Response:
    return JSONResponse({"by": os.getpid()})


# --- around them -------------------------------------------------------------------------------


class Outer:
    """Outside the middleware: sets what it has made of the request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = dict(scope["headers"])
            who = headers.get(b"x-visitor", b"nobody").decode()
            scope["outer"] = who
            visitor.set(who)
        await self.app(scope, receive, send)


class Inner:
    """Inside it: authentication, which runs to accept a request, and again to run it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            note("checked", scope["path"], os.getpid())
            if dict(scope["headers"]).get(b"authorization") == b"wrong":
                await PlainTextResponse("who are you?", 401)(scope, receive, send)
                return
        await self.app(scope, receive, send)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
    note("startup", os.getpid())
    yield {"pool": "open"}
    note("shutdown", os.getpid())


broker: Any = None
runner: Runner | None = None
# The middleware is made when the app is first called: a worker has to know which app that is.
where = None if "RAINCHECK_TEST_FORGET" in os.environ else "tests.e2e.distributed_app:app"
if BROKER and ENGINE == "celery":
    from celery import Celery  # type: ignore[import-untyped]  # it brings no types

    from raincheck.runners.celery import CeleryRunner

    broker = Celery("shop", broker=BROKER)
    broker.conf.task_default_queue = "shop"
    broker.conf.worker_prefetch_multiplier = 1
    broker.conf.worker_disable_prefetch = True
    runner = CeleryRunner(broker, queues=["videos"], app=where)
elif BROKER:
    broker, videos = broker_at(BROKER, "taskiq"), broker_at(BROKER, "videos")
    runner = TaskiqRunner(broker, queues={"videos": videos}, app=where)

app = Starlette(
    routes=[
        *(
            Route(f"/{endpoint.__name__.replace('_', '-')}", endpoint, methods=["POST"])
            for endpoint in (work, once, stream, in_thread, crash, late, flaky, video, surroundings)
        ),
        Route("/plain", plain),
        Route("/rule", plain, methods=["POST"]),
    ],
    middleware=[
        Middleware(Outer),
        Middleware(
            LongRunningMiddleware,
            store=RedisStore(os.environ["RAINCHECK_TEST_STORE"], deployment="fleet"),
            runner=runner,
            routes={"POST /rule": Policy()},
            limits=Limits(
                lease=float(os.environ.get("RAINCHECK_TEST_LEASE", "2")),
                drain_timeout=float(os.environ.get("RAINCHECK_TEST_DRAIN", "2")),
                cancel_grace=1,
                store_timeout=3,
            ),
        ),
        Middleware(Inner),
    ],
    lifespan=lifespan,
)
