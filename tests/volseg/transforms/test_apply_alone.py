# SPDX-License-Identifier: Apache-2.0
"""A pipeline among entries that are not its own."""

from __future__ import annotations

import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, Spacingd

from volseg.transforms.entries import ApplyAlone


def test_other_entries_stay_and_are_not_seen():
    seen = []

    def transform(data):
        seen.append(dict(data))
        return {"image": 2 * data["image"]}

    assert ApplyAlone("image", transform)({"image": 3, "image_path": "a"}) == {"image": 6, "image_path": "a"}
    assert seen == [{"image": 3}]


def test_spacing_beside_a_path_can_be_inverted():
    preprocessing = Compose([Spacingd("image", (2.0, 2.0, 2.0))])
    request = {"image": MetaTensor(torch.rand(1, 8, 8, 8)), "image_path": "a.nii.gz"}
    data = ApplyAlone("image", preprocessing)(request)
    assert data["image"].shape == (1, 4, 4, 4)
    data["pred"] = MetaTensor(torch.zeros(1, 4, 4, 4))
    assert Invertd("pred", preprocessing, "image")(data)["pred"].shape == (1, 8, 8, 8)
