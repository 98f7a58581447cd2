# SPDX-License-Identifier: Apache-2.0
"""Runs that are broken: a sample here; ``python -m tools faults`` breaks hundreds."""

from __future__ import annotations

import json
import subprocess
import sys

from tools import REPOSITORY
from tools.bench.tables import fault_table, fuzz_table, replace_tables
from tools.faults import RESULTS as FAULTS

RESULTS = FAULTS.parent

SAMPLE = """
import json, sys
from pathlib import Path
from tools.faults import OPERATIONS, Fault, break_run, prepare, run_unbroken
folder = Path(sys.argv[1])
prepare(folder / "input")
unbroken = run_unbroken(OPERATIONS["inference"], folder)
for kind in json.loads(sys.argv[2]):
    entry = break_run(OPERATIONS["inference"], Fault(kind, 0.6), folder, unbroken)
    print(json.dumps(entry))
    assert not entry["failures"], entry
# what the harness would find: a file left over, one that differs, one that is missing
(folder / "output" / ".left.unfinished").touch()
(folder / "output" / "statistics.json").write_text("[]")
(folder / "output" / "report.html").unlink()
from tools.faults import _differences
assert _differences(folder / "output", unbroken) == [
    "report.html is missing", ".left.unfinished is left over", "statistics.json differs",
]
"""


def test_an_inference_that_was_broken_ends_as_an_unbroken_one(tmp_path):
    kinds = '["killed", "interrupted", "write fails", "disk is full"]'
    # a process of its own: it forks, and this one may have threads
    process = subprocess.run(
        [sys.executable, "-c", SAMPLE, tmp_path, kinds], cwd=REPOSITORY, capture_output=True, text=True, check=False,
        timeout=600,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr + process.stdout


def test_the_page_has_the_results():
    results = {name: json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")) for name in ("faults", "fuzz")}
    page = (REPOSITORY / "docs" / "faults.md").read_text(encoding="utf-8")
    tables = {"faults": fault_table(results["faults"]), "fuzz": fuzz_table(results["fuzz"])}
    assert replace_tables(page, tables) == page
    assert f"{results['fuzz']['minutes']:.0f} minutes" in page
    injections = results["faults"]["injections"]
    assert f"| all | {len(injections)} |" in page
    assert results["faults"]["failures"] == [entry for entry in injections if entry["failures"]] == []
