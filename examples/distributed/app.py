"""An app whose long jobs run in taskiq's workers, and its broker.

    uvicorn examples.distributed.app:app
    taskiq worker examples.distributed.app:broker

Both import this module. Nothing in it differs from an app in one process but the store, which
they share, and the runner. `python -m examples.distributed` tries it out.
"""

import os

import anyio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from taskiq_redis import ListQueueBroker

from raincheck import Limits, LongRunningMiddleware, long_running, report
from raincheck.runners.taskiq import TaskiqRunner
from raincheck.stores.redis import RedisStore

REDIS = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")

# An idle worker waits in one blocking read; redis-py would break that off after five seconds.
broker = ListQueueBroker(REDIS, queue_name="videos", socket_timeout=None)


@long_running(on_interrupt="rerun", timeout=600)
async def transcode(request: Request) -> Response:
    video = await request.body()
    for part in range(1, 6):
        await anyio.sleep(0.5)
        report(part / 5, f"{part} of 5 parts")
    return JSONResponse({"frames": len(video), "by": os.getpid()})


async def health(request: Request) -> Response:
    return JSONResponse({"by": os.getpid()})


app = LongRunningMiddleware(
    Starlette(
        routes=[Route("/videos", transcode, methods=["POST"]), Route("/health", health)],
    ),
    store=RedisStore(REDIS, deployment="videos"),
    runner=TaskiqRunner(broker),
    limits=Limits(lease=10),
)
