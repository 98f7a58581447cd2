# SPDX-License-Identifier: Apache-2.0
"""Tests of three consecutive clean sections: which ones there are, and patches of them."""

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
    fixed_places,
    hold_out,
    prepare_triplets,
    triplet_splits,
)

from volseg.data.datalist import write_datalist
from volseg.data.ome_zarr import create_ome_zarr
from volseg.errors import UserError

CONFIG = Path(__file__).parents[3] / "bundles" / "resunet_mitoem" / "configs" / "train_interpolation.json"
DEPTH, HEIGHT, WIDTH = 6, 9, 13
SHAPE = (16, 40, 56)


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
        with pytest.raises(UserError, match=f"^a.zarr: .*, {len(noisy)} of {depth} are noisy"):
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


@pytest.fixture
def volumes(tmp_path):
    """Two volumes of noise around one texture; section 5 of the first is black."""
    random = np.random.RandomState(0)
    texture = random.randint(60, 180, SHAPE[1:])
    paths = []
    for name in ("a", "b"):
        voxels = (texture + random.randint(0, 20, SHAPE)).astype(np.uint8)
        if name == "a":
            voxels[5] = 0
        paths.append(tmp_path / f"{name}.ome.zarr")
        with create_ome_zarr(paths[-1], SHAPE, np.uint8, (30, 8, 8)) as array:
            array[:] = voxels
    return paths


def split(source, dataset_dir="", patch_size=(16, 16), **more):
    return triplet_splits(source, dataset_dir, patch_size, "", {}, (), **more)


def test_input_holds_its_last_sections_out(volumes):
    splits = split(str(volumes[0]))
    # 4, 5 and 6 hold section 5; of 11 triplets one is held out, and those that share a section with it are left out
    assert [case["sections"] for case in splits["training"]] == [[1, 2, 3, 7, 8, 9, 10, 11]]
    assert [case["sections"] for case in splits["validation"]] == [[14]]


def test_sections_given_are_those_left_out(volumes):
    splits = split(str(volumes[0]), sections=[0, 9], held_out_fraction=0.3)
    kept, held_out = (splits[name][0]["sections"] for name in ("training", "validation"))
    assert kept == [2, 3, 4, 5, 6, 7]
    assert held_out == [12, 13, 14]


def test_dataset_has_its_own_volumes_for_validation(volumes, tmp_path):
    label = tmp_path / "label"  # which is not looked at
    label.mkdir()
    entries = [{"image": str(path), "label": str(label)} for path in volumes]
    write_datalist(tmp_path, {"training": entries[:1], "validation": entries[1:]})
    splits = split("", str(tmp_path))
    assert splits["training"][0]["sections"] == [1, 2, 3, 7, 8, 9, 10, 11, 12, 13, 14]
    assert splits["validation"][0]["sections"] == list(range(1, 15))
    write_datalist(tmp_path, {"training": entries})
    splits = split("", str(tmp_path))
    assert [case["sections"][-1] for case in splits["training"]] == [11, 11]


def test_split_shares_no_section():
    training, validation = hold_out({"volume": None, "sections": [1, 2, 3, 6, 7, 8, 9, 10]}, 0.25)
    assert training["sections"] == [1, 2, 3, 6]
    assert validation["sections"] == [9, 10]
    with pytest.raises(UserError, match=r"^volume: 3 clean triplets are too few"):
        hold_out({"volume": None, "sections": [1, 2, 3]}, 0.1)


def test_places_are_fixed_and_volumes_take_turns(volumes):
    cases = split(str(volumes[0].parent))["training"]
    places = fixed_places(cases, 40, (16, 24))
    assert places == fixed_places(cases, 40, (16, 24))
    assert places != fixed_places(cases, 40, (16, 24), seed=1)
    assert [place["volume"] is cases[i % 2]["volume"] for i, place in enumerate(places)] == [True] * 40
    assert {place["section"] for place in places[::2]} <= set(cases[0]["sections"])
    corners = np.array([place["corner"] for place in places])
    assert corners.min(axis=0).tolist() >= [0, 0]
    assert (corners.max(axis=0) <= [24, 32]).all()


def test_errors_of_one_line(volumes):
    with pytest.raises(UserError, match=r"a\.ome\.zarr: sections of \(40, 56\) pixels are smaller than a patch"):
        split(str(volumes[0]), patch_size=(48, 48))
    with pytest.raises(UserError, match=r"^patch_size must be square.*, got \[16, 24\]"):
        split(str(volumes[0]), patch_size=(16, 24))
    with pytest.raises(UserError, match=r"^sections \[3\] need --input with one volume, got 2"):
        split(str(volumes[0].parent), sections=[3])
    with pytest.raises(UserError, match=r"a\.ome\.zarr: no three consecutive clean sections"):
        split(str(volumes[0]), sections=list(range(0, 16, 2)))
