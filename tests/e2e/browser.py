"""A real browser, an app under a real server for it to look at, and what it must never do."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvicorn
from playwright.sync_api import Browser, BrowserContext, Error, Page, expect, sync_playwright
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from raincheck import report

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
"""What Chromium is called on the path; without one of them, playwright's own is tried."""

PATIENCE = 20_000
"""Milliseconds in which what is expected of a page has to come, on a machine that is busy."""

AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8")


@contextmanager
def chromium(*, viewer: bool = False) -> Iterator[Browser]:
    """A browser; `app.test` and `evil.test` are names of this machine, and not secure ones.

    Without one the tests are skipped; in continuous integration (RAINCHECK_CI) they fail.

    Args:
        viewer: whether it has to show PDFs, which the shell of Chromium's without a head cannot.
    """
    known = NAMES[1:] if viewer else NAMES
    program = next(filter(None, map(shutil.which, known)), None)
    names = "MAP app.test 127.0.0.1, MAP evil.test 127.0.0.1"
    arguments = ["--no-sandbox", f"--host-resolver-rules={names}"]
    if viewer:
        arguments.append("--headless=new")
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(
                executable_path=program, args=arguments, headless=not viewer
            )
        except Error as error:
            if os.environ.get("RAINCHECK_CI"):
                raise
            pytest.skip(f"no browser; apt-get install {known[0]} brings one: {error.message[:80]}")
        try:
            yield browser
        finally:
            browser.close()


class Watched:
    """A page, and all that it asks for and complains of."""

    def __init__(self, context: BrowserContext) -> None:
        self.page = context.new_page()
        self.asked: list[str] = []
        self.wrong: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", lambda message: self._hear(message.text))

    def _hear(self, text: str) -> None:
        if "Content Security Policy" in text:
            self.wrong.append(text)

    def check(self, *origins: str) -> None:
        """It has asked nobody but these, and has met no error."""
        assert self.wrong == []
        for url in self.asked:
            assert "{0.scheme}://{0.netloc}".format(urlsplit(url)) in origins, url


def violations(page: Page) -> list[str]:
    """What axe-core has to say against a page, best practices included."""
    page.evaluate(AXE)
    found: dict[str, Any] = page.evaluate("axe.run()")
    assert found["passes"]
    return [
        f"{one['id']}: {node['html']} {node['failureSummary']}"
        for one in found["violations"]
        for node in one["nodes"]
    ]


class Work:
    """A long-running handler's work, which a test does from its own thread.

    Attributes:
        begun: how many handlers have begun.
        stopped: how many have been stopped.
    """

    def __init__(self) -> None:
        self.begun = 0
        self.stopped = 0
        self._progress: tuple[float | None, str | None] = (None, None)
        self._outcome: Response | Exception | None = None

    def report(self, fraction: float | None, message: str | None = None) -> None:
        self._progress = (fraction, message)

    def end(self, outcome: Response | Exception) -> None:
        self._outcome = outcome

    async def __call__(self, request: Request) -> Response:
        self.begun += 1
        told: tuple[float | None, str | None] = (None, None)
        try:
            while self._outcome is None:
                if told != self._progress:
                    told = self._progress
                    report(*told)
                await asyncio.sleep(0.02)
        except asyncio.CancelledError:
            self.stopped += 1
            raise
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome


class Serving:
    """An app under uvicorn, in a thread.

    Attributes:
        port: where.
        requests: the method and path of each, in order.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.requests: list[tuple[str, str]] = []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        config = uvicorn.Config(
            self._note,
            host="127.0.0.1",
            port=self.port,
            interface="asgi3",
            ws="none",
            log_level="error",
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    @property
    def url(self) -> str:
        return f"http://localhost:{self.port}"

    async def _note(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self.requests.append((scope["method"], scope["path"]))
        await self._app(scope, receive, send)

    def __enter__(self) -> Serving:
        self._thread.start()
        deadline = time.monotonic() + 20
        while not self._server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()
