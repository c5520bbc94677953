"""The server of a `PostgresStore`: how it is reached, and what its failures mean."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Coroutine
from contextvars import Context
from hashlib import blake2b
from math import ceil
from typing import Any, TypeVar
from urllib.parse import urlsplit

import asyncpg  # type: ignore[import-untyped]  # it brings no types

from raincheck.errors import ConfigurationError, StoreError, StoreFull
from raincheck.stores.servers import NeverWorks, checked

T = TypeVar("T")

# What a call raises: what the server says, what asyncpg says, and what the network does.
FAILURES = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)

# What a call raises whose connection has gone, or goes.
LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    ConnectionError,
)

# What connecting to a server, or a role's rights there, fail by until somebody changes a setting.
_FOR_GOOD = (
    asyncpg.InvalidAuthorizationSpecificationError,  # no such role, a wrong password
    asyncpg.InvalidCatalogNameError,  # no such database
    asyncpg.InsufficientPrivilegeError,
    ssl.SSLCertVerificationError,
)

# What becomes of a prepared statement that is executed on another connection.
_POOLED = (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError)

# What statements call the schema and the deployment of their store.
_NAMES = re.compile(r"raincheck\.|'deployment'")

# For each connection. A prepared statement keeps its plan, and while tables are new and small that
# is to read them as a whole: a thousand jobs later it would be slow, until the server analyzes them
# again; the same goes for joins with some jobs, which nested loops find by their ids. For an array
# of ids it would have a new plan each time, which takes longer than the rest.
# And what nobody waits for any more ends, lest it keeps its locks and its connection.
SETTINGS = """
SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off;
SET plan_cache_mode = force_generic_plan; SET jit = off;
SET default_transaction_isolation = 'read committed';
SET statement_timeout = {0}; SET idle_in_transaction_session_timeout = {0}
"""


class Server:
    """Where a store's tables are, and how it gets there. The arguments are those of the store.

    Raises:
        ConfigurationError: one of them cannot work.
    """

    def __init__(
        self, dsn: str, deployment: str, schema: str, timeout: float, listen: bool | str
    ) -> None:
        self._name = _name(dsn, "dsn")
        named = isinstance(schema, str) and 1 <= len(schema.encode()) <= 63
        if not named or "\0" in schema:
            raise ConfigurationError(f"schema={schema!r}: a name has 1 to 63 bytes")
        if not isinstance(timeout, int | float) or not 0 < timeout <= 86400:
            raise ConfigurationError(f"timeout={timeout!r}: give seconds, more than 0, up to a day")
        if not isinstance(listen, bool):
            _name(listen, "listen")
        self.dsn = dsn
        self.deployment = checked(deployment)
        self.schema = schema
        self.timeout = timeout
        self.listen = listen
        self._own: dict[str, str] = {}

    def __str__(self) -> str:
        return self._name

    @property
    def pooled(self) -> bool:
        """Whether a proxy stands before it that gives every transaction another connection."""
        return self.listen is not True

    @property
    def channel(self) -> str:
        """Where changes of this deployment's jobs are told: a name of any length makes one."""
        name = f"{self.schema}\0{self.deployment}"
        return "raincheck " + blake2b(name.encode(), digest_size=16).hexdigest()

    def in_schema(self, statement: str) -> str:
        """The statement, about the tables and the jobs of this store."""
        own = self._own.get(statement)
        if own is None:
            names = {
                "raincheck.": quoted(self.schema) + ".",
                "'deployment'": f"'{self.deployment}'",
            }
            own = self._own[statement] = _NAMES.sub(lambda name: names[name[0]], statement)
        return own

    def failure(self, error: Exception) -> StoreError:
        """What the store raises when a call has failed like this."""
        if isinstance(error, TimeoutError):
            return StoreError(f"{self} did not answer within {self.timeout:g} seconds")
        said = str(error) or type(error).__name__
        if isinstance(error, _POOLED):
            said = "it seems to be a proxy that pools transactions: set `listen`"
        text = f"{self}: {said}"
        if isinstance(error, asyncpg.DiskFullError):
            return StoreFull(text)
        return NeverWorks(text) if isinstance(error, _FOR_GOOD) else StoreError(text)

    async def connect(self, dsn: str | None = None) -> Any:
        """A new connection, by another way if it is given one.

        If it stands when nobody wants it any more, it is closed. `asyncpg.connect` itself is not
        cancelled: at some of its steps that would leave a future with an exception that nobody
        retrieves. It ends by its own timeout.
        """
        connecting = spawn(_connected(dsn or self.dsn, self.timeout, pooled=self.pooled))
        try:
            return await asyncio.shield(connecting)
        except asyncio.CancelledError:
            connecting.add_done_callback(_discard)
            raise


def quoted(name: str) -> str:
    """A name, as statements have it."""
    return '"' + name.replace('"', '""') + '"'


def _name(dsn: str, argument: str) -> str:
    """The server and the database in a DSN, as they may appear in messages."""
    parts = urlsplit(dsn if isinstance(dsn, str) else "")
    rest = parts.path + parts.query + parts.fragment
    if parts.scheme not in ("postgresql", "postgres") or "@" in rest:
        raise ConfigurationError(
            f"{argument} begins with postgresql://, and what is special in a password, such as @, "
            "/, ? and #, is percent-encoded there"
        )
    return parts.netloc.rpartition("@")[2] + parts.path or "PostgreSQL"


def spawn(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """A task in a context of its own, not in that of the first who needs it."""
    return asyncio.get_running_loop().create_task(work, context=Context())


async def _connected(dsn: str, timeout: float, *, pooled: bool) -> Any:
    cached = 0 if pooled else 100
    try:
        connection = await asyncpg.connect(dsn, timeout=timeout, statement_cache_size=cached)
    except ValueError as error:
        raise ConfigurationError(f"dsn or listen: {error}") from error
    if not pooled:
        try:
            await connection.execute(SETTINGS.format(ceil(timeout * 1000)), timeout=timeout)
        except BaseException:
            connection.terminate()
            raise
    return connection


def _discard(connecting: asyncio.Task[Any]) -> None:
    if not connecting.cancelled() and connecting.exception() is None:
        connecting.result().terminate()
