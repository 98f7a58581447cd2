# SPDX-License-Identifier: Apache-2.0
"""Make the results files that the texts of a bundle quote."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from monai.bundle import ConfigParser
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tools import REPOSITORY
from tools.bundle_run import describe_machine, run_bundle, shown_command
from volseg.errors import UserError
from volseg.label_maps.case_report import MEAN_LABEL
from volseg.registry.manifest import sha256
from volseg.storage.files import write_json

# disjoint from the phantoms that any training sees, which have seed 0
HELD_OUT_SEED = 1
HELD_OUT_CASES = {"training": 0, "validation": 0, "test": 12}
# the key metrics of the bundles' trainings, as TensorBoard files name them, in words
KEY_METRICS = {"val_mean_dice": "Dice", "val_ap75": "AP-75"}
# between two iterations; a validation takes less
BREAK_S = 600
# what metadata may claim of a report's first label
CLAIMED_MEASURES = {"dice": "phantom_mean_dice", "ap75": "phantom_ap75", "ap50": "phantom_ap50",
                    "foreground_dice": "phantom_foreground_dice"}  # fmt: skip


def results(bundle: str = "pdvnet_lung", overlay: str | Sequence[str] = ()) -> None:
    """Train a bundle on its phantoms as ``train.json`` does, score the weights on others, write ``docs/results``.

    The weights in ``models`` stay. The results are ``phantom.json`` (commands, machine, seconds, learning curve,
    summary) and ``phantom_per_case.csv``.

    Args:
        bundle: name of a folder under ``bundles``.
        overlay: a config to lay over ``train.json``, such as ``train_practical``, or several,
            ``train_h,train_second_stage``; their results carry the name, ``phantom_practical.json``.
    """
    root = REPOSITORY / "bundles" / bundle
    if not (root / "configs" / "evaluate.json").is_file():
        raise UserError(f"{root}: no such bundle; name a folder under bundles")
    overlays = [overlay] if isinstance(overlay, str) and overlay else list(overlay)
    for name in overlays:
        if not (root / "configs" / f"{name}.json").is_file():
            raise UserError(f"{root}: no such overlay: {name}; name a file in configs, without .json")
    configs = ["train", *overlays]
    name = "_".join(["phantom", *(o.removeprefix("train_") for o in overlays)])
    folder = root / "docs" / "results"
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        models = scratch / "models"
        # a second stage begins with the weights that are there
        models.mkdir()
        for file in (root / "models").glob("*.*"):
            shutil.copyfile(file, models / file.name)
        trained, weights = _train(root, configs, scratch)
        evaluated = _evaluate(root, configs, scratch, weights)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(scratch / "evaluate" / "per_case.csv", folder / f"{name}_per_case.csv")
        if overlays:
            evaluated.pop("eval_metrics")  # the metadata speaks of train.json
        write_json(folder / f"{name}.json", {"training": trained, **evaluated})
    if overlays:
        plot_learning_curves(folder, root / "docs" / "figures" / "learning_curves.png")


def _train(root: Path, configs: Sequence[str], scratch: Path) -> tuple[dict[str, Any], Path]:
    """Train with phantoms that are made anew, so that the seconds hold for the first use; also the weights' file."""
    models, begun_ns = scratch / "models", time.time_ns()
    started = time.perf_counter()
    overrides = {"output_dir": scratch / "train", "phantom_dir": scratch / "phantom", "ckpt_dir": models,
                 "install": True}  # fmt: skip
    command = _run(root, configs, overrides)
    seconds = time.perf_counter() - started
    # those of before are kept beside as *_released.pt
    written = [
        path
        for path in models.glob("*.pt")
        if path.stat().st_mtime_ns > begun_ns and not path.stem.endswith("_released")
    ]
    # a second stage writes nothing if it does not validate better than the first
    [weights] = written or [_first_stage_weights(root, configs, models)]
    return {
        "command": command,
        "found_better_weights": bool(written),
        "seconds": round(seconds, 1),
        "machine": describe_machine(),
        "weights_file": weights.name,
        "weights": json.loads(weights.with_suffix(".json").read_text(encoding="utf-8")),
        "learning_curve": learning_curve(scratch / "train" / "tensorboard"),
    }, weights


def _first_stage_weights(root: Path, configs: Sequence[str], models: Path) -> Path:
    parser = ConfigParser()
    parser.read_config([str(root / "configs" / f"{name}.json") for name in configs])
    return models / Path(parser.get_parsed_content("weights")).name


def learning_curve(folder: Path) -> dict[str, list[float]]:
    """The key metric of the validations and the epochs they were made after, from a training's TensorBoard files."""
    events = EventAccumulator(str(folder)).Reload()
    [metric] = KEY_METRICS.keys() & set(events.Tags()["scalars"])
    scalars = events.Scalars(metric)
    epochs = [s.step for s in scalars]
    if epochs[:2] == [1, 1]:  # a second stage validates the weights it begins with, which counts as epoch 1 too
        epochs[0] = 0
    return {"epoch": epochs, metric: [round(s.value, 4) for s in scalars]}


def training_course(folder: Path) -> dict[str, Any]:
    """The learning curve of a training and the hours that it took, breaks excluded, from its TensorBoard files."""
    events = EventAccumulator(str(folder)).Reload()
    gaps = np.diff([scalar.wall_time for scalar in events.Scalars("train_loss")])
    return {
        "learning_curve": learning_curve(folder),
        "hours": round(float(gaps[gaps < BREAK_S].sum()) / 3600, 1),
    }


def plot_learning_curves(results_dir: Path, path: Path) -> None:
    """Draw the learning curves of ``train.json`` and of the overlays that have results files."""
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for file in sorted(results_dir.glob("phantom*.json")):
        training = json.loads(file.read_text(encoding="utf-8"))["training"]
        curve = training.get("learning_curve")
        if curve is None:  # written before curves were recorded
            continue
        [metric] = KEY_METRICS.keys() & curve.keys()
        last_config = re.findall(r"\w+\.json", training["command"])[-1]  # tells a training from others
        axes.plot(curve["epoch"], curve[metric], marker="o", label=last_config)
        axes.set(xlabel="epoch", ylabel=f"{KEY_METRICS[metric]} on validation phantoms", ylim=(0, 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _evaluate(root: Path, configs: Sequence[str], scratch: Path, weights: Path) -> dict[str, Any]:
    overrides = {
        "output_dir": scratch / "evaluate",
        "weights": weights,
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
            "weights_sha256": sha256(weights),
            "data": f"{HELD_OUT_CASES['test']} held-out phantoms, seed {HELD_OUT_SEED}, scored on their own grid",
            "machine": describe_machine(),
        },
        "eval_metrics": {
            claim: round(overall[measure]["mean"], 3)
            for measure, claim in CLAIMED_MEASURES.items()
            if measure in overall
        },
        "summary": summary,
    }


def _run(root: Path, configs: Sequence[str], overrides: dict[str, Any]) -> str:
    """Run configs with overrides; return the command."""
    run_bundle(root, configs, overrides)
    return shown_command(root, configs, overrides)
