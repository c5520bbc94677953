"""What docs/clients.md shows does what it says, against a real server."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from raincheck import LongRunningMiddleware, long_running
from tests.client.node import MODULE
from tests.client.servers import ByHand, serving

pytestmark = pytest.mark.real

PAGE = (Path(__file__).parents[2] / "docs" / "clients.md").read_text()
BLOCKS = re.findall(r"^```(python|js|bash)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)

SERVED = ("/static/raincheck.js", MODULE.as_uri())
"""Where the page has the module, and where it is."""

COMMANDS = {
    "python": [sys.executable, "-c"],
    "js": ["node", "--input-type=module", "-e"],
    "bash": ["bash", "-euc"],
}

ANSWERS = {
    "CORSMiddleware": r"(?:)",
    "StaticFiles": r"(?:)",
    "openai": r"It has rained\.\n",
    "submit": r"running None\n(running None\n)*succeeded None\n201 \{\"year\":2026\}\n",
}


@long_running
async def reports(request: Request) -> JSONResponse:
    asked = await request.json()
    await anyio.sleep(1.5)
    return JSONResponse(asked, 201)


@long_running
async def chat(request: Request) -> JSONResponse:
    message = {"role": "assistant", "content": "It has rained."}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    head = {"id": "1", "object": "chat.completion", "created": 1, "model": "rain-1"}
    return JSONResponse({**head, "choices": [choice]})


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    routes = [
        Route("/reports", reports, methods=["POST"]),
        Route("/v1/chat/completions", chat, methods=["POST"]),
    ]
    with serving(LongRunningMiddleware(Starlette(routes=routes), base_url=url), listener):
        yield url


@pytest.mark.parametrize(("language", "source"), BLOCKS)
def test_the_page_shows_what_works(url: str, tmp_path: Path, language: str, source: str) -> None:
    program = COMMANDS[language]
    if shutil.which(program[0]) is None and not os.environ.get("RAINCHECK_CI"):
        pytest.skip(f"there is no {program[0]}")
    done = subprocess.run(
        [*program, source.replace("https://api.example.org", url).replace(*SERVED)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    expected = next((ANSWERS[word] for word in ANSWERS if word in source), None)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(expected or r"201 \{\"year\":2026\}\n", done.stdout), done.stdout


def run_the_loop(url: str, folder: Path) -> subprocess.Popen[str]:
    if shutil.which("curl") is None and not os.environ.get("RAINCHECK_CI"):
        pytest.skip("there is no curl")
    (source,) = (source for language, source in BLOCKS if language == "bash")
    return subprocess.Popen(
        [*COMMANDS["bash"], source.replace("https://api.example.org", url)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


FINAL = [
    Response("failed", 503, {"job-status": "failed"}),
    Response("failed", 500, {"job-status": "failed"}),
    Response("too slow", 504, {"job-status": "failed"}),
    Response("canceled", 410, {"job-status": "canceled"}),
    Response("foreign", 404),
    Response("no token", 401),
    Response("by itself", 500),
]


@pytest.mark.slow
@pytest.mark.parametrize("last", FINAL, ids=lambda last: last.body.decode())
def test_the_loop_ends_with_what_is_final_and_not_with_what_passes(
    last: Response, tmp_path: Path
) -> None:
    passing = [Response("", status, {"retry-after": "1"}) for status in (202, 429, 502, 503, 504)]
    server = ByHand(*(passing if last is FINAL[0] else passing[:1]), last)
    server.app.router.routes.append(Route("/reports", server.submit, methods=["POST"]))
    with serving(server.app) as url, run_the_loop(url, tmp_path) as loop:
        printed, complaints = loop.communicate(timeout=60)
    assert (loop.returncode, complaints) == (0, "")
    assert printed == f"{last.status_code} {bytes(last.body).decode()}\n"
    assert server.script == []
    assert len(server.submissions) == 1
    assert {poll.headers["prefer"] for poll in server.polls} == {"wait=20"}


@pytest.mark.slow
def test_the_loop_outlives_a_server_that_is_away(tmp_path: Path) -> None:
    server = ByHand(*[Response("", 202)] * 2)
    server.app.router.routes.append(Route("/reports", server.submit, methods=["POST"]))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        url = f"http://127.0.0.1:{address[1]}"
        with serving(server.app, listener):
            loop = run_the_loop(url, tmp_path)
            while not server.polls:
                assert loop.poll() is None
                time.sleep(0.01)
    with loop:
        assert loop.stderr is not None
        assert "(7)" in loop.stderr.readline()  # nobody there
        with socket.create_server(address) as listener, serving(server.app, listener):
            printed, _ = loop.communicate(timeout=60)
    assert loop.returncode == 0
    assert printed.startswith("200 ")


def test_the_page_shows_all_that_it_promises() -> None:
    assert [language for language, _ in BLOCKS] == [
        *["python"] * 4,
        *("js", "python", "python"),
        *("bash", "python"),
    ]
