"""What a request wants of a response that is kept: all, a part, or nothing (RFC 9110 §13, §14).

Bodies that are kept never change, so one validator is enough: the ETag. Dates are not looked at, as
a server may where it knows no modification date (§13.1.3, §13.1.4).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

Fields = tuple[tuple[bytes, bytes], ...]

MOST = 16
"""How many ranges one request may name: who names many wants no part, but work done (§17.15)."""

LARGE = 1024 * 1024
"""From so many bytes on ranges are offered of media that compress, too: 1 MiB."""

# Media that are compressed already. Of the others a compression outside serves less than there is,
# which for what is small is worth more than a download that can be resumed.
_DENSE_KINDS = frozenset({b"audio", b"image", b"video"})
_LOOSE = frozenset({b"audio/midi", b"audio/wav", b"audio/x-wav", b"image/bmp", b"image/svg+xml"})
_DENSE = frozenset(
    {
        b"application/epub+zip",
        b"application/gzip",
        b"application/java-archive",
        b"application/pdf",
        b"application/vnd.android.package-archive",
        b"application/vnd.apache.parquet",
        b"application/vnd.rar",
        b"application/x-7z-compressed",
        b"application/x-bzip2",
        b"application/x-gzip",
        b"application/x-rar-compressed",
        b"application/x-xz",
        b"application/x-zip-compressed",
        b"application/zip",
        b"application/zstd",
        b"font/woff",
        b"font/woff2",
    }
)
_DENSE_FAMILIES = (
    b"application/vnd.oasis.opendocument.",
    b"application/vnd.openxmlformats-officedocument.",
)

_IF_MATCH = b"if-match"
_IF_NONE_MATCH = b"if-none-match"
_IF_RANGE = b"if-range"
_RANGE = b"range"
ASKING = frozenset({_IF_MATCH, _IF_NONE_MATCH, _IF_RANGE, _RANGE})
"""The names of the fields that are read here, in lower case."""

_TELLING = frozenset({b"accept-ranges", b"content-encoding", b"content-type", b"etag"})

# entity-tag of §8.8.3, int-range and suffix-range of §14.1.1; the quantifiers are possessive, so
# that no field makes the match backtrack.
_TAG = re.compile(rb'(W/)?("[!#-~\x80-\xff]*+")')
_SPEC = re.compile(rb"([0-9]*+)-([0-9]*+)")
_REST = re.compile(rb"[ \t]*+bytes[ \t]*+=[ \t]*+([0-9]++)-[ \t]*+", re.IGNORECASE)

# What is said of a whole body is not true of a part (RFC 9530 §2), or has another value there.
_OF_THE_WHOLE = frozenset({b"content-digest", b"content-length", b"content-md5", b"content-range"})
# A 304 has no content to describe (§15.4.5); what else there is may be what its cache needs.
_OF_CONTENT = _OF_THE_WHOLE | {b"content-encoding", b"content-language", b"content-type"}


class Span(NamedTuple):
    """Bytes of a body: from `start` on, up to and without `stop`."""

    start: int
    stop: int


class Wanted(NamedTuple):
    """What to send.

    Attributes:
        status: 200 for all of it, 206 for the spans, 304, 412 or 416.
        spans: of a 206, in the order in which they were asked for; none overlaps another.
    """

    status: int
    spans: tuple[Span, ...] = ()


WHOLE = Wanted(200)
_NOT_MODIFIED = Wanted(304)
_FAILED = Wanted(412)
_UNSATISFIABLE = Wanted(416)


class Framed(NamedTuple):
    """A 206.

    Attributes:
        headers: its header fields.
        size: bytes of its content.
        heads: what stands before each span in it.
        end: what stands behind the last.
    """

    headers: Fields
    size: int
    heads: tuple[bytes, ...]
    end: bytes


@lru_cache(maxsize=256)
def offered(headers: Fields, size: int) -> tuple[Fields, bytes | None, bool]:
    """What a 200 response is sent with so that it can be asked for in part, but for an ETag.

    What carries `Accept-Ranges` has a `Content-Encoding`, be it `identity`: compression outside
    would make another body of it, under the same ETag, which a resumed download would mix.

    Args:
        headers: its own fields.
        size: bytes of body.

    Returns:
        Its fields, its own validator if it brings one, and whether ranges are offered.
    """
    own: dict[bytes, bytes] = {}
    for name, value in headers:
        lower = name.lower()
        if lower in _TELLING:
            own.setdefault(lower, value)
    if b"accept-ranges" in own:
        ranges = b"bytes" in own[b"accept-ranges"].lower().replace(b",", b" ").split()
    else:
        ranges = size >= LARGE or _dense(own.get(b"content-type", b""))
        if ranges:
            headers = (*headers, (b"accept-ranges", b"bytes"))
    if ranges and b"content-encoding" not in own:
        headers = (*headers, (b"content-encoding", b"identity"))
    return headers, own.get(b"etag"), ranges


@lru_cache(maxsize=256)
def _dense(content_type: bytes) -> bool:
    """Whether bodies of this type gain nothing by being compressed."""
    media = content_type.partition(b";")[0].strip().lower()
    if media.partition(b"/")[0] in _DENSE_KINDS:
        return media not in _LOOSE
    return media in _DENSE or media.startswith(_DENSE_FAMILIES)


def wanted(
    headers: Iterable[tuple[bytes, bytes]],
    size: int,
    etag: bytes,
    ranges: bool,
    method: str,
    *,
    grows: bool = False,
) -> Wanted:
    """What to send to a request for a 200 response, in the order of §13.2.2.

    Args:
        headers: the request's fields, their names in lower case.
        size: bytes of the body.
        etag: its validator, as it stands in the field.
        ranges: whether parts of it are offered.
        method: `"GET"` or `"HEAD"`.
        grows: whether it is still to end. Then one span at most is wanted, and that, which may be
            of no length, ends where the body does now.
    """
    asked: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in ASKING:
            asked[name] = asked[name] + b"," + value if name in asked else value
    if not asked:
        return WHOLE
    if _IF_MATCH in asked and not _names(asked[_IF_MATCH], etag, weakly=False):
        return _FAILED
    if _IF_NONE_MATCH in asked and _names(asked[_IF_NONE_MATCH], etag, weakly=True):
        return _NOT_MODIFIED
    if _RANGE not in asked or not ranges or method != "GET":
        return WHOLE
    if _IF_RANGE in asked and not _is(asked[_IF_RANGE].strip(), etag):
        return WHOLE
    spans = (_rest if grows else _spans)(asked[_RANGE], size)
    if spans is None:
        return WHOLE
    return Wanted(206, _merged(spans)) if spans else _UNSATISFIABLE


def _names(tags: bytes, etag: bytes, *, weakly: bool) -> bool:
    """Whether a list of entity tags, or `*`, has this one (§8.8.3.2)."""
    if tags.strip() == b"*":
        return True
    weak = etag.startswith(b"W/")
    if weak and not weakly:
        return False
    opaque = etag[2:] if weak else etag
    return any(tag == opaque and (weakly or not mark) for mark, tag in _TAG.findall(tags))


def _is(condition: bytes, etag: bytes) -> bool:
    """Whether it is this very tag, and a strong one (§13.1.5); a date never is."""
    return condition == etag and condition.startswith(b'"')


def _spans(field: bytes, size: int) -> list[Span] | None:
    """What of the ranges is there; None if they are as if absent (§14.2)."""
    unit, _, specs = field.partition(b"=")
    if unit.strip().lower() != b"bytes":
        return None
    parts = [part for part in map(bytes.strip, specs.split(b",")) if part]
    if not 0 < len(parts) <= MOST:
        return None
    found = []
    for part in parts:
        spec = _SPEC.fullmatch(part)
        span = None if spec is None else _span(spec[1], spec[2], size)
        if span is None:
            return None
        if span.start < span.stop:
            found.append(span)
    return found


def _rest(field: bytes, size: int) -> list[Span] | None:
    """The same of a body that grows: `bytes=N-` is all that follows.

    Other ranges are as if absent, as a server may have it (§14.2). So is `bytes=0-`: it is all of
    it, for which there are words, and clients that always ask so read them strictly.
    """
    asked = _REST.fullmatch(field)
    if asked is None or not (start := _number(asked[1])):
        return None
    return [Span(start, size)] if start <= size else []


def _span(first: bytes, last: bytes, size: int) -> Span | None:
    """The span that a range is in a body; one of no length is not there, None is malformed."""
    if first:
        start, stop = _number(first), _number(last) + 1 if last else size
        return None if last and stop <= start else Span(start, min(stop, size))
    if not last:
        return None
    length = _number(last)
    # The last bytes of nothing are all of it, for which Content-Range has no words.
    return None if length and not size else Span(max(0, size - length), size)


def _number(digits: bytes) -> int:
    digits = digits.lstrip(b"0") or b"0"
    return int(digits) if len(digits) <= 18 else 10**18  # beyond any body


def _merged(spans: list[Span]) -> tuple[Span, ...]:
    """The same bytes, each once: `0-,0-,0-` would be three times the body (§17.15).

    Those that overlap, or that nothing separates, are one, in the place of the first (§15.3.7.2).
    """
    kept: list[Span] = []
    for span in spans:
        near = [other for other in kept if other.start <= span.stop and span.start <= other.stop]
        if not near:
            kept.append(span)
            continue
        one = Span(min(span, *near).start, max(each.stop for each in (span, *near)))
        kept[kept.index(near[0])] = one
        kept = [other for other in kept if other not in near[1:]]
    return tuple(kept)


def framed(spans: tuple[Span, ...], headers: Fields, size: int, boundary: bytes) -> Framed:
    """How spans of a body are sent: one plain, several as `multipart/byteranges` (§15.3.7).

    Args:
        spans: the spans.
        headers: the fields of the whole.
        size: its bytes of body.
        boundary: what stands between several; no body may have it.
    """
    less = tuple(field for field in headers if field[0].lower() not in _OF_THE_WHOLE)
    total = sum(stop - start for start, stop in spans)
    if len(spans) == 1:
        added = ((b"content-range", _content_range(spans[0], size)), _length(total))
        return Framed((*less, *added), total, (b"",), b"")
    types = [value for name, value in less if name.lower() == b"content-type"]
    said = b"".join(b"Content-Type: %b\r\n" % value for value in types[:1])
    heads = tuple(
        b"%b--%b\r\n%bContent-Range: %b\r\n\r\n"
        % (b"\r\n" if number else b"", boundary, said, _content_range(span, size))
        for number, span in enumerate(spans)
    )
    end = b"\r\n--%b--\r\n" % boundary
    total += sum(map(len, heads)) + len(end)
    less = tuple(field for field in less if field[0].lower() != b"content-type")
    media = (b"content-type", b"multipart/byteranges; boundary=" + boundary)
    return Framed((*less, media, _length(total)), total, heads, end)


def resumed(headers: Fields, start: int, length: int | None) -> Fields:
    """The fields of a 206 that goes on from a byte to an end which is still to come.

    Args:
        headers: the fields of the whole.
        start: the first byte.
        length: of the whole; None as long as nobody knows. RFC 9110 has no form for that:
            `bytes N-*/*` is what clients read that look for no more than its first number.
    """
    less = tuple(field for field in headers if field[0].lower() not in _OF_THE_WHOLE)
    if length is None:
        return (*less, (b"content-range", b"bytes %d-*/*" % start))
    added = (b"content-range", _content_range(Span(start, length), length)), _length(length - start)
    return (*less, *added)


def unmodified(headers: Fields) -> Fields:
    """The fields of a 304, of those that the whole has (§15.4.5)."""
    return tuple(field for field in headers if field[0].lower() not in _OF_CONTENT)


def unsatisfied(size: int) -> bytes:
    """The Content-Range of a 416 (§15.5.17)."""
    return b"bytes */%d" % size


def _content_range(span: Span, size: int) -> bytes:
    return b"bytes %d-%d/%d" % (span.start, span.stop - 1, size)


def _length(size: int) -> tuple[bytes, bytes]:
    return b"content-length", b"%d" % size
