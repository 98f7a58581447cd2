# SPDX-License-Identifier: Apache-2.0
"""The crops of the paper's recipe are as much larger than its blocks as the augmentation may reach."""

from __future__ import annotations

from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from volseg.transforms.sections.in_plane import size_with_margins

CONFIGS = Path(__file__).resolve().parents[3] / "bundles" / "resunet_mitoem" / "configs"


@pytest.mark.parametrize(
    ("names", "block"),
    [(["train"], (256, 256)), (["train", "train_second_stage"], (320, 320))],
    ids=["stage 1", "stage 2"],
)
def test_crops_have_the_margin_that_the_transforms_need(names, block, tmp_path):
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / f"{name}.json") for name in names])
    parser["dataset_dir"] = str(tmp_path)
    assert tuple(parser.get_parsed_content("spatial_size"))[1:] == block
    crop, *transforms = parser.get_parsed_content("train#preprocessing").transforms
    height, width = size_with_margins(transforms, block)
    assert crop.spatial_size[1] == crop.spatial_size[2]
    # and not much larger: every pixel of the margin is read, augmented and thrown away
    assert max(height, width) <= crop.spatial_size[1] <= max(height, width) + 16
