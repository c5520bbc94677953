"""`Policy`, `Retry` and `Limits`: frozen, checked when made, times in seconds."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import math
import re
from datetime import timedelta
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from raincheck import (
    ConfigurationError,
    Jobs,
    Limits,
    LongRunningMiddleware,
    Policy,
    RaincheckError,
    Retry,
)
from raincheck.decorator import Mark
from raincheck.policy import MIB, PolicySettings, seconds, setting_names
from raincheck.routing.policies import RoutePolicies
from raincheck.runners.local import LocalRunner
from raincheck.stores.memory import MemoryStore

Settings = type[Policy] | type[Retry] | type[Limits]

NO_TIME: list[Any] = [
    "5",
    None,
    True,
    [],
    1j,
    math.nan,
    math.inf,
    -math.inf,
    -1,
    timedelta(seconds=-1),
]
NO_COUNT: list[Any] = ["5", 1.0, True, [], -1]


def cases(owner: Settings, field: str, *values: object) -> list[tuple[Settings, str, object]]:
    return [(owner, field, value) for value in values]


def without_none(values: list[Any]) -> list[Any]:
    return [value for value in values if value is not None]


IMPOSSIBLE = [
    *cases(Policy, "respond", "sometimes", "", None, True),
    *cases(Policy, "wait", *NO_TIME),
    *cases(Policy, "max_wait", *NO_TIME),
    *cases(Policy, "timeout", *without_none(NO_TIME), 0, timedelta(0)),
    *cases(Policy, "ttl", *NO_TIME, 0, timedelta(0)),
    *cases(Policy, "max_running", *NO_COUNT, 0),
    *cases(Policy, "max_queued", *NO_COUNT),
    *cases(Policy, "max_request_size", *NO_COUNT, None),
    *cases(Policy, "max_response_size", *NO_COUNT, None),
    *cases(Policy, "max_running_per_owner", *NO_COUNT, 0),
    *cases(Policy, "max_queued_per_owner", *NO_COUNT),
    *cases(Policy, "max_stored_bytes_per_owner", 0, *NO_COUNT),
    *cases(Policy, "retry_after", *NO_COUNT, 0, 1.5),
    *cases(Policy, "idempotency", "always", "", None, True),
    *cases(Policy, "coalesce", None, 1, "yes"),
    *cases(Policy, "hold", None, 1, "yes"),
    *cases(Policy, "live", None, 1, "yes"),
    *cases(Policy, "on_interrupt", "retry", "", False, True),
    *cases(Policy, "max_runs", *NO_COUNT, 0, 1.5),
    *cases(Policy, "retry", True, 3, (503,), Retry, {"on": 503}),
    *cases(Policy, "max_wait_queued", *without_none(NO_TIME), 0, timedelta(0)),
    *cases(Retry, "on", (), None, True, 399, 600, "503", (503, "502"), str, (int,), [503, None]),
    *cases(Retry, "on", asyncio.sleep),
    *cases(Retry, "max_runs", *NO_COUNT, 0, None),
    *cases(Retry, "backoff", *NO_TIME),
    *cases(Policy, "queue", "", 1, True, b"videos", ["videos"]),
    *cases(Policy, "drop_headers", "Cookie", "", b"Cookie", (b"Cookie",), ["Cookie", 1], [None]),
    *cases(Policy, "drop_headers", 5, None, ("Coo kie",), ("Cookie:",), ("",), ("Cookie", "\n")),
    *cases(Policy, "callback", 7, True, b"https://example.com/", ["https://example.com/"]),
    *cases(Policy, "ttl", 1e18, 36526 * 86400, timedelta.max),
    *cases(Policy, "timeout", 1e10),
    *cases(Limits, "tombstone_ttl", 1e18),
    *cases(Limits, "max_running", *NO_COUNT, 0, None),
    *cases(Limits, "max_queued", *NO_COUNT, None),
    *cases(Limits, "drain_timeout", *NO_TIME),
    *cases(Limits, "cancel_grace", *NO_TIME, 0),
    *cases(Limits, "tombstone_ttl", *NO_TIME),
    *cases(Limits, "lease", *NO_TIME, 0),
    *cases(Limits, "store_timeout", *NO_TIME, 0),
    *cases(Limits, "abandon_after", *NO_TIME, 0),
    *cases(Limits, "require_owner", None, 1, "yes"),
]


@pytest.mark.parametrize(("owner", "field", "value"), IMPOSSIBLE)
def test_an_impossible_setting_is_refused_by_name(
    owner: Settings, field: str, value: object
) -> None:
    settings: dict[str, Any] = {field: value}
    with pytest.raises(ConfigurationError) as raised:
        owner(**settings)
    assert str(raised.value).startswith(f"{owner.__name__}({field}={value!r}): {field} is ")
    assert isinstance(raised.value, ValueError)
    assert isinstance(raised.value, RaincheckError)


@pytest.mark.parametrize("owner", [Policy, Retry, Limits])
def test_every_field_is_checked(owner: Settings) -> None:
    checked = {field for tested, field, _ in IMPOSSIBLE if tested is owner}
    assert checked == {field.name for field in dataclasses.fields(owner)}


@pytest.mark.parametrize(
    ("owner", "field", "value"),
    [
        *cases(Policy, "respond", "always", "preferred"),
        *cases(Policy, "wait", 0, 0.5),
        *cases(Policy, "max_wait", 0, 3600),
        *cases(Policy, "timeout", None, 0.1, 86400),
        *cases(Policy, "ttl", 0.1, 86400 * 36525),
        *cases(Policy, "max_running", None, 1),
        *cases(Policy, "max_queued", None, 0),
        *cases(Policy, "max_request_size", 0, 1),
        *cases(Policy, "max_response_size", 0, 1),
        *cases(Policy, "retry_after", None, 1),
        *cases(Policy, "max_running_per_owner", None, 1),
        *cases(Policy, "max_queued_per_owner", None, 0),
        *cases(Policy, "max_stored_bytes_per_owner", None, 1),
        *cases(Policy, "idempotency", "optional", "required", "off"),
        *cases(Policy, "coalesce", True, False, str),
        *cases(Policy, "hold", True, False),
        *cases(Policy, "live", True, False),
        *cases(Policy, "callback", None, "https://example.com/", str),
        *cases(Policy, "on_interrupt", None, "fail", "rerun"),
        *cases(Policy, "max_runs", None, 1),
        *cases(Policy, "retry", None, Retry()),
        *cases(Policy, "max_wait_queued", None, 0.1),
        *cases(Retry, "on", (400,), (599, OSError), str.isdigit),
        *cases(Retry, "max_runs", 1),
        *cases(Retry, "backoff", 0, str.isdigit),
        *cases(Policy, "queue", None, "videos"),
        *cases(Policy, "drop_headers", frozenset(), frozenset({"cookie"})),
        *cases(Limits, "max_running", 1),
        *cases(Limits, "max_queued", 0),
        *cases(Limits, "drain_timeout", 0),
        *cases(Limits, "cancel_grace", 0.1),
        *cases(Limits, "tombstone_ttl", 0),
        *cases(Limits, "lease", 0.1),
        *cases(Limits, "store_timeout", 0.1),
        *cases(Limits, "abandon_after", 0.1),
        *cases(Limits, "require_owner", True, False),
    ],
)
def test_a_setting_at_its_bound_is_taken(owner: Settings, field: str, value: object) -> None:
    settings: dict[str, Any] = {field: value}
    assert getattr(owner(**settings), field) == value


@pytest.mark.parametrize(
    ("owner", "field"),
    [
        (Policy, "wait"),
        (Policy, "max_wait"),
        (Policy, "timeout"),
        (Policy, "ttl"),
        (Policy, "max_wait_queued"),
        (Retry, "backoff"),
        (Limits, "drain_timeout"),
        (Limits, "cancel_grace"),
        (Limits, "tombstone_ttl"),
        (Limits, "lease"),
        (Limits, "store_timeout"),
        (Limits, "abandon_after"),
    ],
)
@pytest.mark.parametrize("span", [90, 90.0, timedelta(minutes=1, seconds=30)])
def test_a_time_is_kept_as_seconds(owner: Settings, field: str, span: object) -> None:
    settings: dict[str, Any] = {"max_wait": 100} if field == "wait" else {}
    settings[field] = span
    kept = getattr(owner(**settings), field)
    assert (kept, type(kept)) == (90.0, float)


@pytest.mark.parametrize(("span", "expected"), [(2, 2.0), (0.5, 0.5), (timedelta(hours=1), 3600.0)])
def test_seconds_reads_numbers_and_timedeltas(span: float | timedelta, expected: float) -> None:
    assert seconds(span) == expected


@pytest.mark.parametrize("owner", [Policy, Limits])
def test_settings_are_frozen_keyword_only_values(owner: type[Policy] | type[Limits]) -> None:
    first: Any = owner(max_queued=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.max_queued = 4
    positional: Any = owner
    with pytest.raises(TypeError):
        positional("always")
    assert first == owner(max_queued=3)
    assert hash(first) == hash(owner(max_queued=3))
    assert first != owner(max_queued=4)


DOCUMENT = Path(__file__).parents[1] / "docs" / "configuration.md"


def written(default: Any) -> str:
    """A default as the document writes it."""
    if isinstance(default, bool | str | tuple | None):
        return f"`{default!r}`".replace("'", '"')
    return f"{default // MIB} MiB" if default >= MIB else f"{default:g}"


@pytest.mark.parametrize("owner", [Policy, Retry, Limits])
def test_the_docs_have_every_setting_and_its_default(owner: Settings) -> None:
    section = DOCUMENT.read_text().split(f"\n## `{owner.__name__}`: ")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", section, re.MULTILINE)
    fields = [(field.name, written(field.default)) for field in dataclasses.fields(owner)]
    assert rows == fields


def test_the_docs_have_every_argument_of_the_middleware_and_of_jobs() -> None:
    text = DOCUMENT.read_text()
    section = text.split("\n## `LongRunningMiddleware`\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert sorted(rows) == sorted(inspect.signature(LongRunningMiddleware).parameters)
    (said,) = re.findall(r"^\| `Jobs\(([\w=, ]+)\)` \|", text, re.MULTILINE)
    assert sorted(said.replace("=", "").split(", ")) == sorted(inspect.signature(Jobs).parameters)


def test_the_defaults_are_those_of_the_docs() -> None:
    assert dataclasses.asdict(Policy()) == {
        "respond": "always",
        "wait": 0.0,
        "max_wait": 30.0,
        "timeout": None,
        "ttl": 3600.0,
        "max_running": None,
        "max_queued": None,
        "max_request_size": 16 * 1024 * 1024,
        "max_response_size": 64 * 1024 * 1024,
        "max_running_per_owner": None,
        "max_queued_per_owner": None,
        "max_stored_bytes_per_owner": None,
        "retry_after": None,
        "idempotency": "optional",
        "coalesce": False,
        "hold": False,
        "on_interrupt": None,
        "max_runs": None,
        "retry": None,
        "max_wait_queued": None,
        "queue": None,
        "drop_headers": frozenset(),
        "live": False,
        "callback": None,
    }
    assert dataclasses.asdict(Limits()) == {
        "max_running": 100,
        "max_queued": 1000,
        "drain_timeout": 30.0,
        "cancel_grace": 5.0,
        "tombstone_ttl": 3600.0,
        "lease": 30.0,
        "store_timeout": 10.0,
        "abandon_after": 3600.0,
        "require_owner": False,
    }


@pytest.mark.parametrize(
    ("settings", "runs"),
    [
        ({}, 1),
        ({"max_runs": 1}, 1),
        ({"on_interrupt": "fail"}, 1),
        ({"on_interrupt": "rerun"}, 3),
        ({"on_interrupt": "rerun", "max_runs": 1}, 1),
        ({"on_interrupt": "rerun", "max_runs": 7}, 7),
    ],
)
def test_how_many_runs_a_job_may_have(settings: PolicySettings, runs: int) -> None:
    assert Policy(**settings).runs == runs


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_runs": 2}, "max_runs=2): max_runs is more than 1 only with on_interrupt='rerun'"),
        ({"hold": True, "on_interrupt": "rerun"}, "hold=True): hold keeps what cannot run twice"),
        ({"wait": 31}, "wait=31.0): wait is at most max_wait"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    settings: PolicySettings, message: str
) -> None:
    with pytest.raises(ConfigurationError) as raised:
        Policy(**settings)
    assert str(raised.value).startswith(f"Policy({message}")


@pytest.mark.parametrize(
    "names", [("Cookie", "X-Api-Key"), ["COOKIE", "x-api-key"], {"cookie", "X-API-KEY", "Cookie"}]
)
def test_names_of_header_fields_are_kept_in_lower_case(names: Any) -> None:
    policy = Policy(drop_headers=names)
    assert policy.drop_headers == frozenset({"cookie", "x-api-key"})
    assert hash(policy) == hash(Policy(drop_headers=("x-api-key", "cookie")))


def test_a_decorator_changes_only_what_it_names() -> None:
    policy = Policy(ttl=5, hold=True)
    assert policy.with_settings({"timeout": timedelta(seconds=9)}) == Policy(
        ttl=5, hold=True, timeout=9
    )
    assert policy.with_settings({}) is policy
    with pytest.raises(ConfigurationError, match="timeout"):
        policy.with_settings({"timeout": 0})
    with pytest.raises(ConfigurationError, match="hold"):
        policy.with_settings({"on_interrupt": "rerun"})


def test_the_decorator_takes_every_field_of_a_policy() -> None:
    fields = {field.name for field in dataclasses.fields(Policy)}
    assert setting_names() == fields
    assert get_type_hints(PolicySettings) == get_type_hints(Policy)


def test_routes_without_a_bound_are_those_that_are_known_by_then() -> None:
    policies = RoutePolicies(LocalRunner(), MemoryStore())
    policies.bind(Policy(), {"GET /a": Policy(), "GET /b": Policy(max_running=1)}, complete=bool)
    assert [*policies.unbounded()] == ["GET /a"]
    policies.of_mark(Mark("bounded", {"max_running": 1}))
    policies.of_mark(Mark("free", {}))
    assert [*policies.unbounded()] == ["GET /a", "free"]
