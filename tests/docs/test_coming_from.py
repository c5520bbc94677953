"""Both sides of each diff of coming-from.md run, and give the same."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from celery.result import allow_join_result  # type: ignore[import-untyped]  # it has no types

from raincheck.testing import follow
from tests.clients.environments import Environments
from tests.docs.blocks import ROOT, Block, blocks, run
from tests.docs.serving import serving
from tests.stores.valkey import Valkey
from tests.support import running

with warnings.catch_warnings():  # where httpx2 is not installed
    warnings.simplefilter("ignore")
    from fastapi.testclient import TestClient

PAGE = ROOT / "docs" / "coming-from.md"
DRIVERS = Path(__file__).parent / "drivers"
REPORT = {"year": 2026, "rows": 3}

REDIS = "redis://localhost:6379/0"
"""Where the page has it."""

OWN = {"arq": ["arq==0.28.0", "fastapi", "httpx"], "azure": ["azure-functions-durable==1.7.0"]}
"""What the one side needs, and nothing else may have here: arq wants an older redis-py."""

pytestmark = pytest.mark.real


def sides() -> dict[str, tuple[str, str]]:
    """What was before and what is after, by the first word of the section."""
    found = {}
    titles = re.findall(r"^## `?(?:A )?(\w+)", PAGE.read_text(), re.MULTILINE)
    diffs = [block.source.splitlines() for block in blocks(PAGE) if block.language == "diff"]
    for title, lines in zip(titles, diffs, strict=True):
        before, after = (
            "\n".join(line[1:] for line in lines if not line.startswith(other)) + "\n"
            for other in "+-"
        )
        found[title.lower()] = before, after
    return found


SIDES = sides()


def side(name: str, which: int, **replaced: str) -> dict[str, Any]:
    """The names of one side of a diff."""
    source = SIDES[name][which]
    for old, new in replaced.items():
        source = source.replace(old, new)
    return run(Block(f"{name}.md", 1, "python", source), {})


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    server = Valkey(tmp_path)
    server.start()
    yield server
    server.kill()


def test_every_section_has_a_table_and_a_diff() -> None:
    assert list(SIDES) == ["dict", "backgroundtasks", "celery", "arq", "azure"]
    for section in re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        assert "|---|---|" in section, section.splitlines()[0]


# --- before --------------------------------------------------------------------------------------


def polled(client: TestClient, place: str) -> Any:
    for _ in range(100):
        if (document := client.get(place).json()).keys() != {"status"}:
            return document
        time.sleep(0.05)
    raise TimeoutError(place)


def test_before_a_dict() -> None:
    with TestClient(side("dict", 0)["app"]) as client:
        accepted = client.post("/reports?year=2026")
        assert accepted.status_code == 202
        assert polled(client, f"/reports/{accepted.json()['id']}") == REPORT


def test_before_background_tasks() -> None:
    names = side("backgroundtasks", 0)
    with TestClient(names["app"]) as client:
        assert client.post("/emails", json=[1, 2]).json() == {"status": "who knows"}
    assert names["sent"] == [1, 2]


def test_before_celery() -> None:
    names = side("celery", 0, **{"broker=redis, backend=redis": 'broker="memory://"'})
    names["celery"].conf.update(
        task_always_eager=True, task_store_eager_result=True, result_backend="cache+memory://"
    )
    # What a worker that has run in this process has said of results goes for servers as well.
    with allow_join_result(), TestClient(names["app"]) as client:
        accepted = client.post("/reports?year=2026")
        assert polled(client, f"/reports/{accepted.json()['id']}") == REPORT


@pytest.mark.extra_docs
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", OWN)
def test_before_what_has_an_environment_of_its_own(
    name: str, tmp_path: Path, pytestconfig: pytest.Config, valkey: Valkey
) -> None:
    cache = pytestconfig.cache
    assert cache is not None
    python = Environments(cache.mkdir("environments")).python(OWN[name])
    (tmp_path / "before.py").write_text(SIDES[name][0].replace(REDIS, valkey.url))
    done = subprocess.run(
        [python, str(DRIVERS / f"{name}_before.py")],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, str(REPORT)), done.stderr


# --- after ---------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("name", ["dict", "arq", "azure"])
async def test_after(name: str, valkey: Valkey) -> None:
    async with running(side(name, 1, **{REDIS: valkey.url})["app"]) as client:
        accepted = await client.post("/reports?year=2026")
        assert accepted.status_code == 202
        assert (await follow(client, accepted)).json() == REPORT
        assert ("operation-location" in accepted.headers) == (name == "azure")


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_after_background_tasks() -> None:
    names = side("backgroundtasks", 1)
    async with running(names["app"]) as client:
        for user_ids in ([1, 2], [3]):
            accepted = await client.post("/emails", json=user_ids)
            assert (await follow(client, accepted)).json() == {"sent": len(user_ids)}


@pytest.mark.extra_docs
def test_after_celery(tmp_path: Path, valkey: Valkey) -> None:
    (tmp_path / "shop.py").write_text(SIDES["celery"][1].replace(REDIS, valkey.url))
    found = re.search(r"`celery (-A shop:celery worker.*?)`", PAGE.read_text())
    assert found
    with serving("uvicorn shop:app", tmp_path) as server:
        with (tmp_path / "worker.log").open("w") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "celery", *found[1].split()],
                cwd=tmp_path,
                env=server.environ,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            with httpx.Client(base_url=server.url, timeout=40) as client:
                accepted = client.post("/reports?year=2026")
                assert accepted.status_code == 202
                assert follow(client, accepted).json() == REPORT
        finally:
            worker.terminate()
            worker.wait(60)
