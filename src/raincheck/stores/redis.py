"""Jobs on a Redis or Valkey server, for several processes and machines.

Keys, all behind one prefix:

    job:<id>         hash: the record, and what the scripts need of it
    request:<id>     the captured request
    body:<id>:<n>    the n-th `WINDOW` bytes of the response body
    key:<key>        the id of the job that has this key
    due              sorted set: every id, by when `sweep` turns to it (the callers' clocks)
    leases           sorted set: every leased id, by when its lease ends (the server's clock)

and one channel, `changed`, that tells the id of each job of which there is a new version.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import Context
from functools import partial
from hashlib import sha1
from typing import Any, ClassVar, TypeVar

from raincheck.errors import ConfigurationError, StoreError, StoreFull
from raincheck.job import Job, State
from raincheck.messages import CapturedRequest
from raincheck.records import dump, dump_request, load, load_request
from raincheck.stores.base import Store

try:
    from redis.asyncio.connection import AbstractConnection, Connection, parse_url
    from redis.exceptions import ConnectionError as Disconnected
    from redis.exceptions import (
        NoScriptError,
        OutOfMemoryError,
        ReadOnlyError,
        RedisError,
        ResponseError,
    )
except ImportError as error:
    raise ImportError(
        "RedisStore needs redis-py. Install it with: pip install raincheck[redis]"
    ) from error

logger = logging.getLogger("raincheck")

WINDOW = 256 * 1024
"""Bytes of a response body that are kept under one key, and read at once."""

BATCH = 500
"""Jobs that one call renews or sweeps, so that the server is never busy for long."""

PAGE = 50
"""Abandoned jobs that one call asks for: few, since others take them meanwhile."""

KEEPALIVE = 10.0
"""Seconds between two looks whether the subscription is alive, and still needed."""

RETRY = 0.25
"""Seconds until a subscription that broke is tried again."""

DAY = 24 * 60 * 60
"""Seconds that the server keeps what was due and nobody has swept."""

T = TypeVar("T")
Word = str | bytes | int | float


class RedisStore(Store):
    """Jobs on a Redis (7 or newer) or Valkey server, for several processes and machines.

    It runs on asyncio only, as redis-py does. Each change is one script on the server, done as a
    whole or not at all, in one round trip. All calls share one connection, and those that meet
    share their round trips; another one tells of changes while somebody waits. With
    `pip install redis[hiredis]` answers are read in half the time.

    What the server has acknowledged outlives its end as far as it is told to: with `appendonly yes`
    all but the last second, with `appendfsync always` everything, without a journal what was there
    at the last snapshot. Once it has reached `maxmemory` it refuses new jobs, while those that were
    accepted may go beyond it, as far as the machine's memory goes. That takes `maxmemory-policy
    noeviction`: under any other it drops jobs, and the store logs a warning. The store asks no
    Sentinel, and follows no redirections of a cluster.

    Args:
        url: `redis://[[user]:password@]host[:port][/database]`, `rediss://` likewise with TLS,
            `unix://` with a path, or what else redis-py reads.
        prefix: how all keys begin. Stores with one prefix on one database are one store. The
            braces of the default keep its keys in one slot of a cluster.
        timeout: seconds without an answer after which a call fails. Default 5.

    Raises:
        ConfigurationError: the URL cannot be read, `prefix` is empty, `timeout` is not positive.
    """

    shared: ClassVar[bool] = True

    def __init__(
        self,
        url: str = "redis://localhost:6379/0",
        *,
        prefix: str = "{raincheck}:",
        timeout: float = 5.0,
    ) -> None:
        if not prefix:
            raise ConfigurationError("RedisStore(prefix=''): prefix is how all keys begin")
        if not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
            raise ConfigurationError(
                f"RedisStore(timeout={timeout!r}): timeout is a number of seconds above 0"
            )
        self._name, self._connect = _server(url)
        self._prefix = prefix
        self._timeout = timeout
        self._opened: _Line | None = None

    async def create(
        self, job: Job, request: CapturedRequest | None = None, *, lease: float | None = None
    ) -> Job:
        there = await self._run(
            _CREATE,
            self._keys_of(job),
            self._key("job:"),
            job.id,
            dump(job),
            job.version,
            job.attempt,
            _stage(job),
            dump_request(request) if request is not None and job.replayable else b"",
            "" if lease is None else lease,
            _due(job),
        )
        return job if there is None else load(there)

    async def get(self, id: str) -> Job | None:
        return await self._get(self._line(), id)

    async def find(self, key: str) -> Job | None:
        record = await self._run(_FIND, [self._key("key:", key)], self._key("job:"))
        return None if record is None else load(record)

    async def request(self, id: str) -> CapturedRequest | None:
        request = await self._told(self._line().ask("GET", self._key("request:", id)))
        return None if request is None else load_request(request)

    async def replace(self, job: Job, *, tail: bytes = b"", lease: float | None = None) -> bool:
        replaced = await self._run(
            _REPLACE,
            self._keys_of(job),
            self._key("changed"),
            job.id,
            job.version - 1,
            dump(job),
            job.version,
            job.attempt,
            _stage(job),
            int(job.replayable),
            tail,
            "" if lease is None else lease,
            _due(job),
            _keep(job),
        )
        return bool(replaced)

    async def append_body(self, id: str, attempt: int, offset: int, chunk: bytes) -> bool:
        keys = [self._key("job:", id), self._key("body:", id)]
        start = 0
        while True:
            end = start + WINDOW - (offset + start) % WINDOW
            taken = await self._run(_APPEND, keys, attempt, offset + start, chunk[start:end])
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
            attempt, size, piece = await self._run(_READ, keys, start)
            if end is None:
                reading, end = attempt, int(size or 0)
                if end <= offset:
                    return
            wanted = min(end - offset, WINDOW - start)
            if attempt != reading or len(piece) < wanted:
                raise StoreError(f"the body of job {id} was dropped while it was read")
            yield piece[:wanted]
            offset += wanted

    async def changed(self, id: str, after_version: int) -> Job | None:
        line = self._line()
        while True:
            with line.feed.waiting(id) as news:  # before the look, so that nothing is missed
                await self._told(line.feed.opened())
                job = await self._get(line, id)
                if job is None or job.version > after_version:
                    return job
                await news.wait()

    async def renew(self, attempts: Mapping[str, int], lease: float) -> dict[str, State]:
        held = {}
        ids = list(attempts)
        for first in range(0, len(ids), BATCH):
            batch = ids[first : first + BATCH]
            keys = [self._key("leases"), *(self._key("job:", id) for id in batch)]
            wanted = (word for id in batch for word in (id, attempts[id]))
            for id, state in zip(batch, await self._run(_RENEW, keys, lease, *wanted), strict=True):
                if state is not None:
                    held[id] = State(state.decode())
        return held

    async def abandoned(self) -> AsyncIterator[Job]:
        unread, more = None, True
        since, seen = b"-inf", set[bytes]()  # the end of a lease, and what was seen that ended then
        while more:
            words = (self._key("job:"), since, PAGE + len(seen))
            page = await self._run(_ABANDONED, [self._key("leases")], *words)
            more = len(page) == PAGE + len(seen)
            for id, ended, record in page:
                if ended != since:
                    since, seen = ended, set()
                if id in seen or record is None:
                    continue
                seen.add(id)
                try:
                    job = load(record)
                except StoreError as error:  # it must not keep the others from being taken over
                    unread = error
                    continue
                yield job
        if unread is not None:
            raise unread

    async def sweep(self, now: float) -> bool:
        unread, more, skip = None, True, 0
        while more:
            words = (self._key("job:"), self._key("changed"), now, skip, BATCH)
            more, left, expired = await self._run(_SWEEP, [self._key("due")], *words)
            tombstones = []
            for record in expired:
                try:
                    tombstones.append(load(record).tombstone(now))
                except StoreError as error:  # it must not keep the others from being swept
                    unread, skip = error, skip + 1
            await asyncio.gather(*map(self.replace, tombstones))
        if unread is not None:
            raise unread
        return bool(left)

    async def aclose(self) -> None:
        """Close the connections. Whoever still asks or waits is told a `StoreError`."""
        line, self._opened = self._opened, None
        if line is not None and line.loop.is_running():
            await line.aclose()

    def _key(self, kind: str, name: str = "") -> str:
        return f"{self._prefix}{kind}{name}"

    def _keys_of(self, job: Job) -> list[str]:
        return [
            *(self._key(kind, job.id) for kind in ("job:", "request:", "body:")),
            self._key("due"),
            self._key("leases"),
            *(self._key("key:", key) for key in job.keys),
        ]

    async def _run(self, script: _Script, keys: list[str], *words: Word) -> Any:
        return await self._told(self._line().ask(len(keys), *keys, *words, script=script))

    async def _get(self, line: _Line, id: str) -> Job | None:
        record = await self._told(line.ask("HGET", self._key("job:", id), "record", shared=True))
        return None if record is None else load(record)

    async def _told(self, answer: Awaitable[T]) -> T:
        """What the server answers, or a `StoreError` that says why it does not."""
        try:
            return await answer
        except OutOfMemoryError as error:
            raise StoreFull(f"{self._name} is full: {error}") from error
        except (RedisError, OSError) as error:
            reason = str(error) or f"no answer for {self._timeout:g} seconds"
            raise StoreError(f"{self._name} failed: {reason}") from error

    def _line(self) -> _Line:
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
            line = self._opened = _Line(self._connect, self._key("changed"), self._timeout)
            line.ask("INFO", "memory").add_done_callback(self._warn_of_eviction)
        return line

    def _warn_of_eviction(self, answer: asyncio.Future[Any]) -> None:
        if answer.cancelled() or answer.exception() is not None:
            return  # it may not be allowed to ask; calls that fail tell why themselves
        memory: list[bytes] = answer.result().split()
        if b"maxmemory:0" not in memory and b"maxmemory_policy:noeviction" not in memory:
            logger.warning("%s drops jobs when it is full: set its maxmemory-policy", self._name)


# --- the connections -------------------------------------------------------------------------


class _Question:
    """A command, and those who wait for the answer."""

    __slots__ = ("futures", "script", "words")

    def __init__(self, script: _Script | None, words: tuple[Word, ...]) -> None:
        self.script = script
        self.words = words
        self.futures: list[asyncio.Future[Any]] = []

    def answer(self, answer: Any) -> None:
        for future in self.futures:
            if not future.done():
                future.set_result(answer)

    def fail(self, error: Exception) -> None:
        for future in self.futures:
            if not future.done():
                future.set_exception(error)


class _Line:
    """The connection that all calls in one event loop share.

    What is asked while the server is busy with earlier questions goes out together, next: one
    write for many calls. Whoever asked may be cancelled; the answer is read all the same, so that
    nobody takes it for another.
    """

    def __init__(
        self, connect: Callable[[], AbstractConnection], channel: str, timeout: float
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.closed = False
        self.feed = _Feed(connect, channel, timeout)
        self._connection = connect()
        self._timeout = timeout
        self._questions: list[_Question] = []
        self._shared: dict[tuple[Word, ...], _Question] = {}
        self._asked = asyncio.Event()
        self._task = self.loop.create_task(self._serve(), context=Context())

    def ask(
        self, *words: Word, script: _Script | None = None, shared: bool = False
    ) -> asyncio.Future[Any]:
        """Ask the server.

        Args:
            words: the command; for a script, what follows its name.
            script: the script.
            shared: whoever asks the same before it is sent shares the answer.
        """
        future = self.loop.create_future()
        question = self._shared.get(words) if shared else None
        if question is None:
            question = _Question(script, words)
            self._questions.append(question)
            if shared:
                self._shared[words] = question
            self._asked.set()
        question.futures.append(future)
        if self.closed:
            question.fail(_closed())
        return future

    def leave(self) -> None:
        """Close when its event loop runs again, if it ever does; this one is another."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._task.cancel)

    async def aclose(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _serve(self) -> None:
        batch: list[_Question] = []
        try:
            while True:
                await self._asked.wait()
                batch = self._take()
                try:
                    await self._exchange(batch)
                except Exception as error:  # goes to those who asked
                    await self._connection.disconnect(nowait=True)
                    if isinstance(error, TimeoutError):
                        batch += self._take()  # they have waited for the same server
                    for question in batch:
                        question.fail(error)
        finally:
            self.closed = True
            for question in [*batch, *self._take()]:
                question.fail(_closed())
            await self._connection.disconnect(nowait=True)
            await self.feed.aclose()

    def _take(self) -> list[_Question]:
        questions, self._questions = self._questions, []
        self._shared.clear()
        self._asked.clear()
        return [q for q in questions if not all(future.done() for future in q.futures)]

    async def _exchange(self, batch: list[_Question], *, known: bool = True) -> None:
        connection, unknown, demoted = self._connection, [], False
        async with asyncio.timeout(self._timeout) as patience:
            if connection.is_connected and await connection.can_read():
                await connection.disconnect(nowait=True)  # the server hung up while nobody asked
            await connection.connect()  # type: ignore[no-untyped-call] # redis-py's
            commands = (_command(question, known) for question in batch)
            await connection.send_packed_command(connection.pack_commands(commands))
            for question in batch:
                try:
                    question.answer(await connection.read_response(disable_decoding=True))
                except NoScriptError:
                    unknown.append(question)
                except ResponseError as error:
                    question.fail(error)
                    demoted = demoted or isinstance(error, ReadOnlyError)
                patience.reschedule(self.loop.time() + self._timeout)
        if demoted:
            await connection.disconnect(nowait=True)  # another server may be the primary now
        if unknown:
            await self._exchange(unknown, known=False)


class _Feed:
    """The subscription that tells which jobs have changed, open while somebody waits for one."""

    def __init__(
        self, connect: Callable[[], AbstractConnection], channel: str, timeout: float
    ) -> None:
        self._connect = connect
        self._channel = channel
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[str, _Waiting] = {}
        self._stands: asyncio.Future[None] = self._loop.create_future()
        self._task: asyncio.Task[None] | None = None

    @contextmanager
    def waiting(self, id: str) -> Iterator[asyncio.Event]:
        """Wait for one job. The event is set when it may have changed."""
        waiting = self._waiting.setdefault(id, _Waiting())
        waiting.tasks += 1
        try:
            yield waiting.event
        finally:
            waiting.tasks -= 1
            if not waiting.tasks and self._waiting.get(id) is waiting:
                del self._waiting[id]

    async def opened(self) -> None:
        """Return when the subscription stands. Only for those who are `waiting`."""
        if self._task is None:
            self._task = self._loop.create_task(self._follow(), context=Context())
        await asyncio.shield(self._stands)

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _follow(self) -> None:
        connection = self._connect()
        try:
            while self._waiting:
                try:
                    await self._listen(connection)
                except (RedisError, OSError) as error:
                    self._fall(error)
                    await connection.disconnect(nowait=True)
                    await asyncio.sleep(RETRY)
        finally:
            self._task = None
            self._fall(_closed())
            self._wake(*self._waiting)
            await connection.disconnect(nowait=True)

    async def _listen(self, connection: AbstractConnection) -> None:
        """Pass on what comes, until the connection breaks or nobody waits any more."""
        pinged, until = True, self._loop.time() + self._timeout
        async with asyncio.timeout_at(until):
            await connection.connect()  # type: ignore[no-untyped-call] # redis-py's
            await connection.send_command("SUBSCRIBE", self._channel)
            await connection.send_command("PING")  # a server that still loads refuses it
        while True:
            left = max(0.0, until - self._loop.time())
            message = await connection.read_response(disable_decoding=True, timeout=left)
            if message is None and pinged:
                raise TimeoutError
            if message is None:
                if not self._waiting:
                    break
                await connection.send_command("PING")
                pinged, until = True, self._loop.time() + self._timeout
            elif message[0] == b"pong":
                if not self._stands.done():
                    self._stands.set_result(None)
                    self._wake(*self._waiting)  # they may have missed something
                pinged, until = False, self._loop.time() + KEEPALIVE
            elif message[0] == b"message":
                self._wake(message[2].decode(errors="replace"))

    def _wake(self, *ids: str) -> None:
        for id in ids:
            if waiting := self._waiting.pop(id, None):
                waiting.event.set()

    def _fall(self, error: Exception) -> None:
        """The subscription stands no more; whoever waits for it now is told why."""
        if not self._stands.done():
            self._stands.set_exception(error)
            self._stands.exception()  # nobody may have waited for it
        self._stands = self._loop.create_future()


class _Waiting:
    """The tasks that wait for the next version of one job."""

    __slots__ = ("event", "tasks")

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.tasks = 0


def _closed() -> Exception:
    return Disconnected("the store was closed")


def _server(url: str) -> tuple[str, Callable[[], AbstractConnection]]:
    """How errors call a server, and what makes connections to it."""
    try:
        options: dict[str, Any] = {**parse_url(url)}
        kind = options.pop("connection_class", Connection)
        # Time limits are the line's own, and answers are bytes as RESP 2 has them.
        options |= {"protocol": 2, "socket_timeout": None, "socket_connect_timeout": None}
        options |= {"decode_responses": False, "encoding_errors": "surrogatepass"}
        kind(**options)
    except (RedisError, TypeError, ValueError):  # may quote a part of the password
        raise ConfigurationError(
            "RedisStore(url=...): this is no URL that redis-py reads; write it like "
            "redis://user:password@localhost:6379/0, with special characters percent-encoded"
        ) from None
    place = options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
    return f"Redis at {place}, database {options.get('db', 0)},", partial(kind, **options)


# --- what the scripts are told ---------------------------------------------------------------


def _stage(job: Job) -> str:
    """The state of a job that is unfinished; else that it is finished, or gone."""
    return "gone" if job.gone else "finished" if job.finished else str(job.state)


def _due(job: Job) -> float:
    due = job.purge_at if job.gone else job.expires_at
    return math.inf if due is None else due


def _keep(job: Job) -> str | int:
    """Seconds until the server itself drops what nobody has swept; its clock may be any."""
    since = job.expires_at if job.gone else job.finished_at
    if since is None or job.purge_at is None:
        return ""
    return int(min(max(0.0, job.purge_at - since), 1e10)) + DAY


# --- the scripts -----------------------------------------------------------------------------


class _Script:
    """A script in Lua, and the digest that the server calls it by once it knows it."""

    def __init__(self, flags: str, text: str) -> None:
        self.text = f"#!lua {flags}".rstrip() + f"\nlocal WINDOW = {WINDOW}\n{_COMMON}{text}"
        self.digest = sha1(self.text.encode(), usedforsecurity=False).hexdigest()


_COMMON = """
local call = redis.call

local function clock()
  local time = call('TIME')
  return time[1] + time[2] / 1000000
end

local function unfinished(stage)
  return stage and stage ~= 'finished' and stage ~= 'gone'
end

local function append(body, size, chunk)
  local first = 1
  while first <= #chunk do
    local last = first + WINDOW - size % WINDOW - 1
    local piece = string.sub(chunk, first, last)
    call('APPEND', body .. ':' .. math.floor(size / WINDOW), piece)
    size, first = size + #piece, last + 1
  end
  return size
end

local function windows(body, size)
  local keys = {}
  for start = 0, size - 1, WINDOW do keys[#keys + 1] = body .. ':' .. start / WINDOW end
  return keys
end
"""

# Without allow-oom: the one that a full server refuses.
_CREATE = _Script(
    "",
    """
local job, request, _, due, leases = unpack(KEYS, 1, 5)
local jobs, id, record, version, attempt, stage, captured, lease, score = unpack(ARGV)
local there = call('HGET', job, 'record')
for i = 6, #KEYS do
  local other = not there and call('GET', KEYS[i])
  there = there or other and call('HGET', jobs .. other, 'record')
end
if there then return there end
call('HSET', job, 'record', record, 'version', version, 'attempt', attempt, 'stage', stage,
  'size', 0)
if #KEYS > 5 then call('HSET', job, 'keys', cmsgpack.pack({unpack(KEYS, 6)})) end
for i = 6, #KEYS do call('SET', KEYS[i], id) end
if captured ~= '' then call('SET', request, captured) end
if lease ~= '' and unfinished(stage) then call('ZADD', leases, clock() + lease, id) end
call('ZADD', due, score, id)
return false
""",
)

_FIND = _Script(
    "flags=no-writes",
    """
local id = call('GET', KEYS[1])
return id and call('HGET', ARGV[1] .. id, 'record')
""",
)

_REPLACE = _Script(
    "flags=allow-oom",
    """
local job, request, body, due, leases = unpack(KEYS, 1, 5)
local channel, id, before, record, version, attempt, stage = unpack(ARGV, 1, 7)
local replayable, tail, lease, score, keep = unpack(ARGV, 8, 12)
local old = call('HMGET', job, 'version', 'attempt', 'size', 'keys')
if old[1] ~= before then return 0 end

local size = tonumber(old[3])
if size > 0 and (old[2] ~= attempt or stage == 'gone') then
  for _, key in ipairs(windows(body, size)) do call('UNLINK', key) end
  size = 0
end
size = append(body, size, tail)
call('HSET', job, 'record', record, 'version', version, 'attempt', attempt, 'stage', stage,
  'size', size)
if replayable == '0' then call('UNLINK', request) end

local keys = {unpack(KEYS, 6)}
local packed = #keys > 0 and cmsgpack.pack(keys)
if packed ~= old[4] then
  for _, key in ipairs(old[4] and cmsgpack.unpack(old[4]) or {}) do
    if call('GET', key) == id then call('UNLINK', key) end
  end
  for _, key in ipairs(keys) do call('SET', key, id) end
  if packed then call('HSET', job, 'keys', packed) else call('HDEL', job, 'keys') end
end

if not unfinished(stage) then
  call('ZREM', leases, id)
  call('ZADD', due, score, id)
elseif lease ~= '' then
  call('ZADD', leases, clock() + lease, id)
end
if keep ~= '' then
  call('EXPIRE', job, keep)
  for _, key in ipairs(keys) do call('EXPIRE', key, keep) end
  for _, key in ipairs(windows(body, size)) do call('EXPIRE', key, keep) end
end
call('PUBLISH', channel, id)
return 1
""",
)

_APPEND = _Script(
    "flags=allow-oom",
    """
local job, body = KEYS[1], KEYS[2]
local attempt, offset, chunk = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local old = call('HMGET', job, 'attempt', 'stage', 'size')
if old[1] ~= attempt or not unfinished(old[2]) then return 0 end
local size = tonumber(old[3])
if offset > size then return false end
call('HSET', job, 'size', append(body, size, string.sub(chunk, size - offset + 1)))
return 1
""",
)

_READ = _Script(
    "flags=no-writes",
    """
local job = call('HMGET', KEYS[1], 'attempt', 'size')
return {job[1], job[2], call('GETRANGE', KEYS[2], ARGV[1], -1)}
""",
)

_RENEW = _Script(
    "flags=allow-oom",
    """
local stages = {}
local ends = clock() + ARGV[1]
for i = 2, #KEYS do
  local id, attempt = ARGV[2 * i - 2], ARGV[2 * i - 1]
  local job = call('HMGET', KEYS[i], 'attempt', 'stage')
  stages[i - 1] = job[1] == attempt and unfinished(job[2]) and job[2]
  if stages[i - 1] then call('ZADD', KEYS[1], ends, id) end
end
return stages
""",
)

_ABANDONED = _Script(
    "flags=no-writes",
    """
local jobs, since, limit = unpack(ARGV)
local found = call('ZRANGE', KEYS[1], since, clock(), 'BYSCORE', 'LIMIT', 0, limit, 'WITHSCORES')
local page = {}
for i = 1, #found, 2 do
  page[#page + 1] = {found[i], found[i + 1], call('HGET', jobs .. found[i], 'record')}
end
return page
""",
)

_SWEEP = _Script(
    "flags=allow-oom",
    """
local due = KEYS[1]
local jobs, channel, now, skip, limit = unpack(ARGV)
local ids = call('ZRANGE', due, '-inf', now, 'BYSCORE', 'LIMIT', skip, limit)
local expired = {}
for _, id in ipairs(ids) do
  local job = call('HMGET', jobs .. id, 'record', 'stage')
  if job[1] and job[2] ~= 'gone' then
    expired[#expired + 1] = job[1]
  else
    call('UNLINK', jobs .. id)
    call('ZREM', due, id)
    call('PUBLISH', channel, id)
  end
end
return {#ids == tonumber(limit) and 1 or 0, call('ZCARD', due), expired}
""",
)


def _command(question: _Question, known: bool) -> tuple[Word, ...]:
    """A question as a command; a script goes with its text if the server does not know it."""
    script = question.script
    if script is None:
        return question.words
    if known:
        return ("EVALSHA", script.digest, *question.words)
    return ("EVAL", script.text, *question.words)
