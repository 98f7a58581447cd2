# SPDX-License-Identifier: Apache-2.0
"""Tests of continuing a training that was cut off."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import MeanSquaredError, ValidationHandler, from_engine
from monai.transforms import Compose, RandFlipd, RandGaussianNoised
from torch import nn

from volseg.errors import UserError
from volseg.handlers.best_weights import BestWeights
from volseg.handlers.epoch import EpochSeed
from volseg.handlers.training_checkpoint import TrainingCheckpointLoader

SHAPE = (1, 4, 3, 2)
EPOCHS = 5


class KilledError(Exception):
    """Stands for the end of the process."""


class Training:
    """A tiny training with shuffling, random transforms, dropout, batch normalisation, momentum and validation."""

    def __init__(self, folder: Path, dropout: float = 0.3, resume: bool = True, seed: int = 0) -> None:
        torch.manual_seed(99)
        self.network = nn.Sequential(
            nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.PReLU(4), nn.Dropout(dropout), nn.Conv3d(4, 1, 1)
        )
        optimizer = torch.optim.Adam(self.network.parameters(), lr=0.01)
        g = torch.Generator().manual_seed(5)
        cases = [{"image": torch.randn(SHAPE, generator=g), "label": torch.randn(SHAPE, generator=g)} for _ in range(5)]
        keys = ["image", "label"]
        transform = Compose([RandFlipd(keys, prob=0.5, spatial_axis=1), RandGaussianNoised("image", prob=0.7)])
        dataset = Dataset(cases, transform)
        evaluator = SupervisedEvaluator(
            torch.device("cpu"),
            DataLoader(Dataset(cases[:2]), batch_size=2),
            self.network,
            key_val_metric={"error": MeanSquaredError(output_transform=from_engine(["pred", "label"]))},
        )
        self.best = BestWeights(str(folder / "best.pt"), self.network, {}, str(folder / "model.pt"))
        self.best.attach(evaluator)
        self.losses: list[float] = []
        self.trainer = SupervisedTrainer(
            device=torch.device("cpu"),
            max_epochs=EPOCHS,
            train_data_loader=DataLoader(dataset, batch_size=2, shuffle=True),
            network=self.network,
            optimizer=optimizer,
            loss_function=nn.MSELoss(),
            train_handlers=[
                ValidationHandler(1, evaluator, epoch_level=True),
                EpochSeed(seed, dataset),
                self.best,
                TrainingCheckpointLoader(
                    str(folder / "checkpoint.pt"),
                    {"network": self.network, "optimizer": optimizer, "best_weights": self.best},
                    seed,
                    resume,
                ),
            ],
        )
        self.trainer.add_event_handler(
            Events.ITERATION_COMPLETED, lambda e: self.losses.append(float(e.state.output[0]["loss"]))
        )

    def run(self, kill_after_iteration: int | None = None) -> Training:
        """Run to the end, or to the end of an iteration (an epoch has three)."""

        def kill(engine: Any) -> None:
            if engine.state.iteration == kill_after_iteration:
                raise KilledError

        self.trainer.add_event_handler(Events.ITERATION_COMPLETED, kill)
        logging.getLogger("monai").disabled = logging.getLogger("ignite").disabled = True
        try:
            self.trainer.run()
        except KilledError:
            assert kill_after_iteration is not None
        finally:
            logging.getLogger("monai").disabled = logging.getLogger("ignite").disabled = False
        return self


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> tuple[Path, Training]:
    folder = tmp_path_factory.mktemp("unbroken")
    return folder, Training(folder).run()


@pytest.mark.parametrize("kill_after_iteration", [4, 6, 11])  # amid an epoch, at its end (not validated yet), late
def test_resumed_training_equals_an_unbroken_one(tmp_path, unbroken, kill_after_iteration):
    folder, expected = unbroken
    Training(tmp_path).run(kill_after_iteration)
    torch.rand(17)  # another process has drawn other numbers
    resumed = Training(tmp_path).run()
    kept = 3 * ((kill_after_iteration - 1) // 3)  # iterations of the epochs that were whole
    assert resumed.losses == expected.losses[kept:]
    torch.testing.assert_close(resumed.network.state_dict(), expected.network.state_dict(), rtol=0, atol=0)
    assert resumed.best.state_dict() == expected.best.state_dict()
    assert (tmp_path / "model.json").read_text() == (folder / "model.json").read_text()
    best, expected_best = (torch.load(f / "model.pt", weights_only=True) for f in (tmp_path, folder))
    torch.testing.assert_close(best, expected_best, rtol=0, atol=0)
    assert not (tmp_path / "model_previous.pt").exists()


def test_runs_differ_where_they_should(unbroken, tmp_path):
    losses = unbroken[1].losses
    assert len(losses) == 3 * EPOCHS == len(set(losses))
    assert Training(tmp_path, seed=1).run().losses != losses


def test_completed_training_begins_anew(tmp_path, unbroken):
    names = ["best.json", "best.pt", "checkpoint_completed.pt", "model.json", "model.pt"]
    assert sorted(p.name for p in unbroken[0].iterdir()) == names
    Training(tmp_path).run(kill_after_iteration=7)
    assert (tmp_path / "checkpoint.pt").is_file() and not (tmp_path / "checkpoint_completed.pt").exists()
    Training(tmp_path).run()
    assert not (tmp_path / "checkpoint.pt").exists() and (tmp_path / "checkpoint_completed.pt").is_file()
    assert Training(tmp_path).run().losses == unbroken[1].losses


@pytest.mark.parametrize(("before", "change"), [({"dropout": 0.5}, {}), ({"seed": 1}, {}), ({}, {"resume": False})])
def test_other_training_begins_anew(tmp_path, unbroken, before, change):
    Training(tmp_path, **before).run(kill_after_iteration=7)
    checkpoint = (tmp_path / "checkpoint.pt").read_bytes()
    assert Training(tmp_path, **change).run().losses == unbroken[1].losses
    assert (tmp_path / "checkpoint_aside.pt").read_bytes() == checkpoint


def test_epoch_is_saved_whole_or_not_at_all(tmp_path, monkeypatch):
    training = Training(tmp_path).run(kill_after_iteration=7)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    monkeypatch.setattr(Path, "write_bytes", lambda path, content: (path.write_text("half"), 1 / 0))
    checkpoint = TrainingCheckpointLoader(str(tmp_path / "checkpoint.pt"), {})
    with pytest.raises(ZeroDivisionError):
        checkpoint.save(training.trainer)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.json", "best.pt", "checkpoint.pt"]


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "other"])
def test_damaged_checkpoint(tmp_path, damage):
    Training(tmp_path).run(kill_after_iteration=7)
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()
    if damage == "other":
        torch.save({"weight": torch.zeros(2)}, path)
    else:
        path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "text": b"checkpoint"}[damage])
    with pytest.raises(UserError, match=r"checkpoint\.pt: damaged checkpoint; delete it or start over"):
        Training(tmp_path).run()
    assert len(Training(tmp_path, resume=False).run().losses) == 3 * EPOCHS
