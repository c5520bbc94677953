"""The status routes: poll, long poll, result, cancel, delete."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from functools import lru_cache
from urllib.parse import quote

from cachetools import LRUCache
from starlette.types import Message, Receive, Scope, Send

from raincheck.dialects.base import Dialect, Outlook, Reply, Urls
from raincheck.errors import BodyLost, Problem, StoreError, StoreUnavailable, UnreadableRecord
from raincheck.ids import Origin
from raincheck.job import Job, State
from raincheck.jobs import Jobs
from raincheck.messages import CapturedResponse, servable
from raincheck.owners import OwnerError, Owners, same
from raincheck.preferences import parse
from raincheck.serialization import dump, load

logger = logging.getLogger("raincheck")

UNKNOWN = Problem("not-found", 404, "There is no such job", "No job has this id.")
EXPIRED = Problem("expired", 410, "The job is gone", "The job has expired, or was deleted.")
CANCELLED = Problem("cancelled", 410, "The job was cancelled", "The job will have no response.")
FINISHED = Problem("finished", 409, "The job has finished", "A finished job cannot be cancelled.")
NOT_ALLOWED = Problem(
    "method-not-allowed", 405, "The method is not allowed", "Allow names the methods of this URL."
)
NO_STORE = Problem(
    StoreUnavailable.name,
    503,
    StoreUnavailable.title,
    "The job store does not answer; the job is kept.",
)
MISPLACED = Problem(
    "another-process",
    503,
    "Another process has this job, or had it",
    "The job was accepted by another process of this deployment that runs beside this one, or by "
    "one that has ended: each keeps its jobs in its own memory, and they end with it. Run a single "
    "process, or give all of them a shared store.",
)

# The longest long poll, and the first part of one in which a change is no news yet, in seconds:
# whoever follows a job that changes all the time asks no more than once a second.
LONGEST_POLL = 25.0
_AT_LEAST = 1.0

# What is done with a job that is there is done with this one where there is none.
_DECOY = Job(
    id="x" * 30,
    route="app.endpoints.report",
    state=State.SUCCEEDED,
    created_at=1.7e9,
    version=2,
    fence=1,
    runs=1,
    started_at=1.7e9,
    finished_at=1.7e9,
    expires_at=1.7e12,
    purge_at=1.7e12,
    response=CapturedResponse(
        200, ((b"content-length", b"1000"), (b"content-type", b"application/json")), 1000
    ),
    owner="x" * 30,
)
_DECOY_RECORD = dump(_DECOY)


class Places:
    """Where jobs are found.

    Args:
        path: the mount path, e.g. `/jobs`.
        base_url: scheme, host and whatever else goes in front of all paths; None for relative URLs.
    """

    def __init__(self, path: str, base_url: str | None) -> None:
        self.path = path
        self._base_url = base_url

    def urls(self, prefix: str, id: str) -> Urls:
        """The URLs of a job whose status routes stand below `prefix`.

        They name no other host, whatever path a client has brought: a URL that begins with two
        slashes would (RFC 3986 §4.2).
        """
        result = f"{self._base_url or ''}{_quoted(prefix)}/{id}"
        return Urls(result, f"{result}/status", f"{result}/cancel", self._base_url is not None)


@lru_cache(maxsize=1024)
def _quoted(prefix: str) -> str:
    """A path as it stands in a URL (RFC 3986 §3.3): parts of it may come from the client.

    It begins with one slash; to browsers a backslash is another.
    """
    path = "/" + prefix.lstrip("/\\")
    return quote(path, safe="/-._~!$&'()*+,;=:@", errors="surrogatepass")


class StatusRoutes:
    """Serves `{id}`, `{id}/status` and `{id}/cancel` below wherever it is mounted.

    Args:
        jobs: the jobs.
        dialect: how they are spelt.
        places: where they are found.
        owners: whose a request is.
        max_wait: the longest long poll, in seconds; more than 25 are 25.
    """

    def __init__(
        self,
        jobs: Jobs,
        dialect: Dialect,
        places: Places,
        *,
        owners: Owners,
        max_wait: float,
    ) -> None:
        self.owners = owners
        self.jobs = jobs
        self.dialect = dialect
        self.places = places
        self.max_wait = min(max_wait, LONGEST_POLL)
        self._warned = False
        self._unreadable = LRUCache[str, bool](maxsize=1024)  # those that the log has told of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve as an app mounted by hand: the scope's `root_path` ends with the mount path."""
        if scope["type"] == "http":
            prefix: str = scope.get("root_path", "")
            await self.serve(scope["path"].removeprefix(prefix), prefix, scope, send)

    async def serve(self, tail: str, prefix: str, scope: Scope, send: Send) -> None:
        """Serve one request.

        Args:
            tail: the path below the mount path, with its leading slash.
            prefix: everything above, for the links.
            scope: the request.
            send: where the answer goes.
        """
        if not self.jobs.ready:
            await self.jobs.open()
        id, slash, route = tail[1:].partition("/")
        exchange = _Exchange(self, id, prefix, scope, send)
        try:
            if id and not slash and scope["method"] == "GET":
                await exchange.result()  # the poll, which is most of all requests
            else:
                await self._serve(route if slash else None, exchange, scope["method"])
        except Exception as error:
            if exchange.started:
                raise
            if isinstance(error, UnreadableRecord):
                self._tell_unreadable(id, error)
            elif isinstance(error, StoreError | OSError):
                self.jobs.availability.failed(error)
            else:  # ours, the dialect's or the owner's
                logger.exception("a status route failed")
            await exchange.reply(self.dialect.problem(NO_STORE, retry_after=5))

    def _tell_unreadable(self, id: str, error: UnreadableRecord) -> None:
        """Say that a job which was asked for cannot be read, once."""
        if id not in self._unreadable:
            self._unreadable[id] = True
            logger.warning("job %s was asked for, and cannot be read: %s", id, error)

    async def _serve(self, route: str | None, exchange: _Exchange, name: str) -> None:
        allowed = exchange.methods(route)
        method = allowed.get(name)
        if method is not None:
            await method()
        elif allowed:
            reply = self.dialect.problem(NOT_ALLOWED)
            reply.headers.append((b"allow", ", ".join(sorted(allowed)).encode()))
            await exchange.reply(reply)
        else:
            await exchange.reply(self.dialect.problem(UNKNOWN))

    def absent(self, id: str) -> Reply:
        """The answer for an id that no job here has."""
        if self.jobs.store.shared or self.jobs.origin(id) is not Origin.ELSEWHERE:
            return self.dialect.problem(UNKNOWN)
        if not self._warned:
            self._warned = True
            logger.error(
                "a job of another process was asked for, or of one that has ended, such as before "
                "a reload: each has its jobs in its own memory; run a single process, or give all "
                "of them a shared store"
            )
        return self.dialect.problem(MISPLACED, retry_after=1)


_Wait = Callable[[Job, float], Awaitable[Job | None]]


def _finished(job: Job) -> bool:
    return job.finished


class _Exchange:
    """One request to a status route."""

    __slots__ = ("_prefix", "_routes", "_scope", "_send", "id", "started")

    def __init__(
        self, routes: StatusRoutes, id: str, prefix: str, scope: Scope, send: Send
    ) -> None:
        self._routes = routes
        self.id = id
        self.started = False
        self._prefix = prefix
        self._scope = scope
        self._send = send

    def methods(self, route: str | None) -> dict[str, Callable[[], Awaitable[None]]]:
        """What each method does on a route; empty if there is no such route."""
        if not self.id:
            return {}
        if route is None:
            return {"GET": self.result, "HEAD": self.result, "DELETE": self._delete}
        if route == "status":
            return {"GET": self._monitor, "HEAD": self._monitor}
        if route == "cancel":
            return {"POST": self._cancel}
        return {}

    async def reply(self, reply: Reply) -> None:
        """Send what a dialect has written."""
        self.started = True
        await send_reply(reply, self._scope, self._send)

    async def _find(self, waits: _Wait | None = None, *, here: Job | None = None) -> Job | None:
        """The job; if there is none to show, the answer has been given.

        Args:
            waits: how it may be waited for, if it may.
            here: the job as it is known without asking the store, if that is enough.
        """
        job = await self._own(here)
        if waits is not None and job is not None and not job.gone and not job.finished:
            wait = min(parse(self._scope["headers"]).wait or 0.0, self._routes.max_wait)
            if wait:
                job = await waits(job, wait)
        if job is None:
            await self.reply(self._routes.absent(self.id))
        elif job.gone:
            await self.reply(self._dialect.problem(EXPIRED))
        else:
            return job
        return None

    async def _end(self, job: Job, wait: float) -> Job | None:
        """The job when it has finished, or after this time."""
        return await self._routes.jobs.until(job, _finished, wait)

    async def _news(self, job: Job, wait: float) -> Job | None:
        """The same, or the job when its state or its progress is another."""
        newest = await self._end(job, min(wait, _AT_LEAST))
        if wait <= _AT_LEAST or newest is None or newest.gone or newest.finished:
            return newest
        known = (job.state, job.progress)

        def changed(newer: Job) -> bool:
            return newer.finished or (newer.state, newer.progress) != known

        return await self._routes.jobs.until(newest, changed, wait - _AT_LEAST)

    async def _own(self, here: Job | None = None) -> Job | None:
        """The job, if it is the asker's; a foreign one is like one that is not there (law 7)."""
        asking, owners = None, self._routes.owners
        if not owners.nobody(self._scope):
            try:
                asking = await owners.of(self._scope)
            except OwnerError:
                return None
        if here is not None and same(here.owner, asking):
            return here
        jobs = self._routes.jobs
        job = await jobs.get(self.id)
        if job is None:  # so that an unknown id takes as long as a foreign one
            if jobs.store.shared:
                load(_DECOY_RECORD)
            _DECOY.expired(jobs.clock())
        theirs = same("nobody" if job is None else job.owner, asking)
        return job if theirs else None

    async def result(self) -> None:
        """Answer a poll: the document, or what it has become."""
        job = await self._find(self._end)
        if job is None:
            return
        if not job.finished:
            await self.reply(self._dialect.pending(job, self._urls(job), self._outlook(job)))
        elif job.response is not None:
            status, headers = self._dialect.result(job)
            headers = servable(job.response, headers, self._scope["method"])
            body = self._routes.jobs.store.read_body(job.id)
            size = job.response.size
            try:
                await send_stored(status, headers, body, size, self._scope, self._begun)
            except BodyLost:
                if self.started or await self._find():
                    raise
        else:
            await self.reply(self._dialect.problem(job.error or CANCELLED, job=job))

    async def _begun(self, message: Message) -> None:
        self.started = True
        await self._send(message)

    async def _monitor(self) -> None:
        if job := await self._find(self._news):
            await self.reply(self._dialect.monitor(job, self._urls(job), self._expected(job)))

    async def _cancel(self) -> None:
        if not await self._find(here=self._routes.jobs.alone(self.id)):
            return
        job = await self._routes.jobs.leave(self.id)
        if job is None or job.gone:
            await self._find()
        elif job.finished and job.state is not State.CANCELLED:
            await self.reply(self._dialect.problem(FINISHED, job=job))
        else:
            await self.reply(self._dialect.cancelled(job, self._urls(job), self._expected(job)))

    async def _delete(self) -> None:
        found = await self._find(here=self._routes.jobs.alone(self.id))
        if found is None:
            return
        job = found
        if found.clients == 1:
            job = await self._routes.jobs.delete(self.id) or found
        elif not found.finished:  # else the others can read it, and which of them asks is not known
            job = await self._routes.jobs.leave(self.id) or found
        if job.gone:  # it was deleted before, and its handler has not ended since
            await self._find()
            return
        reply = self._dialect.deleted(
            job, self._urls(job), self._expected(job), finished=found.finished
        )
        await self.reply(reply)

    @property
    def _dialect(self) -> Dialect:
        return self._routes.dialect

    def _urls(self, job: Job) -> Urls:
        return self._routes.places.urls(self._prefix, job.id)

    def _outlook(self, job: Job) -> Outlook:
        return self._routes.jobs.outlook(job)

    def _expected(self, job: Job) -> Outlook | None:
        return None if job.finished else self._outlook(job)


async def send_reply(reply: Reply, scope: Scope, send: Send) -> None:
    """Send what a dialect has written; no body to a HEAD."""
    start = {"type": "http.response.start", "status": reply.status, "headers": reply.headers}
    await send(start)
    body = b"" if scope["method"] == "HEAD" else reply.body
    await send({"type": "http.response.body", "body": body})


async def send_stored(
    status: int,
    headers: Iterable[tuple[bytes, bytes]],
    body: AsyncIterator[bytes],
    size: int,
    scope: Scope,
    send: Send,
) -> None:
    """Send a stored response chunk by chunk; no body to a HEAD.

    Args:
        status: its status.
        headers: its header fields.
        body: its body.
        size: bytes that the body has to have.
        scope: the request.
        send: where it goes.

    Raises:
        BodyLost: the body is not whole any more. If the response has begun, the server has to break
            it off: to end it would make what is there look whole.
    """
    left = 0 if scope["method"] == "HEAD" else size
    last = b""
    if left and not (last := await anext(body, b"")):  # before the start: it can still be told
        raise _lost(left)
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    if last:
        async for chunk in body:
            left -= len(last)
            await send({"type": "http.response.body", "body": last, "more_body": True})
            last = chunk
    if len(last) != left:
        raise _lost(left - len(last))
    await send({"type": "http.response.body", "body": last})


def _lost(missing: int) -> BodyLost:
    return BodyLost(f"a stored response is {missing} bytes shorter than it was: its job went")
