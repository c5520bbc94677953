"""The matrix app as a bare ASGI callable: no framework, no decorator, path rules only."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from urllib.parse import parse_qs

import anyio
import anyio.to_thread
from starlette.types import Receive, Scope, Send

from raincheck import Limits, LongRunningMiddleware, Policy
from tests.matrix.apps import work

Headers = Iterable[tuple[bytes, bytes]]


async def parts_of(receive: Receive) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await receive()
        assert message["type"] == "http.request"
        yield message.get("body", b"")
        more = message.get("more_body", False)


async def body_of(receive: Receive) -> bytes:
    return b"".join([part async for part in parts_of(receive)])


async def echo(receive: Receive, send: Send) -> None:
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})


async def answer(send: Send, status: int, body: bytes, headers: Headers = ()) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body})


async def answer_in_parts(send: Send, parts: AsyncIterator[bytes]) -> None:
    headers = [(b"content-type", b"text/csv")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    async for part in parts:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def bare(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await echo(receive, send)
        return
    assert scope["type"] == "http"  # says of a lifespan that it knows none
    method, path = scope["method"], scope["path"]
    query = parse_qs(scope["query_string"].decode())
    if path == "/plain":
        await answer(send, 200, b"plain")
    elif path not in PATHS:
        await answer(send, 404, b"not found")
    elif method != "POST":
        await answer(send, 405, b"not allowed", [(b"allow", b"POST")])
    elif path == "/orders":
        order = json.loads(await body_of(receive))
        if problem := work.problem_of(order):
            await answer(send, 422, json.dumps({"detail": problem}).encode())
        else:
            receipt = {"item": order["item"], "total": await work.total(order["count"], 1.5)}
            await answer(send, 201, json.dumps(receipt).encode())
    elif path == "/upload":
        await anyio.sleep(0.2)
        cookies = [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]
        await answer(send, 200, (await body_of(receive))[::-1], cookies)
    elif path == "/file":
        await anyio.sleep(0.2)
        head, _, rest = (await body_of(receive)).partition(b"\r\n\r\n")
        name = head.partition(b'filename="')[2].partition(b'"')[0].decode()
        film = {"name": name, "size": len(rest.partition(b"\r\n--")[0])}
        await answer(send, 200, json.dumps(film).encode())
    elif path == "/slow":
        done = await work.slow(query["name"][0], float(query["seconds"][0]))
        await answer(send, 200, done.encode())
    elif path == "/in-thread":
        await answer(send, 200, (await anyio.to_thread.run_sync(work.in_thread)).encode())
    elif path == "/stream":
        await answer_in_parts(send, work.chunks())
    elif path == "/meter":
        await answer(send, 200, json.dumps(await work.meter(parts_of(receive))).encode())
    elif path == "/videos":
        await answer(send, 200, (await work.slow("video", 0.2)).encode())
    elif path == "/odd":  # the response that the body describes
        odd = json.loads(await body_of(receive))
        headers = [(n.encode("latin-1"), v.encode("latin-1")) for n, v in odd["headers"]]
        await answer(send, odd["status"], odd["body"].encode(), headers)
    elif path == "/exports":
        await answer(send, 200, (await work.slow("export", 60)).encode())


PATHS = (
    *("/orders", "/upload", "/file", "/slow", "/in-thread", "/stream", "/videos", "/exports"),
    *("/odd", "/meter"),
)

app = LongRunningMiddleware(
    bare,
    routes={
        "POST /orders": Policy(wait=0.75),  # long enough for a quick 422
        "POST /slow": Policy(timeout=60),
        **{f"POST {path}": Policy() for path in PATHS[1:] if path not in ("/slow", "/meter")},
    },
    limits=Limits(drain_timeout=work.DRAIN),
)
