# SPDX-License-Identifier: Apache-2.0
"""Tests of the elastic deformation in the plane of the sections."""

from __future__ import annotations

import math

import pytest
import torch

from volseg.transforms.sections.in_plane import RandInPlaneElasticd, pixel_positions


def displacement(size, **arguments):
    elastic = RandInPlaneElasticd("image", prob=1.0, **arguments).set_random_state(0)
    elastic.randomize((1, *size))
    return elastic.positions - pixel_positions(size)


@pytest.mark.parametrize(("alpha", "sigma"), [(16.0, 4.0), (30.0, 2.5)])
def test_displacements_have_the_standard_deviation_that_the_docstring_says(alpha, sigma):
    field = displacement((300, 270), alpha_pixels=alpha, sigma_pixels=sigma)
    expected = alpha / (math.sqrt(12 * math.pi) * sigma)
    assert field.mean().abs() < 0.1 * expected
    for component in field:
        assert component.std().item() == pytest.approx(expected, rel=0.07)
    # as strong at the border, where mirrored noise would be up to 1.4 times as strong
    assert field[:, [0, -1]].std().item() == pytest.approx(expected, rel=0.25)


def test_neighbours_correlate_as_the_gaussian_says():
    y, x = displacement((300, 270))
    for distance in (2, 6):
        expected = math.exp(-(distance**2) / (4 * 4.0**2))
        assert ((y[distance:] * y[:-distance]).mean() / y.square().mean()).item() == pytest.approx(expected, abs=0.06)
    assert abs((y * x).mean() / y.square().mean()) < 0.1


def test_the_margin_is_six_standard_deviations():
    assert RandInPlaneElasticd("image").margin_pixels((256, 320)) == (4, 4)
    assert displacement((300, 270)).abs().max() < 4


def test_one_field_moves_all_sections():
    section = torch.rand(1, 1, 20, 27, generator=torch.Generator().manual_seed(0))
    elastic = RandInPlaneElasticd("image", alpha_pixels=40.0, prob=1.0).set_random_state(1)
    after = elastic({"image": section.expand(1, 3, 20, 27)})["image"]
    assert torch.equal(after[:, :1], after[:, 1:2]) and torch.equal(after[:, :1], after[:, 2:])
    assert not torch.allclose(after[:, :1], section, atol=0.1)
