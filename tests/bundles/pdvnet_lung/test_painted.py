# SPDX-License-Identifier: Apache-2.0
"""Tests of the practical recipe's data: lobe maps, their split, and paintings on the network's grid."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from pdvnet_lung.painted import PaintChest, RandPaintChest, ReadLobeMap, lobe_maps, painted_list

from volseg.errors import UserError


@pytest.fixture(scope="module")
def maps(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("maps")
    label = np.zeros((40, 30, 44), np.uint8)
    label[4:17, 4:26, 20:40] = 1
    label[4:17, 4:26, 4:20] = 2
    label[23:36, 4:26, 26:40] = 3
    label[23:36, 16:26, 14:26] = 4
    label[23:36, 4:16, 4:26] = 5
    for number in range(4):
        nib.save(nib.Nifti1Image(label, np.diag([5.0, 6.0, 5.0, 1.0])), folder / f"s{number}.nii.gz")
    return folder


def test_splits_are_disjoint_complete_and_known_by_name(maps):
    splits = [
        [case["lobe_map"] for case in lobe_maps(str(maps), split)] for split in ("training", "validation", "test")
    ]
    assert [len(split) for split in splits] == [2, 1, 1]
    assert sorted(name for split in splits for name in split) == sorted(str(path) for path in maps.iterdir())
    procedural = [len(lobe_maps("", split)) for split in ("training", "validation", "test")]
    assert procedural == [32, 12, 20]


def test_a_folder_without_maps_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"label_maps: .* holds 0 lobe maps"):
        lobe_maps(str(tmp_path), "training")


def test_paintings(maps):
    case = ReadLobeMap()(lobe_maps(str(maps), "training")[0])
    size = (24, 16, 32)
    first, again = (PaintChest(size)(case) for _ in range(2))
    assert first["image"].shape == first["label"].shape == (1, *size)
    assert first["label"].max() <= 5
    torch.testing.assert_close(first["image"], again["image"], rtol=0, atol=0)
    draw = RandPaintChest(size)
    draw.set_random_state(0)
    others = [draw(case)["image"] for _ in range(2)]
    assert not torch.equal(others[0], others[1])


def test_maps_kept_aside_become_a_data_set(maps, tmp_path):
    (case,) = painted_list("", str(maps), str(tmp_path / "painted"))
    image, label = (nib.load(case[key]) for key in ("image", "label"))
    assert image.shape == label.shape
    np.testing.assert_array_equal(image.affine, label.affine)
    volumes_ml = np.bincount(np.asarray(label.dataobj).ravel())[1:] * abs(np.linalg.det(label.affine)) / 1000
    np.testing.assert_allclose(volumes_ml, [858, 686, 600, 234, 515], rtol=0.04)
    assert painted_list("", str(maps), str(tmp_path / "painted")) == [case]
