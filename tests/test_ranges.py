"""What a request wants of a response that is kept, by the sections of RFC 9110."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raincheck.ranges import (
    LARGE,
    MOST,
    Span,
    framed,
    offered,
    resumed,
    unmodified,
    unsatisfied,
    wanted,
)

TAG = b'"a.1.2"'


def asked(
    *fields: tuple[str, str],
    size: int = 10_000,
    etag: bytes = TAG,
    ranges: bool = True,
    method: str = "GET",
    grows: bool = False,
) -> tuple[int, list[tuple[int, int]]]:
    """Status, and the first and last byte of every span, as the fields count them."""
    headers = [(name.encode(), value.encode("latin-1")) for name, value in fields]
    status, spans = wanted(headers, size, etag, ranges, method, grows=grows)
    return status, [(start, stop - 1) for start, stop in spans]


WHOLE: tuple[int, list[tuple[int, int]]] = (200, [])
MODIFIED_NOT: tuple[int, list[tuple[int, int]]] = (304, [])
FAILED: tuple[int, list[tuple[int, int]]] = (412, [])
NOWHERE: tuple[int, list[tuple[int, int]]] = (416, [])


# --- §14: ranges ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "range", "found"),
    [
        # The examples of §14.1.2, of a representation of 10,000 bytes.
        ("14.1.2", "bytes=0-499", (206, [(0, 499)])),
        ("14.1.2", "bytes=500-999", (206, [(500, 999)])),
        ("14.1.2", "bytes=-500", (206, [(9500, 9999)])),
        ("14.1.2", "bytes=9500-", (206, [(9500, 9999)])),
        ("14.1.2", "bytes=0-0,-1", (206, [(0, 0), (9999, 9999)])),
        ("14.1.2", "bytes= 0-999, 4500-5499, -1000", (206, [(0, 999), (4500, 5499), (9000, 9999)])),
        ("14.1.2", "bytes=500-600,601-999", (206, [(500, 999)])),
        ("14.1.2", "bytes=500-700,601-999", (206, [(500, 999)])),
        # "If last-pos is ... greater than or equal to the current length", all that is left.
        ("14.1.2", "bytes=9999-10000", (206, [(9999, 9999)])),
        ("14.1.2", "bytes=0-" + "9" * 5000, (206, [(0, 9999)])),
        ("14.1.2", "bytes=" + "0" * 5000 + "1-2", (206, [(1, 2)])),
        # A suffix longer than all of it is all of it.
        ("14.1.2", "bytes=-20000", (206, [(0, 9999)])),
        # Not satisfiable: it begins at the end or later, or is a suffix of no bytes.
        ("14.1.2", "bytes=10000-", NOWHERE),
        ("14.1.2", "bytes=10000-10001,99999-", NOWHERE),
        ("14.1.2", "bytes=" + "9" * 5000 + "-", NOWHERE),
        ("14.1.2", "bytes=-0", NOWHERE),
        # One that is there is enough.
        ("14.2", "bytes=0-4,99999-", (206, [(0, 4)])),
        ("14.2", "bytes=99999-,-5,-0", (206, [(9995, 9999)])),
        # Units have no case; an unknown one is ignored, "MUST ignore".
        ("14.1", "BYTES=0-4", (206, [(0, 4)])),
        ("14.2", "items=0-1", WHOLE),
        ("14.2", "byte=0-1", WHOLE),
        # "An int-range is invalid if last-pos is less than first-pos": an invalid set is ignored.
        ("14.1.1", "bytes=5-1", WHOLE),
        ("14.1.1", "bytes=0-4,5-1", WHOLE),
        ("14.1.1", "bytes=5-0000004", WHOLE),
        ("14.1.1", "bytes=abc", WHOLE),
        ("14.1.1", "bytes=-", WHOLE),
        ("14.1.1", "bytes=", WHOLE),
        ("14.1.1", "bytes", WHOLE),
        ("14.1.1", "", WHOLE),
        ("14.1.1", "bytes=,", WHOLE),
        ("14.1.1", "bytes=--5", WHOLE),
        ("14.1.1", "bytes=+1-5", WHOLE),
        ("14.1.1", "bytes=1_0-20", WHOLE),
        ("14.1.1", "bytes=0x1-5", WHOLE),
        ("14.1.1", "bytes=1 - 5", WHOLE),
        ("14.1.1", "bytes=²-5", WHOLE),
        ("14.1.1", "bytes=0-1-2", WHOLE),
        ("14.1.1", "bytes=0-1;2-3", WHOLE),
        # Lists may have empty elements.
        ("5.6.1", "bytes=0-1,,8-9,", (206, [(0, 1), (8, 9)])),
        ("5.6.1", "bytes=0-1\t,\t8-9", (206, [(0, 1), (8, 9)])),
        # "Overlapping ranges, or many small ones": they are one, or are ignored.
        ("17.15", "bytes=0-,0-,0-", (206, [(0, 9999)])),
        ("17.15", "bytes=" + ",".join(["0-"] * MOST), (206, [(0, 9999)])),
        ("17.15", "bytes=" + ",".join(["0-"] * (MOST + 1)), WHOLE),
        ("17.15", "bytes=" + ",".join(["99999-"] * (MOST + 1)), WHOLE),
        # "In the same order that the corresponding range-spec appeared", less those merged.
        ("15.3.7.2", "bytes=-5,0-4", (206, [(9995, 9999), (0, 4)])),
        ("15.3.7.2", "bytes=100-200,0-4,150-300", (206, [(100, 300), (0, 4)])),
        ("15.3.7.2", "bytes=0-9,20-29,40-49,5-25", (206, [(0, 29), (40, 49)])),
        ("15.3.7.2", "bytes=0-1,3-4", (206, [(0, 1), (3, 4)])),
    ],
)
def test_a_range(section: str, range: str, found: tuple[int, list[tuple[int, int]]]) -> None:
    assert asked(("range", range)) == found


@pytest.mark.parametrize(
    ("section", "range", "found"),
    [
        # "An origin server MUST ignore" what it does not know, and may ignore the rest.
        ("14.2", "bytes=500-", (206, [(500, 9999)])),
        ("14.1", "BYTES = 500- ", (206, [(500, 9999)])),
        ("14.1.2", "bytes=10000-", (206, [(10_000, 9999)])),  # what comes
        ("14.1.2", "bytes=10001-", NOWHERE),  # of another run
        ("14.1.2", "bytes=" + "9" * 5000 + "-", NOWHERE),
        ("14.2", "bytes=0-", WHOLE),
        ("14.2", "bytes=000-", WHOLE),
        ("14.2", "bytes=0-499", WHOLE),
        ("14.2", "bytes=500-999", WHOLE),
        ("14.2", "bytes=-500", WHOLE),  # nobody knows where that begins
        ("14.2", "bytes=500-,600-", WHOLE),
        ("14.2", "lines=500-", WHOLE),
        ("14.1.1", "bytes=x-", WHOLE),
        ("14.1.1", "bytes=", WHOLE),
        ("14.1.1", "", WHOLE),
    ],
)
def test_a_range_of_what_grows(
    section: str, range: str, found: tuple[int, list[tuple[int, int]]]
) -> None:
    assert asked(("range", range), grows=True) == found


def test_what_grows_has_the_same_preconditions() -> None:
    rest = ("range", "bytes=500-")
    assert asked(rest, ("if-range", TAG.decode()), grows=True) == (206, [(500, 9999)])
    assert asked(rest, ("if-range", '"a.1"'), grows=True) == WHOLE
    assert asked(rest, ("if-match", '"a.1"'), grows=True) == FAILED
    assert asked(rest, ("if-none-match", TAG.decode()), grows=True) == MODIFIED_NOT
    assert asked(rest, grows=True, method="HEAD") == WHOLE


def test_the_fields_of_a_rest_say_as_much_of_its_end_as_is_known() -> None:
    fields = ((b"content-length", b"100"), (b"x", b"y"), (b"content-md5", b"z"))
    unknown = ((b"x", b"y"), (b"content-range", b"bytes 40-*/*"))
    assert resumed(fields, 40, None) == unknown
    known = (b"x", b"y"), (b"content-range", b"bytes 40-99/100"), (b"content-length", b"60")
    assert resumed(fields, 40, 100) == known


@pytest.mark.parametrize(
    ("section", "fields", "settings"),
    [
        ("14.2", [("range", "bytes=0-4")], {"method": "HEAD"}),  # "only defined for GET"
        ("14.3", [("range", "bytes=0-4")], {"ranges": False}),
        ("14.2", [("range", "bytes=0-4"), ("range", "bytes=6-7")], {}),  # no list, but one value
        ("14.1.2", [("range", "bytes=-5")], {"size": 0}),  # satisfiable, and nothing can say it
        ("14.2", [], {}),
        ("14.2", [("accept", "*/*"), ("x-range", "bytes=0-4")], {}),
    ],
)
def test_where_no_range_is_looked_at(
    section: str, fields: list[tuple[str, str]], settings: dict[str, object]
) -> None:
    assert asked(*fields, **settings) == WHOLE  # type: ignore[arg-type] # of the table


def test_of_an_empty_body_no_byte_is_there() -> None:
    assert asked(("range", "bytes=0-"), size=0) == NOWHERE
    assert unsatisfied(0) == b"bytes */0"


@given(
    st.lists(
        st.tuples(st.integers(0, 60), st.integers(0, 60)).map(lambda pair: sorted(pair)),
        min_size=1,
        max_size=MOST,
    ),
    st.integers(1, 50),
)
def test_ranges_give_what_was_asked_for_each_byte_once(pairs: list[list[int]], size: int) -> None:
    field = "bytes=" + ",".join(f"{first}-{last}" for first, last in pairs)
    status, spans = asked(("range", field), size=size)
    given = [byte for first, last in spans for byte in range(first, last + 1)]
    meant = {byte for first, last in pairs for byte in range(first, last + 1) if byte < size}
    assert sorted(given) == sorted(meant)
    assert status == (206 if meant else 416)


@given(st.text(alphabet='bytes=-, \t0123456789xW/"*', max_size=40))
def test_no_field_is_too_odd(text: str) -> None:
    for name in ("range", "if-range", "if-match", "if-none-match"):
        status, spans = asked((name, text), ("range", "bytes=0-4"))
        assert status in {200, 206, 304, 412, 416}
        assert all(0 <= first <= last < 10_000 for first, last in spans)


# --- §13: preconditions --------------------------------------------------------------------------

PART = (206, [(0, 4)])
ASKS = ("range", "bytes=0-4")


@pytest.mark.parametrize(
    ("section", "fields", "found"),
    [
        # If-Match: strong comparison.
        ("13.1.1", [("if-match", '"a.1.2"')], WHOLE),
        ("13.1.1", [("if-match", '"x", "a.1.2"')], WHOLE),
        ("13.1.1", [("if-match", '"x"'), ("if-match", '"a.1.2"')], WHOLE),
        ("13.1.1", [("if-match", "*")], WHOLE),
        ("13.1.1", [("if-match", '"x"')], FAILED),
        ("13.1.1", [("if-match", 'W/"a.1.2"')], FAILED),
        ("13.1.1", [("if-match", "a.1.2")], FAILED),
        ("13.1.1", [("if-match", '"a.1')], FAILED),
        # If-None-Match: weak comparison.
        ("13.1.2", [("if-none-match", '"a.1.2"')], MODIFIED_NOT),
        ("13.1.2", [("if-none-match", 'W/"a.1.2"')], MODIFIED_NOT),
        ("13.1.2", [("if-none-match", '"x","a.1.2"')], MODIFIED_NOT),
        ("13.1.2", [("if-none-match", '"x"'), ("if-none-match", '"a.1.2"')], MODIFIED_NOT),
        ("13.1.2", [("if-none-match", "*")], MODIFIED_NOT),
        ("13.1.2", [("if-none-match", '"x"')], WHOLE),
        ("13.1.2", [("if-none-match", '"A.1.2"')], WHOLE),
        ("13.1.2", [("if-none-match", '"x,*"')], WHOLE),
        # Dates: ignored where no modification date is known.
        ("13.1.3", [("if-modified-since", "Sat, 29 Oct 2050 19:43:31 GMT")], WHOLE),
        ("13.1.4", [("if-unmodified-since", "Sat, 29 Oct 1994 19:43:31 GMT")], WHOLE),
        # If-Range: the very same, or all of it.
        ("13.1.5", [("if-range", '"a.1.2"'), ASKS], PART),
        ("13.1.5", [("if-range", '"x"'), ASKS], WHOLE),
        ("13.1.5", [("if-range", 'W/"a.1.2"'), ASKS], WHOLE),
        ("13.1.5", [("if-range", '"x", "a.1.2"'), ASKS], WHOLE),
        ("13.1.5", [("if-range", "*"), ASKS], WHOLE),
        ("13.1.5", [("if-range", "Sat, 29 Oct 1994 19:43:31 GMT"), ASKS], WHOLE),
        ("13.1.5", [("if-range", '"x"')], WHOLE),  # "MUST ignore" without Range
        ("13.1.5", [("if-range", '"x"'), ("range", "bytes=99999-")], WHOLE),
        ("13.1.5", [("if-range", '"a.1.2"'), ("range", "bytes=99999-")], NOWHERE),
        # Their order.
        ("13.2.2", [("if-none-match", '"a.1.2"'), ("if-match", '"x"'), ASKS], FAILED),
        ("13.2.2", [("if-none-match", '"a.1.2"'), ("if-match", '"a.1.2"'), ASKS], MODIFIED_NOT),
        ("13.2.2", [ASKS, ("if-none-match", '"a.1.2"')], MODIFIED_NOT),
        ("13.2.2", [("range", "bytes=99999-"), ("if-none-match", "*")], MODIFIED_NOT),
        ("13.2.2", [("range", "bytes=99999-"), ("if-match", '"x"')], FAILED),
        ("13.2.2", [("if-match", "*"), ("if-none-match", '"x"'), ASKS], PART),
    ],
)
def test_a_precondition(
    section: str, fields: list[tuple[str, str]], found: tuple[int, list[tuple[int, int]]]
) -> None:
    assert asked(*fields) == found


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ([("if-match", '"a.1.2"')], WHOLE),
        ([("if-match", '"x"')], FAILED),
        ([("if-none-match", '"a.1.2"')], MODIFIED_NOT),
        ([("range", "bytes=99999-")], WHOLE),
    ],
)
def test_head_has_preconditions_and_no_ranges(
    fields: list[tuple[str, str]], found: tuple[int, list[tuple[int, int]]]
) -> None:
    assert asked(*fields, method="HEAD") == found


@pytest.mark.parametrize(
    ("section", "fields", "found"),
    [
        ("8.8.3.2", [("if-none-match", '"a.1.2"')], MODIFIED_NOT),
        ("8.8.3.2", [("if-none-match", 'W/"a.1.2"')], MODIFIED_NOT),
        ("8.8.3.2", [("if-match", 'W/"a.1.2"')], FAILED),
        ("8.8.3.2", [("if-match", '"a.1.2"')], FAILED),
        ("13.1.5", [("if-range", 'W/"a.1.2"'), ASKS], WHOLE),
        ("14.2", [ASKS], PART),
    ],
)
def test_a_handlers_weak_tag_is_weak(
    section: str, fields: list[tuple[str, str]], found: tuple[int, list[tuple[int, int]]]
) -> None:
    assert asked(*fields, etag=b"W/" + TAG) == found


# --- §14.3: what is offered ----------------------------------------------------------------------

BYTES = (b"accept-ranges", b"bytes")
IDENTITY = (b"content-encoding", b"identity")


@pytest.mark.parametrize(
    ("media", "dense"),
    [
        ("video/mp4", True),
        ("Audio/MPEG", True),
        ("audio/wav", False),
        ("image/png", True),
        ("image/svg+xml", False),
        ("image/svg+xml; charset=utf-8", False),
        ("application/pdf", True),
        ("application/zip ; x=y", True),
        ("application/vnd.openxmlformats-officedocument.spreadsheetml.sheet", True),
        ("application/json", False),
        ("application/octet-stream", False),
        ("text/csv; charset=utf-8", False),
        ("", False),
    ],
)
@pytest.mark.parametrize("size", [0, LARGE - 1, LARGE])
def test_ranges_are_offered_by_media_and_size(media: str, dense: bool, size: int) -> None:
    fields = ((b"Content-Type", media.encode()),) if media else ()
    headers, etag, ranges = offered(fields, size)
    assert etag is None
    assert ranges is (dense or size >= LARGE)
    assert headers == (*fields, *((BYTES, IDENTITY) if ranges else ()))


@pytest.mark.parametrize(
    ("own", "ranges", "added"),
    [
        ([(b"Accept-Ranges", b"bytes")], True, [IDENTITY]),
        ([(b"accept-ranges", b"items, Bytes")], True, [IDENTITY]),
        ([(b"accept-ranges", b"none")], False, []),
        ([(b"accept-ranges", b"none"), (b"content-type", b"video/mp4")], False, []),
        ([(b"accept-ranges", b"bytes"), (b"Content-Encoding", b"gzip")], True, []),
        (
            [(b"content-type", b"image/png"), (b"content-encoding", b"identity")],
            True,
            [BYTES],
        ),
        ([(b"ETag", b'"own"')], False, []),
        ([(b"etag", b'W/"own"'), (b"content-type", b"video/mp4")], True, [BYTES, IDENTITY]),
    ],
)
def test_what_the_handler_says_counts(
    own: list[tuple[bytes, bytes]], ranges: bool, added: list[tuple[bytes, bytes]]
) -> None:
    headers, etag, found = offered(tuple(own), 10)
    assert headers == (*own, *added)
    assert found is ranges
    assert etag == {name.lower(): value for name, value in headers}.get(b"etag")


# --- §15.3.7: how parts are sent -----------------------------------------------------------------

OF_THE_WHOLE = (
    (b"Content-Length", b"10000"),
    (b"content-type", b"text/csv"),
    (b"content-range", b"items 1-2/3"),
    (b"content-digest", b"sha-256=:x:"),
    (b"repr-digest", b"sha-256=:y:"),
    (b"set-cookie", b"a=1"),
    (b"set-cookie", b"b=2"),
    (b"etag", TAG),
    BYTES,
    IDENTITY,
)


def test_one_part_is_plain() -> None:
    headers, size, heads, end = framed((Span(500, 1000),), OF_THE_WHOLE, 10_000, b"b")
    assert headers == (
        (b"content-type", b"text/csv"),
        *OF_THE_WHOLE[4:],
        (b"content-range", b"bytes 500-999/10000"),
        (b"content-length", b"500"),
    )
    assert (size, heads, end) == (500, (b"",), b"")


def test_several_parts_are_multipart() -> None:
    headers, size, heads, end = framed((Span(500, 1000), Span(0, 1)), OF_THE_WHOLE, 10_000, b"b")
    assert headers == (
        *OF_THE_WHOLE[4:],
        (b"content-type", b"multipart/byteranges; boundary=b"),
        (b"content-length", b"%d" % size),
    )
    assert heads == (
        b"--b\r\nContent-Type: text/csv\r\nContent-Range: bytes 500-999/10000\r\n\r\n",
        b"\r\n--b\r\nContent-Type: text/csv\r\nContent-Range: bytes 0-0/10000\r\n\r\n",
    )
    assert end == b"\r\n--b--\r\n"
    assert size == 501 + len(b"".join(heads) + end)


def test_a_part_of_no_type_has_none() -> None:
    heads = framed((Span(0, 1), Span(2, 3)), (), 4, b"b").heads
    assert heads[0] == b"--b\r\nContent-Range: bytes 0-0/4\r\n\r\n"


def test_a_304_describes_no_content() -> None:
    assert unmodified(OF_THE_WHOLE) == (*OF_THE_WHOLE[4:-1],)
