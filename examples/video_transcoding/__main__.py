"""Try out `app.py` on this machine: a server, and a client that follows two jobs.

    python -m examples.video_transcoding

Needs `pip install raincheck[examples]` and `apt-get install ffmpeg`. It prints

    made clip.mp4: 30 seconds, 360 lines
    POST /videos?height=180: 202, see http://127.0.0.1:40123/jobs/bLq7...
      running 13% 4 of 30 seconds
      ...
      succeeded 100% 30 of 30 seconds
    GET http://..., bytes=0-499999: 206 bytes 0-499999/981219
    GET http://..., bytes=500000-: 206 bytes 500000-981218/981219
    small.mp4: 30 seconds, 180 lines

    POST /videos?height=1080: 202, see http://127.0.0.1:40123/jobs/Xu1c...
      running 7% 2 of 30 seconds by ffmpeg 4711
      canceled, and no ffmpeg runs
"""

import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from raincheck.client import SyncRemoteJob, submit_sync

from .ffmpeg import missing

ROOT = Path(__file__).parents[2]


@contextmanager
def server(folder: Path) -> Iterator[tuple[str, int]]:
    """The app under uvicorn, on a free port: its URL, and its process id."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-m", "uvicorn", "examples.video_transcoding.app:app"]
        command += ["--log-level=warning", f"--app-dir={ROOT}", f"--fd={listener.fileno()}"]
        running = subprocess.Popen(command, cwd=folder, pass_fds=[listener.fileno()])
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        yield url, running.pid
    finally:
        running.terminate()
        running.wait()


def main() -> None:
    if programs := missing():
        raise SystemExit(f"There is no {', '.join(programs)}: apt-get install ffmpeg util-linux")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip = folder / "clip.mp4"
        make(clip, seconds=30)
        print(f"made {look(clip)}")
        with server(folder) as (url, pid), httpx2.Client(base_url=url, timeout=60) as client:
            follow(client, clip)
            cancel(client, clip, pid)


def make(clip: Path, seconds: int) -> None:
    """A test picture and a tone."""
    picture = ("-f", "lavfi", "-i", f"testsrc2=size=640x360:rate=25:duration={seconds}")
    tone = ("-f", "lavfi", "-i", f"sine=duration={seconds}")
    command = ("ffmpeg", "-v", "error", *picture, *tone, "-preset", "ultrafast", clip)
    subprocess.run(command, check=True)


def look(video: Path) -> str:
    """What ffprobe says of a video."""
    asked = (
        "-select_streams",
        "v",
        "-show_entries",
        "stream=height:format=duration",
        "-of",
        "csv=p=0",
    )
    command = ("ffprobe", "-v", "error", *asked, video)
    height, seconds = subprocess.run(
        command, check=True, capture_output=True, text=True
    ).stdout.split()
    return f"{video.name}: {float(seconds):.0f} seconds, {height} lines"


def post(client: httpx2.Client, clip: Path, height: int) -> SyncRemoteJob:
    with clip.open("rb") as file:
        url, files = f"/videos?height={height}", {"video": (clip.name, file)}
        job = submit_sync(client, client.build_request("POST", url, files=files))
    print(f"POST {url}: 202, see {job.status_url}")
    return job


def follow(client: httpx2.Client, clip: Path) -> None:
    job = post(client, clip, height=180)
    for update in job.updates():
        if update["message"]:
            print(f"  {update['status']} {update['progress']:.0%} {update['message']}")
    # As a player that seeks, or a download that goes on after a lost connection.
    small, version = clip.with_name("small.mp4"), {}
    with small.open("wb") as file:
        for wanted in ("bytes=0-499999", "bytes=500000-"):
            part = client.get(job.status_url, headers={"Range": wanted, **version})
            got = part.headers["content-range"]
            print(f"GET {job.status_url}, {wanted}: {part.status_code} {got}")
            file.write(part.content)
            version = {"If-Range": part.headers["etag"]}
    print(look(small))


def cancel(client: httpx2.Client, clip: Path, server: int) -> None:
    job = post(client, clip, height=1080)
    update: dict[str, Any] = {}
    for update in job.updates():
        if update["status"] == "running" and update["message"]:
            pid = ", ".join(map(str, ffmpegs(server)))
            print(f"  running {update['progress']:.0%} {update['message']} by ffmpeg {pid}")
            job.cancel()
    left = ffmpegs(server)
    print(f"  {update['status']}, and {f'ffmpeg {left} runs' if left else 'no ffmpeg runs'}")


def ffmpegs(server: int) -> list[int]:
    """The process ids of those that the server has started, as Linux tells them."""
    children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
    names = {pid: Path(f"/proc/{pid}/comm") for pid in children}
    return [
        int(pid) for pid, name in names.items() if name.exists() and "ffmpeg" in name.read_text()
    ]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what it has started ends, too
    main()
