# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import json
import math
import statistics
from pathlib import Path

import numpy as np
import pytest

from volseg.errors import UserError
from volseg.label_maps import case_report as module
from volseg.label_maps.case_report import CASE_LABEL, MEAN_LABEL, STATISTICS, CaseReport, label_measures
from volseg.label_maps.surface_distances import surface_distances

SPACING_MM = (5.0, 10.0, 20.0)  # 1 ml per voxel
# voxel axes run to posterior, superior, left
AFFINE = np.array([[0, 0, -20, 12], [-5, 0, 0, -30], [0, 10, 0, 400], [0, 0, 0, 1.0]])
LOBES = {3: "right_upper", 1: "left_upper", 4: "absent"}


def label_maps() -> tuple[np.ndarray, np.ndarray]:
    prediction, truth = np.zeros((2, 9, 8, 7), np.uint8)
    truth[1:5, 2:6, 1:4], prediction[2:6, 2:6, 1:4] = 1, 1
    truth[6:8, 1:4, 4:6], prediction[6:8, 1:4, 4:7] = 3, 3
    return prediction, truth


def two_labels(first: float, second: float) -> dict[str, dict[str, float]]:
    return {"upper": {"dice": first, "error_ml": -first}, "lower": {"dice": second, "error_ml": 2.0}}


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_label_measures_literal():
    measures = label_measures(*label_maps(), AFFINE, LOBES, tolerance_mm=5.0)
    assert list(measures) == ["right_upper", "left_upper", "absent"]
    assert list(measures["left_upper"]) == [
        "dice",
        "hausdorff_95_mm",
        "average_symmetric_surface_distance_mm",
        "surface_dice_5mm",
        "volume_error_ml",
        "reference_volume_ml",
        "predicted_volume_ml",
    ]
    left, right, absent = measures["left_upper"], measures["right_upper"], measures["absent"]
    assert left["dice"] == pytest.approx(2 * 36 / (48 + 48))
    assert (left["hausdorff_95_mm"], left["surface_dice_5mm"], left["volume_error_ml"]) == (5.0, 1.0, 0.0)
    assert right["dice"] == pytest.approx(2 * 12 / (12 + 18))
    assert (right["reference_volume_ml"], right["predicted_volume_ml"], right["volume_error_ml"]) == (12.0, 18.0, 6.0)
    # All voxels are border; 6 of the 18 predicted ones lie one slice (20 mm) off, the other way all are 0.
    assert right["average_symmetric_surface_distance_mm"] == pytest.approx(6 * 20 / 30)
    assert right["surface_dice_5mm"] == pytest.approx(24 / 30)
    assert all(math.isnan(value) for value in list(absent.values())[:4])
    assert list(absent.values())[4:] == [0.0, 0.0, 0.0]


def test_label_measures_match_the_uncropped_masks_in_any_memory_order():
    rng = np.random.default_rng(0)
    prediction, truth = rng.integers(0, 3, (2, 12, 9, 7)).astype(np.int16)
    expected = label_measures(prediction, truth, AFFINE, {1: "one", 2: "two"})
    for label, name in ((1, "one"), (2, "two")):
        surfaces = surface_distances(prediction == label, truth == label, SPACING_MM, 3.0)
        assert tuple(expected[name].values())[1:4] == surfaces
    assert label_measures(np.asfortranarray(prediction), truth, AFFINE, {1: "one", 2: "two"}) == expected
    mirrored = label_measures(prediction[::-1], truth[::-1], AFFINE, {1: "one", 2: "two"})
    assert mirrored["two"] == pytest.approx(expected["two"])


def test_label_in_one_map_only():
    prediction, truth = label_maps()
    prediction[prediction == 3] = 0
    for pair in ((prediction, truth), (truth, prediction)):
        measures = label_measures(*pair, AFFINE, LOBES)["right_upper"]
        assert list(measures.values())[:4] == [0.0, math.inf, math.inf, 0.0]
        assert abs(measures["volume_error_ml"]) == 12.0


def test_identical_maps_and_tolerance_in_the_name():
    truth = label_maps()[1]
    measures = label_measures(truth, truth, AFFINE, LOBES)["left_upper"]
    assert list(measures.values()) == [1.0, 0.0, 0.0, 1.0, 0.0, 48.0, 48.0]
    assert "surface_dice_3mm" in measures
    assert label_measures(truth, truth, AFFINE, {str(k): name for k, name in LOBES.items()})["left_upper"] == measures
    assert "surface_dice_1.5mm" in label_measures(truth, truth, AFFINE, LOBES, tolerance_mm=1.5)["left_upper"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({}, "at least one label"),
        ({0: "background", 1: "a", 3: "b"}, "label >= 1"),
        ({1: "a", 3: "a"}, "different names"),
        ({1: "a", 4: "b"}, r"hold \[3\], which labels does not name"),
        ({1: "a"}, "from 0 to 1, got 3"),
    ],
)
def test_label_errors(labels, message):
    with pytest.raises(UserError, match=message):
        label_measures(*label_maps(), AFFINE, labels)


def test_report_files(tmp_path):
    report = CaseReport()
    report.add("b, second site", two_labels(0.5, 1.0))
    report.add("a", two_labels(0.25, math.nan))
    report.add("c", two_labels(0.75, math.inf))
    folder = tmp_path / "new" / "results"
    report.write(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["per_case.csv", "summary.csv", "summary.json"]
    assert (folder / "per_case.csv").read_text(encoding="utf-8").splitlines() == [
        "case,label,dice,error_ml",
        '"b, second site",upper,0.5,-0.5',
        '"b, second site",lower,1.0,2.0',
        "a,upper,0.25,-0.25",
        "a,lower,nan,2.0",
        "c,upper,0.75,-0.75",
        "c,lower,inf,2.0",
    ]
    rows = read_csv(folder / "summary.csv")
    assert list(rows[0]) == ["label", "measure", *STATISTICS]
    by_key = {(row["label"], row["measure"]): list(row.values())[2:] for row in rows}
    assert list(by_key) == [(label, name) for label in ("upper", "lower", "mean") for name in ("dice", "error_ml")]
    assert by_key["upper", "dice"] == ["3", "0.5", "0.25", "0.5", "0.375", "0.625", "0", "0"]
    assert by_key["lower", "dice"] == ["1", "1.0", "nan", "1.0", "1.0", "1.0", "1", "1"]
    # The cases' means over labels are 0.75, 0.25 (NaN skipped) and infinite.
    assert by_key["mean", "dice"][:2] == ["2", "0.5"]
    assert float(by_key["mean", "dice"][2]) == pytest.approx(statistics.stdev([0.75, 0.25]))
    assert by_key["mean", "dice"][-2:] == ["1", "0"]
    document = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert document["cases"] == 3
    assert list(document["labels"]) == ["upper", "lower", "mean"]
    assert document["labels"]["lower"]["dice"] == {
        "n": 1,
        "mean": 1.0,
        "std": None,
        "median": 1.0,
        "quartile_25": 1.0,
        "quartile_75": 1.0,
        "infinite": 1,
        "nan": 1,
    }


def test_zero_dice_counts_and_all_missing_is_nan():
    report = CaseReport()
    report.add("a", two_labels(0.0, math.nan))
    report.add("b", two_labels(1.0, math.nan))
    summary = report.summary()
    assert tuple(summary["upper"]["dice"]) == STATISTICS
    assert summary["upper"]["dice"]["n"] == 2
    assert summary["upper"]["dice"]["mean"] == 0.5
    assert summary["lower"]["dice"]["n"] == 0
    assert summary["lower"]["dice"]["nan"] == 2
    assert math.isnan(summary["lower"]["dice"]["median"])
    assert summary[MEAN_LABEL]["dice"]["mean"] == 0.5


def test_case_values_and_no_mean_row(tmp_path):
    report = CaseReport(mean_row=False)
    report.add("a", two_labels(0.5, 1.0), {"score": 80, "rank": math.nan})
    report.add("b", two_labels(0.25, 0.75), {"rank": 4, "score": 85})
    report.write(tmp_path)
    assert (tmp_path / "per_case.csv").read_text(encoding="utf-8").splitlines() == [
        "case,label,dice,error_ml,score,rank",
        "a,upper,0.5,-0.5,80.0,nan",
        "a,lower,1.0,2.0,80.0,nan",
        "b,upper,0.25,-0.25,85.0,4.0",
        "b,lower,0.75,2.0,85.0,4.0",
    ]
    rows = [list(row.values())[:4] for row in read_csv(tmp_path / "summary.csv")]
    assert [row[0] for row in rows] == ["upper", "upper", "lower", "lower", CASE_LABEL, CASE_LABEL]
    assert rows[-2:] == [["case", "score", "2", "82.5"], ["case", "rank", "1", "4.0"]]
    assert list(report.summary()) == ["upper", "lower", CASE_LABEL]


@pytest.mark.parametrize("values", [None, {"rank": 1.0}, {"score": 1.0, "rank": 1.0}])
def test_cases_with_other_values_are_an_error(values):
    report = CaseReport()
    report.add("a", two_labels(0.5, 1.0), {"score": 80.0})
    with pytest.raises(UserError, match=r"case b has the case values .*, but this report has \['score'\]"):
        report.add("b", two_labels(0.5, 1.0), values)


def test_case_value_with_the_name_of_a_measure_is_an_error():
    with pytest.raises(UserError, match="none with the name of a measure"):
        CaseReport().add("a", two_labels(0.5, 1.0), {"dice": 1.0})


def test_order_comes_from_the_first_case(tmp_path):
    report = CaseReport()
    report.add("a", two_labels(0.5, 1.0))
    report.add("b", {"lower": {"error_ml": 4.0, "dice": 3.0}, "upper": {"error_ml": 2.0, "dice": 1.0}})
    report.write(tmp_path)
    rows = [list(row.values()) for row in read_csv(tmp_path / "per_case.csv")[2:]]
    assert rows == [["b", "upper", "1.0", "2.0"], ["b", "lower", "3.0", "4.0"]]


def test_measured_cases_go_through(tmp_path):
    report = CaseReport()
    report.add("case", label_measures(*label_maps(), AFFINE, LOBES))
    report.write(tmp_path)
    rows = read_csv(tmp_path / "per_case.csv")
    assert [row["label"] for row in rows] == list(LOBES.values())
    assert float(rows[0]["dice"]) == pytest.approx(0.8)


def test_a_failed_write_leaves_the_old_report(tmp_path, monkeypatch):
    report = CaseReport()
    report.add("a", two_labels(0.5, 1.0))
    report.write(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    report.add("b", two_labels(0.5, 1.0))
    write_text = Path.write_text

    def full_disk(path, *args, **kwargs):
        if "summary.json" in path.name:
            raise OSError("no space left on device")
        return write_text(path, *args, **kwargs)

    monkeypatch.setattr(module.Path, "write_text", full_disk)
    with pytest.raises(UserError, match=r"summary\.json: cannot be written: no space"):
        report.write(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("case_id", "measures", "message"),
    [
        ("a", two_labels(0.5, 1.0), "case a is already in the report"),
        ("b", {}, "case b has no measures"),
        ("b", {"upper": {}, "lower": {}}, "case b has no measures"),
        ("b", {"upper": {"dice": 1.0, "error_ml": 0.0}}, "case b has the labels and measures"),
        ("b", {"upper": {"dice": 1.0}, "lower": {"dice": 1.0}}, "case b has the labels and measures"),
        ("b", {"mean": {"dice": 1.0}}, "the label name 'mean' is reserved"),
        ("b", {"case": {"dice": 1.0}}, "the label name 'case' is reserved"),
    ],
)
def test_report_errors(case_id, measures, message):
    report = CaseReport()
    report.add("a", two_labels(0.5, 1.0))
    with pytest.raises(UserError, match=message):
        report.add(case_id, measures)


def test_labels_with_different_measures_are_an_error():
    with pytest.raises(UserError, match="case a has the labels and measures"):
        CaseReport().add("a", {"upper": {"dice": 1.0}, "lower": {"volume_ml": 1.0}})


def test_empty_report(tmp_path):
    with pytest.raises(UserError, match="no cases"):
        CaseReport().write(tmp_path / "results")
    assert not (tmp_path / "results").exists()
