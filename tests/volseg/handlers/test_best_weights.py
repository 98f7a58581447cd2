# SPDX-License-Identifier: Apache-2.0
"""Tests of keeping the weights that validate best."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator, Trainer
from torch import nn

from volseg.errors import UserError
from volseg.handlers.best_weights import BestWeights


class Growing(Trainer):
    """A trainer whose network's only weight is the number of iterations so far."""

    def __init__(self, network: nn.Module, epochs: int) -> None:
        super().__init__(device=torch.device("cpu"), max_epochs=epochs, data_loader=[0])
        self.network = network

    def _iteration(self, engine: Engine, batch: int) -> None:
        self.network.weight.data += 1


class Validator(Engine):
    """Finds the given metrics, one per run, whatever the weights."""

    def __init__(self, metrics: Iterable[float]) -> None:
        super().__init__(lambda engine, batch: None)
        self.state.key_metric_name = "val_mean_dice"
        values = iter(metrics)
        self.add_event_handler(
            Events.EPOCH_COMPLETED, lambda e: e.state.metrics.update({"val_mean_dice": next(values)})
        )

    def run(self, epoch: int = 1) -> None:
        super().run([0])


def train(
    handler: BestWeights,
    metrics: list[float],
    epochs: int | None = None,
    before: list[float] | None = None,
    installed: float | None = None,
) -> None:
    """Train one epoch for each metric that validation finds, after one validation for each metric in ``before``.

    ``installed`` is what validation finds of the installed weights.
    """
    evaluator = Validator([*(before or []), *metrics, *([] if installed is None else [installed])])
    handler.attach(evaluator)
    trainer = Growing(handler.network, epochs or len(metrics))
    if metrics:
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda trainer: evaluator.run(trainer.state.epoch))
    handler.attach(trainer)
    for _ in before or []:
        evaluator.run()
    trainer.run()


def new(folder: Path, size: Sequence[int] = (8, 16, 24), install: bool = False, keep_last: bool = False) -> BestWeights:
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    return BestWeights(
        str(folder / "best.pt"),
        network,
        {"spatial_size": size, "seed": 0},
        str(folder / "model.pt"),
        settings=["spatial_size"],
        install=install,
        keep_last=keep_last,
    )


def saved(path: Path) -> tuple[float, dict]:
    """The only weight, and the record without the SHA-256, which is that of the file."""
    record = json.loads(path.with_suffix(".json").read_text())
    assert record.pop("sha256") == hashlib.sha256(path.read_bytes()).hexdigest()
    return torch.load(path, weights_only=True)["weight"].item(), record


@pytest.mark.parametrize(
    ("metrics", "best"),
    [([0.1, 0.5, 0.4], 2), ([0.3, 0.3, 0.2], 1), ([0.0, 0.0, 0.0], 1), ([0.1, 0.2, 0.3], 3)],
)
def test_best_epoch_is_kept(tmp_path, metrics, best):
    handler = new(tmp_path)
    train(handler, metrics)
    record = {"spatial_size": [8, 16, 24], "seed": 0, "epoch": best, "val_mean_dice": metrics[best - 1]}
    assert saved(tmp_path / "model.pt") == (best, record)
    assert handler.state_dict() == {"best_metric": metrics[best - 1], "best_epoch": best}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.json", "best.pt", "model.json", "model.pt"]


def test_metric_of_nothing_is_no_best(tmp_path):
    train(new(tmp_path), [float("nan"), 0.2, 0.1])
    assert saved(tmp_path / "model.pt")[0] == 2


@pytest.mark.parametrize("metrics", [[], [float("nan")] * 3])
def test_training_without_validation_saves_the_last_weights(tmp_path, metrics):
    train(new(tmp_path), metrics, epochs=3)
    assert saved(tmp_path / "model.pt") == (3, {"spatial_size": [8, 16, 24], "seed": 0, "epoch": 3})


def test_released_weights_are_kept_through_any_number_of_trainings(tmp_path):
    train(new(tmp_path), [0.9])
    released = saved(tmp_path / "model.pt")
    for metrics in ([0.1, 0.2], [0.1, 0.2, 0.3]):
        train(new(tmp_path), metrics, installed=0.15)
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
    train(resumed, [0.4, 0.45], installed=0.2)
    assert saved(tmp_path / "model.pt")[1]["val_mean_dice"] == 0.5
    train(resumed, [0.6], installed=0.5)
    assert saved(tmp_path / "model.pt")[1]["val_mean_dice"] == 0.6


def test_weights_that_no_epoch_beats_stay(tmp_path):
    train(new(tmp_path), [0.9])
    installed = saved(tmp_path / "model.pt")
    train(new(tmp_path), [0.5, 0.6], before=[0.7])
    assert saved(tmp_path / "model.pt") == installed
    train(new(tmp_path), [0.5, 0.8], before=[0.7], installed=0.7)
    assert saved(tmp_path / "model.pt")[1]["val_mean_dice"] == 0.8
    assert saved(tmp_path / "model_released.pt") == installed


def test_validation_before_a_resume_leaves_the_best_of_the_epochs_before(tmp_path):
    first = new(tmp_path)
    train(first, [0.3, 0.5])
    resumed = new(tmp_path)
    resumed.attach(evaluator := Validator([0.2]))
    evaluator.run()
    resumed.load_state_dict(first.state_dict())
    train(resumed, [0.4], installed=0.2)
    assert saved(tmp_path / "model.pt")[1] == {"spatial_size": [8, 16, 24], "seed": 0, "epoch": 2, "val_mean_dice": 0.5}


def test_evaluator_of_monai_is_no_trainer(tmp_path):
    handler = new(tmp_path)
    evaluator = SupervisedEvaluator(torch.device("cpu"), [], handler.network)
    handler.attach(evaluator)
    assert evaluator.has_event_handler(handler._validated, Events.EPOCH_COMPLETED)
    assert not evaluator.has_event_handler(handler._complete, Events.COMPLETED)


@pytest.mark.parametrize("installed", [0.5, 0.7])
def test_installed_weights_that_validate_better_stay(tmp_path, caplog, installed):
    train(new(tmp_path), [0.9])
    before = saved(tmp_path / "model.pt")
    handler = new(tmp_path)
    train(handler, [0.4, 0.5, 0.3], installed=installed)
    assert saved(tmp_path / "model.pt") == before
    assert saved(tmp_path / "best.pt")[0] == 2
    assert handler.network.weight.item() == 3  # the training's own
    assert handler.state_dict() == {"best_metric": 0.5, "best_epoch": 2}
    assert caplog.messages[-1] == (
        f"{tmp_path}/model.pt stays as it is: on the same cases its val_mean_dice is {installed:.4f}, that of the new "
        "weights 0.5000. "
        f"--install True replaces it by {tmp_path}/best.pt"
    )


def test_weights_that_cannot_be_compared_stay(tmp_path, caplog):
    train(new(tmp_path), [0.1])
    before = (tmp_path / "model.json").read_text()
    train(new(tmp_path, size=(8, 16, 32)), [0.9])
    assert "another spatial_size, so that validation cannot compare the two" in caplog.text
    train(new(tmp_path), [], epochs=2)
    assert "nothing was validated" in caplog.text
    (tmp_path / "model.pt").write_bytes(b"damaged")
    train(new(tmp_path), [0.9])
    assert "model.pt: must hold weights as torch.save writes" in caplog.text
    assert (tmp_path / "model.pt").read_bytes() == b"damaged"
    assert (tmp_path / "model.json").read_text() == before


def test_weights_are_installed_by_name(tmp_path):
    train(new(tmp_path), [0.9])
    train(new(tmp_path, size=(8, 16, 32), install=True), [0.1])
    assert saved(tmp_path / "model.pt")[1]["spatial_size"] == [8, 16, 32]


def test_the_last_weights_are_kept_on_request(tmp_path):
    train(new(tmp_path, keep_last=True), [0.9, 0.1, 0.5])  # the only weight grows by 1 an epoch
    assert saved(tmp_path / "best.pt") == saved(tmp_path / "model.pt")
    assert (saved(tmp_path / "model.pt")[0], saved(tmp_path / "model.pt")[1]["epoch"]) == (3, 3)


@pytest.mark.parametrize(("before", "is_installed"), [(0.4, True), (0.5, False), (0.7, False)])
def test_last_weights_no_better_than_those_at_the_start_are_not_installed(tmp_path, before, is_installed):
    train(new(tmp_path, keep_last=True), [0.9, 0.5], before=[before])
    assert (tmp_path / "model.pt").exists() == is_installed


def test_the_last_weights_are_compared_with_those_installed(tmp_path):
    train(new(tmp_path), [0.6, 0.5])
    before = (tmp_path / "model.pt").read_bytes()
    # their first epoch was better than what is installed, but it is not what is kept
    train(new(tmp_path, keep_last=True), [0.9, 0.1], installed=0.6)
    assert (tmp_path / "model.pt").read_bytes() == before


class Diverging(Growing):
    """Its loss is the given one in the second epoch."""

    def __init__(self, network: nn.Module, loss: float) -> None:
        super().__init__(network, 3)
        self.loss = loss

    def _iteration(self, engine: Engine, batch: int) -> list[dict[str, torch.Tensor]]:
        super()._iteration(engine, batch)
        return [{"loss": torch.tensor(self.loss if engine.state.epoch == 2 else 0.5)}]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_training_that_diverges_ends_and_installs_nothing(tmp_path: Path, loss: float):
    handler = new(tmp_path)
    evaluator = Validator([0.25])
    handler.attach(evaluator)
    trainer = Diverging(handler.network, loss)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda trainer: evaluator.run(trainer.state.epoch))
    handler.attach(trainer)
    with pytest.raises(
        UserError,
        match=rf"the loss became {loss} in epoch 2: .*; lower --learning_rate or set --amp False, or use .* 1, ",
    ):
        trainer.run()
    assert saved(tmp_path / "best.pt")[0] == 1
    assert not (tmp_path / "model.pt").exists()


def test_a_training_that_finds_nothing_draws_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    train(new(tmp_path), [0.0, 0.0])
    assert "val_mean_dice is 0 after every epoch: the network finds nothing" in caplog.text
