# SPDX-License-Identifier: Apache-2.0
"""Training, evaluation and inference of the bundle end to end, on tiny phantoms and on real CT where it is at hand."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import ResampleToMatch
from pdvnet_lung.lobes import LOBES
from pdvnet_lung.network import PDVNet
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from volseg.data.volume_reader import load_volume
from volseg.errors import UserError
from volseg.weights import load_weights

ROOT = Path(__file__).resolve().parents[3]
REAL = ROOT.parent / "shared" / "data" / "lung"
WEIGHTS = ROOT / "bundles" / "pdvnet_lung" / "models" / "model.pt"
needs_real_ct = pytest.mark.skipif(not REAL.is_dir(), reason=f"no CTs under {REAL}")
needs_weights = pytest.mark.skipif(not WEIGHTS.is_file(), reason=f"no {WEIGHTS}")


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


def test_training_writes_weights_with_their_grid(trained):
    load_weights(trained / "models" / "model.pt", PDVNet())
    record = json.loads((trained / "models" / "model.json").read_text())
    assert record["spatial_size"] == [32, 40, 24]
    assert 0 <= record["val_mean_dice"] <= 1
    assert 1 <= record["epoch"] <= 3


def test_completed_training_puts_its_checkpoint_aside(trained):
    assert not (trained / "checkpoint.pt").exists()
    assert tensors(trained / "checkpoint_completed.pt")["epoch"] == 3
    assert list((trained / "tensorboard").glob("events.out.tfevents.*"))


def test_evaluation_reports_every_lobe(monai_bundle, configs, phantom_overrides, trained, tmp_path):
    files = str([str(configs / name) for name in ("train.json", "evaluate.json")])
    process = monai_bundle(
        "run", "--config_file", files, *phantom_overrides,
        "--ckpt_dir", trained / "models", "--output_dir", tmp_path,
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


def test_two_processes_train_one_network(runner, configs, train_overrides, tmp_path):
    files = str([str(configs / name) for name in ("train.json", "multi_gpu_train.json")])
    device = train_overrides.index("--device")
    overrides = [*train_overrides[:device], *train_overrides[device + 2 :]]  # the overlay gives each rank its device
    process = runner.process(
        "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, "-m", "monai.bundle",
        "run", "--config_file", files, *overrides,
        "--output_dir", tmp_path / "out", "--ckpt_dir", tmp_path / "models", env={"CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    load_weights(tmp_path / "models" / "model.pt", PDVNet())  # names without DistributedDataParallel's prefix
    assert tensors(tmp_path / "out" / "checkpoint_completed.pt")["epoch"] == 1


def test_killed_training_ends_with_the_weights_of_an_undisturbed_one(
    runner, configs, train_overrides, trained, tmp_path
):
    arguments = [
        "run", "--config_file", configs / "train.json", *train_overrides, "--max_epochs", 3,
        "--output_dir", tmp_path, "--ckpt_dir", tmp_path / "models",
    ]  # fmt: skip
    with (tmp_path / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "monai.bundle", *map(str, arguments)],
            cwd=runner.folder,
            env=runner.environment,
            stdout=log,
            stderr=log,
        )
        deadline = time.monotonic() + 120
        while not (tmp_path / "checkpoint.pt").is_file() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, (tmp_path / "log.txt").read_text()
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


@pytest.mark.parametrize("validation", [True, False], ids=["with validation", "without"])
def test_overrides_that_monai_label_sends(runner, configs, phantom, validation, tmp_path):
    case = {kind: str(path) for kind, path in phantom.items()}
    overrides = {
        "bundle_root": str(configs.parent),
        "device": "cpu",
        "train#trainer#max_epochs": 1,
        "train#dataset#data": [case],
        "validate#dataset#data": [case] if validation else [],
        "spatial_size": [32, 40, 24],
        "output_dir": str(tmp_path / "out"),
        "ckpt_dir": str(tmp_path / "models"),
    }
    process = runner.python(MONAI_LABEL, configs / "train.json", json.dumps(overrides))
    assert process.returncode == 0, process.stderr
    load_weights(tmp_path / "models" / "model.pt", PDVNet())


# ---------------------------------------------------------------------------------------------------- inference


@pytest.fixture
def infer(monai_bundle, configs, weights, tmp_path):
    """Run inference.json; the folder of the results and what was said."""

    def run(source: Path | None, *overrides: object, model: Path = weights) -> tuple[Path, str]:
        given = [] if source is None else ["--input", source]
        process = monai_bundle(
            "run", "--config_file", configs / "inference.json", *given,
            "--weights", model, "--output_dir", tmp_path / "out", "--device", "cpu", *overrides,
        )  # fmt: skip
        assert process.returncode == 0, process.stderr
        return tmp_path / "out", process.stderr

    return run


def assert_geometry_of(source: Path, segmentation: Path) -> np.ndarray:
    """The output lies on the grid of the input; its labels."""
    image, labels = load_volume(source), nib.load(segmentation)
    assert labels.get_data_dtype() == np.uint8
    assert labels.shape == tuple(image.shape[1:])
    np.testing.assert_allclose(labels.affine, np.asarray(image.affine), atol=1e-4)
    values = np.asarray(labels.dataobj)
    assert values.max() <= 5
    return values


def write_nrrd(nifti: Path, target: Path) -> None:
    itk.imwrite(itk.imread(str(nifti)), str(target))


def write_dicom_series(nifti: Path, folder: Path) -> None:
    """A CT as axial DICOM slices; the voxels keep their order, the affine is that of a scanner."""
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


def test_one_file(infer, phantom):
    out, said = infer(phantom["image"])
    values = assert_geometry_of(phantom["image"], out / "test_0_lobes.nii.gz")
    (case,) = json.loads((out / "statistics.json").read_text())
    assert case["image"] == str(phantom["image"])
    assert case["segmentation"] == "test_0_lobes.nii.gz"
    assert list(case["lobes"]) == list(LOBES.values())
    voxel_ml = abs(np.linalg.det(load_volume(phantom["image"]).affine[:3, :3])) / 1000
    for label, name in LOBES.items():
        assert case["lobes"][name]["volume_ml"] == pytest.approx((values == label).sum() * voxel_ml, abs=0.01)
    assert (out / "test_0_preview.png").read_bytes()[:4] == b"\x89PNG"
    assert "Traceback" not in said


def test_folder_of_cases_in_two_formats(infer, phantom, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.nii.gz").write_bytes(phantom["image"].read_bytes())
    write_nrrd(phantom["image"], tmp_path / "in" / "b.nrrd")
    out, _ = infer(tmp_path / "in")
    outputs = [
        assert_geometry_of(tmp_path / "in" / f"{name}{suffix}", out / f"{name}_lobes.nii.gz")
        for name, suffix in (("a", ".nii.gz"), ("b", ".nrrd"))
    ]
    assert np.array_equal(*outputs)
    assert len(json.loads((out / "statistics.json").read_text())) == 2


def test_dicom_series(infer, phantom, tmp_path):
    write_dicom_series(phantom["image"], tmp_path / "series")
    out, _ = infer(tmp_path / "series", "--preview", "False")
    assert_geometry_of(tmp_path / "series", out / "series_lobes.nii.gz")
    assert not list(out.glob("*.png"))


def test_oblique_image_with_permuted_axes(infer, phantom, tmp_path):
    image = nib.load(phantom["image"])
    angle = np.radians(12)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    order = [2, 0, 1]
    affine = (turn @ image.affine)[:, [*order, 3]]
    voxels = np.asarray(image.dataobj).transpose(order)
    nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "oblique.nii.gz")
    out, _ = infer(tmp_path / "oblique.nii.gz")
    assert_geometry_of(tmp_path / "oblique.nii.gz", out / "oblique_lobes.nii.gz")


def test_without_input_a_phantom_is_segmented(infer, tmp_path):
    out, _ = infer(None, "--phantom_dir", tmp_path / "phantom", "--phantom_shape", "[40, 48, 32]")
    assert_geometry_of(tmp_path / "phantom" / "images" / "test_0.nii.gz", out / "test_0_lobes.nii.gz")


def test_two_inputs_with_one_name_keep_two_results(infer, phantom, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.nii.gz").write_bytes(phantom["image"].read_bytes())
    write_nrrd(phantom["image"], tmp_path / "in" / "a.nrrd")
    out, _ = infer(tmp_path / "in", "--preview", "False")
    assert sorted(p.name for p in out.glob("*.nii.gz")) == ["a.nrrd_lobes.nii.gz", "a_lobes.nii.gz"]


# ---------------------------------------------------------------------------------------------------- real CT


@pytest.fixture(scope="module")
def segmented(monai_bundle, configs, tmp_path_factory):
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
            assert_geometry_of(REAL / source, segmentation)
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
def test_a_real_series_without_its_slices_is_refused():
    with pytest.raises(UserError, match="no DICOM series"):
        load_volume(REAL / "totalsegmentator")
