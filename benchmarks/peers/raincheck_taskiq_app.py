"""raincheck over taskiq's workers: what `taskiq_list_app` does, with `@long_running` instead.

python -m taskiq worker peers.raincheck_taskiq_app:broker
"""

from __future__ import annotations

import os
import time

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from taskiq_redis import ListQueueBroker

from peers.orders import Order
from peers.work import fill
from raincheck import LongRunningMiddleware, long_running
from raincheck.runners.taskiq import TaskiqRunner
from raincheck.stores.redis import RedisStore

REDIS = os.environ["REDIS_URL"]

broker = ListQueueBroker(os.environ.get("BROKER_URL", REDIS), socket_timeout=None)

api = FastAPI()


@api.post("/orders")
@long_running(on_interrupt="rerun")
async def create_order(order: Order) -> JSONResponse:
    return JSONResponse({**fill(order.model_dump()), "began": time.monotonic()})


store = RedisStore(REDIS, deployment="benchmark")
app = LongRunningMiddleware(api, store=store, runner=TaskiqRunner(broker))
