"""The house: imports point down, never through the package root, in no circle."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest

import raincheck

HOUSE = Path(raincheck.__file__).parent

# From the bottom up: a room may import those that stand above it in this table, and no adapter.
LAYERS = {
    "errors": 0,
    "ids": 0,
    "messages": 0,
    "job": 0,
    "idempotency": 0,
    "policy": 0,
    "preferences": 0,
    "ranges": 0,
    "serialization": 0,
    "sites": 0,
    "attendance": 1,
    "bodies.base": 1,
    "bodies.own": 1,
    "dialects.base": 1,
    "runners.base": 1,
    "runners.engines": 1,
    "stores.availability": 1,
    "stores.base": 1,
    "telemetry.base": 1,
    "stores.servers": 1,
    "stores.watchers": 1,
    "threads": 1,
    "tasks": 1,
    "lifespan": 1,
    "shutdown": 1,
    "bodies.files": 2,
    "callbacks": 2,
    "crashes": 2,
    "decorator": 2,
    "owners": 2,
    "pages": 2,
    "progress": 2,
    "routing.frameworks": 2,
    "routing.discovery": 2,
    "routing.policies": 2,
    "routing.table": 2,
    "dialects.documents": 2,
    "dialects.contents": 2,
    "dialects._plain_lists": 3,
    "dialects.plain": 3,
    "dialects._google_codes": 3,
    "dialects._google_values": 3,
    "dialects.google": 3,
    "dialects._ogc_queries": 3,
    "dialects.ogc": 3,
    "dialects.openai": 3,
    "dialects.replicate": 3,
    "runners.celery": 3,
    "runners.http_push": 3,
    "runners.local": 3,
    "runners.pgqueuer": 3,
    "runners.taskiq": 3,
    "stores._memory_bodies": 3,
    "stores._memory_order": 3,
    "stores._memory_ended": 3,
    "stores._postgres_server": 3,
    "stores._postgres_schema": 3,
    "stores._postgres_command": 3,
    "stores._postgres_statements": 3,
    "stores._postgres_batches": 3,
    "stores._postgres_changes": 3,
    "stores._postgres_session": 3,
    "stores._redis_scripts": 3,
    "stores._redis_listing": 3,
    "stores._redis_rights": 3,
    "stores._redis_line": 3,
    "stores._sqlite_calls": 3,
    "stores._sqlite_opening": 3,
    "stores._sqlite_place": 3,
    "stores._sqlite_changes": 3,
    "stores._sqlite_queries": 3,
    "stores._sqlite_file": 3,
    "stores._sqlite_loop": 3,
    "stores.bounded": 3,
    "stores.memory": 3,
    "stores.postgres": 3,
    "stores.redis": 3,
    "stores.sqlite": 3,
    "telemetry.logging": 3,
    "telemetry.opentelemetry": 3,
    "telemetry.prometheus": 3,
    "stores.divided": 4,
    "runtime.posting": 4,
    "runtime.observers": 4,
    "runtime.ledger": 4,
    "runtime.environment": 4,
    "runtime.estimates": 4,
    "runtime.scheduler": 4,
    "runtime.recorder": 4,
    "runtime.flushing": 4,
    "runtime.stopping": 4,
    "runtime.run": 4,
    "runtime.leases": 4,
    "runtime.deadlines": 4,
    "runtime.loop_watch": 4,
    "runtime.fleet": 4,
    "runtime.runs": 4,
    "runtime.expiry": 4,
    "runtime.feeds": 4,
    "runtime.figures": 4,
    "runtime.recovery": 4,
    "runtime.deliveries": 4,
    "acceptance.request_body": 5,
    "acceptance.handoff": 5,
    "acceptance.confirmation": 5,
    "acceptance.deduplication": 5,
    "acceptance.decision": 5,
    "runtime.replay": 5,
    "health": 5,
    "session": 5,
    "jobs": 5,
    "status.access": 6,
    "status.results": 6,
    "status.events": 6,
    "status.stream": 6,
    "status.pages": 6,
    "status.list_page": 6,
    "status.lists": 6,
    "status.routes": 6,
    "middleware": 6,
    "openapi.operations": 7,
    "openapi.plain": 7,
    "openapi.documents": 7,
    "client.errors": 7,
    "client.wire": 7,
    "client.credentials": 7,
    "client.knowledge": 7,
    "client.event_stream": 7,
    "client.flow": 7,
    "client.transport": 7,
    "client.handles": 7,
    "cli.printable": 7,
    "cli.display": 7,
    "cli.outcomes": 7,
    "cli.requests": 7,
    "cli.following": 7,
    "cli.listing": 7,
    "cli.settings": 7,
    "cli.stores": 7,
    "cli.loading": 7,
    "cli.checking": 7,
    "cli.serving": 7,
    "cli.commands": 7,
    "cli.entry": 7,
    "__main__": 7,
    "testing.samples": 7,
    "testing.following": 7,
    "testing.gates": 7,
    "testing.bending": 7,
    "testing.records": 7,
    "testing.keys": 7,
    "testing.apart": 7,
    "testing.bodies": 7,
    "testing.lives": 7,
    "testing.deliveries": 7,
    "testing.stores": 7,
    "testing.runners": 7,
}
ORDER = list(LAYERS)

ADAPTERS = 3  # they never import one another, but for the rooms of their own, as `_redis_line`
SATELLITES = 7  # nobody imports them

BESIDE = "client."
"""The other side of the wire: rooms that import no other, and no starlette."""

CORE = {"starlette", "anyio", "cachetools"}
ONLY_INSIDE_FUNCTIONS = {"tasks": {"trio"}}
EXTRAS = {
    "cli.commands": {"click", "httpx2"},
    "cli.display": {"click", "rich"},
    "cli.following": {"click", "httpx2"},
    "cli.listing": {"click", "httpx2", "rich"},
    "cli.outcomes": {"click", "httpx2"},
    "cli.requests": {"click", "httpx2"},
    "cli.serving": {"a2wsgi", "click", "uvicorn"},
    "runners.celery": {"celery"},
    "runners.pgqueuer": {"asyncpg", "pgqueuer"},
    "runners.taskiq": {"taskiq"},
    "runtime.posting": {"httpx2"},
    "stores.postgres": {"asyncpg"},
    "stores._postgres_batches": {"asyncpg"},
    "stores._postgres_changes": {"asyncpg"},
    "stores._postgres_command": {"asyncpg"},
    "stores._postgres_schema": {"asyncpg"},
    "stores._postgres_server": {"asyncpg"},
    "stores._postgres_session": {"asyncpg"},
    "stores.redis": {"redis"},
    "stores._redis_line": {"hiredis", "redis"},
    "telemetry.opentelemetry": {"opentelemetry"},
    "telemetry.prometheus": {"prometheus_client"},
}


@cache
def rooms() -> dict[str, str]:
    """Every module but the package markers, with its source."""
    return {
        ".".join(path.relative_to(HOUSE).with_suffix("").parts): path.read_text()
        for path in sorted(HOUSE.rglob("*.py"))
        if path.name != "__init__.py"
    }


@cache
def parsed(source: str) -> ast.Module:
    """The tree of a module, which nobody changes."""
    return ast.parse(source)


def imports(source: str) -> Iterator[tuple[str, bool]]:
    """Each imported module, and whether the import stands inside a function."""

    def visit(node: ast.AST, inside: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), inside
        inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    yield from visit(parsed(source), False)


def adapter(room: str) -> str:
    """The adapter that a room is of: `stores.redis` of `stores._redis_line`, and of itself."""
    package, _, name = room.rpartition(".")
    return f"{package}.{name.split('_')[1]}" if name.startswith("_") else room


def violations(room: str, source: str) -> Iterator[str]:
    layer = LAYERS[room]
    for module, inside in imports(source):
        package, _, other = module.partition(".")
        if module.startswith("."):
            yield f"{room} imports {module} relatively"
        elif package in sys.stdlib_module_names:
            continue
        elif package != "raincheck":
            if room.startswith(BESIDE) and package != "anyio":
                yield f"{room} imports {package}"
                continue
            if inside and package in ONLY_INSIDE_FUNCTIONS.get(room, ()):
                continue
            if package in EXTRAS.get(room, ()):
                continue
            if package not in CORE or layer == 0:
                yield f"{room} imports {package}"
        elif other == "testing":
            yield f"{room} imports {other}, a satellite"
        elif room.startswith(BESIDE) and not other.startswith(BESIDE):
            yield f"{room} imports {other}, a room of the server's side"
        elif other not in LAYERS:
            yield f"{room} imports {module} and not the module that has it"
        elif ORDER.index(other) >= ORDER.index(room):
            yield f"{room} imports {other} from above"
        elif adapter(other) == adapter(room):
            continue
        elif adapter(other) != other:
            yield f"{room} imports {other}, a room of {adapter(other)}"
        elif LAYERS[other] == layer == ADAPTERS:
            yield f"{room} imports {other}, another adapter"
        elif (room, other) == ("__main__", "cli.entry") or (
            room.startswith(("cli.", "testing.")) and other.startswith(BESIDE)
        ):
            continue
        elif LAYERS[other] == SATELLITES and other.partition(".")[0] != room.partition(".")[0]:
            yield f"{room} imports {other}, a satellite"


def cycle(sources: dict[str, str]) -> list[str]:
    graph = {
        room: {module.removeprefix("raincheck.") for module, _ in imports(source)} & sources.keys()
        for room, source in sources.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_every_room_has_a_layer() -> None:
    assert rooms().keys() - LAYERS.keys() == set()


def test_every_layer_is_that_of_a_room() -> None:
    assert LAYERS.keys() - rooms().keys() == set()


@pytest.mark.parametrize("room", rooms())
def test_imports_point_down(room: str) -> None:
    assert list(violations(room, rooms()[room])) == []


@pytest.mark.parametrize(
    "room", ["display", "following", "listing", "outcomes", "printable", "requests"]
)
def test_commands_that_ask_a_server_speak_through_the_client(room: str) -> None:
    ours = [name for name, _ in imports(rooms()[f"cli.{room}"]) if name.startswith("raincheck")]
    assert [name for name in ours if name.split(".")[1] not in ("cli", "client")] == []


def test_imports_make_no_circle() -> None:
    assert cycle(rooms()) == []


def test_package_markers_import_nothing() -> None:
    for marker in HOUSE.rglob("__init__.py"):
        names = ("client", "dialects", "openapi", "testing")
        if marker.parent not in (HOUSE, *(HOUSE / name for name in names)):  # for users
            assert list(imports(marker.read_text())) == [], marker


def test_the_package_root_imports_no_satellite() -> None:
    for module, _ in imports((HOUSE / "__init__.py").read_text()):
        assert LAYERS[module.removeprefix("raincheck.")] < SATELLITES


# --- who writes what ---------------------------------------------------------------------------

FOREIGN = {
    "client.transport": {"response.request", "response.stream"},  # a client does, a transport may
    "openapi.documents": {"inside.openapi"},  # FastAPI's own way to another document
    "decorator": {"entered.__signature__"},  # what a wrapper says of itself, to `inspect`
    "runners.taskiq": {"broker.listen"},  # taskiq offers no other way into a worker's loop
    "stores._postgres_changes": {"failure.__cause__"},  # as `raise ... from` does, for a future
    "stores._sqlite_file": {"timer.daemon"},  # `threading.Timer` takes no such argument
    # A ticket and what is known of a route are the scheduler's own values, in its own module.
    "runtime.scheduler": {
        "ticket.running",
        "ticket.rests",
        "route.blocked",
        "route.durations",
    },
}
"""Who may assign to another object, and what."""


def foreign(source: str) -> Iterator[str]:
    """What is assigned or deleted of another object than `self`."""
    for node in ast.walk(parsed(source)):
        if (
            isinstance(node, ast.Attribute)
            and not isinstance(node.ctx, ast.Load)
            and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
        ):
            yield ast.unparse(node)


@pytest.mark.parametrize("room", rooms())
def test_nobody_writes_to_another_object(room: str) -> None:
    assert set(foreign(rooms()[room])) == FOREIGN.get(room, set())


@pytest.mark.parametrize(
    "source", ["a.b = 1", "self.a.b = 1", "a.b += 1", "a.b: int = 1", "del a.b", "x, a.b = 1, 2"]
)
def test_a_foreign_write_is_found(source: str) -> None:
    assert list(foreign(source)) in (["a.b"], ["self.a.b"])
    assert list(foreign("self.a, self.b = a.b, c.d[0]")) == []


# --- the tests' own house -----------------------------------------------------------------------

TESTS = Path(__file__).parent
MODULES = {
    ".".join(path.relative_to(TESTS).with_suffix("").parts): path.read_text()
    for path in sorted(TESTS.rglob("test_*.py"))
}

STAND_INS = {
    "stores.test_base.Overtaken": "another process writes between its two steps",
    "stores.test_base.Plain": "it has only what a store must have, to try the defaults",
    "stores.test_base.Silent": "the same, and nobody is told of changes",
    "stores.test_bounded.Delayed": "it overrides every call, and counts who still reads",
    "stores.test_bounded.Plain": "its bodies come from an iterator that is no generator",
    "stores.test_divided.Scrambled": "it keeps bodies as no other does, as a store that encrypts",
    "test_bad_input.Elsewhere": "it is a runner that knows its queues",
    "test_faults.SpoiltStore": "one of its records cannot be read from the n-th call on",
    "test_laws.Fading": "what it gives is not what it was given",
    "test_lifespan.Opening": "it is told what happens when it is opened",
    "test_model.SharedWatched": "the same, as if others saw it too",
    "test_model.Watched": "it compares what it is given with what it has",
    "test_recorder.Keeping": "it keeps the pieces of bodies as it is told",
    "test_responses.Disk": "it counts the bytes of bodies alone, and refuses them alone",
    "test_responses.SharedDisk": "the same, as if others saw it too",
    "runners.test_celery._Here": "runs jobs on the event loop of the contract's tests",
}
"""Stores and runners that stand outside `tests/doubles`, where one of its own has no use for
others; why."""


_CLASS = re.compile(r"^ *class (\w+)\(([^)]*)\):", re.MULTILINE)


def stand_ins(modules: dict[str, str]) -> set[str]:
    """The classes that are a store or a runner, or derive from one that is."""
    classes = [
        (f"{module}.{name}", {base.strip().rpartition(".")[2] for base in bases.split(",")})
        for module, source in modules.items()
        for name, bases in _CLASS.findall(source)
    ]
    found: set[str] = set()
    kinds = {"Store", "Runner"}
    before = -1
    while before != len(found):
        before = len(found)
        for name, bases in classes:
            if bases & kinds or any(base.endswith(("Store", "Runner")) for base in bases):
                found.add(name)
                kinds.add(name.rpartition(".")[2])
    return found


_IMPORT = re.compile(r"^ *(?:from [\w.]+ )?import (?:\([^)]*\)|.+)", re.MULTILINE)


def siblings(source: str) -> list[str]:
    """The statements by which a module imports a test module."""
    return [each for each in _IMPORT.findall(source) if re.search(r"\btests[. ][^#]*\btest_", each)]


def test_no_test_module_imports_another() -> None:
    assert {name: found for name, source in MODULES.items() if (found := siblings(source))} == {}


@pytest.mark.parametrize(
    "statement",
    [
        "import tests.test_laws",
        "from tests import test_laws",
        "from tests.test_laws import Gate",
        "from tests.e2e import (\n    app,\n    test_push,\n)",
        "def f():\n    from tests.e2e.test_push import deploy",
    ],
)
def test_a_test_module_that_imports_another_is_found(statement: str) -> None:
    assert len(siblings(f"import ast\n{statement}\nfrom tests.support import Gate\n")) == 1


def test_stores_and_runners_that_stand_in_for_others_are_in_one_place() -> None:
    doubles = {path.stem: path.read_text() for path in (TESTS / "doubles").glob("*.py")}
    shared = {name.rpartition(".")[2] for name in stand_ins(doubles)}
    assert {"TrickyStore", "Line", "Engine"} <= shared
    found = stand_ins(MODULES | doubles) - stand_ins(doubles)
    assert found == STAND_INS.keys()


WRITES = {"append_body", "claim", "claim_deliveries", "create", "learn", "replace"}
"""What changes a record, or what belongs to one."""


def written(source: str) -> Iterator[str]:
    """Which of these are called on something that is called a store."""
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Attribute) and node.attr in WRITES:
            of = ast.unparse(node.value).rpartition(".")[2]
            if of.strip("_") == "store":
                yield node.attr


@pytest.mark.parametrize(
    "room", [room for room in rooms() if not room.startswith(("stores.", "testing."))]
)
def test_only_the_ledger_writes_records(room: str) -> None:
    assert set(written(rooms()[room])) == (WRITES if room == "runtime.ledger" else set())


# --- the rules themselves ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("room", "source"),
    [
        pytest.param("routing.table", "from raincheck.jobs import Jobs", id="upward"),
        pytest.param("routing.table", "import raincheck.middleware", id="upward, spelt otherwise"),
        pytest.param("stores.base", "from raincheck.stores.memory import X", id="a port upward"),
        pytest.param("jobs", "def f():\n    from raincheck.middleware import X", id="hidden"),
        pytest.param("jobs", "if TYPE_CHECKING:\n    import raincheck.middleware", id="for types"),
        pytest.param("jobs", "from raincheck import Policy", id="through the root"),
        pytest.param("jobs", "import raincheck", id="the root itself"),
        pytest.param("jobs", "from raincheck.stores import memory", id="through a package"),
        pytest.param("jobs", "from . import policy", id="relative"),
        pytest.param("jobs", "from .stores.memory import MemoryStore", id="relative, deeper"),
        pytest.param("stores.memory", "import raincheck.runners.local", id="between adapters"),
        pytest.param("stores._redis_line", "import raincheck.stores.sqlite", id="from their rooms"),
        pytest.param("stores.sqlite", "import raincheck.stores._redis_line", id="to their rooms"),
        pytest.param("jobs", "import raincheck.stores._redis_line", id="to a room, from above"),
        pytest.param("errors", "import anyio", id="layer 0 beyond the standard library"),
        pytest.param("errors", "def f():\n    import starlette.types", id="the same, hidden"),
        pytest.param("jobs", "import fastapi.routing", id="an extra"),
        pytest.param("jobs", "def f():\n    import trio", id="an extra, hidden"),
        pytest.param("tasks", "import trio", id="trio at the top"),
        pytest.param("tasks", "class A:\n    import trio", id="trio in a class"),
        pytest.param("middleware", "from raincheck.testing import follow", id="a satellite"),
        pytest.param("middleware", "import raincheck.client.flow", id="the other side"),
        pytest.param("client.flow", "from raincheck.errors import Problem", id="from the other"),
        pytest.param("client.flow", "import starlette.types", id="from the other, its framework"),
        pytest.param("client.transport", "import httpx", id="a module that is given"),
    ],
)
def test_a_wrong_import_is_found(room: str, source: str) -> None:
    assert len(list(violations(room, source))) == 1


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("jobs", "from raincheck.stores.memory import MemoryStore"),
        ("acceptance.handoff", "import raincheck.decorator, raincheck.stores.base"),
        ("stores.memory", "from cachetools import TLRUCache"),
        ("stores.redis", "from raincheck.stores._redis_line import Line"),
        ("stores._redis_line", "from raincheck.stores._redis_scripts import Script"),
        ("routing.table", "import starlette.routing, anyio.to_thread, json"),
        ("tasks", "class A:\n    def f(self):\n        import trio"),
        ("client.transport", "import anyio\nfrom raincheck.client.flow import Flow"),
        ("testing.following", "from raincheck.client.flow import Flow"),
        ("errors", "from __future__ import annotations\nimport collections.abc"),
    ],
)
def test_a_right_import_is_let_through(room: str, source: str) -> None:
    assert list(violations(room, source)) == []


def test_a_circle_is_found() -> None:
    sources = {
        "a": "from raincheck.b import B",
        "b": "def f():\n    import raincheck.c",
        "c": "if TYPE_CHECKING:\n    from raincheck.a import A",
    }
    assert set(cycle(sources)) == {"a", "b", "c"}
    assert cycle({**sources, "c": ""}) == []


# --- without extras ----------------------------------------------------------------------------

REQUIRED = re.compile(r"[A-Za-z0-9._-]+")


def core_modules() -> set[str]:
    """The top-level modules of raincheck and its own dependencies, and nothing else."""
    owners = packages_distributions()
    installed = {normal(owner) for every in owners.values() for owner in every}
    wanted, core = {"raincheck"}, {"raincheck"}
    while wanted:
        for requirement in distribution(wanted.pop()).requires or ():
            name = normal(REQUIRED.match(requirement)[0])  # type: ignore[index] # PEP 508
            if "extra ==" not in requirement and name in installed - core:
                wanted.add(name)
                core.add(name)
    modules = {module for module, every in owners.items() if core & set(map(normal, every))}
    return modules | {"raincheck"}


def normal(name: str) -> str:
    return name.lower().replace("_", "-")


WITHOUT_EXTRAS = """
import sys

CORE = set(sys.argv[1].split(","))


class Blocked:
    def find_spec(self, name, path=None, target=None):
        package = name.partition(".")[0]
        if package not in CORE and package not in sys.stdlib_module_names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


for name in list(sys.modules):  # what the environment imports at its start
    if name.partition(".")[0] not in CORE | set(sys.stdlib_module_names) | {"__main__"}:
        del sys.modules[name]
sys.meta_path.insert(0, Blocked())

for blocked in sys.argv[2].split(","):
    try:
        __import__(blocked)
    except ImportError:
        continue
    raise SystemExit(f"{blocked} was to be blocked")

for module in sys.argv[3].split(","):
    __import__(module)
"""


def test_everything_imports_without_an_extra() -> None:
    core = core_modules()
    assert CORE | {"raincheck"} <= core
    extras = {"uvicorn", "fastapi", "httpx", "trio", "uvloop", "httptools", "pytest", "pydantic"}
    assert not extras & core
    modules = ["raincheck", *(f"raincheck.{room}" for room in rooms() if room not in EXTRAS)]
    arguments = [",".join(sorted(core)), ",".join(sorted(extras)), ",".join(modules)]
    command = [sys.executable, "-c", WITHOUT_EXTRAS, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_drawn_house_is_this_one() -> None:
    """The map in CONTRIBUTING.md: a package where most of its rooms are, others by their names."""
    most: dict[str, Counter[int]] = {}
    for room, layer in LAYERS.items():
        most.setdefault(room.partition(".")[0], Counter())[layer] += 1
    stands = {package: layers.most_common(1)[0][0] for package, layers in most.items()}
    house: dict[int, set[str]] = {}
    for room, layer in LAYERS.items():
        package = room.partition(".")[0]
        house.setdefault(layer, set()).add(package if stands[package] == layer else room)
    text = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
    drawn = dict(re.findall(r'^  L\d\["(\d) · (.+)"\]$', text, re.MULTILINE))
    assert {int(layer): names.split(" · ") for layer, names in drawn.items()} == {
        layer: sorted(names) for layer, names in house.items()
    }
