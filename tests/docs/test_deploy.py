"""What deploy.md says is tried: servers with several processes, a unit, and what can be read."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import cast

import httpx
import pytest

from raincheck import Limits
from tests.docs.blocks import ROOT, blocks, files
from tests.docs.serving import serving

PAGE = ROOT / "docs" / "deploy.md"
BLOCKS = [*blocks(PAGE)]
COMMANDS = [
    line
    for block in BLOCKS
    if not block.language
    for line in block.source.splitlines()
    if line.startswith(("uvicorn shop:app", "gunicorn shop:app"))
]


def one(language: str) -> str:
    (found,) = (block.source for block in BLOCKS if block.language == language)
    return found


def test_both_servers_are_tried() -> None:
    assert [command.split()[0] for command in COMMANDS] == ["uvicorn", "gunicorn"]


@pytest.mark.real
@pytest.mark.extra_docs
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split()[0])
def test_jobs_outlive_the_deploy_of_two_workers(command: str, tmp_path: Path) -> None:
    for name, content in files("deploy.md").items():
        (tmp_path / name).write_text(content)
    with serving(command, tmp_path) as server:
        pages = []
        for _ in range(8):
            with httpx.Client(base_url=server.url) as client:  # a connection to any worker
                pages.append(client.post("/reports").headers["location"])
        with httpx.Client(base_url=server.url) as client:
            assert client.get(pages[0], headers={"prefer": "wait=10"}).json() == {"rows": 3}
            late = client.post("/reports").headers["location"]
        assert server.stop() in (0, -15)
        assert "Traceback" not in server.log
    with serving(command, tmp_path) as server:
        for page in [*pages, late]:
            with httpx.Client(base_url=server.url) as client:
                response = client.get(page)  # at once: it was drained
                assert (response.status_code, response.json()) == (200, {"rows": 3}), response.text


@pytest.mark.real
def test_systemd_reads_the_unit(tmp_path: Path) -> None:
    if (verify := shutil.which("systemd-analyze")) is None:
        if os.environ.get("RAINCHECK_CI"):
            pytest.fail("there is no systemd-analyze")
        pytest.skip("there is no systemd-analyze")
    unit = tmp_path / "shop.service"
    text = one("ini").replace("/srv/shop/.venv/bin/uvicorn", sys.executable)
    unit.write_text(text.replace("--app-dir /srv/shop", f"--app-dir {tmp_path}"))
    done = subprocess.run(
        [verify, "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    ours = [line for line in done.stderr.splitlines() if "shop" in line]
    assert (done.returncode, ours) == (0, [])


def test_who_supervises_waits_for_the_drain() -> None:
    limits = Limits()
    drain = cast(float, limits.drain_timeout) + 2 * cast(float, limits.cancel_grace)
    found = re.search(r"TimeoutStopSec=(\d+)", one("ini"))
    assert found
    assert int(found[1]) > 30 + drain  # uvicorn's, for open requests
    found = re.search(r"--graceful-timeout (\d+)", PAGE.read_text())
    assert found
    assert int(found[1]) > 30 + drain
    assert "docker stop --time 90" in PAGE.read_text()


INSTRUCTIONS = ["FROM", "RUN", "WORKDIR", "COPY", "VOLUME", "USER", "EXPOSE", "STOPSIGNAL", "CMD"]


def test_the_dockerfile_can_be_read() -> None:
    lines = one("dockerfile").splitlines()
    assert [line.split()[0] for line in lines if line.split()[0] not in INSTRUCTIONS] == []
    command = next(line for line in lines if line.startswith("CMD"))
    words: list[str] = json.loads(command.removeprefix("CMD "))
    assert words[:2] == ["uvicorn", "shop:app"]
