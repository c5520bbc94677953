"""Slow routes as Azure's and FHIR's clients call them, in the plain dialect."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from raincheck import LongRunningMiddleware, long_running
from tests.clients.apps import work


@long_running(timeout=work.TIMEOUT)
async def measure(request: Request) -> Response:
    rain = await work.measure(request.path_params["name"])
    if rain is None:
        return JSONResponse({"error": {"code": "Broken", "message": work.REFUSAL}}, 422)
    return JSONResponse({"rain": rain, "method": request.method}, 201)


@long_running(timeout=work.TIMEOUT)
async def analyze(request: Request) -> Response:
    rain = await work.measure(request.path_params["name"])
    if rain is None:
        return JSONResponse({"error": {"code": "Broken", "message": work.REFUSAL}}, 422)
    result = {"apiVersion": "2024-11-30", "modelId": "rain", "content": f"{rain} mm", "pages": []}
    return JSONResponse({"analyzeResult": result})


@long_running(timeout=work.TIMEOUT)
async def export(request: Request) -> Response:
    rain = await work.measure(request.path_params["name"])
    if rain is None:
        issue = {"severity": "error", "code": "exception", "diagnostics": work.REFUSAL}
        return JSONResponse({"resourceType": "OperationOutcome", "issue": [issue]}, 422)
    url = str(request.url.replace(path="/patients", query=""))
    return JSONResponse(
        {
            "transactionTime": "2026-11-21T12:00:00Z",
            "request": str(request.url),
            "requiresAccessToken": False,
            "output": [{"type": "Patient", "url": url}],
            "error": [],
        }
    )


async def capabilities(request: Request) -> Response:
    return JSONResponse({"resourceType": "CapabilityStatement", "fhirVersion": "4.0.1"})


async def patients(request: Request) -> Response:
    line = '{"resourceType": "Patient", "id": "rain"}\n'
    return PlainTextResponse(line, media_type="application/fhir+ndjson")


app = LongRunningMiddleware(
    Starlette(
        routes=[
            Route("/stations/{name}", measure, methods=["POST", "PUT"]),
            Route("/documentintelligence/documentModels/{name}:analyze", analyze, methods=["POST"]),
            Route("/fhir/{name}/metadata", capabilities),
            Route("/fhir/{name}/$export", export, methods=["GET", "POST"]),
            Route("/patients", patients),
        ]
    ),
    base_url=work.URL,
)
