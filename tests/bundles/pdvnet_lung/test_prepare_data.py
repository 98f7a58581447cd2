# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
from monai.transforms import LoadImage
from pdvnet_lung import prepare_data as module
from pdvnet_lung.lobes import LOBES, TOTALSEGMENTATOR_MASKS
from pdvnet_lung.prepare_data import prepare_data, prepare_luna16, prepare_totalsegmentator

from volseg.data.datalist import load_datalist
from volseg.errors import UserError

CONFIG = Path(__file__).parents[3] / "bundles" / "pdvnet_lung" / "configs" / "prepare_data.json"
SHAPE = (9, 7, 5)  # x, y, z
SPACING = (0.7, 0.8, 2.5)
ORIGIN = (-20.5, 11.25, -300.0)
DIRECTION = np.array([[0.0, -1, 0], [-1, 0, 0], [0, 0, 1]])  # two axes swapped and flipped
UIDS = [f"1.3.6.1.4.{index}" for index in range(4)]


def cip_label(seed: int = 0) -> np.ndarray:
    """Packed codes in (x, y, z) with every lobe, airway inside them, airway elsewhere and a stray 1."""
    codes = [0, 4, 5, 6, 7, 8, 516, 517, 518, 519, 520, 512, 513, 1]
    values = np.resize(np.array(codes, np.uint16), SHAPE)
    return np.random.default_rng(seed).permuted(values.ravel()).reshape(SHAPE)


def write_itk(path: Path, voxels: np.ndarray, direction=DIRECTION, spacing=SPACING, origin=ORIGIN) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = itk.image_from_array(np.ascontiguousarray(voxels.transpose()))
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction)
    itk.imwrite(image, str(path), compression=path.suffix == ".nrrd")


def luna16_paths(root: Path, uid: str, subset: str = "subset3") -> tuple[Path, Path]:
    return root / subset / f"{uid}.mhd", root / "annotations" / f"{uid}_LobeSegmentation.nrrd"


@pytest.fixture
def luna16(tmp_path: Path) -> Path:
    """Four cases in the layout of the download; the image holds the label's codes, to show that voxels line up."""
    root = tmp_path / "luna16"
    for index, uid in enumerate(UIDS):
        image, label = luna16_paths(root, uid, f"subset{index}")
        write_itk(image, cip_label(index).astype(np.int16))
        write_itk(label, cip_label(index))
    return root


def write_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)


def oblique_affine() -> np.ndarray:
    angle = np.deg2rad(6)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = np.eye(4)
    affine[:3, :3] = turn * 1.5
    affine[:3, 3] = (10, -20, 30.5)
    return affine


def write_totalsegmentator_case(root: Path, case_id: str, label: np.ndarray) -> None:
    affine = oblique_affine()
    write_nifti(root / case_id / "ct.nii.gz", np.full(SHAPE, -800, np.int16), affine)
    for name, code in TOTALSEGMENTATOR_MASKS.items():
        write_nifti(root / case_id / "segmentations" / f"{name}.nii.gz", (label == code).astype(np.uint8), affine)


def lobe_label(codes=tuple(LOBES)) -> np.ndarray:
    return np.resize(np.array([0, *codes], np.uint8), SHAPE)


@pytest.fixture
def totalsegmentator(tmp_path: Path) -> Path:
    root = tmp_path / "totalsegmentator"
    for case_id in ("s0000", "s0001", "s0002", "s0092"):
        write_totalsegmentator_case(root, case_id, lobe_label())
    rows = ["s0000;train", "s0001;val", "s0002;test", "s0092;train", "s0605;train", "s0003;train", "s0004;train"]
    (root / "meta.csv").write_text("\n".join(["image_id;split", *rows]) + "\n", encoding="utf-8-sig")
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
    return [Path(entry["label"]).name.removesuffix(".nii.gz") for entry in read(dataset)[split]]


def test_luna16_labels_lie_on_their_images(luna16: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "out"
    assert prepare_luna16(luna16, out) == out / "dataset.json"
    content = read(out)
    assert content["source"] == "luna16" and "NC-SA" in content["licence"] and "1903.09879" in content["citation"]
    cases = [case for split in ("training", "validation", "test") for case in load_datalist(out, split)]
    assert sorted(Path(case["image"]).stem for case in cases) == UIDS
    lookup = np.zeros(256, np.uint8)
    lookup[[7, 8, 4, 5, 6]] = [1, 2, 3, 4, 5]
    for case in cases:
        image, label = (LoadImage(image_only=True, dtype=None)(case[key]) for key in ("image", "label"))
        assert nib.load(case["label"]).get_data_dtype() == np.uint8
        np.testing.assert_allclose(label.affine, image.affine, atol=1e-4)
        np.testing.assert_array_equal(label.numpy(), lookup[image.numpy().astype(int) & 255])
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1 and "4 cases (training 2, validation 1, test 1" in captured.out
    assert "CC BY-NC-SA 4.0" in captured.out and "cite: Setio" in captured.out and "labels" in captured.err


def test_luna16_flat_folder_relative_paths_and_cases_left_over(luna16: Path, capsys: pytest.CaptureFixture):
    for index, uid in enumerate(UIDS):
        for file in (luna16 / f"subset{index}").iterdir():
            file.rename(luna16 / file.name)
        label = luna16_paths(luna16, uid)[1]
        label.rename(luna16 / label.name)
    (luna16 / f"{UIDS[0]}.mhd").unlink()
    (luna16 / f"{UIDS[1]}_LobeSegmentation.nrrd").unlink()
    write_itk(luna16 / "seg-lungs-LUNA16" / f"{UIDS[0]}.mhd", cip_label())  # lung mask under the name of a CT
    (luna16 / f"._{UIDS[2]}.mhd").touch()  # left by an archive made on macOS
    prepare_luna16(luna16, luna16)
    entries = [entry for split in ("training", "validation", "test") for entry in read(luna16)[split]]
    assert [entry["image"] for entry in entries] == [f"{uid}.mhd" for uid in UIDS[2:]]
    assert "skipped: 1 image without label, 1 label without image" in capsys.readouterr().out
    for path in luna16.glob("*.mhd"):
        path.unlink()
    raises("of 0 cases, skipped: 3 label without image; give subset0-9", "luna16", luna16, luna16)


def test_luna16_split_follows_the_seed(luna16: Path, tmp_path: Path):
    members = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        prepare_luna16(luna16, tmp_path / name, seed=seed)
        members.append([case_ids(tmp_path / name, split) for split in ("training", "validation", "test")])
    assert members[0] == members[1] != members[2]


def test_header_rounding_is_no_mismatch(luna16: Path, tmp_path: Path):
    write_itk(luna16_paths(luna16, UIDS[0])[1], cip_label(), spacing=(0.7000002, 0.8, 2.4999999))
    prepare_luna16(luna16, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spacing": (0.7, 0.8, 2.0)}, "spacing (0.7, 0.8, 2) mm against (0.7, 0.8, 2.5) mm"),
        ({"origin": (-20.5, 11.25, -297.5)}, "origin (20.5, -11.25, -297.5) mm against (20.5, -11.25, -300) mm"),
        ({"direction": np.eye(3)}, "direction (-1, 0, 0, 0, -1, 0, 0, 0, 1) against"),
        ({"voxels": cip_label().transpose(1, 0, 2)}, "shape (7, 9, 5) against (9, 7, 5)"),
        ({"voxels": cip_label() + np.float32(0.4)}, "label codes are not whole numbers"),
    ],
)
def test_a_label_that_does_not_fit_is_named(luna16: Path, tmp_path: Path, change: dict, words: str):
    label = luna16_paths(luna16, UIDS[2])[1]
    write_itk(label, **{"voxels": cip_label(), **change})
    assert raises(words, "luna16", luna16, tmp_path / "out").startswith(str(label))
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert not list((tmp_path / "out" / "labels").glob(".*"))


def test_luna16_broken_files_are_named(luna16: Path, tmp_path: Path):
    image, label = luna16_paths(luna16, UIDS[0], "subset0")
    raw, nrrd = image.with_suffix(".raw").read_bytes(), label.read_bytes()
    label.write_bytes(nrrd[:-40])
    raises(f"{label}: cannot be read", "luna16", luna16, tmp_path / "out")
    label.write_bytes(nrrd)
    image.with_suffix(".raw").write_bytes(raw[:-1])
    words = f"voxels are missing: {UIDS[0]}.raw has 629 bytes, needs at least 630"
    assert raises(words, "luna16", luna16, tmp_path / "out").startswith(str(image))
    image.with_suffix(".raw").unlink()
    raises("has 0 bytes", "luna16", luna16, tmp_path / "out")
    image.write_text("Not Found")
    raises(f"{image}: cannot be read", "luna16", luna16, tmp_path / "out")


def test_a_killed_run_goes_on_where_it_was(luna16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "out"
    convert, seen = module.from_cip_codes, []

    def convert_or_die(label: np.ndarray, name: str) -> np.ndarray:
        seen.append(Path(name).name.removesuffix("_LobeSegmentation.nrrd"))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return convert(label, name)

    monkeypatch.setattr(module, "from_cip_codes", convert_or_die)
    with pytest.raises(KeyboardInterrupt):
        prepare_luna16(luna16, out)
    assert not (out / "dataset.json").exists()
    left = out / "labels" / f".{UIDS[2]}.nii.gz.0123456789ab.unfinished" / f"{UIDS[2]}.nii.gz"  # what SIGKILL leaves
    left.parent.mkdir()
    left.write_bytes(b"half")
    prepare_luna16(luna16, out)
    assert seen == [*UIDS[:3], *UIDS[2:]]
    assert sorted(path.name for path in (out / "labels").iterdir()) == [f"{uid}.nii.gz" for uid in UIDS]
    # A label that was corrected since is made again, and only that one.
    corrected = luna16_paths(luna16, UIDS[1])[1]
    future = (out / "labels" / f"{UIDS[1]}.nii.gz").stat().st_mtime + 10
    os.utime(corrected, (future, future))
    prepare_luna16(luna16, out)
    assert seen[5:] == [UIDS[1]]


def test_cases_with_too_few_lobes(luna16: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    four_lobes = np.where(cip_label() & 255 == 5, 0, cip_label())
    write_itk(luna16_paths(luna16, UIDS[0])[1], four_lobes)
    write_itk(luna16_paths(luna16, UIDS[1])[1], np.zeros(SHAPE, np.uint16))
    prepare_luna16(luna16, tmp_path / "out", min_lobes=4)
    assert "3 cases" in (said := capsys.readouterr().out) and "skipped: 1 no lobe" in said
    prepare_luna16(luna16, tmp_path / "out", min_lobes=5)  # the label of the first run is there and is judged anew
    assert "2 cases" in (said := capsys.readouterr().out) and "1 fewer than 5 lobes" in said
    for uid in UIDS[2:]:
        write_itk(luna16_paths(luna16, uid)[1], four_lobes)
    raises("no case is left of 4 cases, skipped: ", "luna16", luna16, tmp_path / "other")


def test_totalsegmentator_official_split(totalsegmentator: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    write_totalsegmentator_case(totalsegmentator, "s0003", lobe_label((1, 2, 3, 5)))
    write_totalsegmentator_case(totalsegmentator, "s0004", lobe_label(()))
    write_totalsegmentator_case(totalsegmentator, "s0005", lobe_label())  # not in meta.csv
    (totalsegmentator / "s0006").mkdir()
    out = tmp_path / "out"
    prepare_totalsegmentator(totalsegmentator, out)
    assert [case_ids(out, split) for split in ("training", "validation", "test")] == [["s0000"], ["s0001"], ["s0002"]]
    said = capsys.readouterr().out
    for reason in (
        "1 known wrong labels",
        "1 ct.nii.gz or a lobe mask missing",
        "1 not in meta.csv",
        "1 fewer than 5 lobes",
        "1 no lobe",
        "official, meta.csv",
        "CC BY 4.0",
    ):
        assert reason in said
    label = nib.load(load_datalist(out, "test")[0]["label"])
    assert label.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asanyarray(label.dataobj), lobe_label())
    np.testing.assert_allclose(label.affine, oblique_affine(), atol=1e-5)  # oblique, and stays so
    prepare_totalsegmentator(totalsegmentator, out, min_lobes=4)
    assert case_ids(out, "training") == ["s0000", "s0003"]


def test_totalsegmentator_without_meta_csv_draws_and_says_so(
    totalsegmentator: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    (totalsegmentator / "meta.csv").unlink()
    prepare_totalsegmentator(totalsegmentator, tmp_path / "out", seed=2)
    assert all(len(case_ids(tmp_path / "out", split)) == 1 for split in ("training", "validation", "test"))
    assert "seed 2 (no meta.csv)" in capsys.readouterr().out


def test_totalsegmentator_tables(totalsegmentator: Path, tmp_path: Path):
    table = totalsegmentator / "meta.csv"
    table.write_text("image_id,age,split\ns0000,60,train\ns0001,61,test\n")
    prepare_totalsegmentator(totalsegmentator, tmp_path / "out")
    assert case_ids(tmp_path / "out", "training") == ["s0000"] and case_ids(tmp_path / "out", "validation") == []
    table.write_text("image_id;split\ns0000;holdout\n")
    assert raises(
        "split must be train, val or test, got holdout", "totalsegmentator", totalsegmentator, tmp_path
    ).startswith(str(table))
    table.write_text("")
    raises("columns image_id and split, got none;", "totalsegmentator", totalsegmentator, tmp_path)


def test_totalsegmentator_masks(totalsegmentator: Path, tmp_path: Path):
    masks = totalsegmentator / "s0001" / "segmentations"
    mask = masks / "lung_middle_lobe_right.nii.gz"
    right = lobe_label() == 4
    scaled = nib.Nifti1Image(right.astype(np.uint8), oblique_affine())
    scaled.header.set_slope_inter(1.00000004, 0)
    nib.save(scaled, mask)  # reads as 1.00000004
    prepare_totalsegmentator(totalsegmentator, tmp_path / "out")
    found = np.asanyarray(nib.load(tmp_path / "out" / "labels" / "s0001.nii.gz").dataobj)
    np.testing.assert_array_equal(found, lobe_label())
    write_nifti(mask, right.astype(np.uint8), np.eye(4))
    assert raises("spacing", "totalsegmentator", totalsegmentator, tmp_path / "b").startswith(str(mask))
    write_nifti(mask, np.ones(SHAPE, np.uint8), oblique_affine())
    assert raises("lobe masks must not overlap", "totalsegmentator", totalsegmentator, tmp_path / "c").startswith(
        str(masks)
    )
    mask.write_bytes(mask.read_bytes()[:-30])
    raises(f"{mask}: cannot be read", "totalsegmentator", totalsegmentator, tmp_path / "d")


def test_argument_errors(luna16: Path, totalsegmentator: Path, tmp_path: Path):
    raises("--source must be luna16 or totalsegmentator, got none", None, luna16, tmp_path)
    raises("input_dir is missing", "luna16", None, tmp_path)
    raises("dataset_dir is missing", "luna16", luna16, None)
    assert str(tmp_path / "gone") in raises("no such folder", "luna16", tmp_path / "gone", tmp_path)
    raises("no case is left of 0 cases; give sXXXX/ct.nii.gz", "totalsegmentator", luna16, tmp_path / "out")
    raises("dataset_dir: not a folder", "totalsegmentator", totalsegmentator, totalsegmentator / "meta.csv")
    prepare_totalsegmentator(totalsegmentator, tmp_path / "out")
    before = (tmp_path / "out" / "dataset.json").read_bytes()
    raises("would be overwritten", "luna16", luna16, tmp_path / "out")
    assert (tmp_path / "out" / "dataset.json").read_bytes() == before


# What `python -m monai.bundle run` does, once per list of arguments: start-up takes seconds, so two share a process.
RUN_BUNDLE = """
import json, runpy, sys
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["monai.bundle", "run", *arguments]
    runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
"""


def test_config_runs_from_an_unrelated_folder_and_fails_loudly(totalsegmentator: Path, tmp_path: Path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    common = ["--config_file", str(CONFIG), "--source", "totalsegmentator", "--dataset_dir", "out", "--input_dir"]
    good, bad = [*common, f"../{totalsegmentator.name}"], [*common, "gone"]
    done = subprocess.run(
        [sys.executable, "-c", RUN_BUNDLE, json.dumps([good, bad])],
        cwd=elsewhere,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "3 cases (training 1, validation 1, test 1" in done.stdout, done.stderr
    [case] = load_datalist(elsewhere / "out", "training")
    assert set(np.unique(nib.load(case["label"]).dataobj)) <= set(range(6))
    assert f"input_dir: no such folder: {elsewhere / 'gone'}" in done.stderr
    assert done.returncode != 0


def whole() -> np.ndarray:
    label = np.zeros((20, 14, 16), np.uint8)
    label[3:8, 3:11, 8:13], label[3:8, 3:11, 3:8] = 1, 2
    label[11:17, 3:11, 10:13], label[11:17, 3:11, 7:10], label[11:17, 3:11, 3:7] = 3, 4, 5
    return label


def test_box_of_whole_lungs_and_maps_unfit_for_paintings():
    box = module.whole_lungs(whole(), 1000.0)
    assert box == (slice(1, 19), slice(1, 13), slice(1, 15))
    assert module.whole_lungs(whole(), 500.0) is None  # lobes of less than 80 ml
    for change in (lambda v: v[:, :, 3:], lambda v: np.where(v == 4, 0, v).astype(np.uint8)):
        assert module.whole_lungs(np.pad(change(whole()), ((1, 1), (1, 1), (0, 1))), 1000.0) is None
    islands = whole()
    islands[3:8, 3, 8] = 5
    assert module.whole_lungs(islands, 1000.0) is not None  # 5 of 197 voxels are 2.5 %
    islands[3:8, 3, 9] = 5
    assert module.whole_lungs(islands, 1000.0) is None
