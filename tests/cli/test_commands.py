"""`request`, `watch`, `cancel` and `list` against real servers, with stderr and stdout piped."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

import raincheck_command
from raincheck import LongRunningMiddleware, Policy
from raincheck.owners import header
from tests.cli.apps import SHOWN, make_report, marked
from tests.cli.conftest import Command
from tests.client.servers import ByHand, pending, serving, shown

pytestmark = pytest.mark.real

ROOT = Path(__file__).parents[2]
ID = r"[A-Za-z0-9_-]{30}"


def page(n: int, of: int) -> str:
    return SHOWN.format(n=n, all=of)


# --- request -------------------------------------------------------------------------------------


def test_the_body_goes_to_stdout_and_progress_to_stderr(url: str, raincheck: Command) -> None:
    done = raincheck("request", "POST", f"{url}/reports?pages=2&pause=1.1")
    assert (done.code, done.out) == (0, b"\0\xffreport")  # as it is
    lines = done.err.splitlines()
    assert lines[-1] == f"succeeded 100% {page(2, 2)}"
    assert f"running 50% {page(1, 2)}" in lines or f"running 100% {page(2, 2)}" in lines
    assert len(set(lines)) == len(lines)
    assert "\x1b" not in done.err
    assert "\x9b" not in done.err


def test_the_body_goes_to_a_file(url: str, raincheck: Command, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"what was there before, and was longer")
    done = raincheck(
        "request", "POST", f"{url}/reports", "--json", '{"a": 1}', "-o", str(tmp_path / "out"), "-s"
    )
    assert done == (0, b"", "")
    assert (tmp_path / "out").read_bytes() == b'{"a": 1}'


def test_status_and_fields_can_be_seen(url: str, raincheck: Command) -> None:
    done = raincheck("request", "-i", "-s", f"{url}/reports", "-d", "x")
    head, _, body = done.out.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 201 Created\r\n")
    assert b"job-status: succeeded" in head
    assert body == b"x"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["/echo"], 0, ""),
        (["/polite"], 0, ""),
        (["POST", "/reports?status=404"], 4, "raincheck: the job has failed: HTTP 404\n"),
        (["POST", "/reports?status=503"], 5, "raincheck: the job has failed: HTTP 503\n"),
        (["POST", "/reports?status=302"], 0, ""),
        (["/broken"], 5, "raincheck: the job has failed: HTTP 500\n"),
        (["/private"], 8, "raincheck: refused: HTTP 401\n"),
        (["DELETE", "/reports"], 8, "raincheck: refused: HTTP 405\n"),
        (["/nothing"], 8, "raincheck: refused: HTTP 404\n"),
    ],
    ids=str,
)
def test_the_exit_code_is_the_outcome(
    url: str, raincheck: Command, words: list[str], code: int, said: str
) -> None:
    done = raincheck("request", "-s", *words[:-1], url + words[-1])
    assert (done.code, done.err) == (code, said)
    assert done.out  # the body of a failure is a body too


def test_a_route_that_is_asynchronous_for_those_who_like_it_makes_a_job(
    url: str, raincheck: Command
) -> None:
    assert b"job-status" in raincheck("request", "-i", "-s", f"{url}/polite").out
    done = raincheck("request", "-i", "-s", "-H", "Prefer:", f"{url}/polite")
    assert b"job-status" not in done.out


def test_a_deadline_leaves_the_job_running_and_says_how_to_go_on(
    url: str, raincheck: Command
) -> None:
    begun = time.monotonic()
    done = raincheck(
        "request", "POST", f"{url}/reports?pages=3&pause=1", "-H", "Authorization: secret",
        "-d", "x", "--deadline", "0.5",
    )  # fmt: skip
    assert time.monotonic() - begun < 2
    assert (done.code, done.out) == (28, b"")
    assert "the job has not ended within 0.5 seconds, and goes on" in done.err
    assert "secret" not in done.err
    command = done.err.splitlines()[-1].split("raincheck ")[1]
    assert re.fullmatch(rf"watch -H 'Authorization: \.\.\.' {url}/jobs/{ID}", command)
    resumed = raincheck("watch", "-s", command.split()[-1])
    assert resumed == (0, b"x", "")


def test_a_deadline_holds_for_the_first_answer_too(raincheck: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it takes the connection, and no more
        port = silent.getsockname()[1]
        done = raincheck("request", "POST", f"127.0.0.1:{port}/", "-d", "x", "--deadline", "0.5")
    assert (done.code, done.err) == (28, "raincheck: no answer within 0.5 seconds\n")


def test_a_deadline_holds_for_a_response_that_goes_on_and_on(raincheck: Command) -> None:
    async def drip(request: Request) -> Response:
        async def lines() -> AsyncIterator[bytes]:
            for _ in range(100):
                yield b"line\n"
                await anyio.sleep(0.1)

        return StreamingResponse(lines())

    with serving(Starlette(routes=[Route("/", drip)])) as url:
        done = raincheck("request", "-s", url, "--deadline", "1")
    assert done.code == 28
    assert 0 < done.out.count(b"line\n") < 20
    assert done.err == "raincheck: the response broke off: it was not whole after 1 seconds\n"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALL_PROXY", "gopher://127.0.0.1:9"),
        ("ALL_PROXY", "socks5://127.0.0.1:9"),  # for which a package is missing
        ("SSL_CERT_FILE", "/nowhere/certificates.pem"),
    ],
)
def test_an_environment_that_cannot_work_is_said(
    raincheck: Command, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    done = raincheck("request", "http://127.0.0.1:9/")
    assert (done.code, done.out) == (2, b"")
    assert name in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize("command", ["request", "watch", "cancel", "list"])
def test_who_cannot_be_reached_is_not_waited_for(command: str, raincheck: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    done = raincheck(command, f"http://127.0.0.1:{port}/")
    assert done.code == 7
    assert "Connection refused" in done.err
    assert len(done.err.splitlines()) == 1


def test_a_job_can_be_left_to_itself(url: str, raincheck: Command) -> None:
    done = raincheck("request", "--detach", f"{url}/reports?pages=1", "-d", "x")
    assert done.code == 0
    assert re.fullmatch(rf"{url}/jobs/{ID}\n", done.out.decode())
    assert raincheck("watch", "-s", done.out.decode().strip()) == (0, b"x", "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Missing argument"),
        (["GET", "POST", "h"], "there is more than one method"),
        (["-X", "PUT", "POST", "h"], "there is more than one method"),
        (["h", "-o", "/nowhere/out"], "there is no directory for '/nowhere/out'"),
        (["h", "-o", "/"], "is a directory"),
        (["h", "-o", ""], "it is empty; name a file, or - for stdout"),
        (["h", "--deadline", "0"], "--deadline"),
        (["h", "--deadline", "inf"], "--deadline"),
        (["h", "--deadline", "nan"], "--deadline"),
        (["h", "--nothing"], "No such option"),
    ],
    ids=str,
)
def test_what_is_written_wrongly_is_said_before_anything_is_sent(
    raincheck: Command, words: list[str], said: str
) -> None:
    done = raincheck("request", *words)
    assert (done.code, done.out) == (2, b"")
    assert said in done.err


def test_an_answer_that_is_lost_is_asked_for_again_under_its_key(raincheck: Command) -> None:
    seen: list[str | None] = []

    async def flaky(request: Request) -> Response:
        seen.append(request.headers.get("idempotency-key"))
        await request.body()
        return Response("lost", 502) if len(seen) == 1 else Response("found")

    with serving(Starlette(routes=[Route("/", flaky, methods=["POST"])])) as url:
        done = raincheck("request", "-s", url, "-F", "a=1")
    assert (done.code, done.out) == (0, b"found")
    assert len(seen) == 2
    assert seen[0] is not None
    assert seen[0] == seen[1]


def test_a_response_that_breaks_off_is_no_success(raincheck: Command) -> None:
    async def half(request: Request) -> Response:
        return Response("half", headers={"content-length": "8"})

    with serving(Starlette(routes=[Route("/", half)])) as url:
        done = raincheck("request", "-s", url)
    assert (done.code, done.out) == (18, b"half")
    assert "the response broke off" in done.err


def test_who_has_read_enough_is_no_crash(url: str) -> None:
    done = subprocess.run(
        f"{sys.executable} -m raincheck request -s {url}/large | head -c 10; echo $PIPESTATUS",
        shell=True, capture_output=True, text=True, executable="/bin/bash", timeout=60,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("xxxxxxxxxx23\n", "")


def test_a_full_disk_is_said(url: str, raincheck: Command) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full")
    done = raincheck("request", "-s", f"{url}/large", "-o", "/dev/full")
    assert (done.code, done.err) == (
        23,
        "raincheck: /dev/full cannot be written: No space left on device\n",
    )


def test_other_servers_are_followed_too(raincheck: Command) -> None:
    azure = ByHand(shown("Running", percentComplete=40), shown("Succeeded"))
    azure.first = {"operation-location": "/status/op", "location": "/result", "retry-after": "1"}
    with serving(azure.app) as url:
        done = raincheck("request", "PUT", f"{url}/work")
    assert (done.code, done.out) == (0, b'{"from":"the request\'s own URL"}')
    assert "Running 40%" in done.err


def test_a_failure_that_only_a_document_tells_of_is_one(raincheck: Command) -> None:
    azure = ByHand(shown("Failed", error={"code": "x", "message": "\x1b[31mno paper\x1b[0m"}))
    azure.first = {"operation-location": "/status/op"}
    with serving(azure.app) as url:
        done = raincheck("request", "POST", f"{url}/work")
    assert (done.code, done.out) == (5, b"")
    assert done.err.endswith("raincheck: no paper\n")


@pytest.mark.slow
def test_what_is_in_the_way_is_shown(raincheck: Command) -> None:
    server = ByHand(Response("", 503, {"retry-after": "1"}), pending())
    with serving(server.app) as url:
        done = raincheck("request", "POST", f"{url}/work")
    assert (done.code, done.out) == (0, b'{"done":true}')
    assert "waiting for the server: HTTP 503" in done.err


def test_ctrl_c_without_a_terminal_leaves_the_job_running(url: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "raincheck", "request", f"{url}/reports?pages=4&pause=1", "-d", "x"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    assert process.stderr.readline().startswith("running")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "")
    assert re.search(
        rf"raincheck: the job goes on; wait .+:\n  raincheck watch {url}/jobs/{ID}\n", err
    )


def test_ctrl_c_before_there_is_an_answer_names_the_key() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}/"
        with subprocess.Popen(
            [sys.executable, "-m", "raincheck", "request", address, "-d", "x"],
            stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            connection, _ = silent.accept()
            sent = b""
            while not sent.endswith(b"x"):
                sent += connection.recv(65536)
            time.sleep(0.3)  # until it waits: Python misses a signal just before a system call
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=20)
        connection.close()
    key = re.search(rb"(?i)idempotency-key: (.+)\r\n", sent)
    assert key is not None
    assert process.returncode == 130
    assert f"-H 'Idempotency-Key: {key[1].decode()}'" in err


# --- watch, cancel -------------------------------------------------------------------------------


@pytest.fixture
def job(url: str, raincheck: Command) -> Iterator[str]:
    """The status URL of a job that takes its time."""
    asked = f"{url}/reports?pages=100&pause=1"
    status_url = raincheck("request", "--detach", "POST", asked).out.decode().strip()
    yield status_url
    raincheck("cancel", status_url)


def test_a_job_is_cancelled(job: str, raincheck: Command) -> None:
    done = raincheck("cancel", job)
    assert done.code == 0
    assert done.out in (b"canceling\n", b"canceled\n")
    watched = raincheck("watch", "-s", job)
    assert (watched.code, watched.err) == (6, "raincheck: the job was canceled\n")
    assert json.loads(watched.out)["status"] == 410
    assert raincheck("cancel", job) == (0, b"canceled\n", "")


def test_what_has_ended_is_not_cancelled(url: str, raincheck: Command) -> None:
    asked = f"{url}/reports?pages=1&pause=0"
    status_url = raincheck("request", "--detach", "POST", asked).out.decode().strip()
    assert raincheck("watch", "-s", status_url).code == 0
    assert raincheck("cancel", status_url) == (10, b"succeeded\n", "")


@pytest.mark.parametrize("command", ["watch", "cancel"])
def test_what_is_not_there_is_said(url: str, raincheck: Command, command: str) -> None:
    done = raincheck(command, f"{url}/jobs/{'x' * 30}")
    assert done.code == 9


def test_the_monitor_is_as_good_as_the_status_url(job: str, raincheck: Command) -> None:
    assert raincheck("watch", f"{job}/status", "--deadline", "0.5").code == 28
    assert raincheck("cancel", f"{job}/status").code == 0


def test_every_poll_has_the_credentials(raincheck: Command, tmp_path: Path) -> None:
    app = LongRunningMiddleware(
        Starlette(routes=[Route("/", make_report, methods=["POST"])]),
        owner=header("authorization", secret="s"),
    )
    (tmp_path / "mine").write_text("Authorization: Bearer ann\n")
    words = ["-H", f"@{tmp_path / 'mine'}"]
    with serving(app) as url:
        done = raincheck("request", url, "-d", "x", "--deadline", "0.1", *words)
        command = done.err.splitlines()[-1].split()
        assert command[:4] == ["raincheck", "watch", *words]  # it can be pasted
        assert raincheck("watch", "-s", command[-1]).code == 9
        assert raincheck(*command[1:])[:2] == (0, b"x")


# --- list ----------------------------------------------------------------------------------------


@pytest.fixture
def listed() -> Iterator[str]:
    """A server with a few jobs that have ended, and one that waits for its turn."""
    with serving(marked(policy=Policy(max_running=1))) as url:
        yield url


def test_jobs_are_listed_for_programs(listed: str, raincheck: Command) -> None:
    first = raincheck("request", "--detach", f"{listed}/reports?pages=9&pause=9", "-d", "x")
    second = raincheck("request", "--detach", f"{listed}/reports", "-d", "x")
    failed = raincheck("request", "-s", f"{listed}/broken")
    assert failed.code == 5
    rows = table(raincheck("list", f"{listed}/jobs").out)
    assert [row["status"] for row in rows] == ["failed", "queued", "running"]
    assert [row["route"] for row in rows] == ["broken", "report", "report"]
    assert rows[2]["id"] == first.out.decode().strip().rpartition("/")[2]
    assert rows[2]["message"] == page(1, 9)
    assert rows[2]["progress"] == "11%"
    assert rows[0]["message"] == "The handler ended with an error."
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", rows[0]["created"])

    chosen = table(raincheck("list", f"{listed}/jobs", "--status", "running,queued").out)
    assert len(chosen) == 2
    assert len(table(raincheck("list", f"{listed}/jobs", "--route", "broken").out)) == 1
    one = raincheck("list", f"{listed}/jobs", "--limit", "1")
    assert len(table(one.out)) == 1
    assert one.err == "raincheck: there are more; see --limit\n"
    for job in (first, second):
        raincheck("cancel", job.out.decode().strip())


def test_of_a_job_that_has_failed_once_it_says_when_it_runs_again(raincheck: Command) -> None:
    with serving(marked()) as url:
        url = raincheck("request", "--detach", f"{url}/flaky", "-d", "x").out.decode().strip()
        stopped = raincheck("watch", url, "--deadline", "2")
        (row,) = table(raincheck("list", url.rpartition("/")[0]).out)
    when = re.search(r"queued (runs again at \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)\n", stopped.err)
    assert when, stopped.err
    assert (row["status"], row["message"]) == ("queued", when[1])


def table(out: bytes) -> list[dict[str, str]]:
    head, *lines = out.decode().splitlines()
    assert head.split("\t") == ["id", "status", "progress", "route", "owner", "created", "message"]
    return [dict(zip(head.split("\t"), line.split("\t"), strict=True)) for line in lines]


def test_all_pages_are_read_up_to_the_limit(raincheck: Command) -> None:
    asked: list[str] = []

    async def jobs(request: Request) -> Response:
        asked.append(request.url.query)
        after = int(request.query_params.get("cursor", 0))
        found: list[Any] = [{"job_id": f"j{after + n}", "status": "running"} for n in range(2)]
        return JSONResponse({"jobs": [*found, None], "next": f"/jobs?cursor={after + 2}"})

    with serving(Starlette(routes=[Route("/jobs", jobs)])) as url:
        done = raincheck("list", f"{url}/jobs", "--limit", "5")
    assert [row["id"] for row in table(done.out)] == ["j0", "j1", "j2", "j3", "j4"]
    assert asked == ["limit=5", "cursor=2", "cursor=4"]


def test_the_next_page_is_at_the_same_origin(raincheck: Command) -> None:
    async def jobs(request: Request) -> Response:
        return JSONResponse({"jobs": [{}], "next": "http://127.0.0.1:9/jobs"})

    with serving(Starlette(routes=[Route("/jobs", jobs)])) as url:
        done = raincheck("list", f"{url}/jobs", "-H", "Authorization: secret")
    assert done.code == 0
    assert len(table(done.out)) == 1


@pytest.mark.parametrize(
    ("path", "words", "code", "said"),
    [
        ("/jobs", ["-H", "Authorization: Bearer nobody"], 9, "or not for you"),
        ("/nothing", [], 9, "is it the URL of the jobs, like /jobs?"),
        ("/nothing", [], 9, "are off until the server turns them on"),
        ("/echo", [], 1, "there is no list of jobs at this URL (HTTP 200)"),
        ("/private", [], 8, "HTTP 401"),
        ("/jobs", ["--status", "sleeping"], 8, "No job has this status"),
        ("/jobs", ["--limit", "0"], 2, "--limit"),
    ],
)
def test_what_is_no_list_is_said(
    url: str, raincheck: Command, path: str, words: list[str], code: int, said: str
) -> None:
    done = raincheck("list", url + path, *words)
    assert (done.code, done.out) == (code, b"")
    assert said in done.err


def test_changes_are_lines_for_programs(listed: str) -> None:
    command = [sys.executable, "-m", "raincheck"]
    watching = [*command, "list", "--watch", "--every", "0.1", f"{listed}/jobs"]
    seen = []
    with subprocess.Popen(watching, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("id\tstatus\t")
        sent = [*command, "request", "-s", f"{listed}/reports?pages=3", "-d", "new"]
        asked = subprocess.run(sent, capture_output=True, check=True, timeout=30)
        assert asked.stdout == b"new"
        for line in process.stdout:
            seen.append(line.split("\t")[1:3])
            if seen[-1] == ["succeeded", "100%"] and ["running", "33%"] in seen:
                break
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert len({tuple(each) for each in seen}) >= 3


@pytest.mark.parametrize(
    "page", [{"jobs": [1], "next": "?"}, {"jobs": [{"job_id": "a"}], "next": "/\ud800"}], ids=str
)
def test_a_list_that_leads_nowhere_has_an_end(raincheck: Command, page: dict[str, Any]) -> None:
    async def jobs(request: Request) -> Response:
        return Response(json.dumps(page), media_type="application/json")

    with serving(Starlette(routes=[Route("/jobs", jobs)])) as url:
        done = raincheck("list", f"{url}/jobs")
    assert (done.code, done.err) == (0, "")


def test_a_coding_that_is_none_is_said(raincheck: Command) -> None:
    async def broken(request: Request) -> Response:
        return Response(b"plain", headers={"content-encoding": "gzip"})

    with serving(Starlette(routes=[Route("/jobs", broken)])) as url:
        done = raincheck("list", f"{url}/jobs")
    assert (done.code, len(done.err.splitlines())) == (7, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "streams", "code"),
    [
        ("request -s", "<&- >&- 2>&-", 0),
        ("request -s --json @-", "<&-", 0),
        ("request -d x", "2>&-", 0),
        ("watch --help", ">/dev/full", 23),
        ("watch --help", ">/dev/full 2>/dev/full", 23),
    ],
)
def test_closed_and_full_streams_are_no_crash(
    url: str, words: str, streams: str, code: int
) -> None:
    done = subprocess.run(
        f"{sys.executable} -m raincheck {words} {url}/echo {streams}",
        shell=True, capture_output=True, text=True, executable="/bin/bash", timeout=60,
    )  # fmt: skip
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr


def test_ctrl_c_at_the_start_is_no_crash(
    raincheck: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("raincheck.cli.commands.run", interrupted)
    assert raincheck("request", "h") == (130, b"", "")


@pytest.mark.parametrize("slow", ["starlette", "click"])
def test_ctrl_c_while_it_is_being_loaded_says_nothing(tmp_path: Path, slow: str) -> None:
    """As whoever has mistyped presses it: within the third of a second that imports take."""
    takes_time = "print('importing', flush=True)\nimport time\nwhile True: time.sleep(0.01)"
    (tmp_path / f"{slow}.py").write_text(takes_time)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["raincheck"].partition(":")
    script = f"import sys; from {module} import {function}; sys.exit({function}())"  # as pip has it
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    with subprocess.Popen(
        [sys.executable, "-c", script, "list", "h"], env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, "", "")


def test_ctrl_c_is_an_interruption_again_once_it_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def main() -> int:
        seen.append(signal.getsignal(signal.SIGINT))
        return 0

    monkeypatch.setattr("raincheck.cli.entry.main", main)
    for given in (signal.default_int_handler, signal.SIG_IGN):
        seen: list[Any] = []
        before = signal.signal(signal.SIGINT, given)
        try:
            raincheck_command.main()
        finally:
            signal.signal(signal.SIGINT, before)
        assert seen == [given]
