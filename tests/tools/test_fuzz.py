# SPDX-License-Identifier: Apache-2.0
"""The smallest damaged file of every fault that fuzzing found, and the fuzzing itself."""

from __future__ import annotations

import json
import struct
from contextlib import suppress

import nibabel as nib
import numpy as np
import pydicom
import pytest
import tifffile

from tools.fuzz.command import damaged, outcomes, valid_files
from volseg.data.datalist import load_datalist
from volseg.data.open_volume import open_chunked_volume
from volseg.data.volume_reader import load_volume
from volseg.errors import UserError
from volseg.weights import recorded_values

NRRD = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 2 3 4\nspacings: 1 2 3\nencoding: raw\n%s\n\n" + bytes(48)


@pytest.mark.parametrize("field", [b"encodin" + b"g" * 1000, b"space directions: (0.5,0," + b'{"a":' * 10_000])
def test_field_of_nrrd_that_is_too_long(tmp_path, field):
    (tmp_path / "a.nrrd").write_bytes(NRRD % field)
    with pytest.raises(UserError, match=r"a\.nrrd: .* a header field of more than 400 bytes, b'.{20}'\.\.\.; copy"):
        load_volume(tmp_path / "a.nrrd")


def test_text_of_nrrd_may_be_long(tmp_path):
    (tmp_path / "a.nrrd").write_bytes(NRRD % (b"# " + b"c" * 1000 + b"\nkey:=" + b"v" * 1000 + b"\nendian: little"))
    assert load_volume(tmp_path / "a.nrrd").shape == (1, 2, 3, 4)


def test_pages_of_tiff_that_refer_to_each_other_in_a_circle(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((3, 4, 5), np.uint8), photometric="minisblack", metadata=None)
    with tifffile.TiffFile(path) as file:
        offsets = [page.offset for page in file.pages]
    data = bytearray(path.read_bytes())
    (n_tags,) = struct.unpack_from("<H", data, offsets[2])
    struct.pack_into("<I", data, offsets[2] + 2 + 12 * n_tags, offsets[1])
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.tif: damaged, its pages refer to each other in a circle; copy it again"):
        open_chunked_volume(path)


def test_nifti_whose_voxels_begin_in_the_header(tmp_path):
    path = tmp_path / "a.nii"
    nib.save(nib.Nifti1Image(np.zeros((2, 3, 4), np.int16), np.eye(4)), path)
    data = bytearray(path.read_bytes())
    struct.pack_into("<f", data, 108, 16)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.nii: cannot be read, damaged or truncated: vox offset 16 too low"):
        open_chunked_volume(path)


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        ("BitsPerSample", 0),
        ("Compression", 4711),
        ("PhotometricInterpretation", 4711),
        ("ImageWidth", 0),
    ],
)
def test_tags_of_tiff_that_hold_no_number_of_theirs(tmp_path, tag, value):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((4, 5), np.uint8), photometric="minisblack", metadata=None)
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].tags[tag].valueoffset
    data = bytearray(path.read_bytes())
    struct.pack_into("<H", data, offset, value)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.tif: "):
        open_chunked_volume(path)[:]


def test_nifti_with_a_negative_size(tmp_path):
    path = tmp_path / "a.nii"
    nib.save(nib.Nifti1Image(np.zeros((2, 3, 4), np.int16), np.eye(4)), path)
    data = bytearray(path.read_bytes())
    struct.pack_into("<h", data, 44, -3)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.nii: must hold one 3-D volume, got 2x-3x4"):
        open_chunked_volume(path)


@pytest.mark.parametrize("count", ["-1", "4294967296", ""])
def test_meta_image_with_a_number_of_axes_that_would_end_the_process(tmp_path, count):
    header = f"ObjectType = Image\nNDims = {count}\nDimSize = 2 3 4\nElementSpacing = 1 1 1\nElementType = MET_SHORT\n"
    (tmp_path / "a.mha").write_bytes(header.encode() + b"ElementDataFile = LOCAL\n" + bytes(48))
    with pytest.raises(UserError, match=rf"a\.mha: NDims must be from 1 to 10, got {count}; copy it again"):
        load_volume(tmp_path / "a.mha")


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        ("PixelSpacing", b"1\\a"),
        ("Modality", b"M\\R"),
        ("SeriesInstanceUID", b"1\\2"),
        ("ImagePositionPatient", b"0\\0\\x."),
    ],
)
def test_dicom_values_of_another_type(tmp_path, tag, value):
    (folder,) = valid_files(tmp_path, ["DICOM series"]).values()
    path = sorted(folder.iterdir())[1]
    header = pydicom.dcmread(path)
    header[tag] = pydicom.dataelem.RawDataElement(
        header[tag].tag, header[tag].VR, len(value), value, 0, False, True, True
    )
    header.save_as(path)
    with suppress(UserError):
        load_volume(folder)


@pytest.mark.parametrize(
    "read", [lambda folder: load_datalist(folder, "training"), open_chunked_volume, recorded_values]
)
def test_json_that_is_nested_too_deeply(tmp_path, read):
    path = tmp_path / "dataset.json"
    path.write_text("[" * 100_000)
    arguments = {recorded_values: (path.with_suffix(".pt"), {"a": 1}), open_chunked_volume: (path,)}.get(
        read, (tmp_path,)
    )
    with pytest.raises(UserError, match=r"dataset\.json"):
        read(*arguments)


def test_cases_are_the_same_again_and_their_outcomes_are_told(tmp_path):
    (folder,) = valid_files(tmp_path, ["manifest"]).values()
    twice = [damaged(folder, "manifest", 7, 3, tmp_path / name) / "manifest.json" for name in ("one", "two")]
    assert twice[0].read_bytes() == twice[1].read_bytes() != (folder / "manifest.json").read_bytes()
    found = list(outcomes("manifest", folder, 7, range(5)))
    assert len(found) == 5
    assert {kind for kind, _ in found} <= {"read", "refused"}
    assert json.dumps(found)
