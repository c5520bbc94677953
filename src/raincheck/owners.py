"""Owners: who may see a job.

An owner is a string, or None for a job whose id alone opens it. It is determined twice by the same
function: when the request is accepted, after the app's own authentication has run, and on every
request to a status route. Put the authentication outside raincheck, or mount the status routes
inside it, so that both see the same user.
"""

from __future__ import annotations

import hashlib
import hmac
import inspect
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import HTTPConnection
from starlette.types import Scope

from raincheck.errors import ConfigurationError

logger: logging.Logger = logging.getLogger("raincheck")

OwnerOf = Callable[[HTTPConnection], str | Awaitable[str | None] | None]
"""Says whose a connection is; sync or async."""


_NAMES = {
    "header": re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"),  # RFC 9110 §5.1
    "cookie": re.compile(r"[^\s;=]+"),  # what Starlette reads as one
}


class OwnerError(Exception):
    """The owner could not be determined, so the answer is no."""


def authenticated_user(connection: HTTPConnection) -> str | None:
    """The user of Starlette's `AuthenticationMiddleware`: its `identity`, or its `display_name`.

    None without that middleware, and for a user that is not authenticated.
    """
    user = connection.scope.get("user")
    if user is None or not getattr(user, "is_authenticated", False):
        return None
    try:
        identity = user.identity
    except (AttributeError, NotImplementedError):  # Starlette's own SimpleUser has none
        identity = None
    name = user.display_name if identity in (None, "") else identity
    return None if name in (None, "") else str(name)


def header(name: str, *, secret: str | bytes) -> OwnerOf:
    """The owner is whoever sends this header field, e.g. `header("x-api-key", secret=...)`.

    Args:
        name: the field's name.
        secret: keys the hash that is kept in its value's place; the same for all processes, and
            for as long as their jobs live.

    Raises:
        ConfigurationError: no name, one that none can have, or an empty secret.
    """
    return _hashed("header", name, secret, lambda connection: connection.headers.get(name))


def cookie(name: str, *, secret: str | bytes) -> OwnerOf:
    """The owner is whoever sends this cookie. The arguments are those of `header()`."""
    return _hashed("cookie", name, secret, lambda connection: connection.cookies.get(name))


def _hashed(
    kind: str, name: str, secret: str | bytes, read: Callable[[HTTPConnection], str | None]
) -> OwnerOf:
    if not isinstance(name, str) or not name:
        raise ConfigurationError(f"{kind}({name!r}, ...): its name is a string")
    if not _NAMES[kind].fullmatch(name):  # nobody sends it, and no job would have an owner
        raise ConfigurationError(f"{kind}({name!r}, ...): no {kind} can have this name")
    if not isinstance(secret, str | bytes):
        raise ConfigurationError(f"{kind}(secret=...): the secret is a string or bytes")
    key = secret.encode() if isinstance(secret, str) else secret
    if not key:
        raise ConfigurationError(f"{kind}(secret=...): the secret is empty; give it random bytes")

    def owner(connection: HTTPConnection) -> str | None:
        value = read(connection)
        if not value:
            return None
        return hmac.new(key, value.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()

    return owner


class Owners:
    """Determines whose a request is.

    Args:
        extract: says so; None for the user that authentication outside raincheck has found.
    """

    def __init__(self, extract: OwnerOf | None) -> None:
        self._extract = extract
        self._warned = False

    def nobody(self, scope: Scope) -> bool:
        """Whether there is nothing to ask: no extractor, and no user in the scope."""
        return self._extract is None and "user" not in scope

    async def of(self, scope: Scope) -> str | None:
        """Whose a request is.

        Raises:
            OwnerError: the extractor raised, or gave something else than a string that has an
                encoding, or None. Logged.
        """
        if self.nobody(scope):
            return None
        extract = self._extract or authenticated_user
        try:
            owner: Any = extract(HTTPConnection(scope))
            if inspect.isawaitable(owner):
                owner = await owner
            if owner is not None and not isinstance(owner, str):
                raise TypeError(f"owner= gave {type(owner).__name__}; it is a string or None")
            if owner is not None:
                owner.encode()  # halves of characters, as JSON may have them, not all stores keep
        except Exception as error:
            logger.exception("the owner of a request could not be determined")
            raise OwnerError from error
        return owner

    async def at_acceptance(self, scope: Scope, outer: Scope, *, mounted: bool) -> str | None:
        """Whose an accepted request is, once the app's own authentication has run.

        By default only a user whom the status routes will see as well.

        Args:
            scope: the request as the handler sees it.
            outer: the same as it came to raincheck, which is how the status routes see theirs.
            mounted: whether the status routes are mounted by hand, inside the app.
        """
        if self._extract is not None or mounted:
            return await self.of(scope)
        if "user" in scope and "user" not in outer and not self._warned:
            self._warned = True
            logger.warning(
                "authentication runs inside raincheck, where the status routes do not see it: "
                "jobs have no owner; put it outside, or mount jobs.status_app inside it"
            )
        return await self.of(outer)


def same(owner: str | None, asking: str | None) -> bool:
    """Whether a job of `owner` is open to `asking`, in a time that does not tell how near it is."""
    if owner is None:
        return True
    asked = "" if asking is None else asking
    known = hmac.compare_digest(_bytes(owner), _bytes(asked))
    return known and asking is not None


def _bytes(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
