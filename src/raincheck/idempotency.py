"""Idempotency-Key and coalescing: when two requests are one job. Pure.

The header is that of the IETF draft "The Idempotency-Key HTTP Header Field" (draft 07, §2): a
quoted string. Clients that send it bare are understood as well.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator

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

# A parameter of a media type (RFC 9110 §5.6.6), quoted or not.
_PARAMETER = re.compile(rb';[ \t]*+([^\s=;"]++)=(?:"((?:[^"\\]|\\.)*+)"|([^";]*+))')
_ESCAPED = re.compile(rb"\\(.)")

# Header fields whose value makes another request of it, whatever Vary says: who asks, in which form
# the answer is wanted, and whether all of it is.
_TELLING = (
    "accept",
    "accept-encoding",
    "accept-language",
    "authorization",
    "cookie",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "range",
)

# All that are compared anyway; these two without what makes no difference.
_NORMALISED = frozenset({"host", "content-type"})
_COMPARED = _NORMALISED.union(_TELLING)

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


def scoped(prefix: str, owner: str | None, host: str, route: str, key: str) -> str:
    """What a store keeps of a key: bound to owner, host and route, and no longer readable."""
    return prefix + _digest("" if owner is None else "o" + owner, host, route, key)


def host_of(request: CapturedRequest) -> str:
    """The host that a request is for, as its `Host` field says it, normalised (RFC 9110 §4.2.3).

    Lower case, and without the scheme's default port. A server puts HTTP/2's `:authority` there
    (ASGI HTTP, "Connection Scope").
    """
    lines = [value for name, value in request.headers if name.lower() == b"host"]
    host = b",".join(lines).strip(b" \t").lower().decode("latin-1")
    name, colon, port = host.rpartition(":")
    default = {"http": "80", "https": "443"}.get(request.scheme)
    return name if colon and (not port or port.lstrip("0") == default) else host


def fingerprint(request: CapturedRequest) -> str:
    """What two requests under one key must have in common: method, path, query, type, body."""
    # The path as it was sent, too: %2F is a slash in the other one.
    path = request.path, request.raw_path or b""
    return _digest(request.method, *path, request.query_string, _payload(request))


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
    """What requests to one host must have in common to share one run.

    Args:
        request: the request.
        varying: names of further header fields, lower case, as earlier responses named in `Vary`.
    """
    names = sorted({*_TELLING, *varying} - _NORMALISED)
    values = [
        b"\0".join(v for n, v in request.headers if n.lower() == name.encode()) for name in names
    ]
    return _digest(fingerprint(request), *names, *values)


def unheard(known: frozenset[str], named: Iterable[str]) -> frozenset[str]:
    """What is still to be remembered of what a route's responses vary by.

    Args:
        known: what was remembered before.
        named: what another response names in `Vary`, lower case.
    """
    if ANYTHING in known:
        return frozenset()
    names = frozenset(named) - _COMPARED - known
    few = len(known) + len(names) <= MOST_NAMES
    short = all(len(name) <= _LONGEST_NAME for name in names)
    return names if few and short else frozenset({ANYTHING})


def _payload(request: CapturedRequest) -> str:
    """Media type and body as they are compared.

    Clients choose a new boundary with every upload (RFC 2046 §5.1): what counts is what stands
    between the lines that it makes, and the media type without it.
    """
    lines = [value for name, value in request.headers if name.lower() == b"content-type"]
    media_type = b",".join(lines)
    rest, boundary = _without_boundary(media_type)
    if not boundary:
        return _digest(media_type, request.body)
    line = b"--" + boundary
    at_once = request.body[: len(line)] == line  # it may be a file that is mapped into memory
    return _digest(*rest, b"%d" % at_once, *_parts(request.body, line, at_once))


def _without_boundary(media_type: bytes) -> tuple[tuple[bytes, bytes], bytes]:
    """What stands before and behind the boundary of a multipart type, and the boundary."""
    kind = media_type.partition(b";")[0]
    if kind.strip().lower().startswith(b"multipart/"):
        for parameter in _PARAMETER.finditer(media_type, len(kind)):
            if parameter[1].lower() == b"boundary":
                quoted, plain = parameter[2], parameter[3]
                boundary = plain.strip() if quoted is None else _ESCAPED.sub(rb"\1", quoted)
                return (media_type[: parameter.start()], media_type[parameter.end() :]), boundary
    return (media_type, b""), b""


def _parts(body: bytes, line: bytes, at_once: bool) -> Iterator[memoryview]:
    """What stands between the lines that begin like this, the first of which may be the first."""
    view, delimiter = memoryview(body), b"\r\n" + line
    start = len(line) if at_once else 0
    while (end := body.find(delimiter, start)) >= 0:
        yield view[start:end]
        start = end + len(delimiter)
    yield view[start:]


def _digest(*parts: str | bytes | memoryview) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        digest.update(b"%d:" % len(data))
        digest.update(data)
    return digest.hexdigest()
