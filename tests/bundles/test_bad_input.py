# SPDX-License-Identifier: Apache-2.0
"""What users of any bundle get wrong ends with one line and leaves nothing behind; what can be handled is handled."""

from __future__ import annotations

import json

import itk
import nibabel as nib
import numpy as np
import pytest
import torch

MEDICAL = ("pdvnet_lung", "vnet_prostate")
NAMES = (*MEDICAL, "resunet_mitoem")
# what is about files of patients, or code that no bundle has a part in
medical = pytest.mark.parametrize("bundle_name", MEDICAL, scope="module")


@pytest.fixture(scope="module", params=NAMES)
def bundle_name(request) -> str:
    return request.param


def test_missing_dataset_dir(train, refused, tmp_path):
    refused(train(tmp_path / "nowhere"), "dataset_dir", "nowhere", "dataset.json", "prepare_data.json")


@medical
def test_empty_dataset_dir(train, refused, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(train(tmp_path / "empty"), "dataset_dir", "an empty folder", "dataset.json")


@medical
def test_image_without_label(train, case, refused):
    pair = {"image": "image.nii.gz"}
    (case / "dataset.json").write_text(json.dumps({"training": [pair], "validation": [], "test": []}))
    refused(train(case), "dataset.json", "training[0] has no label", "image.nii.gz")


@medical
def test_label_that_is_listed_but_missing(train, case, refused):
    (case / "label.nii.gz").unlink()
    refused(train(case), "no such file", "label.nii.gz")


@medical
def test_label_of_another_size(train, case, image, refused, save):
    save(case / "label.nii.gz", np.zeros((8, 8, 8), np.uint8), image[1])
    refused(train(case), "label.nii.gz", "image.nii.gz", "8x8x8")


def test_override_that_no_config_item_has(train, case, refused):
    refused(train(case, "--max_epoch", 3), "--max_epoch", "Did you mean --max_epochs?")


@medical
def test_damaged_checkpoint(train, case, refused, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "checkpoint.pt").write_bytes(b"half of a checkp")
    process = train(case)
    (tmp_path / "out" / "checkpoint.pt").unlink()
    refused(process, "checkpoint.pt", "damaged", "--resume False")


def test_evaluation_without_weights(monai_bundle, configs, phantom_overrides, outputs, refused):
    files = str([str(configs / name) for name in ("train.json", "evaluate.json")])
    process = monai_bundle("run", "--config_file", files, *phantom_overrides, *outputs)
    refused(process, "model.pt", "no weights there", "--weights")


def test_missing_input(try_to_infer, refused, tmp_path):
    refused(try_to_infer(tmp_path / "nowhere.nii.gz"), "nowhere.nii.gz", "no such file")


@medical
def test_folder_without_volumes(try_to_infer, refused, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").write_text("no CT")
    refused(try_to_infer(tmp_path / "notes"), "notes", "no volume found", "1 files")


def test_missing_weights(try_to_infer, phantom, refused, tmp_path):
    process = try_to_infer(phantom["image"], model=tmp_path / "absent.pt")
    refused(process, "absent.pt", "--weights")


def test_weights_of_another_network(try_to_infer, bundle, phantom, refused, tmp_path):
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "other.pt")
    refused(
        try_to_infer(phantom["image"], model=tmp_path / "other.pt"),
        "other.pt",
        f"no weights of {type(bundle.untrained()).__name__}",
    )


@medical
def test_weights_that_are_no_weights(try_to_infer, phantom, refused, tmp_path):
    (tmp_path / "text.pt").write_text("not a state dict")
    refused(try_to_infer(phantom["image"], model=tmp_path / "text.pt"), "text.pt")


@medical
def test_too_few_slices(try_to_infer, image, refused, save, tmp_path):
    voxels, affine = image
    axis = int(np.argmax(np.abs(affine[2, :3])))  # of the stored array, along the patient
    source = save(tmp_path / "slices.nii.gz", voxels.take([0, 1, 2], axis), affine)
    refused(try_to_infer(source), "slices.nii.gz", "too few slices", "3")


@medical
def test_four_dimensional_file(try_to_infer, image, refused, save, tmp_path):
    voxels, affine = image
    source = save(tmp_path / "gated.nii.gz", np.stack([voxels, voxels], axis=-1), affine)
    refused(try_to_infer(source), "gated.nii.gz", "3-D", "x2")


@medical
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_truncated_file(try_to_infer, phantom, suffix, refused, tmp_path):
    source = tmp_path / f"cut{suffix}"
    itk.imwrite(itk.imread(str(phantom["image"])), str(source), compression=True)
    content = source.read_bytes()
    source.write_bytes(content[: len(content) // 2])
    refused(try_to_infer(source), source.name, "damaged or truncated")


@medical
def test_later_case_damaged_keeps_the_earlier_results_whole(try_to_infer, phantom, bundle, tmp_path):
    (tmp_path / "in").mkdir()
    content = phantom["image"].read_bytes()
    (tmp_path / "in" / "a.nii.gz").write_bytes(content)
    (tmp_path / "in" / "b.nii.gz").write_bytes(content[: len(content) // 2])
    process = try_to_infer(tmp_path / "in")
    assert process.returncode == 1
    assert "b.nii.gz" in process.stderr.splitlines()[-1]
    written = {p.name for p in (tmp_path / "out").iterdir()}
    assert written == {bundle.segmentation("a"), "a_preview.png", "statistics.json", "report.html"}
    nib.load(tmp_path / "out" / bundle.segmentation("a")).get_fdata()


@medical
def test_voxels_that_are_not_finite_are_replaced(try_to_infer, image, handled, save, tmp_path):
    voxels, affine = image
    voxels = voxels.astype(np.float32)
    voxels[:3, :3] = np.nan
    voxels[-3:] = np.inf
    process = try_to_infer(save(tmp_path / "nan.nii.gz", voxels, affine))
    handled(process)
    assert "nan.nii.gz" in process.stderr
    assert "non-finite voxels" in process.stderr


@medical
def test_oblique_affine_is_kept(try_to_infer, image, bundle, handled, save, tmp_path):
    voxels, affine = image
    angle = np.radians(30)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    process = try_to_infer(save(tmp_path / "oblique.nii.gz", voxels, turn @ affine))
    handled(process)
    np.testing.assert_allclose(
        nib.load(tmp_path / "out" / bundle.segmentation("oblique")).affine, turn @ affine, atol=1e-4
    )


@medical
@pytest.mark.parametrize(
    ("config", "arguments", "words"),
    [
        ("train.json", ["--max_epoch", "3"], ["--max_epoch", "--max_epochs"]),
        ("inference.json", ["--input", "nowhere.nii.gz"], ["nowhere.nii.gz", "no such file"]),
    ],
)
def test_process_ends_with_one_line(runner, configs, weights, outputs, config, arguments, words, refused, tmp_path):
    given = [*arguments, *(outputs if config == "train.json" else [*outputs[:2], "--weights", weights])]
    process = runner.process("-m", "monai.bundle", "run", "--config_file", configs / config, *given, cwd=tmp_path)
    refused(process, *words)
