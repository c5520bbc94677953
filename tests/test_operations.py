"""docs/operations.md says what is so: lines of the log, metrics, alerts, a manifest."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry

import raincheck
from raincheck import Jobs, Limits, State, errors
from raincheck.errors import Problem
from raincheck.telemetry.prometheus import PrometheusTelemetry

HOUSE = Path(raincheck.__file__).parent
PAGE = (Path(__file__).parents[1] / "docs" / "operations.md").read_text()

_PLACEHOLDER = re.compile(r"%[0-9.]*[a-z]")


def section(title: str) -> str:
    """The text below a heading, to the next one."""
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def logged(source: str) -> Iterator[tuple[str, str]]:
    """The level and the text of each line that a module may write, `…` for what differs."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name("logger"), attr=level), args=[first, *rest]
            ):
                text = rest[0] if level == "log" else first
                assert isinstance(text, ast.Constant), ast.unparse(node)
                yield level, _PLACEHOLDER.sub("…", str(text.value))


LEVELS = {
    "debug": {"DEBUG"},
    "info": {"INFO"},
    "warning": {"WARNING"},
    "error": {"ERROR"},
    "exception": {"ERROR"},
    "log": {"WARNING", "INFO"},
}
ROWS = [
    (frozenset(levels.split(", ")), text)
    for levels, text in re.findall(r"^\| ([A-Z, ]+) \| `(.+?)` \|", section("What is logged"), re.M)
]
LINES = sorted(
    {
        line
        for path in HOUSE.rglob("*.py")
        if path.parent.name != "testing" and "logger." in (source := path.read_text())
        for line in logged(source)
    }
)


def rows_of(level: str, text: str) -> list[str]:
    """The rows that stand for a line: its text, or the beginning of it before a last `…`."""
    return [
        row
        for levels, row in ROWS
        if levels == LEVELS[level]
        and (row == text or (row.endswith("…") and text.startswith(row[:-1])))
    ]


@pytest.mark.parametrize(("level", "text"), LINES)
def test_every_line_of_the_log_is_in_the_table(level: str, text: str) -> None:
    assert len(rows_of(level, text)) == 1


def test_the_table_has_no_line_that_is_not_logged() -> None:
    assert {row for line in LINES for row in rows_of(*line)} == {row for _, row in ROWS}


def test_a_line_that_is_missing_would_be_found() -> None:
    ((level, text),) = logged('logger.warning("job %s is %.1f", id, 1)')
    assert (level, text) == ("warning", "job … is …")
    assert rows_of(level, text) == []


@pytest.fixture
def metrics() -> dict[str, set[str]]:
    """The names of all samples, each with its labels."""
    registry = CollectorRegistry()
    telemetry = PrometheusTelemetry(registry=registry)
    Jobs(telemetry=telemetry)
    for counter in vars(telemetry).values():
        if labels := getattr(counter, "_labelnames", ()):
            counter.labels(*labels)
    families = [*registry.collect(), *telemetry.collector.describe()]
    found = {sample.name: set(sample.labels) for each in families for sample in each.samples}
    return found | {
        "raincheck_jobs": {"route", "state"},
        "raincheck_oldest_queued_seconds": {"route"},
    }


def test_the_table_has_every_metric_with_its_labels(metrics: dict[str, set[str]]) -> None:
    rows = re.findall(r"^\| (`raincheck_.+?) \| \w+ \| (.*?) \|", section("Metrics"), re.M)
    said = {
        name: set(re.findall(r"`(\w+)`", labels))
        for names, labels in rows
        for name in re.findall(r"`(\w+)`", names)
    }
    whole = {
        name.removesuffix("_count"): labels
        for name, labels in metrics.items()
        if not name.endswith(("_bucket", "_sum", "_created"))
    }
    assert said == whole


def test_the_alerts_ask_for_what_there_is(metrics: dict[str, set[str]]) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", section("Alerts worth having"), re.S)
    (group,) = yaml.safe_load(text)["groups"]
    reasons = {problem.name for problem in vars(errors).values() if isinstance(problem, Problem)}
    values: dict[str, set[str]] = {"reason": reasons}
    values |= {label: {state.value for state in State} for label in ("state", "outcome")}
    assert len(group["rules"]) >= 7
    for rule in group["rules"]:
        asked = re.findall(r"(raincheck_\w+)(?:{(.*?)})?", rule["expr"])
        assert asked, rule
        for name, labels in asked:
            assert name in metrics, rule
            for label, value in re.findall(r'(\w+)="([\w-]+)"', labels):
                assert label in metrics[name], rule
                assert value in values[label], rule


def test_the_manifest_gives_a_drain_the_time_that_it_takes() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", section("Kubernetes"), re.S)
    pod = yaml.safe_load(text)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (drain,) = map(int, re.findall(r"Limits\(drain_timeout=(\d+)\)", section("Kubernetes")))
    before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    (waits,) = (
        int(each.partition("=")[2])
        for each in container["command"]
        if each.startswith("--timeout-graceful-shutdown=")
    )
    needed = before + waits + drain + 2 * float(Limits().cancel_grace)  # type: ignore[arg-type] # seconds
    assert pod["terminationGracePeriodSeconds"] > needed
    probed = {
        kind: container[f"{kind}Probe"]["httpGet"]["path"]
        for kind in ("startup", "readiness", "liveness")
    }
    assert probed == {
        "startup": "/health/live",
        "readiness": "/health/ready",
        "liveness": "/health/live",
    }
