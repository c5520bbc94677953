"""Idempotency-Key and coalescing: when two requests are one job. Pure.

The header is that of the IETF draft "The Idempotency-Key HTTP Header Field" (draft 07, §2): a
quoted string. Clients that send it bare are understood as well.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from raincheck.errors import KeyMalformed, KeyMissing, KeyReused
from raincheck.job import Key
from raincheck.messages import CapturedRequest

IDEMPOTENT = "key-"
"""How the stored form of an Idempotency-Key begins."""

SHARED_RUN = "run-"
"""How the names begin of keys under which requests share a run; they end with it."""

MAX_KEY = 255
"""Characters of a key: as many as Stripe takes."""

# sf-string of RFC 8941 §3.3.3, with the parameters that an item may have; and a bare token.
_QUOTED = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"[ ]*(?:;.*)?')
_BARE = re.compile(r"[!#-+\--:<-~]+")

TELLING = frozenset(
    {
        "accept",
        "accept-encoding",
        "accept-language",
        "authorization",
        "content-type",
        "cookie",
    }
)
"""Header fields whose value makes another request of it, whatever Vary says: who asks, and in which
form the answer is wanted."""

ANYTHING = "*"
"""What a response varies by that says so, and one that names too much: no run of it is shared."""

MOST_NAMES = 32
"""Fields that the responses of a route may vary by, beyond which none of its runs is shared."""

_LONGEST_NAME = 64


def parse_key(headers: Iterable[tuple[bytes, bytes]], *, required: bool) -> str | None:
    """The idempotency key of a request; None if it has none.

    Raises:
        KeyMalformed: more than one key, or one that is empty, too long or no string.
        KeyMissing: the route requires one.
    """
    lines = [value for name, value in headers if name == b"idempotency-key"]
    if not lines:
        if required:
            raise KeyMissing("Send an Idempotency-Key header, for instance a new UUID in quotes.")
        return None
    if len(lines) > 1:
        raise KeyMalformed("There is more than one Idempotency-Key.")
    text = lines[0].decode("latin-1").strip(" \t")
    quoted = _QUOTED.fullmatch(text)
    key = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else text
    if not quoted and not _BARE.fullmatch(text):
        raise KeyMalformed('The Idempotency-Key is a string in quotes, like "8e03978e".')
    if not key or len(key) > MAX_KEY:
        raise KeyMalformed(f"The Idempotency-Key has 1 to {MAX_KEY} characters.")
    return key


def scoped(prefix: str, owner: str | None, key: str) -> str:
    """What a store keeps of a key: bound to its owner, and no longer readable."""
    return prefix + _digest("" if owner is None else "o" + owner, key)


def fingerprint(request: CapturedRequest) -> str:
    """What two requests under one key must have in common: method, path, query, type, body."""
    content_type = b",".join(v for n, v in request.headers if n.lower() == b"content-type")
    return _digest(request.method, request.path, request.query_string, content_type, request.body)


def compare(key: Key, fingerprint: str | None) -> None:
    """Check that a request may be answered with the job that its key names.

    Args:
        key: the request's.
        fingerprint: what came with that key before.

    Raises:
        KeyReused: the key was used for another request (draft 07, §2.7).
    """
    if key.fingerprint != fingerprint:
        raise KeyReused("This Idempotency-Key was used for another request.")


def coalesce_key(request: CapturedRequest, varying: Iterable[str]) -> str:
    """What requests must have in common to share one run.

    Args:
        request: the request.
        varying: names of further header fields, lower case, as earlier responses named in `Vary`.
    """
    names = sorted({*TELLING, *varying})
    values = [
        b"\0".join(v for n, v in request.headers if n.lower() == name.encode()) for name in names
    ]
    return _digest(
        request.method, request.path, request.query_string, request.body, *names, *values
    )


def unheard(known: frozenset[str], named: Iterable[str]) -> frozenset[str]:
    """What is still to be remembered of what a route's responses vary by.

    Args:
        known: what was remembered before.
        named: what another response names in `Vary`, lower case.
    """
    if ANYTHING in known:
        return frozenset()
    names = frozenset(named) - TELLING - known
    few = len(known) + len(names) <= MOST_NAMES
    short = all(len(name) <= _LONGEST_NAME for name in names)
    return names if few and short else frozenset({ANYTHING})


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        digest.update(b"%d:" % len(data) + data)
    return digest.hexdigest()
