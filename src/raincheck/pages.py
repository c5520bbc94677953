"""What is shown to people (`Pages`): settings, and the words of the pages."""

from __future__ import annotations

import difflib
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from starlette.requests import HTTPConnection
from starlette.responses import Response

from raincheck.dialects.base import Urls
from raincheck.job import Job
from raincheck.policy import Check

Waiting = Callable[[Job, Urls], Response | Awaitable[Response]]
"""Makes the page of a job that has not finished; sync or async."""

OperatorOf = Callable[[HTTPConnection], bool | Awaitable[bool]]
"""Says whether a connection is an operator's; sync or async."""

WORDS: Mapping[str, str] = MappingProxyType(
    {
        "lang": "en",
        "queued": "Waiting for its turn",
        "running": "In progress",
        "cancelling": "Stopping",
        "succeeded": "Finished",
        "progress": "Progress",
        "position": "Number {position} in the queue",
        "expected": "Expected at {time}",
        "again": "Tried again at {time}",
        "note": "The result opens here as soon as it is ready.",
        "open": "Open the result",
        "cancel": "Cancel",
        "lost": "The connection is lost. Trying again.",
        "failed": "It has failed",
        "cancelled": "It was canceled",
        "cancelled_note": "There will be no result.",
        "expired": "The result is gone",
        "expired_note": "It was kept for a while only, or it was deleted.",
        "unknown": "There is nothing here",
        "unknown_note": "The address is wrong, or it is not yours to see.",
        "jobs": "Jobs",
        "queued_short": "Waiting",
        "running_short": "Running",
        "cancelling_short": "Stopping",
        "succeeded_short": "Finished",
        "failed_short": "Failed",
        "cancelled_short": "Canceled",
        "all_jobs": "All jobs",
        "none": "There are none.",
        "status": "Status",
        "route": "Route",
        "owner": "Owner",
        "accepted": "Accepted",
        "since": "Accepted since (UTC)",
        "before": "Accepted before (UTC)",
        "filter": "Show",
        "runs": "Runs",
        "actions": "Actions",
        "delete": "Delete",
        "delete_note": "Delete for good",
        "redeliver": "Send the callback again",
        "newest": "Newest",
        "older": "Older",
        "pages": "Pages",
        "oldest": "Oldest waits since",
        "mean": "Seconds on average",
        "workers": "Processes at work: {count}",
    }
)
"""What the pages say, in English. `lang` is their language, as HTML has it (BCP 47); what stands in
braces is put in, and has to stand in a translation as well."""

_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z]{4})?(-([A-Za-z]{2}|[0-9]{3}))?")
_HOLE = re.compile(r"\{\w*\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pages:
    """What a person's browser is shown. Frozen; programs get what they always get.

    Attributes:
        waiting: the page of a job that has not finished, for a browser that opens its status URL:
            `"built-in"` (the default), or a function from the job and its `Urls` to a Starlette
            response, sync or async. A response with status 200 is sent as the 202 that it stands
            for. None: no page of a job, a browser gets the documents that programs get.
        operator: says whether a request, an `HTTPConnection`, is that of somebody who may list,
            cancel and delete all jobs, and send their callbacks again; a bool, sync or async: the
            app's own authorisation. Default None: nobody may, and there is no list.
        own_list: owners may list their own jobs. Default False.
        words: what the pages say, in place of English: some or all of `raincheck.pages.WORDS`.

    Raises:
        ConfigurationError: a value that cannot work; the message names the field.
    """

    waiting: Waiting | Literal["built-in"] | None = "built-in"
    operator: OperatorOf | None = None
    own_list: bool = False
    words: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check = Check(self)
        if not (self.waiting in ("built-in", None) or callable(self.waiting)):
            check.fail("waiting", "is 'built-in', None or a function of a job and its urls")
        if not (self.operator is None or callable(self.operator)):
            check.fail("operator", "is None or a function from an HTTPConnection to a bool")
        check.boolean("own_list")
        if not isinstance(self.words, Mapping):
            check.fail("words", "is a mapping, like {'cancel': 'Abbrechen'}")
        for name, word in self.words.items():
            if name not in WORDS:
                near = difflib.get_close_matches(str(name), WORDS, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(WORDS)}"
                check.fail("words", f"has no {name!r}; {hint}")
            if not isinstance(word, str):
                check.fail("words", f"is of strings, and {name!r} is none")
            holes = sorted(_HOLE.findall(WORDS[name]))
            if sorted(_HOLE.findall(word)) != holes:
                rule = f"with {' and '.join(holes)} in it" if holes else "without braces"
                check.fail("words", f"needs {name!r} {rule}, like {WORDS[name]!r}")
        if not _LANGUAGE.fullmatch(self.words.get("lang", "en")):
            check.fail("words", "needs a language as 'lang', like 'de' or 'pt-BR'")
        object.__setattr__(self, "words", dict(self.words))
