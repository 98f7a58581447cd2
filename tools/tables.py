# SPDX-License-Identifier: Apache-2.0
"""``python -m tools tables``: train and score the methods of a paper's table, and write it next to the paper's own."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from scipy.stats import wilcoxon

from tools import REPOSITORY
from tools.bundle_run import describe_machine, run_bundle, shown_command
from volseg.data.datalist import DATALIST_NAME, load_datalist
from volseg.errors import UserError
from volseg.label_maps.case_report import MEAN_LABEL
from volseg.registry.manifest import sha256
from volseg.storage.files import atomic_path, write_json

__all__ = ["TABLES", "Column", "Method", "Table", "compare", "holm", "tables"]

FLOOR = "floor, never looks at the image"


@dataclass(frozen=True)
class Column:
    """A measure of one label, or of :data:`MEAN_LABEL`, the case's mean over its labels."""

    heading: str
    label: str
    measure: str
    digits: int = 3


@dataclass(frozen=True)
class Method:
    """A row: what differs from ``train.json``.

    Attributes:
        name: as the table says it.
        overlays: configs laid over ``train.json``.
        options: overrides of training and scoring.
        scoring: overrides of scoring alone; methods that differ only here share their training.
        after: name of the method whose weights the training begins with.
    """

    name: str
    overlays: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    scoring: Mapping[str, Any] = field(default_factory=dict)
    after: str = ""


@dataclass(frozen=True)
class Table:
    """A table of a paper: every method is compared with the first one.

    Attributes:
        phantom: overrides without a data set, for minutes on two CPU cores; the same for all methods.
        published: the paper's own values by row and column.
        source: of these values.
        note: what readers of a table of phantoms must know besides.
    """

    columns: tuple[Column, ...]
    methods: tuple[Method, ...]
    phantom: Mapping[str, Any]
    published: Mapping[str, Mapping[str, str]]
    source: str
    note: str = ""


PAPER_LOBES = ("RUL", "RML", "RLL", "LUL", "LLL")
TABLES = {
    "pdvnet_lung": Table(
        columns=(*(Column(lobe, lobe, "dice") for lobe in PAPER_LOBES), Column("all lobes", MEAN_LABEL, "dice")),
        methods=(
            Method("PDV-Net"),
            Method("3D dense V-Net", ("train_dense_vnet",)),
            Method("2D U-Net", ("train_unet_2d",)),
        ),
        phantom={
            "spatial_size": [64, 64, 48],
            "max_epochs": 12,
            "phantom_cases": {"training": 32, "validation": 4, "test": 12},
        },
        published={
            "PDV-Net": {"all lobes": "0.939 +- 0.020"},
            "3D dense V-Net": {
                "RUL": "0.929 +- 0.036",
                "RML": "0.873 +- 0.058",
                "RLL": "0.951 +- 0.018",
                "LUL": "0.958 +- 0.020",
                "LLL": "0.949 +- 0.041",
                "all lobes": "0.932",
            },
            "2D U-Net": {
                "RUL": "0.908 +- 0.049",
                "RML": "0.844 +- 0.076",
                "RLL": "0.940 +- 0.054",
                "LUL": "0.959 +- 0.042",
                "LLL": "0.949 +- 0.056",
                "all lobes": "0.920 +- 0.043",
            },
        },
        source="Dice of 84 LIDC cases with private references: that of PDV-Net from the abstract, those of the "
        "baselines from a second-hand copy of Table 1, in which a standard deviation is cut off",
    ),
    "vnet_prostate": Table(
        columns=(
            Column("Dice", "whole", "dice"),
            Column("Hausdorff distance, mm (ours: 95 %)", "whole", "hausdorff_95_mm", 2),
        ),
        methods=(Method("V-Net, Dice loss"), Method("V-Net, weighted logistic loss", ("train_logistic",))),
        phantom={  # a narrow network, which learns slowly at the paper's rate
            "channels": [4, 8, 16, 32, 64],
            "spacing_mm": [4.0, 4.0, 3.0],
            "spatial_size": [32, 32, 32],
            "learning_rate": 0.0016,
            "max_epochs": 24,
            "phantom_cases": {"training": 40, "validation": 4, "test": 12},
        },
        published={
            "V-Net, Dice loss": {
                "Dice": "0.869 +- 0.033",
                "Hausdorff distance, mm (ours: 95 %)": "5.71 +- 1.20",
            },
            "V-Net, weighted logistic loss": {
                "Dice": "0.739 +- 0.088",
                "Hausdorff distance, mm (ours: 95 %)": "10.55 +- 5.38",
            },
        },
        source="Table 2, the 30 test cases of PROMISE12",
        note="The learning rate is four times that of train.json, because validation of the Dice loss hardly rose at "
        "that one with so narrow a network; it was not tuned for the logistic loss.",
    ),
    "resunet_mitoem": Table(
        columns=(
            Column("AP-75", "instances", "ap75"),
            Column("AP-50", "instances", "ap50"),
            Column("foreground Dice", "instances", "foreground_dice"),
        ),
        methods=(
            Method("Res-UNet-H", ("train_h",)),
            Method("Res-UNet-R, one decoder"),
            Method("Res-UNet-H, plain residual blocks", ("train_h",), {"network_def#block": "residual"}),
            Method("Res-UNet-H, watershed", ("train_h",), scoring={"decoding": "watershed"}),
            Method("Res-UNet-H, second stage", ("train_h", "train_second_stage"), after="Res-UNet-H"),
            Method("Res-UNet-R, second stage", ("train_second_stage",), after="Res-UNet-R, one decoder"),
        ),
        phantom={
            "decoding": "connected_components",
            "max_epochs": 6,
            "epoch_iterations": 50,
            "phantom_cases": {"training": 16, "validation": 3, "test": 12},
        },
        published={
            "Res-UNet-H": {"AP-75": "0.816 (human)"},
            "Res-UNet-R, one decoder": {"AP-75": "0.783 (human)"},
            "Res-UNet-H, second stage": {"AP-75": "0.828 (human)"},
            "Res-UNet-R, second stage": {"AP-75": "0.917 (rat)"},
        },
        source="validation volumes of MitoEM: those with a second stage from the authors' repository, the others from "
        "a second-hand transcription of the paper",
    ),
}


def tables(
    name: str,
    dataset_dir: str = "",
    split: str = "test",
    overrides: Mapping[str, Any] | None = None,
    output_dir: str = "",
    work_dir: str = "",
) -> None:
    """Train and score the methods of a paper's table under one recipe; write ``table.json`` and ``table.md``.

    What was trained or scored before with the same configs, settings and data list is not done again; a training that
    was stopped goes on.

    Args:
        name: bundle under ``bundles``.
        dataset_dir: folder written by ``prepare_data.json``; without it, a short recipe runs on phantoms.
        split: cases to score, ``test`` or ``validation``.
        overrides: of every training and scoring, such as ``{'max_epochs':20}``.
        output_dir: folder of the table; ``bundles/NAME/docs/results`` by default.
        work_dir: folder of trainings and scores; ``bundles/NAME/output/tables`` by default.

    Raises:
        UserError: there is no such bundle or data set, or a training or scoring failed.
    """
    if name not in TABLES:
        raise UserError(f"no table of {name}; name one of {', '.join(TABLES)}")
    if not isinstance(overrides or {}, Mapping):
        raise UserError(f"overrides must be a dictionary such as \"{{'max_epochs':20}}\", got {overrides!r}")
    root, table = REPOSITORY / "bundles" / name, TABLES[name]
    scratch = Path(work_dir).absolute() if work_dir else root / "output" / "tables"
    common = dict(overrides or {})
    if dataset_dir:
        load_datalist(dataset_dir, split)
        common["dataset_dir"] = str(Path(dataset_dir).expanduser().absolute())
    else:
        common = {**table.phantom, "phantom_dir": str(scratch / "phantoms"), **common}
    runs = [_Run(root, scratch, table, method, common, split) for method in table.methods]
    for run in runs:
        run.train()
        run.score()
    folder = Path(output_dir) if output_dir else root / "docs" / "results"
    result = {
        "command": _command(name, dataset_dir, split, overrides),
        "data": _describe_data(dataset_dir, split, common),
        "settings": {key: value for key, value in common.items() if key not in ("dataset_dir", "phantom_dir")},
        "machine": describe_machine(),
        **_evidence(table, runs),
        "published": {"source": table.source, "rows": table.published},
    }
    write_json(folder / "table.json", result)
    with atomic_path(folder / "table.md") as temporary:
        temporary.write_text(_markdown(table, result), encoding="utf-8")


def _command(name: str, dataset_dir: str, split: str, overrides: Mapping[str, Any] | None) -> str:
    parts = ["python -m tools tables", name]
    parts += ["--dataset_dir DIR"] if dataset_dir else []
    parts += [f"--split {split}"] if split != "test" else []
    parts += [f'--overrides "{dict(overrides)}"'] if overrides else []
    return " ".join(parts)


class _Run:
    """Training and scoring of one method, in folders named by a digest of all that decides them."""

    def __init__(
        self, root: Path, scratch: Path, table: Table, method: Method, common: Mapping[str, Any], split: str
    ) -> None:
        self.root, self.method, self.split = root, method, split
        self.configs = ["train", *method.overlays]
        self.options = {**common, **method.options}
        self.first = (
            _Run(root, scratch, table, next(m for m in table.methods if m.name == method.after), common, split)
            if method.after
            else None
        )
        begun_from = self.first.training.name if self.first else ""
        self.training: Path = scratch / "trainings" / self._digest(self.configs, begun_from)
        scored = [self.training.name, method.scoring, split]
        self.scores = scratch / "scores" / self._digest([*self.configs, "evaluate"], *scored)

    def _digest(self, configs: Sequence[str], *more: Any) -> str:
        texts = [(self.root / "configs" / f"{name}.json").read_text(encoding="utf-8") for name in configs]
        folder = self.options.get("dataset_dir")
        data = (Path(folder) / DATALIST_NAME).read_text(encoding="utf-8") if folder else ""
        text = json.dumps([texts, self.options, data, *more], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def weights(self) -> Path:
        """What the training installed; where a second stage found nothing better, the weights that it began with."""
        models = (self.training / "models").glob("*.pt")
        [weights] = [path for path in models if not path.stem.endswith("_released")]
        return weights

    def train(self) -> None:
        """Train unless that was done."""
        if (self.training / "training.json").is_file():
            return
        models = self.training / "models"
        models.mkdir(parents=True, exist_ok=True)
        if self.first:
            for file in (self.first.weights, self.first.weights.with_suffix(".json")):
                shutil.copyfile(file, models / file.name)
        overrides = {**self.options, "output_dir": self.training / "train", "ckpt_dir": models, "install": True}
        command = self._run("training", self.configs, overrides)
        write_json(self.training / "training.json", {"command": command})

    def score(self) -> None:
        """Score the weights unless that was done."""
        if (self.scores / "scoring.json").is_file():
            return
        overrides = {**self.options, **self.method.scoring, "split": self.split}
        paths = {"output_dir": self.scores, "weights": self.weights}
        command = self._run("scoring", [*self.configs, "evaluate"], {**overrides, **paths})
        write_json(self.scores / "scoring.json", {"command": command, "weights_sha256": sha256(self.weights)})

    def _run(self, what: str, configs: Sequence[str], overrides: Mapping[str, Any]) -> str:
        try:
            run_bundle(self.root, configs, overrides)
        except subprocess.CalledProcessError as error:
            raise UserError(
                f"{self.method.name}: {what} ended with exit status {error.returncode}, see above; the same command "
                "goes on from there"
            ) from error
        shown = {key: value for key, value in overrides.items() if key != "phantom_dir"}
        if "dataset_dir" in shown:
            shown["dataset_dir"] = "DIR"
        return shown_command(self.root, configs, shown)


def _evidence(table: Table, runs: Sequence[_Run]) -> dict[str, Any]:
    """How every method was trained and scored, its values by case, their spread, and the tests."""
    methods = {run.method.name: _how(run) for run in runs}
    folders = {run.method.name: run.scores for run in runs}
    if (floor := runs[0].scores / "floor").is_dir():
        folders[FLOOR] = floor
    columns = [(column.label, column.measure) for column in table.columns]
    values = {name: {key: _values(folder, *key) for key in columns} for name, folder in folders.items()}
    cases = [
        {"method": name, "label": label, "measure": measure, "case": case, "value": _finite(value)}
        for name, by_column in values.items()
        for (label, measure), by_case in by_column.items()
        for case, value in by_case.items()
    ]
    summaries = {name: json.loads((folder / "summary.json").read_text("utf-8")) for name, folder in folders.items()}
    summary = [
        {"method": name, "label": label, "measure": measure, **content["labels"][label][measure]}
        for name, content in summaries.items()
        for label, measure in columns
    ]
    first = runs[0].method.name
    tests = [
        {"method": name, "against": first, "label": key[0], "measure": key[1], **compare(values[first][key], by_case)}
        for name in methods
        if name != first
        for key, by_case in values[name].items()
    ]
    for test, corrected in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["p_holm"] = corrected
    return {"methods": methods, "summary": summary, "tests": tests, "cases": cases}


def _how(run: _Run) -> dict[str, Any]:
    read = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in (
        ("training", run.training / "training.json"),
        ("scoring", run.scores / "scoring.json"),
        ("weights", run.weights.with_suffix(".json")),
    )}  # fmt: skip
    data = read["weights"].get("trained_on")
    return {**read, "weights": {**read["weights"], "trained_on": data if data == "phantom" else "data set"}}


def _values(folder: Path, label: str, measure: str) -> dict[str, float]:
    """A measure by case; that of :data:`MEAN_LABEL` is the mean over the labels that the case has."""
    found: dict[str, list[float]] = {}
    with (folder / "per_case.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if label in (row["label"], MEAN_LABEL):
                found.setdefault(row["case"], []).append(float(row[measure]))
    return {
        case: mean(known) if (known := [v for v in values if not math.isnan(v)]) else math.nan
        for case, values in found.items()
    }


def _finite(value: float) -> float | str:
    """JSON has no numbers for these."""
    return value if math.isfinite(value) else str(value)


def compare(reference: Mapping[str, float], other: Mapping[str, float]) -> dict[str, Any]:
    """Wilcoxon's signed-rank test, two-sided, of two methods on the same cases.

    Cases that either method has no value for (NaN) are left out. Two infinite distances count as equal.

    Returns:
        ``n`` pairs, ``median_difference`` (other minus reference) and ``p``; ``None`` where there is no pair.
    """
    pairs = [(reference[case], other[case]) for case in reference]
    pairs = [pair for pair in pairs if not any(map(math.isnan, pair))]
    differences = [0.0 if a == b else b - a for a, b in pairs]
    if not pairs:
        return {"n": 0, "median_difference": None, "p": None}
    ranked = sorted(differences)
    middle = ranked[(len(ranked) - 1) // 2], ranked[len(ranked) // 2]
    p = float(wilcoxon(differences).pvalue) if any(differences) else 1.0
    return {"n": len(pairs), "median_difference": _finite(mean(middle)), "p": p}


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct p-values for their number by Holm's method; ``None`` is no test."""
    tested = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, index) in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - rank) * p))
        corrected[index] = highest
    return corrected


def _describe_data(dataset_dir: str, split: str, common: Mapping[str, Any]) -> str:
    if not dataset_dir:
        cases = common["phantom_cases"]
        others = f"training on {cases['training']} and validation on {cases['validation']} others"
        return f"{cases[split]} phantoms, after {others}"
    content = json.loads((Path(dataset_dir) / DATALIST_NAME).read_text(encoding="utf-8"))
    scored, trained, validated = (len(content[part]) for part in (split, "training", "validation"))
    name = content.get("name") or "a data set"
    return f"{scored} {split} cases of {name}, after training on {trained} cases and validation on {validated}"


def _markdown(table: Table, result: Mapping[str, Any]) -> str:
    first = table.methods[0].name
    on_phantoms = result["methods"][first]["weights"]["trained_on"] == "phantom"
    lines = [
        f"Scores on {result['data']}: mean +- standard deviation over cases, each on its own grid. Rows marked "
        f'"paper" are {table.source}.',
        "",
        f"In brackets: p of a paired Wilcoxon signed-rank test against {first}, corrected by Holm for the "
        f"{len(result['tests'])} tests of this table.",
    ]
    if settings := ", ".join(f"`{key}` {value}" for key, value in result["settings"].items()):
        lines[2] += f" All methods share these settings, which differ from `train.json`: {settings}."
    if on_phantoms:
        lines[2] += f" {table.note}" if table.note else ""
        lines[2] += " Phantoms and a short training do not reproduce the paper: compare rows, not with the paper."
    head = ["method", "n", "epochs", *(column.heading for column in table.columns)]
    lines += ["", _row(head), "|---" * len(head) + "|"]
    spread = {(row["method"], row["label"], row["measure"]): row for row in result["summary"]}
    tested = {(test["method"], test["label"], test["measure"]): test for test in result["tests"]}
    for name in dict.fromkeys(row["method"] for row in result["summary"]):
        keys = [(name, column.label, column.measure) for column in table.columns]
        epochs = result["methods"][name]["weights"]["max_epochs"] if name in result["methods"] else ""
        texts = [
            _cell(spread[key], tested.get(key), column.digits) for key, column in zip(keys, table.columns, strict=True)
        ]
        count = {case["case"] for case in result["cases"] if case["method"] == name}
        lines.append(_row([name, len(count), epochs, *texts]))
        if name in table.published:
            published = table.published[name]
            lines.append(_row([f"{name}, paper", "", "", *(published.get(c.heading, "") for c in table.columns)]))
    lines += [
        "",
        f"`{result['command']}` writes this table, and `table.json` with the values of all cases, commands, "
        "versions and p-values before correction.",
    ]
    return "\n".join(lines) + "\n"


def _cell(row: Mapping[str, Any], test: Mapping[str, Any] | None, digits: int) -> str:
    if row["mean"] is None:
        return "no finite value"
    text = f"{row['mean']:.{digits}f}" + (f" +- {row['std']:.{digits}f}" if row["std"] is not None else "")
    if row["infinite"]:
        text += f", {row['infinite']} infinite"
    if test is None or test["p_holm"] is None:
        return text
    p = "p < 0.001" if test["p_holm"] < 0.001 else f"p = {test['p_holm']:.3f}"
    return f"{text} ({p})"


def _row(cells: Sequence[object]) -> str:
    return "|" + "".join(f" {cell} |" if cell != "" else " |" for cell in cells)
