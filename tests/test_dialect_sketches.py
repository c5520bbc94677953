"""The sketches of docs/dialects.md do what it says of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from raincheck.dialects import Dialect
from tests.exchanges import Exchange, staged

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]

PAGE = (Path(__file__).parents[1] / "docs" / "dialects.md").read_text()
SKETCHES = [
    source
    for source in re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    if "\nclass " in source
]


def sketched(name: str) -> Dialect:
    (source,) = [source for source in SKETCHES if f"class {name}(" in source]
    names: dict[str, Any] = {}
    exec(source, names)
    dialect = names[name]()
    assert isinstance(dialect, Dialect)
    return dialect


ODATA = {
    "running": Exchange("running", "GET /jobs/ID", 202, None, {"location": "/jobs/ID"}),
    "succeeded": Exchange("succeeded", "GET /jobs/ID", 200, {"sent": 3}, {"asyncresult": "200"}),
    "failed": Exchange(
        "failed",
        "GET /jobs/ID",
        200,
        {"detail": "There is no such file."},
        {"asyncresult": "422"},
    ),
    "failed without a response": Exchange(
        "timed out", "GET /jobs/ID", 200, None, {"asyncresult": "504"}
    ),
    "unknown": Exchange("running", "GET /jobs/NOBODY", 404, None, {"asyncresult": None}),
    "no monitor beside it": Exchange("running", "GET /jobs/ID/status", 404),
    "deleted": Exchange("running", "DELETE /jobs/ID", 204),
}
FHIR = {
    "accepted": Exchange("running", "", 202, None, {"content-location": "/jobs/ID"}),
    "running": Exchange("running", "GET /jobs/ID", 202, None, {"x-progress": "running"}),
    "succeeded": Exchange(
        "succeeded",
        "GET /jobs/ID",
        200,
        {
            "resourceType": "Bundle",
            "type": "batch-response",
            "entry": [{"response": {"status": "200"}, "resource": {"sent": 3}}],
        },
    ),
    "failed": Exchange(
        "failed",
        "GET /jobs/ID",
        200,
        {
            "resourceType": "Bundle",
            "type": "batch-response",
            "entry": [
                {
                    "response": {"status": "422"},
                    "resource": {"detail": "There is no such file."},
                }
            ],
        },
    ),
    "failed without a response": Exchange("timed out", "GET /jobs/ID", 200),
    "deleted": Exchange("running", "DELETE /jobs/ID", 202),
    "gone": Exchange("deleted", "GET /jobs/ID", 410),
}
REDFISH = {
    "running": Exchange(
        "running",
        "GET /jobs/ID",
        202,
        {
            "@odata.type": "#Task.v1_7_1.Task",
            "@odata.id": "/jobs/ID",
            "Id": "ID",
            "Name": "Task",
            "TaskState": "Running",
            "TaskStatus": "OK",
            "TaskMonitor": "/jobs/ID",
            "PercentComplete": 40,
        },
        {"location": "/jobs/ID"},
    ),
    "succeeded": Exchange("succeeded", "GET /jobs/ID", 200, {"sent": 3}),
    "failed": Exchange("failed", "GET /jobs/ID", 422),
}


@pytest.mark.parametrize(
    ("name", "exchange"),
    [
        pytest.param(name, exchange, id=f"{name}: {about}")
        for name, exchanges in {
            "ODataDialect": ODATA,
            "BundleDialect": FHIR,
            "RedfishDialect": REDFISH,
        }.items()
        for about, exchange in exchanges.items()
    ],
)
async def test_a_sketch_does_what_is_said_of_it(name: str, exchange: Exchange) -> None:
    await exchange.check(sketched(name), "/jobs")


async def test_odata_answers_202_only_to_who_asks_for_it() -> None:
    sketch = sketched("ODataDialect")
    asked = {"prefer": "respond-async"}
    async with staged(sketch, "/jobs", respond="preferred", headers=asked) as stage:
        assert stage.submitted.status_code == 202
        assert stage.submitted.headers["preference-applied"] == "respond-async"


def test_every_sketch_is_tried() -> None:
    assert len(SKETCHES) == 3
