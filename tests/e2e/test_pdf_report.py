"""The example that writes PDFs: in a browser that waits on a page, and by its one command."""

from __future__ import annotations

import calendar
import io
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pypdf
import pytest
from playwright.sync_api import Browser, BrowserContext, Frame, Page, expect

from tests.e2e.browser import PATIENCE, chromium
from tests.e2e.conftest import Server

pytestmark = pytest.mark.real

ROOT = Path(__file__).parents[2]
MONTHS = [calendar.month_name[month] for month in range(1, 13)]
REPORT = {"year": 2025}
ENVIRONMENT = {"USE": "pdf_report", "MONTH": "0.5"}


@pytest.fixture(scope="module")
def viewer() -> Iterator[Browser]:
    with chromium(viewer=True) as browser:
        yield browser


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("reports")
    server = Server(folder, app="tests.e2e.uses_app:app", home=str(folder), **ENVIRONMENT)
    yield server
    server.close()


@pytest.fixture
def page(viewer: Browser, server: Server) -> Iterator[Page]:
    """One that has sent the form."""
    with closing(viewer.new_context()) as context:
        yield submitted(context, str(server.client.base_url))


def submitted(context: BrowserContext, url: str) -> Page:
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto(url)
    page.get_by_role("button", name="Write the report").click()
    expect(page).to_have_url(re.compile(r"/jobs/[\w-]+$"))
    expect(page.get_by_role("heading", level=1)).to_have_text("In progress")
    return page


def read(content: bytes) -> pypdf.PdfReader:
    return pypdf.PdfReader(io.BytesIO(content), strict=True)


def check(report: pypdf.PdfReader, year: int) -> None:
    """It has the year's totals first, and then each month, with all its orders."""
    totals = report.pages[0].extract_text()
    assert f"Orders {year}" in totals
    assert [month for month in MONTHS if month not in totals] == []
    bookmarks = [str(entry["/Title"]) for entry in report.outline if not isinstance(entry, list)]
    assert bookmarks == [f"{month} {year}" for month in MONTHS]
    text = "\n".join(page.extract_text() for page in report.pages[1:])
    orders = [int(number) for number in re.findall(r"^(\d{5,6}) \d+ \w+ \d \d", text, re.M)]
    assert orders == [month * 10_000 + count for month in range(1, 13) for count in range(1, 91)]
    for number, one in enumerate(report.pages, start=1):
        assert f"Page {number} of {len(report.pages)}" in one.extract_text()


@pytest.mark.slow
def test_the_browser_waits_with_a_bar_and_then_shows_the_report(page: Page, server: Server) -> None:
    bar = page.get_by_role("progressbar", name="Progress")
    expect(page.get_by_role("status")).to_contain_text(re.compile(r"\d+ of 12 months"))
    expect(bar).to_have_attribute("value", re.compile(r"^0\.\d+$"))
    before = bar.get_attribute("value") or ""
    with page.expect_event("frameattached", timeout=90_000) as viewer:
        expect(bar).not_to_have_attribute("value", before)  # it moves
    assert page.evaluate("document.contentType") == "application/pdf"
    response = server.client.get(page.url)
    assert response.headers["content-disposition"] == 'inline; filename="orders-2025.pdf"'
    report = read(response.content)
    check(report, 2025)
    shows(viewer.value, report)


def shows(frame: Frame, report: pypdf.PdfReader) -> None:
    """The browser's viewer has laid out all of it."""
    expect(frame.locator("#pagelength")).to_have_text(str(len(report.pages)))


@pytest.mark.slow
def test_the_button_stops_the_thread_that_writes(page: Page, server: Server) -> None:
    expect(page.get_by_role("status")).to_contain_text(re.compile(r"\d+ of 12 months"))
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("It was canceled")
    assert server.client.get(page.url).status_code == 410


@contextmanager
def serving(listener: socket.socket, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server at a socket that stays when it is gone."""
    command = [sys.executable, "-m", "uvicorn", "tests.e2e.uses_app:app"]
    command += [f"--app-dir={ROOT}", f"--fd={listener.fileno()}", "--log-level=error"]
    environment = {**os.environ, **ENVIRONMENT}
    with subprocess.Popen(
        command, cwd=folder, env=environment, pass_fds=[listener.fileno()]
    ) as server:
        try:
            yield server
        finally:
            server.kill()


@pytest.mark.slow
def test_the_browser_waits_on_when_the_server_is_killed(viewer: Browser, tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        closing(viewer.new_context()) as context,
    ):
        with serving(listener, tmp_path):
            page = submitted(context, f"http://127.0.0.1:{listener.getsockname()[1]}")
            expect(page.get_by_role("status")).to_contain_text(re.compile(r"\d+ of 12 months"))
        with serving(listener, tmp_path):
            with page.expect_event("frameattached", timeout=90_000) as viewer_of_it:
                pass  # it comes by itself
            report = read(httpx.get(page.url).content)
            check(report, 2025)
            shows(viewer_of_it.value, report)


@pytest.mark.slow
def test_a_button_that_is_pressed_twice_makes_one_report(server: Server) -> None:
    first, second = (server.client.post("/reports", data=REPORT) for _ in range(2))
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.headers["location"] == second.headers["location"]
    other = server.client.post("/reports", data={"year": 2024})
    assert other.headers["location"] != first.headers["location"]
    for answer, year in ((first, 2025), (other, 2024)):
        check(read(server.follow(answer).content), year)


def test_what_is_no_year_is_said_at_once(server: Server) -> None:
    for year in ("1066", "2027", "last", ""):
        refused = server.client.post("/reports", data={"year": year})
        assert (refused.status_code, refused.json()["detail"][0]["loc"]) == (422, ["body", "year"])


@pytest.mark.slow
def test_one_command_shows_all_of_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "examples.pdf_report"]
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "PATH": "/usr/bin:/bin"}
    run = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert re.fullmatch(
        r"POST /reports, year=1066: 422 Input should be greater than or equal to 2000\n"
        r"POST /reports, year=2025: 202, see (http://127\.0\.0\.1:\d+/jobs/[\w-]+)\n"
        r"(  running \d+% \d+ of 12 months\n)+"
        r"  succeeded 100% 12 of 12 months\n"
        r"GET \1: 200 application/pdf, \d+ kB, orders-2025\.pdf\n",
        run.stdout,
    )
    check(read((tmp_path / "orders-2025.pdf").read_bytes()), 2025)
