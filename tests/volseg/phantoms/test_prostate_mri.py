# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from volseg.errors import UserError
from volseg.phantoms.prostate_mri import ORIENTATIONS, ProstateMRI, prostate_label, prostate_mri

REAL_GLANDS = Path(__file__).parents[4] / "shared" / "data" / "prostate" / "msd_task05_labels"
SHAPE, SEEDS = (96, 80, 24), range(14)
SEEDS_WITH_AIR = (0, 1, 12)
CROP_MM = np.array([128, 128, 96])


@pytest.fixture(scope="module")
def cases() -> list[ProstateMRI]:
    return [prostate_mri(seed, SHAPE) for seed in SEEDS]


@pytest.fixture(scope="module")
def glands() -> np.ndarray:
    """Facts of 150 glands, see ``facts``."""
    return np.array([facts(*prostate_label(seed, (72, 80, 24))) for seed in range(150)])


def facts(label: np.ndarray, affine: np.ndarray) -> list[float]:
    """Volume in ml, extents along R, A, S and offset of the centre from the image's centre in mm; axes are R, A, S."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    index = np.argwhere(label)
    extent = (np.ptp(index, axis=0) + 1) * spacing
    offset = (index.mean(axis=0) - (np.array(label.shape) - 1) / 2) * spacing
    return [len(index) * spacing.prod() / 1000, *extent, *offset]


def in_body_axes(case: ProstateMRI) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, label and spacing with axes nearest R, A, S."""
    pair = [nib.as_closest_canonical(nib.Nifti1Image(v, case.affine)) for v in (case.image, case.label)]
    return np.asarray(pair[0].dataobj), np.asarray(pair[1].dataobj), np.linalg.norm(pair[0].affine[:3, :3], axis=0)


def best_threshold_dice(image: np.ndarray, label: np.ndarray, bins: int = 100) -> float:
    """Dice of the best of all intervals between two of ``bins`` levels from percentile 0.5 to percentile 99.5."""
    low, high = np.percentile(image, (0.5, 99.5))
    level = np.clip((image - low) / (high - low) * bins, 0, bins - 1).astype(int)
    below = [np.append(0, np.cumsum(np.bincount(v.ravel(), minlength=bins))) for v in (level, level[label > 0])]
    i, j = np.triu_indices(bins + 1, 1)
    return float((2 * (below[1][j] - below[1][i]) / (below[0][j] - below[0][i] + label.sum())).max())


def test_types_and_ranges(cases):
    for case in cases:
        assert (case.image.dtype, case.label.dtype, case.affine.dtype) == (np.int16, np.uint8, np.float64)
        assert case.image.shape == case.label.shape
        assert sorted(case.image.shape) == sorted(SHAPE)
        assert case.image.min() >= 0
        assert set(np.unique(case.label)) == {0, 1}


def test_same_seed_same_bytes():
    first, again, other = (prostate_mri(seed, (32, 40, 20)) for seed in (4, 4, 5))
    for name in ("image", "label", "affine"):
        assert getattr(first, name).tobytes() == getattr(again, name).tobytes()
        assert getattr(first, name).tobytes() != getattr(other, name).tobytes()


def test_shape_runs_right_front_up():
    for seed in range(10):
        case = prostate_mri(seed, (36, 44, 20))
        axes = nib.io_orientation(case.affine)[:, 0].astype(int)
        assert case.image.shape == tuple(np.array((36, 44, 20))[axes])
        assert case.label.shape == case.image.shape


def test_geometry(cases):
    for case in cases:
        *_, spacing = in_body_axes(case)
        np.testing.assert_allclose(spacing[0], spacing[1])
        assert 160 <= spacing[0] * 96 <= 220
        assert 60 <= spacing[2] * 24 <= 96
        rotation = case.affine[:3, :3] / np.linalg.norm(case.affine[:3, :3], axis=0)
        np.testing.assert_allclose(rotation.T @ rotation, np.eye(3), atol=1e-9)
        # Oblique by at most 20 degrees.
        assert np.sort(np.abs(rotation).max(axis=0))[0] > np.cos(np.deg2rad(20))
        np.testing.assert_array_equal(case.affine[3], (0, 0, 0, 1))


def test_orientation_tilt_and_scale_vary(cases):
    codes = {"".join(nib.aff2axcodes(case.affine)) for case in cases}
    assert len(codes) > 3
    assert codes <= set(ORIENTATIONS)
    tilted = [np.count_nonzero(np.abs(case.affine[:3, :3]) > 1e-9) > 3 for case in cases]
    assert any(tilted) and not all(tilted)
    bright = np.array([np.percentile(case.image, 99) for case in cases])
    assert (bright > 250).all() and (bright < 2800).all()
    assert bright.max() > 3 * bright.min()


def test_gland_is_one_piece_without_holes():
    for seed in range(30):
        label, _ = prostate_label(seed, (56, 48, 18))
        assert ndimage.label(label)[1] == 1
        np.testing.assert_array_equal(ndimage.binary_fill_holes(label), label > 0)


def test_label_alone_is_the_label_of_the_image(cases):
    for seed in (0, 3):
        label, affine = prostate_label(seed, SHAPE)
        _, stored, spacing = in_body_axes(cases[seed])
        np.testing.assert_array_equal(label, stored)
        np.testing.assert_allclose(np.diag(affine)[:3], spacing)
        # Without tilt and shift the gland lies around the origin.
        assert np.abs(nib.affines.apply_affine(affine, np.argwhere(label)).mean(axis=0)).max() < 12


def test_shape_does_not_depend_on_the_grid():
    coarse, fine = (facts(*prostate_label(2, shape)) for shape in ((64, 64, 20), (160, 160, 20)))
    assert coarse[0] == pytest.approx(fine[0], rel=0.03)
    np.testing.assert_allclose(coarse[1:4], fine[1:4], atol=4)


def test_gland_lies_in_the_middle_and_is_not_cut(glands):
    assert (np.abs(glands[:, 4:]) + glands[:, 1:4] / 2 < CROP_MM / 2 + 5).all()
    for seed in range(40):
        label, affine = prostate_label(seed, (72, 80, 24))
        spacing, index = np.diag(affine)[:3], np.argwhere(label)
        assert (index.min(axis=0) > 0).all() and (index.max(axis=0) < np.array(label.shape) - 1).all()
        centre = (np.array(label.shape) - 1) / 2
        assert (np.abs(index - centre) * spacing <= CROP_MM / 2).all()


def test_threshold_does_not_find_the_gland(cases):
    scores = []
    for case in cases:
        image, label, spacing = in_body_axes(case)
        size = np.minimum(np.ceil(CROP_MM / spacing).astype(int), image.shape)
        box = tuple(slice((n - m) // 2, (n + m) // 2) for n, m in zip(image.shape, size, strict=True))
        scores.append(best_threshold_dice(image[box], label[box]))
    assert max(scores) < 0.45
    assert np.mean(scores) < 0.33


def test_zones_and_neighbours(cases):
    """A bright peripheral zone behind a dark transition zone, and urine above the gland."""
    ratio, above = [], []
    for case in cases:
        image, label, spacing = in_body_axes(case)
        x, y, _ = np.rint(np.argwhere(label).mean(axis=0)).astype(int)
        depth = ndimage.distance_transform_edt(label, sampling=spacing)
        rim = (depth > 1) & (depth < 5)
        rim[:, y - round(6 / spacing[1]) :] = False
        core = depth > 0.6 * depth.max()
        ratio.append(np.median(image[rim]) / np.median(image[core]))
        above.append(image[x, y : y + round(20 / spacing[1]), -1].max() / np.median(image))
    assert np.median(ratio) > 1.3
    assert np.median(above) > 1.2


@pytest.mark.parametrize("seed", SEEDS_WITH_AIR)
def test_air_holds_the_noise_of_a_magnitude_image(seed):
    """Rician noise without signal: mean / standard deviation is sqrt(pi / (4 - pi)) = 1.91."""
    image, _, _ = in_body_axes(prostate_mri(seed, (64, 72, 20)))
    air = image[:6, -3:].astype(float)  # beside the belly
    assert air.mean() < 0.2 * np.median(image)
    assert np.mean(air > 0) > 0.95
    assert air.mean() / air.std() == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), rel=0.1)


@pytest.mark.skipif(not REAL_GLANDS.is_dir(), reason=f"no prostate masks of patients in {REAL_GLANDS}")
def test_sizes_and_places_match_patients(glands):
    real = []
    for path in sorted(REAL_GLANDS.glob("*.nii.gz")):
        loaded = nib.as_closest_canonical(nib.load(path))
        real.append(facts(np.rint(loaded.get_fdata()) > 0, loaded.affine))
    ours, target = glands, np.array(real)
    assert np.median(ours[:, 0]) == pytest.approx(np.median(target[:, 0]), rel=0.15)
    assert np.log(ours[:, 0]).std() == pytest.approx(np.log(target[:, 0]).std(), rel=0.2)
    np.testing.assert_allclose(np.median(ours[:, 1:4], 0), np.median(target[:, 1:4], 0), rtol=0.07)
    for quantile in (0.1, 0.9):
        bands = (np.quantile(v[:, 1:4], quantile, axis=0) for v in (ours, target))
        np.testing.assert_allclose(*bands, rtol=0.15)
    assert (ours[:, :4].min(0) > 0.75 * target[:, :4].min(0)).all()
    assert (ours[:, :4].max(0) < 1.2 * target[:, :4].max(0)).all()
    np.testing.assert_allclose(np.median(ours[:, 4:], 0), np.median(target[:, 4:], 0), atol=2)
    np.testing.assert_allclose(ours[:, 4:].std(0), target[:, 4:].std(0), rtol=0.4)
    assert np.abs(ours[:, 4:]).max() < 20
    # Extents grow together.
    pairs = [np.corrcoef(np.log(v[:, :4]).T)[0, 1:] for v in (ours, target)]
    np.testing.assert_allclose(*pairs, atol=0.12)


@pytest.mark.parametrize("shape", [(8, 64, 64), (64, 64), (64, 64, 15)])
def test_errors_name_what_was_received(shape):
    with pytest.raises(UserError, match=rf"got \({shape[0]}, {shape[1]}"):
        prostate_mri(0, shape)
