"""Azure's clients follow a slow route as they are: absolute URLs are all that they need.

`uvicorn examples.azure_client:app` serves it; with azure-core installed `python
examples/azure_client.py` starts it on a free port and prints

    begun: running
    result: 201 {"pages":3}
    failed: (handler-response) The response has status 422.
    resumed: 201 {"pages":3}
"""

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

import uvicorn
from azure.core import PipelineClient
from azure.core.exceptions import HttpResponseError
from azure.core.polling import LROPoller
from azure.core.polling.base_polling import LROBasePolling
from azure.core.rest import HttpRequest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from raincheck import LongRunningMiddleware, long_running


@long_running
async def render(request: Request) -> JSONResponse:
    await asyncio.sleep(1.5)
    if request.path_params["name"] == "broken":
        return JSONResponse({"error": "there is no such report"}, 422)
    return JSONResponse({"pages": 3}, 201)


reports = Starlette(routes=[Route("/reports/{name}", render, methods=["POST"])])
app = LongRunningMiddleware(reports, base_url="http://localhost:8000")


def polling() -> Any:
    return LROBasePolling(timeout=1)  # seconds until the next poll, where no Retry-After says it


def main(url: str) -> None:
    client: Any = PipelineClient(url)

    def begin(name: str) -> LROPoller[Any]:
        request = HttpRequest("POST", f"{url}/reports/{name}")
        accepted = client.send_request(request, _return_pipeline_response=True)  # as generated ones
        return LROPoller(client, accepted, lambda last: last.http_response, polling())

    poller = begin("annual")
    print(f"begun: {poller.status()}")
    response = poller.result()
    print(f"result: {response.status_code} {response.text()}")

    try:
        begin("broken").result()
    except HttpResponseError as error:
        print(f"failed: {str(error).splitlines()[0]}")

    token = begin("annual").continuation_token()  # for another process, on another day
    later = LROPoller.from_continuation_token(
        polling(), token, client=client, deserialization_callback=lambda last: last.http_response
    )
    response = later.result()
    print(f"resumed: {response.status_code} {response.text()}")


@contextmanager
def serving() -> Iterator[str]:
    """A real uvicorn on a free port, in a thread of its own."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        served = LongRunningMiddleware(reports, base_url=url)
        server = uvicorn.Server(uvicorn.Config(served, log_level="warning"))
        thread = Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.01)
            yield url
        finally:
            server.should_exit = True
            thread.join()


if __name__ == "__main__":
    with serving() as url:
        main(url)
