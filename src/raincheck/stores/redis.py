"""Jobs on a Redis or Valkey server, for several processes and machines.

Keys, all behind `{raincheck:<deployment>}:`, which keeps them in one slot of a cluster:

    job:<id>         hash: the record, and what the scripts need of it
    request:<id>     the captured request
    body:<id>:<n>    the n-th `WINDOW` bytes of the response body
    key:<name>       hash: the id of the job that has this key, and what came with it
    keys:<id>        set: the keys that a job has until it is gone
    passing:<id>     set: those that it has until nobody can join it any more
    varying:<route>  set: the request header fields by which a route's responses vary
    due              sorted set: every id, by when `sweep` turns to it (the callers' clocks)
    leases           sorted set: every leased id, by when its lease ends (the server's clock)
    busy             sorted set: every unfinished job by whether it waits or runs, its route, its
                     owner and its id, so that those that count together stand side by side
    due:deliveries   sorted set: the ids of jobs whose end somebody is to be told of, by when to
                     turn to them (the callers' clocks)
    leases:deliveries
                     sorted set: those among them that somebody delivers, by when that lease ends
    listed           hash: which sets list a job, and the seconds that it ran if it has ended
    listed:totals    hash: those of each group (a state and a route) of which there were any
    listed:stored    hash: the bytes that results take by route and owner, where that is counted,
                     and those of each job
    listed:-<group>  sorted set: the ids of the jobs of a group, by when they were accepted
    listed:<owner><group>
                     sorted set: those of one owner among them

and one channel, `changed`, that tells the id of each job of which there is a new version, or more
of a response.
"""

from __future__ import annotations

import asyncio
import builtins
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from raincheck.errors import ConfigurationError, StoreError
from raincheck.job import LOOK_AGAIN, Bounds, Job, Key, State
from raincheck.messages import CapturedRequest, Head
from raincheck.serialization import (
    STARTABLE,
    dump,
    dump_cursor,
    dump_head,
    dump_request,
    load,
    load_head,
    load_request,
    readable,
    started,
)
from raincheck.stores._redis_line import Line, Word, server
from raincheck.stores._redis_listing import LIST, TOTALS, before, grouped
from raincheck.stores._redis_rights import CHECK, COMMANDS, rights
from raincheck.stores._redis_scripts import (
    ABANDONED,
    APPEND,
    CLAIM,
    CREATE,
    CREATE_OWED,
    DELIVERIES,
    DROP,
    FETCH,
    FIND,
    JOIN,
    LEARN,
    PARTIAL,
    READ,
    RECORD,
    RENEW,
    REPLACE,
    REPLACE_OWED,
    REQUEST,
    SWEEP,
    TURN_TO,
    WINDOW,
    Script,
    check_room,
    due,
    fingerprint,
    keep,
    most,
    named,
    place,
    state_of,
    times,
    turn,
)
from raincheck.stores.base import (
    Abandoned,
    Claim,
    Fetched,
    Found,
    Page,
    Partial,
    Store,
    Total,
    told,
    turns_to,
)
from raincheck.stores.servers import NeverWorks, checked, opening

logger: logging.Logger = logging.getLogger("raincheck")

T = TypeVar("T")

BATCH = 500
"""Jobs that one call renews or sweeps, so that the server is never busy for long."""

LISTED = 100
"""Jobs of a list that one call asks for."""

OWN = (
    *(("zset", name) for name in ("due", "leases", "busy")),
    *(("zset", name) for name in ("due:deliveries", "leases:deliveries")),
    *(("hash", name) for name in ("listed", "listed:totals", "listed:stored")),
)
"""Keys that are there as long as there are jobs, each with its kind."""

PAGE = 50
"""Abandoned jobs that one call asks for: few, since others take them meanwhile."""


class RedisStore(Store):
    """Jobs on a Redis (7 or newer) or Valkey server, for several processes and machines.

    It runs on asyncio only, as redis-py does. Each change is one script on the server, done as a
    whole or not at all, in one round trip. All calls share one connection, and those that meet
    share their round trips; another one tells of changes while somebody waits. With
    `pip install redis[hiredis]` what goes over them is written and read in C.

    What the server has acknowledged outlives its end as far as it is told to: with `appendonly yes`
    all but the last second, with `appendfsync always` everything, without a journal what was there
    at the last snapshot. Once it has reached `maxmemory` it refuses new jobs, while those that were
    accepted may go beyond it, as far as the machine's memory goes. That takes `maxmemory-policy
    noeviction`: under any other it drops jobs, and the store logs a warning. The store asks no
    Sentinel, and follows no redirections of a cluster.

    Args:
        url: `redis://[[user]:password@]host[:port][/database]`, `rediss://` likewise with TLS,
            `unix://` with a path, or what else redis-py reads.
        deployment: what all processes that share these jobs have in common, e.g. `"shop"`. Others
            on the same server, each under a name of its own, neither see nor run them.
        timeout: seconds without an answer after which a call fails. Default 5.

    Raises:
        ConfigurationError: the URL cannot be read, `deployment` is no name, `timeout` is not
            positive.
    """

    shared: ClassVar[bool] = True

    def __init__(
        self,
        url: str = "redis://localhost:6379/0",
        *,
        deployment: str,
        timeout: float = 5.0,
    ) -> None:
        if not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
            raise ConfigurationError(
                f"RedisStore(timeout={timeout!r}): timeout is a number of seconds above 0"
            )
        self._name, self._user, self._connect = server(url)
        self.deployment: str = checked(deployment)
        self._prefix = f"{{raincheck:{deployment}}}:"
        self._timeout = timeout
        self._of_all = [*map(self._key, ("due", "leases", "busy", "listed"))]
        self._opened: Line | None = None

    async def open(self) -> None:
        with opening():
            await self._check(self._line())

    async def create(
        self,
        job: Job,
        request: CapturedRequest | None = None,
        *,
        keys: Collection[Key] = (),
        lease: float | None = None,
        bounds: Bounds | None = None,
    ) -> Job:
        rest: tuple[Word, ...] = most(job, bounds, keys)
        if job.delivery is not None:
            rest = *(rest or ("", "", "")), turn(job)
        there = await self._run(
            CREATE if job.delivery is None else CREATE_OWED,
            self._keys_of(job.id, keys),
            self._key("job:"),
            job.id,
            dump(job),
            job.version,
            job.fence,
            state_of(job),
            dump_request(request) if request is not None and job.replayable else b"",
            "" if lease is None else lease,
            due(job),
            *times(job),
            *place(job),
            *rest,
        )
        check_room(there)
        return job if there is None else load(there)

    async def get(self, id: str) -> Job | None:
        return await self._get(self._line(), id)

    async def fetch(self, id: str) -> Fetched | None:
        keys = [self._key("job:", id), self._key("body:", id)]
        there = await self._run(FETCH, keys, shared=True)
        if there is None:
            return None
        job, body = load(there[0]), there[1]
        whole = job.response is not None and job.response.size == len(body)
        return Fetched(job, body if whole else None)

    async def find(self, name: str) -> Found | None:
        found = await self._run(FIND, [self._key("key:", name)], self._key("job:"))
        return None if found is None else Found(load(found[0]), fingerprint(found[1]))

    async def learn(self, route: str, names: Collection[str]) -> None:
        if names:
            await self._run(LEARN, [self._key("varying:", route)], *names)

    async def learned(self, route: str) -> frozenset[str]:
        names = await self._ask("SMEMBERS", self._key("varying:", route), shared=True)
        return frozenset(name.decode("utf-8", "surrogatepass") for name in names)

    async def request(self, id: str) -> CapturedRequest | None:
        there = await self._run(REQUEST, [self._key("job:", id), self._key("request:", id)])
        if there is None:
            return None
        job = readable(there[0] or b"")
        # A claim leaves it there for who has lost the answer.
        return load_request(there[1]) if job is None or job.replayable else None

    async def claim(
        self, id: str, *, routes: Collection[str], holder: str, now: float, lease: float | None
    ) -> Claim | None:
        record, captured = await self._run(
            CLAIM,
            self._keys_of(id),
            self._key("changed"),
            id,
            STARTABLE,
            started(now, holder),
            now,
            "" if lease is None else lease,
            *map(named, routes),
        )
        job = None if record is None else load(record)
        if job is None or job.gone:
            return None
        request = None if captured is None else load_request(captured)
        begun = request is not None and job.begun_by(holder, now)
        return Claim(job, request if begun else None, begun)

    async def replace(
        self,
        job: Job,
        *,
        keys: Collection[Key] = (),
        tail: bytes = b"",
        lease: float | None = None,
        bounds: Bounds | None = None,
    ) -> bool:
        script = JOIN if keys else REPLACE
        rest: tuple[Word, ...] = most(job, bounds, keys)
        if job.delivery is not None and job.stage is None:  # which neither has keys nor is bounded
            script, rest = REPLACE_OWED, ("", "", "", turn(job))
        replaced = await self._run(
            script,
            self._keys_of(job.id, keys),
            self._key("changed"),
            job.id,
            job.version - 1,
            dump(job),
            job.version,
            job.fence,
            state_of(job),
            int(job.replayable),
            int(job.bodied),
            tail,
            "" if lease is None else lease,
            due(job),
            keep(job),
            job.stored,
            *times(job),
            *place(job),
            *rest,
        )
        check_room(replaced)
        return bool(replaced)

    async def append_body(
        self, id: str, fence: int, offset: int, chunk: bytes, *, head: Head | None = None
    ) -> bool:
        keys = [self._key("job:", id), self._key("body:", id)]
        rest = (self._key("changed"), id, *(() if head is None else (dump_head(head),)))
        start = 0
        while True:
            end = start + WINDOW - (offset + start) % WINDOW
            taken = await self._run(APPEND, keys, fence, offset + start, chunk[start:end], *rest)
            if taken is None:
                raise StoreError(f"{self._name} has lost a part of the body of job {id}")
            if not taken or end >= len(chunk):
                return bool(taken)
            start = end

    async def read_body(self, id: str, offset: int = 0) -> AsyncIterator[bytes]:
        reading = end = None
        while end is None or offset < end:
            window, start = divmod(offset, WINDOW)
            keys = [self._key("job:", id), self._key("body:", f"{id}:{window}")]
            fence, size, piece = await self._run(READ, keys, start)
            if end is None:
                reading, end = fence, int(size or 0)
                if end <= offset:
                    return
            wanted = min(end - offset, WINDOW - start)
            if fence != reading or len(piece) < wanted:
                raise StoreError(f"the body of job {id} was dropped while it was read")
            yield piece[:wanted]
            offset += wanted

    async def partial(self, id: str) -> Partial | None:
        return await self._partial(self._line(), id)

    async def grown(self, known: Partial) -> Partial | None:
        def beyond(found: Partial) -> bool:
            return found.beyond(known)

        return await self._awaited(known.job.id, known.job.version, self._partial, beyond)

    async def changed(self, id: str, after_version: int) -> Job | None:
        def newer(job: Job) -> bool:
            return job.version > after_version

        return await self._awaited(id, after_version, self._get, newer)

    async def list(
        self,
        *,
        states: Collection[State] = (),
        route: str | None = None,
        owner: str | None = None,
        since: float | None = None,
        until: float | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Page:
        of = named(owner), "" if route is None else named(route)
        start = -math.inf if since is None else since
        states = states or tuple(State)
        time, id = before(until, after)
        jobs: list[Job] = []
        more = True
        while more and limit > 0:
            words = (self._key("job:"), *of, start, time, id, min(limit, LISTED))
            more, page = await self._run(LIST, [self._key("listed")], *words, *states)
            for name, score, record in page:
                time, id = float(score), name.decode("utf-8", "surrogatepass")
                job = readable(record or b"")
                if job is not None and not job.gone and job.state in states:
                    jobs.append(job)
            limit -= len(page)
        return Page(jobs, dump_cursor(time, id) if more else None)

    async def totals(self) -> dict[tuple[str, State], Total]:
        groups = await self._run(TOTALS, [self._key("listed")], *State)
        return {
            grouped(group): Total(count, float(oldest), float(seconds))
            for group, count, oldest, seconds in groups
        }

    async def renew(self, fences: Mapping[str, int], lease: float) -> dict[str, State]:
        held = {}
        ids = list(fences)
        for first in range(0, len(ids), BATCH):
            batch = ids[first : first + BATCH]
            keys = [self._key("leases"), *(self._key("job:", id) for id in batch)]
            wanted = (word for id in batch for word in (id, fences[id]))
            for id, state in zip(batch, await self._run(RENEW, keys, lease, *wanted), strict=True):
                if state is not None:
                    held[id] = State(state.decode())
        return held

    async def abandoned(self) -> AsyncIterator[Abandoned]:
        more = True
        since, seen = b"-inf", set[bytes]()  # the end of a lease, and what was seen that ended then
        while more:
            words = (self._key("job:"), since, PAGE + len(seen))
            now, page = await self._run(ABANDONED, [self._key("leases")], *words)
            more = len(page) == PAGE + len(seen)
            for id, ended, record in page:
                if ended != since:
                    since, seen = ended, set()
                if id in seen or record is None:
                    continue
                seen.add(id)
                yield Abandoned(id.decode(), readable(record), float(now) - float(ended))

    async def claim_deliveries(self, now: float, lease: float, limit: int) -> Sequence[Job]:
        keys = [self._key("due:deliveries"), self._key("leases:deliveries")]
        taken: builtins.list[Job] = []
        others: builtins.list[Word] = []
        words = (self._key("job:"), now, lease, limit, LOOK_AGAIN)
        for id, record in await self._run(DELIVERIES, keys, *words):
            if (job := readable(record)) is None:
                continue
            if job.deliver_at is None:
                others += [id, ""]
            elif (later := turns_to(job, now)) is not None:
                others += [id, later]
            else:
                taken.append(job)
        if others:
            await self._run(TURN_TO, keys, *others)
        return taken

    async def discard(self, id: str) -> bool:
        record = await self._run(RECORD, [self._key("job:", id)])
        if record is None or readable(record) is not None:
            return False
        return await self._drop(id, record)

    async def sweep(self, now: float) -> bool:
        more, skip = True, 0
        while more:
            words = (self._key("job:"), self._key("changed"), now, skip, BATCH)
            keys = [self._key("due"), self._key("listed")]
            more, left, expired = await self._run(SWEEP, keys, *words)
            done = await asyncio.gather(*(self._bury(id, record, now) for id, record in expired))
            skip += done.count(False)  # somebody else was faster, or they would come again for ever
        return bool(left)

    async def _bury(self, id: bytes, record: bytes, now: float) -> bool:
        """Leave a tombstone of a job that has expired, or nothing if it cannot be read."""
        job = readable(record)
        if job is not None:
            return await self.replace(job.tombstone(now))
        dropped = await self._drop(id.decode("utf-8", "surrogatepass"), record, now)
        if dropped:
            told = {"job": id.decode()}
            logger.warning(
                "job %s has expired; its record could not be read", id.decode(), extra=told
            )
        return dropped

    async def _drop(self, id: str, record: bytes, now: float | str = "") -> bool:
        words = (self._key("changed"), id, record, now)
        return bool(await self._run(DROP, self._keys_of(id), *words))

    async def aclose(self) -> None:
        """Close the connections. Whoever still asks or waits is told a `StoreError`."""
        line, self._opened = self._opened, None
        if line is not None and line.loop.is_running():
            await line.aclose()

    def _key(self, kind: str, name: str = "") -> str:
        return f"{self._prefix}{kind}{name}"

    def _keys_of(self, id: str, keys: Collection[Key] = ()) -> Sequence[str]:
        own = self._prefix
        return [
            f"{own}job:{id}",
            f"{own}request:{id}",
            f"{own}body:{id}",
            *self._of_all,
            f"{own}keys:{id}",
            f"{own}passing:{id}",
            *[f"{own}key:{key.name}" for key in keys],
        ]

    def _run(
        self, script: Script, keys: Sequence[str], *words: Word, shared: bool = False
    ) -> Awaitable[Any]:
        return self._ask(len(keys), *keys, *words, script=script, shared=shared)

    async def _get(self, line: Line, id: str) -> Job | None:
        key = self._key("job:", id)
        record = await self._ask("HGET", key, "record", shared=True, line=line)
        return None if record is None else load(record)

    async def _partial(self, line: Line, id: str) -> Partial | None:
        words = (1, self._key("job:", id))
        there = await self._ask(*words, script=PARTIAL, shared=True, line=line)
        if there is None:
            return None
        job, head = load(there[0]), there[2]
        if job.stage is None:
            return told(job)
        return Partial(job, None if head is None else load_head(head), int(there[1] or 0))

    async def _awaited(
        self,
        id: str,
        version: int,
        look: Callable[[Line, str], Awaitable[T | None]],
        enough: Callable[[T], bool],
    ) -> T | None:
        """What is found of a job once that is enough; None if there is no such job."""
        line = self._line()
        while True:
            with line.feed.waiting.newer(id, version) as news:  # to miss nothing
                await line.opened()
                found = await look(line, id)
                if found is None or enough(found):
                    return found
                await news.wait()

    def _ask(
        self,
        *words: Word,
        script: Script | None = None,
        shared: bool = False,
        line: Line | None = None,
    ) -> Awaitable[Any]:
        line = self._line() if line is None else line
        if not line.permitted:
            return self._ask_at_first(line, words, script, shared)
        return line.ask(*words, script=script, shared=shared)

    async def _ask_at_first(
        self, line: Line, words: Sequence[Word], script: Script | None, shared: bool
    ) -> Any:
        await self._check(line)
        return await line.ask(*words, script=script, shared=shared)

    async def _check(self, line: Line) -> None:
        """See what the server lets the store do, before it does a part of it.

        Raises:
            NeverWorks: less than it has to.
        """
        keys = [word for kind, name in OWN for word in (kind, self._key(name))]
        words = (0, self._key("job:"), self._key("changed"), len(keys), *keys, *COMMANDS)
        answer = await line.ask(*words, script=CHECK, shared=True)
        new, of_keys, of_channel, denied, theirs = answer
        if not new:
            raise NeverWorks(f"{self._name} is too old: RedisStore needs Redis 7, or Valkey")
        if missing := rights(denied, self._prefix, of_keys, of_channel):
            raise NeverWorks(
                f"{self._name} does not let its user do all that the store does with the keys and "
                "the channel of this deployment: let somebody run "
                f"ACL SETUSER {self._user} {' '.join(missing)}"
            )
        if of_keys:  # a cluster says that they are elsewhere
            raise NeverWorks(f"{self._name} failed: {of_keys.decode()}")
        if theirs:
            raise NeverWorks(
                f"{self._name} has {b', '.join(theirs).decode()} of another application: give the "
                "store another deployment, or another database"
            )
        line.permit()

    def _line(self) -> Line:
        """The connections of the event loop that runs now."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError as error:
            raise ConfigurationError(
                "RedisStore runs on asyncio only, as redis-py does: on trio, use SQLiteStore"
            ) from error
        line = self._opened
        if line is not None and line.loop is not loop:
            line.leave()
            line = None
        if line is None or line.closed:
            line = self._opened = Line(
                self._name, self._connect, self._key("changed"), self._timeout
            )
            line.ask("INFO", "memory").add_done_callback(self._warn_of_eviction)
        return line

    def _warn_of_eviction(self, answer: asyncio.Future[Any]) -> None:
        if answer.cancelled() or answer.exception() is not None:
            return  # it may not be allowed to ask; calls that fail tell why themselves
        memory: list[bytes] = answer.result().split()
        if b"maxmemory:0" not in memory and b"maxmemory_policy:noeviction" not in memory:
            logger.warning("%s drops jobs when it is full: set its maxmemory-policy", self._name)
