"""The dialect port: one spelling of jobs on the wire."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from raincheck.errors import Problem
from raincheck.job import Job
from raincheck.messages import RawHeaders


class Reply(NamedTuple):
    """A response that a dialect has written."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""


class Urls(NamedTuple):
    """Where a job is found.

    Attributes:
        result: the status URL, which becomes the response.
        monitor: the document, finished or not.
        cancel: where a POST cancels.
        absolute: whether these URLs carry scheme and host.
    """

    result: str
    monitor: str
    cancel: str
    absolute: bool


class Outlook(NamedTuple):
    """What is expected of an unfinished job.

    Attributes:
        retry_after: seconds until the next poll makes sense, at least 1.
        queue_position: 1 for the job whose turn is next; None unless it is queued.
        completion: seconds since the epoch at which it is expected to finish; None if unknown.
    """

    retry_after: int
    queue_position: int | None = None
    completion: float | None = None


class Dialect(ABC):
    """Writes replies. Pure: values in, a `Reply` out; no I/O, no clock."""

    unasked: bool = True
    """Whether it may answer 202 to a request without `Prefer: respond-async`."""

    @abstractmethod
    def accepted(self, job: Job, urls: Urls, outlook: Outlook, applied: bytes | None) -> Reply:
        """The answer to the request that was accepted.

        Args:
            job: the job.
            urls: where it is found.
            outlook: what is expected of it.
            applied: the value of `Preference-Applied` (RFC 7240 §3), or None.
        """

    @abstractmethod
    def navigated(self, urls: Urls) -> Reply:
        """The same for a browser that navigates."""

    @abstractmethod
    def pending(self, job: Job, urls: Urls, outlook: Outlook) -> Reply:
        """The status URL of a job that is not finished."""

    @abstractmethod
    def monitor(self, job: Job, urls: Urls, outlook: Outlook | None) -> Reply:
        """The monitor; no outlook once the job is finished."""

    @abstractmethod
    def result(self, job: Job) -> tuple[int, RawHeaders]:
        """Status and header fields under which a finished job's response is served."""

    @abstractmethod
    def cancelled(self, job: Job, urls: Urls, outlook: Outlook | None) -> Reply:
        """The answer to a cancel; no outlook once the job has stopped."""

    @abstractmethod
    def deleted(self, job: Job, urls: Urls, outlook: Outlook | None, *, finished: bool) -> Reply:
        """The answer to a delete.

        Args:
            job: the job just before it was forgotten.
            urls: where it was found.
            outlook: what is expected of it, unless it has stopped.
            finished: whether it had finished by itself before the delete.
        """

    @abstractmethod
    def problem(
        self, problem: Problem, *, job: Job | None = None, retry_after: int | None = None
    ) -> Reply:
        """A problem.

        Args:
            problem: the problem.
            job: the job that the answer is about, if there is one to tell of.
            retry_after: seconds until another try makes sense, if there is a time to name.
        """
