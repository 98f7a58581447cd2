# SPDX-License-Identifier: Apache-2.0
"""What is V-Net's own of the workflows: recipes, baseline, PROMISE12's measures, and real MRI where it is at hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
import torch

from volseg.data.volume_reader import load_volume

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "prostate"
needs_real_mri = pytest.mark.skipif(not REAL.is_dir(), reason=f"no MRI under {REAL}")


@pytest.fixture
def run(monai_bundle, configs, tmp_path):
    """Run configs of the bundle; the completed process."""

    def run(names: str, *overrides: object):
        files = str([str(configs / f"{name}.json") for name in names.split()])
        folders = ("--output_dir", tmp_path / "out", "--ckpt_dir", tmp_path / "models")
        process = monai_bundle("run", "--config_file", files, *overrides, *folders)
        assert process.returncode == 0, process.stderr
        return process

    return run


def record(folder: Path) -> dict:
    return json.loads((folder / "models" / "model.json").read_text())


OPTIMISER = """
import json, sys
from monai.bundle import create_workflow
overrides = json.loads(sys.argv[2])
files = sys.argv[1].split()
workflow = create_workflow("ConfigWorkflow", config_file=files, workflow_type="train", **overrides)
workflow.initialize()
parser = workflow.parser
optimizer = parser.get_parsed_content("optimizer")
schedule = parser.get_parsed_content("lr_scheduler")
values = {name: parser.get_parsed_content(name) for name in ("spacing_mm", "spatial_size", "norm", "amp", "batch_size")}
groups = [{k: g[k] for k in ("lr", "weight_decay", "momentum") if k in g} for g in optimizer.param_groups]
loss = type(parser.get_parsed_content("loss")).__name__
print(json.dumps([type(optimizer).__name__, groups, type(schedule).__name__, values, loss]))
"""


@pytest.fixture
def recipe(runner, bundle, configs, case, tmp_path):
    """What a training on real data is made of."""

    def build(names: str, **overrides: object) -> list:
        files = " ".join(str(configs / f"{name}.json") for name in names.split())
        narrow = {f"network_def#{k}": v for k, v in bundle.small.arguments.items()}
        given = {"dataset_dir": str(case), "output_dir": str(tmp_path / "out"), **narrow, **overrides}
        process = runner.python(OPTIMISER, files, json.dumps(given))
        assert process.returncode == 0, process.stderr
        return json.loads(process.stdout.splitlines()[-1])

    return build


def test_recipe_on_real_data_is_the_papers(recipe):
    optimizer, groups, schedule, values, loss = recipe("train")
    assert (optimizer, schedule, loss) == ("SGD", "StepLR", "DiceLoss")
    assert groups == [
        {"lr": 4e-4, "weight_decay": 1.25e-4, "momentum": 0.99},
        {"lr": 8e-4, "weight_decay": 0.0, "momentum": 0.99},
    ]
    assert values == {
        "spacing_mm": [1.0, 1.0, 1.5], "spatial_size": [128, 128, 64], "norm": None, "amp": False, "batch_size": 2,
    }  # fmt: skip


def test_practical_overlay_keeps_the_papers_grid(recipe):
    optimizer, _, schedule, values, loss = recipe("train train_practical")
    assert (optimizer, schedule, loss) == ("AdamW", "CosineAnnealingLR", "DiceCELoss")
    assert values == {
        "spacing_mm": [1.0, 1.0, 1.5], "spatial_size": [128, 128, 64], "norm": "instance",
        "amp": torch.cuda.is_available(), "batch_size": 2,
    }  # fmt: skip


def test_logistic_baseline_differs_in_the_loss_alone(recipe):
    paper, baseline = recipe("train"), recipe("train train_logistic")
    assert baseline[:4] == paper[:4]
    assert (paper[4], baseline[4]) == ("DiceLoss", "WeightedLogisticLoss")


@pytest.mark.parametrize(
    ("names", "norm"), [("train", None), ("train train_practical", "instance"), ("train train_logistic", None)]
)
def test_recipes_and_baseline_train_and_are_evaluated(run, phantom_overrides, train_overrides, tmp_path, names, norm):
    run(names, *train_overrides, "--val_interval", 1)
    assert record(tmp_path)["norm"] == norm
    run("train evaluate", *phantom_overrides)  # the norm is found beside the weights
    assert (tmp_path / "out" / "per_case.csv").is_file()


def test_released_weights_are_narrow_and_learn_from_varied_phantoms(run, tmp_path):
    phantoms = (
        "--phantom_dir", tmp_path / "varied", "--phantom_cases", "{'training': 2, 'validation': 1, 'test': 1}",
        "--phantom_shape", "[48, 40, 16]", "--device", "cpu",
    )  # fmt: skip
    overlays = "train train_practical train_released"
    run(
        overlays, *phantoms, "--num_workers", 0, "--max_epochs", 1, "--val_interval", 1,
        "--train#dataloader#sampler#num_samples", 2,
    )  # fmt: skip
    known = {"channels": [8, 16, 32, 48, 96], "norm": "instance", "local_contrast_mm": 20.0}
    assert record(tmp_path).items() >= known.items()
    weights = tmp_path / "models" / "model.pt"
    assert weights.stat().st_size < 25e6
    assert {v.dtype for v in torch.load(weights, weights_only=True).values()} == {torch.float16}
    run(f"{overlays} evaluate", *phantoms)
    assert (tmp_path / "out" / "per_case.csv").is_file()


def test_two_processes_keep_one_average(runner, bundle, configs, train_overrides, tmp_path):
    files = str([str(configs / f"{name}.json") for name in ("train", "train_practical", "multi_gpu_train")])
    device = train_overrides.index("--device")
    process = runner.process(
        "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, "-m", "monai.bundle",
        "run", "--config_file", files, *train_overrides[:device], *train_overrides[device + 2 :], "--max_epochs", 2,
        "--output_dir", tmp_path / "out", "--ckpt_dir", tmp_path / "models", env={"CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    kept = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    trained = torch.load(tmp_path / "out" / "checkpoint_completed.pt", weights_only=True)["objects"]
    torch.testing.assert_close(kept, trained["averaged_network"], rtol=0, atol=0)
    assert any(not torch.equal(kept[key], trained["network"][key]) for key in kept)  # the average lags


def test_fine_tuning_begins_with_the_weights_on_their_grid(run, phantom_overrides, weights, tmp_path):
    short = ("--max_epochs", 1, "--val_interval", 1, "--num_workers", 0, "--learning_rate", 1e-30)
    run("train train_practical finetune", *phantom_overrides, *short, "--weights", weights)
    completed = torch.load(tmp_path / "out" / "checkpoint_completed.pt", weights_only=True)
    expected = torch.load(weights, weights_only=True)
    network = completed["objects"]["network"]
    torch.testing.assert_close(network, {key: value.float() for key, value in expected.items()}, rtol=0, atol=1e-20)
    assert not (tmp_path / "models").exists()  # no better than the weights it began with


def test_evaluation_has_promise12s_measures_and_no_score_without_an_observer(run, phantom_overrides, weights, tmp_path):
    run("train evaluate", *phantom_overrides, "--weights", weights)
    rows = list(csv.DictReader((tmp_path / "out" / "per_case.csv").open()))
    assert [(row["case"], row["label"]) for row in rows] == [("test_0", r) for r in ("whole", "base", "apex")]
    assert {"dice", "hausdorff_95_mm", "average_boundary_distance_mm"} <= rows[0].keys()
    assert "challenge_score" not in rows[0]
    assert set(json.loads((tmp_path / "out" / "summary.json").read_text())["labels"]) == {"whole", "base", "apex"}


def test_the_floor_is_scored_like_the_network(run, phantom_overrides, weights, tmp_path):
    process = run("train evaluate", *phantom_overrides, "--weights", weights)
    assert "location prior of 2 masks" in process.stderr
    rows = list(csv.DictReader((tmp_path / "out" / "floor" / "per_case.csv").open()))
    assert [(row["case"], row["label"]) for row in rows] == [("test_0", r) for r in ("whole", "base", "apex")]
    assert 0.3 < float(rows[0]["dice"]) < 1
    assert f"floor: whole dice {float(rows[0]['dice']):.3f}" in process.stderr


def test_no_floor_without_training_masks(run, phantom, weights, tmp_path):
    pair = {key: str(path) for key, path in phantom.items() if key in ("image", "label")}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset.json").write_text(json.dumps({"training": [], "validation": [], "test": [pair]}))
    run("train evaluate", "--dataset_dir", tmp_path / "data", "--weights", weights)
    assert (tmp_path / "out" / "per_case.csv").is_file()
    assert not (tmp_path / "out" / "floor").exists()


def test_evaluation_scores_where_an_observer_is_given(run, phantom_overrides, weights, tmp_path):
    measures = {
        "dice": 0.9, "absolute_relative_volume_difference_percent": 10.0,
        "average_boundary_distance_mm": 2.0, "hausdorff_95_mm": 6.0,
    }  # fmt: skip
    observer = dict.fromkeys(("whole", "base", "apex"), measures)
    run("train evaluate", *phantom_overrides, "--weights", weights, "--observer", json.dumps(observer))
    rows = list(csv.DictReader((tmp_path / "out" / "per_case.csv").open()))
    assert 0 <= float(rows[0]["challenge_score"]) <= 100


def test_bias_correction_is_applied_and_recorded(run, train_overrides, tmp_path):
    run("train", *train_overrides, "--bias_correction", "True", "--val_interval", 1)
    assert record(tmp_path)["bias_correction"] is True


def test_one_component_is_kept(infer, phantom, labels_on_the_grid_of):
    from skimage.measure import label

    out, _ = infer(phantom["image"], "--preview", "False")
    mask = labels_on_the_grid_of(phantom["image"], out / "test_0_prostate.nii.gz")
    assert mask.any()
    assert label(mask, connectivity=1).max() == 1
    (case,) = json.loads((out / "statistics.json").read_text())
    voxel_ml = abs(np.linalg.det(load_volume(phantom["image"]).affine[:3, :3])) / 1000
    assert case["gland_ml"] == pytest.approx(mask.sum() * voxel_ml, abs=0.01)


# ---------------------------------------------------------------------------------------------------- real MRI


@needs_real_mri
def test_real_oblique_mri_keeps_its_geometry(infer, labels_on_the_grid_of):
    out, _ = infer(REAL / "prostatex_t2", "--preview", "False")
    sources = sorted((REAL / "prostatex_t2").glob("*.nii.gz"))
    assert len(sources) == 3
    for source in sources:
        segmentation = out / source.name.replace(".nii.gz", "_prostate.nii.gz")
        labels_on_the_grid_of(source, segmentation)
        # not within a tolerance: what the file says
        assert np.array_equal(nib.load(segmentation).affine, nib.load(source).affine)


@needs_real_mri
def test_real_anatomy_is_learnt_and_segmented_back(run, monai_bundle, configs, tmp_path):
    """One PROMISE12 case, by a V-Net of a quarter of the width on a coarse grid, in 160 iterations."""
    dataset, files = tmp_path / "dataset", {kind: f"{kind}.nii.gz" for kind in ("image", "label")}
    dataset.mkdir()
    affine = np.diag([0.9, 0.9, 2.2, 1])  # the file holds no spacing
    with h5py.File(REAL / "promise12_pairs" / "demo2.h5") as pairs:
        for kind, name in files.items():  # stored (z, y, x)
            nib.save(nib.Nifti1Image(pairs[f"{kind}0"][:].T.astype(np.int16), affine), dataset / name)
    content = {"training": [files] * 4, "validation": [files], "test": [files]}
    (dataset / "dataset.json").write_text(json.dumps(content))
    narrow = ("--network_def#channels", "[4, 8, 16, 32, 64]", "--device", "cpu")
    run(
        "train train_practical", "--dataset_dir", dataset, *narrow, "--batch_size", 1, "--num_workers", 0,
        "--spacing_mm", "[2.4, 2.4, 2.2]", "--spatial_size", "[48, 48, 32]", "--max_epochs", 40, "--val_interval", 40,
        "--train#random_transforms", "[]", "--mirror_probability", 0,
    )  # fmt: skip
    process = monai_bundle(
        "run", "--config_file", configs / "inference.json", "--input", dataset / "image.nii.gz", *narrow,
        "--weights", tmp_path / "models" / "model.pt", "--output_dir", tmp_path / "segmented",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    mask, truth = (
        np.asarray(nib.load(path).dataobj) > 0
        for path in (tmp_path / "segmented" / "image_prostate.nii.gz", dataset / "label.nii.gz")
    )
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) >= 0.95
