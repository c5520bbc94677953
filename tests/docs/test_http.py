"""The pages about HTTP have what the code has, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pytest
from starlette.requests import HTTPConnection

from raincheck import Pages, Policy
from raincheck.dialects.plain import WORDS, PlainDialect
from raincheck.errors import PROBLEM_TYPE_PREFIX
from raincheck.job import TRANSITIONS
from raincheck.messages import HOP_BY_HOP
from raincheck.middleware import Setup
from raincheck.openapi.plain import SCHEMAS, accepted, parameters, refusals, status_routes
from tests.docs.blocks import ROOT
from tests.docs.wire import lower_names, problems

HTTP = (ROOT / "docs" / "http.md").read_text()
PROBLEMS = (ROOT / "docs" / "problems.md").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()


def everybody(connection: HTTPConnection) -> bool:
    return True


ALL_ON = Setup(
    path="/jobs",
    policy=Policy(),
    dialect=PlainDialect,
    pages=Pages(operator=everybody, own_list=True),
    rules=[],
    absolute=True,
    owned=True,
    require_owner=True,
    jobs=None,
)


def rows(page: str, heading: str) -> Iterator[list[str]]:
    """The rows of the tables of a section, but for its subsections."""
    section = re.split(rf"^##+ {re.escape(heading)}$", page, flags=re.MULTILINE)[1]
    lines = re.split(r"^#", section, flags=re.MULTILINE)[0].splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("| ") and not following.startswith("|--"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def quoted(cells: Iterable[str]) -> list[str]:
    return re.findall(r"`([^`]+)`", " ".join(cells))


# --- problems ------------------------------------------------------------------------------------


def entries() -> dict[str, str]:
    parts = re.split(r"^### (.+)$", PROBLEMS, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_every_problem_has_an_entry_and_every_entry_a_problem() -> None:
    assert sorted(entries()) == sorted({name for name, _, _ in problems()})


@pytest.mark.parametrize("name", entries())
def test_the_entry_of_a_problem_has_its_status_and_title(name: str) -> None:
    said, _, rest = entries()[name].strip().partition(", ")
    known = [(str(status), title) for each, status, title in problems() if each == name]
    assert [said] * len(known) == [status for status, _ in known]
    assert [title for _, title in known if f"*{title}*" not in " ".join(rest.split())] == []
    assert "**What to do:**" in rest


def test_the_urn_of_a_problem_leads_to_its_entry() -> None:
    assert f"{PROBLEM_TYPE_PREFIX}queue-full` is [#queue-full]" in " ".join(PROBLEMS.split())
    for name in entries():
        assert re.fullmatch("[a-z-]+", name), name  # so that the anchor is the name


# --- routes and states ---------------------------------------------------------------------------


def explicit(statuses: Iterable[str]) -> set[str]:
    return {status for status in statuses if status.isdecimal()}


def test_every_route_is_there_with_its_methods_and_statuses() -> None:
    found = {}
    for cells in rows(HTTP, "Status routes"):
        if len(cells) == 4:  # else of what comes at one of them
            methods, path, _, answers = cells
            for method in methods.split(", "):
                found[path.strip("`"), method] = set(re.findall(r"\b\d{3}\b", answers))
    described = {
        (f"/jobs{path}", method.upper()): explicit(operation["responses"])
        for path, methods in status_routes(ALL_ON).items()
        for method, (_, operation) in methods.items()
    }
    assert found.keys() == described.keys()
    for (path, method), statuses in described.items():
        if not (path.endswith(("{job_id}", "/stream")) and method != "DELETE"):  # the handler's own
            assert found[path, method] == statuses, (path, method)


def test_what_a_marked_route_may_be_answered() -> None:
    section = [
        cells for cells in rows(HTTP, "A request for a marked route") if cells[0][0].isdigit()
    ]
    said = {status for cells in section for status in cells[0].split(", ")}
    policy = Policy(respond="preferred", timeout=1, max_queued_per_owner=1, wait=1)
    assert said == {"202", *explicit(refusals(ALL_ON, policy))}


def test_every_end_without_a_response_is_told() -> None:
    ends = re.split(r"^## (.+)$", PROBLEMS, flags=re.MULTILINE)
    section = ends[ends.index("The job ended without a response") + 1]
    for name in re.findall(r"^### (.+)$", section, flags=re.MULTILINE):
        assert f"(problems.md#{name})" in HTTP, name


def test_every_state_is_there_with_what_it_may_become() -> None:
    said = {quoted([word])[0]: set(quoted([moves])) for word, _, moves in rows(HTTP, "States")}
    assert said == {
        WORDS[state]: {WORDS[move] for move in moves} for state, moves in TRANSITIONS.items()
    }


def test_every_parameter_of_a_list_is_there() -> None:
    said = {cells[0].strip("`") for cells in rows(OPERATIONS, "What can be asked for")}
    listing = status_routes(ALL_ON)[""]["get"][1]["parameters"]
    assert said == {each["name"] for each in listing}


# --- documents -----------------------------------------------------------------------------------


def members(schema: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """The members of a document, with those of what is in them after a dot."""
    if "anyOf" in schema:
        for each in schema["anyOf"]:
            yield from members(each, before)
    elif "items" in schema and "properties" in schema["items"]:
        yield from members(schema["items"], before)
    elif "properties" in schema:
        for name, inner in schema["properties"].items():
            yield from members(inner, f"{before}.{name}".strip("."))
    else:
        yield before


KINDS = {"pending": "Pending", "succeeded": "Succeeded", "failed": "Failed", "canceled": "Canceled"}


def test_every_member_of_the_status_document_is_there_where_it_is() -> None:
    found: dict[str, set[str]] = {}
    for kind, name in KINDS.items():
        for member in members(SCHEMAS[f"{name}Job"]):
            found.setdefault(member, set()).add(kind)
    said = {}
    for member, where, _ in rows(HTTP, "The status document"):
        said[member.strip("`")] = {*KINDS} if where == "always" else {*where.split(", ")}
    assert said == found


def test_every_member_of_the_other_documents_is_there() -> None:
    lists = {name for cells in rows(HTTP, "Lists and totals") for name in quoted(cells[:1])}
    assert lists == {"jobs", "next", *members(SCHEMAS["JobTotals"])}
    problem = [quoted(cells[:1])[0] for cells in rows(HTTP, "Problems")]
    assert problem == [*members(SCHEMAS["JobProblem"])]
    more = {*members(SCHEMAS["ListedPendingJob"])} - {*members(SCHEMAS["PendingJob"])}
    assert more == {"route", "owner"}
    said = "In a list documents also have `route` and, for operators, `owner`."
    assert said in " ".join(HTTP.split())


# --- header fields -------------------------------------------------------------------------------

NO_FIELDS = {
    *("audio", "boundary", "built-in", "bytes", "callback", "canceled", "cors", "cross-site"),
    *("date-time", "deflate", "failed", "gzip", "handler-response", "hop-by-hop", "identity"),
    *(
        "image",
        "navigate",
        "no",
        "no-referrer",
        "no-store",
        "none",
        "null",
        "private",
        "public",
        "raincheck-closing",
    ),
    *("respond-async", "s-maxage", "same-origin", "store-away", "succeeded", "true"),
    *("uri-reference", "video", "x-gzip"),
}
"""What stands in the code and looks like the name of a field."""

THEIRS = {"content-digest", "content-language"}
"""Fields that are left out of a part of a response; nobody sets them here."""

OF_OTHER_DIALECTS = {"no-such-job", "result-not-available", "result-not-ready"}


def fields(*headings: str) -> set[str]:
    found = [quoted(cells[:1])[0] for heading in headings for cells in rows(HTTP, heading)]
    assert len(found) == len({*found}) or len(headings) > 1, "one stands there twice"
    return {name.lower() for name in found}


def test_every_field_is_there_and_no_other() -> None:
    known = {name for name, _, _ in problems()} | NO_FIELDS | THEIRS | OF_OTHER_DIALECTS
    hop_by_hop = {name.decode() for name in HOP_BY_HOP}
    said = fields("Of requests", "Of answers", "Of callbacks")
    assert said == lower_names() - known - hop_by_hop
    words = " ".join(HTTP.split())
    sentence = words[words.index("hop-by-hop fields are left out") :].partition("All others")[0]
    assert {name.lower() for name in quoted([sentence])} == hop_by_hop


def test_what_the_openapi_document_has_of_fields_is_there() -> None:
    policy = Policy(respond="preferred", max_queued_per_owner=1)
    answers = [accepted(ALL_ON, policy), *refusals(ALL_ON, policy).values()]
    asked = [each["name"] for each in parameters(policy)]
    for methods in status_routes(ALL_ON).values():
        for _, operation in methods.values():
            answers += operation["responses"].values()
            asked += [e["name"] for e in operation.get("parameters", []) if e["in"] == "header"]
    described = {name.lower() for answer in answers for name in answer.get("headers", {})}
    assert described <= fields("Of answers")
    assert {name.lower() for name in asked} <= fields("Of requests")
