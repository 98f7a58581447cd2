# SPDX-License-Identifier: Apache-2.0
"""Tests of volume fractions."""

from __future__ import annotations

import torch
from monai.data import MetaTensor

from volseg.transforms.grid_resize import SoftTargetd, soft_target


def test_voxel_in_two_cells_counts_for_both():
    label = torch.tensor([0, 2, 2])[:, None, None].expand(3, 4, 6)
    target = soft_target(label, 3, (2, 2, 2))
    assert target.shape == (3, 2, 2, 2)
    assert target.dtype == torch.float32
    expected = torch.tensor([[2 / 3, 0], [0, 0], [1 / 3, 1]])[:, :, None, None].expand(3, 2, 2, 2)
    torch.testing.assert_close(target, expected)


def test_fractions_add_up_to_one_and_keep_each_volume():
    label = torch.randint(0, 6, (9, 7, 13), generator=torch.Generator().manual_seed(0))
    target = soft_target(label, 6, (4, 5, 3))
    torch.testing.assert_close(target.sum(dim=0), torch.ones(4, 5, 3))
    share = torch.stack([(label == c).float().mean() for c in range(6)])
    torch.testing.assert_close(target.mean(dim=(1, 2, 3)), share)


def test_same_grid_is_one_hot():
    label = torch.randint(0, 4, (3, 4, 5), generator=torch.Generator().manual_seed(0))
    target = soft_target(label, 4, (3, 4, 5))
    torch.testing.assert_close(target, torch.nn.functional.one_hot(label, 4).movedim(-1, 0).float())


def test_dictionary_form_takes_channel_first_labels():
    label = torch.randint(0, 3, (1, 4, 6, 8), generator=torch.Generator().manual_seed(0)).float()
    data = {"label": MetaTensor(label), "image": "untouched"}
    out = SoftTargetd("label", num_classes=3, spatial_size=[2, 3, 8])(data)
    torch.testing.assert_close(torch.as_tensor(out["label"]), soft_target(label[0], 3, (2, 3, 8)))
    assert out["image"] == "untouched"
    assert data["label"].shape == (1, 4, 6, 8)
