"""What is asked of ffmpeg, for videos of people who are not known. Nothing here knows of HTTP."""

import asyncio
import errno
import json
import shutil
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

# A playlist, called a video, could have ffmpeg read other files of ours into the result: only these
# containers are opened, whatever a file is called.
UNTRUSTED = ("-protocol_whitelist", "file", "-format_whitelist", "mov,matroska,avi,mpegts")

QUIET = ("-nostdin", "-v", "error", "-xerror", "-progress", "pipe:1")
PICTURES = ("-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p")
ENCODING = (*PICTURES, "-c:a", "aac", "-movflags", "+faststart")  # players may begin early


class Unusable(ValueError):
    """It is no video, or one that is damaged; says so in a sentence."""


def missing() -> list[str]:
    """The programs that are not on the path."""
    return [name for name in ("ffmpeg", "ffprobe", "setpriv") if shutil.which(name) is None]


async def duration(source: Path) -> float:
    """Seconds that a video lasts, 0 where it does not say. Raises Unusable."""
    asked = ("-select_streams", "v", "-show_entries", "stream=index:format=duration", "-of", "json")
    async with running("ffprobe", "-v", "error", *UNTRUSTED, *asked, source, stderr=PIPE) as probe:
        found, said = await probe.communicate()
    if probe.returncode != 0 or not json.loads(found)["streams"]:
        raise Unusable(f"It is no video: {last(said) or 'there are no pictures'}")
    return float(json.loads(found)["format"].get("duration", 0))


async def encode(source: Path, result: Path, height: int, done: Callable[[float], None]) -> float:
    """Make an MP4 of so many lines; the seconds that it lasts. Raises Unusable, OSError.

    Args:
        source: the video.
        result: where the MP4 goes.
        height: an even number.
        done: called twice a second with the seconds that are done.
    """
    streams = ("-map", "0:v:0", "-map", "0:a:0?", "-vf", f"scale=-2:{height}")
    command = ("ffmpeg", *QUIET, *UNTRUSTED, "-i", source, *streams, *ENCODING, result)
    seconds, said = 0.0, b""
    async with running(*command, stderr=STDOUT) as ffmpeg:
        assert ffmpeg.stdout is not None
        async for line in ffmpeg.stdout:
            key, _, value = line.partition(b"=")
            if key == b"out_time_us" and value.strip().isdigit():
                seconds = int(value) / 1e6
                done(seconds)
            elif b" " in key:  # no progress, but what it complains of
                said = line
        await ffmpeg.wait()
    if b"No space left" in said:
        raise OSError(errno.ENOSPC, last(said))
    if ffmpeg.returncode != 0:
        raise Unusable(f"The video is damaged: {last(said)}")
    return seconds


def last(said: bytes) -> str:
    """The last line of what it says, without paths, which are nobody's business."""
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1].rpartition(": ")[2] if lines else ""


@asynccontextmanager
async def running(*command: str | Path, stderr: int) -> AsyncIterator[Process]:
    """A process that ends with the block, however that ends, and with us, even if we are killed."""
    process = await asyncio.create_subprocess_exec(
        "setpriv", "--pdeathsig", "KILL", *command, stdin=DEVNULL, stdout=PIPE, stderr=stderr
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):  # it has ended
            process.kill()
        await process.wait()
