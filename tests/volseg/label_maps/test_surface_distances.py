# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice
from scipy import ndimage

from volseg.errors import UserError
from volseg.label_maps import surface_distances as module
from volseg.label_maps.overlap import confusion_counts, dice_per_label
from volseg.label_maps.surface_distances import SurfaceDistances, border_voxels, bounding_box, surface_distances

SPACING_MM = (0.5, 0.75, 2.0)
PROSTATE_SPACING_MM = (0.625, 0.625, 3.6)
PROSTATE_LABELS = Path(__file__).parents[4] / "shared/data/prostate/msd_task05_labels"


def blobs(seed: int, shape: tuple[int, int, int] = (29, 23, 17), share: float = 0.5) -> np.ndarray:
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 2)
    return smooth > np.quantile(smooth, 1 - share)


def monai_measures(
    prediction: np.ndarray, truth: np.ndarray, spacing_mm: tuple[float, float, float], tolerance_mm: float
) -> SurfaceDistances:
    pair = [torch.from_numpy(mask)[None, None].float() for mask in (prediction, truth)]
    options = {"include_background": True, "spacing": spacing_mm}
    return SurfaceDistances(
        compute_hausdorff_distance(*pair, percentile=95, **options).item(),
        compute_average_surface_distance(*pair, symmetric=True, **options).item(),
        compute_surface_dice(*pair, class_thresholds=[tolerance_mm], **options).item(),
    )


def spec_prediction(truth: np.ndarray) -> np.ndarray:
    return ndimage.binary_dilation(np.roll(truth, 4, axis=0), iterations=2)


def test_two_voxels():
    prediction, truth = np.zeros((2, 4, 5, 6), bool)
    truth[0, 1, 1] = True
    prediction[2, 1, 4] = True
    distance_mm = math.hypot(2 * 0.5, 3 * 2.0)
    result = surface_distances(prediction, truth, SPACING_MM, tolerance_mm=6.0)
    assert result == pytest.approx((distance_mm, distance_mm, 0.0))
    assert surface_distances(prediction, truth, SPACING_MM, tolerance_mm=6.1).surface_dice == 1.0


def test_literal_case():
    # A row of three voxels against its first one: forward 0, 2, 4 mm, backward 0.
    prediction, truth = np.zeros((2, 3, 4, 5), bool)
    prediction[1, 2, 1:4] = True
    truth[1, 2, 1] = True
    result = surface_distances(prediction, truth, SPACING_MM, tolerance_mm=2.0)
    assert result.hausdorff_95_mm == pytest.approx(2.0 + 0.9 * 2.0)  # rank 0.95 * 2 = 1.9 of 0, 2, 4
    assert result.average_symmetric_mm == pytest.approx((0 + 2 + 4 + 0) / 4)
    assert result.surface_dice == pytest.approx(3 / 4)


def test_distance_equal_to_the_tolerance_counts():
    prediction, truth = np.zeros((2, 5, 1, 1), bool)
    truth[0], prediction[3] = True, True  # 3 * 0.1 > 0.3 in float64
    assert surface_distances(prediction, truth, (0.1, 1.0, 1.0), tolerance_mm=0.3).surface_dice == 1.0


@pytest.mark.parametrize("seed", range(4))
def test_equals_monai_on_random_blobs(seed):
    prediction, truth = blobs(seed, share=0.4), blobs(seed + 100, share=0.2)  # both touch the faces of the volume
    expected = monai_measures(prediction, truth, SPACING_MM, 1.5)
    np.testing.assert_allclose(surface_distances(prediction, truth, SPACING_MM, 1.5), expected, rtol=1e-5)


@pytest.mark.parametrize("shift", [0, 1, 5])
def test_equals_monai_on_shifted_masks(shift):
    truth = np.pad(blobs(7), 6)
    prediction = np.roll(truth, shift, axis=1)
    expected = monai_measures(prediction, truth, SPACING_MM, 0.75)
    np.testing.assert_allclose(surface_distances(prediction, truth, SPACING_MM, 0.75), expected, rtol=1e-5)


@pytest.mark.parametrize("seconds_per_voxel", [0.0, math.inf])
def test_tree_and_transform_give_the_same(monkeypatch, seconds_per_voxel):
    calls = []
    transform = module._transform_distances_mm
    monkeypatch.setattr(module, "_transform_distances_mm", lambda *args: calls.append(1) or transform(*args))
    monkeypatch.setattr(module, "_TRANSFORM_S_PER_VOXEL", seconds_per_voxel)
    prediction, truth = blobs(3), blobs(4, share=0.1)
    expected = monai_measures(prediction, truth, SPACING_MM, 1.5)
    np.testing.assert_allclose(surface_distances(prediction, truth, SPACING_MM, 1.5), expected, rtol=1e-5)
    assert len(calls) == (0 if math.isinf(seconds_per_voxel) else 2)


def test_symmetric_and_perfect():
    first, second = blobs(1), blobs(2)
    forward = surface_distances(first, second, SPACING_MM, 1.0)
    assert forward == pytest.approx(surface_distances(second, first, SPACING_MM, 1.0), rel=1e-12)
    assert surface_distances(first, first, SPACING_MM, 0.0) == (0.0, 0.0, 1.0)


def test_surroundings_axis_order_and_type_do_not_matter():
    prediction, truth = np.pad(blobs(5), 1), np.pad(blobs(6), 1)
    expected = surface_distances(prediction, truth, SPACING_MM, 1.0)
    widths = ((9, 2), (0, 7), (4, 11))
    assert surface_distances(np.pad(prediction, widths), np.pad(truth, widths), SPACING_MM, 1.0) == expected
    assert surface_distances(np.asfortranarray(prediction).astype(np.uint8), truth, SPACING_MM, 1.0) == expected
    transposed = surface_distances(prediction.transpose(2, 0, 1), truth.transpose(2, 0, 1), (2.0, 0.5, 0.75), 1.0)
    assert transposed == pytest.approx(expected, rel=1e-6)


def test_units_scale():
    prediction, truth = blobs(5), blobs(6)
    small = surface_distances(prediction, truth, SPACING_MM, 1.0)
    large = surface_distances(prediction, truth, tuple(4 * size for size in SPACING_MM), 4.0)
    assert large == pytest.approx((4 * small.hausdorff_95_mm, 4 * small.average_symmetric_mm, small.surface_dice))


def test_empty_masks():
    empty, mask = np.zeros((3, 4, 5), bool), np.ones((3, 4, 5), bool)
    assert all(math.isnan(value) for value in surface_distances(empty, empty, SPACING_MM, 1.0))
    assert surface_distances(empty, mask, SPACING_MM, 1.0) == (math.inf, math.inf, 0.0)
    assert surface_distances(mask, empty, SPACING_MM, 1.0) == (math.inf, math.inf, 0.0)


def test_synthetic_regression():
    """Values of MONAI 1.6.1, computed once; other tools differ here (pooled HD95 6.065, area-weighted ASSD 1.931)."""
    x, y, z = np.ogrid[:64, :64, :20]
    truth = ((x - 31) / 18) ** 2 + ((y - 31) / 14) ** 2 + ((z - 9) / 6) ** 2 <= 1
    prediction = spec_prediction(truth)
    assert (truth.sum(), prediction.sum()) == (6265, 10193)
    result = surface_distances(prediction, truth, PROSTATE_SPACING_MM, tolerance_mm=1.0)
    assert result == pytest.approx((7.131, 2.793, 0.2361), abs=5e-4)
    np.testing.assert_allclose(result, monai_measures(prediction, truth, PROSTATE_SPACING_MM, 1.0), rtol=1e-5)
    assert dice_per_label(confusion_counts(prediction, truth, 2))[1] == pytest.approx(0.72609, abs=5e-6)


@pytest.mark.skipif(not PROSTATE_LABELS.is_dir(), reason=f"needs the prostate label maps in {PROSTATE_LABELS}")
def test_prostate_regression():
    import nibabel

    image = nibabel.load(PROSTATE_LABELS / "prostate_01.nii.gz")
    truth = np.asarray(image.dataobj) > 0
    prediction = spec_prediction(truth)
    spacing_mm = tuple(float(size) for size in image.header.get_zooms()[:3])
    result = surface_distances(prediction, truth, spacing_mm, tolerance_mm=1.0)
    assert result[:2] == pytest.approx((7.227, 3.922), abs=5e-4)
    assert dice_per_label(confusion_counts(prediction, truth, 2))[1] == pytest.approx(0.7907, abs=5e-5)


def test_border_voxels_are_those_of_the_erosion():
    for order in ("C", "F"):
        mask = np.asarray(blobs(8), order=order)
        np.testing.assert_array_equal(border_voxels(mask), mask ^ ndimage.binary_erosion(mask))


def test_bounding_box():
    mask = np.zeros((4, 5, 6), bool)
    assert bounding_box(mask) is None
    mask[1, 0, 2] = mask[3, 2, 2] = True
    assert bounding_box(mask) == (slice(1, 4), slice(0, 3), slice(2, 3))


@pytest.mark.parametrize(
    ("shapes", "spacing_mm", "tolerance_mm", "message"),
    [
        (((2, 3, 4), (2, 3, 5)), SPACING_MM, 1.0, r"\(2, 3, 4\) and \(2, 3, 5\)"),
        (((3, 4), (3, 4)), SPACING_MM, 1.0, r"\(3, 4\) and \(3, 4\)"),
        (((2, 3, 4), (2, 3, 4)), (1.0, 1.0), 1.0, "spacing_mm"),
        (((2, 3, 4), (2, 3, 4)), (1.0, 0.0, 1.0), 1.0, "spacing_mm"),
        (((2, 3, 4), (2, 3, 4)), (1.0, math.nan, 1.0), 1.0, "spacing_mm"),
        (((2, 3, 4), (2, 3, 4)), SPACING_MM, -1.0, "tolerance_mm"),
        (((2, 3, 4), (2, 3, 4)), SPACING_MM, math.nan, "tolerance_mm"),
    ],
)
def test_errors(shapes, spacing_mm, tolerance_mm, message):
    with pytest.raises(UserError, match=message):
        surface_distances(*(np.ones(shape) for shape in shapes), spacing_mm, tolerance_mm)
