"""What servers say of a job: where it is, when to ask again, and how it stands. All pure."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

Request = Any
Response = Any
"""Those of the module that is used: httpx and httpx2 have the same classes, and share none."""

Document = Mapping[str, Any]
"""How a job stands, as its server spells it."""

PASSING = frozenset({429, 502, 503, 504})
"""Statuses that say nothing about the job, unless `Job-Status` says that they are its own."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})

# Of ours, of Azure's (Microsoft REST API Guidelines, "Long-running operations") and of others.
_FAILED = frozenset({"failed", "canceled", "cancelled", "error"})
_ENDED = _FAILED | {"succeeded", "completed"}
_UNFINISHED = frozenset(
    {"accepted", "notstarted", "queued", "pending", "running", "inprogress", "canceling"}
)


def passes(response: Response) -> bool:
    """Whether this answer is no word about the job, so that it is to be asked for again."""
    return response.status_code in PASSING and "job-status" not in response.headers


def redirects(response: Response) -> bool:
    """Whether it leads elsewhere, and is not what a handler has answered."""
    headers = response.headers
    return (
        response.status_code in _REDIRECTS
        and "job-status" not in headers
        and joined(response.request.url, headers.get("location")) is not None
    )


def located(response: Response) -> Any:
    """Where a 202 says that its job is, absolute; None if it does not.

    `Location` is what most servers use, `Operation-Location` is Azure's, and `Content-Location`
    FHIR's ("Asynchronous Request Pattern").
    """
    for name in ("location", "operation-location", "content-location"):
        where = joined(response.request.url, response.headers.get(name))
        if where is not None:
            return where
    return None


def joined(url: Any, link: str | None) -> Any:
    """Where a server's link leads; None if that is no URL of http or https, or there is no link."""
    if link is None:
        return None
    try:
        found = url.join(link)
        found.raw_host.decode("ascii").encode("idna")  # as it is looked up
    except Exception:  # `InvalidURL`, of either module, or what is no Unicode, or no name of a host
        return None
    return found if found.scheme in ("http", "https") and found.host else None


def waits(response: Response) -> bool:
    """Whether the server says that it has honoured `Prefer: wait` (RFC 7240 §3, §4.3)."""
    applied = response.headers.get("preference-applied", "")
    return re.search(r"(?:^|,)\s*wait\b", applied, re.IGNORECASE) is not None


def retry_after(response: Response) -> float | None:
    """Seconds from 1 to an hour, whatever the server says; None if it says nothing that is one.

    A date (RFC 9110 §10.2.3) is compared with the server's own, so that clocks may differ.
    """
    value = response.headers.get("retry-after", "").strip()
    if value.isdecimal() and value.isascii():
        seconds = float(value)
    else:
        then = _moment(value)
        if then is None:
            return None
        now = _moment(response.headers.get("date", ""))
        seconds = then - (time.time() if now is None else now)
    return min(3600.0, max(1.0, seconds))


def _moment(date: str) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


def document_of(body: bytes | str) -> Document:
    """The JSON object that a body is; empty if it is something else."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def links_of(document: Document) -> Mapping[str, str]:
    """The links of a status document, by their names."""
    links = document.get("links")
    if not isinstance(links, dict):
        return {}
    return {name: link for name, link in links.items() if isinstance(link, str)}


def urls_of(document: Document, base: Any) -> Mapping[str, Any]:
    """The same, absolute; without those that lead nowhere."""
    found = {name: joined(base, link) for name, link in links_of(document).items()}
    return {name: url for name, url in found.items() if url is not None}


def has_ended(document: Document) -> bool:
    """Whether a status document says that the job has ended."""
    return _word(document) in _ENDED


def has_failed(document: Document) -> bool:
    """Whether it has ended without what was asked for."""
    return _word(document) in _FAILED


def is_status(document: Document, response: Response) -> bool:
    """Whether a 200 from a URL that nothing is known of shows how a job stands, and is no result.

    It does if it says where the result is, or that there is none yet.
    """
    if "result" in links_of(document) and "job_id" in document:
        return True
    if "job-status" in response.headers:
        return False
    word = _word(document)
    return word in _UNFINISHED or (word in _ENDED and "resourceLocation" in document)


def outcome_of(response: Response) -> Document:
    """What a final answer says of how the job has ended."""
    word = "succeeded" if response.status_code < 400 else "failed"
    shown = {
        "status": response.status_code,
        "content_type": response.headers.get("content-type"),
    }
    return {"status": response.headers.get("job-status", word), "response": shown}


def sentence_of(document: Document, otherwise: str) -> str:
    """What a problem (RFC 9457) or an error says to people."""
    error = document.get("error")
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        return str(error["message"])
    return str(document.get("detail") or document.get("title") or otherwise)


def origin_of(url: Any) -> tuple[str, str, int | None]:
    """Scheme, host and port (RFC 6454 §4), the default port named."""
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)


def _word(document: Document) -> str:
    return str(document.get("status", "")).lower()
