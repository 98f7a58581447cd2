# SPDX-License-Identifier: Apache-2.0
"""What the profile of OpenVINO calls things."""

from __future__ import annotations

import pytest
from torch import nn

from tools.bench.openvino_profile import NARROW, WIDE, describe_profile, openvino_profile


def test_convolutions_are_told_apart_by_their_width():
    network = nn.Sequential(nn.Conv3d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv3d(32, 4, 3, padding=1)).eval()
    profile = openvino_profile(network, (64, 48, 32), runs=1)
    assert min(profile[NARROW], profile[WIDE]) > 0
    assert sum(profile.values()) == pytest.approx(1)
    assert list(profile.values()) == sorted(profile.values(), reverse=True)


def test_the_largest_shares_make_a_sentence():
    shares = {"a": 0.5, "b": 0.3, "c": 0.1, "d": 0.06, "e": 0.04}
    assert describe_profile(shares) == "OpenVINO's time: a 50%, b 30%, c 10%, d 6%"
