"""Draw curves as SVG: JSON on standard input, files into the folder that is named.

Run by an environment that has matplotlib. The same curves make the same file, byte for byte.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

mpl.rcParams.update(
    {
        "svg.hashsalt": "raincheck",  # else the ids in the file are random
        "svg.fonttype": "none",  # text stays text, which is small
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
        "font.size": 9,
        "path.simplify": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
)

COLOURS = ("#0b5fa5", "#c2410c", "#4d7c0f")


def panel(axes: Axes, title: str, x: str, curves: list[dict[str, Any]]) -> None:
    for curve, colour in zip(curves, COLOURS, strict=False):
        points = curve["points"]
        xs = [point["x"] for point in points]
        lowest, highest = ([point[side] for point in points] for side in ("lowest", "highest"))
        axes.fill_between(xs, lowest, highest, color=colour, alpha=0.15, linewidth=0)
        medians = [point["y"] for point in points]
        axes.plot(xs, medians, color=colour, marker="o", markersize=3, label=curve["name"])
    axes.set_title(title, loc="left", fontsize=9)
    axes.set_xlabel(x)
    axes.set_xscale("log")
    everything = [point["highest"] for curve in curves for point in curve["points"]]
    if max(everything) > 20 * min(everything):
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, 1.1 * max(everything))
    axes.minorticks_off()
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.legend(frameon=False)


def draw(figure: dict[str, Any], folder: Path) -> None:
    titles = list(dict.fromkeys(curve["panel"] for curve in figure["curves"]))
    drawing = Figure(figsize=(3.2 * len(titles), 2.8), layout="constrained")
    for axes, title in zip(drawing.subplots(1, len(titles)), titles, strict=True):
        curves = [curve for curve in figure["curves"] if curve["panel"] == title]
        panel(axes, title, figure["x"], curves)
    written = io.StringIO()
    drawing.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    lines = (line.rstrip() for line in written.getvalue().splitlines())
    (folder / figure["file"]).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    for figure in json.load(sys.stdin):
        draw(figure, Path(sys.argv[1]))
