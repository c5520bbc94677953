"""The documents that Litestar and quart-schema write and serve, completed as the docs say.

Each is held to what the app answers, and to the block of `docs/openapi.md` that shows how.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from raincheck.testing import lifespan
from tests.matrix.conftest import check_installed

pytestmark = [pytest.mark.matrix, pytest.mark.anyio]

PAGE = Path(__file__).parents[2] / "docs" / "openapi.md"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # Quart knows no other


def shown(framework: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The app that the page shows."""
    blocks: list[str] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    (block,) = (block for block in blocks if f"from {framework} import" in block)
    module = ModuleType("shown")
    monkeypatch.setitem(sys.modules, "shown", module)
    exec(compile(block, PAGE, "exec", dont_inherit=True), module.__dict__)
    return module.__dict__["app"]


@pytest.mark.parametrize(
    ("framework", "path", "done"),
    [("litestar", "/schema/openapi.json", "201"), ("quart_schema", "/openapi.json", "200")],
)
async def test_the_document_that_is_served_is_whole(
    framework: str,
    path: str,
    done: str,
    monkeypatch: pytest.MonkeyPatch,
    pytestconfig: pytest.Config,
) -> None:
    check_installed(pytestconfig, framework)
    app = shown(framework, monkeypatch)
    transport = httpx.ASGITransport(app)
    async with (
        lifespan(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        found = (await client.get(path)).json()
        OpenAPIV31SpecValidator(found).validate()
        order = found["paths"]["/orders"]["post"]
        assert {done, "202"} <= order["responses"].keys()
        assert order["responses"]["202"]["links"]["result"]["operationId"] == "jobs_result"
        assert "/jobs/{job_id}/cancel" in found["paths"]
        assert "202" not in found["paths"]["/plain"]["get"]["responses"]
        accepted = await client.post("/orders", json={"item": "tea"})
        assert accepted.status_code == 202
