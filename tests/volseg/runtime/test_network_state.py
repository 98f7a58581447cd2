# SPDX-License-Identifier: Apache-2.0
"""What a converted network depends on."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from volseg.runtime.network_state import digest, fingerprint


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2), nn.LeakyReLU(0.1)).eval()


def test_a_copy_has_the_digest_of_the_original_and_another_fingerprint(network):
    other = copy.deepcopy(network)
    assert digest(other, "1.0") == digest(network, "1.0")
    assert fingerprint(other) != fingerprint(network)
    assert fingerprint(network) == fingerprint(network)
    assert len(digest(network)) == 64


@torch.no_grad()
@pytest.mark.parametrize("change", ["weight", "data", "statistics", "slope", "stride", "layer", "version"])
def test_every_change_changes_it(network, change):
    before, versions = digest(network, "1.0"), ("1.0",)
    seen = fingerprint(network)
    if change == "weight":
        network[0].weight[1, 0, 2, 1, 0] += 1e-3
    elif change == "data":
        network[0].bias.data[1] += 1e-3
    elif change == "statistics":
        network[1].running_var *= 2
    elif change == "slope":
        network[2].negative_slope = 0.2
    elif change == "stride":
        network[0].stride = (2, 1, 1)
    elif change == "layer":
        network[2] = nn.ELU()
    else:
        versions = ("1.1",)
    assert digest(network, *versions) != before
    assert (fingerprint(network) != seen) == (change in ("weight", "data", "statistics"))


def test_training_or_not_is_no_change(network):
    assert digest(network) == digest(network.train())
