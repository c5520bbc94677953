"""What a release is inside the other frameworks: an exception, which each of them passes on."""

# mypy: disallow-untyped-decorators=False
# (checked without the frameworks installed, too)

from __future__ import annotations

import gc
from collections.abc import Callable
from logging import INFO
from typing import Any

import anyio
import pytest
from starlette.types import ASGIApp

from raincheck import LongRunningMiddleware, long_running
from raincheck.testing import follow
from tests.conftest import virtual_jobs
from tests.matrix.conftest import check_installed
from tests.support import Gate, Metrics, running

pytestmark = pytest.mark.anyio


def litestar(gate: Gate) -> Any:
    from litestar import Litestar, post

    @post("/slow", status_code=200)
    @long_running(max_running=1)
    async def slow() -> str:
        await gate.wait()
        return "done"

    return Litestar([slow], logging_config=None)  # it would set the root logger's level for good


def falcon(gate: Gate) -> Any:
    from falcon.asgi import App

    class Slow:
        @long_running(max_running=1)
        async def on_post(self, req: Any, resp: Any) -> None:
            await gate.wait()
            resp.text = "done"

    app = App()
    app.add_route("/slow", Slow())
    return app


def quart(gate: Gate) -> Any:
    from quart import Quart

    app = Quart(__name__)

    @app.post("/slow")
    @long_running(max_running=1)
    async def slow() -> str:
        await gate.wait()
        return "done"

    return app


def django(gate: Gate) -> Any:
    from django import setup
    from django.conf import settings
    from django.core.asgi import get_asgi_application
    from django.http import HttpResponse
    from django.urls import clear_url_caches, path

    @long_running(max_running=1)
    async def slow(request: Any) -> Any:
        await gate.wait()
        return HttpResponse("done")

    class Urls:
        urlpatterns = (path("slow", slow),)

    if not settings.configured:
        settings.configure(ALLOWED_HOSTS=["*"], SECRET_KEY="x")
        setup()
    settings.ROOT_URLCONF = Urls
    clear_url_caches()
    return get_asgi_application()


MAKERS: dict[str, Callable[[Gate], ASGIApp]] = {
    "django": django,
    "falcon": falcon,
    "litestar": litestar,
    "quart": quart,
}


@pytest.mark.slow  # Django has threads: its clock is the real one
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # Django leaves a body that it has read open
@pytest.mark.parametrize("framework", MAKERS)
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_what_waits_is_released_and_replayed(
    framework: str,
    anyio_backend: str,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
) -> None:
    check_installed(request.config, framework)
    gate, counted = Gate(), list[int]()
    app = LongRunningMiddleware(Metrics(MAKERS[framework](gate), counted), jobs=virtual_jobs())
    async with running(app) as client:
        accepted = [await client.post("/slow") for _ in range(2)]
        assert [there.json()["status"] for there in accepted] == ["running", "queued"]
        await anyio.sleep(1)
        assert counted == [500]  # as docs/frameworks.md says
        gate.open()
        for there in accepted:
            assert (await follow(client, there)).text == "done"
        await anyio.sleep(1)  # some do more after the last message
    del app
    gc.collect()
    assert not [
        record
        for record in caplog.records
        if record.name == "raincheck" and record.levelno > INFO  # Django has no lifespan
    ]
