# SPDX-License-Identifier: Apache-2.0
"""Tests of the bias field correction on volumes whose field is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from volseg.transforms.bias_field import N4BiasCorrectd

SIZE = (64, 52, 7)
FAST = {"shrink_factor": (2, 2, 1), "fitting_levels": 3, "max_iterations": 20}
AFFINE = torch.tensor([[0, 0, -1.5, 12], [-0.7, 0, 0, -30], [0, 2.5, 0, 400], [0, 0, 0, 1.0]]).double()


def grid() -> list[np.ndarray]:
    return np.meshgrid(*(np.linspace(-1, 1, n) for n in SIZE), indexing="ij")


def tissues(body_radius: float) -> np.ndarray:
    """A bright organ (2) in a body (1), with air (0) around it, if the field of view is that large."""
    x, y, z = grid()
    body = x**2 + y**2 < body_radius**2
    return body * np.where(x**2 + y**2 + z**2 < 0.3, 2, 1)


def bias(strength: float) -> np.ndarray:
    x, y, z = grid()
    return np.exp(strength * (x + 0.5 * y**2 - 0.3 * x * z))


def scan(tissue: np.ndarray, field: np.ndarray) -> MetaTensor:
    """MRI as magnitudes: noise makes air positive."""
    random = np.random.RandomState(0)
    real, imaginary = 300 * tissue * field + random.normal(0, 15, SIZE), random.normal(0, 15, SIZE)
    voxels = torch.from_numpy(np.hypot(real, imaginary)).float()[None]
    return MetaTensor(voxels, affine=AFFINE, meta={"filename_or_obj": "a.mhd"})


def correct(*arguments, **options):
    return N4BiasCorrectd("image", *arguments, **options).change


def variation(image: torch.Tensor, mask: np.ndarray) -> float:
    """Coefficient of variation in a tissue."""
    voxels = image.numpy()[0][mask]
    return voxels.std() / voxels.mean()


# an endorectal coil is like the last: tissue up to the edges, and one side several times as bright as the other
@pytest.mark.parametrize(("body_radius", "strength"), [(0.8, 0.3), (0.95, 0.6), (9, 0.6)])
def test_tissues_become_even(body_radius, strength):
    tissue = tissues(body_radius)
    image = scan(tissue, bias(strength))
    corrected = correct(**FAST)(image)
    # what noise leaves: 15 in 300 and in 600
    for label, noise in {1: 0.05, 2: 0.025}.items():
        before, after = (variation(volume, tissue == label) for volume in (image, corrected))
        assert before > 2.5 * noise
        assert after < 1.2 * noise


def test_found_field_is_the_known_one():
    tissue = tissues(0.95)
    image = scan(tissue, bias(0.4))
    found = (image / correct(**FAST)(image)).numpy()[0]
    ratio = np.log(found / bias(0.4))[tissue > 0]
    assert np.log(bias(0.4))[tissue > 0].std() > 0.15
    assert ratio.std() < 0.02


def test_field_lies_where_it_was_found(monkeypatch):
    # a field that is the volume itself, and a ramp, which averages and linear interpolation keep, but for the voxels
    # that two cells share where the factor does not divide the size (4 and 26)
    monkeypatch.setattr(N4BiasCorrectd, "_bias_field", lambda self, volume: volume)
    image = torch.arange(1, 31.0).reshape(30, 1, 1) + torch.arange(26.0).reshape(26, 1) + 2 * torch.arange(10.0)
    corrected = correct((5, 4, 2))(image[None])[0]
    inner = corrected[3:-3, 3:-3, 1:-1]
    # a shift by half a voxel would be 0.01
    torch.testing.assert_close(inner, torch.ones_like(inner), rtol=0, atol=3e-3)


def test_kind_and_geometry_stay():
    image = scan(tissues(0.8), bias(0.3)).double()
    before = image.clone()
    result = N4BiasCorrectd("image", max_iterations=2)({"image": image, "id": "a"})
    corrected = result["image"]
    assert isinstance(corrected, MetaTensor)
    assert corrected.dtype == torch.float64 and corrected.shape == (1, *SIZE)
    assert torch.equal(corrected.affine, AFFINE) and corrected.meta["filename_or_obj"] == "a.mhd"
    assert not corrected.applied_operations  # nothing to invert
    assert torch.equal(image, before) and not torch.equal(corrected, before)
    assert result["id"] == "a"
    assert correct(max_iterations=2)(image.short()).dtype == torch.float32


def test_same_input_same_result():
    image = scan(tissues(0.8), bias(0.3))
    first, again = (correct(max_iterations=5)(image) for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("value", [0.0, 7.0, -3.0])
def test_volume_of_one_value_stays(value):
    image = MetaTensor(torch.full((1, 9, 8, 3), value))
    assert correct()(image) is image


@pytest.mark.parametrize(("factor", "offset"), [(1, -1024), (0.001, 0), (1, 20000), (0.005, -3)])
def test_offset_and_scale_do_not_matter(factor, offset):
    image = scan(tissues(0.8), bias(0.5))
    image[..., 0] = 0
    corrected = correct(**FAST)(image)
    again = correct(**FAST)(factor * image + offset) / factor
    assert variation(corrected, tissues(0.8) == 2) < 0.5 * variation(image, tissues(0.8) == 2)
    torch.testing.assert_close(again, corrected, rtol=1e-2, atol=1)


@pytest.mark.parametrize("size", [(9, 8, 1), (1, 9, 2), (3, 5, 7)])
def test_tiny_volumes(size):
    image = torch.rand(1, *size, generator=torch.Generator().manual_seed(0))
    corrected = correct()(image)
    assert corrected.shape == (1, *size) and corrected.isfinite().all()


def test_single_voxel_above_zero():
    image = torch.full((1, 9, 8, 3), -100.0)
    image[0, 4, 5, 1] = 1
    assert correct()(image).isfinite().all()


def test_zeros_and_negative_voxels():
    image = scan(tissues(0.8), bias(0.3)).as_tensor()
    image[:, :8] = 0
    image[:, -3:] = -5
    image[:, :, :, 2] = 400
    corrected = correct(max_iterations=5)(image)
    assert corrected.isfinite().all()
    assert torch.equal(corrected > 0, image > -5)  # the lowest is the new 0
