"""What raincheck raises, and the problem documents it answers with (RFC 9457)."""

from __future__ import annotations

import ast
import asyncio
import json
import re
from pathlib import Path

import pytest

from raincheck import errors
from raincheck.errors import (
    INTERRUPTED,
    LOST_WORKER,
    BodyLost,
    BrokenOff,
    CallbackUnknown,
    ConfigurationError,
    IllegalTransition,
    KeyInUse,
    KeyMalformed,
    KeyMissing,
    KeyReused,
    LeaseLost,
    MalformedCursor,
    NoRoom,
    OverQuota,
    OwnerRequired,
    OwnerUnknown,
    Problem,
    QueueFull,
    RaincheckError,
    Refusal,
    Release,
    RequestTooLarge,
    RunnerUnavailable,
    ShuttingDown,
    StoredTooMuch,
    StoreError,
    StoreFull,
    StoreUnavailable,
    UnreadableRecord,
    crashed,
    invalid_response,
    is_release,
    response_too_large,
    timed_out,
)

RELEASE = Release()
NO_RESPONSE = RuntimeError("No response returned.")


@pytest.mark.parametrize(
    ("error", "release"),
    [
        pytest.param(None, False, id="nothing"),
        pytest.param(RELEASE, True, id="a release"),
        pytest.param(NO_RESPONSE, False, id="an error"),
        pytest.param(asyncio.CancelledError(), False, id="a cancellation"),
        pytest.param(BaseExceptionGroup("", [RELEASE]), True, id="in a group"),
        pytest.param(BaseExceptionGroup("", [NO_RESPONSE, RELEASE]), True, id="beside others"),
        pytest.param(
            BaseExceptionGroup("", [NO_RESPONSE, BaseExceptionGroup("", [NO_RESPONSE, RELEASE])]),
            True,
            id="two BaseHTTPMiddlewares deep",
        ),
        pytest.param(
            ExceptionGroup("", [NO_RESPONSE, ExceptionGroup("", [ValueError()])]),
            False,
            id="nested groups without one",
        ),
    ],
)
def test_a_release_is_known_however_deep(error: BaseException | None, release: bool) -> None:
    assert is_release(error) is release


def test_an_error_that_a_release_caused_is_still_an_error() -> None:
    error = ValueError()
    error.__cause__ = error.__context__ = RELEASE
    assert not is_release(error)


def test_no_except_exception_stops_a_release() -> None:
    assert not isinstance(RELEASE, Exception)
    assert not issubclass(Release, asyncio.CancelledError)


TREE = {
    ConfigurationError: RaincheckError,
    IllegalTransition: RaincheckError,
    LeaseLost: IllegalTransition,
    NoRoom: IllegalTransition,
    MalformedCursor: RaincheckError,
    BrokenOff: RaincheckError,
    StoreError: RaincheckError,
    BodyLost: StoreError,
    StoreFull: StoreError,
    UnreadableRecord: StoreError,
    Refusal: RaincheckError,
    RequestTooLarge: Refusal,
    KeyMalformed: Refusal,
    KeyMissing: Refusal,
    KeyInUse: Refusal,
    KeyReused: Refusal,
    OverQuota: Refusal,
    StoredTooMuch: Refusal,
    OwnerRequired: Refusal,
    OwnerUnknown: Refusal,
    CallbackUnknown: Refusal,
    QueueFull: Refusal,
    RunnerUnavailable: Refusal,
    StoreUnavailable: Refusal,
    ShuttingDown: Refusal,
}


@pytest.mark.parametrize(("error", "parent"), TREE.items())
def test_the_tree_is_as_drawn(error: type[Exception], parent: type[Exception]) -> None:
    assert error.__bases__[0] is parent
    assert errors.__doc__ is not None
    assert error.__name__ in errors.__doc__


def test_the_drawing_is_whole() -> None:
    found = {
        thing
        for thing in vars(errors).values()
        if isinstance(thing, type) and issubclass(thing, RaincheckError)
    }
    assert found == {*TREE, RaincheckError}


@pytest.mark.parametrize(
    ("refusal", "name", "status"),
    [
        (RequestTooLarge, "request-too-large", 413),
        (KeyMalformed, "idempotency-key-malformed", 400),
        (KeyMissing, "idempotency-key-missing", 400),
        (KeyInUse, "idempotency-key-in-use", 409),
        (KeyReused, "idempotency-key-reused", 422),
        (OverQuota, "over-quota", 429),
        (StoredTooMuch, "stored-too-much", 429),
        (OwnerRequired, "owner-required", 401),
        (OwnerUnknown, "owner-unknown", 500),
        (CallbackUnknown, "callback-unknown", 500),
        (QueueFull, "queue-full", 503),
        (RunnerUnavailable, "runner-unavailable", 503),
        (StoreUnavailable, "store-unavailable", 503),
        (ShuttingDown, "shutting-down", 503),
    ],
)
def test_a_refusal_reaches_the_client_as_a_problem(
    refusal: type[Refusal], name: str, status: int
) -> None:
    refused = refusal("3 requests wait already.", retry_after=7)
    assert refused.retry_after == 7
    problem = refused.problem
    assert (problem.name, problem.status) == (name, status)
    assert problem.detail == "3 requests wait already."
    assert problem.title
    assert refusal("").retry_after is None


def test_every_refusal_has_a_status_of_its_own_to_show() -> None:
    refusals = [error for error in TREE if issubclass(error, Refusal) and error is not Refusal]
    assert len({error.name for error in refusals}) == len(refusals)
    assert all(400 <= error.status < 600 for error in refusals)


@pytest.mark.parametrize(
    ("problem", "name", "status"),
    [
        (crashed(), "crashed", 500),
        (invalid_response("The handler sent no response."), "invalid-response", 500),
        (timed_out(600.0), "timeout", 504),
        (response_too_large(1024), "response-too-large", 500),
        (INTERRUPTED, "interrupted", 503),
        (LOST_WORKER, "lost-worker", 502),
    ],
)
def test_a_problem_is_a_document(problem: Problem, name: str, status: int) -> None:
    document = problem.document()
    assert document == {
        "type": f"urn:raincheck:problem:{name}",
        "title": problem.title,
        "status": status,
        "detail": problem.detail,
    }
    assert json.loads(json.dumps(document)) == document
    assert problem.title
    assert problem.detail


def test_what_a_problem_says_stands_by_itself() -> None:
    """Clients show it to people, without the title: it needs a subject (WIRE, `error.message`)."""
    house = Path(errors.__file__).parent
    files = [path for path in house.rglob("*.py") if path.name != "pages.py"]  # it has headings
    sources = [path.read_text() for path in files]
    suspects = [source for source in sources if re.search(r"[\"'](It|They|See) ", source)]
    nodes = [n for source in suspects for n in ast.walk(ast.parse(source))]
    docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    texts = [
        node.value
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if id(node) not in docstrings
    ]
    assert [text for text in texts if text.startswith(("It ", "They ", "See "))] == []


def test_a_problem_says_what_the_bound_was() -> None:
    assert "600 seconds" in timed_out(600.0).detail
    assert "0.5 seconds" in timed_out(0.5).detail
    assert "1024 bytes" in response_too_large(1024).detail
