"""What dialects write alike: JSON, times, lists' queries, and a stored response as it is served."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from urllib.parse import parse_qsl, urlencode

from raincheck.dialects.base import Outlook, Reply
from raincheck.errors import Problem
from raincheck.job import TRANSITIONS, Job, State
from raincheck.messages import RawHeaders

# Documents are trees that we build ourselves, so nothing in them can be circular.
encode: Callable[[object], str] = json.JSONEncoder(check_circular=False).encode
"""JSON, as text."""

NO_STORE = (b"cache-control", b"no-store")

# The URL of a job without an owner opens it: a page that shows one must not pass it on.
NO_REFERRER = (b"referrer-policy", b"no-referrer")
JSON = (b"content-type", b"application/json")
PROBLEM_JSON = (b"content-type", b"application/problem+json")

# The directives of a Cache-Control: those for shared caches, and those that keep them away.
_DIRECTIVE = re.compile(rb'(?:[^,"]|"(?:[^"\\]|\\.)*")+')
_SHARED = frozenset({b"public", b"s-maxage"})
_OWN = frozenset({b"private", b"no-store"})

_JOB_STATUS = b"job-status"

FINAL = {
    State.SUCCEEDED: (_JOB_STATUS, b"succeeded"),
    State.FAILED: (_JOB_STATUS, b"failed"),
    State.CANCELLED: (_JOB_STATUS, b"canceled"),
}
"""What tells how a job has ended, on every answer about it from then on."""

RFC_3339 = "%Y-%m-%dT%H:%M:%SZ"
"""A time in UTC, as `time.strftime` has it."""


def reply(
    status: int,
    document: object,
    *fields: tuple[bytes, bytes],
    job: Job | None = None,
    outlook: Outlook | None = None,
    retry_after: int | None = None,
    kind: tuple[bytes, bytes] = JSON,
) -> Reply:
    """A document as JSON.

    Args:
        status: of the response.
        document: what JSON can have.
        fields: other header fields.
        job: the job that it is about, if it is about one.
        outlook: what is expected of that; nothing is said of it once the job has finished.
        retry_after: seconds until another request makes sense, if there is a time to name.
        kind: its media type, as a header field.
    """
    body = encode(document).encode()
    headers = [*fields, NO_STORE, NO_REFERRER, kind, (b"content-length", b"%d" % len(body))]
    if job is not None and job.state in FINAL:
        headers.append(FINAL[job.state])
    elif outlook is not None:
        retry_after = outlook.retry_after
    if retry_after is not None:
        headers.append((b"retry-after", b"%d" % retry_after))
    return Reply(status, headers, body)


def timestamp(moment: float | None) -> str | None:
    """RFC 3339 in UTC, to the second: `2026-11-21T12:00:00Z`; None stays None."""
    return None if moment is None else time.strftime(RFC_3339, time.gmtime(moment))


# --- stored responses ----------------------------------------------------------------------------


@lru_cache(maxsize=256)
def served(status: int, headers: RawHeaders, state: State, owned: bool) -> tuple[int, RawHeaders]:
    """Status and header fields under which a job's response is served as it is.

    Those of one route have mostly the same fields.

    Args:
        status: the response's.
        headers: its fields.
        state: the job's.
        owned: whether it has an owner.
    """
    names = {name.lower() for name, _ in headers}
    if _JOB_STATUS in names:  # ours is the one that counts
        headers = tuple(field for field in headers if field[0].lower() != _JOB_STATUS)
    if b"cache-control" not in names:
        headers = (*headers, NO_STORE)
    elif owned:
        headers = _for_one(headers)
    if b"referrer-policy" not in names:
        headers = (*headers, NO_REFERRER)
    if state in FINAL:
        headers = (*headers, FINAL[state])
    if status == 202:  # every client would go on polling for ever
        status, headers = 200, (*headers, (b"job-response-status", b"202"))
    return status, headers


def _for_one(headers: RawHeaders) -> RawHeaders:
    """The same fields, with a Cache-Control that no shared cache keeps (RFC 9111 §5.2.2).

    At its URL a response is for the job's owner alone. All but its freshness for others stays.
    """
    lines = [value for name, value in headers if name.lower() == b"cache-control"]
    found = [part.strip() for part in _DIRECTIVE.findall(b",".join(lines)) if part.strip()]
    kept = [part for part in found if part.partition(b"=")[0].strip().lower() not in _SHARED]
    if not _OWN & {part.lower() for part in kept}:
        kept.append(b"private")
    elif kept == found:
        return headers
    others = tuple(field for field in headers if field[0].lower() != b"cache-control")
    return (*others, (b"cache-control", b", ".join(kept)))


# --- queries of lists ----------------------------------------------------------------------------

MOST = 200
"""Jobs that one answer has at most, however many are asked for."""

FINISHED = tuple(state for state in State if not TRANSITIONS[state])
"""The states of jobs that have finished."""

UNFINISHED = tuple(state for state in State if TRANSITIONS[state])
"""The others."""


def malformed(detail: str) -> Problem:
    """A query of a list that cannot be read."""
    return Problem("malformed-query", 400, "The query cannot be read", detail)


def parameters(query: str) -> list[tuple[str, str]]:
    """The parameters of a query.

    One without a value is as if it were not there, as in a form that was left empty.

    Raises:
        ValueError: there are too many.
    """
    return [each for each in parse_qsl(query, max_num_fields=100) if each[1]]


def once(found: Sequence[tuple[str, str]], names: Collection[str]) -> dict[str, str]:
    """Those that stand for themselves.

    Raises:
        ValueError: one is given twice.
    """
    values: dict[str, str] = {}
    for name, value in found:
        if name in names and values.setdefault(name, value) != value:
            raise ValueError(f"The parameter {name} is given twice.")
    return values


def states_of(
    found: Sequence[tuple[str, str]], name: str, words: Mapping[str, Collection[State]]
) -> tuple[State, ...]:
    """The states that a parameter lists, by the words for them.

    Raises:
        ValueError: there is no such word.
    """
    states: list[State] = []
    for word in (word for each, value in found if each == name for word in value.split(",")):
        if (meant := words.get(word.strip())) is None:
            raise ValueError(f"No job has this status; they have: {', '.join(words)}.")
        states += meant
    return tuple(dict.fromkeys(states))


def moment_of(name: str, value: str | None) -> float | None:
    """A time, in seconds since the epoch.

    Raises:
        ValueError: it is none.
    """
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise ValueError(
            f"The parameter {name} is a time as in RFC 3339, like 2026-11-21T12:00:00Z; "
            "in a URL a plus is %2B."
        ) from None


def limit_of(name: str, value: str | None, default: int, most: int = MOST) -> int:
    """How many jobs a page has; more than `most` are that many.

    Raises:
        ValueError: it is no number of at least 1.
    """
    if value is None:
        return default
    if not (value.isascii() and value.isdecimal() and int(value[:9]) > 0):
        raise ValueError(f"The parameter {name} is a whole number, 1 to {most}.")
    return min(int(value[:9]), most)


def following(query: str, name: str, after: str) -> str:
    """The same query, for the page behind the one that ended there."""
    kept = [each for each in parse_qsl(query) if each[1] and each[0] != name]
    return urlencode([*kept, (name, after)])
