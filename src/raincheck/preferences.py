"""What the client says: `Prefer` (RFC 7240), and whether it is a browser that navigates."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from raincheck.policy import Policy, seconds

# token and quoted-string of RFC 9110 §5.6; preference and parameters of RFC 7240 §2. The
# quantifiers are possessive (`++`, `*+`), so that no header makes the match backtrack.
_OWS = r"[ \t]*+"
_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"  # noqa: S105 - the grammar's word, no password
_WORD = rf'(?:{_TOKEN}|"(?:[^"\\]|\\.)*+")?+'
_PARAMETER = rf"(?:{_TOKEN}{_OWS}(?:={_OWS}{_WORD}{_OWS})?+)?+"
_PREFERENCE = re.compile(
    rf"{_OWS}(?P<name>{_TOKEN}){_OWS}(?:={_OWS}(?P<value>{_WORD}){_OWS})?+"
    rf"(?P<parameters>(?:;{_OWS}{_PARAMETER})*+)"
)
_NAMED = re.compile(rf";{_OWS}(?:(?P<name>{_TOKEN}){_OWS}(?:={_OWS}(?P<value>{_WORD}){_OWS})?+)?+")
# What stands between commas; a quote that is not closed takes the rest of its line.
_ELEMENT = re.compile(r'(?:[^,"]++|"(?:[^"\\]|\\.?)*+(?:"|\Z))++', re.DOTALL)
_DELTA_SECONDS = re.compile(r"[0-9]{1,9}")

PREFERRING = frozenset({b"accept", b"prefer", b"sec-fetch-mode"})
"""The names of the fields that are read here, in lower case."""


@dataclass(frozen=True, slots=True)
class Preference:
    """What one request prefers.

    Attributes:
        respond_async: `respond-async` was among its preferences (RFC 7240 §4.1).
        wait: seconds of `wait` (§4.3); infinite for a bare `wait`, which Replicate's clients
            send; None if there was none, or none that can be read.
        callback: the `url` of `callback`: where its job's end is to be told (OData 4.01, §8.2.8.2);
            None if there was none.
    """

    respond_async: bool = False
    wait: float | None = None
    callback: str | None = None


NO_PREFERENCE = Preference()


@dataclass(frozen=True, slots=True)
class Decision:
    """What policy and preference come to.

    Attributes:
        asynchronous: accept at the handler's entry; otherwise the route is a plain one.
        wait: seconds to wait for the response before the 202.
        applied: the value of `Preference-Applied` on the 202, or None (RFC 7240 §3).
        callback: where the client wants to be told of the end, if it may.
    """

    asynchronous: bool
    wait: float = 0.0
    applied: bytes | None = None
    callback: str | None = None


_SYNCHRONOUS = Decision(asynchronous=False)
_AT_ONCE = Decision(asynchronous=True)


def parse(headers: Iterable[tuple[bytes, bytes]]) -> Preference:
    """Read every `Prefer` line of a request.

    Never fails: what is unknown or malformed is ignored (RFC 7240 §2), names compare without
    regard to case, and of a repeated preference the first counts.
    """
    seen: dict[str, str | None] | None = None
    callback: str | None = None
    for name, line in headers:
        if name != b"prefer":
            continue
        seen = {} if seen is None else seen
        for element in _ELEMENT.findall(line.decode("latin-1")):
            if match := _PREFERENCE.fullmatch(element):
                preference = match["name"].lower()
                if preference == "callback" and preference not in seen:
                    callback = _url(match["parameters"])
                seen.setdefault(preference, match["value"])
    if seen is None:
        return NO_PREFERENCE
    return Preference("respond-async" in seen, _wait(seen), callback)


def _url(parameters: str) -> str | None:
    """The first parameter called `url`, without its quotes (RFC 9110 §5.6.4)."""
    for match in _NAMED.finditer(parameters):
        if (match["name"] or "").lower() == "url":
            value = match["value"] or ""
            return re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value
    return None


def _wait(seen: dict[str, str | None]) -> float | None:
    if "wait" not in seen:
        return None
    value = (seen["wait"] or "").strip('"')
    if not value:
        return math.inf
    return float(value) if _DELTA_SECONDS.fullmatch(value) else None


def decide(policy: Policy, preference: Preference) -> Decision:
    """What to do with a request, from what its route's author and its client say."""
    if preference is NO_PREFERENCE and not policy.wait and policy.respond == "always":
        return _AT_ONCE
    if policy.respond == "preferred" and not preference.respond_async:
        return _SYNCHRONOUS
    wait = seconds(policy.wait)
    if preference.wait is not None:
        wait = min(preference.wait, seconds(policy.max_wait))
    applied = b"respond-async" if preference.respond_async else None
    return Decision(True, wait, applied, preference.callback)


def is_navigation(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a browser is going to show the answer as a page.

    True with `Sec-Fetch-Mode: navigate`, or, from browsers that do not send it, with an `Accept`
    that prefers `text/html` and does not begin with `*/*`.
    """
    accept = b""
    for name, value in headers:
        if name == b"sec-fetch-mode":
            return value.strip().lower() == b"navigate"
        if name == b"accept":
            accept = accept or value
    return _prefers_html(accept) if b"text/html" in accept else False


def _prefers_html(accept: bytes) -> bool:
    ranges = [_media_range(part) for part in accept.decode("latin-1").lower().split(",")]
    if ranges[0][0] == "*/*":
        return False
    html = max((quality for name, quality in ranges if name == "text/html"), default=0.0)
    others = max((quality for name, quality in ranges if name != "text/html"), default=0.0)
    first = ranges[0][0] == "text/html"
    return html > 0 and (html > others or (html == others and first))


def _media_range(part: str) -> tuple[str, float]:
    name, *parameters = (piece.strip() for piece in part.split(";"))
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return name, float(parameter[2:])
            except ValueError:
                return name, 0.0
    return name, 1.0
