# SPDX-License-Identifier: Apache-2.0
"""Statistics and text of the papers' tables, on literal numbers."""

from __future__ import annotations

import json
import math
from statistics import mean

import pytest

from tools import REPOSITORY
from tools import tables as tool
from tools.bundle_run import bundle_command
from tools.tables import TABLES, Column, Method, Table, compare, holm, tables
from volseg.console.command_line import unknown_overrides
from volseg.errors import UserError

NAN, INF = math.nan, math.inf
COMMITTED = sorted(REPOSITORY.glob("bundles/*/docs/results/table.json"))
TABLE = Table(
    columns=(Column("left", "L", "dice"), Column("both", "mean", "dice")),
    methods=(Method("new"), Method("old", ("train_old",))),
    phantom={},
    published={"old": {"both": "0.500 +- 0.100"}},
    source="Table 9",
)


def by_case(*values: float) -> dict[str, float]:
    return {f"case_{index}": value for index, value in enumerate(values)}


def test_holm_by_hand():
    # sorted: 4 * 0.005, 3 * 0.01, 2 * 0.03, then no lower than the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, None, 0.9]) == [1.0, None, 1.0]
    assert holm([None]) == [None]


def test_six_cases_that_all_fall_have_the_least_p_of_six():
    found = compare(by_case(0.9, 0.8, 0.7, 0.9, 0.8, 0.9), by_case(0.8, 0.6, 0.4, 0.5, 0.3, 0.3))
    assert found == {"n": 6, "median_difference": pytest.approx(-0.35), "p": pytest.approx(2 / 2**6)}


def test_cases_without_a_value_are_left_out_and_infinite_distances_rank_last():
    assert compare(by_case(NAN, 1, 2), by_case(1, NAN, NAN)) == {"n": 0, "median_difference": None, "p": None}
    assert compare(by_case(0.5, INF), by_case(0.5, INF)) == {"n": 2, "median_difference": 0.0, "p": 1.0}
    found = compare(by_case(NAN, 1, 2, 3, 4, 5), by_case(1, 2, 4, 6, 8, INF))
    assert found == {"n": 5, "median_difference": 3.0, "p": pytest.approx(2 / 2**5)}


def write_scores(folder, *cases: tuple[float, float]) -> None:
    folder.mkdir(parents=True)
    rows = [
        f"case_{i},{label},{value}" for i, pair in enumerate(cases) for label, value in zip("LR", pair, strict=True)
    ]
    (folder / "per_case.csv").write_text("\n".join(["case,label,dice", *rows]))


def test_the_mean_of_a_case_skips_labels_it_does_not_have(tmp_path):
    write_scores(tmp_path / "scores", (0.8, 0.6), (0.9, NAN), (NAN, NAN))
    means = tool._values(tmp_path / "scores", "mean", "dice")
    assert means == pytest.approx({"case_0": 0.7, "case_1": 0.9, "case_2": NAN}, nan_ok=True)
    assert list(tool._values(tmp_path / "scores", "L", "dice").values())[:2] == [0.8, 0.9]


def test_rows_of_the_paper_stand_below_ours():
    def row(method, label, mean, std, infinite=0):
        return {"method": method, "label": label, "measure": "dice", "mean": mean, "std": std, "infinite": infinite}

    def test(label, p):
        return {"method": "old", "label": label, "measure": "dice", "p_holm": p}

    weights = {"weights": {"max_epochs": 3, "trained_on": "phantom"}}
    result = {
        "data": "2 phantoms, after training on 5 and validation on 1 others",
        "command": "python -m tools tables some_bundle",
        "settings": {"max_epochs": 3},
        "methods": {"new": weights, "old": weights},
        "summary": [row("new", "L", 0.75, 0.05), row("new", "mean", 0.8, 0.1),
                    row("old", "L", None, None), row("old", "mean", 0.7, None, infinite=1)],
        "tests": [test("L", None), test("mean", 0.0004)],
        "cases": [{"method": name, "case": case} for name in ("new", "old") for case in "ab"],
    }  # fmt: skip
    text = tool._markdown(TABLE, result)
    assert [line for line in text.splitlines() if line.startswith("|")] == [
        "| method | n | epochs | left | both |",
        "|---|---|---|---|---|",
        "| new | 2 | 3 | 0.750 +- 0.050 | 0.800 +- 0.100 |",
        "| old | 2 | 3 | no finite value | 0.700, 1 infinite (p < 0.001) |",
        "| old, paper | | | | 0.500 +- 0.100 |",
    ]
    assert "do not reproduce the paper" in text
    assert "Table 9" in text
    assert "differ from `train.json`: `max_epochs` 3." in text
    assert "against new, corrected by Holm for the 2 tests" in text


@pytest.mark.parametrize("name", TABLES)
def test_the_paper_has_values_for_methods_and_columns_of_the_table(name):
    table = TABLES[name]
    headings = {column.heading for column in table.columns}
    assert table.published.keys() <= {method.name for method in table.methods}
    assert all(row.keys() <= headings for row in table.published.values())


@pytest.mark.parametrize("name", TABLES)
def test_configs_have_what_a_table_overrides(name):
    table = TABLES[name]
    for method in table.methods:
        folder = REPOSITORY / "bundles" / name
        options = {**table.phantom, **method.options, **method.scoring}
        for configs in (["train", *method.overlays], ["train", *method.overlays, "evaluate"]):
            unknown_overrides(bundle_command(folder, configs, options)[4:])


def test_numbers_that_are_not_to_be_published_are_not():
    lobes = TABLES["pdvnet_lung"].published["PDV-Net"]
    assert lobes == {"all lobes": "0.939 +- 0.020"}


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.parts[-4])
def test_a_committed_table_follows_from_its_cases(path):
    result = json.loads(path.read_text(encoding="utf-8"))
    assert path.with_suffix(".md").read_text(encoding="utf-8") == tool._markdown(TABLES[path.parts[-4]], result)
    values: dict[tuple, dict[str, float]] = {}
    for row in result["cases"]:
        values.setdefault((row["method"], row["label"], row["measure"]), {})[row["case"]] = float(row["value"])
    for row in result["summary"]:
        cases = [v for v in values[row["method"], row["label"], row["measure"]].values() if math.isfinite(v)]
        assert (len(cases), mean(cases)) == (row["n"], pytest.approx(row["mean"]))
    for test in result["tests"]:
        reference, other = (values[test[key], test["label"], test["measure"]] for key in ("against", "method"))
        assert compare(reference, other)["p"] == pytest.approx(test["p"])
    assert holm([test["p"] for test in result["tests"]]) == pytest.approx([test["p_holm"] for test in result["tests"]])


def test_a_training_is_known_by_configs_options_data_and_what_it_begins_with(tmp_path):
    (tmp_path / "configs").mkdir()
    for name in ("train", "train_old", "evaluate"):
        (tmp_path / "configs" / f"{name}.json").write_text("{}")
    data = tmp_path / "data"
    data.mkdir()
    (data / "dataset.json").write_text(json.dumps({"test": []}))
    watershed = Method("new, watershed", scoring={"decoding": "watershed"})
    second = Method("second", after="new")

    def folders(method=TABLE.methods[0], split="test", **options):
        run = tool._Run(tmp_path, tmp_path / "work", TABLE, method, options, split)
        return run.training, run.scores

    first = folders()
    assert folders() == first
    assert folders(watershed)[0] == first[0]
    scores = [folders(watershed)[1], folders(split="validation")[1], first[1]]
    assert len(set(scores)) == 3
    others = [first, folders(second), folders(max_epochs=2), folders(dataset_dir=str(data))]
    (data / "dataset.json").write_text(json.dumps({"test": [{}]}))
    others.append(folders(dataset_dir=str(data)))
    (tmp_path / "configs" / "train.json").write_text('{"seed": 1}')
    others.append(folders())
    assert len({training for training, _ in others}) == len({scores for _, scores in others}) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "unet"}, "no table of unet; name one of pdvnet_lung, vnet_prostate, resunet_mitoem"),
        ({"name": "vnet_prostate", "dataset_dir": "nowhere"}, "dataset_dir: no such folder"),
        ({"name": "vnet_prostate", "overrides": "max_epochs"}, "overrides must be a dictionary"),
    ],
)
def test_mistakes_are_told_before_work(arguments, message, tmp_path):
    with pytest.raises(UserError, match=message):
        tables(**arguments, output_dir=str(tmp_path), work_dir=str(tmp_path))
