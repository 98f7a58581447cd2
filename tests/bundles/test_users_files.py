# SPDX-License-Identifier: Apache-2.0
"""Files that hospitals export, for the two bundles that share a reader: right, a warning, or one clear line."""

from __future__ import annotations

import gzip
import os
import shutil
from functools import partial
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest

from tests.bundles.users_files import MEDICAL, Files, Situation, check, rows

LUNG, PROSTATE = ("pdvnet_lung",), ("vnet_prostate",)


def renamed(name: str, files: Files) -> str:
    """The phantom under another name, given relative to its folder."""
    shutil.copy(files.image, files.folder / name)
    return name


def gzip_under_nii(files: Files) -> Path:
    return Path(shutil.copy(files.image, files.folder / "ct.nii"))


def nii_under_gzip(files: Files) -> Path:
    path = files.folder / "ct.nii.gz"
    path.write_bytes(gzip.decompress(files.image.read_bytes()))
    return path


def pair(suffix: str, files: Files) -> Path:
    nib.save(nib.Nifti1Pair(files.voxels, files.affine), files.folder / "ct.img")
    return files.folder / f"ct{suffix}"


def by_itk(name: str, files: Files) -> Path:
    itk.imwrite(itk.imread(str(files.image)), str(files.folder / name))
    return files.folder / name


def vector_of_one(files: Files) -> Path:
    path = by_itk("ct.nrrd", files)
    header, voxels = path.read_bytes().split(b"\n\n", 1)
    for old, new in (
        (b"dimension: 3", b"dimension: 4"),
        (b"sizes: ", b"sizes: 1 "),
        (b"kinds: ", b"kinds: vector "),
        (b"space directions: ", b"space directions: none "),
    ):
        header = header.replace(old, new)
    path.write_bytes(header + b"\n\n" + voxels)
    return path


def several_values(name: str, files: Files) -> Path:
    colours = np.stack([files.voxels.T.astype(np.uint8)] * 3, axis=-1)
    itk.imwrite(itk.image_from_array(colours, is_vector=True), str(files.folder / name))
    return files.folder / name


def colours(files: Files) -> Path:
    voxels = np.zeros(files.voxels.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    voxels["R"] = 1
    return files.nifti("ct.nii.gz", voxels)


def with_header(files: Files, name: str = "ct.nii", **fields: object) -> Path:
    """The phantom, fields of its header overwritten without a check."""
    path = files.nifti("plain.nii")
    content = bytearray(path.read_bytes())
    header = np.frombuffer(content, nib.nifti1.header_dtype, 1)
    for field, value in fields.items():
        header[field] = value
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path.rename(files.folder / name)


def in_metres(files: Files) -> Path:
    affine = files.affine.copy()
    affine[:3] /= 1000
    image = nib.Nifti1Image(files.voxels, affine)
    image.header.set_xyzt_units("meter")
    nib.save(image, files.folder / "ct.nii")
    return files.folder / "ct.nii"


def big_endian(files: Files) -> Path:
    header = nib.Nifti1Header(endianness=">")
    nib.save(nib.Nifti1Image(files.voxels, files.affine, header), files.folder / "ct.nii")
    return files.folder / "ct.nii"


def with_qform(files: Files) -> Path:
    image = nib.Nifti1Image(files.voxels, files.affine)
    image.set_qform(np.diag([2, 3, 4, 1]), code=1)
    nib.save(image, files.folder / "ct.nii")
    return files.folder / "ct.nii"


def pipe(files: Files) -> Path:
    os.mkfifo(files.folder / "ct.nii.gz")
    return files.folder / "ct.nii.gz"


def text(name: str, content: str, files: Files) -> Path:
    (files.folder / name).write_text(content)
    return files.folder / name


def fifty_metres(files: Files) -> Path:
    return files.nifti("ct.nii.gz", affine=files.affine @ np.diag([500, 500, 500, 1]))


def plain(files: Files) -> Path:
    return files.image


def refused_option(name: str, value: str, *words: str, bundles: tuple[str, ...] = PROSTATE) -> Situation:
    return Situation(f"--{name} {value}", plain, "refused", words, bundles, (f"--{name}", value))


SITUATIONS = [
    Situation("plain", plain, "right", bundles=MEDICAL),
    # what is in a file is not what its name says
    Situation("gzip content under .nii", gzip_under_nii, "right", bundles=PROSTATE),
    Situation("no gzip content under .nii.gz", nii_under_gzip, "right", bundles=LUNG),
    Situation("hdr of a pair", partial(pair, ".hdr"), "right", bundles=PROSTATE),
    Situation("img of a pair", partial(pair, ".img"), "right", bundles=LUNG),
    Situation("nhdr", partial(by_itk, "ct.nhdr"), "right", bundles=LUNG),
    Situation("vectors of length 1", vector_of_one, "right", bundles=PROSTATE),
    Situation("big-endian", big_endian, "right", bundles=PROSTATE),
    Situation("a time axis of length 1", lambda f: f.nifti("ct.nii", f.voxels[..., None]), "right", bundles=LUNG),
    Situation("double precision", lambda f: f.nifti("ct.nii", f.voxels.astype(float)), "right", bundles=LUNG),
    Situation("colours", colours, "refused", ("ct.nii.gz", "one grey value", "colours"), LUNG),
    Situation(
        "three values in mha", partial(several_values, "ct.mha"), "refused", ("ct.mha", "one value", "3"), PROSTATE
    ),
    Situation(
        "three values in nrrd", partial(several_values, "ct.nrrd"), "refused", ("ct.nrrd", "one value", "3"), LUNG
    ),
    Situation(
        "complex numbers", lambda f: f.nifti("ct.nii", f.voxels + 1j), "refused", ("real numbers", "complex"), PROSTATE
    ),
    Situation("a text called nrrd", partial(text, "ct.nrrd", "no volume"), "refused", ("ct.nrrd", "damaged"), LUNG),
    Situation("an empty file", partial(text, "ct.nii.gz", ""), "refused", ("ct.nii.gz", "damaged"), PROSTATE),
    Situation("no such file", lambda f: f.folder / "a.nii.gz", "refused", ("a.nii.gz", "no such file"), LUNG),
    Situation("a device", lambda _: "/dev/null", "refused", ("/dev/null", "device or pipe"), PROSTATE),
    Situation("a pipe", pipe, "refused", ("ct.nii.gz", "device or pipe"), LUNG),
    # geometry
    Situation("metres", in_metres, "right", bundles=LUNG),
    Situation("stale pixdim beside a sform", partial(with_header, pixdim=1), "right", bundles=LUNG),
    Situation(
        "no sform, no qform", partial(with_header, sform_code=0, qform_code=0), "warning", ("codes are 0",), PROSTATE
    ),
    Situation("a qform of another place", with_qform, "warning", ("sform and qform", "mm apart"), LUNG),
    Situation(
        "micrometres that are millimetres",
        partial(with_header, xyzt_units=3),
        "refused",
        ("ct.nii", "smaller than any scan"),
        PROSTATE,
    ),
    Situation("zero sform", partial(with_header, srow_x=0, srow_y=0, srow_z=0), "refused", ("not invertible",), LUNG),
    Situation("NaN in the sform", partial(with_header, srow_y=np.nan), "refused", ("not invertible",), PROSTATE),
    Situation("singular sform", partial(with_header, srow_x=0), "refused", ("not invertible",), LUNG),
    Situation(
        "zero spacing", partial(with_header, sform_code=0, qform_code=1, pixdim=0), "refused", ("spacing is 0",), LUNG
    ),
    Situation("spacing of a metre", fifty_metres, "refused", ("ct.nii.gz", "larger than any patient"), MEDICAL),
    Situation(
        "an axis of length 0", partial(with_header, dim=[[3, 9, 0, 9, 1, 1, 1, 1]]), "refused", ("9x0x9",), PROSTATE
    ),
    Situation(
        "a huge header", partial(with_header, dim=[[3, 32000, 32000, 32000, 1, 1, 1, 1]]), "refused", ("ct.nii",), LUNG
    ),
    Situation(
        "a huge header, compressed",
        partial(with_header, name="ct.nii.gz", dim=[[3, 32000, 32000, 32000, 1, 1, 1, 1]]),
        "refused",
        ("ct.nii.gz", "damaged"),
        PROSTATE,
    ),
    # names, as they are typed
    *(
        Situation(f"name {name}", partial(renamed, name), "right", bundles=bundles)
        for name, bundles in (
            ("a#b.nii.gz", MEDICAL),
            ("$5 @home.nii.gz", MEDICAL),
            ("@input.nii.gz", PROSTATE),
            ("a,b.nii.gz", LUNG),
            ("[1,2].nii.gz", PROSTATE),
            ("{'a': 1}.nii.gz", LUNG),
            ("1e3.nii.gz", PROSTATE),
        )
    ),
    Situation("a folder called 12", lambda f: f.nifti("12/ct.nii.gz").parent.name, "right", bundles=MEDICAL),
    Situation("no name", lambda _: "", "refused", ("--input needs a file or folder, got ''",), MEDICAL),
    Situation("an expression", lambda _: "$1/0", "refused", ("$1/0: no such file",), PROSTATE),
    # options
    refused_option("device", "cuda:77", "device must be one of cpu", "'cuda:77'", bundles=MEDICAL),
    refused_option("device", "tpu-9", "device must be one of cpu", "'tpu-9'"),
    refused_option("spatial_size", "[0,32,16]", "spatial_size must be three integers >= 1 along x, y, z"),
    refused_option("spatial_size", "large", "spatial_size must be three integers", "large", bundles=LUNG),
    refused_option("spatial_size", "[9999,9999,9999]", "spatial_size of 9999x9999x9999 needs", "GB"),
    refused_option("spacing_mm", "[0,1,1]", "spacing_mm must be three numbers from 0.1 to 20"),
    refused_option("spacing_mm", "[-1,1,1]", "spacing_mm must be three numbers"),
    refused_option("spacing_mm", "fine", "spacing_mm must be three numbers", "fine"),
    refused_option("dropout", "1.5", "dropout must be a number from 0 to below 1, got 1.5"),
    refused_option("dropout", "much", "dropout must be a number such as 0.0, got 'much'", bundles=LUNG),
    refused_option("preprocessing#transforms#0#tolerance_mm", "small", "tolerance_mm must be a number", "'small'"),
    refused_option("norm", "3", "norm must be None, 'batch' or 'instance', got 3"),
    refused_option("preview", "perhaps", "preview must be True or False, got 'perhaps'", bundles=LUNG),
    refused_option("intensity_window_hu", "[-1100,dark]", "intensity_window_hu must be numbers such as", bundles=LUNG),
    refused_option("intensity_window_hu", "[-400,-1100]", "two numbers, the lower one first", bundles=LUNG),
    refused_option("intensity_window_hu", "-400", "intensity_window_hu must be two numbers", bundles=LUNG),
    refused_option("crop_to_lungs", "3", "crop_to_lungs must be True or False, got 3", bundles=LUNG),
    refused_option("weights", "", "--weights needs a file or folder"),
    refused_option("output_dir", "/dev/null/out", "/dev/null", "file", bundles=LUNG),
]


@pytest.fixture(scope="module")
def expected(segment, bundle, tmp_path_factory) -> Path:
    """Results of the phantom."""
    out = tmp_path_factory.mktemp(bundle.name) / "expected"
    process = segment(bundle.phantom["image"], out)
    assert process.returncode == 0, process.stderr
    return out


@rows(SITUATIONS)
def test_users_file(situation, segment, bundle, expected, tmp_path):
    (tmp_path / "in").mkdir()
    image = nib.load(bundle.phantom["image"])
    files = Files(tmp_path / "in", bundle.phantom["image"], np.asarray(image.dataobj), image.affine)
    process = segment(situation.make(files), tmp_path / "out", *situation.options, cwd=files.folder)
    check(situation, process, tmp_path / "out", expected)
