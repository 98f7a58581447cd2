# SPDX-License-Identifier: Apache-2.0
"""Make the results files that the texts of a bundle quote."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools import REPOSITORY
from tools.machine import describe_machine
from volseg.errors import UserError
from volseg.files import write_json
from volseg.metrics.case_report import MEAN_LABEL

__all__ = ["results"]

# disjoint from the phantoms that any training sees, which have seed 0
HELD_OUT_SEED = 1
HELD_OUT_CASES = {"training": 0, "validation": 0, "test": 12}


def results(bundle: str = "pdvnet_lung", training: bool = True) -> None:
    """Train a bundle on its phantoms as ``train.json`` does, score the weights on others, write ``docs/results``.

    The weights in ``models`` are replaced: what a bundle ships is what this command writes. The results are
    ``phantom.json`` (commands, machine, seconds, summary) and ``phantom_per_case.csv``.

    Args:
        bundle: name of a folder under ``bundles``.
        training: ``False`` scores the weights that are there and keeps what the results say of their training.
    """
    root = REPOSITORY / "bundles" / bundle
    if not (root / "configs" / "evaluate.json").is_file():
        raise UserError(f"{root}: no such bundle. Received: {bundle}. Give the name of a folder under bundles.")
    file = root / "docs" / "results" / "phantom.json"
    with tempfile.TemporaryDirectory() as scratch:
        trained = _train(root, Path(scratch)) if training else json.loads(file.read_text(encoding="utf-8"))["training"]
        write_json(file, {"training": trained, **_evaluate(root, Path(scratch))})


def _train(root: Path, scratch: Path) -> dict[str, Any]:
    """Train, with phantoms that are made anew, so that the seconds hold for the first use, and ship the weights."""
    started = time.perf_counter()
    overrides = {"output_dir": scratch / "train", "phantom_dir": scratch / "phantom", "ckpt_dir": scratch / "models"}
    command = _run(root, ["train"], overrides)
    seconds = time.perf_counter() - started
    for name in ("model.pt", "model.json"):
        shutil.copyfile(scratch / "models" / name, root / "models" / name)
    return {
        "command": command,
        "seconds": round(seconds, 1),
        "machine": describe_machine(),
        "weights": json.loads((root / "models" / "model.json").read_text(encoding="utf-8")),
    }


def _evaluate(root: Path, scratch: Path) -> dict[str, Any]:
    overrides = {
        "output_dir": scratch / "evaluate",
        "phantom_dir": scratch / "held_out",
        "phantom_cases": HELD_OUT_CASES,
        "phantom_seed": HELD_OUT_SEED,
    }
    command = _run(root, ["train", "evaluate"], overrides)
    destination = root / "docs" / "results"
    destination.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(scratch / "evaluate" / "per_case.csv", destination / "phantom_per_case.csv")
    summary = json.loads((scratch / "evaluate" / "summary.json").read_text(encoding="utf-8"))["labels"]
    overall = summary.get(MEAN_LABEL) or next(iter(summary.values()))  # an organ comes before its parts
    return {
        "evaluation": {
            "command": command,
            "weights_sha256": hashlib.sha256((root / "models" / "model.pt").read_bytes()).hexdigest(),
            "data": f"{HELD_OUT_CASES['test']} held-out phantoms, seed {HELD_OUT_SEED}, scored on their own grid",
            "machine": describe_machine(),
        },
        "eval_metrics": {"phantom_mean_dice": round(overall["dice"]["mean"], 3)},
        "summary": summary,
    }


def _run(root: Path, configs: Sequence[str], overrides: dict[str, Any]) -> str:
    """Run configs of a bundle with overrides; the command as a reader would type it, without this machine's folders."""
    files = [f"{root / 'configs' / name}.json" for name in configs]
    arguments = [part for key, value in overrides.items() for part in (f"--{key}", str(value))]
    command = ["-m", "monai.bundle", "run", "--config_file", str(files), *arguments]
    subprocess.run([sys.executable, *command], check=True, cwd=REPOSITORY)
    shown = [f for key, value in overrides.items() if not isinstance(value, Path) for f in (f"--{key}", f'"{value}"')]
    names = [str(Path(f).relative_to(REPOSITORY)) for f in files]
    return " ".join(["python -m monai.bundle run --config_file", f'"{names}"', *shown])
