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

from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tools import REPOSITORY
from tools.machine import describe_machine
from volseg.errors import UserError
from volseg.files import write_json
from volseg.metrics.case_report import MEAN_LABEL

__all__ = ["results"]

# disjoint from the phantoms that any training sees, which have seed 0
HELD_OUT_SEED = 1
HELD_OUT_CASES = {"training": 0, "validation": 0, "test": 12}


def results(bundle: str = "pdvnet_lung", training: bool = True, overlay: str = "") -> None:
    """Train a bundle on its phantoms as ``train.json`` does, score the weights on others, write ``docs/results``.

    The weights in ``models`` are replaced: what a bundle ships is what this command writes. The results are
    ``phantom.json`` (commands, machine, seconds, learning curve, summary) and ``phantom_per_case.csv``.

    Args:
        bundle: name of a folder under ``bundles``.
        training: ``False`` scores the weights that are there and keeps what the results say of their training.
        overlay: a config to lay over ``train.json``, such as ``train_practical``; its results carry its name,
            ``phantom_practical.json``, and its weights are not kept.
    """
    root = REPOSITORY / "bundles" / bundle
    if not (root / "configs" / "evaluate.json").is_file():
        raise UserError(f"{root}: no such bundle. Received: {bundle}. Give the name of a folder under bundles.")
    configs = ["train", overlay] if overlay else ["train"]
    if not (root / "configs" / f"{configs[-1]}.json").is_file():
        raise UserError(f"{root}: no such overlay. Received: {overlay}. Give the name of a file in configs.")
    name = f"phantom_{overlay.removeprefix('train_')}" if overlay else "phantom"
    folder = root / "docs" / "results"
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        models = scratch / "models" if overlay else root / "models"
        if training:
            trained = _train(root, configs, scratch)
            for file in () if overlay else ("model.pt", "model.json"):
                models.mkdir(exist_ok=True)
                shutil.copyfile(scratch / "models" / file, models / file)
        else:
            trained = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))["training"]
        evaluated = _evaluate(root, configs, scratch, models)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(scratch / "evaluate" / "per_case.csv", folder / f"{name}_per_case.csv")
        if overlay:
            evaluated.pop("eval_metrics")  # the metadata speaks of train.json
        write_json(folder / f"{name}.json", {"training": trained, **evaluated})
    if overlay:
        plot_learning_curves(folder, root / "docs" / "figures" / "learning_curves.png")


def _train(root: Path, configs: Sequence[str], scratch: Path) -> dict[str, Any]:
    """Train with phantoms that are made anew, so that the seconds hold for the first use."""
    started = time.perf_counter()
    overrides = {"output_dir": scratch / "train", "phantom_dir": scratch / "phantom", "ckpt_dir": scratch / "models"}
    command = _run(root, configs, overrides)
    seconds = time.perf_counter() - started
    return {
        "command": command,
        "seconds": round(seconds, 1),
        "machine": describe_machine(),
        "weights": json.loads((scratch / "models" / "model.json").read_text(encoding="utf-8")),
        "learning_curve": _learning_curve(scratch / "train" / "tensorboard"),
    }


def _learning_curve(folder: Path) -> dict[str, list[float]]:
    """Validation Dice and the epochs it was taken after, from a training's TensorBoard files."""
    events = EventAccumulator(str(folder)).Reload()
    scalars = events.Scalars("val_mean_dice")
    return {"epoch": [s.step for s in scalars], "val_mean_dice": [round(s.value, 4) for s in scalars]}


def plot_learning_curves(results_dir: Path, path: Path) -> None:
    """Draw the learning curves of ``train.json`` and of the overlays that have results files."""
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for file in sorted(results_dir.glob("phantom*.json")):
        curve = json.loads(file.read_text(encoding="utf-8"))["training"].get("learning_curve")
        if curve is None:  # written before curves were recorded
            continue
        axes.plot(
            curve["epoch"], curve["val_mean_dice"], marker="o", label=file.stem.replace("phantom", "train") + ".json"
        )
    axes.set(xlabel="epoch", ylabel="Dice on validation phantoms", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _evaluate(root: Path, configs: Sequence[str], scratch: Path, models: Path) -> dict[str, Any]:
    overrides = {
        "output_dir": scratch / "evaluate",
        "ckpt_dir": models,
        "phantom_dir": scratch / "held_out",
        "phantom_cases": HELD_OUT_CASES,
        "phantom_seed": HELD_OUT_SEED,
    }
    command = _run(root, [*configs, "evaluate"], overrides)
    summary = json.loads((scratch / "evaluate" / "summary.json").read_text(encoding="utf-8"))["labels"]
    overall = summary.get(MEAN_LABEL) or next(iter(summary.values()))  # an organ comes before its parts
    return {
        "evaluation": {
            "command": command,
            "weights_sha256": hashlib.sha256((models / "model.pt").read_bytes()).hexdigest(),
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
