"""The waiting page and the readable problems, as browsers get them."""

from __future__ import annotations

import html
import json
import logging
import re
from importlib.resources import files
from typing import Any
from urllib.parse import urljoin

import anyio
import anyio.lowlevel
import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Mount

from raincheck import Job, Limits, LongRunningMiddleware, Pages, report
from raincheck.dialects import base
from raincheck.dialects.base import Urls
from raincheck.dialects.plain import PlainDialect
from raincheck.pages import WORDS
from raincheck.testing import follow
from tests.conftest import virtual_jobs
from tests.doubles.stores import TrickyStore, failing
from tests.support import Gate, app_of, gated, running, said, settled, slow_route

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]

BROWSER = {
    "accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8",
    "sec-fetch-mode": "navigate",
    "sec-fetch-dest": "document",
    "sec-fetch-site": "none",
}
OLD_BROWSER = {"accept": BROWSER["accept"]}
NAVIGATES = {"sec-fetch-mode": "navigate"}
SUBMIT = BROWSER | {"sec-fetch-site": "same-origin", "origin": "http://test"}
GERMAN = {
    "lang": "de",
    "running": "In Arbeit",
    "position": "Platz {position} in der Reihe",
    "cancel": "Abbrechen & <schließen>",
    "cancelled": "Abgebrochen",
    "cancelled_note": "Es gibt kein Ergebnis.",
    "failed": "Das ging schief",
}


def is_page(response: httpx.Response) -> bool:
    """Whether it is one of ours, as all of them have to be."""
    if response.headers.get("content-type") != "text/html; charset=utf-8":
        return False
    assert response.headers.get_list("vary") == ["Accept, Sec-Fetch-Mode"]
    assert response.headers["cache-control"] == "no-store"
    assert response.headers.get_list("referrer-policy") == ["same-origin"]
    policy = response.headers["content-security-policy"]
    nonce = re.search(r"script-src 'nonce-([\w-]{22})'", policy)
    assert nonce is not None
    for rule in ("default-src 'none'", "base-uri 'none'", "frame-ancestors 'none'"):
        assert rule in policy
    if response.request.method != "HEAD":
        assert int(response.headers["content-length"]) == len(response.content)
        assert set(re.findall(r'nonce="(.*?)"', response.text)) == {nonce[1]}
        assert not re.search(r"<\w[^>]*\s(style|on\w+)=", response.text)
    return True


def shown(response: httpx.Response, id: str) -> str | None:
    """The text of an element; None if it is hidden."""
    found = re.search(rf'<(\w+) id="{id}"([^>]*)>(.*?)</\1>', response.text, re.S)
    assert found is not None, response.text
    return None if re.search(r"\shidden\b", found[2]) else html.unescape(found[3])


def action(response: httpx.Response) -> str:
    """Where the form of a page goes, as a browser finds it."""
    found = re.search(r'<form id="cancel" method="post" action="(.*?)"', response.text)
    assert found is not None
    return urljoin(str(response.url), html.unescape(found[1]))


async def opened(client: httpx.AsyncClient, path: str = "/slow") -> httpx.Response:
    """A form is submitted, and the browser goes where it is sent."""
    response = await client.post(path, headers=SUBMIT)
    assert response.status_code == 303
    return await client.get(urljoin(path, response.headers["location"]), headers=BROWSER)


# --- the waiting page ----------------------------------------------------------------------------


@pytest.mark.parametrize("browser", [BROWSER, OLD_BROWSER], ids=["today", "before Sec-Fetch"])
async def test_a_browser_gets_a_page_with_202(browser: dict[str, str]) -> None:
    async def work(request: Request) -> Any:
        report(0.419, "412 of 1000 sent")
        await gate.wait()

    gate = Gate()
    async with running(app_of(slow_route(work))) as client:
        url = (await client.post("/slow", headers=browser)).headers["location"]
        await settled()
        page = await client.get(url, headers=browser)
        assert (page.status_code, is_page(page)) == (202, True)
        assert shown(page, "state") == "In progress"
        assert shown(page, "message") == "412 of 1000 sent"
        assert shown(page, "percent") == "42%"
        assert "<title>42% · In progress</title>" in page.text
        assert 'aria-label="Progress" value=0.4190>' in page.text
        assert shown(page, "position") is None
        assert '<noscript><meta http-equiv="refresh" content="2"></noscript>' in page.text
        assert "refresh" not in page.headers
        assert not re.search(r"\{\{|\}\}", page.text)
        assert 'role="status"' in page.text
        again = await client.get(url, headers=browser)
        assert is_page(again)
        assert again.headers["content-security-policy"] != page.headers["content-security-policy"]
        head = await client.head(url, headers=browser)
        assert (head.status_code, is_page(head), head.content) == (202, True, b"")
        assert int(head.headers["content-length"]) == len(page.content)
        gate.open()


@pytest.mark.parametrize(
    "program",
    [
        {},
        {"accept": "*/*"},
        {"accept": "application/json, text/html"},
        {"accept": "text/html", "sec-fetch-mode": "cors"},  # a script that says so
        [("accept", "*/*"), ("accept", "text/html")],  # in two lines
    ],
)
async def test_a_program_gets_what_it_always_got(program: Any) -> None:
    async with running(app_of(gated(gate := Gate()))) as client:
        accepted = await client.post("/slow")
        url = accepted.headers["location"]
        poll = await client.get(url, headers=program)
        assert (poll.status_code, poll.json()) == (202, accepted.json())
        assert poll.headers["referrer-policy"] == "no-referrer"
        assert {"vary", "content-security-policy"}.isdisjoint(poll.headers)
        unknown = await client.get("/jobs/unknown", headers=program)
        assert unknown.headers["content-type"] == "application/problem+json"
        assert (await client.get(url + "/status", headers=BROWSER)).json() == poll.json()
        gate.open()


async def test_a_job_that_waits_shows_its_place_and_what_is_expected() -> None:
    async def work(request: Request) -> Any:
        await anyio.sleep(100)

    async with running(app_of(slow_route(work, max_running=1))) as client:
        await follow(client, await client.post("/slow"))  # so that it is known what they take
        await client.post("/slow")
        await settled()
        page = await opened(client)
        assert shown(page, "state") == "Waiting for its turn"
        assert shown(page, "position") == "Number 1 in the queue"
        assert re.search(
            r"<noscript><p >Expected at [\d-]*\s?\d\d:\d\d:\d\d UTC</p></noscript>",
            page.text,
        )
        assert "value=" not in page.text  # nobody knows how far it is
        await anyio.sleep(300)


async def test_every_dynamic_word_is_escaped() -> None:
    async def work(request: Request) -> Any:
        report(None, hostile)
        await gate.wait()

    hostile, gate = "</p><script>alert('1')</script>\" {{nonce}} \udcff &amp;", Gate()
    async with running(app_of(slow_route(work), pages=Pages(words=GERMAN))) as client:
        page = await opened(client)
        await settled()
        page = await client.get(page.url, headers=BROWSER)
        assert is_page(page)
        assert shown(page, "message") == hostile.replace("\udcff", "?")
        assert '<html lang="de">' in page.text
        assert shown(page, "state") == "In Arbeit"
        assert "<button>Abbrechen &amp; &lt;schließen&gt;</button>" in page.text
        words = re.search(r'data-words="(.*?)"', page.text)
        assert words is not None
        assert json.loads(html.unescape(words[1]))["position"] == GERMAN["position"]
        assert page.text.count("<script") == 1
        gate.open()


async def test_its_script_is_the_module_for_all_pages() -> None:
    module = files("raincheck").joinpath("static", "raincheck.js").read_text()
    async with running(app_of(gated(gate := Gate()))) as client:
        page = await opened(client)
        assert module.strip() in page.text
        gate.open()
    assert "{{" not in module  # a hole of the template
    assert "</script" not in module


@pytest.mark.parametrize("word", [*WORDS][: [*WORDS].index("jobs")])
async def test_every_word_is_shown_somewhere(word: str) -> None:
    """Of those that pages of one job have."""
    if word == "lang":
        return
    mine = re.sub(r"^[^{]*", "<mine> ", WORDS[word])
    words = {word: mine}
    texts = []
    jobs = virtual_jobs(limits=Limits(max_running=1))
    app = app_of(
        gated(gate := Gate()),
        slow_route(forever, "/late", timeout=1),
        jobs=jobs,
        pages=Pages(words=words),
    )
    async with running(app) as client:
        late = await opened(client, "/late")
        await anyio.sleep(2)
        texts.append((await client.get(late.url, headers=BROWSER)).text)
        first, second = await opened(client), await opened(client)
        texts += [first.text, second.text]
        for page in (second, first):
            await client.post(action(page), headers=SUBMIT)
            texts.append((await client.get(page.url, headers=BROWSER)).text)
        await settled()
        texts.append((await client.get(first.url, headers=BROWSER)).text)
        await client.delete(str(first.url))
        texts.append((await client.get(first.url, headers=BROWSER)).text)
        texts.append((await client.get("/jobs/unknown", headers=BROWSER)).text)
        gate.open()
    found = "".join(texts)
    assert mine not in found
    assert html.escape(mine.partition("{")[0]) in found or html.escape(json.dumps(mine)) in found


async def forever(request: Request) -> None:
    await anyio.sleep_forever()


@pytest.mark.parametrize(
    ("root_path", "prefix", "base_url"),
    [
        ("", "", None),
        ("/v1", "", None),
        ("", "/reports", None),
        ("", "", "https://api.example.org/v1"),
    ],
)
async def test_its_urls_are_right_wherever_it_stands(
    root_path: str, prefix: str, base_url: str | None
) -> None:
    """Also where the browser knows the app by another name than `base_url`."""
    app: Any = app_of(gated(gate := Gate()), base_url=base_url)
    if prefix:
        app = Starlette(routes=[Mount(prefix, app)])
    transport = httpx.ASGITransport(app, root_path=root_path)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        accepted = await client.post(root_path + prefix + "/slow")
        url = f"{root_path}{prefix}/jobs/{accepted.json()['job_id']}"
        page = await client.get(url, headers=BROWSER)
        assert is_page(page)
        assert action(page) == f"http://test{url}/cancel"
        monitor = re.search(r'data-monitor="(.*?)" data-events="(.*?)"', page.text)
        assert monitor is not None
        assert urljoin(str(page.url), monitor[1]) == f"http://test{url}/status"
        assert urljoin(str(page.url), monitor[2]) == f"http://test{url}/events"
        cancelled = await client.post(action(page), headers=SUBMIT)
        assert cancelled.status_code == 303
        assert urljoin(action(page), cancelled.headers["location"]) == f"http://test{url}"
        gate.open()


async def test_routes_mounted_by_hand_have_pages() -> None:
    jobs = virtual_jobs()
    app = Starlette(
        routes=[gated(gate := Gate()), Mount("/jobs", jobs.status_app)],
        middleware=[Middleware(LongRunningMiddleware, jobs=jobs)],
    )
    async with running(app) as client:
        page = await opened(client)
        assert (page.status_code, is_page(page)) == (202, True)
        evil = SUBMIT | {"sec-fetch-site": "cross-site"}
        assert (await client.post(action(page), headers=evil)).status_code == 403
        back = await client.post(action(page), headers=SUBMIT)
        assert urljoin(action(page), back.headers["location"]) == str(page.url)
        gate.open()


@pytest.mark.parametrize("status", [200, 202, 204, 303, 422])
async def test_it_becomes_the_response_itself(status: int) -> None:
    async def answer(request: Request) -> Response:
        headers = {"location": "/elsewhere", "content-disposition": "attachment; filename=a.csv"}
        return Response(b"" if status == 204 else b"a,b", status, headers)

    async with running(app_of(slow_route(answer))) as client:
        accepted = await client.post("/slow")
        url = urljoin("http://test/slow", accepted.headers["location"])
        await settled()
        for headers in ({}, BROWSER):
            response = await client.get(url, headers=headers)
            assert response.status_code == (200 if status == 202 else status)
            assert response.content == (b"" if status == 204 else b"a,b")
            assert response.headers["referrer-policy"] == "no-referrer"
            assert {"vary", "content-security-policy"}.isdisjoint(response.headers)


# --- cancel --------------------------------------------------------------------------------------


async def test_cancelling_by_the_form_leads_back_to_the_page() -> None:
    async def stubborn(request: Request) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(2)

    async with running(app_of(slow_route(stubborn))) as client:
        page = await opened(client)
        await settled()
        cancelled = await client.post(action(page), headers=SUBMIT)
        assert cancelled.status_code == 303
        assert cancelled.headers["cache-control"] == "no-store"
        back = urljoin(action(page), cancelled.headers["location"])
        assert back == str(page.url)
        stopping = await client.get(back, headers=BROWSER)
        assert (stopping.status_code, is_page(stopping)) == (202, True)
        assert shown(stopping, "state") == "Stopping"
        assert re.search(r'<form id="cancel"[^>]* hidden>', stopping.text)
        await anyio.sleep(3)
        gone = await client.get(back, headers=BROWSER)
        assert (gone.status_code, is_page(gone)) == (410, True)
        assert gone.headers["job-status"] == "canceled"
        assert "<h1>It was canceled</h1>" in gone.text
        again = await client.post(action(page), headers=SUBMIT)
        assert (again.status_code, again.headers["location"]) == (
            303,
            cancelled.headers["location"],
        )


async def test_who_cancels_too_late_lands_on_the_response() -> None:
    gate = Gate()
    async with running(app_of(gated(gate))) as client:
        page = await opened(client)
        gate.open()
        await settled()
        cancelled = await client.post(action(page), headers=SUBMIT)
        assert cancelled.status_code == 303
        response = await client.get(urljoin(action(page), cancelled.headers["location"]))
        assert response.json() == {"path": "/slow"}
        program = await client.post(action(page))
        assert (program.status_code, program.headers["job-status"]) == (409, "succeeded")


async def test_a_script_of_the_page_gets_documents() -> None:
    async with running(app_of(gated(gate := Gate()))) as client:
        page = await opened(client)
        await settled()
        script = {
            "accept": "application/json",
            "sec-fetch-mode": "cors",
            "sec-fetch-site": "same-origin",
        }
        cancelled = await client.post(action(page), headers=script)
        assert cancelled.json()["status"] == "canceling"
        gate.open()


# --- problems ------------------------------------------------------------------------------------


async def test_a_job_that_failed_without_a_response_has_a_readable_page() -> None:
    async with running(app_of(slow_route(forever, timeout=5), pages=Pages(words=GERMAN))) as client:
        url = (await client.post("/slow")).headers["location"]
        await anyio.sleep(6)
        page, document = await client.get(url, headers=BROWSER), await client.get(url)
        assert (page.status_code, is_page(page)) == (504, True)
        assert page.headers["job-status"] == document.headers["job-status"] == "failed"
        assert "<h1>Das ging schief</h1>" in page.text
        assert html.escape(document.json()["detail"]) in page.text
        assert "http-equiv" not in page.text


async def test_expired_deleted_and_unknown_jobs_have_readable_pages() -> None:
    async with running(app_of(slow_route(forever, timeout=1, ttl=5))) as client:
        urls = [(await client.post("/slow")).headers["location"] for _ in range(2)]
        await anyio.sleep(2)
        await client.delete(urls[0])
        await anyio.sleep(6)
        for url in urls:
            for route in (url, url + "/status"):
                page = await client.get(route, headers=BROWSER)
                assert (page.status_code, is_page(page)) == (410, True)
                assert "<h1>The result is gone</h1>" in page.text
        for url in ("/jobs/unknown", "/jobs/unknown/status", "/jobs/a/b/c"):
            page = await client.get(url, headers=BROWSER)
            assert (page.status_code, is_page(page)) == (404, True)
            assert "There is nothing here" in page.text


async def test_a_foreign_job_has_the_page_of_an_unknown_one() -> None:
    def owner(connection: HTTPConnection) -> str | None:
        return connection.cookies.get("user")

    async with running(app_of(gated(gate := Gate()), owner=owner)) as client:
        own = {"cookie": "user=ann"}
        url = (await client.post("/slow", headers=own)).headers["location"]
        pages = []
        for asked in (url, "/jobs/" + "x" * 30):
            for method, suffix in (("GET", ""), ("POST", "/cancel")):
                headers = SUBMIT | {"cookie": "user=bob"}
                page = await client.request(method, asked + suffix, headers=headers)
                assert (page.status_code, is_page(page)) == (404, True)
                nonce = re.search(r"nonce-([\w-]+)", page.headers["content-security-policy"])
                assert nonce is not None
                pages.append((str(page.headers) + page.text).replace(nonce[1], "N"))
        assert len(set(pages)) == 1
        page = await client.get(url, headers=BROWSER | own)
        assert page.status_code == 202
        gate.open()


async def test_a_problem_that_passes_is_tried_again_by_the_browser() -> None:
    store = TrickyStore()
    async with running(app_of(gated(gate := Gate()), jobs=virtual_jobs(store=store))) as client:
        page = await opened(client)
        store.before = failing("fetch", "get")
        away = await client.get(page.url, headers=BROWSER)
        assert (away.status_code, is_page(away)) == (503, True)
        assert '<meta http-equiv="refresh" content="5">' in away.text
        assert "The job store does not answer; the job is kept." in away.text
        posted = await client.post("/jobs/unknown/cancel", headers=SUBMIT)
        assert (posted.status_code, is_page(posted)) == (503, True)
        assert "http-equiv" not in posted.text  # a reload would be a GET
        gate.open()


async def test_what_is_wrong_with_a_request_is_no_failure_of_its_job() -> None:
    gate = Gate()
    gate.open()
    async with running(app_of(gated(gate))) as client:
        url = (await client.post("/slow")).headers["location"]
        await settled()
        page = await client.get(url, headers=BROWSER | {"if-match": '"another"'})
        assert (page.status_code, is_page(page)) == (412, True)
        assert page.headers["job-status"] == "succeeded"
        assert "<h1>The precondition failed</h1>" in page.text


async def test_methods_and_refusals_are_readable() -> None:
    jobs = virtual_jobs(limits=Limits(max_running=1, max_queued=0))
    async with running(app_of(gated(gate := Gate()), jobs=jobs)) as client:
        page = await opened(client)
        wrong = await client.post(str(page.url), headers=SUBMIT)
        assert (wrong.status_code, is_page(wrong)) == (405, True)
        assert wrong.headers["allow"] == "DELETE, GET, HEAD"
        full = await client.post("/slow", headers=SUBMIT)
        assert full.status_code == 503
        assert full.headers.get_list("vary") == ["Accept, Sec-Fetch-Mode", "Prefer"]
        assert "retry-after" in full.headers
        assert "<h1>The queue is full</h1>" in full.text
        assert "http-equiv" not in full.text  # a reload would be a GET
        program = await client.post("/slow")
        assert program.headers["content-type"] == "application/problem+json"
        gate.open()


async def test_a_failure_in_time_is_readable() -> None:
    async with running(app_of(slow_route(forever, wait=2, timeout=1))) as client:
        page = await client.post("/slow", headers=SUBMIT)
        assert page.status_code == 504
        assert "<h1>It has failed</h1>" in page.text


# --- other sites ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_what_another_site_sends_is_refused_before_a_job_is_looked_up(method: str) -> None:
    calls: list[str] = []

    async def note(call: str, /, *arguments: Any, **more: Any) -> None:
        calls.append(call)

    def owner(connection: HTTPConnection) -> str | None:
        calls.append("owner")
        return None

    store = TrickyStore()
    app = app_of(gated(gate := Gate()), jobs=virtual_jobs(store=store), owner=owner)
    evil = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "origin": "https://evil"}
    suffix = "/cancel" if method == "POST" else ""
    async with running(app) as client:
        url = (await client.post("/slow")).headers["location"]
        await settled()
        store.before = note
        calls.clear()
        refused = await client.request(method, url + suffix, headers=evil)
        unknown = await client.request(method, "/jobs/unknown" + suffix, headers=evil)
        assert calls == []
        assert refused.status_code == 403
        assert refused.json()["type"] == "urn:raincheck:problem:cross-site"
        assert (refused.content, refused.headers) == (unknown.content, unknown.headers)
        page = await client.request(method, url + suffix, headers=BROWSER | evil | NAVIGATES)
        assert (page.status_code, is_page(page)) == (403, True)
        assert (await client.get(url, headers=evil)).status_code == 202
        assert gate.cleaned_up == 0
        gate.open()


async def test_the_base_url_is_an_origin_of_ours() -> None:
    """Behind a proxy that sends a `Host` of its own, where no `Sec-Fetch-Site` is sent."""
    async with running(app_of(gated(Gate()), base_url="http://app.example/v1")) as client:
        url = "/jobs/" + (await client.post("/slow")).json()["job_id"]
        for origin, status in (("http://evil.example", 403), ("http://app.example", 202)):
            answer = await client.post(url + "/cancel", headers={"origin": origin})
            assert answer.status_code == status


# --- pages of the app's own, or none -------------------------------------------------------------


def own_page(job: Job, urls: Urls) -> Response:
    return HTMLResponse(f"<p>{job.state}<form action={urls.cancel}>", headers={"x-own": "1"})


async def own_page_later(job: Job, urls: Urls) -> Response:
    await anyio.lowlevel.checkpoint()
    return own_page(job, urls)


@pytest.mark.parametrize("make", [own_page, own_page_later])
async def test_an_app_can_have_a_page_of_its_own(make: Any) -> None:
    async with running(app_of(gated(gate := Gate()), pages=Pages(waiting=make))) as client:
        page = await opened(client)
        id = page.url.path.rpartition("/")[2]
        assert (page.status_code, page.headers["x-own"]) == (202, "1")
        assert page.text == f"<p>running<form action=./{id}/cancel>"
        assert page.headers["vary"] == "Accept, Sec-Fetch-Mode"
        assert page.headers["cache-control"] == "no-store"
        assert page.headers["referrer-policy"] == "same-origin"
        assert page.headers["retry-after"] == "1"
        assert "content-security-policy" not in page.headers  # of its scripts we know nothing
        head = await client.head(page.url, headers=BROWSER)
        assert (head.status_code, head.headers["x-own"], head.content) == (202, "1", b"")
        assert (await client.get(page.url)).json()["status"] == "running"
        assert is_page(await client.get("/jobs/unknown", headers=BROWSER))
        gate.open()


async def test_what_a_page_of_the_apps_own_says_counts() -> None:
    def make(job: Job, urls: Urls) -> Response:
        headers = {"cache-control": "private", "vary": "Cookie", "referrer-policy": "origin"}
        return StreamingResponse(iter(["a", "b"]), 429, headers)

    async with running(app_of(gated(gate := Gate()), pages=Pages(waiting=make))) as client:
        page = await opened(client)
        assert (page.status_code, page.text) == (429, "ab")
        assert page.headers["cache-control"] == "private"
        assert page.headers["vary"] == "Cookie, Accept, Sec-Fetch-Mode"
        assert page.headers.get_list("referrer-policy") == ["origin"]
        gate.open()


@pytest.mark.parametrize("error", [ValueError("no template"), None])
async def test_a_page_that_cannot_be_made_leaves_nobody_without_one(
    error: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    def make(job: Job, urls: Urls) -> Any:
        if error is not None:
            raise error

    async with running(app_of(gated(gate := Gate()), pages=Pages(waiting=make))) as client:
        page = await opened(client)
        assert (page.status_code, is_page(page)) == (202, True)
        (record,) = said(caplog)
        assert record.levelno == logging.ERROR
        assert "the built-in one is shown" in record.getMessage()
        assert ("no template" if error else "gave NoneType") in str(record.exc_info)
        gate.open()


async def test_without_pages_a_browser_gets_documents() -> None:
    async with running(app_of(gated(gate := Gate()), pages=Pages(waiting=None))) as client:
        poll = await opened(client)
        assert (poll.status_code, poll.json()["status"]) == (202, "running")
        unknown = await client.get("/jobs/unknown", headers=BROWSER)
        assert unknown.headers["content-type"] == "application/problem+json"
        cancelled = await client.post(f"{poll.url}/cancel", headers=SUBMIT)
        assert cancelled.json()["status"] in ("canceling", "canceled")
        gate.open()


async def test_a_dialect_that_has_no_urls_for_pages_has_no_waiting_page() -> None:
    class Reticent(PlainDialect):
        urls = base.Dialect.urls  # type: ignore[assignment] # as one that does not override it

    async with running(app_of(gated(gate := Gate()), dialect=Reticent())) as client:
        poll = await opened(client)
        assert (poll.status_code, poll.json()["status"]) == (202, "running")
        assert is_page(await client.get("/jobs/unknown", headers=BROWSER))
        gate.open()


async def test_where_a_post_cannot_cancel_there_is_no_button() -> None:
    class Deleting(PlainDialect):
        def urls(self, job: Job, mount: base.Mount) -> Urls:
            return super().urls(job, mount)._replace(cancel=None, events=None)

    async with running(app_of(gated(gate := Gate()), dialect=Deleting())) as client:
        page = await opened(client)
        assert is_page(page)
        assert re.search(r'<form id="cancel"[^>]* hidden>', page.text)
        assert 'data-events=""' in page.text
        gate.open()
