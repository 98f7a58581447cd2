# SPDX-License-Identifier: Apache-2.0
"""Tests of the patches of three consecutive sections."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset
from resunet_mitoem.triplets import (
    RandSwapChannelsd,
    RandTripletPatch,
    TripletPatch,
    clean_triplets,
    prepare_triplets,
)

from volseg.errors import UserError

CONFIG = Path(__file__).parents[3] / "bundles" / "resunet_mitoem" / "configs" / "train_interpolation.json"
DEPTH, HEIGHT, WIDTH = 6, 9, 13


@pytest.fixture(scope="module")
def volume() -> np.ndarray:
    """Every voxel's number tells its place."""
    return np.arange(DEPTH * HEIGHT * WIDTH, dtype=np.uint16).reshape(DEPTH, HEIGHT, WIDTH)


@pytest.fixture
def preprocessing():
    """``preprocessing(patch_size)`` is what train_interpolation.json does to a case."""

    def parse(patch_size: tuple[int, int]):
        parser = ConfigParser()
        parser.read_config(CONFIG)
        parser["patch_size"] = list(patch_size)
        return parser.get_parsed_content("train#preprocessing")

    return parse


def test_clean_triplets():
    assert clean_triplets(6, []) == [1, 2, 3, 4]
    assert clean_triplets(12, [0, 4, 5, 11]) == [2, 7, 8, 9]
    for depth, noisy in ((2, []), (5, [2])):
        with pytest.raises(UserError, match=f"^a.zarr: .*Received: {depth} sections, {len(noisy)} of them noisy"):
            clean_triplets(depth, noisy, "a.zarr")


def test_patch_is_cut_from_three_sections(volume):
    patch = TripletPatch((4, 5))({"volume": volume, "section": 3, "corner": (2, 7)})
    window = volume[2:5, 2:6, 7:12] / np.float32(65535)
    assert np.array_equal(patch["neighbours"].numpy(), window[[0, 2]])
    assert np.array_equal(patch["target"].numpy(), window[[1]])
    assert patch["neighbours"].dtype == torch.float32


def test_random_patches_are_from_everywhere(volume):
    read = RandTripletPatch((4, 5)).set_random_state(0)
    case = {"volume": volume, "sections": [1, 4]}
    places = set()
    for _ in range(1200):
        patch = read(case)
        expected = TripletPatch((4, 5))({"volume": volume, "section": read.section, "corner": read.corner})
        assert torch.equal(patch["neighbours"], expected["neighbours"])
        places.add((read.section, *read.corner))
    assert len(places) == 2 * (HEIGHT - 4 + 1) * (WIDTH - 5 + 1)
    assert torch.equal(read(case, randomize=False)["target"], patch["target"])


def test_patch_of_a_whole_section(volume):
    patch = RandTripletPatch((HEIGHT, WIDTH))({"volume": volume, "sections": [1]})
    assert patch["neighbours"].shape == (2, HEIGHT, WIDTH)


def test_swap():
    pair = torch.arange(12.0).reshape(2, 2, 3)
    swap = RandSwapChannelsd("neighbours", prob=0.5).set_random_state(0)
    swapped = 0
    for _ in range(100):
        result = swap({"neighbours": pair, "target": pair})
        assert torch.equal(result["target"], pair)
        is_swapped = torch.equal(result["neighbours"], pair[[1, 0]])
        assert is_swapped or torch.equal(result["neighbours"], pair)
        swapped += is_swapped
    assert 30 < swapped < 70
    assert torch.equal(swap(result, randomize=False)["neighbours"], swap(result, randomize=False)["neighbours"])


def test_training_sees_all_orientations_and_orders(volume, preprocessing):
    """Neighbours and target turn alike; eight orientations and two orders are equally likely."""
    read = preprocessing((3, 3)).set_random_state(0)
    seen = Counter()
    for _ in range(800):
        sample = read({"volume": volume, "sections": [1, 2, 3, 4]})
        neighbours, target = (sample[key] * 65535 for key in ("neighbours", "target"))
        steps = (neighbours - target).round()
        order = steps[0, 0, 0].sign()
        section = HEIGHT * WIDTH
        assert torch.equal(steps, torch.stack([order, -order])[:, None, None].expand(2, 3, 3) * section)
        # the differences along the two axes, 1 and WIDTH with either sign, tell the orientation
        down, right = (target[0, 1, 0] - target[0, 0, 0]).round(), (target[0, 0, 1] - target[0, 0, 0]).round()
        seen[int(down), int(right), int(order)] += 1
    assert len(seen) == 16
    assert min(seen.values()) > 800 / 16 / 2
    assert max(seen.values()) < 2 * 800 / 16


def test_random_state_makes_it_repeat(volume, preprocessing):
    def samples(seed: int) -> torch.Tensor:
        read = preprocessing((4, 6)).set_random_state(seed)
        # turned by quarters, patches that are not square have two shapes
        return torch.cat([read({"volume": volume, "sections": [1, 3]})["neighbours"].flatten() for _ in range(6)])

    assert torch.equal(samples(0), samples(0))
    assert not torch.equal(samples(0), samples(1))


def test_batches_of_a_loader(volume, preprocessing):
    cases = [{"volume": volume, "sections": [2, 3]}] * 8
    batches = list(DataLoader(Dataset(cases, preprocessing((5, 5))), batch_size=3))
    assert [len(batch["target"]) for batch in batches] == [3, 3, 2]
    image, label = prepare_triplets(batches[0], device="cpu")
    assert image.shape == (3, 2, 5, 5)
    assert label.shape == (3, 1, 5, 5)
    assert type(label) is torch.Tensor
    assert label.dtype == torch.float32
