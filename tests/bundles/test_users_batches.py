# SPDX-License-Identifier: Apache-2.0
"""Batches of users: bad files among good ones, a second run, results among inputs; options of a training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from volseg.storage.files import claim_folder


@pytest.fixture(scope="module")
def bundle_name() -> str:
    """One of the two bundles that share the code."""
    return "vnet_prostate"


@pytest.fixture
def batch(phantom, tmp_path) -> Path:
    """20 files in folders of patients, of which 3 are bad."""
    content = phantom["image"].read_bytes()
    for number in range(20):
        folder = tmp_path / "in" / f"{number:02}"
        folder.mkdir(parents=True)
        (folder / "t2.nii.gz").write_bytes(content[:1000] if number in (0, 7, 19) else content)
    return tmp_path / "in"


def test_bad_files_end_no_batch_and_are_done_when_repaired(segment, batch, phantom, tmp_path):
    bad = {str(batch / number / "t2.nii.gz") for number in ("00", "07", "19")}
    process = segment(batch, tmp_path / "out")
    last = process.stderr.splitlines()[-1]
    assert process.returncode == 1 and last.startswith("error: 3 of 20 cases failed (t2.nii.gz, ")
    assert all(f"not segmented: {path}: cannot be read" in process.stderr for path in bad)
    first = {case["image"]: case for case in json.loads((tmp_path / "out" / "statistics.json").read_text())}
    assert {path for path, case in first.items() if "error" in case} == bad
    results = sorted((tmp_path / "out").glob("*.nii.gz"))
    assert len(results) == 17 and results[0].name == "01_t2_prostate.nii.gz"
    times = {path: path.stat().st_mtime_ns for path in results}
    for path in bad:
        shutil.copy(phantom["image"], path)
    process = segment(batch, tmp_path / "out")
    assert process.returncode == 0, process.stderr
    assert "3 case(s) segmented" in process.stderr and "17 case(s) were done already" in process.stderr
    assert {path: path.stat().st_mtime_ns for path in results} == times
    cases = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert len(cases) == len({case["segmentation"] for case in cases}) == 20
    assert not any("error" in case for case in cases)


def test_what_is_done_is_done_anew_on_request_or_with_other_settings(segment, phantom, tmp_path):
    out = tmp_path / "out"
    for options, is_kept in (
        ([], False),
        ([], True),
        (["--redo", "True"], False),
        (["--spacing_mm", "[4.0,3.0,7.0]"], False),
    ):
        process = segment(phantom["image"], out, *options)
        assert process.returncode == 0, process.stderr
        assert ("1 case(s) were done already" in process.stderr) == is_kept


def test_results_among_the_inputs_are_no_inputs(segment, phantom, tmp_path):
    shutil.copy(phantom["image"], tmp_path / "t2.nii.gz")
    for out in (tmp_path, tmp_path, tmp_path / "results", tmp_path / "results"):
        process = segment(tmp_path, out)
        assert process.returncode == 0, process.stderr
        (case,) = json.loads((out / "statistics.json").read_text())
        assert case["image"] == str(tmp_path / "t2.nii.gz")


def test_other_inputs_into_the_same_folder_replace_nothing(segment, image, save, phantom, tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    shutil.copy(phantom["image"], tmp_path / "one" / "t2.nii.gz")
    save(tmp_path / "two" / "t2.nii.gz", image[0][:, :, ::-1], image[1])
    written = []
    for folder in ("one", "two"):
        assert segment(tmp_path / folder, tmp_path / "out").returncode == 0
        cases = json.loads((tmp_path / "out" / "statistics.json").read_text())
        written.append([case["segmentation"] for case in cases])
    assert written == [["t2_prostate.nii.gz"], ["t2_prostate.nii.gz", "t2.nii.gz_prostate.nii.gz"]]


def test_a_second_run_into_the_folder_of_another_is_refused(segment, phantom, refused, tmp_path, monkeypatch):
    claimed: dict = {}
    monkeypatch.setattr("volseg.storage.files._claimed", claimed)
    claim_folder(tmp_path / "out")
    refused(segment(phantom["image"], tmp_path / "out"), "out: another run writes its results there")
    for lock in claimed.values():
        lock.release()
    assert segment(phantom["image"], tmp_path / "out").returncode == 0


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("learning_rate", "fast", "learning_rate must be a number such as 0.0004, got 'fast'"),
        ("learning_rate", "0", "learning_rate must be a number above 0"),
        ("weight_decay", "-1", "weight_decay must be a number from 0 to 100, got -1"),
        ("seed", "1.5", "seed must be an integer >= 0, got 1.5"),
        ("dropout", "1", "dropout must be a number from 0 to below 1, got 1"),
        ("ckpt_dir", "/dev/null/models", "/dev/null"),
        ("output_dir", "/dev/null/out", "/dev/null"),
        ("dataset_dir", "", "--dataset_dir needs a file or folder, got ''"),
    ],
)
def test_training_refuses_options_before_work(train, case, refused, tmp_path, name, value, words):
    refused(train(case, f"--{name}", value), words)
    assert not (tmp_path / "out").exists()
