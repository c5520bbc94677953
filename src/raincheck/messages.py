"""HTTP messages as they are kept: captured requests and captured responses."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

Field = tuple[bytes, bytes]
"""A header field as ASGI has it: its name and its value."""

RawHeaders = tuple[Field, ...]
"""Header fields as ASGI has them: raw pairs, in order, every occurrence."""

Fields = Sequence[Field]
"""Some of the header fields of a message, likewise."""

# RFC 9110 §7.6.1, and the two older names that clients and proxies still send.
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)

# What RFC 9110 §5.1 and §5.5 forbid in a field, and one server or another refuses to write: kept
# out of the store, since every poll would fail on it.
_FIELD_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_NOT_IN_A_VALUE = re.compile(rb"[\x00-\x08\n-\x1f\x7f]")
_BLANKS = b" \t"

# Bytes of a value up to which its field is kept for other responses: most that are longer differ.
_SHORT = 32

# Kinds of fields.
_HOP_BY_HOP, _LENGTH = "hop-by-hop", "length"

BODILESS = frozenset({204, 304})
"""Statuses whose responses have no body, whatever Content-Length says (RFC 9110 §6.4.1)."""


class Head(NamedTuple):
    """What of a response is known before its end.

    Attributes:
        status: its status code.
        headers: raw pairs in order.
    """

    status: int
    headers: RawHeaders


@dataclass(frozen=True, slots=True)
class Apart:
    """A body that is kept apart from its message, since it is large.

    Attributes:
        size: bytes that it has.
        read: gives it from a byte on, in non-empty chunks; None where it cannot be had.
    """

    size: int
    read: Callable[[int], AsyncIterator[bytes]] | None = dataclasses.field(
        default=None, compare=False
    )


@dataclass(frozen=True, slots=True)
class CapturedRequest:
    """A request as bytes: all that a replay needs, and nothing that is alive.

    Attributes:
        method: upper case, e.g. `"POST"`.
        path: decoded, `root_path` included, as ASGI's `path`.
        raw_path: as sent, or None if the server did not say.
        query_string: without the question mark.
        headers: raw pairs in order.
        body: the whole body; empty if it is kept apart.
        scheme, http_version, root_path, client, server: as in the ASGI scope.
        path_params: what mounts outside of raincheck have matched in the path, if any did.
        app_root_path: the `root_path` of the outermost of them.
        apart: the body, if it is kept apart.
    """

    method: str
    path: str
    raw_path: bytes | None
    query_string: bytes
    headers: RawHeaders
    body: bytes
    scheme: str = "http"
    http_version: str = "1.1"
    root_path: str = ""
    client: tuple[str, int] | None = None
    server: tuple[str, int | None] | None = None
    path_params: tuple[tuple[str, Any], ...] = ()
    app_root_path: str | None = None
    apart: Apart | None = None

    @classmethod
    def of(
        cls, scope: Mapping[str, Any], body: bytes, apart: Apart | None = None
    ) -> CapturedRequest:
        """Capture an ASGI HTTP scope and the body that came with it."""
        client, server = scope.get("client"), scope.get("server")
        return cls(
            method=scope["method"],
            path=scope["path"],
            raw_path=scope.get("raw_path"),
            query_string=scope.get("query_string", b""),
            headers=tuple((bytes(name), bytes(value)) for name, value in scope["headers"]),
            body=body,
            scheme=scope.get("scheme", "http"),
            http_version=scope.get("http_version", "1.1"),
            root_path=scope.get("root_path", ""),
            client=tuple(client) if client else None,
            server=tuple(server) if server else None,
            path_params=tuple((scope.get("path_params") or {}).items()),
            app_root_path=scope.get("app_root_path"),
            apart=apart,
        )

    def without(self, names: Collection[str]) -> CapturedRequest:
        """The same without the header fields of these names, which are lower case."""
        if not names:
            return self
        kept = tuple(f for f in self.headers if f[0].lower().decode("latin-1") not in names)
        return replace(self, headers=kept)

    def scope(self) -> dict[str, Any]:
        """An ASGI HTTP scope for a replay (ASGI HTTP specification, version 2.3)."""
        mounted: dict[str, Any] = {}
        if self.path_params:
            mounted["path_params"] = dict(self.path_params)
        if self.app_root_path is not None:
            mounted["app_root_path"] = self.app_root_path
        return mounted | {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": self.http_version,
            "method": self.method,
            "scheme": self.scheme,
            "path": self.path,
            "raw_path": self.raw_path,
            "query_string": self.query_string,
            "root_path": self.root_path,
            "headers": list(self.headers),
            "client": self.client,
            "server": self.server,
        }


class CapturedResponse(NamedTuple):
    """A response without its body, which the store keeps beside it.

    Attributes:
        status: the handler's status code.
        headers: the handler's header fields in order, without the hop-by-hop ones.
        size: bytes of body.
    """

    status: int
    headers: RawHeaders
    size: int = 0

    def header(self, name: bytes) -> bytes | None:
        """The first field of this (lower-case) name."""
        return first_header(self.headers, name)


def first_header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """The value of the first field called `name` (lower case), or None."""
    for field, value in headers:
        if field.lower() == name:
            return value
    return None


def exceeds(content_length: bytes, limit: int) -> bool:
    """Whether a Content-Length, if it is a number, announces more than `limit` bytes."""
    digits = content_length.strip().lstrip(b"0")
    if not digits.isdigit():
        return False
    return len(digits) > 18 or int(digits) > limit  # 18 digits: beyond any limit, whatever follows


def named_in_vary(headers: Iterable[tuple[bytes, bytes]]) -> set[str]:
    """The field names in `Vary`, lower case, and `*` (RFC 9110 §12.5.5)."""
    lines = [value for name, value in headers if name.lower() == b"vary"]
    names = b",".join(lines).decode("latin-1").lower().split(",")
    return {name.strip(" \t") for name in names} - {""}


def end_to_end(headers: Iterable[Any]) -> RawHeaders:
    """The fields that may be stored and sent on, in order (RFC 9110 §7.6.1).

    The hop-by-hop fields go, and so does every field that `Connection` names. A Content-Length
    that is said twice stays once (§8.6): not every server writes it again.

    Raises:
        ValueError: a field that no server would write; it says which, and why.
    """
    kept: list[tuple[bytes, bytes]] = []
    named: set[bytes] | None = None
    length: bytes | None = None
    for field in headers:
        try:
            name, value = field
            if type(name) is not bytes or type(value) is not bytes:
                name, value = bytes(memoryview(name)), bytes(memoryview(value))
        except (TypeError, ValueError):
            raise ValueError("a header field is no pair of byte strings") from None
        sound = _sound if len(value) <= _SHORT else _sound.__wrapped__
        kind, field = sound(name, value)
        if kind is not _HOP_BY_HOP:
            if kind is _LENGTH:
                if value == length:
                    continue
                length = value
            kept.append(field)
        elif name.lower() == b"connection":
            named = named or set()
            named.update(option.strip().lower() for option in value.split(b","))
    if named:
        kept = [field for field in kept if field[0].lower() not in named]
    return tuple(kept)


def unsendable(response: CapturedResponse, method: str) -> str | None:
    """Why a server could not send this finished response, or None if it could."""
    status, headers, size = response
    length, announced = b"%d" % size, None
    for name, value in headers:
        if len(name) != 14 or name.lower() != b"content-length":
            continue
        if value != length:
            text, bodiless = value.decode("latin-1"), status in BODILESS or method == "HEAD"
            if not value.isdigit():
                return f"Content-Length is no number but {text!r}"
            if not bodiless and value.lstrip(b"0") != length.lstrip(b"0"):
                return f"Content-Length says {text}, the body has {size}"
        if announced is not None and value != announced:
            return "it has several values of Content-Length"
        announced = value
    return f"a {status} response has no body" if size and status in BODILESS else None


# An app sends few short fields, again and again: each is looked at once.
@lru_cache(maxsize=1024)
def _sound(name: bytes, value: bytes) -> tuple[object, Field]:
    """A field that servers would write, and of which kind it is. Raises as `end_to_end` does."""
    kind = _kind(name)
    if kind is not _HOP_BY_HOP:
        if _NOT_IN_A_VALUE.search(value):
            raise _malformed(name, "has a control character in its value")
        if value.strip(_BLANKS) != value:
            raise _malformed(name, "has a blank at an end of its value")
    return kind, (name, value)


@lru_cache(maxsize=1024)
def _kind(name: bytes) -> object:
    if _FIELD_NAME.fullmatch(name) is None:
        raise _malformed(name, "has a name that is no token" if name else "has no name")
    lower = name.lower()
    return _LENGTH if lower == b"content-length" else _HOP_BY_HOP if lower in HOP_BY_HOP else None


def _malformed(name: bytes, fault: str) -> ValueError:
    return ValueError(f"the header field {name.decode('latin-1')!r} {fault}")


@lru_cache(maxsize=256)
def servable(response: CapturedResponse, headers: RawHeaders, method: str) -> RawHeaders:
    """The fields under which the body that was kept can be served: they say how long it is.

    A response to HEAD announces a body that nobody sent, and so may a 304: for the GET of a poll
    that Content-Length would be wrong.

    Args:
        response: the response.
        headers: its fields, and others.
        method: of the request that is answered.
    """
    announced, length = response.header(b"content-length"), b"%d" % response.size
    if announced is None:
        # What is of no size may be one to HEAD.
        unsaid = response.status in BODILESS or (method == "HEAD" and not response.size)
        return headers if unsaid else (*headers, (b"content-length", length))
    if announced == length or method == "HEAD":
        return headers
    return tuple(field for field in headers if field[0].lower() != b"content-length")
