"""The module for pages in a real browser, on a page of the app and on one of another origin."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from raincheck import EXPOSE_HEADERS, Limits, LongRunningMiddleware, long_running
from tests.e2e.browser import PATIENCE, Serving, Watched, Work

pytestmark = pytest.mark.real

PAGE = """<!doctype html>
<title>Reports</title>
<button id="make">Make it</button> <button id="stop">Stop</button>
<progress id="progress"></progress> <output id="said"></output>
<script type="module">
import { follow, cancel } from "/static/raincheck.js";

const at = (id) => document.getElementById(id);
const leaving = new AbortController();
const { api, settings } = JSON.parse(SETTINGS);
addEventListener("pagehide", () => leaving.abort());
let where;
at("make").onclick = async () => {
  const request = fetch(`${api}/work`, { method: "POST", credentials: settings.credentials });
  request.then((accepted) => (where = new URL(accepted.headers.get("location"), accepted.url)));
  const onUpdate = ({ status, progress, message }) => {
    at("progress").value = progress ?? 0;
    at("said").value = [status, message].join(" ");
  };
  try {
    const { signal } = leaving;
    const response = await follow(request, { signal, cancel: true, onUpdate, ...settings });
    at("said").value = [response.status, await response.text()].join(" ");
  } catch (error) {
    at("said").value = `${error.name}: ${error.message}`;
  }
};
at("stop").onclick = () => cancel(where, settings);
</script>
"""


class Site:
    """An app with a slow route; pages of its own and of another origin that use it."""

    def __init__(self, browser: Browser, stack: ExitStack) -> None:
        self.work = Work()
        self._browser = browser
        self._stack = stack

    def opened(
        self, shown: str = PAGE, *, cors: dict[str, Any] | None = None, **settings: Any
    ) -> Page:
        """A page: of another origin if there is a policy."""
        api: list[str] = []
        policy = Middleware(
            CORSMiddleware, allow_origin_regex=".*", allow_methods=["*"], **(cors or {})
        )
        ours = Middleware(LongRunningMiddleware, limits=Limits(drain_timeout=0))

        async def page(request: Request) -> Response:
            text = json.dumps({"api": "".join(api), "settings": settings})
            return HTMLResponse(shown.replace("SETTINGS", json.dumps(text)))

        @long_running
        async def work(request: Request) -> Response:
            if "credentials" in settings:
                assert request.cookies["user"] == "ann"
            return await self.work(request)

        static = Mount("/static", StaticFiles(packages=[("raincheck", "static")]))
        pages = [Route("/", page), static]
        routes = [*pages, Route("/work", work, methods=["POST"])]
        app = Starlette(routes=routes, middleware=[policy, ours])
        self.serving = self._stack.enter_context(Serving(app))
        here = self.serving.url
        if cors is not None:
            api.append(here)
            here = self._stack.enter_context(Serving(Starlette(routes=pages))).url
        context = self._browser.new_context()
        context.set_default_timeout(PATIENCE)
        self._stack.callback(context.close)
        cookie = {"name": "user", "value": "ann", "url": self.serving.url}
        context.add_cookies([cookie])  # type: ignore[list-item] # a TypedDict of playwright's
        watched = Watched(context)
        watched.page.goto(here)
        self._stack.callback(watched.check, here, self.serving.url)
        return watched.page

    def asked(self, suffix: str, method: str = "GET") -> int:
        """How often a route was asked for."""
        requests = [*self.serving.requests]
        return sum(how == method and path.endswith(suffix) for how, path in requests)


@pytest.fixture
def site(browser: Browser) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(browser, stack)


def make(site: Site, page: Page) -> None:
    """Ask for the work, and see what it reports and what becomes of it."""
    page.get_by_role("button", name="Make it").click()
    site.work.report(0.25, "one of four")
    expect(page.locator("#said")).to_have_text("running one of four")
    expect(page.get_by_role("progressbar")).to_have_js_property("value", 0.25)
    site.work.end(JSONResponse({"made": True}, 201))
    expect(page.locator("#said")).to_have_text('201 {"made":true}')


EXPOSED = {"expose_headers": EXPOSE_HEADERS}
WAITING = {**EXPOSED, "allow_headers": ["Prefer"]}


@pytest.mark.parametrize("events", [True, False])
def test_a_page_of_the_app_follows_with_a_bar(site: Site, events: bool) -> None:
    make(site, site.opened(events=events))
    assert (site.asked("/events") > 0) is events
    assert (site.asked("/status") > 0) is not events


@pytest.mark.slow
@pytest.mark.parametrize("events", [True, False])
@pytest.mark.parametrize("cors", [WAITING, EXPOSED], ids=["Prefer", "no Prefer"])
def test_a_page_of_another_origin_follows(site: Site, cors: dict[str, Any], events: bool) -> None:
    """Where the policy knows no `Prefer`, polls go without."""
    make(site, site.opened(cors=cors, events=events))
    assert (site.asked("/events") > 0) is events


@pytest.mark.slow
def test_cookies_go_to_another_origin_where_that_is_asked_for(site: Site) -> None:
    cors = {**WAITING, "allow_credentials": True}
    make(site, site.opened(cors=cors, credentials="include", events=False))


def test_where_location_cannot_be_read_the_error_says_so(site: Site) -> None:
    page = site.opened(cors={})
    page.get_by_role("button", name="Make it").click()
    expect(page.locator("#said")).to_have_text(
        "FollowError: the 202 has no Location that this page may read: the server's CORS policy "
        "has to name it in Access-Control-Expose-Headers"
    )


@pytest.mark.parametrize("cors", [None, EXPOSED], ids=["same", "another"])
def test_a_page_cancels(site: Site, cors: dict[str, Any] | None) -> None:
    page = site.opened(cors=cors)
    page.get_by_role("button", name="Make it").click()
    expect(page.locator("#said")).to_have_text("running ")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#said")).to_contain_text("410 ")
    assert (site.work.stopped, site.asked("/cancel", "POST")) == (1, 1)


@pytest.mark.parametrize("cors", [None, EXPOSED], ids=["same", "another"])
def test_whoever_leaves_the_page_cancels_if_it_says_so(
    site: Site, cors: dict[str, Any] | None
) -> None:
    page = site.opened(cors=cors)
    page.get_by_role("button", name="Make it").click()
    expect(page.locator("#said")).to_have_text("running ")
    page.goto("about:blank")
    for _ in range(100):
        if site.work.stopped:
            break
        page.wait_for_timeout(100)
    assert site.work.stopped == 1


def test_the_page_in_the_docs_does_what_it_shows(site: Site) -> None:
    docs = (Path(__file__).parents[2] / "docs" / "clients.md").read_text()
    match = re.search(r"^```html\n(.*?)^```", docs, re.MULTILINE | re.DOTALL)
    assert match is not None
    page = site.opened(match[1].replace("/reports", "/work"))
    stop = page.get_by_role("button", name="Stop")
    expect(stop).to_be_disabled()
    page.get_by_role("button", name="Make the report").click()
    site.work.report(0.25, "one of four")
    expect(page.locator("#said")).to_have_text("one of four")
    expect(page.get_by_role("progressbar")).to_have_js_property("value", 0.25)
    stop.click()
    expect(page.locator("#said")).to_have_text("It failed: 410")
    expect(stop).to_be_disabled()
    site.work.end(Response("the report"))
    page.get_by_role("button", name="Make the report").click()
    expect(page.locator("#said")).to_have_text("the report")
