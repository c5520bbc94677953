"""A slow model, as Replicate's clients ask one for a prediction."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from raincheck import LongRunningMiddleware, long_running
from raincheck.dialects import ReplicateDialect
from tests.clients.apps import work


@long_running(timeout=work.TIMEOUT, max_wait=0.5)  # less than it takes: `run` asks us to wait
async def predict(request: Request) -> Response:
    rain = await work.measure((await request.json())["input"]["name"])
    if rain is None:
        return JSONResponse({"detail": work.REFUSAL}, 422)
    return JSONResponse({"rain": rain})


async def version(request: Request) -> Response:
    """That of the model, which `run` of the client in Python looks at."""
    version = {"id": request.path_params["id"], "created_at": "2026-11-21T12:00:00Z"}
    return JSONResponse({**version, "cog_version": "0.16.0", "openapi_schema": {}})


app = LongRunningMiddleware(
    Starlette(
        routes=[
            Route("/v1/predictions", predict, methods=["POST"]),
            Route("/v1/models/rain/gauge/versions/{id}", version),
        ]
    ),
    path="/v1/predictions",
    dialect=ReplicateDialect(),
    base_url=work.URL,
)
