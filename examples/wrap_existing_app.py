"""Path rules: long-running routes of an app whose code is not touched.

`uvicorn examples.wrap_existing_app:app` serves it; `python examples/wrap_existing_app.py` prints

    GET /health: 200 {"ok":true}
    POST /videos: 202, see /jobs/...
    GET /jobs/...: 201 {"bytes":5}
    GET /reports/7: 202, see /jobs/...
    GET /jobs/...: 200 {"report":7}
"""

import asyncio

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from raincheck import LongRunningMiddleware, Policy
from raincheck.testing import follow, lifespan


# An app that knows nothing of raincheck; any other ASGI app would do.
async def health(request: Request) -> JSONResponse:
    return JSONResponse({"ok": True})


async def transcode(request: Request) -> JSONResponse:
    video = await request.body()
    await asyncio.sleep(0.5)
    return JSONResponse({"bytes": len(video)}, 201)


async def render_report(request: Request) -> JSONResponse:
    await asyncio.sleep(0.5)
    return JSONResponse({"report": request.path_params["id"]})


videos = Route("/videos", transcode, methods=["POST"])
reports = Route("/reports/{id:int}", render_report)
existing_app = Starlette(routes=[Route("/health", health), videos, reports])

# A key is a path, or a method and a path, in Starlette's syntax.
app = LongRunningMiddleware(
    existing_app,
    routes={"POST /videos": Policy(timeout=3600), "/reports/{id:int}": Policy(max_running=2)},
)


async def main() -> None:
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app")
    async with lifespan(app), client:
        for method, path in (("GET", "/health"), ("POST", "/videos"), ("GET", "/reports/7")):
            response = await client.request(method, path, content=b"frame")
            if response.status_code == 202:
                print(f"{method} {path}: 202, see {response.headers['location']}")
                method, path = "GET", response.headers["location"]
                response = await follow(client, response)
            print(f"{method} {path}: {response.status_code} {response.text}")


if __name__ == "__main__":
    asyncio.run(main())
