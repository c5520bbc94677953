"""OpenAI's own client follows a slow route: a background response, one that fails, one cancelled.

`uvicorn examples.openai_background:app` serves it; `pip install openai`, and `python
examples/openai_background.py` starts it on a free port and prints

    created: in_progress
    completed: It will rain in Oslo.
    failed: There is no such place.
    cancelled: cancelled
    deleted: 410 The job has expired, or was deleted.
"""

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

import openai
import uvicorn
from openai.types.responses import Response
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from raincheck import LongRunningMiddleware, long_running
from raincheck.dialects import OpenAIDialect


@long_running
async def forecast(request: Request) -> PlainTextResponse | JSONResponse:
    try:
        place = str((await request.json())["input"])
        place.encode()  # JSON may have half of a character, which no answer can
    except (ValueError, TypeError, KeyError):
        return JSONResponse({"error": {"message": "There is no text as input."}}, 400)
    await asyncio.sleep(1)
    if place == "Atlantis":
        return JSONResponse({"error": {"message": "There is no such place."}}, 404)
    return PlainTextResponse(f"It will rain in {place}.")  # or a whole response, with its `output`


# The status routes lie below the route itself, as the client expects.
routes = [Route("/v1/responses", forecast, methods=["POST"])]
speaking = Middleware(LongRunningMiddleware, path="/v1/responses", dialect=OpenAIDialect())
app = Starlette(routes=routes, middleware=[speaking])


def main(client: openai.OpenAI) -> None:
    def create(place: str) -> Response:
        return client.responses.create(model="rain-1", input=place, background=True)

    def wait(response: Response) -> Response:
        while response.status in ("queued", "in_progress"):
            time.sleep(0.5)
            response = client.responses.retrieve(response.id)
        return response

    response = create("Oslo")
    print(f"created: {response.status}")
    response = wait(response)
    print(f"{response.status}: {response.output_text}")

    response = wait(create("Atlantis"))
    assert response.error is not None
    print(f"{response.status}: {response.error.message}")

    response = client.responses.cancel(create("Bergen").id)
    print(f"cancelled: {response.status}")
    client.responses.delete(response.id)
    try:
        client.responses.retrieve(response.id)
    except openai.APIStatusError as error:
        print(f"deleted: {error.status_code} {error.response.json()['error']['message']}")


@contextmanager
def serving() -> Iterator[str]:
    """A real uvicorn on a free port, in a thread of its own."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


if __name__ == "__main__":
    with serving() as url, openai.OpenAI(base_url=f"{url}/v1", api_key="any") as client:
        main(client)
