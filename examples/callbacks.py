"""Callbacks: who asked is told when the job has ended, by a signed POST, and need not ask again.

`pip install raincheck[callbacks,examples]`; `uvicorn examples.callbacks:app` serves both sides, a
service and, for the sake of the example in the same app, the receiver of its messages.
`python examples/callbacks.py` runs them and prints:

    POST /reports/7: 202, applied: respond-async, callback
    received: succeeded, with 200, after 1 delivery that was turned away
    the job: {"status": "delivered", "deliveries": 2, "last_error": null}
    to a URL that nothing permits: 202, applied: respond-async
"""

import asyncio
import base64
import json
import os
import socket
from typing import Any

import httpx
import uvicorn
from standardwebhooks import Webhook
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from raincheck import Jobs, LongRunningMiddleware, long_running
from raincheck.callbacks import Callbacks

SECRET = "whsec_" + base64.b64encode(os.urandom(32)).decode()  # both sides know it

turned_away: list[str] = []
received = asyncio.Queue[dict[str, Any]]()


@long_running
async def make_report(request: Request) -> Response:
    await asyncio.sleep(0.2)
    return JSONResponse({"report": request.path_params["number"]})


async def receive(request: Request) -> Response:
    """What a receiver does: verify, take it once, and answer with 2xx."""
    message = Webhook(SECRET).verify(await request.body(), dict(request.headers))
    if not turned_away:
        turned_away.append(request.headers["webhook-id"])
        return Response(status_code=503)  # it is tried again, five seconds later
    await received.put(message)
    return Response(status_code=204)


def service(url: str) -> LongRunningMiddleware:
    routes = [
        Route("/reports/{number:int}", make_report, methods=["POST"]),
        Route("/hooks/{name}", receive, methods=["POST"]),
    ]
    callbacks = Callbacks(secrets=[SECRET], allow=[f"{url}/hooks/*"])
    return LongRunningMiddleware(Starlette(routes=routes), jobs=Jobs(callbacks=callbacks))


app = service("http://127.0.0.1:8000")


async def ask(client: httpx.AsyncClient, number: int, url: str) -> httpx.Response:
    prefer = {"prefer": f'respond-async, callback; url="{url}"'}
    return await client.post(f"/reports/{number}", headers=prefer)


async def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(service(url), log_level="warning"))
    serving = asyncio.create_task(server.serve([listener]))
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        accepted = await ask(client, 7, f"{url}/hooks/reports")
        applied = accepted.headers["preference-applied"]
        print(f"POST /reports/7: {accepted.status_code}, applied: {applied}")
        monitor = f"{accepted.headers['location']}/status"
        message = await received.get()
        said = f"{message['status']}, with {message['response']['status']}"
        print(f"received: {said}, after {len(turned_away)} delivery that was turned away")
        await asyncio.sleep(0.5)  # until that is noted
        print(f"the job: {json.dumps((await client.get(monitor)).json()['callback'])}")
        ignored = await ask(client, 8, "http://10.0.0.1/hooks/reports")
        applied = ignored.headers["preference-applied"]
        print(f"to a URL that nothing permits: {ignored.status_code}, applied: {applied}")
        await client.get(ignored.headers["location"], headers={"prefer": "wait=10"})
    server.should_exit = True
    await serving


if __name__ == "__main__":
    asyncio.run(main())
