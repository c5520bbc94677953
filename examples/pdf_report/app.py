"""A form that makes a PDF: the browser waits on a page with a bar, and then it shows the report.

    uvicorn examples.pdf_report.app:app     # and a browser at http://127.0.0.1:8000

Programs post the same form, and find the PDF where the 202's `Location` says. The jobs are in the
file jobs.db. `python -m examples.pdf_report` tries it out.
"""

from typing import Annotated

from fastapi import FastAPI, Form
from fastapi.responses import HTMLResponse, Response

from raincheck import Limits, LongRunningMiddleware, long_running, raise_if_cancelled, report
from raincheck.stores.sqlite import SQLiteStore

from . import report as paper

FORM = """<!doctype html><html lang="en"><title>Reports</title><h1>Orders of a year</h1>
<form method="post" action="reports">
<label>Year <input name="year" type="number" min="2000" max="2026" value="2025" required></label>
<button>Write the report</button></form></html>"""

api = FastAPI()


@api.get("/", response_class=HTMLResponse)
def form() -> str:
    return FORM


@api.post("/reports", response_class=Response)
@long_running(
    timeout=300,
    max_running=2,
    coalesce=True,  # a button that is pressed twice makes one report
    on_interrupt="rerun",  # after a deploy or a crash; the browser waits on
)
def write(year: Annotated[int, Form(ge=2000, le=2026)]) -> Response:
    def done(month: int) -> None:
        raise_if_cancelled()  # a thread cannot be stopped from outside: it asks
        report(month / 12, f"{month} of 12 months")

    headers = {"Content-Disposition": f'inline; filename="orders-{year}.pdf"'}
    return Response(paper.write(year, done), media_type="application/pdf", headers=headers)


app = LongRunningMiddleware(api, store=SQLiteStore("jobs.db"), limits=Limits(lease=10))
