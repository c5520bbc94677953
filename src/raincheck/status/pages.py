"""What a person's browser is shown: the waiting page, and problems that can be read."""

from __future__ import annotations

import inspect
import json
import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

import anyio
from starlette.responses import Response
from starlette.types import Message, Scope, Send

from raincheck.dialects.base import Outlook, Reply, Urls
from raincheck.dialects.plain import WORDS as SPELT
from raincheck.errors import Problem
from raincheck.job import TRANSITIONS, Job, State
from raincheck.pages import WORDS, Pages, Waiting
from raincheck.status.results import send_reply

logger: logging.Logger = logging.getLogger("raincheck")

# What a document's fields say of its content; a page has its own.
_OF_CONTENT = frozenset({b"content-type", b"content-length", b"content-location"})
_REFERRER = b"referrer-policy"

# To its own site a page says where it is: with `no-referrer` a browser would send the form that
# cancels with `Origin: null`, as a form from nowhere ("append a request `Origin` header" in Fetch).
_OWN_REFERRER = (_REFERRER, b"same-origin")
_VARY = (b"vary", b"Accept, Sec-Fetch-Mode")

_POLICY = (
    "default-src 'none'; script-src 'nonce-{0}'; style-src 'nonce-{0}'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

# Seconds between two loads of a page without scripts.
_SOONEST, _LATEST = 2, 30

_HOLE = re.compile(r"\{\{([\w ]+)\}\}")
_AGAIN = '<meta http-equiv="refresh" content="{{seconds}}">\n'

# The problems that have words of their own.
_TOLD = {"cancelled": "cancelled", "expired": "expired", "not-found": "unknown"}


class Markup(str):
    """HTML that is put into a hole as it is."""

    __slots__ = ()


class Template:
    """An HTML file with holes, `{{name}}`; what is put in is escaped, in one pass."""

    def __init__(self, text: str) -> None:
        self._pieces = _HOLE.split(text)

    @classmethod
    def read(cls, name: str, *, without: str = "") -> Template:
        """A file of this package, in the style of all pages, with the module if it has a place."""
        text = styled(name).replace("{{module}}", _module())
        return cls(text.replace(without, "", 1) if without else text)

    def filled(self, words: Mapping[str, str]) -> bytes:
        """The page, with these words in its holes."""
        pieces = self._pieces.copy()
        pieces[1::2] = [_put(words[name]) for name in pieces[1::2]]
        return "".join(pieces).encode("utf-8", "replace")


def styled(name: str) -> str:
    """An HTML file of this package, with the style of all pages."""
    return _read(name).replace("{{style}}", _read("style.css").strip())


def _put(word: str) -> str:
    return word if isinstance(word, Markup) else escape(word)


@cache
def _read(name: str) -> str:
    return files("raincheck.status").joinpath(name).read_text("utf-8")


@cache
def _module() -> str:
    """The script that other pages import; here it is part of the page's one inline script."""
    return files("raincheck").joinpath("static", "raincheck.js").read_text("utf-8").strip()


def as_page(reply: Reply, template: Template, words: Mapping[str, str]) -> Reply:
    """A page in the place of a document: its status and fields stay, but for its content.

    Args:
        reply: the document.
        template: the page; it may have scripts and styles with a `{{nonce}}`.
        words: what is put in.
    """
    nonce = secrets.token_urlsafe(16)
    body = template.filled({**words, "nonce": nonce})
    headers = [
        *((name, value) for name, value in reply.headers if name not in _OF_CONTENT | {_REFERRER}),
        _OWN_REFERRER,
        _VARY,
        (b"content-security-policy", _POLICY.format(nonce).encode()),
        (b"content-type", b"text/html; charset=utf-8"),
        (b"content-length", b"%d" % len(body)),
    ]
    return Reply(reply.status, headers, body)


class Screen:
    """Shows pages to whoever looks at a job with a browser.

    Args:
        pages: the settings.
        clock: seconds since the epoch.

    Attributes:
        on: whether there are pages at all.
    """

    def __init__(self, pages: Pages, clock: Callable[[], float]) -> None:
        self.on: bool = pages.waiting is not None
        self._make = pages.waiting
        self._clock = clock
        self._words = {**WORDS, **pages.words}
        self._waiting = Template.read("waiting.html")
        self._final = Template.read("problem.html", without=_AGAIN)
        self._passing = Template.read("problem.html")

    def problem(
        self, problem: Problem, reply: Reply, *, failed: bool = False, again: int | None = None
    ) -> Reply:
        """A problem for people.

        Args:
            problem: the problem.
            reply: the same as the dialect tells it to programs.
            failed: whether it is why a job has failed.
            again: seconds until the browser tries its URL again, if that makes sense.
        """
        title, detail = problem.title, problem.detail
        if problem.name in _TOLD:
            told = _TOLD[problem.name]
            title, detail = self._words[told], self._words[told + "_note"]
        elif failed:
            title = self._words["failed"]
        words = {"lang": self._words["lang"], "title": title, "detail": detail}
        if again is None:
            return as_page(reply, self._final, words)
        return as_page(reply, self._passing, {**words, "seconds": str(again)})

    async def waiting(
        self, job: Job, urls: Urls, outlook: Outlook, reply: Reply, scope: Scope, send: Send
    ) -> None:
        """Answer with the page of a job that has not finished.

        Args:
            job: the job.
            urls: where its routes are, from where the page is.
            outlook: what is expected of it.
            reply: the same as the dialect tells it to programs.
            scope: the request.
            send: where the answer goes.
        """
        make = self._make
        if callable(make) and (response := await _made(make, job, urls)) is not None:
            await response(scope, _no_more, _adapted(reply, scope, send))
        else:
            await send_reply(self._built_in(job, urls, outlook, reply), scope, send)

    def _built_in(self, job: Job, urls: Urls, outlook: Outlook, reply: Reply) -> Reply:
        words, progress = self._words, job.progress
        message = "" if progress is None or progress.message is None else progress.message
        fraction = None if progress is None else progress.fraction
        percent = "" if fraction is None else _percent(fraction)
        state = words[job.state.value]
        position = outlook.queue_position
        place = "" if position is None else words["position"].replace("{position}", str(position))
        spelt = _spell(outlook.completion, self._clock())
        expected = words["expected"].replace("{time}", spelt) if spelt else ""
        spelt = _spell(job.next_run_at, self._clock())
        again = words["again"].replace("{time}", spelt) if spelt else ""
        cancellable = urls.cancel is not None and job.state is not State.CANCELLING
        return as_page(
            reply,
            self._waiting,
            {
                **words,
                "title": f"{percent} · {state}" if percent else state,
                "state": state,
                "seconds": str(min(max(outlook.retry_after, _SOONEST), _LATEST)),
                "message": message,
                "no message": unless(message),
                "value": "" if fraction is None else f"value={fraction:.4f}",
                "percent": percent,
                "position": place,
                "no position": unless(place),
                "expected": expected,
                "no expected": unless(expected),
                "again": again,
                "no again": unless(again),
                "result": urls.result,
                "monitor": urls.monitor,
                "events": urls.events or "",
                "cancel url": urls.cancel or "",
                "no cancel": unless(cancellable),
                "words": json.dumps(_for_script(words, urls)),
            },
        )


def _percent(fraction: float) -> str:
    """In whole percent, and not 100 before all is done."""
    return f"{100 if fraction >= 1 else min(int(100 * fraction + 0.5), 99)}%"


def unless(there: object) -> str:
    """The attribute that hides what is not there."""
    return "" if there else "hidden"


def _for_script(words: Mapping[str, str], urls: Urls) -> dict[str, Any]:
    """The words that the page's script puts in, by the states as documents spell them."""
    unfinished = {SPELT[state]: words[state.value] for state in State if TRANSITIONS[state]}
    finished = {SPELT[state]: words[state.value] for state in State if not TRANSITIONS[state]}
    stoppable = [SPELT[state] for state in (State.QUEUED, State.RUNNING)]
    return {
        "unfinished": unfinished,
        "finished": finished,
        "cancellable": [] if urls.cancel is None else stoppable,
        **{name: words[name] for name in ("position", "expected", "again", "lost")},
    }


def _spell(moment: float | None, now: float) -> str:
    """A time to come, in UTC, as nothing says where the reader is; empty if it is none."""
    if moment is None or moment <= now:
        return ""
    time_of_day = "%H:%M:%S UTC"
    today = int(moment // 86400) == int(now // 86400)
    return time.strftime(time_of_day if today else "%Y-%m-%d " + time_of_day, time.gmtime(moment))


# --- pages of the app's own ----------------------------------------------------------------------


async def _made(make: Waiting, job: Job, urls: Urls) -> Response | None:
    """What `Pages(waiting=...)` makes; None if it fails, and somebody still waits for a page."""
    try:
        response: Any = make(job, urls)
        if inspect.isawaitable(response):
            response = await response
        if not isinstance(response, Response):
            raise TypeError(f"waiting= gave {type(response).__name__}; it is a Starlette response")
    except Exception:
        logger.exception("Pages(waiting=...) made no page; the built-in one is shown")
        return None
    return response


async def _no_more() -> Message:
    """The rest of a request that has been read; and that its client has left nobody asks."""
    await anyio.sleep_forever()
    raise AssertionError  # pragma: no cover


def _adapted(reply: Reply, scope: Scope, send: Send) -> Send:
    """Sends a page of the app's own with the status and the fields that stand for a job."""

    async def adapt(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            names = {name.lower() for name, _ in headers} | _OF_CONTENT
            added = [_OWN_REFERRER, *(f for f in reply.headers if f[0] != _REFERRER)]
            headers += [_VARY, *(field for field in added if field[0] not in names)]
            status = reply.status if message["status"] == 200 else message["status"]
            message = {**message, "status": status, "headers": headers}
        elif scope["method"] == "HEAD":
            message = {**message, "body": b""}
        await send(message)

    return adapt
