"""Nothing that a server says moves a cursor, hides text, or writes into a clipboard."""

from __future__ import annotations

import pytest

from raincheck.cli.display import fraction, sentence
from raincheck.cli.printable import printable


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("412 of 1000 sent", "412 of 1000 sent"),
        ("Größe 100 % 日本 👩‍💻", "Größe 100 % 日本 👩‍💻"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x9b31mred\x9b0m", "red"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]52;c;cm0gLXJm\x9cafter", "after"),
        ("\x90q#0\x9cafter", "after"),
        ("\x1b_never ends", ""),
        ("\x1bcreset \x1b(0lines", "reset lines"),
        ("a\x1b", "a"),
        ("over\rwritten\b\b\x7f", "over written"),
        ("two\nlines\tand a tab", "two lines and a tab"),
        ("a\u2028b\u2029c", "a b c"),
        ("\u202etxt.exe\u2066", "txt.exe"),
        ("\ud800half", "half"),
        (None, "None"),
        (7, "7"),
        ("[bold]no markup[/]", "[bold]no markup[/]"),
    ],
)
def test_only_text_is_shown(said: object, shown: str) -> None:
    assert printable(said) == shown


SECOND = "queued number 1 in the queue"


def test_a_long_text_is_cut() -> None:
    assert printable("x" * 600) == "x" * 499 + "…"
    assert printable("x" * 500) == "x" * 500


@pytest.mark.parametrize(
    ("document", "done", "words"),
    [
        ({"status": "running", "progress": 0.5, "message": "half"}, 0.5, "running half"),
        ({"status": "queued", "queue_position": 3}, None, "queued number 3 in the queue"),
        ({"status": "queued", "next_run_at": "12:03Z"}, None, "queued runs again at 12:03Z"),
        ({"status": "queued", "next_run_at": 7, "queue_position": 1}, None, SECOND),
        ({"status": "Running", "percentComplete": 40}, 0.4, "Running"),
        ({"progress": "40%", "message": ["a"]}, None, "running ['a']"),
        ({"status": {"\x1b": 1}, "progress": True}, None, "{'\\x1b': 1}"),
        ({"progress": 7}, None, "running"),
        ({"progress": float("nan")}, None, "running"),
        ({}, None, "running"),
    ],
)
def test_any_document_can_be_shown(
    document: dict[str, object], done: float | None, words: str
) -> None:
    assert fraction(document) == done
    assert sentence(document) == words
