"""The connections to a Redis or Valkey server that `RedisStore` shares among its calls."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable
from contextvars import Context
from functools import partial
from typing import Any, NoReturn

from raincheck.errors import ConfigurationError, StoreError, StoreFull
from raincheck.stores._redis_scripts import Script
from raincheck.stores.servers import NeverWorks
from raincheck.stores.watchers import Watchers
from raincheck.tasks import AsyncioTimeLimits

try:
    from redis.asyncio.connection import AbstractConnection, Connection, parse_url
    from redis.exceptions import (
        AuthenticationError,
        MovedError,
        NoPermissionError,
        NoScriptError,
        OutOfMemoryError,
        ReadOnlyError,
        RedisError,
        ResponseError,
    )
    from redis.exceptions import ConnectionError as Disconnected
except ImportError as _error:
    raise ImportError(
        "RedisStore needs redis-py. Install it with: pip install raincheck[redis]"
    ) from _error

pack_command: Callable[..., Any] | None = None
try:  # which is optional, and which redis-py takes, too
    import hiredis
except ImportError:
    pass
else:
    pack_command = hiredis.pack_command

IDLE = 1.0
"""Seconds without a question after which the next one goes out behind a PING: the server may have
closed the connection meanwhile, and has not seen it then."""

KEEPALIVE = 10.0
"""Seconds between two looks whether the subscription is alive, and still needed."""

RETRY = 0.25
"""Seconds until a subscription that broke is tried again."""

# What an error in a script ends with.
_WHERE = re.compile(r" script: ([0-9a-f]+, )?on @user_script.*")

Word = str | bytes | int | float


def server(url: str) -> tuple[str, str, Callable[[], AbstractConnection]]:
    """How errors call a server, its user, and what makes connections to it."""
    try:
        options: dict[str, Any] = {**parse_url(url)}
        kind = options.pop("connection_class", Connection)
        str(options.get("host", "")).encode("idna")
        # Time limits are the line's own, and answers are bytes as RESP 2 has them.
        options |= {"protocol": 2, "socket_timeout": None, "socket_connect_timeout": None}
        options |= {"decode_responses": False, "encoding_errors": "surrogatepass"}
        kind(**options)
    except (RedisError, TypeError, ValueError, AttributeError):  # may quote a part of the password
        raise ConfigurationError(
            "RedisStore(url=...): this is no URL that redis-py reads; write it like "
            "redis://user:password@localhost:6379/0, with special characters percent-encoded"
        ) from None
    place = options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
    name = f"Redis at {place}, database {options.get('db', 0)},"
    return name, options.get("username") or "default", partial(kind, **options)


class Line:
    """The connection that all calls in one event loop share.

    What is asked while the server is busy with earlier questions goes out together, next: one
    write for many calls. Whoever asked may be cancelled; the answer is read all the same, so that
    nobody takes it for another.

    Attributes:
        loop: the event loop.
        closed: whether it is of no use any more.
        permitted: whether the store has seen that it may do here all that it has to.
        feed: what tells of changes.
    """

    def __init__(
        self, name: str, connect: Callable[[], AbstractConnection], channel: str, timeout: float
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.closed = False
        self.permitted = False
        self.feed = Feed(connect, channel, timeout)
        self._name = name
        self._connection = connect()
        self._used = 0.0
        self._timeout = timeout
        self._limits = AsyncioTimeLimits(self.loop, timeout)
        self._questions: list[Question] = []
        self._shared: dict[tuple[Script | None, *tuple[Word, ...]], Question] = {}
        self._asked: asyncio.Future[None] = self.loop.create_future()
        self._task = self.loop.create_task(self._serve(), context=Context())

    def ask(
        self, *words: Word, script: Script | None = None, shared: bool = False
    ) -> asyncio.Future[Any]:
        """Ask the server, and have its answer, or a `StoreError` that says why there is none.

        Args:
            words: the command; for a script, what follows its name.
            script: the script.
            shared: whoever asks the same before it is sent shares the answer.
        """
        future = self.loop.create_future()
        question = self._shared.get((script, *words)) if shared else None
        if question is None:
            question = Question(script, words)
            self._questions.append(question)
            if shared:
                self._shared[script, *words] = question
            if not self._asked.done():
                self._asked.set_result(None)
        question.futures.append(future)
        if self.closed:
            self._fail([question], _closed())
        return future

    async def opened(self) -> None:
        """Return when the subscription stands. Only for those who wait already."""
        try:
            await self.feed.opened()
        except (RedisError, OSError) as error:
            self._tell(error)

    def _fail(self, questions: Iterable[Question], error: Exception) -> None:
        for question in questions:
            for future in question.futures:
                if not future.done():
                    future.set_exception(self._failure(error))

    def _failure(self, error: Exception) -> Exception:
        try:
            self._tell(error)
        except Exception as failure:
            return failure

    def _tell(self, error: Exception) -> NoReturn:
        """Raise a `StoreError` that says why there is no answer."""
        if isinstance(error, OutOfMemoryError):
            raise StoreFull(f"{self._name} is full: {error}") from error
        if isinstance(error, RedisError | OSError):
            reason = str(error) or f"no answer for {self._timeout:g} seconds"
            kind = NeverWorks if _for_good(error) else StoreError
            raise kind(f"{self._name} failed: {_WHERE.sub('', reason)}") from error
        raise error

    def permit(self) -> None:
        """The store has seen that it may do here all that it has to."""
        self.permitted = True

    def leave(self) -> None:
        """Close when its event loop runs again, if it ever does; this one is another."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._task.cancel)

    async def aclose(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _serve(self) -> None:
        batch: list[Question] = []
        try:
            while True:
                if not self._questions:
                    self._asked = self.loop.create_future()
                    await self._asked
                batch = self._take()
                try:
                    await self._insist(batch)
                except Exception as error:  # goes to those who asked
                    await self._connection.disconnect(nowait=True)
                    if isinstance(error, TimeoutError):
                        batch += self._take()  # they have waited for the same server
                    self._fail(batch, error)
        finally:
            self.closed = True
            self._fail([*batch, *self._take()], _closed())
            await self._connection.disconnect(nowait=True)
            await self.feed.aclose()

    def _take(self) -> list[Question]:
        questions, self._questions = self._questions, []
        self._shared.clear()
        return [question for question in questions if question.open]

    async def _insist(self, batch: list[Question]) -> None:
        """Ask, and ask anew what went down with a connection that had been there before."""
        before = self._connection.is_connected
        try:
            await self._exchange(batch)
        except (Disconnected, OSError) as error:
            if not before or isinstance(error, TimeoutError):
                raise
            await self._connection.disconnect(nowait=True)
            self._fail([question for question in batch if question.once], error)
            await self._exchange([question for question in batch if question.open])

    async def _alive(self) -> bool:
        """Whether the server is still there; after a while, only its word for it will do."""
        if await self._connection.can_read():
            return False
        if self._used < self.loop.time() - IDLE:
            try:
                await self._connection.send_command("PING")
                await self._connection.read_response()
            except (Disconnected, ConnectionError):
                return False
        return True

    async def _exchange(self, batch: list[Question], *, known: bool = True) -> None:
        connection, unknown, demoted = self._connection, [], False
        with self._limits.limit() as patience:
            if connection.is_connected and not await self._alive():
                await connection.disconnect(nowait=True)  # the server hung up while nobody asked
            if not connection.is_connected:
                await connection.connect()  # type: ignore[no-untyped-call] # redis-py's
            commands = [packed(_command(question, known)) for question in batch]
            await connection.send_packed_command(commands, check_health=False)
            for question in batch:
                try:
                    question.answer(await connection.read_response(disable_decoding=True))
                except NoScriptError:
                    unknown.append(question)
                except ResponseError as error:
                    self._fail([question], error)
                    demoted = demoted or isinstance(error, ReadOnlyError)
                self._limits.renew(patience)
        self._used = self.loop.time()
        if demoted:
            await connection.disconnect(nowait=True)  # another server may be the primary now
        if unknown:
            await self._exchange(unknown, known=False)


class Question:
    """A command, and those who wait for the answer."""

    __slots__ = ("futures", "script", "words")

    def __init__(self, script: Script | None, words: tuple[Word, ...]) -> None:
        self.script = script
        self.words = words
        self.futures: list[asyncio.Future[Any]] = []

    @property
    def open(self) -> bool:
        """Whether anybody waits for an answer."""
        for future in self.futures:  # noqa: SIM110 # a generator takes longer than the rest
            if not future.done():
                return True
        return False

    @property
    def once(self) -> bool:
        """Whether it must not be asked anew, since it may have been done."""
        return self.script is not None and not self.script.repeatable

    def answer(self, answer: Any) -> None:
        for future in self.futures:
            if not future.done():
                future.set_result(answer)


def _for_good(error: Exception) -> bool:
    """Whether it fails until somebody changes a setting, here or there."""
    return isinstance(error, AuthenticationError | NoPermissionError | MovedError) or (
        isinstance(error, ResponseError) and "DB index" in str(error)
    )


def _command(question: Question, known: bool) -> tuple[Word, ...]:
    """A question as a command; a script goes with its text if the server does not know it."""
    script = question.script
    if script is None:
        return question.words
    if known:
        return ("EVALSHA", script.digest, *question.words)
    return ("EVAL", script.text, *question.words)


def packed(words: tuple[Word, ...]) -> bytes:
    """A command as the server reads it: an array of bulk strings (RESP 2).

    redis-py takes several times as long, word by word, where it does not leave that to hiredis:
    with all that a change has, that was more than all the rest of a call.
    """
    if pack_command is not None:
        try:
            command: bytes = pack_command(words)
            return command
        except UnicodeEncodeError:  # it knows no surrogates, which an id may have
            pass
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        if isinstance(word, str):
            word = word.encode("utf-8", "surrogatepass")
        elif not isinstance(word, bytes):
            word = repr(word).encode()
        parts += (b"$%d\r\n" % len(word), word, b"\r\n")
    return b"".join(parts)


class Feed:
    """The subscription that tells which jobs have changed, open while somebody waits for one."""

    def __init__(
        self, connect: Callable[[], AbstractConnection], channel: str, timeout: float
    ) -> None:
        self._connect = connect
        self._channel = channel
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self.waiting = Watchers()
        self._stands: asyncio.Future[None] = self._loop.create_future()
        self._task: asyncio.Task[None] | None = None

    async def opened(self) -> None:
        """Return when the subscription stands. Only for those who wait already."""
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
            while self.waiting:
                try:
                    await self._listen(connection)
                except (RedisError, OSError) as error:
                    self._fall(error)
                    await connection.disconnect(nowait=True)
                    await asyncio.sleep(RETRY)
        finally:
            self._task = None
            self._fall(_closed())
            self.waiting.wake_all()
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
                if not self.waiting:
                    break
                await connection.send_command("PING")
                pinged, until = True, self._loop.time() + self._timeout
            elif message[0] == b"pong":
                if not self._stands.done():
                    self._stands.set_result(None)
                    self.waiting.wake_all()  # they may have missed something
                pinged, until = False, self._loop.time() + KEEPALIVE
            elif message[0] == b"message":
                self.waiting.wake([message[2].decode(errors="replace")])

    def _fall(self, error: Exception) -> None:
        """The subscription stands no more; whoever waits for it now is told why."""
        if not self._stands.done():
            self._stands.set_exception(error)
            self._stands.exception()  # nobody may have waited for it
        self._stands = self._loop.create_future()


def _closed() -> Exception:
    return Disconnected("the store was closed")
