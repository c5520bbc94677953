"""The main job: a 202 at once, progress at its status URL, and then the response itself.

    python examples/quickstart.py            # prints a real exchange, as `curl -v` would, and ends
    python examples/quickstart.py --serve    # the same, and stays up for your own curl

It starts uvicorn on a free loopback port. What goes over the wire is `POST /emails/send` and its
202; polls of its `Location`, which say "2 of 5 sent" and end with the handler's own 200; the
monitor; and, more briefly, `GET /reports/7`, whose response is a CSV file.
"""

import json
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread

import anyio
import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from raincheck import LongRunningMiddleware, long_running, report


@long_running(timeout=600)
async def send_emails(request: Request) -> Response:
    try:
        body = await request.json()
        user_ids, template = list(body["user_ids"]), str(body["template"])
        template.encode()  # JSON may have half of a character, which no e-mail can
    except (ValueError, TypeError, KeyError):
        # Part of the job, as everything in the handler is: the status URL becomes this 422.
        return JSONResponse({"error": "JSON with user_ids and template is wanted"}, 422)
    for sent, _user_id in enumerate(user_ids, start=1):
        await anyio.sleep(0.45)  # an e-mail goes out
        report(sent / len(user_ids), f"{sent} of {len(user_ids)} sent")
    return JSONResponse({"sent": len(user_ids), "template": template})


@long_running
def render_report(request: Request) -> Response:  # a plain `def` runs in a thread
    rows = ["month,total"]
    for month in (1, 2, 3):
        report(month / 4, f"month {month}")
        time.sleep(0.3)
        rows.append(f"{month},{month * request.path_params['id']}")
    return Response("\n".join(rows) + "\n", media_type="text/csv")


emails = Route("/emails/send", send_emails, methods=["POST"])
reports = Route("/reports/{id:int}", render_report)
app = Starlette(routes=[emails, reports], middleware=[Middleware(LongRunningMiddleware)])

# From here on: a server, and a client that prints what it does.

EMAILS = json.dumps({"user_ids": [1, 2, 3, 4, 5], "template": "welcome"})
BRIEF = (b"prefer", b"location", b"content-type", b"job-status")


def curl(client: httpx.Client, request: httpx.Request, *, brief: bool = False) -> httpx.Response:
    """Send a request, and print what goes over the wire."""
    print(f"> {request.method} {request.url.raw_path.decode()} HTTP/1.1")
    show(">", request.headers, request.content, brief)
    response = client.send(request)
    print(f"< HTTP/1.1 {response.status_code} {response.reason_phrase}")
    show("<", response.headers, response.content, brief)
    return response


def show(mark: str, headers: httpx.Headers, body: bytes, brief: bool) -> None:
    for name, value in headers.raw:
        if not brief or name.lower() in BRIEF:
            print(f"{mark} {name.decode()}: {value.decode()}")
    print(f"{mark}\n{body.decode().rstrip()}\n" if body else mark)


def exchange(client: httpx.Client) -> None:
    headers = {"content-type": "application/json"}
    send = client.build_request("POST", "/emails/send", content=EMAILS, headers=headers)
    response = accepted = curl(client, send)
    while response.status_code == 202:
        delay = int(response.headers["retry-after"])
        print(f"* Retry-After says {delay} s\n")
        time.sleep(delay)
        response = curl(client, client.build_request("GET", accepted.headers["location"]))
    curl(client, client.build_request("GET", accepted.links["monitor"]["url"]))

    print("* Now a report; with `Prefer: wait` a poll is answered when there is news\n")
    response = curl(client, client.build_request("GET", "/reports/7"), brief=True)
    url, headers = response.headers["location"], {"prefer": "wait=10"}
    while response.status_code == 202:
        response = curl(client, client.build_request("GET", url, headers=headers), brief=True)


@contextmanager
def serving() -> Iterator[str]:
    """A real uvicorn on a free port, in a thread of its own, shut down as by Ctrl+C."""
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


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl+C
    with suppress(KeyboardInterrupt), serving() as url:
        with httpx.Client(base_url=url) as client:
            for name in ("accept-encoding", "connection"):  # curl sends neither
                del client.headers[name]
            exchange(client)
        if "--serve" in sys.argv:
            print(f"* Serving until Ctrl+C. Try:\n\ncurl -v {url}/emails/send -d '{EMAILS}'")
            print(f"curl -v {url}/jobs/ID                     # ID: see the 202's Location")
            print(f"curl -v {url}/jobs/ID/cancel -X POST")
            print(f"curl -v {url}/reports/7 -H 'Prefer: wait=5'", flush=True)
            while True:
                time.sleep(3600)


if __name__ == "__main__":
    main()
