"""One job, accepted and polled, by nothing but what raincheck itself depends on.

Run by `nox -s wheel`, where nothing is installed but the wheel, and by a test.
"""

import asyncio
import sys

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import Message

import raincheck

EXTRAS = {"asyncpg", "celery", "click", "httpx", "httpx2"}
EXTRAS |= {"opentelemetry", "redis", "rich", "taskiq"}


@raincheck.long_running
async def slow(request: Request) -> PlainTextResponse:
    return PlainTextResponse("done")


app = raincheck.LongRunningMiddleware(Starlette(routes=[Route("/slow", slow, methods=["POST"])]))


async def ask(method: str, path: str, prefer: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
    sent: list[Message] = []
    request: Message | None = {"type": "http.request", "body": b"", "more_body": False}

    async def receive() -> Message:
        nonlocal request
        message, request = request, None
        if message is None:
            await asyncio.sleep(3600)
            return {"type": "http.disconnect"}
        return message

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"test"), (b"prefer", prefer)],
        "server": None,
        "client": None,
    }
    await app(scope, receive, send)
    body = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], dict(sent[0]["headers"]), body


async def main() -> None:
    status, headers, _ = await ask("POST", "/slow", b"respond-async")
    assert status == 202, status
    status, _, body = await ask("GET", headers[b"location"].decode(), b"wait=20")
    assert (status, body) == (200, b"done"), (status, body)


assert not EXTRAS & sys.modules.keys(), EXTRAS & sys.modules.keys()
asyncio.run(main())
print("raincheck", raincheck.__version__, "works with no extra on Python", sys.version.split()[0])
