"""The operator's view in a real browser: headless Chromium, and uvicorn."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, expect
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from raincheck import LongRunningMiddleware, Pages, Retry, long_running
from tests.e2e.browser import PATIENCE, Serving, Watched, Work, violations

pytestmark = pytest.mark.real

HOSTILE = """</td><script>window.hacked = 1</script><img src=x onerror="hacked = 1"> "'&lt;"""


def by_cookie(connection: HTTPConnection) -> str | None:
    return connection.cookies.get("user")


def an_operator(connection: HTTPConnection) -> bool:
    return connection.cookies.get("user") == "root"


class Site:
    """An app with a slow route and one that fails, and browsers that look at its jobs."""

    def __init__(self, browser: Browser, stack: ExitStack) -> None:
        self.work = Work()
        self._browser = browser
        self._stack = stack
        self.serving = stack.enter_context(Serving(self._app()))
        self.url = self.serving.url
        self.client = stack.enter_context(httpx.Client(base_url=self.url))
        self.watched: list[Watched] = []

    def _app(self) -> Any:
        @long_running(name="work", max_running=1)
        async def work(request: Request) -> Response:
            return await self.work(request)

        @long_running(name="fail")
        async def fail(request: Request) -> Response:
            return PlainTextResponse("no", 500)

        @long_running(name="flaky", retry=Retry(backoff=lambda failure: 600))
        async def flaky(request: Request) -> Response:
            return await self.work(request)

        endpoints = {"/work": work, "/fail": fail, "/flaky": flaky}
        return Starlette(
            routes=[Route(path, each, methods=["POST"]) for path, each in endpoints.items()],
            middleware=[
                Middleware(
                    LongRunningMiddleware,
                    owner=by_cookie,
                    pages=Pages(operator=an_operator, own_list=True),
                )
            ],
        )

    def submit(self, path: str = "/work", user: str = "ann") -> str:
        accepted = self.client.post(path, headers={"cookie": f"user={user}"})
        assert accepted.status_code == 202
        return str(accepted.json()["job_id"])

    def status(self, id: str) -> Any:
        answer = self.client.get(f"/jobs/{id}/status", headers={"cookie": "user=root"})
        return answer.json().get("status", answer.status_code)

    def page(self, query: str = "", user: str = "root", **settings: Any) -> Page:
        """The list, in a browser of its own."""
        context = self._browser.new_context(**settings)
        context.set_default_timeout(PATIENCE)
        context.add_cookies([{"name": "user", "value": user, "url": self.url}])
        self._stack.callback(context.close)
        self.watched.append(Watched(context))
        page = self.watched[-1].page
        page.goto(f"{self.url}/jobs{query}")
        return page


@pytest.fixture
def site(browser: Browser) -> Iterator[Site]:
    with ExitStack() as stack:
        site = Site(browser, stack)
        try:
            yield site
        finally:
            site.work.end(PlainTextResponse("done"))  # the server waits for it
        for watched in site.watched:
            watched.check(site.url)


def rows(page: Page) -> Locator:
    return page.locator("#rows tr")


def row(page: Page, id: str) -> Locator:
    return page.locator(f'#rows tr[data-key="{id}"]')


@pytest.mark.slow
def test_the_list_says_when_a_run_that_failed_is_repeated(site: Site) -> None:
    id = site.submit("/flaky")
    page = site.page()
    expect(row(page, id)).to_contain_text("Running")
    site.work.end(PlainTextResponse("not yet", 503))
    again = re.compile(r"Tried again at .*\d:\d\d")
    expect(row(page, id)).to_contain_text(again)  # as the script has it
    expect(row(page, id)).to_contain_text("Waiting")
    plain = site.page(java_script_enabled=False)
    expect(row(plain, id)).to_contain_text(again)
    site.client.post(f"/jobs/{id}/cancel", headers={"cookie": "user=ann"})
    expect(row(page, id)).not_to_contain_text(again)


@pytest.mark.slow
def test_the_list_follows_what_jobs_do(site: Site) -> None:
    first = site.submit()
    page = site.page()
    expect(rows(page)).to_have_count(1)
    expect(row(page, first)).to_contain_text("Running")
    expect(row(page, first).get_by_role("progressbar")).to_be_hidden()
    for fraction, message, percent in ((0.25, "one of four", "25%"), (0.996, "three", "99%")):
        site.work.report(fraction, message)
        expect(row(page, first).get_by_role("progressbar")).to_have_js_property("value", fraction)
        expect(row(page, first)).to_contain_text(message)
        expect(row(page, first)).to_contain_text(percent)
    waits, broken = site.submit(user="bob"), site.submit("/fail")
    expect(rows(page)).to_have_count(3)
    expect(rows(page).nth(0)).to_contain_text("The response has status 500.")
    expect(rows(page).nth(1)).to_contain_text("Waiting")
    expect(rows(page).nth(1)).to_contain_text("bob")
    assert [each.get_attribute("data-key") for each in rows(page).all()] == [broken, waits, first]
    site.work.end(PlainTextResponse("done"))
    expect(row(page, waits)).to_contain_text("Finished")
    expect(row(page, first)).to_contain_text("Finished")
    expect(row(page, first).get_by_role("button", name="Cancel")).to_be_hidden()


@pytest.mark.slow
def test_totals_follow_what_jobs_do(site: Site) -> None:
    site.submit()
    page = site.page()
    expect(page.locator("#workers")).to_have_text("Processes at work: 1")
    work = page.locator('#routes tr[data-key="work"]')
    expect(work.locator('[data-of="running"]')).to_have_text("1")
    site.submit()
    site.submit("/fail")
    expect(work.locator('[data-of="queued"]')).to_have_text("1")
    expect(work.locator('[data-of="oldest"]')).not_to_be_empty()
    fail = page.locator('#routes tr[data-key="fail"]')
    expect(fail.locator('[data-of="failed"]')).to_have_text("1")
    site.work.end(PlainTextResponse("done"))
    expect(work.locator('[data-of="succeeded"]')).to_have_text("2")
    expect(work.locator('[data-of="oldest"]')).to_be_empty()
    expect(page.locator("#workers")).to_have_text("Processes at work: 0")


@pytest.mark.parametrize("scripts", [True, False])
def test_jobs_are_cancelled_and_deleted(site: Site, scripts: bool) -> None:
    first, second = site.submit(), site.submit()
    page = site.page("?status=running,queued,canceled", java_script_enabled=scripts)
    row(page, second).get_by_role("button", name="Cancel").click()
    expect(row(page, second)).to_contain_text("Canceled")
    assert (site.status(second), site.status(first)) == ("canceled", "running")
    row(page, second).locator("summary").click()
    row(page, second).get_by_role("button", name="Delete for good").click()
    expect(row(page, second)).to_have_count(0)
    assert site.status(second) == 410
    row(page, first).get_by_role("button", name="Cancel").click()
    expect(row(page, first)).to_contain_text(re.compile("Stopping|Canceled"))
    assert site.work.begun == 1
    expect(page).to_have_url(re.compile(r"/jobs\?status=running(,|%2C)queued(,|%2C)canceled$"))


@pytest.mark.slow
def test_a_button_that_somebody_is_at_stays_the_same(site: Site) -> None:
    first = site.submit()
    page = site.page()
    button = row(page, first).get_by_role("button", name="Cancel")
    button.focus()
    second = site.submit()
    expect(rows(page)).to_have_count(2)
    expect(button).to_be_focused()
    row(page, first).locator("summary").click()
    site.submit()
    expect(rows(page)).to_have_count(3)
    expect(row(page, first).get_by_role("button", name="Delete for good")).to_be_visible()
    expect(row(page, second).get_by_role("button", name="Delete for good")).to_be_hidden()


@pytest.mark.parametrize("scripts", [True, False])
def test_filters_and_pages(site: Site, scripts: bool) -> None:
    broken = [site.submit("/fail", user) for user in ("ann", "bob", "ann")]
    site.submit()
    page = site.page("?limit=2", java_script_enabled=scripts)
    expect(rows(page)).to_have_count(2)
    page.get_by_role("link", name="Older").click()
    expect(row(page, broken[0])).to_have_count(1)
    page.get_by_role("link", name="Newest").click()
    expect(page.get_by_role("link", name="Newest")).to_be_hidden()
    page.get_by_label("Failed").check()
    page.get_by_label("Owner").fill("ann")
    page.get_by_role("button", name="Show").click()
    expect(rows(page)).to_have_count(2)
    assert [each.get_attribute("data-key") for each in rows(page).all()] == [broken[2], broken[0]]
    expect(page.get_by_label("Failed")).to_be_checked()
    page.get_by_label("Accepted before (UTC)").fill("2001-01-01T00:00")
    page.get_by_role("button", name="Show").click()
    expect(page.get_by_text("There are none.")).to_be_visible()


def test_what_jobs_say_is_text(site: Site) -> None:
    site.work.report(0.5, HOSTILE)
    id = site.submit(user="ann")
    page = site.page()
    expect(row(page, id)).to_contain_text(HOSTILE)
    page.reload()
    expect(row(page, id)).to_contain_text(HOSTILE)
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 320])
def test_everybody_can_use_it(site: Site, scheme: Any, width: int) -> None:
    site.work.report(0.5, "half of it" + "x" * 200)
    site.submit()
    site.submit("/fail")
    page = site.page(color_scheme=scheme, viewport={"width": width, "height": 800})
    expect(rows(page)).to_have_count(2)
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for role in ("table", "row", "cell"):  # also where they are shown as cards
        assert page.get_by_role(role).count() > 0


@pytest.mark.slow
def test_a_lost_connection_is_told_and_found_again(site: Site) -> None:
    id = site.submit()
    page = site.page()
    page.context.set_offline(True)
    expect(page.get_by_role("status")).to_contain_text("The connection is lost.")
    page.context.set_offline(False)
    site.work.report(0.5, "half")
    expect(row(page, id)).to_contain_text("half")
    expect(page.get_by_role("status")).to_be_hidden()


def test_owners_see_their_own_and_open_what_they_have(site: Site) -> None:
    mine, other = site.submit(user="ann"), site.submit("/fail", user="bob")
    page = site.page(user="ann")
    expect(rows(page)).to_have_count(1)
    expect(row(page, other)).to_have_count(0)
    expect(page.get_by_text("Processes at work")).to_be_hidden()
    expect(page.get_by_label("Owner")).to_be_hidden()
    site.work.end(PlainTextResponse("the report"))
    expect(row(page, mine)).to_contain_text("Finished")
    row(page, mine).get_by_role("link").click()
    expect(page.locator("body")).to_have_text("the report")
