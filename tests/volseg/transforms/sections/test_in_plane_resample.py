# SPDX-License-Identifier: Apache-2.0
"""Tests of the in-plane resampling and of what its transforms have in common."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import ScaleIntensityd
from scipy.ndimage import map_coordinates

from volseg.transforms.sections.in_plane import (
    RandInPlaneAffined,
    RandInPlaneElasticd,
    RandMisalignmentd,
    RandSectionFlipsd,
    linear_positions,
    pixel_positions,
    resample_in_plane,
    rotation_matrix,
    size_with_margins,
)

KEYS = ("image", "label")
SIZE = (3, 21, 26)
CERTAIN = {
    "misalignment": lambda: RandMisalignmentd(KEYS, "label", max_shift_pixels=5, prob=1.0),
    "elastic": lambda: RandInPlaneElasticd(KEYS, "label", alpha_pixels=60.0, prob=1.0),
    "affine": lambda: RandInPlaneAffined(KEYS, "label", rotation_prob=1.0, rescale_prob=1.0),
    "flips": lambda: RandSectionFlipsd(KEYS, "label", prob=1.0),
}
NEVER = {
    "misalignment": lambda: RandMisalignmentd(KEYS, "label", prob=0.0),
    "elastic": lambda: RandInPlaneElasticd(KEYS, "label", prob=0.0),
    "affine": lambda: RandInPlaneAffined(KEYS, "label", rotation_prob=0.0, rescale_prob=0.0),
    "flips": lambda: RandSectionFlipsd(KEYS, "label", prob=0.0),
}


def case(size=SIZE):
    """Noise, and large ids in blocks of 4 by 5 pixels that differ from section to section."""
    image = torch.rand(1, *size, generator=torch.Generator().manual_seed(0))
    z, y, x = torch.meshgrid(*(torch.arange(n) for n in size), indexing="ij")
    return {"image": image, "label": (2**31 - 1 - (z * 10000 + y // 4 * 100 + x // 5)).int()[None]}


def random_positions(shape=(2, 5, 9), reach=60.0):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 0.5) * 2 * reach


@pytest.mark.parametrize("size", [SIZE, (2, 1, 7), (1, 6, 1)])
def test_linear_equals_scipy_inside_and_far_outside(size):
    volume, positions = case(size)["image"], random_positions()
    moved = resample_in_plane(volume, positions, nearest=False)
    assert moved.shape == (1, size[0], 5, 9) and moved.dtype == torch.float32
    # SciPy says mirror of what NumPy and PyTorch call reflect
    expected = [map_coordinates(s.double().numpy(), positions.numpy(), order=1, mode="mirror") for s in volume[0]]
    np.testing.assert_allclose(moved[0].numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [SIZE, (2, 1, 7), (1, 6, 1)])
def test_nearest_is_exact_for_the_largest_ids(size):
    label, positions = case(size)["label"], random_positions()
    moved = resample_in_plane(label, positions, nearest=True)
    assert moved.dtype == torch.int32
    expected = [map_coordinates(s.double().numpy(), positions.numpy(), order=0, mode="mirror") for s in label[0]]
    np.testing.assert_array_equal(moved[0].numpy(), np.array(expected))


def test_the_own_positions_of_the_pixels_are_the_identity():
    d = case()
    for key in KEYS:
        moved = resample_in_plane(d[key], pixel_positions(SIZE[1:]), nearest=key == "label")
        torch.testing.assert_close(moved, d[key], rtol=0, atol=1e-5)


def test_outside_sections_go_on_as_their_mirror_image():
    row = torch.tensor([[1, 2, 3]]).reshape(1, 1, 1, 3)
    x = torch.arange(-3.0, 7).double()
    moved = resample_in_plane(row, torch.stack([torch.zeros_like(x), x])[:, None], nearest=True)
    assert moved.flatten().tolist() == [2, 3, 2, 1, 2, 3, 2, 1, 2, 3]


def test_a_quarter_turn_is_exact():
    section = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    turn = linear_positions(rotation_matrix(math.pi / 2), (3, 3))
    moved = resample_in_plane(section[None, None], turn, nearest=True)[0, 0]
    assert moved.tolist() == [[7, 4, 1], [8, 5, 2], [9, 6, 3]]


@pytest.mark.parametrize("name", NEVER)
def test_probability_zero_is_the_identity(name):
    before = case()
    after = NEVER[name]().set_random_state(0)(before)
    assert all(after[key] is before[key] for key in KEYS)


@pytest.mark.parametrize("name", CERTAIN)
def test_the_random_state_reproduces_it_and_the_input_stays(name):
    before, transform = case(), CERTAIN[name]()
    first, second = (transform.set_random_state(3)(before) for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in KEYS)
    assert all(torch.equal(before[key], case()[key]) for key in KEYS)
    assert not torch.equal(first["image"], before["image"])


@pytest.mark.parametrize("name", CERTAIN)
def test_the_last_draw_can_be_repeated(name):
    before, transform = case(), CERTAIN[name]().set_random_state(0)
    first = transform(before)
    again = transform(before, randomize=False)
    assert all(torch.equal(first[key], again[key]) for key in KEYS)


@pytest.mark.parametrize("name", CERTAIN)
@pytest.mark.parametrize("seed", range(4))
def test_image_and_label_stay_together(name, seed):
    z, y, x = torch.meshgrid(*(torch.arange(n) for n in (5, 48, 61)), indexing="ij")
    mask = ((y - 20) / 12) ** 2 + ((x - 27 - 2 * z) / 17) ** 2 < 1
    before = {"image": mask.float()[None], "label": mask.int()[None] * 2_000_000_001}
    after = CERTAIN[name]().set_random_state(seed)(before)
    assert after["image"].shape == after["label"].shape == (1, 5, 48, 61)
    assert not torch.equal(after["image"], before["image"])
    # the interpolated mask and the nearest label part only where a corner of the outline runs between pixels
    differ = (after["image"] > 0.5) != (after["label"] > 0)
    assert differ.float().mean() < 0.01
    # a whole pixel away from the outline they are equal
    assert not (differ & ((after["image"] < 0.01) | (after["image"] > 0.99))).any()


@pytest.mark.parametrize("name", CERTAIN)
@pytest.mark.parametrize("seed", range(3))
def test_ids_never_mix_nor_leave_their_section(name, seed):
    before = case()["label"]
    after = CERTAIN[name]().set_random_state(seed)({"image": case()["image"], "label": before})["label"]
    assert after.dtype == torch.int32
    sections = [set(s.unique().tolist()) for s in before[0]]
    if name == "flips":
        sections.reverse()
    for ids, section in zip(sections, after[0], strict=True):
        assert set(section.unique().tolist()) <= ids


def test_meta_data_stay_and_images_become_float():
    affine = torch.diag(torch.tensor([30.0, 8, 8, 1], dtype=torch.float64))
    d = {"image": MetaTensor((case()["image"] * 255).byte(), affine=affine), "label": case()["label"].numpy()}
    after = CERTAIN["affine"]().set_random_state(0)(d)
    assert isinstance(after["image"], MetaTensor) and after["image"].dtype == torch.float32
    assert torch.equal(after["image"].affine, affine) and after["image"].max() > 1
    assert isinstance(after["label"], np.ndarray) and after["label"].dtype == np.int32


def test_entries_must_lie_on_one_grid():
    with pytest.raises(ValueError, match="must lie on one grid"):
        CERTAIN["flips"]()({"image": torch.zeros(1, 2, 4, 4), "label": torch.zeros(1, 2, 4, 5)})


def test_label_keys_must_be_keys():
    with pytest.raises(ValueError, match="label_keys must be among keys"):
        RandInPlaneElasticd("image", "label")


def test_missing_entries():
    with pytest.raises(KeyError):
        RandSectionFlipsd(KEYS)({"name": "a"})
    assert RandSectionFlipsd(KEYS, allow_missing_keys=True)({"name": "a"}) == {"name": "a"}


def test_size_with_margins_adds_from_the_last_transform_to_the_first():
    transforms = [
        RandMisalignmentd(KEYS, max_shift_pixels=16),
        ScaleIntensityd("image"),
        RandInPlaneElasticd(KEYS),
        RandInPlaneAffined(KEYS),
        RandSectionFlipsd(KEYS),
    ]
    assert size_with_margins(transforms, (256, 256)) == (492, 492)
    assert size_with_margins(transforms[:1], (30, 40)) == (62, 72)
    assert size_with_margins([], (30, 40)) == (30, 40)


@pytest.mark.parametrize("name", CERTAIN)
@pytest.mark.parametrize("seed", range(25))
def test_the_margin_keeps_mirror_images_outside(name, seed):
    block, transform = (24, 31), CERTAIN[name]()
    height, width = size_with_margins([transform], block)
    transform.set_random_state(seed).randomize((4, height, width))
    if name == "flips":
        assert (height, width) == block
        return
    y0, x0 = (height - block[0]) // 2, (width - block[1]) // 2
    y, x = transform.positions[:, y0 : y0 + block[0], x0 : x0 + block[1]]
    assert y.min() >= 0 and y.max() <= height - 1
    assert x.min() >= 0 and x.max() <= width - 1
