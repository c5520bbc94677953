"""How a job elsewhere is followed: generators that yield what is to be done, and are sent answers.

They do no I/O and know no event loop, so that synchronous and asynchronous clients, of httpx2 and
of httpx, share them. A server needs to speak no more than 202 with `Location`; where it says more
(`Retry-After`, `Operation-Location`, `Content-Location`, a status document) that is used.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

from raincheck.client.credentials import Credentials
from raincheck.client.errors import DeadlineExceeded, FollowError, NoResponse, Unreachable, error_of
from raincheck.client.event_stream import Parser
from raincheck.client.knowledge import Knowledge, Place
from raincheck.client.wire import (
    Document,
    Request,
    Response,
    document_of,
    has_ended,
    has_failed,
    joined,
    located,
    outcome_of,
    passes,
    redirects,
    retry_after,
    sentence_of,
)

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds between polls where the server says nothing: doubled each time, up to the second."""

PATIENCE = 120.0
"""Seconds for which polls may fail, one after the other: a deploy takes less."""

MOST_SUBMISSIONS = 3
"""How often a request with an Idempotency-Key is sent before a lost answer is an error."""

MOST_REDIRECTS = 10

MOST_READ = 1024 * 1024
"""Bytes of an answer that is no result."""

LONGEST_TIMEOUT = 1_000_000.0
"""Seconds: a socket takes no timeout of more than three weeks, while a deadline may be further."""

SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})

_LOST = frozenset({502, 504})
"""Statuses by which a gateway says that it has lost the answer, if there was one."""

_GONE = frozenset({401, 403, 404, 410})
"""What says that nobody here is told of the job, rather than how it has ended."""

_SHORT = 1.0
"""Seconds. A poll that took less has not waited, and a stream that lasted less has not streamed."""

_NONE: Mapping[str, str] = MappingProxyType({})
# What a browser's page of another origin cannot send unasked; servers of ours let it through.
_AS_JSON = {"content-type": "application/json"}


class Read(NamedTuple):
    """A step: read the whole body of a response, which gives its connection back.

    Attributes:
        response: which.
        within: seconds that this may take; None for any. Then it is a read timeout.
        most: bytes that come, before they are decoded; None for any. More are a read error.
    """

    response: Response
    within: float | None = None
    most: int | None = None


class Next(NamedTuple):
    """A step: send the next piece of a response's body; at its end, nothing."""

    response: Response


class Close(NamedTuple):
    """A step: read no more of a response."""

    response: Response


class Told(NamedTuple):
    """A step: a document for whoever follows."""

    document: Document


Step = Request | float | Read | Next | Close | Told
"""A request to be sent (its response comes back, unread), seconds to pass, or one of the above."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Following:
    """How a 202 is followed. Times are seconds.

    Attributes:
        deadline: how long it may take in all, from the first request on; then `DeadlineExceeded`
            is raised and the job goes on. Default None: as long as it takes.
        wait: the longest that one poll may take at a server that answers when there is something
            to say (`Prefer: wait`, RFC 7240 §4.3); 0 for never. Default 20.
        cancel: whether the job is cancelled if whoever waits is (a cancelled task, Ctrl-C).
            Default False: it goes on.
        keys: whether an unsafe request that has no `Idempotency-Key` is given one, and so is sent
            again if its answer is lost. Default True; False for a server that does not know the
            field and must not do anything twice.
        on_update: called with the status document each time that it has changed. What it raises
            ends the wait.

    Raises:
        ValueError: a number that is negative.
    """

    deadline: float | None = None
    wait: float = 20.0
    cancel: bool = False
    keys: bool = True
    on_update: Callable[[Document], object] | None = None

    def __post_init__(self) -> None:
        if self.deadline is not None and not self.deadline >= 0:
            raise ValueError(f"Following(deadline={self.deadline!r}): deadline is at least 0")
        if not self.wait >= 0:
            raise ValueError(f"Following(wait={self.wait!r}): wait is at least 0")


class Flow:
    """One request, or one wait for its job.

    Args:
        http: the module whose classes are used, httpx2 or httpx.
        request: the request, whose fields and timeouts the polls have as well.
        settings: how it is followed.
        known: what is known of its job, if there is one.
        credentials: of the request, where other flows have them too.
        clock: seconds, from any point on.
        chance: 0 to 1; spreads the polls of many clients.

    Attributes:
        http, settings: as given.
        known: what is known of the job; None as long as there is none.
    """

    def __init__(
        self,
        http: ModuleType,
        request: Request,
        settings: Following,
        *,
        known: Knowledge | None = None,
        credentials: Credentials | None = None,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.http = http
        self.settings = settings
        self.known = known
        self._request = request
        self._credentials = credentials or Credentials(http, request)
        self._clock = clock
        self._chance = chance
        self._ends = None if settings.deadline is None else clock() + settings.deadline
        self._passing = (
            *(http.NetworkError, http.TimeoutException, http.RemoteProtocolError),
            http.DecodingError,  # of a body whose coding is not what its fields say
        )
        self._unsent = (http.ConnectError, http.ConnectTimeout, http.PoolTimeout)
        self._pause = FIRST_PAUSE
        self._took = 0.0  # by the last poll, in seconds
        self._heard: Document | None = None
        self._last_seen = ""  # the id of an event

    def followed(self) -> Generator[Step, Any, Response]:
        """Send the request, and wait for its job if it has become one.

        Returns:
            The final response, whose body has not been read.

        Raises:
            FollowError: see there.
        """
        response = yield from self.submitted()
        if self.known is None:
            return response
        response = yield from self.ended()
        if not self._credentials.ours(response.request.url):
            # Whoever gets it takes it for the request's own, and its cookies for that host's.
            response.headers.pop("set-cookie", None)
        return response

    # --- the request itself --------------------------------------------------------------------

    def submitted(self) -> Generator[Step, Any, Response]:
        """Send the request; again if its answer was lost, and that makes no second job.

        Returns:
            The answer. Its body has been read if it is a 202 with a status URL.
        """
        request = self._keyed()
        again = "idempotency-key" in request.headers and isinstance(
            request.stream, self.http.ByteStream
        )
        lost = False
        for left in reversed(range(MOST_SUBMISSIONS)):
            try:
                response = yield request
            except self._passing as error:
                lost = lost or not isinstance(error, self._unsent)
                pause = self._backoff()
                if not (again and lost and left and self._has(pause)):
                    raise
            else:
                pause = self._backoff() if response.status_code in _LOST else 0.0
                if not (again and pause and left and self._has(pause)):
                    break
                lost = True
                yield Close(response)
            yield pause
        self._pause = FIRST_PAUSE
        self._credentials.keep(response)
        if response.status_code == 202 and located(response) is not None:
            try:
                yield self._read(response)
                document = document_of(response.content)
            except self._passing:  # its fields are enough
                document = {}
            self.known = Knowledge.accepted(self._request, response, document)
            self._hear()
        return response

    def _keyed(self) -> Request:
        """The request as it is sent, in time.

        Its key stays with the request that was given: whoever sends that again, as an `auth` does
        whose token has expired between two polls, means the same.
        """
        given, headers = self._request, self._request.headers
        if self.settings.keys and given.method not in SAFE and "idempotency-key" not in headers:
            headers["Idempotency-Key"] = f'"{uuid.uuid4()}"'
        extensions = {**given.extensions, "timeout": self._timeout(0)}
        return self.http.Request(
            given.method, given.url, headers=headers, stream=given.stream, extensions=extensions
        )

    # --- its job -------------------------------------------------------------------------------

    def ended(self) -> Generator[Step, Any, Response]:
        """Wait until the job has ended.

        Returns:
            Its response, whose body has not been read.
        """
        known = self._job()
        place, pause = self._watched(), self._first_pause()
        while True:
            yield from self._passed(pause)
            response = yield from self._asked(place, wait=True)
            if place.final(response):
                return response
            document = document_of(response.content)
            if not place.stands(response, document):
                return response
            known.learn(response, document)
            self._hear()
            place, pause = self._watched(), self._pause_after()
            if response.status_code == 200 and has_ended(document):
                result = known.result(response, document)
                if result is None and has_failed(document):
                    raise self._error(NoResponse, sentence_of(document, "the job has failed"))
                if result is None:
                    return response
                place, pause = Place(result, "response"), 0.0

    def status(self) -> Generator[Step, Any, Document]:
        """Ask how the job stands."""
        return (yield from self._standing())

    def updates(self) -> Generator[Step, Any, None]:
        """Tell of each change, beginning with how it stands and ending with how it has ended."""
        known = self._job()
        document = known.document or (yield from self.status())
        yield Told(document)
        streams, pause = True, self._first_pause()
        while not has_ended(document):
            if streams and known.events is not None:
                document, streams = yield from self._streamed(document)
                continue
            yield from self._passed(pause)
            last, document = document, (yield from self._standing(wait=True))
            pause = self._pause_after()
            if document != last:
                yield Told(document)

    def cancelled(self) -> Generator[Step, Any, Document]:
        """Ask the job to stop.

        Returns:
            How it stands afterwards.

        Raises:
            FollowError: its server does not do that.
        """
        known = self._job()
        if known.cancel is None:
            document = yield from self.status()
            if has_ended(document):
                return document
        response = yield self.cancellation()
        yield self._read(response)
        status, document = response.status_code, document_of(response.content)
        if status == 409:  # it had ended before
            return (yield from self.status())
        if status >= 300:
            reason = sentence_of(document, f"HTTP {status}")
            raise self._error(FollowError, f"the job could not be cancelled: {reason}")
        return document if "status" in document else {"status": "canceling"}

    def cancellation(self) -> Request:
        """The request that cancels the job: as its server says, or else a DELETE as FHIR has it."""
        known = self._job()
        if known.cancel is None:
            return self._request_to(known.place.url, "DELETE")
        return self._request_to(known.cancel, "POST", fields=_AS_JSON)

    def _standing(self, *, wait: bool = False) -> Generator[Step, Any, Document]:
        """How the job stands, by one poll, which may wait."""
        known = self._job()
        place = known.monitor or known.place
        response = yield from self._asked(place, wait=wait)
        if place.final(response):
            return (yield from self._concluded(response))
        document = document_of(response.content)
        if not place.stands(response, document):
            return outcome_of(response)
        known.learn(response, document)
        return known.document

    def _concluded(self, response: Response) -> Generator[Step, Any, Document]:
        """What its response says of a job, without its body."""
        if response.status_code not in _GONE or "job-status" in response.headers:
            yield Close(response)
            return outcome_of(response)
        yield self._read(response)
        reason = sentence_of(document_of(response.content), f"HTTP {response.status_code}")
        raise self._error(NoResponse, reason)

    def _streamed(self, document: Document) -> Generator[Step, Any, tuple[Document, bool]]:
        """Tell of what one stream of events says.

        Returns:
            The last document, and whether it is worth coming back.
        """
        fields = {"accept": "text/event-stream", "cache-control": "no-store"}
        if self._last_seen:
            fields["last-event-id"] = self._last_seen
        place = Place(self._job().events, "response")
        response = yield from self._asked(place, unread=_is_stream, fields=fields)
        if not _is_stream(response):
            return document, False
        parser, begun, heard = Parser(), self._clock(), False
        ended = False
        try:
            # One piece more than the last document: the stream ends there, and can be kept open.
            while (piece := (yield Next(response))) and not ended:
                for event in parser.feed(piece):
                    self._last_seen, heard = event.id, True
                    newest = document_of(event.data)
                    if "status" in newest and newest != document:
                        self._job().learn(response, newest)
                        document = newest
                        yield Told(document)
                ended = has_ended(document)
        except self._passing:  # cut off, which is as good as ended: it goes on where it was
            pass
        yield Close(response)
        useful = heard or self._clock() - begun >= _SHORT
        if useful and not has_ended(document):
            yield from self._passed(parser.retry)
        return document, useful

    def _read(self, response: Response) -> Read:
        """What is no result is short, and nothing takes longer than there is time."""
        short = response.status_code == 202 or passes(response) or redirects(response)
        left = self._left()
        return Read(
            response,
            within=None if left is None else max(0.1, left),
            most=MOST_READ if short else None,
        )

    # --- polls and pauses ----------------------------------------------------------------------

    def _asked(
        self,
        place: Place,
        *,
        wait: bool = False,
        unread: Callable[[Response], bool] | None = None,
        fields: Mapping[str, str] = _NONE,
    ) -> Generator[Step, Any, Response]:
        """Ask at a place, through redirects and whatever passes.

        Returns:
            The answer. It has been read, unless it is final there, or `unread` says so.

        Raises:
            Unreachable: nothing else has come for two minutes.
        """
        unread = unread or place.final
        url, led, failing = place.url, 0, self._clock()
        while True:
            begun, said, what, trouble = self._clock(), None, "", None
            try:
                response = yield self._request_to(url, wait=wait, fields=fields)
                self._credentials.keep(response)
                answered = not (passes(response) or redirects(response))
                if not (answered and unread(response)):
                    yield self._read(response)
            except self._passing as error:
                what, trouble = repr(error), error
            else:
                if answered:
                    self._took = self._clock() - begun
                    return response
                if redirects(response):
                    if led == MOST_REDIRECTS:
                        raise self._error(Unreachable, "its status URL redirects too often")
                    url, led = joined(response.request.url, response.headers["location"]), led + 1
                    failing = self._clock()
                    continue
                what = f"HTTP {response.status_code}"
                what = sentence_of(document_of(response.content), what)
                said = retry_after(response)
            if self._clock() - failing >= PATIENCE:
                message = f"its server has not answered for two minutes ({what})"
                raise self._error(Unreachable, message) from trouble
            url, led = place.url, 0
            yield from self._passed(self._backoff() if said is None else said)

    def _request_to(
        self,
        url: Any,
        method: str = "GET",
        *,
        wait: bool = False,
        fields: Mapping[str, str] = _NONE,
    ) -> Request:
        """A request about the job, with what may go there of the original."""
        headers = [*self._credentials.fields(url)]
        headers = [(name, value) for name, value in headers if name not in fields]
        headers += fields.items()
        left = self._left()
        seconds = self.settings.wait if left is None else min(self.settings.wait, left)
        seconds = int(seconds) if wait else 0
        if seconds:
            headers.append(("prefer", f"wait={seconds}"))
        extensions = {**self._credentials.extensions(url), "timeout": self._timeout(seconds)}
        return self.http.Request(method, url, headers=headers, extensions=extensions)

    def _timeout(self, wait: float) -> dict[str, float | None]:
        """The request's own timeouts, which are meant for answers that come at once."""
        timeout = dict(self._request.extensions.get("timeout", {}))
        if timeout.get("read") is not None:
            timeout["read"] += wait
        left = self._left()
        if left is not None:
            left = min(left, LONGEST_TIMEOUT)
            for name in ("connect", "read", "write", "pool"):
                given = timeout.get(name)
                timeout[name] = max(0.1, left if given is None else min(given, left))
        return timeout

    def _watched(self) -> Place:
        """Where to poll: the monitor answers at every change, the status URL at the end alone."""
        known = self._job()
        watched = known.monitor if self.settings.on_update is not None else None
        return watched or known.place

    def _prompt(self) -> bool:
        return self._job().prompt and self.settings.wait >= 1

    def _first_pause(self) -> float:
        """Seconds until the first poll: none for one that waits, or where nobody has said."""
        known = self._job()
        return 0.0 if self._prompt() or known.place.shows == "either" else self._said()

    def _pause_after(self) -> float:
        """Seconds until the next poll: none after one that has waited.

        What `Retry-After` says is for those that do not.
        """
        return 0.0 if self._prompt() and self._took >= _SHORT else self._said()

    def _said(self) -> float:
        """Seconds by the server's word, or by ours."""
        said = self._job().again
        return self._backoff() if said is None else said

    def _backoff(self) -> float:
        pause, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
        return pause * (0.75 + 0.5 * self._chance())

    def _passed(self, pause: float) -> Generator[Step, Any, None]:
        """Let time pass, but not beyond the deadline."""
        left = self._left()
        if left is not None and (left <= 0 or pause > left):
            if left > 0:
                yield left
            message = f"the job has not ended within {self.settings.deadline:g} seconds"
            raise self._error(DeadlineExceeded, message)
        if pause > 0:
            yield pause

    def _has(self, pause: float) -> bool:
        """Whether there is so much time."""
        left = self._left()
        return left is None or pause < left

    def _left(self) -> float | None:
        return None if self._ends is None else self._ends - self._clock()

    def _hear(self) -> None:
        """Tell whoever listens what is new."""
        document = self._job().document
        if document != self._heard:
            self._heard = document
            if self.settings.on_update is not None:
                self.settings.on_update(document)

    def _job(self) -> Knowledge:
        assert self.known is not None
        return self.known

    def _error(self, kind: type[FollowError], message: str) -> FollowError:
        url = self._job().place.url
        return error_of(self.http, kind, f"{message}; its status URL is {url}", url)


def _is_stream(response: Response) -> bool:
    """Whether it is a stream of events."""
    media_type: str = response.headers.get("content-type", "").partition(";")[0].lower()
    return bool(response.status_code == 200) and media_type.strip() == "text/event-stream"
