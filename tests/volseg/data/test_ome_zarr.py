# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr

from volseg.data.ome_zarr import create_ome_zarr, create_ome_zarr_label
from volseg.data.open_volume import open_chunked_volume
from volseg.errors import UserError

SHAPE = (4, 5, 7)
VOXELS = np.arange(140, dtype=np.uint8).reshape(SHAPE)
SIZE_NM = (30.0, 8.0, 10.0)
AXES = [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
LEVELS = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [30.0, 8.0, 10.0]}]}]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    with create_ome_zarr(tmp_path / "a.ome.zarr", SHAPE, np.uint8, SIZE_NM, (2, 3, 4)) as voxels:
        voxels[:] = VOXELS
    return tmp_path / "a.ome.zarr"


def write_label(image: Path, name: str, value: int, dtype: str = "uint16") -> None:
    with create_ome_zarr_label(image, name, dtype) as label:
        label[1:2, 2:4, 3:7] = value


def metadata(path: Path) -> dict:
    return json.loads((path / "zarr.json").read_text())


def test_an_image_is_what_the_standard_says(image: Path):
    attributes = metadata(image)["attributes"]
    assert attributes == {
        "ome": {"version": "0.5", "multiscales": [{"name": "a.ome.zarr", "axes": AXES, "datasets": LEVELS}]}
    }
    level = metadata(image / "0")
    assert (level["zarr_format"], level["data_type"], level["dimension_names"]) == (3, "uint8", ["z", "y", "x"])
    assert level["chunk_grid"]["configuration"]["chunk_shape"] == [2, 3, 4]


def test_an_image_is_read_as_it_was_written(image: Path):
    volume = open_chunked_volume(image)
    assert (volume.shape, volume.chunks, volume.dtype) == (SHAPE, (2, 3, 4), np.uint8)
    assert volume.voxel_size_nm == SIZE_NM
    np.testing.assert_array_equal(volume[1:3, 2:, 3:], VOXELS[1:3, 2:, 3:])


def test_without_a_voxel_size_no_unit_is_invented(tmp_path: Path):
    with create_ome_zarr(tmp_path / "a.ome.zarr", SHAPE, np.uint8, None) as voxels:
        voxels[:] = VOXELS
    assert open_chunked_volume(tmp_path / "a.ome.zarr").voxel_size_nm is None
    assert "nanometer" not in (tmp_path / "a.ome.zarr" / "zarr.json").read_text()


def test_blocks_that_are_not_written_take_no_space(tmp_path: Path):
    with create_ome_zarr(tmp_path / "a.ome.zarr", (10**5, 10**5, 10**5), np.uint32, SIZE_NM) as voxels:
        voxels[32:48, 256:512, 0:256] = 7
    assert len([p for p in (tmp_path / "a.ome.zarr" / "0" / "c").rglob("*") if p.is_file()]) == 1


def test_a_label_is_what_the_standard_says(image: Path):
    write_label(image, "mito", 300)
    write_label(image, "nuclei", 2)
    assert metadata(image / "labels")["attributes"] == {"ome": {"version": "0.5", "labels": ["mito", "nuclei"]}}
    assert metadata(image / "labels" / "mito")["attributes"] == {
        "ome": {
            "version": "0.5",
            "multiscales": [{"name": "mito", "axes": AXES, "datasets": LEVELS}],
            "image-label": {"source": {"image": "../../"}},
        }
    }
    label = open_chunked_volume(image / "labels" / "mito")
    assert (label.shape, label.chunks, label.dtype, label.voxel_size_nm) == (SHAPE, (2, 3, 4), np.uint16, SIZE_NM)
    assert label[:].sum() == 300 * 8
    np.testing.assert_array_equal(open_chunked_volume(image)[:], VOXELS)


def test_a_label_lies_where_its_image_lies(image: Path):
    """Other levels of the image are not those of the label."""
    content = metadata(image)
    multiscale = content["attributes"]["ome"]["multiscales"][0]
    moved = [*LEVELS[0]["coordinateTransformations"], {"type": "translation", "translation": [60.0, 4.0, 5.0]}]
    multiscale["datasets"] = [{"path": "0", "coordinateTransformations": moved}, {**LEVELS[0], "path": "1"}]
    (image / "zarr.json").write_text(json.dumps(content))
    write_label(image, "mito", 1)
    written = metadata(image / "labels" / "mito")["attributes"]["ome"]["multiscales"][0]
    assert written["datasets"] == [{"path": "0", "coordinateTransformations": moved}]


def test_a_label_is_replaced_and_listed_once(image: Path):
    write_label(image, "mito", 3)
    write_label(image, "mito", 5, "uint32")
    assert metadata(image / "labels")["attributes"]["ome"]["labels"] == ["mito"]
    label = open_chunked_volume(image / "labels" / "mito")
    assert (label.dtype, label[:].max()) == (np.uint32, 5)


def test_an_image_is_replaced_whole(image: Path):
    with create_ome_zarr(image, (3, 2, 5), np.uint16, SIZE_NM) as voxels:
        voxels[:] = 9
        assert open_chunked_volume(image).shape == SHAPE  # until the new one is complete
    assert open_chunked_volume(image).shape == (3, 2, 5)
    assert [p.name for p in image.parent.iterdir()] == ["a.ome.zarr"]


def test_what_was_begun_and_failed_leaves_nothing(image: Path):
    with pytest.raises(KeyboardInterrupt), create_ome_zarr(image, SHAPE, np.uint8, SIZE_NM) as voxels:
        voxels[:] = 1
        raise KeyboardInterrupt
    with pytest.raises(ZeroDivisionError), create_ome_zarr_label(image, "mito", np.uint8) as label:
        label[:] = 1 // 0
    assert [p.name for p in image.parent.iterdir()] == ["a.ome.zarr"]
    assert list((image / "labels").iterdir()) == []
    np.testing.assert_array_equal(open_chunked_volume(image)[:], VOXELS)


def refused(*words: str):
    return pytest.raises(UserError, match=r"(?s)\A[^\n]*" + "[^\n]*".join(words) + r"[^\n]*\Z")


@pytest.mark.parametrize("labels_or_levels", ["labels/mito", "1"])
def test_an_image_with_more_in_it_is_not_replaced(labels_or_levels: str, image: Path):
    zarr.open_group(image, mode="a").create_array(labels_or_levels, data=VOXELS)
    with refused("a.ome.zarr", "exists and will not be replaced"), create_ome_zarr(image, SHAPE, np.uint8, SIZE_NM):
        pytest.fail("hours of work")
    np.testing.assert_array_equal(open_chunked_volume(image)[:], VOXELS)


def test_other_folders_and_files_are_not_replaced(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    refusals = {
        "folder": "exists and will not",
        "file": "exists and will not",
        "file/inside": "Not a directory|File exists",
    }
    for name, reason in refusals.items():
        with refused(name, f"({reason})"), create_ome_zarr(tmp_path / name, SHAPE, np.uint8, SIZE_NM):
            pytest.fail("hours of work")
    assert (tmp_path / "folder" / "thesis.tex").exists()


@pytest.mark.parametrize("name", ["", "a/b", "..", ".a", "a b"])
def test_names_that_are_none_are_refused(name: str, image: Path):
    with refused("label names consist of"), create_ome_zarr_label(image, name, np.uint8):
        pytest.fail("hours of work")


def test_labels_are_integers(image: Path):
    with pytest.raises(ValueError, match="integer"), create_ome_zarr_label(image, "a", np.float32):
        pytest.fail("hours of work")


@pytest.mark.parametrize("kind", ["array", "0.4", "channels"])
def test_images_that_cannot_have_such_labels_are_told(kind: str, tmp_path: Path):
    path = tmp_path / "a.zarr"
    if kind == "array":
        zarr.create_array(path, data=VOXELS)
    else:
        axes = [{"name": "c"}, *AXES] if kind == "channels" else AXES
        attributes = {"version": kind, "multiscales": [{"axes": axes, "datasets": LEVELS}]}
        if kind == "0.4":
            zarr.open_group(path, mode="w", zarr_format=2, attributes=attributes).create_array("0", data=VOXELS)
        else:
            zarr.open_group(path, mode="w", attributes={"ome": {**attributes, "version": "0.5"}})
    with refused("a.zarr", "got version"), create_ome_zarr_label(path, "mito", np.uint8):
        pytest.fail("hours of work")
