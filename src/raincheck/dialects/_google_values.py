"""What protobuf can carry: `google.protobuf.Value` and the strings of its messages."""

from __future__ import annotations

import json
import math
import re

from raincheck.dialects.contents import Json

# Of a hundred messages inside of one another, which parsers take, each list and object is two.
_DEEPEST = 49

# What may be half a surrogate pair, escaped or as it is, and more digits than a double has.
_ODD_TEXT = re.compile(rb"\\u[dD]|\xed")
_LARGE = re.compile(rb"(?<![0-9])[0-9]{309}")


def carried(said: Json) -> bool:
    """Whether a `Value` can have it: text of Unicode, numbers that a double has, not too deep."""
    try:
        if _ODD_TEXT.search(said.body):
            json.dumps(said.value, ensure_ascii=False).encode()
        if _LARGE.search(said.body):
            json.loads(said.body, parse_int=_double)
    except (UnicodeEncodeError, OverflowError):
        return False
    opened = said.body.count(b"[") + said.body.count(b"{")
    return opened < _DEEPEST or _is_shallow(said.value)


def written(text: str) -> str:
    """A text, without what UTF-8 does not have: JSON and Python know half a surrogate pair."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _double(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise OverflowError
    return number


def _is_shallow(value: object) -> bool:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(_DEEPEST):
        level = [
            inner
            for each in level
            for inner in (each.values() if isinstance(each, dict) else each)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return True
    return False
