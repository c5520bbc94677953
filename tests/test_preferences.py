"""`Prefer` (RFC 7240): parsed leniently, decided with the policy."""

from __future__ import annotations

import math
from datetime import timedelta

import pytest

from raincheck import Policy
from raincheck.preferences import (
    Decision,
    Preference,
    decide,
    is_navigation,
    parse,
)

ASYNC = Preference(respond_async=True)
NOTHING = Preference()


def prefer(*lines: str) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"example.org"), *((b"prefer", line.encode("latin-1")) for line in lines)]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        pytest.param([], NOTHING, id="no header"),
        pytest.param(["respond-async"], ASYNC, id="respond-async"),
        pytest.param(["wait=5"], Preference(wait=5.0), id="wait"),
        pytest.param(["respond-async, wait=10"], Preference(True, 10.0), id="both on one line"),
        pytest.param(["wait=10 ,\trespond-async"], Preference(True, 10.0), id="either order"),
        pytest.param(["respond-async", "wait=10"], Preference(True, 10.0), id="on two lines"),
        pytest.param(["RESPOND-Async, Wait=3"], Preference(True, 3.0), id="names in any case"),
        pytest.param(["wait=0"], Preference(wait=0.0), id="zero"),
        pytest.param(["wait"], Preference(wait=math.inf), id="bare wait, as Replicate sends it"),
        pytest.param(["wait="], Preference(wait=math.inf), id="empty wait is a bare one"),
        pytest.param(['wait=""'], Preference(wait=math.inf), id="so is a quoted empty one"),
        pytest.param(['wait="7"'], Preference(wait=7.0), id="quoted"),
        pytest.param(["wait = 7"], Preference(wait=7.0), id="spaces around the equals sign"),
        pytest.param(["wait=7; foo=bar"], Preference(wait=7.0), id="parameters are ignored"),
        pytest.param(['respond-async; a="x, wait=9"'], ASYNC, id="a comma inside quotes"),
        pytest.param([r'foo="a\", wait=9", wait=2'], Preference(wait=2.0), id="escaped quote"),
        pytest.param(["wait=1, wait=2"], Preference(wait=1.0), id="the first of a repeated one"),
        pytest.param(["wait=1", "wait=2"], Preference(wait=1.0), id="the first of two lines"),
        pytest.param(["wait=x, wait=2"], NOTHING, id="the first, even if it cannot be read"),
        pytest.param(["return=minimal, handling=lenient"], NOTHING, id="others are ignored"),
        pytest.param(["respond-asynchronously"], NOTHING, id="a longer name is another one"),
        pytest.param(["foo=respond-async"], NOTHING, id="a value is no name"),
        pytest.param(["wait=-1"], NOTHING, id="negative"),
        pytest.param(["wait=1.5"], NOTHING, id="a fraction"),
        pytest.param(["wait=soon"], NOTHING, id="no number"),
        pytest.param(["wait=" + "9" * 400], NOTHING, id="a number beyond any clock"),
        pytest.param(["wait=²"], NOTHING, id="a digit that is not ASCII"),
        pytest.param([""], NOTHING, id="an empty line"),
        pytest.param([",, ,respond-async,"], ASYNC, id="empty elements"),
        pytest.param(["=5, (bad), respond-async"], ASYNC, id="malformed ones are skipped"),
        pytest.param(['respond-async, foo="open'], ASYNC, id="an open quote"),
        pytest.param(['"', "respond-async"], ASYNC, id="a lone quote"),
        pytest.param(["wait=5 6, respond-async"], ASYNC, id="two values are malformed"),
        pytest.param(["\xff\xfe, respond-async"], ASYNC, id="bytes that are no text"),
    ],
)
def test_prefer_is_read_leniently(lines: list[str], expected: Preference) -> None:
    assert parse(prefer(*lines)) == expected


ALWAYS = Policy()
PREFERRED = Policy(respond="preferred")
GRACE = Policy(wait=2, max_wait=10)


@pytest.mark.parametrize(
    ("policy", "preference", "expected"),
    [
        (ALWAYS, NOTHING, Decision(True)),
        (ALWAYS, ASYNC, Decision(True, 0.0, b"respond-async")),
        (ALWAYS, Preference(wait=5), Decision(True, 5.0)),
        (ALWAYS, Preference(True, 5), Decision(True, 5.0, b"respond-async")),
        (ALWAYS, Preference(wait=99), Decision(True, 30.0)),
        (ALWAYS, Preference(wait=math.inf), Decision(True, 30.0)),
        (ALWAYS, Preference(wait=0), Decision(True)),
        (PREFERRED, NOTHING, Decision(False)),
        (PREFERRED, Preference(wait=5), Decision(False)),
        (PREFERRED, ASYNC, Decision(True, 0.0, b"respond-async")),
        (PREFERRED, Preference(True, 5), Decision(True, 5.0, b"respond-async")),
        (GRACE, NOTHING, Decision(True, 2.0)),
        (GRACE, ASYNC, Decision(True, 2.0, b"respond-async")),
        (GRACE, Preference(wait=0), Decision(True, 0.0)),
        (GRACE, Preference(wait=11), Decision(True, 10.0)),
        (Policy(max_wait=0), Preference(wait=5), Decision(True)),
        (Policy(max_wait=timedelta(minutes=1)), Preference(wait=99), Decision(True, 60.0)),
    ],
)
def test_policy_and_preference_decide(
    policy: Policy, preference: Preference, expected: Decision
) -> None:
    assert decide(policy, preference) == expected


def test_a_request_without_prefer_decides_as_an_empty_preference() -> None:
    assert decide(ALWAYS, parse(prefer())) == decide(ALWAYS, NOTHING)
    assert decide(GRACE, parse(prefer())) == decide(GRACE, NOTHING)


CHROME = "text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8"


@pytest.mark.parametrize(
    ("headers", "navigates"),
    [
        pytest.param({}, False, id="nothing said"),
        pytest.param({"sec-fetch-mode": "navigate"}, True, id="Sec-Fetch-Mode: navigate"),
        pytest.param({"sec-fetch-mode": "Navigate "}, True, id="in any case"),
        pytest.param({"sec-fetch-mode": "cors", "accept": CHROME}, False, id="fetch()"),
        pytest.param({"accept": CHROME, "sec-fetch-mode": "cors"}, False, id="in any order"),
        pytest.param({"accept": CHROME}, True, id="an older browser"),
        pytest.param({"accept": "*/*"}, False, id="curl"),
        pytest.param({"accept": "*/*, text/html"}, False, id="*/* first"),
        pytest.param({"accept": "*/*;q=0.5, text/html"}, False, id="*/* first, HTML higher"),
        pytest.param({"accept": "application/json"}, False, id="an API client"),
        pytest.param({"accept": "application/json, text/html"}, False, id="JSON first"),
        pytest.param({"accept": "text/html, application/json"}, True, id="HTML first"),
        pytest.param({"accept": "text/html;q=0.5, application/json"}, False, id="JSON higher"),
        pytest.param({"accept": "application/json;q=0.5, text/html"}, True, id="HTML higher"),
        pytest.param({"accept": "text/html;q=0"}, False, id="HTML refused"),
        pytest.param({"accept": "text/html;q=high"}, False, id="a weight that is no number"),
        pytest.param({"accept": "text/html;level=1"}, True, id="other parameters"),
        pytest.param({"accept": "text/htmlx"}, False, id="a longer name"),
        pytest.param({"accept": ""}, False, id="empty"),
    ],
)
def test_a_browser_that_navigates_is_known(headers: dict[str, str], navigates: bool) -> None:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    assert is_navigation(raw) is navigates


@pytest.mark.parametrize("header", ['"' + '\\"' * 30_000, '"' * 60_000, "a;  " * 15_000 + "@"])
def test_no_header_makes_reading_slow(header: str) -> None:
    """Quadratic time would take minutes here."""
    for _ in range(20):
        assert parse([(b"prefer", header.encode()), (b"prefer", b"respond-async")]).respond_async
