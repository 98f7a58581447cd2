# SPDX-License-Identifier: Apache-2.0
"""Tests of loading weights when an engine starts."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine
from torch import nn

from volseg.errors import UserError
from volseg.handlers.load_weights import WeightsCheckpointLoader
from volseg.weights import save_weights


def test_weights_are_there_when_the_first_batch_runs(tmp_path):
    path, network = tmp_path / "model.pt", nn.Linear(2, 3)
    trained = nn.Linear(2, 3)
    seen = []
    engine = Engine(lambda engine, batch: seen.append(network.weight.detach().clone()))
    WeightsCheckpointLoader(str(path), network).attach(engine)
    save_weights(path, trained, {})  # after attaching: a bundle may fetch weights while it is set up
    assert not torch.equal(network.weight, trained.weight)
    engine.run([0])
    assert torch.equal(seen[0], trained.weight)


def test_missing_weights_end_the_run(tmp_path):
    engine = Engine(lambda engine, batch: None)
    WeightsCheckpointLoader(str(tmp_path / "model.pt"), nn.Linear(2, 3)).attach(engine)
    with pytest.raises(UserError, match=r"model\.pt: no weights there"):
        engine.run([0])
    assert engine.state.iteration == 0
