"""One format for routes and policies, by file and by options; what cannot work is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raincheck import ConfigurationError, Limits, MemoryStore, Policy
from raincheck.cli.settings import Settings, read, with_options
from raincheck.cli.stores import store_of
from raincheck.stores.postgres import PostgresStore
from raincheck.stores.redis import RedisStore
from raincheck.stores.sqlite import SQLiteStore

WHOLE = """
store = "postgresql://shop@db/jobs"
deployment = "shop"
path = "/_jobs"
base_url = "https://api.example.org"
owner = "header:Authorization"
operator = "shop.rights:may_list"
own_list = true

[policy]
ttl = 600
drop_headers = ["Cookie"]

[limits]
max_running = 20

[routes."POST /videos"]
timeout = 3600
on_interrupt = "rerun"

[routes."/reports/{id:int}"]
"""


def file(folder: Path, text: str) -> Path:
    path = folder / "raincheck.toml"
    path.write_text(text)
    return path


def test_a_file_says_everything(tmp_path: Path) -> None:
    settings = read(file(tmp_path, WHOLE))
    assert settings.rules() == {
        "POST /videos": Policy(
            timeout=3600, on_interrupt="rerun", ttl=600, drop_headers=["Cookie"]
        ),
        "/reports/{id:int}": Policy(ttl=600, drop_headers=["Cookie"]),
    }
    assert settings.default_policy() == Policy(ttl=600, drop_headers=["Cookie"])
    assert settings.made_limits() == Limits(max_running=20)
    assert (settings.store, settings.deployment) == ("postgresql://shop@db/jobs", "shop")
    assert (settings.path, settings.base_url) == ("/_jobs", "https://api.example.org")
    assert (settings.owner, settings.operator, settings.own_list) == (
        "header:Authorization", "shop.rights:may_list", True,
    )  # fmt: skip


def test_options_come_before_the_file(tmp_path: Path) -> None:
    settings = with_options(
        read(file(tmp_path, WHOLE)),
        routes=[
            "GET /new",
            "post  /videos",
            "POST /videos  timeout=60 hold=true on_interrupt=fail",
        ],
        policy=["ttl=60", "respond=preferred"],
        limits=["max_running=7"],
        store="memory:",
        path=None,
    )
    common: dict[str, Any] = {"ttl": 60, "respond": "preferred", "drop_headers": ["Cookie"]}
    assert settings.rules() == {
        "GET /new": Policy(**common),
        "post /videos": Policy(**common),
        "POST /videos": Policy(timeout=60, hold=True, on_interrupt="fail", **common),
        "/reports/{id:int}": Policy(**common),
    }
    assert list(settings.routes)[:3] == ["GET /new", "post /videos", "POST /videos"]
    assert (settings.limits, settings.store, settings.path) == (
        {"max_running": 7}, "memory:", "/_jobs",
    )  # fmt: skip


def test_nothing_said_is_what_the_middleware_does_alone() -> None:
    assert with_options(Settings()) == Settings()
    assert Settings().rules() == {}
    assert Settings().default_policy() == Policy()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nope = 1", "there is no nope; there are store, deployment, path,"),
        ("route = 1", "there is no route; do you mean routes?"),
        ("store = 7", "store = 7 is no string"),
        ("own_list = 1", "own_list = 1 is not true or false"),
        ("policy = 1", "[policy] is no table of settings"),
        ("routes = 1", 'routes is no table; write [routes."POST /videos"]'),
        ("[policy]\ntimeot = 1", "[policy]: there is no timeot; do you mean timeout?"),
        ("[limits]\nttl = 1", "[limits]: there is no ttl; there are max_running,"),
        ("[limits]\nmax_running = 0", "[limits]: Limits(max_running=0): max_running is a whole"),
        ('[routes."/a"]\nttl = "x"', """[routes."/a"]: Policy(ttl='x'): ttl is a number"""),
        ('[routes."/a"]\nwat = 1', '[routes."/a"]: there is no wat; do you mean wait?'),
        ('[routes."FETCH /a"]', '[routes."FETCH /a"]: routes={'),
        ("[routes]\n'/a' = 1", '[routes."/a"] is no table of settings'),
        ("[policy]\nhold = true\n[routes.'/a']\non_interrupt = 'rerun'", '[routes."/a"]: Policy('),
        ("a = ", "Invalid value"),
    ],
)
def test_a_file_that_cannot_work_is_named_with_its_field(
    tmp_path: Path, text: str, said: str
) -> None:
    path = file(tmp_path, text)
    with pytest.raises(ConfigurationError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}: ")
    assert said in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nothing\.toml: No such file"):
        read(tmp_path / "nothing.toml")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"routes": ["videos"]}, "--route 'videos': give a path, or a method and a path"),
        ({"routes": ["/a timeout"]}, "--route '/a timeout': give a path"),
        ({"routes": ["/a ttl=x"]}, "--route '/a ttl=x': Policy(ttl='x'): ttl is a number"),
        ({"routes": ["/a nope=1"]}, "--route '/a nope=1': there is no nope"),
        ({"routes": ["/a/*"]}, "--route '/a/*': routes={'/a/*': ...}: a path has no query"),
        ({"policy": ["timeout"]}, "--policy 'timeout': give name=value"),
        ({"policy": ["timeout=-1"]}, "--policy: Policy(timeout=-1): timeout is more than 0"),
        ({"limits": ["nope=1"]}, "--limits: there is no nope"),
    ],
)
def test_an_option_that_cannot_work_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        with_options(Settings(), **options)
    assert said in str(error.value)


# --- stores --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:jobs.db", "jobs.db"),
        ("sqlite:var/jobs.db", "var/jobs.db"),
        ("sqlite:/var/jobs.db", "/var/jobs.db"),
        ("sqlite:///jobs.db", "jobs.db"),
        ("sqlite:////var/jobs.db", "/var/jobs.db"),
        ("SQLITE:jobs.db", "jobs.db"),
    ],
)
def test_a_file_is_a_store(
    url: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = store_of(url)
    assert isinstance(store, SQLiteStore)
    assert vars(store)["_path"] == str(tmp_path / path)


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("redis://localhost:6379/0", RedisStore),
        ("rediss://u:p@localhost/0", RedisStore),
        ("postgresql://u@localhost/db", PostgresStore),
        ("postgres://u@localhost/db", PostgresStore),
    ],
)
def test_a_server_is_a_store(url: str, kind: type) -> None:
    assert isinstance(store_of(url, "shop"), kind)


def test_memory_is_a_store() -> None:
    assert isinstance(store_of("memory:"), MemoryStore)


@pytest.mark.parametrize(
    ("url", "deployment", "said"),
    [
        ("jobs.db", None, "store 'jobs.db': a store is memory:, sqlite:jobs.db"),
        ("mysql://u:secret@h/", None, "store '…@h/': a store is"),
        ("memory://", None, "memory: has nothing behind it"),
        ("memory:", "shop", "deployment 'shop': memory: has no deployments"),
        ("sqlite:jobs.db", "shop", "deployment 'shop': sqlite: has no deployments"),
        ("sqlite:", None, "sqlite: needs a file; in memory is memory:"),
        ("sqlite::memory:", None, "sqlite: needs a file; in memory is memory:"),
        ("sqlite://host/jobs.db", None, "a file is on no host"),
        ("sqlite://jobs.db", None, "a file is on no host"),
        ("redis://u:secret@h/", None, "needs a name of its own there; give --deployment NAME"),
        ("postgresql://u:secret@h/", None, "give --deployment NAME"),
        ("redis://h/", "a shop", "deployment='a shop': give what runs"),
    ],
)
def test_what_is_no_store_is_named(url: str, deployment: str | None, said: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        store_of(url, deployment)
    assert said in str(error.value)
    assert "secret" not in str(error.value)
