# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from volseg.data.ome_zarr import create_ome_zarr
from volseg.data.open_volume import ChunkedVolume, open_chunked_volume
from volseg.errors import UserError
from volseg.instances import writer as instance_writer
from volseg.instances.writer import instances_path, write_instances

SHAPE = (4, 5, 7)
VOXELS = np.arange(140, dtype=np.uint8).reshape(SHAPE)
SIZE_NM = (30.0, 8.0, 10.0)
AFFINE = np.array([[-0.01, 0, 0.002, 5], [0, 0.008, 0, -6], [0.001, 0, 0.03, 7], [0, 0, 0, 1]])


def section_folder(folder: Path) -> ChunkedVolume:
    (folder / "im").mkdir()
    for z, section in enumerate(VOXELS):
        Image.fromarray(section).save(folder / "im" / f"im{z + 8}.png")
    return open_chunked_volume(folder / "im")


def tiff(folder: Path) -> ChunkedVolume:
    metadata = {"spacing": 0.03, "unit": "um", "axes": "ZYX"}
    tifffile.imwrite(folder / "a.tif", VOXELS, imagej=True, resolution=(1 / 0.01, 1 / 0.008), metadata=metadata)
    return open_chunked_volume(folder / "a.tif")


def hdf5(folder: Path) -> ChunkedVolume:
    with h5py.File(folder / "a.h5", "w") as file:
        file["volumes/raw"] = VOXELS
        file["volumes/raw"].attrs["resolution"] = SIZE_NM
    return open_chunked_volume(folder / "a.h5:volumes/raw")


def zarr_array(folder: Path) -> ChunkedVolume:
    array = zarr.create_array(folder / "a.zarr", data=VOXELS, zarr_format=2)
    array.attrs["resolution"] = SIZE_NM
    return open_chunked_volume(folder / "a.zarr")


def ome_zarr(folder: Path) -> ChunkedVolume:
    with create_ome_zarr(folder / "a.ome.zarr", SHAPE, np.uint8, SIZE_NM) as voxels:
        voxels[:] = VOXELS
    return open_chunked_volume(folder / "a.ome.zarr")


def nifti(folder: Path, name: str = "a.nii") -> ChunkedVolume:
    image = nib.Nifti1Image(VOXELS.transpose(), AFFINE)
    image.header.set_xyzt_units("micron")
    image.header.set_slope_inter(2, 1)
    image.set_sform(AFFINE, 2)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"of the image"))
    nib.save(image, folder / name)
    return open_chunked_volume(folder / name)


def nifti_gz(folder: Path) -> ChunkedVolume:
    return nifti(folder, "a.nii.gz")


def nifti_2(folder: Path) -> ChunkedVolume:
    image = nib.Nifti2Image(VOXELS.transpose()[..., None], AFFINE)
    nib.save(image, folder / "a.nii")
    return open_chunked_volume(folder / "a.nii")


OUTPUTS = {
    section_folder: "out",
    tiff: "out.tif",
    hdf5: "out.h5",
    zarr_array: "out.ome.zarr",
    ome_zarr: "out.ome.zarr",
    nifti: "out.nii",
    nifti_gz: "out.nii.gz",
    nifti_2: "out.nii",
}


def each_format(formats: object = OUTPUTS) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("make", formats, ids=lambda make: make.__name__)


def ids_up_to(highest: int, dtype: str = "int64") -> np.ndarray:
    labels = np.arange(140, dtype=dtype).reshape(SHAPE)
    labels[:, :2] = 0
    labels[-1, -1, -1] = highest
    return labels


@each_format()
@pytest.mark.parametrize(
    ("highest", "dtype"),
    [(255, np.uint8), (256, np.uint16), (65535, np.uint16), (65536, np.uint32), (2**32 - 1, np.uint32)],
)
def test_ids_are_kept_in_the_smallest_type_that_holds_them(make, highest: int, dtype, tmp_path: Path):
    like, labels = make(tmp_path), ids_up_to(highest)
    path = write_instances(tmp_path / "out", labels, like)
    assert path == tmp_path / OUTPUTS[make] == instances_path(tmp_path / "new" / "out", like).parents[1] / path.name
    written = open_chunked_volume(path)
    is_png = make is section_folder and highest < 2**16
    assert written.dtype == (np.uint16 if is_png else np.uint32 if make is section_folder else dtype)
    np.testing.assert_array_equal(written[:], labels)
    assert not list(tmp_path.glob(".*"))


@each_format([make for make in OUTPUTS if make is not section_folder])
def test_the_voxel_size_is_kept(make, tmp_path: Path):
    like = make(tmp_path)
    written = open_chunked_volume(write_instances(tmp_path / "out", ids_up_to(300), like))
    assert like.voxel_size_nm is not None or make is nifti_2
    assert written.voxel_size_nm == (like.voxel_size_nm and pytest.approx(like.voxel_size_nm))


@each_format([nifti, nifti_gz, nifti_2])
def test_nifti_lies_on_its_image(make, tmp_path: Path):
    like = make(tmp_path)
    image, written = (nib.load(p) for p in (like.path, write_instances(tmp_path / "out", ids_up_to(300), like)))
    np.testing.assert_array_equal(written.affine, image.affine)
    assert type(written) is type(image)
    assert written.shape == SHAPE[::-1]
    assert written.header.get_xyzt_units()[0] == image.header.get_xyzt_units()[0]
    assert [int(written.header[code]) for code in ("sform_code", "qform_code")] == [
        int(image.header[code]) for code in ("sform_code", "qform_code")
    ]
    assert (written.dataobj.slope, written.dataobj.inter, len(written.header.extensions)) == (1, 0, 0)
    np.testing.assert_array_equal(np.asarray(written.dataobj), ids_up_to(300).transpose())


def test_sections_are_named_as_the_sections_of_the_image(tmp_path: Path):
    path = write_instances(tmp_path / "out", ids_up_to(300), section_folder(tmp_path))
    assert sorted(p.name for p in path.iterdir()) == ["im10.png", "im11.png", "im8.png", "im9.png"]
    with Image.open(path / "im10.png") as section:
        np.testing.assert_array_equal(np.asarray(section), ids_up_to(300)[2])


def test_tiff_has_its_resolution_in_plain_tags_as_well(tmp_path: Path):
    with tifffile.TiffFile(write_instances(tmp_path / "out", ids_up_to(300), tiff(tmp_path))) as file:
        tags = file.pages[0].tags
        x, y = (tags[name].value for name in ("XResolution", "YResolution"))
        assert tags["ResolutionUnit"].value.name == "CENTIMETER"
        assert (x[0] / x[1], y[0] / y[1]) == pytest.approx((1e6, 1.25e6))
        assert file.is_ome
        assert file.pages[0].compression.name == "ADOBE_DEFLATE"


def test_hdf5_is_the_data_set_main_compressed(tmp_path: Path):
    with h5py.File(write_instances(tmp_path / "out", ids_up_to(300), hdf5(tmp_path))) as file:
        assert (list(file), file["main"].compression) == (["main"], "gzip")


@each_format()
@pytest.mark.parametrize("slab_bytes", [1, 200, 10**6])
def test_labels_may_be_on_disk_and_are_read_some_sections_at_a_time(make, slab_bytes, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(instance_writer, "SLAB_BYTES", slab_bytes)
    labels = zarr.create_array(tmp_path / "labels.zarr", data=ids_up_to(300, "uint16"), chunks=(2, 3, 4))
    like = make(tmp_path)
    for i, source in enumerate((labels, open_chunked_volume(tmp_path / "labels.zarr"))):
        path = write_instances(tmp_path / f"out{i}", source, like)
        np.testing.assert_array_equal(open_chunked_volume(path)[:], labels[:])


@pytest.mark.parametrize(("slab_bytes", "reads"), [(1, [1] * 4), (3 * 35 * 2, [2, 2]), (10**6, [4])])
def test_sections_in_memory_are_whole_chunks_that_fit(slab_bytes: int, reads: list[int], tmp_path: Path, monkeypatch):
    monkeypatch.setattr(instance_writer, "SLAB_BYTES", slab_bytes)
    read = []

    class Recorded:
        shape, dtype, chunks = SHAPE, np.dtype(np.uint16), (2, 3, 4)

        def __getitem__(self, sections: slice) -> np.ndarray:
            read.append(sections.stop - sections.start)
            return ids_up_to(300, "uint16")[sections]

    write_instances(tmp_path / "out", Recorded(), hdf5(tmp_path))
    assert read == reads * 2  # for the highest id, and to write


@each_format()
def test_a_volume_without_objects_is_written(make, tmp_path: Path):
    path = write_instances(tmp_path / "out", np.zeros(SHAPE, bool), make(tmp_path))
    assert not open_chunked_volume(path)[:].any()


@each_format([make for make in OUTPUTS if make is not section_folder])
def test_a_result_is_replaced(make, tmp_path: Path):
    like = make(tmp_path)
    write_instances(tmp_path / "out", ids_up_to(300), like)
    path = write_instances(tmp_path / "out", ids_up_to(7), like)
    np.testing.assert_array_equal(open_chunked_volume(path)[:], ids_up_to(7))


@each_format()
def test_a_name_with_the_suffix_is_taken_as_it_is(make, tmp_path: Path):
    assert instances_path(tmp_path / OUTPUTS[make], make(tmp_path)) == tmp_path / OUTPUTS[make]


# What users get wrong


def refused(*words: str):
    return pytest.raises(UserError, match=r"(?s)\A[^\n]*" + "[^\n]*".join(words) + r"[^\n]*\Z")


@pytest.mark.parametrize(
    ("labels", "word"),
    [
        (np.ones(SHAPE, np.float32), "float32"),
        (np.ones((4, 7, 5), np.uint8), r"\(4, 7, 5\)"),
        (-ids_up_to(300), ", got -300;"),
        (ids_up_to(2**32), ", got 4294967296;"),
    ],
)
def test_labels_that_are_none_are_told(labels: np.ndarray, word: str, tmp_path: Path):
    like = tiff(tmp_path)
    with refused("out.tif", word):
        write_instances(tmp_path / "out", labels, like)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]


def test_ids_beyond_32_bits_go_where_64_bits_do(tmp_path: Path):
    path = write_instances(tmp_path / "out", ids_up_to(2**32), hdf5(tmp_path))
    assert open_chunked_volume(path)[-1:, -1:, -1:].item() == 2**32


@each_format([make for make in OUTPUTS if make not in (section_folder, zarr_array)])
def test_the_image_is_not_replaced(make, tmp_path: Path):
    like = make(tmp_path)
    for ask in (lambda: instances_path(tmp_path / "a", like), lambda: write_instances(tmp_path / "a", VOXELS, like)):
        with refused("the image itself"):
            ask()
    np.testing.assert_array_equal(like[:], open_chunked_volume(like.path)[:])


@pytest.mark.parametrize("name", ["im", "."])
def test_a_folder_with_images_is_not_replaced(name: str, tmp_path: Path):
    like = section_folder(tmp_path)
    with refused("the image itself"):
        write_instances(tmp_path / name, VOXELS, like)
    assert len(list((tmp_path / "im").iterdir())) == 4


def test_a_folder_in_use_is_told_before_the_work(tmp_path: Path):
    like = section_folder(tmp_path)
    path = write_instances(tmp_path / "out", VOXELS, like)
    with refused("out", "will not be replaced"):
        instances_path(path, like)


@each_format()
def test_a_place_that_cannot_be_written_is_told(make, tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with refused("cannot be written"):
        write_instances(tmp_path / "file" / "out", VOXELS, make(tmp_path))
