# SPDX-License-Identifier: Apache-2.0
"""The clock in the pipelines, and what the results files of whole pipelines and of lobe measures promise."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, SpatialPadd
from PIL import Image

from tools import REPOSITORY
from tools.bench import libraries, measure, steps
from tools.bench.measure import TOTAL, Stopwatch
from tools.bench.report import table, write_result, write_summary
from tools.bench.subjects import SUBJECTS
from volseg.label_maps.case_report import label_measures

FOLDER = REPOSITORY / "docs" / "benchmarks"
BUNDLES = ("pdvnet_lung", "vnet_prostate", "resunet_mitoem")


def committed(name):
    path = FOLDER / f"{name}.json"
    if not path.exists():
        pytest.skip(f"{path.relative_to(REPOSITORY)} does not exist: python -m tools bench {name} writes it")
    return json.loads(path.read_text(encoding="utf-8"))


def rows_of(result):
    return {row["mode"]: row for row in result["rows"]}


@pytest.mark.parametrize("bundle", BUNDLES)
def test_no_step_takes_longer_than_the_network(bundle):
    rows = rows_of(committed(f"{bundle}_steps"))
    network_s = rows.pop(steps.NETWORK)["median_s"]
    longest = max(rows.values(), key=lambda row: row["median_s"])
    assert longest["median_s"] <= network_s, longest["mode"]


@pytest.mark.parametrize("bundle", BUNDLES)
def test_steps_are_all_of_the_time(bundle):
    result = committed(f"{bundle}_steps")
    assert sum(row["share"] for row in result["rows"]) == pytest.approx(1, abs=0.05)
    assert rows_of(result)[steps.REST]["share"] < 0.1


@pytest.mark.parametrize("bundle", BUNDLES)
def test_the_model_card_says_where_the_time_goes(bundle):
    result = committed(f"{bundle}_steps")
    rows = rows_of(result)
    network = rows.pop(steps.NETWORK)
    first, second = sorted(rows.values(), key=lambda row: -row["median_s"])[:2]
    card = " ".join((REPOSITORY / "bundles" / bundle / "docs" / "README.md").read_text(encoding="utf-8").split())
    assert (
        f"takes {result['total_s']:.1f} s per case, of which the network takes {network['median_s']:.1f} s; the "
        f"longest other steps are `{first['mode']}` ({first['median_s']:.1f} s) and `{second['mode']}` "
        f"({second['median_s']:.1f} s). A process takes {result['start_s']:.1f} s to start before its first case"
    ) in card


def test_lobe_measures_are_fast_and_equal_to_monai():
    result = committed("lobe_measures")
    row = rows_of(result)["label_measures"]
    assert result["title"].endswith("512x512x250")
    assert result["machine"]["cores"] == 2
    assert row["median_s"] < 3
    assert result["largest_relative_difference"] < 1e-5


@pytest.fixture
def clock(monkeypatch):
    """The seconds that the stopwatch sees: a list to which time is added."""
    now = [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])
    return now


def test_a_step_within_a_step_counts_once(clock):
    watch = Stopwatch()
    watch.lap()
    clock[0] += 1
    with watch.step("outer"):
        clock[0] += 2
        for _ in range(2):
            with watch.step("inner"):
                clock[0] += 4
        clock[0] += 8
    clock[0] += 16
    watch.lap()
    with watch.step("inner"):
        clock[0] += 32
    watch.stop()
    with watch.step("after"):
        clock[0] += 64
    assert watch.laps == [{"outer": 10, "inner": 8, TOTAL: 35}, {"inner": 32, TOTAL: 32}]
    assert list(watch.laps[0]) == ["outer", "inner", TOTAL]


def test_a_step_that_fails_counts(clock):
    watch = Stopwatch()
    watch.lap()
    with pytest.raises(ValueError, match="no"), watch.step("outer"), watch.step("inner"):
        clock[0] += 2
        raise ValueError("no")
    with watch.step("next"):
        clock[0] += 1
    assert watch.laps == [{"outer": 0, "inner": 2, "next": 1}]


def test_what_is_watched_stays_what_it_is(clock):
    pad = SpatialPadd("image", (3, 5, 4))
    whole = Compose([pad])
    watch = Stopwatch()
    watch.watch(pad, "pad")
    watch.lap()
    padded = whole({"image": torch.ones(1, 2, 4, 3)})
    assert isinstance(pad, SpatialPadd) and type(pad).__name__ == "SpatialPadd"
    assert list(watch.laps[0]) == ["pad"]
    assert padded["image"].shape == (1, 3, 5, 4)
    assert whole.inverse(padded)["image"].shape == (1, 2, 4, 3)


def test_a_network_that_is_watched_keeps_its_weights(clock):
    network = torch.nn.Linear(3, 2)
    keys = list(network.state_dict())
    watch = Stopwatch()
    watch.watch(network, "network")
    watch.lap()
    assert network(torch.ones(1, 3)).shape == (1, 2)
    assert list(watch.laps[0]) == ["network"]
    assert list(network.state_dict()) == keys


def test_rows_of_cases():
    laps = [
        {"read": 9.0, steps.NETWORK: 9.0, "note": 0.0001, "write": 9.0, TOTAL: 30.0},
        {"read": 1.0, steps.NETWORK: 4.0, "note": 0.0001, "write": 2.0, TOTAL: 8.0},
        {"read": 2.0, steps.NETWORK: 6.0, "note": 0.0001, "write": 1.0, TOTAL: 10.0},
        {"read": 3.0, steps.NETWORK: 5.0, "note": 0.0001, "write": 1.5, TOTAL: 10.5},
    ]
    result = steps.summarise(laps)
    assert (result["reference"], result["total_s"]) == (steps.NETWORK, 10.0)
    assert [row["mode"] for row in result["rows"]] == ["read", steps.NETWORK, "write", steps.REST]
    assert result["rows"][0] == {
        "mode": "read", "median_s": 2.0, "min_s": 1.0, "max_s": 3.0, "n": 3, "ratio": 2.5, "share": 0.2, "first_s": 9.0,
    }  # fmt: skip
    assert rows_of(result)[steps.NETWORK]["ratio"] == 1
    assert rows_of(result)[steps.REST]["median_s"] == 1


def test_a_single_case_counts_itself():
    (row, rest) = steps.summarise([{steps.NETWORK: 4.0, TOTAL: 5.0}])["rows"]
    assert (row["median_s"], row["n"], row["share"]) == (4.0, 1, 0.8)
    assert "first_s" not in row
    assert rest["median_s"] == 1


def test_steps_have_a_table_and_a_plot(tmp_path):
    run = {"min_s": 1.0, "max_s": 4.0, "n": 3}
    rows = [
        {"mode": "read", "median_s": 1.0, **run, "ratio": 3.0, "share": 0.25},
        {"mode": steps.NETWORK, "median_s": 3.0, **run, "ratio": 1.0, "share": 0.75},
    ]
    machine = {"processor": "P", "cores": 2, "threads": 2, "memory_gib": 8, "packages": {"torch": "1"}, "flags": []}
    result = {"title": "A bundle", "input": "a CT", "weights": "random", "machine": machine, "command": "bench",
              "date": "2026-01-01", "reference": steps.NETWORK, "rows": rows}  # fmt: skip
    write_result(tmp_path / "a_steps.json", result)
    write_summary(tmp_path)
    assert "| step | median (min to max, n) | share |" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| read | 1.00 s (1.00 to 4.00, 3) | 25.0 % |" in table(rows)
    assert (tmp_path / "a_steps.png").read_bytes().startswith(b"\x89PNG")


def test_steps_of_a_ct(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # put back at the end
    subject = SUBJECTS["pdvnet_lung"]
    case = subject.draw_scan(3, (40, 36, 28))
    (tmp_path / "input").mkdir()
    for name in ("a", "b"):
        nib.save(nib.Nifti1Image(case.image, case.affine), tmp_path / "input" / f"{name}.nii.gz")
    weights = tmp_path / "weights.pt"
    torch.save(subject.untrained(0).state_dict(), weights)
    overrides = {"input": str(tmp_path / "input"), "output_dir": str(tmp_path / "out"), "weights": str(weights),
                 "spatial_size": [32, 48, 16]}  # fmt: skip
    laps = steps.time_case_steps(str(subject.bundle), str(tmp_path / "cache"), overrides)
    assert len(laps) == 2
    for lap in laps:
        total = lap.pop(TOTAL)
        assert 0 < sum(lap.values()) <= total
        assert [name for name in lap if name in STEPS_OF_A_CT] == STEPS_OF_A_CT
        assert "load_volume" not in lap  # the file is read once
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a_lobes.nii.gz", "a_preview.png", "b_lobes.nii.gz", "b_preview.png", "report.html", "statistics.json",
    ]  # fmt: skip


STEPS_OF_A_CT = [
    "LoadImageVolumed", "CheckCTd", "Orientationd", "GridResized", "ScaleIntensityRanged", "SimpleInferer",
    "network", "NativeArgmaxd", "SaveImageSegmentations", "lobe_statistics", "write_segmentation", "save_preview",
]  # fmt: skip


def test_steps_of_electron_microscopy(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # put back at the end
    sections = np.random.default_rng(0).integers(0, 255, (5, 32, 48), np.uint8)
    (tmp_path / "input").mkdir()
    for z, section in enumerate(sections):
        Image.fromarray(section).save(tmp_path / "input" / f"{z}.png")
    weights = tmp_path / "weights.pt"
    subject = SUBJECTS["resunet_mitoem_r"]
    torch.save(subject.untrained(0).state_dict(), weights)
    overrides = {"input": str(tmp_path / "input"), "output_dir": str(tmp_path / "out"), "weights": str(weights),
                 "window": [5, 32, 32], "voxel_size_nm": [30, 8, 8]}  # fmt: skip
    (lap,) = steps.time_case_steps(str(subject.bundle), str(tmp_path / "cache"), overrides)
    wanted = ["LoadImageChunkedVolumed", "ScaleGreyValuesd", "BlendedSlidingWindow", "network", "DecodeInstancesd",
              "write_instances", "instance_table", "write_instance_table", "save_instance_preview"]  # fmt: skip
    assert [name for name in lap if name in wanted] == wanted


def lobes():
    """Truth and prediction with all five lobes, one of them shifted, one smaller, one of a single voxel."""
    truth, prediction = np.zeros((2, 14, 11, 9), np.uint8)
    truth[1:4, 1:5, 1:8], prediction[1:4, 2:6, 1:8] = 1, 1
    truth[1:4, 6:10, 2:7], prediction[2:4, 6:9, 2:6] = 2, 2
    truth[6:9, 1:4, 1:8], prediction[6:9, 1:4, 1:8] = 3, 3
    truth[6:9, 5, 4], prediction[7, 5:7, 4] = 4, 4
    truth[10:13, 1:10, 3:8], prediction[10:14, 1:10, 2:8] = 5, 5
    return prediction, truth


@pytest.mark.parametrize("spacing_mm", [(0.7, 1.25, 2.5), (3.0, 0.5, 1.0)])
def test_all_lobe_measures_are_those_of_monai(spacing_mm):
    prediction, truth = lobes()
    expected = libraries.monai_measures(prediction, truth, spacing_mm, 1.5)
    measured = label_measures(prediction, truth, np.diag([*spacing_mm, 1]), libraries.LOBES, 1.5)
    for lobe, values in expected.items():
        assert {name: measured[lobe][name] for name in values} == pytest.approx(values, rel=1e-5), lobe
    assert libraries.largest_difference(measured, expected) < 1e-5
    assert measured["RUL"]["dice"] == 1


def test_the_largest_difference_is_a_part_of_the_value():
    expected = {"LUL": {"dice": 0.5, "error_mm": float("nan")}, "LLL": {"dice": 0.0, "error_mm": 4.0}}
    measured = {"LUL": {"dice": 0.4, "error_mm": float("nan")}, "LLL": {"dice": 0.1, "error_mm": 3.0}}
    assert libraries.largest_difference(measured, expected) == pytest.approx(0.25)


def test_lobes_are_displaced_by_no_more_than_said():
    labels = np.zeros((24, 20, 16), np.uint8)
    labels[6:18, 5:15, 4:12] = 3
    moved = libraries.warped(labels, (2, 1, 3))
    assert moved.shape == labels.shape and moved.dtype == labels.dtype
    assert (moved[8:16, 6:14, 7:9] == 3).all()
    outside = np.ones(labels.shape, bool)
    outside[4:20, 4:16, 1:15] = False
    assert not moved[outside].any()
    assert (moved != labels).any()


def test_lobe_measures_run_beside_monai():
    result = libraries.bench_lobe_measures(1, seed=0, shape=(40, 36, 28), spacing_mm=(8.5, 9.0, 11.0))
    assert list(rows_of(result)) == ["MONAI, whole volume", "label_measures"]
    assert result["largest_relative_difference"] < 1e-5
    assert "at 8.5x9.0x11.0 mm" in result["input"]
