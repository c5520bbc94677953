"""Events: how a job stands, told again whenever that changes.

Server-Sent Events, as the HTML Living Standard has them (§9.2). `EventSource` comes back by itself
when a stream ends, and says by `Last-Event-ID` what it has seen; so each ends soon, and keeps no
server from stopping (see `shutdown`).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from functools import partial

import anyio
from starlette.types import Receive, Scope, Send

from raincheck.attendance import attended
from raincheck.dialects.base import Reply
from raincheck.job import Job
from raincheck.session import Session
from raincheck.status.results import send_reply

# Seconds that a stream lasts at most, and after which a silent one has a comment.
_LONGEST = 25.0
_HEARTBEAT = 10.0

# Milliseconds after which a client comes back, at least, and three times that at most: those whom
# one server has sent away together do not come to the next one together.
_RETRY = 1000

# What ends a line, in the order that §9.2.5 of the standard tries them.
_LINE_END = re.compile(rb"\r\n|\n|\r")
_UNFIT = re.compile(r"[\r\n\0]")

_ABOUT_A_BODY = frozenset({b"content-type", b"content-length", b"retry-after"})
_STREAM = ((b"content-type", b"text/event-stream"), (b"x-accel-buffering", b"no"))

COMMENT = b":\n\n"
"""Nothing, in a frame: it keeps what is between from taking the connection for dead."""


def framed(
    data: bytes | None = None,
    *,
    event: str | None = None,
    id: str | None = None,
    retry: int | None = None,
) -> bytes:
    """A frame; whoever reads it has these back (§9.2.6).

    Args:
        data: UTF-8. Each line, whatever ends it, has a field of its own and is read as one that
            ended with LF. None: no event is dispatched.
        event: its type; None is `message`.
        id: what `Last-Event-ID` says from then on; None leaves that as it is.
        retry: milliseconds after which a client whose stream has ended comes back; None leaves that
            as it is.

    Raises:
        ValueError: `event` or `id` has CR, LF or NUL, and would be read as something else.
    """
    fields = [] if retry is None else [b"retry: %d\n" % retry]
    for name, value in (("id", id), ("event", event)):
        if value is not None:
            if _UNFIT.search(value):
                raise ValueError(f"{name}={value!r}: it may have no CR, no LF and no NUL")
            fields.append(f"{name}: {value}\n".encode())
    if data is not None:
        fields += [b"data: %b\n" % line for line in _LINE_END.split(data)]
    return b"".join([*fields, b"\n"])


class Stream:
    """One client that is told of one job.

    Args:
        session: what there is on this event loop.
        stands: spells how a job stands.
        scope: the request.
        receive: tells when its client leaves.
        send: where the stream goes.
    """

    def __init__(
        self,
        session: Session,
        stands: Callable[[Job], Reply],
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        self._session = session
        self._stands = stands
        self._scope = scope
        self._receive = receive
        self._send = send
        self._left = False

    async def run(self, job: Job) -> None:
        """Tell of it, for some time or to its end.

        First how it stands, at once, unless the client has seen that. One that has seen the end is
        told to stop coming back, by a 204.
        """
        reply = self._stands(job)
        fields = [field for field in reply.headers if field[0] not in _ABOUT_A_BODY]
        seen = job.news == _last_seen(self._scope)
        if seen and job.finished:
            await send_reply(Reply(204, fields), self._scope, self._send)
            return
        fields += _STREAM
        if self._scope["method"] == "HEAD":
            await send_reply(Reply(200, fields), self._scope, self._send)
            return
        await self._send({"type": "http.response.start", "status": 200, "headers": fields})
        retry = _RETRY + secrets.randbelow(2 * _RETRY)
        await self._put(framed(retry=retry) if seen else _told(job, reply, retry))
        if not (job.finished or self._left):
            await self._follow(job)
        if not self._left:
            await self._put(b"", more=False)

    async def _follow(self, job: Job) -> None:
        """Tell of what becomes of it, until the time is over, or the client or the server goes."""
        with self._session.waits.at_most(_LONGEST):
            if not await attended(self._receive, partial(self._tell, job)):
                self._left = True

    async def _tell(self, job: Job) -> None:
        with self._session.feeds.follow(job) as feed:
            version = job.version
            while not self._left:
                with anyio.move_on_after(_HEARTBEAT) as silence:
                    newer = await feed.after(version)
                if silence.cancelled_caught:
                    await self._put(COMMENT)
                elif newer is None:
                    return
                else:
                    version = newer.version
                    await self._put(_told(newer, self._stands(newer)))
                    if newer.finished:
                        return

    async def _put(self, body: bytes, *, more: bool = True) -> None:
        try:
            await self._send({"type": "http.response.body", "body": body, "more_body": more})
        except OSError:  # the client has left (ASGI 2.4)
            self._left = True


def _told(job: Job, stands: Reply, retry: int | None = None) -> bytes:
    return framed(stands.body, event="status", id=str(job.news), retry=retry)


def _last_seen(scope: Scope) -> int | None:
    """The version that a client has seen last; None if it has seen none, or says something else."""
    for name, value in scope["headers"]:
        if name == b"last-event-id":
            return int(value) if re.fullmatch(rb"[0-9]{1,18}", value) else None
    return None
