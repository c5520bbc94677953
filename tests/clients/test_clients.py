"""Each client gets the response of a slow route, or its own error that says why there is none.

And whatever the client does, the handler runs once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.clients.clients import CLIENTS, Trial
from tests.clients.conftest import ROOT, Bench
from tests.clients.environments import PACKAGES

pytestmark = [pytest.mark.real, pytest.mark.timeout(1200)]

NOTES = {
    "success": ["began", "finished"],
    "failure": ["began", "finished"],
    "resume": ["began", "finished"],
    "cancel": ["began", "cancelled"],
    "timeout": ["began", "cancelled"],
}


def test_a_client(trial: Trial, bench: Bench) -> None:
    outcome = bench.outcome(trial)
    if trial.scenario in trial.client.errors:
        kind, message = trial.client.errors[trial.scenario]
        assert kind in outcome.get("error", ()), outcome
        assert re.search(message, outcome["message"]), outcome["message"]
    else:
        assert outcome == {"value": trial.client.value}
    server = bench.server(trial.client.dialect)
    assert server.notes(trial.name) == NOTES[trial.scenario]
    assert "Traceback" not in server.output.read_text()


BESIDE = {"requests", "cumulus-fhir-support"}
"""What is installed with the clients, and is none."""


def pinned() -> Iterator[tuple[str, str]]:
    for requirement in {each for client in CLIENTS for each in client.requirements}:
        name, version = requirement.split("==")
        yield name.partition("[")[0], version
    yield from json.loads(PACKAGES.read_text())["dependencies"].items()


def test_the_page_names_every_client_in_the_version_that_is_tried() -> None:
    page = (ROOT / "docs" / "dialects.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    for name, version in pinned():
        assert re.fullmatch(r"[\d.]+", version), name
        found = [row for row in rows if re.search(rf"\b{name.strip('@')}\b.*\b{version} \|", row)]
        assert found or name in BESIDE, f"{name} {version}"
