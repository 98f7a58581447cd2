# SPDX-License-Identifier: Apache-2.0
"""What the results files promise, and how they are made."""

from __future__ import annotations

import json
import sys

import pytest

from tools import REPOSITORY, bench

FOLDER = REPOSITORY / "docs" / "benchmarks"
ROWS = [
    {"mode": "eager", "median_s": 8.0, "min_s": 7.0, "max_s": 9.5, "n": 3, "ratio": 1.0, "peak_mb": 2000},
    {"mode": "fast", "median_s": 2.0, "min_s": 1.5, "max_s": 2.5, "n": 3, "ratio": 4.0, "peak_mb": 1500},
]
RESULT = {
    "title": "A network",
    "input": "noise",
    "weights": "random",
    "machine": {"processor": "P", "cores": 2, "threads": 2, "memory_gib": 8, "packages": {"torch": "1"}, "flags": []},
    "command": "python -m tools bench",
    "date": "2026-01-01",
    "rows": ROWS,
}


def committed(name):
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"{path.relative_to(REPOSITORY)} does not exist: python -m tools bench writes it")
    return json.loads(path.read_text(encoding="utf-8"))


def rows_of(result):
    return {row["mode"]: row for row in result["rows"]}


def test_the_network_is_fast_and_right():
    result = committed("pdvnet_lung_network.json")
    rows = rows_of(result)
    assert "bf16" in " ".join(result["machine"]["flags"]), "measured on a CPU without bfloat16"
    assert rows["openvino"]["ratio"] >= 3
    assert rows["openvino"]["agreement"] >= 0.999
    assert rows["bf16"]["agreement"] >= 0.999
    assert rows["openvino"]["peak_mb"] <= rows["eager"]["peak_mb"]
    assert rows["openvino"]["added_mb"] <= 1500


def test_the_pipeline_is_fast_and_small():
    row = rows_of(committed("pdvnet_lung_end_to_end.json"))["auto"]
    assert row["median_s"] <= 20
    assert row["peak_mb"] < 3000


def test_a_phantom_takes_less_than_five_seconds():
    assert rows_of(committed("chest_ct_phantom.json"))["chest_ct"]["median_s"] < 5


def test_checkpointing_saves_memory_and_the_model_card_says_how_much():
    rows = rows_of(committed("pdvnet_lung_training.json"))
    assert rows["checkpointing"]["peak_mb"] < 0.7 * rows["plain"]["peak_mb"]
    card = " ".join((REPOSITORY / "bundles" / "pdvnet_lung" / "docs" / "README.md").read_text(encoding="utf-8").split())
    plain, less = (f"{row['median_s']:.0f} s and {row['peak_mb'] / 1000:.1f} GB" for row in rows.values())
    assert f"takes {plain} of memory there, with `--checkpointing True` {less};" in card
    whole = rows_of(committed("pdvnet_lung_end_to_end.json"))["auto"]
    assert f"takes {whole['median_s']:.0f} s and {whole['peak_mb'] / 1000:.1f} GB from file to file" in card


def test_the_table_is_made_from_the_results():
    files = sorted(FOLDER.glob("*.json"))
    if not files:
        pytest.skip("docs/benchmarks holds no results: python -m tools bench writes them")
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for path in files:
        assert bench.table(json.loads(path.read_text(encoding="utf-8"))["rows"]) in text
        assert path.with_suffix(".png").exists()


def test_steps_take_turns():
    order = []
    seconds = bench.interleave({name: lambda name=name: order.append(name) for name in "ab"}, repetitions=2)
    assert order == ["a", "b", "a", "b", "a", "b"]
    assert [len(runs) for runs in seconds.values()] == [3, 3]


def test_summary_leaves_out_the_warm_up():
    assert bench.summary([100.0, 3.0, 1.0, 2.0], [50.0, 8.0, 9.0, 7.0]) == {
        "median_s": 2.0, "min_s": 1.0, "max_s": 3.0, "n": 3, "ratio": 4.0,
    }  # fmt: skip


def test_any_result_of_the_form_gets_a_table_and_a_plot(tmp_path):
    bench.write_result(tmp_path / "a_network.json", RESULT)
    bench.write_summary(tmp_path)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| mode | median (min to max, n) | ratio | peak |" in text
    assert "| fast | 2.00 s (1.50 to 2.50, 3) | 4.0 | 1.50 GB |" in text
    assert "![A network](a_network.png)" in text
    assert (tmp_path / "a_network.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*.tmp"))


def test_memory_of_children_counts():
    child = "b = bytearray(150_000_000); import time; time.sleep(0.5)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert 150 < bench._peak_of([sys.executable, "-c", parent], {}) < 400


def test_a_failing_command_is_quoted():
    with pytest.raises(RuntimeError, match=r"ended with 3:\nno weights"):
        bench._peak_of([sys.executable, "-c", "print('no weights'); raise SystemExit(3)"], {})
