"""Each client gets the response of a slow route, or its own error that says why there is none.

And whatever the client does, the handler runs once.
"""

from __future__ import annotations

import re

import pytest

from tests.clients.clients import Trial
from tests.clients.conftest import Bench

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
