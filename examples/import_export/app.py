"""CSV in, all of it or nothing, with a report on every row; and out, a piece at a time.

    uvicorn examples.import_export.app:app
    curl -i localhost:8000/products -F file=@products.csv
    curl -i localhost:8000/products.csv

The products are in the file products.db, the jobs in jobs.db. `python -m examples.import_export`
tries it out.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, UploadFile
from fastapi.responses import JSONResponse, Response, StreamingResponse
from sqlalchemy import create_engine

from raincheck import LongRunningMiddleware, long_running, raise_if_cancelled, report
from raincheck.stores.sqlite import SQLiteStore

from .products import Row, Table, read, save, write

LARGEST = 256 * 1024 * 1024
LISTED = 1000  # problems that are told one by one

engine = create_engine("sqlite:///products.db")


@asynccontextmanager
async def tables(api: FastAPI) -> AsyncIterator[None]:
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode=WAL")  # an export holds up no import
    Table.metadata.create_all(engine)
    yield


api = FastAPI(lifespan=tables)


# One at a time, as SQLite writes. It may run again, after a crash: that writes the same.
@api.post("/products")
@long_running(timeout=600, max_running=1, max_request_size=LARGEST, on_interrupt="rerun")
def import_products(file: UploadFile) -> JSONResponse:
    rows = problems = 0
    listed: list[dict[str, object]] = []
    for rows, one in enumerate(read(file.file), start=1):
        if not isinstance(one, Row):
            problems += len(one)
            listed += [problem._asdict() for problem in one[: LISTED - len(listed)]]
        if rows % 1000 == 0:
            raise_if_cancelled()
            report(0.5 * file.file.tell() / (file.size or 1), f"{rows} rows checked")
    if problems:
        return JSONResponse({"imported": 0, "problems": problems, "report": listed}, 422)

    def done(written: int) -> None:
        raise_if_cancelled()
        report(0.5 + 0.5 * written / rows, f"{written} of {rows} rows written")

    good = (row for row in read(file.file) if isinstance(row, Row))
    return JSONResponse({"imported": save(engine, good, done), "problems": 0, "report": []}, 201)


@api.get("/products.csv", response_class=StreamingResponse)
@long_running(timeout=600, max_running=4, max_response_size=LARGEST)
def export_products() -> Response:
    def done(written: int, total: int) -> None:
        report(written / max(written, total), f"{written} of {total} rows")

    headers = {"Content-Disposition": 'attachment; filename="products.csv"'}
    return StreamingResponse(write(engine, done), media_type="text/csv", headers=headers)


app = LongRunningMiddleware(api, store=SQLiteStore("jobs.db"))
