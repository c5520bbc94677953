"""schemathesis follows the links of the document on a real server: it finds nothing, or the lie.

More examples, and others every time: `RAINCHECK_OPENAPI=long pytest tests/e2e/test_openapi.py`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import long
from tests.e2e.conftest import Server

pytestmark = [pytest.mark.real, pytest.mark.timeout(1800 if long("OPENAPI") else 300)]

Document = dict[str, Any]

# Not `not_a_server_error`: a handler that crashes has an outcome of 500, which is to be served.
CHECKS = (
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "positive_data_acceptance",
    "missing_required_header",
    "unsupported_method",
    "allow_header_conformance",
    "use_after_free",
    "ensure_resource_availability",
    "ignored_auth",
)

# What a request may meet that is as it should be: the job is gone, or has no such range; a key that
# has come with another request.
SETTINGS = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "3xx", 401, 403, 404, 409, 410, 412, 416, 422, 429, "5xx"]
"""


def another_status(found: Document) -> None:
    responses = found["paths"]["/orders"]["post"]["responses"]
    responses["203"] = responses.pop("202")  # and its links, without which nobody calls it


def a_field_that_never_comes(found: Document) -> None:
    header = {"required": True, "schema": {"type": "string"}}
    found["paths"]["/orders"]["post"]["responses"]["202"]["headers"]["X-Job"] = header


def another_unit(found: Document) -> None:
    found["components"]["headers"]["JobRetryAfter"]["schema"]["minimum"] = 1000


def a_member_less(found: Document) -> None:
    schema = found["components"]["schemas"]["PendingJob"]
    schema["required"].remove("runs")
    del schema["properties"]["runs"]


def a_member_more(found: Document) -> None:
    found["components"]["schemas"]["SucceededJob"]["required"].append("result")


def another_type(found: Document) -> None:
    content = found["paths"]["/orders"]["post"]["responses"]["202"]["content"]
    content["text/plain"] = content.pop("application/json")


def no_204(found: Document) -> None:
    responses = found["paths"]["/jobs/{job_id}"]["delete"]["responses"]
    del responses["204"], responses["default"]


LIES: dict[str, tuple[Callable[[Document], None], str]] = {
    lie.__name__: (lie, complaint)
    for lie, complaint in [
        (another_status, "Undocumented status code"),
        (a_field_that_never_comes, "Missing required response headers"),
        (another_unit, "Response header does not conform to the schema"),
        (a_member_less, "Response violates schema"),
        (a_member_more, "Response violates schema"),
        (another_type, "Undocumented Content-Type"),
        (no_204, "Undocumented status code"),
    ]
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    app = "tests.e2e.openapi_app:app"
    server = Server(tmp_path_factory.mktemp("openapi"), "--log-level=critical", app=app)
    yield server
    server.close()


def checked(server: Server, folder: Path, lie: str = "") -> tuple[int, str]:
    """What schemathesis says of the document, or of one that has a lie in it."""
    found = server.client.get("/openapi.json").json()
    if lie:
        LIES[lie][0](found)
    document = folder / "openapi.json"
    document.write_text(json.dumps(found))
    document.with_name("schemathesis.toml").write_text(SETTINGS)
    # One that lies is done with as soon as that is found.
    examples = 500 if long("OPENAPI") else 100 if lie else 20
    command = [
        *(sys.executable, "-m", "schemathesis.cli"),
        f"--config-file={document.with_name('schemathesis.toml')}",
        *("run", str(document), f"--url={server.client.base_url}", "--phases=stateful"),
        *(f"--checks={','.join(CHECKS)}", "--mode=positive", f"--max-examples={examples}"),
        *("--no-shrink", "--no-color", "--generation-database=none"),
        *(() if long("OPENAPI") else ("--seed=1",)),
        *(("--max-failures=1",) if lie else ()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    return done.returncode, done.stdout + done.stderr


def test_the_version_is_the_one_whose_checks_are_known() -> None:
    assert version("schemathesis") == "4.32.5"


@pytest.mark.slow
def test_schemathesis_finds_nothing(server: Server, tmp_path: Path) -> None:
    code, said = checked(server, tmp_path)
    assert code == 0, said
    assert "No issues found" in said


@pytest.mark.slow
@pytest.mark.parametrize("lie", LIES)
def test_schemathesis_finds_a_lie(lie: str, server: Server, tmp_path: Path) -> None:
    code, said = checked(server, tmp_path, lie)
    assert code == 1, said
    assert LIES[lie][1] in said
