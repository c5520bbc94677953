"""A slow model, as OpenAI's clients ask one for a response in the background."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from raincheck import LongRunningMiddleware, long_running
from raincheck.dialects import OpenAIDialect
from tests.clients.apps import work


@long_running(timeout=work.TIMEOUT)
async def respond(request: Request) -> Response:
    asked = await request.json()
    rain = await work.measure(asked["input"])
    if rain is None:
        return JSONResponse({"error": {"message": work.REFUSAL}}, 422)
    content = {"type": "output_text", "text": f"{rain} mm", "annotations": []}
    message = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed"}
    return JSONResponse(
        {"id": "its own", "model": asked["model"], "output": [{**message, "content": [content]}]}
    )


app = LongRunningMiddleware(
    Starlette(routes=[Route("/v1/responses", respond, methods=["POST"])]),
    path="/v1/responses",
    dialect=OpenAIDialect(),
)
