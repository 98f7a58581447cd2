# SPDX-License-Identifier: Apache-2.0
"""Files as microscopes, laboratories and other programs leave them: right, or told in the log, or refused in one line.

Each row writes the phantom in another way. Where the outcome is "right" or "warning", the instances are those of the
phantom as it was; where it is "refused", one line has the words and the exit status is 1.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from volseg.data.open_volume import open_chunked_volume

SIZE_NM = (30.0, 8.0, 8.0)
GREYS = np.linspace(255, 0, 256).astype(np.uint8)


@dataclass(frozen=True)
class Row:
    """A way to write the phantom (D, H, W) into a folder, and what becomes of it.

    Attributes:
        name: of the situation.
        write: returns what to give as ``--input``.
        outcome: "right", "warning" or "refused".
        words: of the log, where it is no refusal, or of the error.
        options: further arguments.
        size_nm: voxel size in ``statistics.json``; None: not looked at.
    """

    name: str
    write: Callable[[Path, np.ndarray], Path]
    outcome: str
    words: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    size_nm: tuple[float, ...] | None = None


def tiff(
    convert: Callable[[np.ndarray], np.ndarray] = lambda v: v, **options: Any
) -> Callable[[Path, np.ndarray], Path]:
    def write(folder: Path, voxels: np.ndarray) -> Path:
        given = {"photometric": "minisblack", **options}
        tifffile.imwrite(folder / "a.tif", convert(voxels), **given)
        return folder / "a.tif"

    return write


def imagej(unit: str, spacing: float, pixels_per_unit: float, **metadata: Any) -> Callable[[Path, np.ndarray], Path]:
    return tiff(
        imagej=True,
        resolution=(pixels_per_unit, pixels_per_unit),
        metadata={"axes": "ZYX", "unit": unit, "spacing": spacing, **metadata},
    )


def sections(convert: Callable[[int, np.ndarray], Image.Image]) -> Callable[[Path, np.ndarray], Path]:
    def write(folder: Path, voxels: np.ndarray) -> Path:
        (folder / "im").mkdir()
        for z, section in enumerate(voxels):
            convert(z, section).save(folder / "im" / f"im{z:04d}.png")
        return folder / "im"

    return write


def hdf5(convert: Callable[[np.ndarray], np.ndarray], labels: str = "", **attributes: Any) -> Callable[..., Path]:
    def write(folder: Path, voxels: np.ndarray) -> Path:
        with h5py.File(folder / "a.h5", "w") as file:
            stored = file.create_dataset("main", data=convert(voxels))
            for dimension, label in zip(stored.dims, labels, strict=False):
                dimension.label = label
            stored.attrs.update(attributes)
        return folder / "a.h5"

    return write


def zarr_array(
    convert: Callable[[np.ndarray], np.ndarray] = lambda v: v, version: int = 3, **more: Any
) -> Callable[..., Path]:
    def write(folder: Path, voxels: np.ndarray) -> Path:
        zarr.create_array(folder / "a.zarr", data=convert(voxels), zarr_format=version, **more)
        return folder / "a.zarr"

    return write


def ome_zarr(axes: str = "zyx", images: tuple[str, ...] = ("",), unit: str = "nanometer") -> Callable[..., Path]:
    """OME-Zarr at (30, 16, 24) nm; with names of images, in a container."""

    def write(folder: Path, voxels: np.ndarray) -> Path:
        root = zarr.open_group(folder / "a.ome.zarr", mode="w")
        if images != ("",):
            root.attrs["ome"] = {"version": "0.5", "bioformats2raw.layout": 3}
        order = ["zyx".index(name) for name in axes if name != "c"]
        for image in images:
            group = root.require_group(image) if image else root
            stored = voxels.transpose(order)
            group.create_array("0", data=stored if "c" not in axes else stored[None])
            scale, origin = ([{"z": 30, "y": 8, "x": 8, "c": 1}[n] for n in axes],
                             [{"z": 30, "y": 16, "x": 24, "c": 0}[n] for n in axes])  # fmt: skip
            steps = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": origin}]
            spaces = [
                {"name": n, "type": "channel"} if n == "c" else {"name": n, "type": "space", "unit": unit} for n in axes
            ]
            multiscale = {"axes": spaces, "datasets": [{"path": "0", "coordinateTransformations": steps}]}
            group.attrs["ome"] = {"version": "0.5", "multiscales": [multiscale]}
        return folder / "a.ome.zarr"

    return write


def nifti(convert: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path, np.ndarray], Path]:
    def write(folder: Path, voxels: np.ndarray) -> Path:
        nib.save(nib.Nifti1Image(convert(voxels).T, np.eye(4)), folder / "a.nii")
        return folder / "a.nii"

    return write


def mrc(
    mode: int, dtype: str, order: str = "<", n_bytes: int | None = None, plus: int = 0, says_range: bool = True
) -> Callable[[Path, np.ndarray], Path]:
    def write(folder: Path, voxels: np.ndarray) -> Path:
        voxels = voxels + plus
        header = bytearray(1024)
        size = voxels.shape[::-1]
        struct.pack_into(f"{order}10i", header, 0, *size, mode, 0, 0, 0, *size)
        struct.pack_into(f"{order}3f", header, 40, *(n * edge for n, edge in zip(size, (80, 80, 300), strict=True)))
        struct.pack_into(f"{order}3i", header, 64, 1, 2, 3)
        if says_range:
            struct.pack_into(f"{order}2f", header, 76, voxels.min(), voxels.max())
        struct.pack_into(f"{order}i", header, 92, 16)  # an extended header
        header[212:214] = b"\x11\x11" if order == ">" else b"\x44\x44"
        content = bytes(header) + bytes(16) + voxels.astype(f"{order}{dtype}").tobytes()
        (folder / "a.mrc").write_bytes(content[:n_bytes])
        return folder / "a.mrc"

    return write


def palette(colors: np.ndarray) -> Callable[[int, np.ndarray], Image.Image]:
    def convert(_: int, section: np.ndarray) -> Image.Image:
        image = Image.fromarray(section, "P")
        image.putpalette(colors.tobytes())
        return image

    return convert


def zero_chunks(folder: Path, voxels: np.ndarray) -> Path:
    path = zarr_array(version=2)(folder, voxels)
    metadata = json.loads((path / ".zarray").read_text())
    (path / ".zarray").write_text(json.dumps({**metadata, "chunks": [0, 16, 16]}))
    return path


def missing_chunk(folder: Path, voxels: np.ndarray) -> Path:
    return zarr_array(chunks=(1, 48, 64), attributes={"chunks_written": 13})(folder, voxels)


def whole(value: float, dtype: type) -> Callable[[np.ndarray], np.ndarray]:
    return lambda voxels: np.full(voxels.shape, value, dtype)


OTHER_SECTION = 5
INVERSE = 255 - np.arange(256, dtype=np.uint8)
RGB_GREY = sections(lambda z, s: Image.fromarray(np.stack([s] * 3, -1) if z % 3 == 0 else s))
RGB_COLOUR = sections(lambda z, s: Image.fromarray(np.stack([s, s, 255 - s], -1) if z == OTHER_SECTION else s))
BITS_16 = sections(lambda z, s: Image.fromarray(s.astype(np.uint16) * 256 if z == OTHER_SECTION else s))

ROWS = [
    Row("8 bits", tiff(), "right"),
    Row("shifted int16", tiff(lambda v: v.astype(np.int16) - 1024), "right"),
    Row("scaled uint16", tiff(lambda v: v.astype(np.uint16) * 200 + 77), "right"),
    Row("float32 from 0 to 1", tiff(lambda v: v / np.float32(255)), "right"),
    Row("z-scored float32", nifti(lambda v: ((v - v.mean()) / v.std()).astype(np.float32)), "right"),
    Row("float64", hdf5(lambda v: v * 1e5 - 3e6), "right"),
    Row("float16", hdf5(lambda v: v.astype(np.float16)), "right"),
    Row("WhiteIsZero", tiff(lambda v: 255 - v, photometric="miniswhite"), "right"),
    Row("WhiteIsZero, compressed", tiff(lambda v: 255 - v, photometric="miniswhite", compression="zlib"), "right"),
    Row("WhiteIsZero, 16 bits", tiff(lambda v: 65535 - v.astype(np.uint16), photometric="miniswhite"), "right"),
    Row("inverting palette of PNG", sections(lambda z, s: palette(np.repeat(INVERSE, 3))(z, 255 - s)), "right"),
    Row("rising palette of PNG", sections(palette(np.repeat(np.arange(256, dtype=np.uint8), 3))), "right"),
    Row(
        "inverting palette of TIFF",
        tiff(lambda v: 255 - v, photometric="palette", colormap=np.tile(INVERSE.astype(np.uint16) * 257, (3, 1))),
        "right",
    ),
    Row(
        "palette of colours",
        sections(palette((np.arange(768) % 251).astype(np.uint8))),
        "refused",
        ("im", "palette of colours"),
    ),
    Row("grey sections, some as RGB", RGB_GREY, "right"),
    Row("one section in colour", RGB_COLOUR, "refused", ("im0005.png", "one scale of grey values", "colours")),
    Row("one section of 16 bits", BITS_16, "refused", ("im0005.png", "uint16", "uint8", "im0000.png")),
    Row("all sections RGB", sections(lambda z, s: Image.fromarray(np.stack([s] * 3, -1))), "right"),
    Row(
        "all sections in colour",
        sections(lambda z, s: Image.fromarray(np.stack([s, s, 255 - s], -1))),
        "refused",
        ("im", "one scale of grey values, got colours"),
    ),
    Row(
        "planar RGB",
        tiff(lambda v: np.stack([v] * 3, 1), photometric="rgb", planarconfig="separate"),
        "right",
    ),
    Row("ZCYX hyperstack of one channel", tiff(lambda v: v[:, None], imagej=True, metadata={"axes": "ZCYX"}), "right"),
    Row(
        "ZCYX hyperstack of two channels",
        tiff(lambda v: np.stack([v, v], 1), imagej=True, metadata={"axes": "ZCYX"}),
        "refused",
        ("a.tif", "2 channels", "no sections"),
    ),
    Row(
        "channels alone",
        tiff(imagej=True, metadata={"axes": "CYX"}),
        "refused",
        ("a.tif", "12 channels", "no sections"),
    ),
    Row("sections as times", tiff(imagej=True, metadata={"axes": "TYX"}), "right"),
    Row("ImageJ in nanometers", imagej("nanometers", 30, 1 / 8), "right", size_nm=SIZE_NM),
    Row("ImageJ with zunit", imagej("nm", 0.03, 1 / 8, zunit="micron"), "right", size_nm=SIZE_NM),
    Row("ImageJ in µm", imagej("\\u00B5m", 0.03, 125), "right", size_nm=SIZE_NM),
    Row(
        "µm that mean nm",
        imagej("micron", 30, 1 / 8),
        "warning",
        ("voxel_size_nm 30x8x8 replaces the 30000x8000x8000 nm",),
        ("--voxel_size_nm", "[30,8,8]"),
        SIZE_NM,
    ),
    Row(
        "larger than memory where the network sees it",
        imagej("micron", 30, 1 / 8),
        "refused",
        ("a.tif: ", "need", "GB or more", "check the voxel size"),
        ("--voxel_size_nm", "[9000,900,900]"),
    ),
    Row("HDF5 with a singleton channel", hdf5(lambda v: v[..., None]), "right"),
    Row("HDF5 with singleton axes in front", hdf5(lambda v: v[None, None]), "right"),
    Row("HDF5 with labels x, y, z", hdf5(lambda v: v.T, "xyz"), "right"),
    Row(
        "HDF5 with axis tags x, y, z, c",
        hdf5(lambda v: v.T[..., None], axistags=json.dumps({"axes": [{"key": key} for key in "xyzc"]})),
        "right",
    ),
    Row("HDF5 with two channels", hdf5(lambda v: np.stack([v, v]), "czyx"), "refused", ("a.h5", "3-D")),
    Row("Zarr with dimension names x, y, z", zarr_array(lambda v: v.T, dimension_names=("x", "y", "z")), "right"),
    Row(
        "Zarr 2 with _ARRAY_DIMENSIONS",
        zarr_array(lambda v: v.T, 2, attributes={"_ARRAY_DIMENSIONS": ["x", "y", "z"]}),
        "right",
    ),
    Row(
        "Zarr with channels named",
        zarr_array(lambda v: v[:3], dimension_names=("c", "y", "x")),
        "refused",
        ("a.zarr", "3 channels"),
    ),
    Row("Zarr with chunks of 0", zero_chunks, "refused", ("a.zarr",)),
    Row("Zarr that lost a chunk", missing_chunk, "warning", ("1 of 13 chunks are missing", "fill value")),
    Row("OME-Zarr of a crop", ome_zarr(), "right", size_nm=SIZE_NM),
    Row("OME-Zarr with axes x, y, z", ome_zarr("xyz"), "right", size_nm=SIZE_NM),
    Row("OME-Zarr with axes c, z, y, x", ome_zarr("czyx"), "right", size_nm=SIZE_NM),
    Row("bioformats2raw", ome_zarr(images=("0",)), "right", size_nm=SIZE_NM),
    Row("bioformats2raw of two", ome_zarr(images=("0", "1")), "refused", ("a.ome.zarr", "got 2 (0, 1)", "/0")),
    Row("MRC of bytes", mrc(0, "i1"), "right", size_nm=SIZE_NM),
    Row("MRC of unsigned bytes", mrc(0, "u1", plus=100), "right"),
    Row("MRC that does not say its range", mrc(0, "i1", says_range=False), "warning", ("taken as signed",)),
    Row("MRC of int16", mrc(1, "i2"), "right", size_nm=SIZE_NM),
    Row("MRC of float32, big-endian", mrc(2, "f4", ">"), "right", size_nm=SIZE_NM),
    Row("MRC of uint16", mrc(6, "u2"), "right", size_nm=SIZE_NM),
    Row("truncated MRC", mrc(1, "i2", n_bytes=5000), "refused", ("a.mrc", "truncated")),
    Row("MRC of complex values", mrc(4, "c8"), "refused", ("a.mrc", "mode 4")),
]

BLANK = {
    "zeros": whole(0, np.uint8),
    "one value": whole(117, np.uint16),
    "NaN": whole(np.nan, np.float32),
    "infinite": whole(np.inf, np.float32),
}


def bordered(fill: float, dtype: type) -> Callable[[np.ndarray], np.ndarray]:
    """Borders of 15 rows and 20 columns, and one section without tissue."""

    def convert(voxels: np.ndarray) -> np.ndarray:
        stored = voxels.astype(dtype) * dtype(3) + dtype(1000)
        stored[:, :15] = stored[:, :, -20:] = stored[7] = fill
        return stored

    return convert


def in_tissue(shape: tuple[int, ...]) -> np.ndarray:
    inside = np.zeros(shape, bool)
    inside[:, 15:, :-20] = True
    inside[7] = False
    return inside


@pytest.fixture(scope="module")
def voxels(bundle) -> np.ndarray:
    """Grey values (D, H, W) up to 126, which MRC's signed bytes hold."""
    return open_chunked_volume(bundle.phantom["image"])[:] // 2


@pytest.fixture
def segment(try_to_infer):
    """Segment with an untrained network and thresholds between which it has objects."""

    def run(source: Path, *options: str):
        return try_to_infer(source, *options, "--runtime", "eager", "--preview", "False", "--mask_threshold", "0.5",
                            "--boundary_threshold", "0.502", "--min_size", "5", "--window", "[12,48,64]",
                            "--dilation", "[1,3,3]", "--trained_voxel_size_nm", list(SIZE_NM))  # fmt: skip

    return run


@pytest.fixture(scope="module")
def expected() -> list[np.ndarray]:
    """Instances of the phantom as it is, found by the first row that asks for them."""
    return []


def instances(folder: Path) -> np.ndarray:
    (path,) = (path for path in folder.iterdir() if "instances" in path.name and path.suffix != ".csv")
    return open_chunked_volume(path)[:]


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * np.count_nonzero((one > 0) & (other > 0)) / (np.count_nonzero(one) + np.count_nonzero(other))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_users_files(row, segment, voxels, expected, refused, tmp_path):
    (tmp_path / "in").mkdir()
    process = segment(row.write(tmp_path / "in", voxels), *row.options)
    if row.outcome == "refused":
        refused(process, *row.words)
        return
    assert process.returncode == 0, process.stderr
    assert "Traceback" not in process.stderr
    assert [word for word in row.words if word not in process.stderr] == []
    found = instances(tmp_path / "out")
    if not expected:
        assert row is ROWS[0]
        assert len(np.unique(found)) > 3
        expected.append(found)
    assert dice(found, expected[0]) >= 0.999
    (case,) = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert not any("blank" in warning for warning in case["warnings"])
    if row.size_nm:
        assert case["voxel_size_nm"] == pytest.approx(row.size_nm)


@pytest.mark.parametrize("name", BLANK)
def test_volumes_without_tissue_have_no_instances(name, segment, voxels, tmp_path):
    process = segment(hdf5(BLANK[name])(tmp_path, voxels))
    assert process.returncode == 0, process.stderr
    assert "no tissue: all voxels are blank" in process.stderr
    assert not instances(tmp_path / "out").any()
    (case,) = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert "no tissue" in case["warnings"][0]


@pytest.mark.parametrize(
    ("fill", "dtype"), [(0, np.uint16), (65535, np.uint16), (1300, np.int16), (np.nan, np.float32)]
)
def test_borders_and_blank_sections_have_no_labels_and_no_part_in_the_scale(fill, dtype, segment, voxels, tmp_path):
    (tmp_path / "in").mkdir()
    process = segment(hdf5(bordered(fill, dtype))(tmp_path / "in", voxels))
    assert process.returncode == 0, process.stderr
    found, tissue = instances(tmp_path / "out"), in_tissue(voxels.shape)
    assert found[tissue].any()
    assert not found[~tissue].any()
    (case,) = json.loads((tmp_path / "out" / "statistics.json").read_text())
    [blank] = [warning for warning in case["warnings"] if "blank" in warning]
    assert blank.startswith(f"{100 * (1 - tissue.mean()):.2g} % of the voxels are blank")


def test_the_origin_of_a_crop_is_that_of_its_instances(segment, voxels, tmp_path):
    (tmp_path / "in").mkdir()
    assert segment(ome_zarr("xyz")(tmp_path / "in", voxels)).returncode == 0
    result = open_chunked_volume(tmp_path / "out" / "a_instances.ome.zarr")
    assert (result.origin_nm, result.voxel_size_nm) == ((30, 16, 24), SIZE_NM)


def test_bad_volumes_end_no_batch_and_are_done_when_repaired(segment, voxels, tmp_path):
    """The results go beside the volumes and are no inputs of the second run."""
    folder = tmp_path / "out"
    for name in "abcd":
        (folder / name).mkdir(parents=True)
        hdf5(np.asarray)(folder / name, voxels).rename(folder / f"{name}.h5")
    whole = (folder / "a.h5").read_bytes()
    (folder / "b.h5").write_bytes(whole[:1000])
    process = segment(folder)
    assert process.returncode == 1
    last = process.stderr.splitlines()[-1]
    assert last.startswith("error: 1 of 4 cases failed (b.h5), ")
    cases = json.loads((folder / "statistics.json").read_text())
    assert {Path(case["image"]).stem: case.get("instances") for case in cases} == {
        "a": "a_instances.h5", "b": None, "c": "c_instances.h5", "d": "d_instances.h5"
    }  # fmt: skip
    (folder / "b.h5").write_bytes(whole)
    process = segment(folder)
    assert process.returncode == 0, process.stderr
    assert "1 case(s) segmented" in process.stderr and "3 case(s) were done already" in process.stderr
    assert len(json.loads((folder / "statistics.json").read_text())) == 4


def test_options_of_a_wrong_type_are_refused(segment, voxels, refused, tmp_path):
    refused(segment(hdf5(np.asarray)(tmp_path, voxels), "--device", "tpu-9"), "device must be one of cpu")
