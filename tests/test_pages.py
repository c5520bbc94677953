"""`Pages`: what people are shown; frozen, and checked when made."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import Response

from raincheck import ConfigurationError, LongRunningMiddleware, Pages, RaincheckError
from raincheck.pages import WORDS


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("waiting", value) for value in (True, "", "off", 5)],
        *[("operator", value) for value in (True, False, "admin")],
        *[("own_list", value) for value in (None, 1, "yes")],
        *[("words", value) for value in (None, 5, "Cancel", [("cancel", "Stop")])],
        *[("words", {"cancel": value}) for value in (None, 5, b"Stop", "Stop {it}")],
        *[("words", {"position": value}) for value in ("Next", "{position} of {position}", "{n}")],
        *[("words", {"lang": value}) for value in ("german", "", "de_DE", "d")],
        *[("words", {name: "Stop"}) for name in ("cancle", "stop", "", 5)],
    ],
)
def test_an_impossible_setting_is_refused_by_name(field: str, value: object) -> None:
    settings: dict[str, Any] = {field: value}
    with pytest.raises(ConfigurationError, match=rf"^Pages\({field}=.*\): {field} "):
        Pages(**settings)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"cancle": "Stop"}, "has no 'cancle'; did you mean 'cancel'?"),
        ({"position": "Next"}, "needs 'position' with {position} in it, like 'Number {position}"),
        ({"cancel": "{Stop}"}, "needs 'cancel' without braces, like 'Cancel'"),
        ({"zzz": ""}, "has no 'zzz'; there are lang, queued,"),
    ],
)
def test_a_slip_in_the_words_is_told_with_its_cure(words: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        Pages(words=words)


def test_all_words_can_be_replaced() -> None:
    assert Pages(words=WORDS).words == WORDS


def test_words_are_those_that_were_given() -> None:
    given = {"cancel": "Abbrechen"}
    pages = Pages(words=given)
    given["cancel"] = "Stop"
    assert pages.words == {"cancel": "Abbrechen"}


def test_pages_are_frozen_and_take_keywords() -> None:
    assert dataclasses.asdict(Pages()) == {
        "waiting": "built-in",
        "operator": None,
        "own_list": False,
        "words": {},
    }
    with pytest.raises(TypeError):
        Pages(None)  # type: ignore[call-arg] # keywords only
    with pytest.raises(dataclasses.FrozenInstanceError):
        Pages().own_list = True  # type: ignore[misc] # frozen


def test_the_middleware_takes_pages_and_nothing_else() -> None:
    with pytest.raises(RaincheckError, match=r"^pages=.*: it is no Pages; give one, like Pages\("):
        LongRunningMiddleware(Response(), pages={"own_list": True})  # type: ignore[arg-type]
    with pytest.raises(RaincheckError, match=r"^pages=.*: it is the class and no Pages;"):
        LongRunningMiddleware(Response(), pages=Pages)  # type: ignore[arg-type]


def test_the_documents_have_every_word() -> None:
    text = (Path(__file__).parents[1] / "docs" / "pages.md").read_text()
    assert dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", text, re.M)) == WORDS
