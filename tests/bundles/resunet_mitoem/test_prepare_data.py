# SPDX-License-Identifier: Apache-2.0
"""Tests of the way from MitoEM's download, or pairs of one's own, to a dataset folder."""

from __future__ import annotations

import json
import tracemalloc
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import torch
from monai.bundle import ConfigParser
from PIL import Image
from resunet_mitoem import dataset_writer
from resunet_mitoem.mitoem_layout import IMAGES, files_of, number_patterns
from resunet_mitoem.prepare_data import PARTS, Part, prepare_data, prepare_mitoem, prepare_volumes

from volseg.data.datalist import load_datalist
from volseg.data.ome_zarr import create_ome_zarr
from volseg.data.open_volume import open_chunked_volume
from volseg.errors import UserError
from volseg.transforms.load_em_crop import RandLoadImageCropd

CONFIG = Path(__file__).parents[3] / "bundles" / "resunet_mitoem" / "configs" / "prepare_data.json"
LAYOUT = Path(__file__).parents[4] / "shared" / "data" / "mito" / "mitoem_layout"

# few sections of the real numbers: 398 to 402, with 18 of training so that there are two slabs
FEW = (
    Part("training", 382, 18, "mito-train-v2"),
    Part("validation", 400, 2, "mito-val-v2"),
    Part("test", 402, 1, None),
)
PLANE = (6, 9)
SIZE_NM = (40.0, 5.0, 4.0)


def grey(number: int) -> np.ndarray:
    """Section of an image: its number can be told from any pixel."""
    return ((number - 380) * 8 + np.arange(54).reshape(PLANE) % 8).astype(np.uint8)


def ids(number: int) -> np.ndarray:
    """Section of a label: object 1000 in all, one of its own in each."""
    section = np.zeros(PLANE, np.uint16)
    section[1:3, 2:4] = 1000
    section[4, 5:8] = number
    return section


def write_mitoem(folder: Path, parts: tuple[Part, ...] = FEW) -> None:
    for part in parts:
        for number in part.numbers:
            write_png(folder / "im" / f"im{number:04d}.png", grey(number))
            if part.label_folder:
                write_tiff(folder / part.label_folder / f"seg{number:04d}.tif", ids(number))


def write_png(path: Path, section: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(section).save(path, compress_level=1)


def write_tiff(path: Path, section: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, section, compression="zlib")


def write_pairs(folder: Path, *pairs: dict) -> None:
    (folder / "pairs.json").write_text(json.dumps(pairs))


def write_h5(path: Path, voxels: np.ndarray, **attributes: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("main", data=voxels).attrs.update(attributes)


@pytest.fixture
def rat(tmp_path: Path) -> Path:
    write_mitoem(tmp_path / "download" / "MitoEM-R")
    return tmp_path / "download"


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """An image and a label of 5 x 6 x 9 voxels, without voxel size."""
    rng = np.random.default_rng(0)
    write_h5(tmp_path / "own" / "a" / "image.h5", rng.integers(0, 255, (5, *PLANE), np.uint8))
    write_h5(tmp_path / "own" / "a" / "label.h5", rng.integers(0, 4, (5, *PLANE), np.uint8))
    write_pairs(tmp_path / "own", {"image": "a/image.h5", "label": "a/label.h5", "split": "training"})
    return tmp_path / "own"


def read(dataset: Path) -> dict:
    return json.loads((dataset / "dataset.json").read_text())


def voxels(path: Path | str) -> np.ndarray:
    return open_chunked_volume(path)[:]


def says(error: pytest.ExceptionInfo[UserError], *words: str) -> str:
    text = str(error.value)
    for word in words:
        assert word in text, text
    assert "\n" not in text and any(word in text for word in ("Received: ", ", got ", " is missing", "; "))
    return text


def test_parts_are_those_of_mitoem():
    assert [(part.name, part.numbers[0], part.numbers[-1]) for part in PARTS] == [
        ("training", 0, 399),
        ("validation", 400, 499),
        ("test", 500, 999),
    ]
    for name, files in (("im_val_rat.json", IMAGES), ("mito_train_rat.json", files_of(PARTS[0])[1])):
        part = next(part for part in PARTS if part.name[:3] in name or part.name[:5] in name)
        if not LAYOUT.is_dir():
            pytest.skip("needs the index files of MitoEM of the development data")
        listed = [Path(path).name for path in json.loads((LAYOUT / name).read_text())["image"]]
        assert listed == [files.file.format(number) for number in part.numbers]


def test_mitoem_unpacked(rat: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "out"
    assert prepare_mitoem(rat, out, parts=FEW) == out / "dataset.json"
    content = read(out)
    assert content["training"] == [
        {"image": "rat_training.ome.zarr", "label": "rat_training.ome.zarr/labels/mitochondria"}
    ]
    validation = [{"image": "rat_validation.ome.zarr", "label": "rat_validation.ome.zarr/labels/mitochondria"}]
    assert content["validation"] == content["test"] == validation
    assert "test is validation again" in content["split_rule"] and "sections 382 to 399" in content["split_rule"]
    assert content["source"] == "mitoem" and content["images_without_labels"] == []
    assert content["volumes"][0] == {
        "name": "rat_training",
        "shape": [18, 6, 9],
        "voxel_size_nm": [30.0, 8.0, 8.0],
        "grey_values": None,
        "instances": 19,
        "foreground_fraction": 7 / 54,
    }
    assert sorted(path.name for path in out.iterdir()) == [
        "dataset.json",
        *sorted(["rat_training.ome.zarr", "rat_validation.ome.zarr"]),
    ]
    for split, part in (("training", FEW[0]), ("validation", FEW[1]), ("test", FEW[1])):
        (case,) = load_datalist(out, split)
        image, label = open_chunked_volume(case["image"]), open_chunked_volume(case["label"])
        assert image.voxel_size_nm == label.voxel_size_nm == (30, 8, 8)
        assert (image.dtype, label.dtype) == (np.uint8, np.uint16)
        np.testing.assert_array_equal(image[:], np.stack([grey(number) for number in part.numbers]))
        np.testing.assert_array_equal(label[:], np.stack([ids(number) for number in part.numbers]))
    said = capsys.readouterr().out
    for words in (
        "rat_training: 18x6x9 voxels of 30x8x8 nm (z, y, x); 19 instances, foreground 13 %\n",
        "volumes 2 (training 1, validation 1, test 1; split: official",
        "skipped: 1 human volume not found, 1 test part",
        "licence: MIT",
        "cite: Wei",
    ):
        assert words in said


def test_mitoem_of_both_specimens_with_test_images(rat: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    write_mitoem(rat / "EM30-H-im", FEW[:1])  # named as the archives are, labels beside the images
    write_mitoem(rat / "human" / "more", FEW[1:])
    (rat / "human" / "more" / "im").rename(rat / "elsewhere")
    for file in (rat / "elsewhere").iterdir():
        file.rename(rat / "EM30-H-im" / "im" / file.name)
    prepare_mitoem(rat, tmp_path / "out", with_test=True, parts=FEW)
    content = read(tmp_path / "out")
    names = [Path(entry["image"]).name for entry in content["training"] + content["validation"]]
    assert names == [
        f"{name}.ome.zarr" for name in ("rat_training", "human_training", "rat_validation", "human_validation")
    ]
    assert content["images_without_labels"] == ["rat_test.ome.zarr", "human_test.ome.zarr"]
    np.testing.assert_array_equal(voxels(tmp_path / "out" / "rat_test.ome.zarr"), grey(402)[None])
    assert not (tmp_path / "out" / "rat_test.ome.zarr" / "labels").exists()
    said = capsys.readouterr().out
    assert "rat_test: 1x6x9 voxels of 30x8x8 nm (z, y, x); no labels\n" in said and "(--with_test" not in said


def test_the_name_of_the_download_tells_the_specimen(tmp_path: Path):
    write_mitoem(tmp_path / "MitoEM-H", FEW[:1])
    prepare_mitoem(tmp_path / "MitoEM-H", tmp_path / "out", parts=FEW)
    assert [entry["name"] for entry in read(tmp_path / "out")["volumes"]] == ["human_training"]
    write_mitoem(tmp_path / "em", FEW[:1])
    with pytest.raises(UserError) as error:
        prepare_mitoem(tmp_path / "em", tmp_path / "out2", parts=FEW)
    assert says(error, "whether it is rat or human", "MitoEM-R").startswith(str(tmp_path / "em" / "im"))


def test_mitoem_archives(rat: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    zips, out = tmp_path / "zips", tmp_path / "zips" / "out"  # a dataset folder inside of the download
    zips.mkdir()
    for archive, folders in (
        ("EM30-R-im.zip", ["im"]),
        ("EM30-R-mito-train-val-v2.zip", ["mito-train-v2", "mito-val-v2"]),
    ):
        with zipfile.ZipFile(zips / archive, "w") as file:
            for folder in folders:
                for path in sorted((rat / "MitoEM-R" / folder).iterdir()):
                    file.write(path, f"{folder}/{path.name}")
    prepare_mitoem(zips, out, parts=FEW)
    unpacked = sorted(path.name for path in (out / "unpacked").iterdir())
    assert unpacked == [
        "rat_training_im",
        "rat_training_mito-train-v2",
        "rat_validation_im",
        "rat_validation_mito-val-v2",
    ]
    assert len(list((out / "unpacked" / "rat_training_im").iterdir())) == 18  # what is needed and no more
    (case,) = load_datalist(out, "validation")
    np.testing.assert_array_equal(voxels(case["image"]), [grey(400), grey(401)])
    np.testing.assert_array_equal(voxels(case["label"]), [ids(400), ids(401)])
    assert f"{out / 'unpacked'} is no longer needed" in capsys.readouterr().out
    prepare_mitoem(zips, out, parts=FEW)
    assert capsys.readouterr().out.count("kept from an earlier run") == 2
    with zipfile.ZipFile(zips / "EM30-H-im.zip", "w") as file:
        file.writestr("../im/im0382.png", b"")
    (zips / "EM30-H-mito-train-val-v2.zip").write_bytes((zips / "EM30-R-mito-train-val-v2.zip").read_bytes())
    with pytest.raises(UserError) as error:
        prepare_mitoem(zips, tmp_path / "out", parts=FEW)
    says(error, "EM30-H-im.zip", "leads elsewhere")


def test_numbers_of_sections_as_patterns():
    assert list(number_patterns(range(0, 400))) == [rf"0{hundred}\d\d" for hundred in range(4)]
    assert list(number_patterns(range(398, 402))) == ["03(?:98|99)", "04(?:00|01)"]


def test_mitoem_parts_that_are_missing_are_told(rat: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    (rat / "MitoEM-R" / "mito-val-v2").rename(rat / "mito_val")
    (rat / "MitoEM-H" / "mito-train-v2").mkdir(parents=True)
    prepare_mitoem(rat, tmp_path / "out", parts=FEW)
    said = capsys.readouterr().out
    for words in (
        "1 rat validation without mito-val-v2/",
        "1 human training without im/",
        "1 human validation without im/ and mito-val-v2/",
        "(training 1, validation 0, test 0;",
    ):
        assert words in said
    (rat / "MitoEM-R" / "mito-train-v2").rename(rat / "mito_train")
    with pytest.raises(UserError) as error:
        prepare_mitoem(rat, tmp_path / "out2", parts=FEW)
    says(error, "no images with labels", "1 rat training without mito-train-v2/", "expected EM30-R-im.zip")
    assert not (tmp_path / "out2").exists()


@pytest.mark.parametrize("name", ["im/im0390.png", "mito-train-v2/seg0383.tif"])
def test_mitoem_sections_missing_or_damaged_are_named(rat: Path, tmp_path: Path, name: str):
    file = rat / "MitoEM-R" / name
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError) as error:
        prepare_mitoem(rat, tmp_path / "out", parts=FEW)
    assert says(error).startswith(str(file))
    file.unlink()
    with pytest.raises(UserError) as error:
        prepare_mitoem(rat, tmp_path / "out", parts=FEW)
    assert says(error).startswith(str(file))
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_mitoem_label_of_another_size(rat: Path, tmp_path: Path):
    for file in (rat / "MitoEM-R" / "mito-val-v2").iterdir():
        write_tiff(file, np.zeros((6, 8), np.uint16))
    with pytest.raises(UserError) as error:
        prepare_mitoem(rat, tmp_path / "out", parts=FEW)
    says(error, "mito-val-v2", "(2, 6, 8)", "(2, 6, 9)")
    assert not (tmp_path / "out").exists()  # before hours of work


def test_mitoem_there_twice(rat: Path, tmp_path: Path):
    write_mitoem(rat / "rat", FEW[1:2])
    with pytest.raises(UserError) as error:
        prepare_mitoem(rat, tmp_path / "out", parts=FEW)
    says(error, "must have one folder im/", str(rat / "rat" / "im"), str(rat / "MitoEM-R" / "im"))


def test_a_killed_run_goes_on(
    rat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    out = tmp_path / "out"
    pieces, sections = dataset_writer._pieces, []

    def pieces_or_die(volume, start, stop):
        for first, piece in pieces(volume, start, stop):
            sections.append((Path(volume.path).name, first))
            if len(sections) == 30:
                raise KeyboardInterrupt
            yield first, piece

    monkeypatch.setattr(dataset_writer, "_pieces", pieces_or_die)
    with pytest.raises(KeyboardInterrupt):
        prepare_mitoem(rat, out, parts=FEW)
    assert sections[-1] == ("mito-train-v2", 11) and [path.name for path in out.iterdir()] == ["rat_training.ome.zarr"]
    assert [path.name for path in (out / "rat_training.ome.zarr" / "labels").iterdir()] == []
    prepare_mitoem(rat, out, parts=FEW)
    # the image was finished; its label starts again, and the validation volume follows
    assert sections[30:32] == [("mito-train-v2", 0), ("mito-train-v2", 1)] and len(sections) == 30 + 18 + 2 * 2
    before, n_read = (out / "dataset.json").read_text(), len(sections)
    capsys.readouterr()
    prepare_mitoem(rat, out, parts=FEW)
    assert len(sections) == n_read and (out / "dataset.json").read_text() == before
    assert capsys.readouterr().out.count("kept from an earlier run") == 2


def test_a_label_that_was_mended_is_written_again_and_images_are_never_replaced(rat: Path, tmp_path: Path):
    out = tmp_path / "out"
    prepare_mitoem(rat, out, parts=FEW)
    mended = rat / "MitoEM-R" / "mito-val-v2" / "seg0401.tif"
    write_tiff(mended, 2 * ids(401))
    prepare_mitoem(rat, out, parts=FEW)
    np.testing.assert_array_equal(voxels(load_datalist(out, "validation")[0]["label"]), [ids(400), 2 * ids(401)])
    assert read(out)["volumes"][1]["instances"] == 4
    write_png(rat / "MitoEM-R" / "im" / "im0401.png", grey(399))
    with pytest.raises(UserError) as error:
        prepare_mitoem(rat, out, parts=FEW)
    assert says(error, "would be overwritten", "remove that folder").startswith(str(out / "rat_training.ome.zarr"))


def test_what_stands_at_the_place_of_an_image_stays(pair: Path, tmp_path: Path):
    with create_ome_zarr(tmp_path / "out" / "a_image.ome.zarr", (5, 6, 9), np.uint8, SIZE_NM) as others:
        others[:] = 7
    with pytest.raises(UserError) as error:
        prepare_volumes(pair, tmp_path / "out", SIZE_NM)
    says(error, "would be overwritten")
    assert (voxels(tmp_path / "out" / "a_image.ome.zarr") == 7).all()
    # and the image itself, where both folders are one
    with create_ome_zarr(pair / "b.ome.zarr", (5, 6, 9), np.uint8, SIZE_NM) as others:
        others[:] = 8
    write_pairs(pair, {"image": "b.ome.zarr", "label": "a/label.h5", "split": "training"})
    with pytest.raises(UserError) as error:
        prepare_volumes(pair, pair)
    says(error, "would replace the image that it is made from")
    assert (voxels(pair / "b.ome.zarr") == 8).all()


def test_volumes_of_other_formats_and_types(
    tmp_path: Path, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
):
    """A voxel size that is given replaces that of files; ids take 16 bits, or 32 where they need them."""
    own, out = tmp_path / "own", tmp_path / "out"
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (3, 4, 5), np.uint8)
    small = np.arange(60).reshape(3, 4, 5)
    write_h5(own / "a" / "image.h5", image, voxel_size=SIZE_NM)
    write_h5(own / "a" / "label.h5", small.astype(np.int64))
    for z in range(3):
        write_png(own / "b" / "image" / f"s{z + 9}.png", image[z])
        ids_rgb = np.zeros((4, 5, 3), np.uint8)
        ids_rgb[..., 0], ids_rgb[..., 2] = 3, small[z]
        write_png(own / "b" / "label" / f"s{z + 9}.png", ids_rgb)
    tifffile.imwrite(own / "c.tif", image, photometric="minisblack")
    tifffile.imwrite(own / "c_label.tif", small.astype(np.uint8) % 2, photometric="minisblack")
    write_pairs(
        own,
        {"image": "a/image.h5", "label": "a/label.h5:main", "split": "training"},
        {"image": "b/image", "label": "b/label", "split": "validation"},
        {"image": str(own / "c.tif"), "label": str(own / "c_label.tif"), "split": "test"},
    )
    prepare_volumes(own, out, [30, 8, 8])
    content = read(out)
    assert [entry["voxel_size_nm"] for entry in content["volumes"]] == [[30, 8, 8]] * 3
    assert "image.h5: voxel_size_nm 30x8x8 replaces the " in caplog.text
    assert [entry["instances"] for entry in content["volumes"]] == [59, 60, 1]
    assert [content[split][0]["image"] for split in ("training", "validation", "test")] == [
        f"{name}.ome.zarr" for name in ("a_image", "b_image", "c")
    ]
    labels = [
        open_chunked_volume(load_datalist(out, split)[0]["label"]) for split in ("training", "validation", "test")
    ]
    assert [label.dtype for label in labels] == [np.uint16, np.uint32, np.uint16]
    for label, expected in zip(labels, (small, 3 * 65536 + small, small % 2), strict=True):
        np.testing.assert_array_equal(label[:], expected)
    for split in ("training", "validation", "test"):
        np.testing.assert_array_equal(voxels(load_datalist(out, split)[0]["image"]), image)
    assert "validation again" not in content["split_rule"]
    assert "foreground 98.3 %" in capsys.readouterr().out  # 59 of 60


def test_sixteen_bits_become_eight_by_percentiles(tmp_path: Path, capsys: pytest.CaptureFixture):
    own = tmp_path / "own"
    image = (np.arange(20 * 30 * 50).reshape(20, 30, 50) + 2000).astype(np.uint16)
    image[3, 4, 5] = 65535  # one bright pixel does not take the range
    write_h5(own / "image.h5", image)
    write_h5(own / "label.h5", np.ones(image.shape, np.uint8))
    write_pairs(own, {"image": "image.h5", "label": "label.h5", "split": "training"})
    prepare_volumes(own, tmp_path / "out", SIZE_NM)
    low, high = read(tmp_path / "out")["volumes"][0]["grey_values"]
    assert low == pytest.approx(2030, abs=50) and high == pytest.approx(31970, abs=50)
    expected = ((image.astype(np.float64) - low) / (high - low) * 255).clip(0, 255)
    np.testing.assert_allclose(voxels(tmp_path / "out" / "image.ome.zarr"), expected, atol=0.501)
    said = capsys.readouterr().out
    assert "uint16 brought to 8 bits: 20" in said and "percentiles 0.1 and 99.9 of sections of the whole" in said
    prepare_volumes(own, tmp_path / "out", SIZE_NM)
    assert "uint16 brought to 8 bits: 20" in capsys.readouterr().out  # known of a kept volume too


def test_semantic_masks_are_told_and_numbered_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    own, mask = tmp_path / "own", np.zeros((4, 5, 6), np.uint8)
    mask[:2, 1, 1] = mask[3, 3:, 4] = 255
    write_h5(own / "image.h5", np.arange(120, dtype=np.uint8).reshape(4, 5, 6))
    write_h5(own / "label.h5", mask)
    write_pairs(own, {"image": "image.h5", "label": "label.h5", "split": "training"})
    prepare_data("volumes", own, tmp_path / "out", SIZE_NM)
    assert "label.h5: a semantic mask" in caplog.text and "--label_components True" in caplog.text
    prepare_data("volumes", own, tmp_path / "out", SIZE_NM, label_components=True)
    written = voxels(tmp_path / "out" / "image.ome.zarr" / "labels" / "mitochondria")
    expected = np.zeros((4, 5, 6), np.uint16)
    expected[:2, 1, 1], expected[3, 3:, 4] = 1, 2
    np.testing.assert_array_equal(written, expected)
    assert read(tmp_path / "out")["volumes"][0]["instances"] == 2


def test_images_that_are_inverted_are_written_as_seen(tmp_path: Path):
    own, image = tmp_path / "own", np.random.default_rng(0).integers(0, 256, (4, 5, 6)).astype(np.uint8)
    own.mkdir()
    tifffile.imwrite(own / "image.tif", 255 - image, photometric="miniswhite")
    write_h5(own / "label.h5", np.ones(image.shape, np.uint8))
    write_pairs(own, {"image": "image.tif", "label": "label.h5", "split": "training"})
    prepare_volumes(own, tmp_path / "out", SIZE_NM)
    np.testing.assert_allclose(voxels(tmp_path / "out" / "image.ome.zarr"), image, atol=6)


def test_floats_with_gaps(tmp_path: Path):
    image = np.linspace(-1, 1, 120, dtype=np.float32).reshape(4, 5, 6)
    image[0, 0, :2] = np.nan, -np.inf
    image[1, 1, 1] = np.inf
    write_h5(tmp_path / "image.h5", image)
    write_h5(tmp_path / "label.h5", np.ones(image.shape, np.uint8))
    write_pairs(tmp_path, {"image": "image.h5", "label": "label.h5", "split": "training"})
    prepare_volumes(tmp_path, tmp_path / "out", SIZE_NM)
    written = voxels(tmp_path / "out" / "image.ome.zarr")
    assert written[0, 0, 0] == written[0, 0, 1] == written[1, 1, 1] == 0
    assert written[-1, -1, -1] == 255 and abs(int(written[2, 0, 0]) - 127) <= 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "must be a list"),
        ([], "must be a list"),
        ([{"image": "a/image.h5", "label": "a/label.h5"}], "entry 0 is not a pair"),
        ([{"image": "a/image.h5", "label": "a/label.h5", "split": "train"}], "a split is training, validation or test"),
        ([{"image": "a/image.h5", "label": 3, "split": "test"}], "entry 0 is not a pair"),
        (["a"], ', got "a"'),
        ([{"image": "a/image.h5", "label": "a/label.h5", "split": "test"}] * 2, "both be named a_image"),
        ([{"image": "a/other.h5", "label": "a/label.h5", "split": "test"}], "no such file"),
    ],
)
def test_lists_of_pairs_that_are_none(pair: Path, tmp_path: Path, content: object, words: str):
    (pair / "pairs.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        prepare_volumes(pair, tmp_path / "out", SIZE_NM)
    says(error, words)


def test_pairs_that_are_no_json(pair: Path, tmp_path: Path):
    (pair / "pairs.json").write_text('[{"image": "a/image.h5"},]')
    with pytest.raises(UserError) as error:
        prepare_volumes(pair, tmp_path / "out", SIZE_NM)
    says(error, "not JSON (", "line 1")


def test_volumes_that_do_not_fit_are_named(pair: Path, tmp_path: Path):
    out = tmp_path / "out"
    with pytest.raises(UserError) as error:
        prepare_volumes(pair, out)
    assert says(error, "does not say its voxel size", "--voxel_size_nm").startswith(str(pair / "a" / "image.h5"))
    for wrong in ([30, 8], [30, 8, 0], 8, ["a", "b", "c"]):
        with pytest.raises(UserError) as error:
            prepare_volumes(pair, out, wrong)  # type: ignore[arg-type]
        says(error, "voxel_size_nm must be three lengths in nm")
    for number, (voxels_of_label, words) in enumerate(
        [
            (np.zeros((4, 6, 9), np.uint8), "got (4, 6, 9), and (5, 6, 9)"),
            (np.zeros((5, 6, 9), np.float32), "integers, got float32"),
            (np.full((5, 6, 9), -3, np.int16), "from 0 to 4294967295, got -3"),
            (np.full((5, 6, 9), -3, np.int32), "from 0 to 4294967295, got -3"),
            (np.full((5, 6, 9), 2**32, np.int64), "from 0 to 4294967295, got 4294967296"),
        ]
    ):
        label = pair / f"{number}.h5"  # HDF5 does not write to a file that is still open
        write_h5(label, voxels_of_label)
        write_pairs(pair, {"image": "a/image.h5", "label": label.name, "split": "test"})
        with pytest.raises(UserError) as error:
            prepare_volumes(pair, out, SIZE_NM)
        assert says(error, words).startswith(str(label))
        assert not (out / "dataset.json").exists()
    write_h5(pair / "colours.h5", np.zeros((5, 6, 9), np.uint32))
    write_pairs(pair, {"image": "colours.h5", "label": "a/label.h5", "split": "test"})
    with pytest.raises(UserError) as error:
        prepare_volumes(pair, tmp_path / "out2", SIZE_NM)
    says(error, "floating point, got uint32")
    write_h5(pair / "mask.h5", (np.arange(270).reshape(5, 6, 9) % 2 * 255).astype(np.uint8))
    write_pairs(pair, {"image": "mask.h5", "label": "a/image.h5", "split": "test"})
    with pytest.raises(UserError) as error:
        prepare_volumes(pair, tmp_path / "out2", SIZE_NM)
    assert says(error, "every voxel is 0 or 255, a mask and not an image").startswith(str(pair / "mask.h5"))
    (pair / "pairs.json").write_text("[")
    with pytest.raises(UserError) as error:
        prepare_volumes(pair, out, SIZE_NM)
    assert says(error).startswith(str(pair / "pairs.json"))
    (pair / "pairs.json").unlink()
    with pytest.raises(UserError) as error:
        prepare_volumes(pair, out, SIZE_NM)
    assert says(error).startswith(str(pair / "pairs.json"))


def test_memory_is_that_of_slabs(tmp_path: Path):
    """64 MiB of image and 128 MiB of label in 4 and 8 MiB slabs."""
    shape, slab_bytes = (256, 512, 512), 16 * 512 * 512
    for z in range(shape[0]):
        write_png(tmp_path / "image" / f"{z:03}.png", np.full(shape[1:], z, np.uint8))
        write_png(tmp_path / "label" / f"{z:03}.png", np.full(shape[1:], 300 + z // 7, np.uint16))
    write_pairs(tmp_path, {"image": "image", "label": "label", "split": "training"})
    tracemalloc.start()
    try:
        prepare_volumes(tmp_path, tmp_path / "out", SIZE_NM)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (
        2 * slab_bytes < peak < 6 * slab_bytes
    )  # of a label, two bytes a voxel: a slab, and half a slab in Zarr twice
    (case,) = load_datalist(tmp_path / "out", "training")
    assert open_chunked_volume(case["image"])[255:, 511:, 511:] == 255
    assert read(tmp_path / "out")["volumes"][0]["instances"] == 37


def test_prepared_volumes_are_what_training_reads(rat: Path, tmp_path: Path):
    prepare_mitoem(rat, tmp_path / "out", parts=FEW)
    crop = RandLoadImageCropd(["image", "label"], (3, 4, 5), label_keys="label").set_random_state(0)
    data = crop(load_datalist(tmp_path / "out", "training")[0])
    z, y, x = crop.starts
    assert data["image"].dtype == torch.uint8 and data["label"].dtype == torch.int32
    np.testing.assert_array_equal(data["image"][0, 0], grey(382 + z)[y : y + 4, x : x + 5])
    np.testing.assert_array_equal(data["label"][0, 2], ids(384 + z)[y : y + 4, x : x + 5])


def test_arguments_and_folders(pair: Path, tmp_path: Path):
    for arguments, words in (
        (("", pair, tmp_path), "--source must be mitoem or volumes"),
        (("volumes", "", tmp_path), "--input_dir FOLDER with pairs.json"),
        (("volumes", pair, None), "--dataset_dir FOLDER"),
        (("mitoem", tmp_path / "absent", tmp_path / "out"), "no such folder"),
        (("mitoem", pair, tmp_path / "out"), "no images with labels"),
    ):
        with pytest.raises(UserError) as error:
            prepare_data(*arguments)
        says(error, words)
    assert prepare_data("volumes", pair, tmp_path / "out", voxel_size_nm=SIZE_NM).is_file()
    with pytest.raises(UserError) as error:
        prepare_data("mitoem", pair, tmp_path / "out")
    says(error, "dataset.json would be overwritten, but was not made from mitoem")


def test_the_config_prepares(pair: Path, tmp_path: Path):
    parser = ConfigParser()
    parser.read_config(CONFIG)
    parser.update(
        {
            "source": "volumes",
            "input_dir": str(pair),
            "dataset_dir": str(tmp_path / "out"),
            "voxel_size_nm": list(SIZE_NM),
        }
    )
    parser.parse()
    assert parser.get_parsed_content("run") == [tmp_path / "out" / "dataset.json"]
    assert read(tmp_path / "out")["volumes"][0]["voxel_size_nm"] == list(SIZE_NM)
