# SPDX-License-Identifier: Apache-2.0
"""What is Res-UNet's own of the workflows: two networks and two stages, scores and thresholds, every format.

A network whose weights are set by hand calls mitochondrion what is brighter than half: what must come out of a volume
of bright blocks is then known to the voxel.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
import tifffile
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose
from PIL import Image
from resunet_mitoem.network import ResUNetH

from volseg.data.ome_zarr import create_ome_zarr, create_ome_zarr_label
from volseg.data.open_volume import open_chunked_volume
from volseg.weights import load_weights, save_weights

SHAPE = (6, 40, 56)
SIZE_NM = (30.0, 8.0, 10.0)
VOXEL_UM3 = 30 * 8 * 10 / 1e9
# decoding that leaves the seeds as they are
EXACT = ("--dilation", "[1, 1, 1]", "--min_size", 1)


def _blocks() -> np.ndarray:
    """Instances 1 to 3, in the order in which decoding numbers them."""
    truth = np.zeros(SHAPE, np.uint8)
    truth[0:3, 2:12, 4:20] = 1
    truth[1:6, 20:33, 30:50] = 2
    truth[4:6, 0:9, 40:56] = 3
    return truth


TRUTH = _blocks()
# with the noise of tissue: large parts of one value are blank
IMAGE = (np.where(TRUTH > 0, 220, 40) + np.random.default_rng(0).integers(-9, 10, SHAPE)).astype(np.uint8)


@pytest.fixture(scope="module")
def brightness_weights(bundle, tmp_path_factory):
    """``brightness_weights(network)``: weights with which a small network finds what is brighter than half."""
    folder = tmp_path_factory.mktemp("brightness")

    def write(network: torch.nn.Module) -> Path:
        state = {name: torch.zeros_like(value) for name, value in network.state_dict().items()}
        state["encoder.embedding.0.weight"][0, 0, 0, 2, 2] = 1
        for name, value in state.items():
            if name.startswith("encoder.blocks.0.conv.0.w") or (".blocks.3.conv.0.w" in name and "decoder" in name):
                value[0, 0, 0, 1, 1] = 1
            if name.endswith("head.weight"):
                value[0, 0, 0, 2, 2] = 40
            if name.endswith("head.bias"):
                value[:] = -20
        if isinstance(network, ResUNetH):
            state["boundary_decoder.head.weight"].zero_()
        network.load_state_dict(state)
        record = bundle.small.record | {"voxel_size_nm": SIZE_NM}
        save_weights(folder / f"{type(network).__name__}.pt", network, record)
        return folder / f"{type(network).__name__}.pt"

    return write


@pytest.fixture(scope="module")
def bright(bundle, brightness_weights) -> Path:
    """Weights of Res-UNet-R that find :data:`TRUTH` in :data:`IMAGE`."""
    return brightness_weights(bundle.untrained())


@pytest.fixture
def segment(infer, bright):
    """Run inference.json with those weights; what was written, what was said of it, and standard error."""

    def run(source: Path | str, *overrides: object, model: Path = bright):
        out, said = infer(source, *EXACT, *overrides, model=model)
        cases = json.loads((out / "statistics.json").read_text())
        return {case["instances"]: open_chunked_volume(out / case["instances"]) for case in cases}, cases, said

    return run


def write_hdf5(path: Path, voxels: np.ndarray = IMAGE, name: str = "main") -> Path:
    with h5py.File(path, "a") as file:
        file[name] = voxels
        file[name].attrs["element_size_um"] = [n / 1000 for n in SIZE_NM]
    return path


def write_zarr(path: Path, label: np.ndarray | None = None) -> Path:
    with create_ome_zarr(path, SHAPE, np.uint8, SIZE_NM, (4, 32, 32)) as voxels:
        voxels[:] = IMAGE
    if label is not None:
        with create_ome_zarr_label(path, "mitochondria", label.dtype) as voxels:
            voxels[:] = label
    return path


def write_sections(folder: Path) -> Path:
    folder.mkdir()
    for z, section in enumerate(IMAGE):
        Image.fromarray(section).save(folder / f"im{z + 8:04d}.png")
    return folder


def volumes_um3(table: Path) -> list[float]:
    return [float(row["volume_um3"]) for row in csv.DictReader(table.open())]


EXPECTED_UM3 = [float(f"{count * VOXEL_UM3:.6g}") for count in np.bincount(TRUTH.ravel())[1:]]


# ---------------------------------------------------------------------------------------------------- inference


def test_a_folder_of_volumes_in_three_formats_of_one_name(segment, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write_hdf5(folder / "a.h5")
    nifti = nib.Nifti1Image(IMAGE.T, np.diag([1e-5, 8e-6, 3e-5, 1]))
    nifti.header.set_xyzt_units("mm")
    nib.save(nifti, folder / "a.nii.gz")
    write_zarr(folder / "a.ome.zarr")
    written, cases, _ = segment(folder)
    assert [Path(case["image"]).name for case in cases] == ["a.h5", "a.nii.gz", "a.ome.zarr"]
    assert list(written) == ["a_instances.h5", "a_2_instances.nii.gz", "a_3_instances.ome.zarr"]
    for volume in written.values():
        np.testing.assert_array_equal(volume[:], TRUTH)
        np.testing.assert_allclose(volume.voxel_size_nm, SIZE_NM)
    for case, name in zip(cases, ("a", "a_2", "a_3"), strict=True):
        assert (case["count"], case["warnings"]) == (3, [])
        assert volumes_um3(tmp_path / "out" / f"{name}_instances.csv") == EXPECTED_UM3
        assert (tmp_path / "out" / f"{name}_preview.png").is_file()
    (_, nifti_out, _) = written
    np.testing.assert_allclose(nib.load(tmp_path / "out" / nifti_out).affine, nifti.affine)


def test_a_folder_of_sections(segment, tmp_path):
    written, (case,), said = segment(write_sections(tmp_path / "im"))
    np.testing.assert_array_equal(written["im_instances"][:], TRUTH)
    assert sorted(p.name for p in (tmp_path / "out" / "im_instances").iterdir())[0] == "im0008.png"
    assert "--voxel_size_nm" in case["warnings"][0]
    assert case["warnings"][0] in said
    assert {row["volume_um3"] for row in csv.DictReader((tmp_path / "out" / "im_instances.csv").open())} == {""}


def write_finer(path: Path, sections_nm: float) -> tuple[Path, np.ndarray]:
    """The blocks in voxels half as wide, and the labels there."""
    finer_nm = (sections_nm, SIZE_NM[1] / 2, SIZE_NM[2] / 2)
    image, truth = (volume.repeat(2, axis=1).repeat(2, axis=2) for volume in (IMAGE, TRUTH))
    with create_ome_zarr(path, image.shape, np.uint8, finer_nm, (4, 32, 32)) as voxels:
        voxels[:] = image
    return path, truth


@pytest.mark.parametrize("decoding", ["connected_components", "watershed"])
def test_the_network_sees_the_voxel_size_that_it_learnt(segment, tmp_path, decoding):
    source, truth = write_finer(tmp_path / "a.ome.zarr", SIZE_NM[0])
    options = ("--decoding", decoding, "--foreground_threshold", 0.5)
    written, (case,), said = segment(source, *options, "--preview", "False")
    result = written["a_instances.ome.zarr"]
    np.testing.assert_array_equal(result[:], truth)
    assert result.voxel_size_nm == (30, 4, 5)
    assert volumes_um3(tmp_path / "out" / "a_instances.csv") == EXPECTED_UM3
    assert case["warnings"] == []
    assert "resampled for the network from 30x4x5 to 30x8x10 nm, 6x80x112 to 6x40x56 voxels" in said


def test_monai_label_gets_labels_on_the_grid_of_the_file(bundle, configs, bright, tmp_path):
    source, truth = write_finer(tmp_path / "a.ome.zarr", SIZE_NM[0])
    config = ConfigParser()
    config.read_config(configs / "inference.json")
    config.update({"weights": str(bright), "dilation": [1, 1, 1], "min_size": 1})
    network = bundle.untrained()
    load_weights(bright, network)
    data = config.get_parsed_content("preprocessing")({"image": str(source)})
    with torch.no_grad():
        data["pred"] = config.get_parsed_content("inferer")(data["image"][None], network.eval())[0]
    label = Compose(config.get_parsed_content("post_transforms"))(data)["pred"]
    np.testing.assert_array_equal(label[0].numpy().T, truth)


def test_resampling_can_be_turned_off(segment, tmp_path):
    source, truth = write_finer(tmp_path / "a.ome.zarr", SIZE_NM[0])
    written, (case,), said = segment(source, "--resample", "false", "--preview", "False")
    np.testing.assert_array_equal(written["a_instances.ome.zarr"][:], truth)
    assert "voxels of 30x4x5 nm, but the weights learnt at 30x8x10 nm, and resampling is off" in case["warnings"][0]
    assert "resampled" not in said


def test_sections_thicker_than_the_weights_learnt_are_warned_of(segment, tmp_path):
    source, truth = write_finer(tmp_path / "a.ome.zarr", 2 * SIZE_NM[0])
    written, (case,), said = segment(source, "--preview", "False")
    np.testing.assert_array_equal(written["a_instances.ome.zarr"][:], truth)
    assert case["warnings"] == [
        "voxels of 60x4x5 nm are coarser along z than the 30x8x10 nm that the weights learnt at; results may suffer."
    ]
    assert "6x80x112 to 12x40x56 voxels" in said


def test_tiff_stack_in_windows_with_a_voxel_size_from_the_command_line(segment, tmp_path):
    tifffile.imwrite(tmp_path / "stack.tif", IMAGE, compression="zlib")
    windows = ("--window", "[4, 32, 32]", "--preview", "False")
    written, _, _ = segment(tmp_path / "stack.tif", *windows, "--voxel_size_nm", "[30, 8, 10]")
    np.testing.assert_array_equal(written["stack_instances.tif"][:], TRUTH)
    assert volumes_um3(tmp_path / "out" / "stack_instances.csv") == EXPECTED_UM3
    assert not list((tmp_path / "out").glob("*.png"))


def test_sixteen_bits_in_one_of_two_data_sets_with_sixteen_predictions(segment, tmp_path):
    # neither range of grey values nor flips and transposition change what is found
    grey = IMAGE.astype(np.uint16) * 50 + 30_000
    write_hdf5(tmp_path / "two.h5", 0 * IMAGE, "empty")
    write_hdf5(tmp_path / "two.h5", grey, "raw")
    written, (case,), _ = segment(f"{tmp_path / 'two.h5'}:raw", "--test_time_augmentation", 16)
    np.testing.assert_array_equal(written["two_instances.h5"][:], TRUTH)
    assert case["warnings"] == []


def test_one_section_with_four_predictions(segment, tmp_path):
    Image.fromarray(IMAGE[1]).save(tmp_path / "section.png")
    written, _, _ = segment(tmp_path / "section.png", "--test_time_augmentation", 4)
    np.testing.assert_array_equal(written["section_instances"][:], TRUTH[1:2])


def test_without_input_a_phantom_is_segmented(infer, tmp_path):
    shape = (5, 64, 80)
    out, _ = infer(None, "--phantom_dir", tmp_path / "phantom", "--phantom_shape", list(shape))
    image = open_chunked_volume(tmp_path / "phantom" / "test_0.ome.zarr")
    instances = open_chunked_volume(out / "test_0_instances.ome.zarr")
    assert image.shape == instances.shape == shape
    assert image.voxel_size_nm == instances.voxel_size_nm


def test_nothing_found_is_said(segment, tmp_path):
    write_hdf5(tmp_path / "empty.h5", 0 * IMAGE)
    written, (case,), said = segment(tmp_path / "empty.h5")
    assert not written["empty_instances.h5"][:].any()
    assert case["warnings"] == [
        "no tissue: all voxels are blank (one value, or not a number); check the file.",
        "no instance found.",
    ]
    assert "no instance found." in said
    assert volumes_um3(tmp_path / "out" / "empty_instances.csv") == []


def test_watershed_keeps_what_does_not_touch(segment, tmp_path):
    written, _, _ = segment(write_hdf5(tmp_path / "a.h5"), "--decoding", "watershed", "--preview", "False")
    np.testing.assert_array_equal(written["a_instances.h5"][:], TRUTH)


# ------------------------------------------------------------------------------------ training and evaluation


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """A prepared data set of one volume of blocks."""
    folder = tmp_path_factory.mktemp("blocks")
    write_zarr(folder / "a.ome.zarr", TRUTH)
    pair = {"image": "a.ome.zarr", "label": "a.ome.zarr/labels/mitochondria"}
    (folder / "dataset.json").write_text(json.dumps({"training": [pair], "validation": [pair], "test": [pair]}))
    return folder


@pytest.fixture
def run(monai_bundle, bundle, configs, dataset, tmp_path):
    """Run overlays of train.json on the blocks at a small size; the completed process."""

    def run(names: str, *overrides: object):
        files = str([str(configs / f"{name}.json") for name in ("train", *names.split())])
        process = monai_bundle(
            "run", "--config_file", files, "--dataset_dir", dataset, "--device", "cpu", "--num_workers", 0,
            *bundle.network_overrides, *EXACT, *overrides,
            "--output_dir", tmp_path / "out", "--ckpt_dir", tmp_path / "models",
        )  # fmt: skip
        assert process.returncode == 0, process.stderr
        return process

    return run


@pytest.fixture
def installed(bright, tmp_path) -> Path:
    """Weights that find every block, where training leaves its own."""
    (tmp_path / "models").mkdir()
    for suffix in (".pt", ".json"):
        shutil.copy(bright.with_suffix(suffix), tmp_path / "models" / f"model{suffix}")
    return tmp_path / "models" / "model.pt"


def state(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, map_location="cpu", weights_only=True)


def is_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.usefixtures("installed")
def test_evaluation_of_a_segmentation_without_errors(run, tmp_path):
    process = run("evaluate", "--size_limits", "[500, 1000]")
    (row,) = csv.DictReader((tmp_path / "out" / "per_case.csv").open())
    assert (row["case"], row["label"]) == ("a", "instances")
    perfect = (
        "ap75",
        "ap50",
        "ap",
        "ap75_small",
        "ap75_large",
        "foreground_dice",
        "accuracy_75",
        "panoptic_quality_50",
    )
    assert [name for name in perfect if float(row[name]) != 1] == []
    assert row["ap75_medium"] in ("", "nan")  # no instance of that size: 288, 480 and 1300 voxels
    assert [float(row[name]) for name in ("one_to_one", "split", "merged", "missing")] == [3, 0, 0, 0]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())["labels"]["instances"]
    assert summary["ap75"]["mean"] == 1
    matches = list(csv.DictReader((tmp_path / "out" / "a_matches.csv").open()))
    found = [(row["prediction_id"], row["truth_id"], row["truth_voxels"], row["iou"]) for row in matches]
    assert found == [(i, i, n, "1.0") for i, n in (("2", "1300"), ("1", "480"), ("3", "288"))]  # the largest first
    assert "ap75" in process.stderr


@pytest.mark.usefixtures("installed")
def test_evaluation_of_another_voxel_size_is_on_the_grid_of_the_labels(run, dataset, tmp_path):
    (tmp_path / "finer").mkdir()
    source, truth = write_finer(tmp_path / "finer" / "a.ome.zarr", SIZE_NM[0])
    with create_ome_zarr_label(source, "mitochondria", np.uint8) as voxels:
        voxels[:] = truth
    shutil.copy(dataset / "dataset.json", source.parent)
    process = run("evaluate", "--dataset_dir", source.parent)
    (row,) = csv.DictReader((tmp_path / "out" / "per_case.csv").open())
    assert (float(row["ap75"]), float(row["foreground_dice"])) == (1, 1)
    assert "6x80x112 to 6x40x56 voxels" in process.stderr

    process = run("evaluate", "--dataset_dir", source.parent, "--resample", False)
    assert "resampling is off: use --resample True" in process.stderr
    run("tune", "--dataset_dir", source.parent, "--split", "test", "--mask_thresholds", "[0.9]")
    assert json.loads((tmp_path / "out" / "thresholds.json").read_text())["ap75"] == 1


@pytest.mark.usefixtures("installed")
def test_tuning_finds_thresholds_that_segment_without_errors(run, tmp_path):
    # no probability is above 1
    process = run("tune", "--mask_thresholds", "[1.0, 0.9]", "--boundary_thresholds", "[0.5, 0.8]")
    best = json.loads((tmp_path / "out" / "thresholds.json").read_text())
    assert (best["ap75"], best["ap50"], best["mask_threshold"], best["cases"]) == (1, 1, 0.9, 1)
    assert "--decoding connected_components --mask_threshold 0.9 --boundary_threshold" in process.stderr
    assert len(list(csv.DictReader((tmp_path / "out" / "thresholds.csv").open()))) == 4
    assert (tmp_path / "out" / "thresholds.png").read_bytes()[:4] == b"\x89PNG"


SHORT = ("--spatial_size", "[4, 32, 48]", "--epoch_iterations", 2, "--margin_pixels", 8, "--val_interval", 1)


def test_second_stage_leaves_weights_that_are_not_beaten(run, installed, bright, tmp_path):
    # from weights without an error, at a rate that ruins them
    run("train_second_stage", *SHORT, "--max_epochs", 2, "--learning_rate", 0.5)
    assert is_same(state(installed), state(bright))
    assert not is_same(state(tmp_path / "out" / "checkpoint_completed.pt")["objects"]["network"], state(bright))


def test_second_stage_starts_from_the_installed_weights(run, bright, tmp_path):
    run("train_second_stage", *SHORT, "--max_epochs", 1, "--learning_rate", 1e-300, "--weights", bright)
    completed = state(tmp_path / "out" / "checkpoint_completed.pt")
    assert is_same(completed["objects"]["network"], state(bright))
    assert completed["objects"]["best_weights"]["best_metric"] == 1


def test_resumed_second_stage_keeps_the_best_of_the_epochs_before(run, installed, bundle, tmp_path):
    arguments = ("train_second_stage", *SHORT, "--max_epochs", 2, "--learning_rate", 1e-300)
    run(*arguments)
    # as if it had been killed after a first epoch better than any other
    better, out = bundle.untrained(), tmp_path / "out"
    save_weights(out / "model.pt", better, {"epoch": 1})
    checkpoint = state(out / "checkpoint_completed.pt")
    checkpoint["epoch"], checkpoint["objects"]["best_weights"] = 1, {"best_metric": 1.5, "best_epoch": 1}
    torch.save(checkpoint, out / "checkpoint.pt")
    assert "continuing after epoch 1" in run(*arguments).stderr
    assert is_same(state(installed), better.state_dict())


def test_fine_tuning_is_at_the_voxel_size_that_the_weights_learnt(run, installed, bright, dataset, tmp_path):
    (tmp_path / "finer").mkdir()
    source, truth = write_finer(tmp_path / "finer" / "a.ome.zarr", SIZE_NM[0])
    with create_ome_zarr_label(source, "mitochondria", np.uint8) as voxels:
        voxels[:] = truth
    shutil.copy(dataset / "dataset.json", source.parent)
    # the weights say another one, and know no boundaries
    size = ("--phantom#spatial_size", "[4, 999, 999]", "--max_epochs", 1, "--outline_threshold", 0)
    process = run("finetune", *SHORT[2:], *size, "--learning_rate", 1e-300, "--dataset_dir", source.parent)
    assert process.stderr.count("6x80x112 to 6x40x56 voxels") >= 2  # training and validation
    completed = state(tmp_path / "out" / "checkpoint_completed.pt")
    assert is_same(completed["objects"]["network"], state(bright))
    assert completed["objects"]["best_weights"]["best_metric"] == 1
    run("finetune", *SHORT[2:], *size, "--learning_rate", 0.5, "--dataset_dir", source.parent)
    assert is_same(state(installed), state(bright))


def test_two_decoders_train_and_find_what_one_finds(run, infer, bundle, configs, brightness_weights, tmp_path):
    network = ResUNetH(**bundle.small.arguments)
    run("train_h", *SHORT, "--max_epochs", 1)
    load_weights(tmp_path / "models" / "model_h.pt", network)
    assert json.loads((tmp_path / "models" / "model_h.json").read_text())["spatial_size"] == [4, 32, 48]
    files = str([str(configs / "inference.json"), str(configs / "inference_h.json")])
    source = write_hdf5(tmp_path / "a.h5")
    overrides = (*EXACT, "--config_file", files)  # the last of two is taken
    out, _ = infer(source, *overrides, model=brightness_weights(network))
    np.testing.assert_array_equal(open_chunked_volume(out / "a_instances.h5")[:], TRUTH)


def test_released_schedule_and_plain_residual_blocks(run, bundle, tmp_path):
    run("train_released", *SHORT, "--max_epochs", 2, "--network_def#block", "residual")
    completed = state(tmp_path / "out" / "checkpoint_completed.pt")
    weights, biases = completed["objects"]["optimizer"]["param_groups"]
    assert (weights["weight_decay"], biases["weight_decay"]) == (1e-4, 0)
    assert weights["lr"] == pytest.approx(1e-4 * 5 / 1000)  # after four iterations of the warm-up
    network = type(bundle.untrained())(**bundle.small.arguments, block="residual")
    load_weights(tmp_path / "models" / "model.pt", network)


RECIPE = """
import json, sys
from monai.bundle import create_workflow
workflow = create_workflow("ConfigWorkflow", config_file=sys.argv[1].split(), workflow_type="train",
                           dataset_dir=sys.argv[2])
workflow.initialize()
get = workflow.parser.get_parsed_content
names = ("spatial_size", "batch_size", "epoch_iterations", "max_epochs", "amp", "window", "window_padding")
group = get("optimizer").param_groups[0]
factors = [get("lr_scheduler").lr_lambdas[0](i) for i in (0, 10, 19_999)]
print(json.dumps([{n: get(n) for n in names}, type(get("optimizer")).__name__, group["weight_decay"],
                  group["initial_lr"], factors]))
"""


@pytest.mark.parametrize(
    ("names", "size", "epochs", "decay", "factors"),
    [
        ("train", [32, 256, 256], 100, 0, [1, 1, 1]),
        ("train train_second_stage", [26, 320, 320], 50, 0, [1, 1, 1]),
        ("train train_released", [32, 256, 256], 1000, 1e-4, [0.001, 0.011, 1]),
    ],
)
def test_recipes_on_real_data(runner, configs, dataset, names, size, epochs, decay, factors):
    files = " ".join(str(configs / f"{name}.json") for name in names.split())
    process = runner.python(RECIPE, files, dataset)
    assert process.returncode == 0, process.stderr
    values, optimizer, *found = json.loads(process.stdout.splitlines()[-1])
    assert (optimizer, found) == ("Adam", [decay, 1e-4, factors])
    assert values == {
        "spatial_size": size, "batch_size": 2, "epoch_iterations": 200, "max_epochs": epochs, "amp": False,
        "window": [100, 256, 256], "window_padding": [0, 0.5, 0.5],
    }  # fmt: skip


def test_the_second_network_keeps_its_data_format(monai_bundle, configs, tmp_path):
    metadata = json.loads((configs / "metadata.json").read_text())
    # MONAI verifies the first network's block alone
    metadata["network_data_format"] = metadata["resunet_h_data_format"]
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    process = monai_bundle(
        "verify_net_in_out", "network_def", "--meta_file", tmp_path / "metadata.json",
        "--config_file", str([str(configs / "inference.json"), str(configs / "inference_h.json")]),
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert "verified with no error" in process.stdout
