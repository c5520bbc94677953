"""What servers say, read by tables."""

from __future__ import annotations

import time
from email.utils import formatdate
from typing import Any

import httpx2
import pytest

import raincheck.client
from raincheck.client.event_stream import Parser, ServerSentEvent
from raincheck.client.wire import (
    document_of,
    is_status,
    links_of,
    origin_of,
    retry_after,
    sentence_of,
    waits,
)


def test_the_public_names_are_spelt_once() -> None:
    names = raincheck.client.__all__
    assert names == sorted(names, key=str.lower)
    assert all(getattr(raincheck.client, name).__doc__ for name in names)


def answer(**fields: str) -> Any:
    headers = [(k.replace("_", "-").encode(), v.encode("latin-1")) for k, v in fields.items()]
    return httpx2.Response(202, headers=headers)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        (" 7 ", 7.0),
        ("0", 1.0),
        ("999999999999", 3600.0),
        ("1.5", None),
        ("-3", None),
        ("²", None),
        ("soon", None),
        ("", None),
        ("Sun, 29 Nov 2026 12:00:30 GMT", 30.0),
        ("Sun, 29 Nov 2026 11:00:00 GMT", 1.0),
        ("Sun, 99 Nov 2026 11:00:00 GMT", None),
    ],
)
def test_retry_after(value: str, seconds: float | None) -> None:
    # The server's own clock counts: this one here may differ.
    assert retry_after(answer(retry_after=value, date="Sun, 29 Nov 2026 12:00:00 GMT")) == seconds


def test_retry_after_of_a_server_without_a_clock() -> None:
    then = formatdate(time.time() + 100, usegmt=True)
    assert retry_after(answer(retry_after=then)) == pytest.approx(100, abs=3)
    assert retry_after(answer()) is None


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("wait=20", True),
        ("respond-async, wait=20", True),
        ("Wait", True),
        ("respond-async", False),
        ("waiting", False),
        ('callback; url="https://x/wait"', False),
        ("", False),
    ],
)
def test_a_server_says_that_it_has_waited(value: str, said: bool) -> None:
    assert waits(answer(preference_applied=value)) is said


@pytest.mark.parametrize("body", [b"[1]", b"\xff", b"", b"{", b"null", b"[" * 100_000])
def test_what_is_no_document_says_nothing(body: bytes) -> None:
    assert document_of(body) == {}


def test_links_are_strings() -> None:
    assert links_of({"links": {"self": "/a", "result": 5}}) == {"self": "/a"}
    assert links_of({"links": ["/a"]}) == {}


@pytest.mark.parametrize(
    ("document", "fields", "shows"),
    [
        ({"status": "Running"}, {}, True),
        ({"status": "notStarted"}, {}, True),
        ({"status": "running"}, {"job_status": "succeeded"}, False),
        ({"status": "ok"}, {}, False),
        ({"status": "succeeded"}, {}, False),
        ({"status": "Succeeded", "resourceLocation": "/1"}, {}, True),
        (
            {"status": "succeeded", "job_id": "1", "links": {"result": "/1"}},
            {"job_status": "succeeded"},
            True,
        ),
    ],
)
def test_a_status_is_told_from_a_result(document: Any, fields: dict[str, str], shows: bool) -> None:
    assert is_status(document, answer(**fields)) is shows


def test_what_is_said_to_people() -> None:
    assert sentence_of({"error": {"message": "No."}, "detail": "x"}, "y") == "No."
    assert sentence_of({"error": "No."}, "y") == "y"
    assert sentence_of({"title": "t", "detail": "d"}, "y") == "d"
    assert sentence_of({"title": "t"}, "y") == "t"


def test_origins() -> None:
    same = {origin_of(httpx2.URL(url)) for url in ("https://a/x", "https://A:443/y")}
    assert len(same) == 1
    others = ("http://a", "https://b", "https://a:444", "https://a.b")
    assert same.isdisjoint(origin_of(httpx2.URL(url)) for url in others)


STREAM = (
    b"\xef\xbb\xbfretry: 1500\r\nid: 1\r\nevent: status\r\ndata: {\r\ndata: }\r\n\r\n"
    b": comment\n\ndata:plain\n\nid: 2\rdata: \xe2\x82\xac\r\rdata: unended"
)
EVENTS = [
    ServerSentEvent("status", "{\n}", "1"),
    ServerSentEvent("message", "plain", "1"),
    ServerSentEvent("message", "€", "2"),
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_come_out_however_they_come_in(size: int) -> None:
    parser = Parser()
    pieces = [STREAM[at : at + size] for at in range(0, len(STREAM), size)]
    assert [event for piece in pieces for event in parser.feed(piece)] == EVENTS
    assert parser.retry == 1.5


def test_fields_of_events_that_are_none_change_nothing() -> None:
    parser = Parser()
    frames = b"id: 3\n\nid: 4\0\nretry: soon\nretry: -1\ncolour: red\ndata\n\n"
    assert list(parser.feed(frames)) == [ServerSentEvent("message", "", "3")]
    assert parser.retry == 3.0
    assert list(parser.feed(b"retry: " + 5000 * b"9" + b"\n\n")) == []
    assert parser.retry == 30.0
