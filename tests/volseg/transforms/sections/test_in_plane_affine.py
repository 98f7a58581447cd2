# SPDX-License-Identifier: Apache-2.0
"""Tests of the rotation and rescaling in the plane of the sections."""

from __future__ import annotations

import math

import pytest
import torch

from volseg.transforms.sections.in_plane import RandInPlaneAffined, linear_positions, rotation_matrix

SIZE = (2, 9, 12)


def drawn(count, size=SIZE, **arguments):
    """The linear parts of the draws, and how often there was none."""
    affine = RandInPlaneAffined("image", **arguments).set_random_state(0)
    middle_y, middle_x = size[1] // 2, size[2] // 2
    matrices, idle = [], 0
    for _ in range(count):
        affine.randomize(size)
        if not affine._do_transform:
            idle += 1
            continue
        p = affine.positions
        step_y = p[:, middle_y, middle_x] - p[:, middle_y - 1, middle_x]
        step_x = p[:, middle_y, middle_x] - p[:, middle_y, middle_x - 1]
        matrices.append(torch.stack([step_y, step_x], dim=1))
        torch.testing.assert_close(p, linear_positions(matrices[-1], size[1:]), rtol=0, atol=1e-9)
    return torch.stack(matrices), idle


def test_rotations_have_any_angle():
    matrices, idle = drawn(400, rotation_prob=1.0, rescale_prob=0.0)
    assert idle == 0
    torch.testing.assert_close(matrices @ matrices.mT, torch.eye(2).double().expand(400, 2, 2), rtol=0, atol=1e-9)
    torch.testing.assert_close(torch.linalg.det(matrices), torch.ones(400).double())
    angles = torch.atan2(matrices[:, 1, 0], matrices[:, 0, 0])
    assert torch.histc(angles, 8, -math.pi, math.pi).min() > 30


def test_scales_are_drawn_for_each_axis():
    matrices, _ = drawn(400, rotation_prob=0.0, rescale_prob=1.0)
    assert matrices[:, 0, 1].abs().max() < 1e-9 and matrices[:, 1, 0].abs().max() < 1e-9
    scales = 1 / matrices.diagonal(dim1=1, dim2=2)
    assert 0.8 <= scales.min() < 0.81 and 1.19 < scales.max() <= 1.2
    assert abs(torch.corrcoef(scales.T)[0, 1]) < 0.15


def test_scaling_comes_before_the_rotation():
    matrices, _ = drawn(50, rotation_prob=1.0, rescale_prob=1.0)
    # from the result back: the inverse of the scaling after that of the rotation leaves rows at right angles
    assert (matrices[:, 0] * matrices[:, 1]).sum(dim=1).abs().max() < 1e-9
    lengths = 1 / matrices.norm(dim=2)
    assert lengths.min() >= 0.8 and lengths.max() <= 1.2
    assert (lengths[:, 0] - lengths[:, 1]).abs().max() > 0.2


def test_both_have_their_own_probability():
    matrices, idle = drawn(1000, rotation_prob=0.5, rescale_prob=0.2)
    is_rotated = matrices[:, 0, 1].abs() > 1e-9
    is_scaled = (matrices.norm(dim=2) - 1).abs().amax(dim=1) > 1e-9
    assert idle / 1000 == pytest.approx(0.4, abs=0.05)
    assert is_rotated.sum() / 1000 == pytest.approx(0.5, abs=0.05)
    assert is_scaled.sum() / 1000 == pytest.approx(0.2, abs=0.05)
    assert (is_rotated & is_scaled).sum() / 1000 == pytest.approx(0.1, abs=0.03)


def test_larger_scales_enlarge():
    mask = torch.zeros(1, 1, 40, 50)
    mask[:, :, 15:25, 15:35] = 1
    affine = RandInPlaneAffined("image", rotation_prob=0.0, rescale_prob=1.0, scale_range=(1.5, 1.5))
    after = affine({"image": mask})["image"]
    assert after.sum().item() == pytest.approx(1.5**2 * mask.sum().item(), rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "size", "margin"),
    [
        ({}, (256, 256), (98, 98)),
        ({"rotation_prob": 0.0}, (256, 320), (32, 40)),
        ({"rescale_prob": 0.0}, (256, 256), (53, 53)),
        ({"rescale_prob": 0.0}, (31, 41), (10, 5)),
        ({"rotation_prob": 0.0, "scale_range": (1.0, 1.3)}, (64, 80), (0, 0)),
    ],
)
def test_margins(arguments, size, margin):
    assert RandInPlaneAffined("image", **arguments).margin_pixels(size) == margin


def test_the_margin_is_reached():
    affine = RandInPlaneAffined("image")
    margin_y, margin_x = affine.margin_pixels((33, 33))
    size = (33 + 2 * margin_y, 33 + 2 * margin_x)
    y, _ = linear_positions(rotation_matrix(math.pi / 4) / 0.8, size)[:, margin_y:-margin_y, margin_x:-margin_x]
    assert 0 <= y.min() < 1
