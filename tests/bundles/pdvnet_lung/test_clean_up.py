# SPDX-License-Identifier: Apache-2.0
"""Tests of one piece per lobe and lungs without holes."""

from __future__ import annotations

import numpy as np
import torch
from monai.data import MetaTensor
from pdvnet_lung.clean_up import CleanLobesd, GrowLobesd, TrimLobesd, clean_lobes, grow_lobes, trim_lobes
from scipy import ndimage


def lobes() -> np.ndarray:
    labels = np.zeros((12, 9, 10), np.uint8)
    labels[1:6, 1:8, 1:5] = 2
    labels[1:6, 1:8, 5:9] = 1
    labels[8:11, 2:7, 2:8] = 5
    return labels


def test_clean_lobes_stay():
    for labels in (lobes(), np.zeros((4, 5, 6), np.uint8)):
        clean, removed = clean_lobes(labels)
        np.testing.assert_array_equal(clean, labels)
        assert removed == 0


def test_islands_go_to_the_lobe_around_them_or_vanish():
    labels = lobes()
    labels[2:4, 2:4, 6] = 2  # inside lobe 1
    labels[1, 4, 7] = 5  # at the surface of lobe 1
    labels[11, 8, 9] = 3  # the only piece of its lobe
    labels[7, 0, 9] = 1  # in the air
    expected = lobes()
    expected[11, 8, 9] = 3
    clean, removed = clean_lobes(labels)
    np.testing.assert_array_equal(clean, expected)
    assert removed == 3


def test_holes_go_to_the_nearest_lobe_and_notches_stay():
    labels = lobes()
    labels[3:5, 3:5, 2] = 0
    labels[3, 4, 6:8] = 0
    labels[1, 2, 3] = 0  # open to the outside
    expected = lobes()
    expected[1, 2, 3] = 0
    np.testing.assert_array_equal(clean_lobes(labels)[0], expected)


def test_more_pieces_than_sixteen_bits_can_number():
    labels = np.zeros((51, 51, 52), np.uint8)
    labels[np.indices(labels.shape).sum(axis=0) % 2 == 0] = 3  # no two voxels share a face
    labels[1, 0, 0] = 3  # joins four neighbours
    clean, removed = clean_lobes(labels)
    assert removed > 65_535
    assert np.count_nonzero(clean) == 5


def test_any_order_in_memory_gives_the_same():
    labels = lobes()
    labels[2:4, 2:4, 6] = 2
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        stored = np.ascontiguousarray(labels.transpose(order)).transpose(np.argsort(order))
        np.testing.assert_array_equal(clean_lobes(stored)[0], lobes())


def test_dictionary_form_keeps_the_geometry():
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))
    labels = lobes()
    labels[3, 4, 7] = 0
    out = CleanLobesd("pred")({"pred": MetaTensor(torch.from_numpy(labels)[None], affine=affine)})["pred"]
    np.testing.assert_array_equal(out[0].numpy(), lobes())
    torch.testing.assert_close(out.affine, affine)
    assert out.meta["quality"] == {"removed_pieces": 0}


def test_missed_lung_goes_to_the_nearest_lobe():
    """Cells of 2 voxels along x, 3 along y and 1 along z."""
    labels = np.zeros((12, 9, 10), np.uint8)
    labels[:6, :, 5:9], labels[:6, :, 1:3] = 1, 2
    lungs = torch.zeros(6, 3, 10)
    lungs[:3, :, 1:9] = 1
    expected = labels.copy()
    expected[:6, :, 4], expected[:6, :, 3] = 1, 2
    grow_lobes(labels, lungs, np.array([2.0, 1.5, 3.0]))
    np.testing.assert_array_equal(labels, expected)


def test_lung_far_from_every_lobe_and_lung_without_lobes_stay_background():
    labels = np.zeros((12, 9, 10), np.uint8)
    grow_lobes(labels, torch.ones(6, 3, 10), np.ones(3))
    assert not labels.any()
    labels[1] = 3
    grow_lobes(labels, torch.ones(6, 3, 10), np.array([5.0, 1.0, 1.0]))
    assert labels[8].all()
    assert not labels[10:].any()


def test_growth_in_the_orientation_of_the_file():
    """The file runs from superior to inferior, from left to right and from posterior to anterior."""
    upright = np.zeros((6, 8, 10), np.uint8)
    upright[1:5, 2:6, 2:4] = 4
    lungs = torch.zeros(1, 6, 8, 10)
    lungs[:, 1:5, 2:6, 2:9] = 1
    grown = upright.copy()
    grown[1:5, 2:6, 2:9] = 4
    affine = np.array([[0, 2.0, 0, 5], [0, 0, 2.5, 6], [-3.0, 0, 0, 7], [0, 0, 0, 1]])
    stored = torch.from_numpy(upright.transpose(2, 0, 1)[::-1].copy())[None]
    out = GrowLobesd("pred")({"pred": MetaTensor(stored, affine=affine), "lungs": lungs})["pred"]
    np.testing.assert_array_equal(out[0].numpy(), grown.transpose(2, 0, 1)[::-1])
    np.testing.assert_array_equal(out.affine, affine)


def test_trimming_takes_tissue_out_of_the_rim_and_leaves_it_inside():
    """Voxels of 1x1.5x3 mm: the rim is 3, 2 and 1 voxels wide."""
    labels = np.zeros((20, 16, 12), np.uint8)
    labels[2:18, 2:14, 2:10] = 4
    aerated = np.zeros(labels.shape, np.uint8)
    aerated[4:16, 3:13, 3:9] = 1
    aerated[9, 8, 5] = 0  # a vessel
    expected = np.zeros_like(labels)
    expected[4:16, 3:13, 3:9] = 4
    expected[9, 8, 5] = 4
    trim_lobes(labels, aerated, np.array([1.0, 1.5, 3.0]))
    np.testing.assert_array_equal(labels, expected)


def test_trimming_follows_the_orientation_of_the_labels():
    labels = np.zeros((6, 7, 9), np.uint8)
    labels[1:5, 1:6, 1:8] = 2
    aerated = np.zeros((1, 7, 6, 9), np.uint8)  # along R, A, S
    aerated[0, 2:5, 2:4, 2:7] = 1
    affine = np.zeros((4, 4))  # stored along P, L, I
    affine[1, 0], affine[0, 1], affine[2, 2], affine[3, 3] = -3.0, -3.0, -3.0, 1
    data = {
        "pred": MetaTensor(torch.from_numpy(labels)[None], affine=affine),
        "aerated": torch.from_numpy(np.packbits(aerated, axis=3)),
    }
    trimmed = TrimLobesd("pred")(data)["pred"][0].numpy()
    stored = aerated[0].transpose(1, 0, 2)[::-1, ::-1, ::-1]
    assert trimmed[2, 3, 4] == 2
    np.testing.assert_array_equal(trimmed > 0, (stored > 0) | (ndimage.binary_erosion(labels, np.ones((3, 3, 3)))))
