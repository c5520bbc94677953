"""HTTP as stored: raw header pairs in order, hop-by-hop fields gone, nothing unsendable."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from raincheck.messages import (
    HOP_BY_HOP,
    CapturedRequest,
    CapturedResponse,
    RawHeaders,
    end_to_end,
    first_header,
    unsendable,
)

SCOPE: dict[str, Any] = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.3"},
    "http_version": "1.1",
    "method": "POST",
    "scheme": "https",
    "path": "/api/vidéos",
    "raw_path": b"/api/vid%C3%A9os",
    "query_string": b"a=1&a=2",
    "root_path": "/api",
    "headers": [(b"x-a", b"1"), (b"x-b", b"2"), (b"x-a", b"3")],
    "client": ("192.0.2.1", 4711),
    "server": ("example.org", 443),
}


def test_a_replayed_scope_is_the_captured_one() -> None:
    assert CapturedRequest.of(SCOPE, b"body").scope() == SCOPE


def test_a_captured_request_holds_values_only() -> None:
    outer = {**SCOPE, "app": object(), "state": {"session": object()}, "extensions": {}}
    captured = CapturedRequest.of(outer, b"body")
    assert captured == CapturedRequest.of(SCOPE, b"body")
    assert hash(captured) == hash(CapturedRequest.of(SCOPE, b"body"))
    assert captured.body == b"body"


def test_headers_of_any_bytes_like_type_are_captured_as_bytes() -> None:
    scope = {**SCOPE, "headers": [[bytearray(b"x-a"), memoryview(b"1")]]}
    assert CapturedRequest.of(scope, b"").headers == ((b"x-a", b"1"),)


def test_fields_that_are_not_to_be_kept_go_in_every_spelling_and_occurrence() -> None:
    fields = (
        (b"cookie", b"a"),
        (b"x-a", b"1"),
        (b"Cookie", b"b"),
        (b"X-\xc9", b"2"),
        (b"x-a", b""),
    )
    request = CapturedRequest("POST", "/", None, b"", fields, b"body")
    for names, kept in (
        (("cookie",), (fields[1], *fields[3:])),
        ({"x-a", "cookie"}, (fields[3],)),
        (("cooki", "x-b"), fields),
    ):
        less = request.without(names)
        assert less.headers == kept
        assert dataclasses.replace(less, headers=fields) == request  # and nothing else
    assert request.headers == fields


def test_nothing_to_leave_out_costs_nothing() -> None:
    request = CapturedRequest.of(SCOPE, b"")
    assert request.without(()) is request
    assert request.without(frozenset()) is request


def test_what_a_server_left_out_is_captured_as_its_default() -> None:
    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    captured = CapturedRequest.of(scope, b"")
    assert captured == CapturedRequest("GET", "/", None, b"", (), b"")
    replayed = captured.scope()
    assert (replayed["raw_path"], replayed["client"], replayed["server"]) == (None, None, None)
    assert (replayed["scheme"], replayed["http_version"]) == ("http", "1.1")


def test_what_mounts_have_matched_is_there_again() -> None:
    params = {"tenant": "ann", "n": 7}
    captured = CapturedRequest.of({**SCOPE, "path_params": params, "app_root_path": ""}, b"")
    replayed = captured.scope()
    assert (replayed["path_params"], replayed["app_root_path"]) == (params, "")
    replayed["path_params"]["n"] = 8  # a replay may write to it
    assert captured.scope()["path_params"] == params
    assert not {"path_params", "app_root_path"} & CapturedRequest.of(SCOPE, b"").scope().keys()


def test_a_unix_socket_has_no_port() -> None:
    captured = CapturedRequest.of({**SCOPE, "server": ["/run/app.sock", None]}, b"")
    assert captured.server == ("/run/app.sock", None)


@pytest.mark.parametrize("name", sorted(HOP_BY_HOP))
def test_a_hop_by_hop_field_goes_and_its_neighbours_stay(name: bytes) -> None:
    fields = [(b"x-a", b"1"), (name, b"x"), (name.title(), b"y"), (b"x-b", b"2")]
    assert end_to_end(fields) == ((b"x-a", b"1"), (b"x-b", b"2"))


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        pytest.param([], (), id="none"),
        pytest.param(
            [(b"set-cookie", b"a=1"), (b"x", b"1"), (b"set-cookie", b"b=2")],
            ((b"set-cookie", b"a=1"), (b"x", b"1"), (b"set-cookie", b"b=2")),
            id="every occurrence in order",
        ),
        pytest.param([(b"X-Case", b"Kept")], ((b"X-Case", b"Kept"),), id="names as written"),
        pytest.param(
            [(b"X-Hop", b"1"), (b"Connection", b"close, x-hop"), (b"x-end", b"2")],
            ((b"x-end", b"2"),),
            id="those that Connection names go too",
        ),
        pytest.param(
            [(b"connection", b"x-a"), (b"connection", b" X-B "), (b"x-a", b""), (b"x-b", b"")],
            (),
            id="on several lines",
        ),
        pytest.param([[b"x-a", b"1"]], ((b"x-a", b"1"),), id="lists, as ASGI allows"),
        pytest.param(
            [(b"Content-Length", b"2"), (b"x-a", b"1"), (b"content-length", b"2")],
            ((b"Content-Length", b"2"), (b"x-a", b"1")),
            id="one Content-Length",
        ),
        pytest.param(
            [(b"content-length", b"2"), (b"content-length", b"3")],
            ((b"content-length", b"2"), (b"content-length", b"3")),
            id="two that differ are judged later",
        ),
        pytest.param([(bytearray(b"x-a"), memoryview(b"1"))], ((b"x-a", b"1"),), id="other bytes"),
        pytest.param(
            [(b"x-a", b""), (b"x-b", b"a \t b"), (b"x-c", bytes(range(128, 256)))],
            ((b"x-a", b""), (b"x-b", b"a \t b"), (b"x-c", bytes(range(128, 256)))),
            id="whatever RFC 9110 §5.5 allows",
        ),
    ],
)
def test_only_end_to_end_fields_are_stored(fields: Any, kept: RawHeaders) -> None:
    assert end_to_end(fields) == kept


@pytest.mark.parametrize(
    ("name", "value"), [(b"x-a", b"1"), (b"x-b", b"2"), (b"x-c", None), (b"", None)]
)
def test_the_first_field_of_a_name_is_found_in_any_case(name: bytes, value: bytes | None) -> None:
    headers = ((b"X-A", b"1"), (b"x-a", b"3"), (b"x-b", b"2"))
    assert first_header(headers, name) == value
    assert CapturedResponse(200, headers).header(name) == value


@pytest.mark.parametrize(
    ("headers", "size", "method"),
    [
        pytest.param((), 5, "GET", id="no headers"),
        pytest.param(((b"content-length", b"5"),), 5, "GET", id="a true Content-Length"),
        pytest.param(((b"Content-Length", b"5"),), 5, "GET", id="in any case"),
        pytest.param(((b"content-length", b"5"),), 0, "HEAD", id="HEAD sends no body"),
        pytest.param(((b"content-length", b"005"),), 5, "GET", id="with zeros in front"),
        pytest.param(((b"content-length", b"00"),), 0, "GET", id="nothing but zeros"),
        pytest.param(((b"content-length", b"5"),) * 2, 5, "GET", id="the same twice"),
    ],
)
def test_a_response_that_a_server_could_send(headers: RawHeaders, size: int, method: str) -> None:
    assert unsendable(CapturedResponse(200, headers, size), method) is None


@pytest.mark.parametrize("status", [204, 304])
def test_a_response_without_a_body_may_announce_one(status: int) -> None:
    response = CapturedResponse(status, ((b"content-length", b"5"),), 0)
    assert unsendable(response, "GET") is None


@pytest.mark.parametrize(
    ("header", "size", "reason"),
    [
        ((b"content-length", b"5"), 4, "Content-Length says 5, the body has 4"),
        ((b"content-length", b"5"), 6, "Content-Length says 5, the body has 6"),
        ((b"Content-Length", b"5"), 6, "Content-Length says 5, the body has 6"),
        ((b"content-length", b"9" * 5000), 6, "Content-Length says 9999"),
        ((b"content-length", b"-1"), 0, "Content-Length is no number but '-1'"),
        ((b"content-length", b"five"), 4, "Content-Length is no number but 'five'"),
        ((b"content-length", b"5, 5"), 5, "Content-Length is no number but '5, 5'"),
        ((b"content-length", b"5.0"), 5, "Content-Length is no number but '5.0'"),
        ((b"content-length", b"\xb2"), 2, "Content-Length is no number but '²'"),
        ((b"content-length", b""), 0, "Content-Length is no number but ''"),
    ],
)
def test_a_response_that_no_server_could_send(
    header: tuple[bytes, bytes], size: int, reason: str
) -> None:
    found = unsendable(CapturedResponse(200, (header,), size), "GET")
    assert found is not None
    assert reason in found


@pytest.mark.parametrize(("status", "method"), [(200, "HEAD"), (204, "GET"), (304, "GET")])
def test_without_a_body_a_length_is_free_but_it_is_one(status: int, method: str) -> None:
    def found(*values: bytes) -> str | None:
        fields = tuple((b"content-length", value) for value in values)
        return unsendable(CapturedResponse(status, fields, 0), method)

    assert found(b"5") is None
    assert found(b"five") == "Content-Length is no number but 'five'"
    assert found(b"5", b"6") == "it has several values of Content-Length"


@pytest.mark.parametrize("status", [204, 304])
def test_a_response_that_has_no_body_has_none(status: int) -> None:
    found = unsendable(CapturedResponse(status, (), 1), "GET")
    assert found == f"a {status} response has no body"


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ((b"", b"1"), "the header field '' has no name"),
        ((b"x a", b"1"), "the header field 'x a' has a name that is no token"),
        ((b"x-a:", b"1"), "the header field 'x-a:' has a name that is no token"),
        ((b":status", b"200"), "the header field ':status' has a name that is no token"),
        ((b"x-\xe9", b"1"), "the header field 'x-é' has a name that is no token"),
        ((b"x-a\n", b"1"), "has a name that is no token"),
        ((b"x-a", b"1\r\nset-cookie: a=1"), "field 'x-a' has a control character in its value"),
        *(
            ((b"x-a", b"a%cb" % code), "field 'x-a' has a control character in its value")
            for code in (*range(9), *range(10, 32), 127)
        ),
        ((b"x-a", b" 1"), "the header field 'x-a' has a blank at an end of its value"),
        ((b"x-a", b"1 "), "the header field 'x-a' has a blank at an end of its value"),
        ((b"x-a", b"1\t"), "the header field 'x-a' has a blank at an end of its value"),
        ((b"x-a", b" "), "the header field 'x-a' has a blank at an end of its value"),
        (("x-a", "1"), "a header field is no pair of byte strings"),
        ((b"x-a", 1), "a header field is no pair of byte strings"),
        ((b"x-a", 10**15), "a header field is no pair of byte strings"),
        ((b"x-a", None), "a header field is no pair of byte strings"),
        ((b"x-a",), "a header field is no pair of byte strings"),
        (None, "a header field is no pair of byte strings"),
    ],
)
def test_a_field_that_no_server_would_write(header: Any, reason: str) -> None:
    for _ in range(2):  # what is known of a name is remembered
        with pytest.raises(ValueError, match=reason):
            end_to_end([(b"x-b", b"1"), header])
