# SPDX-License-Identifier: Apache-2.0
"""Tests of chest CTs painted on lobe maps."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch

from volseg.errors import UserError
from volseg.phantoms.geometry import Grid
from volseg.phantoms.painted_ct.lobe_map import Patient, lobe_map, read_lobe_map
from volseg.phantoms.painted_ct.painting import _between, _drop_remains, paint_chest_ct
from volseg.phantoms.painted_ct.scanner import _thick

SPACING = np.array([4.0, 5.0, 4.0])


def blocks() -> np.ndarray:
    """Lobes as blocks along R, A, S, the left ones at low x."""
    label = np.zeros((60, 34, 56), np.uint8)
    label[4:24, 4:30, 26:50] = 1
    label[4:24, 4:30, 4:26] = 2
    label[36:56, 4:30, 34:50] = 3
    label[36:56, 18:30, 18:34] = 4
    label[36:56, 4:18, 4:34] = 5
    return label


@pytest.fixture(scope="module")
def lungs():
    return lobe_map(blocks(), SPACING)


@pytest.fixture(scope="module")
def painted(lungs):
    patient = Patient(lungs, np.random.default_rng(1), strength=0)
    grid = Grid((64, 50, 60), np.array([4.0, 4.5, 5.0]), np.zeros(3))
    return patient, grid, paint_chest_ct(patient, grid, np.random.default_rng(2), sick=0)


def test_shares_of_an_undeformed_patient_are_the_map(lungs):
    patient = Patient(lungs, np.random.default_rng(0), strength=0)
    x, y, z = (np.arange(-h + 1, h, 8.0) for h in patient.half_mm)
    expected = lungs.shares[:, ::4, ::4, ::4].numpy()
    np.testing.assert_allclose(patient.shares(x, y, z), expected[:, : len(x), : len(y), : len(z)], atol=1e-3)
    assert lungs.half_size_mm[0] == pytest.approx((52 * 4 + 2 * 16) / 2, abs=2)


def test_sides_are_never_mirrored(lungs):
    for seed in range(6):
        patient = Patient(lungs, np.random.default_rng(seed))
        x, y, z = (np.arange(-h, h, 8.0) for h in patient.half_mm)
        shares = patient.shares(x, y, z)
        left, right = ((part.sum(axis=(0, 2, 3)) * x).sum() for part in (shares[:2], shares[2:]))
        assert left < 0 < right


def test_lungs_are_dark_in_a_body_and_the_same_draw_gives_the_same_picture(painted):
    patient, grid, (hu, label) = painted
    assert hu.shape == label.shape == grid.shape
    assert sorted(np.unique(label)) == [0, 1, 2, 3, 4, 5]
    assert -940 < np.median(hu[label > 0]) < -600
    assert np.median(hu[30:34, 20:30, 20:40]) > -150  # between the lungs
    again = paint_chest_ct(patient, grid, np.random.default_rng(2), sick=0)
    np.testing.assert_array_equal(hu, again[0])
    np.testing.assert_array_equal(label, again[1])


def test_volumes_of_lobes_survive_the_painting(painted):
    _, grid, (_, label) = painted
    found = np.bincount(label.ravel())[1:] * np.prod(grid.spacing)
    expected = np.bincount(blocks().ravel())[1:] * np.prod(SPACING)
    np.testing.assert_allclose(found, expected, rtol=0.1)  # corners are rounded, voxels are 5 mm


def test_distance_to_a_fissure():
    edge = torch.distributions.Normal(0, 2.0)
    away = torch.tensor([-3.0, -1.0, 0.0, 2.0])
    second = edge.cdf(away).numpy()
    np.testing.assert_allclose(_between(second, 1 - second, 2.0), away, atol=1e-2)
    assert _between(np.float32([0.1]), np.float32([0.2]), 2.0) == [1e3]  # beside the lungs


def test_thick_slices_average_along_z():
    hu = np.zeros((1, 1, 40), np.float32)
    hu[..., 20] = 100
    thick = _thick(hu, 5, np.random.default_rng(0))
    assert thick.max() <= 100 / 5 * 1.01
    np.testing.assert_allclose(_thick(np.full_like(hu, 7), 5, np.random.default_rng(0)), 7, rtol=1e-5)


def test_map_without_a_lobe_is_refused(tmp_path):
    label = blocks()
    label[label == 4] = 0
    nib.save(nib.Nifti1Image(label, np.diag([*SPACING, 1])), tmp_path / "map.nii.gz")
    with pytest.raises(UserError, match=r"map.nii.gz: a lobe map must hold the labels 0 to 5, got \[0, 1, 2, 3, 5\]"):
        read_lobe_map(tmp_path / "map.nii.gz")


def test_what_is_left_of_a_lobe_is_no_lobe():
    """Voxels of 80 mm³: 40 of them are 3.2 ml, 37 are 2.96 ml."""
    lobes = np.zeros((10, 9, 8), np.uint8)
    lobes.ravel()[:40], lobes.ravel()[40:77], lobes.ravel()[77:300] = 1, 2, 3
    _drop_remains(lobes, Grid(lobes.shape, SPACING, np.zeros(3)))
    assert np.bincount(lobes.ravel()).tolist() == [720 - 40 - 223, 40, 0, 223]
