"""The door: an ASGI app around an ASGI app."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextvars import Context, copy_context
from functools import partial
from typing import NamedTuple, Self
from urllib.parse import urlsplit

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raincheck.acceptance.handoff import VARY, Handoff, bring_back, changes, with_vary
from raincheck.dialects.base import Content, Dialect, Reply
from raincheck.dialects.plain import PlainDialect
from raincheck.errors import (
    RESPONSE_LOST,
    BodyLost,
    ConfigurationError,
    KeyInUse,
    Problem,
    Refusal,
    ShuttingDown,
    StoreUnavailable,
)
from raincheck.job import Job
from raincheck.jobs import Jobs
from raincheck.lifespan import Lifespan
from raincheck.messages import servable
from raincheck.owners import OwnerOf, Owners
from raincheck.pages import Pages
from raincheck.policy import Limits, Policy, require_kind, seconds
from raincheck.preferences import Decision
from raincheck.routing.table import Candidate, Routing, Rule
from raincheck.runners.base import Runner
from raincheck.runtime.stopping import Reason
from raincheck.session import Session
from raincheck.status.results import embedded, send_reply, send_stored, send_whole
from raincheck.status.routes import CANCELLED, Mounts, StatusRoutes
from raincheck.stores.base import Store

DEFAULT_PATH = "/jobs"


REPLAYED = (b"idempotency-replayed", b"true")

# What an answer says besides, by whether it is an earlier request's, and depends on `Prefer`.
_SAID: Mapping[tuple[bool, bool], Sequence[tuple[bytes, bytes]]] = {
    (False, False): (),
    (False, True): (VARY,),
    (True, False): (REPLAYED,),
    (True, True): (REPLAYED, VARY),
}


class Setup(NamedTuple):
    """What a middleware was given, with its defaults, for whoever describes it.

    Attributes:
        path, policy, pages: as given.
        dialect: of which kind it is.
        rules: the path rules.
        absolute: whether URLs have scheme and host.
        owned: whether it was told how to find out whose a request is.
        require_owner: whether every job has an owner.
        jobs: its `Jobs`; None if it has yet to make them.
    """

    path: str
    policy: Policy
    dialect: type[Dialect]
    pages: Pages
    rules: Sequence[Rule]
    absolute: bool
    owned: bool
    require_owner: bool
    jobs: Jobs | None

    @property
    def mounted(self) -> bool:
        """Whether the status routes are mounted by hand."""
        return self.jobs is not None and self.jobs.mounted

    @classmethod
    def of(
        cls,
        *,
        path: str = DEFAULT_PATH,
        routes: Mapping[str, Policy] | None = None,
        policy: Policy | None = None,
        limits: Limits | None = None,
        owner: OwnerOf | None = None,
        dialect: Dialect | None = None,
        base_url: str | None = None,
        pages: Pages | None = None,
        jobs: Jobs | None = None,
        **others: object,
    ) -> Self:
        """That of a middleware which will be made with these arguments, and is not there yet."""
        limits = limits if jobs is None else jobs.limits
        return cls(
            path,
            Policy() if policy is None else policy,
            PlainDialect if dialect is None else type(dialect),
            Pages() if pages is None else pages,
            [Rule.parse(*rule) for rule in (routes or {}).items()],
            base_url is not None,
            owner is not None,
            limits is not None and limits.require_owner,
            jobs,
        )


class LongRunningMiddleware:
    """Makes the marked routes of an ASGI app asynchronous: 202, and a status URL.

    Args:
        app: the app.
        path: where the status routes are, below `root_path`: the scope's, or the one that the app
            itself sets, as `FastAPI(root_path=...)` does. Default `/jobs`.
        routes: path rules, for routes whose code is not touched: `{"POST /videos": Policy(...)}`.
            A key is an optional method and a path in Starlette's syntax; without a method it
            stands for GET, POST, PUT, PATCH and DELETE. Of two that match the first counts.
        policy: what holds for decorated endpoints unless their decorator says otherwise.
        limits: what all routes together keep to.
        store: where jobs are kept. Default: a `MemoryStore`.
        runner: where they run. Default: a `LocalRunner`.
        dialect: how they are spelt on the wire: one of `raincheck.dialects`, or your own. Default:
            a `PlainDialect`.
        owner: says whose a request is, from its `HTTPConnection`: a string, or None for a job whose
            id alone opens it; sync or async. `raincheck.owners` has ready-made ones. Asked at
            acceptance and on every status route; another owner's job is like one that is not
            there. Default: the user of Starlette's `AuthenticationMiddleware`, if it is outside.
        base_url: put in front of every URL, e.g. `https://api.example.org`; `root_path` and `path`
            follow. Default None: URLs are relative, and right behind any proxy.
        pages: what a person's browser is shown. Default: `Pages()`.
        jobs: the `Jobs` to use, if you made them yourself; then `limits`, `store` and `runner` are
            theirs.

    Raises:
        ConfigurationError: a setting that cannot work. What can only be known when the app is
            complete is raised at its start-up.
    """

    __raincheck_boundary__: str = DEFAULT_PATH

    def __init__(
        self,
        app: ASGIApp,
        *,
        path: str = DEFAULT_PATH,
        routes: Mapping[str, Policy] | None = None,
        policy: Policy | None = None,
        limits: Limits | None = None,
        store: Store | None = None,
        runner: Runner | None = None,
        owner: OwnerOf | None = None,
        dialect: Dialect | None = None,
        base_url: str | None = None,
        pages: Pages | None = None,
        jobs: Jobs | None = None,
    ) -> None:
        _check_kinds(app, routes=routes, policy=policy, owner=owner, dialect=dialect, jobs=jobs)
        require_kind("pages", pages, Pages, "Pages(own_list=True)")
        if jobs is None:
            jobs = Jobs(store=store, runner=runner, limits=limits)
        elif any(setting is not None for setting in (limits, store, runner)):
            raise ConfigurationError(
                "jobs=... comes with its own limits, store and runner; pass them to Jobs(...) alone"
            )
        policy = Policy() if policy is None else policy
        path = _checked_path(path)
        self.app = app
        self.jobs = jobs
        self._path = self.__raincheck_boundary__ = path
        self._below = path + "/"
        self._dialect = PlainDialect() if dialect is None else dialect
        self._mounts = Mounts(_checked_base_url(base_url))
        owners = self._owners = Owners(owner)
        self._status = StatusRoutes(
            jobs,
            self._dialect,
            self._mounts,
            owners=owners,
            max_wait=seconds(policy.max_wait),
            pages=Pages() if pages is None else pages,
        )
        self._routing = Routing(
            app,
            routes or {},
            policy=policy,
            route_of=jobs.policies.of_mark,
            path=path,
            is_status=jobs.is_status_app,
            lists=self._status.lists.on and self._dialect.place("") is not None,
        )
        jobs.bind(
            app,
            door=self,
            status=self._status,
            policy=policy,
            rules=routes or {},
            read=self._read,
            complete=self._routing.complete,
            owners=owners,
            mount=path,
            dialect=self._dialect,
            base_of=self._base_of,
        )

    @property
    def setup(self) -> Setup:
        """What it was given: see `raincheck.openapi`."""
        return Setup(
            self._path,
            self.jobs.policies.by_route.default,
            type(self._dialect),
            self._status.pages,
            self._routing.rules,
            self._mounts.origin is not None,
            not self._owners.nobody({}),
            self.jobs.limits.require_owner,
            self.jobs,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI 3."""
        if scope["type"] == "http":
            path = self._routing.near(scope)
            if path is None or (self.jobs.mounted and path.startswith(self._below)):
                await self.app(scope, receive, send)
            elif (
                path.startswith(self._below)
                and not (self._routing.hides and self._is_apps(path, scope["method"]))
            ) or (self._status.lists.on and self._is_list(path, scope["method"])):
                prefix = (self._routing.root_path or scope.get("root_path", "")) + self._path
                tail = path.removeprefix(self._path)
                await self._status.serve(tail, prefix, scope, receive, send)
            elif (candidate := self._routing.find(path, scope["method"])) is not None:
                await self._conduct(candidate, scope, receive, send)
            else:
                await self.app(scope, receive, send)
        elif scope["type"] == "lifespan":
            opening = partial(self._open, scope)
            await Lifespan(opening, self.jobs.close, receive, send).run(self.app, scope)
        else:
            await self.app(scope, receive, send)

    def _is_apps(self, path: str, method: str) -> bool:
        """Whether a path below the mount path may be the app's, whose routes cannot be read."""
        tail = path[len(self._path) :]
        place = self._dialect.place(tail)
        id = tail[1:].partition("/")[0] if place is None else place.id
        return self._routing.is_apps(path, method, id)

    def _is_list(self, path: str, method: str) -> bool:
        """Whether it is for the list of jobs at the mount path itself, or for what belongs to it.

        Also where the app's routes cannot be read; not if the status routes are mounted by hand.
        """
        if self.jobs.mounted or not path.startswith(self._path):
            return False
        place = self._dialect.place(path[len(self._path) :])
        return place is not None and not place.id and method in place.actions

    # --- one request ---------------------------------------------------------------------------

    async def _conduct(
        self, candidate: Candidate, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Run a candidate in a task of its own, and answer for it once it is accepted."""
        session = self.jobs.session
        if session is None or not session.tasks.here():
            session = await self.jobs.open()
        rule = candidate.rule
        # The app's, and not the request's own: once that is answered, the server goes on in it.
        inner = copy_context()
        handoff = Handoff(  # by position, which is cheaper by far
            session.acceptance,
            self.app,
            scope,
            candidate.policy,
            None if rule is None else rule.name,
            receive,
            send,
            copy_context(),
            inner if rule is None else None,
            rule is None and candidate.certain,
        )
        if rule is not None and not handoff.prefers_async() and not handoff.named:
            with handoff.synchronous():
                await self._pass_through(scope, receive, send)
            return
        if rule is not None:
            await self._accept_at_once(session, handoff, inner)
        if rule is None or handoff.in_place:
            # The app goes as far as the handler's entry, or to its end if it never enters one.
            session.tasks.spawn(handoff.conduct, inner, handoff)
            try:
                await handoff.handed_over.wait()
            except BaseException:  # the server cancels the request: so does everything below it
                await self._abandon(handoff)
                raise
            finally:
                handoff.bring_back()
        await self._answer(session, handoff, scope, send, inner)

    async def _abandon(self, handoff: Handoff) -> None:
        if handoff.accepted is None:
            handoff.stopping.stop(Reason.CANCELLED)
            with anyio.CancelScope(shield=True):
                await handoff.handed_over.wait()

    async def _accept_at_once(self, session: Session, handoff: Handoff, inner: Context) -> None:
        """A path rule: there is no entry to wait for, so accept as soon as the body is read."""
        await handoff.accept()
        if handoff.in_place:
            handoff.copy(inner)
        elif handoff.runs:
            session.tasks.spawn(handoff.conduct, inner, handoff)

    async def _pass_through(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_vary(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": with_vary(message.get("headers", ()))}
            await send(message)

        await self.app(scope, receive, send_with_vary)

    async def _answer(
        self, session: Session, handoff: Handoff, scope: Scope, send: Send, inner: Context
    ) -> None:
        """Answer for a request whose app has ended or gone into the background."""
        job, decision = handoff.accepted, handoff.decision
        refusal, content = handoff.refusal, None
        if job is None and handoff.interrupted:
            refusal = ShuttingDown("The server accepts nothing new.", retry_after=1)
        elif job is not None and decision is not None:
            itself = job.synchronous or not decision.asynchronous
            try:
                if self._dialect.embeds and not itself:
                    job, content = await self._embedded(job, decision.wait)
                elif (itself or decision.wait) and await self._answer_in_time(
                    job, handoff, scope, send, inner
                ):
                    return
            except Refusal as refused:
                refusal = refused
        if refusal is not None:
            reply = self._dialect.problem(refusal.problem, retry_after=refusal.retry_after)
            reply.headers.extend(refusal.headers)
            reply = self._for_people(refusal.problem, reply, handoff)
        elif job is None:
            if handoff.error is not None:
                raise handoff.error
            return  # it has answered by itself, or its client has left
        else:
            assert decision is not None
            root_path = self._routing.root_path or scope.get("root_path", "")
            mount = self._mounts.at(root_path + self._path)
            shown = self._dialect.navigated(job, mount) if handoff.navigates else None
            if shown is None:
                outlook = session.runs.outlook(job)
                applied = decision.applied
                if decision.callback is not None:
                    applied = _applied(decision, job)
                shown = self._dialect.accepted(job, mount, outlook, applied, content)
            reply = shown
        status, headers, body = reply
        headers.extend(_SAID[handoff.replayed, handoff.vary])
        await send_whole(status, headers, body, scope, send)

    def _base_of(self, scope: Scope) -> str:
        """Where the URLs of a request's job begin."""
        root_path = self._routing.root_path or scope.get("root_path", "")
        return self._mounts.at(root_path + self._path).url

    def _for_people(
        self, problem: Problem, reply: Reply, handoff: Handoff, *, failed: bool = False
    ) -> Reply:
        """What tells of a problem, as a page if it is a person who is told."""
        screen = self._status.screen
        if screen.on and handoff.navigates:
            return screen.problem(problem, reply, failed=failed)
        return reply

    async def _answer_in_time(
        self, accepted: Job, handoff: Handoff, scope: Scope, send: Send, inner: Context
    ) -> bool:
        """Answer with the response itself, as if nothing had happened, if it is in time.

        A store that fails costs the client the early answer, not the 202.

        Raises:
            Refusal: it is not in time, and a 202 is nothing that could take its place.
        """
        decision, begun = handoff.decision, False
        assert decision is not None
        wait = decision.wait if decision.asynchronous else seconds(handoff.policy.max_wait)
        itself = accepted.synchronous or not decision.asynchronous
        alone = handoff.made and not handoff.keyed  # nobody else can ask for it

        async def begin(message: Message) -> None:
            nonlocal begun
            if not begun:  # it is what the client gets, and not a 202 after all
                begun = True
                if alone and accepted.delivery is not None:
                    await self.jobs.settle(accepted)  # it may take this client longer than `wait`
                handoff.show_route(scope)
                bring_back(changes(inner, copy_context()))
            await send(message)

        try:
            job = await self.jobs.finished(accepted, wait)
            if job is None or (job.gone and itself):
                return self._late(accepted, itself)
            try:
                told = await self._answer_finished(job, handoff, scope, begin, itself=itself)
            except BodyLost as error:
                if begun or not itself:
                    raise
                told = await self._answer_lost(job, error, handoff, scope, begin)
            if not told:
                return False
        except Refusal:
            raise
        except Exception as error:
            if begun:
                raise  # the connection is broken off
            if isinstance(error, BodyLost):  # as its status URL will say, if it is still there
                return False
            self.jobs.availability.failed(error)
            if itself:
                raise StoreUnavailable("The job store does not answer.", retry_after=5) from error
            return False
        if alone:
            await self.jobs.forget(job)
        return True

    async def _embedded(self, accepted: Job, wait: float) -> tuple[Job, Content | None]:
        """A job with what its document has of its response, if it is in time.

        A store that fails costs the client only that.

        Raises:
            StoreUnavailable: an earlier request's job has a response, and it cannot be read.
        """
        try:
            job = await self.jobs.finished(accepted, wait) if wait else None
            job = accepted if job is None or job.gone else job
            return job, await embedded(self.jobs, job, self._dialect.embeds)
        except Exception as error:
            if not isinstance(error, BodyLost):  # else it was deleted meanwhile
                self.jobs.availability.failed(error)
            if accepted.finished:
                raise StoreUnavailable("The job store does not answer.", retry_after=5) from error
            return accepted, None

    def _late(self, job: Job, itself: bool) -> bool:
        if itself:  # 409, as the draft has it (draft 07, §2.6)
            detail = "The request that came with it first has not been answered yet."
            raise KeyInUse(detail, retry_after=self.jobs.outlook(job).retry_after)
        return False

    async def _answer_finished(
        self, job: Job, handoff: Handoff, scope: Scope, send: Send, *, itself: bool
    ) -> bool:
        problem = job.error or (CANCELLED if itself else None)
        if job.response is not None:
            response = job.response
            headers = servable(response, response.headers, scope["method"])
            fields = [*with_vary(headers)] if handoff.vary else [*headers]
            if handoff.replayed:
                fields.append(REPLAYED)
            body = self.jobs.store.read_body(job.id)
            await send_stored(response.status, fields, body, response.size, scope, send)
        elif problem is not None:
            await self._tell(problem, job, handoff, scope, send, failed=problem is job.error)
        return job.response is not None or problem is not None

    async def _answer_lost(
        self, job: Job, error: BodyLost, handoff: Handoff, scope: Scope, send: Send
    ) -> bool:
        """Answer that a kept answer is not whole any more, unless that is since its job went."""
        there = await self.jobs.store.get(job.id)
        if there is None or there.gone:
            return self._late(job, itself=True)  # its key is free
        self._status.tell_lost(job.id, error)
        await self._tell(RESPONSE_LOST, there, handoff, scope, send)
        return True

    async def _tell(
        self,
        problem: Problem,
        job: Job,
        handoff: Handoff,
        scope: Scope,
        send: Send,
        *,
        failed: bool = False,
    ) -> None:
        # Who asks again learns whether it is this job that has failed, or the asking.
        reply = self._dialect.problem(problem, job=job if handoff.replayed else None)
        reply = self._for_people(problem, reply, handoff, failed=failed)
        reply.headers.extend(_SAID[handoff.replayed, handoff.vary])
        await send_reply(reply, scope, send)

    def _read(self) -> None:
        self._routing.read(mounted=self.jobs.mounted)

    async def _open(self, lifespan: Scope) -> None:
        await self.jobs.open(lifespan)


def _applied(decision: Decision, job: Job) -> bytes | None:
    """What of the client's preferences was applied (RFC 7240 §3)."""
    delivery = job.delivery
    if delivery is None or not delivery.asked or delivery.url != decision.callback:
        return decision.applied  # not taken, or it is an earlier request's job
    return b"callback" if decision.applied is None else decision.applied + b", callback"


def _check_kinds(
    app: object, *, routes: object, policy: object, owner: object, dialect: object, jobs: object
) -> None:
    """Say now, by its name, which argument is of another kind; the others are checked elsewhere."""
    if not callable(app):
        raise ConfigurationError(
            f"app={app!r}: it is no ASGI app, which is called for each request"
        )
    if owner is not None and not callable(owner):
        raise ConfigurationError(
            f"owner={owner!r}: it is no function from a request to its owner; "
            'raincheck.owners has some, like header("x-api-key", secret=...)'
        )
    require_kind("routes", routes, Mapping, '{"POST /videos": Policy()}')
    require_kind("policy", policy, Policy, "Policy(timeout=600)")
    require_kind("dialect", dialect, Dialect, "PlainDialect()")
    require_kind("jobs", jobs, Jobs, "Jobs()")


def _checked_path(path: str) -> str:
    if not isinstance(path, str) or not re.fullmatch(r"(?:/[A-Za-z0-9._~-]+)+", path):
        raise ConfigurationError(
            f'path={path!r}: the mount path begins with a slash and ends without one, like "/jobs"'
        )
    return path


def _checked_base_url(base_url: str | None) -> str | None:
    if base_url is None:
        return None
    text = base_url if isinstance(base_url, str) and re.fullmatch("[!-~]+", base_url) else ""
    try:
        parts = urlsplit(text)
        given = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port or an IPv6 address that is none
        given = False
    if not given or parts.query or parts.fragment:
        raise ConfigurationError(
            f"base_url={base_url!r}: it has a scheme and a host, in ASCII and without blanks, like "
            '"https://api.example.org"'
        )
    return base_url.rstrip("/")
