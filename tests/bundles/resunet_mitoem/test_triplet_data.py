# SPDX-License-Identifier: Apache-2.0
"""Tests of which sections are trained on and which validate."""

from __future__ import annotations

import numpy as np
import pytest
from resunet_mitoem.triplet_data import fixed_places, hold_out, triplet_splits

from volseg.data.datalist import write_datalist
from volseg.data.ome_zarr import create_ome_zarr
from volseg.errors import UserError

SHAPE = (16, 40, 56)


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
    label = {"label": str(volumes[0])}
    entries = [{"image": str(path), **label} for path in volumes]
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
    with pytest.raises(UserError, match=r"^volume: too few clean sections .*Received: 3 clean triplets"):
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
    with pytest.raises(UserError, match=r"a\.ome\.zarr: sections smaller than a patch\. Received: \(40, 56\)"):
        split(str(volumes[0]), patch_size=(48, 48))
    with pytest.raises(UserError, match=r"^patch_size: not square.* Received: \[16, 24\]"):
        split(str(volumes[0]), patch_size=(16, 24))
    with pytest.raises(UserError, match=r"^sections: they belong to one volume\. Received: \[3\] for 2 volumes"):
        split(str(volumes[0].parent), sections=[3])
    with pytest.raises(UserError, match=r"a\.ome\.zarr: no three clean sections in a row"):
        split(str(volumes[0]), sections=list(range(0, 16, 2)))
