"""Metrics, probes and a log in JSON, and what they say of jobs that wait, run and fail.

`uvicorn examples.telemetry:app` serves it: http://localhost:8000/metrics/ and /health/queue.
It needs `pip install raincheck[prometheus]`. `python examples/telemetry.py` prints:

    POST /reports/1, /reports/2, /reports/3: 202, 202, 202
    GET /health/ready: 200 {"status":"ready","running":1,"queued":2}
    GET /health/queue: 2 wait, the first for 1.1 s
    the log: {"level": "WARNING", "route": "report", "run": 1, "seconds": 1.5, "reason": "timeout"}
    GET /metrics/:
      raincheck_finished_total{outcome="failed",reason="timeout",route="report"} 1.0
      raincheck_jobs{route="report",state="queued"} 1.0
"""

import asyncio
import json
import logging

import httpx
from prometheus_client import CollectorRegistry, make_asgi_app
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from raincheck import Jobs, Limits, LongRunningMiddleware, long_running
from raincheck.telemetry.logging import LoggingTelemetry
from raincheck.telemetry.prometheus import PrometheusTelemetry
from raincheck.testing import lifespan


@long_running(name="report", timeout=1.5)
async def make_report(request: Request) -> Response:
    await asyncio.sleep(60)
    return PlainTextResponse("the report")


registry = CollectorRegistry()  # without it: prometheus_client's own
jobs = Jobs(
    limits=Limits(max_running=1, drain_timeout=0),
    telemetry=[LoggingTelemetry(), PrometheusTelemetry(registry=registry)],
)
app = Starlette(
    routes=[
        Route("/reports/{number:int}", make_report, methods=["POST"]),
        Mount("/metrics", make_asgi_app(registry)),
        Mount("/health", jobs.health_app),
    ],
    middleware=[Middleware(LongRunningMiddleware, jobs=jobs)],
)


class AsJson(logging.Formatter):
    """Makes fields of what a line about a job has in `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {name: getattr(record, name) for name in ("route", "run", "seconds", "reason")}
        if fields["seconds"] is not None:  # of one that has run
            fields["seconds"] = round(fields["seconds"], 1)
        return "the log: " + json.dumps({"level": record.levelname, **fields})


class Printed(logging.Handler):
    """Prints the lines about jobs, which a server would write to its own output."""

    def emit(self, record: logging.LogRecord) -> None:
        if hasattr(record, "job"):
            print(self.format(record))


async def main() -> None:
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app")
    async with lifespan(app), client:
        paths = [f"/reports/{number}" for number in (1, 2, 3)]
        accepted = [await client.post(path) for path in paths]
        print(f"POST {', '.join(paths)}: {', '.join(str(each.status_code) for each in accepted)}")
        await asyncio.sleep(1.1)
        ready = await client.get("/health/ready")
        print(f"GET /health/ready: {ready.status_code} {ready.text}")
        queue = (await client.get("/health/queue")).json()
        waited = queue["oldest_queued_seconds"]
        print(f"GET /health/queue: {queue['queued']} wait, the first for {waited:.1f} s")
        await asyncio.sleep(1.6)
        print("GET /metrics/:")
        for line in (await client.get("/metrics/")).text.splitlines():
            if 'state="queued"' in line or line.startswith("raincheck_finished_total{"):
                print(f"  {line}")
        for each in accepted:
            await client.delete(each.headers["location"])


if __name__ == "__main__":
    handler = Printed()
    handler.setFormatter(AsJson())
    logger = logging.getLogger("raincheck")
    logger.addHandler(handler)
    logger.propagate = False
    asyncio.run(main())
