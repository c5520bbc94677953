"""The app whose probes and metrics are asked for over real HTTP."""

import asyncio
import os
import re
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import uvicorn
from prometheus_client import CollectorRegistry, make_asgi_app, multiprocess
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from raincheck import Jobs, Limits, LongRunningMiddleware, long_running
from raincheck.telemetry.logging import LoggingTelemetry
from raincheck.telemetry.prometheus import PrometheusTelemetry
from tests.e2e.durable_app import opened

prometheus = PrometheusTelemetry()
jobs = Jobs(
    store=opened(os.environ["RAINCHECK_TEST_STORE"]),
    limits=Limits(max_running=2, drain_timeout=10, store_timeout=2),
    telemetry=[LoggingTelemetry(), prometheus],
)


@long_running(name="work", on_interrupt="rerun")
async def work(request: Request) -> Response:
    await asyncio.sleep(float(request.query_params.get("seconds", "0")))
    return PlainTextResponse("done")


async def plain(request: Request) -> Response:
    return PlainTextResponse("plain")


def metrics() -> ASGIApp:
    """What prometheus-client serves; of several workers by its multiprocess mode."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return make_asgi_app()
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call] # it has no types
    registry.register(prometheus.collector)
    return make_asgi_app(registry)


class Late:
    """Passes on a request two seconds late: the server may have been told to stop by then."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(2)
        await self._app(scope, receive, send)


def lifespan() -> Any:
    """What docs/operations.md has for probes on a port of their own."""
    if (port := os.environ.get("RAINCHECK_TEST_HEALTH")) is None:
        return None
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    (text,) = re.findall(r"```python\n(@asynccontextmanager\n.*?)```", page, re.S)
    there = {"asyncio": asyncio, "uvicorn": uvicorn, "jobs": jobs, "nullcontext": nullcontext}
    found: dict[str, Any] = {**there, "asynccontextmanager": asynccontextmanager}
    exec(text.replace("0.0.0.0", "127.0.0.1").replace("9000", port), found)
    return found["lifespan"]


app = LongRunningMiddleware(
    Starlette(
        lifespan=lifespan(),
        routes=[
            Route("/orders/{customer}", work, methods=["POST"]),
            Route("/plain", plain),
            Mount("/metrics", metrics()),
            Mount("/health", jobs.health_app),
            Mount("/late", Late(jobs.health_app)),
        ],
    ),
    jobs=jobs,
)
