"""`serve`: apps that know nothing of raincheck, in processes of their own, on real sockets."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn

from raincheck.cli.loading import load_app
from raincheck.cli.serving import Served
from raincheck.cli.settings import Settings
from tests.cli import apps
from tests.cli.conftest import Command
from tests.client.servers import serving
from tests.servers import free_port
from tests.stores.valkey import valkey_server  # noqa: F401 # a fixture

ROOT = Path(__file__).parents[2]
HERE = "tests.cli.apps"


def listens(port: int) -> bool:
    """Whether somebody does on this port."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def served(*arguments: str, **environment: str) -> Iterator[str]:
    """`raincheck serve` in a process of its own; it is to end by SIGTERM."""
    port = str(free_port())
    command = [sys.executable, "-m", "raincheck", "serve", *arguments, "--port", port]
    url = f"http://127.0.0.1:{port}"
    environment = {**os.environ, **environment}
    quiet, pipe = subprocess.DEVNULL, subprocess.PIPE
    with subprocess.Popen(
        command, cwd=ROOT, stdout=quiet, stderr=pipe, text=True, env=environment
    ) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if "Application startup complete" in line:
                    break
            else:
                raise AssertionError("it has not started")
            while not listens(int(port)):  # which it does a moment after it has said so
                time.sleep(0.01)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            rest = process.stderr.read()
            process.wait(20)
    assert "Traceback" not in rest, rest


@pytest.mark.real
def test_an_app_is_served_untouched(raincheck: Command, tmp_path: Path) -> None:
    store = f"sqlite:{tmp_path / 'jobs.db'}"
    rules = ("--route", "POST /videos timeout=60", "--route", "/reports/{id}", "--store", store)
    with served(f"{HERE}:plain", *rules) as url:
        health = httpx.get(f"{url}/health")
        assert (health.status_code, health.json()) == (200, {"ok": True})
        accepted = httpx.post(f"{url}/videos", content=b"frame")
        assert accepted.status_code == 202
        assert httpx.get(f"{url}/reports/7").status_code == 202
        job = url + accepted.headers["location"]
        assert raincheck("watch", "-s", job) == (0, b'{"bytes":5}', "")
    with served(f"{HERE}:make_plain", "--factory", *rules) as url:  # the file has outlived it
        answer = httpx.get(url + accepted.headers["location"])
        assert (answer.status_code, answer.json()) == (201, {"bytes": 5})


@pytest.mark.slow
@pytest.mark.real
def test_workers_share_their_jobs(raincheck: Command, tmp_path: Path) -> None:
    config = tmp_path / "raincheck.toml"
    config.write_text(
        f'store = "sqlite:{tmp_path / "jobs.db"}"\nowner = "header:Authorization"\n'
        'own_list = true\n[routes."POST /videos"]\n'
    )
    with served(
        f"{HERE}:plain", "--config", str(config), "--workers", "2", "--", "--header", "X-By: rain",
        RAINCHECK_SECRET="the same for all",
    ) as url:  # fmt: skip
        ann = ("-H", "Authorization: ann")
        jobs = []
        for _ in range(6):  # over connections of their own
            done = raincheck("request", "--detach", f"{url}/videos", "-d", "frame", *ann)
            jobs.append(done.out.decode().strip())
        assert httpx.get(f"{url}/health").headers["x-by"] == "rain"
        for job in jobs:
            assert raincheck("watch", "-s", job, *ann) == (0, b'{"bytes":5}', "")
            assert raincheck("watch", "-s", job).code == 9
        listed = raincheck("list", f"{url}/jobs", *ann).out.decode().splitlines()
        assert len(listed) == 7


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("kind", ["valkey", "postgres"])
def test_a_server_has_the_jobs_of_several_processes(
    raincheck: Command, request: pytest.FixtureRequest, kind: str
) -> None:
    where = request.getfixturevalue(kind).url
    rules = ("--route", "POST /videos", "--deployment", f"cli-{kind}")
    with (
        served(f"{HERE}:plain", *rules, "--store", where) as one,
        served(f"{HERE}:plain", *rules, RAINCHECK_STORE=where) as other,
    ):
        sent = raincheck("request", "--detach", f"{one}/videos", "-d", "frame").out.decode()
        job = sent.strip().replace(one, other)
        assert raincheck("watch", "-s", job) == (0, b'{"bytes":5}', "")


@pytest.mark.real
def test_an_app_of_wsgi_is_served(raincheck: Command) -> None:
    rules = ("--wsgi", "--route", "POST /slow", "--operator", f"{HERE}:operator")
    with served(f"{HERE}:of_wsgi", *rules) as url:
        done = raincheck("request", "-si", f"{url}/slow", "-d", "a body")
        assert done.code == 0
        head, _, body = done.out.partition(b"\r\n\r\n")
        assert b"set-cookie: a=1" in head
        assert b"job-status: succeeded" in head
        assert body == b"got a body" + b"." * 20
        assert httpx.get(f"{url}/fast").text == "got " + "." * 20
        assert b"POST /slow" in raincheck("list", f"{url}/jobs").out


@pytest.mark.real
def test_jobs_of_wsgi_leave_threads_for_others(raincheck: Command) -> None:
    apps.calls.clear()
    settings = Settings(routes={"/stuck": {}}, limits={"max_running": 12})
    app = Served(app=f"{HERE}:of_wsgi", wsgi=True, settings=settings).wrapped(apps.of_wsgi)
    with serving(app) as url:
        jobs = [url + httpx.get(f"{url}/stuck").headers["location"] for _ in range(12)]
        while apps.calls != ["begun"] * 12:
            time.sleep(0.01)
        assert httpx.get(f"{url}/fast", timeout=5).status_code == 200
        assert raincheck("cancel", jobs[0]) == (0, b"canceling\n", "")
        apps.go_on.set()
        # It could not be stopped, and its response is whole.
        assert raincheck("watch", "-s", jobs[0]) == (0, b"got " + b"." * 20, "")


@pytest.mark.real
def test_a_rule_that_matches_nothing_stops_the_start(raincheck: Command) -> None:
    command = [sys.executable, "-m", "raincheck", "serve", f"{HERE}:plain", "--port", "0"]
    done = subprocess.run(
        [*command, "--route", "GET /nothing"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 3
    assert "'GET /nothing' matches no route that can be read; see --check" in done.stderr
    assert "Traceback" not in done.stderr


# --- what cannot be served -----------------------------------------------------------------------


@pytest.mark.parametrize("workers", [["--workers", "2"], ["--", "--workers", "3"], []])
def test_workers_need_a_store_that_they_share(
    raincheck: Command, workers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not workers:
        monkeypatch.setenv("WEB_CONCURRENCY", "2")
    done = raincheck("serve", f"{HERE}:plain", "--route", "POST /videos", *workers)
    assert (done.code, done.out) == (2, b"")
    assert "give a store that they share, like --store sqlite:jobs.db, or --workers 1" in done.err


def test_a_store_that_can_never_work_is_said_before_there_are_workers(
    raincheck: Command, tmp_path: Path
) -> None:
    store = f"sqlite:{tmp_path}/missing/jobs.db"
    routes = ("--route", "POST /videos", "--store", store, "--workers", "2")
    done = raincheck("serve", f"{HERE}:plain", *routes)
    assert (done.code, done.out) == (2, b"")
    assert "its directory has to exist" in done.err
    assert "Started server process" not in done.err


def test_a_directory_that_is_gone_is_said(
    raincheck: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    done = raincheck("serve", f"{HERE}:plain", "--check", "--route", "POST /videos")
    assert (done.code, done.out) == (2, b"")
    assert "the current directory is not there any more; change to one that is" in done.err


def test_a_number_of_workers_that_is_none_is_said(
    raincheck: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", "auto")
    done = raincheck("serve", f"{HERE}:plain", "--route", "POST /videos")
    assert (done.code, done.out) == (2, b"")
    assert "WEB_CONCURRENCY='auto': it is a whole number" in done.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["shop"], "the app 'shop': give module:attribute, like shop.main:app"),
        (["shop:"], "the app 'shop:': give module:attribute"),
        (["shop:app"], "the app 'shop:app': there is no module shop in "),
        (["tests.nothing.app:app"], "there is no module tests.nothing in "),
        (["tests/cli/apps.py:plain"], "name the module, not its file: tests.cli.apps:plain"),
        ([f"{HERE}:plan"], "tests.cli.apps has no plan; do you mean plain?"),
        ([f"{HERE}:plain.nothing"], "tests.cli.apps.plain has no nothing"),
        ([f"{HERE}:number"], "is a int, and no app"),
        ([f"{HERE}:make_plain"], "if it makes the app, add --factory"),
        ([f"{HERE}:of_wsgi"], "takes two arguments, as WSGI apps do; if it is one, add --wsgi"),
        ([f"{HERE}:plain", "--wsgi"], "takes three arguments, as ASGI apps do; leave out --wsgi"),
        ([f"{HERE}:make_nothing", "--factory"], "has made a int, and no app"),
        ([f"{HERE}:make_trouble", "--factory"], "raised ValueError: no settings\nTraceback"),
        ([f"{HERE}:plain", "--config", "/nowhere.toml"], "/nowhere.toml: No such file"),
        ([f"{HERE}:plain", "--store", "redis://h"], "give --deployment NAME"),
        ([f"{HERE}:plain", "--owner", "header:X-User", "--store", "sqlite:jobs.db"],
         "put random text into the environment variable RAINCHECK_SECRET"),
        ([f"{HERE}:plain", "--owner", "Authorization"],
         "owner 'Authorization': give header:NAME, cookie:NAME or module:function"),
        ([f"{HERE}:plain", "--owner", "header:"], "owner 'header:': give header:NAME"),
        ([f"{HERE}:plain", "--owner", "header: Authorization"], "no header can have this name"),
        ([f"{HERE}:plain", "--route", "POST /videos", "--workers", "2"],
         "store 'memory:': each of 2 workers would have jobs of its own"),
        ([f"{HERE}:plain", "--operator", f"{HERE}:nobody"], "operator 'tests.cli.apps:nobody': "),
        ([f"{HERE}:plain", "--route", "/jobs/x"], "lies below the status routes at /jobs"),
        ([f"{HERE}:plain", "--", "--nothing"], "No such option"),
        ([f"{HERE}:plain", "--port", "70000"], "--port"),
        ([f"{HERE}:plain", "--base-url", "example.org"], "base_url"),
    ],
    ids=lambda value: None,
)  # fmt: skip
def test_what_cannot_be_served_is_said(raincheck: Command, words: list[str], said: str) -> None:
    done = raincheck("serve", *words)
    assert (done.code, done.out) == (2, b"")
    assert said.replace(":", "") in done.err.replace(":", "")
    assert "importlib" not in done.err


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import not_there", "ModuleNotFoundError: No module named 'not_there'"),
        ("app = 1 / 0", "ZeroDivisionError: division by zero"),
        ("def app(:", "SyntaxError: invalid syntax"),
    ],
)
def test_an_app_that_cannot_be_imported_shows_its_own_traceback(
    raincheck: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, said: str
) -> None:
    name = f"app_{abs(hash(source))}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    done = raincheck("serve", f"{name}:app")
    assert done.code == 2
    assert done.err.startswith(f"raincheck: the app '{name}:app': {said}")
    assert f'{name}.py", line 1' in done.err
    assert "importlib" not in done.err
    assert "raincheck/cli" not in done.err


def test_an_app_is_found_by_its_name() -> None:
    assert load_app(f"{HERE}:plain") is apps.plain
    assert load_app(f"{HERE}:make_plain", factory=True) is apps.plain
    assert load_app(f"{HERE}:plain.__call__") == apps.plain.__call__
    assert load_app(f"{HERE}:of_wsgi", wsgi=True) is apps.of_wsgi


# --- which routes a rule matches -----------------------------------------------------------------


def check(raincheck: Command, app: str, *rules: str) -> tuple[int, list[str]]:
    words = [word for rule in rules for word in ("--route", rule)]
    done = raincheck("serve", app, *words, "--check")
    assert done.err == ""
    return done.code, done.out.decode().splitlines()


def test_every_rule_is_shown_with_its_routes(raincheck: Command) -> None:
    found = check(raincheck, f"{HERE}:plain", "POST /videos timeout=5", "/reports/{id}")
    assert found == (
        0,
        [
            "POST /videos",
            "    POST /videos",
            "/reports/{id}",
            "    GET /reports/{id:int}",
            "answered as before",
            "    GET /health",
        ],
    )


def test_a_rule_without_a_route_is_a_failure(raincheck: Command) -> None:
    code, lines = check(raincheck, f"{HERE}:plain", "GET /videos", "POST /videos")
    assert code == 1
    assert lines[:2] == ["GET /videos", "    none of the app's routes"]
    assert lines[2:4] == ["POST /videos", "    POST /videos"]


def test_what_cannot_be_read_may_match(raincheck: Command) -> None:
    code, lines = check(raincheck, f"{HERE}:unreadable", "GET /videos")
    assert code == 0
    assert lines[:2] == ["GET /videos", "    none that can be read"]
    assert lines[-1].startswith("The app has routes that cannot be read")


def test_marked_routes_are_not_said_to_be_answered_as_before(raincheck: Command) -> None:
    assert check(raincheck, f"{HERE}:by_hand") == (
        0,
        [
            "marked",
            "    POST /videos",
            "    POST /reports",
            "answered as before",
            "    any other method /reports",
            "    GET /health",
        ],
    )
    _, lines = check(raincheck, f"{HERE}:by_hand", "POST /videos", "/health")
    assert lines[4:6] == ["marked", "    POST /reports"]
    assert lines[6:] == ["answered as before", "    any other method /reports"]


@pytest.mark.parametrize(
    ("words", "warned"),
    [
        ([f"{HERE}:plain"], True),
        ([f"{HERE}:of_wsgi", "--wsgi"], True),
        ([f"{HERE}:plain", "--route", "POST /videos"], False),
        ([f"{HERE}:by_hand"], False),
        ([f"{HERE}:unreadable"], False),
    ],
)
def test_an_app_in_which_nothing_is_long_running_is_warned_of(
    raincheck: Command, monkeypatch: pytest.MonkeyPatch, words: list[str], warned: bool
) -> None:
    monkeypatch.setattr(uvicorn.main, "invoke", lambda context: None)
    done = raincheck("serve", *words)
    assert ("nothing is long-running" in done.err) is warned
    assert ("--route 'POST /videos'" in done.err) is warned


def test_the_routes_of_fastapi_are_read(
    raincheck: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "of_fastapi.py").write_text(
        "from fastapi import APIRouter, FastAPI\n"
        "app, router = FastAPI(openapi_url=None), APIRouter(prefix='/v1')\n"
        "@router.post('/videos/{name}')\n"
        "async def make(name: str) -> str: ...\n"
        "app.include_router(router)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    found = check(raincheck, "of_fastapi:app", "POST /v1/videos/{name}")
    assert found == (0, ["POST /v1/videos/{name}", "    POST /v1/videos/{name}"])


# --- without the extra ---------------------------------------------------------------------------

BLOCKED = """
import sys

BLOCKED = sys.argv.pop(1).split(",")


class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Blocked())
from raincheck.cli.entry import main

sys.exit(main())
"""


@pytest.mark.real
@pytest.mark.parametrize(
    ("blocked", "words", "code", "said"),
    [
        ("click,rich,httpx2,uvicorn", [], 1, "needs click. Install it with: pip install"),
        ("uvicorn", ["serve", f"{HERE}:plain"], 1, "needs uvicorn. Install it with: pip install"),
        ("a2wsgi", ["serve", f"{HERE}:of_wsgi", "--wsgi"], 2, "pip install raincheck[cli,wsgi]"),
        ("redis", ["serve", f"{HERE}:plain", "--store", "redis://h", "--deployment", "d"], 2,
         "store redis: RedisStore needs redis-py. Install it with: pip install raincheck[redis]"),
    ],
    ids=["all", "uvicorn", "a2wsgi", "redis"],
)  # fmt: skip
def test_what_is_not_installed_is_said(
    blocked: str, words: list[str], code: int, said: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, blocked, *words],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
