# SPDX-License-Identifier: Apache-2.0
"""What users get wrong ends with one line and leaves nothing behind; what can be handled is handled."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
import torch

TEXT_OF_ERROR = "error: "


@pytest.fixture
def image(phantom):
    """The phantom's CT: voxels (X, Y, Z) and affine."""
    file = nib.load(phantom["image"])
    return np.asarray(file.dataobj).copy(), file.affine


@pytest.fixture
def case(tmp_path, phantom):
    """A folder with one image and its label, to be spoilt, and the data list of a dataset."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    for kind, path in phantom.items():
        shutil.copy(path, folder / f"{kind}.nii.gz")
    pair = {"image": "image.nii.gz", "label": "label.nii.gz"}
    (folder / "dataset.json").write_text(json.dumps({"training": [pair], "validation": [pair], "test": [pair]}))
    return folder


@pytest.fixture
def outputs(tmp_path):
    return ["--output_dir", tmp_path / "out", "--ckpt_dir", tmp_path / "models"]


@pytest.fixture
def train(monai_bundle, configs, outputs):
    """Run train.json on a dataset folder for one small epoch."""

    def run(dataset_dir: Path | str, *overrides: object):
        sizes = ["--spatial_size", "[32, 40, 24]", "--max_epochs", 1, "--device", "cpu", "--num_workers", 0]
        given = ["--dataset_dir", dataset_dir, *sizes, *outputs, *overrides]
        return monai_bundle("run", "--config_file", configs / "train.json", *given)

    return run


@pytest.fixture
def infer(monai_bundle, configs, weights, tmp_path):
    """Run inference.json on one input."""

    def run(source: Path | str, *overrides: object, model: Path = weights):
        given = ["--input", source, "--weights", model, "--output_dir", tmp_path / "out", "--device", "cpu"]
        return monai_bundle("run", "--config_file", configs / "inference.json", *given, *overrides)

    return run


def assert_refused(process, tmp_path: Path, *words: str) -> None:
    """Exit status, one line that holds the words, no traceback, no file in the output folders."""
    assert process.returncode == 1, process.stderr
    lines = [line for line in process.stderr.splitlines() if line.startswith(TEXT_OF_ERROR)]
    assert len(lines) == 1, process.stderr
    assert [word for word in words if word not in lines[0]] == [], lines[0]
    assert "Traceback" not in process.stderr + process.stdout, process.stderr + process.stdout
    assert process.stderr.rstrip().splitlines()[-1] == lines[0]
    # Current run has terminated due to exception: what Ignite says of it would be a second line of error
    assert "terminated due to exception" not in process.stderr + process.stdout
    assert "ERROR" not in process.stderr + process.stdout
    left = [p for folder in ("out", "models") for p in (tmp_path / folder).rglob("*") if p.is_file()]
    # a training that ends at its first case has opened its log; an empty one of TensorBoard is whole
    assert [p for p in left if not p.name.startswith("events.out.tfevents.")] == []


def assert_handled(process, tmp_path: Path) -> list[dict]:
    """The statistics of an inference that went well."""
    assert process.returncode == 0, process.stderr
    assert "Traceback" not in process.stderr
    assert len(list((tmp_path / "out").glob("*_lobes.nii.gz"))) == 1
    return json.loads((tmp_path / "out" / "statistics.json").read_text())


def save(path: Path, voxels: np.ndarray, affine: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


# ------------------------------------------------------------------------------------------------------ training


def test_missing_dataset_dir(train, tmp_path):
    assert_refused(train(tmp_path / "nowhere"), tmp_path, "dataset_dir", "nowhere", "dataset.json", "prepare_data.json")


def test_empty_dataset_dir(train, tmp_path):
    (tmp_path / "empty").mkdir()
    assert_refused(train(tmp_path / "empty"), tmp_path, "dataset_dir", "an empty folder", "dataset.json")


def test_image_without_label(train, case, tmp_path):
    pair = {"image": "image.nii.gz"}
    (case / "dataset.json").write_text(json.dumps({"training": [pair], "validation": [], "test": []}))
    assert_refused(train(case), tmp_path, "dataset.json", "training[0] has no label", "image.nii.gz")


def test_label_that_is_listed_but_missing(train, case, tmp_path):
    (case / "label.nii.gz").unlink()
    assert_refused(train(case), tmp_path, "no such file", "label.nii.gz")


def test_labels_out_of_range(train, case, image, tmp_path):
    label = np.zeros(image[0].shape, np.uint8)
    label[:8] = 9
    save(case / "label.nii.gz", label, image[1])
    assert_refused(train(case), tmp_path, "label.nii.gz", "0..5", "9", "prepare_data")


def test_labels_out_of_range_in_a_worker_process(train, case, image, tmp_path):
    save(case / "label.nii.gz", np.full(image[0].shape, 9, np.uint8), image[1])
    assert_refused(train(case, "--num_workers", 1), tmp_path, "label.nii.gz", "0..5", "9")


def test_label_of_another_size(train, case, image, tmp_path):
    save(case / "label.nii.gz", np.zeros((8, 8, 8), np.uint8), image[1])
    assert_refused(train(case), tmp_path, "label.nii.gz", "image.nii.gz", "8x8x8")


def test_float_labels_are_rounded(train, case, tmp_path):
    label = nib.load(case / "label.nii.gz")
    voxels = np.asarray(label.dataobj).astype(np.float32) * np.float32(1.00000004)
    voxels[voxels == 5] = 5.0000005
    assert (voxels % 1).any()
    save(case / "label.nii.gz", voxels, label.affine)
    process = train(case)
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "models" / "model.pt").is_file()


def test_override_that_no_config_item_has(train, case, tmp_path):
    assert_refused(train(case, "--max_epoch", 3), tmp_path, "--max_epoch", "Did you mean --max_epochs?")


def test_damaged_checkpoint(train, case, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "checkpoint.pt").write_bytes(b"half of a checkp")
    process = train(case)
    (tmp_path / "out" / "checkpoint.pt").unlink()
    assert_refused(process, tmp_path, "checkpoint.pt", "damaged", "--resume False")


def test_evaluation_without_weights(monai_bundle, configs, phantom_overrides, outputs, tmp_path):
    files = str([str(configs / name) for name in ("train.json", "evaluate.json")])
    process = monai_bundle("run", "--config_file", files, *phantom_overrides, *outputs)
    assert_refused(process, tmp_path, "model.pt", "no weights there", "--weights")


# ----------------------------------------------------------------------------------------------------- inference


def test_missing_input(infer, tmp_path):
    assert_refused(infer(tmp_path / "nowhere.nii.gz"), tmp_path, "nowhere.nii.gz", "no such file")


def test_folder_without_volumes(infer, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").write_text("no CT")
    assert_refused(infer(tmp_path / "notes"), tmp_path, "notes", "no volume found", "1 files")


def test_missing_weights(infer, phantom, tmp_path):
    process = infer(phantom["image"], model=tmp_path / "absent.pt")
    assert_refused(process, tmp_path, "absent.pt", "--weights")


def test_weights_of_another_network(infer, phantom, tmp_path):
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "other.pt")
    assert_refused(infer(phantom["image"], model=tmp_path / "other.pt"), tmp_path, "other.pt", "no weights of PDVNet")


def test_weights_that_are_no_weights(infer, phantom, tmp_path):
    (tmp_path / "text.pt").write_text("not a state dict")
    assert_refused(infer(phantom["image"], model=tmp_path / "text.pt"), tmp_path, "text.pt")


def test_ct_not_in_hounsfield_units(infer, image, tmp_path):
    voxels, affine = image
    source = save(tmp_path / "grey.nii.gz", ((voxels + 1024) // 8).clip(0, 255).astype(np.uint8), affine)
    assert_refused(infer(source), tmp_path, "grey.nii.gz", "Hounsfield", "0 to")


def test_too_few_slices(infer, image, tmp_path):
    voxels, affine = image
    axis = int(np.argmax(np.abs(affine[2, :3])))  # of the stored array, along the patient
    source = save(tmp_path / "slices.nii.gz", voxels.take([0, 1, 2], axis), affine)
    assert_refused(infer(source), tmp_path, "slices.nii.gz", "too few slices", "3")


def test_four_dimensional_file(infer, image, tmp_path):
    voxels, affine = image
    source = save(tmp_path / "gated.nii.gz", np.stack([voxels, voxels], axis=-1), affine)
    assert_refused(infer(source), tmp_path, "gated.nii.gz", "3-D", "x2")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_truncated_file(infer, phantom, suffix, tmp_path):
    source = tmp_path / f"cut{suffix}"
    itk.imwrite(itk.imread(str(phantom["image"])), str(source), compression=True)
    content = source.read_bytes()
    source.write_bytes(content[: len(content) // 2])
    assert_refused(infer(source), tmp_path, source.name, "damaged or truncated")


def test_later_case_damaged_keeps_the_earlier_results_whole(infer, phantom, tmp_path):
    (tmp_path / "in").mkdir()
    content = phantom["image"].read_bytes()
    (tmp_path / "in" / "a.nii.gz").write_bytes(content)
    (tmp_path / "in" / "b.nii.gz").write_bytes(content[: len(content) // 2])
    process = infer(tmp_path / "in")
    assert process.returncode == 1
    assert "b.nii.gz" in process.stderr.splitlines()[-1]
    written = {p.name for p in (tmp_path / "out").iterdir()}
    assert written == {"a_lobes.nii.gz", "a_preview.png", "statistics.json"}
    nib.load(tmp_path / "out" / "a_lobes.nii.gz").get_fdata()


def test_nan_voxels_become_air(infer, image, tmp_path):
    voxels, affine = image
    voxels = voxels.astype(np.float32)
    voxels[:3, :3] = np.nan
    voxels[-3:] = np.inf
    process = infer(save(tmp_path / "nan.nii.gz", voxels, affine))
    assert_handled(process, tmp_path)
    assert "nan.nii.gz" in process.stderr
    assert "not finite" in process.stderr


def test_oblique_affine_is_kept(infer, image, tmp_path):
    voxels, affine = image
    angle = np.radians(30)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    process = infer(save(tmp_path / "oblique.nii.gz", voxels, turn @ affine))
    assert_handled(process, tmp_path)
    # the phantom itself may lie a few degrees oblique
    degrees = re.search(r"axes are (\d+) degrees oblique", process.stderr)
    assert degrees is not None and 22 <= int(degrees[1]) <= 38, process.stderr
    np.testing.assert_allclose(nib.load(tmp_path / "out" / "oblique_lobes.nii.gz").affine, turn @ affine, atol=1e-4)


def test_no_lungs_in_view(infer, image, weights, tmp_path):
    voxels, affine = image
    state = torch.load(weights, weights_only=True)
    state["output3.bias"] = torch.tensor([100.0, 0, 0, 0, 0, 0])  # weights that find nothing but background
    torch.save(state, tmp_path / "nothing.pt")
    shutil.copy(weights.with_suffix(".json"), tmp_path / "nothing.json")
    head = np.full_like(voxels, -1000)
    head[10:30, 12:36] = 40
    (case,) = assert_handled(
        infer(save(tmp_path / "head.nii.gz", head, affine), model=tmp_path / "nothing.pt"), tmp_path
    )
    assert [w for w in case["warnings"] if w.startswith("no lungs found")]
    assert not np.asarray(nib.load(tmp_path / "out" / "head_lobes.nii.gz").dataobj).any()


# ------------------------------------------------------------------------------------------------ real processes


@pytest.mark.parametrize(
    ("config", "arguments", "words"),
    [
        ("train.json", ["--max_epoch", "3"], ["--max_epoch", "--max_epochs"]),
        ("inference.json", ["--input", "nowhere.nii.gz"], ["nowhere.nii.gz", "no such file"]),
    ],
)
def test_process_ends_with_one_line(runner, configs, weights, outputs, config, arguments, words, tmp_path):
    given = [*arguments, *(outputs if config == "train.json" else [*outputs[:2], "--weights", weights])]
    process = runner.process("-m", "monai.bundle", "run", "--config_file", configs / config, *given, cwd=tmp_path)
    assert_refused(process, tmp_path, *words)


def test_preparing_data_without_a_source(monai_bundle, configs, tmp_path):
    process = monai_bundle(
        "run", "--config_file", configs / "prepare_data.json", "--source", "luna16",
        "--input_dir", tmp_path / "nowhere", "--dataset_dir", tmp_path / "out",
    )  # fmt: skip
    assert_refused(process, tmp_path, "nowhere")
