# SPDX-License-Identifier: Apache-2.0
"""Random predictions with dropout."""

from __future__ import annotations

import torch
from torch import nn

from volseg.inferers.monte_carlo_dropout import MonteCarloDropoutInferer

INPUT = torch.ones(2, 3, 4, 4, 4)


def test_network_in_evaluation_mode_runs_as_it_is():
    network = nn.Sequential(nn.BatchNorm3d(3), nn.Dropout(0.5)).eval()
    torch.testing.assert_close(MonteCarloDropoutInferer()(INPUT, network), network(INPUT))


def test_of_a_network_in_training_mode_only_dropout_stays_in_it():
    network = nn.Sequential(nn.BatchNorm3d(3), nn.Dropout(0.5)).train()
    inferer = MonteCarloDropoutInferer()
    first, second = inferer(INPUT, network), inferer(INPUT, network)
    assert not torch.equal(first, second)  # random in the second call too
    assert network[0].num_batches_tracked == 0
    assert set(first.unique().tolist()) == {0.0, 2 * INPUT[:1, :1].div((1 + network[0].eps) ** 0.5).max().item()}
