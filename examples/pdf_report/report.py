"""A year's orders as a PDF: a page with the totals, then the orders of each month.

What is slow in it is what is slow in any such report: the rows of each month are laid out one by
one. Nothing here knows of HTTP.
"""

import calendar
import random
from collections.abc import Callable
from decimal import Decimal
from typing import NamedTuple

from fpdf import FPDF
from fpdf.fonts import FontFace

CITIES = ("Aarhus", "Bergen", "Genève", "Graz", "Malmö", "Porto")
HEADING = FontFace(emphasis="BOLD", fill_color=(225, 232, 240))


class Order(NamedTuple):
    """One order of the shop."""

    number: int
    day: int
    city: str
    items: int
    total: Decimal


def orders_of(year: int, month: int, count: int = 90) -> list[Order]:
    """Stands for a query: the same orders for the same month, whenever it is asked."""
    random_ = random.Random(year * 100 + month)
    days = sorted(random_.choices(range(1, calendar.monthrange(year, month)[1] + 1), k=count))
    return [
        Order(
            month * 10_000 + number,
            day,
            random_.choice(CITIES),
            items := random_.randint(1, 9),
            Decimal(random_.randint(500, 9_999) * items) / 100,
        )
        for number, day in enumerate(days, start=1)
    ]


class Report(FPDF):
    """A page's foot says which of them it is."""

    def footer(self) -> None:
        self.set_y(-15)
        self.set_font("helvetica", size=8)
        self.cell(0, 10, f"Page {self.page_no()} of {{nb}}", align="C")


def write(year: int, done: Callable[[int], None]) -> bytes:
    """The report as the bytes of a PDF.

    Args:
        year: of which.
        done: called with 1 to 12, after each month; may raise, and that is the end of it.
    """
    pdf = Report()
    pdf.set_title(f"Orders {year}")
    months = {month: orders_of(year, month) for month in range(1, 13)}
    summary(pdf, year, {month: sum(o.total for o in orders) for month, orders in months.items()})
    for month, orders in months.items():
        table(pdf, f"{calendar.month_name[month]} {year}", orders)
        done(month)
    return bytes(pdf.output())


def summary(pdf: FPDF, year: int, totals: dict[int, Decimal]) -> None:
    pdf.add_page()
    pdf.set_font("helvetica", "B", 24)
    pdf.cell(0, 20, f"Orders {year}", new_x="LMARGIN", new_y="NEXT")
    pdf.set_font("helvetica", size=11)
    for month, total in totals.items():
        pdf.cell(30, 9, calendar.month_name[month])
        length = 110 * float(total / max(totals.values()))
        with pdf.local_context(fill_color=(70, 110, 160)):
            pdf.rect(pdf.get_x(), pdf.get_y() + 2, length, 5, style="F")
        pdf.cell(0, 9, f"{total:,.2f}", align="R", new_x="LMARGIN", new_y="NEXT")
    pdf.set_font(style="B")
    pdf.cell(30, 12, "Total")
    pdf.cell(0, 12, f"{sum(totals.values()):,.2f}", align="R")


def table(pdf: FPDF, title: str, orders: list[Order]) -> None:
    pdf.add_page()
    pdf.start_section(title)
    pdf.set_font("helvetica", "B", 16)
    pdf.cell(0, 12, title, new_x="LMARGIN", new_y="NEXT")
    pdf.set_font("helvetica", size=9)
    aligned = ("RIGHT", "RIGHT", "LEFT", "RIGHT", "RIGHT")
    with pdf.table(
        text_align=aligned, headings_style=HEADING, borders_layout="SINGLE_TOP_LINE"
    ) as rows:
        rows.row(("Order", "Day", "City", "Items", "Total"))
        for order in orders:
            rows.row((*map(str, order[:-1]), f"{order.total:,.2f}"))
