"""What a stored response says, for dialects that put it into documents of their own."""

from __future__ import annotations

import json
import math
import zlib
from contextlib import suppress
from email.message import Message
from gzip import GzipFile
from io import BytesIO
from typing import Any, NamedTuple

from raincheck.dialects.base import Content
from raincheck.errors import ConfigurationError
from raincheck.job import Job
from raincheck.messages import CapturedResponse

LARGEST = 2**20
"""Bytes of a response's body that a document has at most, if nothing else is said."""

_LONGEST_SENTENCE = 1000


class Unfit(ValueError):
    """A response that no document can have in it; the message is for its client."""


class Json(NamedTuple):
    """A body that is JSON, and what it says."""

    value: Any
    body: bytes


def checked_size(max_content: int) -> int:
    """The setting of that name.

    Raises:
        ConfigurationError: it is no size.
    """
    if not isinstance(max_content, int) or isinstance(max_content, bool) or max_content < 1:
        raise ConfigurationError(
            f"max_content={max_content!r}: it is a number of bytes, like {LARGEST}"
        )
    return max_content


def reading(response: CapturedResponse, content: Content, most: int) -> Json | bytes | None:
    """What the body of a response is: JSON, if that is its media type, or bytes; None if empty.

    What is called JSON and is not, is bytes.

    Raises:
        Unfit: it is too large, or of a content coding other than gzip and deflate.
    """
    body = _decoded(response, content, most)
    if not body:
        return None
    if _is_json(_media_type(response).get_content_type()):
        with suppress(ValueError, RecursionError):
            return Json(json.loads(body, parse_float=_finite, parse_constant=_finite), body)
    return body


def text(response: CapturedResponse, body: bytes) -> str | None:
    """The body of a response as text; None if its media type is that of something else."""
    kind = _media_type(response)
    if kind.get_content_maintype() != "text" and not _is_json(kind.get_content_type()):
        return None
    try:
        return body.decode(kind.get_content_charset("utf-8"), "replace")
    except (LookupError, ValueError):  # no such charset, or one that cannot leave out what is none
        return body.decode("utf-8", "replace")


def failure(job: Job, content: Content | None, most: int) -> tuple[int, str]:
    """Why a job has failed: the HTTP status that says it, and a sentence.

    The sentence is the response's own where that has one: `detail` or `message` of a JSON document,
    also inside of `error`, or text.
    """
    if job.error is not None:
        return job.error.status, job.error.detail
    response, said = job.response, None
    assert response is not None
    if content is not None:
        with suppress(Unfit):
            said = reading(response, content, most)
    told = text(response, said) if isinstance(said, bytes) else said and said.value
    sentence = ""
    with suppress(RecursionError):
        sentence = _sentence(told).strip()[:_LONGEST_SENTENCE]
    return response.status, sentence or f"The response has status {response.status}."


def _media_type(response: CapturedResponse) -> Message:
    """What reads its parameters, quoted or not; where nothing is said it is that of bytes."""
    kind = Message()
    said = response.header(b"content-type") or b"application/octet-stream"
    kind["content-type"] = said.decode("latin-1")
    return kind


def _is_json(kind: str) -> bool:
    return kind == "application/json" or kind.endswith("+json")


def _decoded(response: CapturedResponse, content: Content, most: int) -> bytes:
    if content.body is None:
        raise _too_large(response.size, most)
    coding = (response.header(b"content-encoding") or b"identity").strip().lower()
    if coding == b"identity" or not content.body:
        return content.body
    if coding not in (b"gzip", b"x-gzip", b"deflate"):
        raise Unfit(f"The response has the content coding {coding.decode('latin-1')}.")
    try:
        body = _inflated(content.body, coding, most)
    except (OSError, EOFError, zlib.error):
        raise Unfit("The response is not coded as it says.") from None
    if len(body) > most:
        raise _too_large(len(body), most)
    return body


def _inflated(body: bytes, coding: bytes, most: int) -> bytes:
    """All that has been compressed; of what is larger than `most` a little more than that.

    Raises:
        OSError, EOFError, zlib.error: it was not, or the end is not there.
    """
    if coding != b"deflate":  # of gzip there may be several members (RFC 1952 §2.2)
        with GzipFile(fileobj=BytesIO(body)) as file:
            return file.read(most + 1)
    reader = zlib.decompressobj()
    inflated = reader.decompress(body, most + 1)
    if len(inflated) <= most and (not reader.eof or reader.unused_data):
        raise EOFError
    return inflated


def _too_large(size: int, most: int) -> Unfit:
    return Unfit(f"The response has {size} bytes or more; a document here has {most} at most.")


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"JSON has no {number}")  # RFC 8259 §6
    return value


def _sentence(said: object) -> str:
    if isinstance(said, str):
        return said
    if isinstance(said, list):  # of faults, as FastAPI has them
        return "; ".join(filter(None, map(_sentence, said)))
    if isinstance(said, dict):
        for name in ("detail", "message", "msg", "error", "title"):
            if sentence := _sentence(said.get(name)):
                return sentence
    return ""
