"""The plot: requests a second by workload and system, as horizontal bars, so that labels do not overlap."""

from pathlib import Path
from statistics import median
from textwrap import fill
from typing import TYPE_CHECKING

from bench.load.workloads import WORKLOADS
from bench.plan import FEW
from bench.report.results import Results
from bench.systems.processes import SYSTEMS

if TYPE_CHECKING:  # matplotlib takes a second to load, so only drawing loads it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"handler": "#9aa0a6", "recon": "#1a73e8", "recon-2": "#7baaf7", "plain": "#e8710a", "pgbench": "#188038"}
LEAST_ROWS = 2.6  # rows that a workload's explanation needs; one bar takes one row
GAP = 0.8  # rows between workloads
ROW = 0.2  # inches
OTHER_ROWS = 8  # for title, axis and legend
EXPLANATION_WIDTH = 42  # characters

Rates = dict[tuple[str, str], list[float]]  # requests a second in each round, by workload and system


def write(results: Results, path: Path) -> None:
    """Write the plot to a PNG file."""
    draw(results).savefig(path)


def draw(results: Results) -> "Figure":
    """Draw all series with few connections that did not fail."""
    from matplotlib.figure import Figure

    rates = _rates(results)
    workloads = [name for name in WORKLOADS if any(workload == name for workload, _ in rates)]
    figure = Figure(figsize=(10, 1), dpi=150, layout="constrained")
    axes = figure.subplots()
    bottom, places = 0.0, []
    for workload in workloads:
        systems = [name for name in COLOURS if (workload, name) in rates]
        rows = max(len(systems), LEAST_ROWS)
        places.append(bottom + rows / 2)
        for number, system in enumerate(systems):
            _bar(axes, bottom + (rows - len(systems) + 1) / 2 + number, system, rates[workload, system])
        bottom += rows + GAP
    figure.set_figheight(ROW * (bottom + OTHER_ROWS))
    axes.set_ylim(bottom, -GAP)
    axes.set_yticks(places, [_explained(name) for name in workloads], fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel("requests a second (median of the rounds; the thin line is the least and the most)", fontsize=8)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.margins(x=0.1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"POST /identify, {FEW} connections, everything on one machine", fontsize=10)
    _add_legend(figure, {system for _, system in rates})
    return figure


def _rates(results: Results) -> Rates:
    rates: Rates = {}
    for series in results.series:
        if series.connections == FEW and series.system in COLOURS and not series.problems:
            rates.setdefault((series.workload, series.system), []).append(series.per_second)
    return rates


def _bar(axes: "Axes", place: float, system: str, rates: list[float]) -> None:
    middle, least, most = median(rates), min(rates), max(rates)
    axes.barh(
        place, middle, 0.9, color=COLOURS[system],
        xerr=[[middle - least], [most - middle]] if len(rates) > 1 else None,
        error_kw={"elinewidth": 0.8, "capsize": 2},
    )  # fmt: skip
    axes.annotate(f"{middle:,.0f}", (most, place), (4, 0), textcoords="offset points", va="center", fontsize=7)


def _explained(workload: str) -> str:
    return f"{workload}\n{fill(WORKLOADS[workload].title, EXPLANATION_WIDTH)}"


def _add_legend(figure: "Figure", systems: set[str]) -> None:
    from matplotlib.patches import Patch

    patches = [
        Patch(color=colour, label=f"{system}: {SYSTEMS[system].title}")
        for system, colour in COLOURS.items()
        if system in systems
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=2, fontsize=7.5, frameon=False)
