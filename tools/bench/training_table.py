# SPDX-License-Identifier: Apache-2.0
"""Where the time of a training iteration goes, side by side for all bundles: the tables of ``docs/training_speed.md``.

``python -m tools.bench.training_table`` writes them anew from the results files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools import REPOSITORY
from tools.bench.measure import duration
from tools.bench.training_profile import AMP, ITERATION, LOADER, NETWORKS, PARTS, REST
from volseg.storage.files import atomic_path

__all__ = ["profile_tables", "replace_tables"]

TEXT = REPOSITORY / "docs" / "training_speed.md"
BENCHMARKS = REPOSITORY / "docs" / "benchmarks"
TABLES = {"paper": "", "phantom": "_phantom"}


def profile_tables(folder: Path) -> dict[str, str]:
    """Markdown tables by their names: at the paper's size, and of the training on phantoms; a column for each result.

    Args:
        folder: of the results files of :data:`tools.bench.training_profile.PROFILES`.
    """
    tables = {}
    for table, suffix in TABLES.items():
        columns = {}
        for bundle in NETWORKS:
            path = folder / f"{bundle}_training_profile{suffix}.json"
            if path.is_file():
                rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
                columns[NETWORKS[bundle]] = {row["mode"]: row for row in rows}
        lines = [["", *columns], ["---"] * (1 + len(columns))]
        for part in (ITERATION, *PARTS, REST, LOADER, AMP):
            if any(part in rows for rows in columns.values()):
                lines.append([part, *(_cell(rows[part]) if part in rows else "" for rows in columns.values())])
        lines.append(["memory", *(_memory(rows, ITERATION) for rows in columns.values())])
        lines.append(["memory, train_amp.json", *(_memory(rows, AMP) for rows in columns.values())])
        tables[table] = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return tables


def replace_tables(text: str, tables: Mapping[str, str]) -> str:
    """A text with each table between its two marks replaced."""
    for name, table in tables.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}\n\n{table}\n\n{end}{after}"
    return text


def main() -> None:
    """Write the tables from the results files of this checkout."""
    text = replace_tables(TEXT.read_text(encoding="utf-8"), profile_tables(BENCHMARKS))
    with atomic_path(TEXT) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _cell(row: Mapping[str, Any]) -> str:
    share = "" if row["mode"] in (ITERATION, AMP) else f", {100 * row['share']:.1f} %"
    return f"{duration(row['median_s'])}{share}"


def _memory(rows: Mapping[str, Mapping[str, Any]], name: str) -> str:
    return f"{rows[name]['peak_mb'] / 1000:.1f} GB"


if __name__ == "__main__":
    main()
