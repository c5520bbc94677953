"""The example that imports and exports: 100,000 rows, real files, and a real database."""

from __future__ import annotations

import csv
import io
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import ROOT, Server

pytestmark = pytest.mark.real

HEADING = ["sku", "name", "price", "stock"]
PATIENCE = 60.0
"""Seconds in which what is expected has to come, on a machine that is busy."""


def rows(count: int, price: str = "1.50") -> list[list[str]]:
    return [[f"AB-{number:06}", f"Umbrella {number}", price, "7"] for number in range(count)]


def as_csv(rows: Iterable[list[str]], heading: list[str] = HEADING) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([heading, *rows])
    return text.getvalue().encode()


class Shop:
    """Servers of the example, one after another, and what their database has."""

    def __init__(self, serve: Callable[..., Server], folder: Path) -> None:
        self._serve = serve
        self.home = folder / "home"
        self.home.mkdir()
        self.server: Server

    def start(self, **environment: str) -> None:
        settings = {"app": "tests.e2e.uses_app:app", "USE": "import_export", **environment}
        self.server = self._serve(home=str(self.home), **settings)

    def post(self, content: bytes) -> str:
        """The status URL of an import that has been accepted."""
        files = {"file": ("products.csv", content)}
        response = self.server.client.post("/products", files=files)
        assert response.status_code == 202, response.text
        url: str = response.headers["location"]
        return url

    def imported(self, content: bytes) -> httpx.Response:
        return self.ended(self.post(content))

    def ended(self, url: str) -> httpx.Response:
        return self.server.follow(self.server.client.get(url))

    def document(self, url: str) -> dict[str, Any]:
        document: dict[str, Any] = self.server.client.get(f"{url}/status").json()
        return document

    def until(self, url: str, message: str) -> None:
        """Wait until a job says this of itself."""
        deadline = time.monotonic() + PATIENCE
        while not re.search(message, self.document(url)["message"] or ""):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def prices(self) -> dict[int, int]:
        """How many products there are, by price in cents."""
        with closing(sqlite3.connect(self.home / "products.db")) as database:
            return dict(database.execute("SELECT cents, count(*) FROM products GROUP BY cents"))

    def memory(self, field: str) -> int:
        """Bytes: `VmRSS` of the server now, `VmHWM` at most so far."""
        status = Path(f"/proc/{self.server.process.pid}/status").read_text()
        found = re.search(rf"{field}:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024


@pytest.fixture
def shop(serve: Callable[..., Server], tmp_path: Path) -> Shop:
    shop = Shop(serve, tmp_path)
    shop.start()
    return shop


# --- what is wrong with a file -------------------------------------------------------------------

GOOD = ["AB-000001", "Umbrella", "1.50", "7"]


@pytest.mark.parametrize(
    ("content", "report"),
    [
        pytest.param(
            as_csv([GOOD, ["x", "", "-1", "many"], ["AB-000002", "Boots", "1.505", "7"]]),
            [
                (3, "sku", "String should match pattern"),
                (3, "name", "String should have at least 1 character"),
                (3, "price", "Input should be greater than or equal to 0"),
                (3, "stock", "Input should be a valid integer"),
                (4, "price", "Decimal input should have no more than 2 decimal places"),
            ],
            id="cells",
        ),
        pytest.param(
            as_csv([GOOD, GOOD[:3], [*GOOD, "x"]]),
            [(3, None, "There are 3 cells, not 4"), (4, None, "There are 5 cells, not 4")],
            id="too few, too many",
        ),
        pytest.param(as_csv([GOOD, GOOD]), [(3, "sku", "Row 2 has the same")], id="twice"),
        pytest.param(
            as_csv([GOOD]).replace(b"Umbrella", b"Parapl\xfcie"),
            [(2, "name", "Input should be a valid string")],
            id="Latin-1",
        ),
        pytest.param(
            as_csv([]) + b'AB-000001,"Umbrella\n,1,1\nAB-000002,Boots,1,1\n',
            [(2, None, "From here on it cannot be read: unexpected end of data")],
            id="an open quote",
        ),
        pytest.param(
            as_csv([["AB-000001", "a" * 200_000, "1", "1"]]),
            [(2, None, "From here on it cannot be read: field larger than field limit")],
            id="a cell without an end",
        ),
        pytest.param(
            as_csv([GOOD]).replace(b"7", b"7\0"), [(2, "stock", "Input should be")], id="NUL"
        ),
        pytest.param(
            as_csv([GOOD], ["sku", "price"]),
            [(1, None, "The heading has to be sku,name,price,stock")],
            id="heading",
        ),
        pytest.param(b"", [(1, None, "The heading has to be")], id="empty"),
        pytest.param(bytes(range(256)) * 9, [(1, None, "The heading has to be")], id="no CSV"),
        pytest.param(b'"sku', [(1, None, "From here on it cannot be read")], id="half a heading"),
    ],
)
def test_every_problem_has_its_row_and_column(
    read: Callable[[bytes], list[Any]], content: bytes, report: list[tuple[int, str | None, str]]
) -> None:
    problems = [problem for one in read(content) if isinstance(one, list) for problem in one]
    assert [problem[:2] for problem in problems] == [expected[:2] for expected in report]
    for problem, expected in zip(problems, report, strict=True):
        assert problem[2].startswith(expected[2])


@pytest.fixture
def read() -> Callable[[bytes], list[Any]]:
    from examples.import_export import products

    return lambda content: [*products.read(io.BytesIO(content))]


def test_a_file_as_spreadsheets_write_it_is_read(read: Callable[[bytes], list[Any]]) -> None:
    """With a mark at its beginning, quotes, a comma and lines in a cell, and an empty last line."""
    content = b"\xef\xbb\xbf" + as_csv([["AB-000001", 'Red, "big"\nand dry', "1", "2"]]) + b"\r\n"
    (row,) = read(content)
    assert (row.sku, row.name) == ("AB-000001", 'Red, "big"\nand dry')


def test_nothing_of_a_bad_file_is_imported_and_its_problems_are_counted(shop: Shop) -> None:
    assert shop.imported(as_csv(rows(10))).json() == {"imported": 10, "problems": 0, "report": []}
    bad = rows(5000, "2.50")
    for row in bad[100:]:
        row[3] = "none"
    response = shop.imported(as_csv(bad))
    assert (response.status_code, response.headers["job-status"]) == (422, "failed")
    told = response.json()
    assert (told["imported"], told["problems"], len(told["report"])) == (0, 4900, 1000)
    assert {problem["column"] for problem in told["report"]} == {"stock"}
    assert told["report"][0]["row"] == 102
    assert shop.prices() == {150: 10}


# --- all or nothing ------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_cancel_in_the_middle_leaves_what_was_there(shop: Shop) -> None:
    assert shop.imported(as_csv(rows(10))).status_code == 201
    url = shop.post(as_csv(rows(100_000, "2.50")))  # which takes seconds
    shop.until(url, "rows written")
    shop.server.client.post(f"{url}/cancel")
    assert shop.ended(url).status_code == 410
    assert shop.prices() == {150: 10}
    assert shop.imported(as_csv(rows(20, "3.50"))).status_code == 201  # nothing is locked
    assert shop.prices() == {350: 20}


@pytest.mark.slow
def test_a_server_that_is_killed_in_the_middle_leaves_nothing_half_done(shop: Shop) -> None:
    url = shop.post(as_csv(rows(100_000)))  # which takes seconds
    shop.until(url, "rows written")
    shop.server.process.kill()
    shop.server.process.wait()
    assert shop.prices() == {}
    shop.start()
    assert shop.ended(url).json()["imported"] == 100_000
    assert shop.document(url)["runs"] == 2
    assert shop.prices() == {150: 100_000}


@pytest.mark.slow
def test_of_two_imports_one_waits_and_an_export_sees_all_or_nothing_of_each(shop: Shop) -> None:
    assert shop.imported(as_csv(rows(40_000))).status_code == 201
    first, second = (shop.post(as_csv(rows(40_000, price))) for price in ("2.50", "3.50"))
    assert shop.document(second)["status"] == "queued"
    seen = []
    while shop.document(second)["status"] in ("queued", "running"):
        exported = shop.server.follow(shop.server.client.get("/products.csv"))
        lines = exported.text.splitlines()
        assert len(lines) == 40_001
        seen.append({line.split(",")[2] for line in lines[1:]})
    assert all(len(prices) == 1 for prices in seen)
    assert shop.ended(first).status_code == shop.ended(second).status_code == 201
    assert shop.prices() == {350: 40_000}


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="a disk of a size of its own takes root")
def test_a_full_disk_fails_the_import_and_changes_nothing(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    shop = Shop(serve, tmp_path)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", shop.home], check=True)
    try:
        shop.start(JOBS=str(tmp_path / "jobs.db"))
        assert shop.imported(as_csv(rows(10))).status_code == 201
        url = shop.post(as_csv(rows(50_000, "2.50")))
        assert shop.ended(url).status_code == 500
        assert shop.document(url)["status"] == "failed"
        assert shop.prices() == {150: 10}
        last = time.monotonic() + 10  # Starlette raises the error once it has sent the 500
        while "database or disk is full" not in shop.server.output.read_text():
            assert time.monotonic() < last
            time.sleep(0.05)
    finally:
        subprocess.run(["umount", "--lazy", shop.home], check=True)


# --- out again -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_export_is_never_in_memory_as_a_whole(shop: Shop, tmp_path: Path) -> None:
    with closing(sqlite3.connect(shop.home / "products.db")) as database:
        database.execute(
            "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 99999)"
            " INSERT INTO products SELECT printf('AB-%06d', i), printf('%600d', i), 150, i FROM n"
        )
        database.commit()
    warm = shop.server.client.get("/products.csv").headers["location"]
    shop.server.client.delete(warm)
    Path(f"/proc/{shop.server.process.pid}/clear_refs").write_text("5")  # the peak begins anew
    before = shop.memory("VmRSS")
    url = shop.server.client.get("/products.csv").headers["location"]
    shop.until(url, r"\d+ of 100000 rows")
    size = lines = 0
    with shop.server.client.stream("GET", f"{url}/stream") as response:
        for chunk in response.iter_bytes():
            size += len(chunk)
            lines += chunk.count(b"\n")
    assert lines == 100_001
    assert size > 60_000_000
    assert shop.memory("VmHWM") - before < size / 3


@pytest.mark.slow
def test_a_cancelled_export_ends_and_holds_nothing(shop: Shop) -> None:
    assert shop.imported(as_csv(rows(100_000))).status_code == 201
    url = shop.server.client.get("/products.csv").headers["location"]
    shop.until(url, r"\d+ of 100000 rows")
    shop.server.client.post(f"{url}/cancel")
    assert shop.ended(url).status_code in (200, 410)  # it may have been quicker
    assert shop.imported(as_csv(rows(10))).status_code == 201


@pytest.mark.slow
def test_one_command_shows_all_of_it(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "examples.import_export"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (run.returncode, run.stderr) == (0, "")
    checked, written = (  # of what a quick machine has checked between two polls nothing is told
        r"(  running \d+% \d+ rows checked\n)*",
        r"(  running \d+% \d+ of 100000 rows",
    )
    assert re.fullmatch(
        rf"POST /products, 100000 rows, 3 of them wrong: 202\n{checked}"
        r"422, 0 imported\n"
        r"  row 17, price: Input should be a valid decimal\n"
        r"  row 50000, sku: Row 49999 has the same\n"
        r"  row 100001, name: String should have at least 1 character\n"
        rf"POST /products, 100000 rows: 202\n{checked}{written} written\n)+"
        r"201, 100000 imported\n"
        rf"GET /products.csv: 202\n{written}\n)+"
        r"200, 100000 rows, as they were sent\n",
        run.stdout,
    ), run.stdout
