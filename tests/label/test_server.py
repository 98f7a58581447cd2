# SPDX-License-Identifier: Apache-2.0
"""The three bundles in a real MONAI Label server, over REST as 3D Slicer speaks it; tests build on each other."""

from __future__ import annotations

import hashlib
import shutil
import signal
import socket
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile

from tests.label.label_client import TIMEOUT_S, Client, save_nifti
from tools.label.server import LabelServer

MODELS = ["pdvnet_lung", "resunet_mitoem", "vnet_prostate"]
TWO_EPOCHS = {"device": "cpu", "max_epochs": 2, "val_split": 0.0, "multi_gpu": False, "tracking": "None"}


@pytest.fixture(scope="module")
def first_start(label_python, app, studies, free_port):
    server = LabelServer(label_python, app, studies, MODELS, port=free_port)
    with server.running():
        yield Client(server.address)


@pytest.fixture(scope="module")
def before_training() -> dict[str, np.ndarray]:
    """Label maps of the weights that the bundles came with, by model."""
    return {}


def weights(app: Path, model: str, name: str = "model.pt") -> str:
    return hashlib.sha256((app / "model" / model / "models" / name).read_bytes()).hexdigest()


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero((a > 0) & (b > 0)) / (np.count_nonzero(a) + np.count_nonzero(b))


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_bundles_show_their_labels_and_options(first_start, vnet_weights):
    info = first_start.get("/info/")
    # V-Net had no weights when the server started
    assert sorted(info["models"]) == ["pdvnet_lung", "resunet_mitoem"]
    assert sorted(info["trainers"]) == MODELS
    assert info["models"]["pdvnet_lung"]["labels"] == {"lul": 1, "lll": 2, "rul": 3, "rml": 4, "rll": 5}
    options = info["models"]["resunet_mitoem"]["config"]
    assert options["decoding"] == ["watershed", "connected_components"]
    assert options["test_time_augmentation"] == ["0", "4", "16"]
    names = ("mask_threshold", "boundary_threshold", "foreground_threshold", "outline_threshold", "overlap")
    assert [options[name] for name in names] == [0.5, 0.5, 0.45, 0.8, 0.5]
    assert "decoding" not in info["models"]["pdvnet_lung"]["config"]
    assert info["datastore"]["total"] == 6


def test_missing_weights_are_named_and_found_without_another_start(first_start, app, vnet_weights, tmp_path):
    aside = vnet_weights.rename(tmp_path / "model.pt")
    answer = first_start.infer("vnet_prostate", "mri_0")
    assert answer.status_code == 400
    assert f"vnet_prostate: no weights, {vnet_weights} is missing; train them" in answer.json()["detail"]
    vnet_weights.write_bytes(aside.read_bytes())
    assert first_start.infer("vnet_prostate", "mri_0").status_code == 200
    assert first_start.get("/info/")["models"]["vnet_prostate"]["labels"] == {"prostate": 1}


@pytest.mark.parametrize(
    ("model", "image", "values", "least_dice"),
    [
        ("pdvnet_lung", "ct_0", range(6), 0.9),
        ("vnet_prostate", "mri_0", range(2), 0.0),  # random weights
        ("resunet_mitoem", "em_0", range(256), 0.8),
    ],
)
def test_answers_lie_on_the_grid_of_the_input(
    first_start, studies, truth, before_training, tmp_path, model, image, values, least_dice
):
    path = first_start.segment(model, image, tmp_path)
    labels, given = nib.load(path), nib.load(studies / f"{image}.nii.gz")
    assert labels.shape == given.shape
    np.testing.assert_allclose(labels.affine, given.affine, atol=1e-4)
    before_training[model] = voxels(path)
    assert set(np.unique(before_training[model])) <= set(values)
    assert dice(before_training[model], voxels(truth / f"{image}.nii.gz")) >= least_dice


def test_tiff_in_tiff_out(first_start, studies, truth, tmp_path):
    path = first_start.segment("resunet_mitoem", "em_1", tmp_path)
    assert path.suffix == ".tif"
    labels = tifffile.imread(path)
    assert labels.shape == tifffile.imread(studies / "em_1.tif").shape
    assert dice(labels, voxels(truth / "em_1.nii.gz").T) > 0.8


def test_options_are_obeyed(first_start, tmp_path, before_training):
    em = before_training["resunet_mitoem"]
    mask = voxels(first_start.segment("resunet_mitoem", "em_0", tmp_path, label_as="mask"))
    np.testing.assert_array_equal(mask, em > 0)
    lower = {"mask_threshold": 0.3, "foreground_threshold": 0.3, "outline_threshold": 0.0}
    grown = first_start.segment("resunet_mitoem", "em_0", tmp_path, **lower)
    assert np.count_nonzero(voxels(grown)) > np.count_nonzero(em)
    averaged = first_start.segment("resunet_mitoem", "em_0", tmp_path, test_time_augmentation="4")
    assert 0 < np.count_nonzero(voxels(averaged) != em) < em.size / 10
    # options of one request do not stay for the next
    np.testing.assert_array_equal(voxels(first_start.segment("resunet_mitoem", "em_0", tmp_path)), em)
    none = first_start.segment("vnet_prostate", "mri_0", tmp_path, probability_threshold=1.0)
    assert not voxels(none).any()


def test_mistakes_are_answered_with_one_line(first_start, studies):
    def answer(model: str, image: str) -> str:
        answered = first_start.infer(model, image)
        assert answered.status_code == 400
        return answered.json()["detail"]

    save_nifti(studies / "series.nii.gz", np.zeros((8, 8, 8, 2), np.int16), np.eye(4))
    deadline = time.monotonic() + TIMEOUT_S
    while first_start.get("/datastore/")["total"] < 7 and time.monotonic() < deadline:
        time.sleep(0.2)
    for model in ("pdvnet_lung", "vnet_prostate"):
        assert "must be one 3-D volume, got 8x8x8x2;" in answer(model, "series")
    assert "series.nii.gz" in answer("resunet_mitoem", "series")
    assert "must be Hounsfield units" in answer("pdvnet_lung", "mri_0")
    for file, reason in (("model_h.pt", "weights of another network"), ("old.pt", "no weights named old.pt")):
        refused = first_start.infer("resunet_mitoem", "em_0", model_filename=file)
        assert refused.status_code == 400
        assert reason in refused.json()["detail"]
    assert "nobody: no such image in the studies" in answer("pdvnet_lung", "nobody")
    assert "There is no model 'nothing' available" in answer("nothing", "ct_0")
    training = first_start.post("/train/pdvnet_lung", TWO_EPOCHS, run_sync="true")
    assert training.status_code == 400
    assert "nothing to train on, got 0 cases" in training.json()["detail"]
    (studies / "series.nii.gz").unlink()


@pytest.mark.parametrize(
    ("model", "images", "val_split"),
    [
        ("pdvnet_lung", ["ct_0", "ct_1"], 0.5),
        ("vnet_prostate", ["mri_0"], 0.0),
        ("resunet_mitoem", ["em_0", "em_1"], 0.0),
    ],
)
def test_training_on_saved_labels_changes_the_answers(
    first_start, app, truth, before_training, vnet_weights, tmp_path, model, images, val_split
):
    for image in images:
        first_start.save_label(image, truth / f"{image}.nii.gz")
    assert len(first_start.get("/datastore/", output="train")) == len(images)
    released = weights(app, model)
    started = first_start.post(f"/train/{model}", {**TWO_EPOCHS, "val_split": val_split})
    assert started.status_code == 200, started.text
    ended = first_start.wait_for("train")
    assert ended["status"] == "DONE", "\n".join(ended["details"])
    assert weights(app, model) != released
    assert weights(app, model, "model_released.pt") == released
    for image in images:
        first_start.remove_label(image)

    def segmented(**options: str) -> np.ndarray:
        return voxels(first_start.segment(model, images[0], tmp_path, **options))

    assert not np.array_equal(segmented(), before_training[model])
    np.testing.assert_array_equal(segmented(model_filename="model_released.pt"), before_training[model])


def test_batch_inference_labels_every_image(first_start, studies):
    answer = first_start.post("/batch/infer/resunet_mitoem", {"device": "cpu"}, images="all", run_sync="true")
    assert answer.status_code == 200, answer.text
    names = {path.name for path in studies.iterdir() if path.is_file() and path.suffix in (".gz", ".tif")}
    assert {path.name for path in (studies / "labels" / "original").iterdir()} == names
    assert tifffile.imread(studies / "labels" / "original" / "em_1.tif").any()


@pytest.mark.parametrize("strategy", ["first", "random"])
def test_active_learning_offers_an_unlabelled_image(first_start, studies, strategy):
    sample = first_start.post(f"/activelearning/{strategy}").json()
    assert Path(sample["path"]).parent == studies
    assert sample["id"] in {"ct_0", "ct_1", "mri_0", "mri_1", "em_0", "em_1"}


def test_second_start_serves_what_was_learnt_and_scores_images(
    start_command, label_python, app, studies, second_free_port, first_start, vnet_weights, tmp_path
):
    (tmp_path / "em").mkdir()
    for path in studies.glob("em_?.*"):  # the model would score CT and MRI, too, which takes a minute
        shutil.copy(path, tmp_path / "em")
    learnt = {model: weights(app, model) for model in MODELS}
    process, log = start_command(
        "--studies", tmp_path / "em", "--port", second_free_port, "--epistemic_model", "resunet_mitoem",
        "--environment", label_python.parents[1], "--application", app,
    )  # fmt: skip
    deadline = time.monotonic() + TIMEOUT_S
    while "MONAI Label is running" not in log.read_text() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    assert f"type as server: http://127.0.0.1:{second_free_port}" in log.read_text(), log.read_text()
    client = Client(f"http://127.0.0.1:{second_free_port}")
    assert sorted(client.get("/info/")["models"]) == MODELS
    assert {model: weights(app, model) for model in MODELS} == learnt
    assert client.wait_for("scoring")["status"] == "DONE"  # scores are brought up to date at the start
    entropies = [client.get("/datastore/image/info", image=image)["epistemic_entropy"] for image in ("em_0", "em_1")]
    assert all(0 < entropy < 2 * np.exp(-1) for entropy in entropies)
    again = client.post("/scoring/resunet_mitoem", {"device": "cpu"}, run_sync="true").json()
    assert again["executed"] == 0

    process.send_signal(signal.SIGINT)
    assert process.wait(TIMEOUT_S) == 0, log.read_text()
    assert "MONAI Label has stopped" in log.read_text()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", second_free_port)) != 0
