# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import json
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
from vnet_prostate import prepare_data as module
from vnet_prostate.prepare_data import (
    N_FOLDS,
    PROMISE12_SITES,
    prepare_data,
    prepare_msd_task05,
    prepare_promise12,
    site_stratified_folds,
)

from volseg.data.datalist import SPLITS, load_datalist
from volseg.errors import UserError
from volseg.transforms.checks import CheckLabelsd
from volseg.transforms.load_volume import LoadImageVolumed

CONFIG = Path(__file__).parents[3] / "bundles" / "vnet_prostate" / "configs" / "prepare_data.json"
SHAPE = (8, 7, 5)  # x, y, z
SPACING_MM = (0.625, 0.75, 3.6)
ORIGIN_MM = (-20.5, 11.25, -300.0)
ANGLE = np.deg2rad(18)
OBLIQUE = np.array([[1, 0, 0], [0, np.cos(ANGLE), -np.sin(ANGLE)], [0, np.sin(ANGLE), np.cos(ANGLE)]])
TRAINING_IDS = [f"Case{number:02}" for number in range(50)]
TEST_IDS = TRAINING_IDS[:30]


def gland(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, SHAPE, np.uint8)


def write_mhd(path: Path, voxels: np.ndarray, spacing=SPACING_MM, origin=ORIGIN_MM, direction=OBLIQUE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = itk.image_from_array(np.ascontiguousarray(voxels.transpose()))
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction)
    itk.imwrite(image, str(path))


def as_signed_bytes(path: Path) -> None:
    path.write_text(path.read_text().replace("MET_UCHAR", "MET_CHAR"))


def write_case(folder: Path, case_id: str) -> None:
    """The image holds 100 in the prostate, to show that voxels line up."""
    label = gland(int(case_id[-2:]))
    write_mhd(folder / f"{case_id}.mhd", label.astype(np.int16) * 100)
    write_mhd(folder / f"{case_id}_segmentation.mhd", label)
    if int(case_id[-2:]) % 2:  # every other mask is of signed bytes, which ITK for Python cannot write
        as_signed_bytes(folder / f"{case_id}_segmentation.mhd")


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("promise12")
    for case_id in TRAINING_IDS:
        write_case(root, case_id)
    return root


def copy(written: Path, folder: Path, case_ids: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for case_id in case_ids:
        for file in written.glob(f"{case_id}*"):
            (folder / file.name).write_bytes(file.read_bytes())


@pytest.fixture
def promise12(written: Path, tmp_path: Path) -> Path:
    """All 80 cases, unpacked."""
    root = tmp_path / "download"
    copy(written, root / "training_data", TRAINING_IDS)
    copy(written, root / "test_data", TEST_IDS)
    return root


@pytest.fixture
def zips(promise12: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All 80 cases as published: members lie flat."""
    for name in ("training_data", "test_data"):
        archive = promise12 / f"{name}.zip"
        with zipfile.ZipFile(archive, "w") as file:
            for path in sorted((promise12 / name).iterdir()):
                file.write(path, path.name)
                path.unlink()
            file.writestr("__MACOSX/._Case00.mhd", b"\0\5\26\7")
        (promise12 / name).rmdir()
        monkeypatch.setitem(module.ARCHIVE_MD5, archive.name, hashlib.md5(archive.read_bytes()).hexdigest())
    (promise12 / "livechallenge_test_data.zip").write_bytes(b"not looked at")
    return promise12


def msd_affine() -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = OBLIQUE * SPACING_MM
    affine[:3, 3] = (10, -20, 30.5)
    return affine


def zones(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 3, SHAPE, np.uint8)


def write_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, msd_affine() if affine is None else affine), path)


def t2_of(label: np.ndarray) -> np.ndarray:
    return label * np.float32(100.5)


def write_list(folder: Path, numbers: list[int], **changes: object) -> None:
    names = [f"prostate_{number:02}.nii.gz" for number in numbers]
    pairs = [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names]
    content = {"modality": {"0": "T2", "1": "ADC"}, "training": pairs, "test": ["./imagesTs/prostate_03.nii.gz"]}
    (folder / "dataset.json").write_text(json.dumps({**content, **changes}))


@pytest.fixture
def msd(tmp_path: Path) -> Path:
    """Four of the five cases that the list names."""
    root = tmp_path / "msd"
    for number in (0, 1, 2, 4):
        name, label = f"prostate_{number:02}.nii.gz", zones(number)
        image = np.stack([t2_of(label), np.full(SHAPE, 9, np.float32)], axis=-1)
        write_nifti(root / "Task05_Prostate" / "imagesTr" / name, image)
        write_nifti(root / "Task05_Prostate" / "labelsTr" / name, label)
        (root / "Task05_Prostate" / "imagesTr" / f"._{name}").write_bytes(b"\0\5\26\7")
    write_list(root / "Task05_Prostate", [0, 1, 2, 4, 6])
    return root


def raises(words: str, *arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        prepare_data(*arguments, **options)
    text = str(caught.value)
    assert words in text and "\n" not in text
    return text


def read(dataset: Path) -> dict:
    return json.loads((dataset / "dataset.json").read_text())


def case_ids(dataset: Path, split: str) -> list[str]:
    return [Path(entry["image"]).name.split(".")[0] for entry in read(dataset)[split]]


def network_input(case: dict[str, str]) -> tuple[np.ndarray, np.ndarray]:
    data = CheckLabelsd("label", 2)(LoadImageVolumed(["image", "label"])(case))
    return data["image"].numpy(), data["label"].numpy()


def test_folds_are_stratified_disjoint_and_reproducible():
    folds = site_stratified_folds(seed=0)
    assert sorted(folds) == TRAINING_IDS == sorted(case for cases in PROMISE12_SITES.values() for case in cases)
    assert Counter(folds.values()) == dict.fromkeys(range(N_FOLDS), 10)
    for cases in PROMISE12_SITES.values():
        assert set(Counter(folds[case] for case in cases).values()) == {2, 3}
    assert {site: len(cases) for site, cases in PROMISE12_SITES.items()} == {
        "BIDMC": 12,
        "RUNMC": 13,
        "UCL": 13,
        "HK": 12,
    }
    assert site_stratified_folds(seed=0) == folds != site_stratified_folds(seed=1)
    first = [5, 10, 11, 15, 22, 26, 31, 33, 40, 48]  # results name folds, so they must not change
    assert sorted(case for case, fold in folds.items() if fold == 0) == [f"Case{number:02}" for number in first]


def test_promise12_unpacked_is_referenced(promise12: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "out"
    (promise12 / "LICENSE.TXT").write_text("terms")
    assert prepare_promise12(promise12, out) == out / "dataset.json"
    assert sorted(path.name for path in out.iterdir()) == ["dataset.json", "labels"]
    content, folds = read(out), site_stratified_folds()
    assert content["source"] == "promise12" and "j.media.2013.12.002" in content["citation"]
    assert content["labels"] == {"0": "background", "1": "prostate"}
    assert content["licence"].endswith(str(promise12 / "LICENSE.TXT")) and "no redistribution" in content["licence"]
    assert case_ids(out, "test") == TEST_IDS
    assert case_ids(out, "validation") == [case for case in TRAINING_IDS if folds[case] == 0]
    assert case_ids(out, "training") == [case for case in TRAINING_IDS if folds[case] != 0]
    for split in ("training", "validation"):
        for case in load_datalist(out, split):
            name = Path(case["image"]).stem
            assert name in PROMISE12_SITES[case["site"]] and case["fold"] == str(folds[name])
            assert set(np.unique(nib.load(case["label"]).dataobj)) <= {0, 1}
    case = load_datalist(out, "test")[29]
    assert set(case) == {"image", "label"} and case["label"] == str(out / "labels" / "test_Case29.nii.gz")
    image, label = network_input(case)
    np.testing.assert_array_equal(label[0], gland(29))
    np.testing.assert_array_equal(image, 100 * label)
    assert nib.load(case["label"]).get_data_dtype() == np.uint8
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "skipped" not in said
    for words in (
        "80 cases (training 40, validation 10, test 30; split: fold 0 of 5, stratified by site, seed 0; test official)",
        "citation mandatory",
        str(promise12 / "LICENSE.TXT"),
        "cite: Litjens",
    ):
        assert words in said


def test_promise12_every_case_is_in_one_validation_split(promise12: Path, tmp_path: Path):
    held_out = []
    for fold in range(N_FOLDS):
        prepare_promise12(promise12, tmp_path / "out", fold=fold)
        held_out += case_ids(tmp_path / "out", "validation")
        assert not set(case_ids(tmp_path / "out", "training")) & set(case_ids(tmp_path / "out", "validation"))
    assert sorted(held_out) == TRAINING_IDS


def test_promise12_as_older_archives_unpack(written: Path, tmp_path: Path):
    """Three parts for training, and test cases without masks."""
    root = tmp_path / "download"
    for part, case_ids in (("1", TRAINING_IDS[:30]), ("2", TRAINING_IDS[30:40]), ("3", TRAINING_IDS[40:])):
        copy(written, root / f"TrainingData_Part{part}", case_ids)
    copy(written, root / "TestData", TEST_IDS)
    for mask in (root / "TestData").glob("*_segmentation.mhd"):
        mask.unlink()
    content = json.loads(prepare_promise12(root, tmp_path / "out").read_text())
    assert [len(content[split]) for split in SPLITS] == [40, 10, 0]


def test_promise12_zips_are_unpacked_once(zips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:

        def die(*arguments: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(module, "read_itk", die)
        with pytest.raises(KeyboardInterrupt):
            prepare_promise12(zips, out)
    assert sorted(path.name for path in out.iterdir()) == ["test_data", "training_data"]
    left = out / "labels" / ".training_Case00.nii.gz.0123456789ab.unfinished"  # what SIGKILL leaves
    left.mkdir(parents=True)
    (left / "training_Case00.nii.gz").write_bytes(b"half")
    before = (out / "training_data").stat().st_mtime_ns
    prepare_promise12(zips, out)
    assert (out / "training_data").stat().st_mtime_ns == before
    assert len(list((out / "training_data").iterdir())) == 200 and len(list((out / "test_data").iterdir())) == 120
    assert len(list((out / "labels").iterdir())) == 80
    assert read(out)["test"][2] == {"image": "test_data/Case02.mhd", "label": "labels/test_Case02.nii.gz"}
    image, label = network_input(load_datalist(out, "training")[0])
    np.testing.assert_array_equal(image, 100 * label)
    assert "LICENSE.TXT of the record" in read(out)["licence"]


def test_promise12_zips_that_are_not_as_published(zips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    archive = zips / "test_data.zip"
    found, other = module.ARCHIVE_MD5[archive.name], "823ef560f4a54083348e58d67403e4bb"
    monkeypatch.setitem(module.ARCHIVE_MD5, archive.name, other)
    text = raises(f"its MD5 is {found}, must be {other}", "promise12", zips, tmp_path / "out")
    assert text.startswith(str(archive))
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("../Case00.mhd", b"out of the folder")
    monkeypatch.setitem(module.ARCHIVE_MD5, archive.name, hashlib.md5(archive.read_bytes()).hexdigest())
    text = raises("'../Case00.mhd' has a name that leads elsewhere", "promise12", zips, tmp_path / "out")
    assert text.startswith(str(archive))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["training_data"]


def test_promise12_one_level_deeper_with_surprises(
    promise12: Path, written: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    training, test = promise12 / "training_data", promise12 / "test_data"
    training.rename(promise12 / "unpacked")
    training.mkdir()
    training = (promise12 / "unpacked").rename(training / "TrainingData_Part1")
    (training / "._Case00.mhd").write_bytes(b"\0\5\26\7")
    (training / "notes.mhd").write_text("mine")
    (training / "Case04_segmentation.mhd").unlink()
    (training / "Case05.mhd").unlink()
    for file in training.glob("Case06*"):
        file.unlink()
    copy(written, test, ["Case30"])
    write_mhd(test / "Case07_segmentation.mhd", np.zeros(SHAPE, np.uint8))
    prepare_promise12(promise12, tmp_path / "out")
    said = capsys.readouterr().out
    for reason in (
        "1 training image without segmentation",
        "1 training segmentation without image",
        "1 training case not found",
        "1 test case beyond Case29",
        "1 empty segmentation",
    ):
        assert reason in said
    assert "76 cases (training 37, validation 10, test 29;" in said or "76 cases (training 38, validation 9" in said
    assert case_ids(tmp_path / "out", "test") == [case for case in TEST_IDS if case != "Case07"]
    copy(written, promise12 / "training_data", ["Case10"])
    raises("two files for one case", "promise12", promise12, tmp_path / "out")


def test_promise12_flat_files_are_training_cases_if_no_doubt_is_left(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    prepare_promise12(written, tmp_path / "out")
    assert "skipped: 30 test case not found" in capsys.readouterr().out
    assert len(case_ids(tmp_path / "out", "training")) == 40 and case_ids(tmp_path / "out", "test") == []
    copy(written, tmp_path / "flat", ["Case03", "Case29"])
    raises("training from test cases, got Case03, Case03_seg", "promise12", tmp_path / "flat", tmp_path / "out")
    copy(written, tmp_path / "evaluation" / "test_data", ["Case03"])
    prepare_promise12(tmp_path / "evaluation", tmp_path / "evaluation")
    assert [len(case_ids(tmp_path / "evaluation", split)) for split in SPLITS] == [0, 0, 1]  # enough to evaluate


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spacing": (0.625, 0.75, 3.0)}, "spacing (0.625, 0.75, 3) mm against (0.625, 0.75, 3.6) mm"),
        ({"origin": (-20.5, 11.25, -296.4)}, "origin (20.5, -11.25, -296.4) mm against (20.5, -11.25, -300) mm"),
        ({"direction": np.eye(3)}, "direction (-1, 0, 0, 0, -1, 0, 0, 0, 1) against"),
        ({"voxels": gland().transpose(1, 0, 2)}, "shape (7, 8, 5) against (8, 7, 5)"),
        ({"voxels": gland() * np.float32(0.4)}, "label codes are not whole numbers, got 0.4"),
        ({"voxels": gland() * np.uint8(255)}, "label codes must be 0 to 1, got 0 to 255"),
        ({"voxels": gland().astype(np.int16) * np.int16(-1)}, "label codes must be 0 to 1, got -1 to 0"),
    ],
)
def test_promise12_a_segmentation_that_does_not_fit_is_named(written: Path, tmp_path: Path, change: dict, words: str):
    copy(written, tmp_path / "test_data", ["Case00", "Case02"])
    label = tmp_path / "test_data" / "Case02_segmentation.mhd"
    write_mhd(label, **{"voxels": gland(), **change})
    assert raises(words, "promise12", tmp_path, tmp_path / "out").startswith(str(label))
    # the case before it is whole, and nothing else is there
    assert [path.name for path in (tmp_path / "out").rglob("*.*")] == ["test_Case00.nii.gz"]


def test_promise12_voxels_that_are_missing_are_named(written: Path, tmp_path: Path):
    for name, n_bytes in (("Case02", 560), ("Case02_segmentation", 280)):
        copy(written, tmp_path / "test_data", ["Case02"])
        raw = tmp_path / "test_data" / f"{name}.raw"
        raw.write_bytes(raw.read_bytes()[:-1])
        words = f"voxels are missing: {name}.raw has {n_bytes - 1} bytes, needs at least {n_bytes}"
        assert raises(words, "promise12", tmp_path, tmp_path / "out").startswith(str(raw.with_suffix(".mhd")))


def test_msd_t2_and_whole_gland(msd: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "out"
    prepare_msd_task05(msd, out)
    content = read(out)
    assert content["source"] == "msd_task05" and content["licence"] == "CC BY-SA 4.0"
    assert content["labels"] == {"0": "background", "1": "prostate"}
    assert sorted(case for split in SPLITS for case in case_ids(out, split)) == [
        f"prostate_{number:02}" for number in (0, 1, 2, 4)
    ]
    for split in SPLITS:
        for entry, case in zip(content[split], load_datalist(out, split), strict=True):
            name = Path(entry["image"]).name
            assert entry == {"image": f"images/{name}", "label": f"labels/{name}"}
            expected = zones(int(name[9:11]))
            image, label = network_input(case)
            np.testing.assert_array_equal(image[0], t2_of(expected))
            np.testing.assert_array_equal(label[0], expected > 0)
            assert nib.load(case["image"]).get_data_dtype() == np.float32
            np.testing.assert_allclose(nib.load(case["label"]).affine, msd_affine(), atol=1e-5)
    said = capsys.readouterr().out
    assert "4 cases (training 2, validation 1, test 1" in said and "skipped: 1 image or label missing" in said


def test_msd_archive_and_a_killed_run(msd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    archive, out = tmp_path / "Task05_Prostate.tar", tmp_path / "out"
    with tarfile.open(archive, "w") as file:
        file.add(msd / "Task05_Prostate", "Task05_Prostate")
    text = raises("must be 35138f08b1efaef89d7424d2bcc928db", "msd_task05", tmp_path, out)
    assert text.startswith(str(archive)) and not out.exists()
    monkeypatch.setitem(module.ARCHIVE_MD5, archive.name, hashlib.md5(archive.read_bytes()).hexdigest())
    channel, seen = module.nifti_channel, []

    def channel_or_die(path: Path, index: int) -> object:
        seen.append(path.name[9:11])
        if len(seen) == 3:
            raise KeyboardInterrupt
        return channel(path, index)

    monkeypatch.setattr(module, "nifti_channel", channel_or_die)
    with pytest.raises(KeyboardInterrupt):
        prepare_msd_task05(tmp_path, out)
    assert not (out / "dataset.json").exists()
    left = out / "images" / ".prostate_02.nii.gz.0123456789ab.unfinished"  # what SIGKILL leaves
    left.mkdir()
    (left / "prostate_02.nii.gz").write_bytes(b"half")
    prepare_msd_task05(tmp_path, out)
    assert seen == ["00", "01", "02", "02", "04"]
    assert sorted(path.name for path in (out / "images").iterdir()) == [f"prostate_0{i}.nii.gz" for i in (0, 1, 2, 4)]
    unpacked = sorted(path.name for path in (out / "Task05_Prostate").rglob("*.*"))
    assert unpacked == sorted(["dataset.json", *[f"prostate_0{i}.nii.gz" for i in (0, 0, 1, 1, 2, 2, 4, 4)]])


def test_msd_files_that_do_not_fit_are_named(msd: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = msd / "Task05_Prostate"
    image, label = (folder / kind / "prostate_01.nii.gz" for kind in ("imagesTr", "labelsTr"))
    good = image.read_bytes()
    for voxels, affine, words in (
        (zones(1), np.diag([0.625, 0.75, 3.6, 1]), "not on the grid of its image: direction"),
        (zones(1) + np.uint8(1), None, "label codes must be 0 to 2, got 1 to 3"),
        (zones(1) * np.float32(0.5), None, "label codes are not whole numbers"),
    ):
        write_nifti(label, voxels, affine)
        assert raises(words, "msd_task05", msd, tmp_path / "out").startswith(str(label))
    write_nifti(label, np.zeros(SHAPE, np.uint8))
    prepare_msd_task05(msd, tmp_path / "empty")
    assert "1 empty segmentation" in capsys.readouterr().out
    write_nifti(label, zones(1))
    write_nifti(image, t2_of(zones(1)))
    assert raises(
        "axes x, y, z and channel (T2, ADC), got shape (8, 7, 5)",
        "msd_task05",
        msd,
        tmp_path / "out",
    ).startswith(str(image))
    image.write_bytes(good[:-40])
    raises(f"{image}: cannot be read", "msd_task05", msd, tmp_path / "out")
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_msd_lists_that_do_not_fit(msd: Path, tmp_path: Path):
    folder = msd / "Task05_Prostate"
    elsewhere = [{"image": "../a.nii.gz", "label": "labelsTr/a.nii.gz"}]
    for changes, words in (
        ({"training": elsewhere}, "../a.nii.gz and labelsTr/a.nii.gz, which are outside its folder"),
        ({"modality": {"0": "ADC"}}, "got ADC as channel 0"),
        ({"modality": {}}, "got no '0'"),
        ({"training": ["a.nii.gz"]}, "not the list of Task05_Prostate"),
    ):
        write_list(folder, [0], **changes)
        assert raises(words, "msd_task05", folder, tmp_path / "out").startswith(str(folder / "dataset.json"))
    write_list(folder, [7])
    raises(
        "of 0 cases, skipped: 1 image or label missing; give Task05",
        "msd_task05",
        folder,
        tmp_path / "out",
    )
    (folder / "dataset.json").write_text("{")
    raises("cannot be read", "msd_task05", folder, tmp_path / "out")
    write_list(folder, [0])
    raises("would be overwritten", "msd_task05", folder, folder)  # the data set's own list has the same name


def test_argument_errors(msd: Path, tmp_path: Path):
    raises("--source must be promise12 or msd_task05, got none", None, msd, tmp_path)
    raises("input_dir is missing", "promise12", "", tmp_path)
    raises("dataset_dir is missing", "promise12", msd, None)
    raises("no case is left of 0 cases, skipped: 50 training case not found", "promise12", msd, tmp_path / "out")
    raises("data set not found", "msd_task05", tmp_path, tmp_path / "out")
    for fold in (5, -1, "a"):
        raises(f"fold must be an integer from 0 to 4, got {fold}", "promise12", msd, tmp_path / "out", fold=fold)


def test_config_runs_from_an_unrelated_folder(written: Path, tmp_path: Path, monai_bundle):
    arguments = ["--source", "promise12", "--input_dir", written, "--dataset_dir", "out", "--fold", "3", "--seed", "2"]
    done = monai_bundle("run", "--config_file", CONFIG, *arguments, cwd=tmp_path)
    assert "split: fold 3 of 5, stratified by site, seed 2" in done.stdout, done.stderr
    folds = site_stratified_folds(seed=2)
    held_out = [f"labels/training_{case}.nii.gz" for case in TRAINING_IDS if folds[case] == 3]
    assert [entry["label"] for entry in read(tmp_path / "out")["validation"]] == held_out
    done = monai_bundle(
        "run", "--config_file", CONFIG, *arguments[:4], "--dataset_dir", "out", "--fold", "9", cwd=tmp_path
    )
    assert (
        done.returncode != 0
        and "must be an integer from 0 to 4, got 9" in done.stderr
        and "Traceback" not in done.stderr
    )
