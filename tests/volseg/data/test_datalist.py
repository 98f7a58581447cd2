# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from volseg.data.datalist import check_not_empty, load_datalist, split_cases, write_datalist
from volseg.errors import UserError

INFO = {"name": "n", "source": "s", "licence": "CC BY 4.0", "citation": "c"}


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset with one image inside the folder and one elsewhere, validation empty."""
    root = tmp_path / "dataset"
    inside, outside = touch(root / "images" / "a.nii.gz"), touch(tmp_path / "elsewhere" / "b.mhd")
    labels = [touch(root / "labels" / f"{name}.nii.gz") for name in "ab"]
    entries = [{"image": str(i), "label": str(lab)} for i, lab in zip((inside, outside), labels, strict=True)]
    write_datalist(root, {"training": entries, "test": entries[:1]}, **INFO)
    return root


def rewrite(folder: Path, **splits: object) -> None:
    path = folder / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **splits}))


def message(dataset_dir: str | Path, split: str = "training", **options) -> str:
    with pytest.raises(UserError) as caught:
        load_datalist(dataset_dir, split, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_written_paths_are_relative_under_the_folder_and_absolute_elsewhere(folder: Path):
    content = json.loads((folder / "dataset.json").read_text())
    assert {key: content[key] for key in INFO} == INFO
    assert content["training"][0] == {"image": "images/a.nii.gz", "label": "labels/a.nii.gz"}
    assert content["training"][1]["image"] == str(folder.parent / "elsewhere" / "b.mhd")
    assert content["validation"] == []


def test_read_back_from_a_moved_folder_and_a_relative_path(folder: Path, monkeypatch: pytest.MonkeyPatch):
    moved = folder.rename(folder.with_name("moved"))
    monkeypatch.chdir(moved.parent)
    cases = load_datalist("moved", "training")
    assert cases[0] == {"image": str(moved / "images/a.nii.gz"), "label": str(moved / "labels/a.nii.gz")}
    assert all(Path(case[key]).is_absolute() for case in cases for key in ("image", "label"))


def test_empty_validation_is_a_list_and_other_splits_are_not(folder: Path):
    assert load_datalist(folder, "validation") == []
    rewrite(folder, test=[])
    assert "dataset.json: split 'test' is empty" in message(folder, "test")


def test_an_unfinished_write_leaves_the_old_file(folder: Path):
    before = (folder / "dataset.json").read_bytes()
    with pytest.raises(TypeError):
        write_datalist(folder, {"training": []}, name=object())
    assert (folder / "dataset.json").read_bytes() == before
    assert not list(folder.glob(".*"))


def test_folder_errors(tmp_path: Path):
    assert "no such folder" in message(tmp_path / "gone") and str(tmp_path / "gone") in message(tmp_path / "gone")
    assert "an empty folder" in message(tmp_path) and "prepare_data.json" in message(tmp_path)
    other = touch(tmp_path / "notes.txt")
    assert "a folder without dataset.json" in message(tmp_path)
    assert "not a folder" in message(other)


def test_file_errors(folder: Path):
    path = folder / "dataset.json"
    path.write_text('{"training": [')
    assert f"{path}: not readable as JSON" in message(folder)
    path.write_text("[]")
    assert (
        f"{path}: a data list must be an object with the lists training, validation, test, got a JSON list"
        in message(folder)
    )


def test_split_errors(folder: Path):
    assert "split must be one of training, validation, test, got val" in message(folder, "val")
    rewrite(folder, test=None)
    assert "no split 'test', got training, validation;" in message(folder, "test")
    with pytest.raises(UserError, match="splits must be named training, validation, test, got val"):
        write_datalist(folder, {"val": []})


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"image": "images/a.nii.gz"}, "has no label, got only image images/a.nii.gz;"),
        ({"label": "labels/a.nii.gz"}, "has no image"),
        ("images/a.nii.gz", 'must be {"image": path, "label": path}, got'),
        ({"image": "images/gone.nii.gz", "label": "labels/a.nii.gz"}, "images/gone.nii.gz"),
        ({"image": "images/a.nii.gz", "label": "labels/gone.nii.gz"}, "labels/gone.nii.gz"),
        ({"image": "images/a.nii.gz", "label": "images/a.nii.gz"}, "image and label are one file"),
    ],
)
def test_entry_errors_name_place_and_file(folder: Path, entry: object, words: str):
    rewrite(folder, training=[{"image": "images/a.nii.gz", "label": "labels/a.nii.gz"}, entry])
    text = message(folder)
    assert text.startswith(f"{folder / 'dataset.json'}: training[1]") and words in text


@pytest.mark.parametrize(("n", "sizes"), [(1, (1, 0, 0)), (2, (2, 0, 0)), (3, (1, 1, 1)), (51, (36, 5, 10))])
def test_split_sizes(n: int, sizes: tuple[int, ...]):
    splits = split_cases([f"case{i}" for i in range(n)])
    assert tuple(map(len, splits.values())) == sizes and list(splits) == ["training", "validation", "test"]


def test_split_depends_on_seed_and_not_on_order():
    ids = [f"case{i}" for i in range(20)]
    splits = split_cases(ids, seed=3)
    assert splits == split_cases(ids[::-1], seed=3) != split_cases(ids, seed=4)
    assert sorted(case for cases in splits.values() for case in cases) == sorted(ids)
    # Literal: a change of the rule would move cases between training and test of existing folders.
    assert split_cases(list("abcde")) == {"training": ["b", "c", "e"], "validation": ["d"], "test": ["a"]}


def test_a_training_needs_a_case():
    check_not_empty([{"image": "a", "label": "b"}])
    with pytest.raises(UserError, match="nothing to train on, got 0 cases"):
        check_not_empty([])


def test_an_image_in_two_splits_and_a_copy_are_named(folder: Path, caplog: pytest.LogCaptureFixture):
    for name, text in (("first", "1234"), ("copy", "1234"), ("other", "1235")):
        (folder / f"{name}.nii.gz").write_text(text)
        touch(folder / "labels" / f"{name}.nii.gz")
    training = [{"image": f"{n}.nii.gz", "label": f"labels/{n}.nii.gz"} for n in ("first", "other", "copy")]
    rewrite(folder, training=training, validation=training[1:2], test=[])
    with caplog.at_level(logging.WARNING):
        load_datalist(folder, "training")
    path = folder / "dataset.json"
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: image {folder}/copy.nii.gz, a copy of {folder}/first.nii.gz, is listed twice in training; "
        "keep each case in one split, once",
        f"{path}: image {folder}/other.nii.gz is listed in training and in validation; "
        "keep each case in one split, once",
    ]


def compressed_anew(path: Path, level: int) -> None:
    path.write_bytes(gzip.compress(bytes(9000), level, mtime=level))


def folder_of_chunks(path: Path, level: int) -> None:
    touch(path / "0" / "c").write_bytes(b"12")
    touch(path / "labels" / "0").write_bytes(bytes([level]))


def other_chunks(path: Path, level: int) -> None:
    touch(path / "0" / "c").write_bytes(bytes([level]))


def other_file(path: Path, level: int) -> None:
    path.write_bytes(bytes([level] * 9000))


@pytest.mark.parametrize(
    ("make", "is_copy"),
    [(compressed_anew, True), (folder_of_chunks, True), (other_chunks, False), (other_file, False)],
)
def test_copies_are_known_by_their_content(
    folder: Path, caplog: pytest.LogCaptureFixture, make: Callable[[Path, int], None], is_copy: bool
):
    cases = []
    for level in (1, 9):
        make(folder / f"{level}.nii.gz", level)
        touch(folder / "labels" / f"{level}.nii.gz")
        cases.append({"image": f"{level}.nii.gz", "label": f"labels/{level}.nii.gz"})
    rewrite(folder, training=cases[:1], validation=cases[1:], test=[])
    with caplog.at_level(logging.WARNING):
        load_datalist(folder, "training")
        load_datalist(folder, "validation")  # says it once
    said = f"image {folder}/9.nii.gz, a copy of {folder}/1.nii.gz, is listed in training and in validation"
    assert [said in record.getMessage() for record in caplog.records] == [True] * is_copy


def test_a_label_of_two_images_and_one_that_is_an_image_are_named(folder: Path, caplog: pytest.LogCaptureFixture):
    (folder / "b.nii.gz").write_text("b")
    (folder / "labels" / "a.nii.gz").write_text("a")
    label = {"label": "labels/a.nii.gz"}
    training = [{"image": "images/a.nii.gz", **label}, {"image": "b.nii.gz", **label}]
    rewrite(folder, training=training, validation=[{"image": "labels/a.nii.gz", "label": "b.nii.gz"}], test=[])
    with caplog.at_level(logging.WARNING):
        load_datalist(folder, "training")
    path = folder / "dataset.json"
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: label {folder}/labels/a.nii.gz is listed for {folder}/images/a.nii.gz and for {folder}/b.nii.gz; "
        "give each image its own",
        f"{path}: {folder}/b.nii.gz is listed as an image and as a label; list it as the one that it is",
        f"{path}: {folder}/labels/a.nii.gz is listed as an image and as a label; list it as the one that it is",
    ]


def test_different_images_draw_no_warning(folder: Path, caplog: pytest.LogCaptureFixture):
    for number in range(2):
        (folder / f"{number}.mhd").write_text("ElementDataFile = image.raw")
    rewrite(folder, training=[{"image": "0.mhd", "label": "labels/a.nii.gz"}], test=[{"image": "1.mhd"}])
    with caplog.at_level(logging.WARNING):
        load_datalist(folder, "training")
    assert not caplog.records
