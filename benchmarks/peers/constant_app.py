"""The same answer to everything, from a constant: what a server can send at most.

To a POST it is a 202 with a status URL, to whatever else the document of a job that runs.
"""

from __future__ import annotations

from typing import Any

from starlette.types import Receive, Scope, Send

BODY = (
    b'{"job_id": "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", "status": "running", '
    b'"created_at": "2026-11-28T22:12:14Z", "progress": null, "message": null, '
    b'"queue_position": null, "estimated_completion": null, "retry_after": 1, "runs": 1, '
    b'"links": {"self": "/jobs/xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx/status", '
    b'"result": "/jobs/xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", '
    b'"cancel": "/jobs/xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx/cancel"}}'
)
START: dict[str, Any] = {
    "type": "http.response.start",
    "status": 202,
    "headers": [
        (b"location", b"/jobs/xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"),
        (b"retry-after", b"1"),
        (b"cache-control", b"no-store"),
        (b"referrer-policy", b"no-referrer"),
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(BODY)),
    ],
}
END = {"type": "http.response.body", "body": BODY}


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await send(START)
        await send(END)
