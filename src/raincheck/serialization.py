"""Records: jobs and captured requests as bytes, for stores outside the process.

A job is a line of JSON, a captured request another with the body behind it as it came, the head
of a response that is not complete one more. Each names the format that it is written in; of a field
that has its default nothing is written. A job that was started by who could not read it has a
second line that says so.

The number of the format is its major part, and is raised when an older version must not touch what
a newer one writes. A minor part needs none: fields that a newer version has added are kept as they
came, and those that are there keep their shape within a format. Whatever else is found cannot be
read. A captured request is never written again, so what is new in one is passed over; one whose
body is kept apart has a format of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import compress
from operator import ne
from typing import Any, TypeVar
from uuid import UUID

from raincheck.errors import IllegalTransition, MalformedCursor, Problem, UnreadableRecord
from raincheck.job import Delivery, Job, Progress, State, Trace
from raincheck.messages import Apart, CapturedRequest, CapturedResponse, Head, RawHeaders

FORMAT = 1
"""What this version writes, and the newest that it reads. The first: there is no older one yet, and
whatever raises it has to read this one, too."""

_APART = 2
"""The format of a captured request whose body is kept apart: to a version that reads only the first
it would look like one without a body."""

_encode = json.JSONEncoder(check_circular=False, separators=(",", ":")).encode
_decode = json.JSONDecoder().decode

STARTABLE = _encode({"format": FORMAT})[:-1].encode() + b","
"""How the record of every job begins that `started` may be appended to."""

_NAMES = tuple(name for name in Job._fields if name != "extra")
_DEFAULTS = [Job._field_defaults.get(name, ...) for name in _NAMES]  # no value is the Ellipsis

_STATES = {state.value: state for state in State}

_Types = tuple[type, ...]

_TEXT: _Types = (str,)
_NUMBER: _Types = (int,)
_TIME: _Types = (float, int)
_FLAG: _Types = (bool,)
_LIST: _Types = (list,)
_NONE: _Types = (type(None),)

# What JSON has for each field of a job that has not its default, and of a captured request.
_JOB_SHAPES: dict[str, _Types] = {
    "id": _TEXT,
    "route": _TEXT,
    "state": _TEXT,
    "created_at": _TIME,
    "version": _NUMBER,
    "fence": _NUMBER,
    "runs": _NUMBER,
    "max_runs": _NUMBER,
    "replayable": _FLAG,
    "holder": _TEXT,
    "queue": _TEXT,
    "started_at": _TIME,
    "finished_at": _TIME,
    "expires_at": _TIME,
    "purge_at": _TIME,
    "progress": _LIST,
    "response": _LIST,
    "error": _LIST,
    "gone": _FLAG,
    "owner": _TEXT,
    "clients": _NUMBER,
    "orphaned_at": _TIME,
    "synchronous": _FLAG,
    "not_before": _TIME,
    "begin_by": _TIME,
    "trace": _LIST,
    "delivery": _LIST,
}
_REQUEST_SHAPES: dict[str, _Types] = {
    "method": _TEXT,
    "path": _TEXT,
    "raw_path": _TEXT + _NONE,
    "query_string": _TEXT,
    "headers": _LIST,
    "scheme": _TEXT,
    "http_version": _TEXT,
    "root_path": _TEXT,
    "client": _LIST + _NONE,
    "server": _LIST + _NONE,
}
# Not every captured request has these.
_OPTIONAL_SHAPES: dict[str, _Types] = {
    "path_params": (dict,),
    "app_root_path": _TEXT,
    "apart": _NUMBER,
}
_SHAPES = _REQUEST_SHAPES | _OPTIONAL_SHAPES

# What JSON writes of a path parameter and reads as it was. A UUID is a list of its text.
_PLAIN = (str, int, float, bool, type(None))

# What the wrong shape of a value inside a record comes to; that of JSON itself is a ValueError.
_MISSHAPEN = (ValueError, TypeError, KeyError, AttributeError, RecursionError, IllegalTransition)

T = TypeVar("T")


def dump(job: Job) -> bytes:
    """A job as bytes."""
    # All of a tuple but its end, which is not written as it is.
    fields: dict[str, Any] = {"format": FORMAT}
    fields.update(compress(zip(_NAMES, job, strict=False), map(ne, job, _DEFAULTS)))
    if job.extra is not None:
        fields |= job.extra
    if job.progress is not None:
        fields["progress"] = [job.progress.fraction, job.progress.message]
    if job.error is not None:
        error = job.error
        fields["error"] = [error.name, error.status, error.title, error.detail]
    if job.response is not None:
        response = job.response
        fields["response"] = [response.status, _texts(response.headers), response.size]
    return _encode(fields).encode()


def started(now: float, holder: str) -> bytes:
    """What starts a job when it is appended to its record, as it is: `job.start(now, holder)`.

    So a server can start a job that it cannot read; but only one whose record begins as `STARTABLE`
    does, or it would change what only a newer version may.
    """
    return b"\n" + _encode({"started": [now, holder]}).encode()


def load(record: bytes | str) -> Job:
    """The job that `dump` made these bytes of, and started if `started` was appended to them.

    Raises:
        UnreadableRecord: they are damaged, or in the format of another version of raincheck.
    """
    return _shaped(_job, record)


def readable(record: bytes | str) -> Job | None:
    """The same, or None: for those to whom one that cannot be read is not to matter."""
    try:
        return load(record)
    except UnreadableRecord:
        return None


def dump_cursor(created_at: float, id: str) -> str:
    """Where a page of a list of jobs ended, as text."""
    return f"{float(created_at)!r}~{id}"


def load_cursor(text: str) -> tuple[float, str]:
    """The time and the id that `dump_cursor` made this text of.

    Raises:
        MalformedCursor: it made it of none.
    """
    time, _, id = text.partition("~")
    try:
        id.encode()
        created_at = float(time)
    except ValueError:
        created_at = math.nan
    if not (math.isfinite(created_at) and id and "\0" not in id):
        raise MalformedCursor("no page of a list of jobs ended there")
    return created_at, id


def _job(record: bytes | str) -> Job:
    newline: Any = b"\n" if isinstance(record, bytes) else "\n"
    record, _, start = record.partition(newline)
    job = _queued(record)
    if not start:
        return job
    found: Any = _decoded(start)["started"]
    if len(found) != 2 or found[0].__class__ not in _TIME or found[1].__class__ not in _TEXT:
        raise TypeError(f"it was started by {found!r}")
    return job.start(*found)


def _queued(record: bytes | str) -> Job:
    fields = _read(record)
    extra = None
    for name, value in fields.items():
        if (shapes := _JOB_SHAPES.get(name)) is None:
            extra = {**(extra or {}), name: value}
        elif value.__class__ not in shapes:
            raise TypeError(f"{name} is {value!r}")
    for name in extra or ():
        del fields[name]
    if "progress" in fields:
        fields["progress"] = _progress(fields["progress"])
    if "error" in fields:
        fields["error"] = _error(fields["error"])
    if "response" in fields:
        fields["response"] = _response(fields["response"])
    if "trace" in fields:
        fields["trace"] = _trace(fields["trace"])
    if "delivery" in fields:
        fields["delivery"] = _delivery(fields["delivery"])
    fields["state"] = _STATES[fields["state"]]
    return Job(**fields, extra=extra)


def _progress(found: list[Any]) -> Progress:
    match found:
        case [int() | float() | None, str() | None]:
            return Progress(*found)
    raise TypeError(f"progress is {found!r}")


def _error(found: list[Any]) -> Problem:
    match found:
        case [str(), int(), str(), str()]:
            return Problem(*found)
    raise TypeError(f"error is {found!r}")


def _trace(found: list[Any]) -> Trace:
    match found:
        case [str(), str()]:
            return Trace(*found)
    raise TypeError(f"trace is {found!r}")


def _response(found: list[Any]) -> CapturedResponse:
    match found:
        case [int() as status, list() as headers, int() as size]:
            return CapturedResponse(status, _pairs(headers), size)
    raise TypeError(f"response is {found!r}")


def _delivery(found: list[Any]) -> Delivery:
    match found:
        case [
            str(),
            str(),
            bool(),
            str(),
            int() | float(),
            int(),
            int(),
            int(),
            str() | None,
            [int(), str() | None, int()] | None as response,
        ]:
            told = None if response is None else tuple(response)
            return Delivery(*found)._replace(response=told)
    raise TypeError(f"delivery is {found!r}")


def dump_head(head: Head) -> bytes:
    """The head of a response as bytes, for as long as it is not complete."""
    return _encode({"format": FORMAT, "head": [head.status, _texts(head.headers)]}).encode()


def load_head(record: bytes | str) -> Head:
    """The head that `dump_head` made these bytes of.

    Raises:
        UnreadableRecord: they are damaged, or in the format of another version of raincheck.
    """
    return _shaped(_head, record)


def _head(record: bytes | str) -> Head:
    found = _read(record)["head"]
    match found:
        case [int() as status, list() as headers]:
            return Head(status, _pairs(headers))
    raise TypeError(f"head is {found!r}")


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
    if request.path_params:
        fields["path_params"] = _parameters(request.path_params)
    if request.app_root_path is not None:
        fields["app_root_path"] = request.app_root_path
    if request.apart is not None:
        fields |= {"format": _APART, "apart": request.apart.size}
    return _encode(fields).encode() + b"\n" + request.body


def load_request(record: bytes) -> CapturedRequest:
    """The captured request that `dump_request` made these bytes of.

    Raises:
        UnreadableRecord: they are damaged, or in the format of another version of raincheck.
    """
    return _shaped(_request, record)


def _request(record: bytes) -> CapturedRequest:
    head, _, body = record.partition(b"\n")
    found = _read(head, apart=True)
    fields = {name: found[name] for name in _REQUEST_SHAPES}
    if len(found) > len(fields):  # few have more
        fields |= {name: found[name] for name in _OPTIONAL_SHAPES.keys() & found.keys()}
    for name, value in fields.items():
        if value.__class__ not in _SHAPES[name]:
            raise TypeError(f"{name} is {value!r}")
    if "path_params" in fields:
        read = fields["path_params"].items()
        fields["path_params"] = tuple((name, _parameter(value)) for name, value in read)
    if fields["raw_path"] is not None:
        fields["raw_path"] = fields["raw_path"].encode("latin-1")
    fields["query_string"] = fields["query_string"].encode("latin-1")
    fields["headers"] = _pairs(fields["headers"])
    for address in ("client", "server"):
        if fields[address] is not None:
            fields[address] = _address(fields[address])
    if "apart" in fields:
        fields["apart"] = Apart(fields["apart"])
    return CapturedRequest(**fields, body=body)


def _parameters(params: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    """Path parameters for JSON: those of Starlette's own convertors; others cannot be written."""
    return {
        name: [str(value)] if value.__class__ is UUID else value
        for name, value in params
        if value.__class__ in (*_PLAIN, UUID)
    }


def _parameter(found: Any) -> Any:
    match found:
        case [str(text)]:
            return UUID(text)
        case str() | int() | float() | None:
            return found
    raise TypeError(f"a path parameter is {found!r}")


def _address(found: list[Any]) -> tuple[str, int | None]:
    match found:
        case [str(), int() | None]:
            return found[0], found[1]
    raise TypeError(f"an address is {found!r}")


def _shaped(read: Callable[[Any], T], record: bytes | str) -> T:
    try:
        return read(record)
    except _MISSHAPEN as error:
        raise UnreadableRecord(f"a record is damaged ({error!r:.100})") from error


def _read(record: bytes | str, *, apart: bool = False) -> dict[str, Any]:
    fields: dict[str, Any] = _decoded(record)
    found, reads = fields.pop("format", None), _APART if apart and "apart" in fields else FORMAT
    if found != reads or found.__class__ is not int:  # True is 1 to Python
        raise UnreadableRecord(
            f"a record has format {found!r}, and this version of raincheck reads {reads}: another "
            "version wrote it; run one version, or let its jobs expire first"
        )
    return fields


def _decoded(record: bytes | str) -> Any:
    """As `json.loads`, which looks for other encodings first: these are always UTF-8."""
    text = record if isinstance(record, str) else record.decode("utf-8", "surrogatepass")
    return _decode(text)


def _texts(headers: RawHeaders) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]


def _pairs(headers: list[tuple[str, str]]) -> RawHeaders:
    return tuple([(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers])
