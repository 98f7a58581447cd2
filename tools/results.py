# SPDX-License-Identifier: Apache-2.0
"""Make the results files that the texts of a bundle quote."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.machine import describe_machine
from volseg.errors import UserError
from volseg.files import write_json

__all__ = ["results"]

REPOSITORY = Path(__file__).resolve().parents[1]
# disjoint from the phantoms that any training sees, which have seed 0
HELD_OUT_SEED = 1
HELD_OUT_CASES = {"training": 0, "validation": 0, "test": 12}


def results(bundle: str = "pdvnet_lung", training: bool = True) -> None:
    """Train a bundle on its phantoms as ``train.json`` does, evaluate it and the shipped weights, write the results.

    Writes ``docs/results`` of the bundle: ``phantom_training.json`` (what ``train.json`` reaches without data, and how
    long it takes) and ``demonstration_weights.json`` (the weights in ``models/model.pt``), with a CSV of every case.

    Args:
        bundle: name of a folder under ``bundles``.
        training: ``False`` evaluates the shipped weights only.
    """
    root = REPOSITORY / "bundles" / bundle
    if not (root / "configs" / "evaluate.json").is_file():
        raise UserError(f"{root}: no such bundle. Received: {bundle}. Give the name of a folder under bundles.")
    with tempfile.TemporaryDirectory() as scratch:
        if training:
            _train_and_evaluate(root, Path(scratch))
        _evaluate_shipped_weights(root, Path(scratch))


def _train_and_evaluate(root: Path, scratch: Path) -> None:
    overrides = {"output_dir": scratch / "train", "ckpt_dir": scratch, "phantom_dir": scratch / "phantom"}
    started = time.perf_counter()
    command = _run(root, ["train"], overrides)
    seconds = time.perf_counter() - started
    content = _evaluate(root, scratch, scratch / "model.pt", root / "docs/results/phantom_training_per_case.csv")
    record = json.loads((scratch / "model.json").read_text())
    write_json(
        root / "docs/results/phantom_training.json",
        {"training": {"command": command, "seconds": round(seconds, 1), **record}, **content},
    )


def _evaluate_shipped_weights(root: Path, scratch: Path) -> None:
    weights = root / "models/model.pt"
    content = _evaluate(root, scratch, weights, root / "docs/results/demonstration_weights_per_case.csv")
    content["weights"] = json.loads(weights.with_suffix(".json").read_text())
    content["eval_metrics"] = {"mean_dice": round(content["summary"]["mean"]["dice"]["mean"], 3)}
    write_json(root / "docs/results/demonstration_weights.json", content)


def _evaluate(root: Path, scratch: Path, weights: Path, csv: Path) -> dict[str, Any]:
    overrides = {
        "weights": weights,
        "output_dir": scratch / "evaluate",
        "phantom_dir": scratch / "held_out",
        "phantom_cases": HELD_OUT_CASES,
        "phantom_seed": HELD_OUT_SEED,
    }
    command = _run(root, ["train", "evaluate"], overrides)
    csv.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(scratch / "evaluate" / "per_case.csv", csv)
    return {
        "data": f"{HELD_OUT_CASES['test']} held-out phantoms, seed {HELD_OUT_SEED}, scored on their own grid",
        "command": command,
        "machine": describe_machine(),
        "summary": json.loads((scratch / "evaluate" / "summary.json").read_text()),
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
