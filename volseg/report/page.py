# SPDX-License-Identifier: Apache-2.0
"""One self-contained HTML page about many cases: summary, plots, pictures, a table that can be sorted, and origins."""

from __future__ import annotations

import base64
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeGuard

import jinja2
from matplotlib.ticker import MaxNLocator

import volseg
from volseg.storage.files import atomic_path

__all__ = ["Page", "Picture", "ReportCase", "versions", "words", "write_page"]

TEMPLATE = Path(__file__).with_name("page.html")
PACKAGES = ("monai", "torch", "numpy")
# of a plot, in the units of its drawing
LABEL_WIDTH, PLOT_WIDTH, ROW_HEIGHT = 70, 380, 24
TICKS = 4


@dataclass(frozen=True)
class Picture:
    """A PNG and what it shows."""

    caption: str
    png: bytes


@dataclass(frozen=True)
class ReportCase:
    """One line of the table.

    Attributes:
        name: of the case.
        values: number by column; ``None`` or NaN where there is none.
        warnings: what a reader should know of it.
        error: why there is no result.
    """

    name: str
    values: Mapping[str, float | None]
    warnings: Sequence[str] = ()
    error: str = ""


@dataclass(frozen=True)
class Page:
    """What the page shows.

    Attributes:
        title, lead: at its head.
        cases: in the order of the table.
        plots: by measure, the column of each row by the row's name, such as lobes.
        columns: of the table; all values where it is empty.
        summary: by row and measure, as text; empty for none.
        floor: like ``summary``, of what never looks at the image.
        floor_means: mean of the floor by measure and row, drawn into the plots.
        pictures: worth a look.
        facts: by name, such as weights and versions.
    """

    title: str
    lead: str
    cases: Sequence[ReportCase]
    plots: Mapping[str, Mapping[str, str]]
    columns: Sequence[str] = ()
    summary: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    floor: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    floor_means: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    pictures: Sequence[Picture] = ()
    facts: Mapping[str, str] = field(default_factory=dict)


def words(name: str) -> str:
    """``volume ml`` of ``volume_ml``."""
    return name.replace("_", " ")


def versions() -> dict[str, str]:
    """Versions of what ran, by name."""
    found = {"volseg": volseg.__version__, "Python": platform.python_version()}
    return found | {name: version(name) for name in PACKAGES}


def write_page(path: str | Path, page: Page) -> None:
    """Write the page, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=page.title,
        lead=page.lead,
        summary=_summary(page),
        plots=[_plot(measure, rows, page) for measure, rows in page.plots.items()],
        has_floor=bool(page.floor_means),
        pictures=[
            {"caption": picture.caption, "data": base64.b64encode(picture.png).decode()} for picture in page.pictures
        ],
        **_table(page.cases, page.columns),
        facts=list(page.facts.items()),
    )
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _summary(page: Page) -> dict[str, Any] | None:
    if not page.summary:
        return None
    measures = list(dict.fromkeys(measure for row in page.summary.values() for measure in row))
    rows = [
        {"name": name if not is_floor else f"{name}, floor", "is_floor": is_floor,
         "values": [row.get(measure, "") for measure in measures]}
        for table, is_floor in ((page.summary, False), (page.floor, True))
        for name, row in table.items()
    ]  # fmt: skip
    return {"measures": measures, "rows": rows}


def _table(cases: Sequence[ReportCase], columns: Sequence[str]) -> dict[str, Any]:
    """Columns and cells of the table of cases."""
    names = list(columns or dict.fromkeys(name for case in cases for name in case.values))
    heads = [("case", False), ("warnings", True), *((name, False) for name in names)]
    rows = []
    for case in cases:
        values = [case.values.get(name) for name in names]
        remarks = case.error or " ".join(case.warnings)
        css = "text error" if case.error else "text warning" if case.warnings else "text"
        rows.append(
            [
                {"value": case.name, "text": case.name, "css": ""},
                {"value": remarks, "text": remarks, "css": css},
                *({"value": _number(value), "text": _shown(value), "css": ""} for value in values),
            ]
        )
    return {"columns": [{"name": name, "is_text": is_text} for name, is_text in heads], "rows": rows}


def _plot(measure: str, rows: Mapping[str, str], page: Page) -> dict[str, Any]:
    """A row of dots for each of ``rows``, on one scale."""
    points: dict[str, list[tuple[float, str]]] = {name: [] for name in rows}
    for name, column in rows.items():
        for case in page.cases:
            value = case.values.get(column)
            if _is_number(value):
                points[name].append((value, case.name))
    floors = page.floor_means.get(measure, {})
    values = [value for row in points.values() for value, _ in row]
    values += [value for value in floors.values() if _is_number(value)]
    low, high = min(values, default=0.0), max(values, default=1.0)
    if high - low <= 1e-6 * abs(high):
        low, high = low - 0.5, high + 0.5
    ticks = [float(tick) for tick in MaxNLocator(TICKS).tick_values(low, high)]
    low, high = ticks[0], ticks[-1]

    def x(value: float) -> float:
        return round(LABEL_WIDTH + (PLOT_WIDTH - LABEL_WIDTH - 20) * (value - low) / (high - low), 1)

    drawn = [
        {
            "name": name,
            "y": 16 + ROW_HEIGHT * number,
            "points": [(x(value), f"{case}: {value:.4g}") for value, case in row],
            "mean": x(sum(value for value, _ in row) / len(row)) if row else None,
            "floor": x(floors[name]) if name in floors and _is_number(floors[name]) else None,
        }
        for number, (name, row) in enumerate(points.items())
    ]
    return {
        "measure": measure,
        "width": PLOT_WIDTH,
        "height": ROW_HEIGHT * len(drawn) + 24,
        "ticks": [{"x": x(tick), "text": f"{tick:.6g}"} for tick in ticks],
        "rows": drawn,
    }


def _is_number(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _number(value: float | None) -> str:
    """For sorting; empty cells come last."""
    return "" if value is None or math.isnan(value) else repr(float(value)).replace("inf", "Infinity")


def _shown(value: float | None) -> str:
    if value is None or math.isnan(value):
        return ""
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
