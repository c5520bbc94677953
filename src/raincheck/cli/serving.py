"""An app that is not touched, in the middleware, under uvicorn."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import anyio
import click
from starlette.types import ASGIApp

from raincheck.cli.checking import Checked, check
from raincheck.cli.loading import load, load_app
from raincheck.cli.outcomes import Exit, say
from raincheck.cli.settings import Settings
from raincheck.cli.stores import store_of
from raincheck.errors import ConfigurationError, StoreError
from raincheck.middleware import LongRunningMiddleware
from raincheck.owners import OwnerOf, cookie, header
from raincheck.pages import Pages
from raincheck.policy import Policy
from raincheck.routing.discovery import found_in
from raincheck.routing.table import Rule
from raincheck.stores.base import Store

SECRET = "RAINCHECK_SECRET"  # noqa: S105 - where it is, not what
"""The variable that has the key of the hashes of owners."""

SPARE = 20
"""Threads of an app of WSGI for requests that are not long-running."""

_SERVED = "_RAINCHECK_SERVED"
"""The variable by which worker processes learn what they serve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """An app, and what stands around it.

    Attributes:
        app: its name, `module:attribute`.
        factory: whether that makes the app.
        wsgi: whether it is an app of WSGI.
        settings: the rest.
    """

    app: str
    factory: bool = False
    wsgi: bool = False
    settings: Settings

    def load(self) -> Any:
        """The app itself.

        Raises:
            ConfigurationError: there is none.
        """
        return load_app(self.app, factory=self.factory, wsgi=self.wsgi)

    def store(self) -> Store:
        """Where its jobs are.

        Raises:
            ConfigurationError: the setting cannot work.
        """
        return store_of(self.settings.store, self.settings.deployment)

    def wrapped(self, app: Any) -> LongRunningMiddleware:
        """The app in its middleware.

        Raises:
            ConfigurationError: a setting that cannot work.
        """
        settings, limits = self.settings, self.settings.made_limits()
        inner = _of_wsgi(app, limits.max_running) if self.wsgi else app
        operator = None if settings.operator is None else load(settings.operator, "operator")
        return LongRunningMiddleware(
            inner,
            path=settings.path,
            routes=settings.rules(),
            policy=settings.default_policy(),
            limits=limits,
            store=self.store(),
            owner=_owner(settings),
            base_url=settings.base_url,
            pages=Pages(operator=operator, own_list=settings.own_list),
        )

    def checked(self, app: Any) -> Checked:
        """Which of the app's routes its rules match."""
        rules = [Rule.parse(name, Policy()) for name in self.settings.routes]
        return check(rules, found_in(app))


def _of_wsgi(app: Any, max_running: int) -> ASGIApp:
    """An app of WSGI as one of ASGI, with threads for all handlers that may run, and for others."""
    try:
        from a2wsgi import WSGIMiddleware
    except ImportError as error:
        raise ConfigurationError(
            "--wsgi needs a2wsgi. Install it with: pip install raincheck[cli,wsgi]"
        ) from error
    found: ASGIApp = WSGIMiddleware(app, workers=max_running + SPARE)
    return found


def _owner(settings: Settings) -> OwnerOf | None:
    """Says whose a request is."""
    said = settings.owner
    if said is None:
        return None
    kind, _, name = said.partition(":")
    if not kind or not name:
        raise ConfigurationError(
            f"owner {said!r}: give header:NAME, cookie:NAME or module:function, "
            "like header:Authorization"
        )
    if kind not in ("header", "cookie"):
        found: OwnerOf = load(said, "owner")
        return found
    secret: str | bytes | None = os.environ.get(SECRET)
    if not secret:
        if not settings.store.startswith("memory:"):
            raise ConfigurationError(
                f"owner {said!r}: jobs that outlive the process need a key that does; put random "
                f"text into the environment variable {SECRET}, the same for every process"
            )
        secret = secrets.token_bytes()
    return (header if kind == "header" else cookie)(name, secret=secret)


def in_worker() -> LongRunningMiddleware:
    """The app, in a process that uvicorn has started."""
    said = json.loads(os.environ[_SERVED])
    served = Served(**{**said, "settings": Settings(**said["settings"])})
    return served.wrapped(served.load())


def show(checked: Checked) -> Exit:
    """Print which routes each rule matches.

    Returns:
        `FAILED` if a rule matches none for certain.
    """
    code = Exit.SUCCEEDED
    for rule, routes in checked.matches:
        click.echo(rule)
        for route in routes:
            click.echo(f"    {route}")
        if not routes and checked.unread:
            click.echo("    none that can be read")
        elif not routes:
            click.echo("    none of the app's routes")
            code = Exit.FAILED
    for title, routes in (("marked", checked.marked), ("answered as before", checked.others)):
        if routes:
            click.echo(title)
        for route in routes:
            click.echo(f"    {route}")
    if checked.unread:
        click.echo("The app has routes that cannot be read: a rule may match one of them.")
    return code


def serve(served: Served, arguments: Sequence[str]) -> None:
    """Run it under uvicorn, until a signal ends it.

    Args:
        served: what is served.
        arguments: of uvicorn's own command line.

    Raises:
        ConfigurationError: a setting that cannot work.
    """
    from uvicorn.main import main as uvicorn

    with uvicorn.make_context("raincheck serve ... --", ["app", *arguments]) as context:
        workers = context.params["workers"] or _concurrency()
        several = workers > 1 or bool(context.params.get("reload"))
        app = served.load()
        wrapped = served.wrapped(app)
        if workers > 1 and not served.store().shared:
            raise ConfigurationError(
                f"store {served.settings.store!r}: each of {workers} workers would have jobs of "
                "its own, and clients would meet the wrong one; give a store that they share, "
                "like --store sqlite:jobs.db, or --workers 1"
            )
        if several:
            anyio.run(_see, served.store())
        _warn(served, served.checked(app))
        context.params["app"] = _named(served) if several else wrapped
        context.params["factory"] = several
        uvicorn.invoke(context)


def _warn(served: Served, checked: Checked) -> None:
    """Say which rules are in vain, and if nothing can become a job at all."""
    for rule, routes in checked.matches:
        if not routes:
            say(f"warning: {rule!r} matches no route that can be read; see --check")
    if not checked.matches and (served.wsgi or not (checked.marked or checked.hides)):
        say(
            "warning: nothing is long-running: no route is marked, and there is no rule; "
            "give one, like --route 'POST /videos'"
        )


async def _see(store: Store) -> None:
    """See whether a store can ever work before there are workers, each of which would say it.

    Raises:
        ConfigurationError: it cannot.
    """
    try:
        with suppress(StoreError):  # it may come later, and workers wait for it
            await store.open()
    finally:
        await store.aclose()


def _concurrency() -> int:
    """The workers of an environment variable that uvicorn knows."""
    said = os.environ.get("WEB_CONCURRENCY") or "1"
    if not said.isdecimal() or not said.isascii():
        raise ConfigurationError(f"WEB_CONCURRENCY={said!r}: it is a whole number of workers")
    return int(said)


def _named(served: Served) -> str:
    """The app by a name under which worker processes make it again."""
    os.environ[_SERVED] = json.dumps(asdict(served))
    maker: Callable[[], LongRunningMiddleware] = in_worker
    return f"{maker.__module__}:{maker.__name__}"
