# SPDX-License-Identifier: Apache-2.0
"""Tests of the picture of a segmentation."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from volseg.label_maps.picture import LABEL_COLOURS, _extents, _planes, save_preview

SIZE_RAS = (12, 20, 8)  # to the patient's right, front, top
SPACING_RAS = (1.5, 0.7, 2.5)
NAMES = {1: "LUL 12 ml", 2: "LLL 0 ml", 3: "RUL 8 ml"}


def in_axes(codes: str, ras: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A volume in RAS order stored along other axes, and its affine."""
    affine = np.diag([*SPACING_RAS, 1.0])
    image = nib.Nifti1Image(ras, affine)
    start, end = nib.io_orientation(affine), nib.orientations.axcodes2ornt(codes)
    turned = image.as_reoriented(nib.orientations.ornt_transform(start, end))
    return np.asarray(turned.dataobj), turned.affine


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """Figures that are saved, after they were drawn."""
    figures: list[Figure] = []
    save = Figure.savefig

    def remember(self, *args, **kwargs):
        figures.append(self)
        return save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", remember)
    return figures


def marked_volume() -> tuple[np.ndarray, np.ndarray]:
    """Image and labels that are bright and labelled where the patient is right, front and top of the lungs' middle."""
    labels = np.zeros(SIZE_RAS, np.uint8)
    labels[2:10, 4:16, 1:7] = 1
    labels[6:10, 10:16, 4:7] = 3
    return np.where(labels == 3, 100.0, -900.0).astype(np.float32), labels


def test_planes_go_through_the_middle_of_the_labels():
    labels = np.zeros((20, 30, 40), np.uint8)
    labels[4:9, 10:21, 30:33] = 2
    planes = _planes(_extents(labels))
    assert planes == (("axial", 2, 31), ("coronal", 1, 15), ("sagittal, right", 0, 7), ("sagittal, left", 0, 5))


def test_planes_without_labels_go_through_the_middle_of_the_image():
    planes = _planes(_extents(np.zeros((9, 31, 41), np.uint8)))
    assert planes == (("axial", 2, 20), ("coronal", 1, 15), ("sagittal, right", 0, 6), ("sagittal, left", 0, 2))


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PSL", "SRA"])
def test_patients_right_is_on_the_left_and_up_is_up(tmp_path, drawn, codes):
    image, labels = marked_volume()
    (image, affine), (labels, _) = in_axes(codes, image), in_axes(codes, labels)
    save_preview(tmp_path / "a.png", image, labels, affine, NAMES, (-1350, 150), "case")
    pictures = {axes.get_title(): [np.ma.filled(i.get_array(), 0) for i in axes.get_images()] for axes in drawn[0].axes}
    assert list(pictures) == ["axial", "coronal", "sagittal, right", "sagittal, left"]

    grey, colour = pictures["axial"]  # rows from back to front, drawn from below; columns from right to left
    assert grey.shape == (20, 12)
    rows, columns = np.nonzero(colour == 3)
    # index 3 is in the middle of 1..6, just below what is marked: the axial plane shows the rest of the lungs
    assert rows.size == 0 and (colour == 1).sum() == 12 * 8

    grey, colour = pictures["coronal"]
    assert grey.shape == (8, 12)
    assert (colour == 3).sum() == 0

    grey, colour = pictures["sagittal, right"]  # at x = 7: columns from back to front
    assert grey.shape == (8, 20)
    rows, columns = np.nonzero(colour == 3)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 6, 10, 15)
    np.testing.assert_array_equal(grey == 100, colour == 3)
    assert (pictures["sagittal, left"][1] == 3).sum() == 0

    assert all(i.origin == "lower" for axes in drawn[0].axes for i in axes.get_images())


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PSL"])
def test_marked_voxel_on_the_right_is_left_in_axial_and_coronal(tmp_path, drawn, codes):
    labels = np.zeros(SIZE_RAS, np.uint8)
    labels[2:10, 4:16, 1:7] = 1
    labels[9, 15, 3] = 3  # rightmost and frontmost of the axial plane
    labels[9, 9, 6] = 2  # rightmost and topmost of the coronal plane
    stored, affine = in_axes(codes, labels)
    save_preview(tmp_path / "a.png", stored.astype(np.float32), stored, affine, NAMES, (0, 3), "case")
    axial, coronal, *_ = (np.ma.filled(axes.get_images()[1].get_array(), 0) for axes in drawn[0].axes)
    assert np.argwhere(axial == 3).tolist() == [[15, 12 - 1 - 9]]
    assert np.argwhere(coronal == 2).tolist() == [[6, 12 - 1 - 9]]


@pytest.mark.parametrize("codes", ["RAS", "PSL"])
def test_voxels_have_their_proportions(tmp_path, drawn, codes):
    image, labels = marked_volume()
    (image, affine), (labels, _) = in_axes(codes, image), in_axes(codes, labels)
    save_preview(tmp_path / "a.png", image, labels, affine, NAMES, (-1350, 150), "case")
    aspects = [axes.get_aspect() for axes in drawn[0].axes]
    assert aspects == pytest.approx([0.7 / 1.5, 2.5 / 1.5, 2.5 / 0.7, 2.5 / 0.7])


def test_view_is_what_is_labelled_with_a_margin(tmp_path, drawn):
    labels = np.zeros((100, 120, 30), np.uint8)
    labels[20:30, 50:60, 10:12] = 1
    affine = np.diag([1.5, 0.5, 3.0, 1.0])
    save_preview(tmp_path / "a.png", labels.astype(np.float32), labels, affine, {1: "gland"}, (0, 1), "case")
    axial, coronal, sagittal, _ = drawn[0].axes
    # 30 mm are 20, 60 and 10 voxels; x is turned round: index 0 to 49 of 100 is 50 to 99 from the left
    assert axial.get_xlim() == (49.5, 99.5)
    assert axial.get_ylim() == (-0.5, 119.5)
    assert coronal.get_ylim() == sagittal.get_ylim() == (-0.5, 21.5)
    assert [text.get_text().strip() for text in axial.texts] == ["R", "L"]
    assert [text.get_text().strip() for text in sagittal.texts] == ["P", "A"]


def test_legend_and_picture_agree_in_colour(tmp_path, drawn):
    image, labels = marked_volume()
    path = tmp_path / "out" / "a.png"
    save_preview(path, image, labels, np.diag([*SPACING_RAS, 1.0]), NAMES, (-1350, 150), "case 1")
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == list(NAMES.values())
    colours = [patch.get_facecolor()[:3] for patch in legend.get_patches()]
    assert colours == [pytest.approx(to_rgb(c)) for c in LABEL_COLOURS[:3]]
    overlay = drawn[0].axes[2].get_images()[1]
    assert [overlay.to_rgba(value)[:3] for value in (1, 2, 3)] == [pytest.approx(to_rgb(c)) for c in LABEL_COLOURS[:3]]
    assert drawn[0].get_suptitle() == "case 1"
    assert imread(path).shape[:2] == (462, 1430)
    assert [p.name for p in Path(path.parent).iterdir()] == ["a.png"]


def test_image_without_labels(tmp_path):
    image = np.zeros(SIZE_RAS, np.float32)
    save_preview(tmp_path / "a.png", image, image.astype(np.uint8), np.eye(4), NAMES, (-1350, 150), "case")
    assert (tmp_path / "a.png").stat().st_size > 1000
