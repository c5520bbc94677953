"""Which tests are run: `tests/conftest.py` says so, and CONTRIBUTING.md says it to people."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import conftest

ROOT = Path(__file__).parents[1]


def asked(*args: str, marks: str = "", capture: str = "fd") -> Any:
    """A configuration, as `pytest ARGS -m MARKS` makes it."""
    return SimpleNamespace(
        args=[*args] or ["tests"],
        invocation_params=SimpleNamespace(dir=ROOT),
        option=SimpleNamespace(markexpr=marks, capture=capture),
        hook=SimpleNamespace(pytest_deselected=lambda items: None),
    )


@pytest.fixture
def items(request: pytest.FixtureRequest) -> list[pytest.Item]:
    """Some tests: a quick one, one that is slow, and one that is so on trio."""
    names = ("here", "marked", "alike[asyncio]", "alike[trio]")
    made: list[Any] = []
    for name in names:
        item: Any = pytest.Function.from_parent(
            request.node.parent, name=name, callobj=test_what_is_slow_is_left_out
        )
        backend = name.partition("[")[2].rstrip("]")
        item.callspec = SimpleNamespace(params={"anyio_backend": backend} if backend else {})
        made.append(item)
    made[1].add_marker("slow")
    for item in made[2:]:
        item.add_marker("one_loop")
    return made


@pytest.mark.parametrize(
    ("config", "left"),
    [
        (asked(), ["here", "alike[asyncio]"]),
        (asked("tests"), ["here", "alike[asyncio]"]),
        (asked(marks="not real"), ["here", "alike[asyncio]"]),
        (asked("tests/e2e"), ["here", "marked", "alike[asyncio]", "alike[trio]"]),
        (asked("tests/test_a.py::test_b"), ["here", "marked", "alike[asyncio]", "alike[trio]"]),
        (asked(marks="slow"), ["here", "marked", "alike[asyncio]", "alike[trio]"]),
    ],
)
def test_what_is_slow_is_left_out(config: Any, left: list[str], items: list[pytest.Item]) -> None:
    """Unless it is asked for; what `-m` leaves of it is pytest's own business."""
    conftest.pytest_collection_modifyitems(config, items)
    assert [item.name for item in items] == left
    slow = {item.name for item in items if item.get_closest_marker("slow")}
    assert slow == {"marked", "alike[trio]"} & {*left}


def test_everything_runs_on_all_cores_and_what_is_named_in_this_process() -> None:
    most = conftest.pytest_xdist_auto_num_workers(asked())
    quick = conftest.pytest_xdist_auto_num_workers(asked(marks="not real"))
    assert 1 <= quick <= most <= conftest.MOST_WORKERS
    for config in (asked("tests/test_a.py"), asked("tests/e2e"), asked(capture="no")):
        assert conftest.pytest_xdist_auto_num_workers(config) == 0


def test_no_client_reads_certificates_where_everything_is_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    theirs = {"SSL_CERT_FILE": "theirs", "SSL_CERT_DIR": "theirs"}
    monkeypatch.setattr(os, "environ", {**theirs})
    conftest.pytest_configure(asked("tests/clients"))  # which installs some of them
    assert os.environ == theirs
    conftest.pytest_configure(asked())
    assert [*os.environ] == ["SSL_CERT_DIR"]
    assert not list(Path(os.environ["SSL_CERT_DIR"]).glob("*.[0-9]"))  # as OpenSSL names them


def test_files_whose_tests_are_shared_among_workers_are_there() -> None:
    assert [file for file in conftest.SPREAD if not (ROOT / file).is_file()] == []
