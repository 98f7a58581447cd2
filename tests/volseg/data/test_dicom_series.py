# SPDX-License-Identifier: Apache-2.0
"""A folder of DICOM slices is one regular volume, or one line says why it is not."""

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from volseg.data.dicom_header import is_slice
from volseg.data.dicom_series import check_multi_frame, regular_slices
from volseg.errors import UserError

REAL = Path(__file__).parents[4] / "shared" / "data" / "lung"
SPACING_MM = 2.5
AXIAL = [1, 0, 0, 0, 1, 0]


def write_slice(path, position, directions=AXIAL, series="1.2.3", value=0, **tags):
    """A slice of 3 x 5 pixels; tags that are None are left out."""
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, f"1.2.{abs(hash(path.name))}"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = pydicom.dataset.FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    values = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "SeriesInstanceUID": series,
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "ImagePositionPatient": list(position),
        "ImageOrientationPatient": list(directions),
        "PixelSpacing": [0.7, 0.9],
        "Rows": 3,
        "Columns": 5,
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "PixelData": np.full((3, 5), value, "<i2").tobytes(),
        **tags,
    }
    for name, content in values.items():
        if content is not None:
            setattr(dataset, name, content)
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def series(tmp_path):
    """Eight axial slices, stored from the last to the first, with jitter of a micrometre."""
    for number in range(8):
        write_slice(tmp_path / f"{9 - number}.dcm", (0, 0, number * SPACING_MM + 1e-3 * (number % 2)), value=number)
    return tmp_path


def test_slices_come_in_order_along_their_normal(series):
    assert [path.stem for path in regular_slices(series).paths] == [str(n) for n in range(9, 1, -1)]


def test_other_files_are_passed_over(series):
    (series / "readme.txt").write_text("not an image")
    (series / ".hidden.dcm").write_bytes(b"\0")
    assert len(regular_slices(series).paths) == 8


def test_oblique_slices_are_regular_too(tmp_path):
    c, s = np.cos(0.3), np.sin(0.3)
    for number in range(5):  # the normal of these directions is (0, -s, c)
        write_slice(tmp_path / f"{number}.dcm", (0, -s * 3.0 * number, c * 3.0 * number), [1, 0, 0, 0, c, s])
    assert len(regular_slices(tmp_path).paths) == 5


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ((4,), r"1 slice\(s\) missing between 10\.00 and 15\.00 mm"),
        ((4, 5), r"2 slice\(s\) missing between 7\.50 and 15\.00 mm"),
    ],
)
def test_missing_slices_are_named(series, gone, message):
    for name in gone:
        (series / f"{name}.dcm").unlink()
    with pytest.raises(UserError, match=message):
        regular_slices(series)


def test_distances_that_change_are_refused(tmp_path):
    for number, z in enumerate([0, 1, 2, 3, 4, 8, 12, 16]):
        write_slice(tmp_path / f"{number}.dcm", (0, 0, z))
    with pytest.raises(
        UserError, match=r"4\.00 mm apart between 4\.00 and 8\.00|3 slice\(s\) missing between 4\.00 and 8"
    ):
        regular_slices(tmp_path)


def test_equal_copies_are_used_once_and_said(series, caplog):
    shutil.copy(series / "5.dcm", series / "copy of 5.dcm")
    assert len(regular_slices(series).paths) == 8
    assert "1 slice(s) are there twice" in caplog.text


@pytest.mark.parametrize(("tags", "message"), [({"EchoTime": 90}, r"differ in echo time \(None, 90"),
                                               ({"AcquisitionNumber": 2}, "differ in acquisition"),
                                               ({}, "different slices")])  # fmt: skip
def test_two_volumes_under_one_series_are_refused(series, tags, message):
    write_slice(series / "again.dcm", (0, 0, 0), value=99, **tags)
    with pytest.raises(UserError, match=message):
        regular_slices(series)


@pytest.mark.parametrize(("directions", "image_type"), [([1, 0, 0, 0, 0, -1], "AXIAL"), (AXIAL, "LOCALIZER")])
def test_a_localizer_is_left_out_and_said(series, caplog, directions, image_type):
    write_slice(series / "scout.dcm", (0, 0, 40), directions, ImageType=["ORIGINAL", "PRIMARY", image_type])
    assert len(regular_slices(series).paths) == 8
    assert "1 localizer(s) left out: scout.dcm" in caplog.text


def test_gantry_tilt_is_refused_with_its_angle(tmp_path):
    for number in range(8):
        write_slice(tmp_path / f"{number}.dcm", (0, np.tan(np.radians(15)) * 3 * number, 3 * number))
    with pytest.raises(UserError, match=r"gantry tilt, slices are stacked at 15\.0 degrees"):
        regular_slices(tmp_path)


@pytest.mark.parametrize("tag", ["ImagePositionPatient", "ImageOrientationPatient"])
def test_slices_without_a_place_are_refused(series, tag):
    write_slice(series / "5.dcm", (0, 0, 10), **{tag: None})
    with pytest.raises(UserError, match=r"5\.dcm: no ImagePositionPatient or ImageOrientationPatient"):
        regular_slices(series)


@pytest.mark.parametrize("lost", [1, 20])
def test_a_truncated_file_is_named(series, lost):
    whole = (series / "5.dcm").read_bytes()
    (series / "5.dcm").write_bytes(whole[:-lost])
    with pytest.raises(UserError, match=r"5\.dcm: truncated DICOM file"):
        regular_slices(series)


def test_slices_of_other_sizes_are_refused(series):
    write_slice(series / "5.dcm", (0, 0, 10), Rows=5, Columns=3)
    with pytest.raises(UserError, match="slices of different sizes"):
        regular_slices(series)


def test_several_series_are_listed(series):
    write_slice(series / "other.dcm", (0, 0, 0), series="1.2.9", SeriesDescription="lung kernel")
    with pytest.raises(UserError, match=r"2 DICOM series: .*lung kernel \(1 slices\)"):
        regular_slices(series)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="no DICOM slices found"):
        regular_slices(tmp_path)


def frames(path, positions):
    file = write_slice(path, (0, 0, 0), NumberOfFrames=len(positions), ImagePositionPatient=None,
                       ImageOrientationPatient=None, PixelData=b"\0" * 30 * len(positions))  # fmt: skip
    dataset = pydicom.dcmread(file)
    dataset.PerFrameFunctionalGroupsSequence = []
    for position in positions:
        frame = pydicom.Dataset()
        if position is not None:
            frame.PlanePositionSequence = [pydicom.Dataset()]
            frame.PlanePositionSequence[0].ImagePositionPatient = list(position)
        dataset.PerFrameFunctionalGroupsSequence.append(frame)
    shared = pydicom.Dataset()
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [pydicom.Dataset()], [pydicom.Dataset()]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = AXIAL
    shared.PixelMeasuresSequence[0].PixelSpacing = [0.7, 0.9]
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.save_as(file)
    return file


def test_frames_of_an_enhanced_file(tmp_path):
    check_multi_frame(frames(tmp_path / "right.dcm", [(0, 0, z) for z in (0, 2, 4, 6)]))
    with pytest.raises(UserError, match="no ImagePositionPatient"):
        check_multi_frame(frames(tmp_path / "lost.dcm", [None] * 4))
    with pytest.raises(UserError, match="several frames at one position"):
        check_multi_frame(frames(tmp_path / "twice.dcm", [(0, 0, z) for z in (0, 2, 0, 2)]))
    with pytest.raises(UserError, match=r"1 slice\(s\) missing between 4.00 and 8.00"):
        check_multi_frame(frames(tmp_path / "gap.dcm", [(0, 0, z) for z in (0, 2, 4, 8, 10)]))
    downwards = check_multi_frame(frames(tmp_path / "downwards.dcm", [(0, 0, z) for z in (6, 4, 2, 0)]))
    np.testing.assert_array_equal(downwards, [[-0.9, 0, 0, 0], [0, -0.7, 0, 0], [0, 0, -2, 6], [0, 0, 0, 1]])
    for number, spacing in enumerate(([0.7, 0.9], [0.8, 0.9])):
        file = frames(tmp_path / "changed.dcm", [(0, 0, z) for z in (0, 2, 4, 6)])
        dataset, measures, scale = pydicom.dcmread(file), pydicom.Dataset(), pydicom.Dataset()
        measures.PixelSpacing, scale.RescaleSlope, scale.RescaleIntercept = spacing, number + 1, 0
        dataset.PerFrameFunctionalGroupsSequence[3].PixelMeasuresSequence = [measures]
        if not number:
            dataset.PerFrameFunctionalGroupsSequence[3].PixelValueTransformationSequence = [scale]
        dataset.save_as(file)
        with pytest.raises(UserError, match=["must have one RescaleSlope", "must have one PixelSpacing"][number]):
            check_multi_frame(file)
    with pytest.raises(UserError, match=r"disorder\.dcm: frames must be stored in the order of their positions"):
        check_multi_frame(frames(tmp_path / "disorder.dcm", [(0, 0, z) for z in (2, 0, 4, 6)]))


def test_a_result_on_a_scan_is_no_scan(tmp_path):
    file = write_slice(tmp_path / "a.dcm", (0, 0, 0), Modality="SEG")
    assert not is_slice(file)
    with pytest.raises(UserError, match=r"a\.dcm must be a scan, got a result on one \(modality SEG\)"):
        check_multi_frame(file)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real scans in {REAL}")
@pytest.mark.parametrize(("folder", "count"), [("cip/ct-64Dicom", 79), ("totalsegmentator/example_ct_dicom", 20),
                                               ("lungmask_dicom", 2)])  # fmt: skip
def test_real_series_are_regular(folder, count):
    assert len(regular_slices(REAL / folder).paths) == count


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real scans in {REAL}")
def test_a_truncated_compressed_slice_is_named(tmp_path):
    for path in sorted((REAL / "totalsegmentator" / "example_ct_dicom").iterdir())[:3]:
        (tmp_path / path.name).write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="truncated DICOM file"):
        regular_slices(tmp_path)


@pytest.mark.parametrize("tags", [{"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, {"Modality": "SEG"},
                                  {"ImagePositionPatient": None, "PhotometricInterpretation": "RGB"}])  # fmt: skip
def test_what_is_no_scan_and_has_a_series_of_its_own_is_left_out_and_said(series, caplog, tags):
    write_slice(series / "other.dcm", (0, 0, 9), series="7.8.9", **tags)
    assert len(regular_slices(series).paths) == 8
    assert "1 file(s) of no scan left out: other.dcm" in caplog.text


@pytest.mark.parametrize(("keyword", "name"), [("EchoTime", "echo time"), ("AcquisitionNumber", "acquisition")])
def test_two_volumes_between_one_another_are_refused(tmp_path, keyword, name):
    for number in range(8):
        tags = {keyword: number % 2 + 1, "SliceThickness": 3}
        write_slice(tmp_path / f"{number}.dcm", (0, 0, 1.5 * number), **tags)
    with pytest.raises(UserError, match=rf"differ in {name} \(1\S*, 2\S*\) lie between one another"):
        regular_slices(tmp_path)


def test_turns_of_the_gantry_and_interleaved_acquisitions_are_one_volume(tmp_path):
    for number in range(8):
        tags = {"AcquisitionNumber": number % 2 + 1, "SliceThickness": 3, "AcquisitionTime": f"1200{number:02}"}
        write_slice(tmp_path / f"{number}.dcm", (0, 0, 3.3 * number), **tags)
    assert len(regular_slices(tmp_path).paths) == 8


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"PixelSpacing": None}, r"9\.dcm: PixelSpacing must be two lengths > 0, got None"),
        ({"PixelSpacing": [0, 0.9]}, r"9\.dcm: PixelSpacing must be two lengths > 0, got \[0"),
        ({"PixelSpacing": [0.8, 0.9]}, "must have one PixelSpacing, got several"),
        ({"ImageOrientationPatient": [0] * 6}, r"9\.dcm: ImageOrientationPatient must be two directions at right"),
        ({"ImageOrientationPatient": [1, 0, 0, 0.6, 0.8, 0]}, "two directions at right angles"),
        ({"HighBit": 15, "BitsStored": 12}, r"9\.dcm must have a HighBit one below BitsStored, got 15 and 12"),
        ({"RescaleSlope": 0}, r"9\.dcm must have a RescaleSlope that is not 0"),
        ({"Columns": None}, r"9\.dcm: truncated DICOM header"),
    ],
)
def test_headers_that_give_no_volume_are_refused(series, tags, message):
    write_slice(series / "9.dcm", (0, 0, 0), **tags)
    with pytest.raises(UserError, match=message):
        regular_slices(series)


@pytest.mark.parametrize("content", [b"", b"<html>", b"\0" * 128 + b"DICM", "half a header"])
def test_what_is_named_like_slices_must_be_one(series, content):
    """At the end of a volume nothing else tells that a slice is lost."""
    file = series / "9.dcm"
    file.write_bytes(file.read_bytes()[:330] if content == "half a header" else content)
    with pytest.raises(UserError, match=r"9\.dcm: damaged, got \d+ bytes without a DICOM image"):
        regular_slices(series)


def test_files_of_old_archives_have_no_preamble(series):
    file = series / "9.dcm"
    pydicom.dcmwrite(file, pydicom.Dataset(dict(pydicom.dcmread(file).items())), implicit_vr=True, little_endian=True)
    assert is_slice(file)
    assert len(regular_slices(series).paths) == 8


def test_slices_of_two_frames_of_reference_are_said(series, caplog):
    write_slice(series / "9.dcm", (0, 0, 0), FrameOfReferenceUID="7.8.9")
    assert len(regular_slices(series).paths) == 8
    assert "refer to 2 frames of reference" in caplog.text


def test_inverted_grey_values_are_refused(series):
    write_slice(series / "5.dcm", (0, 0, 10), PhotometricInterpretation="MONOCHROME1")
    with pytest.raises(UserError, match=r"5\.dcm must hold grey values as MONOCHROME2, got MONOCHROME1"):
        regular_slices(series)


def test_a_folder_with_one_enhanced_file(tmp_path):
    file = frames(tmp_path / "whole.dcm", [(0, 0, z) for z in (0, 2, 4, 6)])
    assert regular_slices(tmp_path).paths == [file]
    frames(file, [(0, 0, z) for z in (0, 2, 6, 8)])
    with pytest.raises(UserError, match="missing"):
        regular_slices(tmp_path)
