# SPDX-License-Identifier: Apache-2.0
"""However an image is stored, it gets the same mask, in the place of the image."""

from __future__ import annotations

import json
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest

from tests.bundles.users_files import MEDICAL

# order of the axes, flipped axes, type and slope of the stored values; what is stored times slope is the image
FORMS = {
    "permuted": ((2, 0, 1), (), np.int16, 1.0, 0.0),
    "flipped": ((0, 1, 2), (0, 2), np.int16, 1.0, 0.0),
    "permuted_and_flipped": ((1, 2, 0), (1,), np.float32, 1.0, 0.0),
    "slope_and_intercept": ((0, 1, 2), (), np.int16, 0.5, -1024.0),
    "unsigned": ((1, 0, 2), (1, 2), np.uint16, 1.0, -2048.0),
}


@pytest.fixture(scope="module", params=MEDICAL)
def bundle_name(request) -> str:
    return request.param


def store(image: nib.Nifti1Image, path: Path, form: tuple) -> None:
    order, flips, dtype, slope, intercept = form
    moved = image.slicer[tuple(slice(None, None, -1 if axis in flips else 1) for axis in range(3))]
    stored = np.round((np.asarray(moved.dataobj).transpose(order) - intercept) / slope).astype(dtype)
    written = nib.Nifti1Image(stored, moved.affine[:, [*order, 3]])
    written.header.set_slope_inter(slope, intercept)
    nib.save(written, path)
    np.testing.assert_allclose(np.asarray(nib.load(path).dataobj), np.asarray(moved.dataobj).transpose(order))


def corners_by_itk(path: Path) -> np.ndarray:
    """Corners of a volume along R, A, S in mm, ``(8, 3)``."""
    image = itk.imread(str(path))
    last = [n - 1 for n in itk.size(image)]
    corners = [image.TransformIndexToPhysicalPoint([int(i * n) for i, n in zip(c, last, strict=True)]) for c in _CUBE]
    return np.array([list(corner) for corner in corners]) * (-1, -1, 1)


def corners_by_nibabel(path: Path) -> np.ndarray:
    image = nib.load(path)
    return nib.affines.apply_affine(image.affine, np.array(_CUBE) * (np.array(image.shape) - 1))


_CUBE = list(np.ndindex(2, 2, 2))


def test_same_mask_in_the_place_of_the_image(segment, bundle, tmp_path):
    image = nib.load(bundle.phantom["image"])
    (tmp_path / "in").mkdir()
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine), tmp_path / "in" / "plain.nii.gz")
    for name, form in FORMS.items():
        store(image, tmp_path / "in" / f"{name}.nii.gz", form)
    process = segment(tmp_path / "in", tmp_path / "out")
    assert process.returncode == 0, process.stderr
    cases = {Path(case["image"]).name: case for case in json.loads((tmp_path / "out" / "statistics.json").read_text())}
    assert set(cases) == {"plain.nii.gz", *(f"{name}.nii.gz" for name in FORMS)}
    masks = {}
    for name, case in cases.items():
        segmentation = tmp_path / "out" / case["segmentation"]
        for corners in (corners_by_itk, corners_by_nibabel):
            np.testing.assert_allclose(corners(segmentation), corners(tmp_path / "in" / name), atol=0.01)
        np.testing.assert_allclose(corners_by_itk(segmentation), corners_by_nibabel(segmentation), atol=0.01)
        masks[name] = np.asarray(nib.as_closest_canonical(nib.load(segmentation)).dataobj)
    plain = masks["plain.nii.gz"]
    assert plain.any()
    for mask in masks.values():
        for label in np.unique(plain)[1:]:
            found, wanted = mask == label, plain == label
            assert 2 * np.sum(found & wanted) >= 0.999 * (found.sum() + wanted.sum())
