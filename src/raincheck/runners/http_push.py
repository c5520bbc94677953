"""Jobs run by whatever calls a URL: Cloud Tasks, Pub/Sub push, QStash, EventBridge, Knative."""

from __future__ import annotations

import base64
import hashlib
import hmac
import inspect
import json
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import aclosing, suppress
from datetime import timedelta
from typing import Any, ClassVar, NamedTuple, TypeGuard

from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from raincheck.attendance import attended
from raincheck.errors import ConfigurationError
from raincheck.policy import Seconds, seconds
from raincheck.runners.base import Brought
from raincheck.runners.engines import EngineRunner

logger: logging.Logger = logging.getLogger("raincheck")

# A day in which an engine may try again, and some more.
_EXPIRES_AFTER = 7 * 24 * 3600.0
_LONGEST = 100 * 365.25 * 24 * 3600.0

# Bytes of a message at most; that of ours has about 200, and some envelopes a few thousand.
_LARGEST = 64 * 1024

# Where the envelopes of the engines have what was given to them, outermost first.
_ENVELOPES = ("message", "detail", "data", "data_base64")

_ANSWERS = {
    Brought.ENDED: (200, None),
    Brought.HELD: (409, "10"),
    Brought.BUSY: (503, "5"),
}
"""The status of each, and seconds until it is worth to be brought again."""


class Push(NamedTuple):
    """What an engine is to bring.

    Attributes:
        id: the job's; an engine that knows names for its messages may use it with a suffix, since
            one that did not run is submitted again.
        queue: the queue that the job's policy names; None for the one of all others.
        body: what it has to POST to `HttpPushRunner.app`, JSON, as it is or in an envelope of its
            own (Pub/Sub's `message.data`, CloudEvents' `data`, EventBridge's `detail`).
    """

    id: str
    queue: str | None
    body: bytes


class HttpPushRunner(EngineRunner):
    """Hands jobs to an engine that calls a URL with them, where nothing runs between requests.

    `submit` posts a message to the engine; the engine POSTs it to `app`, which you mount outside of
    your users' authentication, and which answers when the run has ended:

    - 200: the run has ended, whatever its outcome; it had before; there is no such job
    - 409, `Retry-After`: it runs elsewhere, waits to run again, or is for another release
    - 503, `Retry-After`: there is no room for it here, or the store does not answer
    - 403: the message was not made by us, or has expired
    - 405, 413: it is no POST; it is no message of ours

    A message that comes twice does nothing more. A request that is cut off, as at the time limit of
    a platform, is an interrupted run: the job is brought again if its route may (`on_interrupt`),
    and else has failed.

    Args:
        submit: gives a message to the engine. Called with a `Push`; raises if it was not taken.
        secrets: each at least 16 characters or bytes. The first one signs (HMAC-SHA256, RFC 2104);
            all of them are accepted, so that a new one can be put before an old one.
        authenticate: instead of `secrets`, or besides: whether a request comes from the engine, as
            by its OIDC token. A function or coroutine function of a Starlette `Request`, whose body
            it leaves unread. If it raises, the answer is no, and the log says why.
        queues: the names of the queues that policies name.
        expires_after: seconds for which a message is accepted, as the clocks of the machines have
            it. Default: 7 days.

    Raises:
        ConfigurationError: one of them cannot work, or nothing tells the engine from a stranger.
    """

    patient: ClassVar[bool] = False

    def __init__(
        self,
        submit: Callable[[Push], Awaitable[None]],
        *,
        secrets: Sequence[str | bytes] = (),
        authenticate: Callable[[Request], bool | Awaitable[bool]] | None = None,
        queues: Collection[str] = (),
        expires_after: Seconds = _EXPIRES_AFTER,
    ) -> None:
        super().__init__(queues=queues)
        for name, given in (("submit", submit), ("authenticate", authenticate)):
            if given is not None and not callable(given):
                raise ConfigurationError(f"HttpPushRunner({name}={given!r}): it is no function")
        if isinstance(secrets, str | bytes) or not isinstance(secrets, Sequence):
            raise ConfigurationError("secrets=...: give several, like [new, old]")
        keys = [each.encode() if isinstance(each, str) else each for each in secrets]
        if any(not isinstance(each, bytes) or len(each) < 16 for each in keys):
            raise ConfigurationError("secrets=...: each has 16 characters or bytes at least")
        if not keys and authenticate is None:
            raise ConfigurationError(
                "HttpPushRunner: without secrets=[...] or authenticate=... anybody could run jobs"
            )
        self._submit = submit
        self._keys = keys
        self._authenticate = authenticate
        self._expires_after = _lasting(expires_after)

    async def submit(self, id: str, queue: str | None = None) -> None:
        if queue is not None:
            self.check(queue)
        expires = int(time.time() + self._expires_after)
        message: dict[str, Any] = {"job": id}
        if self._keys:
            signature = _signature(self._keys[0], id, expires)
            message.update(expires=expires, signature=signature)
        await self._submit(Push(id, queue, json.dumps(message).encode()))

    @property
    def app(self) -> ASGIApp:
        """What the engine calls, at whatever path it is mounted."""
        return self._serve

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise ConfigurationError(
                f"HttpPushRunner.app serves requests, not {scope['type']!r}: mount it, like "
                'Mount("/internal/run", runner.app)'
            )
        request = Request(scope, receive)
        if request.method != "POST":
            await _answered(405, headers={"allow": "POST"})(scope, receive, send)
            return
        try:
            id = await self._let_in(request)
        except _Refused as refused:
            await _answered(refused.status)(scope, receive, send)
            return
        except ClientDisconnect:
            return
        run, brought = self.bound(), Brought.ENDED

        async def conduct() -> None:
            nonlocal brought
            brought = await run(id) or Brought.ENDED

        try:
            there = await attended(receive, conduct)
        except Exception:  # ours: an engine that is told of no success brings it again
            told = {"job": id}
            logger.exception("job %s could not be run when it was brought", id, extra=told)
            there, brought = True, Brought.BUSY
        if there:
            status, retry_after = _ANSWERS[brought]
            fields = {} if retry_after is None else {"retry-after": retry_after}
            await _answered(status, headers=fields)(scope, receive, send)

    async def _let_in(self, request: Request) -> str:
        """The id in a message, if it comes from the engine.

        Raises:
            _Refused: it does not, or is none.
        """
        if not await self._known(request):
            raise _Refused(403)
        body = b""
        async with aclosing(request.stream()) as chunks:
            async for chunk in chunks:
                body += chunk
                if len(body) > _LARGEST:
                    raise _Refused(413)
        message = _unwrapped(body)
        id, expires, signature = (message.get(key) for key in ("job", "expires", "signature"))
        if not _plain(id) or (self._keys and not self._signed(id, expires, signature)):
            raise _Refused(403)
        return id

    async def _known(self, request: Request) -> bool:
        """Whether `authenticate` lets it in; if that cannot tell, it does not. Logged."""
        if self._authenticate is None:
            return True
        try:
            told = self._authenticate(request)
            return bool(await told if inspect.isawaitable(told) else told)
        except ClientDisconnect:
            raise
        except Exception:
            logger.exception("whether a request comes from the engine could not be determined")
            return False

    def _signed(self, id: str, expires: Any, signature: Any) -> bool:
        if not _plain(signature) or type(expires) is not int or expires < time.time():
            return False
        found = [hmac.compare_digest(_signature(k, id, expires), signature) for k in self._keys]
        return any(found)


def _lasting(span: Seconds) -> float:
    with suppress(OverflowError):  # of a whole number beyond any float
        if isinstance(span, int | float | timedelta) and 0 < seconds(span) <= _LONGEST:
            return seconds(span)
    raise ConfigurationError(
        f"expires_after={span!r}: it is seconds above 0, or a timedelta, a hundred years at most"
    )


class _Refused(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def _answered(status: int, headers: dict[str, str] | None = None) -> Response:
    return PlainTextResponse("", status, {"cache-control": "no-store", **(headers or {})})


def _plain(text: object) -> TypeGuard[str]:
    """Whether it is ASCII, as ids and signatures are: JSON has strings that no encoding has."""
    return isinstance(text, str) and text.isascii()


def _signature(key: bytes, id: str, expires: int) -> str:
    return hmac.new(key, f"{id}.{expires}".encode(), hashlib.sha256).hexdigest()


def _unwrapped(body: bytes) -> dict[str, Any]:
    """A message of ours, out of whatever envelope an engine has put it into; else nothing."""
    thing: Any = body
    for _ in range(4 * len(_ENVELOPES)):
        if isinstance(thing, bytes | str):
            thing = _read(thing)
        elif not isinstance(thing, dict):
            return {}
        elif "job" in thing:
            return thing
        else:
            thing = next((thing[name] for name in _ENVELOPES if name in thing), None)
    return {}


def _read(text: bytes | str) -> Any:
    """JSON, or JSON in Base64 (RFC 4648 §4); None if it is neither."""
    with suppress(ValueError, RecursionError):
        return json.loads(text)
    with suppress(ValueError, RecursionError):
        return json.loads(base64.b64decode(text, validate=True))
    return None
