# SPDX-License-Identifier: Apache-2.0
"""Tests of the B-spline deformation, against ITK's and by its properties."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import SimpleITK
import torch
from monai.data import MetaTensor

from volseg.transforms.bspline_deform import BSplineDeform, RandBSplineDeformd, displacement_field

SIZE = (40, 36, 28)
MESH = (2, 3, 1)
AFFINE = torch.tensor([[0, 0, -1.5, 12], [-0.7, 0, 0, -30], [0, 2.5, 0, 400], [0, 0, 0, 1.0]]).double()


def coefficients(mesh=MESH, scale=4.0) -> torch.Tensor:
    return scale * torch.randn(3, *(m + 3 for m in mesh), generator=torch.Generator().manual_seed(0))


def to_itk(volume: torch.Tensor) -> SimpleITK.Image:
    """``(X, Y, Z)`` with voxels of 1 mm and the origin at 0, so that millimetres are voxels."""
    return SimpleITK.GetImageFromArray(np.ascontiguousarray(volume.numpy().T))


def from_itk(image: SimpleITK.Image) -> torch.Tensor:
    return torch.from_numpy(SimpleITK.GetArrayFromImage(image).T.copy())


def itk_transform(coefs: torch.Tensor, mesh=MESH) -> SimpleITK.BSplineTransform:
    transform = SimpleITK.BSplineTransformInitializer(to_itk(torch.zeros(SIZE)), mesh, order=3)
    transform.SetParameters(coefs.double().permute(0, 3, 2, 1).flatten().tolist())  # x runs fastest
    return transform


def smooth_image() -> torch.Tensor:
    x, y, z = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in SIZE), indexing="ij")
    return torch.sin(x / 3) + torch.cos(y / 4) * z / 10


def ball() -> torch.Tensor:
    x, y, z = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in SIZE), indexing="ij")
    return ((x - 21) / 11) ** 2 + ((y - 16) / 9) ** 2 + ((z - 14) / 8) ** 2 < 1


def inside(field: torch.Tensor, margin: float = 1) -> torch.Tensor:
    """Voxels whose sampling position keeps a margin from the border, where ITK changes over to the fill value."""
    position = field + torch.stack(torch.meshgrid(*(torch.arange(n) for n in SIZE), indexing="ij"))
    last = torch.tensor(SIZE).reshape(3, 1, 1, 1) - 1
    return ((position >= margin) & (position <= last - margin)).all(dim=0)


@pytest.mark.parametrize("mesh", [(2, 2, 2), MESH, (1, 4, 2)])
def test_field_equals_itk(mesh):
    coefs = coefficients(mesh)
    field = displacement_field(coefs, SIZE).movedim(-1, 0)
    expected = SimpleITK.TransformToDisplacementField(itk_transform(coefs, mesh), SimpleITK.sitkVectorFloat64, SIZE)
    expected = torch.from_numpy(SimpleITK.GetArrayFromImage(expected).transpose(3, 2, 1, 0).copy())
    assert field.shape == (3, *SIZE) and field.dtype == torch.float32
    assert expected.abs().max() > 3
    torch.testing.assert_close(field.double(), expected, rtol=0, atol=1e-4)


def test_image_and_label_equal_itk_away_from_the_border():
    coefs, image, label = coefficients(), smooth_image(), ball()
    transform, mask = itk_transform(coefs), inside(displacement_field(coefs, SIZE).movedim(-1, 0))
    assert 0.3 < mask.float().mean() < 0.9

    expected = from_itk(SimpleITK.Resample(to_itk(image), transform, SimpleITK.sitkLinear))
    warped = BSplineDeform()(image[None], coefs)[0]
    assert (warped - image).abs()[mask].max() > 1
    torch.testing.assert_close(warped[mask], expected[mask], rtol=0, atol=1e-4)

    fractions = from_itk(SimpleITK.Resample(to_itk(label.float()), transform, SimpleITK.sitkLinear))
    deform = RandBSplineDeformd("label", "label")
    deform.coefficients = coefs
    result = deform({"label": label[None]}, randomize=False)["label"][0]
    assert not torch.equal(result, label)
    assert torch.equal(result[mask], (fractions > 0.5)[mask])


def test_zero_coefficients_are_the_identity():
    image = smooth_image()
    warped = BSplineDeform()(image[None], torch.zeros(3, 5, 4, 6))
    torch.testing.assert_close(warped[0], image, rtol=0, atol=1e-4)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_equal_coefficients_shift_along_their_axis_by_voxels(axis):
    shift = torch.zeros(3, 5, 6, 4)
    shift[axis] = 2
    image = smooth_image()
    warped = BSplineDeform("border")(image[None], shift)[0]
    n = SIZE[axis]
    torch.testing.assert_close(warped.narrow(axis, 0, n - 2), image.narrow(axis, 2, n - 2), rtol=0, atol=1e-4)
    # outside lies the last plane, or zeros
    torch.testing.assert_close(warped.select(axis, n - 1), image.select(axis, n - 1), rtol=0, atol=1e-4)
    zeros = BSplineDeform()(image[None], shift)[0].select(axis, n - 1)
    torch.testing.assert_close(zeros, torch.zeros_like(zeros), rtol=0, atol=1e-4)


def test_axis_of_one_voxel():
    image = smooth_image()[:, :, :1]
    warped = BSplineDeform()(image[None], torch.zeros(3, 5, 5, 5))[0]
    torch.testing.assert_close(warped, image, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 5, 5, 5), (3, 5, 3, 5), (5, 5, 5)])
def test_coefficients_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"must have the shape \(3, >= 4, >= 4, >= 4\), got \("):
        BSplineDeform()(torch.zeros(1, *SIZE), torch.zeros(shape))
    with pytest.raises(ValueError, match=r"must have the shape .*, got"):
        displacement_field(torch.zeros(shape), SIZE)


def case() -> dict:
    return {
        "image": MetaTensor(smooth_image()[None], affine=AFFINE, meta={"filename_or_obj": "a.mhd"}),
        "label": MetaTensor(ball()[None].to(torch.uint8), affine=AFFINE, meta={"filename_or_obj": "a.mhd"}),
        "id": "a",
    }


def transform(**kwargs) -> RandBSplineDeformd:
    return RandBSplineDeformd(["image", "label"], "label", **{"prob": 1.0, **kwargs})


def test_random_state_decides():
    first, again = (transform().set_random_state(3)(case()) for _ in range(2))
    other = transform().set_random_state(4)(case())
    for key in ("image", "label"):
        assert torch.equal(first[key], again[key])
        assert not torch.equal(first[key], other[key])


def test_draw_can_be_repeated():
    deform = transform().set_random_state(3)
    data = case()
    first = deform(data)
    drawn = deform.coefficients
    again = deform(data, randomize=False)
    assert torch.equal(first["image"], again["image"]) and torch.equal(first["label"], again["label"])
    assert torch.equal(BSplineDeform()(data["image"].as_tensor(), drawn), first["image"].as_tensor())
    deform(data)
    assert not torch.equal(drawn, deform.coefficients)


def test_image_and_label_move_together():
    data = case()
    data["image"] = data["label"].float()
    result = transform().set_random_state(3)(data)
    assert torch.equal(result["image"] > 0.5, result["label"].bool())


def test_kind_and_geometry_stay():
    data = case()
    before = {key: data[key].clone() for key in ("image", "label")}
    data["whole numbers"] = torch.ones(2, *SIZE, dtype=torch.int16)
    result = RandBSplineDeformd([*before, "whole numbers"], "label", prob=1.0).set_random_state(3)(data)
    for key, dtype in {"image": torch.float32, "label": torch.uint8}.items():
        assert isinstance(result[key], MetaTensor) and result[key].dtype == dtype
        assert result[key].shape == (1, *SIZE)
        assert torch.equal(result[key].affine, AFFINE)
        assert result[key].meta["filename_or_obj"] == "a.mhd"
        assert torch.equal(data[key], before[key])  # the input is as it was
    assert set(result["label"].unique().tolist()) == {0, 1}
    assert result["whole numbers"].dtype == torch.float32 and result["whole numbers"].shape == (2, *SIZE)
    assert result["id"] == "a"


def test_coefficients_have_the_deviation_of_their_axis():
    deform = transform(mesh_size=(9, 6, 5), standard_deviation_voxels=(15, 3, 0)).set_random_state(0)
    deform.randomize()
    assert deform.coefficients.shape == (3, 12, 9, 8)
    assert deform.coefficients[0].std() == pytest.approx(15, rel=0.1)
    assert deform.coefficients[1].std() == pytest.approx(3, rel=0.1)
    assert not deform.coefficients[2].any()


def test_slices_stay_apart_by_default():
    deform = transform().set_random_state(0)
    deform.randomize()
    field = displacement_field(deform.coefficients, SIZE).movedim(-1, 0)
    assert not field[2].any()
    assert field[0].std() > 1 and field[1].std() > 1
    data = case()
    data["image"] = MetaTensor(torch.zeros(1, *SIZE))
    data["image"][..., 9] = 1
    result = deform(data, randomize=False)["image"]
    assert result[..., 9].mean() > 0.5
    result[..., 9] = 0
    assert result.abs().max() < 1e-4


def test_probability():
    data = case()
    never = transform(prob=0.0).set_random_state(0)(data)
    assert never["image"] is data["image"] and never["label"] is data["label"]
    deform = transform(prob=0.3).set_random_state(0)
    draws = []
    for _ in range(1000):
        deform.randomize()
        draws.append(deform.coefficients is not None)
    assert np.mean(draws) == pytest.approx(0.3, abs=0.05)


def test_label_alone():
    data = case()
    del data["image"]
    result = transform(allow_missing_keys=True).set_random_state(3)(data)
    assert torch.equal(result["label"], transform().set_random_state(3)(case())["label"])


def test_workers_can_have_it():
    deform = transform().set_random_state(3)
    copy = pickle.loads(pickle.dumps(deform))  # noqa: S301
    assert torch.equal(copy(case())["image"], deform(case())["image"])


def test_entries_on_different_grids():
    with pytest.raises(ValueError, match=r"one grid, got sizes \[\(40, 36, 28\), \(40, 36, 29\)\]"):
        transform()({"image": torch.zeros(1, 40, 36, 29), "label": torch.zeros(1, *SIZE)})


def test_unknown_label_key():
    with pytest.raises(ValueError, match=r"label_keys must be among keys \('image',\), got \['seg'\]"):
        RandBSplineDeformd("image", "seg")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_same_on_gpu():
    coefs, image = coefficients(), smooth_image()[None]
    on_gpu = BSplineDeform()(image.cuda(), coefs)
    assert on_gpu.is_cuda
    torch.testing.assert_close(on_gpu.cpu(), BSplineDeform()(image, coefs), rtol=0, atol=1e-4)
