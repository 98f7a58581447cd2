# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from volseg.data.image_file import VoxelGrid, check_same_grid, grid_difference, grid_from_itk
from volseg.errors import UserError

SHAPE = (9, 7, 5)
SPACING_MM = (0.7, 0.8, 2.5)
ORIGIN_MM = (-20.5, 11.25, -300.0)
ANGLE = np.deg2rad(18)
OBLIQUE = np.array([[1, 0, 0], [0, np.cos(ANGLE), -np.sin(ANGLE)], [0, np.sin(ANGLE), np.cos(ANGLE)]])


def grid(shape=SHAPE, direction=OBLIQUE, spacing_mm=SPACING_MM, origin_mm=ORIGIN_MM) -> VoxelGrid:
    return grid_from_itk(shape, direction, spacing_mm, origin_mm)


def test_itk_counts_to_left_and_posterior():
    swapped = np.array([[0.0, -1, 0], [-1, 0, 0], [0, 0, 1]])
    expected = [[0, 0.8, 0, 20.5], [0.7, 0, 0, -11.25], [0, 0, 2.5, -300], [0, 0, 0, 1]]
    np.testing.assert_allclose(grid(direction=swapped).affine, expected)


def test_header_rounding_is_no_difference():
    assert grid_difference(grid(), grid(spacing_mm=(0.7000002, 0.8, 2.4999999))) is None
    # a tenth of the smallest voxel edge, 0.07 mm
    assert grid_difference(grid(), grid(origin_mm=(-20.5, 11.31, -300))) is None
    assert "origin" in grid_difference(grid(), grid(origin_mm=(-20.5, 11.33, -300)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shape": (7, 9, 5)}, "shape (7, 9, 5) against (9, 7, 5)"),
        ({"spacing_mm": (0.7, 0.8, 2)}, "spacing (0.7, 0.8, 2) mm against (0.7, 0.8, 2.5) mm"),
        ({"direction": np.eye(3)}, "direction (-1, 0, 0, 0, -1, 0, 0, 0, 1) against (-1, 0, 0, 0, -0.951057"),
        ({"origin_mm": (-20.5, 11.25, np.nan)}, "origin (20.5, -11.25, nan) mm against (20.5, -11.25, -300) mm"),
    ],
)
def test_the_first_difference_is_told(change: dict, words: str):
    assert words in grid_difference(grid(**change), grid())
    with pytest.raises(UserError, match=r"a_seg\.mhd: not on the grid .* of a\.mhd; remove the case"):
        check_same_grid(Path("a_seg.mhd"), grid(**change), Path("a.mhd"), grid())


def test_four_axes_are_no_grid_of_a_label():
    four = VoxelGrid((*SHAPE, 2), grid().affine)
    assert "shape (9, 7, 5, 2)" in grid_difference(four, four)
