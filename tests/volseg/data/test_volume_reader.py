# SPDX-License-Identifier: Apache-2.0
"""Tests of reading volumes of any format."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from scipy.spatial.transform import Rotation

from volseg.data.volume_reader import load_volume, volume_name
from volseg.errors import UserError
from volseg.label_maps.label_file import write_segmentation

REAL = Path(__file__).parents[4] / "shared" / "data" / "lung"
JPEG_2000 = REAL / "totalsegmentator" / "example_ct_dicom"

VOXELS = (np.arange(3 * 4 * 5, dtype=np.int16) * 7 - 1000).reshape(3, 4, 5)
SPACING = np.array([0.7, 1.5, 2.5])
ORIGIN = np.array([12.0, -30.0, 400.0])
# right-handed, oblique, voxel axes mostly along P, S, L in ITK's LPS
DIRECTION = Rotation.from_euler("xyz", (4, -6, 11), degrees=True).as_matrix() @ np.array(
    [[0, 0, 1], [1, 0, 0], [0, 1, 0]]
)


def expected_affine() -> np.ndarray:
    """Voxel to RAS."""
    lps = np.eye(4)
    lps[:3, :3] = DIRECTION * SPACING
    lps[:3, 3] = ORIGIN
    return np.diag([-1, -1, 1, 1]) @ lps


def write(path: Path, voxels: np.ndarray = VOXELS) -> Path:
    if path.name.endswith((".nii", ".nii.gz")):
        nib.save(nib.Nifti1Image(voxels, expected_affine()), path)
        return path
    image = itk.image_from_array(np.ascontiguousarray(voxels.transpose()))
    image.SetSpacing(SPACING)
    image.SetOrigin(ORIGIN)
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(DIRECTION)))
    itk.imwrite(image, str(path), compression=path.suffix == ".nrrd")
    return path


def write_series(folder: Path, voxels: np.ndarray = VOXELS, number: int = 1) -> Path:
    """A CT series of the same volume, slices along the last voxel axis, stored as values of 1/2 HU from -1024."""
    folder.mkdir(exist_ok=True, parents=True)
    series, study = generate_uid(), generate_uid()
    for k in range(voxels.shape[2]):
        meta = pydicom.dataset.FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        # named against the order of the slices: the position counts
        path = folder / f"{number}-{voxels.shape[2] - k:03d}.dcm"
        dataset = pydicom.dataset.FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID = series, study
        dataset.Modality, dataset.SeriesDate, dataset.SeriesNumber, dataset.InstanceNumber = "CT", "20200101", number, k
        dataset.PatientName, dataset.PatientID = "phantom", "0"
        dataset.ImageOrientationPatient = [f"{v:.10f}" for v in DIRECTION[:, :2].T.ravel()]
        dataset.ImagePositionPatient = [f"{v:.8f}" for v in ORIGIN + DIRECTION[:, 2] * SPACING[2] * k]
        dataset.PixelSpacing = [SPACING[1], SPACING[0]]  # between rows, between columns
        dataset.SliceThickness = 3.0  # slices overlap: their distance is 2.5
        dataset.Rows, dataset.Columns = voxels.shape[1], voxels.shape[0]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
        dataset.RescaleSlope, dataset.RescaleIntercept = 0.5, -1024
        dataset.PixelData = ((voxels[:, :, k].T.astype(np.float64) + 1024) * 2).astype(np.uint16).tobytes()
        dataset.save_as(path, enforce_file_format=True)
    return folder


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha", "a.mhd"])
def test_every_format_gives_the_same_volume(tmp_path, name):
    path = write(tmp_path / name)
    if name == "a.mhd":
        assert (tmp_path / "a.raw").is_file()
    volume = load_volume(str(path))
    assert volume.shape == (1, 3, 4, 5)
    assert volume.dtype.is_floating_point
    np.testing.assert_array_equal(volume[0], VOXELS)
    np.testing.assert_allclose(volume.affine, expected_affine(), atol=2e-5)
    assert volume.meta["filename_or_obj"] == str(path)


@pytest.mark.parametrize("name", ["a.nii", "a.nrrd", "a.mha", "a.mhd"])
def test_voxels_behind_those_of_the_header_are_told(tmp_path, name, caplog):
    path = write(tmp_path / name)
    if name == "a.nrrd":  # not compressed
        itk.imwrite(itk.imread(str(path)), str(path))
    stored = tmp_path / "a.raw" if name == "a.mhd" else path
    slice_bytes = VOXELS[..., 0].nbytes
    for more in (slice_bytes - 1, slice_bytes + 1):
        load_volume(path)
        assert "the file goes on" not in caplog.text
        stored.write_bytes(stored.read_bytes() + bytes(more))
    np.testing.assert_array_equal(load_volume(path)[0], VOXELS)
    assert f"{path}: the file goes on for 2 slices behind the 5 that its header tells of" in caplog.text


@pytest.mark.parametrize("name", ["A.NII.GZ", "a.NII.gz"])
def test_suffix_in_capitals(tmp_path, name):
    path = write(tmp_path / "a.nii.gz").rename(tmp_path / name)
    np.testing.assert_array_equal(load_volume(path)[0], VOXELS)


def test_dicom_series_with_its_distance_of_slices_and_its_units(tmp_path):
    volume = load_volume(write_series(tmp_path / "series"))
    np.testing.assert_array_equal(volume[0], VOXELS)
    np.testing.assert_allclose(volume.affine, expected_affine(), atol=1e-4)
    assert volume.meta["filename_or_obj"] == str(tmp_path / "series")


def test_slices_with_scales_of_their_own(tmp_path):
    """As of PET and some MRI: the integers that fit one slice do not fit the others."""
    folder = write_series(tmp_path / "series", np.full((3, 4, 5), 100, np.int16))
    for k, path in enumerate(sorted(folder.iterdir(), reverse=True)):
        dataset = pydicom.dcmread(path)
        dataset.RescaleSlope, dataset.RescaleIntercept = [(1, 0), (0.3, 2), (40, 0), (1.5, -3), (2, 0)][k]
        dataset.SpacingBetweenSlices = -2.5
        dataset.save_as(path)
    volume = load_volume(folder)
    np.testing.assert_allclose(volume[0, 0, 0], [2248, 676.4, 89920, 3369, 4496], rtol=1e-6)
    np.testing.assert_allclose(volume.affine, expected_affine(), atol=1e-4)


def test_scale_slope_of_nifti(tmp_path):
    image = nib.Nifti1Image(VOXELS, expected_affine())
    image.header.set_slope_inter(2, -24)
    nib.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(load_volume(tmp_path / "a.nii")[0], 2.0 * VOXELS - 24)


@pytest.mark.parametrize("package", ["isal", "none"])
@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_compressed_nifti_of_any_header(tmp_path, monkeypatch, package, byte_order):
    if package == "isal":
        pytest.importorskip("isal")
    else:
        monkeypatch.setattr("volseg.data.volume_reader.find_spec", lambda name: None)
    noise = np.random.default_rng(0).integers(-1000, 1000, (35, 6, 66)).astype(np.int16)
    image = nib.Nifti1Image(noise, expected_affine(), nib.Nifti1Header(endianness=byte_order))
    image.header.set_slope_inter(0.5, -24)
    nib.save(image, tmp_path / "a.nii.gz")
    volume = load_volume(tmp_path / "a.nii.gz")
    assert volume.is_contiguous()
    np.testing.assert_array_equal(volume[0], 0.5 * noise - 24)
    np.testing.assert_allclose(volume.affine, expected_affine(), atol=2e-5)


@pytest.mark.parametrize("voxel_type", ["u1", "i1", "<u2", ">i2", ">u4", "<i8", ">f4", "<f8"])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_voxels_of_any_type(tmp_path, name, voxel_type):
    voxels = np.arange(35 * 6 * 66).reshape(35, 6, 66) % 127
    header = nib.Nifti1Header(endianness=">" if voxel_type[0] == ">" else "<")
    header.set_data_dtype(np.dtype(voxel_type))
    header.set_slope_inter(1, 0)
    nib.save(nib.Nifti1Image(voxels.astype(voxel_type), expected_affine(), header), tmp_path / name)
    volume = load_volume(tmp_path / name)
    assert volume.dtype == torch.float32
    np.testing.assert_array_equal(volume[0], voxels)


def test_header_of_more_than_the_file_can_hold(tmp_path):
    pytest.importorskip("isal")
    header = nib.load(write(tmp_path / "a.nii")).header
    header["dim"][1:4] = 30000
    header["vox_offset"] = 352
    path = tmp_path / "b.nii.gz"
    path.write_bytes(gzip.compress(header.binaryblock + bytes(1000)))
    with pytest.raises(UserError, match=r"b\.nii\.gz: .*damaged or truncated: .* more than the file can hold"):
        load_volume(path)


@pytest.mark.parametrize("byte", [0, 255])
def test_damaged_nifti(tmp_path, byte):
    pytest.importorskip("isal")  # nibabel by itself does not look at the checksum
    noise = np.random.default_rng(0).integers(-1000, 1000, (21, 22, 23)).astype(np.int16)
    path = write(tmp_path / "a.nii.gz", noise)
    content = bytearray(path.read_bytes())
    half = len(content) // 2
    content[half : half + 400] = bytes([byte]) * 400
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.nii\.gz: cannot be read, damaged or truncated: "):
        load_volume(path)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mha"])
def test_fourth_axis(tmp_path, name):
    series = np.stack([VOXELS, VOXELS + 1], axis=-1)
    if name.endswith("gz"):
        nib.save(nib.Nifti1Image(series, expected_affine()), tmp_path / name)
    else:
        itk.imwrite(itk.image_from_array(np.ascontiguousarray(series.transpose())), str(tmp_path / name))
    with pytest.raises(UserError, match=rf"{name}: must be one 3-D volume, got 3x4x5x2;"):
        load_volume(tmp_path / name)


@pytest.mark.parametrize("count", [1, 2])
def test_further_axes_of_one(tmp_path, count):
    nib.save(nib.Nifti1Image(VOXELS.reshape(*VOXELS.shape, *[1] * count), expected_affine()), tmp_path / "a.nii.gz")
    volume = load_volume(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(volume[0], VOXELS)
    np.testing.assert_allclose(volume.affine, expected_affine(), atol=1e-5)


def test_single_slice_image_is_no_volume(tmp_path):
    nib.save(nib.Nifti1Image(VOXELS[..., 0], expected_affine()), tmp_path / "a.nii.gz")
    with pytest.raises(UserError, match="must be one 3-D volume, got 3x4;"):
        load_volume(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha"])
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.9])
def test_truncated_file(tmp_path, name, keep):
    noise = np.random.default_rng(0).integers(-1000, 1000, (21, 22, 23)).astype(np.int16)
    path = write(tmp_path / name, noise)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(UserError, match=rf"{name}: cannot be read, damaged or truncated: ") as info:
        load_volume(path)
    assert "\n" not in str(info.value)


def test_header_without_its_voxels(tmp_path):
    write(tmp_path / "a.mhd")
    (tmp_path / "a.raw").unlink()
    with pytest.raises(UserError, match=r"a\.mhd: cannot be read: its voxels are not there, no file a\.raw;"):
        load_volume(tmp_path / "a.mhd")


@pytest.mark.parametrize(
    ("name", "line"), [("a.mha", b"ElementDataFile = Local\n"), ("a.mhd", b"ElementDataFile = a.raw")]
)
def test_other_ways_to_write_where_voxels_are(tmp_path, name, line):
    path = write(tmp_path / name)
    header, voxels = re.split(rb"ElementDataFile = .*\n", path.read_bytes(), maxsplit=1)
    path.write_bytes(header + line + voxels)
    np.testing.assert_array_equal(load_volume(path)[0], VOXELS)


def test_file_that_is_no_volume(tmp_path):
    for name in ("a.txt", "a.nii.gz", "a.nrrd"):
        (tmp_path / name).write_text("no volume")
        with pytest.raises(UserError, match=rf"{name}: cannot be read"):
            load_volume(tmp_path / name)
    with pytest.raises(UserError, match=r"a\.tif: cannot be read, .*: no header of NIfTI, NRRD, MHD/MHA or DICOM"):
        load_volume(write(tmp_path / "a.tif"))


def test_missing_path(tmp_path):
    with pytest.raises(UserError, match=r"a\.nii: no such file or folder"):
        load_volume(tmp_path / "a.nii")


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_affine_that_is_no_geometry(tmp_path, value):
    path = write(tmp_path / "a.nii")
    affine = expected_affine()[:3].astype("<f4")
    affine[:, 1] = value
    header = bytearray(path.read_bytes())
    header[252:256] = np.array([0, 1], "<i2").tobytes()  # qform_code, sform_code
    header[280:328] = affine.tobytes()
    header[84:88] = np.float32(value).tobytes()  # pixdim[2]: MONAI falls back on spacings that can be used
    path.write_bytes(header)
    with pytest.raises(UserError, match=r"a\.nii: the affine is not invertible: \[\["):
        load_volume(path)


def nifti(path, sform_code, qform_code, units=2):
    """A volume whose header's spacings are stale and whose sform is the expected affine."""
    image = nib.Nifti1Image(VOXELS.astype("<i2"), None)
    image.header["pixdim"][1:4] = 1
    image.header.set_sform(expected_affine(), sform_code)
    image.header["qform_code"] = qform_code
    image.header["xyzt_units"] = units
    file = image.to_filename(path)
    assert file is None
    content = bytearray(path.read_bytes())
    content[252:256] = np.array([qform_code, sform_code], "<i2").tobytes()
    content[280:328] = expected_affine()[:3].astype("<f4").tobytes()
    content[80:92] = np.ones(3, "<f4").tobytes()
    path.write_bytes(content)
    return path


def test_a_valid_sform_is_the_geometry_whatever_stands_beside_it(tmp_path):
    volume = load_volume(nifti(tmp_path / "a.nii", sform_code=2, qform_code=0))
    np.testing.assert_allclose(volume.affine, expected_affine(), atol=1e-5)


@pytest.mark.parametrize(("units", "factor"), [(1, 1e3), (2, 1), (3, 1e-3), (0, 1)])
def test_units_of_nifti_become_millimetres(tmp_path, units, factor):
    affine = load_volume(nifti(tmp_path / "a.nii", 1, 0, units)).affine
    np.testing.assert_allclose(affine[:3], factor * expected_affine()[:3], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("sform_code", "qform_code"), [(2, 1), (1, 1), (0, 0)])
def test_labels_lie_on_images_in_programs_that_go_by_the_qform(tmp_path, caplog, sform_code, qform_code):
    path = nifti(tmp_path / "a.nii", sform_code, qform_code)
    image = load_volume(path)
    if qform_code:
        assert "a.nii: sform and qform place voxels up to " in caplog.text
        assert " mm apart; the sform is taken" in caplog.text
    write_segmentation(tmp_path / "b.nii.gz", VOXELS > 0, image.affine.numpy(), {}, json.loads(image.meta["qform"]))
    np.testing.assert_allclose(nib.load(tmp_path / "b.nii.gz").affine, nib.load(path).affine, atol=1e-4)
    by_itk = [itk.imread(str(tmp_path / name)) for name in ("a.nii", "b.nii.gz")]
    for of in ("GetOrigin", "GetSpacing"):
        np.testing.assert_allclose(*[list(getattr(one, of)()) for one in by_itk], atol=1e-4)
    np.testing.assert_allclose(*[itk.array_from_matrix(one.GetDirection()) for one in by_itk], atol=1e-4)


def test_sheared_axes_are_refused_as_a_tilted_gantry_is(tmp_path):
    affine = expected_affine()
    affine[:3, 2] += 0.1 * affine[:3, 1]
    nib.save(nib.Nifti1Image(VOXELS, affine), tmp_path / "a.nii")
    with pytest.raises(UserError, match=r"a\.nii: axes must be at right angles, got 86\.6 degrees"):
        load_volume(tmp_path / "a.nii")


def test_voxels_that_begin_in_the_header(tmp_path):
    path = write(tmp_path / "a.nii")
    content = bytearray(path.read_bytes())
    content[108:112] = bytes(4)  # vox_offset
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.nii: vox_offset must be >= 352, got 0"):
        load_volume(path)


def without_lines(path: Path, *starts: bytes) -> Path:
    """Take lines out of the header of NRRD or MHA."""
    content = path.read_bytes()
    for start in starts:
        at = content.index(start)
        content = content[:at] + content[content.index(b"\n", at) + 1 :]
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "lines"),
    [("a.nrrd", [b"space:", b"space directions", b"space origin"]), ("a.mha", [b"ElementSpacing"])],
)
def test_headers_without_spacing_are_refused(tmp_path, name, lines):
    with pytest.raises(UserError, match="spacing is not in the header"):
        load_volume(without_lines(write(tmp_path / name), *lines))


def test_headers_without_directions_are_warned_of(tmp_path, caplog):
    load_volume(without_lines(write(tmp_path / "a.mha"), b"TransformMatrix"))
    assert "a.mha: the header has no directions, so left and right cannot be known" in caplog.text


def test_other_units_than_millimetres_in_nrrd(tmp_path):
    path = write(tmp_path / "a.nrrd")
    units = b'space units: "mm" "um" "mm"\nencoding:'
    path.write_bytes(path.read_bytes().replace(b"encoding:", units))
    with pytest.raises(UserError, match=r"a\.nrrd: space units must be mm, got um"):
        load_volume(path)
    path.write_bytes(path.read_bytes().replace(b'"um"', b'"mm"'))
    np.testing.assert_array_equal(load_volume(path)[0], VOXELS)


def test_a_header_without_orientation_is_warned_of(tmp_path, caplog):
    affine = load_volume(nifti(tmp_path / "a.nii", sform_code=0, qform_code=0)).affine
    assert "left and right cannot be known" in caplog.text
    np.testing.assert_allclose(np.abs(np.diag(affine)), 1)  # the header's spacings


def test_folder_with_other_than_one_series(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="no DICOM slices found"):
        load_volume(tmp_path)
    write_series(tmp_path, number=1)
    write_series(tmp_path, VOXELS[:, :, :3], number=2)
    with pytest.raises(UserError, match=r"2 DICOM series: .*Give each its own folder"):
        load_volume(tmp_path)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/a/case_1.nii.gz", "case_1"),
        ("case.1.NII", "case.1"),
        ("1.3.6.1.mhd", "1.3.6.1"),
        ("a.nrrd", "a"),
        ("a.mha", "a"),
        ("0.dcm", "0"),
        ("/a/series.v2/", "series.v2"),
        ("CT.1.3", "CT.1.3"),
    ],
)
def test_volume_name(path, name):
    assert volume_name(path) == name


@pytest.mark.skipif(not (REAL / "cip").is_dir(), reason=f"no CT under {REAL / 'cip'}")
def test_real_series_equals_the_same_volume_in_one_file():
    file, series = load_volume(REAL / "cip" / "ct-64.nrrd"), load_volume(REAL / "cip" / "ct-64Dicom")
    assert file.shape == series.shape == (1, 64, 64, 79)
    np.testing.assert_array_equal(series, file)
    np.testing.assert_allclose(series.affine[:3, :3], file.affine[:3, :3], atol=1e-3)


@pytest.mark.skipif(not JPEG_2000.is_dir(), reason=f"no DICOM series in {JPEG_2000}")
def test_real_series_in_jpeg_2000():
    volume = load_volume(JPEG_2000)
    assert volume.shape == (1, 512, 512, 20)
    assert (float(volume.min()), float(volume.max())) == (-1024, 1839)
    np.testing.assert_allclose(nib.affines.voxel_sizes(np.asarray(volume.affine)), (0.977, 0.977, 2), atol=1e-3)


def test_signed_bytes_of_a_metaimage(tmp_path):
    voxels = np.arange(-30, 30, dtype=np.int8).reshape(5, 4, 3)  # stored (z, y, x)
    (tmp_path / "mask.raw").write_bytes(voxels.tobytes())
    header = "ObjectType = Image\nNDims = 3\nDimSize = 3 4 5\nElementSpacing = 0.5 0.6 3\nElementType = MET_CHAR\n"
    (tmp_path / "mask.mhd").write_text(header + "ElementDataFile = mask.raw\n")
    volume = load_volume(tmp_path / "mask.mhd")
    assert np.array_equal(volume.numpy()[0], voxels.transpose())
    np.testing.assert_allclose(np.diag(volume.affine), [-0.5, -0.6, 3, 1])


def test_colours_that_are_grey(tmp_path):
    voxels = np.zeros((3, 4, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    for channel in "RGB":
        voxels[channel] = np.arange(60).reshape(3, 4, 5)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "a.nii")
    np.testing.assert_array_equal(load_volume(tmp_path / "a.nii").numpy()[0], voxels["R"])
    voxels["G"] += 1
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(UserError, match=r"a\.nii: must hold one grey value per voxel, got colours; export one channel"):
        load_volume(tmp_path / "a.nii")
