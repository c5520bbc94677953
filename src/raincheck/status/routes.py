"""The status routes: poll, long poll, events, result, cancel, delete."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from functools import lru_cache, partial
from urllib.parse import quote

from cachetools import LRUCache
from starlette.types import Message, Receive, Scope, Send

from raincheck.attendance import attended
from raincheck.dialects.base import (
    Action,
    Asked,
    Content,
    Dialect,
    Mount,
    Outlook,
    Place,
    Reply,
)
from raincheck.errors import (
    RESPONSE_LOST,
    BodyLost,
    IllegalTransition,
    Problem,
    StoreError,
    StoreUnavailable,
    UnreadableRecord,
)
from raincheck.ids import Origin
from raincheck.job import Job, State
from raincheck.jobs import Jobs
from raincheck.messages import CapturedResponse, Field, Fields, Head, RawHeaders, servable
from raincheck.owners import Owners
from raincheck.pages import Pages
from raincheck.preferences import PREFERRING, is_navigation, parse
from raincheck.ranges import ASKING, WHOLE, Wanted, resumed, unmodified, unsatisfied
from raincheck.session import Session
from raincheck.sites import TELLING, may_change, origin_of
from raincheck.sites import Origin as SiteOrigin
from raincheck.status.access import Access
from raincheck.status.events import Stream
from raincheck.status.lists import Lists
from raincheck.status.pages import Screen
from raincheck.status.results import (
    beginning,
    cut,
    embedded,
    negotiated,
    rest,
    send_stored,
    send_whole,
    spans_of,
)
from raincheck.status.stream import (
    announced,
    begun,
    breaks_off,
    ended_fields,
    send_tail,
    stream_fields,
    undelayed,
)
from raincheck.stores.base import Fetched, Partial

logger: logging.Logger = logging.getLogger("raincheck")

_NOWHERE = Place("", {})

_BY_ITSELF = (State.SUCCEEDED, State.FAILED)

# What the answer may depend on, and the one such field that programs send which do not mind: it
# says nothing.
_HEARD = PREFERRING | ASKING | TELLING
_ANYTHING = [(b"accept", b"*/*")]

UNKNOWN = Problem("not-found", 404, "There is no such job", "No job has this id.")
EXPIRED = Problem("expired", 410, "The job is gone", "The job has expired, or was deleted.")
CANCELLED = Problem("cancelled", 410, "The job was cancelled", "The job will have no response.")
UNTOLD = Problem(
    "no-callback", 409, "There is nothing to deliver", "The job has not ended, or tells nobody."
)
FINISHED = Problem("finished", 409, "The job has finished", "A finished job cannot be cancelled.")
UNFINISHED = Problem(
    "unfinished",
    409,
    "The job has not finished",
    "A job is forgotten only once it has finished; cancel it first.",
)
NOT_ALLOWED = Problem(
    "method-not-allowed", 405, "The method is not allowed", "Allow names the methods of this URL."
)
PRECONDITION = Problem(
    "precondition-failed", 412, "The precondition failed", "If-Match names another response."
)
UNSATISFIABLE = Problem(
    "range-not-satisfiable", 416, "There is no such range", "The response ends before this range."
)
ELSEWHERE = Problem(
    "cross-site",
    403,
    "The request comes from another site",
    "Pages of other sites may send this by a fetch that the app's CORS policy allows, with "
    "Content-Type: application/json or an X-Requested-With.",
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


class Mounts:
    """Where the status routes stand: at a path that each request may have a prefix of its own to.

    Args:
        base_url: scheme, host and whatever else goes in front of all paths; None for relative URLs.
    """

    def __init__(self, base_url: str | None) -> None:
        self.origin: SiteOrigin | None = None if base_url is None else origin_of(base_url)
        """An origin that pages of ours are known to have."""
        self.at: Callable[[str], Mount] = lru_cache(maxsize=64)(partial(_mount, base_url))
        """Gives the mount whose path is this prefix; few are kept, which may be long."""


def _mount_from(tail: str) -> Mount:
    """The mount, as a URL relative to that of a path below it (RFC 3986 §4.2)."""
    return Mount("/".join([".."] * (tail.count("/") - 1)) or ".", absolute=False)


def _mount(base_url: str | None, prefix: str) -> Mount:
    """Where URLs begin that name no other host, whatever path a client has brought.

    One that begins with two slashes would (RFC 3986 §4.2), and to browsers a backslash is another.
    As it stands in a URL (§3.3): parts of it may come from the client.
    """
    path = "/" + prefix.lstrip("/\\")
    quoted = quote(path, safe="/-._~!$&'()*+,;=:@", errors="surrogatepass")
    return Mount(f"{base_url or ''}{quoted}", base_url is not None)


class StatusRoutes:
    """Serves what the dialect has below wherever it is mounted.

    Args:
        jobs: the jobs.
        dialect: how they are spelt.
        mounts: where they are found.
        owners: whose a request is.
        max_wait: the longest long poll, in seconds; more than 25 are 25.
        pages: what people are shown.

    Attributes:
        jobs, dialect, pages: as given.
        access: finds a job for whoever asks.
        lists: of jobs, for those who may see several.
        screen: shows pages to people.
        max_wait: as given, and at most 25.
    """

    def __init__(
        self,
        jobs: Jobs,
        dialect: Dialect,
        mounts: Mounts,
        *,
        owners: Owners,
        max_wait: float,
        pages: Pages,
    ) -> None:
        self.access: Access = Access(jobs, owners, pages.operator)
        self.jobs = jobs
        self.dialect = dialect
        self.pages = pages
        self.lists: Lists = Lists(jobs, dialect, self.access, pages)
        self.screen: Screen = Screen(pages, jobs.clock)
        self._mounts = mounts
        self.max_wait: float = min(max_wait, LONGEST_POLL)
        self._warned = False
        self._unreadable = LRUCache[str, bool](maxsize=1024)  # those that the log has told of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve as an app mounted by hand: the scope's `root_path` ends with the mount path."""
        if scope["type"] == "http":
            prefix: str = scope.get("root_path", "")
            await self.serve(scope["path"].removeprefix(prefix), prefix, scope, receive, send)

    async def serve(
        self, tail: str, prefix: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Serve one request.

        Args:
            tail: the path below the mount path, with its leading slash.
            prefix: everything above, for the links.
            scope: the request.
            receive: tells when its client leaves.
            send: where the answer goes.
        """
        heard, session = _heard(scope), self.jobs.session
        if session is None or not session.tasks.here():
            session = await self.jobs.open()
        id, actions = self.dialect.place(tail) or _NOWHERE
        action, mount = actions.get(scope["method"]), self._mounts.at(prefix)
        exchange, started, found = None, False, None
        # Most of all requests are polls that ask for nothing else. Most of them have one answer,
        # which takes no exchange.
        plain = action is _RESULT and not heard and not scope["query_string"]
        try:
            if plain:
                found = await self.access.answer(id, scope)
                reply = self._plain(found, session, mount, scope["method"])
                if reply is not None:
                    started = True
                    await send_whole(*reply, scope, send)
                    return
            exchange = _Exchange(self, session, id, mount, tail, heard, scope, send)
            if plain:
                await exchange.tell(found)
            else:
                await self._serve(actions, action, exchange, scope, receive)
        except Exception as error:
            if started or (exchange is not None and exchange.started):
                if breaks_off(error, send):
                    return
                raise
            self._note(id, error)
            if exchange is None:
                exchange = _Exchange(self, session, id, mount, tail, heard, scope, send)
            await exchange.problem(NO_STORE, retry_after=5)

    def _plain(
        self, found: Fetched | None, session: Session, mount: Mount, method: str
    ) -> tuple[int, list[Field], bytes] | None:
        """The answer to a poll that asks for nothing else; None: to find it takes an exchange."""
        if found is None:
            return None
        job, body = found
        if job.gone:
            return None
        if body is not None:
            status, fields, _ = self.served(job, (), method)
            return status, fields, body
        if job.finished:
            return None
        return self.dialect.pending(job, mount, session.runs.outlook(job))

    def served(
        self, job: Job, heard: Fields, method: str, negotiate: _Negotiate = negotiated
    ) -> tuple[int, list[Field], Wanted]:
        """Status and fields with which a job's response is served, and what of it is wanted.

        Args:
            job: the job, with its response.
            heard: the fields of the request.
            method: the request's.
            negotiate: says with which fields a 200 response is served, and what of it is wanted.
        """
        response = job.response
        assert response is not None
        status, headers = self.dialect.result(job)
        if status == response.status == 200:
            fields, asked = negotiate(job, headers, heard, method)
            return status, fields, asked
        return status, [*servable(response, headers, method)], WHOLE

    def _note(self, id: str, error: Exception) -> None:
        """Log why a request could not be answered."""
        if isinstance(error, UnreadableRecord):
            self._tell_unreadable(id, error)
        elif isinstance(error, StoreError | OSError):
            self.jobs.availability.failed(error)
        else:  # ours, the dialect's or the owner's
            logger.error("a status route failed", exc_info=error)

    def _tell_unreadable(self, id: str, error: UnreadableRecord) -> None:
        """Say that a job which was asked for cannot be read, once."""
        if id not in self._unreadable:
            self._unreadable[id] = True
            told = {"job": id}
            logger.warning("job %s was asked for, and cannot be read: %s", id, error, extra=told)

    def tell_lost(self, id: str, error: BodyLost) -> None:
        """Say that the response of a job which was asked for is not whole any more, once."""
        if id not in self._unreadable:
            self._unreadable[id] = True
            told = {"job": id}
            logger.error("the response of job %s cannot be read: %s", id, error, extra=told)

    def _unable(self, action: Action | None, scope: Scope) -> Problem | None:
        """What the query asks that the dialect cannot do; of lists it reads the query itself."""
        if action in (None, Action.LIST, Action.TOTALS):
            return None
        return self.dialect.unable(asked(scope))

    async def _serve(
        self,
        actions: Mapping[str, Action],
        action: Action | None,
        exchange: _Exchange,
        scope: Scope,
        receive: Receive,
    ) -> None:
        if scope["query_string"] and (problem := self._unable(action, scope)):
            await exchange.problem(problem)
        elif action is Action.RESULT:
            await exchange.result()
        elif action is Action.EVENTS:
            await exchange.events(receive)
        elif action is Action.STREAM:
            await attended(receive, exchange.stream)
        elif exchange.intrudes(self._mounts.origin):
            await exchange.problem(ELSEWHERE)  # before the job is looked up: it says nothing of one
        elif action is Action.MONITOR:
            await exchange.monitor()
        elif action is Action.WAIT:
            await exchange.wait(receive)
        elif action is Action.CANCEL:
            await exchange.cancel()
        elif action is Action.DELETE:
            await exchange.delete()
        elif action is Action.DISMISS or action is Action.FORGET:
            await exchange.dismiss(cancels=action is Action.DISMISS)
        elif action is Action.REDELIVER:
            await exchange.redeliver()
        elif action is Action.LIST or action is Action.TOTALS:
            await exchange.lists(action)
        elif actions:
            allowed = ", ".join(sorted(actions)).encode()
            await exchange.problem(NOT_ALLOWED, fields=((b"allow", allowed),))
        else:
            await exchange.problem(UNKNOWN)

    def absent(self, id: str) -> tuple[Problem, int | None]:
        """What is told of an id that no job here has, and when to ask again."""
        if self.jobs.store.shared or self.jobs.origin(id) is not Origin.ELSEWHERE:
            return UNKNOWN, None
        if not self._warned:
            self._warned = True
            logger.error(
                "a job of another process was asked for, or of one that has ended, such as before "
                "a reload: each has its jobs in its own memory; run a single process, or give all "
                "of them a shared store"
            )
        return MISPLACED, 1


_Wait = Callable[[Job, float], Awaitable[Job | None]]
_RESULT = Action.RESULT  # here, since each poll looks: on Python 3.11 that is a call otherwise

_Negotiate = Callable[[Job, RawHeaders, Fields, str], tuple[list[Field], Wanted]]


def _finished(job: Job) -> bool:
    return job.finished


def asked(scope: Scope, body: bytes = b"") -> Asked:
    """What a request says beside its path."""
    return Asked(scope["query_string"].decode("latin-1"), scope["headers"], body)


def _heard(scope: Scope) -> Fields:
    """The fields of a request that its answer may depend on; most have none."""
    heard = []
    for field in scope["headers"]:
        if field[0] in _HEARD:
            heard.append(field)
    return () if heard == _ANYTHING else heard


class _Exchange:
    """One request to a status route."""

    __slots__ = (
        *("_heard", "_mount", "_operated", "_routes", "_scope", "_send", "_session", "_tail"),
        *("id", "started"),
    )

    def __init__(
        self,
        routes: StatusRoutes,
        session: Session,
        id: str,
        mount: Mount,
        tail: str,
        heard: Fields,
        scope: Scope,
        send: Send,
    ) -> None:
        self._routes = routes
        self._session = session
        self.id = id
        self.started = False
        self._operated = False  # whether the job was found for an operator, and not its owner
        self._mount = mount
        self._tail = tail
        self._heard = heard
        self._scope = scope
        self._send = send

    def intrudes(self, own: SiteOrigin | None) -> bool:
        """Whether a page of another site than ours would change something by it."""
        scope = self._scope
        if not self._heard or scope["method"] not in ("POST", "DELETE"):
            return False
        return not may_change(scope["method"], scope["headers"], own=own)

    def reply(self, reply: Reply) -> Awaitable[None]:
        """Send what a dialect has written."""
        self.started = True
        return send_whole(*reply, self._scope, self._send)

    async def problem(
        self,
        problem: Problem,
        *,
        job: Job | None = None,
        retry_after: int | None = None,
        fields: RawHeaders = (),
    ) -> None:
        """Tell of a problem: to a person, if it is one who asks."""
        reply = self._dialect.problem(problem, job=job, retry_after=retry_after)
        reply.headers.extend(fields)
        if self._navigates:
            again = retry_after if self._scope["method"] == "GET" else None
            failed = job is not None and problem is job.error
            reply = self._routes.screen.problem(problem, reply, failed=failed, again=again)
        await self.reply(reply)

    async def _find(
        self,
        waits: _Wait | None = None,
        *,
        wait: float | None = None,
        here: Job | None = None,
        operated: bool = False,
    ) -> Job | None:
        """The job; if there is none to show, the answer has been given.

        Args:
            waits: how it may be waited for, if it may.
            wait: how long, in seconds; None: as long as the asker says.
            here: the job as it is known without asking the store, if that is enough.
            operated: whether an operator may ask the same of each job that is listed.
        """
        job = await self._routes.access.job(self.id, self._scope, here=here)
        if job is None and operated:
            job = await self._routes.access.listed(self.id, self._scope)
            self._operated = job is not None
        if waits is not None and job is not None and not (job.gone or job.finished):
            wait = self._patience() if wait is None else wait
            job = await waits(job, wait) if wait else job
        if job is None or job.gone:
            await self._miss(job)
            return None
        return job

    def _patience(self) -> float:
        """How long the asker would wait, in seconds."""
        wait = parse(self._heard).wait
        return 0.0 if wait is None else min(wait, self._routes.max_wait)

    def _miss(self, job: Job | None) -> Awaitable[None]:
        """Answer that there is no job to show, or only what is left of one."""
        if job is not None:
            return self.problem(EXPIRED)
        problem, retry_after = self._routes.absent(self.id)
        return self.problem(problem, retry_after=retry_after)

    async def _end(self, job: Job, wait: float) -> Job | None:
        """The job when it has finished, or after this time."""
        return await self._routes.jobs.until(job, _finished, wait)

    async def _news(self, job: Job, wait: float) -> Job | None:
        """The same, or the job when its state or its progress is another, or it ran again."""
        newest = await self._end(job, min(wait, _AT_LEAST))
        if wait <= _AT_LEAST or newest is None or newest.gone or newest.finished:
            return newest
        known = (job.state, job.progress, job.runs)

        def changed(newer: Job) -> bool:
            return newer.finished or (newer.state, newer.progress, newer.runs) != known

        return await self._routes.jobs.until(newest, changed, wait - _AT_LEAST)

    async def result(self, negotiate: _Negotiate = negotiated, *, waits: bool = True) -> None:
        """Answer a poll: the document, or what it has become.

        Args:
            negotiate: says with which fields a 200 response is served, and what of it is wanted.
            waits: whether it may be a long one.
        """
        found = await self._routes.access.answer(self.id, self._scope)
        wait = self._patience() if waits else 0.0
        if wait and found is not None and found.job.stage is not None:
            job = await self._end(found.job, wait)
            found = None if job is None else Fetched(job, None)
        await self.tell(found, negotiate)

    async def tell(self, found: Fetched | None, negotiate: _Negotiate = negotiated) -> None:
        """Answer with what has been found."""
        routes, (job, body) = self._routes, found or (None, None)
        if job is None or job.gone:
            await self._miss(job)
        elif job.response is not None:
            method = self._scope["method"]
            status, fields, asked = routes.served(job, self._heard, method, negotiate)
            if asked is not WHOLE:
                await self._less(job, body, tuple(fields), asked)
            elif body is not None:
                await self.reply(Reply(status, fields, body))
            else:
                chunks = routes.jobs.store.read_body(job.id)
                await self._send_stored(status, fields, chunks, job.response.size)
        elif job.finished:
            await self.problem(job.error or CANCELLED, job=job)
        else:
            outlook = self._session.runs.outlook(job)
            reply = routes.dialect.pending(job, self._mount, outlook)
            await (self._wait_here(job, outlook, reply) if self._navigates else self.reply(reply))

    async def _wait_here(self, job: Job, outlook: Outlook, reply: Reply) -> None:
        """Show the waiting page, if the dialect has one."""
        urls = self._dialect.urls(job, _mount_from(self._tail))
        if urls is None:
            await self.reply(reply)
        else:
            screen = self._routes.screen
            await screen.waiting(job, urls, outlook, reply, self._scope, self._begun)

    async def _less(self, job: Job, body: bytes | None, headers: RawHeaders, asked: Wanted) -> None:
        """Send what is wanted of a response, which is not all of it."""
        assert job.response is not None
        status, spans = asked
        size = job.response.size
        if status == 206:
            read = partial(self._routes.jobs.store.read_body, job.id)
            frame = cut(spans, headers, size)
            chunks = spans_of(read if body is None else partial(rest, body), spans, frame)
            async with aclosing(chunks):  # at once, also if the client goes
                await self._send_stored(status, frame.headers, chunks, frame.size)
        elif status == 304:
            await self.reply(Reply(status, [*unmodified(headers)]))
        else:
            problem = PRECONDITION if status == 412 else UNSATISFIABLE
            fields = ((b"content-range", unsatisfied(size)),) if status == 416 else ()
            await self.problem(problem, job=job, fields=fields)

    async def _send_stored(
        self, status: int, headers: Fields, body: AsyncIterator[bytes], size: int
    ) -> None:
        try:
            await send_stored(status, headers, body, size, self._scope, self._begun)
        except BodyLost as error:
            if self.started:
                raise
            await self._lost(error)

    async def _lost(self, error: BodyLost, *, operated: bool = False) -> None:
        """Say that a response is not whole any more, unless that is since its job went."""
        if job := await self._find(operated=operated):
            self._routes.tell_lost(job.id, error)
            await self.problem(RESPONSE_LOST, job=job)

    async def lists(self, action: Action) -> None:
        """Answer which jobs there are, or how many."""
        found = await self._routes.lists.reply(action, self._tail, self._mount, self._scope)
        if isinstance(found, Reply):
            await self.reply(found)
        else:
            await self.problem(UNKNOWN if found is None else found)

    async def _begun(self, message: Message) -> None:
        self.started = True
        await self._send(message)

    async def stream(self) -> None:
        """Follow the response; as a poll before it has begun, and once it has ended."""
        routes, scope = self._routes, self._scope
        job = await routes.access.job(self.id, scope)
        if job is not None and not (job.gone or job.finished):
            wait = parse(self._heard).wait
            wait = routes.max_wait if wait is None else min(wait, routes.max_wait)
            there = await begun(routes.jobs, job, wait)
            if there is not None and there.head is not None and not there.job.finished:
                await self._follow(there, there.head)
                return
        await self.result(ended_fields, waits=False)

    async def _follow(self, there: Partial, head: Head) -> None:
        """Send a response that is still to end: what there is of it, and then what comes."""
        job = there.job._replace(response=CapturedResponse(*head, there.size))
        status, headers = self._dialect.result(job)
        headers, length = announced(undelayed(headers), there.size, head.status)
        asked, start = WHOLE, 0
        if status == head.status == 200:
            headers, asked = stream_fields(job, headers, self._heard, self._scope["method"])
        if asked.status == 206:
            status, start = 206, asked.spans[0].start
            headers = resumed(headers, start, length)
        elif asked is not WHOLE:
            await self._less(job, None, headers, asked)
            return
        await self._begun({"type": "http.response.start", "status": status, "headers": [*headers]})
        if self._scope["method"] == "HEAD":
            await self._send({"type": "http.response.body"})
            return
        left = None if length is None else length - start
        await send_tail(self._routes.jobs, there, start, left, self._send)

    async def monitor(self) -> None:
        """Answer how it stands."""
        if job := await self._find(self._news, operated=True):
            await self._show(job)

    async def wait(self, receive: Receive) -> None:
        """The same, once it has finished, or its asker's time is over."""
        longest = self._routes.max_wait
        said = self._dialect.patience(asked(self._scope, await beginning(receive)))
        wait = longest if said is None else min(said, longest)
        if job := await self._find(self._end, wait=wait, operated=True):
            await self._show(job)

    async def _show(self, job: Job) -> None:
        try:
            content = await self._content(job) if self._dialect.embeds else None
        except BodyLost as error:
            await self._lost(error, operated=True)
        else:
            outlook = self._expected(job)
            await self.reply(self._dialect.monitor(job, self._mount, outlook, content))

    async def _content(self, job: Job) -> Content | None:
        """What a document has in it of the response, which an operator never sees.

        Raises:
            BodyLost: it is not whole any more.
        """
        if self._operated:
            return None
        return await embedded(self._routes.jobs, job, self._dialect.embeds)

    async def events(self, receive: Receive) -> None:
        """Tell how it stands, and what becomes of it."""
        if job := await self._find(operated=True):
            await Stream(self._session, self._stands, self._scope, receive, self._begun).run(job)

    def _stands(self, job: Job) -> Reply:
        return self._dialect.monitor(job, self._mount, self._expected(job))

    async def dismiss(self, *, cancels: bool) -> None:
        """Forget it, if it has finished; else stop it, or say that it has to finish first."""
        found = await self._find(here=self._routes.jobs.alone(self.id), operated=True)
        if found is not None and found.finished:
            await self.delete(found)
        elif found is not None and cancels:
            await self.cancel(found)
        elif found is not None:
            await self.problem(UNFINISHED, job=found)

    async def cancel(self, found: Job | None = None) -> None:
        """Stop it, unless others share it, and answer how it stands.

        Args:
            found: the job, if it has been looked up.
        """
        if found is None:
            found = await self._find(here=self._routes.jobs.alone(self.id), operated=True)
        if found is None:
            return
        ends = found.clients > 1 and await self._for_all()
        jobs, dialect = self._routes.jobs, self._routes.dialect
        job = await (jobs.cancel if ends else jobs.leave)(self.id, found=found)
        settles = dialect.settles
        if settles and job is not None and job.state is State.CANCELLING:
            job = await self._end(job, settles)
        if job is None or job.gone:
            await self._find(operated=True)
        elif self._routes.lists.on and await self._went_back():
            return
        # A browser goes back to where the button is, or to the response, if that was faster.
        elif self._navigates and (back := dialect.navigated(job, _mount_from(self._tail))):
            await self.reply(back)
        elif job.state in _BY_ITSELF:
            late = dialect.late(job, self._mount, await self._content(job))
            await (self.problem(FINISHED, job=job) if late is None else self.reply(late))
        else:
            stopped = job.state is State.CANCELLED
            outlook = None if stopped else self._session.runs.outlook(job)
            await self.reply(dialect.cancelled(job, self._mount, outlook))

    async def delete(self, found: Job | None = None) -> None:
        """Forget it, once it has stopped, and answer that.

        Args:
            found: the job, if it has been looked up.
        """
        if found is None:
            found = await self._find(here=self._routes.jobs.alone(self.id), operated=True)
        if found is None:
            return
        job, jobs = found, self._routes.jobs
        if found.clients > 1 and await self._for_all():
            job = await jobs.delete(self.id, found=found) or found
        elif found.clients == 1 or not found.finished:
            # Else the others can read it, and which of them asks is not known.
            job = await jobs.leave(self.id, found=found, forget=True) or found
        if job.gone:  # it was deleted before, and its handler has not ended since
            await self._find(operated=True)
            return
        if self._routes.lists.on and await self._went_back():
            return
        reply = self._dialect.deleted(
            job, self._mount, self._expected(job), finished=found.finished
        )
        await self.reply(reply)

    async def redeliver(self) -> None:
        """Have its end told once more, for an operator, and answer how it stands."""
        job = await self._routes.access.listed(self.id, self._scope)
        try:
            if job is not None and not job.gone:
                job = await self._routes.jobs.redeliver(self.id)
        except IllegalTransition:
            await self.problem(UNTOLD)
            return
        if job is None or job.gone:
            await self._miss(job)
        elif not await self._went_back():
            await self.reply(self._stands(job))

    async def _went_back(self) -> bool:
        """Whether it was a button of a list, and the browser has been sent back there."""
        url = self._routes.lists.way_back(self._mount, self._scope)
        if url is not None:  # RFC 9110 §15.4.4
            fields = [(b"location", url.encode()), (b"cache-control", b"no-store")]
            await self.reply(Reply(303, [*fields, (b"content-length", b"0")]))
        return url is not None

    async def _for_all(self) -> bool:
        """Whether who asks may end a job that others share."""
        return await self._routes.access.operates(self._scope)

    @property
    def _navigates(self) -> bool:
        return bool(self._heard) and self._routes.screen.on and is_navigation(self._heard)

    @property
    def _dialect(self) -> Dialect:
        return self._routes.dialect

    def _expected(self, job: Job) -> Outlook | None:
        return None if job.finished else self._session.runs.outlook(job)
