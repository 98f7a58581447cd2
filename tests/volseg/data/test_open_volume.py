# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import pickle
import struct
import sys
import zlib
from multiprocessing import get_context
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from volseg.data.open_volume import ChunkedVolume, open_chunked_volume
from volseg.data.volume_formats import section_volume, tiff_stack
from volseg.errors import UserError

REAL = Path(__file__).parents[4] / "shared" / "data" / "mito"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="needs the MitoEM files of the development data")

VOXELS = np.arange(4 * 5 * 7, dtype=np.uint16).reshape(4, 5, 7) * 300  # beyond 8 bits
SIZE_NM = (30.0, 8.0, 10.0)
SCALE_UM = [0.03, 0.008, 0.01]


def sections(folder: Path, voxels: np.ndarray = VOXELS, name: str = "im{:d}.png", first: int = 8) -> Path:
    folder.mkdir(parents=True)
    for z, section in enumerate(voxels):
        Image.fromarray(section).save(folder / name.format(z + first))
    return folder


def section_folder(folder: Path) -> Path:
    return sections(folder / "im")  # im8, im9, im10, im11: not the order of the alphabet


def tiff_section_folder(folder: Path) -> Path:
    (folder / "im").mkdir()
    for z, section in enumerate(VOXELS):
        tifffile.imwrite(folder / "im" / f"a2_{z:04d}.tif", section, compression="zlib")
    return folder / "im"


def index(folder: Path, **keys: object) -> Path:
    if not (folder / "im").exists():
        sections(folder / "im")
    content = {"image": [f"im/im{z}.png" for z in range(8, 12)], "depth": 4, "height": 5, "width": 7}
    mitoem = {
        "ndim": 1,
        "dtype": "uint8",
        "tile_size": 7,
        "tile_ratio": 1,
        "tile_st": [0, 0],
        "n_rows": 1,
        "n_columns": 1,
    }
    (folder / "im.json").write_text(json.dumps({**content, **mitoem, **keys}))
    return folder / "im.json"


def tiled_index(folder: Path, tile: int = 4, **keys: object) -> Path:
    """Sections of 5 x 7 in 2 x 2 tiles of 4 x 4, numbered from 1 and 2."""
    (folder / "tiles").mkdir()
    for z, section in enumerate(VOXELS):
        for row in range(2):
            for column in range(2):
                cut = section[row * tile : (row + 1) * tile, column * tile : (column + 1) * tile]
                Image.fromarray(cut).save(folder / "tiles" / f"s{z}_r{row + 1}_c{column + 2}.png")
    names = [f"tiles/s{z}_r{{row}}_c{{column}}.png" for z in range(4)]
    return index(folder, **{"image": names, "tile_size": tile, "tile_st": [1, 2], "n_rows": 2, "n_columns": 2, **keys})


def plain_tiff(folder: Path) -> Path:
    tifffile.imwrite(folder / "a.tif", VOXELS, photometric="minisblack")
    return folder / "a.tif"


def big_endian_big_tiff(folder: Path) -> Path:
    tifffile.imwrite(folder / "a.tiff", VOXELS, photometric="minisblack", byteorder=">", bigtiff=True)
    return folder / "a.tiff"


def compressed_tiff(folder: Path) -> Path:
    tifffile.imwrite(folder / "a.tif", VOXELS, photometric="minisblack", compression="zlib", predictor=True)
    return folder / "a.tif"


def planar_tiff(folder: Path) -> Path:
    tifffile.imwrite(folder / "a.tif", VOXELS, photometric="minisblack", planarconfig="separate", compression="zlib")
    return folder / "a.tif"


def imagej_tiff(folder: Path) -> Path:
    resolution = (1 / SCALE_UM[2], 1 / SCALE_UM[1])  # x, y
    metadata = {"spacing": SCALE_UM[0], "unit": "um", "axes": "ZYX"}
    tifffile.imwrite(folder / "a.tif", VOXELS, imagej=True, resolution=resolution, metadata=metadata)
    return folder / "a.tif"


def ome_tiff(folder: Path) -> Path:
    metadata = {"axes": "ZYX", "PhysicalSizeZ": 30, "PhysicalSizeZUnit": "nm", "PhysicalSizeY": 0.008}
    tifffile.imwrite(folder / "a.ome.tif", VOXELS, ome=True, metadata={**metadata, "PhysicalSizeX": 0.01})
    return folder / "a.ome.tif"


def hdf5(folder: Path) -> Path:
    with h5py.File(folder / "a.h5", "w") as file:
        file["masks/plane"] = VOXELS[0]
        file["volumes/raw"] = VOXELS
        file["volumes/raw"].attrs["resolution"] = SIZE_NM
    return folder / "a.h5"


def hdf5_dataset(folder: Path) -> Path:
    with h5py.File(folder / "a.hdf5", "w") as file:
        file.create_dataset("main", data=VOXELS, chunks=(2, 3, 4), compression="gzip")
        file["other"] = VOXELS + 1
        file["main"].attrs["element_size_um"] = SCALE_UM
    return folder / "a.hdf5:main"


def zarr_array(folder: Path, zarr_format: int, dtype: str = "u2") -> Path:
    array = zarr.create_array(folder / "a.zarr", data=VOXELS.astype(dtype), chunks=(2, 3, 4), zarr_format=zarr_format)
    array.attrs["voxel_size"] = SIZE_NM
    return folder / "a.zarr"


def zarr_2(folder: Path) -> Path:
    return zarr_array(folder, 2, ">u2")


def zarr_3(folder: Path) -> Path:
    return zarr_array(folder, 3)


def zarr_group(folder: Path) -> Path:
    zarr.open_group(folder / "g.zarr", mode="w").create_group("volumes").create_array("raw", data=VOXELS)
    return folder / "g.zarr"


def multiscale(names: str, units: str, scale: list[float], more: list[float]) -> dict:
    """Level 0 of ``scale``, all levels times ``more``."""

    def scaling(values: list[float]) -> list[dict]:
        return [{"type": "scale", "scale": values}]

    axes = [{"name": name, "type": "space", "unit": units} if name in "zyx" else {"name": name} for name in names]
    datasets = [{"path": str(i), "coordinateTransformations": scaling([s * 2**i for s in scale])} for i in range(2)]
    return {"multiscales": [{"axes": axes, "datasets": datasets, "coordinateTransformations": scaling(more)}]}


def ome_zarr_04(folder: Path) -> Path:
    """Version 0.4, axes t, c, z, y, x."""
    group = zarr.open_group(folder / "a.ome.zarr", mode="w", zarr_format=2)
    group.create_array("0", data=VOXELS[None, None], chunks=(1, 1, 2, 3, 4))
    group.create_array("1", data=VOXELS[None, None, ::2, ::2, ::2])
    group.attrs.update(multiscale("tczyx", "micrometer", [1, 1, *SCALE_UM], [1] * 5))
    return folder / "a.ome.zarr"


def ome_zarr_05(folder: Path) -> Path:
    group = zarr.open_group(folder / "a.ome.zarr", mode="w", zarr_format=3)
    group.create_array("0", data=VOXELS, chunks=(2, 3, 4))
    group.create_array("1", data=VOXELS[::2, ::2, ::2])
    group.attrs["ome"] = {"version": "0.5", **multiscale("zyx", "nanometer", [15, 4, 5], [2, 2, 2])}
    return folder / "a.ome.zarr"


def nifti(folder: Path, name: str = "a.nii") -> Path:
    image = nib.Nifti1Image(VOXELS.transpose(), np.diag([-10, 8, 30, 1]))
    image.header.set_xyzt_units("micron")
    nib.save(image, folder / name)
    return folder / name


def nifti_gz(folder: Path) -> Path:
    return nifti(folder, "a.nii.gz")


WITH_SIZE = {
    imagej_tiff: SIZE_NM,
    ome_tiff: SIZE_NM,
    hdf5: SIZE_NM,
    hdf5_dataset: SIZE_NM,
    zarr_2: SIZE_NM,
    zarr_3: SIZE_NM,
    ome_zarr_04: SIZE_NM,
    ome_zarr_05: SIZE_NM,
    nifti: (30e3, 8e3, 10e3),
    nifti_gz: (30e3, 8e3, 10e3),
}
WITHOUT_SIZE = (
    section_folder,
    tiff_section_folder,
    index,
    tiled_index,
    plain_tiff,
    big_endian_big_tiff,
    compressed_tiff,
    planar_tiff,
    zarr_group,
)
FORMATS = (*WITH_SIZE, *WITHOUT_SIZE)


def each_format(formats: object = FORMATS) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("write", formats, ids=lambda write: write.__name__)


@each_format()
def test_every_format_reads_the_voxels_that_were_written(write, tmp_path: Path):
    volume = open_chunked_volume(write(tmp_path))
    assert volume.shape == (4, 5, 7)
    assert volume.dtype == np.uint16
    assert volume.dtype.isnative
    for block in (np.s_[:], np.s_[1:3, 2:5, 3:4], np.s_[2:2], np.s_[-1:, :, 5:100], np.s_[3:4, 4:5]):
        read = volume[block]
        assert read.dtype == volume.dtype
        np.testing.assert_array_equal(read, VOXELS[block])
    volume[:][...] = 0  # what was read belongs to the reader
    np.testing.assert_array_equal(volume[:], VOXELS)


@each_format()
def test_voxel_size_is_in_nm_and_none_where_the_file_does_not_say(write, tmp_path: Path):
    size_nm = open_chunked_volume(write(tmp_path)).voxel_size_nm
    assert size_nm == (pytest.approx(WITH_SIZE[write]) if write in WITH_SIZE else None)


@each_format()
def test_a_volume_that_was_read_from_can_be_pickled(write, tmp_path: Path):
    volume = open_chunked_volume(write(tmp_path))
    before = pickle.dumps(volume)
    volume[:1]
    assert len(pickle.dumps(volume)) == len(before)  # no voxels, no open file
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(volume))[1:, 2:, 3:], VOXELS[1:, 2:, 3:])  # noqa: S301


def _sum_in_child(volume: ChunkedVolume, queue) -> None:
    queue.put(int(volume[1:3].sum()))


@pytest.mark.parametrize("write", [zarr_3, hdf5, compressed_tiff], ids=lambda write: write.__name__)
def test_an_open_volume_works_after_a_fork(write, tmp_path: Path):
    volume = open_chunked_volume(write(tmp_path))
    volume[:1]
    context = get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_sum_in_child, args=(volume, queue))
    child.start()
    assert queue.get(timeout=600) == VOXELS[1:3].sum()
    child.join()


def test_each_process_opens_the_file_anew_and_once(tmp_path: Path, monkeypatch):
    """File positions and locks are shared over a fork."""
    volume = open_chunked_volume(hdf5(tmp_path))
    opened = []
    read_file = h5py.File
    monkeypatch.setattr(h5py, "File", lambda *args: opened.append(os.getpid()) or read_file(*args))
    for process in (11, 11, 12, 12):
        monkeypatch.setattr(os, "getpid", lambda process=process: process)
        volume[:1]
    assert opened == [11, 12]


@pytest.mark.parametrize(
    ("write", "chunks"),
    [
        (section_folder, (1, 5, 7)),
        (tiled_index, (1, 4, 4)),
        (compressed_tiff, (1, 5, 7)),
        (hdf5, (1, 5, 7)),
        (hdf5_dataset, (2, 3, 4)),
        (ome_zarr_04, (2, 3, 4)),
    ],
)
def test_chunks_are_what_is_decoded_at_once(write, chunks: tuple[int, ...], tmp_path: Path):
    assert open_chunked_volume(write(tmp_path)).chunks == chunks


@pytest.mark.parametrize("block", [0, np.s_[0:1, 0], np.s_[::2], np.s_[:, :, :, :], np.s_[..., 0:1]])
def test_only_slices_without_a_step_are_blocks(block, tmp_path: Path):
    with pytest.raises(TypeError, match="slices without a step"):
        open_chunked_volume(zarr_3(tmp_path))[block]


# Sections


@pytest.mark.parametrize(("cache_bytes", "n_decoded"), [(10**6, 3), (2 * VOXELS[0].nbytes, 5), (0, 6)])
def test_sections_are_decoded_once_while_they_fit(cache_bytes, n_decoded, tmp_path: Path, monkeypatch):
    decoded = []
    read = section_volume.read_section
    monkeypatch.setattr(section_volume, "read_section", lambda file: decoded.append(file.name) or read(file))
    volume = open_chunked_volume(section_folder(tmp_path), cache_bytes=cache_bytes)
    assert decoded == []
    volume[1:3]
    assert decoded == ["im9.png", "im10.png"]
    volume[3:4]
    volume[1:2]
    volume[3:4] if cache_bytes else volume[1:2]
    volume[2:3]
    assert len(decoded) == n_decoded if cache_bytes else n_decoded + 1


def test_only_the_tiles_of_a_block_are_decoded(tmp_path: Path, monkeypatch):
    decoded = []
    read = section_volume.read_section
    monkeypatch.setattr(section_volume, "read_section", lambda file: decoded.append(file.name) or read(file))
    open_chunked_volume(tiled_index(tmp_path))[2:3, 4:5, 3:6]
    assert decoded == ["s2_r2_c2.png", "s2_r2_c3.png"]


def test_pages_of_a_compressed_tiff_are_decoded_once(tmp_path: Path, monkeypatch):
    decoded = []
    page = tiff_stack.TiffPages.page
    monkeypatch.setattr(tiff_stack.TiffPages, "page", lambda self, z: decoded.append(z) or page(self, z))
    volume = open_chunked_volume(compressed_tiff(tmp_path))
    volume[1:3]
    volume[2:4]
    assert decoded == [1, 2, 3]


def test_tiles_at_the_border_may_be_padded(tmp_path: Path):
    path = tiled_index(tmp_path)
    for file in (tmp_path / "tiles").iterdir():
        tile = np.asarray(Image.open(file))
        Image.fromarray(np.pad(tile, [(0, 4 - n) for n in tile.shape])).save(file)
    np.testing.assert_array_equal(open_chunked_volume(path)[:], VOXELS)


def test_index_takes_absolute_paths(tmp_path: Path):
    sections(tmp_path / "im")
    path = index(tmp_path, image=[str(tmp_path / f"im/im{z}.png") for z in range(8, 12)])
    np.testing.assert_array_equal(open_chunked_volume(path)[:], VOXELS)


def test_numbers_before_the_one_that_counts_are_part_of_the_name(tmp_path: Path):
    volume = open_chunked_volume(sections(tmp_path / "im", name="day2_{:d}_v3.png", first=9))
    np.testing.assert_array_equal(volume[:], VOXELS)


def test_other_files_in_a_section_folder_are_left_alone(tmp_path: Path):
    folder = section_folder(tmp_path)
    (folder / "notes.txt").write_text("x")
    (folder / "._im8.png").write_bytes(b"what macOS leaves")
    np.testing.assert_array_equal(open_chunked_volume(folder)[:], VOXELS)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_colours_are_ids(suffix: str, tmp_path: Path):
    colors = np.zeros((2, 3, 5, 3), np.uint8)
    colors[0, 1, 2] = (1, 2, 3)
    colors[1, 2, 4] = (255, 255, 255)
    sections(tmp_path / "im", colors, "seg{:04d}." + suffix)
    volume = open_chunked_volume(tmp_path / "im")
    expected = np.zeros((2, 3, 5), np.uint32)
    expected[0, 1, 2] = 65536 + 2 * 256 + 3
    expected[1, 2, 4] = 2**24 - 1
    assert volume.dtype == np.uint32
    np.testing.assert_array_equal(volume[:], expected)


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_labels_of_an_indexed_png_are_its_indices(bits: int, tmp_path: Path):
    labels = (np.arange(15).reshape(3, 5) % 2**bits).astype(np.uint8)
    image = Image.fromarray(labels, "P")
    image.putpalette([200, 100, 0] * 2**bits)
    image.save(tmp_path / "a.png", bits=bits)
    np.testing.assert_array_equal(open_chunked_volume(tmp_path / "a.png")[:], labels[None])


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_colours_of_a_tiff_stack_are_ids(compression: str | None, tmp_path: Path):
    colors = np.arange(4 * 5 * 7 * 3, dtype=np.uint16).reshape(4, 5, 7, 3).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", colors, photometric="rgb", compression=compression)
    expected = colors.astype(int) @ [65536, 256, 1]
    np.testing.assert_array_equal(open_chunked_volume(tmp_path / "a.tif")[1:, 1:4], expected[1:, 1:4])


def test_sections_of_different_bits_are_read_in_the_larger(tmp_path: Path):
    folder = section_folder(tmp_path)
    Image.fromarray(np.full((5, 7), 9, np.uint8)).save(folder / "im8.png")
    volume = open_chunked_volume(folder)
    assert volume.dtype == np.uint16
    np.testing.assert_array_equal(volume[:2], np.stack([np.full((5, 7), 9), VOXELS[1]]))


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_a_single_image_is_one_section(name: str, tmp_path: Path):
    Image.fromarray(VOXELS[1]).save(tmp_path / name)
    volume = open_chunked_volume(tmp_path / name)
    assert volume.shape == (1, 5, 7)
    np.testing.assert_array_equal(volume[:, 1:, 2:], VOXELS[1:2, 1:, 2:])


def test_scaled_nifti_is_read_as_float32(tmp_path: Path):
    image = nib.Nifti1Image(VOXELS.transpose(), np.eye(4))
    image.header.set_slope_inter(0.5, 3)
    nib.save(image, tmp_path / "a.nii.gz")
    stored = np.asarray(nib.load(tmp_path / "a.nii.gz").dataobj.get_unscaled()).transpose()
    volume = open_chunked_volume(tmp_path / "a.nii.gz")
    assert volume.dtype == np.float32
    np.testing.assert_allclose(volume[1:3], stored[1:3] * 0.5 + 3, rtol=1e-6)


@pytest.mark.parametrize(("name", "right"), [("a.nii", "a.nii.gz"), ("a.nii.gz", "a.nii")])
def test_nifti_whose_name_denies_its_compression_is_told(name: str, right: str, tmp_path: Path):
    nib.save(nib.Nifti1Image(VOXELS.transpose(), np.eye(4)), tmp_path / right)
    (tmp_path / right).rename(tmp_path / name)
    one_line(tmp_path / name, f"rename it to {right}")


def test_nifti_without_a_unit_has_no_voxel_size(tmp_path: Path):
    nib.save(nib.Nifti1Image(VOXELS.transpose()[..., None], np.eye(4)), tmp_path / "a.nii")
    volume = open_chunked_volume(tmp_path / "a.nii")
    assert volume.voxel_size_nm is None
    np.testing.assert_array_equal(volume[1:, 2:], VOXELS[1:, 2:])


@pytest.mark.parametrize(
    "attributes",
    [
        {"resolution": [30, 0, 8]},
        {"resolution": "fine"},
        {"resolution": [30, 8]},
        {"resolution": [30, 8, 8], "units": ["nm", "nm"]},
        {"resolution": [3, 2, 1], "units": "s"},
    ],
)
def test_a_voxel_size_that_says_nothing_is_none(attributes: dict, tmp_path: Path):
    path = zarr_3(tmp_path)
    zarr.open(path, mode="a").attrs.put(attributes)
    assert open_chunked_volume(path).voxel_size_nm is None


# What users get wrong


def one_line(path: Path, *words: str, read: bool = False) -> None:
    """Opening (or reading) fails in one line with these words."""
    with pytest.raises(UserError) as caught:
        volume = open_chunked_volume(path)
        if read:
            volume[:]
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@each_format([section_folder, tiff_section_folder, plain_tiff, compressed_tiff, hdf5, nifti, nifti_gz, zarr_2, zarr_3])
@pytest.mark.parametrize("keep", [0.0, 0.001, 0.3, 0.6, 0.95])
def test_damaged_files_are_told(write, keep: float, tmp_path: Path):
    """Or read in full, where nothing but what comes after the voxels is lost."""
    path = write(tmp_path)
    file = max((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size) if path.is_dir() else path
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * keep)])
    try:
        voxels = open_chunked_volume(path)[:]
    except UserError:
        one_line(path, path.name, read=True)
    else:
        assert keep > 0.3 or write is plain_tiff
        np.testing.assert_array_equal(voxels, VOXELS)


@pytest.mark.parametrize("n_lost_bytes", [0, 20, -40])
def test_a_tiff_that_lost_its_last_pages_is_told(n_lost_bytes: int, tmp_path: Path):
    """tifffile and others read what is left as a shorter volume."""
    path = tmp_path / "a.tif"
    pages = [Image.fromarray(section) for section in VOXELS]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    assert open_chunked_volume(path).shape == (4, 5, 7)
    with tifffile.TiffFile(path) as file:
        third_page = file.pages[2].offset
    path.write_bytes(path.read_bytes()[: third_page - n_lost_bytes])
    one_line(path, "a.tif", read=True)


def test_an_imagej_stack_that_lost_its_last_pages_is_told(tmp_path: Path):
    path = imagej_tiff(tmp_path)
    with tifffile.TiffFile(path) as file:
        start = file.series[0].dataoffset
    path.write_bytes(path.read_bytes()[: start + VOXELS.nbytes - 1])
    one_line(path)


def test_missing_sections_are_told(tmp_path: Path):
    folder = section_folder(tmp_path)
    (folder / "im10.png").unlink()
    one_line(folder, "3 of the 4 numbers from 8 to 11", "first missing is 10")


def test_two_sections_of_one_number_are_told(tmp_path: Path):
    folder = section_folder(tmp_path)
    Image.fromarray(VOXELS[0]).save(folder / "im009.png")
    one_line(folder, "im009.png, im9.png")


@pytest.mark.parametrize("name", ["mask9.png", "im9.tif", "cover.png"])
def test_folders_of_unlike_files_are_told(name: str, tmp_path: Path):
    folder = section_folder(tmp_path)
    Image.fromarray(VOXELS[0]).save(folder / name)
    one_line(folder, name if name != "im9.tif" else ".png, .tif")


def test_sections_may_have_both_suffixes_of_tiff(tmp_path: Path):
    folder = tiff_section_folder(tmp_path)
    for number, suffix in enumerate((".TIF", ".tiff", ".Tiff")):
        (folder / f"a2_{number:04d}.tif").rename(folder / f"a2_{number:04d}{suffix}")
    np.testing.assert_array_equal(open_chunked_volume(folder)[:], VOXELS)


def test_two_numbers_that_vary_are_told(tmp_path: Path):
    folder = sections(tmp_path / "im", VOXELS[:2], "r1_s{:d}.png")
    Image.fromarray(VOXELS[0]).save(folder / "r2_s8.png")
    one_line(folder, "one number")


def test_sections_of_unequal_size_are_told(tmp_path: Path):
    folder = section_folder(tmp_path)
    Image.fromarray(VOXELS[0, :4]).save(folder / "im10.png")
    one_line(folder, "im10.png", "4x7", "5x7")


def test_an_empty_folder_is_told(tmp_path: Path):
    (tmp_path / "im").mkdir()
    one_line(tmp_path / "im", "no sections")


def test_a_stack_in_a_section_folder_is_told(tmp_path: Path):
    folder = tiff_section_folder(tmp_path)
    tifffile.imwrite(folder / "a2_0000.tif", VOXELS, photometric="minisblack")
    one_line(folder, "a2_0000.tif", "4 pages")


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_png_of_other_kinds_are_told(mode: str, tmp_path: Path):
    Image.new(mode, (7, 5)).save(tmp_path / "a.png")
    one_line(tmp_path / "a.png", "got PNG")


def test_16_bit_colours_are_told_and_not_cut_to_8(tmp_path: Path):
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 7, 5, 16, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(5 * (1 + 7 * 6))))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b""))
    one_line(tmp_path / "a.png", "RGB;16B")


def test_pages_of_unequal_size_are_told(tmp_path: Path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(VOXELS[0])
        file.write(VOXELS[0, :4])
    one_line(tmp_path / "a.tif", "5x7, 4x7")


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"image": []}, '"image"'),
        ({"image": "im8.png"}, '"image"'),
        ({"depth": 5}, "5 and 4 files"),
        ({"height": 0}, '"height"'),
        ({"width": "7"}, '"width"'),
        ({"width": 6}, "5x7"),
        ({"n_rows": 2}, "2x1 tiles"),
        ({"tile_ratio": 0.5}, "0.5"),
        ({"image": ["im/im8.png"] * 3 + ["/nowhere/im11.png"]}, "/nowhere/im11.png"),
    ],
)
def test_an_index_that_does_not_hold_is_told(keys: dict, word: str, tmp_path: Path):
    one_line(index(tmp_path, **keys), "im.json" if "width" not in keys or keys["width"] == "7" else "im8.png", word)


@pytest.mark.parametrize(
    ("keys", "word"),
    [({"tile_st": [1]}, "tile_st"), ({"tile_st": [0, 0]}, "_r0_c0"), ({"image": ["a.png"] * 4}, "{row}")],
)
def test_an_index_of_tiles_that_does_not_hold_is_told(keys: dict, word: str, tmp_path: Path):
    one_line(tiled_index(tmp_path, **keys), word)


@pytest.mark.parametrize("content", ["", "[1]", '{"a": 1}', "\x00"])
def test_other_json_files_are_told(content: str, tmp_path: Path):
    (tmp_path / "a.json").write_text(content)
    one_line(tmp_path / "a.json")


def test_several_data_sets_are_listed(tmp_path: Path):
    hdf5_dataset(tmp_path)
    one_line(tmp_path / "a.hdf5", "main, other", "a.hdf5:NAME")
    one_line(tmp_path / "a.hdf5:none", "no data set 'none'", "main, other")


def test_several_arrays_are_listed(tmp_path: Path):
    path = zarr_group(tmp_path)
    zarr.open_group(path, mode="a").create_array("seg", data=VOXELS)
    one_line(path, "seg, volumes/raw")


@pytest.mark.parametrize(
    ("shape", "word"), [((2, 3), "2x3"), ((2, 3, 4, 5), "2x3x4x5"), ((2, 0, 4), "(2, 0, 4)"), ((), "single value")]
)
def test_arrays_that_are_no_volume_are_told(shape: tuple[int, ...], word: str, tmp_path: Path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["main"] = np.zeros(shape)
    one_line(tmp_path / "a.h5:main", word)


def test_voxels_that_are_no_numbers_are_told(tmp_path: Path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["main"] = np.zeros((2, 3, 4), [("a", "u1"), ("b", "f4")])
    one_line(tmp_path / "a.h5", "numbers")


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"zarr_format": 3, "node_type": "array"}'])
def test_zarr_metadata_that_do_not_hold_are_told(content: str, tmp_path: Path):
    path = zarr_3(tmp_path)
    (path / "zarr.json").write_text(content)
    one_line(path, "a.zarr")


@pytest.mark.parametrize(
    "metadata",
    [
        [],
        [{}],
        [{"axes": [{}], "datasets": [{"path": "0"}]}],
        [{"axes": [{"name": n} for n in "zyx"], "datasets": [{"path": "7"}]}],
        [{"axes": [{"name": n} for n in "cyx"], "datasets": [{"path": "0"}]}],
        [{"axes": [{"name": n} for n in "zyx"], "datasets": [{"path": "0", "coordinateTransformations": [1]}]}],
    ],
)
def test_ome_metadata_that_do_not_hold_are_told(metadata: list, tmp_path: Path):
    path = ome_zarr_05(tmp_path)
    zarr.open_group(path, mode="a").attrs["ome"] = {"multiscales": metadata}
    one_line(path, "a.ome.zarr")


def test_several_channels_of_an_ome_zarr_are_told(tmp_path: Path):
    group = zarr.open_group(tmp_path / "a.ome.zarr", mode="w")
    group.create_array("0", data=np.stack([VOXELS, VOXELS]))
    group.attrs["ome"] = multiscale("czyx", "nanometer", [1, *SIZE_NM], [1] * 4)
    one_line(tmp_path / "a.ome.zarr", "2 channels")


@pytest.mark.parametrize("name", ["none.tif", "none.h5:main", "none"])
def test_absent_files_are_told(name: str, tmp_path: Path):
    one_line(tmp_path / name, "no such file")


def test_other_formats_are_told(tmp_path: Path):
    (tmp_path / "a.dm4").write_text("x")
    one_line(tmp_path / "a.dm4", ".ome.zarr")


@pytest.mark.parametrize(("write", "module"), [(hdf5, "h5py"), (zarr_3, "zarr"), (plain_tiff, "tifffile")])
def test_a_package_that_is_not_installed_is_told(write, module: str, tmp_path: Path, monkeypatch):
    path = write(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    one_line(path, f"pip install {module}")


def test_a_codec_that_is_not_installed_is_told(tmp_path: Path, monkeypatch):
    Image.fromarray(VOXELS[0]).save(tmp_path / "a.tif", compression="tiff_lzw")
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    one_line(tmp_path / "a.tif", "pip install imagecodecs")


def test_the_finest_level_of_an_ome_zarr_is_read_wherever_it_is_listed(tmp_path: Path):
    path = ome_zarr_05(tmp_path)
    group = zarr.open_group(path, mode="a")
    ome = group.attrs.asdict()["ome"]
    ome["multiscales"][0]["datasets"].reverse()
    group.attrs["ome"] = ome
    volume = open_chunked_volume(path)
    np.testing.assert_array_equal(volume[:], VOXELS)
    assert volume.voxel_size_nm == pytest.approx(SIZE_NM)


@pytest.mark.parametrize(
    "steps", [[], [{"type": "affine", "affine": []}], [{"type": "translation", "translation": [1, 2, 3]}]]
)
def test_an_ome_zarr_without_a_scale_does_not_say_its_size(steps: list, tmp_path: Path):
    path = ome_zarr_05(tmp_path)
    group = zarr.open_group(path, mode="a")
    ome = group.attrs.asdict()["ome"]
    ome["multiscales"][0].pop("coordinateTransformations", None)
    ome["multiscales"][0]["datasets"][0]["coordinateTransformations"] = steps
    group.attrs["ome"] = ome
    volume = open_chunked_volume(path)
    assert (volume.voxel_size_nm, volume.origin_nm) == (None, None)


def test_axis_tags_that_do_not_hold_are_told(tmp_path: Path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("main", data=VOXELS).attrs["axistags"] = "[1]"
    one_line(tmp_path / "a.h5", "a.h5")


def test_a_link_names_its_data_set(tmp_path: Path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"], file["other"], file["main"] = VOXELS, VOXELS, h5py.SoftLink("/raw")
    np.testing.assert_array_equal(open_chunked_volume(tmp_path / "a.h5:main")[:], VOXELS)


def mrc(folder: Path, cell: float = 80.0, sections_per_volume: int = 4, space_group: int = 1) -> Path:
    header = bytearray(1024)
    size = VOXELS.shape[::-1]
    struct.pack_into("<10i", header, 0, *size, 6, 0, 0, 0, *size[:2], sections_per_volume)
    struct.pack_into("<3f", header, 40, *(cell * n for n in (*size[:2], sections_per_volume)))
    struct.pack_into("<4i3f", header, 64, 1, 2, 3, 0, 0, 0, 0)
    struct.pack_into("<i", header, 88, space_group)
    (folder / "a.mrc").write_bytes(bytes(header) + VOXELS.tobytes())
    return folder / "a.mrc"


def test_mrc_of_one_angstrom_per_voxel_does_not_say_its_size(tmp_path: Path):
    assert open_chunked_volume(mrc(tmp_path)).voxel_size_nm == pytest.approx((8, 8, 8))
    assert open_chunked_volume(mrc(tmp_path, cell=1)).voxel_size_nm is None


def test_stacks_of_volumes_in_mrc_are_told(tmp_path: Path):
    one_line(mrc(tmp_path, sections_per_volume=2, space_group=401), "a.mrc", "must hold one volume, got 2")


def test_tiff_with_its_sections_last_is_told(tmp_path: Path):
    tifffile.imwrite(tmp_path / "a.tif", VOXELS.transpose(1, 2, 0).copy(), metadata={"axes": "YXZ"})
    one_line(tmp_path / "a.tif", "stored as ZYX, got YXZ")


def test_pictures_of_results_are_no_sections(tmp_path: Path):
    folder = section_folder(tmp_path)
    Image.fromarray(VOXELS[0]).save(folder / "im_preview.png")
    np.testing.assert_array_equal(open_chunked_volume(folder)[:], VOXELS)


# Files of the challenge


@needs_real
@pytest.mark.parametrize("name", ["im_val_rat.json", "mito_train_rat.json"])
def test_indexes_of_the_challenge_are_understood(name: str, tmp_path: Path):
    """Their files lie elsewhere: here the first ones, small, under the same names."""
    content = json.loads((REAL / "mitoem_layout" / name).read_text())
    one_line(REAL / "mitoem_layout" / name, content["image"][0])
    files = [tmp_path / Path(file).name for file in content["image"][:4]]
    for file, section in zip(files, VOXELS, strict=True):
        Image.fromarray(section).save(file)
    cut = {**content, "image": [file.name for file in files], "depth": 4, "height": 5, "width": 7}
    (tmp_path / name).write_text(json.dumps(cut))
    np.testing.assert_array_equal(open_chunked_volume(tmp_path / name)[:], VOXELS)


@needs_real
def test_sections_of_a_real_volume_are_in_their_order():
    volume = open_chunked_volume(REAL / "sbem_cdeep3m" / "labels")  # mitos_3D.010.png to .029.png
    assert volume.shape == (20, 1024, 1024)
    expected = np.asarray(Image.open(REAL / "sbem_cdeep3m" / "labels" / "mitos_3D.013.png"))
    np.testing.assert_array_equal(volume[3:4, 100:200, 300:450][0], expected[100:200, 300:450])


@needs_real
def test_data_sets_of_a_real_file():
    volume = open_chunked_volume(REAL / "lucchi_map_demo" / "lucchi_gt_test.h5")
    assert volume.shape == (165, 768, 1024)
    assert volume[80:90].max() <= 45
