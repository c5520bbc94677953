"""Which site's page a browser sends a request for, and what that may change (CSRF)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

EXPOSE_HEADERS = (
    *("Location", "Content-Location", "Operation-Location", "Link", "Retry-After"),
    *("Preference-Applied", "Job-Status", "Job-Response-Status", "ETag", "Content-Range"),
    *("Accept-Ranges", "Idempotency-Replayed"),
)
"""The fields of our answers that a script of another origin can read only if the app's CORS policy
exposes them: `CORSMiddleware(expose_headers=EXPOSE_HEADERS)` (Fetch, "CORS-safelisted
response-header name")."""

# RFC 6454 §6.1; what is opaque is `null`, and none.
_ORIGIN = re.compile(
    r"(?P<scheme>https?)://(?P<host>[^/?#@:\[\]]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{0,5}))?(?:/.*)?"
)
_DEFAULT_PORTS = {"http": 80, "https": 443}

TELLING = frozenset({b"origin", b"sec-fetch-site"})
"""The names of the fields in which a browser tells whose page sends a request, in lower case. One
that has none of them may change what it would, whatever else is in it."""

# What pages of ours send; and what no page does, but a bookmark or an address that was typed.
_OURS = frozenset({b"same-origin", b"none"})


class Origin(NamedTuple):
    """A site, as browsers tell sites apart."""

    scheme: str
    host: str
    port: int


def origin_of(url: str) -> Origin | None:
    """The origin of a URL; None if it has none that a browser would send."""
    found = _ORIGIN.fullmatch(url.lower())
    if found is None:
        return None
    port = int(found["port"] or _DEFAULT_PORTS[found["scheme"]])
    return Origin(found["scheme"], found["host"], port)


def may_change(
    method: str, headers: Iterable[tuple[bytes, bytes]], *, own: Origin | None = None
) -> bool:
    """Whether a POST or DELETE comes from our own pages or a program, or CORS has agreed to it.

    A browser tells the site in `Sec-Fetch-Site` where our URL is a secure one, and in `Origin`. For
    another site's page it sends only a DELETE, and a POST with `Content-Type: application/json` or
    an `X-Requested-With`, after it has asked us whether it may (the preflight of CORS): a form, and
    a bare `fetch`, it sends at once, with cookies.

    Args:
        method: the request's method.
        headers: its header fields, names in lower case.
        own: an origin of ours, besides the one that `Host` names.
    """
    fields: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        fields.setdefault(name, []).append(value.strip())
    if sites := fields.get(b"sec-fetch-site"):
        ours = _OURS.issuperset(sites)
    else:
        hosts = fields.get(b"host", [])
        ours = all(_is_ours(origin, hosts, own) for origin in fields.get(b"origin", ()))
    return ours or (fields.get(b"sec-fetch-mode") == [b"cors"] and _is_asked(method, fields))


def _is_ours(origin: bytes, hosts: list[bytes], own: Origin | None) -> bool:
    """Whether an `Origin` is ours: by host and port, as a proxy hides which scheme was used."""
    found = origin_of(origin.decode("latin-1"))
    if found is None or len(hosts) > 1:
        return False
    named = [origin_of(f"{found.scheme}://{host.decode('latin-1')}") for host in hosts]
    return found in (own, *named)


def _is_asked(method: str, fields: dict[bytes, list[bytes]]) -> bool:
    """Whether a browser asks first before it sends this to another site."""
    kinds = [kind.partition(b";")[0].strip().lower() for kind in fields.get(b"content-type", ())]
    return method == "DELETE" or b"x-requested-with" in fields or kinds == [b"application/json"]
