"""The pages and the site: `pytest tests/docs --docs` has what needs the extra `docs`, too."""

from __future__ import annotations

import importlib.util

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--docs", action="store_true", help="run what needs the extra docs")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "extra_docs: it needs what the extra docs brings")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if item.get_closest_marker("extra_docs")]
    if left_out and not config.getoption("--docs"):
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("extra_docs") and not importlib.util.find_spec("sphinx"):
        pytest.fail('install what this needs with: pip install -e ".[docs]"')
