# SPDX-License-Identifier: Apache-2.0
"""Tests of keeping the weights that validate best."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator, Trainer
from torch import nn

from volseg.handlers.best_weights import BestWeights


class Growing(Trainer):
    """A trainer whose network's only weight is the number of iterations so far."""

    def __init__(self, network: nn.Module, epochs: int) -> None:
        super().__init__(device=torch.device("cpu"), max_epochs=epochs, data_loader=[0])
        self.network = network

    def _iteration(self, engine: Engine, batch: int) -> None:
        self.network.weight.data += 1


def train(
    handler: BestWeights, metrics: list[float], epochs: int | None = None, before: list[float] | None = None
) -> None:
    """Train one epoch for each metric that validation finds, after one validation for each metric in ``before``."""
    metrics = [*(before or []), *metrics]
    values = iter(metrics)
    evaluator = Engine(lambda engine, batch: None)
    evaluator.state.key_metric_name = "val_mean_dice"
    evaluator.add_event_handler(
        Events.EPOCH_COMPLETED, lambda e: e.state.metrics.update({"val_mean_dice": next(values)})
    )
    handler.attach(evaluator)
    trainer = Growing(handler.network, epochs or len(metrics) - len(before or []))
    if metrics:
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run([0]))
    handler.attach(trainer)
    for _ in before or []:
        evaluator.run([0])
    trainer.run()


def new(folder: Path) -> BestWeights:
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    return BestWeights(str(folder / "best.pt"), network, {"spatial_size": [8, 16, 24]}, str(folder / "model.pt"))


def saved(path: Path) -> tuple[float, dict]:
    return torch.load(path, weights_only=True)["weight"].item(), json.loads(path.with_suffix(".json").read_text())


@pytest.mark.parametrize(
    ("metrics", "best"),
    [([0.1, 0.5, 0.4], 2), ([0.3, 0.3, 0.2], 1), ([0.0, 0.0, 0.0], 1), ([0.1, 0.2, 0.3], 3)],
)
def test_best_epoch_is_kept(tmp_path, metrics, best):
    handler = new(tmp_path)
    train(handler, metrics)
    record = {"spatial_size": [8, 16, 24], "epoch": best, "val_mean_dice": metrics[best - 1]}
    assert saved(tmp_path / "model.pt") == (best, record)
    assert handler.state_dict() == {"best_metric": metrics[best - 1], "best_epoch": best}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.json", "best.pt", "model.json", "model.pt"]


def test_metric_of_nothing_is_no_best(tmp_path):
    train(new(tmp_path), [float("nan"), 0.2, 0.1])
    assert saved(tmp_path / "model.pt")[0] == 2


@pytest.mark.parametrize("metrics", [[], [float("nan")] * 3])
def test_training_without_validation_saves_the_last_weights(tmp_path, metrics):
    train(new(tmp_path), metrics, epochs=3)
    assert saved(tmp_path / "model.pt") == (3, {"spatial_size": [8, 16, 24], "epoch": 3})


def test_released_weights_are_kept_through_any_number_of_trainings(tmp_path):
    train(new(tmp_path), [0.9])
    released = saved(tmp_path / "model.pt")
    for metrics in ([0.1, 0.2], [0.1, 0.2, 0.3]):
        train(new(tmp_path), metrics)
        assert saved(tmp_path / "model.pt")[1]["val_mean_dice"] == metrics[-1]
        assert saved(tmp_path / "model_released.pt") == released
    assert len(list(tmp_path.iterdir())) == 6


def test_training_that_is_cut_off_changes_no_installed_weights(tmp_path):
    train(new(tmp_path), [0.9])
    installed = saved(tmp_path / "model.pt")
    with pytest.raises(RuntimeError, match="StopIteration"):  # no third validation: the training ends there
        train(new(tmp_path), [0.1, 0.2], epochs=3)
    assert saved(tmp_path / "best.pt")[0] == 2
    assert saved(tmp_path / "model.pt") == installed


def test_resumed_training_knows_the_best(tmp_path):
    first = new(tmp_path)
    train(first, [0.3, 0.5])
    resumed = new(tmp_path)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    train(resumed, [0.4, 0.45])
    assert saved(tmp_path / "model.pt")[1]["val_mean_dice"] == 0.5
    train(resumed, [0.6])
    assert saved(tmp_path / "model.pt")[1]["val_mean_dice"] == 0.6


def test_weights_that_no_epoch_beats_stay(tmp_path):
    train(new(tmp_path), [0.9])
    installed = saved(tmp_path / "model.pt")
    train(new(tmp_path), [0.5, 0.6], before=[0.7])
    assert saved(tmp_path / "model.pt") == installed
    train(new(tmp_path), [0.5, 0.8], before=[0.7])
    assert saved(tmp_path / "model.pt")[1]["val_mean_dice"] == 0.8
    assert saved(tmp_path / "model_released.pt") == installed


def test_validation_before_a_resume_leaves_the_best_of_the_epochs_before(tmp_path):
    first = new(tmp_path)
    train(first, [0.3, 0.5])
    resumed = new(tmp_path)
    resumed.attach(evaluator := Engine(lambda engine, batch: None))
    evaluator.state.key_metric_name = "val_mean_dice"
    evaluator.add_event_handler(Events.EPOCH_STARTED, lambda e: e.state.metrics.update({"val_mean_dice": 0.2}))
    evaluator.run([0])
    resumed.load_state_dict(first.state_dict())
    train(resumed, [0.4])
    assert saved(tmp_path / "model.pt")[1] == {"spatial_size": [8, 16, 24], "epoch": 2, "val_mean_dice": 0.5}


def test_evaluator_of_monai_is_no_trainer(tmp_path):
    handler = new(tmp_path)
    evaluator = SupervisedEvaluator(torch.device("cpu"), [], handler.network)
    handler.attach(evaluator)
    assert evaluator.has_event_handler(handler._validated, Events.EPOCH_COMPLETED)
    assert not evaluator.has_event_handler(handler._complete, Events.COMPLETED)
