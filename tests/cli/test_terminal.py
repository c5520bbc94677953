"""The command line as a person uses it: on a terminal, with a keyboard, against a real server."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from pathlib import Path

import anyio
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.cli.apps import SHOWN, marked
from tests.cli.conftest import Command
from tests.cli.terminal import Terminal, terminal
from tests.client.servers import serving

pytestmark = pytest.mark.real

BAR = re.compile(r"running \[bold red\]page\[/\] \d+ of \d+! +[━╸╺]+ +\d+% 0:00:\d\d")
QUESTION = "[c]ancel the job, [l]eave it running, or [w]ait on? [l]:"


def asked(url: str, pages: int = 4, pause: float = 0.8) -> tuple[str, ...]:
    return "request", "POST", f"{url}/reports?pages={pages}&pause={pause}", "-d", "the report"


def test_a_bar_grows_and_goes(url: str) -> None:
    with terminal(*asked(url)) as seen:
        seen.shows(lambda lines: BAR.fullmatch(lines[-1]) and len(lines) == 1 if lines else False)
        first = percent(seen.screen())
        seen.shows(lambda lines: bool(lines) and percent(lines) > first)
        assert seen.cursor_hidden
        assert seen.ends() == 0
        assert seen.screen() == ["the report"]  # the bar has gone
        assert not seen.cursor_hidden
    said = seen.received
    for obeyed in (b"\x1b]0;owned", b"\x9b2J", "\u202e".encode(), b"\x1b[1;31mpage"):
        assert obeyed not in said


def percent(lines: list[str]) -> int:
    found = re.search(r"(\d+)%", lines[-1])
    return 0 if found is None else int(found[1])


@pytest.mark.slow
def test_ctrl_c_asks_and_the_job_is_left_running(url: str, raincheck: Command) -> None:
    with terminal(*asked(url)) as seen:
        seen.shows("running")
        seen.keys("\x03")
        seen.shows(QUESTION)
        assert not seen.cursor_hidden
        seen.keys("\r")  # what is offered is the harmless answer
        assert seen.ends() == 130
        assert any(
            line.startswith("raincheck: the job goes on; wait for it") for line in seen.screen()
        )
        command = seen.screen()[-1].split()
    assert command[:2] == ["raincheck", "watch"]
    assert raincheck(*command[1:])[:2] == (0, b"the report")


def test_ctrl_c_asks_and_the_job_is_cancelled(url: str, raincheck: Command) -> None:
    with terminal(*asked(url, pages=60)) as seen:
        seen.shows("running")
        seen.keys("\x03")
        seen.shows(QUESTION)
        seen.keys("c\r")
        assert seen.ends() == 6
        assert seen.screen()[-1] == "raincheck: the job was canceled"


def test_ctrl_c_while_a_cancel_has_no_answer_says_how_to_go_on() -> None:
    cancels = threading.Event()

    async def status(request: Request) -> Response:
        if request.method == "POST":
            cancels.set()
            await anyio.sleep(3)
        await anyio.sleep(0.2)
        return JSONResponse({"status": "running", "links": {"cancel": "/status"}}, 202)

    async def work(request: Request) -> Response:
        return JSONResponse({"status": "running"}, 202, {"location": "/status"})

    routes = [Route("/work", work, methods=["POST"])]
    routes.append(Route("/status", status, methods=["GET", "POST"]))
    with (
        serving(Starlette(routes=routes)) as url,
        terminal("request", "POST", f"{url}/work") as seen,
    ):
        seen.shows("running")
        seen.keys("\x03")
        seen.shows(QUESTION)
        seen.keys("c\r")
        assert cancels.wait(20)
        seen.keys("\x03")
        assert seen.ends() == 130
        lines = seen.screen()
        assert "whether it is canceled is not known" in "".join(lines)
        assert lines[-1] == f"  raincheck watch {url}/status"


@pytest.mark.slow
def test_ctrl_c_asks_and_is_waited_on(url: str) -> None:
    with terminal(*asked(url)) as seen:
        seen.shows("running")
        seen.keys("\x03")
        seen.shows(QUESTION)
        seen.keys("w\r")
        seen.shows(lambda lines: BAR.fullmatch(lines[-1]))
        assert seen.ends() == 0
        assert seen.screen()[-1] == "the report"


@pytest.mark.slow
@pytest.mark.parametrize("key", ["\x03", "\x04"])
def test_who_does_not_answer_leaves_the_job_running(url: str, key: str) -> None:
    with terminal(*asked(url)) as seen:
        seen.shows("running")
        seen.keys("\x03")
        seen.shows(QUESTION)
        seen.keys(key)
        assert seen.ends() == 130
        assert "raincheck watch http://" in seen.screen()[-1]


def test_a_job_that_others_wait_for_can_be_watched(url: str, raincheck: Command) -> None:
    job = raincheck("request", "--detach", *asked(url, pages=60)[1:]).out.decode().strip()
    with terminal("watch", job) as seen:
        seen.shows(lambda lines: lines and BAR.fullmatch(lines[-1]))
        seen.keys("\x03")
        seen.shows(QUESTION)
        seen.keys("c\r")
        assert seen.ends() == 6


@pytest.mark.slow
def test_a_narrow_terminal_has_one_line_too(url: str) -> None:
    narrow = re.compile(r"running .*… +[━╸╺]+ +\d+% 0:00:\d\d")
    with terminal(*asked(url, pages=60), columns=40) as seen:
        seen.shows(lambda lines: lines and narrow.fullmatch(lines[-1]))
        assert len(seen.screen()) == 1


def test_a_terminal_that_cannot_draw_has_lines(url: str) -> None:
    with terminal(*asked(url, pages=1, pause=0), TERM="dumb") as seen:
        assert seen.ends() == 0
        assert seen.screen()[-1] == "the report"
        assert "\x1b" not in seen.received.decode()


@pytest.mark.slow
def test_without_colour_there_is_none(url: str) -> None:
    with terminal(*asked(url, pages=60), NO_COLOR="1") as seen:
        seen.shows("page")
        assert not re.search(rb"\x1b\[3\d", seen.received)


@pytest.mark.slow
def test_binary_does_not_spoil_the_terminal(url: str, tmp_path: Path) -> None:
    with terminal("request", "-s", "POST", f"{url}/reports?pages=1&pause=0") as seen:
        assert seen.ends() == 23
        assert "the response is binary and would spoil your terminal" in seen.screen()[0]
    with terminal("request", "-s", "POST", f"{url}/reports?pages=1&pause=0", "-o", "-") as seen:
        assert seen.ends() == 0
        assert b"\0\xffreport" in seen.received


def test_a_password_is_typed_unseen(url: str) -> None:
    with terminal("request", "-u", "ann", f"{url}/echo") as seen:
        seen.shows("Password of ann:")
        seen.keys("s@crt\r")
        assert seen.ends() == 0
        assert "s@crt" not in "\n".join(seen.screen())
        assert "Basic YW5uOnNAY3J0" in "".join(seen.screen())


def test_the_list_is_a_table(raincheck: Command) -> None:
    with serving(marked()) as url:
        job = raincheck("request", "--detach", *asked(url, pages=9, pause=9)[1:]).out.decode()
        raincheck("request", "-s", f"{url}/broken")
        with terminal("list", f"{url}/jobs", columns=120) as seen:
            assert seen.ends() == 0
            head, line, failed, running = seen.screen()
        assert head.split() == ["id", "status", "route", "age", "message"]
        assert set(line.strip()) == {"─"}
        assert re.search(r" failed +broken +\d+ s +The handler ended with an error\.", failed)
        shown = SHOWN.format(n=1, all=9)
        id = job.strip().rpartition("/")[2]
        assert re.fullmatch(rf" ?{id} +running 11% +report +\d+ s +{re.escape(shown)}", running)
        assert b"\x1b]0;" not in seen.received
        with terminal("list", f"{url}/jobs", columns=80) as seen:
            assert seen.ends() == 0
            assert len(seen.screen()) == 4  # no line is broken
            assert id in seen.screen()[3]
        raincheck("cancel", job.strip())


def test_the_list_is_live(raincheck: Command) -> None:
    watching = ("--watch", "--every", "0.2")
    with serving(marked()) as url, terminal("list", f"{url}/jobs", *watching) as seen:
        seen.shows("none")
        seen.shows("Ctrl-C ends")
        job = raincheck("request", "--detach", *asked(url, pages=9, pause=9)[1:]).out.decode()
        seen.shows("running 11%")
        assert raincheck("cancel", job.strip()).code == 0
        seen.shows("canceled")
        seen.keys("\x03")
        assert seen.ends() == 0
        assert not seen.cursor_hidden


@pytest.mark.slow
def test_the_list_outlives_an_outage_and_says_so() -> None:
    with serving(marked()) as url:
        seen = Terminal([sys.executable, "-m", "raincheck", "list", f"{url}/jobs", "--watch"])
        seen.shows("Ctrl-C ends")
    try:
        seen.shows("the server does not answer: ")
        seen.keys("\x03")
        assert seen.ends() == 0
    finally:
        seen.close()


# --- completion ----------------------------------------------------------------------------------


def test_bash_completes(tmp_path: Path) -> None:
    command = tmp_path / "raincheck"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m raincheck "$@"\n')
    command.chmod(0o755)
    shell = Terminal(["/bin/bash", "--norc", "-i"], PATH=f"{tmp_path}:/usr/bin:/bin", PS1="$ ")
    try:
        shell.shows("$")
        shell.keys('eval "$(_RAINCHECK_COMPLETE=bash_source raincheck)"; echo rea""dy\r')
        shell.shows("ready")
        shell.keys("raincheck can\t")
        shell.shows("raincheck cancel")
        shell.keys("\x15raincheck serve --chec\t")
        shell.shows("raincheck serve --check")
    finally:
        shell.close()


@pytest.mark.parametrize(
    "shell", ["bash", *(pytest.param(other, marks=pytest.mark.slow) for other in ("zsh", "fish"))]
)
def test_there_is_a_completion_for(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_RAINCHECK_COMPLETE", f"{shell}_source")
    command = [sys.executable, "-m", "raincheck"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert f"_RAINCHECK_COMPLETE={shell}_complete" in done.stdout
