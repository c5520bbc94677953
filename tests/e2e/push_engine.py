"""An engine that calls a URL, as Cloud Tasks and its like do: a test double, over real HTTP.

What is POSTed to `/queue` is POSTed on to `RAINCHECK_TEST_TARGET` until that answers with 2xx. It
misbehaves as such engines may: of some answers it never hears and asks again, and some messages it
brings twice at the same time. It keeps them in memory, and loses none unless it is told to.
"""

import asyncio
import contextlib
import os
import random
from collections import Counter

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

TARGET = os.environ["RAINCHECK_TEST_TARGET"]
LOST = float(os.environ.get("RAINCHECK_TEST_LOST", "0.2"))
TWICE = float(os.environ.get("RAINCHECK_TEST_TWICE", "0.2"))

_TRIES = 2000
_PAUSE = 0.1

chance = random.Random(5)
counted: Counter[str] = Counter()
running: set[asyncio.Task[None]] = set()
client = httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=None))


async def deliver(body: bytes) -> None:
    for _ in range(_TRIES):
        with contextlib.suppress(httpx.HTTPError):
            answer = await client.post(TARGET, content=body)
            counted[str(answer.status_code)] += 1
            if answer.is_success and chance.random() >= LOST:
                return
        await asyncio.sleep(_PAUSE)
    counted["given up"] += 1


async def queue(request: Request) -> Response:
    body = await request.body()
    for _ in range(2 if chance.random() < TWICE else 1):
        running.add(task := asyncio.create_task(deliver(body)))
        task.add_done_callback(running.discard)
    return Response(status_code=202)


async def counts(request: Request) -> Response:
    return JSONResponse({**counted, "on the way": len(running)})


app = Starlette(routes=[Route("/queue", queue, methods=["POST"]), Route("/counts", counts)])
