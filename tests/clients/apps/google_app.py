"""A slow custom method, as clients call it that Google generates."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from raincheck import LongRunningMiddleware, long_running
from raincheck.dialects import GoogleDialect
from tests.clients.apps import work


@long_running(timeout=work.TIMEOUT)
async def measure(request: Request) -> Response:
    rain = await work.measure(request.path_params["name"])
    if rain is None:
        return JSONResponse({"message": work.REFUSAL}, 422)
    return JSONResponse({"rain": rain})


app = LongRunningMiddleware(
    Starlette(
        routes=[Route("/v1/projects/rain/stations/{name}:measure", measure, methods=["POST"])]
    ),
    path="/v1/projects/rain/operations",
    dialect=GoogleDialect(),
)
