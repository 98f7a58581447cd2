# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from itertools import permutations
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from volseg.phantoms.chest_ct import LOBES, ORIENTATIONS, ChestCT, chest_ct

REAL_LOBES = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "lung" / "ts_lobe_labels_1p5mm"
SHAPE, SEEDS = (72, 64, 56), range(6)


@pytest.fixture(scope="module")
def cases() -> list[ChestCT]:
    return [chest_ct(seed, SHAPE) for seed in SEEDS]


def volume_l(label: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Litres of the five lobes."""
    return np.bincount(label.ravel(), minlength=6)[1:6] * abs(np.linalg.det(affine[:3, :3])) * 1e-6


def centroids(case: ChestCT) -> np.ndarray:
    """Centres of the lobes (5, 3) in RAS mm."""
    index = np.array([np.argwhere(case.label == lobe).mean(axis=0) for lobe in LOBES])
    return nib.affines.apply_affine(case.affine, index)


def dice_of_best_assignment(pieces: np.ndarray, label: np.ndarray) -> float:
    """Mean Dice of the five lobes, each given a piece of its own so that the mean is largest."""
    size, lobe = np.bincount(pieces.ravel()), np.bincount(label.ravel(), minlength=6)
    keep = np.argsort(size[1:])[::-1][:5] + 1
    scores = np.zeros((5, 5))
    for j, piece in enumerate(keep):
        shared = np.bincount(label[pieces == piece], minlength=6)
        scores[:, j] = 2 * shared[1:] / (lobe[1:] + size[piece])
    return max(scores[range(5), order].mean() for order in permutations(range(5)))


def test_types_and_shapes():
    case = chest_ct(11, (40, 50, 60), (8.0, 7.0, 6.0))
    assert case.image.shape == case.label.shape == (40, 50, 60)
    assert (case.image.dtype, case.label.dtype) == (np.int16, np.uint8)
    assert case.affine.dtype == np.float64
    np.testing.assert_allclose(np.linalg.norm(case.affine[:3, :3], axis=0), (8, 7, 6))
    rotation = case.affine[:3, :3] / (8, 7, 6)
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(3), atol=1e-9)


def test_same_seed_same_bytes():
    first, again, other = chest_ct(4, (40, 32, 36)), chest_ct(4, (40, 32, 36)), chest_ct(5, (40, 32, 36))
    assert first.image.tobytes() == again.image.tobytes()
    assert first.label.tobytes() == again.label.tobytes()
    assert first.affine.tobytes() == again.affine.tobytes()
    assert first.image.tobytes() != other.image.tobytes()
    assert first.label.tobytes() != other.label.tobytes()


def test_every_lobe_is_one_piece(cases):
    for case in cases:
        for lobe in LOBES:
            assert ndimage.label(case.label == lobe)[1] == 1


def test_lobes_are_lung(cases):
    for case in cases:
        inside = case.image[case.label > 0]
        assert -950 < np.median(inside) < -650
        assert np.mean(inside < -400) > 0.9
        # What is as dark as lung but outside it: air around the body, windpipe, bowel.
        assert set(np.unique(case.label)) == {0, 1, 2, 3, 4, 5}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_sides_and_order_in_every_orientation(orientation):
    case = chest_ct(7, (36, 40, 44), orientation=orientation)
    assert "".join(nib.aff2axcodes(case.affine)) == orientation
    lul, lll, rul, rml, rll = centroids(case)
    assert max(lul[0], lll[0]) + 50 < min(rul[0], rml[0], rll[0])
    assert lul[2] > lll[2] + 20
    assert rul[2] > max(rml[2], rll[2]) + 20
    assert lul[1] > lll[1]
    assert rml[1] > rll[1] + 20


def test_stored_axes_change_nothing_but_the_order():
    straight, turned = chest_ct(3, (40, 36, 44), orientation="RAS"), chest_ct(3, (44, 36, 40), orientation="IPR")
    np.testing.assert_array_equal(turned.label[::-1, ::-1].transpose(2, 1, 0), straight.label)
    np.testing.assert_array_equal(turned.image[::-1, ::-1].transpose(2, 1, 0), straight.image)
    corner = nib.affines.apply_affine(turned.affine, (43, 35, 0))
    np.testing.assert_allclose(corner, straight.affine[:3, 3], atol=1e-9)


def test_neighbouring_lobes_look_alike(cases):
    for case in cases:
        for first, second in ((1, 2), (3, 4), (4, 5), (3, 5)):
            a, b = (np.sort(case.image[case.label == lobe]) for lobe in (first, second))
            grid = np.linspace(-1100, 100, 200)
            distance = np.abs(np.searchsorted(a, grid) / a.size - np.searchsorted(b, grid) / b.size).max()
            # The best single threshold between two lobes is little better than chance.
            assert distance < 0.45


@pytest.mark.parametrize("opened", [False, True])
def test_threshold_and_components_do_not_find_lobes(cases, opened):
    scores, covered = [], []
    for case in cases:
        turn = nib.io_orientation(case.affine)
        image, label = (nib.orientations.apply_orientation(v, turn) for v in (case.image, case.label))
        # Air around the body touches the sides; the windpipe may touch the top.
        pieces, _ = ndimage.label(image < -500)
        outside = np.unique(np.concatenate([pieces[_face(a, i)].ravel() for a in (0, 1) for i in (0, -1)]))
        air = ~np.isin(pieces, [0, *outside])
        pieces, _ = ndimage.label(ndimage.binary_opening(air) if opened else air)
        scores.append(dice_of_best_assignment(pieces, label))
        covered.append(np.mean(pieces[label > 0] > 0))
    assert np.mean(covered) > 0.8  # the baseline does find the lungs
    assert max(scores) < 0.6


def _face(axis: int, index: int) -> tuple:
    return tuple(index if i == axis else slice(None) for i in range(3))


def test_fissures_are_drawn_in_part(cases):
    drawn = np.array([case.fissure_visible for case in cases])
    assert (drawn > 0.2).all() and (drawn < 1).all()
    assert drawn.std() > 0.02


def test_fissures_are_faint_ridges():
    case = chest_ct(2, (160, 120, 96), orientation="RAS")
    upper, lower = case.label == 1, case.label == 2
    near, three, four = (ndimage.binary_dilation(upper, iterations=k) for k in (1, 3, 4))
    contrast = np.median(case.image[near & lower]) - np.median(case.image[four & ~three & lower])
    assert 3 < contrast < 150


def test_orientation_spacing_and_shape_vary():
    drawn = [chest_ct(seed, (24, 28, 20)) for seed in range(20, 32)]
    assert len({nib.aff2axcodes(c.affine) for c in drawn}) > 3
    assert len({tuple(np.linalg.norm(c.affine[:3, :3], axis=0).round(6)) for c in drawn}) == len(drawn)
    oblique = [np.count_nonzero(np.abs(c.affine[:3, :3]) > 1e-9) > 3 for c in drawn]
    assert any(oblique) and not all(oblique)


def test_shape_follows_the_spacing():
    case = chest_ct(1, spacing_mm=(6.0, 7.0, 5.0), orientation="LPS")
    size_mm = np.array(case.label.shape) * (6, 7, 5)
    assert (size_mm > 200).all() and (size_mm < 700).all()
    assert volume_l(case.label, case.affine).sum() > 1.3


def test_lungs_are_not_cut(cases):
    for case in cases:
        for axis in range(3):
            assert not case.label[_face(axis, 0)].any()
            assert not case.label[_face(axis, -1)].any()


def test_volumes_are_human(cases):
    volumes = np.array([volume_l(case.label, case.affine) for case in cases])
    share = volumes / volumes.sum(axis=1, keepdims=True)
    assert (volumes.sum(axis=1) > 1.2).all() and (volumes.sum(axis=1) < 8).all()
    assert (share[:, 3] < share[:, [0, 1, 2, 4]].min(axis=1)).mean() > 0.7
    assert (share > 0.03).all() and (share < 0.35).all()


@pytest.mark.skipif(not REAL_LOBES.is_dir(), reason=f"no lobe maps of patients in {REAL_LOBES}")
def test_volumes_and_places_match_patients(cases):
    real, places = [], []
    for path in sorted(REAL_LOBES.glob("*.nii.gz")):
        loaded = nib.as_closest_canonical(nib.load(path))
        coarse, affine = np.rint(loaded.get_fdata()[::3, ::3, ::3]).astype(np.uint8), loaded.affine.copy()
        affine[:3, :3] *= 3
        real.append(volume_l(coarse, affine))
        places.append(_relative_places(ChestCT(coarse, coarse, affine, 0)))
    ours = np.array([volume_l(case.label, case.affine) for case in cases])
    real = np.array(real)
    low, high = real.sum(axis=1).min(), real.sum(axis=1).max()
    assert low < np.median(ours.sum(axis=1)) < high
    share, target = (v / v.sum(axis=1, keepdims=True) for v in (ours, real))
    np.testing.assert_allclose(share.mean(axis=0), target.mean(axis=0), atol=0.05)
    np.testing.assert_allclose(np.mean([_relative_places(c) for c in cases], 0), np.mean(places, 0), atol=0.08)


def _relative_places(case: ChestCT) -> np.ndarray:
    """Centres of the lobes (5, 3) as fractions of the box around both lungs, in R, A, S order."""
    points = nib.affines.apply_affine(case.affine, np.argwhere(case.label > 0))
    low, high = points.min(axis=0), points.max(axis=0)
    return (centroids(case) - low) / (high - low)


def test_errors_name_what_was_received():
    with pytest.raises(ValueError, match=r"\(8, 64, 64\)"):
        chest_ct(0, (8, 64, 64))
    with pytest.raises(ValueError, match=r"-1"):
        chest_ct(0, (64, 64, 64), (1.0, -1.0, 2.0))
    for wrong in ("RAX", "RLS", "RA", "ras"):
        with pytest.raises(ValueError, match=wrong):
            chest_ct(0, (64, 64, 64), orientation=wrong)
