# SPDX-License-Identifier: Apache-2.0
"""The table of what a user gains follows from the results files."""

from __future__ import annotations

import json
from pathlib import Path

from tools.bench.report import GAINS, summary_table

FOLDER = Path(__file__).parents[2] / "docs" / "benchmarks"


def test_the_fastest_engine_stands_beside_the_usual_way():
    rows = [
        {"mode": "eager", "median_s": 4.0, "ratio": 1.0, "peak_mb": 2000},
        {"mode": "bf16", "median_s": 2.0, "ratio": 2.0, "peak_mb": 1000},
        {"mode": "openvino", "median_s": 0.5, "ratio": 8.1, "peak_mb": 1500},
    ]
    line = summary_table({"pdvnet_lung_network": {"rows": rows}}).splitlines()[-1]
    assert line == f"| {GAINS[0].task} | eager: 4.00 s | openvino: 500 ms | 8.1 | 2.0 GB to 1.5 GB |"


def test_nothing_measured_is_no_table():
    assert summary_table({}) == ""


def test_every_gain_is_measured_and_on_the_page():
    table = summary_table({path.stem: json.loads(path.read_text("utf-8")) for path in FOLDER.glob("*.json")})
    assert len(table.splitlines()) == 2 + len(GAINS)
    assert table in (FOLDER / "README.md").read_text(encoding="utf-8")
