"""The page of a list, as a browser without scripts has it."""

from __future__ import annotations

import re
from html import escape, unescape
from typing import Any

import anyio
import httpx
import pytest
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import Mount

from raincheck import Pages, report
from raincheck.dialects.plain import PlainDialect
from raincheck.pages import WORDS
from tests.conftest import virtual_jobs
from tests.support import Gate, app_of, gated, running, settled, slow_route

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]

ROOT = {"x-admin": "yes", "sec-fetch-mode": "navigate"}
HOSTILE = """<script>window.hacked = 1</script>"onmouseover="hacked = 1" '&lt;"""


def by_header(connection: HTTPConnection) -> str | None:
    return connection.headers.get("x-user")


def an_operator(connection: HTTPConnection) -> bool:
    return connection.headers.get("x-admin") == "yes"


async def refuse(request: Request) -> Response:
    report(0.5, HOSTILE)
    return Response("no", 422)


def app_with(gate: Gate, **settings: Any) -> Any:
    pages = Pages(operator=an_operator, own_list=True, **settings)
    return app_of(gated(gate), slow_route(refuse, "/refuse"), owner=by_header, pages=pages)


async def submit(client: httpx.AsyncClient, path: str = "/slow", **headers: str) -> str:
    accepted = await client.post(path, headers=headers)
    await settled()
    await anyio.sleep(1)
    return str(accepted.json()["job_id"])


async def shown(client: httpx.AsyncClient, url: str = "/jobs", **headers: str) -> str:
    response = await client.get(url, headers={**ROOT, **headers})
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    return response.text


def rows(page: str) -> list[str]:
    """The rows of jobs, as text."""
    body = page.partition('<tbody id="rows"')[2].partition("</tbody>")[0]
    texts = [re.sub(r"<[^>]+>", " ", row) for row in body.split("<tr ")[1:]]
    return [unescape(" ".join(text.partition(">")[2].split())) for text in texts]


def forms(page: str) -> list[str]:
    """Where the forms of the rows lead, those that are shown."""
    body = page.partition('<tbody id="rows"')[2].partition("</tbody>")[0]
    found = re.findall(r'<form method="post" action="([^"]+)" data-do="\w+" ?(hidden)?', body)
    return [unescape(action) for action, hidden in found if not hidden]


async def test_a_browser_is_shown_a_page_and_a_program_a_document() -> None:
    async with running(app_with(gate := Gate())) as client:
        await submit(client, **{"x-user": "ann"})
        for headers, kind in (
            ({}, "application/json"),
            ({"accept": "*/*"}, "application/json"),
            ({"accept": "text/html,*/*;q=0.8"}, "text/html; charset=utf-8"),
            ({"sec-fetch-mode": "navigate"}, "text/html; charset=utf-8"),
            ({"sec-fetch-mode": "cors", "accept": "text/html"}, "application/json"),
        ):
            response = await client.get("/jobs", headers={"x-admin": "yes", **headers})
            assert response.headers["content-type"] == kind
        gate.open()


async def test_the_page_has_what_the_document_has() -> None:
    async with running(app_with(gate := Gate())) as client:
        await submit(client, "/refuse", **{"x-user": "ann"})
        await submit(client)
        page = await shown(client)
        first, second = rows(page)
        assert re.fullmatch(
            r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC slow Running 1 "
            "Cancel Send the callback again Delete Delete for good",
            first,
        )
        assert "refuse ann Failed The response has status 422. 50%" in second
        assert "Processes at work: 1" in page
        gate.open()


async def test_whatever_a_page_is_told_it_shows_as_text() -> None:
    app = app_of(slow_route(refuse), owner=by_header, pages=Pages(operator=an_operator))
    async with running(app) as client:
        await submit(client, **{"x-user": "<b>ann</b>"})
        for url in ("/jobs", f"/jobs?owner={HOSTILE}&route={HOSTILE}"):
            page = await shown(client, str(httpx.URL(url)))
            assert "<script>window" not in page
            assert "<b>ann" not in page
            assert 'onmouseover="' not in page
        assert HOSTILE in rows(await shown(client))[0]


async def test_the_filters_are_a_form_that_says_what_is_asked_for() -> None:
    async with running(app_with(gate := Gate())) as client:
        await submit(client)
        query = (
            "status=running&status=failed&route=slow&owner=%22ann&created_since=2026-11-21T12:00Z"
        )
        page = await shown(client, f"/jobs?{query}&created_before=2027-01-01")
        checked = re.findall(r'name="status" value="(\w+)" checked', page)
        assert checked == ["running", "failed"]
        for field in (
            'name="route" value="slow"',
            'name="owner" value="&quot;ann"',
            'name="created_since" value="2026-11-21T12:00"',
            'name="created_before" value="2027-01-01T00:00"',
        ):
            assert field in page
        assert rows(page) == []
        assert '<p id="none" dir="auto" >' in page
        gate.open()


async def test_pages_lead_to_one_another() -> None:
    async with running(app_with(gate := Gate())) as client:
        ids = [await submit(client, "/refuse") for _ in range(3)]
        page = await shown(client, "/jobs?limit=2&status=failed")
        assert 'id="newest" href="?limit=2&amp;status=failed" hidden' in page
        older = re.search(r'id="older" href="([^"]+)" >', page)
        assert older is not None
        page = await shown(client, "/jobs" + unescape(older[1]))
        assert ids[0] in page
        assert 'id="newest" href="?limit=2&amp;status=failed" >' in page
        assert re.search(r'id="older" href="" hidden', page)
        gate.open()


@pytest.mark.parametrize("mounted", [False, True])
async def test_buttons_do_what_they_say_and_lead_back(mounted: bool) -> None:
    jobs = virtual_jobs()
    pages = Pages(operator=an_operator)
    extra = [Mount("/jobs", jobs.status_app)] if mounted else []
    routes = [gated(gate := Gate()), *extra]
    app = app_of(*routes, jobs=jobs, owner=by_header, pages=pages)
    async with running(app) as client:
        await submit(client, **{"x-user": "ann"})
        url = httpx.URL("http://test/jobs/" if mounted else "http://test/jobs")
        url = url.copy_with(query=b"status=running,canceled&limit=7")
        for suffix, left in (("/cancel", "Canceled"), ("/delete", "")):
            (action,) = [each for each in forms(await shown(client, str(url))) if suffix in each]
            answer = await client.post(
                url.join(action), headers={**ROOT, "sec-fetch-site": "same-origin"}
            )
            assert answer.status_code == 303
            back = answer.url.join(answer.headers["location"])
            assert (back.path, dict(back.params)) == (url.path, dict(url.params))
            await settled()
            found = rows(await shown(client, str(back)))
            assert (left in found[0]) if left else found == []
        assert gate.cleaned_up == 1


@pytest.mark.parametrize(
    ("back", "location"),
    [
        ("https://evil.example/", "../../jobs"),
        ("//evil.example?a=1", "../../jobs?a=1"),
        ("?a=%0d%0aset-cookie:b", "../../jobs?a=%0D%0Aset-cookie%3Ab"),
        ("/", "../"),
        ("", "../../jobs"),
    ],
)
async def test_buttons_lead_nowhere_else(back: str, location: str) -> None:
    async with running(app_with(gate := Gate())) as client:
        id = await submit(client)
        answer = await client.post(f"/jobs/{id}/cancel", params={"list": back}, headers=ROOT)
        assert answer.status_code == 303
        assert answer.headers["location"] == location
        gate.open()


async def test_a_button_of_another_sites_page_does_nothing() -> None:
    async with running(app_with(gate := Gate())) as client:
        id = await submit(client)
        for suffix in ("/cancel", "/delete"):
            refused = await client.post(
                f"/jobs/{id}{suffix}?list=", headers={**ROOT, "sec-fetch-site": "cross-site"}
            )
            assert refused.status_code == 403
        assert gate.cleaned_up == 0
        gate.open()


async def test_an_owners_page_has_their_jobs_and_leads_to_the_results() -> None:
    async with running(app_with(gate := Gate())) as client:
        await submit(client)
        id = await submit(client, **{"x-user": "ann"})
        page = await shown(client, **{"x-user": "ann", "x-admin": "no"})
        assert len(rows(page)) == 1
        assert f'href="./jobs/{id}"' in page
        assert 'data-totals=""' in page
        assert "Processes at work" in page.partition("</section>")[0]
        assert '<section id="totals" hidden>' in page
        gate.open()


async def test_a_page_is_told_to_load_nothing_from_elsewhere_and_says_so() -> None:
    async with running(app_with(gate := Gate())) as client:
        response = await client.get("/jobs", headers=ROOT)
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'nonce-")
        nonce = re.search(r"'nonce-([^']+)'", policy)
        assert nonce is not None
        assert response.text.count(f'nonce="{nonce[1]}"') == 2
        assert not re.search(r"(?:src|href)=\"(?:https?:)?//", response.text)
        assert (await client.get("/jobs", headers=ROOT)).headers[
            "content-security-policy"
        ] != policy
        gate.open()


async def test_who_may_not_see_a_list_is_shown_a_problem_that_can_be_read() -> None:
    async with running(app_with(Gate())) as client:
        answer = await client.get("/jobs", headers={"sec-fetch-mode": "navigate"})
        assert (answer.status_code, WORDS["unknown"] in answer.text) == (404, True)
        malformed = await client.get("/jobs?limit=x", headers=ROOT)
        assert malformed.status_code == 400
        assert "The parameter limit is a whole number" in malformed.text


async def test_the_words_of_the_page_may_be_others() -> None:
    words = {"jobs": "Aufträge", "running_short": "Läuft", "workers": "{count} Prozesse"}
    async with running(app_with(gate := Gate(), words=words)) as client:
        await submit(client)
        page = await shown(client)
        assert "<title>Aufträge</title>" in page
        assert "Läuft" in rows(page)[0]
        assert "1 Prozesse" in page
        gate.open()


@pytest.mark.parametrize("word", [*WORDS][[*WORDS].index("jobs") :])
async def test_every_word_is_shown_somewhere(word: str) -> None:
    """Of those that lists have."""
    mine = re.sub(r"^[^{]*", "<mine> ", WORDS[word])
    async with running(app_with(gate := Gate(), words={word: mine})) as client:
        await submit(client)
        page = await shown(client)
        assert mine not in page
        assert escape(mine.partition("{")[0]) in page
        gate.open()


async def test_a_dialect_whose_routes_no_page_could_use_has_documents_only() -> None:
    class Terse(PlainDialect):
        def urls(self, job: Any, mount: Any) -> Any:
            return None

    app = app_of(gated(Gate()), dialect=Terse(), pages=Pages(operator=an_operator))
    async with running(app) as client:
        response = await client.get("/jobs", headers=ROOT)
        assert response.headers["content-type"] == "application/json"
