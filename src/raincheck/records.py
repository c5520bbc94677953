"""Records: jobs and captured requests as bytes, for stores outside the process.

A job is a line of JSON, a captured request another with the body behind it as it came. Each names
the format that it is written in; of a field that has its default nothing is written.
"""

from __future__ import annotations

import json
from typing import Any

from raincheck.errors import Problem, StoreError
from raincheck.job import Job, Progress, State
from raincheck.messages import CapturedRequest, CapturedResponse, RawHeaders

FORMAT = 1
"""What this version writes. It reads no other."""

_encode = json.JSONEncoder(check_circular=False, separators=(",", ":")).encode

_NAMES = Job._fields
_DEFAULTS = [Job._field_defaults.get(name, ...) for name in _NAMES]  # no value is the Ellipsis


def dump(job: Job) -> bytes:
    """A job as bytes."""
    fields: dict[str, Any] = {"format": FORMAT} | {
        name: value
        for name, value, default in zip(_NAMES, job, _DEFAULTS, strict=True)
        if value != default
    }
    if job.progress is not None:
        fields["progress"] = [job.progress.fraction, job.progress.message]
    if job.error is not None:
        error = job.error
        fields["error"] = [error.name, error.status, error.title, error.detail]
    if job.response is not None:
        response = job.response
        fields["response"] = [response.status, _texts(response.headers), response.size]
    return _encode(fields).encode()


def load(record: bytes | str) -> Job:
    """The job that `dump` made these bytes of.

    Raises:
        StoreError: another version of raincheck wrote them, in a format that this one cannot read.
    """
    fields = _read(record)
    if "progress" in fields:
        fields["progress"] = Progress(*fields["progress"])
    if "error" in fields:
        fields["error"] = Problem(*fields["error"])
    if "response" in fields:
        status, headers, size = fields["response"]
        fields["response"] = CapturedResponse(status, _pairs(headers), size)
    if "keys" in fields:
        fields["keys"] = tuple(fields["keys"])
    return Job(**{**fields, "state": State(fields["state"])})


def dump_request(request: CapturedRequest) -> bytes:
    """A captured request as bytes."""
    fields = {
        "format": FORMAT,
        "method": request.method,
        "path": request.path,
        "raw_path": None if request.raw_path is None else request.raw_path.decode("latin-1"),
        "query_string": request.query_string.decode("latin-1"),
        "headers": _texts(request.headers),
        "scheme": request.scheme,
        "http_version": request.http_version,
        "root_path": request.root_path,
        "client": request.client,
        "server": request.server,
    }
    return _encode(fields).encode() + b"\n" + request.body


def load_request(record: bytes) -> CapturedRequest:
    """The captured request that `dump_request` made these bytes of.

    Raises:
        StoreError: another version of raincheck wrote them, in a format that this one cannot read.
    """
    head, _, body = record.partition(b"\n")
    fields = _read(head)
    if fields["raw_path"] is not None:
        fields["raw_path"] = fields["raw_path"].encode("latin-1")
    fields["query_string"] = fields["query_string"].encode("latin-1")
    fields["headers"] = _pairs(fields["headers"])
    for address in ("client", "server"):
        if fields[address] is not None:
            fields[address] = tuple(fields[address])
    return CapturedRequest(**fields, body=body)


def _read(record: bytes | str) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(record)
    found = fields.pop("format", None)
    if found != FORMAT:
        raise StoreError(
            f"a record has format {found!r}, and this version of raincheck reads {FORMAT}: another "
            "version wrote it; run one version, or let its jobs expire first"
        )
    return fields


def _texts(headers: RawHeaders) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]


def _pairs(headers: list[tuple[str, str]]) -> RawHeaders:
    return tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in headers)
