# SPDX-License-Identifier: Apache-2.0
"""What ``vnet_prostate`` is worth on patients: its released weights, and its recipes trained on a few of them."""

from __future__ import annotations

import csv
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from vnet_prostate.data import varied_datalist

from tools import REPOSITORY
from tools.bundle_run import describe_machine, run_bundle
from volseg.data.datalist import rank_cases, write_datalist
from volseg.errors import UserError
from volseg.registry.manifest import sha256
from volseg.storage.files import write_json

__all__ = ["promise12_subset"]

BUNDLE = REPOSITORY / "bundles" / "vnet_prostate"
FLOOR_PHANTOMS = 200
# cases of BIDMC and some of Hong Kong were scanned with an endorectal coil
COIL = {*range(13), *range(38, 46)}
TEST_CASES, VALIDATION_CASES = {"endorectal_coil": 2, "no_coil": 3}, 1
# 1,500 iterations on the grid that the released weights learnt on
GRID = {"spacing_mm": [2.67, 2.67, 3.0], "spatial_size": [48, 48, 32]}
SAME = {**GRID, "max_epochs": 250, "val_interval": 10, "amp": True}
NARROW = {"channels": [8, 16, 32, 48, 96]}
RECIPES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "the paper's": (["train"], {**SAME, **NARROW}),
    "practical": (["train", "train_practical"], {**SAME, **NARROW}),
    "fine-tuning": (["train", "train_practical", "finetune"], SAME),
}


def promise12_subset(cases: str, recipes: Sequence[str] = tuple(RECIPES)) -> None:
    """Score the released weights on patients, train on 13 of them, and write ``docs/results/promise12_subset.json``.

    Args:
        cases: folder of PROMISE12 cases as ``trainNN_image.nii.gz`` and ``trainNN_label.nii.gz``.
        recipes: names of those to train; of others the results keep what they say. One that this command trained before
            is scored again, not trained.
    """
    if unknown := set(recipes) - set(RECIPES):
        raise UserError(f"recipes must be among {', '.join(RECIPES)}, got {', '.join(sorted(unknown))}")
    pairs = _pairs(Path(cases))
    results = BUNDLE / "docs" / "results"
    weights = BUNDLE / "models" / "model.pt"
    scratch = BUNDLE / "output" / "promise12_subset"
    released, floor = _score_released(pairs, scratch)
    shutil.copyfile(scratch / "released" / "per_case.csv", results / "promise12_subset_per_case.csv")
    known = json.loads((results / "promise12_subset.json").read_text(encoding="utf-8"))["recipes"]
    known |= _train_recipes(pairs, scratch, recipes)
    tested = [value for number, value in _dice(scratch / "released").items() if number in known["splits"]["test"]]
    known["released weights"] = {"dice": _spread(tested)}
    write_json(
        results / "promise12_subset.json",
        {
            "data": f"{len(pairs)} training cases of PROMISE12 (Case00 to Case45) with in-plane resolution halved and "
            "spacings assumed per site; none was used in training the released weights",
            "command": "python -m tools promise12_subset CASES",
            "weights": json.loads(weights.with_suffix(".json").read_text(encoding="utf-8")),
            "weights_sha256": sha256(weights),
            "eval_metrics": {"promise12_subset_mean_dice": round(released["all"]["mean"], 3)},
            "dice": released,
            "floor_dice": floor,
            "recipes": known,
        },
    )


def _pairs(folder: Path) -> dict[str, dict[str, str]]:
    """Image and label by number of the case, ``00`` and others."""
    images = {path.name[5:7]: path for path in sorted(folder.glob("train*_image.nii.gz"))}
    if not images:
        raise UserError(f"{folder}: no cases found, expected trainNN_image.nii.gz with trainNN_label.nii.gz")
    return {
        number: {"image": str(path.resolve()), "label": str(path.resolve()).replace("_image", "_label")}
        for number, path in images.items()
    }


def _score_released(pairs: Mapping[str, Mapping[str, str]], scratch: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Dice of the released weights and of the mean gland of phantoms, by group."""
    phantoms = varied_datalist("", "training", str(scratch / "phantoms"), {"training": FLOOR_PHANTOMS}, (112, 112, 26))
    write_datalist(scratch / "data", {"training": phantoms, "test": list(pairs.values())})
    overrides = {"dataset_dir": scratch / "data", "output_dir": scratch / "released"}
    run_bundle(BUNDLE, ["train", "evaluate"], overrides)
    return _by_group(_dice(scratch / "released")), _by_group(_dice(scratch / "released" / "floor"))


def _train_recipes(pairs: Mapping[str, Mapping[str, str]], scratch: Path, names: Sequence[str]) -> dict[str, Any]:
    """Train recipes on the same 11 cases, validate them on 2, and score them on the other 5."""
    splits: dict[str, list[str]] = {"training": [], "validation": [], "test": []}
    for group, numbers in _groups(pairs).items():
        ranked, tests = rank_cases(numbers, 0), TEST_CASES[group]
        splits["test"] += ranked[:tests]
        splits["validation"] += ranked[tests : tests + VALIDATION_CASES]
        splits["training"] += ranked[tests + VALIDATION_CASES :]
    data = scratch / "patients"
    write_datalist(data, {split: [pairs[number] for number in numbers] for split, numbers in splits.items()})
    recipes: dict[str, Any] = {"splits": splits}
    for name in names:
        configs, overrides = RECIPES[name]
        folder = scratch / name.replace(" ", "_")
        training = folder / "training.json"
        if not training.is_file():
            _train_recipe(folder, configs, overrides, data)
        score = {"dataset_dir": data, "output_dir": folder / "scores", "weights": folder / "train" / "model.pt"}
        run_bundle(BUNDLE, ["train", "evaluate"], score)
        dice = _spread(list(_dice(folder / "scores").values()))
        recipes[name] = {**json.loads(training.read_text(encoding="utf-8")), "dice": dice}
        floor = {
            number: dice for number, dice in _dice(folder / "scores" / "floor").items() if number in splits["test"]
        }
        recipes["floor"] = {"dice": _spread(list(floor.values()))}
    return recipes


def _train_recipe(folder: Path, configs: Sequence[str], overrides: Mapping[str, Any], data: Path) -> None:
    """Train anew in a folder, and note how in its ``training.json``."""
    shutil.rmtree(folder, ignore_errors=True)
    started = time.perf_counter()
    given = {**overrides, "dataset_dir": data, "output_dir": folder / "train", "ckpt_dir": folder / "models"}
    run_bundle(BUNDLE, configs, given)
    seconds = round(time.perf_counter() - started)
    told = {"configs": list(configs), "overrides": dict(overrides), "seconds": seconds, "machine": describe_machine()}
    write_json(folder / "training.json", told)


def _dice(folder: Path) -> dict[str, float]:
    """Dice of the whole gland by number of the case."""
    with (folder / "per_case.csv").open(encoding="utf-8") as file:
        return {row["case"][5:7]: float(row["dice"]) for row in csv.DictReader(file) if row["label"] == "whole"}


def _groups(numbers: Mapping[str, Any]) -> dict[str, list[str]]:
    coil = [number for number in numbers if int(number) in COIL]
    return {"endorectal_coil": coil, "no_coil": [number for number in numbers if number not in coil]}


def _by_group(dice: Mapping[str, float]) -> dict[str, Any]:
    groups = {"all": list(dice), **_groups(dice)}
    return {name: _spread([dice[number] for number in numbers]) for name, numbers in groups.items()}


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "n": len(values),
        "mean": round(mean(values), 4),
        "std": round(stdev(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
    }
