"""What proxies.md shows of nginx and Caddy, with the two in front of a real server."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.docs.blocks import ROOT, blocks
from tests.docs.serving import running, serving
from tests.servers import free_port

pytestmark = [pytest.mark.real, pytest.mark.extra_docs]

BLOCKS = [*blocks(ROOT / "docs" / "proxies.md")]
NGINX, CADDY = (block.source for block in BLOCKS)

AROUND = """
daemon off; master_process off; pid {folder}/pid; error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
    uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
{site}
}}
"""

REVERSE = re.compile(r"\treverse_proxy .*?\n\t\}\n", re.DOTALL)


def nginx(folder: Path, app: int, port: int, prefix: str) -> list[str]:
    site = NGINX.replace("127.0.0.1:8000", f"127.0.0.1:{app}")
    site = site.replace("listen 80;", f"listen 127.0.0.1:{port};")
    if prefix:
        site = site.replace("location / ", f"location {prefix}/ ")
        site = site.replace("proxy_pass http://app;", "proxy_pass http://app/;")
    (folder / "nginx.conf").write_text(AROUND.format(folder=folder, site=site))
    return [program("nginx"), "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]


def caddy(folder: Path, app: int, port: int, prefix: str) -> list[str]:
    site = CADDY.replace("127.0.0.1:8000", f"127.0.0.1:{app}").replace(":80 {", f":{port} {{")
    if prefix:
        site = REVERSE.sub(lambda found: f"\thandle_path {prefix}/* {{\n{found[0]}\t}}\n", site)
    (folder / "Caddyfile").write_text(f"{{\n\tadmin off\n\tauto_https off\n}}\n{site}")
    return [
        program("caddy"),
        "run",
        "--config",
        str(folder / "Caddyfile"),
        "--adapter",
        "caddyfile",
    ]


PROXIES = {"nginx": nginx, "caddy": caddy}


def program(name: str) -> str:
    found = shutil.which(name, path=os.pathsep.join([os.environ["PATH"], "/usr/sbin"]))
    if found is None:
        pytest.fail(f"install {name}: it is what is tried here")
    return found


@contextmanager
def proxied(name: str, folder: Path, prefix: str = "") -> Iterator[str]:
    """The URL of a proxy in front of the app."""
    root = f" --root-path {prefix}" if prefix else ""
    port = free_port()
    with serving(f"uvicorn tests.docs.proxied:app --lifespan on{root}", folder) as server:
        command = PROXIES[name](folder, int(server.url.rpartition(":")[2]), port, prefix)
        with running(command, folder, port) as proxy:
            yield proxy.url + prefix


@pytest.fixture(scope="module", params=PROXIES)
def by(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def url(by: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with proxied(by, tmp_path_factory.mktemp(by)) as url:
        yield url


def test_a_job_is_accepted_polled_and_served(url: str) -> None:
    with httpx.Client(base_url=url) as client:
        accepted = client.post("/slow", content=b"x" * 2 * 2**20)  # more than nginx's own limit
        assert accepted.status_code == 202
        place = accepted.headers["location"]
        assert place.startswith("/jobs/")
        begun = time.monotonic()
        response = client.get(place, headers={"prefer": "wait=20"})
        assert (response.status_code, response.json()) == (200, {"size": 2 * 2**20})
        assert time.monotonic() - begun > 0.5


def test_a_body_that_is_too_large_is_refused(url: str) -> None:
    with httpx.Client(base_url=url) as client:
        try:
            refused = client.post("/slow", content=b"x" * 17 * 2**20)
        except httpx.TransportError:
            return  # it has said 413, and not read on
        assert refused.status_code == 413


def test_events_come_as_they_happen(url: str) -> None:
    with httpx.Client(base_url=url) as client:
        place = client.post("/slow").headers["location"]
        with client.stream("GET", f"{place}/events") as stream:
            begun = time.monotonic()
            events = [(line, time.monotonic() - begun) for line in stream.iter_lines()]
        told = [(line, at) for line, at in events if line.startswith("data:")]
        assert '"running"' in told[0][0]
        assert '"succeeded"' in told[-1][0]
        assert told[-1][1] - told[0][1] > 0.5


def test_a_response_comes_while_it_is_made(url: str) -> None:
    with httpx.Client(base_url=url) as client:
        place = client.post("/live").headers["location"]
        with client.stream("GET", f"{place}/stream") as stream:
            found = [(line, time.monotonic()) for line in stream.iter_lines()]
        (first, began), (last, ended) = found
        assert (first, last) == ("first", "last")
        assert ended - began > 0.5


def test_what_is_broken_off_looks_whole_behind_caddy_alone(url: str, by: str) -> None:
    with httpx.Client(base_url=url) as client:
        place = client.post("/breaks").headers["location"]
        whole = True
        lines: list[str] = []
        with client.stream("GET", f"{place}/stream") as stream:
            try:
                lines += stream.iter_lines()
            except httpx.RemoteProtocolError:
                whole = False
        assert whole == (by == "caddy")
        assert "last" not in lines
        assert client.get(f"{place}/status").json()["status"] == "failed"


def test_ranges_pass(url: str) -> None:
    with httpx.Client(base_url=url) as client:
        place = client.post("/large", headers={"prefer": "wait=0"}).headers["location"]
        whole = client.get(place, headers={"prefer": "wait=20"})
        part = client.get(
            place, headers={"range": "bytes=256-511", "if-range": whole.headers["etag"]}
        )
        assert (part.status_code, part.content) == (206, bytes(range(256)))
        same = client.get(place, headers={"if-none-match": whole.headers["etag"]})
        assert same.status_code == 304


@pytest.mark.parametrize("name", PROXIES)
def test_under_a_prefix(name: str, tmp_path: Path) -> None:
    with proxied(name, tmp_path, "/api") as url, httpx.Client() as client:
        accepted = client.post(f"{url}/slow")
        assert accepted.status_code == 202
        place = accepted.headers["location"]
        assert place.startswith("/api/jobs/")
        response = client.get(httpx.URL(url).join(place), headers={"prefer": "wait=20"})
        assert response.json() == {"size": 0}
