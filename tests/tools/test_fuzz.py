# SPDX-License-Identifier: Apache-2.0
"""The smallest damaged file of every fault that fuzzing found, and the fuzzing itself."""

from __future__ import annotations

import json
import struct

import nibabel as nib
import numpy as np
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
