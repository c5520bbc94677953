"""Takes the pictures of the pages that README and docs show: `python -m docs.screenshots`.

It needs what the tests need: `pip install -e ".[dev]"`, and Chromium.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Browser, expect
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from tests.e2e.browser import Serving, Work, chromium

from raincheck import Jobs, Limits, LongRunningMiddleware, Pages, long_running

HERE = Path(__file__).parent
SIZES = {"": {"width": 720, "height": 420}, "-narrow": {"width": 320, "height": 480}}


class Clock:
    """The time of day, and as much as work is said to have taken."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


def waiting_page(browser: Browser) -> None:
    """The waiting page: light, dark and narrow."""
    clock, works = Clock(), [Work(), Work()]

    @long_running
    async def send(request: Request) -> Response:
        return await works[0](request)

    jobs = Jobs(clock=clock, limits=Limits(drain_timeout=0))
    app = Starlette(routes=[Route("/send", send, methods=["POST"])])
    with Serving(LongRunningMiddleware(app, jobs=jobs)) as serving:
        first = serving.url + httpx.post(serving.url + "/send").headers["location"]
        clock.ahead = 95  # as long as all of them take, as far as anybody can know
        works.pop(0).end(Response())
        while httpx.get(first).status_code == 202:
            time.sleep(0.05)
        url = serving.url + httpx.post(serving.url + "/send").headers["location"]
        works[0].report(0.412, "412 of 1000 sent")
        for scheme in ("light", "dark"):
            for name, size in SIZES.items():
                if (name, scheme) != ("-narrow", "dark"):
                    picture = "waiting-page" + name + ("-dark" if scheme == "dark" else "")
                    told = "412 of 1000 sent", "Expected at"
                    take(browser, url, picture, *told, color_scheme=scheme, viewport=size)


def operator_view(browser: Browser) -> None:
    """The operator's view: wide, and narrow and dark."""
    works = {name: Work() for name in ("videos", "mails")}

    @long_running(name="videos.encode", max_running=1)
    async def videos(request: Request) -> Response:
        return await works["videos"](request)

    @long_running(name="mails.send")
    async def mails(request: Request) -> Response:
        return await works["mails"](request)

    @long_running(name="reports.month")
    async def reports(request: Request) -> Response:
        return Response(status_code=500 if request.path_params["month"] == "13" else 200)

    app = Starlette(
        routes=[
            Route("/videos", videos, methods=["POST"]),
            Route("/mails", mails, methods=["POST"]),
            Route("/reports/{month}", reports, methods=["POST"]),
        ]
    )
    wrapped = LongRunningMiddleware(
        app,
        jobs=Jobs(limits=Limits(drain_timeout=0)),
        owner=lambda connection: connection.headers.get("x-user"),
        pages=Pages(operator=lambda connection: True),
    )
    with Serving(wrapped) as serving:
        asked = ("reports/10", "ann"), ("videos", "ann"), ("mails", "bob"), ("videos", "eve")
        for path, user in (*asked, ("reports/13", "bob"), ("reports/11", "ann")):
            httpx.post(f"{serving.url}/{path}", headers={"x-user": user})
        works["videos"].report(0.73, "frame 17 520 of 24 000")
        works["mails"].report(0.412, "412 of 1000 sent")
        url = serving.url + "/jobs"
        told = ("frame 17 520 of 24 000", "The response has status 500.")
        take(browser, url, "operator-view", *told, viewport={"width": 1280, "height": 800})
        narrow = {"width": 360, "height": 720}
        take(browser, url, "operator-view-narrow", *told, viewport=narrow, color_scheme="dark")


def take(browser: Browser, url: str, name: str, *told: str, **settings: Any) -> None:
    """Take one picture of a page that says this."""
    settings |= {"device_scale_factor": 2, "locale": "en-GB", "timezone_id": "UTC"}
    context = browser.new_context(**settings)
    page = context.new_page()
    page.goto(url)
    for text in told:
        expect(page.get_by_text(text)).to_be_visible()
    page.screenshot(path=HERE / f"{name}.png")
    context.close()


def main() -> None:
    with chromium() as browser:
        waiting_page(browser)
        operator_view(browser)


if __name__ == "__main__":
    main()
