"""The waiting page in a real browser: headless Chromium, and uvicorn."""

from __future__ import annotations

import base64
import importlib
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, expect
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from raincheck import Limits, LongRunningMiddleware, Retry, current_job, long_running
from tests.e2e.browser import PATIENCE, Serving, Watched, Work, violations

pytestmark = pytest.mark.real

START = '<title>Start</title><form method="post" action="/work"><button>Make it</button></form>'
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
HOSTILE = """</p><script>window.hacked = 1</script><img src=x onerror="hacked = 1"> "'&lt;"""


class Site:
    """An app with a slow route, and browsers that look at it."""

    def __init__(self, browser: Browser, stack: ExitStack) -> None:
        self.work = Work()
        self._browser = browser
        self._stack = stack
        self.agreed: list[str] = []  # the origins that CORS lets in
        self.serving = stack.enter_context(Serving(self._app()))
        self.url = self.serving.url
        self.watched: list[Watched] = []

    def _app(self) -> Any:
        @long_running(max_running=2)
        async def work(request: Request) -> Response:
            return await self.work(request)

        @long_running(timeout=2)
        async def late(request: Request) -> Response:
            return await self.work(request)

        @long_running(retry=Retry(backoff=2))
        async def flaky(request: Request) -> Response:
            job = current_job()
            assert job is not None
            if job.runs == 1:
                return Response("not yet", 503)
            return await self.work(request)

        async def start(request: Request) -> Response:
            return HTMLResponse(START)

        async def done(request: Request) -> Response:
            return HTMLResponse("<h1>Elsewhere</h1>")

        def owner(connection: HTTPConnection) -> str | None:
            return connection.cookies.get("user")

        cors = Middleware(
            CORSMiddleware,
            allow_origin_regex=r"http://127\.0\.0\.1:\d+",
            allow_credentials=True,
            allow_methods=["GET", "POST", "DELETE"],
        )
        return Starlette(
            routes=[
                Route("/", start),
                Route("/done", done),
                Route("/late", late),
                Route("/flaky", flaky),
                Route("/work", work, methods=["GET", "POST"]),
            ],
            middleware=[
                cors,
                Middleware(LongRunningMiddleware, owner=owner, limits=Limits(drain_timeout=0)),
            ],
        )

    def page(self, **settings: Any) -> Page:
        """A page of a browser of its own."""
        context = self._browser.new_context(**settings)
        context.set_default_timeout(PATIENCE)
        self._stack.callback(context.close)
        self.watched.append(Watched(context))
        return self.watched[-1].page

    def submitted(self, **settings: Any) -> Page:
        """The same, once it has sent the form."""
        page = self.page(**settings)
        page.goto(self.url)
        page.get_by_role("button").click()
        expect(page).to_have_url(re.compile(rf"{self.url}/jobs/[\w-]+$"))
        return page

    def asked(self, suffix: str) -> int:
        """How often a route of jobs was asked for."""
        return sum(path.endswith(suffix) for _, path in [*self.serving.requests])


@pytest.fixture
def site(browser: Browser) -> Iterator[Site]:
    with ExitStack() as stack:
        site = Site(browser, stack)
        yield site
        for watched in site.watched:
            watched.check(site.url)


def heading(page: Page) -> Locator:
    return page.get_by_role("heading", level=1)


def bar(page: Page) -> Locator:
    return page.get_by_role("progressbar", name="Progress")


def csv() -> Response:
    headers = {"content-disposition": 'attachment; filename="report.csv"'}
    return Response("a,b\n1,2\n", media_type="text/csv", headers=headers)


# --- from the form to the response ---------------------------------------------------------------


def test_a_form_leads_to_a_page_whose_progress_moves_and_to_the_response(site: Site) -> None:
    page = site.submitted()
    expect(heading(page)).to_have_text("In progress")
    expect(bar(page)).not_to_have_attribute("value", re.compile(""))
    for fraction, message, percent in ((0.25, "one of four", "25%"), (0.996, "three", "99%")):
        site.work.report(fraction, message)
        expect(bar(page)).to_have_js_property("value", fraction)
        expect(page.get_by_role("status")).to_contain_text(message)
        expect(page.locator("#percent")).to_have_text(percent)
        expect(page).to_have_title(f"{percent} · In progress")
    url = page.url
    site.work.end(HTMLResponse("<title>Report</title><h1>The report</h1>"))
    expect(heading(page)).to_have_text("The report")
    expect(page).to_have_url(url)
    page.go_back()
    expect(page).to_have_title("Start")
    page.go_forward()
    expect(heading(page)).to_have_text("The report")
    assert site.work.begun == 1


def test_a_file_is_downloaded_once_and_the_page_says_so(site: Site, tmp_path: Path) -> None:
    page = site.submitted()
    expect(heading(page)).to_have_text("In progress")
    with page.expect_download() as download:
        site.work.end(csv())
    assert download.value.suggested_filename == "report.csv"
    download.value.save_as(tmp_path / "report.csv")
    assert (tmp_path / "report.csv").read_text() == "a,b\n1,2\n"
    expect(heading(page)).to_have_text("Finished")
    expect(page.get_by_role("button")).to_have_count(0)
    expect(page.get_by_role("progressbar")).to_have_count(0)
    assert violations(page) == []
    with page.expect_download() as again:
        page.get_by_role("link", name="Open the result").click()
    assert again.value.suggested_filename == "report.csv"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("response", "kind", "text"),
    [
        pytest.param(lambda: Response(PIXEL, media_type="image/png"), "image/png", "", id="image"),
        pytest.param(lambda: JSONResponse({"a": 1}), "application/json", '{"a":1}', id="JSON"),
        pytest.param(lambda: HTMLResponse("<p>no", 422), "text/html", "no", id="422"),
        pytest.param(lambda: HTMLResponse("<p>yes", 202), "text/html", "yes", id="202"),
        pytest.param(lambda: RedirectResponse("/done"), "text/html", "Elsewhere", id="redirect"),
    ],
)
def test_whatever_the_response_is_the_browser_lands_on_it(
    site: Site, response: Callable[[], Response], kind: str, text: str
) -> None:
    page = site.submitted()
    expect(heading(page)).to_have_text("In progress")
    site.work.end(response())
    expect(page.locator("#progress")).to_have_count(0)
    page.wait_for_load_state()
    assert page.evaluate("document.contentType") == kind
    if text:
        expect(page.locator("body")).to_contain_text(text)


def test_a_response_without_content_leaves_the_page_and_says_so(site: Site) -> None:
    page = site.submitted()
    site.work.end(Response(status_code=204))
    expect(heading(page)).to_have_text("Finished")
    asked = site.asked("/status") + site.asked("/events")
    page.wait_for_timeout(1500)
    assert site.asked("/status") + site.asked("/events") == asked  # it is over


@pytest.mark.slow
@pytest.mark.parametrize("scripts", [True, False])
def test_a_run_that_failed_is_told_of_until_the_next_one_begins(site: Site, scripts: bool) -> None:
    page = site.page(java_script_enabled=scripts)
    page.goto(site.url + "/flaky")
    again = page.get_by_text(re.compile(r"^Tried again at .*\d:\d\d"))
    expect(again).to_be_visible()
    expect(heading(page)).to_have_text("Waiting for its turn")
    expect(heading(page)).to_have_text("In progress")
    expect(again).not_to_be_visible()
    site.work.end(HTMLResponse("<h1>The report</h1>"))
    expect(heading(page)).to_have_text("The report")


@pytest.mark.slow
def test_without_scripts_the_page_comes_again_until_the_response_does(site: Site) -> None:
    page = site.submitted(java_script_enabled=False)
    expect(heading(page)).to_have_text("In progress")
    site.work.report(0.5, "half of it")
    expect(page.get_by_text("half of it")).to_be_visible()
    expect(bar(page)).to_have_attribute("value", "0.5000")
    site.work.end(HTMLResponse("<h1>The report</h1>"))
    expect(heading(page)).to_have_text("The report")


@pytest.mark.slow
def test_with_scripts_the_page_is_loaded_once(site: Site) -> None:
    page = site.submitted()
    for step in range(20):
        site.work.report(step / 20, f"step {step}")
        page.wait_for_timeout(150)
    path = page.url.removeprefix(site.url)
    assert [seen for _, seen in site.serving.requests].count(path) == 1


# --- cancel --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scripts", [True, False])
def test_the_button_cancels(site: Site, scripts: bool) -> None:
    page = site.submitted(java_script_enabled=scripts)
    expect(heading(page)).to_have_text("In progress")
    page.get_by_role("button", name="Cancel").click()
    expect(heading(page)).to_have_text("It was canceled")
    expect(page.get_by_text("There will be no result.")).to_be_visible()
    assert site.work.stopped == 1
    assert httpx.get(page.url).status_code == 410
    if scripts:  # which axe-core is
        assert violations(page) == []


def test_the_keyboard_is_enough(site: Site) -> None:
    page = site.submitted()
    expect(heading(page)).to_have_text("In progress")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Cancel")).to_be_focused()
    page.keyboard.press("Enter")
    expect(heading(page)).to_have_text("It was canceled")


# --- when something goes wrong -------------------------------------------------------------------


@pytest.mark.slow
def test_a_failure_can_be_read(site: Site) -> None:
    page = site.page()
    page.goto(site.url + "/late")
    expect(heading(page)).to_have_text("In progress")
    expect(page.get_by_text("The handler may run for 2 seconds.")).to_be_visible()
    expect(heading(page)).to_have_text("It has failed")
    assert violations(page) == []
    page = site.submitted()
    site.work.end(ValueError("a secret"))
    expect(page.get_by_text("The handler ended with an error.")).to_be_visible()
    expect(page.get_by_text("a secret")).to_have_count(0)


@pytest.mark.slow
def test_a_job_that_is_deleted_meanwhile_is_told_of(site: Site) -> None:
    page = site.submitted()
    expect(heading(page)).to_have_text("In progress")
    httpx.delete(page.url)
    expect(heading(page)).to_have_text(re.compile("The result is gone|It was canceled"))
    page.goto(site.url + "/jobs/unknown")
    expect(heading(page)).to_have_text("There is nothing here")
    assert violations(page) == []


def test_a_hostile_message_is_text(site: Site) -> None:
    page = site.submitted()
    site.work.report(0.5, HOSTILE)
    expect(page.get_by_role("status")).to_contain_text(HOSTILE)
    page.reload()  # by the server now
    expect(page.get_by_role("status")).to_contain_text(HOSTILE)
    assert page.evaluate("window.hacked") is None
    assert page.locator("img, main script").count() == 0


def test_what_finishes_before_the_page_asks_is_not_missed(site: Site) -> None:
    page = site.page()
    page.goto(site.url)

    def finish(route: Any) -> None:
        site.work.end(HTMLResponse("<h1>The report</h1>"))
        while httpx.get(page.url).status_code == 202:
            pass
        route.continue_()

    page.route(re.compile("/(events|status)$"), finish)
    page.get_by_role("button").click()
    expect(heading(page)).to_have_text("The report")


@pytest.mark.slow
def test_a_connection_that_is_lost_is_told_of_and_found_again(site: Site) -> None:
    page = site.submitted()
    expect(heading(page)).to_have_text("In progress")
    anything = re.compile("/(events|status)$")
    page.route(anything, lambda route: route.abort("connectionrefused"))
    hide(page, hidden=True)
    expect(page.get_by_text("The connection is lost. Trying again.")).to_be_visible()
    assert violations(page) == []
    page.unroute(anything)
    site.work.report(0.5, "half of it")
    expect(page.get_by_text("half of it")).to_be_visible()
    expect(page.get_by_text("The connection is lost. Trying again.")).not_to_be_visible()


@pytest.mark.slow
def test_a_monitor_that_fails_is_asked_again(site: Site) -> None:
    page = site.submitted()
    expect(heading(page)).to_have_text("In progress")
    page.route("**/status", lambda route: route.fulfill(status=500, body="Oh"))
    hide(page, hidden=True)
    expect(page.get_by_text("The connection is lost. Trying again.")).to_be_visible()
    page.unroute("**/status")
    site.work.report(0.5, "half of it")
    expect(page.get_by_text("half of it")).to_be_visible()
    expect(page.get_by_text("The connection is lost. Trying again.")).not_to_be_visible()


@pytest.mark.slow
def test_whoever_has_to_log_in_again_is_led_there(browser: Browser) -> None:
    """Also where that is another site, whose answer no script of ours may read."""
    work = Work()

    @long_running
    async def report(request: Request) -> Response:
        return await work(request)

    def guarded(app: ASGIApp) -> ASGIApp:
        async def guard(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and "user" not in Request(scope).cookies:
                await RedirectResponse(elsewhere.url + "/login", 303)(scope, receive, send)
            else:
                await app(scope, receive, send)

        return guard

    async def login(request: Request) -> Response:
        return HTMLResponse("<h1>Who is it?</h1>")

    ours = Middleware(LongRunningMiddleware, limits=Limits(drain_timeout=0))
    app = guarded(Starlette(routes=[Route("/report", report)], middleware=[ours]))
    with ExitStack() as stack:
        elsewhere = stack.enter_context(Serving(Starlette(routes=[Route("/login", login)])))
        serving = stack.enter_context(Serving(app))
        context = stack.enter_context(closing(browser.new_context()))
        context.set_default_timeout(PATIENCE)
        context.add_cookies([{"name": "user", "value": "ann", "url": serving.url}])
        page = Watched(context).page
        page.goto(serving.url + "/report")
        expect(heading(page)).to_have_text("In progress")
        context.clear_cookies()
        hide(page, hidden=True)
        expect(heading(page)).to_have_text("Who is it?")


def hide(page: Page, *, hidden: bool) -> None:
    """Let a page believe that its tab is hidden, or seen again."""
    page.evaluate(
        """hidden => {
            Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
            document.dispatchEvent(new Event("visibilitychange"));
        }""",
        hidden,
    )


@pytest.mark.slow
def test_while_the_tab_is_seen_events_are_enough(site: Site) -> None:
    page = site.submitted()
    for step in range(10):
        site.work.report(step / 10, f"step {step}")
        page.wait_for_timeout(200)
    expect(bar(page)).to_have_js_property("value", 0.9)
    assert (site.asked("/events"), site.asked("/status")) == (1, 0)


@pytest.mark.slow
def test_a_hidden_tab_keeps_no_connection_open(site: Site) -> None:
    page = site.submitted()
    expect(heading(page)).to_have_text("In progress")
    hide(page, hidden=True)
    before = site.asked("/events"), site.asked("/status")
    site.work.report(0.5, "half of it")
    expect(page.get_by_text("half of it")).to_be_visible()
    assert site.asked("/events") == before[0]
    assert site.asked("/status") > before[1]
    hide(page, hidden=False)
    site.work.report(0.75, "most of it")
    expect(page.get_by_text("most of it")).to_be_visible()
    hide(page, hidden=True)
    site.work.end(HTMLResponse("<h1>The report</h1>"))
    expect(heading(page)).to_have_text("The report")


@pytest.mark.slow
def test_where_events_fail_the_page_asks(site: Site) -> None:
    page = site.page()
    page.route("**/events", lambda route: route.fulfill(status=502))
    page.goto(site.url)
    page.get_by_role("button").click()
    site.work.report(0.5, "half of it")
    expect(page.get_by_text("half of it")).to_be_visible()
    site.work.end(HTMLResponse("<h1>The report</h1>"))
    expect(heading(page)).to_have_text("The report")
    assert site.asked("/events") == 0
    assert site.asked("/status") >= 2


@pytest.mark.slow
def test_a_page_that_was_left_is_fresh_when_it_is_brought_back(site: Site) -> None:
    page = site.submitted()
    expect(heading(page)).to_have_text("In progress")
    page.goto(site.url + "/done")
    site.work.end(HTMLResponse("<h1>The report</h1>"))
    page.go_back()
    expect(heading(page)).to_have_text("The report")


# --- for everybody -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible_in_light_and_in_dark(site: Site, scheme: Any) -> None:
    page = site.submitted(color_scheme=scheme)
    site.work.report(0.5, "half of it")
    expect(page.get_by_text("half of it")).to_be_visible()
    assert violations(page) == []
    waiting = [site.submitted(color_scheme=scheme) for _ in range(2)][-1]
    expect(heading(waiting)).to_have_text("Waiting for its turn")
    expect(waiting.get_by_text("Number 1 in the queue")).to_be_visible()
    assert violations(waiting) == []
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", paper))) / 3
    assert (brightness < 80) == (scheme == "dark")
    page.goto(site.url + "/jobs/unknown")
    assert violations(page) == []


@pytest.mark.slow
def test_it_fits_a_phone(site: Site) -> None:
    page = site.submitted(viewport={"width": 320, "height": 568}, has_touch=True, is_mobile=True)
    site.work.report(0.5, "in /a/very/long/path" + "/without-a-space" * 20)
    expect(page.get_by_text("without-a-space")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    button = page.get_by_role("button", name="Cancel").bounding_box()
    assert button is not None
    assert button["height"] >= 44
    assert button["x"] >= 0
    assert button["x"] + button["width"] <= 320
    assert violations(page) == []
    page.get_by_role("button", name="Cancel").tap()
    expect(heading(page)).to_have_text("It was canceled")


@pytest.mark.slow
def test_a_message_that_changes_all_the_time_is_not_read_aloud_all_the_time(site: Site) -> None:
    page = site.submitted()
    expect(heading(page)).to_have_text("In progress")
    page.evaluate(
        """() => {
            window.changes = 0;
            const count = (all) => (window.changes += all.length);
            const live = document.querySelector("[role=status]");
            const what = { childList: true, characterData: true, subtree: true };
            new MutationObserver(count).observe(live, what);
        }"""
    )
    for step in range(30):
        site.work.report(step / 30, f"step {step}")
        page.wait_for_timeout(100)
    expect(bar(page)).to_have_js_property("value", 29 / 30)
    expect(page.get_by_text("step 29")).to_be_visible()
    assert page.evaluate("window.changes") <= 8


def test_an_owners_page_is_theirs_alone(site: Site) -> None:
    page = site.page()
    page.context.add_cookies([{"name": "user", "value": "ann", "url": site.url}])
    page.goto(site.url)
    page.get_by_role("button").click()
    expect(heading(page)).to_have_text("In progress")
    stranger = site.page()
    stranger.goto(page.url)
    expect(heading(stranger)).to_have_text("There is nothing here")
    site.work.report(0.5, "half of it")
    expect(page.get_by_text("half of it")).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    expect(heading(page)).to_have_text("It was canceled")


# --- other sites ---------------------------------------------------------------------------------


SEND = """async ([url, settings]) => {
    try { return (await fetch(url, settings)).status } catch { return "not sent, or not read" }
}"""
FORM = """([url]) => {
    const form = document.createElement("form");
    Object.assign(form, { method: "post", action: url });
    document.body.append(form);
    form.submit();
}"""


@pytest.fixture
def two(browser: Browser) -> Iterator[Site]:
    """A site that another one looks at: it has a page with scripts of nobody's."""
    with ExitStack() as stack:
        yield Site(browser, stack)


@contextmanager
def running_job(site: Site) -> Iterator[str]:
    url = site.url + httpx.post(site.url + "/work").headers["location"]
    yield url
    assert (httpx.get(url).status_code, site.work.stopped) == (202, 0)


@pytest.mark.parametrize("names", [("localhost", "127.0.0.1"), ("app.test", "evil.test")])
def test_another_sites_form_and_bare_fetch_change_nothing(
    two: Site, names: tuple[str, str]
) -> None:
    """To a secure URL a browser sends `Sec-Fetch-Site`, to another one `Origin` alone."""
    port, page = two.serving.port, two.page()
    here, there = (f"http://{name}:{port}" for name in names)
    with running_job(two) as url:
        cancel = here + url.removeprefix(two.url) + "/cancel"
        page.goto(there)
        for mode in ("cors", "no-cors"):
            settings = {"method": "POST", "mode": mode, "credentials": "include"}
            page.evaluate(SEND, [cancel, settings])
        with page.expect_navigation() as refused:
            page.evaluate(FORM, [cancel])
        assert refused.value.status == 403
        expect(heading(page)).to_have_text("The request comes from another site")
    assert two.asked("/cancel") == 3


@pytest.mark.parametrize(
    ("method", "headers", "suffix"),
    [
        ("POST", {"content-type": "application/json"}, "/cancel"),
        ("POST", {"x-requested-with": "fetch"}, "/cancel"),
        ("DELETE", {}, ""),
    ],
)
def test_what_cors_has_agreed_to_passes(
    two: Site, method: str, headers: dict[str, str], suffix: str
) -> None:
    port, page = two.serving.port, two.page()
    path = httpx.post(two.url + "/work").headers["location"]
    url = f"http://localhost:{port}{path}{suffix}"
    settings = {"method": method, "headers": headers}
    page.goto(f"http://127.0.0.1:{port}")
    status = page.evaluate(SEND, [url, settings])
    if "x-requested-with" in headers:  # this app's policy has not agreed to it
        assert (status, two.asked("/cancel")) == ("not sent, or not read", 1)  # the preflight
    else:
        assert status == 202


@pytest.mark.slow
@pytest.mark.parametrize("scripts", [True, False])
def test_where_no_sec_fetch_site_is_sent_the_button_cancels_too(two: Site, scripts: bool) -> None:
    """Chromium sends none to a plain URL: `Origin` is what counts, and has to be sent."""
    page = two.page(java_script_enabled=scripts)
    page.goto(f"http://app.test:{two.serving.port}")
    page.get_by_role("button").click()
    expect(heading(page)).to_have_text("In progress")
    page.get_by_role("button", name="Cancel").click()
    expect(heading(page)).to_have_text("It was canceled")
    assert two.work.stopped == 1


# --- the example ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_example_does_what_it_says(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    app = importlib.import_module("examples.browser_form").app
    with Serving(app) as serving, ExitStack() as stack:
        context = stack.enter_context(closing(browser.new_context()))
        watched = Watched(context)
        page = watched.page
        page.goto(serving.url)
        with page.expect_download() as download:
            page.get_by_role("button", name="Write it").click()
            expect(page.get_by_text("wrote page 2 of 3")).to_be_visible()
        assert download.value.suggested_filename == "report.txt"
        assert Path(download.value.path()).read_text() == "3 pages"
        watched.check(serving.url)
