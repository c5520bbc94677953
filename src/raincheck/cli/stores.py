"""Stores by URL."""

from __future__ import annotations

from raincheck.errors import ConfigurationError
from raincheck.stores.base import Store
from raincheck.stores.memory import MemoryStore
from raincheck.stores.sqlite import SQLiteStore

FORMS = "memory:, sqlite:jobs.db, redis://host:6379/0 or postgresql://user@host/database"


def store_of(url: str, deployment: str | None = None) -> Store:
    """The store that a URL names.

    Args:
        url: `memory:`; `sqlite:` and the file's path, relative or absolute, or as SQLAlchemy has
            it (`sqlite:///jobs.db`, `sqlite:////var/jobs.db`); a URL of `redis`, `rediss` or
            `unix`; one of `postgresql` or `postgres`.
        deployment: the name of what runs there; for the last two, which need it.

    Raises:
        ConfigurationError: it names none, or what it needs is not installed.
    """
    scheme, colon, rest = url.partition(":")
    scheme = scheme.lower()
    on_server = scheme in ("redis", "rediss", "unix", "postgresql", "postgres")
    if not colon or not (on_server or scheme in ("memory", "sqlite")):
        raise ConfigurationError(f"store {_shown(url)!r}: a store is {FORMS}")
    if on_server and deployment is None:
        raise ConfigurationError(
            f"store {scheme}: what runs on a server needs a name of its own there; give "
            "--deployment NAME"
        )
    if not on_server and deployment is not None:
        raise ConfigurationError(
            f"deployment {deployment!r}: {scheme}: has no deployments; leave it out, or use a "
            "store on a server (redis, postgresql)"
        )
    if scheme == "memory":
        if rest:
            raise ConfigurationError(f"store {url!r}: memory: has nothing behind it")
        return MemoryStore()
    if scheme == "sqlite":
        return SQLiteStore(_path(url, rest))
    return _on_server(scheme, url, str(deployment))


def _on_server(scheme: str, url: str, deployment: str) -> Store:
    try:
        if scheme.startswith("postgres"):
            from raincheck.stores.postgres import PostgresStore

            return PostgresStore(url, deployment=deployment)
        from raincheck.stores.redis import RedisStore

        return RedisStore(url, deployment=deployment)
    except ImportError as error:  # it says what to install
        raise ConfigurationError(f"store {scheme}: {error}") from error


def _path(url: str, rest: str) -> str:
    if rest.startswith("//"):
        host, slash, rest = rest[2:].partition("/")
        if host or not slash:
            raise ConfigurationError(
                f"store {url!r}: a file is on no host; write sqlite:jobs.db, or "
                "sqlite:/var/lib/jobs.db"
            )
    if not rest or rest == ":memory:":
        raise ConfigurationError(f"store {url!r}: sqlite: needs a file; in memory is memory:")
    return rest


def _shown(url: str) -> str:
    """A URL without what may be a password."""
    before, at, after = url.rpartition("@")
    return f"…@{after}" if at and before else url
