# SPDX-License-Identifier: Apache-2.0
"""Tests of the targets against arrays written by hand, against their definition, and against reference arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from resunet_mitoem.targets import (
    MitochondriaTargetsd,
    WidenBoundariesd,
    boundary_target,
    mask_target,
    widen_boundaries,
)

GOLDEN = Path(__file__).parents[4] / "shared" / "data" / "mito" / "golden" / "targets_and_decoding.npz"
INTEGERS = pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.uint32, np.int64, np.uint64])

TOUCHING = [[[1, 1, 1, 2, 2, 0, 0], [1, 1, 1, 0, 2, 0, 3]], [[0, 0, 0, 0, 0, 0, 0], [5, 5, 5, 5, 5, 5, 5]]]
PARTED = [[[1, 1, 0, 0, 2, 0, 0], [1, 1, 0, 0, 2, 0, 3]], [[0, 0, 0, 0, 0, 0, 0], [5, 5, 5, 5, 5, 5, 5]]]


def some_labels() -> np.ndarray:
    """Rectangles on a grid with unequal axes, among them some that touch each other and the borders."""
    generator = np.random.default_rng(0)
    label = np.zeros((3, 17, 23), dtype=np.uint16)
    for instance in range(1, 25):
        z, y, x = (int(generator.integers(0, size)) for size in label.shape)
        label[z : z + 2, y : y + 5, x : x + 4] = instance
    return label


@INTEGERS
def test_widening_of_instances_that_touch(dtype):
    label = np.array(TOUCHING, dtype=dtype)
    widened = widen_boundaries(label)
    assert widened.dtype == dtype
    assert widened.tolist() == PARTED
    assert label.tolist() == TOUCHING


@INTEGERS
def test_boundary_is_a_band_on_both_sides_of_the_outline(dtype):
    label = np.zeros((2, 1, 10), dtype=dtype)
    label[0, 0, 6:] = 7
    label[1] = 7
    boundary = boundary_target(label)
    assert boundary.dtype == np.uint8
    assert boundary.tolist() == [[[0, 0, 0, 0, 1, 1, 1, 1, 0, 0]], [[0] * 10]]
    assert boundary_target(label, half_width=1)[0, 0].tolist() == [0, 0, 0, 0, 0, 1, 1, 0, 0, 0]
    assert not boundary_target(label, between_background=False).any()


@INTEGERS
def test_boundary_between_instances_alone(dtype):
    label = np.array([[[0, 0, 4, 4, 4, 9, 9, 9, 0, 0, 0]]], dtype=dtype)
    assert boundary_target(label, between_background=False).tolist() == [[[0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0]]]
    assert boundary_target(label).tolist() == [[[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0]]]


@INTEGERS
def test_the_highest_instance_of_the_type(dtype):
    highest = np.iinfo(dtype).max
    label = np.array([[[0, highest, highest, highest - 1, highest - 1, 0]]], dtype=dtype)
    assert widen_boundaries(label).tolist() == [[[0, highest, 0, 0, highest - 1, 0]]]
    alone = np.array([[[0, 0, 0, 0, highest, 0]]], dtype=dtype)
    assert widen_boundaries(alone).tolist() == alone.tolist()
    assert boundary_target(alone, half_width=1, between_background=False).tolist() == [[[0] * 6]]


def test_mask_is_where_an_instance_is():
    mask = mask_target(np.array([[[0, 300, 1]]], dtype=np.uint16))
    assert (mask.dtype, mask.tolist()) == (np.uint8, [[[0, 1, 1]]])


@pytest.mark.parametrize("between_background", [True, False])
@pytest.mark.parametrize("half_width", [1, 2, 7])
def test_boundary_is_that_of_reflected_windows(half_width, between_background):
    label = some_labels()
    padded = np.pad(label, [(0, 0), (half_width, half_width), (half_width, half_width)], mode="reflect")
    boundary = boundary_target(label, half_width, between_background)
    size = 2 * half_width + 1
    for z, y, x in np.ndindex(label.shape):
        seen = set(padded[z, y : y + size, x : x + size].flat)
        expected = len(seen) > 1 if between_background else len(seen - {0}) > 1
        assert boundary[z, y, x] == expected, (z, y, x)
    assert 0 < boundary.mean() < 1


def test_windows_wider_than_the_section():
    label = np.array([[[0], [0], [3]]])
    assert boundary_target(label, half_width=9).tolist() == [[[1], [1], [1]]]


def test_widening_twice_is_widening_once():
    once = widen_boundaries(some_labels())
    assert (once != some_labels()).any()
    np.testing.assert_array_equal(widen_boundaries(once), once)


def test_sections_do_not_see_each_other():
    label = some_labels()
    for function in (widen_boundaries, boundary_target):
        np.testing.assert_array_equal(function(label)[1:2], function(label[1:2]))


@pytest.mark.parametrize("function", [widen_boundaries, boundary_target])
@pytest.mark.parametrize("label", [np.zeros((2, 3, 4)), np.zeros((3, 4), dtype=int), np.zeros((2, 3, 4), dtype=bool)])
def test_what_is_no_label_volume(function, label):
    with pytest.raises(ValueError, match=r"must be an integer array \(D, H, W\), got "):
        function(label)


@pytest.mark.parametrize(
    "label",
    [np.array([PARTED], np.uint16), torch.tensor([PARTED]), torch.tensor([PARTED]).float()],
    ids=["array", "tensor", "float tensor"],
)
def test_transform_gives_mask_and_boundary(label):
    data = {"label": label, "image": 1}
    result = MitochondriaTargetsd("label", half_width=1)(data)
    target = result["label"]
    assert (target.dtype, target.shape) == (torch.float32, (2, 2, 2, 7))
    expected = np.array(PARTED)
    np.testing.assert_array_equal(target[0].numpy(), expected > 0)
    np.testing.assert_array_equal(target[1].numpy(), boundary_target(expected, half_width=1))
    assert result["image"] == 1
    assert data["label"] is label


def test_transform_has_the_options_of_the_boundary():
    label = some_labels()
    target = MitochondriaTargetsd("label", between_background=False)({"label": label[None]})["label"]
    np.testing.assert_array_equal(target[1].numpy(), boundary_target(label, between_background=False))


@pytest.mark.parametrize("transform", [MitochondriaTargetsd("label"), WidenBoundariesd("label")])
def test_labels_that_were_interpolated(transform):
    with pytest.raises(ValueError, match=r"must be integers, got 1\.5; interpolate labels with mode"):
        transform({"label": torch.tensor([[[[1.0, 1.5, 2.0]]]])})


def test_widening_transform_keeps_type_and_metadata():
    affine = np.diag([30.0, 8, 8, 1])
    label = MetaTensor(torch.tensor([TOUCHING]).float(), affine=torch.from_numpy(affine))
    widened = WidenBoundariesd("label")({"label": label})["label"]
    assert isinstance(widened, MetaTensor)
    assert (widened.dtype, widened.tolist()) == (torch.float32, [PARTED])
    np.testing.assert_array_equal(widened.affine, affine)
    assert label.tolist() == [TOUCHING]


@pytest.mark.skipif(not GOLDEN.is_file(), reason=f"no reference arrays in {GOLDEN}")
def test_reference_arrays():
    with np.load(GOLDEN) as reference:
        widened = widen_boundaries(reference["label"])
        np.testing.assert_array_equal(widened, reference["label_widened"])
        np.testing.assert_array_equal(mask_target(widened), reference["mask"])
        np.testing.assert_array_equal(boundary_target(widened), reference["bd_2_1"])
        np.testing.assert_array_equal(boundary_target(widened, between_background=False), reference["bd_2_0"])
