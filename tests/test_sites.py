"""Requests from other sites: what browsers send, by the sentences of the contract."""

from __future__ import annotations

import pytest

from raincheck.sites import TELLING, Origin, may_change, origin_of

HOST = {"host": "app.example"}
CORS = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "cors", "origin": "https://spa.example"}
FORM = {
    "sec-fetch-site": "cross-site",
    "sec-fetch-mode": "navigate",
    "origin": "https://evil.example",
    "content-type": "application/x-www-form-urlencoded",
}
OWN = FORM | {"sec-fetch-site": "same-origin"}
TEXT = {"content-type": "text/plain; application/json"}
SPELT = {"content-type": "Application/JSON; charset=utf-8"}
JSON = {"content-type": "application/json"}
SCRIPT = {"x-requested-with": "XMLHttpRequest"}

# The sentence, the methods that it is about, the fields, and whether they may.
TABLE: list[tuple[str, str, dict[str, str], bool]] = [
    # "where Sec-Fetch-Site is sent, `same-origin` and `none` may"
    ("our own form", "POST", OWN, True),
    ("our own fetch", "POST", CORS | {"sec-fetch-site": "same-origin"}, True),
    ("our own, without a referrer", "POST", OWN | {"origin": "null"}, True),
    ("typed by a person", "POST", {"sec-fetch-site": "none"}, True),
    ("our own delete", "DELETE", CORS | {"sec-fetch-site": "same-origin"}, True),
    # "from elsewhere only what a browser does not send before the app's CORS policy has agreed"
    ("a form of another site", "POST", FORM, False),
    ("a form of a sibling", "POST", FORM | {"sec-fetch-site": "same-site"}, False),
    ("a value to come", "POST", FORM | {"sec-fetch-site": "nearby"}, False),
    ("no value", "POST", FORM | {"sec-fetch-site": ""}, False),
    # "a bare cross-site `fetch` POST is sent without asking, with cookies"
    ("a bare fetch", "POST", CORS, False),
    ("a bare fetch of a sibling", "POST", CORS | {"sec-fetch-site": "same-site"}, False),
    ("a fetch of text", "POST", CORS | {"content-type": "text/plain;charset=UTF-8"}, False),
    ("a fetch of a form", "POST", CORS | {"content-type": "multipart/form-data"}, False),
    ("a fetch without CORS", "POST", CORS | {"sec-fetch-mode": "no-cors"}, False),
    # "DELETE, and POST with `Content-Type: application/json` or `X-Requested-With`"
    ("a delete that was agreed to", "DELETE", CORS, True),
    ("a delete of a sibling", "DELETE", CORS | {"sec-fetch-site": "same-site"}, True),
    ("JSON that was agreed to", "POST", CORS | JSON, True),
    ("JSON with a charset", "POST", CORS | SPELT, True),
    ("JSON that looks like text", "POST", CORS | TEXT, False),
    ("a script that was agreed to", "POST", CORS | SCRIPT, True),
    # "each with `Sec-Fetch-Mode: cors`"
    ("JSON without CORS", "POST", CORS | JSON | {"sec-fetch-mode": "no-cors"}, False),
    ("JSON of a form", "POST", FORM | JSON, False),
    ("a script of no mode", "POST", {"sec-fetch-site": "cross-site"} | SCRIPT, False),
    ("a delete of a form", "DELETE", FORM, False),
    ("a delete of no mode", "DELETE", {"sec-fetch-site": "cross-site"}, False),
    # "Without Sec-Fetch-Site, an `Origin` that is not our own is treated as elsewhere"
    ("our own origin", "POST", {"origin": "https://app.example"}, True),
    ("our own origin, plain", "POST", {"origin": "http://app.example"}, True),
    ("our own origin, spelt otherwise", "POST", {"origin": "https://APP.example:443"}, True),
    ("another origin", "POST", {"origin": "https://evil.example"}, False),
    ("another port", "POST", {"origin": "https://app.example:8443"}, False),
    ("the port of another scheme", "POST", {"origin": "http://app.example:443"}, False),
    ("a longer name", "POST", {"origin": "https://app.example.evil.example"}, False),
    ("a name before ours", "POST", {"origin": "https://evil.example@app.example"}, False),
    ("a name that is ours below", "POST", {"origin": "https://evil.example/app.example"}, False),
    ("a port that is none", "POST", {"origin": "https://app.example:" + 5000 * "4"}, False),
    ("an extension", "POST", {"origin": "moz-extension://app.example"}, False),
    ("a delete of another origin", "DELETE", {"origin": "https://evil.example"}, False),
    ("JSON of another origin", "POST", {"origin": "https://evil.example"} | JSON, False),
    # "(`null` is not)"
    ("an opaque origin", "POST", {"origin": "null"}, False),
    ("an empty origin", "POST", {"origin": ""}, False),
    # "neither field: a program, as before"
    ("curl", "POST", {}, True),
    ("curl, delete", "DELETE", {}, True),
    ("a program with JSON", "POST", JSON, True),
    ("a program with a form", "POST", {"content-type": "application/x-www-form-urlencoded"}, True),
]


@pytest.mark.parametrize(
    ("method", "fields", "may"), [pytest.param(*row[1:], id=row[0]) for row in TABLE]
)
def test_what_a_browser_sends_may_change_a_job_or_not(
    method: str, fields: dict[str, str], may: bool
) -> None:
    raw = [(name.encode(), value.encode()) for name, value in (HOST | fields).items()]
    assert may_change(method, raw) is may


@pytest.mark.parametrize(
    ("method", "fields"), [pytest.param(*row[1:3], id=row[0]) for row in TABLE]
)
def test_only_what_tells_of_a_site_stands_in_the_way(method: str, fields: dict[str, str]) -> None:
    raw = [(name.encode(), value.encode()) for name, value in (HOST | fields).items()]
    assert may_change(method, [field for field in raw if field[0] not in TELLING])


@pytest.mark.parametrize(
    "fields",
    [
        [("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")],
        [("origin", "https://app.example"), ("origin", "https://evil.example")],
        [("origin", "https://evil.example"), ("host", "evil.example")],
        [
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-mode", "cors"),
            ("content-type", "application/json"),
            ("content-type", "text/plain"),
        ],
    ],
)
def test_of_fields_that_come_twice_none_is_believed_alone(fields: list[tuple[str, str]]) -> None:
    raw = [(name.encode(), value.encode()) for name, value in [*HOST.items(), *fields]]
    assert not may_change("POST", raw)


@pytest.mark.parametrize(
    ("host", "origin", "may"),
    [
        ("backend:8000", "https://app.example", True),
        ("backend:8000", "http://backend:8000", True),
        ("backend:8000", "http://app.example", False),
        ("backend:8000", "https://app.example:8000", False),
        ("app.example:443", "https://app.example", True),
        ("[::1]:8000", "http://[::1]:8000", True),
        ("[::1]:8000", "http://[::2]:8000", False),
        pytest.param(f"backend:{5000 * '8'}", "http://backend:8000", False, id="no port"),
    ],
)
def test_an_origin_is_ours_by_host_or_by_base_url(host: str, origin: str, may: bool) -> None:
    fields = [(b"host", host.encode()), (b"origin", origin.encode())]
    own = origin_of("https://app.example/v1")
    assert may_change("POST", fields, own=own) is may


def test_without_a_host_no_origin_is_ours() -> None:
    assert not may_change("POST", [(b"origin", b"https://app.example")])


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://app.example", Origin("https", "app.example", 443)),
        ("http://App.Example:80/v1/", Origin("http", "app.example", 80)),
        ("http://[::1]:8000", Origin("http", "[::1]", 8000)),
        ("https://app.example:", Origin("https", "app.example", 443)),
        ("https://", None),
        ("https://a@b", None),
        ("https://[::1", None),
        ("https://\xff\x00:x", None),
        ("null", None),
    ],
)
def test_the_origin_of_a_url(url: str, origin: Origin | None) -> None:
    assert origin_of(url) == origin
