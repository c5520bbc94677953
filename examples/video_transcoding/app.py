"""Transcoding: a video in, an MP4 out, ffmpeg in between.

    uvicorn examples.video_transcoding.app:app
    curl -i 'localhost:8000/videos?height=360' -F video=@holiday.mkv

Jobs and results are in the file jobs.db. `python -m examples.video_transcoding` tries it out.
"""

import asyncio
import errno
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Query, UploadFile
from fastapi.responses import FileResponse

from raincheck import Limits, LongRunningMiddleware, Policy, long_running, report
from raincheck.stores.sqlite import SQLiteStore

from . import ffmpeg

LARGEST = 512 * 1024 * 1024


@asynccontextmanager
async def programs(api: FastAPI) -> AsyncIterator[None]:
    if missing := ffmpeg.missing():  # rather no server than one that fails every job
        raise RuntimeError(f"No {', '.join(missing)}; install ffmpeg and util-linux")
    yield


def workspace() -> Iterator[Path]:
    """A folder of the request's own, until its response is stored, or there will be none."""
    with TemporaryDirectory(prefix="transcoding-") as folder:
        yield Path(folder)


api = FastAPI(lifespan=programs)


@api.post("/videos", response_class=FileResponse)
@long_running(
    max_running=2,  # each takes a processor or more; others wait their turn
    max_queued=20,
    max_request_size=LARGEST,
    max_response_size=LARGEST,
    on_interrupt="rerun",  # after a deploy or a crash: it changes nothing but its own folder
)
async def transcode(
    video: UploadFile,
    folder: Annotated[Path, Depends(workspace)],
    height: Annotated[int, Query(ge=90, le=2160, multiple_of=2)] = 360,
) -> FileResponse:
    source, result = folder / "source", folder / "result.mp4"
    try:
        await asyncio.to_thread(copy, video, source)
        length = await ffmpeg.duration(source)

        def done(seconds: float) -> None:
            if length:
                report(min(seconds / length, 1.0), f"{seconds:.0f} of {length:.0f} seconds")

        seconds = await ffmpeg.encode(source, result, height, done)
    except ffmpeg.Unusable as error:
        raise HTTPException(422, str(error)) from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise HTTPException(507, "There is no room for it at the moment") from error
    if seconds < 0.9 * length:  # an upload that was cut: ffmpeg takes what there is
        raise HTTPException(422, f"The video ends after {seconds:.0f} of {length:.0f} seconds")
    # Who sends it has said its charset, too, and some have halves of characters.
    name = Path(video.filename or "").stem.encode(errors="replace").decode() or "video"
    return FileResponse(result, filename=f"{name}.mp4", content_disposition_type="inline")


def copy(video: UploadFile, file: Path) -> None:
    with file.open("wb") as target:
        shutil.copyfileobj(video.file, target)


app = LongRunningMiddleware(
    api,
    policy=Policy(timeout=3600),
    store=SQLiteStore("jobs.db"),
    limits=Limits(drain_timeout=5, lease=10),  # a deploy does not wait for an hour of video
)
