"""A request is what curl would send for the same words."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import httpx2
import pytest

from raincheck.cli.requests import Body, build
from tests.cli.conftest import Command


def built(method: str = "POST", url: str = "http://h/", **words: Any) -> httpx2.Request:
    body = Body(**{name: words.pop(name) for name in list(words) if name in Body.__slots__})
    with httpx2.Client() as client:
        return build(client, method, url, body=body, **words)


@pytest.mark.real
@pytest.mark.parametrize(
    "words",
    [
        ["-d", "a=1", "-d", "b=2"],
        ["-d", "@lines"],
        ["--data-binary", "@lines"],
        ["--data-binary", "a", "--data-binary", "@lines"],
        ["--json", '{"a": 1}'],
        ["--json", '{"a"', "--json", ": 1}"],
        ["--json", "@lines"],
        ["-d", "a", "-H", "Content-Type: text/plain"],
        ["--json", "1", "-H", "accept: text/plain"],
        ["-H", "X-A: 1", "-H", "X-A: 2"],
        ["-H", "X-Empty;", "-H", "Accept:"],
        ["-H", "@fields"],
        ["-X", "PUT", "-d", "a"],
        ["-u", "ann:secret"],
        ["-d", ""],
    ],
    ids=" ".join,
)
def test_the_same_words_send_what_curl_sends(
    url: str,
    words: list[str],
    raincheck: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if shutil.which("curl") is None and not os.environ.get("RAINCHECK_CI"):
        pytest.skip("there is no curl")
    monkeypatch.chdir(tmp_path)
    Path("lines").write_bytes(b"one\r\ntwo\n")
    Path("fields").write_text("X-From: a file\nX-Too: this\n")
    curl = subprocess.run(
        ["curl", "-sS", *words, f"{url}/echo"], capture_output=True, check=True, timeout=20
    )
    ours = raincheck("request", *words, f"{url}/echo")
    assert ours.code == 0
    assert told(ours.out) == told(curl.stdout)


def told(body: bytes) -> dict[str, Any]:
    """What a server was told, without what says who sends it, and what only we send."""
    said: dict[str, Any] = json.loads(body)
    own = {"user-agent", "connection", "prefer", "idempotency-key"}
    said["fields"] = sorted(field for field in said["fields"] if field[0] not in own)
    return said


def test_a_form_has_values_and_files(tmp_path: Path) -> None:
    video = tmp_path / "film.mp4"
    video.write_bytes(b"\0frame")
    form = ["title=Rain", f"video=@{video}", f"other=@{video};type=text/x;filename=o.bin"]
    request = built(form=form)
    assert request.headers["content-type"].startswith("multipart/form-data; boundary=")
    for part in (
        b'name="title"\r\n\r\nRain\r\n',
        b'name="video"; filename="film.mp4"\r\nContent-Type: video/mp4\r\n\r\n\0frame\r\n',
        b'name="other"; filename="o.bin"\r\nContent-Type: text/x\r\n\r\n\0frame\r\n',
    ):
        assert part in request.content
    assert isinstance(request.stream, httpx2.ByteStream)  # it can be sent again


def test_stdin_is_a_body(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"from\nstdin")))
    assert built(binary=["@-"]).content == b"from\nstdin"


def test_bytes_of_no_encoding_are_sent_as_they_are() -> None:
    assert built(data=[b"\xff".decode("utf-8", "surrogateescape")]).content == b"\xff"


def test_a_password_of_no_encoding_is_sent_as_it_is() -> None:
    assert built(user="ann:\udcff").headers["authorization"] == "Basic YW5uOv8="


def test_a_user_in_the_url_is_sent_and_not_shown() -> None:
    request = built(url="http://ann:s%40crt@h/x")
    assert request.headers["authorization"] == "Basic YW5uOnNAY3J0"
    assert str(request.url) == "http://h/x"


def test_a_password_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(click, "prompt", lambda *_, **__: "s@crt")
    assert built(user="ann").headers["authorization"] == "Basic YW5uOnNAY3J0"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"data": ["a"], "json": ["1"]}, "-d or --data-binary and --json: a request has one body"),
        ({"binary": ["@/nowhere"]}, "'/nowhere' cannot be read: No such file"),
        ({"headers": ["novalue"]}, "'novalue' is no 'Name: value'"),
        ({"headers": [": value"]}, "': value' is no 'Name: value'"),
        ({"headers": ["X-A: ✓"]}, "cannot be sent"),
        ({"form": ["a=@/dev/null;type=a\nb"]}, "cannot be sent"),
        ({"form": ["novalue"]}, "'novalue' is no 'name=value' and no 'name=@file'"),
        ({"url": "ftp://h/"}, "'ftp://h/' is no URL of http or https"),
        ({"url": "http://"}, "'http://' is no URL of http or https"),
        ({"url": "http://h:port/"}, "'http://h:port/': "),
        ({"url": "http://a..b/"}, "label empty"),
        ({"url": f"http://{'a' * 64}.example/"}, "too long"),
        ({"url": "http://h/\udcff"}, r"'http://h/\udcff': "),
        ({"method": "BAD METHOD"}, "'BAD METHOD' is no method"),
        ({"headers": ["X Y: z"]}, "'X Y' is no name of a field"),
        ({"headers": ["X: a\nb"]}, "the value of X has a line end"),
        ({"headers": ["Content-Length: 5"], "data": ["abc"]}, "the body has 3 bytes; leave it out"),
    ],
)
def test_what_cannot_be_sent_is_named(words: dict[str, Any], said: str) -> None:
    with pytest.raises(click.UsageError) as error:
        built(**words)
    assert said in error.value.format_message()


def test_a_url_needs_no_scheme() -> None:
    assert str(built(url="localhost:8000/x").url) == "http://localhost:8000/x"
