"""When two requests are one: keys, fingerprints and what a shared run takes, as values."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raincheck.idempotency import SHARED_RUN, coalesce_key, fingerprint, host_of, scoped, unheard
from raincheck.messages import CapturedRequest
from raincheck.testing.samples import request

FORM = b"multipart/form-data"


def with_fields(*fields: tuple[str, str], **changes: Any) -> CapturedRequest:
    headers = tuple((name.encode(), value.encode("latin-1")) for name, value in fields)
    return request(headers=headers, **changes)


# --- hosts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "sent", "host"),
    [
        ("http", "Example.ORG", "example.org"),
        ("http", "example.org:80", "example.org"),
        ("http", "example.org:0080", "example.org"),
        ("http", "example.org:", "example.org"),
        ("http", "example.org:443", "example.org:443"),
        ("http", "example.org:8000", "example.org:8000"),
        ("http", "example.org:0", "example.org:0"),
        ("https", "example.org:443", "example.org"),
        ("https", "example.org:80", "example.org:80"),
        ("https", "[2001:DB8::1]:443", "[2001:db8::1]"),
        ("https", "[2001:db8::443]", "[2001:db8::443]"),
        ("gopher", "example.org:70", "example.org:70"),
        ("http", " example.org ", "example.org"),
        ("http", "\xc4.example", "\xc4.example"),
        ("http", "", ""),
    ],
)
def test_a_host_is_normalised(scheme: str, sent: str, host: str) -> None:
    assert host_of(with_fields(("host", sent), scheme=scheme)) == host


def test_a_request_without_a_host_has_none_and_two_are_neither() -> None:
    assert host_of(with_fields()) == ""
    assert host_of(with_fields(("host", "a"), ("host", "b"))) == "a,b"


def test_a_key_is_bound_to_owner_host_and_route() -> None:
    scopes = [
        (None, "host", "route", "key"),
        ("", "host", "route", "key"),
        ("ohost", "", "route", "key"),
        (None, "", "route", "key"),
        (None, "hostroute", "", "key"),
        (None, "host", "rout", "ekey"),
        (None, "host", "route", "key2"),
    ]
    assert len({scoped("key-", *scope) for scope in scopes}) == len(scopes)
    assert scoped("key-", *scopes[0]) != scoped(SHARED_RUN, *scopes[0])


# --- fingerprints ----------------------------------------------------------------------------

BASE = with_fields(("content-type", "text/csv"))


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "PUT"},
        {"path": "/other"},
        {"raw_path": b"/a%2Fb"},
        {"query_string": b"q=2"},
        {"body": b"other"},
        {"headers": ()},
        {"headers": ((b"content-type", b"text/csv; charset=utf-8"),)},
        {"headers": ((b"content-type", b"text/csv; boundary=x"),)},
    ],
)
def test_what_makes_another_fingerprint(changes: dict[str, Any]) -> None:
    known: dict[str, Any] = {"headers": BASE.headers, "body": BASE.body}
    assert fingerprint(request(**{**known, **changes})) != fingerprint(BASE)


def test_what_makes_none() -> None:
    other = with_fields(
        *(("x-a", "1"), ("content-type", "text/csv"), ("host", "a"), ("authorization", "b")),
        http_version="2",
        client=None,
    )
    assert fingerprint(other) == fingerprint(BASE)


def upload(boundary: str, *parts: bytes, media_type: str | None = None, **more: Any) -> str:
    """The fingerprint of a multipart request."""
    line = b"--" + boundary.encode()
    body = b"".join(line + b"\r\n" + part + b"\r\n" for part in parts) + line + b"--\r\n"
    kind = f"multipart/form-data; boundary={boundary}" if media_type is None else media_type
    return fingerprint(with_fields(("content-type", kind), body=body, **more))


PART = b'content-disposition: form-data; name="file"; filename="a.txt"\r\n\r\none\r\n\r\ntwo'


@pytest.mark.parametrize(
    "media_type",
    [
        "multipart/form-data; boundary=second",
        'multipart/form-data; boundary="second"',
        'multipart/form-data; boundary="s\\econd"',
        "multipart/form-data; BOUNDARY=second",
    ],
)
def test_an_upload_sent_again_is_the_same_whatever_its_boundary(media_type: str) -> None:
    assert upload("second", PART, PART, media_type=media_type) == upload("first", PART, PART)


def test_other_parameters_of_a_multipart_type_count() -> None:
    kinds = [
        "multipart/form-data; boundary=b",
        "multipart/mixed; boundary=b",
        "multipart/form-data; charset=utf-8; boundary=b",
        "multipart/form-data; boundary=b; charset=utf-8",
        'multipart/form-data; note="; boundary=x"; boundary=b',
        'multipart/form-data; note="; boundary=y"; boundary=b',
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "text/plain; boundary=b",
    ]
    assert len({upload("b", PART, media_type=kind) for kind in kinds}) == len(kinds)
    quoted = 'multipart/form-data; note="; boundary=x"; boundary=other'
    assert upload("other", PART, media_type=quoted) == upload("b", PART, media_type=kinds[4])


@pytest.mark.parametrize(
    "part", [b"first", b"a--first", b"a\r\nfirst", b"a --first\r\n", b"\nfirst", b"a\r\n-first"]
)
def test_a_part_may_have_the_boundarys_text_in_it(part: bytes) -> None:
    assert upload("first", PART, part) == upload("second", PART, part)
    assert upload("first", PART, part) != upload("first", PART, part.replace(b"first", b"second"))


def test_parts_are_not_taken_for_others() -> None:
    prints = [
        upload("b", b"one", b"two"),
        upload("b", b"one\r\n--c\r\ntwo"),
        upload("b", b"onetwo"),
        upload("b", b"", b"onetwo"),
        upload("b", b"two", b"one"),
    ]
    assert len(set(prints)) == len(prints)
    assert upload("c", b"one", b"two") == prints[0]


lines = st.lists(st.sampled_from([b"--", b"b", b"\r\n", b"--b", b"x", b"-", b"\r\n--b"])).map(
    b"".join
)


@given(lines, lines)
def test_other_bytes_under_one_boundary_are_another_body(one: bytes, other: bytes) -> None:
    """Whatever is left out of it, what is compared says what the body was."""
    kind = ("content-type", "multipart/form-data; boundary=b")
    same = fingerprint(with_fields(kind, body=one)) == fingerprint(with_fields(kind, body=other))
    assert same == (one == other)


# --- shared runs -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("accept", "accept-encoding", "accept-language", "authorization", "cookie"),
        *("if-match", "if-none-match", "if-modified-since", "if-unmodified-since"),
        *("if-range", "range"),
    ],
)
def test_a_field_that_chooses_the_response_tells_requests_apart(name: str) -> None:
    keys = {
        coalesce_key(with_fields(*fields), ())
        for fields in ((), ((name, "a"),), ((name, "b"),), ((name, "a"), (name, "b")))
    }
    assert len(keys) == 4


def test_what_responses_vary_by_tells_requests_apart_and_nothing_else_does() -> None:
    a, b = with_fields(("x-tenant", "a")), with_fields(("x-tenant", "b"))
    assert coalesce_key(a, ()) == coalesce_key(b, ())
    assert coalesce_key(a, {"x-tenant"}) != coalesce_key(b, {"x-tenant"})


def test_hosts_and_boundaries_are_compared_as_they_are_meant_though_vary_names_them() -> None:
    def sent(host: str, boundary: str) -> str:
        fields = (("host", host), ("content-type", f"multipart/form-data; boundary={boundary}"))
        return coalesce_key(with_fields(*fields, body=b"--%b--" % boundary.encode()), varying)

    varying = {"host", "content-type"}
    assert sent("example.org", "one") == sent("EXAMPLE.org:80", "two")


def test_what_is_compared_anyway_need_not_be_remembered() -> None:
    known = frozenset({"x-a"})
    assert unheard(known, {"x-a", "accept", "host", "content-type", "range"}) == set()
    assert unheard(known, {"x-a", "x-b"}) == {"x-b"}
    assert unheard(frozenset(), {f"x-{number}" for number in range(32)}) != {"*"}
    assert unheard(known, {f"x-{number}" for number in range(32)}) == {"*"}
    assert unheard(frozenset({"*"}), {"x-b"}) == set()
