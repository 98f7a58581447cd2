# SPDX-License-Identifier: Apache-2.0
"""Tests of the check of label maps."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from volseg.errors import UserError
from volseg.transforms.checks import CheckLabelsd


def label(*values: float) -> dict[str, MetaTensor]:
    voxels = torch.tensor(values).reshape(1, -1, 1, 1).expand(1, -1, 2, 3)
    return {"label": MetaTensor(voxels.clone(), affine=2 * torch.eye(4), meta={"filename_or_obj": "s1.nii.gz"})}


def test_labels_of_a_file_with_a_scale_slope_are_rounded():
    data = label(0, 1.00000012, 3.9999998, 5.0000005)
    checked = CheckLabelsd("label", 6)(data)["label"]
    assert checked[0, :, 0, 0].tolist() == [0, 1, 4, 5]
    assert checked.shape == (1, 4, 2, 3)
    assert torch.equal(checked.affine, data["label"].affine)
    assert checked.meta["filename_or_obj"] == "s1.nii.gz"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0.5, r"s1\.nii\.gz: label codes are not whole numbers, got 0\.5;"),
        (4.998, "whole numbers"),
        (float("nan"), "whole numbers"),
        (float("inf"), "whole numbers"),
        (6, r"s1\.nii\.gz: labels must be 0 to 5, got \[0, 1, 6\]"),
        (-1, r"must be 0 to 5, got \[-1, 0, 1\]"),
    ],
)
def test_what_is_no_label(value, message):
    with pytest.raises(UserError, match=message):
        CheckLabelsd("label", 6)(label(0, 1, value))


def test_greatest_label_and_missing_key():
    assert CheckLabelsd("label", 6)(label(0, 5))["label"].max() == 5
    assert CheckLabelsd("label", 6, allow_missing_keys=True)({"image": 1}) == {"image": 1}


def test_zones_and_masks_of_255_are_joined_on_request():
    with pytest.raises(UserError, match=r"labels must be 0 to 1, got \[0, 255\]; give --join_labels True"):
        CheckLabelsd("label", 2)(label(0, 255))
    for values in ((0, 255, 0), (0, 1, 2)):
        joined = CheckLabelsd("label", 2, join=True)(label(*values))["label"]
        assert joined[0, :, 0, 0].tolist() == [min(value, 1) for value in values]
    with pytest.raises(UserError, match=r"got \[-1, 0, 1\]; convert"):
        CheckLabelsd("label", 2)(label(-1, 0, 1))


def test_an_empty_map_draws_a_warning(caplog):
    CheckLabelsd("label", 6)(label(0, 0))
    assert [record.getMessage() for record in caplog.records] == [
        "s1.nii.gz: the label map is empty; label the structure, or leave the case out"
    ]


def test_a_map_without_background_draws_a_warning(caplog):
    CheckLabelsd("label", 6)(label(1, 2))
    assert "s1.nii.gz: no voxel is background (0);" in caplog.text
