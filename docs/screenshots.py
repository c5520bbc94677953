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

from raincheck import Jobs, Limits, LongRunningMiddleware, long_running

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
                    take(browser, url, picture, color_scheme=scheme, viewport=size)


def take(browser: Browser, url: str, name: str, **settings: Any) -> None:
    """Take one picture of a page."""
    settings |= {"device_scale_factor": 2, "locale": "en-GB", "timezone_id": "UTC"}
    context = browser.new_context(**settings)
    page = context.new_page()
    page.goto(url)
    expect(page.get_by_text("412 of 1000 sent")).to_be_visible()
    expect(page.get_by_text("Expected at")).to_be_visible()
    page.screenshot(path=HERE / f"{name}.png")
    context.close()


def main() -> None:
    with chromium() as browser:
        waiting_page(browser)


if __name__ == "__main__":
    main()
