# SPDX-License-Identifier: Apache-2.0
"""Training and inference of every bundle end to end, on tiny phantoms."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from volseg.weights import load_weights

MEDICAL = ("pdvnet_lung", "vnet_prostate")
NAMES = (*MEDICAL, "resunet_mitoem")
# what is about files of patients, or code that no bundle has a part in
medical = pytest.mark.parametrize("bundle_name", MEDICAL, scope="module")


@pytest.fixture(scope="module", params=NAMES)
def bundle_name(request) -> str:
    return request.param


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, map_location="cpu", weights_only=True)


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert {key: (a[key] - b[key]).abs().max().item() for key in a if not torch.equal(a[key], b[key])} == {}


@pytest.fixture(scope="module")
def trained(monai_bundle, configs, train_overrides, tmp_path_factory) -> Path:
    """Folder of a training of three epochs on phantoms, which nothing disturbed."""
    folder = tmp_path_factory.mktemp("trained")
    process = monai_bundle(
        "run", "--config_file", configs / "train.json", *train_overrides, "--max_epochs", 3,
        "--output_dir", folder, "--ckpt_dir", folder / "models",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return folder


def test_training_writes_weights_with_their_grid(bundle, trained):
    load_weights(trained / "models" / "model.pt", bundle.untrained())
    record = json.loads((trained / "models" / "model.json").read_text())
    assert record["spatial_size"] == bundle.spatial_size
    assert 0 <= record[bundle.small.metric] <= 1
    assert 1 <= record["epoch"] <= 3


def test_completed_training_puts_its_checkpoint_aside(trained):
    assert not (trained / "checkpoint.pt").exists()
    assert tensors(trained / "checkpoint_completed.pt")["epoch"] == 3
    assert list((trained / "tensorboard").glob("events.out.tfevents.*"))


def test_tracking_with_mlflow_stays_in_the_output_folder(monai_bundle, configs, train_overrides, tmp_path):
    (tmp_path / "cwd").mkdir()
    process = monai_bundle(
        "run", "--config_file", configs / "train.json", *train_overrides, "--tracking", "mlflow",
        "--output_dir", tmp_path / "out", "--ckpt_dir", tmp_path / "models", cwd=tmp_path / "cwd",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert list((tmp_path / "out").rglob("*.db"))
    assert not list((tmp_path / "cwd").iterdir())
    assert not list((configs.parent).rglob("mlruns"))


def test_two_processes_train_one_network(runner, bundle, configs, train_overrides, tmp_path):
    files = str([str(configs / name) for name in ("train.json", "multi_gpu_train.json")])
    device = train_overrides.index("--device")
    overrides = [*train_overrides[:device], *train_overrides[device + 2 :]]  # the overlay gives each rank its device
    process = runner.process(
        "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, "-m", "monai.bundle",
        "run", "--config_file", files, *overrides,
        "--output_dir", tmp_path / "out", "--ckpt_dir", tmp_path / "models", env={"CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    load_weights(tmp_path / "models" / "model.pt", bundle.untrained())  # names without DistributedDataParallel's prefix
    assert tensors(tmp_path / "out" / "checkpoint_completed.pt")["epoch"] == 1


def test_killed_training_ends_with_the_weights_of_an_undisturbed_one(
    runner, configs, train_overrides, trained, tmp_path
):
    arguments = [
        "run", "--config_file", configs / "train.json", *train_overrides, "--max_epochs", 3,
        "--output_dir", tmp_path, "--ckpt_dir", tmp_path / "models",
    ]  # fmt: skip
    killed = runner.bundle(*arguments, killed_by=tmp_path / "checkpoint.pt")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert tensors(tmp_path / "checkpoint.pt")["epoch"] < 3

    again = runner.bundle(*arguments)
    assert again.returncode == 0, again.stderr
    assert "continuing after epoch" in again.stderr
    ends = [tensors(folder / "checkpoint_completed.pt") for folder in (tmp_path, trained)]
    assert_same(*(end["objects"]["network"] for end in ends))
    assert ends[0]["objects"]["best_weights"] == ends[1]["objects"]["best_weights"]
    assert_same(*(tensors(folder / "models" / "model.pt") for folder in (tmp_path, trained)))


MONAI_LABEL = """
import json, sys
from monai.bundle import run
overrides = json.loads(sys.argv[2])
run("run", meta_file=None, config_file=sys.argv[1], logging_file=False, **overrides)
"""


@medical
@pytest.mark.parametrize("validation", [True, False], ids=["with validation", "without"])
def test_overrides_that_monai_label_sends(runner, bundle, configs, phantom, validation, tmp_path):
    case = {kind: str(path) for kind, path in phantom.items()}
    overrides = {
        "bundle_root": str(configs.parent),
        "device": "cpu",
        "train#trainer#max_epochs": 1,
        "train#dataset#data": [case],
        "validate#dataset#data": [case] if validation else [],
        **{k: v for k, v in bundle.small.record.items() if isinstance(v, list)},
        **{f"network_def#{k}": v for k, v in bundle.small.arguments.items()},
        "output_dir": str(tmp_path / "out"),
        "ckpt_dir": str(tmp_path / "models"),
    }
    process = runner.python(MONAI_LABEL, configs / "train.json", json.dumps(overrides))
    assert process.returncode == 0, process.stderr
    load_weights(tmp_path / "models" / "model.pt", bundle.untrained())


# ---------------------------------------------------------------------------------------------------- inference


def write_nrrd(nifti: Path, target: Path) -> None:
    itk.imwrite(itk.imread(str(nifti)), str(target))


def write_dicom_series(nifti: Path, folder: Path) -> None:
    """An image as axial DICOM slices; the voxels keep their order, the affine is that of a scanner."""
    folder.mkdir(parents=True)
    voxels = np.asarray(nib.load(nifti).dataobj).astype(np.int16)
    series, frame, study = generate_uid(), generate_uid(), generate_uid()
    for k in range(voxels.shape[2]):
        dataset = pydicom.Dataset()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
        dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID, dataset.StudyInstanceUID = series, frame, study
        dataset.Modality, dataset.PatientID, dataset.SeriesDate = "CT", "phantom", "20200101"
        dataset.SeriesNumber, dataset.InstanceNumber = 1, k + 1
        dataset.Rows, dataset.Columns = voxels.shape[1], voxels.shape[0]
        dataset.PixelSpacing, dataset.SliceThickness = [7.5, 7.0], 6.25
        dataset.ImagePositionPatient = [-140.0, -180.5, 30.0 + 6.25 * k]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
        dataset.PixelData = (voxels[:, :, k].T + 1024).astype("<i2").tobytes()
        # names in another order than the slices
        dataset.save_as(folder / f"{(k * 7) % voxels.shape[2]:03d}.dcm", enforce_file_format=True)


@medical
def test_one_file(infer, bundle, labels_on_the_grid_of, phantom):
    out, said = infer(phantom["image"])
    labels_on_the_grid_of(phantom["image"], out / bundle.segmentation())
    (case,) = json.loads((out / "statistics.json").read_text())
    assert case["image"] == str(phantom["image"])
    assert case["segmentation"] == bundle.segmentation()
    assert (out / "test_0_preview.png").read_bytes()[:4] == b"\x89PNG"
    assert "Traceback" not in said


@medical
def test_folder_of_cases_in_two_formats(infer, bundle, labels_on_the_grid_of, phantom, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.nii.gz").write_bytes(phantom["image"].read_bytes())
    write_nrrd(phantom["image"], tmp_path / "in" / "b.nrrd")
    out, _ = infer(tmp_path / "in")
    outputs = [
        labels_on_the_grid_of(tmp_path / "in" / f"{name}{suffix}", out / bundle.segmentation(name))
        for name, suffix in (("a", ".nii.gz"), ("b", ".nrrd"))
    ]
    assert np.mean(outputs[0] == outputs[1]) > 0.999  # the formats round the affine in other ways
    assert len(json.loads((out / "statistics.json").read_text())) == 2


@medical
def test_dicom_series(infer, bundle, labels_on_the_grid_of, phantom, tmp_path):
    write_dicom_series(phantom["image"], tmp_path / "series")
    out, _ = infer(tmp_path / "series", "--preview", "False")
    labels_on_the_grid_of(tmp_path / "series", out / bundle.segmentation("series"))
    assert not list(out.glob("*.png"))


@medical
def test_oblique_image_with_permuted_axes(infer, bundle, labels_on_the_grid_of, phantom, tmp_path):
    image = nib.load(phantom["image"])
    angle = np.radians(12)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    order = [2, 0, 1]
    affine = (turn @ image.affine)[:, [*order, 3]]
    voxels = np.asarray(image.dataobj).transpose(order)
    nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "oblique.nii.gz")
    out, _ = infer(tmp_path / "oblique.nii.gz")
    labels_on_the_grid_of(tmp_path / "oblique.nii.gz", out / bundle.segmentation("oblique"))


@medical
def test_without_input_a_phantom_is_segmented(infer, bundle, labels_on_the_grid_of, tmp_path):
    out, _ = infer(
        None, "--phantom_dir", tmp_path / "phantom", "--phantom_shape", str(list(bundle.small.phantom_shape))
    )
    labels_on_the_grid_of(tmp_path / "phantom" / "images" / "test_0.nii.gz", out / bundle.segmentation())


@medical
def test_two_inputs_with_one_name_keep_two_results(infer, bundle, labels_on_the_grid_of, phantom, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.nii.gz").write_bytes(phantom["image"].read_bytes())
    write_nrrd(phantom["image"], tmp_path / "in" / "a.nrrd")
    out, _ = infer(tmp_path / "in", "--preview", "False")
    assert sorted(p.name for p in out.glob("*.nii.gz")) == [
        bundle.segmentation("a.nrrd"),
        bundle.segmentation("a"),
    ]
