# SPDX-License-Identifier: Apache-2.0
"""A 2-D network on every slice of a volume."""

from __future__ import annotations

import torch
from pdvnet_lung.comparisons import SliceWise


def test_each_slice_is_seen_alone_and_keeps_its_place():
    torch.manual_seed(0)
    plane = torch.nn.Conv2d(2, 3, kernel_size=3, padding=1)
    volume = torch.rand(2, 2, 5, 7, 4)
    result = SliceWise(plane)(volume)
    assert result.shape == (2, 3, 5, 7, 4)
    for k in range(4):
        assert torch.allclose(result[..., k], plane(volume[..., k]), atol=1e-6)
