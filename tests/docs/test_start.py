"""The apps of start.md, each by the command that the page names, do what the page says."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from tests.docs.blocks import ROOT, blocks, files
from tests.docs.serving import serving

PAGE = ROOT / "docs" / "start.md"
FILES = files("start.md")
COMMANDS = {
    f"{found[2]}.py": found[0]
    for block in blocks(PAGE)
    for found in re.finditer(
        r"^(uvicorn|raincheck serve).*?(\w+_app):app.*$", block.source, re.MULTILINE
    )
}

pytestmark = [pytest.mark.real, pytest.mark.extra_docs]


def test_every_app_has_a_command() -> None:
    assert list(COMMANDS) == list(FILES)
    assert len(FILES) == 5


@pytest.mark.parametrize("name", FILES)
def test_the_app_does_what_the_page_says(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(FILES[name].replace("sleep(1)", "sleep(0.3)"))
    with (
        serving(COMMANDS[name], tmp_path) as server,
        httpx.Client(base_url=server.url) as client,
    ):
        begun = time.monotonic()
        accepted = client.post("/reports", json={"year": 2026})
        assert time.monotonic() - begun < 0.8
        assert (accepted.status_code, accepted.json()["status"]) == (202, "running")
        place = accepted.headers["location"]
        polled = client.get(place)
        assert polled.status_code == 202
        response = client.get(place, headers={"prefer": "wait=20"})
        assert (response.status_code, response.json()) == (200, {"year": 2026, "rows": 3})
        assert response.headers["job-status"] == "succeeded"
        monitor = client.get(f"{place}/status").json()
        assert (monitor["progress"], monitor["message"]) == (1.0, "3 of 3 months")


def test_what_curl_is_told(tmp_path: Path) -> None:
    name = "fastapi_app.py"
    (tmp_path / name).write_text(FILES[name].replace("sleep(1)", "sleep(0.1)"))
    ask, wait = (block.source for block in blocks(PAGE) if block.language == "bash")
    with serving(COMMANDS[name], tmp_path) as server:
        where = server.url.removeprefix("http://")
        told = curl(ask.replace("localhost:8000", where))
        assert told.startswith("HTTP/1.1 202 Accepted")
        place = re.search(r"^location: /jobs/(\S+)", told, re.MULTILINE)
        assert place is not None
        told = curl(wait.replace("localhost:8000", where).replace("kPkUysbt", place[1]))
        assert told == '{"year":2026,"rows":3}'


def curl(command: str) -> str:
    done = subprocess.run(
        ["bash", "-euc", command], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout
