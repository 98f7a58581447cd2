# SPDX-License-Identifier: Apache-2.0
"""Segmentation objects hold the label map in the geometry of their source, whatever reads them."""

import itertools
from functools import partial

import highdicom
import itk
import nibabel as nib
import numpy as np
import pydicom
import pytest

from tests.bundles.dicom_files import enhanced, series
from tests.bundles.users_files import Files
from volseg.data.volume_reader import load_volume
from volseg.errors import UserError
from volseg.label_maps.anatomy import coded_segments
from volseg.label_maps.dicom_segmentation import DicomSegmentation
from volseg.label_maps.label_file import write_segmentation

SHAPE = (6, 5, 4)
NAMES = {1: "LUL", 2: "RML"}
SEGMENTS = coded_segments(NAMES, {"1": ["UpperLobeOfLung", "Left"], "2": ["MiddleLobeOfRightLung"]})
ALGORITHM = {"name": "pdvnet_lung", "version": "0.1.0"}
OBLIQUE = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.3, -0.2, 0.4) @ np.diag([-0.7, -0.9, 2.5]), [31, -7, 402])


@pytest.fixture
def files(tmp_path):
    """An oblique scan."""
    voxels = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    return Files(tmp_path, tmp_path / "unused", voxels, OBLIQUE)


@pytest.fixture
def labels():
    """A label map with an empty slice and a slice of one label, unlike its mirror images."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:4, 0:3, 0:2] = 1
    labels[4, 2:4, 1] = 2
    labels[2, 1, 3] = 2
    return labels


def of_frames(files):
    """An enhanced file whose frames hold what they share."""
    path = enhanced(files)
    dataset = pydicom.dcmread(path)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    for keyword in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
        for frame in dataset.PerFrameFunctionalGroupsSequence:
            setattr(frame, keyword, shared[keyword].value)
        del shared[keyword]
    dataset.save_as(path)
    return path


def corners(size):
    return np.array([*itertools.product(*((0, n - 1) for n in size))])


def by_pydicom(seg, affine):
    """The label map (X, Y, Z) from the place of each frame, whose corners lie on the grid of the affine."""
    shared = seg.SharedFunctionalGroupsSequence[0]
    right, down = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient).reshape(2, 3)
    between_rows, between_columns = shared.PixelMeasuresSequence[0].PixelSpacing
    found = np.zeros(SHAPE, np.uint8)
    for frame, pixels in zip(seg.PerFrameFunctionalGroupsSequence, seg.pixel_array, strict=True):
        origin = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        x, y = corners(SHAPE[:2]).T
        points_mm = origin + np.outer(x * between_columns, right) + np.outer(y * between_rows, down)
        voxels = nib.affines.apply_affine(np.linalg.inv(affine), points_mm * (-1, -1, 1))
        k = round(voxels[0, 2])
        expected_mm = nib.affines.apply_affine(affine, np.column_stack([x, y, np.full(4, k)]))
        assert np.abs(expected_mm * (-1, -1, 1) - points_mm).max() < 0.01
        number = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        found[:, :, k][pixels.T > 0] = number
    return found


@pytest.mark.parametrize(
    "write",
    [series, enhanced, partial(enhanced, places=lambda k: 9 - k), of_frames],
    ids=["series", "enhanced", "enhanced, last slice first", "enhanced, nothing shared"],
)
def test_every_reader_finds_the_label_map(write, files, labels, tmp_path):
    source = write(files)
    image = load_volume(source)
    segmentation = DicomSegmentation(image, SEGMENTS, ALGORITHM)
    segmentation.write(tmp_path / "a.dcm", labels)
    write_segmentation(tmp_path / "a.nii.gz", labels, image.affine.numpy(), NAMES)
    expected = nib.load(tmp_path / "a.nii.gz")

    seg = pydicom.dcmread(tmp_path / "a.dcm")
    np.testing.assert_array_equal(by_pydicom(seg, expected.affine), labels)

    read = highdicom.seg.segread(tmp_path / "a.dcm")
    uids = [header.SOPInstanceUID for header in segmentation.headers]
    if source.is_dir():
        planes = read.get_pixels_by_source_instance(uids, combine_segments=True, assert_missing_frames_are_empty=True)
    else:
        planes = read.get_pixels_by_source_frame(
            uids[0], range(1, 5), combine_segments=True, assert_missing_frames_are_empty=True
        )
    np.testing.assert_array_equal(planes.transpose(2, 1, 0), labels)
    volume = read.get_volume(combine_segments=True)
    ras = np.diag([-1, -1, 1, 1]) @ volume.affine[:, [2, 1, 0, 3]]  # highdicom's axes are slice, row, column
    low, high = (
        np.rint(nib.affines.apply_affine(np.linalg.inv(expected.affine) @ ras, corner)).astype(int)
        for corner in ((0, 0, 0), np.array(volume.array.T.shape) - 1)
    )
    found = np.zeros(SHAPE, np.uint8)
    z = np.linspace(low[2], high[2], volume.array.shape[0]).astype(int)
    found[:, :, z] = volume.array.T
    np.testing.assert_array_equal(found, labels)

    masks = itk.array_from_image(itk.imread(tmp_path / "a.dcm"))  # 0 and 255
    np.testing.assert_array_equal(masks > 0, seg.pixel_array > 0)


def test_what_it_says_of_itself(files, labels, tmp_path):
    segmentation = DicomSegmentation(load_volume(series(files)), SEGMENTS, ALGORITHM)
    for name in ("a.dcm", "b.dcm"):
        segmentation.write(tmp_path / name, labels)
    seg, again = (pydicom.dcmread(tmp_path / name) for name in ("a.dcm", "b.dcm"))
    assert (seg.Modality, seg.StudyInstanceUID, seg.FrameOfReferenceUID) == ("SEG", "1.2", "1.2.4")
    referenced = {i.ReferencedSOPInstanceUID for i in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert referenced == {pydicom.dcmread(path).SOPInstanceUID for path in (files.folder / "series").iterdir()}
    codes = [
        [(c.CodingSchemeDesignator, c.CodeValue, c.CodeMeaning) for c in (kind, *side)]
        for s in seg.SegmentSequence
        for kind in s.SegmentedPropertyTypeCodeSequence
        for side in [kind.get("SegmentedPropertyTypeModifierCodeSequence", [])]
    ]
    assert codes == [
        [("SCT", "45653009", "Upper lobe of lung"), ("SCT", "7771000", "Left")],
        [("SCT", "72481006", "Middle lobe of right lung")],
    ]
    for segment, twin, name, rgb in zip(
        seg.SegmentSequence, again.SegmentSequence, NAMES.values(), ((230, 159, 0), (86, 180, 233)), strict=True
    ):
        assert (segment.SegmentLabel, segment.SegmentAlgorithmType) == (name, "AUTOMATIC")
        assert segment.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Anatomical Structure"
        (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("pdvnet_lung", "0.1.0")
        assert algorithm.AlgorithmFamilyCodeSequence[0].CodeMeaning == "Artificial Intelligence"
        shown = highdicom.color.CIELabColor.from_dicom_value(segment.RecommendedDisplayCIELabValue).to_rgb()
        np.testing.assert_allclose(shown, rgb, atol=1)
        assert segment.TrackingUID == twin.TrackingUID
    assert seg.SOPInstanceUID != again.SOPInstanceUID and seg.SeriesInstanceUID == again.SeriesInstanceUID
    assert seg.PixelData == again.PixelData


def test_nothing_segmented(files, tmp_path):
    DicomSegmentation(load_volume(series(files)), SEGMENTS, ALGORITHM).write(
        tmp_path / "a.dcm", np.zeros(SHAPE, np.uint8)
    )
    assert not pydicom.dcmread(tmp_path / "a.dcm").pixel_array.any()


def test_directions_may_differ_in_their_last_digits(files, labels, tmp_path):
    directions = [float(n) for n in pydicom.dcmread(next(series(files, "a").iterdir())).ImageOrientationPatient]
    source = series(files, ImageOrientationPatient=lambda k: [directions[0] + 1e-6 * k, *directions[1:]])
    image = load_volume(source)
    DicomSegmentation(image, SEGMENTS, ALGORITHM).write(tmp_path / "a.dcm", labels)
    found = by_pydicom(pydicom.dcmread(tmp_path / "a.dcm"), image.affine.numpy())
    np.testing.assert_array_equal(found, labels)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda f: f.nifti("a.nii"), "a.nii: not DICOM"),
        (lambda f: series(f, FrameOfReferenceUID=lambda k: None), "series: no FrameOfReferenceUID"),
        (lambda f: series(f, FrameOfReferenceUID=lambda k: f"1.2.{k}"), "series: headers .* same series"),
    ],
)
def test_no_segmentation_object_is_possible(write, message, files):
    with pytest.raises(UserError, match=message):
        DicomSegmentation(load_volume(write(files)), SEGMENTS, ALGORITHM)


def test_frames_elsewhere_than_the_volume(files):
    image = load_volume(series(files))
    image.affine[:3, 3] += image.affine[:3, 2]
    with pytest.raises(UserError, match=r"got slices \[-1, 0, 1, 2\] of 4"):
        DicomSegmentation(image, SEGMENTS, ALGORITHM)
