"""Records: every job and captured request comes back as it was, and the format stays what it is.

With more of them, and others every time, which takes minutes:

    RAINCHECK_SERIALIZATION=long pytest tests/test_serialization.py
"""

from __future__ import annotations

import dataclasses
import json
from datetime import date
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raincheck import serialization
from raincheck.errors import MalformedCursor, Problem, UnreadableRecord
from raincheck.job import Delivery, Job, Progress, State, Trace
from raincheck.messages import Apart, CapturedRequest, CapturedResponse, Head
from raincheck.serialization import (
    FORMAT,
    STARTABLE,
    dump,
    dump_cursor,
    dump_head,
    dump_request,
    load,
    load_cursor,
    load_head,
    load_request,
    started,
)
from raincheck.testing.samples import finished
from tests.conftest import long
from tests.stores import left

LONG = long("SERIALIZATION")

pytestmark = pytest.mark.timeout(1800 if LONG else 120)


def one_way(text: str) -> bool:
    """Whether no two surrogates of it make a character: of those no decoder makes two."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass") == text


# Python's strings hold more than Unicode's: decoders leave lone surrogates for bytes they reject.
texts = st.text(st.characters(exclude_categories=())).filter(one_way)
names = texts.filter(bool)
times = st.floats(allow_nan=False)
numbers = st.integers(0, 2**63 - 1)
ports = st.integers(0, 65535)
headers = st.lists(st.tuples(st.binary(), st.binary()), max_size=5).map(tuple)
fractions = st.none() | st.floats(0, 1)
values = st.recursive(
    st.none() | st.booleans() | numbers | times | texts,
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(texts, inside, max_size=3),
    max_leaves=5,
)
unheard_of = texts.filter(lambda name: name == "extra" or name not in {"format", *Job._fields})

JOBS: dict[str, st.SearchStrategy[Any]] = {
    "id": names,
    "route": names,
    "state": st.sampled_from(State),
    "created_at": times,
    "version": st.integers(1, 2**63 - 1),
    "fence": numbers,
    "runs": numbers,
    "max_runs": numbers,
    "replayable": st.booleans(),
    "holder": st.none() | texts,
    "queue": st.none() | texts,
    "started_at": st.none() | times,
    "finished_at": st.none() | times,
    "expires_at": st.none() | times,
    "purge_at": st.none() | times,
    "progress": st.none() | st.builds(Progress, fractions, st.none() | texts),
    "response": st.none() | st.builds(CapturedResponse, st.integers(100, 999), headers, numbers),
    "error": st.none() | st.builds(Problem, names, st.integers(400, 599), texts, texts),
    "gone": st.booleans(),
    "owner": st.none() | texts,
    "clients": st.integers(-1, 2**31),
    "orphaned_at": st.none() | times,
    "synchronous": st.booleans(),
    "not_before": st.none() | times,
    "begin_by": st.none() | times,
    "trace": st.none() | st.builds(Trace, texts, texts),
    "delivery": st.none()
    | st.builds(
        Delivery,
        texts,
        texts,
        st.booleans(),
        st.sampled_from(["pending", "delivered", "failed"]),
        times,
        numbers,
        numbers,
        numbers,
        st.none() | texts,
        st.none() | st.tuples(numbers, st.none() | texts, numbers),
    ),
    "extra": st.none() | st.dictionaries(unheard_of, values, min_size=1, max_size=3),
}
REQUESTS: dict[str, st.SearchStrategy[Any]] = {
    "method": names,
    "path": texts,
    "raw_path": st.none() | st.binary(),
    "query_string": st.binary(),
    "headers": headers,
    "body": st.binary() | st.binary().map(lambda body: body + b"\n" + body),
    "scheme": st.sampled_from(["http", "https"]),
    "http_version": st.sampled_from(["1.0", "1.1", "2", "3"]),
    "root_path": texts,
    "client": st.none() | st.tuples(texts, ports),
    "server": st.none() | st.tuples(texts, st.none() | ports),
    "path_params": st.dictionaries(
        texts, texts | numbers | times | st.booleans() | st.none() | st.uuids(), max_size=3
    ).map(lambda params: tuple(params.items())),
    "app_root_path": st.none() | texts,
    "apart": st.none() | st.integers(min_value=0).map(Apart),
}

often = settings(
    max_examples=3000 if LONG else 100, deadline=None, derandomize=not LONG, database=None
)


def same(one: Any, other: Any) -> bool:
    """Whether both are equal, and of the same types all the way down: `1 == 1.0 == True`."""
    return bool(one == other) and repr(one) == repr(other)


@often
@given(job=st.builds(Job, **JOBS))
def test_a_job_comes_back_as_it_was(job: Job) -> None:
    assert same(load(dump(job)), job)
    assert same(load(dump(job).decode()), job)  # as some databases give it


@often
@given(request=st.builds(CapturedRequest, **REQUESTS))
def test_a_captured_request_comes_back_as_it_was(request: CapturedRequest) -> None:
    assert same(load_request(dump_request(request)), request)


def test_every_field_is_tried() -> None:
    assert set(JOBS) == set(Job._fields)
    assert set(REQUESTS) == {field.name for field in dataclasses.fields(CapturedRequest)}


@pytest.mark.parametrize(
    "job",
    [
        pytest.param(
            Job("a", "r", State.RUNNING, 1.5, owner="\udc80 \ud800 é \U0001f600"), id="text"
        ),
        pytest.param(
            Job(
                "a",
                "r",
                State.SUCCEEDED,
                1e300,
                response=CapturedResponse(
                    200, ((b"set-cookie", b"a=\xff\x80\xe9"), (b"set-cookie", b""), (b"X-Up", b"2"))
                ),
            ),
            id="headers",
        ),
    ],
)
def test_what_is_hard_to_write_comes_back(job: Job) -> None:
    assert same(load(dump(job)), job)


@pytest.mark.parametrize("body", [b"", b"\n", b"\n\n{}", b"\x00\xff\xfe\n", bytes(range(256)) * 4])
def test_a_body_comes_back_whatever_its_bytes(body: bytes) -> None:
    request = CapturedRequest("PUT", "/\udcff\n", b"/%FF\n", b"\xff\n", ((b"x", b"\n\xff"),), body)
    assert same(load_request(dump_request(request)), request)


# --- the format ----------------------------------------------------------------------------------

# What these versions wrote lies in databases. If one of these tests fails, so will every process
# that is started beside an older one, or on what an older one left: raise `FORMAT`, and say in the
# changelog what to do; or write the same bytes.

PLAIN = Job("id-1", "app.render", State.QUEUED, 1700000000.25)
FULL = Job(
    id="id-2",
    route="POST /vidéos",
    state=State.FAILED,
    created_at=1700000000.25,
    version=7,
    fence=5,
    runs=2,
    max_runs=3,
    replayable=True,
    holder="host-1",
    queue="videos",
    started_at=1700000001.0,
    finished_at=1700000002.5,
    expires_at=1700003602.5,
    purge_at=1700007202.5,
    progress=Progress(0.5, "halb fertig: ½"),
    response=CapturedResponse(404, ((b"x-a", b"\xe9"), (b"x-a", b"2")), 3),
    error=Problem("crashed", 500, "The handler failed", "It broke."),
    gone=True,
    owner="ann",
    clients=2,
    orphaned_at=1700000000.5,
    synchronous=True,
    not_before=1700000001.5,
    begin_by=1700000060.5,
    trace=Trace("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "a=1"),
    delivery=Delivery(
        *("https://example.com/hook", "/jobs", True, "pending", 1700000003.5, 4, 2, 5),
        last_error="It answered 500.",
        response=(404, "text/plain", 3),
    ),
)
REQUEST = dataclasses.replace(left.REQUEST, path_params=(), app_root_path=None)
TIMES = (
    *("created_at", "started_at", "finished_at", "expires_at", "purge_at", "orphaned_at"),
    *("not_before", "begin_by"),
)
LEAST = CapturedRequest("GET", "/", None, b"", (), b"")
MOUNTED = CapturedRequest(
    *("GET", "/ann/7", None, b"", (), b""),
    root_path="/ann",
    path_params=(("tenant", "ann"), ("n", 7), ("of", 1.5), ("id", UUID(int=1 << 78 | 1 << 63))),
    app_root_path="",
)

GOLDEN = [
    (
        PLAIN,
        b'{"format":1,"id":"id-1","route":"app.render","state":"queued","created_at":1700000000.25}',
    ),
    (
        FULL,
        b'{"format":1,"id":"id-2","route":"POST /vid\\u00e9os","state":"failed",'
        b'"created_at":1700000000.25,"version":7,"fence":5,"runs":2,"max_runs":3,'
        b'"replayable":true,"holder":"host-1","queue":"videos","started_at":1700000001.0,'
        b'"finished_at":1700000002.5,"expires_at":1700003602.5,"purge_at":1700007202.5,'
        b'"progress":[0.5,"halb fertig: \\u00bd"],'
        b'"response":[404,[["x-a","\\u00e9"],["x-a","2"]],3],'
        b'"error":["crashed",500,"The handler failed","It broke."],"gone":true,"owner":"ann",'
        b'"clients":2,"orphaned_at":1700000000.5,"synchronous":true,'
        b'"not_before":1700000001.5,"begin_by":1700000060.5,'
        b'"trace":["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01","a=1"],'
        b'"delivery":["https://example.com/hook","/jobs",true,"pending",'
        b'1700000003.5,4,2,5,"It answered 500.",[404,"text/plain",3]]}',
    ),
]
GOLDEN_REQUESTS = [
    (
        LEAST,
        b'{"format":1,"method":"GET","path":"/","raw_path":null,"query_string":"","headers":[],'
        b'"scheme":"http","http_version":"1.1","root_path":"","client":null,"server":null}\n',
    ),
    (
        REQUEST,
        b'{"format":1,"method":"POST","path":"/vid\\u00e9os","raw_path":"/vid%C3%A9os",'
        b'"query_string":"a=\\u00ff","headers":[["content-type","text/plain"],["x-a","\\u00e9"]],'
        b'"scheme":"https","http_version":"2","root_path":"/api","client":["192.0.2.1",4711],'
        b'"server":["example.org",null]}\n'
        b"\x00one\ntwo\xff",
    ),
    (
        MOUNTED,
        b'{"format":1,"method":"GET","path":"/ann/7","raw_path":null,"query_string":"",'
        b'"headers":[],"scheme":"http","http_version":"1.1","root_path":"/ann","client":null,'
        b'"server":null,"path_params":{"tenant":"ann","n":7,"of":1.5,'
        b'"id":["00000000-0000-4000-8000-000000000000"]},"app_root_path":""}\n',
    ),
    (  # none that knows only format 1 takes it for one without a body
        dataclasses.replace(LEAST, apart=Apart(5_000_000_000)),
        b'{"format":2,"method":"GET","path":"/","raw_path":null,"query_string":"","headers":[],'
        b'"scheme":"http","http_version":"1.1","root_path":"","client":null,"server":null,'
        b'"apart":5000000000}\n',
    ),
]


@pytest.mark.parametrize(("job", "record"), GOLDEN)
def test_format_1_of_a_job_stays_what_it_is(job: Job, record: bytes) -> None:
    assert FORMAT == 1
    assert dump(job) == record
    assert record.startswith(STARTABLE)
    assert same(load(record), job)


@pytest.mark.parametrize(("request_", "record"), GOLDEN_REQUESTS)
def test_format_1_of_a_captured_request_stays_what_it_is(
    request_: CapturedRequest, record: bytes
) -> None:
    assert dump_request(request_) == record
    assert same(load_request(record), request_)


def test_the_golden_records_have_every_field() -> None:
    written = [field for field in Job._fields if b'"%s":' % field.encode() in GOLDEN[1][1]]
    assert [*written, "extra"] == [*Job._fields]
    fields = {field.name for field in dataclasses.fields(CapturedRequest)} - {"body"}
    found = {
        name for _, record in GOLDEN_REQUESTS for name in json.loads(record.partition(b"\n")[0])
    }
    assert found == {"format", *fields}


def test_a_path_parameter_that_json_has_no_word_for_is_left_out() -> None:
    request = dataclasses.replace(MOUNTED, path_params=(("day", date(2026, 11, 21)), ("n", 7)))
    assert load_request(dump_request(request)).path_params == (("n", 7),)


@pytest.mark.parametrize("found", [[], ["a"], [1], [["a"]], {"a": 1}])
def test_a_path_parameter_of_another_shape_cannot_be_read(found: Any) -> None:
    head = json.loads(GOLDEN_REQUESTS[2][1].partition(b"\n")[0])
    record = json.dumps(head | {"path_params": {"n": found}}).encode() + b"\n"
    with pytest.raises(UnreadableRecord):
        load_request(record)


def test_the_head_of_a_response_comes_back_and_stays_what_it_is() -> None:
    head = Head(207, ((b"set-cookie", b"a"), (b"set-cookie", b"\xff")))
    record = b'{"format":1,"head":[207,[["set-cookie","a"],["set-cookie","\\u00ff"]]]}'
    assert dump_head(head) == record
    for found in (record, record.decode()):
        assert same(load_head(found), head)


@pytest.mark.parametrize(
    "found", [None, [], [200], ["200", []], [200, {}], [200, [["a"]]], [200, 1]]
)
def test_a_head_of_another_shape_cannot_be_read(found: Any) -> None:
    with pytest.raises(UnreadableRecord):
        load_head(json.dumps({"format": 1, "head": found}))


@pytest.mark.parametrize("found", [0, 2, 3, 1.5, "1", None])
def test_a_record_in_another_format_is_refused_and_named(found: Any) -> None:
    """Whatever else is in it: another format may have other fields."""
    for known in ({}, {"unheard_of": 1}, {"state": "sleeping"}):
        record = json.dumps({**json.loads(GOLDEN[0][1]), **known, "format": found}).encode()
        for read in (load, load_head, load_request):
            with pytest.raises(UnreadableRecord, match=f"a record has format {found!r}.* reads 1"):
                read(record)


@often
@given(
    job=st.builds(Job, **JOBS | {"state": st.just(State.QUEUED)}), now=times, holder=texts | names
)
def test_a_job_is_started_without_reading_its_record(job: Job, now: float, holder: str) -> None:
    record = dump(job) + started(now, holder)
    assert same(load(record), job.start(now, holder))
    assert same(load(record.decode()), job.start(now, holder))


def test_the_start_of_a_job_stays_what_it_is() -> None:
    assert started(1700000000.25, "hôst-1") == b'\n{"started":[1700000000.25,"h\\u00f4st-1"]}'


@pytest.mark.parametrize(
    "end",
    [
        *(b"{}", b"[]", b'{"started":1}', b'{"started":[1.5]}', b'{"started":["h",1.5]}'),
        *(b"{", b'{"started":[1.5,"h"]}\n{"started":[1.5,"h"]}', b"\xff"),
    ],
)
def test_a_record_that_goes_on_otherwise_cannot_be_read(end: bytes) -> None:
    with pytest.raises(UnreadableRecord):
        load(dump(PLAIN) + b"\n" + end)


def test_what_cannot_be_started_cannot_be_read() -> None:
    for there in (PLAIN.start(1.0), PLAIN.start(1.0).cancelling(), FULL):
        with pytest.raises(UnreadableRecord):
            load(dump(there) + started(2.0, "h"))


@often
@given(
    created_at=st.floats(allow_nan=False, allow_infinity=False),
    id=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1),
)
def test_where_a_page_ended_comes_back(created_at: float, id: str) -> None:
    assert load_cursor(dump_cursor(created_at, id)) == (created_at, id)


@pytest.mark.parametrize(
    "text", ["", "~", "1.5", "1.5~", "~a", "x~a", "nan~a", "inf~a", "1.5~\0", "1.5~\udc80"]
)
def test_a_malformed_cursor_is_told_so(text: str) -> None:
    with pytest.raises(MalformedCursor):
        load_cursor(text)


def test_a_record_that_names_no_format_is_refused() -> None:
    for read in (load, load_request):
        with pytest.raises(UnreadableRecord, match="format None"):
            read(b'{"id":"a"}')


def test_fields_of_a_newer_version_are_kept_as_they_came() -> None:
    record = {**json.loads(GOLDEN[0][1]), "weight": [1.5, {"of": None}], "extra": "e"}
    job = load(json.dumps(record))
    assert job._replace(extra=None) == PLAIN
    for later in (job, job.start(2.0), finished(job.start(2.0))):
        written = json.loads(dump(later))
        assert (written["weight"], written["extra"]) == ([1.5, {"of": None}], "e")
    head, _, body = GOLDEN_REQUESTS[1][1].partition(b"\n")
    head = json.dumps({**json.loads(head), "weight": 1}).encode()
    assert load_request(head + b"\n" + body) == REQUEST


def test_a_version_that_knows_nothing_of_traces_keeps_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    traced = PLAIN._replace(trace=Trace("00-1-2-01", "a=1"))
    with monkeypatch.context() as older:
        older.delitem(serialization._JOB_SHAPES, "trace")
        job = load(dump(traced))
        assert job.trace is None
        written = dump(job.start(2.0))
    assert load(written).trace == traced.trace


OTHER_SHAPES = [None, True, 7, 7.5, "text", [], ["text"], [7, 7, 7], {"a": 1}]


@pytest.mark.parametrize("field", sorted(json.loads(GOLDEN[1][1]).keys() - {"format"}))
def test_a_job_with_a_field_of_another_shape_cannot_be_read(field: str) -> None:
    """Not even one of a kind that Python would take for another, as True for 1."""
    record = json.loads(GOLDEN[1][1])
    for value in OTHER_SHAPES:
        if type(value) is type(record[field]) and not isinstance(value, list):
            continue
        if field in TIMES and value == 7:  # JSON may leave out the fraction
            continue
        if field == "keys" and value in ([], ["text"]):
            continue
        with pytest.raises(UnreadableRecord):
            load(json.dumps(record | {field: value}))


@pytest.mark.parametrize("field", json.loads(GOLDEN_REQUESTS[1][1].partition(b"\n")[0]).keys())
def test_a_captured_request_with_a_field_of_another_shape_cannot_be_read(field: str) -> None:
    head, _, body = GOLDEN_REQUESTS[1][1].partition(b"\n")
    record = json.loads(head)
    for value in (True, 7, 7.5, [7], ["text"], {"a": 1}):
        with pytest.raises(UnreadableRecord):
            load_request(json.dumps(record | {field: value}).encode() + b"\n" + body)
    del record[field]
    with pytest.raises(UnreadableRecord):
        load_request(json.dumps(record).encode() + b"\n" + body)


@often
@given(record=st.binary() | values.map(lambda value: json.dumps(value).encode()))
def test_whatever_is_found_is_read_or_is_unreadable(record: bytes) -> None:
    for read in (load, load_head, load_request):
        with pytest.raises(UnreadableRecord):
            read(record)


@often
@given(
    field=st.sampled_from([*JOBS]), value=values, name=st.sampled_from(["progress", "keys"]) | texts
)
def test_whatever_a_field_has_it_is_read_or_is_unreadable(
    field: str, value: Any, name: str
) -> None:
    record = json.loads(GOLDEN[1][1]) | {field: value, name: [value]}
    try:
        job = load(json.dumps(record))
    except UnreadableRecord:
        return
    assert same(load(dump(job)), job)
