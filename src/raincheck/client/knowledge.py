"""What a client has been told of a job."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Self

from raincheck.client.wire import (
    Document,
    Request,
    Response,
    has_ended,
    has_failed,
    is_status,
    joined,
    links_of,
    located,
    retry_after,
    urls_of,
    waits,
)


class Place(NamedTuple):
    """A URL to poll.

    Attributes:
        url: the URL.
        shows: what stands there. `response`: 202 until the job has ended, and then its response.
            `document`: always 200, and how the job stands. `either`: one of both, nobody has said.
    """

    url: Any
    shows: Literal["response", "document", "either"]

    def final(self, response: Response) -> bool:
        """Whether an answer from here is the job's response, to be seen without its body."""
        status = response.status_code
        if status == 202 or (status == 200 and self.shows == "document"):
            return False
        json = "json" in response.headers.get("content-type", "")
        return not (status == 200 and self.shows == "either" and json)

    def stands(self, response: Response, document: Document) -> bool:
        """Whether an answer from here, which has been read, shows how the job stands."""
        if response.status_code == 202:
            return True
        if self.shows == "document":
            return "status" in document
        return self.shows == "either" and is_status(document, response)


class Knowledge:
    """Where a job is, and what can be asked for there.

    Args:
        request: what was asked for. It is the poll of a job where nothing else is known of that.
        place: its job's status URL.

    Attributes:
        place: where its response will be, or where it is said where that is.
        monitor: where a server of ours shows how it stands, whether it has ended or not.
        cancel: where a POST cancels it; None if its server has named nothing.
        events: where its events are; None if its server has named nothing.
        document: the last that was said of it, always with its `status`; empty before that.
        again: seconds after which the server wants to be asked again; None if it has not said.
        prompt: whether a poll that may wait is answered when there is something to say.
    """

    def __init__(self, request: Request, place: Place) -> None:
        self.place: Place = place
        self.monitor: Place | None = None
        self.cancel: Any = None
        self.events: Any = None
        self.document: Document = {}
        self.again: float | None = None
        self.prompt: bool = False
        self._request = request
        self._result: Any = None

    @classmethod
    def accepted(cls, request: Request, response: Response, document: Document) -> Self:
        """What a 202 says of the job that it stands for.

        Where there are both, Azure's clients ask at `Operation-Location` first, and what `Location`
        says is the result's. Ours says in its document what is where.
        """
        headers, base = response.headers, response.request.url
        operation = joined(base, headers.get("operation-location"))
        if operation is None or "result" in links_of(document):
            known = cls(request, Place(located(response), "response"))
        else:
            known = cls(request, Place(operation, "document"))
            known._hear_of_result(base, headers.get("location"))
        known.learn(response, document)
        return known

    def learn(self, response: Response, document: Document) -> None:
        """Take from an answer that shows how the job stands what is new."""
        url = response.request.url
        moved = located(response) if response.status_code == 202 else None
        if self.place.shows == "either":
            shows: Literal["response", "document"] = (
                "response" if response.status_code == 202 else "document"
            )
            self.place = Place(moved or url, shows)
        elif moved is not None and self.place.shows == "response":
            self.place = Place(moved, "response")
        links = urls_of(document, url)
        if "result" in links:  # ours
            self.place = Place(links["result"], "response")
            self.prompt = True  # its wire says so
            if "self" in links:
                self.monitor = Place(links["self"], "document")
        if "cancel" in links:
            self.cancel = links["cancel"]
        if "events" in links:
            self.events = links["events"]
        self.prompt = self.prompt or waits(response)
        if response.status_code == 202 and ("status" not in document or has_ended(document)):
            document = {**document, "status": "running"}
        self.document = document
        self.again = retry_after(response)

    def result(self, response: Response, document: Document) -> Any:
        """Where the response of a job is that has ended, by its document; None: nowhere else.

        Ours names it. Azure's is at `resourceLocation`, else for PUT and PATCH at the URL of the
        request, else at the `Location` of the 202; what has failed has none.
        """
        if self.place.shows == "response":
            return self.place.url
        if has_failed(document):
            return None
        resource = document.get("resourceLocation")
        if isinstance(resource, str):
            return joined(response.request.url, resource)
        return self._request.url if self._request.method in ("PUT", "PATCH") else self._result

    def _hear_of_result(self, base: Any, location: str | None) -> None:
        self._result = joined(base, location)
