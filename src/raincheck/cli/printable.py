"""What a server says, as a terminal may see it."""

from __future__ import annotations

import re
import unicodedata

# Of ECMA-48: control sequences, strings (a window's title, a link, the clipboard), other escapes;
# each with ESC or with the one C1 character that means the same. A string without an end takes all.
_SEQUENCES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f]).*?(?:\x07|\x1b\\|\x9c|\Z)"
    r"|\x1b[ -/]*[0-~]",
    re.DOTALL,
)
_JOINERS = "\u200c\u200d"  # they belong to words and to emoji, and move nothing

LONGEST = 500
"""Characters of a message that are shown."""


def printable(text: object, *, longest: int = LONGEST) -> str:
    """A text on one line, without anything that a terminal would obey.

    Control sequences, C0 and C1 controls, marks that turn the direction of writing, and surrogates
    go; line ends and tabs become spaces.

    Args:
        text: whatever a server has sent.
        longest: characters after which it is cut, with an ellipsis.
    """
    shown = " ".join(_SEQUENCES.sub("", str(text)).split())
    shown = "".join(character for character in shown if _harmless(character))
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def _harmless(character: str) -> bool:
    kind = unicodedata.category(character)
    return kind not in ("Cc", "Cf", "Cs", "Zl", "Zp") or character in _JOINERS
