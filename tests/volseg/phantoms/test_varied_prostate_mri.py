# SPDX-License-Identifier: Apache-2.0
"""Tests of the phantoms of all kinds of patients and scanners."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from volseg.errors import UserError
from volseg.phantoms.prostate_mri import ProstateMRI, varied_prostate_mri
from volseg.phantoms.prostate_mri.anatomy import gland_and_zone, gland_corners
from volseg.phantoms.prostate_mri.varied import draw_varied_anatomy, draw_varied_grid

SHAPE = (56, 48, 20)


@pytest.fixture(scope="module")
def cases() -> list[ProstateMRI]:
    return [varied_prostate_mri(seed, SHAPE) for seed in range(24)]


@pytest.fixture(scope="module")
def patients() -> list:
    """Anatomies and their grids, without images."""
    out = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        anatomy = draw_varied_anatomy(rng)
        out.append((anatomy, draw_varied_grid(anatomy, (112, 96, 26), rng)))
    return out


def test_types_and_one_gland_without_holes(cases):
    for case in cases:
        assert (case.image.dtype, case.label.dtype) == (np.int16, np.uint8)
        assert sorted(case.image.shape) == sorted(case.label.shape) == sorted(SHAPE)
        assert case.image.min() >= 0 and np.ptp(case.image) > 30
        assert set(np.unique(case.label)) == {0, 1}
        assert ndimage.label(case.label)[1] == 1
        np.testing.assert_array_equal(ndimage.binary_fill_holes(case.label), case.label > 0)


def test_same_seed_same_bytes(cases):
    again = varied_prostate_mri(5, SHAPE)
    assert again.image.tobytes() == cases[5].image.tobytes() != cases[6].image.tobytes()
    assert again.label.tobytes() == cases[5].label.tobytes()
    assert again.affine.tobytes() == cases[5].affine.tobytes()


def test_grey_values_span_two_decades_between_scans(cases):
    bright = np.array([np.percentile(case.image, 97) for case in cases])
    assert bright.max() > 50 * bright.min()


def test_no_grey_value_of_the_gland_is_typical(cases):
    """Darker than most of the scan in some cases, brighter in others."""
    rank = [np.mean(c.image < np.median(c.image[c.label > 0])) for c in cases]
    assert min(rank) < 0.45 and max(rank) > 0.75


def test_fields_of_view_and_slices_are_those_of_scanners(patients):
    wide = np.array([grid.spacing[0] * 112 for _, grid in patients])
    thick = np.array([grid.spacing[2] for _, grid in patients])
    assert wide.min() < 110 and 210 < wide.max() < 240
    assert thick.min() < 2.2 and 3.5 < thick.max() <= 4.5
    assert draw_varied_grid(patients[0][0], (64, 64, 100), np.random.default_rng(0)).spacing[2] < 1.2


def test_the_gland_lies_in_the_field_of_view(cases):
    cut = 0
    for case in cases:
        label = np.asarray(nib.as_closest_canonical(nib.Nifti1Image(case.label, case.affine)).dataobj)
        inside = label[1:-1, 1:-1, 1:-1]
        cut += inside.sum() < label.sum()
    assert cut <= 2


def test_patients_are_of_all_kinds(patients):
    anatomies = [a for a, _ in patients]
    volume_ml = np.array([4 / 3 * np.pi * np.prod(a.half) / 1000 for a in anatomies])
    assert volume_ml.min() < 18 and volume_ml.max() > 180
    assert 40 < np.median(volume_ml) < 60
    assert 0.2 < np.mean([a.coil for a in anatomies]) < 0.4
    assert all((len(a.balloon) >= 2) == a.coil for a in anatomies)
    assert 0.15 < np.mean([a.lobe is not None for a in anatomies]) < 0.5
    dark = [a.tissue["fat"] < a.tissue["muscle"] for a in anatomies]
    assert 0.05 < np.mean(dark) < 0.3


def test_a_lobe_is_part_of_the_gland_and_of_its_box(patients):
    anatomy = next(a for a, _ in patients if a.lobe is not None)
    top = np.add(anatomy.lobe.centre, (0, 0, anatomy.lobe.axes[2] - 1.5))
    x, y, z = (np.float32(v).reshape(1, 1, 1) for v in top)
    with_lobe, _ = gland_and_zone(anatomy, x, y, z)
    without, _ = gland_and_zone(replace(anatomy, lobe=None), x, y, z)
    assert with_lobe.item() < without.item()
    low, high = gland_corners(anatomy)
    assert (low < top).all() and (top < high).all()


def test_errors_name_what_was_received():
    with pytest.raises(UserError, match=r"got \(8, 64, 64\)"):
        varied_prostate_mri(0, (8, 64, 64))
