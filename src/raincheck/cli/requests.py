"""Requests from what is written on a command line, in curl's ways."""

from __future__ import annotations

import base64
import mimetypes
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import httpx2

_FORM = "application/x-www-form-urlencoded"
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_UNFIT = re.compile(r"[\0\r\n]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """What is sent, as the options say it, in their order.

    Attributes:
        data: of `-d`: joined by `&`; a file's content goes without its line ends.
        binary: of `--data-binary`: the same, but files as they are.
        json: of `--json`: joined by nothing.
        form: of `-F`.
    """

    data: Sequence[str] = ()
    binary: Sequence[str] = ()
    json: Sequence[str] = ()
    form: Sequence[str] = ()

    def __post_init__(self) -> None:
        kinds = ("-d or --data-binary", self.data or self.binary), ("--json", self.json)
        given = [name for name, values in (*kinds, ("-F", self.form)) if values]
        if len(given) > 1:
            raise click.UsageError(f"{' and '.join(given)}: a request has one body; give one kind")

    @property
    def empty(self) -> bool:
        """Whether there is none."""
        return not (self.data or self.binary or self.json or self.form)

    def arguments(self) -> dict[str, Any]:
        """What `build_request` is given."""
        if self.form:
            return {"files": [_part(each) for each in self.form]}
        if self.json:
            return {"content": b"".join(map(_content, self.json))}
        if self.empty:
            return {}
        pieces = [_unbroken(each) for each in self.data]
        return {"content": b"&".join([*pieces, *map(_content, self.binary)])}

    def fields(self) -> list[tuple[str, str]]:
        """The header fields that go with it, unless others are given."""
        if self.json:
            return [("content-type", "application/json"), ("accept", "application/json")]
        return [("content-type", _FORM)] if self.data or self.binary else []


def build(
    client: httpx2.Client,
    method: str,
    url: str,
    *,
    headers: Sequence[str] = (),
    user: str | None = None,
    body: Body | None = None,
    otherwise: Sequence[tuple[str, str]] = (),
) -> httpx2.Request:
    """The request, whole and in memory, so that it can be sent again.

    Args:
        client: who sends it.
        method: e.g. `POST`.
        url: with a scheme, or `http://` is meant. Who is named in it goes into `Authorization`.
        headers: as `-H` has them: `Name: value`, `Name:` for without it, `Name;` for an empty one,
            `@file` for a file of such lines.
        user: `name:password`, or a name, whose password is asked for.
        body: what is sent.
        otherwise: fields that are sent unless others of their names are given.

    Raises:
        UsageError: one of these is nothing that can be sent.
    """
    body = Body() if body is None else body
    target = _url(url)
    if target.userinfo:
        user = user or f"{target.username}:{target.password}"
        target = target.copy_with(username=None, password=None)
    given = list(parsed(headers))
    names = {name.lower() for name, _ in given}
    if user is not None and "authorization" not in names:
        given.append(("Authorization", _basic(user)))
    given += [(name, value) for name, value in (*body.fields(), *otherwise) if name not in names]
    _check(method, given)
    sent = [(name, value) for name, value in given if value is not None]
    try:
        request = client.build_request(method, target, headers=sent, **body.arguments())
        request.read()
    except (httpx2.InvalidURL, ValueError) as error:
        raise click.UsageError(f"the request cannot be sent: {error}") from error
    length = request.headers.get("content-length")
    if length is not None and length != str(len(request.content)):
        raise click.BadParameter(
            f"Content-Length is {length}, and the body has {len(request.content)} bytes; "
            "leave it out",
            param_hint="-H",
        )
    for name, value in given:
        if value is None:
            request.headers.pop(name, None)
    return request


def _check(method: str, fields: Iterable[tuple[str, str | None]]) -> None:
    """See that all can be sent, before anything is (RFC 9110 §5.6.2, §5.5, §9.1)."""
    if not _TOKEN.fullmatch(method):
        raise click.BadParameter(f"{method!r} is no method, like POST", param_hint="METHOD")
    for name, value in fields:
        if not _TOKEN.fullmatch(name):
            raise click.BadParameter(f"{name!r} is no name of a field", param_hint="-H")
        if _UNFIT.search(value or ""):
            raise click.BadParameter(
                f"the value of {name} has a line end or a NUL, which no field can have",
                param_hint="-H",
            )


def parsed(headers: Iterable[str]) -> Iterable[tuple[str, str | None]]:
    """The fields that `-H` names; without a value those that are not to be sent."""
    for header in headers:
        if header.startswith("@"):
            lines = _read(header[1:]).decode("utf-8", "replace").splitlines()
            yield from parsed(line for line in lines if line.strip())
            continue
        name, colon, value = header.partition(":")
        if colon and name.strip():
            yield name.strip(), value.strip() or None
        elif header.strip(" ;") and header.endswith(";"):
            yield header.strip(" ;"), ""
        else:
            raise click.BadParameter(f"{header!r} is no 'Name: value'", param_hint="-H")


def _url(url: str) -> httpx2.URL:
    try:
        found = httpx2.URL(url if "://" in url else f"http://{url}")
        found.raw_host.decode("ascii").encode("idna")  # as it is looked up
    except (httpx2.InvalidURL, UnicodeError) as error:
        raise click.BadParameter(f"{url!r}: {error}", param_hint="URL") from error
    if found.scheme not in ("http", "https") or not found.host:
        raise click.BadParameter(f"{url!r} is no URL of http or https", param_hint="URL")
    return found


def _basic(user: str) -> str:
    """The field of RFC 7617 §2."""
    if ":" not in user:
        user = f"{user}:{click.prompt(f'Password of {user}', hide_input=True, err=True)}"
    return "Basic " + base64.b64encode(user.encode("utf-8", "surrogateescape")).decode()


def _content(text: str) -> bytes:
    """The text, or the content of the file that it names by `@`."""
    return _read(text[1:]) if text.startswith("@") else text.encode("utf-8", "surrogateescape")


def _unbroken(text: str) -> bytes:
    """The same, a file without its line ends and zeros, as curl's `-d` sends it."""
    content = _content(text)
    return content.translate(None, b"\r\n\0") if text.startswith("@") else content


def _read(name: str) -> bytes:
    """The content of a file, or of stdin, which is `-`."""
    try:
        return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise click.UsageError(f"{name!r} cannot be read: {error.strerror}") from error


def _part(form: str) -> tuple[str, tuple[str | None, bytes, str] | tuple[None, bytes]]:
    """A part of a form: `name=value`, or `name=@file`, perhaps with `;type=` or `;filename=`."""
    name, equals, value = form.partition("=")
    if not equals or not name:
        raise click.BadParameter(
            f"{form!r} is no 'name=value' and no 'name=@file'", param_hint="-F"
        )
    if not value.startswith("@"):
        return name, (None, value.encode("utf-8", "surrogateescape"))
    path, *settings = value[1:].split(";")
    said = dict(each.strip().split("=", 1) for each in settings if "=" in each)
    known = mimetypes.guess_type(path)[0] or "application/octet-stream"
    return name, (said.get("filename", Path(path).name), _read(path), said.get("type", known))
