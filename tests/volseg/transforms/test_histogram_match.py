# SPDX-License-Identifier: Apache-2.0
"""Tests of histogram matching, against scikit-image and by its properties."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import Dataset, MetaTensor
from skimage.exposure import match_histograms

from volseg.data.volume_reader import load_volume
from volseg.transforms.histogram_match import RandHistogramMatchd, match_quantiles, quantiles_of

AFFINE = torch.tensor([[0, 0, -1.5, 12], [-0.7, 0, 0, -30], [0, 2.5, 0, 400], [0, 0, 0, 1.0]]).double()

REAL = Path(__file__).parents[4] / "shared" / "data" / "prostate" / "prostatex_t2"


def mri(seed: int, size=(48, 40, 24)) -> torch.Tensor:
    """Z-scored tissues, brighter towards one side, and air of one value, ``(1, X, Y, Z)``."""
    random = np.random.RandomState(seed)
    tissue = random.choice([300.0, 500.0, 900.0], p=[0.5, 0.35, 0.15], size=size)
    voxels = random.gamma(60, tissue / 60) * np.geomspace(1, 3, size[1])[:, None]
    voxels[: 3 + seed] = 0
    return torch.from_numpy((voxels - voxels.mean()) / voxels.std()).float()[None]


class CountingCases:
    """A dataset that counts how often each case is loaded."""

    def __init__(self, *images: torch.Tensor) -> None:
        self.images = images
        self.loads = [0] * len(images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        self.loads[index] += 1
        return {"image": self.images[index]}


def exact_match(image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """By scikit-image, which takes the same number of axes only."""
    matched = match_histograms(image.numpy().ravel(), reference.numpy().ravel())
    return torch.from_numpy(matched).reshape(image.shape)


def test_quantiles():
    # frequencies up to and with 1, 2, 4: 1/4, 1/2, 1
    image = torch.tensor([[4.0, 1.0], [2.0, 4.0]])
    assert quantiles_of(image, 5).tolist() == [1, 1, 2, 3, 4]
    assert quantiles_of(image, 3).tolist() == [1, 2, 4]
    assert quantiles_of(MetaTensor(image)).shape == (4097,)


@pytest.mark.parametrize(("count", "mean_difference"), [(4097, 5e-4), (257, 1e-2)])
def test_quantiles_come_close_to_the_exact_match(count, mean_difference):
    image, reference = mri(0), mri(1, (30, 50, 26))
    exact = exact_match(image, reference)
    difference = (match_quantiles(image, quantiles_of(reference, count)) - exact).abs()
    assert difference.mean() < mean_difference
    assert (exact - image).abs().mean() > 0.02  # what the match does


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no prostate MRI in {REAL}")
def test_quantiles_come_close_on_real_mri():
    volumes = [load_volume(REAL / f"ProstateX-{case}_t2.nii.gz").as_tensor() for case in ("0000", "0001")]
    image, reference = ((v - v.mean()) / v.std() for v in volumes)
    exact = exact_match(image, reference)
    assert (match_quantiles(image, quantiles_of(reference)) - exact).abs().mean() < 5e-4
    assert (exact - image).abs().mean() > 0.02


def test_result_has_the_references_distribution():
    matched = match_quantiles(mri(0), quantiles_of(mri(1)))
    torch.testing.assert_close(quantiles_of(matched, 101)[20:], quantiles_of(mri(1), 101)[20:], rtol=0, atol=0.01)


def test_order_of_voxels_stays():
    image = mri(0)
    matched = match_quantiles(image, quantiles_of(mri(1)))
    assert (matched.flatten()[image.flatten().argsort()].diff() >= 0).all()
    assert len(matched.unique()) > 1000


def test_match_to_itself_changes_nothing():
    image = mri(0)
    assert (match_quantiles(image, quantiles_of(image)) - image).abs().mean() < 5e-4


def test_known_match_of_a_tiny_image():
    image = torch.tensor([[[[0.0, 3.0, 1.0, 1.0]]]])
    # frequencies 1/4, 1, 3/4, 3/4
    assert match_quantiles(image, torch.tensor([-4.0, 0.0, 8.0])).tolist() == [[[[-2.0, 8.0, 4.0, 4.0]]]]


@pytest.mark.parametrize("scale", [1e-38, 1e30])
def test_scale_of_the_image_does_not_matter(scale):
    image = torch.tensor([0.0, 3.0, 1.0, 1.0]) * scale
    assert match_quantiles(image, torch.tensor([-4.0, 0.0, 8.0])).tolist() == [-2.0, 8.0, 4.0, 4.0]


@pytest.mark.parametrize("image", [torch.full((1, 2, 3, 4), 5.0), torch.zeros(1, 1, 1, 1)])
def test_image_of_one_value_stays(image):
    assert match_quantiles(image, quantiles_of(mri(0))) is image


def test_reference_of_one_value():
    reference = torch.full((1, 2, 3, 4), 5.0)
    assert (match_quantiles(mri(0), quantiles_of(reference)) == 5).all()


def test_kind_and_geometry_stay():
    data = {"image": MetaTensor(mri(0).double(), affine=AFFINE, meta={"filename_or_obj": "a.mhd"}), "id": "a"}
    before = data["image"].clone()
    result = RandHistogramMatchd("image", Dataset([{"image": mri(1)}]))(data)
    assert isinstance(result["image"], MetaTensor) and result["image"].dtype == torch.float64
    assert torch.equal(result["image"].affine, AFFINE)
    assert result["image"].meta["filename_or_obj"] == "a.mhd"
    assert result["id"] == "a"
    assert torch.equal(data["image"], before) and not torch.equal(result["image"], before)


def test_each_reference_is_loaded_once():
    cases = CountingCases(mri(1), mri(2, (20, 30, 16)), mri(3))
    transform = RandHistogramMatchd("image", cases).set_random_state(0)
    data = {"image": mri(0)}
    assert cases.loads == [0, 0, 0]
    drawn = [(transform(data)["image"], transform.reference)[1] for _ in range(20)]
    assert set(drawn) == {0, 1, 2}
    assert cases.loads == [1, 1, 1]


def test_matches_to_the_reference_that_was_drawn():
    cases = CountingCases(mri(1), mri(2), mri(3))
    transform = RandHistogramMatchd("image", cases).set_random_state(0)
    result = transform({"image": mri(0)})["image"]
    exact = exact_match(mri(0), cases.images[transform.reference])
    assert (result - exact).abs().mean() < 5e-4
    assert torch.equal(transform({"image": mri(0)}, randomize=False)["image"], result)


def test_random_state_decides():
    cases = [{"image": mri(seed)} for seed in range(1, 9)]

    def draws(seed):
        transform = RandHistogramMatchd("image", cases, prob=0.5).set_random_state(seed)
        return [transform({"image": mri(0)})["image"].std().item() for _ in range(8)]

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)


def test_never():
    cases = CountingCases(mri(1))
    data = {"image": mri(0)}
    assert RandHistogramMatchd("image", cases, prob=0.0)(data)["image"] is data["image"]
    assert cases.loads == [0]


def test_several_images_go_to_the_same_case():
    cases = [{"t2": mri(seed), "adc": 10 + mri(seed)} for seed in range(1, 9)]
    transform = RandHistogramMatchd(["t2", "adc"], cases).set_random_state(0)
    for _ in range(3):
        result = transform({"t2": mri(0), "adc": mri(0)})
        torch.testing.assert_close(result["adc"], 10 + result["t2"], rtol=0, atol=1e-3)


def test_workers_can_have_it():
    transform = RandHistogramMatchd("image", CountingCases(mri(1), mri(2))).set_random_state(0)
    data = {"image": mri(0)}
    copy = pickle.loads(pickle.dumps(transform))  # noqa: S301
    assert torch.equal(copy(data)["image"], transform(data)["image"])
    copy = pickle.loads(pickle.dumps(transform))  # noqa: S301, now with a table
    assert torch.equal(copy(data)["image"], transform(data)["image"])


def test_arguments():
    with pytest.raises(ValueError, match=r"at least one case, got none"):
        RandHistogramMatchd("image", [])
    with pytest.raises(ValueError, match=r"quantiles must be an integer >= 2, got 1"):
        RandHistogramMatchd("image", [{"image": mri(1)}], quantiles=1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_same_on_gpu():
    table = quantiles_of(mri(1))
    on_gpu = match_quantiles(mri(0).cuda(), table)
    assert on_gpu.is_cuda
    # an intensity half way between two levels may go to either
    assert (on_gpu.cpu() - match_quantiles(mri(0), table)).abs().mean() < 1e-4
