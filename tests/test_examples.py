"""Every example is run as a reader runs it, and so is the README's app."""

from __future__ import annotations

import asyncio
import importlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import cache
from pathlib import Path

import httpx
import pytest
from starlette.types import ASGIApp

from raincheck.testing import follow, lifespan

pytestmark = pytest.mark.real

ROOT = Path(__file__).parent.parent
ID = r"[A-Za-z0-9_-]{30}"

# What each example has to print: regular expressions, in this order.
PRINTED = {
    "celery_app.py": [
        r'GET /thumbnails/movie: 200 {"thumbnail":"movie\.png","by":\d+}\n',
        rf"POST /videos: 202, see /jobs/{ID}\n",
        r"  queued\n",
        r"  running \d+% [1-5] of 5 parts\n",
        rf'GET /jobs/{ID}: 200 {{"frames":5,"by":\d+}}\n',
        r"accepted by process \d+, run by process \d+, where Celery runs its tasks\n",
    ],
    "quickstart.py": [
        r"> POST /emails/send HTTP/1\.1\n(> .+\n)*> Content-Length: 52\n>\n"
        r'{"user_ids": \[1, 2, 3, 4, 5\], "template": "welcome"}\n',
        rf"< HTTP/1\.1 202 Accepted\n(< .+\n)*< location: /jobs/{ID}\n(< .+\n)*< retry-after: 1\n",
        rf'{{"job_id": "{ID}", "status": "running",',
        rf"> GET /jobs/{ID} HTTP/1\.1\n",
        r"< HTTP/1\.1 202 Accepted\n",
        r'"progress": 0\.[2468], "message": "[1234] of 5 sent"',
        r"< HTTP/1\.1 200 OK\n(< .+\n)*< job-status: succeeded\n(< .+\n)*<\n",
        r'{"sent":5,"template":"welcome"}\n',
        rf"> GET /jobs/{ID}/status HTTP/1\.1\n",
        r'"status": "succeeded".+"progress": 1\.0, "message": "5 of 5 sent"',
        r"> GET /reports/7 HTTP/1\.1\n",
        rf"< HTTP/1\.1 202 Accepted\n< location: /jobs/{ID}\n",
        r"> prefer: wait=10\n",
        r"< HTTP/1\.1 200 OK\n< content-type: text/csv; charset=utf-8\n< job-status: succeeded\n",
        r"month,total\n1,7\n2,14\n3,21\n",
    ],
    "wrap_existing_app.py": [
        r'GET /health: 200 {"ok":true}\n',
        rf"POST /videos: 202, see /jobs/{ID}\n",
        rf'GET /jobs/{ID}: 201 {{"bytes":5}}\n',
        rf"GET /reports/7: 202, see /jobs/{ID}\n",
        rf'GET /jobs/{ID}: 200 {{"report":7}}\n',
    ],
    "fastapi_app.py": [
        r"no file: 422 Field required\n",
        rf"a file: 202, see /jobs/{ID}\n",
        r'the job: 201 {"rows":3,"session_open":true}\n',
    ],
    "oauth2_owner.py": [
        r"no token: 401 Not authenticated\n",
        r"ann submits: 202; sessions: 1 open, her handler's\n",
        r"bob submits: 202; sessions: 1 open, he waits without\n",
        r"bob asks for ann's job: 404; ann does: 202\n",
        r"ann's job: 201 {\"user\":\"ann\",\"visits\":1}\n",
        r"bob asks with a token that has expired: 404\n",
        r"bob's job, with a new one: 201 {\"user\":\"bob\",\"visits\":1}\n",
        r"sessions: 0 open\n",
    ],
    "openapi.py": [
        r"POST /reports answers 200, 202, 303, 400, 413, 422, 500, 502, 503, 504\n",
        r"its 202 has Location, Retry-After, and leads to result, delete, monitor, events, ",
        r"the client asks jobs_result at /jobs/\{job_id\}\n",
        r'202 running, then 200 {"pages":3}\n',
    ],
    "progress.py": [
        line
        for path in ("async", "thread")
        for line in (
            rf"GET /{path}: 202\n",
            r"  running 33% resized 1 of 3\n",
            r"  running 67% resized 2 of 3\n",
            r"  running 100% resized 3 of 3\n",
            r"  succeeded 100% resized 3 of 3\n",
        )
    ],
    "events.py": [
        r"POST /resize: 202\n",
        r"  event 1: running\n",
        r"  event 2: running 33% resized 1 of 3\n",
        r"  event 3: running 67% resized 2 of 3\n",
        r"  event 4: running 100% resized 3 of 3\n",
        r"  event 5: succeeded 100% resized 3 of 3\n",
        r"Last-Event-ID: 5: 204\n",
    ],
    "hybrid.py": [
        r"GET /search\?seconds=0: 200 slept 0\.0 s\n",
        rf"GET /search\?seconds=1: 202 /jobs/{ID} 200 slept 1\.0 s\n",
        r"GET /search\?seconds=1, Prefer: wait=5: 200 slept 1\.0 s\n",
        r"GET /export\?seconds=1: 200 slept 1\.0 s\n",
        rf"GET /export\?seconds=1, Prefer: respond-async: 202 /jobs/{ID} 200 slept 1\.0 s\n",
        r"GET /export\?seconds=1, Prefer: respond-async, wait=5: 200 slept 1\.0 s\n",
    ],
    "retries.py": [
        r"POST /imports: 202\n",
        r"  queued, run 1 was the last, the next one at [\d-]+T[\d:]+Z\n",
        r"  queued, run 2 was the last, the next one at [\d-]+T[\d:]+Z\n",
        r"  succeeded, run 3 was the last\n",
        rf'GET /jobs/{ID}: 200 {{"imported":12}}\n',
    ],
    "resumable_stream.py": [
        rf"POST /answers: 202, see /jobs/{ID}/stream\n",
        r"curl, and cut after a second: [123]?\d of 40 tokens\n",
        r"curl -C -: 40 of 40 tokens, each once\n",
    ],
    "operator_view.py": [
        r"ann submits a report, and one that fails; bob submits a report\n",
        r"root lists what runs: bob's report, ann's report\n",
        r"root lists what has failed: ann's broken \(The response has status 500\.\)\n",
        r"root counts 2 running and 1 failed, by 1 worker\n",
        r"root cancels bob's report: 202\n",
        r"root opens ann's report: 404\n",
        r"ann lists: broken failed, report running\n",
        r"eve lists: 404\n",
    ],
    "telemetry.py": [
        r"POST /reports/1, /reports/2, /reports/3: 202, 202, 202\n",
        r'GET /health/ready: 200 {"status":"ready","running":1,"queued":2}\n',
        r"GET /health/queue: 2 wait, the first for 1\.\d s\n",
        r'the log: {"level": "WARNING", "route": "report", "run": 1, "seconds": 1\.[5-9], '
        r'"reason": "timeout"}\n',
        r"GET /metrics/:\n",
        r'  raincheck_finished_total{outcome="failed",reason="timeout",route="report"} 1\.0\n',
        r'  raincheck_jobs{route="report",state="queued"} 1\.0\n',
    ],
    "callbacks.py": [
        r"POST /reports/7: 202, applied: respond-async, callback\n",
        r"received: succeeded, with 200, after 1 delivery that was turned away\n",
        r'the job: {"status": "delivered", "deliveries": 2, "last_error": null}\n',
        r"to a URL that nothing permits: 202, applied: respond-async\n",
    ],
    "browser_form.py": [
        rf"POST /reports: 303, see /jobs/{ID}\n",
        rf"GET /jobs/{ID}: 202, a page: In progress 33%, wrote page 1 of 3\n",
        rf"GET /jobs/{ID}: 202, a page: In progress 67%, wrote page 2 of 3\n",
        rf"GET /jobs/{ID}: 202, a page: In progress 100%, wrote page 3 of 3\n",
        rf"GET /jobs/{ID}: 200, report\.txt: 3 pages\n",
        rf"POST /jobs/{ID}/cancel: 303, then 410, a page: It was canceled\n",
    ],
    "client.py": [
        r'followed: 201 {"pages":3}\n',
        *(rf"  running page {page} of 3\n" for page in (1, 2, 3)),
        r"  succeeded page 3 of 3\n",
        r'watched: 201 {"pages":3}\n',
        rf"late: the job has not ended within 0\.5 seconds; .+ http://127\.0\.0\.1:\d+/jobs/{ID}\n",
        r'resumed: 201 {"pages":3}\n',
        r"cancelled: canceled\n",
    ],
    "encrypted_store.py": [
        r"SQLiteStore: its files have the token, the name, the cookie and the report\n",
        r"EncryptedStore: its files have none of them\n",
        rf"GET /jobs/{ID}: 200 report-cookie=c00k1e \"The report on Ada\"\n",
        rf"GET /jobs/{ID}, Range: bytes=14-: 206 \"Ada\"\n",
    ],
    "ogc_process.py": [
        rf"POST /processes/buffer/execution: 201, see /jobs/{ID}\n",
        rf"GET /jobs/{ID}/results: 404 result-not-ready\n(  running \d+%\n)+  successful\n",
        rf'GET /jobs/{ID}/results: 200 {{"area":12\.5}}\n',
        r"without distance: 201, failed, then 422 There is no distance\.\n",
        r"DELETE: 200 dismissed\nGET /jobs: dismissed, failed, successful\n",
    ],
    "openai_background.py": [
        r"created: in_progress\ncompleted: It will rain in Oslo\.\n",
        r"failed: There is no such place\.\ncancelled: cancelled\n",
        r"deleted: 410 The job has expired, or was deleted\.\n",
    ],
    "azure_client.py": [
        r"begun: running\n",
        r'result: 201 {"pages":3}\n',
        r"failed: \(handler-response\) The response has status 422\.\n",
        r'resumed: 201 {"pages":3}\n',
    ],
    "serve_untouched.py": [
        r"\$ raincheck serve .+ --check\n",
        r"POST /videos\n    POST /videos\n",
        r"/reports/\{id:int\}\n    GET /reports/\{id:int\}\n",
        r"answered as before\n    GET /health\n",
        r"\$ raincheck request http://127\.0\.0\.1:\d+/videos -d frame\n",
        r"running\n",
        r"succeeded\n",
        r'{"bytes":5}\n',
        r"exit code 0\n",
    ],
    "durable.py": [
        rf"POST /reports: 202, see /jobs/{ID}\n",
        r"  running 50% page 2 of 4 by process (\d+)\n",
        r"kill -9 \d+\n",
        r"  running 25% page 1 of 4 by process (\d+)\n",
        r"  running 75% page 3 of 4 by process (\d+)\n",
        r"  succeeded 100% page 4 of 4 by process (\d+)\n",
        rf'GET /jobs/{ID}: 200 {{"pages":4}}\n',
    ],
}

FIRST = {"quickstart.py", "wrap_existing_app.py", "fastapi_app.py"}
"""Examples that a reader begins with; the others, each a process of its own, are run with what is
slow."""


@cache
def run(name: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, f"examples/{name}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)


def test_every_example_is_driven() -> None:
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(PRINTED)


@pytest.mark.parametrize(
    "name",
    [name if name in FIRST else pytest.param(name, marks=pytest.mark.slow) for name in PRINTED],
)
def test_example_prints_its_exchange(name: str) -> None:
    done = run(name)
    assert (done.returncode, done.stderr) == (0, "")
    place = 0
    for expected in PRINTED[name]:
        match = re.compile(expected).search(done.stdout, place)
        assert match is not None, f"{expected!r} is missing after:\n{done.stdout[:place]}"
        place = match.end()


@pytest.mark.parametrize("name", PRINTED)
def test_example_has_an_app_for_a_server(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    app: ASGIApp = importlib.import_module(f"examples.{name.removesuffix('.py')}").app
    assert callable(app)


@asynccontextmanager
async def client_of(name: str) -> AsyncIterator[httpx.AsyncClient]:
    app: ASGIApp = importlib.import_module(f"examples.{name}").app
    transport = httpx.ASGITransport(app)
    async with lifespan(app), httpx.AsyncClient(transport=transport, base_url="http://a") as client:
        yield client


@pytest.mark.anyio
@pytest.mark.one_loop
@pytest.mark.parametrize("wrong", ['"user_ids": [1], "template": "\\ud83d"', '"user_ids": 1', "{"])
async def test_quickstart_says_what_it_cannot_send(wrong: str) -> None:
    async with client_of("quickstart") as client:
        accepted = await client.post("/emails/send", content=f"{{{wrong}}}")
        assert (await follow(client, accepted)).status_code == 422


@pytest.mark.anyio
@pytest.mark.one_loop
@pytest.mark.parametrize("wrong", ['"input": "\\ud83d"', '"inputs": ""', "{"])
async def test_a_background_response_says_what_it_cannot_take(wrong: str) -> None:
    async with client_of("openai_background") as client:
        response = (await client.post("/v1/responses", content=f"{{{wrong}}}")).json()
        while response["status"] in ("queued", "in_progress"):
            response = (await client.get(f"/v1/responses/{response['id']}")).json()
        assert response["error"]["message"] == "There is no text as input."


def children(pid: int) -> list[int]:
    """The process ids of those that a process has started, and of those that they have."""
    found = list[int]()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *children(child)]
    return found


def runs(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return not stat.rpartition(") ")[2].startswith("Z")


# What each has printed when it is told to end: by then something of it is being served.
STARTED = {
    "durable.py": "kill -9",
    "resumable_stream.py": "POST /answers",
    "serve_untouched.py": "running",
    "celery_app.py": "GET /thumbnails",
    "email_campaign": "kill -9",
    "import_export": "  running",
    "pdf_report": "  running",
    "video_transcoding": "  running",
    "webhook_delivery": "to steady",
    "distributed": "POST /videos",
}


def test_all_that_start_processes_are_told_to_end() -> None:
    found = [path for path in (ROOT / "examples").glob("**/*.py") if "Popen(" in path.read_text()]
    names = {path.parent.name if path.name == "__main__.py" else path.name for path in found}
    assert names - {"ffmpeg.py"} == set(STARTED)


@pytest.mark.slow
@pytest.mark.parametrize("name", STARTED)
def test_an_example_that_is_told_to_end_leaves_nothing_running(name: str, tmp_path: Path) -> None:
    if name == "video_transcoding" and shutil.which("ffmpeg") is None:
        pytest.skip("no ffmpeg; apt-get install ffmpeg brings it")
    how = [f"{ROOT}/examples/{name}"] if name.endswith(".py") else ["-m", f"examples.{name}"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{environment.get('PYTHONPATH', '')}"
    folder = ROOT if name == "serve_untouched.py" else tmp_path  # it is told of a file there
    with subprocess.Popen(
        [sys.executable, *how], cwd=folder, env=environment, text=True, stdout=subprocess.PIPE
    ) as example:
        try:
            assert example.stdout is not None
            assert any(line.startswith(STARTED[name]) for line in example.stdout)
            started = children(example.pid)
            assert started
            example.terminate()
            assert example.wait(timeout=60) == 128 + signal.SIGTERM
            assert [pid for pid in started if runs(pid)] == []
        finally:
            example.kill()


@pytest.mark.slow
def test_quickstart_serves_until_a_signal_ends_it() -> None:
    with ExitStack() as stack:
        numbers = (signal.SIGINT, signal.SIGTERM)
        for number, server in [(number, stack.enter_context(serving())) for number in numbers]:
            assert server.stdout is not None
            assert server.stderr is not None
            last = next(line for line in server.stdout if "wait=5" in line)
            url = last.split()[2]
            answer = httpx.get(url, headers={"prefer": "wait=10"})
            assert (answer.status_code, answer.text) == (200, "month,total\n1,7\n2,14\n3,21\n")
            server.send_signal(number)
            assert server.wait(timeout=20) == 0
            assert server.stderr.read() == ""


@contextmanager
def serving() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "examples/quickstart.py", "--serve"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as server:
        try:
            yield server
        finally:
            server.kill()


def test_the_user_of_the_token_owns_the_job_over_a_real_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        command = [sys.executable, "-m", "uvicorn", "oauth2_owner:app", "--log-level=warning"]
        command += [f"--app-dir={ROOT / 'examples'}", f"--fd={listener.fileno()}"]
        server = subprocess.Popen(command, cwd=tmp_path, pass_fds=[listener.fileno()])
        try:
            with httpx.Client(base_url=url, timeout=60) as client:
                ask_as_two_users(client)
        finally:
            server.terminate()
            assert server.wait(timeout=30) in (0, -signal.SIGTERM)


def ask_as_two_users(client: httpx.Client) -> None:
    wrong = client.post("/token", data={"username": "ann", "password": "dry"})
    assert wrong.status_code == 400
    headers = {}
    for user, password in (("ann", "wet"), ("bob", "dry")):
        form = {"username": user, "password": password}
        token = client.post("/token", data=form).json()["access_token"]
        headers[user] = {"Authorization": f"Bearer {token}"}
    forged = {"Authorization": headers["ann"]["Authorization"][:-4] + "AAAA"}
    assert client.post("/reports?seconds=0", headers=forged).status_code == 401

    accepted = client.post("/reports?seconds=0.5", headers=headers["ann"])
    assert accepted.status_code == 202
    url = accepted.headers["location"]
    for others in (headers["bob"], forged, {}):
        for method, path in (("GET", url), ("GET", f"{url}/status"), ("POST", f"{url}/cancel")):
            assert client.request(method, path, headers=others).status_code == 404
    done = client.get(url, headers=headers["ann"] | {"Prefer": "wait=10"})
    assert (done.status_code, done.json()) == (201, {"user": "ann", "visits": 1})
    assert client.get(url, headers=headers["bob"]).status_code == 404


def test_the_app_of_the_readme_does_what_is_shown() -> None:
    names: dict[str, ASGIApp] = {}
    exec(blocks("python")[0], names)
    app = names["app"]

    async def session() -> None:
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app")
        async with lifespan(app), client:
            invalid = await client.post("/emails/send", json=["oops"])
            assert invalid.status_code == 422
            accepted = await client.post("/emails/send", json=[1])
            assert accepted.status_code == 202
            assert re.fullmatch(f"/jobs/{ID}", accepted.headers["location"])
            response = await follow(client, accepted)
            assert (response.status_code, response.text) == (200, '{"sent":1}')

    asyncio.run(session())


def test_ci_runs_the_commands_of_the_readme() -> None:
    commands = [block.strip() for block in blocks("") if "&&" in block]
    assert len(commands) == 2
    ci = (ROOT / ".ci" / "run").read_text()
    assert [command for command in commands if f"bash -c '{command}'\n" not in ci] == []


def test_ci_runs_what_pytest_leaves_out() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    assert "&& pytest'\npytest -m slow\n" in ci


def blocks(language: str) -> list[str]:
    """The README's code blocks in this language."""
    readme = (ROOT / "README.md").read_text()
    return [
        text for kind, text in re.findall(r"```(\w*)\n(.*?)```", readme, re.S) if kind == language
    ]


def test_redis_as_the_broker_of_celery_is_installed_as_celery_has_it() -> None:
    """Without `celery[redis]` its broker lacks a package; here pytest happens to bring that."""
    for path in ("examples/celery_app.py", "docs/scaling.md"):
        text = (ROOT / path).read_text()
        commands = re.findall(r"pip install raincheck\[celery,.+", text)
        assert [command for command in commands if " celery[redis]" not in command] == []
        assert commands, path


@pytest.mark.slow
def test_celery_runs_the_job_where_it_runs_its_tasks() -> None:
    printed = run("celery_app.py").stdout
    by = re.findall(r'"by":(\d+)', printed)
    accepted_by, run_by = re.findall(r"by process (\d+)", printed)
    assert by == [run_by, run_by]
    assert accepted_by != run_by


@pytest.mark.slow
def test_the_durable_job_is_finished_by_another_process() -> None:
    printed = run("durable.py").stdout
    killed = re.findall(r"kill -9 (\d+)", printed)
    by = re.findall(r"page (\d) of 4 by process (\d+)", printed)
    assert {process for page, process in by if page == "4"}.isdisjoint(killed)
    assert {process for page, process in by if page == "2"} > set(killed)
