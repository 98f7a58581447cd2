# SPDX-License-Identifier: Apache-2.0
"""What is PDV-Net's own of the workflows: lobes, baselines, and real CT where it is at hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.data import MetaTensor
from monai.transforms import ResampleToMatch
from pdvnet_lung.lobes import LOBES
from scipy import ndimage

from volseg.data.volume_reader import load_volume
from volseg.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
REAL = ROOT.parent / "shared" / "data" / "lung"
WEIGHTS = ROOT / "bundles" / "pdvnet_lung" / "models" / "model.pt"
needs_real_ct = pytest.mark.skipif(not REAL.is_dir(), reason=f"no CTs under {REAL}")
needs_weights = pytest.mark.skipif(not WEIGHTS.is_file(), reason=f"no {WEIGHTS}")


def test_statistics_of_every_lobe(infer, labels_on_the_grid_of, phantom):
    out, _ = infer(phantom["image"], "--preview", "False")
    values = labels_on_the_grid_of(phantom["image"], out / "test_0_lobes.nii.gz")
    assert values.max() <= 5
    (case,) = json.loads((out / "statistics.json").read_text())
    assert list(case["lobes"]) == list(LOBES.values())
    voxel_ml = abs(np.linalg.det(load_volume(phantom["image"]).affine[:3, :3])) / 1000
    for label, name in LOBES.items():
        assert case["lobes"][name]["volume_ml"] == pytest.approx((values == label).sum() * voxel_ml, abs=0.01)


def test_evaluation_reports_every_lobe(monai_bundle, configs, phantom_overrides, weights, tmp_path):
    files = str([str(configs / name) for name in ("train.json", "evaluate.json")])
    process = monai_bundle(
        "run", "--config_file", files, *phantom_overrides,
        "--weights", weights, "--output_dir", tmp_path,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    rows = list(csv.DictReader((tmp_path / "per_case.csv").open()))
    assert {row["case"] for row in rows} == {"test_0"}
    assert {row["label"] for row in rows} >= set(LOBES.values())
    assert set(json.loads((tmp_path / "summary.json").read_text())["labels"]) == {*LOBES.values(), "mean"}


@pytest.mark.parametrize("overlay", ["train_dense_vnet.json", "train_unet_2d.json"])
def test_baselines_train_and_are_evaluated_on_the_same_data(
    monai_bundle, configs, train_overrides, phantom_overrides, overlay, tmp_path
):
    files = [str(configs / "train.json"), str(configs / overlay)]
    size = ("--spatial_size", "[32,48,24]")  # the U-Net halves four times in plane
    process = monai_bundle(
        "run", "--config_file", str(files), *train_overrides, *size,
        "--output_dir", tmp_path / "train", "--ckpt_dir", tmp_path / "models",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    files.append(str(configs / "evaluate.json"))
    process = monai_bundle(
        "run", "--config_file", str(files), *phantom_overrides,
        "--ckpt_dir", tmp_path / "models", "--output_dir", tmp_path / "evaluate",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "evaluate" / "per_case.csv").is_file()


def test_practical_recipe_trains_on_lobe_maps_and_its_weights_crop_to_the_lungs(monai_bundle, configs, tmp_path):
    label = np.zeros((40, 30, 44), np.uint8)
    label[4:17, 4:26, 20:40], label[4:17, 4:26, 4:20] = 1, 2
    label[23:36, 4:26, 26:40], label[23:36, 16:26, 14:26], label[23:36, 4:16, 4:26] = 3, 4, 5
    (tmp_path / "maps").mkdir()
    for number in range(3):
        nib.save(nib.Nifti1Image(label, np.diag([5.0, 6.0, 5.0, 1.0])), tmp_path / "maps" / f"s{number}.nii.gz")
    files = [str(configs / "train.json"), str(configs / "train_painted.json")]
    process = monai_bundle(
        "run", "--config_file", str(files), "--label_maps", tmp_path / "maps", "--spatial_size", "[24,16,32]",
        "--paintings_per_epoch", "2", "--max_epochs", "2", "--num_workers", "0",
        "--output_dir", tmp_path / "train", "--ckpt_dir", tmp_path / "models",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    record = json.loads((tmp_path / "models" / "model.json").read_text())
    assert (record["spatial_size"], record["crop_to_lungs"]) == ([24, 16, 32], True)
    files.append(str(configs / "evaluate.json"))
    process = monai_bundle(
        "run", "--config_file", str(files), "--label_maps", tmp_path / "maps", "--painted_dir", tmp_path / "painted",
        "--ckpt_dir", tmp_path / "models", "--output_dir", tmp_path / "evaluate",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert {row["case"] for row in csv.DictReader((tmp_path / "evaluate" / "per_case.csv").open())} == {"test_0"}


# ---------------------------------------------------------------------------------------------------- real CT


@pytest.fixture(scope="module")
def segmented(monai_bundle, configs, labels_on_the_grid_of, tmp_path_factory):
    """Segment a CT of the data folder with the bundle's weights, once; label map and statistics."""
    done: dict[str, tuple[nib.Nifti1Image, dict]] = {}

    def run(source: str) -> tuple[nib.Nifti1Image, dict]:
        if source not in done:
            out = tmp_path_factory.mktemp("real")
            process = monai_bundle(
                "run", "--config_file", configs / "inference.json", "--input", REAL / source, "--output_dir", out
            )
            assert process.returncode == 0, process.stderr
            (segmentation,) = out.glob("*_lobes.nii.gz")
            labels_on_the_grid_of(REAL / source, segmentation)
            done[source] = nib.load(segmentation), json.loads((out / "statistics.json").read_text())[0]
        return done[source]

    return run


@needs_real_ct
@needs_weights
@pytest.mark.parametrize("source", ["cip/ct-64.nrrd", "cip/ct-64Dicom", "totalsegmentator/example_ct_dicom"])
def test_real_ct_gives_a_map_in_its_own_geometry(segmented, source):
    segmented(source)


@needs_real_ct
@needs_weights
def test_two_versions_of_one_patient_agree(segmented):
    first, second = (
        MetaTensor(np.asarray(image.dataobj)[None].astype(np.float32), affine=image.affine)
        for image in (segmented(source)[0] for source in ("cip/ct-64.nrrd", "cip/ct-64Dicom"))
    )
    second = ResampleToMatch(mode="nearest", padding_mode="zeros")(second, first)
    a, b = np.asarray(first), np.asarray(second)
    for label in LOBES:
        assert 2 * ((a == label) & (b == label)).sum() / ((a == label).sum() + (b == label).sum()) >= 0.98


@needs_real_ct
@needs_weights
def test_lobes_of_a_real_ct_are_plausible(segmented):
    image, statistics = segmented("cip/ct-64.nrrd")
    volumes = {name: lobe["volume_ml"] for name, lobe in statistics["lobes"].items()}
    assert 2000 <= sum(volumes.values()) <= 8000
    assert {name: v for name, v in volumes.items() if v < 0.03 * sum(volumes.values())} == {}
    voxels = np.asarray(image.dataobj)
    x_mm = {}
    for label, name in LOBES.items():
        centre = np.argwhere(voxels == label).mean(axis=0)
        x_mm[name] = (image.affine @ [*centre, 1])[0]
    # in RAS x grows towards the patient's right
    assert max(x_mm["LUL"], x_mm["LLL"]) < min(x_mm["RUL"], x_mm["RML"], x_mm["RLL"])


@needs_real_ct
@needs_weights
def test_lobes_fill_the_lungs_of_a_real_ct(segmented):
    image, statistics = segmented("cip/ct-64.nrrd")
    found, lungs = np.asarray(image.dataobj), load_volume(REAL / "cip" / "wholeLung-64.nrrd")
    truth = lungs.numpy()[0] > 0
    # the same grid, stored along other axes
    found = nib.apply_orientation(found, nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.io_orientation(lungs.affine.numpy())))  # fmt: skip
    assert 2 * ((found > 0) & truth).sum() / ((found > 0).sum() + truth.sum()) >= 0.965
    assert 0.96 <= (found > 0).sum() / truth.sum() <= 1.04
    assert [ndimage.label(found == label)[1] for label in LOBES] == [1] * len(LOBES)
    assert (statistics["cut_sides"], statistics["unusual_lobes"], statistics["warnings"]) == ([], [], [])


@needs_real_ct
def test_a_real_series_without_its_slices_is_refused():
    with pytest.raises(UserError, match="no DICOM slices found"):
        load_volume(REAL / "totalsegmentator")
