"""A slow process, as clients of OGC API - Processes execute one."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from raincheck import LongRunningMiddleware, long_running
from raincheck.dialects import OGCDialect
from tests.clients.apps import work


@long_running(timeout=work.TIMEOUT)
async def execute(request: Request) -> Response:
    rain = await work.measure((await request.json())["inputs"]["name"])
    if rain is None:
        return JSONResponse({"type": "about:blank", "title": "Broken", "detail": work.REFUSAL}, 422)
    return JSONResponse({"rain": rain})


async def landing(request: Request) -> Response:
    return JSONResponse({"title": "Rain", "links": []})


app = LongRunningMiddleware(
    Starlette(
        routes=[
            Route("/", landing),
            Route("/processes/measure/execution", execute, methods=["POST"]),
        ]
    ),
    dialect=OGCDialect(),
    base_url=work.URL,
)
