"""The apps of how-to.md do what the page says of them."""

from __future__ import annotations

import time
from pathlib import Path

import anyio
import jwt
import pytest

from raincheck.testing import assert_job, follow
from tests.docs.blocks import ROOT, Block, blocks, run
from tests.support import running

PAGE = [block for block in blocks(ROOT / "docs" / "how-to.md") if block.file]

KEY = "k" * 32

pytestmark = [pytest.mark.anyio, pytest.mark.real]


@pytest.fixture(params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def block(name: str) -> Block:
    (found,) = (each for each in PAGE if each.file == name)
    return found


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKEN_KEY", KEY)
    monkeypatch.setenv("WEBHOOK_SECRET", "whsec_" + "c2Vj" * 8)
    return tmp_path


async def test_jobs_are_kept() -> None:
    async with running(run(block("keeps.py"), {})["app"]) as client:
        accepted = await client.post("/reports")
        assert (await follow(client, accepted)).json() == {"rows": 3}
    async with running(run(block("keeps.py"), {})["app"]) as client:  # as if started again
        response = await client.get(accepted.headers["location"])
        assert (response.status_code, response.json()) == (200, {"rows": 3})


def bearer(name: str) -> dict[str, str]:
    return {"authorization": "Bearer " + jwt.encode({"sub": name}, KEY, "HS256")}


async def test_users_are_kept_apart() -> None:
    async with running(run(block("owners.py"), {})["app"]) as client:
        assert (await client.post("/reports")).status_code == 401
        accepted = await client.post("/reports", headers=bearer("ann"))
        assert (await follow(client, accepted)).json() == {"for": "ann"}
        place = accepted.headers["location"]
        assert (await client.get(place, headers=bearer("bob"))).status_code == 404
        assert (await client.get(place)).status_code == 404
        assert (await client.get(place, headers=bearer("ann"))).json() == {"for": "ann"}


async def test_a_request_is_sent_twice() -> None:
    names = run(block("keys.py"), {})
    async with running(names["app"]) as client:
        assert (await client.post("/emails?subject=a")).status_code == 400
        key = {"idempotency-key": '"8e03978e"'}
        first = await client.post("/emails?subject=a", headers=key)
        await follow(client, first)
        again = await client.post("/emails?subject=a", headers=key)
        assert again.headers["location"] == first.headers["location"]
        assert again.headers["idempotency-replayed"] == "true"
        assert (await client.post("/emails?subject=b", headers=key)).status_code == 422
        assert names["sent"] == ["a"]


async def test_who_asks_is_told() -> None:
    async with running(run(block("tells.py"), {})["app"]) as client:
        for url, applied in (
            ("https://hooks.example.com/in/7", "respond-async, callback"),
            ("https://elsewhere.example.com/", "respond-async"),
        ):
            prefer = {"prefer": f'respond-async, callback; url="{url}"'}
            accepted = await client.post("/reports", headers=prefer)
            assert accepted.headers["preference-applied"] == applied
            if "callback" not in applied:
                return
            await client.delete(accepted.headers["location"])  # nobody is there to be told


async def test_progress_is_seen() -> None:
    async with running(run(block("progress.py"), {})["app"]) as client:
        accepted = await client.post("/imports?rows=20")
        await follow(client, accepted)
        await assert_job(client, accepted, progress=1.0, message="20 of 20 rows")


async def test_a_thread_stops() -> None:
    names = run(block("stops.py"), {})
    async with running(names["app"]) as client:
        accepted = await client.post("/films")
        await assert_job(client, accepted, message="encoding")
        begun = time.monotonic()
        await client.post(accepted.headers["location"] + "/cancel")
        await assert_job(client, accepted, status="canceled")
        assert time.monotonic() - begun < 5
        assert names["cleaned"] == ["a half of a film"]


async def test_what_is_quick_is_answered_at_once() -> None:
    async with running(run(block("hybrid.py"), {})["app"]) as client:
        assert (await client.post("/searches?seconds=0")).json() == {"took": 0}
        assert (await client.post("/searches?seconds=1")).status_code == 202
        assert (await client.post("/exports")).status_code == 200
        asked = await client.post("/exports", headers={"prefer": "respond-async"})
        assert asked.status_code == 202


async def test_what_failed_runs_again() -> None:
    async with running(run(block("repeats.py"), {})["app"]) as client:
        accepted = await client.post("/imports")
        assert (await follow(client, accepted)).json() == {"asked": 3}
        await assert_job(client, accepted, runs=3)


async def test_what_waits_too_long_never_begins() -> None:
    async with running(run(block("waits.py"), {})["app"]) as client:
        first = await client.post("/reports?seconds=2")
        second = await client.post("/reports?seconds=0")
        response = await follow(client, second)
        assert (response.status_code, response.headers["job-status"]) == (503, "failed")
        assert response.json()["type"] == "urn:raincheck:problem:waited-too-long"
        assert (await follow(client, first)).json() == {"took": 2}


async def test_large_bodies_are_in_files(place: Path) -> None:
    async with running(run(block("large.py"), {})["app"]) as client:
        accepted = await client.post("/rows", content=b"of a table\n" * 50_000)
        response = await follow(client, accepted)
        assert response.text.splitlines() == [*map(str, range(50_000))]
        sizes = [path.stat().st_size for path in (place / "bodies").iterdir()]
        assert sizes == [len(response.content)]


async def test_the_test_passes() -> None:
    await anyio.to_thread.run_sync(run(block("test_reports.py"), {})["test_a_report"])


def test_every_app_is_driven() -> None:
    source = Path(__file__).read_text()
    assert [each.file for each in PAGE if f'block("{each.file}")' not in source] == []
