"""The example that transcodes: real ffmpeg, real files, and no ffmpeg that outlives its job."""

from __future__ import annotations

import os
import random
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from raincheck.client import follow
from tests.e2e.conftest import ROOT, Server

pytestmark = pytest.mark.real

if not os.environ.get("RAINCHECK_CI") and shutil.which("ffmpeg") is None:
    pytest.skip("no ffmpeg; apt-get install ffmpeg brings it", allow_module_level=True)

PATIENCE = 60.0
"""Seconds in which what is expected has to come, on a machine that is busy."""

Serve = Callable[..., Server]


def run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seconds, with a tone."""
    clip = tmp_path_factory.mktemp("videos") / "clip.mp4"
    picture = ("-f", "lavfi", "-i", "testsrc2=size=640x360:rate=25:duration=6")
    tone = ("-f", "lavfi", "-i", "sine=duration=6")
    run("ffmpeg", "-v", "error", *picture, *tone, "-preset", "ultrafast", clip)
    return clip


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten minutes, of few pixels: enlarged it takes minutes, and as it is some seconds."""
    folder = tmp_path_factory.mktemp("films")
    picture = ("-f", "lavfi", "-i", "testsrc=size=160x90:rate=25:duration=20")
    run("ffmpeg", "-v", "error", *picture, "-preset", "ultrafast", folder / "reel.mkv")
    again = ("-stream_loop", "29", "-i", folder / "reel.mkv", "-c", "copy")
    run("ffmpeg", "-v", "error", *again, folder / "film.mkv")
    return folder / "film.mkv"


class Studio:
    """Where servers of the example run, one after another.

    Attributes:
        home: their working directory, where the jobs are.
        rooms: where they put their files.
    """

    def __init__(self, serve: Serve, folder: Path) -> None:
        self._serve = serve
        self.home = folder / "home"
        self.rooms = folder / "rooms"
        self.home.mkdir()
        self.rooms.mkdir()

    def start(self, app: str = "tests.e2e.uses_app:app", **environment: str) -> Server:
        settings = {"USE": "video_transcoding", "TMPDIR": str(self.rooms), **environment}
        return self._serve(app=app, home=str(self.home), **settings)


@pytest.fixture
def studio(serve: Serve, tmp_path: Path) -> Studio:
    return Studio(serve, tmp_path)


def post(server: Server, video: Path, height: int = 180) -> str:
    """The status URL of a job that has been accepted."""
    with video.open("rb") as file:
        files = {"video": (video.name, file)}
        response = server.client.post(f"/videos?height={height}", files=files)
    assert response.status_code == 202, response.text
    url: str = response.headers["location"]
    return url


def documents(server: Server, url: str) -> Iterator[dict[str, Any]]:
    """What long polls of the monitor say, until the job has ended."""
    headers = {"prefer": "wait=10"}
    while True:
        document = server.client.get(f"{url}/status", headers=headers).json()
        yield document
        if document["status"] in ("succeeded", "failed", "canceled"):
            return


def outcome(server: Server, url: str) -> dict[str, Any]:
    return [*documents(server, url)][-1]


def until(found: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (something := found()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return something


def ffmpegs(server: Server) -> list[int]:
    """The process ids of those that a server has started."""
    pid = server.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if name(int(child)) == "ffmpeg"]


def name(pid: int) -> str:
    """What a process runs; "" if it has ended, also where nobody has asked how."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    called, _, rest = stat.partition("(")[2].rpartition(") ")
    return "" if rest.startswith("Z") else called


def begun(server: Server, url: str) -> int:
    """The process id of the only ffmpeg, once it has said how far it is."""
    until(lambda: server.client.get(f"{url}/status").json()["progress"])
    (pid,) = ffmpegs(server)
    return pid


# --- the work ------------------------------------------------------------------------------------


def test_a_video_comes_back_as_another_and_can_be_had_in_parts(
    studio: Studio, clip: Path, tmp_path: Path
) -> None:
    server = studio.start("examples.video_transcoding.app:app")
    url = post(server, clip)
    said = [*documents(server, url)]
    assert said[-1]["status"] == "succeeded"
    fractions = [document["progress"] or 0.0 for document in said]
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1.0, abs=0.02)
    assert re.fullmatch(r"\d of 6 seconds", said[-1]["message"])

    whole = server.client.get(url)
    assert (whole.status_code, whole.headers["content-type"]) == (200, "video/mp4")
    assert whole.headers["content-disposition"] == 'inline; filename="clip.mp4"'
    assert whole.headers["accept-ranges"] == "bytes"
    size = len(whole.content)
    version = {"if-range": whole.headers["etag"]}
    parts = b""
    for wanted in ("bytes=0-9999", f"bytes=10000-{size // 2}", f"bytes={size // 2 + 1}-"):
        part = server.client.get(url, headers={"range": wanted, **version})
        assert part.status_code == 206
        parts += part.content
    assert parts == whole.content
    end = server.client.get(url, headers={"range": "bytes=-100"})
    assert (end.status_code, end.content) == (206, whole.content[-100:])
    beyond = server.client.get(url, headers={"range": f"bytes={size}-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{size}")

    result = tmp_path / "result.mp4"
    result.write_bytes(parts)
    asked = ("-show_entries", "stream=codec_name,height:format=duration", "-of", "csv=p=0")
    pictures, sound, seconds = run("ffprobe", "-v", "error", *asked, result).split()
    assert (pictures, sound) == ("h264,180", "aac")
    assert float(seconds) == pytest.approx(6.0, abs=0.2)
    run("ffmpeg", "-v", "error", "-xerror", "-i", result, "-f", "null", "-")  # all of it plays
    assert [*studio.rooms.iterdir()] == []


@pytest.mark.slow
def test_a_name_with_half_of_a_character_is_mended(studio: Studio, clip: Path) -> None:
    server, content = studio.start(), clip.read_bytes()
    fields = b'content-disposition: form-data; name="video"; filename="+2D0-.mkv"'
    form = b"--x\r\n%s\r\n\r\n%s\r\n--x--\r\n" % (fields, content)
    headers = {"content-type": "multipart/form-data; charset=utf-7; boundary=x"}
    accepted = server.client.post("/videos?height=180", content=form, headers=headers)
    url = accepted.headers["location"]
    assert outcome(server, url)["status"] == "succeeded"
    told = server.client.get(url).headers["content-disposition"]
    assert told == "inline; filename*=utf-8''%3F.mp4"


@pytest.mark.slow
def test_a_third_one_waits_for_its_turn_as_bytes(studio: Studio, clip: Path, film: Path) -> None:
    server = studio.start()
    running = [post(server, film, 1080) for _ in range(2)]
    until(lambda: len(ffmpegs(server)) == 2)
    waiting = post(server, clip)
    document = server.client.get(f"{waiting}/status").json()
    assert (document["status"], document["queue_position"]) == ("queued", 1)
    assert len([*studio.rooms.glob("transcoding-*")]) == 2
    server.client.post(f"{running[0]}/cancel")
    assert outcome(server, waiting)["status"] == "succeeded"
    assert len(ffmpegs(server)) == 1
    server.client.post(f"{running[1]}/cancel")
    assert outcome(server, running[1])["status"] == "canceled"
    assert [*studio.rooms.iterdir()] == []


# --- no ffmpeg outlives its job ------------------------------------------------------------------


@pytest.mark.slow
def test_a_cancel_kills_ffmpeg(studio: Studio, film: Path) -> None:
    server = studio.start()
    url = post(server, film, 1080)
    pid = begun(server, url)
    server.client.post(f"{url}/cancel")
    assert outcome(server, url)["status"] == "canceled"
    assert name(pid) == ""
    assert [*studio.rooms.iterdir()] == []
    assert server.client.get(url).status_code == 410


@pytest.mark.slow
@pytest.mark.anyio
async def test_the_timeout_of_a_client_kills_ffmpeg(studio: Studio, film: Path) -> None:
    server = studio.start()
    following = follow(httpx2).AsyncFollowTransport(cancel=True)
    content = await anyio.Path(film).read_bytes()
    pids: list[int] = []
    async with httpx2.AsyncClient(
        transport=following, base_url=str(server.client.base_url), timeout=60
    ) as client:
        with anyio.move_on_after(PATIENCE) as waiting:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(hurry, server, pids, waiting)
                files = {"video": ("film.mkv", content)}
                await client.post("/videos?height=1080", files=files)
    (pid,) = pids
    await anyio.to_thread.run_sync(until, lambda: name(pid) == "")
    await anyio.to_thread.run_sync(until, lambda: [*studio.rooms.iterdir()] == [])


async def hurry(server: Server, pids: list[int], waiting: anyio.CancelScope) -> None:
    """Let the time be over as soon as ffmpeg runs."""
    while not pids:
        await anyio.sleep(0.02)
        pids += ffmpegs(server)
    waiting.deadline = anyio.current_time()


@pytest.mark.slow
def test_the_timeout_of_the_route_kills_ffmpeg(studio: Studio, film: Path) -> None:
    server = studio.start(TIMEOUT="15")
    url = post(server, film, 1080)
    (pid,) = until(lambda: ffmpegs(server))
    assert outcome(server, url)["error"]["code"] == "timeout"
    assert server.client.get(url).status_code == 504
    until(lambda: name(pid) == "")  # its job has failed before the handler has cleaned up
    until(lambda: [*studio.rooms.iterdir()] == [])


@pytest.mark.slow
def test_a_server_that_stops_kills_ffmpeg_and_the_next_one_begins_again(
    studio: Studio, film: Path
) -> None:
    server = studio.start()
    url = post(server, film, 90)
    pid = begun(server, url)
    assert server.stop() < 15
    assert name(pid) == ""
    assert [*studio.rooms.iterdir()] == []

    server = studio.start()
    document = outcome(server, url)
    assert (document["status"], document["runs"]) == ("succeeded", 2)
    assert server.client.get(url).headers["content-type"] == "video/mp4"


@pytest.mark.slow
def test_a_server_that_is_killed_takes_ffmpeg_along(studio: Studio, film: Path) -> None:
    server = studio.start()
    url = post(server, film, 1080)  # which nobody ends soon
    pid = begun(server, url)
    server.process.kill()
    server.process.wait()
    until(lambda: name(pid) == "")

    server = studio.start()
    until(lambda: server.client.get(f"{url}/status").json()["runs"] == 2)
    (pid,) = until(lambda: ffmpegs(server))
    server.client.post(f"{url}/cancel")
    assert outcome(server, url)["status"] == "canceled"
    assert name(pid) == ""


# --- what goes wrong -----------------------------------------------------------------------------


def damaged(clip: Path, folder: Path) -> Iterator[tuple[Path, str]]:
    """Uploads that are none, and what has to be said of each."""
    secret = folder / "secret.ts"
    run("ffmpeg", "-v", "error", "-i", clip, "-t", "2", "-c", "copy", secret)
    playlist = folder / "playlist.mp4"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{secret}\n#EXT-X-ENDLIST\n")
    yield playlist, "It is no video"
    text = folder / "text.mp4"
    text.write_text("It has rained.\n" * 100)
    yield text, "It is no video: Invalid data found when processing input"
    (folder / "empty.mp4").touch()
    yield folder / "empty.mp4", "It is no video"
    tone = folder / "tone.mp4"
    run("ffmpeg", "-v", "error", "-f", "lavfi", "-i", "sine=duration=1", tone)
    yield tone, "It is no video: there are no pictures"
    whole = folder / "whole.mkv"
    run("ffmpeg", "-v", "error", "-i", clip, "-c", "copy", whole)
    content = bytearray(whole.read_bytes())
    cut = folder / "cut.mkv"
    cut.write_bytes(content[: len(content) // 3])
    yield cut, "The video ends after 2 of 6 seconds"
    noise = folder / "noise.mkv"
    content[400_000:420_000] = random.Random(7).randbytes(20_000)
    noise.write_bytes(content)
    yield noise, "The video is damaged: "


def break_off(server: Server) -> None:
    """Leave in the middle of an upload."""
    form = b'--x\r\ncontent-disposition: form-data; name="video"; filename="a.mp4"\r\n\r\n'
    with socket.create_connection(("127.0.0.1", server.port)) as line:
        line.sendall(
            b"POST /videos HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9000000\r\n"
            b"content-type: multipart/form-data; boundary=x\r\n\r\n" + form + bytes(3_000_000)
        )


@pytest.mark.slow
def test_what_is_no_video_or_a_damaged_one_is_said_in_a_sentence(
    studio: Studio, clip: Path, tmp_path: Path
) -> None:
    server = studio.start()
    break_off(server)
    assert server.client.post("/videos").status_code == 422  # at once
    odd = server.client.post("/videos?height=181", files={"video": clip.read_bytes()})
    assert odd.status_code == 422
    expected = [*damaged(clip, tmp_path)]
    urls = [post(server, video) for video, _ in expected]
    for url, (video, detail) in zip(urls, expected, strict=True):
        assert outcome(server, url)["status"] == "failed"
        response = server.client.get(url)
        assert response.status_code == 422, video
        assert response.json()["detail"].startswith(detail), video
        assert str(tmp_path) not in response.text
    assert [*studio.rooms.iterdir()] == []


@pytest.mark.slow
def test_without_ffmpeg_the_server_does_not_start(studio: Studio, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "setpriv").symlink_to(str(shutil.which("setpriv")))
    with pytest.raises(AssertionError, match=r"No ffmpeg, ffprobe; install ffmpeg and util-linux"):
        studio.start(PATH=str(programs))


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="a disk of a size of its own takes root")
def test_a_full_disk_is_said_and_is_not_full_afterwards(studio: Studio, clip: Path) -> None:
    run("mount", "-t", "tmpfs", "-o", "size=3m", "none", studio.rooms)
    try:
        server = studio.start()
        url = post(server, clip, 1080)
        assert outcome(server, url)["status"] == "failed"
        response = server.client.get(url)
        assert (response.status_code, response.json()) == (
            507,
            {"detail": "There is no room for it at the moment"},
        )
        assert [*studio.rooms.iterdir()] == []
        assert outcome(server, post(server, clip, 90))["status"] == "succeeded"
    finally:
        run("umount", "--lazy", studio.rooms)


# --- its one command -----------------------------------------------------------------------------


@pytest.mark.slow
def test_one_command_shows_all_of_it(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
    run = subprocess.run(
        [sys.executable, "-m", "examples.video_transcoding"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (run.returncode, run.stderr) == (0, "")
    job = r"see http://127\.0\.0\.1:\d+/jobs/[\w-]+\n"
    assert re.fullmatch(
        r"made clip\.mp4: 30 seconds, 360 lines\n"
        rf"POST /videos\?height=180: 202, {job}"
        r"(  running \d+% \d+ of 30 seconds\n)+"
        r"  succeeded 100% 30 of 30 seconds\n"
        r"GET .+, bytes=0-499999: 206 bytes 0-499999/(\d+)\n"
        r"GET .+, bytes=500000-: 206 bytes 500000-\d+/\2\n"
        r"small\.mp4: 30 seconds, 180 lines\n"
        rf"POST /videos\?height=1080: 202, {job}"
        r"(  running \d+% \d+ of 30 seconds by ffmpeg \d+\n)+"
        r"  canceled, and no ffmpeg runs\n",
        run.stdout,
    ), run.stdout


def test_one_command_says_what_it_misses(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "examples.video_transcoding"],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    said = "There is no ffmpeg, ffprobe, setpriv: apt-get install ffmpeg util-linux\n"
    assert (run.returncode, run.stdout, run.stderr) == (1, "", said)
